/*
 * The operations of kernels.h on a GPU, and what scratch each file of them needs. Host code. Of
 * buffers, activations, routing and weights are the device's; sequences, tokens and lists of rows
 * are the host's (rows.h).
 */
#ifndef BATON_COMMON_KERNELS_CUDA_TABLE_H
#define BATON_COMMON_KERNELS_CUDA_TABLE_H

#include "common/kernels/cuda/stream.h"

extern const struct bt_kernels bt_kernels_cuda;

/* pack.c */
size_t bt_cuda_packed_bytes(const struct bt_matrix *matrix, enum bt_use use,
                            const struct bt_mla_shape *shape);
void bt_cuda_pack(struct bt_stream *stream, const struct bt_matrix *matrix, enum bt_use use,
                  const struct bt_mla_shape *shape, void *out, struct bt_matrix *ret_packed);

/* row_ops.c */
void bt_cuda_embed(struct bt_stream *stream, const struct bt_matrix *table, const uint32_t *tokens,
                   uint32_t rows, float *out);
void bt_cuda_rms_norm(struct bt_stream *stream, const float *x, uint32_t rows, uint32_t dim,
                      uint32_t stride, const struct bt_matrix *weight, float eps, float *out);
void bt_cuda_add_rms_norm(struct bt_stream *stream, float *x, const float *y, uint32_t rows,
                          uint32_t dim, const struct bt_matrix *weight, float eps, float *out);
void bt_cuda_add(struct bt_stream *stream, float *x, const float *y, size_t count);
void bt_cuda_zero(struct bt_stream *stream, float *x, size_t count);
void bt_cuda_gather_rows(struct bt_stream *stream, float *x, uint32_t dim, const uint32_t *wanted,
                         uint32_t count);
void bt_cuda_rope_q(struct bt_stream *stream, float *q, const struct bt_mla_shape *shape,
                    const struct bt_rope_table *rope, const struct bt_sequence_rows *sequences,
                    uint32_t sequence_count);
void bt_cuda_kv_write(struct bt_stream *stream, const float *kv_a, const struct bt_matrix *norm,
                      float eps, const struct bt_rope_table *rope,
                      const struct bt_sequence_rows *sequences, uint32_t sequence_count,
                      const struct bt_kv_layer *kv);
size_t bt_cuda_row_ops_scratch(const struct bt_cuda_stream *stream);

/* linear.c, mlp.c */
void bt_cuda_linear(struct bt_stream *stream, const float *x, uint32_t rows,
                    const struct bt_linear *linears, uint32_t linear_count);
void bt_cuda_mlp(struct bt_stream *stream, const float *x, uint32_t rows, const struct bt_mlp *mlp,
                 float *out);
size_t bt_cuda_linear_scratch(const struct bt_cuda_stream *stream);
size_t bt_cuda_mlp_scratch(const struct bt_cuda_stream *stream);
/* False: no memory, or no cuBLASLt. */
bool bt_cuda_products_create(struct bt_cuda_stream *stream);
void bt_cuda_products_destroy(struct bt_cuda_stream *stream);

/*
 * One product that cuBLASLt makes, for the other files, batched over `batch`, always with the one
 * algorithm that the shape (n, k, strides, dtypes) has, so that a row's bits do not depend on m:
 *     out [b][m][n] = sum_k x [b][m][k] * weight [b][n][k]      (weight_is_k_major)
 *     out [b][m][n] = sum_k x [b][m][k] * weight [b][k][n]      (else)
 * Row pitches and distances of batches in elements. x and weight: BF16, or F32 both; out: F32 or
 * BF16. No addition to what is in out.
 */
struct bt_cuda_product {
    enum bt_dtype in, out_dtype;
    uint32_t m, n, k, batch;
    const void *x, *weight;
    void *out;
    uint32_t x_pitch, weight_pitch, out_pitch;
    size_t x_distance, weight_distance, out_distance;
    bool weight_is_k_major;
};
void bt_cuda_product(struct bt_cuda_stream *stream, const struct bt_cuda_product *product);

/* mla_prefill_ops.c, mla_decode_ops.c */
void bt_cuda_mla_prefill(struct bt_stream *stream, const float *q, const struct bt_mla_shape *shape,
                         const struct bt_matrix *kv_b, const struct bt_sequence_rows *sequences,
                         uint32_t sequence_count, const struct bt_kv_layer *kv, float *out);
void bt_cuda_mla_decode(struct bt_stream *stream, const float *q, const struct bt_mla_shape *shape,
                        const struct bt_matrix *kv_b, const struct bt_sequence_rows *sequences,
                        uint32_t sequence_count, const struct bt_kv_layer *kv, float *out);
size_t bt_cuda_mla_prefill_scratch(const struct bt_cuda_stream *stream);
size_t bt_cuda_mla_decode_scratch(const struct bt_cuda_stream *stream);

/* route_ops.c */
void bt_cuda_moe_route(struct bt_stream *stream, const float *x, uint32_t rows,
                       const struct bt_matrix *gate, const struct bt_matrix *bias,
                       const struct bt_route_shape *shape, const struct bt_routing *routing);
size_t bt_cuda_route_scratch(const struct bt_cuda_stream *stream);
/* moe_ops.c */
void bt_cuda_moe_experts(struct bt_stream *stream, const float *x, uint32_t rows,
                         const struct bt_route_shape *shape, const struct bt_routing *routing,
                         const struct bt_expert_weights *expert_weights, float *out);
void bt_cuda_moe_expert_rows(struct bt_stream *stream, const float *x, uint32_t rows,
                             const struct bt_route_shape *shape, const struct bt_routing *routing,
                             const struct bt_expert_weights *expert_weights, void *y);
size_t bt_cuda_moe_scratch(const struct bt_cuda_stream *stream);

/* sample_ops.c */
void bt_cuda_draw(struct bt_stream *stream, float *logits, uint32_t rows, uint32_t vocab_size,
                  const struct bt_draw *draws, const struct bt_adjust *adjusts, uint32_t *tokens,
                  struct bt_logprobs *logprobs);
size_t bt_cuda_draw_scratch(const struct bt_cuda_stream *stream);

/* page_hash.c */
void bt_cuda_hash_pages(struct bt_stream *stream, const void *base,
                        const struct bt_page_span *spans, uint32_t count, uint64_t *sums);

#endif
