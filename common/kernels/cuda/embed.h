/* Internal to this backend: see embed.cu. Pointers are the device's. */
#ifndef BATON_COMMON_KERNELS_CUDA_EMBED_H
#define BATON_COMMON_KERNELS_CUDA_EMBED_H

#include <cuda_runtime_api.h>
#include <stdint.h>

#include "common/kernels/dtype.h"

#ifdef __cplusplus
extern "C" {
#endif

/* out [rows][dim] = table [·][dim] of a float dtype, row tokens[row]. */
void bt_cuda_launch_embed(const void *table, enum bt_dtype dtype, const uint32_t *tokens,
                          uint32_t rows, uint32_t dim, float *out, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
