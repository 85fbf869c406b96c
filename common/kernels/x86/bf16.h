/*
 * bf16 in the orders that tiles want: lines of 64 bytes, from f32 or from other bf16. Rounds to
 * nearest even; NaN stays NaN. Tables with AVX512_BF16 take denormals as zero, the others keep
 * them; avx2 and avx512 give the same bits.
 */
#ifndef BATON_COMMON_KERNELS_X86_BF16_H
#define BATON_COMMON_KERNELS_X86_BF16_H

#include "common/kernels/x86/lanes.h"

#ifdef __AVX512F__

/* A line of pairs: even[0] odd[0] even[1] odd[1] … */
BT_INLINE void bt_bf16_pairs(struct bt_v16 even, struct bt_v16 odd, void *line)
{
#ifdef __AVX512BF16__
    static const uint16_t order[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                       21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                       11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    __m512i both = (__m512i)_mm512_cvtne2ps_pbh(odd.v, even.v);
    _mm512_storeu_si512(line, _mm512_permutexvar_epi16(_mm512_loadu_si512(order), both));
#else
    __m512i low = _mm512_srli_epi32(bt_v16_bf16_bits(even), 16);
    __m512i high = _mm512_set1_epi32((int)0xffff0000);
    _mm512_storeu_si512(line, _mm512_or_si512(low, _mm512_and_si512(bt_v16_bf16_bits(odd), high)));
#endif
}

/* A line of 32 in order: low[0] … low[15] high[0] … */
BT_INLINE void bt_bf16_line(struct bt_v16 low, struct bt_v16 high, void *line)
{
#ifdef __AVX512BF16__
    _mm512_storeu_si512(line, (__m512i)_mm512_cvtne2ps_pbh(high.v, low.v));
#else
    bt_v16_store_bf16(line, low);
    bt_v16_store_bf16((char *)line + 32, high);
#endif
}

/* Two rows of 32 bf16 to two lines of pairs (row0[i], row1[i]): i of 0 … 15, and of 16 … 31. */
BT_INLINE void bt_bf16_zip(const void *row0, const void *row1, void *first, void *second)
{
    static const uint16_t low[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                     8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    __m512i index = _mm512_loadu_si512(low);
    __m512i a = _mm512_loadu_si512(row0), b = _mm512_loadu_si512(row1);
    _mm512_storeu_si512(first, _mm512_permutex2var_epi16(a, index, b));
    index = _mm512_add_epi16(index, _mm512_set1_epi16(16));
    _mm512_storeu_si512(second, _mm512_permutex2var_epi16(a, index, b));
}

/* out line i, element j = rows[j], element i: 16 x 16 elements of 32 bits. */
BT_INLINE void bt_transpose16(const void *const rows[16], void *out, size_t out_stride)
{
    __m512i a[16], b[16];
#pragma GCC unroll 16
    for (size_t i = 0; i < 16; i++)
        a[i] = _mm512_loadu_si512(rows[i]);
#pragma GCC unroll 8
    for (size_t i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
#pragma GCC unroll 4
    for (size_t i = 0; i < 16; i += 4) {
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    /* a[4g + c]: column 4q + c of rows 4g … 4g + 3 in quarter q */
#pragma GCC unroll 4
    for (size_t c = 0; c < 4; c++) {
        __m512i even01 = _mm512_shuffle_i32x4(a[c], a[4 + c], 0x88);
        __m512i odd01 = _mm512_shuffle_i32x4(a[c], a[4 + c], 0xdd);
        __m512i even23 = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0x88);
        __m512i odd23 = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0xdd);
        b[c] = _mm512_shuffle_i32x4(even01, even23, 0x88);
        b[4 + c] = _mm512_shuffle_i32x4(odd01, odd23, 0x88);
        b[8 + c] = _mm512_shuffle_i32x4(even01, even23, 0xdd);
        b[12 + c] = _mm512_shuffle_i32x4(odd01, odd23, 0xdd);
    }
#pragma GCC unroll 16
    for (size_t i = 0; i < 16; i++)
        _mm512_storeu_si512((char *)out + i * out_stride, b[i]);
}

#else

BT_INLINE __m256i bt_bf16_pairs8(__m256 even, __m256 odd)
{
    __m256i low = _mm256_srli_epi32(bt_v8_bf16_bits(even), 16);
    return _mm256_blend_epi16(low, bt_v8_bf16_bits(odd), 0xaa);
}

BT_INLINE void bt_bf16_pairs(struct bt_v16 even, struct bt_v16 odd, void *line)
{
    __m256i *out = line;
    _mm256_storeu_si256(out, bt_bf16_pairs8(even.lo, odd.lo));
    _mm256_storeu_si256(out + 1, bt_bf16_pairs8(even.hi, odd.hi));
}

BT_INLINE void bt_bf16_line(struct bt_v16 low, struct bt_v16 high, void *line)
{
    bt_v16_store_bf16(line, low);
    bt_v16_store_bf16((char *)line + 32, high);
}

BT_INLINE void bt_bf16_zip16(__m256i a, __m256i b, __m256i *line)
{
    __m256i low = _mm256_unpacklo_epi16(a, b), high = _mm256_unpackhi_epi16(a, b);
    _mm256_storeu_si256(line, _mm256_permute2x128_si256(low, high, 0x20));
    _mm256_storeu_si256(line + 1, _mm256_permute2x128_si256(low, high, 0x31));
}

BT_INLINE void bt_bf16_zip(const void *row0, const void *row1, void *first, void *second)
{
    const __m256i *a = row0, *b = row1;
    bt_bf16_zip16(_mm256_loadu_si256(a), _mm256_loadu_si256(b), first);
    bt_bf16_zip16(_mm256_loadu_si256(a + 1), _mm256_loadu_si256(b + 1), second);
}

BT_INLINE void bt_transpose8(const void *const rows[8], size_t offset, char *out, size_t out_stride)
{
    __m256 a[8], b[8];
    for (size_t i = 0; i < 8; i++)
        a[i] = _mm256_loadu_ps((const float *)((const char *)rows[i] + offset));
    for (size_t i = 0; i < 8; i += 2) {
        b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
    }
    for (size_t i = 0; i < 8; i += 4) {
        a[i] = _mm256_shuffle_ps(b[i], b[i + 2], 0x44);
        a[i + 1] = _mm256_shuffle_ps(b[i], b[i + 2], 0xee);
        a[i + 2] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44);
        a[i + 3] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xee);
    }
    for (size_t c = 0; c < 4; c++) {
        _mm256_storeu_ps((float *)(out + c * out_stride),
                         _mm256_permute2f128_ps(a[c], a[4 + c], 0x20));
        _mm256_storeu_ps((float *)(out + (4 + c) * out_stride),
                         _mm256_permute2f128_ps(a[c], a[4 + c], 0x31));
    }
}

BT_INLINE void bt_transpose16(const void *const rows[16], void *out, size_t out_stride)
{
    for (size_t i = 0; i < 16; i += 8) {
        for (size_t j = 0; j < 16; j += 8)
            bt_transpose8(rows + j, i * 4, (char *)out + i * out_stride + j * 4, out_stride);
    }
}

#endif

/* One row of `cols` f32 as lines of 32, `stride` bytes apart, the last one filled up with 0. */
BT_INLINE void bt_bf16_row(const float *x, size_t cols, char *out, size_t stride)
{
    size_t k = 0;
    for (; k + 32 <= cols; k += 32, out += stride)
        bt_bf16_line(bt_v16_load(x + k), bt_v16_load(x + k + 16), out);
    if (k == cols)
        return;
    size_t rest = cols - k;
    bt_bf16_line(rest >= 16 ? bt_v16_load(x + k) : bt_v16_load_part(x + k, rest),
                 rest > 16 ? bt_v16_load_part(x + k + 16, rest - 16) : bt_v16_zero(), out);
}

#endif
