/* Weights on their way to the GPU: pack.c. */
#ifndef BATON_COMMON_KERNELS_CUDA_PACK_H
#define BATON_COMMON_KERNELS_CUDA_PACK_H

#include "common/kernels/cuda/stream.h"

/* Of each of the two pinned buffers of a stream that packs, where no chunk is larger. */
#define BT_CUDA_STAGING_BYTES ((size_t)16 << 20)

/* With the stream, whose work is done; it may have packed nothing. */
void bt_cuda_staging_destroy(struct bt_cuda_stream *stream);

#endif
