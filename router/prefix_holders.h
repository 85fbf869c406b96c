/*
 * Blocks, and who holds each: sets of small numbers below max_holders. Internal to the prefix map.
 *
 * A block is here as long as it is in use; up to four holders stand in the block itself, more in a
 * bitmap of its own.
 */
#ifndef BATON_ROUTER_PREFIX_HOLDERS_H
#define BATON_ROUTER_PREFIX_HOLDERS_H

#include <stdbool.h>
#include <stdint.h>

#define RT_NO_BLOCK UINT32_MAX

struct rt_prefix_holders;

struct rt_prefix_holders *rt_prefix_holders_create(uint32_t max_blocks, uint32_t max_holders,
                                                   uint64_t salt); /* NULL: no memory */
void rt_prefix_holders_destroy(struct rt_prefix_holders *holders); /* NULL is fine */

/* RT_NO_BLOCK: it is not here. */
uint32_t rt_prefix_holders_find(const struct rt_prefix_holders *holders, uint64_t id);

/* Finds or adds the block, and uses it once more. Less than max_blocks may be in use. */
uint32_t rt_prefix_holders_use(struct rt_prefix_holders *holders, uint64_t id);
/* With the last use the block is gone; nobody may hold it then. */
void rt_prefix_holders_release(struct rt_prefix_holders *holders, uint32_t block);

bool rt_prefix_holders_has(const struct rt_prefix_holders *holders, uint32_t block,
                           uint32_t holder);
/* False: no memory. Not more holders than uses. */
bool rt_prefix_holders_add(struct rt_prefix_holders *holders, uint32_t block, uint32_t holder);
/* Before the use is released. */
void rt_prefix_holders_remove(struct rt_prefix_holders *holders, uint32_t block, uint32_t holder);

/* [word_count], bit h of word h / 64: h holds the block */
void rt_prefix_holders_read(const struct rt_prefix_holders *holders, uint32_t block,
                            uint64_t *ret_words);
uint32_t rt_prefix_holders_words(const struct rt_prefix_holders *holders); /* word_count */

uint32_t rt_prefix_holders_count(const struct rt_prefix_holders *holders); /* blocks */
uint64_t rt_prefix_holders_bytes(const struct rt_prefix_holders *holders); /* in use */

/* For tests: whether the blocks are found, and each counted once. */
bool rt_prefix_holders_check(const struct rt_prefix_holders *holders);

#endif
