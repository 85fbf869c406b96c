/* A build without NCCL. */
#include "common/parallel/group_ops.h"

enum bt_status bt_nccl_group_create(const struct bt_group_options *options, struct bt_error *error,
                                    struct bt_group **ret_group)
{
    (void)options, (void)ret_group;
    return bt_error_set(error, BT_ERR_UNSUPPORTED, "group: this build has no nccl");
}
