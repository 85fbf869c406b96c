/* Rotary embedding of the queries; normalisation, rotation and storing of the KV. */
#include "common/kernels/ref/ref.h"
#include "common/kernels/stream.h"
#include "common/kernels/weight.h"

static void rope_at(const struct bt_rope_table *rope, uint32_t position, uint32_t dim,
                    const float **ret_cos, const float **ret_sin)
{
    BT_ASSERT(position < rope->max_position && rope->half_dim * 2 == dim);
    *ret_cos = rope->cos + (size_t)position * rope->half_dim;
    *ret_sin = rope->sin + (size_t)position * rope->half_dim;
}

static float rotated(const float *x, uint32_t i, uint32_t half, const float *cos, const float *sin)
{
    uint32_t pair = i % half;
    double even = x[2 * pair], odd = x[2 * pair + 1];
    return (float)(i < half ? even * cos[pair] - odd * sin[pair]
                            : odd * cos[pair] + even * sin[pair]);
}

void bt_ref_rope_q(struct bt_stream *stream, float *q, const struct bt_mla_shape *shape,
                   const struct bt_rope_table *rope, const struct bt_sequence_rows *sequences,
                   uint32_t sequence_count)
{
    uint32_t dim = shape->qk_rope_head_dim;
    size_t head_dim = (size_t)shape->qk_nope_head_dim + dim;
    bt_scratch_reset(stream);
    float *turned = bt_scratch_take(stream, dim, sizeof(*turned));

    for (uint32_t s = 0; s < sequence_count; s++) {
        for (uint32_t i = 0; i < sequences[s].row_count; i++) {
            const float *cos, *sin;
            rope_at(rope, sequences[s].start + i, dim, &cos, &sin);
            float *row = q + (size_t)(sequences[s].first_row + i) * shape->heads * head_dim;
            for (uint32_t h = 0; h < shape->heads; h++) {
                float *x = row + h * head_dim + shape->qk_nope_head_dim;
                for (uint32_t j = 0; j < dim; j++)
                    turned[j] = rotated(x, j, dim / 2, cos, sin);
                memcpy(x, turned, dim * sizeof(*x));
            }
        }
    }
}

static void write_token(const float *in, const struct bt_matrix *norm, float eps, const float *cos,
                        const float *sin, const struct bt_kv_layer *kv, void *token)
{
    uint32_t lora = kv->kv_lora_rank, dim = kv->qk_rope_head_dim;
    double scale = bt_ref_rms_scale(in, lora, eps);
    for (uint32_t i = 0; i < lora; i++)
        bt_element_store(token, kv->dtype, i, (float)(bt_weight_at(norm, i) * (in[i] * scale)));
    for (uint32_t i = 0; i < dim; i++)
        bt_element_store(token, kv->dtype, lora + i, rotated(in + lora, i, dim / 2, cos, sin));
}

void bt_ref_kv_write(struct bt_stream *stream, const float *kv_a, const struct bt_matrix *norm,
                     float eps, const struct bt_rope_table *rope,
                     const struct bt_sequence_rows *sequences, uint32_t sequence_count,
                     const struct bt_kv_layer *kv)
{
    (void)stream;
    for (uint32_t s = 0; s < sequence_count; s++) {
        for (uint32_t i = 0; i < sequences[s].row_count; i++) {
            uint32_t position = sequences[s].start + i;
            const float *cos, *sin;
            rope_at(rope, position, kv->qk_rope_head_dim, &cos, &sin);
            write_token(kv_a + (size_t)(sequences[s].first_row + i) * bt_kv_width(kv), norm, eps,
                        cos, sin, kv, bt_kv_token(kv, sequences[s].pages, position));
        }
    }
}
