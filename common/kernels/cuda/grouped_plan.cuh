/*
 * What grouped products (grouped_gemm.h) of all architectures share: the list of tiles, which
 * follows from the groups' row counts alone, rows' sources, and the order in shared memory.
 *
 * For each group that has a weight, for each strip of outputs, its strips of rows, so that
 * neighbours share a weight. A block stays and takes tiles blockIdx.x, + gridDim.x, …
 *
 * In shared memory a row of 128 bytes has its 16-byte chunks in the order chunk ^ row % 8: ldmatrix
 * meets no bank twice, and wgmma calls it a swizzle of 128 bytes.
 */
#ifndef BATON_COMMON_KERNELS_CUDA_GROUPED_PLAN_CUH
#define BATON_COMMON_KERNELS_CUDA_GROUPED_PLAN_CUH

#include <type_traits>

#include "common/kernels/cuda/grouped_gemm.h"
#include "common/kernels/cuda/instructions.cuh"
#include "common/kernels/cuda/launch.cuh"

enum bt_grouped_kind { BT_GROUPED_BF16, BT_GROUPED_F8, BT_GROUPED_I8, BT_GROUPED_I4 };

#define BT_MEMBER __device__ __forceinline__

#define BT_GROUPED_STEP 128 /* bytes of a row of x */

/* Where the list of tiles is kept, and the scales of F8. */
struct bt_grouped_plan {
    uint32_t begin[BT_CUDA_MAX_GROUPS + 1];
    uint32_t strips[BT_CUDA_MAX_GROUPS + 1]; /* strips of rows of all groups before */
};

/* One tile. */
struct bt_grouped_tile {
    uint32_t group, weight;
    uint32_t row, end; /* its first row, the end of its group */
    uint32_t out;      /* its first output */
};

BT_DEVICE uint32_t bt_grouped_ceil(uint32_t count, uint32_t each)
{
    return (count + each - 1) / each;
}

/* The number of strips of rows, of `each` rows. */
BT_DEVICE uint32_t bt_grouped_fill_plan(struct bt_grouped_plan *plan,
                                        const bt_cuda_grouped_call &call, uint32_t each)
{
    for (uint32_t e = threadIdx.x; e <= call.groups; e += blockDim.x)
        plan->begin[e] = call.begin ? call.begin[e] : e ? call.rows : 0;
    bt_sync_block();
    if (threadIdx.x < 32) {
        uint32_t some = call.groups / 32 | 1; /* odd: lanes meet different banks */
        some += some * 32 < call.groups ? 2 : 0;
        uint32_t first = bt_lane() * some, sum = 0;
        for (uint32_t e = first; e < first + some && e < call.groups; e++) {
            plan->strips[e] = sum;
            if (call.data[0][e])
                sum += bt_grouped_ceil(plan->begin[e + 1] - plan->begin[e], each);
        }
        uint32_t before = sum;
        for (uint32_t by = 1; by < 32; by *= 2) {
            uint32_t other = bt_shuffle_up(before, by);
            before += bt_lane() >= by ? other : 0;
        }
        for (uint32_t e = first; e < first + some && e < call.groups; e++)
            plan->strips[e] += before - sum;
        if (bt_lane() == 31)
            plan->strips[call.groups] = before;
    }
    bt_sync_block();
    return plan->strips[call.groups];
}

/* Tile `index` of the list. `blocks` of a cluster take as many neighbouring strips of outputs of
 * the same rows at once, of both weights; then its weight may be call.weights: there is none. */
BT_DEVICE bt_grouped_tile bt_grouped_tile_at(const struct bt_grouped_plan *plan,
                                             const bt_cuda_grouped_call &call, uint32_t index,
                                             uint32_t out_strips, uint32_t rows, uint32_t outs,
                                             uint32_t blocks = 1, uint32_t rank = 0)
{
    uint32_t columns = bt_grouped_ceil(out_strips * call.weights, blocks);
    uint32_t low = 0, high = call.groups; /* the last group that begins at or before the tile */
    while (high - low > 1) {
        uint32_t middle = (low + high) / 2;
        if (plan->strips[middle] * columns <= index)
            low = middle;
        else
            high = middle;
    }
    uint32_t strips = plan->strips[low + 1] - plan->strips[low];
    uint32_t left = index - plan->strips[low] * columns;
    uint32_t out_strip = left / strips * blocks + rank;
    bt_grouped_tile tile;
    tile.group = low;
    tile.weight = out_strip / out_strips;
    tile.row = plan->begin[low] + left % strips * rows;
    tile.end = plan->begin[low + 1];
    tile.out = out_strip % out_strips * outs;
    return tile;
}

BT_DEVICE uint32_t bt_grouped_source(const bt_cuda_grouped_call &call, uint32_t row)
{
    return call.picks ? call.picks[row] / call.per_row : row;
}

/* Byte of a chunk of a row in shared memory. */
BT_DEVICE uint32_t bt_grouped_at(uint32_t row, uint32_t chunk)
{
    return row * BT_GROUPED_STEP + ((chunk ^ (row & 7)) << 4);
}

/* Tiles that there can be, of `cluster` blocks each. */
static inline uint64_t bt_grouped_tiles(const bt_cuda_grouped_call *call, uint32_t rows,
                                        uint32_t outs, uint32_t cluster)
{
    /* strips of rows at most: whole ones, and one more for each group that has any */
    uint64_t groups = call->groups < call->rows ? call->groups : call->rows;
    uint64_t strips = call->rows / rows + groups;
    uint64_t columns = (uint64_t)((call->outs + outs - 1) / outs) * call->weights;
    return strips * ((columns + cluster - 1) / cluster);
}

/* Blocks of a launch: as many as stay at once, and no more than there can be tiles. */
static inline unsigned bt_grouped_grid(const bt_cuda_grouped_call *call, int multiprocessors,
                                       int blocks_each, uint32_t rows, uint32_t outs)
{
    uint64_t tiles = bt_grouped_tiles(call, rows, outs, 1);
    uint64_t blocks = (uint64_t)multiprocessors * blocks_each;
    return (unsigned)(tiles < blocks ? tiles : blocks);
}

#endif
