/*
 * Adds up what the experts made of each row: out[row] = fma(weight, y, out[row]) in f32, over the
 * row's picks in ascending order of experts.
 *
 * y [picks of a run][cols] bf16 or f32 -> out [rows][cols]. A block of 128 threads takes 1024
 * columns of a row, a thread four of each half, so that what a warp asks for at once has no gaps.
 * It finds the row's picks by their places and puts them in order by counting how many are before
 * each. Accesses of four columns where cols is a multiple of 4 and y and out are aligned to 16.
 *
 * Shared memory: 12 bytes a pick.
 * Registers: <= 40 (sm_80), <= 40 (sm_90a), <= 48 (sm_100)
 * Instructions: ld.global.nc.L1::no_allocate.v4.u32; ld.global.v2.u32; st.global.v4
 * Counted: moved <= 1.01, asked <= 1.02, sectors <= 1.00, conflicts <= 1.00
 * Bound: memory. Floor (H100 SXM, computed), bf16: 64 rows of V2-Lite (6 picks of 2048) 0.8 us, of
 * V3 (8 of 7168) 3.3 us; 2048 rows, of V2-Lite 25 us, of V3 105 us.
 */
#include "common/kernels/cuda/elements.cuh"
#include "common/kernels/cuda/launch.cuh"
#include "common/kernels/cuda/permute.h"

#define THREADS 128
#define HALF    (THREADS * 4) /* columns; a block takes twice as many */
#define NOBODY  0xffffffffu

/* The row's picks that count, in order. */
struct row_picks {
    uint32_t *experts; /* NOBODY: does not count */
    uint32_t *places;  /* in y */
    float *weights;
    uint32_t count;
};

BT_DEVICE uint32_t expert_of(const bt_cuda_unpermute &call, size_t pick)
{
    uint32_t expert = call.experts[pick], place = call.places[pick] - call.first;
    bool here = (call.here[expert / 32] >> expert % 32 & 1) != 0;
    return here && place < call.count ? expert : NOBODY;
}

BT_DEVICE row_picks picks_of(const bt_cuda_unpermute &call, uint32_t row)
{
    uint32_t *memory = (uint32_t *)bt_shared();
    row_picks picks = {memory, memory + call.per_row, (float *)(memory + 2 * call.per_row), 0};
    size_t at = (size_t)row * call.per_row;
    for (uint32_t i = threadIdx.x; i < call.per_row; i += THREADS)
        picks.experts[i] = expert_of(call, at + i);
    bt_sync_block();
    for (uint32_t i = threadIdx.x; i < call.per_row; i += THREADS) {
        uint32_t before = 0, own = picks.experts[i];
        for (uint32_t j = 0; j < call.per_row; j++)
            before += picks.experts[j] < own;
        if (own == NOBODY)
            continue;
        picks.places[before] = call.places[at + i] - call.first;
        picks.weights[before] = call.weights[at + i];
    }
    for (uint32_t i = 0; i < call.per_row; i++)
        picks.count += picks.experts[i] != NOBODY;
    bt_sync_block();
    return picks;
}

/* Element `at` of y and the three behind it, aligned. */
template <bool Is_bf16> BT_DEVICE float4 four_of(const void *y, size_t at)
{
    if (Is_bf16)
        return bt_elements_of<BT_BF16>((const uint16_t *)y + at, 0, 4, true);
    uint4 four = bt_load_16((const float *)y + at);
    return {bt_float(four.x), bt_float(four.y), bt_float(four.z), bt_float(four.w)};
}

BT_DEVICE void add_four(float weight, float4 y, float4 *sum)
{
    *sum = {bt_fma(weight, y.x, sum->x), bt_fma(weight, y.y, sum->y), bt_fma(weight, y.z, sum->z),
            bt_fma(weight, y.w, sum->w)};
}

/* Four columns of each half of a block's, all aligned. */
template <bool Is_bf16>
BT_DEVICE void add_wide(const bt_cuda_unpermute &call, const row_picks &picks, float *out,
                        uint32_t column)
{
    bool both = column + HALF < call.cols;
    float4 low = *(float4 *)(out + column), high = {0, 0, 0, 0};
    if (both)
        high = *(float4 *)(out + column + HALF);
#pragma unroll 2
    for (uint32_t i = 0; i < picks.count; i++) {
        size_t at = (size_t)picks.places[i] * call.cols + column;
        float4 y = four_of<Is_bf16>(call.y, at), z = {0, 0, 0, 0};
        if (both)
            z = four_of<Is_bf16>(call.y, at + HALF);
        add_four(picks.weights[i], y, &low);
        add_four(picks.weights[i], z, &high);
    }
    *(float4 *)(out + column) = low;
    if (both)
        *(float4 *)(out + column + HALF) = high;
}

BT_DEVICE void add_one(const bt_cuda_unpermute &call, const row_picks &picks, float *out,
                       uint32_t column)
{
    float sum = out[column];
    for (uint32_t i = 0; i < picks.count; i++) {
        size_t at = (size_t)picks.places[i] * call.cols + column;
        float y = call.is_bf16 ? bt_from_bf16(((const uint16_t *)call.y)[at])
                               : ((const float *)call.y)[at];
        sum = bt_fma(picks.weights[i], y, sum);
    }
    out[column] = sum;
}

BT_KERNEL(THREADS, 8)
unpermute(const __grid_constant__ bt_cuda_unpermute call, bool wide)
{
    uint32_t row = blockIdx.x, begin = blockIdx.y * 2 * HALF;
    if (call.live && row >= *call.live)
        return;
    row_picks picks = picks_of(call, row);
    if (picks.count == 0) /* none of the run, or none of ours */
        return;
    float *out = call.out + (size_t)row * call.cols;
    uint32_t column = begin + threadIdx.x * 4;
    if (wide) {
        if (column < call.cols && call.is_bf16)
            add_wide<true>(call, picks, out, column);
        else if (column < call.cols)
            add_wide<false>(call, picks, out, column);
        return;
    }
    uint32_t end = call.cols - begin < 2 * HALF ? call.cols : begin + 2 * HALF;
    for (column = begin + threadIdx.x; column < end; column += THREADS)
        add_one(call, picks, out, column);
}

void bt_cuda_launch_unpermute(const struct bt_cuda_unpermute *call, cudaStream_t stream)
{
    bool wide = call->cols % 4 == 0 && ((uintptr_t)call->y | (uintptr_t)call->out) % 16 == 0;
    dim3 grid(call->rows, (call->cols + 2 * HALF - 1) / (2 * HALF), 1);
    bt_cuda_launch(unpermute, grid, THREADS, (size_t)call->per_row * 3 * sizeof(uint32_t), stream,
                   *call, wide);
}
