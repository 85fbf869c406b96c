/*
 * The tokens of a batch, where some are those that the stream drew last: they go from one step to
 * the next without the host.
 *
 * Blocks of 128 threads, a row a thread. No shared memory.
 * Registers: <= 16 (sm_80), <= 16 (sm_90a), <= 16 (sm_100)
 * Counted: moved <= 1.00, asked <= 1.00, sectors <= 1.00
 * Bound: the launch itself, about 2 us; 16 bytes a row are nothing beside it.
 */
#include "common/kernels/cuda/instructions.cuh"
#include "common/kernels/cuda/launch.cuh"
#include "common/kernels/cuda/resolve_tokens.h"

#define THREADS 128
#define GIVEN   0xffffffffu /* BT_TOKEN_GIVEN */

BT_KERNEL(THREADS, 1)
resolve_tokens(const uint32_t *tokens, const uint32_t *from, const uint32_t *drawn, uint32_t rows,
               uint32_t *out)
{
    uint32_t row = blockIdx.x * THREADS + threadIdx.x;
    if (row < rows)
        out[row] = from[row] == GIVEN ? tokens[row] : drawn[from[row]];
}

void bt_cuda_launch_resolve_tokens(const uint32_t *tokens, const uint32_t *from,
                                   const uint32_t *drawn, uint32_t rows, uint32_t *out,
                                   cudaStream_t stream)
{
    bt_cuda_launch(resolve_tokens, dim3((rows + THREADS - 1) / THREADS, 1, 1), THREADS, 0, stream,
                   tokens, from, drawn, rows, out);
}
