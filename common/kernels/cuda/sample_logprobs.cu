/*
 * What logprobs are made of (bt_logprobs of kernels.h), but for the logit of the token, which is
 * not drawn yet: the best logit, the sum of weights, the n - 1 best tokens. Of rows that want them.
 *
 * logits [rows][vocab] f32, maxima (sample_maxima.cu), sums (sample_sums.cu) -> logprobs [rows].
 * One warp a row, no barriers: lane l has every 32nd block of 128 tokens, of which it knows the
 * best key that is left, in shared memory. The best of all blocks is found by the warp, its token
 * by reading that block again, and so on n - 1 times: a key once for each of its tokens, the lower
 * token first.
 * Shared memory: 8 bytes for each 128 tokens, 6.3 and 7.9 KB at the vocabularies of V2-Lite and V3.
 * Registers: <= 32 (sm_80), <= 32 (sm_90a), <= 64 (sm_100)
 * Instructions: ld.global.nc.L1::no_allocate.v4.u32
 * Counted: sectors <= 1.00, conflicts <= 1.00
 * Bound: latency: for each of the best a load of 512 bytes from L2, 32 keys a lane from shared
 * memory and 4 reductions of a warp, some 0.5 us. Floor (H100 SXM, computed): 20 of them 10 us,
 * however many rows up to 132 x 16; none 1 us.
 */
#include "common/kernels/cuda/launch.cuh"
#include "common/kernels/cuda/sample.cuh"

#define BLOCK BT_CUDA_SAMPLE_BLOCK

struct row_state {
    const float *logits;
    uint32_t vocab_size, blocks;
    uint32_t *keys; /* [blocks] the best that is left; 0: nothing */
    uint32_t *next; /* [blocks] of this key tokens before this one are not left */
};

/* A NaN is as good as minus infinity. */
BT_DEVICE uint32_t key_at_least(uint32_t key)
{
    return key > BT_KEY_LEAST ? key : BT_KEY_LEAST;
}

/* The block whose key is best, the lower one among equals, and the key. */
BT_DEVICE uint32_t best_block(const row_state &row, uint32_t *ret_key)
{
    uint32_t key = 0, block = 0;
    for (uint32_t i = bt_lane(); i < row.blocks; i += 32) {
        bool is_better = row.keys[i] > key;
        key = is_better ? row.keys[i] : key;
        block = is_better ? i : block;
    }
    uint32_t best = bt_warp_max(key);
    *ret_key = best;
    return bt_warp_min(key == best ? block : 0xffffffffu);
}

/* Takes the first token of the block's key that is left. */
BT_DEVICE uint32_t take(const row_state &row, uint32_t block, uint32_t key)
{
    uint32_t first = block * BLOCK + bt_lane() * 4, place = 0xffffffffu, less = 0, same = 0;
    uint32_t from = bt_shuffle(block % 32 == bt_lane() ? row.next[block] : 0, block % 32);
    bt_four_logits four = bt_four_logits_at(row.logits, first, row.vocab_size);
    for (uint32_t j = 4; j-- > 0;) {
        uint32_t token = first + j;
        uint32_t other = token < row.vocab_size ? key_at_least(bt_key_of(four.logit[j])) : 0;
        bool is_left = other == key && token >= from;
        less = other < key && other > less ? other : less;
        place = is_left ? token : place;
        same += is_left;
    }
    uint32_t token = bt_warp_min(place);
    bool more = bt_ballot(same > (place == token ? 1u : 0u)) != 0;
    less = bt_warp_max(less);
    if (block % 32 == bt_lane()) {
        row.keys[block] = more ? key : less;
        row.next[block] = more ? token + 1 : 0;
    }
    return token;
}

BT_KERNEL(32, 16) sample_logprobs(const __grid_constant__ bt_cuda_sample sample)
{
    uint32_t number = blockIdx.x, wanted = sample.draws[number].logprobs, best = 0;
    bt_cuda_logprobs *out = sample.logprobs + number;
    row_state row = {sample.logits + (size_t)number * sample.vocab_size, sample.vocab_size,
                     sample.blocks, (uint32_t *)bt_shared(),
                     (uint32_t *)bt_shared() + sample.blocks};
    if (wanted == 0)
        return;
    wanted = wanted - 1 < BT_CUDA_MAX_TOP ? wanted - 1 : BT_CUDA_MAX_TOP;
    wanted = wanted < row.vocab_size ? wanted : row.vocab_size;
    for (uint32_t i = bt_lane(); i < row.blocks; i += 32) {
        uint32_t key = key_at_least(sample.maxima[(size_t)number * row.blocks + i]);
        row.keys[i] = key;
        row.next[i] = 0;
        best = key > best ? key : best;
    }
    best = bt_warp_max(best);
    uint64_t sum = 0;
    for (uint32_t i = bt_lane(); i < sample.slices; i += 32)
        sum += sample.sums[(size_t)number * sample.slices + i];
    sum = bt_warp_sum(sum);
    if (bt_lane() == 0) {
        out->sum = best > BT_KEY_LEAST ? sum : 0;
        out->best = bt_number_of(best);
        out->top_count = wanted;
    }
    for (uint32_t i = 0; i < wanted; i++) {
        uint32_t key, block = best_block(row, &key), token = take(row, block, key);
        if (bt_lane() == 0) {
            out->top[i].token = token;
            out->top[i].logit = bt_number_of(key);
        }
    }
}

void bt_cuda_launch_sample_logprobs(const struct bt_cuda_sample *sample, cudaStream_t stream)
{
    bt_cuda_launch(sample_logprobs, dim3(sample->rows, 1, 1), 32,
                   (size_t)sample->blocks * 2 * sizeof(uint32_t), stream, *sample);
}
