/*
 * Pages of KV as operands of tile products. A token's operand row is its latent, filled up with
 * zeros to whole tiles of 32, then its rotated key, filled up too.
 */
#ifndef BATON_COMMON_KERNELS_X86_KV_PAGE_H
#define BATON_COMMON_KERNELS_X86_KV_PAGE_H

#include "common/kernels/weight.h"
#include "common/kernels/x86/gemm.h"

/* Whether a page is an operand as it lies: bf16 of whole tiles. */
static inline bool bt_x86_kv_direct(const struct bt_kv_layer *kv)
{
    return kv->dtype == BT_BF16 && kv->kv_lora_rank % 32 == 0 && kv->qk_rope_head_dim % 32 == 0;
}

/* Tiles of a token's latent, and of all of it. */
static inline size_t bt_x86_latent_tiles(size_t kv_lora_rank)
{
    return bt_tiles_of(kv_lora_rank, BT_TILE_BF16);
}

static inline size_t bt_x86_token_tiles(size_t kv_lora_rank, size_t qk_rope_head_dim)
{
    return bt_tiles_of(kv_lora_rank, BT_TILE_BF16) + bt_tiles_of(qk_rope_head_dim, BT_TILE_BF16);
}

/*
 * The first `tokens` of a page as rows of A; nothing behind them is read. Points into the page, or
 * into `buffer` [tokens][token tiles][64 bytes], where other dtypes are rounded to bf16.
 */
struct bt_tile_rows BT_X86_NAME(kv_rows)(const struct bt_kv_layer *kv, uint32_t page, size_t tokens,
                                         void *buffer);

/*
 * Those rows as panels of 16 tokens with the token's elements as inputs: out [panel][tile], all
 * four panels of a page; tokens that are not there are 0.
 */
void BT_X86_NAME(kv_columns)(struct bt_tile_rows rows, size_t tokens, size_t tiles, void *out);

/*
 * Those rows as panels of 16 elements with tokens as inputs: out [panel][tile of 32 tokens],
 * panel_stride bytes apart, two panels for each of `tiles`, as many token tiles as `tokens` begin;
 * tokens that are not there are 0.
 */
void BT_X86_NAME(kv_pairs)(struct bt_tile_rows rows, size_t tokens, size_t tiles, void *out,
                           size_t panel_stride);

/*
 * The first `tokens` of a page in f32, for arithmetic of f32: out [token][latent, rotated key],
 * tokens bt_x86_padded(lora + rope) apart, filled up with zeros.
 */
void BT_X86_ROWS(kv_widen)(const struct bt_kv_layer *kv, uint32_t page, size_t tokens, float *out);

#endif
