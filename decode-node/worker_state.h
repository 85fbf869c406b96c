/*
 * A decode rank as its own parts see it: worker.c puts it together and follows its threads, time
 * and registration; service.c answers its calls. Control thread.
 */
#ifndef BATON_DECODE_NODE_WORKER_STATE_H
#define BATON_DECODE_NODE_WORKER_STATE_H

#include "common/messaging/registration.h"
#include "common/messaging/waiting_calls.h"
#include "decode-node/cutoff.h"
#include "decode-node/ranks.h"
#include "decode-node/request.h"
#include "decode-node/worker.h"

struct dc_worker {
    struct bt_loop *loop;
    struct bt_model *model;
    struct dc_worker_options options;
    struct bt_kv_layout layout;
    uint64_t incarnation;
    struct bt_process_id process;
    struct bt_fingerprint fingerprint;

    struct dc_metrics metrics;
    struct kvt_target *target;
    struct kvt_staging *staging; /* NULL: landings are in what the engine reads */
    struct bt_page_pool *pages;
    struct dc_engine *engine;
    struct dc_ranks *ranks;
    struct dc_stepper *stepper;
    struct dc_subscribers *subscribers;
    struct dc_requests *requests;
    struct dc_cutoffs *cutoffs;
    struct bt_rpc_server *server;
    struct bt_loop_source *step_source, *notice_source, *target_source, *tick_timer;
    struct bt_loop_source *goodbye_timer;

    Baton__V1__LayoutFingerprint fingerprint_message;
    Baton__V1__ProcessId process_message;
    Baton__V1__KvEndpoint endpoint_message;
    Baton__V1__RegisterRequest identity;
    struct bt_registration *registration;
    bool ready, refused;
    bool draining; /* takes nothing new; in a group all ranks do, or will */
    uint64_t will; /* of the group, as far as this rank knows: dc_will_drains */
    bool leaving;  /* and said so to the group */
    bool left;     /* the group did: no step follows */
    bool failed;   /* the group is over */
    bool deregistered;
    bool holding; /* steps that came after the group's last, until routers know that it leaves */
    struct dc_step *step; /* taken out of their queue, and not looked into yet; or NULL */

    struct bt_waiting_calls drains;
};

extern const struct bt_rpc_method dc_worker_methods[];

struct kvt_landing_table *dc_worker_landings(const struct dc_worker *worker);
void dc_worker_update_gauges(struct dc_worker *worker);

/* After whatever may have ended requests or freed pages; `context` is the worker. */
void dc_worker_settle(void *context);
/* Ends the calls that wait for the drain, when nothing is left on any rank. */
void dc_worker_drain_check(struct dc_worker *worker);
/* Takes nothing new from now on, and says so. */
void dc_worker_drain(struct dc_worker *worker);
/* Takes requests again. False: it is ending. */
bool dc_worker_resume(struct dc_worker *worker);
/* A landing has a deadline that may be the first. */
void dc_worker_tick_by(struct dc_worker *worker, int64_t when_ns);
/* The cuts that a HandoffDone waited for are made; `context` is the worker. */
void dc_worker_handoff_cut(void *context, struct bt_rpc_call *call,
                           const Baton__V1__HandoffDoneRequest *message);

#endif
