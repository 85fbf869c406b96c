/* Ranks on GPUs (nccl.c); inside the module of the GPU backend only. */
#ifndef BATON_COMMON_PARALLEL_NCCL_H
#define BATON_COMMON_PARALLEL_NCCL_H

#include "common/parallel/group.h"

/* UNSUPPORTED: the machine has no GPU. */
enum bt_status bt_nccl_group_create(const struct bt_group_options *options, struct bt_error *error,
                                    struct bt_group **ret_group);

#endif
