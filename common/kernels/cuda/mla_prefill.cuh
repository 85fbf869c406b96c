/*
 * What the tensor-core kernels of a prefill's attention (mla_prefill.cu, mla_prefill_wgmma.cu) have
 * in common: which rows a block has, its queries, the softmax of a tile's scores, and what is kept
 * between rounds. Both have a warp's sixteen rows where the fragments of mma.sync have them, and
 * wgmma likewise: lane l has elements 2 (l % 4) and the next one of every eight columns, of rows
 * l / 4 and l / 4 + 8.
 */
#ifndef BATON_COMMON_KERNELS_CUDA_MLA_PREFILL_CUH
#define BATON_COMMON_KERNELS_CUDA_MLA_PREFILL_CUH

#include "common/kernels/cuda/instructions.cuh"
#include "common/kernels/cuda/mla_prefill.h"

#define ROWS    BT_CUDA_PREFILL_ROWS
#define WARPS   (ROWS / 16)
#define THREADS (WARPS * 32)
#define TOKENS  64 /* of a tile: BT_PAGE_TOKENS */
#define PAD     8  /* elements behind a row of queries in shared memory */

#define MINUS_INFINITY bt_float(0xff800000u)
#define LOG2_E         1.44269504f
#define FINITE         0x7f7f7f7fu /* the largest bf16, twice */

/* nope, rope and v are multiples of 16. */
template <uint32_t Nope, uint32_t Rope, uint32_t V> struct shape {
    static constexpr uint32_t nope = Nope, rope = Rope, v = V, dim = Nope + Rope;
    static constexpr uint32_t query_pitch = dim + PAD; /* elements */
};

/* The rows of a thread's block in a round. */
struct rows_of_block {
    uint32_t start;       /* position of row 0 of the sequence in this batch */
    uint32_t first, last; /* rows of the sequence in this batch, both included */
    size_t first_row;     /* of the sequence, in the batch */
    uint32_t begin, end;  /* tokens of the round that any of the rows sees */
    uint32_t at;          /* of `begin`, in the round */
    bool is_last;         /* no row sees tokens of a later round */
};

/* What a thread knows of its two rows. */
template <class Shape> struct state {
    float max[2], sum[2];    /* max: before the scale; sum: of this lane's columns */
    float acc[Shape::v / 2]; /* four of every eight columns */
};

BT_DEVICE struct rows_of_block rows_of(const struct bt_cuda_prefill_round &round)
{
    uint32_t block = round.blocks - 1 - blockIdx.x, i = 0;
    while (i + 1 < round.count && round.ranges[i + 1].first_block <= block)
        i++;
    const struct bt_cuda_prefill_range &range = round.ranges[i];
    struct rows_of_block rows;
    rows.start = range.start;
    rows.first = (block - range.first_block) * ROWS;
    rows.last = range.row_count - rows.first < ROWS ? range.row_count - 1 : rows.first + ROWS - 1;
    rows.first_row = range.first_row;
    rows.begin = range.begin;
    rows.is_last = range.start + rows.last < range.end;
    rows.end = rows.is_last ? range.start + rows.last + 1 : range.end;
    rows.at = range.at;
    return rows;
}

/* 16 bytes of values that this thread copied, which are there: 0 times an infinity would be no
 * number. */
BT_DEVICE void make_finite(void *at)
{
    uint4 x = bt_load_shared_16(at);
    uint4 y = {bt_bf16x2_clamp(x.x, FINITE), bt_bf16x2_clamp(x.y, FINITE),
               bt_bf16x2_clamp(x.z, FINITE), bt_bf16x2_clamp(x.w, FINITE)};
    if (((x.x ^ y.x) | (x.y ^ y.y) | (x.z ^ y.z) | (x.w ^ y.w)) != 0)
        bt_store_shared_16(at, y);
}

/* Queries of the block's rows of a head, rounded; zeros where there is no row. Block. */
template <class Shape>
BT_DEVICE void take_queries(const struct bt_cuda_prefill &call, const struct rows_of_block &rows,
                            uint16_t *to)
{
    constexpr uint32_t chunks = Shape::dim / 4;
    for (uint32_t i = threadIdx.x; i < ROWS * chunks; i += THREADS) {
        uint32_t row = rows.first + i / chunks;
        uint2 packed = {0, 0};
        if (row <= rows.last) {
            const float *q = call.q +
                             ((rows.first_row + row) * call.heads + blockIdx.y) * Shape::dim +
                             i % chunks * 4;
            float4 four = *(const float4 *)q;
            packed = {bt_bf16x2_from(four.x, four.y), bt_bf16x2_from(four.z, four.w)};
        }
        *(uint2 *)(to + i / chunks * Shape::query_pitch + i % chunks * 4) = packed;
    }
}

/* ---- a warp's sixteen rows ---- */

template <class Shape>
BT_DEVICE void load_queries(const uint16_t *queries, uint32_t q[Shape::dim / 16][4])
{
    uint32_t lane = bt_lane(), row = threadIdx.x / 32 * 16 + lane % 16;
    const uint16_t *from = queries + row * Shape::query_pitch + lane / 16 * 8;
#pragma unroll
    for (uint32_t k = 0; k < Shape::dim / 16; k++)
        bt_ldmatrix_x4(q[k], from + k * 16);
}

/* Tokens that a row does not see. first: position of the warp's row 0; tile: of token 0. */
BT_DEVICE void mask(uint32_t first, uint32_t tile, float scores[TOKENS / 2])
{
    uint32_t position = first + bt_lane() / 4, token = tile + bt_lane() % 4 * 2;
#pragma unroll
    for (uint32_t n = 0; n < TOKENS / 8; n++) {
#pragma unroll
        for (uint32_t i = 0; i < 4; i++)
            if (token + n * 8 + i % 2 > position + i / 2 * 8)
                scores[n * 4 + i] = MINUS_INFINITY;
    }
}

/* Scores become weights; the sums so far go down to the new maximum. */
template <class Shape>
BT_DEVICE void weigh(float scale, float scores[TOKENS / 2], struct state<Shape> *state)
{
    float max[2] = {state->max[0], state->max[1]}, base[2], keep[2], sum[2] = {0, 0};
#pragma unroll
    for (uint32_t n = 0; n < TOKENS / 8; n++) {
        max[0] = bt_max(max[0], bt_max(scores[n * 4], scores[n * 4 + 1]));
        max[1] = bt_max(max[1], bt_max(scores[n * 4 + 2], scores[n * 4 + 3]));
    }
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
        max[i] = bt_max(max[i], bt_shuffle_xor(max[i], 1));
        max[i] = bt_max(max[i], bt_shuffle_xor(max[i], 2));
        base[i] = max[i] == MINUS_INFINITY ? 0 : bt_mul(max[i], scale);
        keep[i] = bt_exp2_fast(bt_add(bt_mul(state->max[i], scale), -base[i]));
        state->max[i] = max[i];
    }
#pragma unroll
    for (uint32_t n = 0; n < TOKENS / 8; n++) {
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            scores[n * 4 + i] = bt_exp2_fast(bt_fma(scores[n * 4 + i], scale, -base[i / 2]));
            sum[i / 2] = bt_add(sum[i / 2], scores[n * 4 + i]);
        }
    }
    state->sum[0] = bt_fma(state->sum[0], keep[0], sum[0]);
    state->sum[1] = bt_fma(state->sum[1], keep[1], sum[1]);
    if (bt_ballot(keep[0] != 1 || keep[1] != 1) == 0)
        return;
#pragma unroll
    for (uint32_t n = 0; n < Shape::v / 8; n++) {
#pragma unroll
        for (uint32_t i = 0; i < 4; i++)
            state->acc[n * 4 + i] = bt_mul(state->acc[n * 4 + i], keep[i / 2]);
    }
}

/* Weights of sixteen tokens as the left operand of a product with their values. */
BT_DEVICE void pack_weights(const float weights[8], uint32_t left[4])
{
    left[0] = bt_bf16x2_from(weights[0], weights[1]);
    left[1] = bt_bf16x2_from(weights[2], weights[3]);
    left[2] = bt_bf16x2_from(weights[4], weights[5]);
    left[3] = bt_bf16x2_from(weights[6], weights[7]);
}

/* ---- between rounds, and at the end ---- */

/* Index of row i of the thread's two, times heads, plus its head; false: there is no such row. */
BT_DEVICE bool index_of(const struct bt_cuda_prefill &call, const struct rows_of_block &rows,
                        uint32_t i, size_t *index)
{
    uint32_t row = rows.first + threadIdx.x / 32 * 16 + bt_lane() / 4 + i * 8;
    *index = (rows.first_row + row) * call.heads + blockIdx.y;
    return row <= rows.last;
}

template <class Shape>
BT_DEVICE void begin_rows(const struct bt_cuda_prefill &call, const struct rows_of_block &rows,
                          struct state<Shape> *state)
{
    uint32_t quarter = bt_lane() % 4;
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
        size_t index;
        bool is_kept = index_of(call, rows, i, &index) && rows.begin > 0;
        state->max[i] = is_kept ? call.max[index] : MINUS_INFINITY;
        state->sum[i] = is_kept ? call.sum[index * 4 + quarter] : 0;
        const float *acc = call.out + index * Shape::v + quarter * 2;
#pragma unroll
        for (uint32_t n = 0; n < Shape::v / 8; n++) {
            float2 two = is_kept ? *(const float2 *)(acc + n * 8) : float2{0, 0};
            state->acc[n * 4 + 2 * i] = two.x;
            state->acc[n * 4 + 2 * i + 1] = two.y;
        }
    }
}

/* Adding 0 makes -0 to 0: products with weights of 0 can have either sign. */
template <class Shape>
BT_DEVICE void end_rows(const struct bt_cuda_prefill &call, const struct rows_of_block &rows,
                        const struct state<Shape> &state)
{
    uint32_t quarter = bt_lane() % 4;
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
        float sum = bt_add(state.sum[i], bt_shuffle_xor(state.sum[i], 1));
        sum = bt_add(sum, bt_shuffle_xor(sum, 2));
        float by = rows.is_last ? bt_divide(1.0f, sum) : 1.0f;
        size_t index;
        if (!index_of(call, rows, i, &index))
            continue;
        float *out = call.out + index * Shape::v + quarter * 2;
#pragma unroll
        for (uint32_t n = 0; n < Shape::v / 8; n++) {
            *(float2 *)(out + n * 8) = {bt_fma(state.acc[n * 4 + 2 * i], by, 0.0f),
                                        bt_fma(state.acc[n * 4 + 2 * i + 1], by, 0.0f)};
        }
        if (rows.is_last)
            continue;
        call.sum[index * 4 + quarter] = state.sum[i];
        if (quarter == 0)
            call.max[index] = state.max[i];
    }
}

#endif
