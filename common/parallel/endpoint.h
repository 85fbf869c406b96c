/*
 * Where a group meets: tcp://HOST:PORT, or ipc://PATH for ranks of one machine and user. Internal
 * to this folder.
 */
#ifndef BATON_COMMON_PARALLEL_ENDPOINT_H
#define BATON_COMMON_PARALLEL_ENDPOINT_H

#include <stdint.h>

#include <sys/socket.h>

#include "common/base/status.h"

#define BT_ENDPOINT_ADDRESSES_MAX 16 /* that a name stands for; more are not looked at */

struct bt_endpoint {
    struct sockaddr_storage addresses[BT_ENDPOINT_ADDRESSES_MAX];
    socklen_t sizes[BT_ENDPOINT_ADDRESSES_MAX];
    uint32_t count;
};

/* INVALID_ARGUMENT: no endpoint, or a path that no socket can have. UNAVAILABLE: a name that is not
 * known (yet). May ask name servers. */
enum bt_status bt_endpoint_resolve(const char *text, bool listens, struct bt_error *error,
                                   struct bt_endpoint *ret_endpoint);

/* A socket that listens, and the file that it made. */
struct bt_listener {
    int fd;                /* -1: none */
    uint64_t device, file; /* 0, 0: no file */
};

/*
 * A socket file is the owner's alone (mode 0600); one that nobody listens at any more is replaced.
 * UNAVAILABLE: somebody does, or what is there is no socket, or the system says why not. Waits
 * until deadline_ns for others who are about to listen in the same directory, and for a name that
 * is not known yet.
 */
enum bt_status bt_endpoint_listen(const char *text, int64_t deadline_ns, struct bt_error *error,
                                  struct bt_listener *ret_listener);
/* Its file goes, too, if it is still there. One of fd -1 is fine. */
void bt_listener_close(struct bt_listener *listener, const char *text);

#endif
