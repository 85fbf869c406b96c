/*
 * The inside of the core, shared by its parts: core.c (life, time, actions), core_worker.c (events
 * of workers), core_request.c (events of requests), token_order.c (their tokens), dispatch_queue.c
 * (who goes where next), attempt.c (how attempts and requests end), core_view.c (looking in).
 * Nobody else includes this.
 */
#ifndef BATON_ROUTER_CORE_STATE_H
#define BATON_ROUTER_CORE_STATE_H

#include "common/base/map.h"
#include "router/action_queue.h"
#include "router/admission.h"
#include "router/output_mean.h"
#include "router/placement.h"
#include "router/request_queue.h"

/* A rank goes on sending tokens until it has read a cancel: one cancel is emitted per (request,
 * epoch) and this interval, remembered in a table of this many slots. */
#define CANCEL_REPEAT_NS BT_NS_PER_S
#define CANCEL_SLOTS     1024
/* A request queues at most these from one moment when the queue is empty to the next: RESERVE,
 * PREFILL, CANCEL_PREFILL, CANCEL_DECODE, END. Room for them is made when it is submitted. */
#define ACTIONS_PER_REQUEST 5

struct rt_recent_cancel {
    uint64_t request, epoch;
    int64_t when_ns;
};

struct rt_core {
    struct rt_core_options options;
    struct rt_worker_table workers;
    struct bt_map requests; /* id -> struct rt_request, until END */
    struct rt_request_queue queue;
    struct rt_order_tree deadlines;
    struct rt_action_queue actions;
    struct rt_output_mean outputs;
    struct rt_admission admission;
    struct rt_decode_turns turns;
    struct rt_deaths deaths;
    struct rt_core_counts counts;
    uint64_t next_serial;
    int64_t now_ns;       /* the latest that was heard */
    bool dispatch_due;    /* something changed that may let the queue's head go */
    int64_t head_hold_ns; /* the hold of the head that could not go; BT_NEVER_NS: none */
    struct rt_recent_cancel cancels[CANCEL_SLOTS];
    uint64_t recall_liveness; /* of the workers, when the queue was last recalled */
    uint32_t stray_cancels; /* queued since the queue was empty, for sequences that nobody knows */
};

void rt_core_hear_time(struct rt_core *core, int64_t now_ns);
struct rt_worker *rt_core_worker_get(const struct rt_core *core, rt_worker_ref ref); /* or NULL */
const char *rt_core_worker_name(const struct rt_core *core, rt_worker_ref ref); /* for messages */

/* ---- core_worker.c */

/* What time alone changes of workers. */
void rt_core_tend_workers(struct rt_core *core);
/* The worker's breaker learns of it. */
void rt_core_worker_failed(struct rt_core *core, struct rt_worker *worker);
void rt_core_worker_succeeded(struct rt_core *core, struct rt_worker *worker);

/* ---- dispatch_queue.c */

/* Starts attempts of those whose turn it is, until one has to wait. */
void rt_core_dispatch(struct rt_core *core);
/* The prefill worker chosen at the RESERVE, or another if that one takes nothing new any more.
 * False: none is there. */
bool rt_core_settle_prefill(struct rt_core *core, struct rt_request *request);

/* ---- token_order.c */

/* What the workers may still do by themselves when an attempt is over. */
enum rt_rest {
    RT_REST_HELD,   /* the decode rank may hold pages: cancel */
    RT_REST_DECODED /* the decode rank has let go of it */
};

/* Passes on what is new. False: the request is gone or in another attempt. */
bool rt_core_deliver(struct rt_core *core, struct rt_request *request, rt_worker_ref source,
                     enum rt_rest rest, const struct rt_token *tokens, uint32_t count);

/* ---- attempt.c */

/* Room for `count` actions beside those that were promised to requests. False: no memory. */
bool rt_core_reserve_actions(struct rt_core *core, size_t count);
void rt_core_emit(struct rt_core *core, enum rt_action_kind kind, const struct rt_request *request);
/* False: no memory. */
bool rt_core_emit_tokens(struct rt_core *core, const struct rt_request *request,
                         const struct rt_token *tokens, uint32_t count);
/* CANCEL_DECODE for an attempt that is over; the request need not be known any more. Without memory
 * for it a reservation ends by itself, as nobody takes a lease of it, and a running sequence is
 * cancelled at its next token. */
void rt_core_emit_late_cancel(struct rt_core *core, uint64_t request, uint32_t attempt,
                              rt_worker_ref decode, uint64_t epoch);

/* Takes the request off its workers. It is in no state after this: requeue or end it. */
void rt_attempt_release(struct rt_core *core, struct rt_request *request, enum rt_rest rest,
                        bool stop_run);
/* The current attempt is over without fault of the request, unless `status` says so: it waits for
 * the next one, or ends. */
void rt_attempt_failed(struct rt_core *core, struct rt_request *request, rt_worker_ref culprit,
                       enum rt_rest rest, enum bt_status status, const char *text);
/* The worker that ran it is gone. `exposed`: those that it computed for, when it died by itself and
 * this request is one of them; or NULL. */
void rt_attempt_lost(struct rt_core *core, struct rt_request *request,
                     const struct rt_worker *worker, const struct rt_exposed *exposed);
/* The rank needed the pages for others. From now on the request reserves all it can need, so that
 * this does not happen to it twice; a rank that preempts it even so has failed it. */
void rt_attempt_preempted(struct rt_core *core, struct rt_request *request, const char *text);

/* Back into the queue, after rt_attempt_release. */
void rt_request_requeue(struct rt_core *core, struct rt_request *request);
/* After rt_attempt_release. Frees the request. */
void rt_request_end(struct rt_core *core, struct rt_request *request, enum rt_finish finish,
                    enum bt_status status, const char *text);
/* Releases and ends it with an error. Frees the request. */
void rt_request_fail(struct rt_core *core, struct rt_request *request, enum rt_rest rest,
                     enum bt_status status, const char *format, ...)
    __attribute__((format(printf, 5, 6)));
void rt_request_free(struct rt_request *request);

#endif
