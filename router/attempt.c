/* How attempts and requests end, in one place each. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/base/clock.h"
#include "router/core_state.h"

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
    free(request->refusals);
    free(request->delivered);
    free(request);
}

void rt_attempt_release(struct rt_core *core, struct rt_request *request, enum rt_rest rest,
                        bool stop_run)
{
    if (request->state == RT_QUEUED) {
        rt_request_queue_remove(&core->queue, request);
        core->dispatch_due = true; /* those behind it may fit where it did not */
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
    rt_worker_uncount_prefill(rt_core_worker_get(core, request->prefill), request);
    rt_worker_uncount_decode(rt_core_worker_get(core, request->decode), request);
    request->prefill = request->decode = RT_NO_WORKER;
    request->epoch = 0;
    request->run_open = false;
    core->dispatch_due = true;
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
    rt_deadline_heap_remove(&core->deadlines, request);
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

void rt_request_requeue(struct rt_core *core, struct rt_request *request)
{
    request->state = RT_QUEUED;
    rt_request_queue_insert(&core->queue, request);
    core->dispatch_due = true;
}

/* Remembers not to ask this worker again until its load changes or the hold is over. False: no
 * memory. */
static bool note_refusal(struct rt_core *core, struct rt_request *request, rt_worker_ref ref)
{
    const struct rt_worker *worker = rt_core_worker_get(core, ref);
    if (!worker) {
        return true;
    }
    request->hold_until_ns = core->now_ns + core->options.reserve_retry_ns;
    struct rt_refusal refusal = {ref, worker->load_serial};
    for (uint32_t i = 0; i < request->refusal_count; i++) {
        if (request->refusals[i].worker == ref) {
            request->refusals[i] = refusal;
            return true;
        }
    }
    if (request->refusal_count == request->refusal_capacity) {
        uint32_t capacity = request->refusal_capacity ? request->refusal_capacity * 2 : 4;
        struct rt_refusal *grown = realloc(request->refusals, capacity * sizeof *grown);
        if (!grown) {
            return false;
        }
        request->refusals = grown;
        request->refusal_capacity = capacity;
    }
    request->refusals[request->refusal_count++] = refusal;
    return true;
}

/* The request itself is at fault: it would fail everywhere. */
static bool request_at_fault(enum bt_status status)
{
    return status == BT_ERR_INVALID_ARGUMENT || status == BT_ERR_UNSUPPORTED;
}

/* The worker has no room now; nothing broke. */
static bool no_room(enum bt_status status)
{
    return status == BT_ERR_EXHAUSTED || status == BT_ERR_UNAVAILABLE;
}

void rt_attempt_failed(struct rt_core *core, struct rt_request *request, rt_worker_ref culprit,
                       enum rt_rest rest, enum bt_status status, const char *text)
{
    const char *name = rt_core_worker_name(core, culprit);
    if (!text || text[0] == '\0') {
        text = bt_status_name(status);
    }
    if (request_at_fault(status)) {
        rt_request_fail(core, request, rest, status, "%s", text);
        return;
    }
    /* A refusal that can't be remembered counts, or the worker would be asked for ever. */
    bool noted = note_refusal(core, request, culprit);
    if (!(no_room(status) && noted) && ++request->failures >= core->options.max_attempts) {
        rt_request_fail(core, request, rest, status,
                        "gave up after %u attempts, the last on %s: %s", request->failures, name,
                        text);
        return;
    }
    rt_attempt_release(core, request, rest, true);
    rt_request_requeue(core, request);
}

void rt_attempt_preempted(struct rt_core *core, struct rt_request *request, const char *text)
{
    if (request->full) {
        rt_attempt_failed(core, request, request->decode, RT_REST_DECODED, BT_ERR_PREEMPTED, text);
        return;
    }
    request->full = true;
    rt_attempt_release(core, request, RT_REST_DECODED, true);
    rt_request_requeue(core, request);
}
