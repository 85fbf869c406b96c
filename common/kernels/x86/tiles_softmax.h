/*
 * Softmax of tile arithmetic, in powers of two: scores times `scale` (softmax_scale * log2 e) minus
 * the maximum so far. The state of a row is its maximum (scaled) and the sum of its weights; what
 * was summed up before is to be multiplied by `keep`. A function of the row's scores alone.
 */
#ifndef BATON_COMMON_KERNELS_X86_TILES_SOFTMAX_H
#define BATON_COMMON_KERNELS_X86_TILES_SOFTMAX_H

#include <math.h>

#include "common/kernels/tiles.h"
#include "common/kernels/x86/bf16.h"

#define BT_LOG2_E 0x1.715476p+0f

/* x where x >= least or x is NaN, else 0. */
BT_INLINE struct bt_v16 bt_v16_keep_from(struct bt_v16 x, struct bt_v16 value, float least)
{
#ifdef __AVX512F__
    __mmask16 kept = _mm512_cmp_ps_mask(x.v, _mm512_set1_ps(least), _CMP_NLT_UQ);
    return (struct bt_v16){_mm512_maskz_mov_ps(kept, value.v)};
#else
    __m256 bound = _mm256_set1_ps(least);
    return (struct bt_v16){
        _mm256_and_ps(value.lo, _mm256_cmp_ps(x.lo, bound, _CMP_NLT_UQ)),
        _mm256_and_ps(value.hi, _mm256_cmp_ps(x.hi, bound, _CMP_NLT_UQ)),
    };
#endif
}

/* a * 2^n, n in the lowest bits of `shifted`; the result is normal. */
BT_INLINE struct bt_v16 bt_v16_shift(struct bt_v16 a, struct bt_v16 shifted)
{
#ifdef __AVX512F__
    __m512i n = _mm512_slli_epi32(_mm512_castps_si512(shifted.v), 23);
    return (struct bt_v16){_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a.v), n))};
#else
    __m256i lo = _mm256_slli_epi32(_mm256_castps_si256(shifted.lo), 23);
    __m256i hi = _mm256_slli_epi32(_mm256_castps_si256(shifted.hi), 23);
    return (struct bt_v16){_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a.lo), lo)),
                           _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a.hi), hi))};
#endif
}

/*
 * 2^x for x <= 1 within 3e-6, exactly 1 at 0, 0 below -125; NaN stays NaN. x = n + r, |r| <= 1/2;
 * the polynomial has the least relative error there of those that are 1 at 0.
 */
BT_INLINE struct bt_v16 bt_v16_exp2(struct bt_v16 x)
{
    struct bt_v16 magic = bt_v16_set(0x1.8p23f);
    struct bt_v16 n = bt_v16_add(x, magic);
    struct bt_v16 r = bt_v16_sub(x, bt_v16_sub(n, magic));
    struct bt_v16 p = bt_v16_set(0x1.3a02cep-7f);
    p = bt_v16_fma(p, r, bt_v16_set(0x1.c9fc48p-5f));
    p = bt_v16_fma(p, r, bt_v16_set(0x1.ec0378p-3f));
    p = bt_v16_fma(p, r, bt_v16_set(0x1.62e12cp-1f));
    p = bt_v16_fma(p, r, bt_v16_set(1.0f));
    return bt_v16_keep_from(x, bt_v16_shift(p, n), -125.0f);
}

static inline float bt_exp2(float x)
{
    return bt_v16_first(bt_v16_exp2(bt_v16_set(x)));
}

BT_INLINE float bt_v16_largest(struct bt_v16 a)
{
    __m256 m8 = _mm256_max_ps(bt_v16_low(a), bt_v16_high(a));
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(m8), _mm256_extractf128_ps(m8, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

/*
 * One row: scores [count], the first `seen` (at least 1) of them valid; what follows them up to a
 * multiple of 32 may be overwritten. Weights go to lines of 32 in bf16, `stride` bytes apart, as
 * many as `count` (a multiple of 32) has; those of what is not seen are 0. Returns `keep`, 0 at the
 * row's first call, when *max is -infinity and *sum 0.
 */
static inline float bt_softmax_row(float *scores, size_t seen, size_t count, float scale,
                                   float *max, float *sum, char *weights, size_t stride)
{
    size_t end = (seen + 31) / 32 * 32;
    for (size_t i = seen; i < end; i++)
        scores[i] = -INFINITY;
    struct bt_v16 a = bt_v16_load(scores), b = bt_v16_load(scores + 16);
    for (size_t i = 32; i < end; i += 32) {
        a = bt_v16_max(a, bt_v16_load(scores + i));
        b = bt_v16_max(b, bt_v16_load(scores + i + 16));
    }
    float top = bt_v16_largest(bt_v16_max(a, b)) * scale, keep = 1;
    if (top > *max) {
        keep = bt_exp2(*max - top);
        *max = top;
    }

    struct bt_v16 by = bt_v16_set(scale), minus = bt_v16_set(-*max);
    struct bt_v16 sum0 = bt_v16_zero(), sum1 = bt_v16_zero();
    for (size_t i = 0; i < end; i += 32, weights += stride) {
        a = bt_v16_exp2(bt_v16_fma(bt_v16_load(scores + i), by, minus));
        b = bt_v16_exp2(bt_v16_fma(bt_v16_load(scores + i + 16), by, minus));
        sum0 = bt_v16_add(sum0, a);
        sum1 = bt_v16_add(sum1, b);
        bt_bf16_line(a, b, weights);
    }
    for (size_t i = end; i < count; i += 32, weights += stride)
        memset(weights, 0, BT_TILE_LINE);
    *sum = *sum * keep + bt_v16_sum(bt_v16_add(sum0, sum1));
    return keep;
}

/*
 * Sixteen rows at once, a column of `scores` [count][stride floats] each: max, sum, keep [16].
 * Weights go to tiles of A: 16 lines of 32 tokens each, as many tiles as `count` begins, 0 behind
 * it. Returns whether any keep is not 1.
 */
static inline bool bt_softmax_columns(const float *scores, size_t stride, size_t count, float scale,
                                      float *max, float *sum, float *keep, char *tiles)
{
    struct bt_v16 a = bt_v16_load(scores), b = a, old = bt_v16_load(max), by = bt_v16_set(scale);
    for (size_t i = 1; i < count; i++) {
        struct bt_v16 s = bt_v16_load(scores + i * stride);
        if (i % 2)
            b = bt_v16_max(b, s);
        else
            a = bt_v16_max(a, s);
    }
    struct bt_v16 top = bt_v16_max(old, bt_v16_mul(bt_v16_max(a, b), by));
    struct bt_v16 kept = bt_v16_exp2(bt_v16_sub(old, top)), minus = bt_v16_sub(bt_v16_zero(), top);
    struct bt_v16 sum0 = bt_v16_mul(bt_v16_load(sum), kept), sum1 = bt_v16_zero();
    bt_v16_store(max, top);
    bt_v16_store(keep, kept);

    for (size_t first = 0; first < count; first += 32, tiles += BT_TILE_BYTES) {
        uint32_t pairs[16][16];
        const void *lines[16];
        for (size_t i = 0; i < 16; i++) {
            size_t t = first + 2 * i;
            const float *s = scores + t * stride;
            a = b = bt_v16_zero();
            if (t < count)
                a = bt_v16_exp2(bt_v16_fma(bt_v16_load(s), by, minus));
            if (t + 1 < count)
                b = bt_v16_exp2(bt_v16_fma(bt_v16_load(s + stride), by, minus));
            sum0 = bt_v16_add(sum0, a);
            sum1 = bt_v16_add(sum1, b);
            bt_bf16_pairs(a, b, pairs[i]);
            lines[i] = pairs[i];
        }
        bt_transpose16(lines, tiles, BT_TILE_LINE);
    }
    bt_v16_store(sum, bt_v16_add(sum0, sum1));
    bool rescale = false;
    for (size_t i = 0; i < 16; i++)
        rescale |= keep[i] != 1.0f;
    return rescale;
}

#endif
