/*
 * Who runs with whom: pure choices over the worker table. Internal to the core.
 */
#ifndef BATON_ROUTER_PLACEMENT_H
#define BATON_ROUTER_PLACEMENT_H

#include "router/worker_table.h"

/*
 * The READY prefill worker with the least backlog, of those below `depth_tokens` (one without any
 * backlog always qualifies); ties by ref. Workers that refused the request (rt_refusal) are passed
 * over. NULL: none now.
 */
struct rt_worker *rt_placement_prefill(const struct rt_worker_table *table,
                                       const struct rt_request *request, uint32_t depth_tokens);

/*
 * The READY decode rank that holds `pages` more, with the lowest utilisation after them:
 * (in use + placed by the core, not reported yet + pages) / pages_total; ties by fewest running,
 * then by ref. Workers that refused are passed over. NULL: none now.
 */
struct rt_worker *rt_placement_decode(const struct rt_worker_table *table,
                                      const struct rt_request *request, uint32_t pages);

/* Whether a worker of `role` that is not lost could take the request if it had nothing else to do,
 * or no such worker is there at all (one may come). */
bool rt_placement_possible(const struct rt_worker_table *table, enum rt_role role,
                           const struct rt_request_spec *spec);

/* The largest pages_total among decode ranks that are not lost; 0: none. */
uint32_t rt_placement_largest_pool(const struct rt_worker_table *table);

#endif
