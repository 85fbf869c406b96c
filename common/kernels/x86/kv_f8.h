/*
 * Latents of pages of F8_E4M3. Read: value times the scale of its 128, rounded to f32. Written: the
 * quotient by that scale, rounded to f32, then to e4m3; to nearest even both.
 */
#ifndef BATON_COMMON_KERNELS_X86_KV_F8_H
#define BATON_COMMON_KERNELS_X86_KV_F8_H

#include <float.h>
#include <math.h>

#include "common/kernels/weight.h"
#include "common/kernels/x86/lanes.h"

/* Sixteen e4m3 times 2^-8: their bits, moved, are those of an f16. NaN stays NaN. */
BT_INLINE struct bt_v16 bt_v16_widen_f8(const uint8_t *x)
{
    __m256i wide = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i_u *)x));
    __m256i rest = _mm256_slli_epi16(_mm256_and_si256(wide, _mm256_set1_epi16(0x7f)), 7);
    __m256i sign = _mm256_slli_epi16(_mm256_and_si256(wide, _mm256_set1_epi16(0x80)), 8);
    __m256i nan = _mm256_cmpeq_epi16(rest, _mm256_set1_epi16(0x3f80));
    nan = _mm256_and_si256(nan, _mm256_set1_epi16(0x7e00));
    return bt_v16_widen(_mm256_or_si256(_mm256_or_si256(rest, sign), nan), BT_F16);
}

/* Sixteen elements of the latent of a token from `at` on, a multiple of 16; 0 behind its end. */
static inline struct bt_v16 bt_kv_f8_latent(const struct bt_kv_layer *kv, const char *token,
                                            size_t at)
{
    const uint8_t *x = (const uint8_t *)token + at;
    uint8_t last[BT_LANES] = {0};
    if (at >= kv->kv_lora_rank)
        return bt_v16_zero();
    if (kv->kv_lora_rank - at < BT_LANES)
        x = memcpy(last, x, kv->kv_lora_rank - at);
    float scale = bt_kv_scale(kv, token, at / BT_KV_SCALE_DIMS) * 256.0f;
    return bt_v16_mul(bt_v16_widen_f8(x), bt_v16_set(scale));
}

/* As bt_f32_to_f8_e4m3, without a branch. */
static inline uint8_t bt_kv_f8_of(float x)
{
    float shifted = fabsf(x) + 0x1p14f; /* below 2^-6: steps of 2^-9, the sum rounds to even */
    uint32_t bits, small;
    memcpy(&bits, &x, sizeof(bits));
    memcpy(&small, &shifted, sizeof(small));
    uint32_t size = bits & 0x7fffffffu;
    uint32_t value = ((size + 0x7ffff + (size >> 20 & 1)) >> 20) - (120u << 3);
    value = value > 0x7e ? 0x7e : value;
    value = size < 0x3c800000u ? small & 0x0f : value;
    value = size > 0x7f800000u ? 0x7f : value;
    return (uint8_t)(value | (bits >> 24 & 0x80));
}

/* The scale of `count` (at most BT_KV_SCALE_DIMS) elements: the largest becomes 448. */
static inline float bt_kv_f8_scale(const float *x, size_t count)
{
    struct bt_v16 largest = bt_v16_zero();
    float lanes[BT_LANES], max = 0;
    for (size_t i = 0; i < count; i += BT_LANES) {
        struct bt_v16 v =
            count - i < BT_LANES ? bt_v16_load_part(x + i, count - i) : bt_v16_load(x + i);
        largest = bt_v16_max(bt_v16_max(v, bt_v16_sub(bt_v16_zero(), v)), largest);
    }
    bt_v16_store(lanes, largest);
    for (size_t i = 0; i < BT_LANES; i++)
        max = lanes[i] > max ? lanes[i] : max;
    return max > 0 ? fmaxf(max / 448, FLT_MIN) : 1;
}

static inline void bt_kv_f8_write(const float *x, const struct bt_kv_layer *kv, char *token)
{
    size_t lora = kv->kv_lora_rank;
    for (size_t first = 0; first < lora; first += BT_KV_SCALE_DIMS) {
        size_t end = lora - first < BT_KV_SCALE_DIMS ? lora : first + BT_KV_SCALE_DIMS;
        float scale = bt_kv_f8_scale(x + first, end - first);
        for (size_t i = first; i < end; i++)
            token[i] = (char)bt_kv_f8_of(x[i] / scale);
        memcpy(token + lora + first / BT_KV_SCALE_DIMS * sizeof(scale), &scale, sizeof(scale));
    }
}

#endif
