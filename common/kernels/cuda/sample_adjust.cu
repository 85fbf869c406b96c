/*
 * Bias, masks and penalties of the rows whose draw has some, in place, with the arithmetic of
 * bt_sampler_draw (common/model/sampler.c, sampling.c): so the draw behind it needs to know of
 * none.
 *
 * draws [rows], adjusts (lists of all rows), kept (the tokens of the draw before) -> logits
 * [rows][vocab] f32; before [adjusts] and newest [rows]: logits as they were. One block of 256
 * threads a row, an adjust a thread, the three parts of the list one after the other; a row without
 * any leaves at once. Shared memory: 4 bytes.
 * Registers: <= 32 (sm_80), <= 32 (sm_90a), <= 32 (sm_100)
 * Instructions: st.global.f32
 * Counted: sectors <= 1.04, conflicts <= 1.00
 * Bound: latency: a list, a logit and a token for each adjust, three barriers. Floor (H100 SXM,
 * computed): one row of 2048 adjusts 8 rounds of two dependent loads, some 8 us; 64 such rows read
 * and write 64 x 2048 x (8 + 2 x 32 + 4) bytes, 3 us, and are bound by the rounds as well. Rows
 * without: the launch.
 */
#include "common/kernels/cuda/launch.cuh"
#include "common/kernels/cuda/sample.cuh"

#define THREADS        256
#define NEWEST_NONE    0 /* enum bt_newest */
#define NEWEST_DRAWN   2
#define MINUS_INFINITY bt_float(0xff800000u)

BT_DEVICE float penalised(const bt_cuda_draw *draw, float logit, uint32_t outputs)
{
    logit = logit > 0 ? bt_divide(logit, draw->repetition) : bt_mul(logit, draw->repetition);
    if (outputs == 0)
        return logit;
    return bt_add(logit, -bt_add(bt_mul((float)outputs, draw->frequency), draw->presence));
}

/* Adds `value` of each to its logit. */
BT_DEVICE void add_bias(const bt_cuda_sample &sample, float *logits, uint32_t begin, uint32_t end)
{
    for (uint32_t i = begin + threadIdx.x; i < end; i += THREADS) {
        bt_cuda_adjust adjust = sample.adjusts[i];
        float logit = logits[adjust.token];
        sample.before[i] = logit;
        logits[adjust.token] = bt_add(logit, bt_float(adjust.value));
    }
}

BT_DEVICE void mask(const bt_cuda_sample &sample, float *logits, uint32_t begin, uint32_t end)
{
    for (uint32_t i = begin + threadIdx.x; i < end; i += THREADS) {
        uint32_t token = sample.adjusts[i].token;
        sample.before[i] = logits[token];
        logits[token] = MINUS_INFINITY;
    }
}

/* True in the thread that found the newest token, which has one more output. */
BT_DEVICE bool penalise(const bt_cuda_sample &sample, const bt_cuda_draw *draw, float *logits,
                        uint32_t begin, uint32_t end, uint32_t newest)
{
    bool found = false;
    for (uint32_t i = begin + threadIdx.x; i < end; i += THREADS) {
        bt_cuda_adjust adjust = sample.adjusts[i];
        bool is_newest = adjust.token == newest;
        float logit = logits[adjust.token];
        sample.before[i] = logit;
        logits[adjust.token] = penalised(draw, logit, adjust.value + is_newest);
        found = found || is_newest;
    }
    return found;
}

/* What is beyond the vocabulary where there is none. */
BT_DEVICE uint32_t newest_of(const bt_cuda_sample &sample, const bt_cuda_draw *draw)
{
    if (draw->newest == NEWEST_NONE)
        return 0xffffffffu;
    return draw->newest == NEWEST_DRAWN ? sample.kept[draw->newest_token] : draw->newest_token;
}

BT_KERNEL(THREADS, 4) sample_adjust(const __grid_constant__ bt_cuda_sample sample)
{
    uint32_t row = blockIdx.x, *found = (uint32_t *)bt_shared();
    const bt_cuda_draw *draw = sample.draws + row;
    float *logits = sample.logits + (size_t)row * sample.vocab_size;
    uint32_t masked = draw->adjust_begin + draw->bias_count, seen = masked + draw->masked_count;
    uint32_t end = seen + draw->seen_count;
    if (end == draw->adjust_begin && draw->newest == NEWEST_NONE)
        return;
    uint32_t newest = newest_of(sample, draw);
    if (threadIdx.x == 0)
        *found = 0;
    add_bias(sample, logits, draw->adjust_begin, masked);
    bt_sync_block();
    mask(sample, logits, masked, seen);
    bt_sync_block();
    if (penalise(sample, draw, logits, seen, end, newest))
        *found = 1;
    bt_sync_block();
    if (threadIdx.x > 0 || draw->newest == NEWEST_NONE)
        return;
    bool is_new = *found == 0 && newest < sample.vocab_size;
    float logit = is_new ? logits[newest] : 0;
    sample.newest[row] = {is_new ? newest : 0xffffffffu, logit};
    if (is_new)
        logits[newest] = penalised(draw, logit, 1);
}

void bt_cuda_launch_sample_adjust(const struct bt_cuda_sample *sample, cudaStream_t stream)
{
    bt_cuda_launch(sample_adjust, dim3(sample->rows, 1, 1), THREADS, sizeof(uint32_t), stream,
                   *sample);
}
