/*
 * Tokens with VDPBF16PS: sixteen sums in registers, and as its other operand a broadcast from
 * memory, which costs nothing. What comes from L2 next is asked for by the line.
 */
#include "common/kernels/x86/kv_page.h"
#include "common/kernels/x86/tokens.h"

#define LINES 16 /* of a tile; tokens or columns of a block, too */

BT_INLINE size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* sum + the products of two elements of b in each lane with the two at `pair`. */
BT_INLINE __m512 dot(__m512 sum, __m512i b, const char *pair)
{
    __asm__("vdpbf16ps %2%{1to16%}, %1, %0"
            : "+v"(sum)
            : "v"(b), "m"(*(const int32_t __attribute__((may_alias)) *)pair));
    return sum;
}

/* The same for four rows, `one` and `three` bytes apart. Written out, since the compiler would make
 * an address of its own for each of them, and there are too many. */
BT_INLINE void dot4(__m512 *sums, __m512i b, const char *pairs, size_t one, size_t three)
{
    __asm__("vdpbf16ps (%5)%{1to16%}, %4, %0\n\t"
            "vdpbf16ps (%5,%6)%{1to16%}, %4, %1\n\t"
            "vdpbf16ps (%5,%6,2)%{1to16%}, %4, %2\n\t"
            "vdpbf16ps (%5,%7)%{1to16%}, %4, %3"
            : "+v"(sums[0]), "+v"(sums[1]), "+v"(sums[2]), "+v"(sums[3])
            : "v"(b), "r"(pairs), "r"(one), "r"(three), "m"(*(const char(*)[])pairs));
}

/* Sixteen tokens by one panel of queries; `each` lines of what is read later with each tile. */
static void score_block(const char *tokens, size_t one, const char *queries, size_t tiles,
                        struct bt_ahead *ahead, size_t each, float *scores, size_t stride)
{
    const char *rows[4] = {tokens, tokens + 4 * one, tokens + 8 * one, tokens + 12 * one};
    size_t three = 3 * one;
    __m512 sums[LINES];
#pragma GCC unroll 16
    for (size_t i = 0; i < LINES; i++)
        sums[i] = _mm512_setzero_ps();
    for (size_t t = 0; t < tiles; t++) {
        bt_ahead_ask(ahead, each);
        for (size_t i = 0; i < LINES; i++)
            _mm_prefetch(tokens + i * one + (t + 1) * BT_TILE_LINE, _MM_HINT_T0);
        for (size_t line = 0; line < LINES; line++, queries += BT_TILE_LINE) {
            __m512i b = _mm512_load_si512(queries);
#pragma GCC unroll 4
            for (size_t i = 0; i < 4; i++) {
                dot4(sums + 4 * i, b, rows[i], one, three);
                rows[i] += sizeof(int32_t);
            }
        }
    }
#pragma GCC unroll 16
    for (size_t i = 0; i < LINES; i++)
        _mm512_storeu_ps(scores + i * stride, sums[i]);
}

void BT_X86_NAME(token_scores)(struct bt_token_block *block, struct bt_tile_panels queries,
                               size_t tiles, float *scores, size_t stride)
{
    size_t steps = bt_tiles_of(block->tokens, LINES) * queries.panels * tiles;
    size_t each = bt_tiles_of(bt_ahead_left(&block->ahead), 2 * steps);
    for (size_t t = 0; t < block->tokens; t += LINES, scores += LINES * stride) {
        struct bt_tile_rows rows = block->pages[t / BT_PAGE_TOKENS];
        rows.data = (const char *)rows.data + t % BT_PAGE_TOKENS / 16 * rows.block_stride;
        if (block->tokens - t < LINES) {
            BT_X86_NAME(gemm_bf16)
            (rows, block->tokens - t, queries, tiles, false, scores, stride);
            return;
        }
        for (size_t p = 0; p < queries.panels; p++)
            score_block(rows.data, rows.row_stride,
                        (const char *)queries.data + p * queries.panel_stride, tiles, &block->ahead,
                        each, scores + p * 16, stride);
    }
}

/* ---- sums ---- */

/* Which elements of two tokens' lines, side by side, are the pairs of a panel. */
BT_INLINE __m512i zip_order(size_t panel)
{
    static const uint16_t low[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                     8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    return _mm512_add_epi16(_mm512_loadu_si512(low), _mm512_set1_epi16(panel % 2 ? 16 : 0));
}

/* Two tokens: `pair` is the one's weight and the other's of the first column. */
BT_INLINE void add_pair(__m512i token0, __m512i token1, __m512i order, const char *pair,
                        __m512 *sums)
{
    __m512i zipped = _mm512_permutex2var_epi16(token0, order, token1);
#pragma GCC unroll 16
    for (size_t i = 0; i < LINES; i++)
        sums[i] = dot(sums[i], zipped, pair + i * BT_TILE_LINE);
}

/* The tokens of a page, from the panel's line of each on; the next line of each is on its way. */
BT_INLINE void add_page(const struct bt_tile_rows *rows, size_t tokens, const char *weights,
                        __m512i order, struct bt_ahead *ahead, size_t each, __m512 *sums)
{
    const char *line = rows->data;
    size_t stride = rows->row_stride;
    for (size_t t = 0; t + 1 < tokens; t += 2, line += 2 * stride) {
        const char *pair = weights + t / 32 * BT_TILE_BYTES + t % 32 * 2;
        if (t % 32 == 0)
            bt_ahead_ask(ahead, each);
        _mm_prefetch(line + BT_TILE_LINE, _MM_HINT_T0);
        _mm_prefetch(line + stride + BT_TILE_LINE, _MM_HINT_T0);
        add_pair(_mm512_loadu_si512(line), _mm512_loadu_si512(line + stride), order, pair, sums);
    }
    if (tokens % 2)
        add_pair(_mm512_loadu_si512(line), _mm512_setzero_si512(), order,
                 weights + (tokens - 1) / 32 * BT_TILE_BYTES + (tokens - 1) % 32 * 2, sums);
}

/* One panel of latents by sixteen columns. */
static void sum_block(struct bt_token_block *block, size_t panel, size_t tokens,
                      const char *weights, size_t each, bool accumulate, float *out, size_t stride)
{
    __m512 sums[LINES];
    __m512i order = zip_order(panel);
#pragma GCC unroll 16
    for (size_t i = 0; i < LINES; i++)
        sums[i] = accumulate ? _mm512_loadu_ps(out + i * stride) : _mm512_setzero_ps();
    for (size_t t = 0; t < tokens; t += BT_PAGE_TOKENS) {
        struct bt_tile_rows rows = block->pages[t / BT_PAGE_TOKENS];
        rows.data = (const char *)rows.data + panel / 2 * rows.tile_stride;
        add_page(&rows, least(tokens - t, BT_PAGE_TOKENS), weights + t / 32 * BT_TILE_BYTES, order,
                 &block->ahead, each, sums);
    }
#pragma GCC unroll 16
    for (size_t i = 0; i < LINES; i++)
        _mm512_storeu_ps(out + i * stride, sums[i]);
}

/* Both panels of a tile, so that the tokens' lines are in L1 for all columns. */
void BT_X86_NAME(token_sums)(struct bt_token_block *block, const struct bt_token_sums *s)
{
    size_t blocks = s->rows * s->cols / 16, steps = blocks * s->panels;
    size_t each = bt_tiles_of(bt_ahead_left(&block->ahead), steps * bt_tiles_of(block->tokens, 32));
    for (size_t step = 0; step < steps; step++) {
        size_t tile = step / (2 * blocks), wide = least(s->panels - 2 * tile, 2);
        size_t i = (step - tile * 2 * blocks) / wide, panel = 2 * tile + step % wide;
        sum_block(block, panel, least(s->seen + i * 16 / s->cols, block->tokens),
                  s->weights + i * (BT_DECODE_BLOCK / 32) * BT_TILE_BYTES, each, s->accumulate,
                  s->sums + i * 16 * s->stride + panel * 16, s->stride);
    }
}
