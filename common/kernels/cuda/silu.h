/* Internal to this backend: see silu.cu. Pointers are the device's. */
#ifndef BATON_COMMON_KERNELS_CUDA_SILU_H
#define BATON_COMMON_KERNELS_CUDA_SILU_H

#include "common/kernels/cuda/quantise_rows.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Fills inputs of any dtype from gate and up [rows][inputs->cols]; those of F32 may be gate or up
 * itself. live NULL, or [1] of the device: rows from *live on are left as they are.
 * multiprocessors: of the device. */
void bt_cuda_launch_silu(const float *gate, const float *up, uint32_t rows, const uint32_t *live,
                         const struct bt_cuda_inputs *inputs, int multiprocessors,
                         cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
