/*
 * Names of prompt prefixes. A block is the 64 tokens of one page; its hash covers all tokens from
 * the prompt's start and the fingerprint of what computes their KV, so equal hashes mean equal KV
 * as far as a hash can tell. Workers and routers compute the same ones. Pure.
 *
 *     hash(block i) = SipHash-1-3-128(key: hash(block i - 1), message: its tokens, little endian)
 */
#ifndef BATON_COMMON_KVCACHE_PREFIX_HASH_H
#define BATON_COMMON_KVCACHE_PREFIX_HASH_H

#include <stdint.h>

#include "common/kvcache/layout.h"

struct bt_prefix_hash {
    uint64_t low, high;
};

/* What stands for the block before the first. Model names do not count. */
struct bt_prefix_hash bt_prefix_hash_start(const struct bt_fingerprint *fingerprint);

struct bt_prefix_hash bt_prefix_hash_block(struct bt_prefix_hash parent,
                                           const uint32_t tokens[BT_PAGE_TOKENS]);

/* Of all full blocks: ret_hashes [token_count / BT_PAGE_TOKENS]. Returns how many. */
uint32_t bt_prefix_hash_prompt(struct bt_prefix_hash start, const uint32_t *tokens,
                               uint32_t token_count, struct bt_prefix_hash *ret_hashes);

/* What summaries and routers call a block; never 0. */
static inline uint64_t bt_prefix_block_id(struct bt_prefix_hash hash)
{
    return hash.low ? hash.low : 1;
}

#endif
