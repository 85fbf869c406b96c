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

/* Adding and taking off 1.5 * 2^23 rounds to an integer, ties to even. */
#define ROUNDER 12582912.0f

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

/*
 * x = n ln 2 + r with |r| <= ln 2 / 2; e^r by its Taylor polynomial of degree 7, whose remainder is
 * below 6e-9 there. The product of n and the first part of ln 2 is exact.
 */
static double block_weigh(const float *block, float best, float inverse, float least,
                          float *weights)
{
    floats sums[LANES / WIDTH];
    floats one = {0};
    double sum = 0;
    one += 1.0f;
    memset(sums, 0, sizeof(sums));
    for (int i = 0; i < BT_LOGITS_BLOCK; i += WIDTH) {
        floats in;
        memcpy(&in, block + i, sizeof(in));
        floats x = (in - best) * inverse;
        ints is_best = in == best, counts = x >= -87.0f;
        x = (floats)((ints)x & counts);
        floats n = (x * 0x1.715476p+0f + ROUNDER) - ROUNDER;
        floats r = (x - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;
        floats p = r * (1.0f / 5040) + 1.0f / 720;
        p = p * r + 1.0f / 120;
        p = p * r + 1.0f / 24;
        p = p * r + 1.0f / 6;
        p = p * r + 0.5f;
        p = p * r + 1.0f;
        p = p * r + 1.0f;
        ints power = (__builtin_convertvector(n, ints) + 127) << 23;
        p = p * (floats)power;
        p = (floats)((ints)p & counts);
        p = (floats)((is_best & (ints)one) | (~is_best & (ints)p));
        p = (floats)((ints)p & (p >= least));
        memcpy(weights + i, &p, sizeof(p));
        sums[i / WIDTH % (LANES / WIDTH)] += p;
    }
    for (int i = 0; i < LANES; i++)
        sum += (double)sums[i / WIDTH][i % WIDTH];
    return sum;
}

const struct bt_logits_passes PASSES = {block_max, block_weigh};
