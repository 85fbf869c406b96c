/*
 * Few rows of int8 with the stored tiles of int4: as many operations as reading them allows.
 *
 * The sums of one group of inputs are those of its integers as they are stored, times the group's
 * scale: the same integer as that of the expanded tiles. A stored value is made unsigned by
 * flipping its sign bit, which adds 8; 8 times the sum of the row's inputs is taken off again.
 */
#include <string.h>

#include "common/kernels/x86/gemm.h"

#define MAX_ROWS   BT_INT4_ROWS
#define MAX_PANELS 3
#define STORED     (BT_TILE_BYTES / 2)

#ifdef __AVX512F__

struct ints {
    __m512i v;
};

BT_INLINE struct ints ints_zero(void)
{
    return (struct ints){_mm512_setzero_si512()};
}

BT_INLINE struct ints ints_load(const void *p)
{
    return (struct ints){_mm512_loadu_si512(p)};
}

BT_INLINE void ints_store(void *p, struct ints a)
{
    _mm512_storeu_si512(p, a.v);
}

/* Four bytes in every lane. */
BT_INLINE struct ints ints_fours(const char *p)
{
    int32_t four;
    memcpy(&four, p, sizeof(four));
    return (struct ints){_mm512_set1_epi32(four)};
}

BT_INLINE struct ints ints_bytes(int byte)
{
    return (struct ints){_mm512_set1_epi8((char)byte)};
}

/* Nibbles as unsigned bytes, 8 more than they mean. */
BT_INLINE void ints_nibbles(const void *p, struct ints *low, struct ints *high)
{
    __m512i all = _mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8((char)0x88));
    __m512i mask = _mm512_set1_epi8(15);
    low->v = _mm512_and_si512(all, mask);
    high->v = _mm512_and_si512(_mm512_srli_epi16(all, 4), mask);
}

/* sum + the products of four unsigned bytes of a, 15 at most, with four signed ones of b. */
BT_INLINE struct ints ints_dot(struct ints sum, struct ints a, struct ints b)
{
#ifdef __AVX512VNNI__
    return (struct ints){_mm512_dpbusd_epi32(sum.v, a.v, b.v)};
#else
    __m512i pairs = _mm512_maddubs_epi16(a.v, b.v);
    return (struct ints){_mm512_add_epi32(sum.v, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))};
#endif
}

/* sum + (a - b) * scales, scales one unsigned byte a lane. */
BT_INLINE struct ints ints_scale(struct ints sum, struct ints a, struct ints b,
                                 const uint8_t *scales)
{
    __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i_u *)scales));
    __m512i difference = _mm512_sub_epi32(a.v, b.v);
    return (struct ints){_mm512_add_epi32(sum.v, _mm512_mullo_epi32(difference, wide))};
}

#else

struct ints {
    __m256i lo, hi;
};

BT_INLINE struct ints ints_zero(void)
{
    return (struct ints){_mm256_setzero_si256(), _mm256_setzero_si256()};
}

BT_INLINE struct ints ints_load(const void *p)
{
    const __m256i_u *in = p;
    return (struct ints){_mm256_loadu_si256(in), _mm256_loadu_si256(in + 1)};
}

BT_INLINE void ints_store(void *p, struct ints a)
{
    __m256i_u *out = p;
    _mm256_storeu_si256(out, a.lo);
    _mm256_storeu_si256(out + 1, a.hi);
}

BT_INLINE struct ints ints_fours(const char *p)
{
    int32_t four;
    memcpy(&four, p, sizeof(four));
    return (struct ints){_mm256_set1_epi32(four), _mm256_set1_epi32(four)};
}

BT_INLINE struct ints ints_bytes(int byte)
{
    return (struct ints){_mm256_set1_epi8((char)byte), _mm256_set1_epi8((char)byte)};
}

BT_INLINE void ints_nibbles(const void *p, struct ints *low, struct ints *high)
{
    struct ints all = ints_load(p);
    __m256i flip = _mm256_set1_epi8((char)0x88), mask = _mm256_set1_epi8(15);
    all.lo = _mm256_xor_si256(all.lo, flip);
    all.hi = _mm256_xor_si256(all.hi, flip);
    low->lo = _mm256_and_si256(all.lo, mask);
    low->hi = _mm256_and_si256(all.hi, mask);
    high->lo = _mm256_and_si256(_mm256_srli_epi16(all.lo, 4), mask);
    high->hi = _mm256_and_si256(_mm256_srli_epi16(all.hi, 4), mask);
}

BT_INLINE __m256i dot8(__m256i sum, __m256i a, __m256i b)
{
    __m256i pairs = _mm256_maddubs_epi16(a, b);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

BT_INLINE struct ints ints_dot(struct ints sum, struct ints a, struct ints b)
{
    return (struct ints){dot8(sum.lo, a.lo, b.lo), dot8(sum.hi, a.hi, b.hi)};
}

BT_INLINE __m256i scale8(__m256i sum, __m256i a, __m256i b, const uint8_t *scales)
{
    __m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i_u *)scales));
    return _mm256_add_epi32(sum, _mm256_mullo_epi32(_mm256_sub_epi32(a, b), wide));
}

BT_INLINE struct ints ints_scale(struct ints sum, struct ints a, struct ints b,
                                 const uint8_t *scales)
{
    return (struct ints){scale8(sum.lo, a.lo, b.lo, scales),
                         scale8(sum.hi, a.hi, b.hi, scales + 8)};
}

#endif

/* A group of inputs is two tiles; the last one of a matrix may be one. */
#define GROUP_TILES (BT_SCALE_BLOCK / BT_TILE_INT8)

/* Some rows by some panels, both constants where this is inlined. */
struct block {
    const char *a[MAX_ROWS]; /* the first tile's line of each row */
    size_t tile_stride, tiles, groups;
    const char *b[MAX_PANELS];
    const uint8_t *scales[MAX_PANELS]; /* [group][16] */
};

/* One group: sums of what is stored, and in `eight` what flipping the sign bits added. */
BT_INLINE void add_group(const struct block *s, size_t group, size_t rows, size_t panels,
                         struct ints *sums, struct ints *eight)
{
    size_t first = group * GROUP_TILES;
    size_t end = first + GROUP_TILES < s->tiles ? first + GROUP_TILES : s->tiles;
    for (size_t t = first; t < end; t++) {
#pragma GCC unroll 2
        for (size_t line = 0; line < STORED / BT_TILE_LINE; line++) {
            struct ints low[MAX_PANELS], high[MAX_PANELS];
#pragma GCC unroll 3
            for (size_t p = 0; p < panels; p++)
                ints_nibbles(s->b[p] + t * STORED + line * BT_TILE_LINE, &low[p], &high[p]);
#pragma GCC unroll 4
            for (size_t r = 0; r < rows; r++) {
                const char *in = s->a[r] + t * s->tile_stride + line * 4;
                struct ints first_half = ints_fours(in), second = ints_fours(in + 32);
                eight[r] = ints_dot(eight[r], ints_bytes(8), first_half);
                eight[r] = ints_dot(eight[r], ints_bytes(8), second);
#pragma GCC unroll 3
                for (size_t p = 0; p < panels; p++) {
                    sums[r * panels + p] = ints_dot(sums[r * panels + p], low[p], first_half);
                    sums[r * panels + p] = ints_dot(sums[r * panels + p], high[p], second);
                }
            }
        }
    }
}

BT_INLINE void block_of(const struct block *s, size_t rows, size_t panels, int32_t *c,
                        size_t c_stride)
{
    struct ints totals[MAX_ROWS * MAX_PANELS];
#pragma GCC unroll 12
    for (size_t i = 0; i < rows * panels; i++)
        totals[i] = ints_zero();
    for (size_t g = 0; g < s->groups; g++) {
        struct ints sums[MAX_ROWS * MAX_PANELS], eight[MAX_ROWS];
#pragma GCC unroll 12
        for (size_t i = 0; i < rows * panels; i++)
            sums[i] = ints_zero();
#pragma GCC unroll 4
        for (size_t r = 0; r < rows; r++)
            eight[r] = ints_zero();
        add_group(s, g, rows, panels, sums, eight);
#pragma GCC unroll 4
        for (size_t r = 0; r < rows; r++) {
#pragma GCC unroll 3
            for (size_t p = 0; p < panels; p++)
                totals[r * panels + p] = ints_scale(totals[r * panels + p], sums[r * panels + p],
                                                    eight[r], s->scales[p] + g * BT_TILE_OUTS);
        }
    }
#pragma GCC unroll 4
    for (size_t r = 0; r < rows; r++) {
#pragma GCC unroll 3
        for (size_t p = 0; p < panels; p++)
            ints_store(c + r * c_stride + p * BT_TILE_OUTS, totals[r * panels + p]);
    }
}

#define BLOCK_FN(rows, panels)                                                                     \
    static void block_##rows##_##panels(const struct block *s, int32_t *c, size_t c_stride)        \
    {                                                                                              \
        block_of(s, rows, panels, c, c_stride);                                                    \
    }
#define BLOCK_FNS(rows) BLOCK_FN(rows, 1) BLOCK_FN(rows, 2) BLOCK_FN(rows, 3)
BLOCK_FNS(1)
BLOCK_FNS(2)
BLOCK_FNS(3)
BLOCK_FNS(4)

static void (*const blocks[MAX_ROWS][MAX_PANELS])(const struct block *s, int32_t *c,
                                                  size_t c_stride) = {
    {block_1_1, block_1_2, block_1_3},
    {block_2_1, block_2_2, block_2_3},
    {block_3_1, block_3_2, block_3_3},
    {block_4_1, block_4_2, block_4_3},
};

void BT_X86_NAME(gemm_int4)(struct bt_tile_rows a, size_t rows, const struct bt_matrix *b,
                            size_t panel, size_t panels, int32_t *c, size_t c_stride)
{
    size_t tiles = bt_panel_tiles(b), groups = bt_tiles_of(b->cols, BT_SCALE_BLOCK);
    struct block s = {.tile_stride = a.tile_stride, .tiles = tiles, .groups = groups};
    for (size_t r = 0, count; r < rows; r += count) {
        count = rows - r < MAX_ROWS ? rows - r : MAX_ROWS;
        for (size_t i = 0; i < count; i++)
            s.a[i] =
                (const char *)a.data + (r + i) / 16 * a.block_stride + (r + i) % 16 * a.row_stride;
        for (size_t p = 0, width; p < panels; p += width) {
            width = panels - p < MAX_PANELS ? panels - p : MAX_PANELS;
            for (size_t i = 0; i < width; i++) {
                s.b[i] = bt_panel(b, panel + p + i);
                s.scales[i] = b->group_scales + (panel + p + i) * groups * BT_TILE_OUTS;
            }
            blocks[count - 1][width - 1](&s, c + r * c_stride + p * BT_TILE_OUTS, c_stride);
        }
    }
}
