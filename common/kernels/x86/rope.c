/* Rotary embedding of the queries; normalisation, rotation and storing of the KV. */
#include "common/kernels/stream.h"
#include "common/kernels/weight.h"
#include "common/kernels/x86/tables.h"

/* out [2 * half] = x [2 * half] turned, pairs to halves; out is not x. */
static void rotate(const float *x, const struct bt_rope_table *rope, uint32_t position, float *out)
{
    size_t half = rope->half_dim;
    const float *cos = rope->cos + position * half, *sin = rope->sin + position * half;
    BT_ASSERT(position < rope->max_position);
    for (size_t i = 0; i < half; i++) {
        float even = x[2 * i], odd = x[2 * i + 1];
        out[i] = even * cos[i] - odd * sin[i];
        out[i + half] = odd * cos[i] + even * sin[i];
    }
}

void BT_X86_NAME(rope_q)(struct bt_stream *stream, float *q, const struct bt_mla_shape *shape,
                         const struct bt_rope_table *rope, const struct bt_sequence_rows *sequences,
                         uint32_t sequence_count)
{
    size_t dim = shape->qk_rope_head_dim, head_dim = shape->qk_nope_head_dim + dim;
    BT_ASSERT(rope->half_dim * 2 == dim);
    bt_scratch_reset(stream);
    float *turned = bt_scratch_take(stream, dim, sizeof(*turned));

    for (uint32_t s = 0; s < sequence_count; s++) {
        for (uint32_t i = 0; i < sequences[s].row_count; i++) {
            float *row = q + (size_t)(sequences[s].first_row + i) * shape->heads * head_dim;
            for (uint32_t h = 0; h < shape->heads; h++) {
                float *x = row + h * head_dim + shape->qk_nope_head_dim;
                rotate(x, rope, sequences[s].start + i, turned);
                memcpy(x, turned, dim * sizeof(*x));
            }
        }
    }
}

static void store(const float *x, size_t count, enum bt_dtype dtype, void *token, size_t at)
{
    for (size_t i = 0; i < count; i++)
        bt_element_store(token, dtype, at + i, x[i]);
}

void BT_X86_NAME(kv_write)(struct bt_stream *stream, const float *kv_a,
                           const struct bt_matrix *norm, float eps,
                           const struct bt_rope_table *rope,
                           const struct bt_sequence_rows *sequences, uint32_t sequence_count,
                           const struct bt_kv_layer *kv)
{
    size_t lora = kv->kv_lora_rank, dim = kv->qk_rope_head_dim;
    BT_ASSERT(rope->half_dim * 2 == dim);
    bt_scratch_reset(stream);
    float *latent = bt_scratch_take(stream, lora, sizeof(*latent));
    float *turned = bt_scratch_take(stream, dim, sizeof(*turned));

    for (uint32_t s = 0; s < sequence_count; s++) {
        for (uint32_t i = 0; i < sequences[s].row_count; i++) {
            const float *in = kv_a + (sequences[s].first_row + i) * (lora + dim);
            uint32_t position = sequences[s].start + i;
            void *token = bt_kv_token(kv, sequences[s].pages, position);
            BT_X86_NAME(rms_norm_row)(in, lora, norm, eps, latent);
            rotate(in + lora, rope, position, turned);
            store(latent, lora, kv->dtype, token, 0);
            store(turned, dim, kv->dtype, token, lora);
        }
    }
}
