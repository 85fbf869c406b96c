/* Products by cuBLASLt, for linear.c. Host code. */
#ifndef BATON_COMMON_KERNELS_CUDA_PRODUCT_H
#define BATON_COMMON_KERNELS_CUDA_PRODUCT_H

#include "common/kernels/cuda/table.h"

/* Of F8_E4M3: [ceil(n / 128)][blocks of k, padded to 4], and [block of k][m]; 16-byte aligned. */
struct bt_cuda_product_scales {
    const float *weight, *x;
};

/*
 * As bt_cuda_product; `in` may also be F8_E4M3, with scales, k-major, k a multiple of 128, n of 16,
 * m of 4, batch 1. False, and nothing done: cuBLASLt has no algorithm for this shape, whatever m.
 * Where it could not say so, that is a fault of the stream.
 */
bool bt_cuda_product_try(struct bt_cuda_stream *stream, const struct bt_cuda_product *product,
                         const struct bt_cuda_product_scales *scales);

/* Whether it would, for F8_E4M3; nothing is multiplied. */
bool bt_cuda_product_is_there(cublasLtHandle_t cublas, uint32_t n, uint32_t k,
                              enum bt_dtype out_dtype, const struct bt_cuda_product_scales *scales);
/* linear.c: whether cuBLASLt is asked at all for so many outputs of e4m3. */
bool bt_cuda_f8_shape_is_fine(uint32_t outs);

#endif
