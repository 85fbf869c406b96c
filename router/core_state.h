/*
 * The inside of the core, shared by core.c (events, placing, looking in) and attempt.c (how
 * attempts and requests end). Nobody else includes this.
 */
#ifndef BATON_ROUTER_CORE_STATE_H
#define BATON_ROUTER_CORE_STATE_H

#include "common/base/map.h"
#include "router/action_queue.h"
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
    struct rt_deadline_heap deadlines;
    struct rt_action_queue actions;
    uint64_t next_serial;
    int64_t now_ns;          /* the latest that was heard */
    int64_t worker_check_ns; /* no worker's state changes by time alone before this */
    bool dispatch_due;       /* something changed that may let the queue's head go */
    struct rt_recent_cancel cancels[CANCEL_SLOTS];
    uint32_t stray_cancels; /* queued since the queue was empty, for sequences that nobody knows */
};

void rt_core_hear_time(struct rt_core *core, int64_t now_ns);
struct rt_worker *rt_core_worker_get(const struct rt_core *core, rt_worker_ref ref); /* or NULL */
const char *rt_core_worker_name(const struct rt_core *core, rt_worker_ref ref); /* for messages */

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

/* What the workers may still do by themselves when an attempt is over. */
enum rt_rest {
    RT_REST_HELD,   /* the decode rank may hold pages: cancel */
    RT_REST_DECODED /* the decode rank has let go of it */
};

/* Takes the request off its workers. It is in no state after this: requeue or end it. */
void rt_attempt_release(struct rt_core *core, struct rt_request *request, enum rt_rest rest,
                        bool stop_run);
/* The current attempt is over without fault of the request, unless `status` says so: it waits for
 * the next one, or ends. */
void rt_attempt_failed(struct rt_core *core, struct rt_request *request, rt_worker_ref culprit,
                       enum rt_rest rest, enum bt_status status, const char *text);
/* The rank needed the pages for others. From now on the request reserves all it can need, so that
 * this does not happen to it twice; a rank that preempts it even so has failed it. */
void rt_attempt_preempted(struct rt_core *core, struct rt_request *request, const char *text);

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
