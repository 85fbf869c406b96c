/*
 * Few rows of int8 with the stored tiles of int4: as many operations as reading them allows.
 *
 * The sums of one group of inputs are those of its integers as they are stored, times the group's
 * scale: the same integer as that of the expanded tiles. A stored value is made unsigned by
 * flipping its sign bit, which adds 8; 8 times the sum of the row's inputs is taken off again.
 */
#include <string.h>

#include "common/kernels/x86/gemm.h"

#define MAX_ROWS 4 /* of one block */
#define STORED   (BT_TILE_BYTES / 2)
/* One panel after the other, so that memory is read in order. The hardware reads ahead for a row or
 * two, which go as fast as memory and whose sums are two chains, since one would be slower; more
 * rows, which compute for longer, ask for so many bytes ahead themselves. */
#define FEW_ROWS 2
#define AHEAD    2048

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
    __m512i all = _mm512_loadu_si512(p), flip = _mm512_set1_epi8(8), mask = _mm512_set1_epi8(15);
    low->v = _mm512_ternarylogic_epi32(all, flip, mask, 0x28); /* (all ^ flip) & mask */
    high->v = _mm512_ternarylogic_epi32(_mm512_srli_epi16(all, 4), flip, mask, 0x28);
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

/* sum + (a + b - c) * scales, scales one unsigned byte a lane. */
BT_INLINE struct ints ints_scale(struct ints sum, struct ints a, struct ints b, int32_t c,
                                 const uint8_t *scales)
{
    __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i_u *)scales));
    __m512i all = _mm512_sub_epi32(_mm512_add_epi32(a.v, b.v), _mm512_set1_epi32(c));
    return (struct ints){_mm512_add_epi32(sum.v, _mm512_mullo_epi32(all, wide))};
}

BT_INLINE struct ints ints_add(struct ints a, struct ints b)
{
    return (struct ints){_mm512_add_epi32(a.v, b.v)};
}

BT_INLINE int32_t ints_sum(struct ints a)
{
    return _mm512_reduce_add_epi32(a.v);
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

BT_INLINE __m256i scale8(__m256i sum, __m256i a, __m256i b, int32_t c, const uint8_t *scales)
{
    __m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i_u *)scales));
    __m256i all = _mm256_sub_epi32(_mm256_add_epi32(a, b), _mm256_set1_epi32(c));
    return _mm256_add_epi32(sum, _mm256_mullo_epi32(all, wide));
}

BT_INLINE struct ints ints_scale(struct ints sum, struct ints a, struct ints b, int32_t c,
                                 const uint8_t *scales)
{
    return (struct ints){scale8(sum.lo, a.lo, b.lo, c, scales),
                         scale8(sum.hi, a.hi, b.hi, c, scales + 8)};
}

BT_INLINE struct ints ints_add(struct ints a, struct ints b)
{
    return (struct ints){_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)};
}

BT_INLINE int32_t ints_sum(struct ints a)
{
    int32_t lanes[16], sum = 0;
    ints_store(lanes, a);
    for (size_t i = 0; i < 16; i++)
        sum += lanes[i];
    return sum;
}

#endif

BT_INLINE size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* A group of inputs is two tiles; the last one of a matrix may be one. */
#define GROUP_TILES (BT_SCALE_BLOCK / BT_TILE_INT8)
/* So many groups at a time have the sums of their inputs at hand. */
#define STEP_GROUPS 160

/* Some rows, a constant where this is inlined, by one panel. */
struct block {
    const char *a[MAX_ROWS]; /* the first tile's line of each row */
    size_t tile_stride, tiles, first_group, end_group;
    int32_t flips[MAX_ROWS][STEP_GROUPS]; /* what flipping sign bits adds to each group */
    const char *b;
    const uint8_t *scales; /* [group][16] */
    int32_t *c;
    size_t c_stride;
};

BT_INLINE size_t end_tile(const struct block *s, size_t group)
{
    size_t end = (group + 1) * GROUP_TILES;
    return end < s->tiles ? end : s->tiles;
}

static void fill_flips(struct block *s, size_t rows)
{
    for (size_t r = 0; r < rows; r++) {
        for (size_t g = s->first_group; g < s->end_group; g++) {
            struct ints sum = ints_zero();
            for (size_t t = g * GROUP_TILES; t < end_tile(s, g); t++)
                sum = ints_dot(sum, ints_bytes(8), ints_load(s->a[r] + t * s->tile_stride));
            s->flips[r][g - s->first_group] = ints_sum(sum);
        }
    }
}

/* One tile: sums of what is stored in the low nibbles, and in the high ones. */
BT_INLINE void add_tile(const struct block *s, size_t t, size_t rows, struct ints *low,
                        struct ints *high)
{
#pragma GCC unroll 2
    for (size_t line = 0; line < STORED / BT_TILE_LINE; line++) {
        const char *b = s->b + t * STORED + line * BT_TILE_LINE;
        struct ints b_low, b_high;
        if (rows > FEW_ROWS)
            _mm_prefetch(b + AHEAD, _MM_HINT_T0);
        ints_nibbles(b, &b_low, &b_high);
#pragma GCC unroll 4
        for (size_t r = 0; r < rows; r++) {
            const char *in = s->a[r] + t * s->tile_stride + line * 4;
            low[r] = ints_dot(low[r], b_low, ints_fours(in));
            high[r] = ints_dot(high[r], b_high, ints_fours(in + 32));
        }
    }
}

BT_INLINE void block_of(const struct block *s, size_t rows)
{
    struct ints totals[MAX_ROWS];
#pragma GCC unroll 4
    for (size_t r = 0; r < rows; r++)
        totals[r] = s->first_group ? ints_load(s->c + r * s->c_stride) : ints_zero();
    for (size_t g = s->first_group; g < s->end_group; g++) {
        struct ints low[2][MAX_ROWS], high[2][MAX_ROWS];
        size_t chains = rows <= FEW_ROWS ? 2 : 1, t = g * GROUP_TILES;
#pragma GCC unroll 4
        for (size_t r = 0; r < rows; r++)
            low[0][r] = high[0][r] = low[1][r] = high[1][r] = ints_zero();
        add_tile(s, t, rows, low[0], high[0]);
        if (t + 1 < s->tiles)
            add_tile(s, t + 1, rows, low[chains - 1], high[chains - 1]);
#pragma GCC unroll 4
        for (size_t r = 0; r < rows; r++)
            totals[r] = ints_scale(totals[r], ints_add(low[0][r], low[1][r]),
                                   ints_add(high[0][r], high[1][r]),
                                   s->flips[r][g - s->first_group], s->scales + g * BT_TILE_OUTS);
    }
#pragma GCC unroll 4
    for (size_t r = 0; r < rows; r++)
        ints_store(s->c + r * s->c_stride, totals[r]);
}

static void run_block(const struct block *s, size_t rows)
{
    if (rows == 1)
        block_of(s, 1);
    else if (rows == 2)
        block_of(s, 2);
    else if (rows == 3)
        block_of(s, 3);
    else
        block_of(s, 4);
}

/* The groups of one step: all rows meet a panel before the next one. */
static void run_step(struct block *blocks, size_t rows, const struct bt_matrix *b, size_t panel,
                     size_t panels, int32_t *c)
{
    size_t groups = bt_tiles_of(b->cols, BT_SCALE_BLOCK);
    for (size_t r = 0; r < rows; r += MAX_ROWS)
        fill_flips(&blocks[r / MAX_ROWS], least(rows - r, MAX_ROWS));
    for (size_t p = 0; p < panels; p++) {
        for (size_t r = 0; r < rows; r += MAX_ROWS) {
            struct block *s = &blocks[r / MAX_ROWS];
            s->b = bt_panel(b, panel + p);
            s->scales = b->group_scales + (panel + p) * groups * BT_TILE_OUTS;
            s->c = c + r * s->c_stride + p * BT_TILE_OUTS;
            run_block(s, least(rows - r, MAX_ROWS));
        }
    }
}

void BT_X86_NAME(gemm_int4)(struct bt_tile_rows a, size_t rows, const struct bt_matrix *b,
                            size_t panel, size_t panels, int32_t *c, size_t c_stride)
{
    size_t groups = bt_tiles_of(b->cols, BT_SCALE_BLOCK);
    struct block blocks[BT_INT4_ROWS / MAX_ROWS];
    BT_ASSERT(rows <= BT_INT4_ROWS);
    for (size_t r = 0; r < rows; r++) {
        struct block *s = &blocks[r / MAX_ROWS];
        s->tile_stride = a.tile_stride;
        s->tiles = bt_panel_tiles(b);
        s->c_stride = c_stride;
        s->a[r % MAX_ROWS] = (const char *)a.data + r / 16 * a.block_stride + r % 16 * a.row_stride;
    }
    for (size_t g = 0; g < groups; g += STEP_GROUPS) {
        for (size_t i = 0; i < BT_INT4_ROWS / MAX_ROWS; i++) {
            blocks[i].first_group = g;
            blocks[i].end_group = least(groups, g + STEP_GROUPS);
        }
        run_step(blocks, rows, b, panel, panels, c);
    }
}
