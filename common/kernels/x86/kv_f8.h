/* Latents of pages of F8_E4M3: value times the scale of its 128, rounded to f32. */
#ifndef BATON_COMMON_KERNELS_X86_KV_F8_H
#define BATON_COMMON_KERNELS_X86_KV_F8_H

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

#endif
