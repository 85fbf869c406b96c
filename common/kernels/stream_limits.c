#include "common/kernels/stream.h"

/* Beyond these the sizes are nonsense, and their products could wrap. */
#define MAX_ROWS     (1u << 20)
#define MAX_DIM      (1u << 20)
#define MAX_HEADS    (1u << 12)
#define MAX_EXPERTS  (1u << 14)
#define MAX_HEAD_DIM (1u << 14)
#define MAX_VOCAB    (1u << 24)
#define MAX_PAGES    (1u << 26)

static enum bt_status check(struct bt_error *error, const char *name, uint32_t value, uint32_t max)
{
    if (value <= max)
        return BT_OK;
    return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "stream limits: %s is %u, the most is %u",
                        name, value, max);
}

enum bt_status bt_stream_check_limits(const struct bt_stream_limits *limits, struct bt_error *error)
{
    const struct {
        const char *name;
        uint32_t value, max;
    } checks[] = {
        {"max_rows", limits->max_rows, MAX_ROWS},
        {"max_expert_rows", limits->max_expert_rows, MAX_ROWS},
        {"max_cols", limits->max_cols, MAX_DIM},
        {"hidden", limits->hidden, MAX_DIM},
        {"moe_intermediate", limits->moe_intermediate, MAX_DIM},
        {"experts", limits->experts, MAX_EXPERTS},
        {"experts_per_token", limits->experts_per_token, limits->experts},
        {"heads", limits->mla.heads, MAX_HEADS},
        {"qk_nope_head_dim", limits->mla.qk_nope_head_dim, MAX_HEAD_DIM},
        {"qk_rope_head_dim", limits->mla.qk_rope_head_dim, MAX_HEAD_DIM},
        {"v_head_dim", limits->mla.v_head_dim, MAX_HEAD_DIM},
        {"kv_lora_rank", limits->mla.kv_lora_rank, MAX_HEAD_DIM},
        {"max_page_numbers", limits->max_page_numbers, MAX_PAGES},
        {"vocab_size", limits->vocab_size, MAX_VOCAB},
    };
    for (size_t i = 0; i < sizeof(checks) / sizeof(checks[0]); i++) {
        enum bt_status status = check(error, checks[i].name, checks[i].value, checks[i].max);
        if (status != BT_OK)
            return status;
    }
    return BT_OK;
}
