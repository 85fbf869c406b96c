/*
 * Products of rows that lie group by group, each group with a weight of its own: routed experts. A
 * row's bits are the same whatever group sizes, tiles and grid there are.
 *
 *     out[w][i][n] = sum_k x[source(i)][k] * weights[w][e][n][k]     begin[e] <= i < begin[e + 1]
 *
 * Gate and up are one launch (two weights that share x). The weights' addresses go to the device by
 * value, as parameters of the launch: nothing is cached and nothing has to be invalidated. A
 * captured graph holds them, so who switches experts captures anew.
 */
#ifndef BATON_COMMON_KERNELS_CUDA_GROUPED_GEMM_H
#define BATON_COMMON_KERNELS_CUDA_GROUPED_GEMM_H

#include <stdbool.h>

#include "common/kernels/cuda/quantise_rows.h"
#include "common/kernels/cuda/weights.h"

#define BT_CUDA_MAX_GROUPS 512

#ifdef __cplusplus
extern "C" {
#endif

/* One launch, by value. */
struct bt_cuda_grouped_call {
    const void *x;
    const float *x_scales;
    const uint32_t *picks;
    const uint32_t *begin; /* NULL: one group of `rows` */
    void *out[2];
    uint32_t rows; /* at most */
    uint32_t groups;
    uint32_t weights; /* 1 or 2 */
    uint32_t per_row;
    uint32_t cols, outs;                         /* of each weight */
    uint32_t x_pitch;                            /* elements */
    uint32_t head;                               /* of x_scales of F8_E4M3 */
    bool rounds;                                 /* out is BF16, else F32 */
    uint8_t float_dtype;                         /* of weights in ROWS */
    uint64_t scales_offset, group_scales_offset; /* from a weight's data */
    const void *data[2][BT_CUDA_MAX_GROUPS];     /* NULL: not here, rows of out stay */
};

/* multiprocessors: of the device. Small tiles where groups have few rows on average, large ones
 * elsewhere: the same bits. */
void bt_cuda_launch_grouped_gemm_bf16(const struct bt_cuda_grouped_call *call, int multiprocessors,
                                      cudaStream_t stream);
void bt_cuda_launch_grouped_gemm_f8(const struct bt_cuda_grouped_call *call, int multiprocessors,
                                    cudaStream_t stream);
void bt_cuda_launch_grouped_gemm_i8(const struct bt_cuda_grouped_call *call, int multiprocessors,
                                    cudaStream_t stream);
void bt_cuda_launch_grouped_gemm_i4(const struct bt_cuda_grouped_call *call, int multiprocessors,
                                    cudaStream_t stream);
/* Weights in ROWS of F32, BF16 or F16, x of F32. */
void bt_cuda_launch_grouped_gemm_f32(const struct bt_cuda_grouped_call *call, int multiprocessors,
                                     cudaStream_t stream);

#ifndef __cplusplus
struct bt_cuda_grouped {
    struct bt_cuda_inputs x;
    const uint32_t *picks; /* source(i) = picks[i] / per_row; NULL: i */
    uint32_t per_row;
    const struct bt_matrix *weights[2]; /* host arrays of `groups`, all of one shape and dtype;
                                         * [1] NULL: one product */
    void *out[2];                       /* [rows][weight rows], of out_dtype: F32 or BF16 */
    enum bt_dtype out_dtype;
    uint32_t groups;       /* at most BT_CUDA_MAX_GROUPS */
    const uint32_t *begin; /* [groups + 1] of the device, begin[groups] <= rows; NULL: one group */
    uint32_t rows;
};
void bt_cuda_grouped_gemm(struct bt_cuda_stream *stream, const struct bt_cuda_grouped *gemm);

/*
 * A dense product of inputs that were made for this weight (linear.c): what `linear` does, for mlp.
 * out [rows][weight rows] of F32 or BF16, aligned to 16 bytes (ROWS: to its element). Takes
 * bt_cuda_dense_bytes of the scratch at most, and gives it back.
 */
size_t bt_cuda_dense_bytes(uint32_t outs);
void bt_cuda_dense(struct bt_cuda_stream *stream, const struct bt_cuda_inputs *x, uint32_t rows,
                   const struct bt_matrix *weight, enum bt_dtype out_dtype, void *out);
#endif

#ifdef __cplusplus
}
#endif

#endif
