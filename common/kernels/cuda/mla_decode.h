/*
 * Kernels of the absorbed form of MLA, each with its head in its .cu. All pointers are the
 * device's. A group is at most BT_CUDA_PIECE_ROWS rows of a batch, from a multiple of that on.
 *
 *     queries -> (product with kv_b's keys) -> pieces -> combine -> (product with its values)
 *
 * Of pieces there are three, which one is a function of the shape and the device:
 *     mla_decode_wgmma   sm_90; kv_lora_rank 512, qk_rope_head_dim 64; pools of BF16 and F8_E4M3
 *     mla_decode         kv_lora_rank 512 or 64, qk_rope_head_dim a multiple of 8 up to 64
 *     mla_decode_plain   any shape, and arithmetic in f32
 */
#ifndef BATON_COMMON_KERNELS_CUDA_MLA_DECODE_H
#define BATON_COMMON_KERNELS_CUDA_MLA_DECODE_H

#include <cuda_runtime_api.h>

#include "common/kernels/cuda/rows.h"
#include "common/kernels/dtype.h"

#ifdef __cplusplus
extern "C" {
#endif

/* As in bt_mla_shape. */
struct bt_cuda_mla_dims {
    uint32_t heads, nope, rope, v, lora;
};

/* kv_b in ROWS, as bt_matrix: F32, BF16, F16, or F8_E4M3 with scales. */
struct bt_cuda_mla_weights {
    const void *data;
    enum bt_dtype dtype;
    const float *scales;
};

/* Attention of one group. Passed to kernels by value. */
struct bt_cuda_mla_decode {
    struct bt_cuda_rows rows;
    uint32_t first_row, row_count; /* of the group */
    bool is_rounded;               /* tile arithmetic: queries and results BF16; else F32 */
    uint32_t heads, kv_lora_rank, qk_rope_head_dim;
    float scale; /* softmax_scale * log2 e */
    /* [row of the group][head][query_pitch]: in latent space, then the rotated part, then 0 */
    const void *queries;
    uint32_t query_pitch;
    const void *pages; /* a layer of a pool */
    enum bt_dtype pool;
    uint32_t token_bytes;
    /* Of rows with several pieces, [piece of the group][head]: weighted sums [kv_lora_rank], and
     * what they are relative to: the maximum (scaled) and the sum of weights. */
    float *sums, *states;
    void *results; /* [row of the group][head][result_pitch] */
    uint32_t result_pitch;
};

/* Weighted sums of each row's pieces: to results where the row has a single one. */
void bt_cuda_launch_mla_decode(const struct bt_cuda_mla_decode *call, uint32_t blocks,
                               cudaStream_t stream);
void bt_cuda_launch_mla_decode_plain(const struct bt_cuda_mla_decode *call, uint32_t blocks,
                                     cudaStream_t stream);

/* results of the other rows, and zeros for padding and what results_pitch is too wide. */
void bt_cuda_launch_mla_combine(const struct bt_cuda_mla_decode *call, cudaStream_t stream);

/*
 * q [row][head][nope + rope] in f32 to bf16: nope parts to nope_out [row][head][nope_pitch],
 * rotated ones to queries [row][head][query_pitch] from `lora` on; both padded with zeros.
 */
void bt_cuda_launch_mla_queries(const float *q, uint32_t rows, struct bt_cuda_mla_dims dims,
                                uint16_t *nope_out, uint32_t nope_pitch, uint16_t *queries,
                                uint32_t query_pitch, cudaStream_t stream);

/* With kv_b in ROWS: queries [row][head][query_pitch] in f32, and out [row][head][v] of results in
 * f32. */
void bt_cuda_launch_mla_absorb(const float *q, uint32_t rows, struct bt_cuda_mla_dims dims,
                               struct bt_cuda_mla_weights kv_b, float *queries,
                               uint32_t query_pitch, cudaStream_t stream);
void bt_cuda_launch_mla_give_back(const float *results, uint32_t result_pitch, uint32_t rows,
                                  struct bt_cuda_mla_dims dims, struct bt_cuda_mla_weights kv_b,
                                  float *out, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
