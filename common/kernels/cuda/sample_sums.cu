/*
 * The sum of the weights of every 4096 tokens of each row, exact, for the rows whose draw needs it:
 * those that are neither greedy nor limited to the best k. Before that, for logprobs, of the rows
 * that want them, at temperature 1.
 *
 * logits [rows][vocab] f32, maxima -> sums [row][slice]. A grid of slices by rows, 8 warps a block,
 * 4 blocks of 128 tokens a warp, 4 tokens a lane; the row's best is found again by each block.
 * Shared memory: 96 bytes.
 * Registers: <= 40 (sm_80), <= 40 (sm_90a), <= 64 (sm_100)
 * Instructions: ld.global.nc.L1::no_allocate.v4.u32
 * Counted: moved <= 1.01, asked <= 1.27, sectors <= 1.00, conflicts <= 1.00
 * Bound: f32 arithmetic, some 35 operations a token. Floor (H100 SXM, 132 x 128 lanes at 1.83 GHz,
 * computed): a row of V2-Lite (102400) 0.12 us, of V3 (129280) 0.15 us; 64 rows 7.4 and 9.4 us.
 */
#include "common/kernels/cuda/launch.cuh"
#include "common/kernels/cuda/sample.cuh"

#define WARPS    8
#define THREADS  (WARPS * 32)
#define PER_WARP (BT_CUDA_SAMPLE_SLICE / BT_CUDA_SAMPLE_BLOCK / WARPS)

BT_KERNEL(THREADS, 4) sample_sums(const __grid_constant__ bt_cuda_sample sample)
{
    uint64_t *warp_sums = (uint64_t *)bt_shared();
    uint32_t *scratch = (uint32_t *)(warp_sums + WARPS);
    uint32_t row = blockIdx.y, warp = threadIdx.x / 32, best = 0;
    const bt_cuda_draw *draw = sample.draws + row;
    const float *logits = sample.logits + (size_t)row * sample.vocab_size;
    const uint32_t *maxima = sample.maxima + (size_t)row * sample.blocks;
    uint64_t sum = 0;
    if (sample.raw ? draw->logprobs == 0 : !bt_needs_sum(draw, sample.vocab_size))
        return;
    for (uint32_t i = threadIdx.x; i < sample.blocks; i += THREADS)
        best = maxima[i] > best ? maxima[i] : best;
    best = bt_block_max(best, scratch);
    bt_weigher weigher = sample.raw ? bt_weigher_of_logprobs(best) : bt_weigher_of(best, draw);
    for (uint32_t i = 0; i < PER_WARP; i++) {
        uint32_t token = blockIdx.x * BT_CUDA_SAMPLE_SLICE +
                         (warp * PER_WARP + i) * BT_CUDA_SAMPLE_BLOCK + bt_lane() * 4;
        bt_four_logits four = bt_four_logits_at(logits, token, sample.vocab_size);
        for (uint32_t j = 0; j < 4; j++)
            sum += bt_weight_of(weigher, four.logit[j]);
    }
    sum = bt_warp_sum(sum);
    if (bt_lane() == 0)
        warp_sums[warp] = sum;
    bt_sync_block();
    if (warp > 0)
        return;
    sum = bt_warp_sum(bt_lane() < WARPS ? warp_sums[bt_lane()] : 0);
    if (bt_lane() == 0)
        sample.sums[(size_t)row * sample.slices + blockIdx.x] = sum;
}

void bt_cuda_launch_sample_sums(const struct bt_cuda_sample *sample, cudaStream_t stream)
{
    bt_cuda_launch(sample_sums, dim3(sample->slices, sample->rows, 1), THREADS,
                   WARPS * (sizeof(uint64_t) + sizeof(uint32_t)), stream, *sample);
}
