#include "router/handover.h"

#include <errno.h>
#include <limits.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/log.h"

/* One byte each way: with the listener, and when it is taken. */
#define OFFER 'L'
#define TAKE  'T'

struct rt_handover {
    struct bt_loop *loop;
    int listener, fd, peer; /* peer -1: none; one at a time */
    struct bt_loop_source *source, *peer_source;
    dev_t device;
    ino_t inode; /* of the socket's file */
    char path[PATH_MAX];
    void (*taken)(void *context);
    void *context;
};

static enum bt_status address_of(const char *path, struct bt_error *error,
                                 struct sockaddr_un *ret_address)
{
    *ret_address = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (path[0] == '\0' || strlen(path) >= sizeof ret_address->sun_path)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "--handover '%.200s': a path of 1 to %zu bytes", path,
                            sizeof ret_address->sun_path - 1);
    memcpy(ret_address->sun_path, path, strlen(path) + 1);
    return BT_OK;
}

static bool is_same_user(int fd)
{
    struct ucred peer;
    socklen_t size = sizeof peer;
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.uid == geteuid();
}

/* ------------------------------------------------------------------ the successor */

/* -1: none came. More than one can't: there is room for one. */
static int receive_fd(int peer)
{
    char byte;
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof control};
    if (recvmsg(peer, &message, MSG_CMSG_CLOEXEC) != 1 || byte != OFFER)
        return -1;
    const struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    if (header == NULL || header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS ||
        header->cmsg_len != CMSG_LEN(sizeof(int)))
        return -1;
    int fd;
    memcpy(&fd, CMSG_DATA(header), sizeof fd);
    return fd;
}

static bool listens(int fd)
{
    int listening = 0;
    socklen_t size = sizeof listening;
    return getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size) == 0 && listening;
}

/* Until the peer says something or is gone. */
static bool wait_readable(int fd, int64_t timeout_ns)
{
    int64_t until_ns = bt_clock_now_ns() + timeout_ns;
    for (;;) {
        int64_t left_ms = (until_ns - bt_clock_now_ns()) / BT_NS_PER_MS;
        struct pollfd item = {.fd = fd, .events = POLLIN};
        int ready = poll(&item, 1, left_ms > 0 ? (int)left_ms : 0);
        if (ready >= 0 || errno != EINTR)
            return ready > 0;
    }
}

static enum bt_status claim_from(int peer, const char *path, int64_t timeout_ns,
                                 struct bt_error *error, int *ret_listener)
{
    if (!is_same_user(peer))
        return bt_error_set(error, BT_ERR_IO, "--handover %s: another user's router", path);
    int listener = wait_readable(peer, timeout_ns) ? receive_fd(peer) : -1;
    if (listener >= 0 && listens(listener)) {
        *ret_listener = listener;
        return BT_OK;
    }
    if (listener >= 0)
        close(listener);
    return bt_error_set(error, BT_ERR_UNAVAILABLE,
                        "--handover %s: the router there does not hand its port over", path);
}

enum bt_status rt_handover_claim(const char *path, int64_t timeout_ns, struct bt_error *error,
                                 struct rt_handover_claim *ret_claim)
{
    struct sockaddr_un address;
    *ret_claim = (struct rt_handover_claim){-1, -1};
    enum bt_status status = address_of(path, error, &address);
    if (status != BT_OK)
        return status;
    int peer = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (peer < 0)
        return bt_error_set(error, BT_ERR_IO, "--handover %s: %s", path, strerror(errno));
    if (connect(peer, (struct sockaddr *)&address, sizeof address) != 0) {
        int reason = errno;
        close(peer);
        if (reason == ENOENT || reason == ECONNREFUSED) /* none, or one that has ended */
            return BT_OK;
        return bt_error_set(error, BT_ERR_IO, "--handover %s: %s", path, strerror(reason));
    }
    status = claim_from(peer, path, timeout_ns, error, &ret_claim->listener);
    if (status == BT_OK)
        ret_claim->peer = peer;
    else
        close(peer);
    return status;
}

uint16_t rt_handover_port(const struct rt_handover_claim *claim)
{
    struct sockaddr_storage address = {0};
    socklen_t size = sizeof address;
    if (claim->listener < 0 ||
        getsockname(claim->listener, (struct sockaddr *)&address, &size) != 0)
        return 0;
    return ntohs(((struct sockaddr_in *)&address)->sin_port); /* at the same place in IPv6's */
}

void rt_handover_take(struct rt_handover_claim *claim)
{
    static const char take = TAKE;
    if (claim->peer >= 0 && send(claim->peer, &take, 1, MSG_NOSIGNAL) != 1)
        bt_log_info(0, "who had the HTTP port has ended");
    rt_handover_drop(claim);
}

void rt_handover_drop(struct rt_handover_claim *claim)
{
    if (claim->peer >= 0)
        close(claim->peer);
    if (claim->listener >= 0)
        close(claim->listener);
    claim->listener = claim->peer = -1;
}

/* ------------------------------------------------------------------ the owner */

static void forget_peer(struct rt_handover *handover)
{
    bt_loop_remove(handover->peer_source);
    handover->peer_source = NULL;
    if (handover->peer >= 0)
        close(handover->peer);
    handover->peer = -1;
}

static bool send_listener(const struct rt_handover *handover, int peer)
{
    char byte = OFFER;
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &handover->listener, sizeof(int));
    return sendmsg(peer, &message, MSG_NOSIGNAL) == 1;
}

static void on_peer(void *context)
{
    struct rt_handover *handover = context;
    char byte;
    ssize_t size = recv(handover->peer, &byte, 1, MSG_DONTWAIT);
    if (size < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    forget_peer(handover);
    if (size != 1 || byte != TAKE || handover->taken == NULL)
        return; /* it changed its mind, or died */
    void (*taken)(void *) = handover->taken;
    handover->taken = NULL;
    taken(handover->context);
}

static void on_connection(void *context)
{
    struct rt_handover *handover = context;
    int peer = accept4(handover->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (peer < 0)
        return;
    if (handover->peer >= 0)
        on_peer(handover); /* which may have left, or have taken it */
    /* One successor at a time: two would both serve. */
    if (handover->peer >= 0 || handover->taken == NULL || !is_same_user(peer) ||
        !send_listener(handover, peer)) {
        close(peer);
        return;
    }
    handover->peer = peer;
    handover->peer_source = bt_loop_add_fd(handover->loop, peer, on_peer, handover);
    if (handover->peer_source == NULL)
        forget_peer(handover);
}

static bool bind_file(struct rt_handover *handover, const struct sockaddr_un *address)
{
    struct stat file;
    unlink(address->sun_path);
    mode_t before = umask(0177);
    bool bound = bind(handover->fd, (const struct sockaddr *)address, sizeof *address) == 0;
    umask(before);
    if (!bound || listen(handover->fd, 4) != 0 || stat(address->sun_path, &file) != 0)
        return false;
    handover->device = file.st_dev;
    handover->inode = file.st_ino;
    return true;
}

enum bt_status rt_handover_offer(struct bt_loop *loop, const char *path, int listener,
                                 void (*taken)(void *context), void *context,
                                 struct bt_error *error, struct rt_handover **ret_handover)
{
    struct sockaddr_un address;
    enum bt_status status = address_of(path, error, &address);
    if (status != BT_OK)
        return status;
    struct rt_handover *handover = calloc(1, sizeof *handover);
    if (handover == NULL)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for the handover");
    *handover = (struct rt_handover){
        .loop = loop, .listener = listener, .peer = -1, .taken = taken, .context = context};
    memcpy(handover->path, address.sun_path, sizeof address.sun_path);
    handover->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (handover->fd < 0 || !bind_file(handover, &address))
        status = bt_error_set(error, BT_ERR_IO, "--handover %s: %s", path, strerror(errno));
    if (status == BT_OK) {
        handover->source = bt_loop_add_fd(loop, handover->fd, on_connection, handover);
        if (handover->source == NULL)
            status = bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for the handover");
    }
    if (status != BT_OK) {
        rt_handover_destroy(handover);
        return status;
    }
    *ret_handover = handover;
    return BT_OK;
}

void rt_handover_destroy(struct rt_handover *handover)
{
    struct stat file;
    if (handover == NULL)
        return;
    forget_peer(handover);
    bt_loop_remove(handover->source);
    if (handover->fd >= 0)
        close(handover->fd);
    /* It may be the successor's by now. */
    if (handover->inode != 0 && stat(handover->path, &file) == 0 &&
        file.st_dev == handover->device && file.st_ino == handover->inode)
        unlink(handover->path);
    free(handover);
}
