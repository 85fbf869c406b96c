/*
 * SIGINT and SIGTERM while a cluster starts: held back, so that what was started is stopped
 * before this process ends. One that is ignored stays so.
 */
#ifndef BATON_DEPLOY_BATONCTL_INTERRUPT_H
#define BATON_DEPLOY_BATONCTL_INTERRUPT_H

#include <signal.h>

#include "common/base/status.h"

void ctl_interrupt_signals(sigset_t *ret_signals);

/* From now on until the end of the process. `ret_fd` is readable when one came. */
enum bt_status ctl_interrupt_hold(struct bt_error *error, int *ret_fd);

/* CANCELLED, naming the signal, when one came. */
enum bt_status ctl_interrupt_check(int fd, struct bt_error *error);

#endif
