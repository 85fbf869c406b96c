/* Which workers of a local cluster have least to do, as a router of it knows. */
#ifndef BATON_DEPLOY_BATONCTL_LOCAL_LOAD_H
#define BATON_DEPLOY_BATONCTL_LOCAL_LOAD_H

#include "deploy/batonctl/verbs.h"

/*
 * Sorts names[count] by who should go first: those that take nothing already, then by requests,
 * then by tokens that they hold; of equal ones the last started. A group counts as one.
 */
enum bt_status ctl_local_load_sort(const struct ctl_target *target,
                                   const struct ctl_cluster *cluster, char (*names)[CTL_NAME_SIZE],
                                   uint32_t count, struct bt_error *error);

#endif
