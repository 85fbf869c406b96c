/* What clients and workers say of requests. */
#include <stdlib.h>

#include "common/base/clock.h"
#include "router/core_state.h"

/* ---- requests, from the client's side */

/* Whether those who would compute the prompt have been there. */
static enum bt_status check_prompt(const struct rt_core *core, const struct rt_request_spec *spec,
                                   struct bt_error *error)
{
    const struct rt_worker_table *workers = &core->workers;
    enum rt_local_prefill mode = core->options.local_prefill;
    uint32_t longest = rt_placement_longest_local(workers);
    if (mode != RT_LOCAL_PREFILL_ALWAYS && workers->known[RT_ROLE_PREFILL]) {
        return BT_OK;
    }
    if (mode == RT_LOCAL_PREFILL_NEVER ||
        (mode == RT_LOCAL_PREFILL_AUTO && !workers->known_local)) {
        return bt_error_set(error, BT_ERR_UNAVAILABLE, "no prefill worker has registered yet");
    }
    if (!workers->known_local) {
        return bt_error_set(error, BT_ERR_UNAVAILABLE,
                            "no decode worker that computes prompts has registered yet");
    }
    if (longest == 0 || spec->prompt_tokens <= longest) {
        return BT_OK;
    }
    return bt_error_set(
        error, mode == RT_LOCAL_PREFILL_ALWAYS ? BT_ERR_INVALID_ARGUMENT : BT_ERR_UNAVAILABLE,
        "%u prompt tokens are more than the %u that decode workers compute, and "
        "there is no prefill worker",
        spec->prompt_tokens, longest);
}

/* Whether those who would run it have been there. */
static enum bt_status check_known(const struct rt_core *core, const struct rt_request_spec *spec,
                                  struct bt_error *error)
{
    enum bt_status status = check_prompt(core, spec, error);
    if (status != BT_OK) {
        return status;
    }
    if (!core->workers.known[RT_ROLE_DECODE]) {
        return bt_error_set(error, BT_ERR_UNAVAILABLE, "no decode worker has registered yet");
    }
    return BT_OK;
}

static enum bt_status check_size(const struct rt_core *core, const struct rt_request_spec *spec,
                                 struct bt_error *error)
{
    enum bt_status status = check_known(core, spec, error);
    if (status != BT_OK) {
        return status;
    }
    uint32_t pages = rt_request_full_pages(spec);
    uint32_t largest = rt_placement_largest_pool(&core->workers);
    if (largest > 0 && pages > largest) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "%u prompt and %u output tokens need %u pages of kv cache, %u more "
                            "than the largest decode worker has",
                            spec->prompt_tokens, spec->max_tokens, pages, pages - largest);
    }
    if (spec->id == 0 || bt_map_get(&core->requests, spec->id)) {
        return bt_error_set(error, BT_ERR_ALREADY_EXISTS, "request id is in use");
    }
    return BT_OK;
}

/* Whether there is room, and time. */
static enum bt_status check_load(struct rt_core *core, const struct rt_request_spec *spec,
                                 struct bt_error *error, int64_t *ret_retry_after_ns)
{
    int64_t ttft_ns =
        rt_admission_predict_ns(&core->admission, &core->queue, &core->workers, spec, core->now_ns);
    const struct rt_tenant *tenant = rt_request_queue_find_tenant(&core->queue, spec->tenant);
    if (core->queue.count >= core->options.queue_capacity) {
        core->counts.shed_queue++;
        *ret_retry_after_ns = ttft_ns;
        return bt_error_set(error, BT_ERR_EXHAUSTED, "the queue is full: %u requests wait",
                            core->queue.count);
    }
    if (tenant && tenant->limits.max_waiting > 0 && tenant->waiting >= tenant->limits.max_waiting) {
        core->counts.shed_tenant++;
        *ret_retry_after_ns = ttft_ns;
        return bt_error_set(error, BT_ERR_EXHAUSTED, "%u requests of this client wait already",
                            tenant->waiting);
    }
    if (spec->slo_ttft_ns > 0 && ttft_ns > spec->slo_ttft_ns) {
        core->counts.shed_slo++;
        *ret_retry_after_ns = ttft_ns - spec->slo_ttft_ns;
        return bt_error_set(error, BT_ERR_EXHAUSTED,
                            "the first token is expected after %lld ms, the limit is %lld ms",
                            (long long)(ttft_ns / BT_NS_PER_MS),
                            (long long)(spec->slo_ttft_ns / BT_NS_PER_MS));
    }
    return BT_OK;
}

static struct rt_request *request_create(struct rt_core *core, const struct rt_request_spec *spec)
{
    struct rt_request *request = calloc(1, sizeof *request);
    if (!request) {
        return NULL;
    }
    request->spec = *spec;
    request->spec.cached = request->cached;
    if (spec->cached_count > RT_CACHED_MAX) {
        request->spec.cached_count = RT_CACHED_MAX;
    }
    for (uint32_t i = 0; i < request->spec.cached_count; i++) {
        request->cached[i] = spec->cached[i];
    }
    request->serial = core->next_serial;
    request->prefill = request->decode = RT_NO_WORKER;
    return request;
}

static bool request_enter(struct rt_core *core, struct rt_request *request)
{
    if (!rt_core_reserve_actions(core, ACTIONS_PER_REQUEST) ||
        !rt_request_queue_tenant(&core->queue, request->spec.tenant) ||
        !bt_map_put(&core->requests, request->spec.id, request)) {
        return false;
    }
    core->next_serial++;
    core->counts.submitted++;
    rt_deadlines_insert(&core->deadlines, request);
    rt_admission_hear(&core->admission, core->queue.count > 0, core->now_ns);
    rt_request_queue_submit(&core->queue, request, core->workers.line.line, core->now_ns);
    rt_admission_submitted(&core->admission, request, core->now_ns);
    core->dispatch_due = true;
    return true;
}

static void tell_retry(enum bt_status status, int64_t retry_after_ns, int64_t *ret_retry_after_ns)
{
    if (status == BT_ERR_EXHAUSTED && ret_retry_after_ns) {
        *ret_retry_after_ns =
            retry_after_ns > RT_RETRY_AFTER_MIN_NS ? retry_after_ns : RT_RETRY_AFTER_MIN_NS;
    }
}

enum bt_status rt_core_room(struct rt_core *core, uint32_t tenant, int64_t now_ns,
                            struct bt_error *error, int64_t *ret_retry_after_ns)
{
    BT_ASSERT(tenant < RT_MAX_TENANTS);
    const struct rt_request_spec least = {.prompt_tokens = 1, .max_tokens = 1, .tenant = tenant};
    int64_t retry_after_ns = 0;
    rt_core_hear_time(core, now_ns);
    enum bt_status status = check_known(core, &least, error);
    if (status == BT_OK) {
        status = check_load(core, &least, error, &retry_after_ns);
    }
    tell_retry(status, retry_after_ns, ret_retry_after_ns);
    return status;
}

enum bt_status rt_core_submit(struct rt_core *core, const struct rt_request_spec *spec,
                              int64_t now_ns, struct bt_error *error, int64_t *ret_retry_after_ns)
{
    BT_ASSERT(spec->prompt_tokens > 0 && spec->max_tokens > 0);
    BT_ASSERT(spec->tenant < RT_MAX_TENANTS && spec->priority < RT_PRIORITIES);
    rt_core_hear_time(core, now_ns);
    enum bt_status status = check_size(core, spec, error);
    int64_t retry_after_ns = 0;
    if (status == BT_OK) {
        status = check_load(core, spec, error, &retry_after_ns);
    }
    tell_retry(status, retry_after_ns, ret_retry_after_ns);
    if (status != BT_OK) {
        return status;
    }
    struct rt_request *request = request_create(core, spec);
    if (!request || !request_enter(core, request)) {
        free(request);
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a request");
    }
    return BT_OK;
}

/* It is on the rank, whose reports have its pages. */
static bool adopted_enter(struct rt_core *core, struct rt_request *request,
                          struct rt_worker *worker, uint64_t epoch)
{
    if (!rt_core_reserve_actions(core, ACTIONS_PER_REQUEST) ||
        !rt_request_queue_tenant(&core->queue, request->spec.tenant) ||
        !bt_map_put(&core->requests, request->spec.id, request)) {
        return false;
    }
    core->next_serial++;
    core->counts.submitted++;
    core->counts.adopted++;
    rt_deadlines_insert(&core->deadlines, request);
    rt_request_queue_adopt(&core->queue, request, core->workers.line.line);
    request->state = RT_DECODING;
    request->attempt = 1;
    request->epoch = epoch;
    request->taken_ns = request->dispatched_ns = core->now_ns;
    uint32_t expected = rt_output_mean_expect(&core->outputs, request->spec.tenant,
                                              request->spec.prompt_class, request->spec.max_tokens);
    rt_worker_place_decode(&core->workers, worker, request, rt_request_pages(request, expected));
    rt_worker_adopted(worker, request);
    rt_worker_reindex(&core->workers, worker);
    return true;
}

enum bt_status rt_core_adopt(struct rt_core *core, const struct rt_request_spec *spec,
                             rt_worker_ref decode, uint64_t epoch, int64_t now_ns,
                             struct bt_error *error)
{
    BT_ASSERT(spec->prompt_tokens > 0 && spec->max_tokens > 0);
    BT_ASSERT(spec->tenant < RT_MAX_TENANTS && spec->priority < RT_PRIORITIES);
    rt_core_hear_time(core, now_ns);
    struct rt_worker *worker = rt_core_worker_get(core, decode);
    if (!worker || worker->life.lost || worker->info.role != RT_ROLE_DECODE || epoch == 0) {
        return bt_error_set(error, BT_ERR_UNAVAILABLE, "the rank that runs it is gone");
    }
    if (spec->id == 0 || bt_map_get(&core->requests, spec->id)) {
        return bt_error_set(error, BT_ERR_ALREADY_EXISTS, "request id is in use");
    }
    struct rt_request *request = request_create(core, spec);
    if (!request || !adopted_enter(core, request, worker, epoch)) {
        free(request);
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a request");
    }
    return BT_OK;
}

void rt_core_set_deadline(struct rt_core *core, uint64_t id, int64_t deadline_ns)
{
    struct rt_request *request = bt_map_get(&core->requests, id);
    if (request) {
        rt_order_remove(&core->deadlines, &request->deadline);
        request->spec.deadline_ns = deadline_ns;
        rt_deadlines_insert(&core->deadlines, request);
    }
}

int64_t rt_core_predict_ttft_ns(struct rt_core *core, const struct rt_request_spec *spec,
                                int64_t now_ns)
{
    rt_core_hear_time(core, now_ns);
    return rt_admission_predict_ns(&core->admission, &core->queue, &core->workers, spec,
                                   core->now_ns);
}

enum bt_status rt_core_tenant_set(struct rt_core *core, uint32_t index,
                                  const struct rt_tenant_limits *limits)
{
    struct rt_tenant *tenant = rt_request_queue_tenant(&core->queue, index);
    if (!tenant) {
        return BT_ERR_NO_MEMORY;
    }
    rt_request_queue_set_limits(&core->queue, tenant, limits);
    core->dispatch_due = true;
    return BT_OK;
}

void rt_core_finish(struct rt_core *core, uint64_t id, enum rt_finish finish, int64_t now_ns)
{
    rt_core_hear_time(core, now_ns);
    struct rt_request *request = bt_map_get(&core->requests, id);
    if (!request) {
        return;
    }
    BT_ASSERT(finish != RT_FINISH_ERROR);
    rt_attempt_release(core, request, RT_REST_HELD, true);
    rt_request_end(core, request, finish, BT_OK, NULL);
}

/* ---- requests, from the workers' side */

static void succeeded(struct rt_core *core, rt_worker_ref ref)
{
    struct rt_worker *worker = rt_core_worker_get(core, ref);
    if (worker && worker->health.breaker != RT_BREAKER_CLOSED) {
        rt_core_worker_succeeded(core, worker);
    }
}

static void reserve_refused(struct rt_core *core, struct rt_request *request, enum bt_status status,
                            const char *text)
{
    /* Only EXHAUSTED says that nothing was taken: another answer may stand for one that got lost.
     */
    enum rt_rest rest = status == BT_ERR_EXHAUSTED ? RT_REST_DECODED : RT_REST_HELD;
    rt_attempt_failed(core, request, request->decode, rest, status, text);
}

void rt_core_reserved(struct rt_core *core, uint64_t id, uint32_t attempt, rt_worker_ref decode,
                      enum bt_status status, const char *text, uint64_t epoch, int64_t now_ns)
{
    rt_core_hear_time(core, now_ns);
    struct rt_request *request = bt_map_get(&core->requests, id);
    if (!request || request->attempt != attempt || request->state != RT_RESERVING) {
        bool held = request && request->attempt == attempt && request->epoch == epoch;
        if (status == BT_OK && !held) {
            rt_core_emit_late_cancel(core, id, attempt, decode, epoch);
        }
        return;
    }
    if (status == BT_OK && epoch == 0) {
        status = BT_ERR_PROTOCOL;
        text = "a landing without epoch";
    }
    if (status != BT_OK) {
        reserve_refused(core, request, status, text);
        return;
    }
    request->epoch = epoch;
    if (request->local) {
        request->state = RT_DECODING;
        request->dispatched_ns = core->now_ns;
        return;
    }
    if (!rt_core_settle_prefill(core, request)) {
        rt_attempt_release(core, request, RT_REST_HELD, true);
        rt_request_requeue(core, request);
        return;
    }
    request->state = RT_PREFILLING;
    request->run_open = true;
    request->dispatched_ns = core->now_ns;
    rt_core_emit(core, RT_ACTION_PREFILL, request);
}

void rt_core_landed(struct rt_core *core, uint64_t id, uint32_t attempt, uint32_t pages)
{
    struct rt_request *request = bt_map_get(&core->requests, id);
    if (request && request->attempt == attempt && request->state == RT_RESERVING) {
        rt_worker_resize(&core->workers, request, pages);
    }
}

/* Its client is about to have a first token. */
static void note_bits(const struct rt_core *core, struct rt_request *request)
{
    if (request->bits != RT_BITS_NONE) {
        return;
    }
    const struct rt_worker *prefill = rt_core_worker_get(core, request->prefill);
    bool wide = prefill ? prefill->info.group.size > 1 : core->workers.wide_prefills > 0;
    request->bits = wide && !request->local ? RT_BITS_WIDE : RT_BITS_ONE;
}

void rt_core_first_token(struct rt_core *core, uint64_t id, uint32_t attempt,
                         const struct rt_token *token, int64_t now_ns)
{
    rt_core_hear_time(core, now_ns);
    struct rt_request *request = bt_map_get(&core->requests, id);
    if (!request || request->attempt != attempt || !request->run_open) {
        return;
    }
    if (request->backlog_tokens > 0 && token->index == 0) {
        rt_admission_first_token(&core->admission, request, core->now_ns);
    }
    rt_worker_prompt_done(&core->workers, request, core->now_ns);
    core->dispatch_due = true;
    if (token->index != 0) {
        rt_attempt_failed(core, request, request->prefill, RT_REST_HELD, BT_ERR_PROTOCOL,
                          "the first token has another index than 0");
        return;
    }
    succeeded(core, request->prefill);
    note_bits(core, request);
    rt_core_deliver(core, request, request->prefill, RT_REST_HELD, token, 1);
}

void rt_core_prefill_done(struct rt_core *core, uint64_t id, uint32_t attempt, int64_t compute_ns,
                          uint32_t computed_tokens)
{
    struct rt_request *request = bt_map_get(&core->requests, id);
    if (!request || request->attempt != attempt || !request->run_open) {
        return;
    }
    struct rt_worker *worker = rt_core_worker_get(core, request->prefill);
    if (worker) {
        uint32_t tokens = computed_tokens > 0 ? computed_tokens : request->uncached_tokens;
        rt_worker_learn_line(&core->workers, worker, tokens, compute_ns);
    }
}

void rt_core_local_prefill_done(struct rt_core *core, rt_worker_ref decode, uint64_t id,
                                uint64_t epoch, int64_t compute_ns)
{
    struct rt_request *request = bt_map_get(&core->requests, id);
    struct rt_worker *worker = rt_core_worker_get(core, decode);
    if (worker && request && request->local && request->prompting && request->decode == decode &&
        request->epoch == epoch) {
        rt_worker_learn_line(&core->workers, worker, request->spec.prompt_tokens, compute_ns);
    }
}

void rt_core_prefill_ended(struct rt_core *core, uint64_t id, uint32_t attempt,
                           enum bt_status status, const char *text, int64_t now_ns)
{
    rt_core_hear_time(core, now_ns);
    struct rt_request *request = bt_map_get(&core->requests, id);
    if (!request || request->attempt != attempt || !request->run_open) {
        return;
    }
    request->run_open = false;
    rt_worker_prompt_done(&core->workers, request, core->now_ns);
    core->dispatch_due = true;
    if (status == BT_OK) {
        succeeded(core, request->prefill);
    }
    if (request->state == RT_DECODING) { /* the rank has it, whatever became of the answers */
        rt_worker_leave_prefill(&core->workers, request, core->now_ns);
        return;
    }
    if (status == BT_OK) {
        request->state = RT_DECODING;
        rt_worker_leave_prefill(&core->workers, request, core->now_ns);
        return;
    }
    rt_attempt_failed(core, request, request->prefill, RT_REST_HELD, status, text);
}

/* The rank ended it, and holds nothing any more. */
static void decode_ended(struct rt_core *core, struct rt_request *request, enum rt_finish finish,
                         enum bt_status status, const char *text)
{
    bool complete = finish == RT_FINISH_STOP || finish == RT_FINISH_LENGTH;
    if (status == BT_OK && complete && request->delivered_count == 0) {
        complete = false;
        text = "a sequence ended without a token";
    }
    if (status == BT_OK && complete) {
        rt_attempt_release(core, request, RT_REST_DECODED, false);
        rt_request_end(core, request, finish, BT_OK, NULL);
    } else if (status == BT_ERR_PREEMPTED) {
        rt_attempt_preempted(core, request, text);
    } else {
        status = status == BT_OK ? BT_ERR_PROTOCOL : status;
        rt_attempt_failed(core, request, request->decode, RT_REST_DECODED, status, text);
    }
}

void rt_core_decoded(struct rt_core *core, rt_worker_ref decode, uint64_t id, uint64_t epoch,
                     const struct rt_token *tokens, uint32_t token_count, bool finished,
                     enum rt_finish finish, enum bt_status status, const char *text, int64_t now_ns)
{
    rt_core_hear_time(core, now_ns);
    struct rt_request *request = bt_map_get(&core->requests, id);
    bool current = request && request->state >= RT_PREFILLING && request->decode == decode &&
                   request->epoch == epoch;
    if (!current) {
        /* A message may name any number of them. What is not cancelled now is at its next token. */
        if (!finished && core->stray_cancels < CANCEL_SLOTS) {
            core->stray_cancels++;
            rt_core_emit_late_cancel(core, id, 0, decode, epoch);
        }
        return;
    }
    if (token_count > 0) {
        /* It joined the batch: the handoff was accepted. */
        request->state = RT_DECODING;
        if (request->prompting) {
            request->prompting = false;
            rt_admission_first_token(&core->admission, request, core->now_ns);
        }
        note_bits(core, request);
        rt_worker_prompt_done(&core->workers, request, core->now_ns);
        succeeded(core, decode);
    }
    enum rt_rest rest = finished ? RT_REST_DECODED : RT_REST_HELD;
    if (rt_core_deliver(core, request, decode, rest, tokens, token_count) && finished) {
        decode_ended(core, request, finish, status, text);
    }
}
