/* Single weights of kv_b in ROWS, for the products in f32. */
#ifndef BATON_COMMON_KERNELS_CUDA_MLA_WEIGHTS_CUH
#define BATON_COMMON_KERNELS_CUDA_MLA_WEIGHTS_CUH

#include "common/kernels/cuda/elements.cuh"
#include "common/kernels/cuda/mla_decode.h"

/* Element `col` of a row of `cols`. */
BT_DEVICE float mla_weight(const bt_cuda_mla_weights &kv_b, uint32_t cols, uint32_t row,
                           uint32_t col)
{
    size_t at = (size_t)row * cols + col;
    if (kv_b.dtype == BT_F32)
        return bt_element_of<BT_F32>(kv_b.data, at);
    if (kv_b.dtype == BT_BF16)
        return bt_element_of<BT_BF16>(kv_b.data, at);
    if (kv_b.dtype == BT_F16)
        return bt_element_of<BT_F16>(kv_b.data, at);
    float scale = kv_b.scales[(size_t)(row / 128) * ((cols + 127) / 128) + col / 128];
    return bt_mul(bt_from_e4m3(((const uint8_t *)kv_b.data)[at]), scale);
}

#endif
