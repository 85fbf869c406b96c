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
    uint32_t token; /* the first that is in it */
};

/* Of the pages of a prompt, those with logical page % count == index: what one rank of a group
 * pushes. */
struct kvt_share {
    uint32_t index, count;
};

struct kvt_plan_side {
    const uint32_t *pages; /* logical page -> page of this pool */
    uint32_t pool_pages;
};

/*
 * Writes for tokens [begin, end) of `layer` in pages of the share, in token order, merged where
 * pages are neighbours on both sides. `ret_writes` holds `max`; at most one a page is needed.
 * Returns how many, and the number of tokens they cover, those of other shares in between included,
 * in *ret_tokens (less than end - begin only when `max` was reached).
 */
uint32_t kvt_plan_layer(const struct bt_kv_layout *layout, uint32_t layer, uint32_t begin,
                        uint32_t end, const struct kvt_plan_side *source,
                        const struct kvt_plan_side *target, struct kvt_share share,
                        struct kvt_write *ret_writes, uint32_t max, uint32_t *ret_tokens);

#endif
