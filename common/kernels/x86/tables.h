/* The operations of one x86 table, named for the instruction set this file is compiled for. */
#ifndef BATON_COMMON_KERNELS_X86_TABLES_H
#define BATON_COMMON_KERNELS_X86_TABLES_H

#include "common/kernels/kernels.h"
#include "common/kernels/x86/lanes.h"

/*
 * Arithmetic of f32. There are two of it, bt_avx2_ and bt_avx512_, and BT_X86_ROWS is the one that
 * this file's table uses: the tables beyond avx512 share its.
 */
void BT_X86_ROWS(embed)(struct bt_stream *stream, const struct bt_matrix *table,
                        const uint32_t *tokens, uint32_t rows, float *out);
void BT_X86_ROWS(rms_norm)(struct bt_stream *stream, const float *x, uint32_t rows, uint32_t dim,
                           uint32_t stride, const struct bt_matrix *weight, float eps, float *out);
void BT_X86_ROWS(add_rms_norm)(struct bt_stream *stream, float *x, const float *y, uint32_t rows,
                               uint32_t dim, const struct bt_matrix *weight, float eps, float *out);
void BT_X86_ROWS(add)(struct bt_stream *stream, float *x, const float *y, size_t count);
void BT_X86_ROWS(zero)(struct bt_stream *stream, float *x, size_t count);
void BT_X86_ROWS(gather_rows)(struct bt_stream *stream, float *x, uint32_t dim,
                              const uint32_t *wanted, uint32_t count);
void BT_X86_ROWS(swiglu)(const float *gate, const float *up, size_t count, float *out);
void BT_X86_ROWS(rope_q)(struct bt_stream *stream, float *q, const struct bt_mla_shape *shape,
                         const struct bt_rope_table *rope, const struct bt_sequence_rows *sequences,
                         uint32_t sequence_count);
void BT_X86_ROWS(kv_write)(struct bt_stream *stream, const float *kv_a,
                           const struct bt_matrix *norm, float eps,
                           const struct bt_rope_table *rope,
                           const struct bt_sequence_rows *sequences, uint32_t sequence_count,
                           const struct bt_kv_layer *kv);
void BT_X86_ROWS(moe_route)(struct bt_stream *stream, const float *x, uint32_t rows,
                            const struct bt_matrix *gate, const struct bt_matrix *bias,
                            const struct bt_route_shape *shape, const struct bt_routing *routing);
void BT_X86_ROWS(rows_linear)(struct bt_stream *stream, const float *x, uint32_t rows,
                              const struct bt_matrix *weight, float *out);
void BT_X86_ROWS(rows_mlp)(struct bt_stream *stream, const float *x, uint32_t rows,
                           const struct bt_mlp *mlp, float *out);
void BT_X86_ROWS(rows_mla_prefill)(struct bt_stream *stream, const float *q,
                                   const struct bt_mla_shape *shape, const struct bt_matrix *kv_b,
                                   const struct bt_sequence_rows *sequences,
                                   uint32_t sequence_count, const struct bt_kv_layer *kv,
                                   float *out);
void BT_X86_ROWS(rows_mla_decode)(struct bt_stream *stream, const float *q,
                                  const struct bt_mla_shape *shape, const struct bt_matrix *kv_b,
                                  const struct bt_sequence_rows *sequences, uint32_t sequence_count,
                                  const struct bt_kv_layer *kv, float *out);
void BT_X86_ROWS(rows_moe_experts)(struct bt_stream *stream, const float *x, uint32_t rows,
                                   const struct bt_route_shape *shape,
                                   const struct bt_routing *routing,
                                   const struct bt_expert_weights *expert_weights, float *out);
void BT_X86_ROWS(rows_moe_expert_rows)(struct bt_stream *stream, const float *x, uint32_t rows,
                                       const struct bt_route_shape *shape,
                                       const struct bt_routing *routing,
                                       const struct bt_expert_weights *expert_weights, float *y);

/* Each table's own: ROWS go to the operations above, TILES are multiplied by x86/gemm.h. */
void BT_X86_NAME(linear)(struct bt_stream *stream, const float *x, uint32_t rows,
                         const struct bt_linear *linears, uint32_t linear_count);
void BT_X86_NAME(mlp)(struct bt_stream *stream, const float *x, uint32_t rows,
                      const struct bt_mlp *mlp, float *out);
void BT_X86_NAME(mla_prefill)(struct bt_stream *stream, const float *q,
                              const struct bt_mla_shape *shape, const struct bt_matrix *kv_b,
                              const struct bt_sequence_rows *sequences, uint32_t sequence_count,
                              const struct bt_kv_layer *kv, float *out);
void BT_X86_NAME(mla_decode)(struct bt_stream *stream, const float *q,
                             const struct bt_mla_shape *shape, const struct bt_matrix *kv_b,
                             const struct bt_sequence_rows *sequences, uint32_t sequence_count,
                             const struct bt_kv_layer *kv, float *out);
void BT_X86_NAME(moe_experts)(struct bt_stream *stream, const float *x, uint32_t rows,
                              const struct bt_route_shape *shape, const struct bt_routing *routing,
                              const struct bt_expert_weights *expert_weights, float *out);
void BT_X86_NAME(moe_expert_rows)(struct bt_stream *stream, const float *x, uint32_t rows,
                                  const struct bt_route_shape *shape,
                                  const struct bt_routing *routing,
                                  const struct bt_expert_weights *expert_weights, void *y);

/* out [dim] = weight * (x * rsqrt(mean(x²) + eps)); out may be x. */
void BT_X86_ROWS(rms_norm_row)(const float *x, size_t dim, const struct bt_matrix *weight,
                               float eps, float *out);

/* x / (1 + e^-x) */
BT_INLINE struct bt_v16 bt_v16_silu(struct bt_v16 x)
{
    struct bt_v16 one = bt_v16_set(1.0f);
    return bt_v16_div(x, bt_v16_add(one, bt_v16_exp(bt_v16_sub(bt_v16_zero(), x))));
}

#endif
