/* Maps of matrices in device memory, for bulk copies of boxes (sm_90 and up). */
#ifndef BATON_COMMON_KERNELS_CUDA_TENSOR_MAP_H
#define BATON_COMMON_KERNELS_CUDA_TENSOR_MAP_H

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <stdint.h>

/*
 * Of rows of `columns` 16-bit elements, one after the other, from `base` (a multiple of 16) on; how
 * many rows there are is not limited: whoever copies keeps to those that are. A box is 64 columns
 * by `box_rows` rows, swizzled by 128 bytes, as wgmma reads it. Nothing is kept and nothing waits:
 * the map is a parameter of kernels (__grid_constant__).
 */
cudaError_t bt_cuda_tensor_map(const void *base, uint32_t columns, uint32_t box_rows,
                               CUtensorMap *ret_map);

#endif
