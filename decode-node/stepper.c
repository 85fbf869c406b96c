#include "decode-node/stepper.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#define COMMANDS_PER_SEQUENCE 3 /* add, stop, and a page for the one wish that is open */
#define STEP_RECORDS          4 /* steps that the control thread may be behind */

enum command_kind { COMMAND_ADD, COMMAND_STOP, COMMAND_GROW };

struct command {
    enum command_kind kind;
    struct dc_sequence *sequence; /* ADD */
    uint64_t request, epoch;
    enum dc_finish finish; /* STOP */
    uint32_t page;         /* GROW */
};

struct dc_stepper {
    struct dc_engine *engine;
    struct bt_queue *commands; /* control -> step thread */
    struct bt_queue *steps;    /* step thread -> control */
    struct bt_queue *idle;     /* records on their way back */
    struct dc_step records[STEP_RECORDS];
    atomic_bool stop;
    pthread_t thread;
};

static void obey(struct dc_engine *engine, const struct command *command)
{
    switch (command->kind) {
    case COMMAND_ADD:
        dc_engine_add(engine, command->sequence);
        break;
    case COMMAND_STOP:
        dc_engine_stop(engine, command->request, command->epoch, command->finish);
        break;
    case COMMAND_GROW:
        dc_engine_grow(engine, command->request, command->epoch, command->page);
        break;
    }
}

static bool stopping(struct dc_stepper *stepper)
{
    return atomic_load_explicit(&stepper->stop, memory_order_relaxed);
}

/* Sleeps while there is nothing to compute. False: the thread has to end. */
static bool take_commands(struct dc_stepper *stepper)
{
    struct command command;
    while (!stopping(stepper) && !dc_engine_runnable(stepper->engine)) {
        if (!bt_queue_pop(stepper->commands, &command)) {
            return false;
        }
        obey(stepper->engine, &command);
    }
    while (bt_queue_try_pop(stepper->commands, &command)) {
        obey(stepper->engine, &command);
    }
    return !stopping(stepper);
}

static void *stepper_main(void *argument)
{
    struct dc_stepper *stepper = argument;
    struct dc_step *step;
    dc_engine_enter(stepper->engine);
    while (bt_queue_pop(stepper->idle, &step)) {
        if (!take_commands(stepper)) {
            break;
        }
        dc_engine_step(stepper->engine, step);
        BT_ASSERT(bt_queue_try_push(stepper->steps, &step));
    }
    return NULL;
}

static bool stepper_alloc(struct dc_stepper *stepper, uint32_t max_sequences)
{
    stepper->commands =
        bt_queue_create((size_t)max_sequences * COMMANDS_PER_SEQUENCE, sizeof(struct command));
    stepper->steps = bt_queue_create(STEP_RECORDS, sizeof(struct dc_step *));
    stepper->idle = bt_queue_create(STEP_RECORDS, sizeof(struct dc_step *));
    if (!stepper->commands || !stepper->steps || !stepper->idle) {
        return false;
    }
    for (int i = 0; i < STEP_RECORDS; i++) {
        struct dc_step *step = &stepper->records[i];
        if (!dc_step_init(step, max_sequences)) {
            return false;
        }
        bt_queue_try_push(stepper->idle, &step);
    }
    return true;
}

static void stepper_free(struct dc_stepper *stepper)
{
    for (int i = 0; i < STEP_RECORDS; i++) {
        dc_step_finish(&stepper->records[i]);
    }
    bt_queue_destroy(stepper->commands);
    bt_queue_destroy(stepper->steps);
    bt_queue_destroy(stepper->idle);
    free(stepper);
}

enum bt_status dc_stepper_create(struct dc_engine *engine, uint32_t max_sequences,
                                 struct bt_error *error, struct dc_stepper **ret_stepper)
{
    struct dc_stepper *stepper = calloc(1, sizeof(*stepper));
    if (!stepper) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "step thread: no memory");
    }
    stepper->engine = engine;
    if (!stepper_alloc(stepper, max_sequences) ||
        pthread_create(&stepper->thread, NULL, stepper_main, stepper) != 0) {
        stepper_free(stepper);
        return bt_error_set(error, BT_ERR_NO_MEMORY, "step thread: no memory for queues or thread");
    }
    *ret_stepper = stepper;
    return BT_OK;
}

void dc_stepper_destroy(struct dc_stepper *stepper)
{
    if (!stepper) {
        return;
    }
    atomic_store_explicit(&stepper->stop, true, memory_order_relaxed);
    bt_queue_close(stepper->commands);
    bt_queue_close(stepper->idle);
    pthread_join(stepper->thread, NULL);
    stepper_free(stepper);
}

void dc_stepper_add(struct dc_stepper *stepper, struct dc_sequence *sequence)
{
    struct command command = {.kind = COMMAND_ADD, .sequence = sequence};
    BT_ASSERT(bt_queue_try_push(stepper->commands, &command));
}

void dc_stepper_stop(struct dc_stepper *stepper, uint64_t request, uint64_t epoch,
                     enum dc_finish finish)
{
    struct command command = {
        .kind = COMMAND_STOP, .request = request, .epoch = epoch, .finish = finish};
    BT_ASSERT(bt_queue_try_push(stepper->commands, &command));
}

void dc_stepper_grow(struct dc_stepper *stepper, uint64_t request, uint64_t epoch, uint32_t page)
{
    struct command command = {
        .kind = COMMAND_GROW, .request = request, .epoch = epoch, .page = page};
    BT_ASSERT(bt_queue_try_push(stepper->commands, &command));
}

struct bt_queue *dc_stepper_steps(const struct dc_stepper *stepper)
{
    return stepper->steps;
}

void dc_stepper_return(struct dc_stepper *stepper, struct dc_step *step)
{
    BT_ASSERT(bt_queue_try_push(stepper->idle, &step));
}
