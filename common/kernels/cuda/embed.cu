/*
 * out [row][dim] = table [tokens[row]][dim], widened to f32.
 *
 * A block of 128 threads takes 4096 elements of one row, four a thread at a time: 16-byte stores,
 * and loads of 16 (f32) or 8 bytes (bf16) where table, out and dim are such that all rows are
 * aligned to 16 bytes; else, and for f16, element by element. No shared memory.
 * Registers: <= 32 (sm_80), <= 32 (sm_90a), <= 32 (sm_100)
 * Instructions: ld.global.v4.f32; ld.global.v2.u32; st.global.v4.f32
 * Counted: moved <= 1.01, asked <= 1.84, sectors <= 1.00
 * Bound: memory. Floor (H100 SXM, computed): bf16 table, 2048 rows of V2-Lite (hidden 2048) 25 MB,
 * 7.5 us; of V3 (7168) 88 MB, 26 us; a decode batch of 64 rows less than a launch.
 */
#include "common/kernels/cuda/elements.cuh"
#include "common/kernels/cuda/embed.h"
#include "common/kernels/cuda/launch.cuh"

#define THREADS  128
#define ELEMENTS 4096 /* of a block */

template <enum bt_dtype Type>
BT_KERNEL(THREADS, 8)
embed(const void *table, const uint32_t *tokens, uint32_t dim, bool wide, float *out)
{
    constexpr size_t bytes = Type == BT_F32 ? 4 : 2;
    const void *in = (const unsigned char *)table + (size_t)tokens[blockIdx.x] * dim * bytes;
    float *to = out + (size_t)blockIdx.x * dim;
    uint32_t first = blockIdx.y * ELEMENTS;
    uint32_t end = dim - first < ELEMENTS ? dim : first + ELEMENTS;
    for (uint32_t i = first + threadIdx.x * 4; i < end; i += THREADS * 4)
        bt_elements_store(to, i, dim, wide, bt_elements_of<Type>(in, i, dim, wide));
}

void bt_cuda_launch_embed(const void *table, enum bt_dtype dtype, const uint32_t *tokens,
                          uint32_t rows, uint32_t dim, float *out, cudaStream_t stream)
{
    dim3 grid(rows, (dim + ELEMENTS - 1) / ELEMENTS, 1);
    size_t element = dtype == BT_F32 ? 4 : 2;
    bool wide = ((uintptr_t)table | (uintptr_t)out | dim * element) % 16 == 0;
    auto kernel = dtype == BT_F32    ? embed<BT_F32>
                  : dtype == BT_BF16 ? embed<BT_BF16>
                                     : embed<BT_F16>;
    bt_cuda_launch(kernel, grid, THREADS, 0, stream, table, tokens, dim, wide, out);
}
