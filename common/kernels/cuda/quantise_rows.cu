/*
 * Rows of f32 as inputs of products: bf16, e4m3 with a scale for every 128, int8 with a scale for a
 * row (quantise_rows.h). Row i may be any row of x, so that rows are expanded for their experts on
 * the way.
 *
 * quantise_wide (bf16, e4m3): a block of 128 threads takes 512 inputs of a row, a thread four of
 * them, a warp the 128 of a scale. quantise_int8: a block of 256 threads takes a row, twice: its
 * largest magnitude, then its elements. Any cols; 16-byte loads where rows are aligned to them.
 *
 * Shared memory: none; 1024 bytes (int8: a word for each thread).
 * Registers: quantise_wide: <= 40 (sm_80), <= 40 (sm_90a), <= 40 (sm_100)
 * Registers: quantise_int8: <= 40 (sm_80), <= 40 (sm_90a), <= 40 (sm_100)
 * Instructions: ld.global.nc.L1::no_allocate.v4
 * Counted: quantise_int8: moved <= 1.01, asked <= 1.81, sectors <= 1.00, conflicts <= 1.00
 * Counted: quantise_wide: moved <= 1.01, asked <= 1.05, sectors <= 1.00
 * Bound: memory; at decode the launch. Floor for H100 at 3.35 TB/s, 8192 rows to bf16: V2-Lite
 * (2048, 101 MB) 30 us, V3 (7168, 352 MB) 105 us; to e4m3 or int8 5/6 of it.
 */
#include "common/kernels/cuda/launch.cuh"
#include "common/kernels/cuda/quantise.cuh"
#include "common/kernels/cuda/quantise_rows.h"

#define WIDE_THREADS 128
#define INT8_THREADS 256

/* By value. */
struct quantise_call {
    const float *x;
    const uint32_t *picks, *live;
    unsigned char *data;
    float *scales;
    uint32_t per_row, rows, cols, pitch, head;
    bool is_f8;
};

BT_DEVICE bool is_live(const quantise_call &call, uint32_t row)
{
    return row < call.rows && (!call.live || row < *call.live);
}

/* Inputs k … k + 3 of a row, zeros past the last. */
BT_DEVICE float4 load_four(const quantise_call &call, const float *from, uint32_t k)
{
    float values[4];
    if (k + 4 <= call.cols && (uintptr_t)(from + k) % 16 == 0) {
        uint4 all = bt_load_16(from + k);
        return make_float4(bt_float(all.x), bt_float(all.y), bt_float(all.z), bt_float(all.w));
    }
#pragma unroll
    for (uint32_t i = 0; i < 4; i++)
        values[i] = k + i < call.cols ? from[k + i] : 0;
    return make_float4(values[0], values[1], values[2], values[3]);
}

BT_KERNEL(WIDE_THREADS, 8)
quantise_wide(const __grid_constant__ quantise_call call)
{
    uint32_t row = blockIdx.x, k = (blockIdx.y * WIDE_THREADS + threadIdx.x) * 4;
    float4 four = make_float4(0, 0, 0, 0);
    if (k >= call.pitch) /* whole warps of e4m3: its pitch is a multiple of 128 */
        return;
    if (is_live(call, row)) {
        size_t source = call.picks ? call.picks[row] / call.per_row : row;
        four = load_four(call, call.x + source * call.cols, k);
    }
    size_t at = (size_t)row * call.pitch + k;
    if (!call.is_f8) {
        *(uint2 *)(call.data + at * 2) = {bt_bf16x2_from(four.x, four.y),
                                          bt_bf16x2_from(four.z, four.w)};
        return;
    }
    uint32_t bits = largest_of_warp(largest(four));
    float scale = scale_of(bits, 448);
    *(uint32_t *)(call.data + at) = bits >= INFINITE ? 0 : e4m3_of(four, scale);
    if (bt_lane() == 0)
        call.scales[bt_cuda_scale_at(call.head, call.pitch / 128, row, k / 128)] = scale;
}

BT_KERNEL(INT8_THREADS, 4)
quantise_int8(const __grid_constant__ quantise_call call)
{
    uint32_t *warps = (uint32_t *)bt_shared();
    uint32_t row = blockIdx.x, bits = 0;
    bool live = is_live(call, row);
    size_t source = live && call.picks ? call.picks[row] / call.per_row : row;
    const float *from = call.x + source * call.cols;
    for (uint32_t k = threadIdx.x * 4; live && k < call.cols; k += INT8_THREADS * 4)
        bits = larger(bits, largest(load_four(call, from, k)));
    bits = largest_of_warp(bits);
    if (bt_lane() == 0)
        warps[threadIdx.x / 32] = bits;
    bt_sync_block();
    bits = largest_of_warp(warps[bt_lane() % (INT8_THREADS / 32)]);
    float scale = scale_of(bits, 127);
    for (uint32_t k = threadIdx.x * 4; k < call.pitch; k += INT8_THREADS * 4) {
        uint32_t packed = 0;
        if (live && bits < INFINITE) {
            float4 four = load_four(call, from, k);
            packed = int8_of(four.x, scale) | int8_of(four.y, scale) << 8 |
                     int8_of(four.z, scale) << 16 | int8_of(four.w, scale) << 24;
        }
        *(uint32_t *)(call.data + (size_t)row * call.pitch + k) = packed;
    }
    if (threadIdx.x == 0)
        call.scales[row] = scale;
}

extern "C" void bt_cuda_launch_quantise_rows(const float *x, const uint32_t *picks,
                                             uint32_t per_row, uint32_t rows, const uint32_t *live,
                                             const struct bt_cuda_inputs *inputs,
                                             cudaStream_t stream)
{
    quantise_call call = {x,
                          picks,
                          live,
                          (unsigned char *)inputs->data,
                          inputs->scales,
                          per_row,
                          rows,
                          inputs->cols,
                          inputs->pitch,
                          inputs->head,
                          inputs->dtype == BT_F8_E4M3};
    unsigned parts = (inputs->pitch / 4 + WIDE_THREADS - 1) / WIDE_THREADS;
    unsigned padded = call.is_f8 ? (rows + 3) / 4 * 4 : rows;
    if (inputs->dtype == BT_I8)
        bt_cuda_launch(quantise_int8, rows, INT8_THREADS, INT8_THREADS / 32 * sizeof(uint32_t),
                       stream, call);
    else
        bt_cuda_launch(quantise_wide, dim3(padded, parts), WIDE_THREADS, 0, stream, call);
}
