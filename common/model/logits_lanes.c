/* Compiled for each instruction set, always without contraction of products and sums. */
#include "common/model/logits_lanes.h"

#include <math.h>
#include <string.h>

/* A register holds WIDTH of the LANES. */
#define LANES 16
#if defined(__AVX512F__)
#define PASSES bt_logits_avx512
#define WIDTH  16
#elif defined(__AVX2__)
#define PASSES bt_logits_avx2
#define WIDTH  8
#else
#define PASSES bt_logits_plain
#define WIDTH  4
#endif

typedef float floats __attribute__((vector_size(WIDTH * sizeof(float))));
typedef int32_t ints __attribute__((vector_size(WIDTH * sizeof(int32_t))));

/* Adding and taking off one of these rounds what is far less to a multiple of its last bit, ties to
 * even: of an integer, of 2^-17 and of 2^-35. The lowest bits of the first sum are the integer. */
#define TO_INTEGER 12582912.0f
#define TO_HIGH    64.0f
#define TO_LOW     0x1.8p-12f

static float block_max(const float *block)
{
    floats most, in;
    memset(&most, 0, sizeof(most));
    most -= INFINITY;
    for (int i = 0; i < BT_LOGITS_BLOCK; i += WIDTH) {
        memcpy(&in, block + i, sizeof(in));
        ints more = in > most;
        most = (floats)((more & (ints)in) | (~more & (ints)most));
    }
    float max = most[0];
    for (int i = 1; i < WIDTH; i++)
        max = most[i] > max ? most[i] : max;
    return max;
}

/* Of logits that have no distance from the best, or of a temperature next to nothing. */
static double weigh_best(const float *block, float best, float least, float *weights)
{
    double sum = 0;
    for (int i = 0; i < BT_LOGITS_BLOCK; i++)
        sum += (double)(weights[i] = block[i] == best && 1 >= least ? 1.0f : 0.0f);
    return sum;
}

/*
 * x = n ln 2 + r with |r| <= ln 2 / 2; e^r by a polynomial that agrees with it to 1e-8 there. The
 * product of n and the first part of ln 2 is exact. What is below -32 would be rounded to 0 anyway.
 *
 * The sum is exact: a weight is a multiple of 2^-17 and what is left of it, at most 2^-18 and a
 * multiple of 2^-35; eight of either have no more than 24 bits.
 */
static double block_weigh(const float *block, float best, float inverse, float least,
                          float *weights)
{
    floats highs[LANES / WIDTH], lows[LANES / WIDTH], floor = {0};
    double sum = 0;
    if (isinf(best) || isinf(inverse))
        return weigh_best(block, best, least, weights);
    floor -= 32.0f;
    memset(highs, 0, sizeof(highs));
    memset(lows, 0, sizeof(lows));
    for (int i = 0; i < BT_LOGITS_BLOCK; i += WIDTH) {
        floats in;
        memcpy(&in, block + i, sizeof(in));
        floats x = (in - best) * inverse;
        ints counts = x > floor;
        x = (floats)((counts & (ints)x) | (~counts & (ints)floor));
        floats whole = x * 0x1.715476p+0f + TO_INTEGER, n = whole - TO_INTEGER;
        floats r = (x - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;
        floats p = r * 0x1.6d10fcp-10f + 0x1.120b62p-7f;
        p = p * r + 0x1.55551ap-5f;
        p = p * r + 0x1.5554dep-3f;
        p = p * r + 0.5f;
        p = p * r + 1.0f;
        p = p * r + 1.0f;
        p = (floats)((ints)p + ((ints)whole << 23)); /* times 2^n */
        if (least > 0)
            p = (floats)((ints)p & (p >= least));
        floats high = (p + TO_HIGH) - TO_HIGH;
        floats low = ((p - high) + TO_LOW) - TO_LOW;
        p = high + low;
        memcpy(weights + i, &p, sizeof(p));
        highs[i / WIDTH % (LANES / WIDTH)] += high;
        lows[i / WIDTH % (LANES / WIDTH)] += low;
    }
    for (int i = 0; i < LANES; i++)
        sum += (double)highs[i / WIDTH][i % WIDTH] + (double)lows[i / WIDTH][i % WIDTH];
    return sum;
}

const struct bt_logits_passes PASSES = {block_max, block_weigh};
