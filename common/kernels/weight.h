/* Access to single elements and rows of a weight matrix and of KV pages. */
#ifndef BATON_COMMON_KERNELS_WEIGHT_H
#define BATON_COMMON_KERNELS_WEIGHT_H

#include "common/kernels/kernels.h"

static inline float bt_element_load(const void *data, enum bt_dtype dtype, size_t index)
{
    if (dtype == BT_F32)
        return ((const float *)data)[index];
    uint16_t bits = ((const uint16_t *)data)[index];
    return dtype == BT_BF16 ? bt_bf16_to_f32(bits) : bt_f16_to_f32(bits);
}

/* dtype is one of a pool: BT_F32 or BT_BF16. */
static inline void bt_element_store(void *data, enum bt_dtype dtype, size_t index, float value)
{
    if (dtype == BT_F32)
        ((float *)data)[index] = value;
    else
        ((uint16_t *)data)[index] = bt_f32_to_bf16(value);
}

/* `index` counts over the whole matrix: row * cols + col. */
static inline float bt_weight_at(const struct bt_matrix *matrix, size_t index)
{
    return bt_element_load(matrix->data, matrix->dtype, index);
}

static inline const void *bt_weight_row(const struct bt_matrix *matrix, size_t row)
{
    return (const char *)matrix->data + row * matrix->cols * bt_dtype_bytes(matrix->dtype);
}

/* Elements of one token in a page. */
static inline size_t bt_kv_width(const struct bt_kv_layer *kv)
{
    return (size_t)kv->kv_lora_rank + kv->qk_rope_head_dim;
}

/* First element of `position` of a sequence. */
static inline void *bt_kv_token(const struct bt_kv_layer *kv, const uint32_t *pages,
                                uint32_t position)
{
    size_t slot =
        (size_t)pages[position / BT_PAGE_TOKENS] * BT_PAGE_TOKENS + position % BT_PAGE_TOKENS;
    return (char *)kv->data + slot * bt_kv_width(kv) * bt_dtype_bytes(kv->dtype);
}

#endif
