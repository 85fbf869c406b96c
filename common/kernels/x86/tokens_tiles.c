/* Tokens by the products of tiles: pairs of tokens are zipped once for all columns. */
#include "common/kernels/x86/kv_page.h"
#include "common/kernels/x86/tokens.h"

BT_INLINE size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

void BT_X86_NAME(token_scores)(struct bt_token_block *block, struct bt_tile_panels queries,
                               size_t tiles, float *scores, size_t stride)
{
    size_t step = queries.panels > 2 ? BT_PAGE_TOKENS : 16; /* many panels are better read once */
    size_t each = bt_tiles_of(bt_ahead_left(&block->ahead), 2 * bt_tiles_of(block->tokens, step));
    for (size_t t = 0; t < block->tokens; t += step) {
        struct bt_tile_rows rows = block->pages[t / BT_PAGE_TOKENS];
        rows.data = (const char *)rows.data + t % BT_PAGE_TOKENS / 16 * rows.block_stride;
        bt_ahead_ask(&block->ahead, each);
        BT_X86_NAME(gemm_bf16)
        (rows, least(block->tokens - t, step), queries, tiles, false, scores + t * stride, stride);
    }
}

/* The product of all rows with latent tiles `tile` … tile + count - 1. */
static void sum_tiles(const struct bt_token_block *block, const struct bt_token_sums *s,
                      size_t tile, size_t count)
{
    size_t row_bytes = s->cols / 16 * (BT_DECODE_BLOCK / 32) * BT_TILE_BYTES;
    struct bt_tile_panels pairs = {s->pairs, BT_DECODE_PAIRS_STRIDE,
                                   least(s->panels - 2 * tile, 2 * count)};
    for (size_t t = 0; t < block->tokens; t += BT_PAGE_TOKENS) {
        struct bt_tile_rows rows = block->pages[t / BT_PAGE_TOKENS];
        rows.data = (const char *)rows.data + tile * BT_TILE_LINE;
        BT_X86_NAME(kv_pairs)
        (rows, least(block->tokens - t, BT_PAGE_TOKENS), count, s->pairs + t / 32 * BT_TILE_BYTES,
         BT_DECODE_PAIRS_STRIDE);
    }
    for (size_t r = 0; r < s->rows; r++) {
        struct bt_tile_rows weights = {s->weights + r * row_bytes,
                                       BT_DECODE_BLOCK / 32 * BT_TILE_BYTES, BT_TILE_BYTES,
                                       BT_TILE_LINE};
        BT_X86_NAME(gemm_bf16)
        (weights, s->heads, pairs, bt_tiles_of(least(s->seen + r, block->tokens), 32),
         s->accumulate, s->sums + r * s->cols * s->stride + tile * 32, s->stride);
    }
}

void BT_X86_NAME(token_sums)(struct bt_token_block *block, const struct bt_token_sums *s)
{
    size_t tiles = bt_tiles_of(s->panels, 2);
    size_t each = bt_tiles_of(bt_ahead_left(&block->ahead), bt_tiles_of(tiles, BT_DECODE_TILES));
    for (size_t tile = 0; tile < tiles; tile += BT_DECODE_TILES) {
        bt_ahead_ask(&block->ahead, each);
        sum_tiles(block, s, tile, least(tiles - tile, BT_DECODE_TILES));
    }
}
