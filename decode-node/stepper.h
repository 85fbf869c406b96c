/*
 * The step thread of a decode rank: it owns the engine between create and destroy. The control
 * thread sends commands and takes whole steps through bounded queues.
 *
 * Step records go round: a record that was taken must be given back with dc_stepper_return. When
 * the control thread is slow the thread waits for one; an engine with nothing to do sleeps.
 *
 * A sequence that was added comes back with exactly one entry whose finish is not DC_RUNNING; until
 * that step was taken, the sequence and what it points to belong to the step thread.
 */
#ifndef BATON_DECODE_NODE_STEPPER_H
#define BATON_DECODE_NODE_STEPPER_H

#include "common/base/queue.h"
#include "decode-node/engine.h"

struct dc_stepper;

/* `max_sequences`: added and not taken back; bounds the command queue. */
enum bt_status dc_stepper_create(struct dc_engine *engine, uint32_t max_sequences,
                                 struct bt_error *error, struct dc_stepper **ret_stepper);
/* Ends the thread after the step under way. Sequences inside are forgotten. NULL is fine. */
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

#endif
