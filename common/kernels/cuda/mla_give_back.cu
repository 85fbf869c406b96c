/*
 * Decode in f32, last step: results out of the latent space, for kv_b in ROWS.
 *
 *     out [row][head][i] = sum_l results [row][head][l] kv_b [head][nope + i][l]
 *
 * A warp takes an output: each lane every 32nd l, upwards, then a tree over the lanes. Any shape.
 * A block takes a head of a row, 128 threads. No shared memory.
 * Registers: <= 64 (sm_80), <= 64 (sm_90a), <= 64 (sm_100)
 * Counted: sectors <= 1.00
 * Bound: as mla_absorb; floors for H100: V2-Lite 0.6 us, V3 5 us.
 */
#include "common/kernels/cuda/launch.cuh"
#include "common/kernels/cuda/mla_weights.cuh"

#define THREADS 128

BT_KERNEL(THREADS, 8)
mla_give_back(const float *results, uint32_t result_pitch, const bt_cuda_mla_dims dims,
              const bt_cuda_mla_weights kv_b, float *out)
{
    size_t at = (size_t)blockIdx.x * dims.heads + blockIdx.y;
    uint32_t first = blockIdx.y * (dims.nope + dims.v) + dims.nope;
    results += at * result_pitch;
    for (uint32_t i = threadIdx.x / 32; i < dims.v; i += THREADS / 32) {
        float sum = 0;
        for (uint32_t l = bt_lane(); l < dims.lora; l += 32)
            sum = bt_fma(results[l], mla_weight(kv_b, dims.lora, first + i, l), sum);
        for (uint32_t mask = 16; mask > 0; mask /= 2)
            sum = bt_add(sum, bt_shuffle_xor(sum, mask));
        if (bt_lane() == 0)
            out[at * dims.v + i] = sum;
    }
}

void bt_cuda_launch_mla_give_back(const float *results, uint32_t result_pitch, uint32_t rows,
                                  struct bt_cuda_mla_dims dims, struct bt_cuda_mla_weights kv_b,
                                  float *out, cudaStream_t stream)
{
    bt_cuda_launch(mla_give_back, dim3(rows, dims.heads, 1), THREADS, 0, stream, results,
                   result_pitch, dims, kv_b, out);
}
