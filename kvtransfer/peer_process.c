#include "kvtransfer/peer_process.h"

#include <errno.h>
#include <inttypes.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

enum bt_status kvt_peer_process_watch(const struct bt_process_id *process, int epoll_fd,
                                      void *context, struct bt_error *error, int *ret_pid_fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = context};
    int fd = (int)syscall(SYS_pidfd_open, (pid_t)process->pid, 0);

    *ret_pid_fd = fd;
    if (fd < 0 && errno != ESRCH)
        return bt_error_set(error, BT_ERR_UNAVAILABLE, "can't watch pid %" PRId64 ": %m",
                            process->pid);
    /* After opening, so that it is this very process and not a later one of the same pid. */
    if (fd < 0 || bt_process_probe(process) != BT_PROCESS_ALIVE)
        return bt_error_set(error, BT_ERR_PEER_LOST, "pid %" PRId64 " has ended", process->pid);
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "can't watch pid %" PRId64 ": %m",
                            process->pid);
    return BT_OK;
}
