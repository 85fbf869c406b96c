/* The flags that put a worker into a group, the same for both roles. */
#ifndef BATON_COMMON_MODEL_RANK_OPTIONS_H
#define BATON_COMMON_MODEL_RANK_OPTIONS_H

#include "common/base/option.h"
#include "common/model/rank.h"

struct bt_rank_values {
    int64_t rank, redundant_experts, load_window;
    const char *endpoint, *host, *secret_file, *expert_loads;
    int64_t timeout, connect_timeout, rebalance_interval;
    int placement, payload;
};

extern const char *const bt_rank_placements[]; /* in the order of enum bt_placement_kind */
extern const char *const bt_rank_payloads[];   /* in the order of enum bt_forward_payload */

/* Lines of a struct bt_option table; `v` is a struct bt_rank_values. The flag for the size has a
 * name of the role. */
/* clang-format off */
#define BT_RANK_OPTIONS(v) \
    {"rank", BT_OPTION_INT, &(v).rank, "0", 0, BT_GROUP_RANKS_MAX - 1, \
     .help = "Of this process in its group."}, \
    {"group-endpoint", BT_OPTION_STRING, &(v).endpoint, NULL, .metavar = "ENDPOINT", \
     .help = "Where the ranks of a group meet: tcp://HOST:PORT of rank 0, or ipc://PATH on one machine."}, \
    {"group-host", BT_OPTION_STRING, &(v).host, NULL, .metavar = "ADDRESS", \
     .help = "Address of this machine for ranks on others; default: loopback."}, \
    {"group-secret-file", BT_OPTION_STRING, &(v).secret_file, NULL, .metavar = "PATH", \
     .help = "A file with the same secret on all ranks, 8 characters or more."}, \
    {"group-timeout", BT_OPTION_DURATION, &(v).timeout, "30s", 0.1, 3600, \
     .help = "A rank that is silent for so long is lost, and the group with it."}, \
    {"group-connect-timeout", BT_OPTION_DURATION, &(v).connect_timeout, "5m", 1, 86400, \
     .help = "How long the ranks wait for each other at the start."}, \
    {"expert-placement", BT_OPTION_CHOICE, &(v).placement, "round-robin", .choices = bt_rank_placements, \
     .help = "Which ranks hold which experts; balanced follows how often each is chosen."}, \
    {"redundant-experts", BT_OPTION_INT, &(v).redundant_experts, "0", 0, BT_PLACEMENT_EXPERTS_MAX, \
     .help = "With balanced: copies of hot experts, in each layer."}, \
    {"expert-loads", BT_OPTION_STRING, &(v).expert_loads, NULL, .metavar = "FILE", \
     .help = "How often each expert was chosen: read at the start by balanced, written by rank 0."}, \
    {"expert-load-window", BT_OPTION_INT, &(v).load_window, "64k", BT_RANK_LOAD_WINDOWS, 1 << 30, \
     .help = "Rows of a layer, of all ranks, that loads are counted over: no layer moves before as many."}, \
    {"rebalance-interval", BT_OPTION_DURATION, &(v).rebalance_interval, "60s", 0, 86400 * 7, \
     .help = "How often balanced asks whether moving experts pays, and the loads are saved; 0: never, and at the end."}, \
    {"dispatch-dtype", BT_OPTION_CHOICE, &(v).payload, "auto", .choices = bt_rank_payloads, \
     .help = "How rows travel to their experts; auto loses nothing, bf16 and fp8 save bytes."}
/* clang-format on */

/*
 * INVALID_ARGUMENT names the flag: a rank that is not below `size`, a group without endpoint or
 * secret. Fills all but tensor_parallel, expert_parallel, max_rows, device and dispatch.
 */
enum bt_status bt_rank_options_check(const struct bt_rank_values *values, uint32_t size,
                                     struct bt_error *error, struct bt_rank_options *ret_options);

#endif
