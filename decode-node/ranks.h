/*
 * The other ranks of this worker's group, as the control thread sees them: who they are, and how to
 * wake them (baton.v1.Group/Wake). A worker of one rank has none.
 */
#ifndef BATON_DECODE_NODE_RANKS_H
#define BATON_DECODE_NODE_RANKS_H

#include "common/messaging/rpc.h"
#include "common/model/rank.h"
#include "proto/registry.pb-c.h"

struct dc_ranks;

struct dc_ranks_options {
    struct bt_loop *loop;
    struct bt_rank *rank; /* NULL: alone, and nothing is counted; else it outlives this */
    struct bt_model *model;
    struct bt_forward *forward;
    const char *worker_id, *endpoint; /* of this rank; to the others */
    struct bt_metrics *metrics;
    const char *labels;
};

/*
 * Starts the rank and learns of the others, which wait for each other here: before the step thread
 * begins. Fails as the group does. INVALID_ARGUMENT: worker id or endpoint are too long to be told.
 */
enum bt_status dc_ranks_create(const struct dc_ranks_options *options, struct bt_error *error,
                               struct dc_ranks **ret_ranks);
void dc_ranks_destroy(struct dc_ranks *ranks); /* NULL is fine */

/* For the registration; NULL: one rank. Valid as long as the ranks. */
Baton__V1__GroupMember *dc_ranks_member(struct dc_ranks *ranks);

/* The others begin an agreement. Best effort: a rank that does not hear of it does so within a
 * heartbeat. */
void dc_ranks_wake(struct dc_ranks *ranks);
/* Wakes that were sent to one rank each, since the start. */
uint64_t dc_ranks_woken(const struct dc_ranks *ranks);

void dc_ranks_update_metrics(struct dc_ranks *ranks);

#endif
