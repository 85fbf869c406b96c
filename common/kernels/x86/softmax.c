#include "common/kernels/x86/softmax.h"

#include <math.h>

#define VECTORS (BT_PAGE_TOKENS / BT_LANES)

static float largest(struct bt_v16 a)
{
    float lanes[BT_LANES], max = -INFINITY;
    bt_v16_store(lanes, a);
    for (size_t i = 0; i < BT_LANES; i++)
        max = lanes[i] > max ? lanes[i] : max;
    return max;
}

static void rescale(float *acc, size_t dim, float keep)
{
    for (size_t i = 0; i < dim; i++)
        acc[i] *= keep;
}

void BT_X86_NAME(softmax_page)(float *scores, size_t seen, float scale, float *max, float *sum,
                               float *acc, size_t dim)
{
    struct bt_v16 x[VECTORS];
    for (size_t i = seen; i < BT_PAGE_TOKENS; i++)
        scores[i] = -INFINITY;
    for (size_t i = 0; i < VECTORS; i++)
        x[i] = bt_v16_mul(bt_v16_load(scores + i * BT_LANES), bt_v16_set(scale));

    float top = largest(bt_v16_max(bt_v16_max(x[0], x[1]), bt_v16_max(x[2], x[3])));
    if (top > *max) {
        float keep = bt_v16_first(bt_v16_exp(bt_v16_set(*max - top)));
        *max = top;
        *sum *= keep;
        rescale(acc, dim, keep);
    }
    for (size_t i = 0; i < VECTORS; i++) {
        x[i] = bt_v16_exp(bt_v16_sub(x[i], bt_v16_set(*max)));
        bt_v16_store(scores + i * BT_LANES, x[i]);
    }
    *sum += bt_v16_sum(bt_v16_add(bt_v16_add(x[0], x[1]), bt_v16_add(x[2], x[3])));
}

void BT_X86_NAME(softmax_end)(const float *acc, float sum, size_t dim, float *out)
{
    for (size_t i = 0; i < dim; i++)
        out[i] = acc[i] / sum;
}
