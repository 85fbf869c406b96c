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

/* The largest value of a page, of any dtype: the largest finite bf16, to which attention in tile
 * arithmetic rounds pages of F32. */
#define BT_KV_LARGEST 0x1.fep127f

/* What kv_write stores for a value: NaN becomes 0, what is beyond BT_KV_LARGEST that. */
static inline float bt_kv_finite(float value)
{
    value = value != value ? 0.0f : value;
    value = value > BT_KV_LARGEST ? BT_KV_LARGEST : value;
    return value < -BT_KV_LARGEST ? -BT_KV_LARGEST : value;
}

/* Latent elements that share a scale in a page of F8_E4M3. */
#define BT_KV_SCALE_DIMS 128

static inline size_t bt_kv_scale_count(const struct bt_kv_layer *kv)
{
    return ((size_t)kv->kv_lora_rank + BT_KV_SCALE_DIMS - 1) / BT_KV_SCALE_DIMS;
}

/* Byte in a token where its rotated key begins; not aligned for F8_E4M3. */
static inline size_t bt_kv_rope_offset(const struct bt_kv_layer *kv)
{
    if (kv->dtype == BT_F8_E4M3)
        return kv->kv_lora_rank + bt_kv_scale_count(kv) * sizeof(float);
    return kv->kv_lora_rank * bt_dtype_bytes(kv->dtype);
}

/* Bytes of one token in a page. */
static inline size_t bt_kv_token_size(const struct bt_kv_layer *kv)
{
    size_t rope = kv->dtype == BT_F8_E4M3 ? sizeof(uint16_t) : bt_dtype_bytes(kv->dtype);
    return bt_kv_rope_offset(kv) + kv->qk_rope_head_dim * rope;
}

/* First byte of `position` of a sequence. */
static inline void *bt_kv_token(const struct bt_kv_layer *kv, const uint32_t *pages,
                                uint32_t position)
{
    size_t slot =
        (size_t)pages[position / BT_PAGE_TOKENS] * BT_PAGE_TOKENS + position % BT_PAGE_TOKENS;
    return (char *)kv->data + slot * bt_kv_token_size(kv);
}

/* Scale of latent elements 128 * block … of a token of F8_E4M3. */
static inline float bt_kv_scale(const struct bt_kv_layer *kv, const void *token, size_t block)
{
    float scale;
    memcpy(&scale, (const char *)token + kv->kv_lora_rank + block * sizeof(scale), sizeof(scale));
    return scale;
}

/* Element i of a token, latent then key, of any dtype of a pool: for F8_E4M3 the f32 product of
 * value and scale. */
static inline float bt_kv_at(const struct bt_kv_layer *kv, const void *token, size_t i)
{
    if (kv->dtype != BT_F8_E4M3)
        return bt_element_load(token, kv->dtype, i);
    if (i < kv->kv_lora_rank)
        return bt_f8_e4m3_to_f32(((const uint8_t *)token)[i]) *
               bt_kv_scale(kv, token, i / BT_KV_SCALE_DIMS);
    uint16_t bits;
    memcpy(&bits,
           (const char *)token + bt_kv_rope_offset(kv) + (i - kv->kv_lora_rank) * sizeof(bits),
           sizeof(bits));
    return bt_bf16_to_f32(bits);
}

#endif
