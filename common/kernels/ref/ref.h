/*
 * The reference backend: what each operation means, in plain C with double accumulation. Every
 * other backend is checked against it; nothing here is meant to be fast. One file per family.
 */
#ifndef BATON_COMMON_KERNELS_REF_REF_H
#define BATON_COMMON_KERNELS_REF_REF_H

#include "common/kernels/kernels.h"

extern const struct bt_kernels bt_kernels_ref;

/* The largest scratch of one operation within the limits. */
size_t bt_ref_scratch_bytes(const struct bt_stream_limits *limits);

/* sum_k x[k] * row[k], row of `count` elements of `dtype`, k ascending. */
double bt_ref_dot(const float *x, const void *row, enum bt_dtype dtype, size_t count);

/* The same with x in double. */
double bt_ref_dot_double(const double *x, const void *row, enum bt_dtype dtype, size_t count);

/* sums[i]: the same of x + i * stride, for each of `rows`. */
void bt_ref_dots(const double *x, size_t stride, size_t rows, const float *row, size_t count,
                 double *sums);

/*
 * Turns a row of activations [count] into what products with `weight` take, in place. ROWS: as it
 * is. TILES: rounded to f32, and then to bf16; or for I8 and I4 to n * step, step = max |x| / 127,
 * at least FLT_MIN, and n = x / step as an integer, quotients f32, ties to even. Then a row with a
 * NaN or an infinity is all NaN.
 */
void bt_ref_take_input(double *x, size_t count, const struct bt_matrix *weight);

/* sum_k x[k] * weight[row][k], k ascending, of either layout, x as bt_ref_take_input left it. */
double bt_ref_product(const double *x, const struct bt_matrix *weight, size_t row);

/* value, or rounded to bf16 where the weights are in TILES. */
double bt_ref_round_for(const struct bt_matrix *weight, double value);

/* x / (1 + e^-x) */
double bt_ref_silu(double x);

/* 1 / sqrt(mean(x²) + eps) */
double bt_ref_rms_scale(const float *x, uint32_t dim, float eps);

void bt_ref_embed(struct bt_stream *stream, const struct bt_matrix *table, const uint32_t *tokens,
                  uint32_t rows, float *out);
void bt_ref_rms_norm(struct bt_stream *stream, const float *x, uint32_t rows, uint32_t dim,
                     uint32_t stride, const struct bt_matrix *weight, float eps, float *out);
void bt_ref_add_rms_norm(struct bt_stream *stream, float *x, const float *y, uint32_t rows,
                         uint32_t dim, const struct bt_matrix *weight, float eps, float *out);
void bt_ref_linear(struct bt_stream *stream, const float *x, uint32_t rows,
                   const struct bt_linear *linears, uint32_t linear_count);
void bt_ref_mlp(struct bt_stream *stream, const float *x, uint32_t rows, const struct bt_mlp *mlp,
                float *out);
void bt_ref_add(struct bt_stream *stream, float *x, const float *y, size_t count);
void bt_ref_zero(struct bt_stream *stream, float *x, size_t count);
void bt_ref_gather_rows(struct bt_stream *stream, float *x, uint32_t dim, const uint32_t *wanted,
                        uint32_t count);
void bt_ref_rope_q(struct bt_stream *stream, float *q, const struct bt_mla_shape *shape,
                   const struct bt_rope_table *rope, const struct bt_sequence_rows *sequences,
                   uint32_t sequence_count);
void bt_ref_kv_write(struct bt_stream *stream, const float *kv_a, const struct bt_matrix *norm,
                     float eps, const struct bt_rope_table *rope,
                     const struct bt_sequence_rows *sequences, uint32_t sequence_count,
                     const struct bt_kv_layer *kv);
void bt_ref_mla_prefill(struct bt_stream *stream, const float *q, const struct bt_mla_shape *shape,
                        const struct bt_matrix *kv_b, const struct bt_sequence_rows *sequences,
                        uint32_t sequence_count, const struct bt_kv_layer *kv, float *out);
void bt_ref_mla_decode(struct bt_stream *stream, const float *q, const struct bt_mla_shape *shape,
                       const struct bt_matrix *kv_b, const struct bt_sequence_rows *sequences,
                       uint32_t sequence_count, const struct bt_kv_layer *kv, float *out);
void bt_ref_moe_route(struct bt_stream *stream, const float *x, uint32_t rows,
                      const struct bt_matrix *gate, const struct bt_matrix *bias,
                      const struct bt_route_shape *shape, const struct bt_routing *routing);
void bt_ref_moe_experts(struct bt_stream *stream, const float *x, uint32_t rows,
                        const struct bt_route_shape *shape, const struct bt_routing *routing,
                        const struct bt_expert_weights *expert_weights, float *out);
void bt_ref_moe_expert_rows(struct bt_stream *stream, const float *x, uint32_t rows,
                            const struct bt_route_shape *shape, const struct bt_routing *routing,
                            const struct bt_expert_weights *expert_weights, void *y);

/* Scratch of one call of the families that need any. */
size_t bt_ref_linear_scratch_bytes(const struct bt_stream_limits *limits);
size_t bt_ref_mla_scratch_bytes(const struct bt_stream_limits *limits);
size_t bt_ref_moe_scratch_bytes(const struct bt_stream_limits *limits);

#endif
