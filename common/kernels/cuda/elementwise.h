/* Internal to this backend: see elementwise.cu. Pointers are the device's. */
#ifndef BATON_COMMON_KERNELS_CUDA_ELEMENTWISE_H
#define BATON_COMMON_KERNELS_CUDA_ELEMENTWISE_H

#include <cuda_runtime_api.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* x[i] += y[i] */
void bt_cuda_launch_add(float *x, const float *y, size_t count, cudaStream_t stream);
/* x[i] = 0 */
void bt_cuda_launch_zero(float *x, size_t count, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
