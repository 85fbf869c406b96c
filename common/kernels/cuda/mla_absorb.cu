/*
 * Decode in f32, first step: queries to the latent space, for kv_b in ROWS.
 *
 *     queries [row][head][l] = sum_n q [row][head][n] kv_b [head][n][l],  then q's rotated part
 *
 * The sum goes up in n, one fma after the other. Any shape. A block takes a head of a row, 128
 * threads, each every 128th l. No shared memory: q is read by all threads at once.
 * Registers: <= 64 (sm_80), <= 64 (sm_90a), <= 64 (sm_100)
 * Counted: sectors <= 1.00
 * Bound: kv_b out of L2 for every row; weights that are not packed are for tests and small models.
 * Floor for H100 (kv_b's bytes in bf16 once at 3.35 TB/s): V2-Lite 0.6 us, V3 5 us.
 */
#include "common/kernels/cuda/launch.cuh"
#include "common/kernels/cuda/mla_weights.cuh"

#define THREADS 128

BT_KERNEL(THREADS, 8)
mla_absorb(const float *q, const bt_cuda_mla_dims dims, const bt_cuda_mla_weights kv_b,
           float *queries, uint32_t query_pitch)
{
    size_t at = (size_t)blockIdx.x * dims.heads + blockIdx.y;
    uint32_t first = blockIdx.y * (dims.nope + dims.v);
    q += at * (dims.nope + dims.rope);
    queries += at * query_pitch;
    for (uint32_t l = threadIdx.x; l < dims.lora; l += THREADS) {
        float sum = 0;
        for (uint32_t n = 0; n < dims.nope; n++)
            sum = bt_fma(q[n], mla_weight(kv_b, dims.lora, first + n, l), sum);
        queries[l] = sum;
    }
    for (uint32_t i = threadIdx.x; i < query_pitch - dims.lora; i += THREADS)
        queries[dims.lora + i] = i < dims.rope ? q[dims.nope + i] : 0;
}

void bt_cuda_launch_mla_absorb(const float *q, uint32_t rows, struct bt_cuda_mla_dims dims,
                               struct bt_cuda_mla_weights kv_b, float *queries,
                               uint32_t query_pitch, cudaStream_t stream)
{
    bt_cuda_launch(mla_absorb, dim3(rows, dims.heads, 1), THREADS, 0, stream, q, dims, kv_b,
                   queries, query_pitch);
}
