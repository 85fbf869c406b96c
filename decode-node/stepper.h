/*
 * The step thread of a decode rank: it owns the engine between create and destroy. The control
 * thread sends commands and takes whole steps through bounded queues.
 *
 * Step records go round: a record that was taken must be given back with dc_stepper_return. When
 * the control thread is slow the thread waits for one; an engine with nothing to do sleeps.
 *
 * A sequence that was added comes back with exactly one entry whose finish is not DC_RUNNING; until
 * that step was taken, the sequence and what it points to belong to the step thread.
 *
 * The step threads of a group step together, and agree before each step (agreement.h). The next
 * batch is gathered and the agreement begun first; what there is to report of the last step is
 * reported while the others' words come. Where all ranks can, that happens while a step is under
 * way on their devices, and the next one is begun behind it. Without a row on any rank all of them
 * sleep: each until a command comes, until another rank has work and says so (DC_NOTICE_WAKE there,
 * dc_stepper_wake here), and no longer than a heartbeat, when it begins an agreement that waits for
 * the others'. So a wake that is lost costs a heartbeat, and a rank that is lost is missed within a
 * heartbeat and the group's timeout.
 */
#ifndef BATON_DECODE_NODE_STEPPER_H
#define BATON_DECODE_NODE_STEPPER_H

#include "common/base/queue.h"
#include "decode-node/agreement.h"
#include "decode-node/engine.h"

#define DC_HEARTBEAT_NS (100 * INT64_C(1000000))

struct dc_stepper;

struct dc_stepper_options {
    struct dc_engine *engine;
    uint32_t max_sequences; /* added and not taken back; bounds the command queue */
    struct bt_rank *rank;   /* NULL: alone, and nothing is counted */
    int64_t heartbeat_ns;   /* of a group; well below its timeout, the same on all ranks */
};

/* Starts the thread. */
enum bt_status dc_stepper_create(const struct dc_stepper_options *options, struct bt_error *error,
                                 struct dc_stepper **ret_stepper);
/* Ends the thread after the step under way, which waits for the group at most as long as the group
 * does. Sequences inside are forgotten. NULL is fine. */
void dc_stepper_destroy(struct dc_stepper *stepper);

void dc_stepper_add(struct dc_stepper *stepper, struct dc_sequence *sequence);
/* At most once a sequence. */
void dc_stepper_stop(struct dc_stepper *stepper, uint64_t request, uint64_t epoch,
                     enum dc_finish finish);
/* At most once for each wish for a page. */
void dc_stepper_grow(struct dc_stepper *stepper, uint64_t request, uint64_t epoch, uint32_t page);

/* Items are struct dc_step *; one consumer, the control thread. */
struct bt_queue *dc_stepper_steps(const struct dc_stepper *stepper);
void dc_stepper_return(struct dc_stepper *stepper, struct dc_step *step);

/* ---- the group; control thread where nothing else is said ---- */

enum dc_notice {
    DC_NOTICE_WAKE = 1,   /* there is work here, and the others may sleep */
    DC_NOTICE_AGREED = 2, /* another will, or the group has drained */
    /* The group agreed to leave, and no step follows: all sequences come back PREEMPTED, also those
     * that are still added. */
    DC_NOTICE_LEFT = 4,
    /* The group is over (dc_stepper_error); nothing comes back any more. */
    DC_NOTICE_FAILED = 8,
};

/* Readable while there are notices. */
int dc_stepper_notice_fd(const struct dc_stepper *stepper);
unsigned dc_stepper_take_notices(struct dc_stepper *stepper);
/* Whether there are any. What a step came after is noted when the step is there. */
bool dc_stepper_has_notices(const struct dc_stepper *stepper);
const char *dc_stepper_error(const struct dc_stepper *stepper);

/* What this rank says in agreements from now on: of enum dc_rank_flag, and its will. */
void dc_stepper_tell(struct dc_stepper *stepper, unsigned flags, uint64_t will);
/* Another rank has work. */
void dc_stepper_wake(struct dc_stepper *stepper);

struct dc_stepper_view {
    uint64_t will;          /* as last agreed */
    bool drained;           /* of that will */
    uint32_t rows, largest; /* of the last step: of this rank, of the rank that had most */
    uint64_t agreements;    /* that ended */
    uint64_t heartbeats, woken, waking; /* rests that ended so; notices to wake others */
};
/* Any thread; each figure for itself. */
void dc_stepper_look(const struct dc_stepper *stepper, struct dc_stepper_view *ret_view);

#endif
