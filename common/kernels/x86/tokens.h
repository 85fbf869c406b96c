/*
 * The two products of decode with a block of tokens as they lie in their pages: queries by tokens,
 * and the sums of latents by the weights of the softmax. tokens_dot.c is that of the avx512_bf16
 * table, tokens_tiles.c that of the others.
 *
 * Each output is a sum in ascending order of latent elements, or of tokens: the same whatever other
 * rows share the call.
 */
#ifndef BATON_COMMON_KERNELS_X86_TOKENS_H
#define BATON_COMMON_KERNELS_X86_TOKENS_H

#include "common/kernels/x86/gemm.h"
#include "common/kernels/x86/mla_memory.h"

#define BT_DECODE_PAGES (BT_DECODE_BLOCK / BT_PAGE_TOKENS)

/* Memory to be asked for meanwhile, in this order: it is read next. */
struct bt_ahead {
    const char *at[BT_DECODE_PAGES];
    size_t lines[BT_DECODE_PAGES];
    size_t run; /* the first that is not asked for yet */
};

struct bt_token_block {
    struct bt_tile_rows pages[BT_DECODE_PAGES]; /* as kv_rows gives them */
    size_t tokens;                              /* 1 … BT_DECODE_BLOCK */
    struct bt_ahead ahead;
};

/* scores [token][stride]: the columns of the panels of queries, `tiles` of each token's row. */
void BT_X86_NAME(token_scores)(struct bt_token_block *block, struct bt_tile_panels queries,
                               size_t tiles, float *scores, size_t stride);

/*
 * sums [row][column][stride] = (or, accumulate, +=) weights by latents. Row i of `rows` sees the
 * first `seen` + i tokens of the block, or all; its weights are A tiles, BT_DECODE_BLOCK / 32 for
 * every 16 of its `cols` columns, of which the first `heads` are wanted (others may be written).
 */
struct bt_token_sums {
    const char *weights; /* [row][16 columns][tile of 32 tokens] */
    size_t rows, seen, cols, heads;
    size_t panels; /* of 16 elements of the latent */
    bool accumulate;
    float *sums;
    size_t stride;
    char *pairs; /* BT_DECODE_TILES * 2 * BT_DECODE_PAIRS_STRIDE bytes of scratch */
};
void BT_X86_NAME(token_sums)(struct bt_token_block *block, const struct bt_token_sums *sums);

/* Asks for the next `lines`. */
BT_INLINE void bt_ahead_ask(struct bt_ahead *ahead, size_t lines)
{
    while (lines > 0 && ahead->run < BT_DECODE_PAGES) {
        size_t run = ahead->run, count = lines < ahead->lines[run] ? lines : ahead->lines[run];
        for (size_t i = 0; i < count; i++)
            _mm_prefetch(ahead->at[run] + i * BT_TILE_LINE, _MM_HINT_T1);
        ahead->at[run] += count * BT_TILE_LINE;
        ahead->lines[run] -= count;
        ahead->run += ahead->lines[run] == 0;
        lines -= count;
    }
}

/* How many lines of it are left. */
BT_INLINE size_t bt_ahead_left(const struct bt_ahead *ahead)
{
    size_t left = 0;
    for (size_t run = ahead->run; run < BT_DECODE_PAGES; run++)
        left += ahead->lines[run];
    return left;
}

#endif
