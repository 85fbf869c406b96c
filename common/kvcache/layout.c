#include "common/kvcache/layout.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* Far above any model of the family, far below where sizes overflow 64 bits. */
#define LAYERS_MAX       1024
#define KV_LORA_RANK_MAX 65536
#define ROPE_DIM_MAX     65536

static enum bt_status differs(struct bt_error *error, const char *field, uint64_t ours,
                              uint64_t theirs)
{
    return bt_error_set(error, BT_ERR_MISMATCH, "%s differs: ours is %" PRIu64 ", theirs %" PRIu64,
                        field, ours, theirs);
}

enum bt_status bt_fingerprint_compare(const struct bt_fingerprint *ours,
                                      const struct bt_fingerprint *theirs, struct bt_error *error)
{
    const struct bt_kv_layout *a = &ours->layout, *b = &theirs->layout;

    if (ours->layout_version != theirs->layout_version)
        return differs(error, "layout_version", ours->layout_version, theirs->layout_version);
    if (a->dtype != b->dtype)
        return bt_error_set(error, BT_ERR_MISMATCH, "kv_dtype differs: ours is %s, theirs %s",
                            bt_dtype_name(a->dtype), bt_dtype_name(b->dtype));
    if (a->layer_count != b->layer_count)
        return differs(error, "layer_count", a->layer_count, b->layer_count);
    if (a->kv_lora_rank != b->kv_lora_rank)
        return differs(error, "kv_lora_rank", a->kv_lora_rank, b->kv_lora_rank);
    if (a->qk_rope_head_dim != b->qk_rope_head_dim)
        return differs(error, "qk_rope_head_dim", a->qk_rope_head_dim, b->qk_rope_head_dim);
    if (strcmp(ours->arithmetic, theirs->arithmetic) != 0)
        return bt_error_set(error, BT_ERR_MISMATCH, "arithmetic differs: ours is %s, theirs %s",
                            ours->arithmetic, theirs->arithmetic);
    if (ours->model_hash != theirs->model_hash)
        return bt_error_set(
            error, BT_ERR_MISMATCH,
            "model_hash differs: ours is %016" PRIx64 " (%s), theirs %016" PRIx64 " (%s)",
            ours->model_hash, ours->model_name, theirs->model_hash, theirs->model_name);
    return BT_OK;
}

void bt_fingerprint_to_message(const struct bt_fingerprint *fingerprint,
                               Baton__V1__LayoutFingerprint *ret_message)
{
    baton__v1__layout_fingerprint__init(ret_message);
    ret_message->layout_version = fingerprint->layout_version;
    ret_message->model_hash = fingerprint->model_hash;
    ret_message->model_name = (char *)fingerprint->model_name;
    ret_message->arithmetic = (char *)fingerprint->arithmetic;
    ret_message->kv_dtype = (char *)bt_dtype_name(fingerprint->layout.dtype);
    ret_message->page_tokens = BT_PAGE_TOKENS;
    ret_message->layer_count = fingerprint->layout.layer_count;
    ret_message->kv_lora_rank = fingerprint->layout.kv_lora_rank;
    ret_message->qk_rope_head_dim = fingerprint->layout.qk_rope_head_dim;
}

static enum bt_status check_dim(struct bt_error *error, const char *field, uint32_t value,
                                uint32_t max)
{
    if (value == 0 || value > max)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "fingerprint: %s is %" PRIu32 ", not in 1..%" PRIu32, field, value,
                            max);
    return BT_OK;
}

static enum bt_status read_dtype(const char *name, struct bt_error *error, enum bt_dtype *ret_dtype)
{
    static const enum bt_dtype known[] = {BT_F32, BT_BF16, BT_F8_E4M3};

    for (size_t i = 0; name != NULL && i < sizeof(known) / sizeof(known[0]); i++) {
        if (strcmp(name, bt_dtype_name(known[i])) == 0) {
            *ret_dtype = known[i];
            return BT_OK;
        }
    }
    return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                        "fingerprint: kv_dtype is '%.32s', not f32, bf16 or f8_e4m3",
                        name == NULL ? "" : name);
}

static enum bt_status read_arithmetic(const char *name, struct bt_error *error, char *ret_name)
{
    size_t length = name == NULL ? 0 : strlen(name);

    if (length == 0 || length >= BT_ARITHMETIC_SIZE ||
        strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_+") != length)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "fingerprint: arithmetic is no name such as float32 or bfloat16");
    memcpy(ret_name, name, length + 1);
    return BT_OK;
}

enum bt_status bt_fingerprint_from_message(const Baton__V1__LayoutFingerprint *message,
                                           struct bt_error *error,
                                           struct bt_fingerprint *ret_fingerprint)
{
    struct bt_fingerprint result;
    enum bt_status status;

    if (message == NULL)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "fingerprint: missing");
    memset(&result, 0, sizeof(result));
    status = check_dim(error, "layout_version", message->layout_version, UINT32_MAX);
    if (status == BT_OK)
        status = read_dtype(message->kv_dtype, error, &result.layout.dtype);
    if (status == BT_OK)
        status = read_arithmetic(message->arithmetic, error, result.arithmetic);
    if (status == BT_OK)
        status = check_dim(error, "layer_count", message->layer_count, LAYERS_MAX);
    if (status == BT_OK)
        status = check_dim(error, "kv_lora_rank", message->kv_lora_rank, KV_LORA_RANK_MAX);
    if (status == BT_OK)
        status = check_dim(error, "qk_rope_head_dim", message->qk_rope_head_dim, ROPE_DIM_MAX);
    if (status == BT_OK && message->page_tokens != BT_PAGE_TOKENS)
        status = differs(error, "page_tokens", BT_PAGE_TOKENS, message->page_tokens);
    if (status != BT_OK)
        return status;

    result.layout_version = message->layout_version;
    result.model_hash = message->model_hash;
    snprintf(result.model_name, sizeof(result.model_name), "%s",
             message->model_name == NULL ? "" : message->model_name);
    result.layout.layer_count = message->layer_count;
    result.layout.kv_lora_rank = message->kv_lora_rank;
    result.layout.qk_rope_head_dim = message->qk_rope_head_dim;
    *ret_fingerprint = result;
    return BT_OK;
}
