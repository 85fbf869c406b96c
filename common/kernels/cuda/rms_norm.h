/* Internal to this backend: see rms_norm.cu. Pointers are the device's. */
#ifndef BATON_COMMON_KERNELS_CUDA_RMS_NORM_H
#define BATON_COMMON_KERNELS_CUDA_RMS_NORM_H

#include <cuda_runtime_api.h>
#include <stdint.h>

#include "common/kernels/dtype.h"

#ifdef __cplusplus
extern "C" {
#endif

/* kernels.h, rms_norm. weight [dim] of a float dtype. */
void bt_cuda_launch_rms_norm(const float *x, uint32_t rows, uint32_t dim, uint32_t stride,
                             const void *weight, enum bt_dtype dtype, float eps, float *out,
                             cudaStream_t stream);
/* kernels.h, add_rms_norm. */
void bt_cuda_launch_add_rms_norm(float *x, const float *y, uint32_t rows, uint32_t dim,
                                 const void *weight, enum bt_dtype dtype, float eps, float *out,
                                 cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
