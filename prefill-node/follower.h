/*
 * A prefill worker's rank other than 0: KV pool, compute thread, pushing thread, RPC server, put
 * together on one event loop. Rank 0 says what it computes and what it pushes, the router does not
 * know it. Serves baton.v1.PrefillRank/Connect, PrefillRank/Push, Worker/Metrics and
 * Worker/Preflight, which calls it ready while the group runs: whether the worker takes requests,
 * rank 0 says. Worker/Drain and Worker/Resume go to rank 0, so that a drain of any rank is one of
 * the worker. Control thread only.
 *
 * A Push call, from acceptance to its one END:
 *
 *     refused (nothing was begun) | the push is open: DATA -> it ended: END OK with its outcome
 */
#ifndef BATON_PREFILL_NODE_FOLLOWER_H
#define BATON_PREFILL_NODE_FOLLOWER_H

#include "prefill-node/worker.h"

struct pf_follower;

/* `model` must outlive the follower. Meets the other ranks; the errors of pf_node_meet. */
enum bt_status pf_follower_create(struct bt_loop *loop, const struct bt_model *model,
                                  const struct pf_worker_options *options, struct bt_error *error,
                                  struct pf_follower **ret_follower);
/* When it is over and idle. NULL is fine. */
void pf_follower_destroy(struct pf_follower *follower);

const char *pf_follower_endpoint(const struct pf_follower *follower);

/* Asks rank 0 to end the worker. */
void pf_follower_stop(struct pf_follower *follower);
/* The group is left or lost; the loop was stopped. *ret_error (may be NULL): BT_OK when it was left
 * in order. */
bool pf_follower_over(const struct pf_follower *follower, struct bt_error *ret_error);
/* Ends what is being pushed. */
void pf_follower_cancel(struct pf_follower *follower);
/* No push is left: no write is under way, destroying is safe. */
bool pf_follower_idle(const struct pf_follower *follower);

#endif
