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
#define MAX_ROWS    256 /* that pass the panels together: a multiple of 16 */
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
    const int32_t *flips; /* int8: of each row */
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

/* 128 times the sum of a row of A: what the flipped bits of B add. */
static int32_t flip_of(const char *row, size_t tile_stride, size_t tiles)
{
    __m512i sum = _mm512_setzero_si512(), ones = _mm512_set1_epi8(1);
    for (size_t t = 0; t < tiles; t++)
        sum = _mm512_dpbusd_epi32(sum, ones, _mm512_loadu_si512(row + t * tile_stride));
    return (int32_t)((uint32_t)_mm512_reduce_add_epi32(sum) << 7);
}

BT_INLINE void undo_flips(const struct block *s, size_t rows, size_t panels, __m512i *sums)
{
#pragma GCC unroll 8
    for (size_t r = 0; r < rows; r++) {
        __m512i flip = _mm512_set1_epi32(s->flips[r]);
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
        undo_flips(s, rows, panels, sums);
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

/* A product as it was called; c is f32 or int32. */
struct product {
    struct bt_tile_rows a;
    struct bt_tile_panels b;
    size_t tiles;
    bool accumulate, int8;
    float *c;
    size_t c_stride;
};

static const char *row_at(const struct product *p, size_t row)
{
    return (const char *)p->a.data + row / 16 * p->a.block_stride + row % 16 * p->a.row_stride;
}

/* Rows first … end - 1. Panels of B outside, so that they stay near while the rows pass. */
static void gemm_rows(const struct product *p, size_t first, size_t end, const int32_t *flips)
{
    struct block s = {.tile_stride = p->a.tile_stride,
                      .row_stride = p->a.row_stride,
                      .panel_stride = p->b.panel_stride,
                      .tiles = p->tiles,
                      .c_stride = p->c_stride,
                      .accumulate = p->accumulate};
    bool one = end - first <= FEW_ROWS && p->tiles <= SHORT_TILES;
    for (size_t panel = 0, panels; panel < p->b.panels; panel += panels) {
        panels = p->b.panels - panel < BLOCK_PANELS ? p->b.panels - panel : BLOCK_PANELS;
        panels = one ? 1 : panels;
        s.b = (const char *)p->b.data + panel * p->b.panel_stride;
        for (size_t row = first, count; row < end; row += count) {
            count = end - row < BLOCK_ROWS ? end - row : BLOCK_ROWS;
            s.a = row_at(p, row);
            s.c = p->c + row * p->c_stride + panel * BT_TILE_OUTS;
            s.flips = flips + (row - first);
            blocks[p->int8][count - 1][panels - 1](&s);
        }
    }
}

static void gemm(const struct product *p, size_t rows)
{
    int32_t flips[MAX_ROWS];
    for (size_t first = 0, end; first < rows; first = end) {
        end = rows - first < MAX_ROWS ? rows : first + MAX_ROWS;
        for (size_t row = first; p->int8 && row < end; row++)
            flips[row - first] = flip_of(row_at(p, row), p->a.tile_stride, p->tiles);
        gemm_rows(p, first, end, flips);
    }
}

void BT_X86_NAME(gemm_bf16)(struct bt_tile_rows a, size_t rows, struct bt_tile_panels b,
                            size_t tiles, bool accumulate, float *c, size_t c_stride)
{
    struct product p = {a, b, tiles, accumulate, false, c, c_stride};
    gemm(&p, rows);
}

void BT_X86_NAME(gemm_int8)(struct bt_tile_rows a, size_t rows, struct bt_tile_panels b,
                            size_t tiles, bool accumulate, int32_t *c, size_t c_stride)
{
    struct product p = {a, b, tiles, accumulate, true, (float *)c, c_stride};
    gemm(&p, rows);
}
