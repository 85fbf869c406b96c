/*
 * The compute thread of a prefill worker's ranks other than 0: computes what rank 0 plans, and
 * tells the pushes of this rank how far each layer is. The control thread adds pushes and takes
 * them back. What is cached of a prompt goes out with its first chunk: not before this rank, too,
 * has computed all that came before it.
 *
 * A plan may name a job whose push is not here, as it was cancelled: then nothing of it is pushed.
 * A plan that makes no sense, or does not fit the pushes, ends the group.
 */
#ifndef BATON_PREFILL_NODE_FOLLOWER_COMPUTE_H
#define BATON_PREFILL_NODE_FOLLOWER_COMPUTE_H

#include "common/base/queue.h"
#include "prefill-node/pass.h"

struct pf_follower_compute_options {
    struct pf_pass_options pass;
    struct pf_plan_limits limits;
    uint32_t max_pushes; /* here at once; bounds the queue */
};

enum pf_follower_event_kind {
    PF_FOLLOWER_RELEASED, /* `serial`, that was removed, is not in use any more */
    PF_FOLLOWER_LEFT,     /* rank 0 ended all ranks in order: the thread is over */
    PF_FOLLOWER_FAILED,   /* the group is over, `error` says why, and so is the thread */
};

struct pf_follower_event {
    enum pf_follower_event_kind kind;
    uint64_t serial;
    const struct bt_error *error;
};

struct pf_follower_push {
    uint64_t serial;
    struct kvt_push *push;
    const uint32_t *pages; /* [bt_kv_pages_for(prompt_tokens)], until it was taken back */
    uint32_t prompt_tokens;
    uint32_t cached_tokens; /* whose KV is in the pages when a plan names the job */
};

struct pf_follower_compute;

/* Without its thread. Starts the rank (bt_rank_start). */
enum bt_status pf_follower_compute_create(const struct pf_follower_compute_options *options,
                                          struct bt_error *error,
                                          struct pf_follower_compute **ret_compute);
enum bt_status pf_follower_compute_start(struct pf_follower_compute *compute,
                                         struct bt_error *error);
/* Not started, or after LEFT or FAILED. NULL is fine. */
void pf_follower_compute_destroy(struct pf_follower_compute *compute);

/* ALREADY_EXISTS: its serial is here; EXHAUSTED: max_pushes. */
enum bt_status pf_follower_compute_add(struct pf_follower_compute *compute,
                                       const struct pf_follower_push *push, struct bt_error *error);
/* True: the thread does not know it any more. False: it is used in this iteration, and RELEASED
 * comes after. */
bool pf_follower_compute_remove(struct pf_follower_compute *compute, uint64_t serial);

/* Asks rank 0 to end the worker. */
void pf_follower_compute_stop(struct pf_follower_compute *compute);

/* Items are struct pf_follower_event; one consumer, the control thread. */
struct bt_queue *pf_follower_compute_events(const struct pf_follower_compute *compute);

#endif
