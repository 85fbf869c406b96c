/*
 * Connections of prefill workers that must be cut off before the pages they wrote may go to others:
 * all of those that are proven dead, found by probing, and of those on other hosts that are silent
 * after their lease; links that broke before they were flushed, and lines of links that go on, as
 * Quiesced or HandoffDone name them: all of these are cut before the message counts. What is not
 * named stays as it is. Silence alone proves nothing, nor does time: no page is freed before the
 * connections are closed. Control thread.
 */
#ifndef BATON_DECODE_NODE_CUTOFF_H
#define BATON_DECODE_NODE_CUTOFF_H

#include "common/messaging/rpc.h"
#include "kvtransfer/landing.h"
#include "kvtransfer/target.h"
#include "proto/worker.pb-c.h"

/* Links, or whole incarnations, being cut off at once: some messages with all they may name. */
#define DC_MAX_CUTOFFS (4 * KVT_WRITERS_MAX)

struct dc_cutoffs;

struct dc_cutoffs_options {
    struct bt_loop *loop;
    struct kvt_target *target;
    struct kvt_landing_table *landings;
    struct bt_process_id process; /* of this rank */
    void (*freed)(void *context); /* pages may have become free */
    /* The cuts that this call waited for are over. */
    void (*handoff_done)(void *context, struct bt_rpc_call *call,
                         const Baton__V1__HandoffDoneRequest *message);
    void *context;
};

struct dc_cutoffs *
dc_cutoffs_create(const struct dc_cutoffs_options *options); /* NULL: no memory */
/* Calls that wait belong to the RPC server, which ends them. */
void dc_cutoffs_destroy(struct dc_cutoffs *cutoffs);

/* What one message names, each link once. */
struct dc_cut_list {
    uint32_t count;
    struct kvt_cut cuts[KVT_WRITERS_MAX];
};

/* INVALID_ARGUMENT names the field: more than KVT_WRITERS_MAX, no link, no lines. The lines of a
 * link that is named twice are put together. */
enum bt_status dc_cut_list_read(Baton__V1__LinkCut *const *messages, size_t count,
                                uint64_t incarnation, struct bt_error *error,
                                struct dc_cut_list *ret_list);

/*
 * Both begin all cuts of the list, which is not empty, or none: the call ends with EXHAUSTED or
 * NO_MEMORY then, and may be tried again. After the last cut is made: ends the landing and the
 * call; runs options.handoff_done.
 */
void dc_cutoffs_quiesced(struct dc_cutoffs *cutoffs, struct bt_rpc_call *call, uint64_t request,
                         uint64_t epoch, const struct dc_cut_list *list);
void dc_cutoffs_handoff_done(struct dc_cutoffs *cutoffs, struct bt_rpc_call *call,
                             const Baton__V1__HandoffDoneRequest *message,
                             const struct dc_cut_list *list);

/* The target's event. */
void dc_cutoffs_disconnected(struct dc_cutoffs *cutoffs, uint64_t incarnation, uint64_t link);

#endif
