/*
 * Picks and their places in the order of experts. Rows themselves are expanded by the grouped
 * products as they read them (grouped_gemm.h), which go to x[order[i] / per_row]; quantised once a
 * row, before.
 *
 * pick_places: where each pick is in `order`, for unpermute.cu; a thread a place.
 * run_begin: where experts begin within a part of the order; a thread an expert.
 *
 * Shared memory: none.
 * Registers: pick_places: <= 16 (sm_80), <= 16 (sm_90a), <= 16 (sm_100)
 * Registers: run_begin: <= 16 (sm_80), <= 16 (sm_90a), <= 16 (sm_100)
 * Instructions: st.global.u32
 * Counted: sectors <= 4.50 (by the routing)
 * Bound: the launch. Floor (H100 SXM, computed): 8 bytes a pick: 2048 rows of V3 (8 picks) 0.04 us.
 */
#include "common/kernels/cuda/instructions.cuh"
#include "common/kernels/cuda/launch.cuh"
#include "common/kernels/cuda/permute.h"

#define THREADS 256

BT_KERNEL(THREADS, 8)
pick_places(const uint32_t *order, const uint32_t *begin, uint32_t experts, uint32_t *places)
{
    uint32_t i = blockIdx.x * THREADS + threadIdx.x;
    if (i < begin[experts])
        places[order[i]] = i;
}

BT_KERNEL(THREADS, 8)
run_begin(const uint32_t *begin, uint32_t experts, uint32_t first, uint32_t count, uint32_t *out)
{
    uint32_t e = blockIdx.x * THREADS + threadIdx.x;
    if (e > experts)
        return;
    uint32_t at = begin[e] > first ? begin[e] - first : 0;
    out[e] = at < count ? at : count;
}

void bt_cuda_launch_pick_places(const uint32_t *order, const uint32_t *begin, uint32_t experts,
                                uint32_t picks, uint32_t *places, cudaStream_t stream)
{
    bt_cuda_launch(pick_places, dim3((picks + THREADS - 1) / THREADS, 1, 1), THREADS, 0, stream,
                   order, begin, experts, places);
}

void bt_cuda_launch_run_begin(const uint32_t *begin, uint32_t experts, uint32_t first,
                              uint32_t count, uint32_t *out, cudaStream_t stream)
{
    bt_cuda_launch(run_begin, dim3(experts / THREADS + 1, 1, 1), THREADS, 0, stream, begin, experts,
                   first, count, out);
}
