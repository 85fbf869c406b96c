/*
 * The best logit of every 128 tokens of each row, as a key (sample.cuh): what greedy draws, top-k
 * and top-p look at, in place of all logits. Before that, of the rows that want logprobs, for
 * these.
 *
 * logits [rows][vocab] f32 -> maxima [row][blocks of 128]. A grid of slices of 4096 tokens by rows,
 * 8 warps a block, 4 blocks of tokens a warp, 4 tokens a lane. No shared memory.
 * Registers: <= 32 (sm_80), <= 32 (sm_90a), <= 32 (sm_100)
 * Instructions: ld.global.nc.L1::no_allocate.v4.u32
 * Counted: moved <= 1.01, asked <= 1.07, sectors <= 1.00
 * Bound: memory. Floor (H100 SXM, computed): 4 bytes a token: a row of V2-Lite (102400) 0.12 us, of
 * V3 (129280) 0.15 us; 64 rows 7.8 and 9.9 us, less where the logits are in L2 still.
 */
#include "common/kernels/cuda/launch.cuh"
#include "common/kernels/cuda/sample.cuh"

#define WARPS    8
#define THREADS  (WARPS * 32)
#define PER_WARP (BT_CUDA_SAMPLE_SLICE / BT_CUDA_SAMPLE_BLOCK / WARPS)

BT_KERNEL(THREADS, 4) sample_maxima(const __grid_constant__ bt_cuda_sample sample)
{
    uint32_t row = blockIdx.y, warp = blockIdx.x * WARPS + threadIdx.x / 32;
    if (sample.raw && sample.draws[row].logprobs == 0)
        return;
    const float *logits = sample.logits + (size_t)row * sample.vocab_size;
    for (uint32_t i = 0; i < PER_WARP; i++) {
        uint32_t block = warp * PER_WARP + i, most = 0;
        if (block >= sample.blocks)
            return;
        bt_four_logits four = bt_four_logits_at(
            logits, block * BT_CUDA_SAMPLE_BLOCK + bt_lane() * 4, sample.vocab_size);
        for (uint32_t j = 0; j < 4; j++) {
            uint32_t key = bt_key_of(four.logit[j]);
            most = key > most ? key : most;
        }
        most = bt_warp_max(most);
        if (bt_lane() == 0)
            sample.maxima[(size_t)row * sample.blocks + block] = most;
    }
}

void bt_cuda_launch_sample_maxima(const struct bt_cuda_sample *sample, cudaStream_t stream)
{
    bt_cuda_launch(sample_maxima, dim3(sample->slices, sample->rows, 1), THREADS, 0, stream,
                   *sample);
}
