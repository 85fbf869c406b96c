/*
 * Target side. All that arrives is read by the target's thread, from sockets that are open: closing
 * them is cutting the source off, at once.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/uio.h>
#include <unistd.h>

#include <arpa/inet.h>
#include <netinet/in.h>

#include "common/base/log.h"
#include "kvtransfer/tcp/internal.h"

#define ACCEPTS_PER_STEP 16
#define ACCEPT_PAUSE_NS  (100 * BT_NS_PER_MS) /* when no descriptor is left */

enum bt_status kvt_tcp_address(struct kvt_transport *base, struct bt_error *error,
                               void **ret_address, size_t *ret_size)
{
    struct kvt_tcp *tcp = (struct kvt_tcp *)base;
    struct kvt_tcp_address address = {.family = tcp->bind.ss_family};
    struct sockaddr_storage bound = {0};
    socklen_t size = sizeof(bound);

    BT_ASSERT(tcp->listener.fd < 0);
    tcp->listener.fd = socket(tcp->bind.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (tcp->listener.fd < 0 ||
        bind(tcp->listener.fd, (struct sockaddr *)&tcp->bind, kvt_tcp_sockaddr_size(&tcp->bind)) !=
            0 ||
        listen(tcp->listener.fd, KVT_TCP_STRANGERS_MAX) != 0 ||
        getsockname(tcp->listener.fd, (struct sockaddr *)&bound, &size) != 0 ||
        !kvt_tcp_watch(tcp, &tcp->listener, EPOLLIN))
        return bt_error_set(error, BT_ERR_UNAVAILABLE, "can't listen for kv writers: %m");
    memcpy(address.token, tcp->token, sizeof(address.token));
    if (bound.ss_family == AF_INET) {
        const struct sockaddr_in *v4 = (const struct sockaddr_in *)&bound;
        address.port = ntohs(v4->sin_port);
        memcpy(address.ip, &v4->sin_addr, sizeof(v4->sin_addr));
    } else {
        const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)&bound;
        address.port = ntohs(v6->sin6_port);
        address.scope = v6->sin6_scope_id;
        memcpy(address.ip, &v6->sin6_addr, sizeof(v6->sin6_addr));
    }
    return kvt_blob_wrap(KVT_BLOB_TCP_ADDRESS, &address, sizeof(address), error, ret_address,
                         ret_size);
}

/* ---- accepting ---- */

static void source_close(struct kvt_tcp_source *source)
{
    kvt_tcp_socket_close(&source->socket); /* freed by the next step */
}

static void drop_oldest_stranger(struct kvt_tcp *tcp)
{
    struct kvt_tcp_source *oldest = NULL;

    for (struct kvt_tcp_source *source = tcp->sources; source != NULL; source = source->next)
        if (!source->named && source->socket.fd >= 0)
            oldest = source;
    if (oldest != NULL)
        source_close(oldest);
}

static void welcome(struct kvt_tcp *tcp, int fd)
{
    struct kvt_tcp_source *source = calloc(1, sizeof(*source));

    if (source == NULL) {
        close(fd);
        return;
    }
    if (tcp->stranger_count >= KVT_TCP_STRANGERS_MAX)
        drop_oldest_stranger(tcp);
    source->socket = (struct kvt_tcp_socket){.owner = KVT_TCP_SOURCE, .fd = fd};
    source->deadline_ns = bt_clock_now_ns() + KVT_TCP_STRANGER_MS * BT_NS_PER_MS;
    source->next = tcp->sources;
    tcp->sources = source;
    tcp->stranger_count++;
    kvt_tcp_tune(fd);
    if (!kvt_tcp_watch(tcp, &source->socket, EPOLLIN | EPOLLOUT | EPOLLET))
        source_close(source);
}

static bool accept_some(struct kvt_tcp *tcp)
{
    for (int i = 0; i < ACCEPTS_PER_STEP; i++) {
        int fd = accept4(tcp->listener.fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd >= 0) {
            welcome(tcp, fd);
            continue;
        }
        if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
            bt_log_warn(0, "kv connections wait: %s", strerror(errno));
            tcp->accept_again_ns = bt_clock_now_ns() + ACCEPT_PAUSE_NS;
            epoll_ctl(tcp->epoll_fd, EPOLL_CTL_DEL, tcp->listener.fd, NULL);
        }
        if (errno == EAGAIN || tcp->accept_again_ns != 0)
            tcp->listener.readable = false;
        return i > 0;
    }
    return true;
}

/* ---- what sources say ---- */

static bool on_hello(struct kvt_tcp *tcp, struct kvt_tcp_source *source)
{
    const struct kvt_tcp_hello *hello = &source->head.hello;
    unsigned char different = 0;

    for (size_t i = 0; i < KVT_TCP_TOKEN_BYTES; i++) /* in the same time for every wrong one */
        different |= hello->token[i] ^ tcp->token[i];
    if (hello->magic != KVT_TCP_MAGIC || hello->version != KVT_TCP_VERSION || different != 0 ||
        hello->line >= KVT_LINES_MAX || tcp->named_count >= KVT_TCP_SOURCES_MAX)
        return false;
    source->named = true;
    source->origin = (struct kvt_origin){
        .incarnation = hello->incarnation, .link = hello->link, .line = hello->line};
    tcp->stranger_count--;
    tcp->named_count++;
    source->ready_due = true;
    return true;
}

static bool on_frame(struct kvt_tcp *tcp, struct kvt_tcp_source *source)
{
    const struct kvt_tcp_frame *frame = &source->head.frame;

    if (frame->magic != KVT_TCP_MAGIC)
        return false;
    switch (frame->kind) {
    case KVT_TCP_WRITE:
        source->payload = kvt_tcp_memory_at(tcp, frame->address, frame->value);
        source->payload_left = frame->value;
        return source->payload != NULL;
    case KVT_TCP_FLUSH:
        source->flushed_due = true;
        source->flushed = frame->value;
        return true;
    default:
        return false;
    }
}

static size_t head_size(const struct kvt_tcp_source *source)
{
    return source->named ? sizeof(source->head.frame) : sizeof(source->head.hello);
}

/* The rest of the payload, and the head behind it in the same call. */
static ssize_t receive(struct kvt_tcp_source *source)
{
    struct iovec parts[2];
    int count = 0;
    size_t payload =
        source->payload_left < KVT_TCP_READ_BYTES ? source->payload_left : KVT_TCP_READ_BYTES;

    if (payload > 0)
        parts[count++] = (struct iovec){.iov_base = source->payload, .iov_len = payload};
    if (payload == source->payload_left)
        parts[count++] = (struct iovec){.iov_base = (char *)&source->head + source->head_bytes,
                                        .iov_len = head_size(source) - source->head_bytes};
    return readv(source->socket.fd, parts, count);
}

/* False: the source is to be closed. */
static bool take(struct kvt_tcp *tcp, struct kvt_tcp_source *source, size_t bytes)
{
    size_t payload = bytes < source->payload_left ? bytes : source->payload_left;

    source->payload += payload;
    source->payload_left -= payload;
    source->head_bytes += bytes - payload;
    if (source->head_bytes < head_size(source))
        return true;
    source->head_bytes = 0;
    return source->named ? on_frame(tcp, source) : on_hello(tcp, source);
}

static void next_answer(struct kvt_tcp_source *source)
{
    source->answer = (struct kvt_tcp_frame){.magic = KVT_TCP_MAGIC, .kind = KVT_TCP_READY};
    if (!source->ready_due) {
        source->answer.kind = KVT_TCP_FLUSHED;
        source->answer.value = source->flushed;
        source->flushed_due = false;
    }
    source->ready_due = false;
    source->answer_left = sizeof(source->answer);
}

static bool has_answers(const struct kvt_tcp_source *source)
{
    return source->answer_left > 0 || source->ready_due || source->flushed_due;
}

static bool send_answers(struct kvt_tcp_source *source)
{
    while (source->socket.writable && has_answers(source)) {
        ssize_t sent;
        if (source->answer_left == 0)
            next_answer(source);
        sent = send(source->socket.fd,
                    (char *)&source->answer + sizeof(source->answer) - source->answer_left,
                    source->answer_left, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent >= 0)
            source->answer_left -= (size_t)sent;
        else if (errno == EAGAIN)
            source->socket.writable = false;
        else if (errno != EINTR)
            return false;
    }
    return true;
}

/* Whether anything happened. */
static bool source_step(struct kvt_tcp *tcp, struct kvt_tcp_source *source)
{
    uint64_t bytes = 0;
    bool good = true, closed = false;

    while (good && source->socket.readable && bytes < KVT_TCP_READ_BYTES) {
        ssize_t got = receive(source);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && errno == EAGAIN) {
            source->socket.readable = false;
            break;
        }
        closed = got <= 0;
        good = !closed && take(tcp, source, (size_t)got);
        bytes += good ? (size_t)got : 0;
    }
    if (good)
        good = send_answers(source);
    if (good)
        return bytes > 0;
    if (source->named && !closed)
        bt_log_warn(0, "kv source %016" PRIx64 " sent what is no write of a pool here: closing it",
                    source->origin.incarnation);
    else if (source->named)
        bt_log_debug(0, "kv source %016" PRIx64 " left", source->origin.incarnation);
    source_close(source);
    return true;
}

static void reap(struct kvt_tcp *tcp)
{
    struct kvt_tcp_source **link = &tcp->sources;

    while (*link != NULL) {
        struct kvt_tcp_source *source = *link;
        if (source->socket.fd >= 0) {
            link = &source->next;
            continue;
        }
        *link = source->next;
        if (source->named)
            tcp->named_count--;
        else
            tcp->stranger_count--;
        free(source);
    }
}

bool kvt_tcp_sources_step(struct kvt_tcp *tcp)
{
    int64_t now_ns = bt_clock_now_ns();
    bool any = false;

    if (tcp->accept_again_ns != 0 && now_ns >= tcp->accept_again_ns) {
        tcp->accept_again_ns = 0;
        tcp->listener.readable = kvt_tcp_watch(tcp, &tcp->listener, EPOLLIN);
    }
    if (tcp->listener.readable)
        any = accept_some(tcp);
    for (struct kvt_tcp_source *source = tcp->sources; source != NULL; source = source->next) {
        if (source->socket.fd >= 0)
            any = source_step(tcp, source) || any;
        if (!source->named && source->socket.fd >= 0 && now_ns >= source->deadline_ns)
            source_close(source);
    }
    reap(tcp);
    return any;
}

int64_t kvt_tcp_sources_deadline_ns(const struct kvt_tcp *tcp)
{
    int64_t deadline_ns = tcp->accept_again_ns == 0 ? BT_NEVER_NS : tcp->accept_again_ns;

    for (const struct kvt_tcp_source *source = tcp->sources; source != NULL; source = source->next)
        if (!source->named && source->deadline_ns < deadline_ns)
            deadline_ns = source->deadline_ns;
    return deadline_ns;
}

void kvt_tcp_disconnect(struct kvt_transport *base, const struct kvt_cut *cut,
                        kvt_completion_fn *done, void *context)
{
    struct kvt_tcp *tcp = (struct kvt_tcp *)base;

    for (struct kvt_tcp_source *source = tcp->sources; source != NULL; source = source->next)
        if (source->named && kvt_cut_covers(cut, &source->origin) && source->socket.fd >= 0)
            source_close(source);
    done(context, BT_OK);
}

void kvt_tcp_sources_close(struct kvt_tcp *tcp)
{
    for (struct kvt_tcp_source *source = tcp->sources; source != NULL; source = source->next)
        if (source->socket.fd >= 0)
            source_close(source);
    reap(tcp);
}
