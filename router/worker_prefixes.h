/*
 * What prefill workers tell of the prompt prefixes that they keep, and which of them have that of a
 * prompt. Loop thread only.
 */
#ifndef BATON_ROUTER_WORKER_PREFIXES_H
#define BATON_ROUTER_WORKER_PREFIXES_H

#include <stdio.h>

#include "common/kvcache/layout.h"
#include "proto/registry.pb-c.h"
#include "router/prefix_map.h"

struct rt_worker_prefixes;

/* max_blocks: over all workers; 0: 4 million, which take 240 MB once they are there. */
struct rt_worker_prefixes *rt_worker_prefixes_create(uint32_t max_blocks); /* NULL: no memory */
void rt_worker_prefixes_destroy(struct rt_worker_prefixes *prefixes);      /* NULL is fine */

/* The summary of a heartbeat, of which nothing is trusted; NULL: none. Returns the version that the
 * worker is to be told. What can't be is counted, and all that is known of the worker forgotten. */
uint64_t rt_worker_prefixes_hear(struct rt_worker_prefixes *prefixes, rt_worker_ref worker,
                                 const Baton__V1__PrefixSummary *summary);
void rt_worker_prefixes_forget(struct rt_worker_prefixes *prefixes, rt_worker_ref worker);

/* The best holders of the prompt's beginning, when such a model computes it: ret_cached
 * [RT_CACHED_MAX], of equals others with each `spread`. Returns how many. */
uint32_t rt_worker_prefixes_find(struct rt_worker_prefixes *prefixes,
                                 const struct bt_fingerprint *fingerprint, const uint32_t *prompt,
                                 uint32_t prompt_tokens, uint32_t spread,
                                 struct rt_cached *ret_cached);

/* Exposition text of its metrics. */
void rt_worker_prefixes_render(const struct rt_worker_prefixes *prefixes, FILE *out);

#endif
