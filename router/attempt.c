/* How attempts and requests end, in one place each. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/base/clock.h"
#include "router/core_state.h"

/* ---- emitting */

bool rt_core_reserve_actions(struct rt_core *core, size_t count)
{
    return rt_action_queue_reserve(&core->actions,
                                   count + core->requests.size * ACTIONS_PER_REQUEST);
}

void rt_core_emit(struct rt_core *core, enum rt_action_kind kind, const struct rt_request *request)
{
    struct rt_action action = {
        .kind = kind,
        .request = request->spec.id,
        .attempt = request->attempt,
        .epoch = request->epoch,
        .prefill = request->prefill,
        .decode = request->decode,
        .full = request->full,
        .pages = request->placed_pages,
        .local = request->local,
    };
    rt_action_queue_push(&core->actions, &action);
}

/* False: one was emitted a moment ago. */
static bool cancel_due(struct rt_core *core, uint64_t request, uint64_t epoch)
{
    uint64_t hash = (request ^ epoch * UINT64_C(0x9e3779b97f4a7c15)) * UINT64_C(0xbf58476d1ce4e5b9);
    struct rt_recent_cancel *recent = &core->cancels[hash >> 32 & (CANCEL_SLOTS - 1)];
    if (recent->request == request && recent->epoch == epoch &&
        core->now_ns - recent->when_ns < CANCEL_REPEAT_NS) {
        return false;
    }
    *recent = (struct rt_recent_cancel){request, epoch, core->now_ns};
    return true;
}

void rt_core_emit_late_cancel(struct rt_core *core, uint64_t request, uint32_t attempt,
                              rt_worker_ref decode, uint64_t epoch)
{
    if (!rt_core_reserve_actions(core, 1) || !cancel_due(core, request, epoch)) {
        return;
    }
    struct rt_action action = {
        .kind = RT_ACTION_CANCEL_DECODE,
        .request = request,
        .attempt = attempt,
        .epoch = epoch,
        .prefill = RT_NO_WORKER,
        .decode = decode,
    };
    rt_action_queue_push(&core->actions, &action);
}

bool rt_core_emit_tokens(struct rt_core *core, const struct rt_request *request,
                         const struct rt_token *tokens, uint32_t count)
{
    struct rt_action action = {
        .kind = RT_ACTION_TOKENS,
        .request = request->spec.id,
        .attempt = request->attempt,
        .epoch = request->epoch,
        .prefill = request->prefill,
        .decode = request->decode,
        .tokens = tokens,
        .token_count = count,
    };
    return rt_core_reserve_actions(core, 1) && rt_action_queue_push_tokens(&core->actions, &action);
}

/* ---- the ends of attempts and requests */

void rt_request_free(struct rt_request *request)
{
    free(request->delivered);
    free(request);
}

void rt_attempt_release(struct rt_core *core, struct rt_request *request, enum rt_rest rest,
                        bool stop_run)
{
    core->dispatch_due = true; /* where it did not fit, those behind it may */
    if (request->state == RT_QUEUED) {
        return;
    }
    if (request->run_open && stop_run) {
        rt_core_emit(core, RT_ACTION_CANCEL_PREFILL, request);
    }
    if (rest == RT_REST_HELD) {
        if (request->epoch != 0) {
            cancel_due(core, request->spec.id, request->epoch);
        }
        rt_core_emit(core, RT_ACTION_CANCEL_DECODE, request);
    }
    rt_worker_leave_prefill(&core->workers, request, core->now_ns);
    rt_worker_leave_decode(&core->workers, request);
    request->epoch = 0;
    request->run_open = false;
}

void rt_request_end(struct rt_core *core, struct rt_request *request, enum rt_finish finish,
                    enum bt_status status, const char *text)
{
    struct rt_action action = {
        .kind = RT_ACTION_END,
        .request = request->spec.id,
        .attempt = request->attempt,
        .prefill = RT_NO_WORKER,
        .decode = RT_NO_WORKER,
        .finish = finish,
        .status = finish == RT_FINISH_ERROR ? status : BT_OK,
        .text = finish == RT_FINISH_ERROR ? text : NULL,
    };
    rt_action_queue_push(&core->actions, &action);
    if (finish == RT_FINISH_STOP || finish == RT_FINISH_LENGTH) {
        rt_output_mean_learn(&core->outputs, request->spec.tenant, request->spec.prompt_class,
                             request->delivered_count);
    }
    if (request->holds_share) {
        rt_admission_ended(&core->admission, request, core->now_ns);
    }
    rt_admission_hear(&core->admission, core->queue.count > 0, core->now_ns);
    rt_request_queue_forget(&core->queue, request);
    rt_order_remove(&core->deadlines, &request->deadline);
    bt_map_remove(&core->requests, request->spec.id);
    rt_request_free(request);
}

void rt_request_fail(struct rt_core *core, struct rt_request *request, enum rt_rest rest,
                     enum bt_status status, const char *format, ...)
{
    char text[BT_ERROR_TEXT_SIZE];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    rt_attempt_release(core, request, rest, true);
    rt_request_end(core, request, RT_FINISH_ERROR, status, text);
}

/* rest_until_ns: it gets no turn before; 0: at once. */
static void wait_again(struct rt_core *core, struct rt_request *request, int64_t rest_until_ns)
{
    request->state = RT_QUEUED;
    rt_admission_hear(&core->admission, core->queue.count > 0, core->now_ns);
    rt_request_queue_return(&core->queue, request, rest_until_ns);
    core->dispatch_due = true;
}

void rt_request_requeue(struct rt_core *core, struct rt_request *request)
{
    wait_again(core, request, 0);
}

/* Remembers not to ask this worker again until its load changes or the hold is over. False: so many
 * are remembered that the request had better rest. */
static bool note_refusal(struct rt_core *core, struct rt_request *request, rt_worker_ref ref)
{
    const struct rt_worker *worker = rt_core_worker_get(core, ref);
    if (!worker) {
        return true;
    }
    request->hold_until_ns = core->now_ns + core->options.reserve_retry_ns;
    uint32_t i = 0;
    while (i < request->refusal_count && request->refusals[i].worker != ref) {
        i++;
    }
    if (i < RT_REFUSALS_MAX) {
        request->refusals[i] = (struct rt_refusal){ref, worker->load_serial};
        request->refusal_count += i == request->refusal_count;
    }
    return request->refusal_count < RT_REFUSALS_MAX;
}

/* The request itself is at fault: it would fail everywhere. */
static bool request_at_fault(enum bt_status status)
{
    return status == BT_ERR_INVALID_ARGUMENT || status == BT_ERR_UNSUPPORTED;
}

/* The worker has no room now; nothing broke. ALREADY_EXISTS: an attempt before, cancelled already,
 * has not ended there yet. */
static bool no_room(enum bt_status status)
{
    return status == BT_ERR_EXHAUSTED || status == BT_ERR_UNAVAILABLE ||
           status == BT_ERR_ALREADY_EXISTS;
}

static bool lives(const struct rt_core *core, rt_worker_ref ref)
{
    const struct rt_worker *worker = rt_core_worker_get(core, ref);
    return ref == RT_NO_WORKER || (worker && !worker->life.lost);
}

/* An attempt may fail before it is known that one of its workers is lost. By now it is, and the
 * failure was nobody's: it counts no more. */
static void forget_failures(const struct rt_core *core, struct rt_request *request)
{
    uint32_t kept = 0;
    uint32_t known = request->failures < RT_FAILURES_KEPT ? request->failures : RT_FAILURES_KEPT;
    for (uint32_t i = 0; i < known; i++) {
        if (lives(core, request->failed[i].prefill) && lives(core, request->failed[i].decode)) {
            request->failed[kept++] = request->failed[i];
        }
    }
    request->failures -= known - kept;
}

/* True: it was its last attempt. */
static bool count_failure(const struct rt_core *core, struct rt_request *request)
{
    if (request->failures < RT_FAILURES_KEPT) {
        request->failed[request->failures] = (struct rt_failure){request->prefill, request->decode};
    }
    if (++request->failures >= core->options.max_attempts) {
        forget_failures(core, request);
    }
    return request->failures >= core->options.max_attempts;
}

/* Something broke, and counts. False: it was the request's last attempt, which ended it. */
static bool may_try_again(struct rt_core *core, struct rt_request *request, rt_worker_ref culprit,
                          enum rt_rest rest, enum bt_status status, const char *text)
{
    const char *name = rt_core_worker_name(core, culprit);
    if (count_failure(core, request)) {
        rt_request_fail(core, request, rest, status,
                        "gave up after %u attempts, the last on %s: %s", request->failures, name,
                        text);
        return false;
    }
    /* What a peer's loss ends is always run again: it is bounded by what ran there. */
    if (status != BT_ERR_PEER_LOST &&
        !rt_admission_retry(&core->admission, &core->options, core->now_ns)) {
        core->counts.budget_refused++;
        rt_request_fail(core, request, rest, status, "%s failed, and so do too many: %s", name,
                        text);
        return false;
    }
    return true;
}

/* One that is lost is out already. */
static void blame(struct rt_core *core, rt_worker_ref culprit)
{
    struct rt_worker *worker = rt_core_worker_get(core, culprit);
    if (worker && !worker->life.lost) {
        rt_core_worker_failed(core, worker);
    }
}

static enum rt_retry_cause retry_cause(const struct rt_request *request, enum bt_status status)
{
    if (status == BT_ERR_PEER_LOST) {
        return RT_RETRY_WORKER_LOST;
    }
    if (no_room(status)) {
        return RT_RETRY_REFUSED;
    }
    if (status == BT_ERR_PREEMPTED) {
        return RT_RETRY_PREEMPTED;
    }
    return request->state == RT_RESERVING ? RT_RETRY_RESERVE_FAILED : RT_RETRY_HANDOFF_FAILED;
}

void rt_attempt_failed(struct rt_core *core, struct rt_request *request, rt_worker_ref culprit,
                       enum rt_rest rest, enum bt_status status, const char *text)
{
    if (!text || text[0] == '\0') {
        text = bt_status_name(status);
    }
    if (request_at_fault(status)) {
        rt_request_fail(core, request, rest, status, "%s", text);
        return;
    }
    bool room = note_refusal(core, request, culprit);
    if (no_room(status)) {
        core->counts.refusals++;
    } else {
        blame(core, culprit);
        if (!may_try_again(core, request, culprit, rest, status, text)) {
            return;
        }
        core->counts.retries++;
    }
    core->counts.retried[retry_cause(request, status)]++;
    rt_attempt_release(core, request, rest, true);
    wait_again(core, request, room ? 0 : request->hold_until_ns);
}

static void tell_poisoned(const struct rt_core *core, const struct rt_request *request,
                          const struct rt_worker *worker)
{
    if (core->options.on_change) {
        const struct rt_change change = {.kind = RT_CHANGE_POISONED,
                                         .worker_id = worker->info.id,
                                         .role = worker->info.role,
                                         .why = worker->why_lost,
                                         .request = request->spec.id,
                                         .deaths = request->suspicion.deaths};
        core->options.on_change(core->options.change_context, &change);
    }
}

/* What a lost worker ran is run again, however often that happens, unless it is poison. */
void rt_attempt_lost(struct rt_core *core, struct rt_request *request,
                     const struct rt_worker *worker, const struct rt_exposed *exposed)
{
    /* The worker may be cut off and yet alive, holding pages. */
    if (exposed && rt_suspicion_death(&request->suspicion, request->delivered_count, exposed,
                                      &core->deaths, core->options.poison_deaths, core->now_ns)) {
        core->counts.poisoned++;
        tell_poisoned(core, request, worker);
        rt_request_fail(core, request, RT_REST_HELD, BT_ERR_PEER_LOST,
                        "%u workers were lost while it ran there, the last is %s: %s",
                        request->suspicion.deaths, worker->info.id, worker->why_lost);
        return;
    }
    core->counts.retries++;
    core->counts.retried[RT_RETRY_WORKER_LOST]++;
    rt_attempt_release(core, request, RT_REST_HELD, true);
    rt_request_requeue(core, request);
}

void rt_attempt_preempted(struct rt_core *core, struct rt_request *request, const char *text)
{
    if (request->full) {
        rt_attempt_failed(core, request, request->decode, RT_REST_DECODED, BT_ERR_PREEMPTED, text);
        return;
    }
    request->full = true;
    core->counts.preemptions++;
    core->counts.retried[RT_RETRY_PREEMPTED]++;
    rt_attempt_release(core, request, RT_REST_DECODED, true);
    rt_request_requeue(core, request);
}
