#include "common/model/rank_options.h"

const char *const bt_rank_placements[] = {"contiguous", "round-robin", "balanced", NULL};
const char *const bt_rank_payloads[] = {"auto", "bf16", "fp8", NULL};

static enum bt_status check_group(const struct bt_rank_values *values, uint32_t size,
                                  struct bt_error *error)
{
    if (values->rank >= size) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "--rank %d: the group has %u ranks, counted from 0", (int)values->rank,
                            size);
    }
    if (size == 1) {
        return BT_OK;
    }
    if (!values->endpoint) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "--group-endpoint: needed by a group of %u ranks", size);
    }
    if (!values->secret_file) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "--group-secret-file: needed by a group of %u ranks", size);
    }
    return BT_OK;
}

enum bt_status bt_rank_options_check(const struct bt_rank_values *values, uint32_t size,
                                     struct bt_error *error, struct bt_rank_options *ret_options)
{
    enum bt_status status = check_group(values, size, error);
    if (status != BT_OK) {
        return status;
    }
    if (values->redundant_experts > 0 && values->placement != BT_PLACEMENT_BALANCED) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "--redundant-experts %d: only with --expert-placement balanced",
                            (int)values->redundant_experts);
    }
    *ret_options = (struct bt_rank_options){
        .rank = (uint32_t)values->rank,
        .size = size,
        .endpoint = values->endpoint,
        .host = values->host,
        .secret_file = values->secret_file,
        .connect_timeout_ns = values->connect_timeout,
        .wait_timeout_ns = values->timeout,
        .payload = (enum bt_forward_payload)values->payload,
        .placement = (enum bt_placement_kind)values->placement,
        .redundant_experts = (uint32_t)values->redundant_experts,
        .expert_loads_file = values->expert_loads,
        .load_windows = BT_RANK_LOAD_WINDOWS,
        .load_span = (uint64_t)values->load_window / BT_RANK_LOAD_WINDOWS,
        .rebalance_interval_ns = values->rebalance_interval,
    };
    return BT_OK;
}
