/* Who goes where next. */
#include "common/base/clock.h"
#include "router/core_state.h"

static uint32_t expected_output(const struct rt_core *core, const struct rt_request *request)
{
    const struct rt_request_spec *spec = &request->spec;
    return rt_output_mean_expect(&core->outputs, spec->tenant, spec->prompt_class,
                                 spec->max_tokens);
}

/* What decided, as far as a glance tells. */
static void count_choices(struct rt_core *core, const struct rt_request *request,
                          const struct rt_worker *prefill)
{
    const struct rt_worker_table *workers = &core->workers;
    bool prefix = rt_request_uncached(request, prefill->ref) < request->spec.prompt_tokens;
    core->counts.chosen[RT_ROLE_PREFILL][prefix ? RT_CHOICE_PREFIX
                                         : workers->willing_count[RT_ROLE_PREFILL] == 1
                                             ? RT_CHOICE_ONLY
                                             : RT_CHOICE_POLICY]++;
    core->counts
        .chosen[RT_ROLE_DECODE]
               [workers->willing_count[RT_ROLE_DECODE] == 1 ? RT_CHOICE_ONLY : RT_CHOICE_POLICY]++;
}

static void attempt_start(struct rt_core *core, struct rt_request *request,
                          struct rt_worker *prefill, struct rt_worker *decode, uint32_t pages)
{
    rt_admission_taken(&core->admission, request);
    rt_request_queue_take(&core->queue, request, expected_output(core, request));
    core->counts.decisions++;
    count_choices(core, request, prefill);
    request->state = RT_RESERVING;
    request->attempt++;
    request->taken_ns = core->now_ns;
    request->isolated = rt_suspicion_isolates(&request->suspicion, request->delivered_count);
    rt_worker_place_prefill(&core->workers, prefill, request, core->now_ns);
    rt_worker_place_decode(&core->workers, decode, request, pages);
    rt_core_emit(core, RT_ACTION_RESERVE, request);
}

/* False: it waits, and so do all behind it: were they let past while pages are short, a large
 * request could wait for ever. */
static bool dispatch_one(struct rt_core *core, struct rt_request *request)
{
    if (core->now_ns >= request->hold_until_ns) {
        request->refusal_count = 0;
    }
    uint32_t pages = rt_request_pages(request, expected_output(core, request));
    struct rt_worker *prefill =
        rt_placement_prefill(&core->workers, request, core->now_ns, &request->predicted_ns);
    struct rt_worker *decode =
        prefill ? rt_placement_decode(&core->workers, request, pages, &core->turns) : NULL;
    if (prefill && decode) {
        attempt_start(core, request, prefill, decode, pages);
        return true;
    }
    if (!rt_placement_possible(&core->workers, RT_ROLE_PREFILL, &request->spec) ||
        !rt_placement_possible(&core->workers, RT_ROLE_DECODE, &request->spec)) {
        rt_request_fail(core, request, RT_REST_DECODED, BT_ERR_UNAVAILABLE,
                        "no worker that is left can hold %u prompt and %u output tokens",
                        request->spec.prompt_tokens, request->spec.max_tokens);
        return true;
    }
    if (request->refusal_count > 0) {
        core->head_hold_ns = request->hold_until_ns;
    }
    return false;
}

void rt_core_dispatch(struct rt_core *core)
{
    core->dispatch_due = false;
    core->head_hold_ns = BT_NEVER_NS;
    rt_admission_hear(&core->admission, core->queue.count > 0, core->now_ns);
    struct rt_request *request;
    while ((request = rt_request_queue_next(&core->queue, core->now_ns)) != NULL &&
           dispatch_one(core, request)) {
    }
    rt_admission_hear(&core->admission, core->queue.count > 0, core->now_ns);
}

bool rt_core_settle_prefill(struct rt_core *core, struct rt_request *request)
{
    struct rt_worker *worker = rt_core_worker_get(core, request->prefill);
    if (worker && rt_worker_state(worker) == RT_WORKER_READY) {
        return true;
    }
    rt_worker_leave_prefill(&core->workers, request, core->now_ns);
    worker = rt_placement_prefill(&core->workers, request, core->now_ns, &request->predicted_ns);
    if (worker) {
        rt_worker_place_prefill(&core->workers, worker, request, core->now_ns);
    }
    return worker != NULL;
}
