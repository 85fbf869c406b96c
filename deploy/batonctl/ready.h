/* Waiting until programs that were started say that they are ready. */
#ifndef BATON_DEPLOY_BATONCTL_READY_H
#define BATON_DEPLOY_BATONCTL_READY_H

#include "deploy/batonctl/cluster.h"

/* What a program writes to its --ready-file, cluster.dir/ID.ready. */
struct ctl_ready {
    char http[CTL_ENDPOINT_SIZE];
    char rpc[CTL_ENDPOINT_SIZE];
};

/*
 * Until all processes of the cluster from `first` on are ready. UNAVAILABLE: one of them ended; the
 * message holds the end of its log, cluster.dir/ID.log. DEADLINE, with that of one that is not
 * ready. CANCELLED: ctl_interrupt_check. `ret_ready`, if not NULL, is of `first`.
 */
enum bt_status ctl_ready_wait(const struct ctl_cluster *cluster, uint32_t first, int interrupt,
                              int64_t until_ns, struct bt_error *error,
                              struct ctl_ready *ret_ready);

/* What a process said when it got ready; of a worker `http` is "". IO: it is not ready. */
enum bt_status ctl_ready_read(const struct ctl_cluster *cluster, const char *id,
                              struct bt_error *error, struct ctl_ready *ret_ready);

#endif
