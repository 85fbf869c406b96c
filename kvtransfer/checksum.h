/*
 * The checksum of a handoff: the sum (mod 2^64) over layers and logical pages of a 64-bit hash of
 * the page's filled tokens, seeded with (layer, logical page). So both sides may compute it in any
 * order and page by page, and a page in the wrong place changes it.
 *
 * The hash of a page takes stripes of 64 bytes, eight lanes d[0..7] each (the last one is padded
 * with zeros; the length goes into the end):
 *
 *     k = d[j] ^ (key[j] + stripe * KVT_CHECKSUM_STEP)
 *     sum[j]     += low32(k) * high32(k)       depends on the place
 *     sum[j ^ 1] += d[j]                       a single changed lane never goes unseen
 *
 * and mixes the lanes. A copy is bound by memory, which leaves room for these few instructions: so
 * the source sums while it copies.
 */
#ifndef BATON_KVTRANSFER_CHECKSUM_H
#define BATON_KVTRANSFER_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>

#include "common/kvcache/layout.h"

#define KVT_CHECKSUM_STEP UINT64_C(0x9e3779b97f4a7c15)

/* Of the hash of one page. */
static inline uint64_t kvt_checksum_seed(uint32_t layer, uint32_t logical_page)
{
    return (uint64_t)layer << 32 | logical_page;
}

/* One page of one layer: `tokens` (1..64) filled tokens. */
uint64_t kvt_checksum_page(const struct bt_kv_layout *layout, const void *page, uint32_t layer,
                           uint32_t logical_page, uint32_t tokens);

/* The same, and copies them to `to` (the page there; both 64-byte aligned, as pages are), past the
 * caches: nobody reads them here soon. Then kvt_copy_fence. */
uint64_t kvt_checksum_copy_page(const struct bt_kv_layout *layout, void *to, const void *page,
                                uint32_t layer, uint32_t logical_page, uint32_t tokens);

/* Copies past the caches; any alignment. Then kvt_copy_fence. */
void kvt_copy(void *to, const void *from, size_t bytes);
/* Orders the copies before every store after it. */
void kvt_copy_fence(void);

/* All layers and pages of one sequence of `tokens` in `pool`. */
uint64_t kvt_checksum_sequence(const struct bt_kv_layout *layout, const void *pool,
                               uint32_t pool_pages, const uint32_t *pages, uint32_t tokens);

/* For tests: the ways to hash that this CPU has, 0 being plain C. NULL: no more. */
typedef uint64_t kvt_checksum_hash_fn(void *to, const void *from, size_t bytes, uint64_t seed);
kvt_checksum_hash_fn *kvt_checksum_variant(unsigned index, const char **ret_name);

#endif
