/*
 * Products of the avx512_bf16 table: VDPBF16PS and VPDPBUSD, sums in registers over all tiles.
 *
 * A line of B holds pairs (or fours) of inputs of 16 outputs, so one broadcast of a row's pair
 * meets 16 outputs at once. An output's sum takes its lines in ascending order, whatever block it
 * is in.
 *
 * VPDPBUSD multiplies unsigned by signed bytes. B is made unsigned by flipping its top bit, which
 * adds 128 to each; 128 times the sum of the row of A is taken off again. All of it is exact modulo
 * 2^32.
 */
#include <string.h>

#include "common/kernels/x86/gemm.h"

#define LINES        (BT_TILE_BYTES / BT_TILE_LINE)
#define BLOCK_ROWS   8 /* with BLOCK_PANELS: 24 sums, 3 lines of B and the broadcast of A */
#define BLOCK_PANELS 3
#define MAX_SUMS     (BLOCK_ROWS * BLOCK_PANELS)
/* A row or two read B from memory: short panels in the order in which they lie there, since streams
 * side by side would end before they are seen. */
#define FEW_ROWS    2
#define SHORT_TILES 24

void BT_X86_NAME(gemm_begin)(void)
{
}

void BT_X86_NAME(gemm_end)(void)
{
}

/* At most BLOCK_ROWS rows of one block of 16 against at most BLOCK_PANELS panels. */
struct block {
    const char *a, *b;
    size_t tile_stride, row_stride, panel_stride, tiles, c_stride;
    bool accumulate;
    void *c;
};

BT_INLINE __m512i line_of_row(const char *a)
{
    int32_t inputs;
    memcpy(&inputs, a, sizeof(inputs));
    return _mm512_set1_epi32(inputs);
}

BT_INLINE void load_sums(const struct block *s, size_t rows, size_t panels, __m512i *sums)
{
#pragma GCC unroll 8
    for (size_t r = 0; r < rows; r++) {
#pragma GCC unroll 3
        for (size_t p = 0; p < panels; p++)
            sums[r * panels + p] =
                s->accumulate ? _mm512_loadu_si512((const float *)s->c + r * s->c_stride + p * 16)
                              : _mm512_setzero_si512();
    }
}

BT_INLINE void store_sums(const struct block *s, size_t rows, size_t panels, const __m512i *sums)
{
#pragma GCC unroll 8
    for (size_t r = 0; r < rows; r++) {
#pragma GCC unroll 3
        for (size_t p = 0; p < panels; p++)
            _mm512_storeu_si512((float *)s->c + r * s->c_stride + p * 16, sums[r * panels + p]);
    }
}

/* Takes 128 times the sums of the rows of A off: what the flipped bits of B added. */
BT_INLINE void undo_flip(const struct block *s, size_t rows, size_t panels, __m512i *sums)
{
    __m512i ones = _mm512_set1_epi8(1);
#pragma GCC unroll 8
    for (size_t r = 0; r < rows; r++) {
        __m512i row = _mm512_setzero_si512();
        for (size_t t = 0; t < s->tiles; t++)
            row = _mm512_dpbusd_epi32(
                row, ones, _mm512_loadu_si512(s->a + r * s->row_stride + t * s->tile_stride));
        __m512i flip = _mm512_set1_epi32((int32_t)((uint32_t)_mm512_reduce_add_epi32(row) << 7));
#pragma GCC unroll 3
        for (size_t p = 0; p < panels; p++)
            sums[r * panels + p] = _mm512_sub_epi32(sums[r * panels + p], flip);
    }
}

/* rows, panels and int8 are constants where this is inlined. */
BT_INLINE void block_of(const struct block *s, size_t rows, size_t panels, bool int8)
{
    __m512i sums[MAX_SUMS], lines[BLOCK_PANELS], flip = _mm512_set1_epi8(-128);
    const char *a = s->a, *b = s->b;
    size_t row_stride = s->row_stride, panel_stride = s->panel_stride;

    load_sums(s, rows, panels, sums);
    if (int8)
        undo_flip(s, rows, panels, sums);
    for (size_t t = 0; t < s->tiles; t++, a += s->tile_stride, b += BT_TILE_BYTES) {
#pragma GCC unroll 2
        for (size_t line = 0; line < LINES; line++) {
#pragma GCC unroll 3
            for (size_t p = 0; p < panels; p++) {
                lines[p] = _mm512_load_si512(b + p * panel_stride + line * BT_TILE_LINE);
                if (int8)
                    lines[p] = _mm512_xor_si512(lines[p], flip);
            }
#pragma GCC unroll 8
            for (size_t r = 0; r < rows; r++) {
                __m512i in = line_of_row(a + r * row_stride + line * 4);
#pragma GCC unroll 3
                for (size_t p = 0; p < panels; p++) {
                    __m512i sum = sums[r * panels + p];
                    if (int8)
                        sum = _mm512_dpbusd_epi32(sum, lines[p], in);
                    else
                        sum = _mm512_castps_si512(_mm512_dpbf16_ps(
                            _mm512_castsi512_ps(sum), (__m512bh)in, (__m512bh)lines[p]));
                    sums[r * panels + p] = sum;
                }
            }
        }
    }
    store_sums(s, rows, panels, sums);
}

#define BLOCK_FN(rows, panels, int8)                                                               \
    static void block_##rows##_##panels##_##int8(const struct block *s)                            \
    {                                                                                              \
        block_of(s, rows, panels, int8);                                                           \
    }
#define BLOCK_FNS(rows)                                                                            \
    BLOCK_FN(rows, 1, 0)                                                                           \
    BLOCK_FN(rows, 2, 0)                                                                           \
    BLOCK_FN(rows, 3, 0) BLOCK_FN(rows, 1, 1) BLOCK_FN(rows, 2, 1) BLOCK_FN(rows, 3, 1)
BLOCK_FNS(1)
BLOCK_FNS(2)
BLOCK_FNS(3)
BLOCK_FNS(4)
BLOCK_FNS(5)
BLOCK_FNS(6)
BLOCK_FNS(7)
BLOCK_FNS(8)

typedef void block_fn(const struct block *s);
#define BLOCK_ROW(rows, int8)                                                                      \
    {                                                                                              \
        block_##rows##_1_##int8, block_##rows##_2_##int8, block_##rows##_3_##int8                  \
    }
#define BLOCK_TABLE(int8)                                                                          \
    {                                                                                              \
        BLOCK_ROW(1, int8), BLOCK_ROW(2, int8), BLOCK_ROW(3, int8), BLOCK_ROW(4, int8),            \
            BLOCK_ROW(5, int8), BLOCK_ROW(6, int8), BLOCK_ROW(7, int8), BLOCK_ROW(8, int8)         \
    }
static block_fn *const blocks[2][BLOCK_ROWS][BLOCK_PANELS] = {BLOCK_TABLE(0), BLOCK_TABLE(1)};

/* Panels of B outside, so that they stay near while the rows pass. */
static void gemm(struct bt_tile_rows a, size_t rows, struct bt_tile_panels b, size_t tiles,
                 bool accumulate, void *c, size_t c_stride, bool int8)
{
    struct block s = {.tile_stride = a.tile_stride,
                      .row_stride = a.row_stride,
                      .panel_stride = b.panel_stride,
                      .tiles = tiles,
                      .c_stride = c_stride,
                      .accumulate = accumulate};
    for (size_t p = 0, panels; p < b.panels; p += panels) {
        panels = b.panels - p < BLOCK_PANELS ? b.panels - p : BLOCK_PANELS;
        if (rows <= FEW_ROWS && tiles <= SHORT_TILES)
            panels = 1;
        s.b = (const char *)b.data + p * b.panel_stride;
        for (size_t r = 0, count; r < rows; r += count) {
            count = rows - r < BLOCK_ROWS ? rows - r : BLOCK_ROWS;
            s.a = (const char *)a.data + r / 16 * a.block_stride + r % 16 * a.row_stride;
            s.c = (float *)c + r * c_stride + p * BT_TILE_OUTS;
            blocks[int8][count - 1][panels - 1](&s);
        }
    }
}

void BT_X86_NAME(gemm_bf16)(struct bt_tile_rows a, size_t rows, struct bt_tile_panels b,
                            size_t tiles, bool accumulate, float *c, size_t c_stride)
{
    gemm(a, rows, b, tiles, accumulate, c, c_stride, false);
}

void BT_X86_NAME(gemm_int8)(struct bt_tile_rows a, size_t rows, struct bt_tile_panels b,
                            size_t tiles, bool accumulate, int32_t *c, size_t c_stride)
{
    gemm(a, rows, b, tiles, accumulate, c, c_stride, true);
}
