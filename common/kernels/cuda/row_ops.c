/* Operations on rows: embedding, norms, sums, rotation, and the write of the KV. */
#include "common/kernels/cuda/elementwise.h"
#include "common/kernels/cuda/embed.h"
#include "common/kernels/cuda/gather_rows.h"
#include "common/kernels/cuda/kv_write.h"
#include "common/kernels/cuda/rms_norm.h"
#include "common/kernels/cuda/rope_q.h"
#include "common/kernels/cuda/table.h"
#include "common/kernels/weight.h"

/* What a launch left behind becomes the stream's. */
static void end(struct bt_cuda_stream *stream)
{
    (void)bt_cuda_ok(stream, cudaGetLastError());
}

void bt_cuda_embed(struct bt_stream *base, const struct bt_matrix *table, const uint32_t *tokens,
                   uint32_t rows, float *out)
{
    struct bt_cuda_stream *stream = bt_cuda_stream(base);
    if (rows == 0)
        return;
    const uint32_t *list = bt_cuda_list_of(stream, tokens, rows);
    if (!bt_cuda_is_fine(stream))
        return;
    bt_cuda_launch_embed(table->data, table->dtype, list, rows, table->cols, out, stream->stream);
    end(stream);
}

void bt_cuda_rms_norm(struct bt_stream *base, const float *x, uint32_t rows, uint32_t dim,
                      uint32_t stride, const struct bt_matrix *weight, float eps, float *out)
{
    struct bt_cuda_stream *stream = bt_cuda_stream(base);
    if (!bt_cuda_is_fine(stream))
        return;
    bt_cuda_launch_rms_norm(x, rows, dim, stride, weight->data, weight->dtype, eps, out,
                            stream->stream);
    end(stream);
}

void bt_cuda_add_rms_norm(struct bt_stream *base, float *x, const float *y, uint32_t rows,
                          uint32_t dim, const struct bt_matrix *weight, float eps, float *out)
{
    struct bt_cuda_stream *stream = bt_cuda_stream(base);
    if (!bt_cuda_is_fine(stream))
        return;
    bt_cuda_launch_add_rms_norm(x, y, rows, dim, weight->data, weight->dtype, eps, out,
                                stream->stream);
    end(stream);
}

void bt_cuda_add(struct bt_stream *base, float *x, const float *y, size_t count)
{
    struct bt_cuda_stream *stream = bt_cuda_stream(base);
    if (!bt_cuda_is_fine(stream))
        return;
    bt_cuda_launch_add(x, y, count, stream->stream);
    end(stream);
}

void bt_cuda_zero(struct bt_stream *base, float *x, size_t count)
{
    struct bt_cuda_stream *stream = bt_cuda_stream(base);
    if (!bt_cuda_is_fine(stream))
        return;
    bt_cuda_launch_zero(x, count, stream->stream);
    end(stream);
}

void bt_cuda_gather_rows(struct bt_stream *base, float *x, uint32_t dim, const uint32_t *wanted,
                         uint32_t count)
{
    struct bt_cuda_stream *stream = bt_cuda_stream(base);
    if (count == 0)
        return;
    const uint32_t *list = bt_cuda_list_of(stream, wanted, count);
    if (!bt_cuda_is_fine(stream))
        return;
    bt_cuda_launch_gather_rows(x, dim, list, count, stream->stream);
    end(stream);
}

static void check_positions(const struct bt_rope_table *rope, uint32_t dim,
                            const struct bt_sequence_rows *sequences, uint32_t sequence_count)
{
    BT_ASSERT(rope->half_dim * 2 == dim);
    for (uint32_t s = 0; s < sequence_count; s++)
        BT_ASSERT(sequences[s].row_count == 0 ||
                  (uint64_t)sequences[s].start + sequences[s].row_count <= rope->max_position);
}

void bt_cuda_rope_q(struct bt_stream *base, float *q, const struct bt_mla_shape *shape,
                    const struct bt_rope_table *rope, const struct bt_sequence_rows *sequences,
                    uint32_t sequence_count)
{
    struct bt_cuda_stream *stream = bt_cuda_stream(base);
    check_positions(rope, shape->qk_rope_head_dim, sequences, sequence_count);
    struct bt_cuda_rows rows = bt_cuda_rows_of(stream, sequences, sequence_count);
    if (!bt_cuda_is_fine(stream))
        return;
    bt_cuda_launch_rope_q(q, rows.rows, shape->heads, shape->qk_nope_head_dim,
                          shape->qk_rope_head_dim, rows.position, rope->cos, rope->sin,
                          stream->stream);
    end(stream);
}

void bt_cuda_kv_write(struct bt_stream *base, const float *kv_a, const struct bt_matrix *norm,
                      float eps, const struct bt_rope_table *rope,
                      const struct bt_sequence_rows *sequences, uint32_t sequence_count,
                      const struct bt_kv_layer *kv)
{
    struct bt_cuda_stream *stream = bt_cuda_stream(base);
    check_positions(rope, kv->qk_rope_head_dim, sequences, sequence_count);
    struct bt_cuda_rows rows = bt_cuda_rows_of(stream, sequences, sequence_count);
    if (!bt_cuda_is_fine(stream))
        return;
    struct bt_cuda_kv_write call = {.kv_a = kv_a,
                                    .norm = norm->data,
                                    .norm_dtype = norm->dtype,
                                    .eps = eps,
                                    .cosines = rope->cos,
                                    .sines = rope->sin,
                                    .lora = kv->kv_lora_rank,
                                    .rope = kv->qk_rope_head_dim,
                                    .pool = kv->data,
                                    .dtype = kv->dtype,
                                    .token_bytes = (uint32_t)bt_kv_token_size(kv),
                                    .rope_offset = (uint32_t)bt_kv_rope_offset(kv)};
    bt_cuda_launch_kv_write(&call, &rows, stream->stream);
    end(stream);
}

/* None: lists and sequences that were not staged are rows.c's matter. */
size_t bt_cuda_row_ops_scratch(const struct bt_cuda_stream *stream)
{
    (void)stream;
    return 0;
}
