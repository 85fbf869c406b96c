/* Internal to this backend: see page_hash.cu. */
#ifndef BATON_COMMON_KERNELS_CUDA_PAGE_HASH_H
#define BATON_COMMON_KERNELS_CUDA_PAGE_HASH_H

#include <cuda_runtime_api.h>
#include <stdint.h>

#include "common/kernels/page_span.h"

#ifdef __cplusplus
extern "C" {
#endif

void bt_cuda_launch_page_hash(const void *base, const struct bt_page_span *spans, uint32_t count,
                              uint64_t *sums, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
