/*
 * A rank that loads its part of the model: a thread meets those of the other ranks meanwhile, so
 * that who loads fast waits for who loads slowly, and nobody for one that is lost.
 */
#ifndef BATON_COMMON_MODEL_LOADING_H
#define BATON_COMMON_MODEL_LOADING_H

#include "common/parallel/group.h"

struct bt_loading;

/* All ranks; the group is the thread's until end or destroy. NO_MEMORY: no thread. */
enum bt_status bt_loading_begin(struct bt_group *group, struct bt_error *error,
                                struct bt_loading **ret_loading);
/*
 * This rank has loaded: waits until all have, at most timeout_ns; then UNAVAILABLE names those that
 * have not, and the group is to be left. Fails as the group does.
 */
enum bt_status bt_loading_end(struct bt_loading *loading, int64_t timeout_ns,
                              struct bt_error *error);
/* Before the group goes. NULL is fine. */
void bt_loading_destroy(struct bt_loading *loading);

#endif
