/*
 * Decode, first step: queries rounded to bf16, as tile arithmetic has them.
 *
 *     q [row][head][nope + rope] f32 -> nope_out [row][head][nope_pitch] bf16, for the product with
 *     kv_b's keys, and queries [row][head][query_pitch] bf16 from kv_lora_rank on: rotated, then 0
 *
 * A block takes a head of a row, 64 threads, each every 64th element. No shared memory.
 * Registers: <= 32 (sm_80), <= 32 (sm_90a), <= 32 (sm_100)
 * Counted: moved <= 1.00, asked <= 1.00, sectors <= 1.00
 * Bound: memory; V3, 64 rows: 9.4 MB, floor for H100 at 3.35 TB/s 2.8 us; V2-Lite 0.4 us.
 */
#include "common/kernels/cuda/instructions.cuh"
#include "common/kernels/cuda/launch.cuh"
#include "common/kernels/cuda/mla_decode.h"

#define THREADS 64

BT_KERNEL(THREADS, 16)
mla_queries(const float *q, uint32_t nope, uint32_t rope, uint32_t lora, uint16_t *nope_out,
            uint32_t nope_pitch, uint16_t *queries, uint32_t query_pitch)
{
    size_t at = (size_t)blockIdx.x * gridDim.y + blockIdx.y;
    q += at * (nope + rope);
    nope_out += at * nope_pitch;
    queries += at * query_pitch + lora;
    for (uint32_t i = threadIdx.x; i < nope_pitch; i += THREADS)
        nope_out[i] = i < nope ? bt_bf16_from(q[i]) : 0;
    for (uint32_t i = threadIdx.x; i < query_pitch - lora; i += THREADS)
        queries[i] = i < rope ? bt_bf16_from(q[nope + i]) : 0;
}

void bt_cuda_launch_mla_queries(const float *q, uint32_t rows, struct bt_cuda_mla_dims dims,
                                uint16_t *nope_out, uint32_t nope_pitch, uint16_t *queries,
                                uint32_t query_pitch, cudaStream_t stream)
{
    bt_cuda_launch(mla_queries, dim3(rows, dims.heads, 1), THREADS, 0, stream, q, dims.nope,
                   dims.rope, dims.lora, nope_out, nope_pitch, queries, query_pitch);
}
