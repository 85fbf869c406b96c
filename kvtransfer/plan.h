/*
 * What to write for a range of tokens of one layer: the fewest writes, each from neighbouring
 * source memory to neighbouring target memory. Pure.
 */
#ifndef BATON_KVTRANSFER_PLAN_H
#define BATON_KVTRANSFER_PLAN_H

#include <stdint.h>

#include "common/kvcache/layout.h"

struct kvt_write {
    uint64_t source_offset; /* from the source pool's base */
    uint64_t target_offset; /* from the target pool's base */
    uint64_t bytes;
};

struct kvt_plan_side {
    const uint32_t *pages; /* logical page -> page of this pool */
    uint32_t pool_pages;
};

/*
 * Writes for tokens [begin, end) of `layer`, in token order, merged where pages are neighbours on
 * both sides. `ret_writes` holds `max`; at most one a page is needed. Returns how many, and the
 * number of tokens they cover in *ret_tokens (less than end - begin only when `max` was reached).
 */
uint32_t kvt_plan_layer(const struct bt_kv_layout *layout, uint32_t layer, uint32_t begin,
                        uint32_t end, const struct kvt_plan_side *source,
                        const struct kvt_plan_side *target, struct kvt_write *ret_writes,
                        uint32_t max, uint32_t *ret_tokens);

#endif
