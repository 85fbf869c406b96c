/*
 * Elements of weights in device memory, as f32. Any alignment that their type has; wide ones where
 * the caller knows that it is so.
 */
#ifndef BATON_COMMON_KERNELS_CUDA_ELEMENTS_CUH
#define BATON_COMMON_KERNELS_CUDA_ELEMENTS_CUH

#include "common/kernels/cuda/instructions.cuh"
#include "common/kernels/dtype.h"

BT_DEVICE float bt_from_f16(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31;
    uint32_t fraction = half & 0x3ff;
    if (exponent == 0) /* zero and subnormals: exact */
        return bt_float(bt_bits((float)fraction * 0x1p-24f) | sign);
    return bt_float(sign | (exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13);
}

/* Type: BT_F32, BT_BF16 or BT_F16. */
template <enum bt_dtype Type> BT_DEVICE float bt_element_of(const void *data, size_t index)
{
    if (Type == BT_F32)
        return ((const float *)data)[index];
    uint16_t bits = ((const uint16_t *)data)[index];
    return Type == BT_BF16 ? bt_from_bf16(bits) : bt_from_f16(bits);
}

/* Four from `index` on, a multiple of four; those from `count` on are 0. wide: `data` is aligned
 * to 16, and count is a multiple of four. */
template <enum bt_dtype Type>
BT_DEVICE float4 bt_elements_of(const void *data, uint32_t index, uint32_t count, bool wide)
{
    float4 value = {0, 0, 0, 0};
    if (wide && Type == BT_F32)
        return *(const float4 *)((const float *)data + index);
    if (wide && Type == BT_BF16) {
        uint2 pairs = *(const uint2 *)((const uint16_t *)data + index); /* one load */
        return {bt_bf16x2_low(pairs.x), bt_bf16x2_high(pairs.x), bt_bf16x2_low(pairs.y),
                bt_bf16x2_high(pairs.y)};
    }
    if (index < count)
        value.x = bt_element_of<Type>(data, index);
    if (index + 1 < count)
        value.y = bt_element_of<Type>(data, index + 1);
    if (index + 2 < count)
        value.z = bt_element_of<Type>(data, index + 2);
    if (index + 3 < count)
        value.w = bt_element_of<Type>(data, index + 3);
    return value;
}

/* Likewise to memory of f32; those from `count` on are not stored. */
BT_DEVICE void bt_elements_store(float *data, uint32_t index, uint32_t count, bool wide,
                                 float4 value)
{
    if (wide) {
        *(float4 *)(data + index) = value;
        return;
    }
    if (index < count)
        data[index] = value.x;
    if (index + 1 < count)
        data[index + 1] = value.y;
    if (index + 2 < count)
        data[index + 2] = value.z;
    if (index + 3 < count)
        data[index + 3] = value.w;
}

#endif
