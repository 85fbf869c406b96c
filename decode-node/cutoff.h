/*
 * Connections of prefill workers that must be cut off before the pages they wrote may go to others:
 * all of those that are proven dead, found by probing, and of those on other hosts that are silent
 * after their lease; links that broke before they were flushed, as Quiesced{broken} says; lines of
 * links that go on, before Quiesced or HandoffDone counts. What is not named stays as it is.
 * Silence alone proves nothing, nor does time: no page is freed before the connections are closed.
 * Control thread.
 */
#ifndef BATON_DECODE_NODE_CUTOFF_H
#define BATON_DECODE_NODE_CUTOFF_H

#include "common/messaging/rpc.h"
#include "kvtransfer/landing.h"
#include "kvtransfer/target.h"
#include "proto/worker.pb-c.h"

#define DC_MAX_CUTOFFS 64 /* links, or whole incarnations, being cut off at once */

struct dc_cutoffs;

struct dc_cutoffs_options {
    struct bt_loop *loop;
    struct kvt_target *target;
    struct kvt_landing_table *landings;
    struct bt_process_id process; /* of this rank */
    void (*freed)(void *context); /* pages may have become free */
    /* The cut that this call waited for is over. */
    void (*handoff_done)(void *context, struct bt_rpc_call *call,
                         const Baton__V1__HandoffDoneRequest *message);
    void *context;
};

struct dc_cutoffs *
dc_cutoffs_create(const struct dc_cutoffs_options *options); /* NULL: no memory */
/* Calls that wait belong to the RPC server, which ends them. */
void dc_cutoffs_destroy(struct dc_cutoffs *cutoffs);

/* Cuts off, then ends the landing and the call. */
void dc_cutoffs_quiesced(struct dc_cutoffs *cutoffs, struct bt_rpc_call *call, uint64_t request,
                         uint64_t epoch, const struct kvt_cut *cut);

/* Cuts message->cut_lines off, then options.handoff_done runs; or the call ends with EXHAUSTED or
 * NO_MEMORY: it may be tried again. */
void dc_cutoffs_handoff_done(struct dc_cutoffs *cutoffs, struct bt_rpc_call *call,
                             const Baton__V1__HandoffDoneRequest *message, uint64_t incarnation);

/* The target's event. */
void dc_cutoffs_disconnected(struct dc_cutoffs *cutoffs, uint64_t incarnation, uint64_t link);

#endif
