/*
 * Stored tiles of quantised weights as the tiles that are multiplied.
 *
 * The 128 magnitudes of e4m3 times the scale of a block, rounded to bf16, are computed once for a
 * block's tiles and then looked up: all of them by AVX-512, one exponent's by AVX2. Either rounds
 * as bt_f32_to_bf16 does, denormals and NaN included.
 */
#include <math.h>

#include "common/kernels/x86/gemm.h"

#define STORED_BYTES (BT_TILE_BYTES / 2)
#define BLOCK_TILES  (BT_SCALE_BLOCK / BT_TILE_BF16) /* of F8_E4M3 that share a scale */
#define GROUP_TILES  (BT_SCALE_BLOCK / BT_TILE_INT8) /* of I4 */

#ifdef __AVX512F__

/* bf16 of 128 magnitudes: 32 in each. */
struct table {
    __m512i words[4];
};

/* Magnitudes first … first + 31: their bits, moved, are an f16 of 2^-8 their value. */
static __m512i table_part(unsigned first, __m512 scale)
{
    __m512i index = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512i words[2];
    for (unsigned i = 0; i < 2; i++) {
        __m512i magnitude = _mm512_add_epi32(index, _mm512_set1_epi32((int)(first + 16 * i)));
        __mmask16 nan = _mm512_cmpeq_epi32_mask(magnitude, _mm512_set1_epi32(0x7f));
        __m256i half = _mm512_cvtepi32_epi16(_mm512_slli_epi32(magnitude, 7));
        __m512 value = _mm512_mul_ps(_mm512_cvtph_ps(half), _mm512_set1_ps(256.0f));
        value = _mm512_mask_blend_ps(nan, value, _mm512_set1_ps(__builtin_nanf("")));
        struct bt_v16 weight = {_mm512_mul_ps(value, scale)};
        words[i] = _mm512_srli_epi32(bt_v16_bf16_bits(weight), 16);
    }
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi32_epi16(words[0])),
                              _mm512_cvtepi32_epi16(words[1]), 1);
}

static struct table table_of(float scale)
{
    struct table table;
    for (unsigned i = 0; i < 4; i++)
        table.words[i] = table_part(32 * i, _mm512_set1_ps(scale));
    return table;
}

static void expand_f8(const uint8_t *in, size_t bytes, float scale, uint8_t *out)
{
    struct table table = table_of(scale);
    for (size_t i = 0; i < bytes; i += 32) {
        __m512i code = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i_u *)(in + i)));
        __mmask32 high = _mm512_test_epi16_mask(code, _mm512_set1_epi16(0x40));
        __m512i sign = _mm512_slli_epi16(_mm512_srli_epi16(code, 7), 15);
        __m512i low_half = _mm512_permutex2var_epi16(table.words[0], code, table.words[1]);
        __m512i high_half = _mm512_permutex2var_epi16(table.words[2], code, table.words[3]);
        __m512i word = _mm512_mask_blend_epi16(high, low_half, high_half);
        /* the sign of a scale is in the table, that of a value turns it */
        _mm512_storeu_si512(out + 2 * i, _mm512_xor_si512(word, sign));
    }
}

/* v of -8 … 7 in the low four bits of each byte, times the words of scale: bytes, modulo 256. */
BT_INLINE __m512i scaled_nibbles(__m512i bytes, __m512i scale)
{
    __m512i eight = _mm512_set1_epi8(8), high = _mm512_set1_epi16((short)0xff00);
    __m512i nibble = _mm512_and_si512(bytes, _mm512_set1_epi8(15));
    __m512i value = _mm512_sub_epi8(_mm512_xor_si512(nibble, eight), eight);
    __m512i even = _mm512_mullo_epi16(value, scale);
    __m512i odd = _mm512_mullo_epi16(_mm512_and_si512(value, high), scale);
    return _mm512_mask_blend_epi8(UINT64_C(0xaaaaaaaaaaaaaaaa), even, odd);
}

/* One tile; scales [16], one for each output. */
static void expand_i4(const uint8_t *in, const uint8_t *scales, uint8_t *out)
{
    __m512i scale = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i_u *)scales));
    scale = _mm512_or_si512(scale, _mm512_slli_epi32(scale, 16));
    for (size_t i = 0; i < STORED_BYTES; i += 64) {
        __m512i pairs = _mm512_loadu_si512(in + i);
        _mm512_storeu_si512(out + i, scaled_nibbles(pairs, scale));
        _mm512_storeu_si512(out + STORED_BYTES + i,
                            scaled_nibbles(_mm512_srli_epi16(pairs, 4), scale));
    }
}

#else

/* bf16 bits of value * scale by bytes: eight of e4m3's subnormals, then eight of 1.0 … 1.875 *
 * 2^-7, to which the exponent is added. */
struct table {
    __m256i low, high;
};

static struct table table_of(float scale)
{
    uint8_t low[16], high[16];
    for (unsigned i = 0; i < 16; i++) {
        float value = i < 8 ? (float)i * 0x1p-9f : (float)i * 0x1p-3f;
        unsigned word = bt_f32_to_bf16(value * scale) - (i < 8 ? 0 : 7u << 7);
        low[i] = (uint8_t)word;
        high[i] = (uint8_t)(word >> 8);
    }
    return (struct table){
        _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i_u *)low)),
        _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i_u *)high)),
    };
}

/* Sixteen words: what the table has for a code, and the code itself. */
BT_INLINE __m256i finish(__m256i word, __m256i code)
{
    __m256i magnitude = _mm256_set1_epi16(0x7f), exponent = _mm256_set1_epi16(0x78);
    __m256i sign = _mm256_slli_epi16(_mm256_srli_epi16(code, 7), 15);
    __m256i nan = _mm256_cmpeq_epi16(_mm256_and_si256(code, magnitude), magnitude);
    word = _mm256_add_epi16(word, _mm256_slli_epi16(_mm256_and_si256(code, exponent), 4));
    word = _mm256_blendv_epi8(word, _mm256_set1_epi16(0x7fc0), nan);
    return _mm256_xor_si256(word, sign); /* the sign of the scale is in the table */
}

/* Where no product leaves the normal numbers, roundings do not depend on e4m3's exponent. */
static void expand_f8_normal(const uint8_t *in, size_t bytes, float scale, uint8_t *out)
{
    struct table table = table_of(scale);
    __m256i zero = _mm256_setzero_si256(), eight = _mm256_set1_epi8(8);
    for (size_t i = 0; i < bytes; i += 32) {
        __m256i code = _mm256_loadu_si256((const __m256i_u *)(in + i));
        code = _mm256_permute4x64_epi64(code, 0xd8); /* so that unpacking leaves them in order */
        __m256i tiny = _mm256_cmpeq_epi8(_mm256_and_si256(code, _mm256_set1_epi8(0x78)), zero);
        __m256i index = _mm256_or_si256(_mm256_and_si256(code, _mm256_set1_epi8(7)),
                                        _mm256_andnot_si256(tiny, eight));
        __m256i low = _mm256_shuffle_epi8(table.low, index);
        __m256i high = _mm256_shuffle_epi8(table.high, index);
        __m256i first = finish(_mm256_unpacklo_epi8(low, high), _mm256_unpacklo_epi8(code, zero));
        __m256i second = finish(_mm256_unpackhi_epi8(low, high), _mm256_unpackhi_epi8(code, zero));
        _mm256_storeu_si256((__m256i_u *)(out + 2 * i), first);
        _mm256_storeu_si256((__m256i_u *)(out + 2 * i + 32), second);
    }
}

static void expand_f8(const uint8_t *in, size_t bytes, float scale, uint8_t *out)
{
    float size = fabsf(scale);
    if (size >= 0x1p-117f && size <= 0x1p118f) {
        expand_f8_normal(in, bytes, scale, out);
        return;
    }
    for (size_t i = 0; i < bytes; i++) {
        uint16_t bits = bt_f32_to_bf16(bt_f8_e4m3_to_f32(in[i]) * scale);
        memcpy(out + 2 * i, &bits, sizeof(bits));
    }
}

/* v of -8 … 7 in the low four bits of each byte, times the words of scale: bytes, modulo 256. */
BT_INLINE __m256i scaled_nibbles(__m256i bytes, __m256i scale)
{
    __m256i eight = _mm256_set1_epi8(8), high = _mm256_set1_epi16((short)0xff00);
    __m256i nibble = _mm256_and_si256(bytes, _mm256_set1_epi8(15));
    __m256i value = _mm256_sub_epi8(_mm256_xor_si256(nibble, eight), eight);
    __m256i even = _mm256_mullo_epi16(value, scale);
    __m256i odd = _mm256_mullo_epi16(_mm256_and_si256(value, high), scale);
    return _mm256_or_si256(_mm256_andnot_si256(high, even), odd);
}

/* One tile; scales [16], one for each output. */
static void expand_i4(const uint8_t *in, const uint8_t *scales, uint8_t *out)
{
    for (size_t side = 0; side < 2; side++) {
        __m128i eight = _mm_loadl_epi64((const __m128i_u *)(scales + 8 * side));
        __m256i scale = _mm256_cvtepu8_epi32(eight);
        scale = _mm256_or_si256(scale, _mm256_slli_epi32(scale, 16));
        for (size_t i = 32 * side; i < STORED_BYTES; i += 64) {
            __m256i pairs = _mm256_loadu_si256((const __m256i_u *)(in + i));
            _mm256_storeu_si256((__m256i_u *)(out + i), scaled_nibbles(pairs, scale));
            _mm256_storeu_si256((__m256i_u *)(out + STORED_BYTES + i),
                                scaled_nibbles(_mm256_srli_epi16(pairs, 4), scale));
        }
    }
}

#endif

void BT_X86_NAME(expand_tiles)(const struct bt_matrix *matrix, size_t panel, size_t first,
                               size_t count, void *out)
{
    const uint8_t *in = (const uint8_t *)bt_panel(matrix, panel) + first * STORED_BYTES;
    size_t blocks = bt_tiles_of(matrix->cols, BT_SCALE_BLOCK), end = first + count, next;
    uint8_t *to = out;
    for (size_t t = first; t < end; t = next) {
        if (matrix->dtype == BT_F8_E4M3) {
            size_t block = panel * BT_TILE_OUTS / BT_SCALE_BLOCK * blocks + t / BLOCK_TILES;
            next = (t / BLOCK_TILES + 1) * BLOCK_TILES;
            next = next < end ? next : end;
            expand_f8(in, (next - t) * STORED_BYTES, matrix->scales[block], to);
        } else {
            next = t + 1;
            expand_i4(in, matrix->group_scales + (panel * blocks + t / GROUP_TILES) * 16, to);
        }
        in += (next - t) * STORED_BYTES;
        to += (next - t) * BT_TILE_BYTES;
    }
}
