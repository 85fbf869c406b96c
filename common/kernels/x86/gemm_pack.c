/* Rows of activations as A tiles: rounded to bf16, or quantised to int8. */
#include <float.h>
#include <math.h>

#include "common/kernels/x86/gemm.h"

static const float *source_row(const float *x, size_t stride, const uint32_t *picks, size_t per_row,
                               size_t row)
{
    return x + (picks ? picks[row] / per_row : row) * stride;
}

/* Where row `row` of tile 0 goes; the next tile is BT_TILE_BYTES on. */
static char *packed_row(void *out, size_t tiles, size_t row)
{
    return (char *)out + row / 16 * tiles * BT_TILE_BYTES + row % 16 * BT_TILE_LINE;
}

/* Sixteen elements from k on, zeros beyond cols. */
BT_INLINE struct bt_v16 load_at(const float *in, size_t k, size_t cols)
{
    if (k + BT_LANES <= cols)
        return bt_v16_load(in + k);
    return k < cols ? bt_v16_load_part(in + k, cols - k) : bt_v16_zero();
}

#ifdef __AVX512F__
BT_INLINE void store_int8(char *to, struct bt_v16 x)
{
    _mm_storeu_si128((__m128i_u *)to, _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(x.v)));
}

BT_INLINE struct bt_v16 magnitude(struct bt_v16 x)
{
    return (struct bt_v16){_mm512_abs_ps(x.v)};
}
#else
BT_INLINE void store_int8(char *to, struct bt_v16 x)
{
    __m256i mixed = _mm256_packs_epi32(_mm256_cvtps_epi32(x.lo), _mm256_cvtps_epi32(x.hi));
    __m256i words = _mm256_permute4x64_epi64(mixed, 0xd8);
    __m128i bytes =
        _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128((__m128i_u *)to, bytes);
}

BT_INLINE struct bt_v16 magnitude(struct bt_v16 x)
{
    __m256 sign = _mm256_set1_ps(-0.0f);
    return (struct bt_v16){_mm256_andnot_ps(sign, x.lo), _mm256_andnot_ps(sign, x.hi)};
}
#endif

void BT_X86_NAME(pack_bf16)(const float *x, size_t stride, const uint32_t *picks, size_t per_row,
                            size_t rows, size_t cols, void *out)
{
    size_t tiles = bt_tiles_of(cols, BT_TILE_BF16);
    for (size_t r = 0; r < rows; r++) {
        const float *in = source_row(x, stride, picks, per_row, r);
        char *to = packed_row(out, tiles, r);
        for (size_t k = 0; k < tiles * BT_TILE_BF16; k += BT_LANES)
            bt_v16_store_bf16(to + k / BT_TILE_BF16 * BT_TILE_BYTES + k % BT_TILE_BF16 * 2,
                              load_at(in, k, cols));
    }
}

static float row_scale(const float *in, size_t cols)
{
    struct bt_v16 most = bt_v16_zero(), not_finite = bt_v16_zero();
    for (size_t k = 0; k < cols; k += BT_LANES) {
        struct bt_v16 x = load_at(in, k, cols);
        most = bt_v16_max(most, magnitude(x));
        not_finite = bt_v16_fma(x, bt_v16_zero(), not_finite);
    }
    float lanes[BT_LANES], max = 0;
    bt_v16_store(lanes, most);
    for (size_t i = 0; i < BT_LANES; i++)
        max = lanes[i] > max ? lanes[i] : max;
    if (isnan(bt_v16_sum(not_finite)))
        return NAN;
    return max == 0 ? 1 : fmaxf(max / 127, FLT_MIN);
}

void BT_X86_NAME(pack_int8)(const float *x, size_t stride, const uint32_t *picks, size_t per_row,
                            size_t rows, size_t cols, void *out, float *scales)
{
    size_t tiles = bt_tiles_of(cols, BT_TILE_INT8);
    for (size_t r = 0; r < rows; r++) {
        const float *in = source_row(x, stride, picks, per_row, r);
        char *to = packed_row(out, tiles, r);
        scales[r] = row_scale(in, cols);
        struct bt_v16 scale = bt_v16_set(scales[r]);
        for (size_t k = 0; k < tiles * BT_TILE_INT8; k += BT_LANES)
            store_int8(to + k / BT_TILE_INT8 * BT_TILE_BYTES + k % BT_TILE_INT8,
                       bt_v16_div(load_at(in, k, cols), scale));
    }
}
