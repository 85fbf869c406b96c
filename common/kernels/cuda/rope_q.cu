/*
 * The last `rope` of each head of q [row][head][nope + rope] turned in place: interleaved pairs
 * (2i, 2i + 1) become halves (i, i + rope / 2). Rows of padding stay as they are.
 *
 * A warp a head of a row, 8 warps a block: it brings the part to shared memory, meets, and writes
 * the result, both coalesced. Each product and sum is rounded by itself, as on CPUs: same bits.
 * Shared memory: 32 * rope bytes.
 * Registers: <= 32 (sm_80), <= 32 (sm_90a), <= 32 (sm_100)
 * Counted: moved <= 1.01, asked <= 1.52, sectors <= 1.00, conflicts <= 1.00
 * Bound: memory; of few rows, latency. Floor (H100 SXM, computed): 512 bytes a head of a row: 2048
 * rows of V2-Lite (16 heads) 17 MB, 5 us; of V3 (128 heads) 134 MB, 40 us; a decode batch of 64
 * rows of V3 4 MB, 1.3 us.
 */
#include "common/kernels/cuda/instructions.cuh"
#include "common/kernels/cuda/launch.cuh"
#include "common/kernels/cuda/rope_q.h"
#include "common/kernels/cuda/rows.h"

#define WARPS 8

static BT_KERNEL(WARPS * 32, 4)
    rope_q(float *q, uint32_t count, uint32_t heads, uint32_t nope, uint32_t rope,
           const uint32_t *position, const float *cosines, const float *sines)
{
    uint32_t index = blockIdx.x * WARPS + threadIdx.x / 32, half = rope / 2;
    if (index >= count || position[index / heads] == BT_CUDA_NO_POSITION)
        return;
    float *x = q + (size_t)index * (nope + rope) + nope;
    float *in = (float *)bt_shared() + threadIdx.x / 32 * rope;
    const float *cosine = cosines + (size_t)position[index / heads] * half;
    const float *sine = sines + (size_t)position[index / heads] * half;
    for (uint32_t i = bt_lane(); i < rope; i += 32)
        in[i] = x[i];
    bt_sync_warp();
    for (uint32_t i = bt_lane(); i < half; i += 32) {
        float2 pair = *(const float2 *)(in + 2 * i);
        float c = cosine[i], s = sine[i];
        x[i] = bt_add(bt_mul(pair.x, c), -bt_mul(pair.y, s));
        x[i + half] = bt_add(bt_mul(pair.y, c), bt_mul(pair.x, s));
    }
}

void bt_cuda_launch_rope_q(float *q, uint32_t rows, uint32_t heads, uint32_t nope, uint32_t rope,
                           const uint32_t *position, const float *cosines, const float *sines,
                           cudaStream_t stream)
{
    uint32_t count = rows * heads;
    bt_cuda_launch(rope_q, dim3((count + WARPS - 1) / WARPS, 1, 1), WARPS * 32,
                   WARPS * rope * sizeof(float), stream, q, count, heads, nope, rope, position,
                   cosines, sines);
}
