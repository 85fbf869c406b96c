/*
 * Products of the avx2 and avx512 tables, with the same bits: sixteen outputs a vector of lanes.h.
 * bf16: each product is a fused multiply-add of f32, inputs ascending. int8: pairs of 16 bits,
 * exact.
 *
 * In a line of B each 32-bit lane holds the two (four) inputs of an output. The even one (the even
 * two) and the odd are taken apart by shifts, and meet a broadcast of the row's, taken apart once
 * for a chunk of tiles.
 */
#include <string.h>

#include "common/kernels/x86/gemm.h"

#define LINES       (BT_TILE_BYTES / BT_TILE_LINE)
#define CHUNK_TILES 8

/* The sums, the halves of a line of B and the broadcast: 31 of 32 and 13 of 16 registers. */
#ifdef __AVX512F__
#define BLOCK_ROWS   8
#define BLOCK_PANELS 3
#else
#define BLOCK_ROWS   4
#define BLOCK_PANELS 1
#endif
#define MAX_SUMS (BLOCK_ROWS * BLOCK_PANELS)

void BT_X86_NAME(gemm_begin)(void)
{
}

void BT_X86_NAME(gemm_end)(void)
{
}

/* A line of A or B by halves: 16 f32, or 32 int16. */
struct halves {
    struct bt_v16 even, odd;
};

#ifdef __AVX512F__
BT_INLINE struct halves halves_of(const char *line, bool int8)
{
    __m512i both = _mm512_loadu_si512(line);
    __m512i even =
        int8 ? _mm512_srai_epi16(_mm512_slli_epi16(both, 8), 8) : _mm512_slli_epi32(both, 16);
    __m512i odd = int8 ? _mm512_srai_epi16(both, 8)
                       : _mm512_and_si512(both, _mm512_set1_epi32((int32_t)0xffff0000));
    return (struct halves){{_mm512_castsi512_ps(even)}, {_mm512_castsi512_ps(odd)}};
}

BT_INLINE struct bt_v16 multiply_int8(struct bt_v16 a, struct bt_v16 b, struct bt_v16 sum)
{
    __m512i products = _mm512_madd_epi16(_mm512_castps_si512(a.v), _mm512_castps_si512(b.v));
    return (struct bt_v16){
        _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(sum.v), products))};
}
#else
BT_INLINE __m256 even_of(__m256i both, bool int8)
{
    return _mm256_castsi256_ps(int8 ? _mm256_srai_epi16(_mm256_slli_epi16(both, 8), 8)
                                    : _mm256_slli_epi32(both, 16));
}

BT_INLINE __m256 odd_of(__m256i both, bool int8)
{
    return _mm256_castsi256_ps(
        int8 ? _mm256_srai_epi16(both, 8)
             : _mm256_and_si256(both, _mm256_set1_epi32((int32_t)0xffff0000)));
}

BT_INLINE struct halves halves_of(const char *line, bool int8)
{
    __m256i lo = _mm256_loadu_si256((const __m256i_u *)line);
    __m256i hi = _mm256_loadu_si256((const __m256i_u *)(line + 32));
    return (struct halves){{even_of(lo, int8), even_of(hi, int8)},
                           {odd_of(lo, int8), odd_of(hi, int8)}};
}

BT_INLINE __m256 multiply_int8_half(__m256 a, __m256 b, __m256 sum)
{
    __m256i products = _mm256_madd_epi16(_mm256_castps_si256(a), _mm256_castps_si256(b));
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(sum), products));
}

BT_INLINE struct bt_v16 multiply_int8(struct bt_v16 a, struct bt_v16 b, struct bt_v16 sum)
{
    return (struct bt_v16){multiply_int8_half(a.lo, b.lo, sum.lo),
                           multiply_int8_half(a.hi, b.hi, sum.hi)};
}
#endif

/* Rows of a chunk of A by halves: the even half of each of a tile's lines, then the odd. */
struct chunk {
    float rows[BLOCK_ROWS][CHUNK_TILES][2][LINES];
};

BT_INLINE void take_apart(const char *a, size_t row_stride, size_t tile_stride, size_t rows,
                          size_t tiles, bool int8, struct chunk *chunk)
{
    for (size_t r = 0; r < rows; r++) {
        for (size_t t = 0; t < tiles; t++) {
            struct halves in = halves_of(a + r * row_stride + t * tile_stride, int8);
            bt_v16_store(chunk->rows[r][t][0], in.even);
            bt_v16_store(chunk->rows[r][t][1], in.odd);
        }
    }
}

BT_INLINE void add_products(const float (*rows)[CHUNK_TILES][2][LINES], size_t at, size_t count,
                            const struct bt_v16 *b, size_t panels, bool int8, struct bt_v16 *sums)
{
#pragma GCC unroll 8
    for (size_t r = 0; r < count; r++) {
        struct bt_v16 in = bt_v16_set((&rows[r][0][0][0])[at]);
#pragma GCC unroll 3
        for (size_t p = 0; p < panels; p++) {
            struct bt_v16 *sum = &sums[r * panels + p];
            *sum = int8 ? multiply_int8(in, b[p], *sum) : bt_v16_fma(in, b[p], *sum);
        }
    }
}

/* The sums go through C from chunk to chunk, bit by bit. */
struct block {
    const struct chunk *a;
    const char *b;
    size_t panel_stride, tiles, c_stride;
    bool accumulate;
    float *c;
};

/* rows, panels and int8 are constants where this is inlined. */
BT_INLINE void block_of(const struct block *s, size_t rows, size_t panels, bool int8)
{
    struct bt_v16 sums[MAX_SUMS], even[BLOCK_PANELS], odd[BLOCK_PANELS];
    const char *b = s->b;
#pragma GCC unroll 24
    for (size_t i = 0; i < rows * panels; i++)
        sums[i] = s->accumulate ? bt_v16_load(s->c + i / panels * s->c_stride + i % panels * 16)
                                : bt_v16_zero();
    for (size_t t = 0; t < s->tiles; t++, b += BT_TILE_BYTES) {
        for (size_t line = 0; line < LINES; line++) {
#pragma GCC unroll 3
            for (size_t p = 0; p < panels; p++) {
                struct halves in = halves_of(b + p * s->panel_stride + line * BT_TILE_LINE, int8);
                even[p] = in.even;
                odd[p] = in.odd;
            }
            size_t at = t * 2 * LINES + line;
            add_products(s->a->rows, at, rows, even, panels, int8, sums);
            add_products(s->a->rows, at + LINES, rows, odd, panels, int8, sums);
        }
    }
#pragma GCC unroll 24
    for (size_t i = 0; i < rows * panels; i++)
        bt_v16_store(s->c + i / panels * s->c_stride + i % panels * 16, sums[i]);
}

BT_INLINE void block_rows(const struct block *s, size_t rows, size_t panels, bool int8)
{
    switch (rows) {
    case 1:
        return block_of(s, 1, panels, int8);
    case 2:
        return block_of(s, 2, panels, int8);
    case 3:
        return block_of(s, 3, panels, int8);
    case 4:
        return block_of(s, 4, panels, int8);
#if BLOCK_ROWS == 8
    case 5:
        return block_of(s, 5, panels, int8);
    case 6:
        return block_of(s, 6, panels, int8);
    case 7:
        return block_of(s, 7, panels, int8);
    case 8:
        return block_of(s, 8, panels, int8);
#endif
    }
}

BT_INLINE void block_run(const struct block *s, size_t rows, size_t panels, bool int8)
{
    if (panels == 1)
        block_rows(s, rows, 1, int8);
#if BLOCK_PANELS == 3
    else if (panels == 2)
        block_rows(s, rows, 2, int8);
    else
        block_rows(s, rows, 3, int8);
#endif
}

/* A product as it was called; c is f32 or int32, which travel alike. */
struct product {
    struct bt_tile_rows a;
    struct bt_tile_panels b;
    size_t tiles;
    bool accumulate;
    float *c;
    size_t c_stride;
};

/* Rows of one block against the panels first … last - 1. */
BT_INLINE void gemm_rows(const struct product *p, size_t row, size_t rows, size_t first,
                         size_t last, bool int8)
{
    struct chunk chunk;
    const char *a =
        (const char *)p->a.data + row / 16 * p->a.block_stride + row % 16 * p->a.row_stride;
    for (size_t tile = 0; tile < p->tiles; tile += CHUNK_TILES) {
        struct block s = {.a = &chunk,
                          .panel_stride = p->b.panel_stride,
                          .tiles = p->tiles - tile < CHUNK_TILES ? p->tiles - tile : CHUNK_TILES,
                          .c_stride = p->c_stride,
                          .accumulate = p->accumulate || tile > 0};
        take_apart(a + tile * p->a.tile_stride, p->a.row_stride, p->a.tile_stride, rows, s.tiles,
                   int8, &chunk);
        for (size_t panel = first, panels; panel < last; panel += panels) {
            panels = last - panel < BLOCK_PANELS ? last - panel : BLOCK_PANELS;
            s.b = (const char *)p->b.data + panel * p->b.panel_stride + tile * BT_TILE_BYTES;
            s.c = p->c + row * p->c_stride + panel * BT_TILE_OUTS;
            block_run(&s, rows, panels, int8);
        }
    }
}

/* Few rows read B from memory: in the order in which it lies there. */
BT_INLINE void gemm(const struct product *p, size_t rows, bool int8)
{
    size_t step = rows <= BLOCK_ROWS ? BLOCK_PANELS : p->b.panels;
    for (size_t first = 0; first < p->b.panels; first += step) {
        size_t last = p->b.panels - first < step ? p->b.panels : first + step;
        for (size_t row = 0; row < rows; row += BLOCK_ROWS)
            gemm_rows(p, row, rows - row < BLOCK_ROWS ? rows - row : BLOCK_ROWS, first, last, int8);
    }
}

void BT_X86_NAME(gemm_bf16)(struct bt_tile_rows a, size_t rows, struct bt_tile_panels b,
                            size_t tiles, bool accumulate, float *c, size_t c_stride)
{
    struct product p = {a, b, tiles, accumulate, c, c_stride};
    gemm(&p, rows, false);
}

void BT_X86_NAME(gemm_int8)(struct bt_tile_rows a, size_t rows, struct bt_tile_panels b,
                            size_t tiles, bool accumulate, int32_t *c, size_t c_stride)
{
    struct product p = {a, b, tiles, accumulate, (float *)c, c_stride};
    gemm(&p, rows, true);
}
