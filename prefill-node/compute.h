/*
 * The compute thread of a prefill worker's rank 0: it owns the engine between create and destroy.
 * The control thread sends commands and takes events through two bounded queues. In a group it
 * keeps the other ranks' threads (follower_compute.h) in step, idle or not.
 *
 * A job that was added comes back with exactly one COMPUTED or CANCELLED event; until it was
 * taken, the job and what it points to belong to the compute thread.
 */
#ifndef BATON_PREFILL_NODE_COMPUTE_H
#define BATON_PREFILL_NODE_COMPUTE_H

#include "common/base/queue.h"
#include "prefill-node/engine.h"

struct pf_compute;

enum pf_compute_event_kind {
    PF_COMPUTE_STARTED,   /* its first chunk is being computed */
    PF_COMPUTE_COMPUTED,  /* job->first is there, the push was finished */
    PF_COMPUTE_CANCELLED, /* taken out between two iterations, or the group is over */
    PF_COMPUTE_STOP,      /* another rank was told to end: once at most */
    PF_COMPUTE_FAILED,    /* the group is over, `error` says why: nothing is computed any more */
};

struct pf_compute_event {
    enum pf_compute_event_kind kind;
    struct pf_job *job; /* of the first three */
    const struct bt_error *error;
};

/* `max_jobs`: that are added and whose last event was not taken; bounds both queues. The engine
 * stays the caller's, for destruction after this. */
enum bt_status pf_compute_create(struct pf_engine *engine, uint32_t max_jobs,
                                 struct bt_error *error, struct pf_compute **ret_compute);
/* Ends the thread at the next iteration boundary, in a group all ranks in order. Jobs inside are
 * forgotten. NULL is fine. */
void pf_compute_destroy(struct pf_compute *compute);

void pf_compute_add(struct pf_compute *compute, struct pf_job *job);
/* At most once a job. Harmless when it has come back meanwhile. */
void pf_compute_cancel(struct pf_compute *compute, uint64_t serial);

/* Items are struct pf_compute_event; one consumer, the control thread. */
struct bt_queue *pf_compute_events(const struct pf_compute *compute);

#endif
