/*
 * Row wanted[i] of x [row][dim] becomes row i, in place; wanted is strictly ascending.
 *
 * A thread a column, which goes through the rows in order, eight at a time: it reads all eight and
 * then writes them. Since wanted[i] >= i and ascends, what the eight overwrite is behind every row
 * that is read later; and no thread touches another's column, so nothing needs a second buffer or a
 * barrier. A row that stays where it is costs nothing.
 *
 * Blocks of 64 threads. No shared memory.
 * Registers: <= 40 (sm_80), <= 40 (sm_90a), <= 40 (sm_100)
 * Counted: moved <= 1.01, asked <= 1.25, sectors <= 1.00
 * Bound: latency, about 1 us for each eight rows that move; those that are wanted are the last ones
 * of the sequences of a prefill, a handful, and in decode none moves. Floor (H100 SXM, computed): 8
 * rows of V3 (hidden 7168) 0.5 MB, 0.1 us, less than a launch.
 */
#include "common/kernels/cuda/gather_rows.h"
#include "common/kernels/cuda/instructions.cuh"
#include "common/kernels/cuda/launch.cuh"

#define THREADS 64
#define AT_ONCE 8

static BT_KERNEL(THREADS, 16)
    gather_rows(float *x, uint32_t dim, const uint32_t *wanted, uint32_t count)
{
    uint32_t column = blockIdx.x * THREADS + threadIdx.x;
    if (column >= dim)
        return;
    for (uint32_t first = 0; first < count; first += AT_ONCE) {
        float kept[AT_ONCE];
#pragma unroll
        for (uint32_t i = 0; i < AT_ONCE; i++) {
            uint32_t row = first + i, from = row < count ? wanted[row] : row;
            kept[i] = from != row ? x[(size_t)from * dim + column] : 0;
        }
#pragma unroll
        for (uint32_t i = 0; i < AT_ONCE; i++) {
            uint32_t row = first + i;
            if (row < count && wanted[row] != row)
                x[(size_t)row * dim + column] = kept[i];
        }
    }
}

void bt_cuda_launch_gather_rows(float *x, uint32_t dim, const uint32_t *wanted, uint32_t count,
                                cudaStream_t stream)
{
    dim3 grid(count ? (dim + THREADS - 1) / THREADS : 0, 1, 1);
    bt_cuda_launch(gather_rows, grid, THREADS, 0, stream, x, dim, wanted, count);
}
