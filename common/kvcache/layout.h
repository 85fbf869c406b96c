/*
 * Where a token's KV lies: pool [layer][page][token], page = 64 tokens. A token of f32 or bf16 is
 * kv_lora_rank elements of the normed latent, then qk_rope_head_dim of the rotated k_pe; one of
 * f8_e4m3 has scales between them and k_pe in bf16 (see bt_kv_layer in kernels.h).
 *
 * And the fingerprint that two workers must share before one may write into the other's pages.
 */
#ifndef BATON_COMMON_KVCACHE_LAYOUT_H
#define BATON_COMMON_KVCACHE_LAYOUT_H

#include <stdint.h>

#include "common/base/status.h"
#include "common/kernels/kernels.h"
#include "common/kernels/weight.h"
#include "proto/types.pb-c.h"

#define BT_KV_LAYOUT_VERSION 1

struct bt_kv_layout {
    uint32_t layer_count;
    uint32_t kv_lora_rank;
    uint32_t qk_rope_head_dim;
    enum bt_dtype dtype;
};

static inline uint64_t bt_kv_token_bytes(const struct bt_kv_layout *layout)
{
    return bt_kv_token_size(&(struct bt_kv_layer){
        .dtype = layout->dtype,
        .kv_lora_rank = layout->kv_lora_rank,
        .qk_rope_head_dim = layout->qk_rope_head_dim,
    });
}

static inline uint64_t bt_kv_page_bytes(const struct bt_kv_layout *layout)
{
    return bt_kv_token_bytes(layout) * BT_PAGE_TOKENS;
}

/* Byte offset of (layer, page, token) in a pool of `page_count` pages. */
static inline uint64_t bt_kv_offset(const struct bt_kv_layout *layout, uint32_t page_count,
                                    uint32_t layer, uint32_t page, uint32_t token)
{
    return ((uint64_t)layer * page_count + page) * bt_kv_page_bytes(layout) +
           token * bt_kv_token_bytes(layout);
}

static inline uint64_t bt_kv_pool_bytes(const struct bt_kv_layout *layout, uint32_t page_count)
{
    return (uint64_t)layout->layer_count * page_count * bt_kv_page_bytes(layout);
}

static inline uint32_t bt_kv_pages_for(uint64_t tokens)
{
    return (uint32_t)((tokens + BT_PAGE_TOKENS - 1) / BT_PAGE_TOKENS);
}

#define BT_MODEL_NAME_SIZE 128
#define BT_ARITHMETIC_SIZE 32

struct bt_fingerprint {
    uint32_t layout_version;
    uint64_t model_hash;                 /* bt_model_hash */
    char model_name[BT_MODEL_NAME_SIZE]; /* for messages, not compared */
    char arithmetic[BT_ARITHMETIC_SIZE]; /* "float32", "bfloat16+fp8": it changes the KV's bits */
    struct bt_kv_layout layout;
};

/* BT_OK, or BT_ERR_MISMATCH with the first field that differs and both its values. */
enum bt_status bt_fingerprint_compare(const struct bt_fingerprint *ours,
                                      const struct bt_fingerprint *theirs, struct bt_error *error);

/* The message's string fields point into `fingerprint`. */
void bt_fingerprint_to_message(const struct bt_fingerprint *fingerprint,
                               Baton__V1__LayoutFingerprint *ret_message);

/* INVALID_ARGUMENT for NULL, an unknown dtype, zero or absurd dims (each named); MISMATCH for a
 * page size that is not ours. A model name that is too long is cut. */
enum bt_status bt_fingerprint_from_message(const Baton__V1__LayoutFingerprint *message,
                                           struct bt_error *error,
                                           struct bt_fingerprint *ret_fingerprint);

#endif
