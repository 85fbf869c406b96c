/*
 * Grouped products (grouped_gemm.h) in f32, of weights in ROWS: F32, BF16 or F16, aligned to their
 * element alone, any shape. For models that are run in f32, for routers and for tests: no tensor
 * cores, whose f32 is not f32.
 *
 * A tile is 32 rows x 64 outputs by 128 threads, four by four each; a step is 32 inputs, which come
 * through registers one step ahead. Each output is one chain of fused multiply-adds over ascending
 * inputs, so that its bits depend on nothing but its row and its weight.
 *
 * Shared memory: 17 KiB (x and weights of a step, transposed; the list of tiles).
 * Registers: grouped_gemm_f32: <= 128 (sm_80), <= 128 (sm_90a), <= 128 (sm_100)
 * Instructions: fma.rn.f32
 * Counted: moved <= 1.01, asked <= 1.22, sectors <= 1.00, conflicts <= 1.00, products <= 16.00
 * Bound: weights at decode, FFMA above about 20 rows. Floor for H100 (3.35 TB/s; 67 TFLOP/s of
 * f32), weights of F32: router of V3 (256 x 7168), 1 row 2.2 us, 8192 rows 449 us; router of
 * V2-Lite (64 x 2048), 1 row 0.2 us, 8192 rows 32 us.
 */
#include "common/kernels/cuda/grouped_gemm.cuh"

#define THREADS 128
#define ROWS    32
#define OUTS    64
#define STEP    32
#define X_EACH  (ROWS * STEP / THREADS)
#define W_EACH  (OUTS * STEP / THREADS)
#define X_PITCH (ROWS + 1)
#define W_PITCH (OUTS + 1)
#define BLOCKS  4

struct f32_shared {
    float x[STEP * X_PITCH], w[STEP * W_PITCH]; /* [input][row], [input][output] */
    bt_grouped_plan plan;
};

/* What a thread has of a step. */
struct f32_step {
    float x[X_EACH], w[W_EACH];
};

BT_DEVICE float from_f16(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, size = half & 0x7fff;
    /* the exponent's bias is made right by a product that is exact */
    float value = bt_mul(bt_float(size << 13), 0x1p112f);
    uint32_t bits = size >= 0x7c00 ? size << 13 | 0x7f800000u : bt_bits(value);
    return bt_float(bits | sign);
}

BT_DEVICE float weight_at(const void *data, uint32_t dtype, size_t index)
{
    if (dtype == BT_F32)
        return ((const float *)data)[index];
    uint16_t half = ((const uint16_t *)data)[index];
    return dtype == BT_BF16 ? bt_from_bf16(half) : from_f16(half);
}

/* Lanes take neighbouring inputs, warps rows. */
BT_DEVICE void fetch(const bt_cuda_grouped_call &call, const bt_grouped_tile &tile, uint32_t first,
                     const uint32_t *sources, f32_step *step)
{
    const void *data = call.data[tile.weight][tile.group];
    uint32_t k = first + bt_lane();
#pragma unroll
    for (int i = 0; i < X_EACH; i++) {
        bool is_there = sources[i] != 0xffffffffu && k < call.cols;
        step->x[i] = is_there ? ((const float *)call.x)[(size_t)sources[i] * call.cols + k] : 0;
    }
#pragma unroll
    for (int i = 0; i < W_EACH; i++) {
        uint32_t out = tile.out + threadIdx.x / 32 + i * (THREADS / 32);
        bool is_there = out < call.outs && k < call.cols;
        step->w[i] = is_there ? weight_at(data, call.float_dtype, (size_t)out * call.cols + k) : 0;
    }
}

BT_DEVICE void put_step(f32_shared *shared, const f32_step *step)
{
#pragma unroll
    for (int i = 0; i < X_EACH; i++)
        shared->x[bt_lane() * X_PITCH + threadIdx.x / 32 + i * (THREADS / 32)] = step->x[i];
#pragma unroll
    for (int i = 0; i < W_EACH; i++)
        shared->w[bt_lane() * W_PITCH + threadIdx.x / 32 + i * (THREADS / 32)] = step->w[i];
}

BT_DEVICE void multiply(const f32_shared *shared, float sums[4][4])
{
    uint32_t row = threadIdx.x / 16 * 4, out = threadIdx.x % 16;
#pragma unroll 8
    for (uint32_t k = 0; k < STEP; k++) {
        float x[4], w[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            x[i] = shared->x[k * X_PITCH + row + i];
            w[i] = shared->w[k * W_PITCH + out + 16 * i];
        }
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                sums[i][j] = bt_fma(x[i], w[j], sums[i][j]);
    }
}

BT_DEVICE void put_sums(const bt_cuda_grouped_call &call, const bt_grouped_tile &tile,
                        const float sums[4][4])
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint32_t row = tile.row + threadIdx.x / 16 * 4 + i;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            uint32_t out = tile.out + threadIdx.x % 16 + 16 * j;
            size_t at = (size_t)row * call.outs + out;
            if (row >= tile.end || out >= call.outs)
                continue;
            if (call.rounds)
                ((uint16_t *)call.out[tile.weight])[at] = bt_bf16_from(sums[i][j]);
            else
                ((float *)call.out[tile.weight])[at] = sums[i][j];
        }
    }
}

BT_DEVICE void run_tile(const bt_cuda_grouped_call &call, const bt_grouped_tile &tile,
                        f32_shared *shared)
{
    float sums[4][4] = {};
    uint32_t sources[X_EACH];
    f32_step step;
#pragma unroll
    for (int i = 0; i < X_EACH; i++) {
        uint32_t row = tile.row + threadIdx.x / 32 + i * (THREADS / 32);
        sources[i] = row < tile.end ? bt_grouped_source(call, row) : 0xffffffffu;
    }
    fetch(call, tile, 0, sources, &step);
    for (uint32_t k = 0; k < call.cols; k += STEP) {
        put_step(shared, &step);
        bt_sync_block();
        fetch(call, tile, k + STEP, sources, &step);
        multiply(shared, sums);
        bt_sync_block();
    }
    put_sums(call, tile, sums);
}

BT_KERNEL(THREADS, BLOCKS)
grouped_gemm_f32(const __grid_constant__ bt_cuda_grouped_call call)
{
    f32_shared *shared = (f32_shared *)bt_shared();
    uint32_t out_strips = bt_grouped_ceil(call.outs, OUTS);
    uint32_t tiles = bt_grouped_fill_plan(&shared->plan, call, ROWS) * out_strips * call.weights;
    for (uint32_t index = blockIdx.x; index < tiles; index += gridDim.x) {
        bt_grouped_tile tile =
            bt_grouped_tile_at(&shared->plan, call, index, out_strips, ROWS, OUTS);
        if (call.data[tile.weight][tile.group])
            run_tile(call, tile, shared);
    }
}

extern "C" void bt_cuda_launch_grouped_gemm_f32(const struct bt_cuda_grouped_call *call,
                                                int multiprocessors, cudaStream_t stream)
{
    bt_cuda_launch(grouped_gemm_f32, bt_grouped_grid(call, multiprocessors, BLOCKS, ROWS, OUTS),
                   THREADS, sizeof(f32_shared), stream, *call);
}
