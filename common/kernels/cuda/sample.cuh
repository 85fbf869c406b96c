/*
 * Logits and their weights as bt_sampler_draw sees them (common/model/sampler.c, logits_lanes.c):
 * the same operations in the same order, so the same bits. A weight is a multiple of 2^-35, here an
 * integer, so that sums have no order.
 */
#ifndef BATON_COMMON_KERNELS_CUDA_SAMPLE_CUH
#define BATON_COMMON_KERNELS_CUDA_SAMPLE_CUH

#include "common/kernels/cuda/order.cuh"
#include "common/kernels/cuda/sample.h"

/* Logits of four tokens in a row from `token` on; what is beyond the vocabulary is -inf. */
struct bt_four_logits {
    float logit[4];
};
BT_DEVICE bt_four_logits bt_four_logits_at(const float *logits, uint32_t token, uint32_t vocab_size)
{
    const float *at = logits + token;
    bt_four_logits out;
    if (token + 4 <= vocab_size && (uintptr_t)at % 16 == 0) {
        uint4 bits = bt_load_16(at);
        out.logit[0] = bt_float(bits.x);
        out.logit[1] = bt_float(bits.y);
        out.logit[2] = bt_float(bits.z);
        out.logit[3] = bt_float(bits.w);
        return out;
    }
    for (uint32_t i = 0; i < 4; i++)
        out.logit[i] = token + i < vocab_size ? at[i] : bt_float(0xff800000u);
    return out;
}

/* How a row's logits become weights. */
struct bt_weigher {
    float best, inverse; /* of the temperature */
    float least;         /* what weighs less weighs nothing */
};

BT_DEVICE bt_weigher bt_weigher_of(uint32_t best_key, const struct bt_cuda_draw *draw)
{
    return {bt_number_of(best_key), bt_divide(1.0f, draw->temperature), draw->min_p};
}

BT_DEVICE bt_weigher bt_weigher_of_logprobs(uint32_t best_key)
{
    return {bt_number_of(best_key), 1.0f, 0.0f};
}

/* (logit - best) / temperature, at least -32, where the weight is none. Where there is no distance
 * from the best (infinity), or no temperature, only the best itself is not there. */
BT_DEVICE float bt_exponent_of(const bt_weigher &weigher, float logit)
{
    float x = bt_mul(bt_add(logit, -weigher.best), weigher.inverse);
    if (logit == weigher.best)
        return 0;
    return x > -32.0f ? x : -32.0f;
}

/* In units of 2^-35. */
BT_DEVICE uint64_t bt_weight_of(const bt_weigher &weigher, float logit)
{
    const float to_integer = 12582912.0f, to_high = 64.0f, to_low = 0x1.8p-12f;
    float x = bt_exponent_of(weigher, logit);
    float whole = bt_add(bt_mul(x, 0x1.715476p+0f), to_integer), n = bt_add(whole, -to_integer);
    float r = bt_add(bt_add(x, -bt_mul(n, 0x1.62e4p-1f)), -bt_mul(n, 0x1.7f7d1cp-20f));
    float p = bt_add(bt_mul(r, 0x1.6d10fcp-10f), 0x1.120b62p-7f);
    p = bt_add(bt_mul(p, r), 0x1.55551ap-5f);
    p = bt_add(bt_mul(p, r), 0x1.5554dep-3f);
    p = bt_add(bt_mul(p, r), 0.5f);
    p = bt_add(bt_mul(p, r), 1.0f);
    p = bt_add(bt_mul(p, r), 1.0f);
    p = bt_float(bt_bits(p) + (bt_bits(whole) << 23)); /* times 2^n */
    p = p >= weigher.least ? p : 0.0f;
    float high = bt_add(bt_add(p, to_high), -to_high);
    float low = bt_add(bt_add(bt_add(p, -high), to_low), -to_low);
    return (uint64_t)bt_mul(bt_add(high, low), 0x1p35f);
}

/* Does the draw need the sum of all weights? */
BT_DEVICE bool bt_takes_top_k(const struct bt_cuda_draw *draw, uint32_t vocab_size)
{
    return draw->top_k > 0 && (uint32_t)draw->top_k < vocab_size;
}
BT_DEVICE bool bt_needs_sum(const struct bt_cuda_draw *draw, uint32_t vocab_size)
{
    return draw->temperature != 0 && !bt_takes_top_k(draw, vocab_size);
}

#endif
