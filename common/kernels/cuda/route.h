/* Internal to this backend: routing, see moe_scores.cu and moe_topk.cu. Pointers are the device's.
 */
#ifndef BATON_COMMON_KERNELS_CUDA_ROUTE_H
#define BATON_COMMON_KERNELS_CUDA_ROUTE_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdint.h>

#define BT_CUDA_ROUTE_CHUNK 256 /* inputs whose products are one sum */
#define BT_CUDA_ROUTE_FEW_ROWS                                                                     \
    256 /* up to so many, chunks are summed apart, and a warp has a row */

/* Rows whose picks are put in order by one warp: those that one block chooses for. */
static inline uint32_t bt_cuda_route_segment_rows(uint32_t rows)
{
    return rows <= BT_CUDA_ROUTE_FEW_ROWS ? 8 : 32;
}
/* Sums of a score that are apart. */
static inline uint32_t bt_cuda_route_parts(uint32_t rows, uint32_t cols)
{
    return rows > BT_CUDA_ROUTE_FEW_ROWS || cols == 0
               ? 1
               : (cols + BT_CUDA_ROUTE_CHUNK - 1) / BT_CUDA_ROUTE_CHUNK;
}

#ifdef __cplusplus
extern "C" {
#endif

struct bt_cuda_route {
    const float *x;   /* [rows][cols] */
    const void *gate; /* [experts][cols] */
    const void *bias; /* [experts], or NULL: none, or the method has none */
    uint8_t gate_dtype, bias_dtype;
    bool is_sigmoid; /* else softmax */
    bool is_limited; /* by groups */
    bool sums_two;   /* the score of a group is that of its two best */
    bool normalize;
    float scale;
    uint32_t rows, cols, experts, per_row, groups, groups_per_row;
    uint32_t segments, segment_rows;
    const uint32_t *live; /* [1] rows that are no padding; NULL: all */
    float *parts;         /* [parts][rows][experts] */
    uint32_t part_count;
    uint32_t *counts; /* [segments][experts] of picks, then of those in segments before */
    uint32_t *done;   /* [1] blocks */
    /* bt_routing */
    uint32_t *chosen; /* [rows][per_row] */
    float *weights;
    uint32_t *order;
    uint32_t *begin;
};

/* One after the other; the last one for more than BT_CUDA_ROUTE_FEW_ROWS rows alone. */
void bt_cuda_launch_moe_scores(const struct bt_cuda_route *route, cudaStream_t stream);
void bt_cuda_launch_moe_topk(const struct bt_cuda_route *route, cudaStream_t stream);
void bt_cuda_launch_moe_order(const struct bt_cuda_route *route, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
