#include "common/planner/planner.h"

static const char *const names[BT_PLAN_VARIANTS] = {"as asked", "W4A8", "FP8 KV",
                                                    "MTP",      "DSA",  "mHC"};

const char *bt_plan_variant_name(enum bt_plan_variant variant)
{
    return names[variant];
}

static enum bt_status with_w4a8(struct bt_plan_question *question, struct bt_error *error)
{
    if (!question->model.routed_experts)
        return bt_error_set(error, BT_ERR_UNSUPPORTED, "W4A8: the model has no experts");
    if (question->dtypes.expert_bytes <= 0.5)
        return bt_error_set(error, BT_ERR_ALREADY_EXISTS, "W4A8: experts have 4 bits already");
    question->dtypes.expert_bytes = 0.5;
    question->dtypes.dense_bytes = 1;
    question->dtypes.activation_bytes = 1;
    if (question->dtypes.compute == BT_PLAN_BF16)
        question->dtypes.compute = BT_PLAN_FP8;
    return BT_OK;
}

static enum bt_status with_fp8_kv(struct bt_plan_question *question, struct bt_error *error)
{
    if (question->dtypes.kv_latent_bytes <= 1)
        return bt_error_set(error, BT_ERR_ALREADY_EXISTS, "FP8 KV: it has 8 bits already");
    struct bt_plan_dtypes fp8 = bt_plan_dtypes_of(&question->model, BT_PLAN_WEIGHTS_FP8, true);
    question->dtypes.kv_latent_bytes = fp8.kv_latent_bytes;
    question->dtypes.kv_rope_bytes = fp8.kv_rope_bytes;
    question->dtypes.kv_scale_bytes = fp8.kv_scale_bytes;
    return BT_OK;
}

static enum bt_status with_mtp(struct bt_plan_question *question, struct bt_error *error)
{
    if (question->model.mtp_parameters <= 0)
        return bt_error_set(error, BT_ERR_UNSUPPORTED, "MTP: the model has no module for it");
    if (question->policy.drafts)
        return bt_error_set(error, BT_ERR_ALREADY_EXISTS, "MTP: drafts are made already");
    question->policy.drafts = 1;
    return BT_OK;
}

static enum bt_status with_dsa(struct bt_plan_question *question, struct bt_error *error)
{
    if (question->model.sparse_tokens)
        return bt_error_set(error, BT_ERR_ALREADY_EXISTS, "DSA: attention is sparse already");
    question->model.sparse_tokens = 2048;
    question->model.indexer_heads = 64;
    question->model.indexer_dim = 128;
    return BT_OK;
}

static enum bt_status with_mhc(struct bt_plan_question *question, struct bt_error *error)
{
    if (question->model.streams > 1)
        return bt_error_set(error, BT_ERR_ALREADY_EXISTS, "mHC: there are streams already");
    question->model.streams = 4;
    return BT_OK;
}

enum bt_status bt_plan_variant_apply(const struct bt_plan_question *question,
                                     enum bt_plan_variant variant, struct bt_error *error,
                                     struct bt_plan_question *ret_question)
{
    static enum bt_status (*const apply[BT_PLAN_VARIANTS])(struct bt_plan_question *,
                                                           struct bt_error *) = {
        [BT_PLAN_WITH_W4A8] = with_w4a8, [BT_PLAN_WITH_FP8_KV] = with_fp8_kv,
        [BT_PLAN_WITH_MTP] = with_mtp,   [BT_PLAN_WITH_DSA] = with_dsa,
        [BT_PLAN_WITH_MHC] = with_mhc,
    };
    struct bt_plan_question changed = *question;
    enum bt_status status = apply[variant] ? apply[variant](&changed, error) : BT_OK;
    if (status == BT_OK)
        *ret_question = changed;
    return status;
}
