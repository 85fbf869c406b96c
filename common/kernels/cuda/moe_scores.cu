/*
 * Scores of experts before softmax or sigmoid: x · gate^T in f32.
 *
 * x [rows][cols] f32, gate [experts][cols] of F32, BF16 or F16, aligned to its element. A score is
 * the sum, in order, of sums of 256 inputs, each a chain of fused multiply-adds over ascending
 * inputs. A tile is 64 experts by 16 rows (up to 256 rows) or 32 (beyond), 128 threads of 2 x 4 or
 * 4 x 4 scores. Of few rows each block makes one sum of 256 inputs, which moe_topk.cu adds up; of
 * many it makes all of them and adds them up itself: the same bits. It also clears the count of
 * blocks that moe_topk.cu keeps.
 *
 * Shared memory: 32 inputs of a tile, transposed: 11.3 KB or 13.3 KB.
 * Registers: <= 128 (sm_80), <= 128 (sm_90a), <= 128 (sm_100)
 * Instructions: ld.global.v2.u32; ld.shared.v4.f32; fma.rn.f32
 * Counted: moved <= 1.03, asked <= 1.41, sectors <= 1.04, conflicts <= 1.41, products <= 16.00
 * Bound: FFMA from 16 rows on, the gate below. Floor (H100 SXM, 67 TFLOP/s of f32, computed):
 * V2-Lite (64 x 2048, BF16) 1 row 0.1 us, 64 rows 0.3 us, 2048 rows 8 us; V3 (256 x 7168) 1 row 1.1
 * us, 64 rows 3.5 us, 2048 rows 112 us.
 */
#include "common/kernels/cuda/elements.cuh"
#include "common/kernels/cuda/launch.cuh"
#include "common/kernels/cuda/route.h"

#define THREADS 128
#define STEP    32
#define EXPERTS 64
#define E_PITCH (EXPERTS + 4)

/* Of `Each` rows a thread. */
template <uint32_t Each> struct score_tile {
    static constexpr uint32_t rows = 8 * Each, pitch = rows + 4;
    float x[STEP * pitch], gate[STEP * E_PITCH]; /* [input][row], [input][expert] */
};

/* A thread's part of the next step's inputs, four in a row each. */
template <uint32_t Each> struct score_fetch {
    float4 x[Each / 2], gate[4];
};

/* Inputs first … first + 31, zeros from `end` on. Eight threads beside each other take a row. */
template <enum bt_dtype Type, uint32_t Each>
BT_DEVICE void fetch(const bt_cuda_route &route, uint32_t row, uint32_t expert, uint32_t first,
                     bool wide, score_fetch<Each> *to)
{
    uint32_t at = first + threadIdx.x % 8 * 4, own = threadIdx.x / 8;
    for (uint32_t i = 0; i < Each / 2; i++) {
        uint32_t r = row + own + 16 * i, count = r < route.rows ? route.cols : 0;
        to->x[i] =
            bt_elements_of<BT_F32>(route.x + (size_t)r * route.cols, at, count, wide && at < count);
    }
    for (uint32_t i = 0; i < 4; i++) {
        uint32_t e = expert + own + 16 * i, count = e < route.experts ? route.cols : 0;
        const char *gate = (const char *)route.gate;
        gate += (size_t)e * route.cols * (Type == BT_F32 ? 4 : 2);
        to->gate[i] = bt_elements_of<Type>(gate, at, count, wide && at < count);
    }
}

BT_DEVICE void put_column(float *to, uint32_t pitch, float4 four)
{
    to[0] = four.x;
    to[pitch] = four.y;
    to[2 * pitch] = four.z;
    to[3 * pitch] = four.w;
}

template <uint32_t Each> BT_DEVICE void put(const score_fetch<Each> &from, score_tile<Each> *tile)
{
    uint32_t k = threadIdx.x % 8 * 4, own = threadIdx.x / 8;
    for (uint32_t i = 0; i < Each / 2; i++)
        put_column(tile->x + k * tile->pitch + own + 16 * i, tile->pitch, from.x[i]);
    for (uint32_t i = 0; i < 4; i++)
        put_column(tile->gate + k * E_PITCH + own + 16 * i, E_PITCH, from.gate[i]);
}

template <uint32_t Each> BT_DEVICE void multiply(const score_tile<Each> &tile, float sums[Each][4])
{
    uint32_t row = threadIdx.x / 16 * Each, expert = threadIdx.x % 16 * 4;
#pragma unroll 8
    for (uint32_t k = 0; k < STEP; k++) {
        float4 gate = *(const float4 *)(tile.gate + k * E_PITCH + expert);
        float x[Each];
        for (uint32_t i = 0; i < Each; i++)
            x[i] = tile.x[k * tile.pitch + row + i];
        for (uint32_t i = 0; i < Each; i++) {
            sums[i][0] = bt_fma(x[i], gate.x, sums[i][0]);
            sums[i][1] = bt_fma(x[i], gate.y, sums[i][1]);
            sums[i][2] = bt_fma(x[i], gate.z, sums[i][2]);
            sums[i][3] = bt_fma(x[i], gate.w, sums[i][3]);
        }
    }
}

/* The first sum is the total; those after it are added. */
template <uint32_t Each>
BT_DEVICE void take_sums(float sums[Each][4], bool is_first, float totals[Each][4])
{
    for (uint32_t i = 0; i < Each; i++)
        for (uint32_t j = 0; j < 4; j++) {
            totals[i][j] = is_first ? sums[i][j] : bt_add(totals[i][j], sums[i][j]);
            sums[i][j] = 0;
        }
}

template <enum bt_dtype Type, uint32_t Each>
BT_KERNEL(THREADS, 4)
moe_scores(const __grid_constant__ bt_cuda_route route, bool wide)
{
    score_tile<Each> *tile = (score_tile<Each> *)bt_shared();
    uint32_t row = blockIdx.x * tile->rows, expert = blockIdx.y * EXPERTS;
    uint32_t begin = blockIdx.z * BT_CUDA_ROUTE_CHUNK, end = begin + BT_CUDA_ROUTE_CHUNK;
    float sums[Each][4] = {}, totals[Each][4] = {};
    score_fetch<Each> next;
    if (threadIdx.x == 0 && blockIdx.x + blockIdx.y + blockIdx.z == 0)
        *route.done = 0;
    if (gridDim.z == 1 || end > route.cols)
        end = route.cols;
    fetch<Type>(route, row, expert, begin, wide, &next);
    for (uint32_t k = begin; k < end; k += STEP) {
        bt_sync_block();
        put(next, tile);
        bt_sync_block();
        if (k + STEP < end)
            fetch<Type>(route, row, expert, k + STEP, wide, &next);
        multiply(*tile, sums);
        if (k + STEP >= end || (k + STEP) % BT_CUDA_ROUTE_CHUNK == 0)
            take_sums<Each>(sums, k < begin + BT_CUDA_ROUTE_CHUNK, totals);
    }
    row += threadIdx.x / 16 * Each;
    expert += threadIdx.x % 16 * 4;
    for (uint32_t i = 0; i < Each && row + i < route.rows; i++) {
        float *out = route.parts + ((size_t)blockIdx.z * route.rows + row + i) * route.experts;
        float4 four = {totals[i][0], totals[i][1], totals[i][2], totals[i][3]};
        bt_elements_store(out, expert, route.experts, false, four);
    }
}

template <enum bt_dtype Type, uint32_t Each>
static void launch(const struct bt_cuda_route *route, cudaStream_t stream)
{
    uint32_t rows = score_tile<Each>::rows;
    bool wide = route->cols % 8 == 0 && ((uintptr_t)route->x | (uintptr_t)route->gate) % 16 == 0;
    dim3 grid((route->rows + rows - 1) / rows, (route->experts + EXPERTS - 1) / EXPERTS,
              route->part_count);
    bt_cuda_launch(moe_scores<Type, Each>, grid, THREADS, sizeof(score_tile<Each>), stream, *route,
                   wide);
}

template <enum bt_dtype Type>
static void launch_for(const struct bt_cuda_route *route, cudaStream_t stream)
{
    if (route->rows <= BT_CUDA_ROUTE_FEW_ROWS)
        launch<Type, 2>(route, stream);
    else
        launch<Type, 4>(route, stream);
}

void bt_cuda_launch_moe_scores(const struct bt_cuda_route *route, cudaStream_t stream)
{
    if (route->gate_dtype == BT_F32)
        launch_for<BT_F32>(route, stream);
    else if (route->gate_dtype == BT_BF16)
        launch_for<BT_BF16>(route, stream);
    else
        launch_for<BT_F16>(route, stream);
}
