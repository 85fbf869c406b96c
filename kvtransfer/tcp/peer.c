/* Source side: a connection, the writes that wait for room in its socket, the flushes. */
#include <errno.h>
#include <ifaddrs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/uio.h>

#include <arpa/inet.h>
#include <netinet/in.h>

#include "kvtransfer/tcp/internal.h"

static void enqueue(struct kvt_tcp_queue *queue, struct kvt_tcp_op *op)
{
    op->next = NULL;
    if (queue->first == NULL)
        queue->first = op;
    else
        queue->last->next = op;
    queue->last = op;
}

static struct kvt_tcp_op *dequeue(struct kvt_tcp_queue *queue)
{
    struct kvt_tcp_op *op = queue->first;

    queue->first = op->next;
    return op;
}

static void complete(struct kvt_tcp *tcp, struct kvt_tcp_op *op, enum bt_status status)
{
    kvt_completion_fn *done = op->done;
    void *context = op->context;

    op->next = tcp->free_ops;
    tcp->free_ops = op;
    done(context, status);
}

static void peer_fail(struct kvt_peer *peer, const char *why)
{
    if (peer->state == KVT_PEER_FAILED)
        return;
    peer->state = KVT_PEER_FAILED;
    bt_error_set(&peer->error, BT_ERR_PEER_LOST, "tcp: %s", why);
}

static bool same_ip(const struct sockaddr *a, const struct sockaddr_storage *b)
{
    if (a == NULL || a->sa_family != b->ss_family)
        return false;
    if (a->sa_family == AF_INET)
        return ((const struct sockaddr_in *)a)->sin_addr.s_addr ==
               ((const struct sockaddr_in *)b)->sin_addr.s_addr;
    return a->sa_family == AF_INET6 &&
           memcmp(&((const struct sockaddr_in6 *)a)->sin6_addr,
                  &((const struct sockaddr_in6 *)b)->sin6_addr, sizeof(struct in6_addr)) == 0;
}

static void find_device(struct kvt_peer *peer)
{
    struct sockaddr_storage local = {0};
    socklen_t size = sizeof(local);
    struct ifaddrs *list;

    if (getsockname(peer->socket.fd, (struct sockaddr *)&local, &size) != 0 ||
        getifaddrs(&list) != 0)
        return;
    for (const struct ifaddrs *at = list; at != NULL; at = at->ifa_next)
        if (same_ip(at->ifa_addr, &local))
            snprintf(peer->device, sizeof(peer->device), "%s", at->ifa_name);
    freeifaddrs(list);
}

static socklen_t socket_address(const struct kvt_tcp_address *address,
                                struct sockaddr_storage *ret_socket)
{
    struct sockaddr_in *v4 = (struct sockaddr_in *)ret_socket;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)ret_socket;

    memset(ret_socket, 0, sizeof(*ret_socket));
    ret_socket->ss_family = address->family;
    if (address->family == AF_INET) {
        v4->sin_port = htons(address->port);
        memcpy(&v4->sin_addr, address->ip, sizeof(v4->sin_addr));
    } else {
        v6->sin6_port = htons(address->port);
        v6->sin6_scope_id = address->scope;
        memcpy(&v6->sin6_addr, address->ip, sizeof(v6->sin6_addr));
    }
    return kvt_tcp_sockaddr_size(ret_socket);
}

static enum bt_status start(struct kvt_peer *peer, struct bt_error *error)
{
    struct kvt_tcp *tcp = peer->tcp;
    struct sockaddr_storage to;
    socklen_t size = socket_address(&peer->address, &to);

    peer->socket.fd = socket(peer->address.family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (peer->socket.fd < 0)
        return bt_error_set(error, BT_ERR_EXHAUSTED, "no socket: %m");
    kvt_tcp_tune(peer->socket.fd);
    if (tcp->bind_source && tcp->bind.ss_family == to.ss_family &&
        bind(peer->socket.fd, (struct sockaddr *)&tcp->bind, kvt_tcp_sockaddr_size(&tcp->bind)) !=
            0)
        return bt_error_set(error, BT_ERR_UNAVAILABLE, "can't connect from the wanted device: %m");
    if (connect(peer->socket.fd, (struct sockaddr *)&to, size) != 0 && errno != EINPROGRESS)
        return bt_error_set(error, BT_ERR_UNAVAILABLE, "can't connect: %m");
    if (!kvt_tcp_watch(tcp, &peer->socket, EPOLLIN | EPOLLOUT | EPOLLET))
        return bt_error_set(error, BT_ERR_NO_MEMORY, "can't watch a socket: %m");
    return BT_OK;
}

static enum bt_status unpack_address(const void *blob, size_t size, struct bt_error *error,
                                     struct kvt_tcp_address *ret_address)
{
    const void *payload;
    size_t payload_size;
    enum bt_status status =
        kvt_blob_unwrap(KVT_BLOB_TCP_ADDRESS, blob, size, error, &payload, &payload_size);

    if (status != BT_OK)
        return status;
    if (payload_size != sizeof(*ret_address))
        return bt_error_set(error, BT_ERR_PROTOCOL, "transport address: %zu bytes, not %zu",
                            payload_size, sizeof(*ret_address));
    memcpy(ret_address, payload, sizeof(*ret_address));
    if ((ret_address->family != AF_INET && ret_address->family != AF_INET6) ||
        ret_address->port == 0)
        return bt_error_set(error, BT_ERR_PROTOCOL, "transport address: family %u, port %u",
                            ret_address->family, ret_address->port);
    return BT_OK;
}

enum bt_status kvt_tcp_connect(struct kvt_transport *base, const void *address, size_t address_size,
                               const void *key, size_t key_size, const struct kvt_origin *origin,
                               struct bt_error *error, struct kvt_peer **ret_peer)
{
    struct kvt_tcp *tcp = (struct kvt_tcp *)base;
    struct kvt_peer *peer = calloc(1, sizeof(*peer));
    const void *rest;
    size_t rest_size;
    enum bt_status status;

    if (peer == NULL)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a peer");
    peer->tcp = tcp;
    peer->socket = (struct kvt_tcp_socket){.owner = KVT_TCP_PEER, .fd = -1};
    peer->origin = *origin;
    status = unpack_address(address, address_size, error, &peer->address);
    if (status == BT_OK)
        status =
            kvt_key_unpack(KVT_BLOB_TCP_KEY, key, key_size, error, &peer->range, &rest, &rest_size);
    if (status == BT_OK)
        status = start(peer, error);
    if (status != BT_OK) {
        kvt_tcp_socket_close(&peer->socket);
        free(peer);
        return status;
    }
    peer->next = tcp->peers;
    tcp->peers = peer;
    *ret_peer = peer;
    return BT_OK;
}

enum kvt_peer_state kvt_tcp_peer_state(const struct kvt_peer *peer)
{
    return peer->state;
}

const char *kvt_tcp_peer_transport(const struct kvt_peer *peer)
{
    (void)peer;
    return "tcp";
}

uint32_t kvt_tcp_peer_rails(const struct kvt_peer *peer, struct kvt_rail_info *ret_rails,
                            uint32_t max)
{
    if (peer->state != KVT_PEER_READY)
        return 0;
    if (max > 0) {
        ret_rails[0] = (struct kvt_rail_info){.transport = "tcp", .ordered = true};
        memcpy(ret_rails[0].device, peer->device, sizeof(peer->device));
    }
    return 1;
}

const char *kvt_tcp_peer_error(const struct kvt_peer *peer)
{
    return peer->error.text;
}

void *kvt_tcp_map(struct kvt_peer *peer, uint64_t remote_address, size_t bytes)
{
    (void)peer, (void)remote_address, (void)bytes;
    return NULL;
}

static enum bt_status post(struct kvt_peer *peer, const struct kvt_tcp_op *wanted)
{
    struct kvt_tcp_op *op = peer->tcp->free_ops;

    if (op == NULL)
        return BT_ERR_EXHAUSTED;
    peer->tcp->free_ops = op->next;
    *op = *wanted;
    op->frame.magic = KVT_TCP_MAGIC;
    enqueue(&peer->unsent, op);
    return BT_IN_PROGRESS; /* the next progress sends all that was posted, many in a call */
}

enum bt_status kvt_tcp_write(struct kvt_peer *peer, const void *source, size_t bytes,
                             uint64_t remote_address, kvt_completion_fn *done, void *context)
{
    const struct kvt_tcp_op op = {
        .frame = {.kind = KVT_TCP_WRITE, .address = remote_address, .value = bytes},
        .source = source,
        .done = done,
        .context = context};

    if (peer->state != KVT_PEER_READY)
        return BT_ERR_PEER_LOST;
    if (!kvt_key_range_has(&peer->range, remote_address, bytes))
        return BT_ERR_INVALID_ARGUMENT;
    return post(peer, &op);
}

enum bt_status kvt_tcp_flush(struct kvt_peer *peer, kvt_completion_fn *done, void *context)
{
    const struct kvt_tcp_op op = {
        .frame = {.kind = KVT_TCP_FLUSH, .value = peer->flushes}, .done = done, .context = context};
    enum bt_status status;

    if (peer->state != KVT_PEER_READY)
        return BT_ERR_PEER_LOST;
    status = post(peer, &op);
    if (status == BT_IN_PROGRESS)
        peer->flushes++;
    return status;
}

/* ---- progress ---- */

static bool on_connected(struct kvt_peer *peer)
{
    struct kvt_tcp_hello hello = {.magic = KVT_TCP_MAGIC,
                                  .version = KVT_TCP_VERSION,
                                  .incarnation = peer->origin.incarnation,
                                  .link = peer->origin.link,
                                  .line = peer->origin.line};
    int code = 0;
    socklen_t size = sizeof(code);

    getsockopt(peer->socket.fd, SOL_SOCKET, SO_ERROR, &code, &size);
    if (code != 0) {
        peer_fail(peer, strerror(code));
        return true;
    }
    memcpy(hello.token, peer->address.token, sizeof(hello.token));
    /* The buffer of a fresh socket takes these few bytes whole. */
    if (send(peer->socket.fd, &hello, sizeof(hello), MSG_NOSIGNAL) != (ssize_t)sizeof(hello))
        peer_fail(peer, "could not say hello");
    peer->connected = true;
    find_device(peer);
    return true;
}

static int fill_iovecs(const struct kvt_peer *peer, struct iovec *ret_parts)
{
    int count = 0;

    for (struct kvt_tcp_op *op = peer->unsent.first; op != NULL && count + 2 <= KVT_TCP_IOVECS;
         op = op->next) {
        size_t head = op->sent < sizeof(op->frame) ? sizeof(op->frame) - op->sent : 0;
        size_t sent = op->sent - (sizeof(op->frame) - head);
        size_t bytes = op->frame.kind == KVT_TCP_WRITE ? op->frame.value - sent : 0;
        if (head > 0)
            ret_parts[count++] =
                (struct iovec){.iov_base = (char *)&op->frame + op->sent, .iov_len = head};
        if (bytes > 0)
            ret_parts[count++] =
                (struct iovec){.iov_base = (char *)op->source + sent, .iov_len = bytes};
    }
    return count;
}

static void note_sent(struct kvt_peer *peer, size_t bytes)
{
    while (bytes > 0) {
        struct kvt_tcp_op *op = peer->unsent.first;
        size_t whole = sizeof(op->frame) + (op->frame.kind == KVT_TCP_WRITE ? op->frame.value : 0);
        size_t now = bytes < whole - op->sent ? bytes : whole - op->sent;
        op->sent += now;
        bytes -= now;
        if (op->sent < whole)
            return;
        dequeue(&peer->unsent);
        if (op->frame.kind == KVT_TCP_FLUSH)
            enqueue(&peer->unanswered, op);
        else
            complete(peer->tcp, op, BT_OK);
    }
}

static bool send_some(struct kvt_peer *peer)
{
    struct iovec parts[KVT_TCP_IOVECS];
    struct msghdr message = {.msg_iov = parts};
    ssize_t sent;

    message.msg_iovlen = (size_t)fill_iovecs(peer, parts);
    sent = sendmsg(peer->socket.fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent >= 0) {
        note_sent(peer, (size_t)sent);
        return true;
    }
    if (errno == EAGAIN)
        peer->socket.writable = false;
    else if (errno != EINTR)
        peer_fail(peer, strerror(errno));
    return errno != EAGAIN;
}

static void on_answer(struct kvt_peer *peer)
{
    const struct kvt_tcp_frame *answer = &peer->answer;
    struct kvt_tcp_op *op = peer->unanswered.first;

    if (answer->magic == KVT_TCP_MAGIC && answer->kind == KVT_TCP_READY &&
        peer->state == KVT_PEER_CONNECTING) {
        peer->state = KVT_PEER_READY;
    } else if (answer->magic == KVT_TCP_MAGIC && answer->kind == KVT_TCP_FLUSHED && op != NULL &&
               answer->value >= op->frame.value && answer->value < peer->flushes) {
        while ((op = peer->unanswered.first) != NULL && op->frame.value <= answer->value) {
            dequeue(&peer->unanswered);
            complete(peer->tcp, op, BT_OK);
        }
    } else {
        peer_fail(peer, "the target sent what is no answer");
    }
}

static bool receive_some(struct kvt_peer *peer)
{
    ssize_t got = recv(peer->socket.fd, (char *)&peer->answer + peer->answer_bytes,
                       sizeof(peer->answer) - peer->answer_bytes, MSG_DONTWAIT);

    if (got > 0) {
        peer->answer_bytes += (size_t)got;
        if (peer->answer_bytes == sizeof(peer->answer)) {
            peer->answer_bytes = 0;
            on_answer(peer);
        }
        return true;
    }
    if (got < 0 && errno == EINTR)
        return true;
    peer->socket.readable = false;
    if (got == 0)
        peer_fail(peer, "the target closed the connection");
    else if (errno != EAGAIN)
        peer_fail(peer, strerror(errno));
    return peer->state == KVT_PEER_FAILED;
}

bool kvt_tcp_peer_step(struct kvt_peer *peer)
{
    bool any = false;

    if (peer->state == KVT_PEER_FAILED)
        return false;
    if (!peer->connected && (peer->socket.writable || peer->socket.readable))
        any = on_connected(peer);
    while (peer->socket.readable && peer->connected && peer->state != KVT_PEER_FAILED)
        any = receive_some(peer) || any;
    while (peer->socket.writable && peer->unsent.first != NULL && peer->state == KVT_PEER_READY &&
           send_some(peer))
        any = true;
    return any;
}

static void fail_all(struct kvt_peer *peer, struct kvt_tcp_queue *queue)
{
    while (queue->first != NULL)
        complete(peer->tcp, dequeue(queue), BT_ERR_PEER_LOST);
}

void kvt_tcp_peer_close(struct kvt_peer *peer)
{
    struct kvt_peer **link = &peer->tcp->peers;

    peer->state = KVT_PEER_FAILED;
    kvt_tcp_socket_close(&peer->socket);
    fail_all(peer, &peer->unanswered);
    fail_all(peer, &peer->unsent);
    while (*link != peer)
        link = &(*link)->next;
    *link = peer->next;
    free(peer);
}
