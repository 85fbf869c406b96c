/*
 * Which workers hold the KV of which prompt prefixes, from what they tell with their heartbeats
 * (bt_prefix_index_changes): for a prompt's block ids, how many leading blocks each worker has.
 * Estimates for placement: a worker itself has the last word, and looks at tokens, not at ids.
 * Pure, one thread.
 *
 * Bounded: max_blocks over all workers, max_worker_blocks of one. Past that the oldest news are
 * forgotten, of the worker that has most, children before parents; what comes later behind a block
 * that is not known here is ignored. About 30 bytes a block of a worker, and as many for each that
 * differs from all others; 5 workers or more that share a block cost a bit for each worker there
 * may be.
 *
 * Deterministic: the salt changes nothing but where things lie.
 */
#ifndef BATON_ROUTER_PREFIX_MAP_H
#define BATON_ROUTER_PREFIX_MAP_H

#include <stdint.h>

#include "common/base/status.h"
#include "common/kvcache/prefix_index.h"
#include "router/core.h"

#define RT_PREFIX_MAX_WORKERS 4096
#define RT_PREFIX_MAX_PAGES   (UINT32_C(1) << 22) /* of one worker's pool, 256 million tokens */

struct rt_prefix_map_options {
    uint32_t max_workers; /* known at once; <= RT_PREFIX_MAX_WORKERS */
    uint32_t max_blocks;
    uint32_t max_worker_blocks;
    uint64_t salt; /* random, and not known to those who choose prompts */
};

struct rt_prefix_map;

struct rt_prefix_map *
rt_prefix_map_create(const struct rt_prefix_map_options *options); /* or NULL */
void rt_prefix_map_destroy(struct rt_prefix_map *map);             /* NULL is fine */

/* As a worker sent it; nothing of it is trusted. */
struct rt_prefix_summary {
    uint64_t since, version;
    const struct bt_prefix_change *changes; /* [count] */
    uint32_t count;
};

/*
 * With since 0 all that was known of the worker is forgotten first. STALE: `since` is not what
 * rt_prefix_map_version says (a message was lost, or came twice); the worker goes on from there
 * when it is told. INVALID_ARGUMENT: can't be; names what. EXHAUSTED: max_workers are known.
 * Nothing is changed then.
 */
enum bt_status rt_prefix_map_apply(struct rt_prefix_map *map, rt_worker_ref worker,
                                   const struct rt_prefix_summary *summary, struct bt_error *error);

/* What the worker is to be told with each answer: it sends what changed since. 0: nothing is known
 * of it. */
uint64_t rt_prefix_map_version(const struct rt_prefix_map *map, rt_worker_ref worker);

/* The worker is gone. Costs as much as it has pages; one that is not known is fine. */
void rt_prefix_map_forget(struct rt_prefix_map *map, rt_worker_ref worker);

/*
 * The workers with the longest prefix of `blocks`, the longest first; those that have nothing are
 * left out. Which of equals come first is decided by `spread`, any number: with one of its own each
 * request gets others. blocks: bt_prefix_block_id of the first (token_count - 1) / 64 blocks of the
 * prompt, as its last token is always computed. Fills at most `max` and returns how many. Costs the
 * logarithm of `count` for each length that differs, and a few ns for each worker that has
 * anything.
 */
uint32_t rt_prefix_map_lookup(struct rt_prefix_map *map, const uint64_t *blocks, uint32_t count,
                              uint32_t spread, uint32_t max, struct rt_cached *ret_cached);

/* Of any worker, in the last lookup. */
uint32_t rt_prefix_map_tokens(const struct rt_prefix_map *map, rt_worker_ref worker);

struct rt_prefix_map_view {
    uint32_t workers;
    uint32_t blocks;    /* over all workers */
    uint32_t distinct;  /* of these */
    uint64_t forgotten; /* for want of room, ever */
    uint64_t ignored;   /* changes, ever */
    uint64_t bytes;     /* in use */
};
void rt_prefix_map_look(const struct rt_prefix_map *map, struct rt_prefix_map_view *ret_view);

/* For tests: the first rule that does not hold; NULL: all do. */
const char *rt_prefix_map_check(const struct rt_prefix_map *map);

#endif
