#include "prefill-node/compute.h"

#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "common/base/clock.h"

#define COMMANDS_PER_JOB 2 /* add, cancel */
#define EVENTS_PER_JOB   2 /* started, then computed or cancelled */
#define MORE_EVENTS      2 /* stop, failed */

struct command {
    struct pf_job *add;
    uint64_t cancel_serial; /* with add NULL */
};

struct pf_compute {
    struct pf_engine *engine;
    struct bt_queue *commands; /* control -> compute */
    struct bt_queue *events;   /* compute -> control */
    atomic_bool stop;
    bool told_stop;
    pthread_t thread;
};

/* The queues hold all that max_jobs jobs can cause. */
static void emit(struct pf_compute *compute, enum pf_compute_event_kind kind, struct pf_job *job)
{
    struct pf_compute_event event = {.kind = kind, .job = job};
    if (kind == PF_COMPUTE_FAILED) {
        event.error = pf_engine_error(compute->engine);
    }
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

/* Until the queue has something, is closed, or it is time for a heartbeat. */
static void wait_for_commands(const struct pf_compute *compute, int64_t until_ns)
{
    struct pollfd poller = {.fd = bt_queue_fd(compute->commands), .events = POLLIN};
    int timeout_ms = -1;
    if (until_ns != BT_NEVER_NS) {
        int64_t left_ns = until_ns - bt_clock_now_ns();
        timeout_ms = left_ns <= 0 ? 0 : (int)((left_ns + BT_NS_PER_MS - 1) / BT_NS_PER_MS);
    }
    poll(&poller, 1, timeout_ms);
}

/* Sleeps while the engine is empty, in a group no longer than a heartbeat. */
static void take_commands(struct pf_compute *compute)
{
    struct command command;
    int64_t until_ns = pf_engine_in_group(compute->engine)
                           ? bt_clock_now_ns() + pf_engine_heartbeat_ns(compute->engine)
                           : BT_NEVER_NS;
    for (;;) {
        while (bt_queue_try_pop(compute->commands, &command)) {
            obey(compute, &command);
        }
        if (stopping(compute) || pf_engine_job_count(compute->engine) > 0 ||
            bt_clock_now_ns() >= until_ns) {
            return;
        }
        wait_for_commands(compute, until_ns);
    }
}

static void emit_all(struct pf_compute *compute, enum pf_compute_event_kind kind,
                     const struct pf_jobs *jobs)
{
    for (uint32_t i = 0; i < jobs->count; i++) {
        emit(compute, kind, jobs->jobs[i]);
    }
}

/* With nothing to compute it only keeps the group together. */
static enum bt_status iterate(struct pf_compute *compute)
{
    struct pf_engine *engine = compute->engine;
    bool idle = pf_engine_job_count(engine) == 0;
    struct pf_jobs jobs = {0};
    struct pf_intent mine = {0}, all;
    if (!idle) {
        pf_engine_begin(engine, &jobs);
        emit_all(compute, PF_COMPUTE_STARTED, &jobs);
    }
    enum bt_status status = pf_engine_agree(engine, &mine, &all);
    if (status == BT_OK && all.stop && !compute->told_stop) {
        compute->told_stop = true;
        emit(compute, PF_COMPUTE_STOP, NULL);
    }
    if (status == BT_OK && !idle) {
        status = pf_engine_run(engine, &jobs);
        if (status == BT_OK) {
            emit_all(compute, PF_COMPUTE_COMPUTED, &jobs);
        }
    }
    return status;
}

/* The others end, too. That one of them is gone changes nothing any more. */
static void leave(struct pf_compute *compute)
{
    struct pf_intent mine = {.leave = true}, all;
    pf_engine_agree(compute->engine, &mine, &all);
}

/* Jobs come back, those that are on their way here, too. */
static void fail(struct pf_compute *compute)
{
    struct command command;
    struct pf_job *job;
    emit(compute, PF_COMPUTE_FAILED, NULL);
    while ((job = pf_engine_first(compute->engine))) {
        pf_engine_remove(compute->engine, job->serial);
        emit(compute, PF_COMPUTE_CANCELLED, job);
    }
    while (bt_queue_pop(compute->commands, &command)) {
        if (command.add) {
            emit(compute, PF_COMPUTE_CANCELLED, command.add);
        }
    }
}

static void *compute_main(void *argument)
{
    struct pf_compute *compute = argument;
    enum bt_status status = pf_engine_enter(compute->engine);
    if (status != BT_OK) {
        fail(compute);
        return NULL;
    }
    for (;;) {
        take_commands(compute);
        if (stopping(compute)) {
            leave(compute);
            return NULL;
        }
        status = iterate(compute);
        if (status != BT_OK) {
            fail(compute);
            return NULL;
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
    compute->events = bt_queue_create((size_t)max_jobs * EVENTS_PER_JOB + MORE_EVENTS,
                                      sizeof(struct pf_compute_event));
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
