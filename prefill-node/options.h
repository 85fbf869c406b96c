/* Flags and environment of baton-prefill. */
#ifndef BATON_PREFILL_NODE_OPTIONS_H
#define BATON_PREFILL_NODE_OPTIONS_H

#include "common/base/log.h"
#include "common/messaging/security.h"
#include "common/model/rank_options.h"
#include "prefill-node/worker.h"

struct pf_options {
    const char *model;
    const char *device;
    const char *kernels;
    enum bt_model_dtype dtype;
    const char *kv_cache_dtype; /* of bt_kv_dtype_names */
    struct bt_team_options team;
    const char *cache_dir; /* see pf_budget_find */
    enum bt_log_level log_level;
    bool die_with_parent;
    struct bt_security_values security;
    struct bt_rank_options group;    /* but max_rows */
    struct pf_worker_options worker; /* but rank, kv_dtype, and a chunk size of 0 of a rank alone;
                                        its strings live as long as the process */
};

/* CANCELLED after --help. */
enum bt_status pf_options_parse(int argc, char **argv, struct bt_error *error,
                                struct pf_options *ret_options);

#endif
