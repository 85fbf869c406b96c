/*
 * Attention of a round of a prefill (mla_prefill.h) for shapes that mla_prefill.cu has no code for,
 * and for all where kv_b is in ROWS: f32 arithmetic without tensor cores. With keys and values in
 * bf16 queries and weights are rounded to it, too, and only sums are f32.
 *
 * A warp a row of a head, 4 warps a block, the grid over blocks of rows and heads. A row takes in
 * the tokens that it sees, a page at a time: lane l has the scores of tokens l and l + 32, each
 * summed up in the order of its elements; then lane l has elements l, l + 32 … of the sum of
 * values, each in the order of tokens.
 *
 * Shared memory: 16 * (nope + rope + v + 64) bytes; 6 KiB at 192, 128.
 * Registers: <= 64 (sm_80), <= 64 (sm_90a), <= 64 (sm_100)
 * Counted: moved <= 1.00, asked <= 24.94, sectors <= 3.90, conflicts <= 1.00, products <= 1.02
 * Bound: latency of loads; it serves where speed is not asked for. Floor (H100 SXM, computed, at 67
 * TFLOP/s of f32): 2048 rows over 2048 tokens, V2-Lite (16 heads) 22 GFLOP, 0.32 ms.
 */
#include "common/kernels/cuda/instructions.cuh"
#include "common/kernels/cuda/launch.cuh"
#include "common/kernels/cuda/mla_prefill.h"

#define ROWS           BT_CUDA_PREFILL_F32_ROWS
#define PAGE_TOKENS    64 /* BT_PAGE_TOKENS */
#define MINUS_INFINITY bt_float(0xff800000u)

/* A row of a head, and its warp's shared memory. */
struct row {
    uint32_t position;
    size_t index;   /* row * heads + head */
    float *q;       /* [nope + rope] */
    float *acc;     /* [v] */
    float *weights; /* [PAGE_TOKENS] */
    float max, sum;
};

template <bool Rounds> BT_DEVICE float element(const void *data, size_t index)
{
    return Rounds ? bt_from_bf16(((const uint16_t *)data)[index]) : ((const float *)data)[index];
}

template <bool Rounds> BT_DEVICE float rounded(float value)
{
    return Rounds ? bt_from_bf16(bt_bf16_from(value)) : value;
}

BT_DEVICE uint32_t token_pitch(const struct bt_cuda_prefill &call)
{
    return call.heads * (call.nope_rows + call.v_rows);
}

/* Of the token at `at` of the round. */
template <bool Rounds>
BT_DEVICE float score(const struct bt_cuda_prefill &call, const struct row &row, uint32_t at)
{
    size_t key = (size_t)at * token_pitch(call) + blockIdx.y * (call.nope_rows + call.v_rows);
    size_t turned = (size_t)at * call.key_pitch;
    float sum = 0;
    for (uint32_t i = 0; i < call.nope; i++)
        sum = bt_fma(row.q[i], element<Rounds>(call.expanded, key + i), sum);
    for (uint32_t i = 0; i < call.rope; i++)
        sum = bt_fma(row.q[call.nope + i], element<Rounds>(call.keys, turned + i), sum);
    return bt_mul(sum, call.scale);
}

/* Of all lanes. */
BT_DEVICE float max_of_warp(float value)
{
    for (uint32_t mask = 16; mask > 0; mask /= 2)
        value = bt_max(value, bt_shuffle_xor(value, mask));
    return value;
}

BT_DEVICE float sum_of_warp(float value)
{
    for (uint32_t mask = 16; mask > 0; mask /= 2)
        value = bt_add(value, bt_shuffle_xor(value, mask));
    return value;
}

/* The row takes in `seen` tokens, at most PAGE_TOKENS, at `at` of the round. Warp. */
template <bool Rounds>
BT_DEVICE void take_page(const struct bt_cuda_prefill &call, struct row *row, uint32_t at,
                         uint32_t seen)
{
    uint32_t lane = bt_lane();
    size_t values = (size_t)at * token_pitch(call) + blockIdx.y * (call.nope_rows + call.v_rows) +
                    call.nope_rows;
    float first = lane < seen ? score<Rounds>(call, *row, at + lane) : MINUS_INFINITY;
    float second = lane + 32 < seen ? score<Rounds>(call, *row, at + lane + 32) : MINUS_INFINITY;
    float max = bt_max(row->max, max_of_warp(bt_max(first, second)));
    float keep = row->max == max ? 1.0f : bt_exp(row->max - max);
    first = lane < seen ? bt_exp(first - max) : 0;
    second = lane + 32 < seen ? bt_exp(second - max) : 0;
    row->max = max;
    row->sum = bt_fma(row->sum, keep, sum_of_warp(bt_add(first, second)));
    row->weights[lane] = rounded<Rounds>(first);
    row->weights[lane + 32] = rounded<Rounds>(second);
    bt_sync_warp();
    for (uint32_t i = lane; i < call.v; i += 32) {
        float acc = bt_mul(row->acc[i], keep);
        for (uint32_t t = 0; t < seen; t++)
            acc = bt_fma(row->weights[t],
                         element<Rounds>(call.expanded, values + (size_t)t * token_pitch(call) + i),
                         acc);
        row->acc[i] = acc;
    }
    bt_sync_warp();
}

template <bool Rounds>
BT_DEVICE void begin_row(const struct bt_cuda_prefill &call, bool is_first, struct row *row)
{
    uint32_t dim = call.nope + call.rope;
    for (uint32_t i = bt_lane(); i < dim; i += 32)
        row->q[i] = rounded<Rounds>(call.q[row->index * dim + i]);
    for (uint32_t i = bt_lane(); i < call.v; i += 32)
        row->acc[i] = is_first ? 0 : call.out[row->index * call.v + i];
    row->max = is_first ? MINUS_INFINITY : call.max[row->index];
    row->sum = is_first ? 0 : call.sum[row->index * 4];
    bt_sync_warp();
}

/* Adding 0 makes -0 to 0. */
BT_DEVICE void end_row(const struct bt_cuda_prefill &call, bool is_last, const struct row &row)
{
    for (uint32_t i = bt_lane(); i < call.v; i += 32)
        call.out[row.index * call.v + i] =
            is_last ? bt_add(bt_divide(row.acc[i], row.sum), 0.0f) : row.acc[i];
    if (!is_last && bt_lane() == 0) {
        call.max[row.index] = row.max;
        call.sum[row.index * 4] = row.sum;
    }
}

template <bool Rounds>
BT_KERNEL(ROWS * 32, 8)
mla_prefill_f32(const __grid_constant__ struct bt_cuda_prefill call,
                const __grid_constant__ struct bt_cuda_prefill_round round)
{
    uint32_t i = 0, warp = threadIdx.x / 32;
    while (i + 1 < round.count && round.ranges[i + 1].first_block <= blockIdx.x)
        i++;
    const struct bt_cuda_prefill_range &range = round.ranges[i];
    uint32_t in_sequence = (blockIdx.x - range.first_block) * ROWS + warp;
    uint32_t position = range.start + in_sequence;
    if (in_sequence >= range.row_count || position < range.begin)
        return;
    struct row row;
    row.position = position;
    row.index = (size_t)(range.first_row + in_sequence) * call.heads + blockIdx.y;
    row.q = (float *)bt_shared() + warp * (call.nope + call.rope + call.v + PAGE_TOKENS);
    row.acc = row.q + call.nope + call.rope;
    row.weights = row.acc + call.v;
    begin_row<Rounds>(call, range.begin == 0, &row);
    uint32_t end = position < range.end ? position + 1 : range.end;
    for (uint32_t at = range.begin; at < end; at += PAGE_TOKENS)
        take_page<Rounds>(call, &row, range.at + at - range.begin,
                          end - at < PAGE_TOKENS ? end - at : PAGE_TOKENS);
    end_row(call, position < range.end, row);
}

void bt_cuda_launch_mla_prefill_f32(const struct bt_cuda_prefill *call,
                                    const struct bt_cuda_prefill_round *round, bool rounds,
                                    cudaStream_t stream)
{
    size_t bytes = ROWS * (call->nope + call->rope + call->v + PAGE_TOKENS) * sizeof(float);
    auto kernel = rounds ? mla_prefill_f32<true> : mla_prefill_f32<false>;
    bt_cuda_launch(kernel, dim3(round->blocks, call->heads, 1), ROWS * 32, bytes, stream, *call,
                   *round);
}
