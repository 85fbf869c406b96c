#include "kvtransfer/plan.h"

#include <stdbool.h>

static bool extends(const struct kvt_write *write, const struct kvt_write *next)
{
    return write->source_offset + write->bytes == next->source_offset &&
           write->target_offset + write->bytes == next->target_offset;
}

uint32_t kvt_plan_layer(const struct bt_kv_layout *layout, uint32_t layer, uint32_t begin,
                        uint32_t end, const struct kvt_plan_side *source,
                        const struct kvt_plan_side *target, struct kvt_share share,
                        struct kvt_write *ret_writes, uint32_t max, uint32_t *ret_tokens)
{
    uint64_t token_bytes = bt_kv_token_bytes(layout);
    uint32_t count = 0;
    uint32_t token = begin;

    while (token < end) {
        uint32_t logical = token / BT_PAGE_TOKENS;
        uint32_t in_page = token % BT_PAGE_TOKENS;
        uint32_t tokens = BT_PAGE_TOKENS - in_page;
        if (tokens > end - token)
            tokens = end - token;
        if (logical % share.count != share.index) {
            token += tokens;
            continue;
        }
        struct kvt_write next = {
            .source_offset =
                bt_kv_offset(layout, source->pool_pages, layer, source->pages[logical], in_page),
            .target_offset =
                bt_kv_offset(layout, target->pool_pages, layer, target->pages[logical], in_page),
            .bytes = tokens * token_bytes,
            .token = token,
        };
        if (count > 0 && extends(&ret_writes[count - 1], &next))
            ret_writes[count - 1].bytes += next.bytes;
        else if (count < max)
            ret_writes[count++] = next;
        else
            break;
        token += tokens;
    }
    *ret_tokens = token - begin;
    return count;
}
