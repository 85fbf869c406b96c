/* Internal to this backend: see rope_q.cu. Pointers are the device's. */
#ifndef BATON_COMMON_KERNELS_CUDA_ROPE_Q_H
#define BATON_COMMON_KERNELS_CUDA_ROPE_Q_H

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* kernels.h, rope_q, of q [rows][heads][nope + rope]. position [rows]: rows.h. */
void bt_cuda_launch_rope_q(float *q, uint32_t rows, uint32_t heads, uint32_t nope, uint32_t rope,
                           const uint32_t *position, const float *cosines, const float *sines,
                           cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
