/* Scales and elements of quantised rows, as quantise_rows.h says. */
#ifndef BATON_COMMON_KERNELS_CUDA_QUANTISE_CUH
#define BATON_COMMON_KERNELS_CUDA_QUANTISE_CUH

#include "common/kernels/cuda/instructions.cuh"

#define SMALLEST 0x1p-126f /* normal */
#define INFINITE 0x7f800000u

BT_DEVICE uint32_t larger(uint32_t x, uint32_t y)
{
    return x > y ? x : y;
}

/* The largest magnitude's bits: INFINITE or more where something is not finite. */
BT_DEVICE uint32_t largest(float4 four)
{
    uint32_t sign = 0x7fffffffu;
    return larger(larger(bt_bits(four.x) & sign, bt_bits(four.y) & sign),
                  larger(bt_bits(four.z) & sign, bt_bits(four.w) & sign));
}

BT_DEVICE uint32_t largest_of_warp(uint32_t bits)
{
    for (uint32_t mask = 16; mask; mask /= 2)
        bits = larger(bits, bt_shuffle_xor(bits, mask));
    return bits;
}

BT_DEVICE float scale_of(uint32_t bits, float most)
{
    if (bits >= INFINITE)
        return bt_float(0x7fc00000u);
    float scale = bt_divide(bt_float(bits), most);
    return bits == 0 ? 1 : scale > SMALLEST ? scale : SMALLEST;
}

BT_DEVICE uint32_t e4m3_of(float4 four, float scale)
{
    return bt_e4m3_from(bt_divide(four.x, scale)) |
           (uint32_t)bt_e4m3_from(bt_divide(four.y, scale)) << 8 |
           (uint32_t)bt_e4m3_from(bt_divide(four.z, scale)) << 16 |
           (uint32_t)bt_e4m3_from(bt_divide(four.w, scale)) << 24;
}

BT_DEVICE uint32_t int8_of(float x, float scale)
{
    return (uint32_t)bt_int_nearest(bt_divide(x, scale)) & 0xff;
}

#endif
