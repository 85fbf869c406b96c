/*
 * silu(gate) * up, as the inputs of the product that comes next: f32, bf16, e4m3 with a scale for
 * every 128, int8 with a scale for a row (quantise_rows.h).
 *
 * gate, up [rows][cols] f32. silu_wide (all but int8): a block of 128 threads takes 512 elements of
 * a row, a thread four of them, a warp the 128 of a scale. silu_int8: a block of 256 threads takes
 * a row: its largest magnitude, then its elements; of the columns behind 2048 it works twice.
 * Blocks stay and take rows in turn, so that rows which there could be and are not, as of other
 * ranks, cost next to nothing. Any cols; 16-byte loads where rows are aligned to them.
 *
 * Shared memory: none; 32 bytes (int8).
 * Registers: silu_wide: <= 40 (sm_80), <= 40 (sm_90a), <= 40 (sm_100)
 * Registers: silu_int8: <= 48 (sm_80), <= 48 (sm_90a), <= 48 (sm_100)
 * Instructions: ld.global.v4
 * Counted: silu_wide: moved <= 1.01, asked <= 1.06, sectors <= 1.00
 * Counted: silu_int8: moved <= 1.01, asked <= 1.13, sectors <= 1.00, conflicts <= 1.00
 * Bound: memory, mostly L2 at decode. Floor (H100 SXM, computed), f32 to bf16, 10 bytes an element:
 * 64 rows of V2-Lite, 384 picks of 1408: 1.6 us; of V3, 512 picks of 2048: 3.1 us; 2048 rows, of
 * V2-Lite 52 us, of V3 100 us.
 */
#include "common/kernels/cuda/elements.cuh"
#include "common/kernels/cuda/launch.cuh"
#include "common/kernels/cuda/quantise.cuh"
#include "common/kernels/cuda/silu.h"

#define WIDE_THREADS 128
#define INT8_THREADS 256
#define KEPT         2 /* fours of a thread that are read once: of 2048 columns */
/* Of a multiprocessor, as many as its registers hold. */
#define WIDE_BLOCKS 12
#define INT8_BLOCKS 5

/* By value. */
struct silu_call {
    const float *gate, *up;
    const uint32_t *live;
    unsigned char *data;
    float *scales;
    uint32_t rows, cols, pitch, head;
    bool wide;
};

BT_DEVICE float silu_of(float gate, float up)
{
    return bt_mul(bt_divide(gate, bt_add(1, bt_exp(-gate))), up);
}

/* Elements k … k + 3 of a row, zeros past the last. */
BT_DEVICE float4 four_of(const silu_call &call, uint32_t row, uint32_t k)
{
    size_t at = (size_t)row * call.cols;
    uint32_t cols = row < call.rows ? call.cols : 0;
    float4 gate = bt_elements_of<BT_F32>(call.gate + at, k, cols, call.wide && k < cols);
    float4 up = bt_elements_of<BT_F32>(call.up + at, k, cols, call.wide && k < cols);
    return make_float4(silu_of(gate.x, up.x), silu_of(gate.y, up.y), silu_of(gate.z, up.z),
                       silu_of(gate.w, up.w));
}

/* Rows behind the last are zeros: some are multiplied with it. */
BT_DEVICE bool is_left(const silu_call &call, uint32_t row, uint32_t live)
{
    return row >= live && row < call.rows;
}

BT_DEVICE uint32_t live_rows(const silu_call &call)
{
    return call.live ? *call.live : call.rows;
}

/* Elements k … k + 3 of a row as inputs. Whole warps of e4m3. */
template <enum bt_dtype Type>
BT_DEVICE void put_four(const silu_call &call, uint32_t row, uint32_t k, float4 four)
{
    size_t at = (size_t)row * call.pitch + k;
    if (Type == BT_F32) {
        bt_elements_store((float *)call.data + at - k, k, call.cols, call.wide, four);
    } else if (Type == BT_BF16) {
        *(uint2 *)(call.data + at * 2) = {bt_bf16x2_from(four.x, four.y),
                                          bt_bf16x2_from(four.z, four.w)};
    } else {
        uint32_t bits = largest_of_warp(largest(four));
        float scale = scale_of(bits, 448);
        *(uint32_t *)(call.data + at) = bits >= INFINITE ? 0 : e4m3_of(four, scale);
        if (bt_lane() == 0)
            call.scales[bt_cuda_scale_at(call.head, call.pitch / 128, row, k / 128)] = scale;
    }
}

/* rows: with those behind the last. */
template <enum bt_dtype Type>
BT_KERNEL(WIDE_THREADS, 8)
silu_wide(const __grid_constant__ silu_call call, uint32_t rows)
{
    uint32_t k = (blockIdx.y * WIDE_THREADS + threadIdx.x) * 4;
    if (k >= call.pitch) /* whole warps of e4m3: its pitch is such */
        return;
    uint32_t live = live_rows(call);
    for (uint32_t row = blockIdx.x; row < rows; row += gridDim.x)
        if (!is_left(call, row, live))
            put_four<Type>(call, row, k, four_of(call, row, k));
}

/* Four elements as inputs. */
BT_DEVICE void put_bytes(const silu_call &call, uint32_t row, uint32_t k, float4 four, float scale,
                         bool is_finite)
{
    uint32_t packed = int8_of(four.x, scale) | int8_of(four.y, scale) << 8 |
                      int8_of(four.z, scale) << 16 | int8_of(four.w, scale) << 24;
    *(uint32_t *)(call.data + (size_t)row * call.pitch + k) = is_finite ? packed : 0;
}

/* warps [8] of shared memory. */
BT_DEVICE void put_int8(const silu_call &call, uint32_t row, uint32_t *warps)
{
    const uint32_t step = INT8_THREADS * 4, begin = threadIdx.x * 4;
    uint32_t bits = 0;
    float4 kept[KEPT];
#pragma unroll
    for (uint32_t i = 0; i < KEPT; i++) {
        kept[i] = make_float4(0, 0, 0, 0);
        if (begin + i * step < call.cols)
            kept[i] = four_of(call, row, begin + i * step);
        bits = larger(bits, largest(kept[i]));
    }
    for (uint32_t k = begin + KEPT * step; k < call.cols; k += step)
        bits = larger(bits, largest(four_of(call, row, k)));
    bits = largest_of_warp(bits);
    if (bt_lane() == 0)
        warps[threadIdx.x / 32] = bits;
    bt_sync_block();
    bits = largest_of_warp(warps[bt_lane() % (INT8_THREADS / 32)]);
    float scale = scale_of(bits, 127);
#pragma unroll
    for (uint32_t i = 0; i < KEPT; i++)
        if (begin + i * step < call.pitch)
            put_bytes(call, row, begin + i * step, kept[i], scale, bits < INFINITE);
    for (uint32_t k = begin + KEPT * step; k < call.pitch; k += step)
        put_bytes(call, row, k, four_of(call, row, k), scale, bits < INFINITE);
    if (threadIdx.x == 0)
        call.scales[row] = scale;
    bt_sync_block(); /* warps have been read */
}

BT_KERNEL(INT8_THREADS, INT8_BLOCKS) silu_int8(const __grid_constant__ silu_call call)
{
    uint32_t *warps = (uint32_t *)bt_shared(), live = live_rows(call);
    for (uint32_t row = blockIdx.x; row < call.rows; row += gridDim.x)
        if (!is_left(call, row, live))
            put_int8(call, row, warps);
}

/* Blocks in x, of which `each` stay on a multiprocessor with the others of their rows. */
static unsigned blocks_of(uint32_t rows, unsigned parts, int multiprocessors, unsigned each)
{
    unsigned most = ((unsigned)multiprocessors * each + parts - 1) / parts;
    return rows < most ? rows : most;
}

void bt_cuda_launch_silu(const float *gate, const float *up, uint32_t rows, const uint32_t *live,
                         const struct bt_cuda_inputs *inputs, int multiprocessors,
                         cudaStream_t stream)
{
    silu_call call = {gate,
                      up,
                      live,
                      (unsigned char *)inputs->data,
                      inputs->scales,
                      rows,
                      inputs->cols,
                      inputs->pitch,
                      inputs->head,
                      inputs->cols % 4 == 0 &&
                          ((uintptr_t)gate | (uintptr_t)up | (uintptr_t)inputs->data) % 16 == 0};
    uint32_t padded = inputs->dtype == BT_F8_E4M3 ? (rows + 3) / 4 * 4 : rows;
    unsigned parts = ((inputs->pitch + 3) / 4 + WIDE_THREADS - 1) / WIDE_THREADS;
    dim3 grid(blocks_of(padded, parts, multiprocessors, WIDE_BLOCKS), parts, 1);
    if (inputs->dtype == BT_I8)
        bt_cuda_launch(silu_int8, blocks_of(rows, 1, multiprocessors, INT8_BLOCKS), INT8_THREADS,
                       INT8_THREADS / 32 * sizeof(uint32_t), stream, call);
    else if (inputs->dtype == BT_F32)
        bt_cuda_launch(silu_wide<BT_F32>, grid, WIDE_THREADS, 0, stream, call, padded);
    else if (inputs->dtype == BT_BF16)
        bt_cuda_launch(silu_wide<BT_BF16>, grid, WIDE_THREADS, 0, stream, call, padded);
    else
        bt_cuda_launch(silu_wide<BT_F8_E4M3>, grid, WIDE_THREADS, 0, stream, call, padded);
}
