#include "prefill-node/compute.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#define COMMANDS_PER_JOB 2 /* add, cancel */
#define EVENTS_PER_JOB   2 /* started, then computed or cancelled */

struct command {
    struct pf_job *add;
    uint64_t cancel_serial; /* with add NULL */
};

struct pf_compute {
    struct pf_engine *engine;
    struct bt_queue *commands; /* control -> compute */
    struct bt_queue *events;   /* compute -> control */
    atomic_bool stop;
    pthread_t thread;
};

/* The queues hold all that max_jobs jobs can cause. */
static void emit(struct pf_compute *compute, enum pf_compute_event_kind kind, struct pf_job *job)
{
    struct pf_compute_event event = {kind, job};
    BT_ASSERT(bt_queue_try_push(compute->events, &event));
}

static void obey(struct pf_compute *compute, const struct command *command)
{
    if (command->add) {
        pf_engine_add(compute->engine, command->add);
        return;
    }
    struct pf_job *job = pf_engine_remove(compute->engine, command->cancel_serial);
    if (job) {
        emit(compute, PF_COMPUTE_CANCELLED, job);
    }
}

static bool stopping(struct pf_compute *compute)
{
    return atomic_load_explicit(&compute->stop, memory_order_relaxed);
}

/* Sleeps while the engine is empty. Returns with jobs in the engine, or to end the thread. */
static void take_commands(struct pf_compute *compute)
{
    struct command command;
    while (bt_queue_try_pop(compute->commands, &command)) {
        obey(compute, &command);
    }
    while (!stopping(compute) && pf_engine_job_count(compute->engine) == 0 &&
           bt_queue_pop(compute->commands, &command)) {
        obey(compute, &command);
    }
}

static void *compute_main(void *argument)
{
    struct pf_compute *compute = argument;
    struct pf_jobs jobs;
    pf_engine_enter(compute->engine);
    for (;;) {
        take_commands(compute);
        if (stopping(compute)) {
            return NULL;
        }
        pf_engine_begin(compute->engine, &jobs);
        for (uint32_t i = 0; i < jobs.count; i++) {
            emit(compute, PF_COMPUTE_STARTED, jobs.jobs[i]);
        }
        pf_engine_run(compute->engine, &jobs);
        for (uint32_t i = 0; i < jobs.count; i++) {
            emit(compute, PF_COMPUTE_COMPUTED, jobs.jobs[i]);
        }
    }
}

enum bt_status pf_compute_create(struct pf_engine *engine, uint32_t max_jobs,
                                 struct bt_error *error, struct pf_compute **ret_compute)
{
    struct pf_compute *compute = calloc(1, sizeof(*compute));
    if (!compute) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "compute thread: no memory");
    }
    compute->engine = engine;
    compute->commands =
        bt_queue_create((size_t)max_jobs * COMMANDS_PER_JOB, sizeof(struct command));
    compute->events =
        bt_queue_create((size_t)max_jobs * EVENTS_PER_JOB, sizeof(struct pf_compute_event));
    if (!compute->commands || !compute->events) {
        goto err_queues;
    }
    if (pthread_create(&compute->thread, NULL, compute_main, compute) != 0) {
        goto err_queues;
    }
    *ret_compute = compute;
    return BT_OK;

err_queues:
    bt_queue_destroy(compute->events);
    bt_queue_destroy(compute->commands);
    free(compute);
    return bt_error_set(error, BT_ERR_NO_MEMORY, "compute thread: no memory for queues or thread");
}

void pf_compute_destroy(struct pf_compute *compute)
{
    if (!compute) {
        return;
    }
    atomic_store_explicit(&compute->stop, true, memory_order_relaxed);
    bt_queue_close(compute->commands);
    pthread_join(compute->thread, NULL);
    bt_queue_destroy(compute->events);
    bt_queue_destroy(compute->commands);
    free(compute);
}

void pf_compute_add(struct pf_compute *compute, struct pf_job *job)
{
    struct command command = {.add = job};
    BT_ASSERT(bt_queue_try_push(compute->commands, &command));
}

void pf_compute_cancel(struct pf_compute *compute, uint64_t serial)
{
    struct command command = {.cancel_serial = serial};
    BT_ASSERT(bt_queue_try_push(compute->commands, &command));
}

struct bt_queue *pf_compute_events(const struct pf_compute *compute)
{
    return compute->events;
}
