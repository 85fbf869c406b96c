/* Flags and environment of baton-decode. */
#ifndef BATON_DECODE_NODE_OPTIONS_H
#define BATON_DECODE_NODE_OPTIONS_H

#include "common/base/log.h"
#include "common/messaging/security.h"
#include "common/model/rank_options.h"
#include "decode-node/worker.h"

struct dc_options {
    const char *model;
    const char *device;
    const char *kernels;
    enum bt_model_dtype dtype;
    const char *kv_cache_dtype; /* of bt_kv_dtype_names */
    struct bt_team_options team;
    enum bt_log_level log_level;
    bool die_with_parent;
    struct bt_security_values security;
    struct bt_rank_options rank;
    struct dc_worker_options
        worker; /* but kv_dtype, rank; its strings live as long as the process */
};

/* CANCELLED after --help. */
enum bt_status dc_options_parse(int argc, char **argv, struct bt_error *error,
                                struct dc_options *ret_options);

#endif
