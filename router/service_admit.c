/* What a tenant may ask for, and what it is charged. */
#include "router/service_admit.h"

#include <inttypes.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "router/service_state.h"

/* What a drain or a lack of workers is thought to take. */
#define UNAVAILABLE_RETRY_NS BT_NS_PER_S

struct rt_access *rt_service_access(struct rt_service *service)
{
    return service->access;
}

const struct rt_refusal *rt_service_refusal(const struct rt_service *service)
{
    return &service->refusal;
}

enum bt_status rt_service_refused(struct rt_service *service, enum bt_status status,
                                  const char *code, int64_t retry_after_ns)
{
    if (status == BT_ERR_UNAVAILABLE && retry_after_ns == 0) {
        retry_after_ns = UNAVAILABLE_RETRY_NS;
    }
    service->refusal = (struct rt_refusal){retry_after_ns, code};
    return status;
}

static void on_tenant(void *context, uint32_t tenant, const struct rt_tenant_limits *limits)
{
    struct rt_service *service = context;
    if (rt_core_tenant_set(service->core, tenant, limits) != BT_OK) {
        bt_log_error(0, "no memory for the limits of a tenant");
    }
}

enum bt_status rt_service_admit_start(struct rt_service *service, struct bt_error *error)
{
    enum bt_status status = rt_access_create(service->loop, &service->options.access,
                                             service->registry, error, &service->access);
    if (status == BT_OK) {
        rt_access_on_change(service->access, on_tenant, service);
    }
    return status;
}

static enum bt_status admit(struct rt_service *service, uint32_t tenant, struct bt_error *error)
{
    int64_t now_ns = bt_clock_now_ns(), wait_ns = 0;
    if (service->draining) {
        bt_error_set(error, BT_ERR_UNAVAILABLE, "the router takes no new requests");
        return rt_service_refused(service, BT_ERR_UNAVAILABLE, NULL, 0);
    }
    enum bt_status status = rt_core_room(service->core, tenant, now_ns, error, &wait_ns);
    if (status != BT_OK) {
        return rt_service_refused(service, status, NULL, wait_ns);
    }
    status = rt_access_check_rate(service->access, tenant, now_ns, error, &wait_ns);
    if (status != BT_OK) {
        return rt_service_refused(service, status, RT_CODE_RATE_LIMIT, wait_ns);
    }
    rt_access_take_request(service->access, tenant, now_ns);
    return BT_OK;
}

enum bt_status rt_service_admit(struct rt_service *service, uint32_t tenant, struct bt_error *error)
{
    enum bt_status status = admit(service, tenant, error);
    bt_counter_add(service->metrics.refused, status != BT_OK);
    return status;
}

uint32_t rt_service_priority(const struct rt_service *service, uint32_t tenant, int64_t asked)
{
    uint32_t class = rt_access_tenant(service->access, tenant)->priority;
    if (asked <= class) {
        return class;
    }
    return asked < RT_PRIORITIES ? (uint32_t)asked : RT_PRIORITIES - 1;
}

enum bt_status rt_service_check_tenant(const struct rt_service *service,
                                       const struct rt_generation *generation,
                                       struct bt_error *error, uint32_t *max_tokens)
{
    const struct rt_tenant_spec *spec =
        rt_access_tenant(service->access, generation->caller.tenant);
    uint32_t prompt_limit = spec->max_prompt_tokens, output_limit = spec->max_output_tokens;
    if (prompt_limit > 0 && generation->prompt_tokens > prompt_limit) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "the prompt has %" PRIu32 " tokens, this client's limit is %" PRIu32,
                            generation->prompt_tokens, prompt_limit);
    }
    if (output_limit > 0 && generation->sampling.max_tokens > output_limit) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "max_tokens is %" PRIu32 ", this client's limit is %" PRIu32,
                            generation->sampling.max_tokens, output_limit);
    }
    if (output_limit > 0 && *max_tokens > output_limit) {
        *max_tokens = output_limit;
    }
    return BT_OK;
}

/* Where the client names no limit of its own, that of the context says nothing of what comes. */
uint64_t rt_service_expected_tokens(const struct rt_service *service,
                                    const struct rt_generation *generation, uint32_t max_tokens)
{
    uint32_t usual = service->options.core.expected_output_tokens;
    bool named = generation->sampling.max_tokens > 0;
    uint32_t output = named || max_tokens < usual ? max_tokens : usual;
    return (uint64_t)generation->prompt_tokens + output;
}

uint64_t rt_service_price(const struct rt_service *service, const struct rt_generation *generation)
{
    uint32_t limit =
        rt_access_tenant(service->access, generation->caller.tenant)->max_output_tokens;
    uint32_t context = rt_service_max_model_len(service), prompt = generation->prompt_tokens;
    uint32_t max_tokens = generation->sampling.max_tokens;
    if (max_tokens == 0) {
        max_tokens = prompt < context ? context - prompt : 0;
        max_tokens = limit > 0 && limit < max_tokens ? limit : max_tokens;
    }
    return rt_service_expected_tokens(service, generation, max_tokens);
}

static enum bt_status check_count(const struct rt_service *service, uint32_t tenant, size_t count,
                                  struct bt_error *error)
{
    uint32_t limit = rt_access_tenant(service->access, tenant)->limits.max_waiting;
    uint32_t capacity = service->options.core.queue_capacity;
    uint32_t most = limit > 0 && limit < capacity ? limit : capacity;
    return count <= most
               ? BT_OK
               : bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                              "n: the request has %zu choices, %" PRIu32 " may wait", count, most);
}

enum bt_status rt_service_check_several(struct rt_service *service, uint32_t tenant, size_t count,
                                        uint64_t tokens, struct bt_error *error)
{
    int64_t wait_ns = 0;
    enum bt_status status = check_count(service, tenant, count, error);
    if (status == BT_OK) {
        status = rt_access_check_tokens(service->access, tenant, tokens, bt_clock_now_ns(), error,
                                        &wait_ns);
    }
    if (status != BT_OK) {
        bt_counter_add(service->metrics.refused, 1);
        rt_service_refused(service, status, RT_CODE_RATE_LIMIT, wait_ns);
    }
    return status;
}

enum bt_status rt_service_charge(struct rt_service *service, struct rt_stream *stream,
                                 struct bt_error *error)
{
    int64_t wait_ns = 0;
    enum bt_status status =
        rt_access_take_tokens(service->access, stream->caller.tenant, stream->expected_tokens,
                              bt_clock_now_ns(), error, &wait_ns);
    if (status != BT_OK) {
        return rt_service_refused(service, status, RT_CODE_RATE_LIMIT, wait_ns);
    }
    stream->charged_tokens = stream->expected_tokens;
    return BT_OK;
}

void rt_service_settle(struct rt_service *service, struct rt_stream *stream)
{
    /* One that was taken over has generated what its new front has yet to be told. */
    uint32_t generated = stream->completion_tokens > stream->catch_up_count
                             ? stream->completion_tokens
                             : stream->catch_up_count;
    int64_t used = generated > 0 ? (int64_t)stream->prompt_tokens + generated : 0;
    rt_access_settle_tokens(service->access, stream->caller.tenant,
                            (int64_t)stream->charged_tokens - used, bt_clock_now_ns());
    stream->charged_tokens = (uint64_t)used;
}
