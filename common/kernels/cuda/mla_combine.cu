/*
 * Decode, third step: the pieces of a row become its result in the latent space.
 *
 *     sums, states [piece of the group][head] -> results [row of the group][head][kv_lora_rank]
 *
 * Pieces are joined in ascending order, by their maxima in f32, which is the one order there is:
 * mla_decode joins the same way where one block takes several pieces. Rows of a single piece are
 * done already; rows of padding become zeros.
 *
 * A block takes a head of a row, 128 threads, each every 128th element. No shared memory.
 * Registers: <= 64 (sm_80), <= 64 (sm_90a), <= 64 (sm_100)
 * Counted: moved <= 1.01, asked <= 1.50, sectors <= 1.00
 * Bound: memory, 4 kv_lora_rank bytes for each piece and head. Floor for H100 at 3.35 TB/s, 4096
 * tokens (4 pieces) and 64 rows: V2-Lite (16 heads) 8.4 MB, 2.5 us; V3 (128 heads) 67 MB, 20 us;
 * less where pieces are still in L2.
 */
#include "common/kernels/cuda/launch.cuh"
#include "common/kernels/cuda/mla_piece.cuh"

#define THREADS 128

BT_DEVICE void store_result(const struct bt_cuda_mla_decode &call, size_t at, float value)
{
    if (call.is_rounded)
        ((uint16_t *)call.results)[at] = bt_bf16_from(value);
    else
        ((float *)call.results)[at] = value;
}

BT_KERNEL(THREADS, 8) mla_combine(const struct bt_cuda_mla_decode call)
{
    uint32_t row = call.first_row + blockIdx.x, head = blockIdx.y;
    uint32_t position = call.rows.position[row];
    bool is_padding = position == BT_CUDA_NO_POSITION;
    size_t out = ((size_t)blockIdx.x * call.heads + head) * call.result_pitch;
    uint32_t group = call.rows.piece_begin[call.first_row];
    uint32_t begin = call.rows.piece_begin[row] - group;
    uint32_t end = call.rows.piece_begin[row + 1] - group;

    uint32_t first = is_padding ? 0 : call.kv_lora_rank;
    for (uint32_t i = first + threadIdx.x; i < call.result_pitch; i += THREADS)
        store_result(call, out + i, 0.0f);
    if (is_padding || position < BT_CUDA_PIECE_TOKENS)
        return;
    for (uint32_t i = threadIdx.x; i < call.kv_lora_rank; i += THREADS) {
        const float *state = mla_state(call, begin, head);
        float max = state[0], weight = state[1], sum = mla_sums(call, begin, head)[i];
        for (uint32_t slot = begin + 1; slot < end; slot++) {
            state = mla_state(call, slot, head);
            mla_join join = mla_join_of(max, state[0]);
            sum = mla_joined(join, sum, mla_sums(call, slot, head)[i]);
            weight = mla_joined(join, weight, state[1]);
            max = join.max;
        }
        store_result(call, out + i, bt_mul(sum, bt_divide(1.0f, weight)));
    }
}

void bt_cuda_launch_mla_combine(const struct bt_cuda_mla_decode *call, cudaStream_t stream)
{
    bt_cuda_launch(mla_combine, dim3(call->row_count, call->heads, 1), THREADS, 0, stream, *call);
}
