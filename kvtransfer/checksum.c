#include "kvtransfer/checksum.h"

#include <xxhash.h>

uint64_t kvt_checksum_page(const struct bt_kv_layout *layout, const void *page, uint32_t layer,
                           uint32_t logical_page, uint32_t tokens)
{
    uint64_t seed = (uint64_t)layer << 32 | logical_page;

    return XXH3_64bits_withSeed(page, tokens * bt_kv_token_bytes(layout), seed);
}

uint64_t kvt_checksum_sequence(const struct bt_kv_layout *layout, const void *pool,
                               uint32_t pool_pages, const uint32_t *pages, uint32_t tokens)
{
    uint32_t page_count = bt_kv_pages_for(tokens);
    uint64_t sum = 0;

    for (uint32_t layer = 0; layer < layout->layer_count; layer++) {
        for (uint32_t i = 0; i < page_count; i++) {
            uint32_t left = tokens - i * BT_PAGE_TOKENS;
            const char *page =
                (const char *)pool + bt_kv_offset(layout, pool_pages, layer, pages[i], 0);
            sum += kvt_checksum_page(layout, page, layer, i,
                                     left < BT_PAGE_TOKENS ? left : BT_PAGE_TOKENS);
        }
    }
    return sum;
}
