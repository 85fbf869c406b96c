/*
 * Who runs with whom: pure choices over the worker table. Internal to the core.
 *
 * Workers that refused the request (rt_refusal), whose breaker is open or that can't hold its
 * length are passed over. A choice looks at a few dozen workers, however many there are
 * (worker_index.h).
 */
#ifndef BATON_ROUTER_PLACEMENT_H
#define BATON_ROUTER_PLACEMENT_H

#include "router/worker_table.h"

/* ---- prefill: placement.c */

/*
 * The READY prefill worker with the least predicted time to the first token: the time for the work
 * ahead and the worker's line at the tokens that it has not cached. Only those with work ahead for
 * less than options->prefill_depth_ns. NULL: none now.
 */
struct rt_worker *rt_placement_prefill(const struct rt_worker_table *table,
                                       const struct rt_request *request, int64_t now_ns,
                                       int64_t *ret_predicted_ns);
/* Time until the worker can begin a new prompt. */
int64_t rt_placement_ahead_ns(const struct rt_worker *worker, int64_t now_ns);

/* Time until the rank can begin a prompt of its own. */
double rt_placement_local_ahead_ns(const struct rt_worker *worker);

/* Whether a worker of `role` that is not lost could take the request if it had nothing else to do,
 * or no such worker is there at all (one may come). */
bool rt_placement_possible(const struct rt_worker_table *table, enum rt_role role,
                           const struct rt_request_spec *spec);
/* The same of a decode rank that computes the prompt itself. */
bool rt_placement_local_possible(const struct rt_worker_table *table,
                                 const struct rt_request_spec *spec);
/* The longest prompt that a decode rank which is not lost computes itself; 0: none does. */
uint32_t rt_placement_longest_local(const struct rt_worker_table *table);
/* The largest pages_total among decode ranks that are not lost; 0: none. */
uint32_t rt_placement_largest_pool(const struct rt_worker_table *table);

/* Whether it said no a moment ago, and nothing is new of it. */
bool rt_placement_refused(const struct rt_worker *worker, const struct rt_request *request);

/* ---- decode: decode_policy.c */

/* What the policies keep from one choice to the next. */
struct rt_decode_turns {
    uint32_t next_slot; /* round-robin */
    uint64_t draws;     /* power-of-two */
};

/*
 * The READY decode rank that has `pages` more than what it is projected to need, the best by
 * options->decode_policy (core.h); of equal ones the one with the fewest sequences. `local`: only
 * those that compute the prompt themselves, and have prompts ahead for less than
 * options->prefill_depth_ns. NULL: none now.
 */
struct rt_worker *rt_placement_decode(const struct rt_worker_table *table,
                                      const struct rt_request *request, uint32_t pages, bool local,
                                      struct rt_decode_turns *turns);

/* ---- what the table keeps in its indices */

void rt_placement_prefill_key(const struct rt_worker *worker, struct rt_index_key *ret_key);
void rt_placement_decode_key(const struct rt_worker_table *table, const struct rt_worker *worker,
                             struct rt_index_key *ret_key);
void rt_placement_size_key(const struct rt_worker *worker, struct rt_index_key *ret_key);

#endif
