/*
 * Sixteen f32 lanes: one AVX-512 register, or two of AVX2. Every operation rounds each lane alike
 * in both, so the code above it gives the same bits on both.
 *
 * BT_X86_NAME(noun) names what is linked: bt_avx2_noun or bt_avx512_noun.
 */
#ifndef BATON_COMMON_KERNELS_X86_LANES_H
#define BATON_COMMON_KERNELS_X86_LANES_H

#include <immintrin.h>

#include "common/kernels/dtype.h"

#define BT_LANES  16
#define BT_INLINE static inline __attribute__((always_inline))

#ifdef __AVX512F__

/* BT_X86_ROWS(noun): the arithmetic of f32 that a table shares with avx512. */
#define BT_X86_ROWS(noun) bt_avx512_##noun
#if defined(__AMX_TILE__)
#define BT_X86_NAME(noun) bt_amx_##noun
#define BT_X86_TABLE      bt_kernels_amx
#define BT_X86_TABLE_NAME "amx"
#elif defined(__AVX512BF16__)
#define BT_X86_NAME(noun) bt_avx512_bf16_##noun
#define BT_X86_TABLE      bt_kernels_avx512_bf16
#define BT_X86_TABLE_NAME "avx512_bf16"
#else
#define BT_X86_NAME(noun) bt_avx512_##noun
#define BT_X86_TABLE      bt_kernels_avx512
#define BT_X86_TABLE_NAME "avx512"
#endif

struct bt_v16 {
    __m512 v;
};

BT_INLINE struct bt_v16 bt_v16_set(float x)
{
    return (struct bt_v16){_mm512_set1_ps(x)};
}

BT_INLINE struct bt_v16 bt_v16_load(const float *p)
{
    return (struct bt_v16){_mm512_loadu_ps(p)};
}

/* The first `count` (0 … 15) elements, then zeros; reads no other memory. */
BT_INLINE struct bt_v16 bt_v16_load_part(const float *p, size_t count)
{
    return (struct bt_v16){_mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), p)};
}

BT_INLINE void bt_v16_store(float *p, struct bt_v16 a)
{
    _mm512_storeu_ps(p, a.v);
}

BT_INLINE void bt_v16_store_part(float *p, struct bt_v16 a, size_t count)
{
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << count) - 1), a.v);
}

/* Sixteen 16-bit elements. */
BT_INLINE struct bt_v16 bt_v16_widen(__m256i bits, enum bt_dtype dtype)
{
    if (dtype == BT_F16)
        return (struct bt_v16){_mm512_cvtph_ps(bits)};
    return (struct bt_v16){_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}

BT_INLINE struct bt_v16 bt_v16_add(struct bt_v16 a, struct bt_v16 b)
{
    return (struct bt_v16){_mm512_add_ps(a.v, b.v)};
}

BT_INLINE struct bt_v16 bt_v16_sub(struct bt_v16 a, struct bt_v16 b)
{
    return (struct bt_v16){_mm512_sub_ps(a.v, b.v)};
}

BT_INLINE struct bt_v16 bt_v16_mul(struct bt_v16 a, struct bt_v16 b)
{
    return (struct bt_v16){_mm512_mul_ps(a.v, b.v)};
}

BT_INLINE struct bt_v16 bt_v16_div(struct bt_v16 a, struct bt_v16 b)
{
    return (struct bt_v16){_mm512_div_ps(a.v, b.v)};
}

/* a * b + c, rounded once. */
BT_INLINE struct bt_v16 bt_v16_fma(struct bt_v16 a, struct bt_v16 b, struct bt_v16 c)
{
    return (struct bt_v16){_mm512_fmadd_ps(a.v, b.v, c.v)};
}

/* Of a NaN in either the result is b. */
BT_INLINE struct bt_v16 bt_v16_max(struct bt_v16 a, struct bt_v16 b)
{
    return (struct bt_v16){_mm512_max_ps(a.v, b.v)};
}

BT_INLINE struct bt_v16 bt_v16_min(struct bt_v16 a, struct bt_v16 b)
{
    return (struct bt_v16){_mm512_min_ps(a.v, b.v)};
}

/* To the nearest integer, ties to even. */
BT_INLINE struct bt_v16 bt_v16_round(struct bt_v16 a)
{
    return (struct bt_v16){
        _mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}

/* a * 2^n for integers n in -254 … 254, in two steps so that only the last one can round. */
BT_INLINE struct bt_v16 bt_v16_scale(struct bt_v16 a, struct bt_v16 n)
{
    __m512i whole = _mm512_cvtps_epi32(n.v), bias = _mm512_set1_epi32(127);
    __m512i first = _mm512_srai_epi32(whole, 1), second = _mm512_sub_epi32(whole, first);
    __m512 f = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(first, bias), 23));
    __m512 s = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(second, bias), 23));
    return (struct bt_v16){_mm512_mul_ps(_mm512_mul_ps(a.v, f), s)};
}

/* Sixteen int32. */
BT_INLINE struct bt_v16 bt_v16_from_ints(const void *p)
{
    return (struct bt_v16){_mm512_cvtepi32_ps(_mm512_loadu_si512(p))};
}

/* Each lane as bf16 in the high half of its bits: to nearest even, NaN stays NaN. */
BT_INLINE __m512i bt_v16_bf16_bits(struct bt_v16 a)
{
    __m512i bits = _mm512_castps_si512(a.v);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i sum = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
    return _mm512_mask_or_epi32(sum, nan, bits, _mm512_set1_epi32(0x400000));
}

BT_INLINE struct bt_v16 bt_v16_round_bf16(struct bt_v16 a)
{
    __m512i high = _mm512_set1_epi32((int)0xffff0000);
    return (struct bt_v16){_mm512_castsi512_ps(_mm512_and_si512(bt_v16_bf16_bits(a), high))};
}

BT_INLINE void bt_v16_store_bf16(void *p, struct bt_v16 a)
{
    __m512i bits = _mm512_srli_epi32(bt_v16_bf16_bits(a), 16);
    _mm256_storeu_si256((__m256i_u *)p, _mm512_cvtepi32_epi16(bits));
}

BT_INLINE __m256 bt_v16_low(struct bt_v16 a)
{
    return _mm512_castps512_ps256(a.v);
}

BT_INLINE __m256 bt_v16_high(struct bt_v16 a)
{
    return _mm512_extractf32x8_ps(a.v, 1);
}

#else

#define BT_X86_ROWS(noun) bt_avx2_##noun
#define BT_X86_NAME(noun) bt_avx2_##noun
#define BT_X86_TABLE      bt_kernels_avx2
#define BT_X86_TABLE_NAME "avx2"

struct bt_v16 {
    __m256 lo, hi;
};

BT_INLINE struct bt_v16 bt_v16_set(float x)
{
    return (struct bt_v16){_mm256_set1_ps(x), _mm256_set1_ps(x)};
}

BT_INLINE struct bt_v16 bt_v16_load(const float *p)
{
    return (struct bt_v16){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}

/* All ones in the first `count` (clamped to 0 … 8) of eight lanes. */
BT_INLINE __m256i bt_v16_mask(int count)
{
    __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane);
}

/* The first `count` (0 … 15) elements, then zeros; reads no other memory. */
BT_INLINE struct bt_v16 bt_v16_load_part(const float *p, size_t count)
{
    return (struct bt_v16){_mm256_maskload_ps(p, bt_v16_mask((int)count)),
                           _mm256_maskload_ps(p + 8, bt_v16_mask((int)count - 8))};
}

BT_INLINE void bt_v16_store(float *p, struct bt_v16 a)
{
    _mm256_storeu_ps(p, a.lo);
    _mm256_storeu_ps(p + 8, a.hi);
}

BT_INLINE void bt_v16_store_part(float *p, struct bt_v16 a, size_t count)
{
    _mm256_maskstore_ps(p, bt_v16_mask((int)count), a.lo);
    _mm256_maskstore_ps(p + 8, bt_v16_mask((int)count - 8), a.hi);
}

/* Sixteen 16-bit elements. */
BT_INLINE struct bt_v16 bt_v16_widen(__m256i bits, enum bt_dtype dtype)
{
    __m128i lo = _mm256_castsi256_si128(bits), hi = _mm256_extracti128_si256(bits, 1);
    if (dtype == BT_F16)
        return (struct bt_v16){_mm256_cvtph_ps(lo), _mm256_cvtph_ps(hi)};
    return (struct bt_v16){_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(lo), 16)),
                           _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(hi), 16))};
}

BT_INLINE struct bt_v16 bt_v16_add(struct bt_v16 a, struct bt_v16 b)
{
    return (struct bt_v16){_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}

BT_INLINE struct bt_v16 bt_v16_sub(struct bt_v16 a, struct bt_v16 b)
{
    return (struct bt_v16){_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}

BT_INLINE struct bt_v16 bt_v16_mul(struct bt_v16 a, struct bt_v16 b)
{
    return (struct bt_v16){_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}

BT_INLINE struct bt_v16 bt_v16_div(struct bt_v16 a, struct bt_v16 b)
{
    return (struct bt_v16){_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}

/* a * b + c, rounded once. */
BT_INLINE struct bt_v16 bt_v16_fma(struct bt_v16 a, struct bt_v16 b, struct bt_v16 c)
{
    return (struct bt_v16){_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}

/* Of a NaN in either the result is b. */
BT_INLINE struct bt_v16 bt_v16_max(struct bt_v16 a, struct bt_v16 b)
{
    return (struct bt_v16){_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}

BT_INLINE struct bt_v16 bt_v16_min(struct bt_v16 a, struct bt_v16 b)
{
    return (struct bt_v16){_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
}

/* To the nearest integer, ties to even. */
BT_INLINE struct bt_v16 bt_v16_round(struct bt_v16 a)
{
    return (struct bt_v16){_mm256_round_ps(a.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
                           _mm256_round_ps(a.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}

BT_INLINE __m256 bt_v8_scale(__m256 a, __m256 n)
{
    __m256i whole = _mm256_cvtps_epi32(n), bias = _mm256_set1_epi32(127);
    __m256i first = _mm256_srai_epi32(whole, 1), second = _mm256_sub_epi32(whole, first);
    __m256 f = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(first, bias), 23));
    __m256 s = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(second, bias), 23));
    return _mm256_mul_ps(_mm256_mul_ps(a, f), s);
}

/* a * 2^n for integers n in -254 … 254, in two steps so that only the last one can round. */
BT_INLINE struct bt_v16 bt_v16_scale(struct bt_v16 a, struct bt_v16 n)
{
    return (struct bt_v16){bt_v8_scale(a.lo, n.lo), bt_v8_scale(a.hi, n.hi)};
}

/* Sixteen int32. */
BT_INLINE struct bt_v16 bt_v16_from_ints(const void *p)
{
    const __m256i_u *in = p;
    return (struct bt_v16){_mm256_cvtepi32_ps(_mm256_loadu_si256(in)),
                           _mm256_cvtepi32_ps(_mm256_loadu_si256(in + 1))};
}

/* Each lane as bf16 in the high half of its bits: to nearest even, NaN stays NaN. */
BT_INLINE __m256i bt_v8_bf16_bits(__m256 a)
{
    __m256i bits = _mm256_castps_si256(a);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i sum = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    __m256 nan = _mm256_cmp_ps(a, a, _CMP_UNORD_Q);
    return _mm256_blendv_epi8(sum, quiet, _mm256_castps_si256(nan));
}

BT_INLINE struct bt_v16 bt_v16_round_bf16(struct bt_v16 a)
{
    __m256i high = _mm256_set1_epi32((int)0xffff0000);
    return (struct bt_v16){_mm256_castsi256_ps(_mm256_and_si256(bt_v8_bf16_bits(a.lo), high)),
                           _mm256_castsi256_ps(_mm256_and_si256(bt_v8_bf16_bits(a.hi), high))};
}

BT_INLINE void bt_v16_store_bf16(void *p, struct bt_v16 a)
{
    __m256i lo = _mm256_srli_epi32(bt_v8_bf16_bits(a.lo), 16);
    __m256i hi = _mm256_srli_epi32(bt_v8_bf16_bits(a.hi), 16);
    __m256i both = _mm256_packus_epi32(lo, hi); /* quarters 0 2 1 3 */
    _mm256_storeu_si256((__m256i_u *)p, _mm256_permute4x64_epi64(both, 0xd8));
}

BT_INLINE __m256 bt_v16_low(struct bt_v16 a)
{
    return a.lo;
}

BT_INLINE __m256 bt_v16_high(struct bt_v16 a)
{
    return a.hi;
}

#endif

BT_INLINE struct bt_v16 bt_v16_zero(void)
{
    return bt_v16_set(0.0f);
}

/* Sixteen elements of `dtype` at p, aligned to their element only. */
BT_INLINE struct bt_v16 bt_v16_load_dtype(const void *p, enum bt_dtype dtype)
{
    if (dtype == BT_F32)
        return bt_v16_load(p);
    return bt_v16_widen(_mm256_loadu_si256((const __m256i_u *)p), dtype);
}

/* The first `count` (0 … 15) of them, then zeros; reads no other memory. */
BT_INLINE struct bt_v16 bt_v16_load_dtype_part(const void *p, enum bt_dtype dtype, size_t count)
{
    if (dtype == BT_F32)
        return bt_v16_load_part(p, count);
    uint16_t elements[BT_LANES] = {0};
    memcpy(elements, p, count * sizeof(elements[0]));
    return bt_v16_widen(_mm256_loadu_si256((const __m256i_u *)elements), dtype);
}

/*
 * The sums of the lanes of four vectors. The tree of each: halves are added lane by lane, 16 to 8,
 * to 4, to 2, to 1.
 */
BT_INLINE __m128 bt_v16_sum4(struct bt_v16 a, struct bt_v16 b, struct bt_v16 c, struct bt_v16 d)
{
    __m256 a8 = _mm256_add_ps(bt_v16_low(a), bt_v16_high(a));
    __m256 b8 = _mm256_add_ps(bt_v16_low(b), bt_v16_high(b));
    __m256 c8 = _mm256_add_ps(bt_v16_low(c), bt_v16_high(c));
    __m256 d8 = _mm256_add_ps(bt_v16_low(d), bt_v16_high(d));
    __m256 ab = _mm256_add_ps(_mm256_permute2f128_ps(a8, b8, 0x20),
                              _mm256_permute2f128_ps(a8, b8, 0x31)); /* a0…a3 b0…b3 */
    __m256 cd =
        _mm256_add_ps(_mm256_permute2f128_ps(c8, d8, 0x20), _mm256_permute2f128_ps(c8, d8, 0x31));
    __m256 two = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44),
                               _mm256_shuffle_ps(ab, cd, 0xee)); /* a0 a1 c0 c1 b0 b1 d0 d1 */
    __m256 one = _mm256_add_ps(_mm256_shuffle_ps(two, two, 0x88),
                               _mm256_shuffle_ps(two, two, 0xdd)); /* a c a c b d b d */
    return _mm_unpacklo_ps(_mm256_castps256_ps128(one), _mm256_extractf128_ps(one, 1));
}

BT_INLINE float bt_v16_first(struct bt_v16 a)
{
    return _mm256_cvtss_f32(bt_v16_low(a));
}

BT_INLINE float bt_v16_sum(struct bt_v16 a)
{
    return _mm_cvtss_f32(bt_v16_sum4(a, a, a, a));
}

/*
 * e^x within 2 ulp, denormal results included; 0 below -104, infinity above 88.73, NaN stays NaN.
 * x = n ln 2 + r with |r| <= ln 2 / 2; e^r by its Taylor polynomial of degree 7, whose remainder is
 * below 6e-9 there.
 */
BT_INLINE struct bt_v16 bt_v16_exp(struct bt_v16 x)
{
    x = bt_v16_min(bt_v16_set(89.0f), bt_v16_max(bt_v16_set(-104.0f), x));
    struct bt_v16 n = bt_v16_round(bt_v16_mul(x, bt_v16_set(0x1.715476p+0f)));
    struct bt_v16 r = bt_v16_fma(n, bt_v16_set(-0x1.62e4p-1f), x);
    r = bt_v16_fma(n, bt_v16_set(-0x1.7f7d1cp-20f), r);
    struct bt_v16 p = bt_v16_set(1.0f / 5040);
    p = bt_v16_fma(p, r, bt_v16_set(1.0f / 720));
    p = bt_v16_fma(p, r, bt_v16_set(1.0f / 120));
    p = bt_v16_fma(p, r, bt_v16_set(1.0f / 24));
    p = bt_v16_fma(p, r, bt_v16_set(1.0f / 6));
    p = bt_v16_fma(p, r, bt_v16_set(0.5f));
    p = bt_v16_fma(p, r, bt_v16_set(1.0f));
    p = bt_v16_fma(p, r, bt_v16_set(1.0f));
    return bt_v16_scale(p, n);
}

#endif
