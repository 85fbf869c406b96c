/* Life, time and output of the core. */
#include "router/core.h"

#include <stdlib.h>

#include "common/base/clock.h"
#include "router/core_state.h"

struct rt_core *rt_core_create(const struct rt_core_options *options)
{
    BT_ASSERT(options->queue_capacity > 0 && options->max_attempts > 0 &&
              options->prefill_depth_ns > 0);
    struct rt_core *core = calloc(1, sizeof *core);
    if (core) {
        core->options = *options;
        core->head_hold_ns = BT_NEVER_NS;
        core->admission.retries = options->retry_budget;
        bt_map_init(&core->requests);
        rt_worker_table_init(&core->workers, &core->options);
        rt_request_queue_init(&core->queue, &core->options);
        rt_output_mean_init(&core->outputs, options->expected_output_tokens);
    }
    return core;
}

void rt_core_destroy(struct rt_core *core)
{
    if (!core) {
        return;
    }
    size_t cursor = 0;
    uint64_t id;
    void *request;
    while (bt_map_next(&core->requests, &cursor, &id, &request)) {
        rt_request_free(request);
    }
    bt_map_finish(&core->requests);
    rt_request_queue_finish(&core->queue);
    rt_action_queue_finish(&core->actions);
    rt_worker_table_finish(&core->workers);
    free(core);
}

void rt_core_hear_time(struct rt_core *core, int64_t now_ns)
{
    if (now_ns > core->now_ns) {
        core->now_ns = now_ns;
    }
}

struct rt_worker *rt_core_worker_get(const struct rt_core *core, rt_worker_ref ref)
{
    return ref == RT_NO_WORKER ? NULL : rt_worker_table_get(&core->workers, ref);
}

const char *rt_core_worker_name(const struct rt_core *core, rt_worker_ref ref)
{
    const struct rt_worker *worker = rt_core_worker_get(core, ref);
    return worker ? worker->info.id : "a worker that left";
}

void rt_core_tick(struct rt_core *core, int64_t now_ns)
{
    rt_core_hear_time(core, now_ns);
    struct rt_request *request;
    while ((request = rt_deadlines_first(&core->deadlines)) != NULL &&
           request->spec.deadline_ns <= core->now_ns) {
        rt_core_finish(core, request->spec.id, RT_FINISH_DEADLINE, core->now_ns);
    }
    rt_core_tend_workers(core);
    if (core->head_hold_ns <= core->now_ns ||
        rt_request_queue_wakes_ns(&core->queue) <= core->now_ns) {
        core->dispatch_due = true;
    }
}

static int64_t earlier(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

int64_t rt_core_next_deadline_ns(const struct rt_core *core)
{
    int64_t next_ns = earlier(core->head_hold_ns, rt_request_queue_wakes_ns(&core->queue));
    const struct rt_request *first = rt_deadlines_first(&core->deadlines);
    if (first) {
        next_ns = earlier(next_ns, first->spec.deadline_ns);
    }
    if (core->workers.timers.first) {
        next_ns = earlier(next_ns, core->workers.timers.first->key);
    }
    return next_ns;
}

bool rt_core_next_action(struct rt_core *core, struct rt_action *ret_action)
{
    if (core->actions.count == 0) {
        core->stray_cancels = 0;
        if (core->dispatch_due) {
            rt_core_dispatch(core);
        }
    }
    return rt_action_queue_pop(&core->actions, ret_action);
}
