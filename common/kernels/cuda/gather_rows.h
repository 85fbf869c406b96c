/* Internal to this backend: see gather_rows.cu. Pointers are the device's. */
#ifndef BATON_COMMON_KERNELS_CUDA_GATHER_ROWS_H
#define BATON_COMMON_KERNELS_CUDA_GATHER_ROWS_H

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* kernels.h, gather_rows. */
void bt_cuda_launch_gather_rows(float *x, uint32_t dim, const uint32_t *wanted, uint32_t count,
                                cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
