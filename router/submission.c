/*
 * Requests as they come from the fronts: who they are, whether they run already, here or on a rank
 * that a router before has left them to, and where they go if not.
 */
#include <stdio.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "router/generation_limits.h"
#include "router/service_admit.h"
#include "router/service_state.h"

int64_t rt_service_deadline_ns(const struct rt_service *service, int64_t arrival_ns,
                               int64_t deadline_ns)
{
    int64_t latest_ns = arrival_ns + service->options.request_timeout_ns;
    return deadline_ns < latest_ns ? deadline_ns : latest_ns;
}

/* ---- a stream of it */

static bool came_too_late(const struct rt_service *service, const struct rt_generation *generation)
{
    return service->draining &&
           (generation->arrival_ns == 0 || generation->arrival_ns >= service->draining_since_ns);
}

static enum bt_status check(struct rt_service *service, const struct rt_generation *generation,
                            struct bt_error *error, uint32_t *ret_max_tokens)
{
    if (came_too_late(service, generation)) {
        bt_error_set(error, BT_ERR_UNAVAILABLE, "the router takes no new requests");
        return rt_service_refused(service, BT_ERR_UNAVAILABLE, NULL, 0);
    }
    enum bt_status status =
        rt_generation_check(generation, rt_service_max_model_len(service),
                            service->checkpoint.vocab_size, error, ret_max_tokens);
    if (status == BT_OK) {
        status = rt_service_check_tenant(service, generation, error, ret_max_tokens);
    }
    /* What is held back until the end counts for one. */
    if (status == BT_OK && generation->resume_tokens > (uint64_t)*ret_max_tokens + 1) {
        status = bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                              "Last-Event-ID: nobody has %u tokens of an answer of at most %u",
                              generation->resume_tokens, *ret_max_tokens);
    }
    return status;
}

/* Who it is, in full; its seed, if the client gave none. */
static enum bt_status identify(struct rt_stream *stream, const struct rt_generation *generation,
                               struct bt_error *error)
{
    struct rt_generation named = *generation;
    named.request_id = stream->name;
    const char *tenant = rt_generation_tenant(generation);
    uint64_t seed = generation->sampling.seed;
    bool done =
        generation->has_seed || rt_request_seed(tenant, stream->name, generation->index, &seed);
    stream->sampling.seed = seed;
    done = done && rt_request_key(tenant, &named, &stream->sampling, &stream->key);
    stream->id = rt_request_number(&stream->key);
    return done ? BT_OK : bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a request");
}

static enum bt_status make_stream(struct rt_service *service,
                                  const struct rt_generation *generation,
                                  const struct rt_sink *sink, struct bt_error *error,
                                  struct rt_stream **ret_stream)
{
    uint32_t max_tokens = 0;
    struct rt_stream *stream = NULL;
    enum bt_status status = check(service, generation, error, &max_tokens);
    if (status == BT_OK) {
        status = rt_stream_create(service->tokenizer, generation, max_tokens, sink, error, &stream);
    }
    if (status == BT_OK) {
        status = identify(stream, generation, error);
    }
    if (status != BT_OK) {
        rt_stream_destroy(stream);
        return status;
    }
    stream->caller = generation->caller;
    stream->expected_tokens =
        rt_service_expected_tokens(service, generation, stream->sampling.max_tokens);
    stream->arrival_ns = generation->arrival_ns > 0 ? generation->arrival_ns : bt_clock_now_ns();
    stream->deadline_ns =
        rt_service_deadline_ns(service, stream->arrival_ns, generation->deadline_ns);
    struct rt_trace_context trace = generation->trace;
    if (trace.span == 0) {
        rt_service_trace_begin(service, NULL, &trace);
    }
    rt_stages_init(&stream->stages, &trace, stream->arrival_ns, bt_clock_now_ns());
    *ret_stream = stream;
    return BT_OK;
}

/* ---- into the core */

static uint32_t find_cached(struct rt_service *service, const struct rt_stream *stream,
                            struct rt_cached ret_cached[RT_CACHED_MAX])
{
    return service->has_fingerprint
               ? rt_worker_prefixes_find(service->prefixes, &service->fingerprint, stream->prompt,
                                         stream->prompt_tokens, (uint32_t)stream->id, ret_cached)
               : 0;
}

static bool adopt_from(struct rt_service *service, struct rt_stream *stream,
                       const struct rt_request_spec *spec, struct rt_worker_link *link,
                       uint64_t epoch)
{
    int64_t now_ns = bt_clock_now_ns();
    if (rt_core_adopt(service->core, spec, link->ref, epoch, now_ns, NULL) != BT_OK) {
        return false;
    }
    stream->adopted_epoch = epoch;
    stream->dispatched_ns = now_ns;
    snprintf(stream->decode_worker, RT_WORKER_ID_SIZE, "%s", link->id);
    bt_log_info(stream->id, "%s goes on where it runs, on %s", stream->name, link->id);
    bt_counter_add(service->metrics.adopted, 1);
    Baton__V1__AdoptRequest request = BATON__V1__ADOPT_REQUEST__INIT;
    request.request_id = stream->id;
    request.epoch = epoch;
    request.resume_key = (ProtobufCBinaryData){RT_DIGEST_BYTES, stream->key.bytes};
    request.router_incarnation = service->incarnation;
    enum bt_status status = rt_worker_link_adopt(link, &request);
    if (status != BT_OK) {
        rt_service_on_adopted(link, stream->id, epoch, status, "the adoption could not be sent");
    }
    return true;
}

/* From the first rank that runs it. What others run under its id is of no use to anybody. */
static bool adopt(struct rt_service *service, struct rt_stream *stream,
                  const struct rt_request_spec *spec)
{
    bool adopted = false;
    const struct rt_orphan *next;
    for (const struct rt_orphan *at = rt_orphans_find(service->orphans, stream->id); at;
         at = next) {
        next = at->same_next;
        struct rt_worker_link *link = rt_service_link(service, at->worker);
        bool up = link && link->client && !link->broken;
        uint64_t epoch = at->epoch;
        bool mine = rt_stream_resumable(stream) && rt_digest_equal(&at->key, &stream->key);
        rt_orphans_remove(service->orphans, at);
        if (up && mine && !adopted) {
            adopted = adopt_from(service, stream, spec, link, epoch);
        } else if (up) {
            rt_worker_link_cancel(link, stream->id, epoch);
        }
    }
    return adopted;
}

/* One that runs here as well was submitted before its rank told of it. */
static bool needless(const struct rt_service *service, const Baton__V1__Orphan *orphan)
{
    const struct rt_stream *stream = bt_map_get(&service->streams, orphan->request_id);
    return stream && stream->adopted_epoch != orphan->epoch &&
           orphan->resume_key.len == RT_DIGEST_BYTES &&
           memcmp(orphan->resume_key.data, stream->key.bytes, RT_DIGEST_BYTES) == 0;
}

void rt_service_hear_orphans(struct rt_service *service, struct rt_worker_link *link,
                             Baton__V1__Orphan *const *orphans, size_t count)
{
    if (link->role != RT_ROLE_DECODE) {
        return;
    }
    rt_orphans_hear(service->orphans, link->ref, orphans, count);
    for (size_t i = 0; i < count && i < RT_ORPHANS_A_WORKER; i++) {
        if (needless(service, orphans[i])) {
            rt_worker_link_cancel(link, orphans[i]->request_id, orphans[i]->epoch);
        }
    }
}

/* What is refused is not charged. */
static enum bt_status submit(struct rt_service *service, struct rt_stream *stream,
                             const struct rt_request_spec *spec, struct bt_error *error)
{
    int64_t retry_after_ns = 0;
    enum bt_status status = rt_service_charge(service, stream, error);
    if (status != BT_OK) {
        return status;
    }
    status = rt_core_submit(service->core, spec, bt_clock_now_ns(), error, &retry_after_ns);
    if (status != BT_OK) {
        rt_service_settle(service, stream);
        rt_service_refused(service, status, NULL, retry_after_ns);
    }
    return status;
}

enum bt_status rt_service_enter(struct rt_service *service, struct rt_stream *stream,
                                struct bt_error *error)
{
    int64_t now_ns = bt_clock_now_ns();
    if (!bt_map_put(&service->streams, stream->id, stream)) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a request");
    }
    struct rt_cached cached[RT_CACHED_MAX];
    struct rt_request_spec spec = {
        .id = stream->id,
        .prompt_tokens = stream->prompt_tokens,
        .max_tokens = stream->sampling.max_tokens,
        .arrival_ns = stream->arrival_ns,
        .deadline_ns = stream->deadline_ns,
        .tenant = stream->caller.tenant,
        .priority = stream->caller.priority,
        .prompt_class = stream->caller.prompt_class,
        .slo_ttft_ns =
            rt_access_slo_ttft_ns(service->access, stream->caller.tenant, stream->caller.priority),
        .cached = cached,
        .cached_count = find_cached(service, stream, cached),
    };
    enum bt_status status = BT_OK;
    if (!adopt(service, stream, &spec)) {
        status = submit(service, stream, &spec, error);
    }
    if (status != BT_OK) {
        bt_map_remove(&service->streams, stream->id);
        return status;
    }
    bt_loop_timer_set(service->timer, now_ns); /* if this is not in a round, begin one */
    return BT_OK;
}

void rt_service_follow(struct rt_service *service, struct rt_stream *stream)
{
    struct bt_error error = {0};
    if (stream && rt_service_enter(service, stream, &error) != BT_OK) {
        rt_stream_end(stream, RT_FINISH_ERROR, error.status, error.text, bt_clock_now_ns(),
                      &service->metrics);
        rt_stream_destroy(stream);
    }
}

/* ---- one that has the same id as another that is not over */

static enum bt_status in_use(const struct rt_stream *stream, struct bt_error *error)
{
    return bt_error_set(error, BT_ERR_ALREADY_EXISTS, "%.64s: another request has its number",
                        stream->name);
}

/* The one whose front is still to be told of its end, if any is. */
static struct rt_stream *owner(struct rt_stream *stream)
{
    struct rt_stream *last = stream->successor ? stream->successor : stream;
    return last->abandoned || last->ended ? NULL : last;
}

/* What was delivered is all that is needed of it, and something still comes. */
static bool can_go_on(const struct rt_service *service, const struct rt_stream *stream)
{
    struct rt_request_view view;
    return rt_stream_resumable(stream) && !stream->stopped &&
           rt_core_request(service->core, stream->id, &view);
}

static enum bt_status go_on(struct rt_service *service, struct rt_stream *stream,
                            struct rt_stream *fresh, struct bt_error *error)
{
    const uint32_t *tokens;
    uint32_t count = rt_core_delivered(service->core, stream->id, &tokens);
    if (!rt_stream_hand_over(stream, fresh, tokens, count)) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a request");
    }
    rt_core_set_deadline(service->core, stream->id, stream->deadline_ns);
    if (!stream->catching_up) {
        stream->catching_up = true;
        stream->next_catching = service->catching;
        service->catching = stream;
    }
    bt_loop_timer_set(service->timer, bt_clock_now_ns());
    return BT_OK;
}

/* `fresh` takes the place of what `stream` and what waits behind it were for. */
static enum bt_status take_over(struct rt_service *service, struct rt_stream *stream,
                                struct rt_stream *fresh, struct bt_error *error)
{
    struct rt_stream *before = owner(stream);
    if (before && !rt_digest_equal(&before->key, &fresh->key)) {
        return in_use(fresh, error);
    }
    struct rt_sink old = {0};
    if (before) {
        bt_log_info(stream->id, "%s is taken over by another connection", stream->name);
        bt_counter_add(service->metrics.taken_over, 1);
        old = before->sink;
    }
    if (before == stream && can_go_on(service, stream)) {
        enum bt_status status = go_on(service, stream, fresh, error);
        if (status != BT_OK) {
            return status;
        }
        rt_stream_destroy(fresh);
    } else {
        if (before == stream) {
            stream->abandoned = true;
            rt_core_finish(service->core, stream->id, RT_FINISH_CANCELLED, bt_clock_now_ns());
        }
        rt_stream_destroy(stream->successor);
        stream->successor = fresh; /* when the other's end is carried out */
        bt_loop_timer_set(service->timer, bt_clock_now_ns());
    }
    if (before) {
        rt_sink_lost(&old);
    }
    return BT_OK;
}

/* ---- what fronts call */

enum bt_status rt_service_submit(struct rt_service *service, const struct rt_generation *generation,
                                 const struct rt_sink *sink, struct bt_error *error,
                                 uint64_t *ret_request)
{
    struct rt_stream *stream;
    enum bt_status status = make_stream(service, generation, sink, error, &stream);
    if (status != BT_OK) {
        bt_counter_add(service->metrics.refused, 1);
        return status;
    }
    uint64_t id = stream->id;
    struct rt_stream *before = bt_map_get(&service->streams, id);
    status = before ? take_over(service, before, stream, error)
                    : rt_service_enter(service, stream, error);
    if (status != BT_OK) {
        rt_stream_destroy(stream);
        bt_counter_add(service->metrics.refused, 1);
        return status;
    }
    if (generation->resume_tokens > 0) {
        bt_counter_add(service->metrics.resumed, 1);
    }
    *ret_request = id;
    return BT_OK;
}

void rt_service_abandon(struct rt_service *service, uint64_t request)
{
    struct rt_stream *stream = bt_map_get(&service->streams, request);
    if (!stream) {
        return;
    }
    if (stream->successor) { /* the other has been let go already */
        rt_stream_destroy(stream->successor);
        stream->successor = NULL;
        return;
    }
    stream->abandoned = true;
    if (!service->closing) {
        rt_core_finish(service->core, request, RT_FINISH_CANCELLED, bt_clock_now_ns());
        bt_loop_timer_set(service->timer, bt_clock_now_ns());
    }
}
