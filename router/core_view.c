/* Looking into the core. */
#include "router/core_state.h"

static void view_request(const struct rt_request *request, struct rt_request_view *ret_view)
{
    *ret_view = (struct rt_request_view){
        .id = request->spec.id,
        .state = request->state,
        .attempt = request->attempt,
        .prompt_tokens = request->spec.prompt_tokens,
        .generated_tokens = request->delivered_count,
        .prefill = request->prefill,
        .decode = request->decode,
        .epoch = request->epoch,
        .arrival_ns = request->spec.arrival_ns,
        .dispatched_ns = request->dispatched_ns,
        .tenant = request->spec.tenant,
        .local = request->local && request->state != RT_QUEUED,
    };
}

bool rt_core_request(const struct rt_core *core, uint64_t id, struct rt_request_view *ret_view)
{
    const struct rt_request *request = bt_map_get(&core->requests, id);
    if (request) {
        view_request(request, ret_view);
    }
    return request != NULL;
}

uint32_t rt_core_delivered(const struct rt_core *core, uint64_t id, const uint32_t **ret_tokens)
{
    const struct rt_request *request = bt_map_get(&core->requests, id);
    *ret_tokens = request ? request->delivered : NULL;
    return request ? request->delivered_count : 0;
}

bool rt_core_worker(const struct rt_core *core, rt_worker_ref ref, struct rt_worker_view *ret_view)
{
    const struct rt_worker *worker = rt_core_worker_get(core, ref);
    if (worker) {
        *ret_view = (struct rt_worker_view){
            .info = &worker->info,
            .state = rt_worker_state(worker),
            .last_heartbeat_ns = worker->last_heartbeat_ns,
            .projected_pages = (uint32_t)rt_worker_projected_pages(worker),
            .why_lost = worker->why_lost,
            .breaker = worker->health.breaker,
            .breaker_until_ns = worker->health.open_until_ns,
            .requests = worker->request_count,
            .ahead_ns = rt_placement_ahead_ns(worker, core->now_ns),
            .prefill_base_ns = worker->line.line.base_ns,
            .prefill_token_ns = worker->line.line.token_ns,
        };
    }
    return worker != NULL;
}

bool rt_core_next_request(const struct rt_core *core, size_t *cursor,
                          struct rt_request_view *ret_view)
{
    uint64_t id;
    void *request;
    if (!bt_map_next(&core->requests, cursor, &id, &request)) {
        return false;
    }
    view_request(request, ret_view);
    return true;
}

bool rt_core_next_worker(const struct rt_core *core, size_t *cursor, rt_worker_ref *ret_worker)
{
    while (*cursor < core->workers.count) {
        const struct rt_worker *worker = core->workers.workers[(*cursor)++];
        if (worker) {
            *ret_worker = worker->ref;
            return true;
        }
    }
    return false;
}

rt_worker_ref rt_core_next_lost(const struct rt_core *core, rt_worker_ref ref)
{
    const struct rt_worker *worker = core->workers.lost_first;
    if (ref != RT_NO_WORKER) {
        worker = rt_core_worker_get(core, ref)->lost_next;
    }
    return worker ? worker->ref : RT_NO_WORKER;
}

uint32_t rt_core_live_workers(const struct rt_core *core)
{
    return core->workers.live_count[RT_ROLE_PREFILL] + core->workers.live_count[RT_ROLE_DECODE];
}

uint64_t rt_core_liveness(const struct rt_core *core)
{
    return core->workers.liveness;
}

uint32_t rt_core_queued(const struct rt_core *core)
{
    return core->queue.count;
}

const char *const rt_choice_names[RT_CHOICES] = {
    [RT_CHOICE_ONLY] = "only_candidate",
    [RT_CHOICE_PREFIX] = "prefix_overlap",
    [RT_CHOICE_POLICY] = "policy",
    [RT_CHOICE_LOCAL] = "local_prefill",
};

const char *const rt_retry_cause_names[RT_RETRY_CAUSES] = {
    [RT_RETRY_WORKER_LOST] = "worker_lost",
    [RT_RETRY_REFUSED] = "refused",
    [RT_RETRY_PREEMPTED] = "preempted",
    [RT_RETRY_RESERVE_FAILED] = "reserve_failed",
    [RT_RETRY_HANDOFF_FAILED] = "handoff_failed",
};

void rt_core_counts(const struct rt_core *core, struct rt_core_counts *ret_counts)
{
    *ret_counts = core->counts;
}
