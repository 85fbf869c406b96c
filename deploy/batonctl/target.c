#include <stdio.h>
#include <string.h>

#include "deploy/batonctl/verbs.h"

int ctl_parse(const struct bt_option *options, const char *usage, int argc, char **argv,
              int *ret_argc_used)
{
    struct bt_error error;
    enum bt_status status = bt_option_parse(options, usage, argc, argv, &error, ret_argc_used);
    if (status == BT_OK)
        return -1;
    if (status == BT_ERR_CANCELLED)
        return CTL_EXIT_OK;
    fprintf(stderr, "batonctl %s: %s\n", argv[0], error.text);
    return CTL_EXIT_USAGE;
}

int ctl_fail(const char *verb, const struct bt_error *error)
{
    fprintf(stderr, "batonctl %s: %s\n", verb, error->text);
    switch (error->status) {
    case BT_ERR_NOT_FOUND:
    case BT_ERR_UNAVAILABLE:
    case BT_ERR_PEER_LOST:
        return CTL_EXIT_NO_CLUSTER;
    case BT_ERR_INVALID_ARGUMENT:
        return CTL_EXIT_USAGE;
    default:
        return CTL_EXIT_FAILED;
    }
}

static bool are_given(const struct bt_security_values *security)
{
    return security->secret_file || security->allow_file;
}

enum bt_status ctl_target_find(const struct ctl_target *target, struct bt_error *error,
                               struct ctl_address *ret_address)
{
    struct ctl_cluster *cluster = &ret_address->cluster;
    ret_address->security = target->security;
    ret_address->endpoint = target->endpoint;
    if (target->endpoint)
        return BT_OK;
    enum bt_status status = ctl_cluster_init(cluster, target->state_dir, target->name, error);
    if (status == BT_OK)
        status = ctl_cluster_load(cluster, error);
    if (status != BT_OK)
        return status;
    if (!ctl_cluster_alive(cluster))
        return bt_error_set(error, BT_ERR_UNAVAILABLE,
                            "cluster '%s' is not running any more; its logs are in %s",
                            cluster->name, cluster->dir);
    ret_address->endpoint = ctl_cluster_router(cluster)->rpc;
    if (cluster->curve && !are_given(&target->security)) {
        ctl_keys_init(&ret_address->keys, cluster->dir, CTL_KEYS_OPERATOR);
        ret_address->security = ret_address->keys.values;
    }
    return BT_OK;
}
