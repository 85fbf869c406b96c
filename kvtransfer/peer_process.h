/* Watching the process of a peer on this host: for transports that map its memory. */
#ifndef BATON_KVTRANSFER_PEER_PROCESS_H
#define BATON_KVTRANSFER_PEER_PROCESS_H

#include "common/base/process.h"

/*
 * *ret_pid_fd, the caller's to close, turns readable when the process ends; it is added to
 * `epoll_fd` with `context`. PEER_LOST: it has ended. UNAVAILABLE: it can't be watched.
 */
enum bt_status kvt_peer_process_watch(const struct bt_process_id *process, int epoll_fd,
                                      void *context, struct bt_error *error, int *ret_pid_fd);

#endif
