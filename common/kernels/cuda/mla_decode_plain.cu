/*
 * Decode, second step, for shapes that the tensor cores' kernels do not take, and for arithmetic in
 * f32: the same pieces, sums and results as mla_decode.
 *
 *     queries [row][head][lora + rope] bf16 or f32, pages -> results likewise, or sums and states
 *
 * A block of 128 threads takes a head of a piece, page by page: a warp a token's score (each lane
 * every 32nd element, then a tree), then each thread every 128th element of the weighted sum, token
 * after token. In tile arithmetic pages and weights are rounded to bf16 on the way.
 *
 * Any shape and pool. Shared memory: 4 (2 lora + rope + 64) bytes, 4608 for 512 + 64.
 * Registers: <= 64 (sm_80), <= 64 (sm_90a), <= 64 (sm_100)
 * Counted: moved <= 1.01, asked <= 20.96, sectors <= 1.00, conflicts <= 1.00, products <= 1.01
 * Bound: FMA and L1 (2 lora + rope of each a token and head), 128 a cycle at best: V3 in f32, 64
 * rows of 4096 tokens: 37 G FMA, floor for H100 1.2 ms; V2-Lite 150 us.
 */
#include "common/kernels/cuda/launch.cuh"
#include "common/kernels/cuda/mla_piece.cuh"

#define THREADS 128
#define WARPS   (THREADS / 32)

/* What the block works on, in shared memory. */
struct plain_memory {
    float *query;   /* [lora + rope] */
    float *sums;    /* [lora] */
    float *weights; /* [MLA_PAGE_TOKENS], scores before */
};

BT_DEVICE plain_memory memory_of(const struct bt_cuda_mla_decode &call)
{
    plain_memory memory;
    memory.query = (float *)bt_shared();
    memory.sums = memory.query + call.kv_lora_rank + call.qk_rope_head_dim;
    memory.weights = memory.sums + call.kv_lora_rank;
    return memory;
}

BT_DEVICE uint32_t word_at(const unsigned char *bytes)
{
    return bytes[0] | bytes[1] << 8 | bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}

/* Element i of a token, of any alignment. */
BT_DEVICE float pool_element(const struct bt_cuda_mla_decode &call, const unsigned char *token,
                             uint32_t i)
{
    if (call.pool == BT_F32)
        return ((const float *)token)[i];
    if (call.pool == BT_BF16)
        return bt_from_bf16(((const uint16_t *)token)[i]);
    if (i < call.kv_lora_rank)
        return bt_mul(bt_from_e4m3(token[i]),
                      bt_float(word_at(token + call.kv_lora_rank + i / 128 * 4)));
    const unsigned char *at = token + call.kv_lora_rank + (call.kv_lora_rank + 127) / 128 * 4 +
                              (size_t)(i - call.kv_lora_rank) * 2;
    return bt_from_bf16((uint16_t)(at[0] | at[1] << 8));
}

template <bool Rounded> BT_DEVICE float rounded(float value)
{
    return Rounded ? bt_from_bf16(bt_bf16_from(value)) : value;
}

template <bool Rounded>
BT_DEVICE void load_query(const struct bt_cuda_mla_decode &call, const plain_memory &memory,
                          size_t at)
{
    uint32_t count = call.kv_lora_rank + call.qk_rope_head_dim;
    for (uint32_t i = threadIdx.x; i < count; i += THREADS)
        memory.query[i] = Rounded ? bt_from_bf16(((const uint16_t *)call.queries)[at + i])
                                  : ((const float *)call.queries)[at + i];
}

template <bool Rounded>
BT_DEVICE void score(const struct bt_cuda_mla_decode &call, const plain_memory &memory,
                     const unsigned char *page, uint32_t tokens)
{
    uint32_t count = call.kv_lora_rank + call.qk_rope_head_dim;
    for (uint32_t t = threadIdx.x / 32; t < tokens; t += WARPS) {
        const unsigned char *token = page + t * call.token_bytes;
        float sum = 0;
        for (uint32_t i = bt_lane(); i < count; i += 32)
            sum = bt_fma(memory.query[i], rounded<Rounded>(pool_element(call, token, i)), sum);
        for (uint32_t mask = 16; mask > 0; mask /= 2)
            sum = bt_add(sum, bt_shuffle_xor(sum, mask));
        if (bt_lane() == 0)
            memory.weights[t] = bt_mul(sum, call.scale);
    }
}

/* Scores become weights. Each warp does the same, a lane two tokens, so that all threads have the
 * same maximum and sum. Returns what the sums so far are multiplied by. */
BT_DEVICE float weigh(const plain_memory &memory, uint32_t tokens, float *max, float *weight)
{
    const uint32_t lane = bt_lane();
    float low = lane < tokens ? memory.weights[lane] : MLA_NEGATIVE_INFINITY;
    float high = lane + 32 < tokens ? memory.weights[lane + 32] : MLA_NEGATIVE_INFINITY;
    float most = fmaxf(low, high);
    for (uint32_t mask = 16; mask > 0; mask /= 2)
        most = fmaxf(most, bt_shuffle_xor(most, mask));
    most = fmaxf(*max, most);
    low = lane < tokens ? bt_exp2_fast(bt_add(low, -most)) : 0;
    high = lane + 32 < tokens ? bt_exp2_fast(bt_add(high, -most)) : 0;
    float sum = bt_add(low, high), keep = bt_exp2_fast(bt_add(*max, -most));
    for (uint32_t mask = 16; mask > 0; mask /= 2)
        sum = bt_add(sum, bt_shuffle_xor(sum, mask));
    *weight = bt_fma(*weight, keep, sum);
    *max = most;
    bt_sync_block();
    if (threadIdx.x < 32) {
        memory.weights[lane] = low;
        memory.weights[lane + 32] = high;
    }
    bt_sync_block();
    return keep;
}

template <bool Rounded>
BT_DEVICE void add_values(const struct bt_cuda_mla_decode &call, const plain_memory &memory,
                          const unsigned char *page, uint32_t tokens, float keep)
{
    for (uint32_t i = threadIdx.x; i < call.kv_lora_rank; i += THREADS) {
        float sum = bt_mul(memory.sums[i], keep);
        for (uint32_t t = 0; t < tokens; t++)
            sum = bt_fma(rounded<Rounded>(memory.weights[t]),
                         rounded<Rounded>(pool_element(call, page + t * call.token_bytes, i)), sum);
        memory.sums[i] = sum;
    }
}

template <bool Rounded>
BT_DEVICE void end_piece(const struct bt_cuda_mla_decode &call, const plain_memory &memory,
                         const mla_piece &piece, uint32_t head, bool is_first, float max,
                         float weight)
{
    float *sums = mla_sums(call, piece.slot, head), *of_slot = mla_state(call, piece.slot, head);
    size_t out = ((size_t)(piece.row - call.first_row) * call.heads + head) * call.result_pitch;
    float inverse = bt_divide(1.0f, weight);
    mla_join join = {max, 0, 1};
    if (!piece.is_whole && !is_first) {
        join = mla_join_of(of_slot[0], max);
        weight = mla_joined(join, of_slot[1], weight);
    }
    for (uint32_t i = threadIdx.x; i < call.kv_lora_rank; i += THREADS) {
        float x = memory.sums[i];
        if (!piece.is_whole)
            sums[i] = is_first ? x : mla_joined(join, sums[i], x);
        else if (Rounded)
            ((uint16_t *)call.results)[out + i] = bt_bf16_from(bt_mul(x, inverse));
        else
            ((float *)call.results)[out + i] = bt_mul(x, inverse);
    }
    bt_sync_block(); /* all have read the state */
    if (!piece.is_whole && threadIdx.x == 0) {
        of_slot[0] = join.max;
        of_slot[1] = weight;
    }
    bt_sync_block();
}

BT_DEVICE void begin_sums(const struct bt_cuda_mla_decode &call, const plain_memory &memory,
                          float *max, float *weight)
{
    for (uint32_t i = threadIdx.x; i < call.kv_lora_rank; i += THREADS)
        memory.sums[i] = 0;
    *max = MLA_NEGATIVE_INFINITY;
    *weight = 0;
}

template <bool Rounded>
BT_DEVICE void take_piece(const struct bt_cuda_mla_decode &call, const mla_piece &piece,
                          uint32_t head)
{
    plain_memory memory = memory_of(call);
    float max, weight;
    bool is_first = true;
    begin_sums(call, memory, &max, &weight);
    load_query<Rounded>(call, memory,
                        ((size_t)(piece.row - call.first_row) * call.heads + head) *
                            call.query_pitch);
    for (uint32_t at = piece.begin; at < piece.end; at += MLA_PAGE_TOKENS) {
        uint32_t left = piece.end - at, tokens = left < MLA_PAGE_TOKENS ? left : MLA_PAGE_TOKENS;
        const unsigned char *page = mla_page(call, piece.pages[at / MLA_PAGE_TOKENS]);
        if (at != piece.begin && at % BT_CUDA_PIECE_TOKENS == 0) {
            end_piece<Rounded>(call, memory, piece, head, is_first, max, weight);
            begin_sums(call, memory, &max, &weight);
            is_first = false;
        }
        bt_sync_block();
        score<Rounded>(call, memory, page, tokens);
        bt_sync_block();
        float keep = weigh(memory, tokens, &max, &weight);
        add_values<Rounded>(call, memory, page, tokens, keep);
    }
    end_piece<Rounded>(call, memory, piece, head, is_first, max, weight);
}

template <bool Rounded> BT_KERNEL(THREADS, 8) mla_decode_plain(const struct bt_cuda_mla_decode call)
{
    const uint32_t count = mla_piece_count(call) * call.heads;
    for (uint32_t i = blockIdx.x; i < count; i += gridDim.x)
        take_piece<Rounded>(call, mla_piece_at(call, i / call.heads), i % call.heads);
}

void bt_cuda_launch_mla_decode_plain(const struct bt_cuda_mla_decode *call, uint32_t blocks,
                                     cudaStream_t stream)
{
    size_t shared = (2 * (size_t)call->kv_lora_rank + call->qk_rope_head_dim + MLA_PAGE_TOKENS) * 4;
    if (call->is_rounded)
        bt_cuda_launch(mla_decode_plain<true>, dim3(blocks, 1, 1), THREADS, shared, stream, *call);
    else
        bt_cuda_launch(mla_decode_plain<false>, dim3(blocks, 1, 1), THREADS, shared, stream, *call);
}
