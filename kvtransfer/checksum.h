/*
 * The checksum of a handoff: the sum (mod 2^64) over layers and logical pages of XXH3-64 of the
 * page's filled tokens, seeded with (layer, logical page). So both sides may compute it in any
 * order and page by page, and a page in the wrong place changes it.
 */
#ifndef BATON_KVTRANSFER_CHECKSUM_H
#define BATON_KVTRANSFER_CHECKSUM_H

#include <stdint.h>

#include "common/kvcache/layout.h"

/* One page of one layer: `tokens` (1..64) filled tokens. */
uint64_t kvt_checksum_page(const struct bt_kv_layout *layout, const void *page, uint32_t layer,
                           uint32_t logical_page, uint32_t tokens);

/* All layers and pages of one sequence of `tokens` in `pool`. */
uint64_t kvt_checksum_sequence(const struct bt_kv_layout *layout, const void *pool,
                               uint32_t pool_pages, const uint32_t *pages, uint32_t tokens);

#endif
