/* Rotary embedding of the queries; normalisation, rotation and storing of the KV. */
#include <float.h>
#include <math.h>

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

/* A token of F8_E4M3: values [lora + dim], each 128 of the latent with a scale of their own. */
static void write_f8(const float *values, const struct bt_kv_layer *kv, char *token)
{
    uint32_t lora = kv->kv_lora_rank;
    for (uint32_t first = 0; first < lora; first += BT_KV_SCALE_DIMS) {
        uint32_t end = lora - first < BT_KV_SCALE_DIMS ? lora : first + BT_KV_SCALE_DIMS;
        float max = 0;
        for (uint32_t i = first; i < end; i++)
            max = fmaxf(max, fabsf(values[i]));
        float scale = max > 0 ? fmaxf(max / 448, FLT_MIN) : 1;
        for (uint32_t i = first; i < end; i++)
            token[i] = (char)bt_f32_to_f8_e4m3(values[i] / scale);
        memcpy(token + lora + first / BT_KV_SCALE_DIMS * sizeof(scale), &scale, sizeof(scale));
    }
    for (uint32_t i = 0; i < kv->qk_rope_head_dim; i++) {
        uint16_t bits = bt_f32_to_bf16(values[lora + i]);
        memcpy(token + bt_kv_rope_offset(kv) + i * sizeof(bits), &bits, sizeof(bits));
    }
}

/* values: [lora + dim] of scratch. */
static void write_token(const float *in, const struct bt_matrix *norm, float eps, const float *cos,
                        const float *sin, const struct bt_kv_layer *kv, float *values, void *token)
{
    uint32_t lora = kv->kv_lora_rank, dim = kv->qk_rope_head_dim;
    double scale = bt_ref_rms_scale(in, lora, eps);
    for (uint32_t i = 0; i < lora; i++)
        values[i] = bt_kv_finite((float)(bt_weight_at(norm, i) * (in[i] * scale)));
    for (uint32_t i = 0; i < dim; i++)
        values[lora + i] = bt_kv_finite(rotated(in + lora, i, dim / 2, cos, sin));
    if (kv->dtype == BT_F8_E4M3) {
        write_f8(values, kv, token);
        return;
    }
    for (uint32_t i = 0; i < lora + dim; i++)
        bt_element_store(token, kv->dtype, i, values[i]);
}

void bt_ref_kv_write(struct bt_stream *stream, const float *kv_a, const struct bt_matrix *norm,
                     float eps, const struct bt_rope_table *rope,
                     const struct bt_sequence_rows *sequences, uint32_t sequence_count,
                     const struct bt_kv_layer *kv)
{
    bt_scratch_reset(stream);
    float *values = bt_scratch_take(stream, bt_kv_width(kv), sizeof(*values));
    for (uint32_t s = 0; s < sequence_count; s++) {
        for (uint32_t i = 0; i < sequences[s].row_count; i++) {
            uint32_t position = sequences[s].start + i;
            const float *cos, *sin;
            rope_at(rope, position, kv->qk_rope_head_dim, &cos, &sin);
            write_token(kv_a + (size_t)(sequences[s].first_row + i) * bt_kv_width(kv), norm, eps,
                        cos, sin, kv, values, bt_kv_token(kv, sequences[s].pages, position));
        }
    }
}
