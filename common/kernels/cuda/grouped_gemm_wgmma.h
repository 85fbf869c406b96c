/* See grouped_gemm.h, of whose kernels these are the ones for sm_90: the same calls, for weights in
 * TILES, few rows and many. */
#ifndef BATON_COMMON_KERNELS_CUDA_GROUPED_GEMM_WGMMA_H
#define BATON_COMMON_KERNELS_CUDA_GROUPED_GEMM_WGMMA_H

#include "common/kernels/cuda/grouped_gemm.h"

#ifdef __cplusplus
extern "C" {
#endif

void bt_cuda_launch_grouped_gemm_bf16_wgmma(const struct bt_cuda_grouped_call *call,
                                            int multiprocessors, cudaStream_t stream);
void bt_cuda_launch_grouped_gemm_f8_wgmma(const struct bt_cuda_grouped_call *call,
                                          int multiprocessors, cudaStream_t stream);
void bt_cuda_launch_grouped_gemm_i8_wgmma(const struct bt_cuda_grouped_call *call,
                                          int multiprocessors, cudaStream_t stream);
void bt_cuda_launch_grouped_gemm_i4_wgmma(const struct bt_cuda_grouped_call *call,
                                          int multiprocessors, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
