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
                          const struct rt_way_answer *answer)
{
    const uint32_t *willing = core->workers.willing_count;
    core->counts.ways[answer->way]++;
    if (answer->local) {
        core->counts.chosen[RT_ROLE_DECODE][RT_CHOICE_LOCAL]++;
        return;
    }
    bool prefix = rt_request_uncached(request, answer->prefill->ref) < request->spec.prompt_tokens;
    enum rt_choice prefill = prefix                          ? RT_CHOICE_PREFIX
                             : willing[RT_ROLE_PREFILL] == 1 ? RT_CHOICE_ONLY
                                                             : RT_CHOICE_POLICY;
    enum rt_choice decode = willing[RT_ROLE_DECODE] == 1 ? RT_CHOICE_ONLY : RT_CHOICE_POLICY;
    core->counts.chosen[RT_ROLE_PREFILL][prefill]++;
    core->counts.chosen[RT_ROLE_DECODE][decode]++;
}

static void attempt_start(struct rt_core *core, struct rt_request *request,
                          const struct rt_way_answer *answer, uint32_t pages)
{
    rt_admission_taken(&core->admission, request);
    rt_request_queue_take(&core->queue, request, expected_output(core, request));
    core->counts.decisions++;
    count_choices(core, request, answer);
    request->predicted_ns = answer->predicted_ns;
    request->local = request->prompting = answer->local;
    request->state = RT_RESERVING;
    request->attempt++;
    request->taken_ns = core->now_ns;
    request->isolated = rt_suspicion_isolates(&request->suspicion, request->delivered_count);
    if (!answer->local) {
        rt_worker_place_prefill(&core->workers, answer->prefill, request, core->now_ns);
    }
    rt_worker_place_decode(&core->workers, answer->decode, request, pages);
    rt_core_emit(core, RT_ACTION_RESERVE, request);
}

/* False: it waits, and so do all behind it: were they let past while pages are short, a large
 * request could wait for ever. One that waits for a worker to come is set aside. */
static bool dispatch_one(struct rt_core *core, struct rt_request *request)
{
    if (core->now_ns >= request->hold_until_ns) {
        request->refusal_count = 0;
    }
    uint32_t pages = rt_request_pages(request, expected_output(core, request));
    const struct rt_way_question question = {.workers = &core->workers,
                                             .misses = &core->admission.misses,
                                             .request = request,
                                             .waiting = core->queue.count - 1,
                                             .pages = pages,
                                             .now_ns = core->now_ns};
    struct rt_way_answer answer;
    rt_way_choose(&question, &core->turns, &answer);
    if (answer.decode) {
        attempt_start(core, request, &answer, pages);
        return true;
    }
    if (!rt_way_possible(&core->workers, &request->spec)) {
        rt_request_fail(core, request, RT_REST_DECODED, BT_ERR_UNAVAILABLE,
                        "no worker that is left can hold %u prompt and %u output tokens",
                        request->spec.prompt_tokens, request->spec.max_tokens);
        return true;
    }
    if (rt_way_stranded(&core->workers, request)) {
        rt_request_queue_set_aside(&core->queue, request);
        return true;
    }
    if (request->refusal_count > 0) {
        core->head_hold_ns = request->hold_until_ns;
    }
    return false;
}

/* Those that are aside, if what they wait for may be there. */
static void recall(struct rt_core *core)
{
    if (core->workers.willing_count[RT_ROLE_PREFILL] > 0 ||
        core->recall_liveness != core->workers.liveness) {
        core->recall_liveness = core->workers.liveness;
        rt_request_queue_recall(&core->queue);
    }
}

void rt_core_dispatch(struct rt_core *core)
{
    core->dispatch_due = false;
    core->head_hold_ns = BT_NEVER_NS;
    recall(core);
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
