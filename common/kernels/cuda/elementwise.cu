/*
 * x[i] += y[i]; x[i] = 0.
 *
 * Blocks of 256 threads, four elements a thread: one access of 16 bytes to an array where all are
 * aligned so, else (and behind the last four) element by element. No shared memory.
 * Registers: <= 24 (sm_80), <= 24 (sm_90a), <= 24 (sm_100)
 * Instructions: ld.global.v4.f32; st.global.v4.f32
 * Counted: add: moved <= 1.00, asked <= 1.00, sectors <= 1.00
 * Counted: zero: moved <= 1.00, asked <= 1.00, sectors <= 1.00
 * Bound: memory. Floor (H100 SXM, computed): add moves 12 bytes an element: 2048 rows of V2-Lite
 * (hidden 2048) 50 MB, 15 us; of V3 (7168) 176 MB, 53 us; zero a third of that.
 */
#include "common/kernels/cuda/elements.cuh"
#include "common/kernels/cuda/elementwise.h"
#include "common/kernels/cuda/launch.cuh"

#define THREADS 256
#define BLOCK   (THREADS * 4) /* elements */

/* Of the elements that begin at the block's first: how many there are. */
BT_DEVICE uint32_t left_of(size_t count)
{
    size_t left = count - (size_t)blockIdx.x * BLOCK;
    return left < BLOCK ? (uint32_t)left : BLOCK;
}

static BT_KERNEL(THREADS, 8) add(float *x, const float *y, size_t count, bool aligned)
{
    uint32_t left = left_of(count), i = threadIdx.x * 4;
    bool wide = aligned && i + 4 <= left;
    float *to = x + (size_t)blockIdx.x * BLOCK;
    float4 a = bt_elements_of<BT_F32>(to, i, left, wide);
    float4 b = bt_elements_of<BT_F32>(y + (size_t)blockIdx.x * BLOCK, i, left, wide);
    a = {bt_add(a.x, b.x), bt_add(a.y, b.y), bt_add(a.z, b.z), bt_add(a.w, b.w)};
    bt_elements_store(to, i, left, wide, a);
}

static BT_KERNEL(THREADS, 8) zero(float *x, size_t count, bool aligned)
{
    uint32_t left = left_of(count), i = threadIdx.x * 4;
    float4 nothing = {0, 0, 0, 0};
    bt_elements_store(x + (size_t)blockIdx.x * BLOCK, i, left, aligned && i + 4 <= left, nothing);
}

static dim3 blocks_of(size_t count)
{
    return dim3((unsigned)((count + BLOCK - 1) / BLOCK), 1, 1);
}

void bt_cuda_launch_add(float *x, const float *y, size_t count, cudaStream_t stream)
{
    bool aligned = ((uintptr_t)x | (uintptr_t)y) % 16 == 0;
    bt_cuda_launch(add, blocks_of(count), THREADS, 0, stream, x, y, count, aligned);
}

void bt_cuda_launch_zero(float *x, size_t count, cudaStream_t stream)
{
    bool aligned = (uintptr_t)x % 16 == 0;
    bt_cuda_launch(zero, blocks_of(count), THREADS, 0, stream, x, count, aligned);
}
