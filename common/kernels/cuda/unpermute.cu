/*
 * Adds up what the experts made of each row: out[row] = fma(weight, y, out[row]) in f32, over the
 * row's picks in ascending order of experts.
 *
 * y [picks of a run][cols] bf16 or f32 -> out [rows][cols]. A block of 128 threads takes 1024
 * columns of a row, a thread eight of them. It finds the row's picks by their places and puts them
 * in order by counting how many are before each. Accesses of 16 bytes where cols is a multiple of
 * 8 and y and out are aligned so.
 *
 * Shared memory: 12 bytes a pick.
 * Registers: <= 48 (sm_80), <= 48 (sm_90a), <= 48 (sm_100)
 * Instructions: ld.global.nc.L1::no_allocate.v4.u32; st.global.v4
 * Bound: memory. Floor (H100 SXM, computed), bf16: 64 rows of V2-Lite (6 picks of 2048) 0.8 us, of
 * V3 (8 of 7168) 3.3 us; 2048 rows, of V2-Lite 25 us, of V3 105 us.
 */
#include "common/kernels/cuda/elements.cuh"
#include "common/kernels/cuda/launch.cuh"
#include "common/kernels/cuda/permute.h"

#define THREADS 128
#define EACH    8
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

BT_DEVICE void add_pair(float weight, uint32_t both, float *low, float *high)
{
    *low = bt_fma(weight, bt_bf16x2_low(both), *low);
    *high = bt_fma(weight, bt_bf16x2_high(both), *high);
}

/* Eight columns, all aligned. */
BT_DEVICE void add_wide(const bt_cuda_unpermute &call, const row_picks &picks, float *out,
                        uint32_t column)
{
    float4 low = *(float4 *)out, high = *(float4 *)(out + 4);
    for (uint32_t i = 0; i < picks.count; i++) {
        size_t at = (size_t)picks.places[i] * call.cols + column;
        float weight = picks.weights[i];
        if (call.is_bf16) {
            uint4 y = bt_load_16((const uint16_t *)call.y + at);
            add_pair(weight, y.x, &low.x, &low.y);
            add_pair(weight, y.y, &low.z, &low.w);
            add_pair(weight, y.z, &high.x, &high.y);
            add_pair(weight, y.w, &high.z, &high.w);
            continue;
        }
        uint4 y = bt_load_16((const float *)call.y + at);
        uint4 z = bt_load_16((const float *)call.y + at + 4);
        low = {bt_fma(weight, bt_float(y.x), low.x), bt_fma(weight, bt_float(y.y), low.y),
               bt_fma(weight, bt_float(y.z), low.z), bt_fma(weight, bt_float(y.w), low.w)};
        high = {bt_fma(weight, bt_float(z.x), high.x), bt_fma(weight, bt_float(z.y), high.y),
                bt_fma(weight, bt_float(z.z), high.z), bt_fma(weight, bt_float(z.w), high.w)};
    }
    *(float4 *)out = low;
    *(float4 *)(out + 4) = high;
}

BT_DEVICE void add_one(const bt_cuda_unpermute &call, const row_picks &picks, float *out,
                       uint32_t column)
{
    float sum = *out;
    for (uint32_t i = 0; i < picks.count; i++) {
        size_t at = (size_t)picks.places[i] * call.cols + column;
        float y = call.is_bf16 ? bt_from_bf16(((const uint16_t *)call.y)[at])
                               : ((const float *)call.y)[at];
        sum = bt_fma(picks.weights[i], y, sum);
    }
    *out = sum;
}

BT_KERNEL(THREADS, 8)
unpermute(const __grid_constant__ bt_cuda_unpermute call, bool wide)
{
    uint32_t row = blockIdx.x, column = (blockIdx.y * THREADS + threadIdx.x) * EACH;
    if (call.live && row >= *call.live)
        return;
    row_picks picks = picks_of(call, row);
    if (picks.count == 0) /* none of the run, or none of ours */
        return;
    float *out = call.out + (size_t)row * call.cols + column;
    if (wide) {
        if (column < call.cols)
            add_wide(call, picks, out, column);
        return;
    }
    for (uint32_t i = 0; i < EACH && column + i < call.cols; i++)
        add_one(call, picks, out + i, column + i);
}

void bt_cuda_launch_unpermute(const struct bt_cuda_unpermute *call, cudaStream_t stream)
{
    bool wide = call->cols % EACH == 0 && ((uintptr_t)call->y | (uintptr_t)call->out) % 16 == 0;
    dim3 grid(call->rows, (call->cols + THREADS * EACH - 1) / (THREADS * EACH), 1);
    bt_cuda_launch(unpermute, grid, THREADS, (size_t)call->per_row * 3 * sizeof(uint32_t), stream,
                   *call, wide);
}
