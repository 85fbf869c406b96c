#include <errno.h>
#include <ifaddrs.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include <netinet/in.h>
#include <netinet/tcp.h>

#include "kvtransfer/device_pool.h"
#include "kvtransfer/pool_memory.h"
#include "kvtransfer/tcp/internal.h"

#define EVENTS_MAX 64

/* ---- sockets ---- */

socklen_t kvt_tcp_sockaddr_size(const struct sockaddr_storage *address)
{
    return address->ss_family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
}

bool kvt_tcp_watch(struct kvt_tcp *tcp, struct kvt_tcp_socket *watched, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = watched};

    return epoll_ctl(tcp->epoll_fd, EPOLL_CTL_ADD, watched->fd, &event) == 0;
}

void kvt_tcp_socket_close(struct kvt_tcp_socket *closed)
{
    if (closed->fd >= 0)
        close(closed->fd);
    closed->fd = -1;
    closed->readable = closed->writable = false;
}

void kvt_tcp_tune(int fd)
{
    static const struct {
        int level, name, value;
    } options[] = {
        {IPPROTO_TCP, TCP_NODELAY, 1},   {SOL_SOCKET, SO_KEEPALIVE, 1},
        {IPPROTO_TCP, TCP_KEEPIDLE, 10}, {IPPROTO_TCP, TCP_KEEPINTVL, 3},
        {IPPROTO_TCP, TCP_KEEPCNT, 3},   {IPPROTO_TCP, TCP_USER_TIMEOUT, 20000},
    };

    for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++)
        setsockopt(fd, options[i].level, options[i].name, &options[i].value,
                   sizeof(options[i].value));
}

static enum bt_status resolve(const char *host, struct bt_error *error,
                              struct sockaddr_storage *ret_address)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    struct addrinfo *found;
    int code = getaddrinfo(host == NULL ? "127.0.0.1" : host, NULL, &hints, &found);
    bool wildcard;

    if (code != 0)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "can't resolve the host '%s': %s", host,
                            gai_strerror(code));
    memset(ret_address, 0, sizeof(*ret_address));
    memcpy(ret_address, found->ai_addr, found->ai_addrlen);
    freeaddrinfo(found);
    if (ret_address->ss_family == AF_INET)
        wildcard = ((struct sockaddr_in *)ret_address)->sin_addr.s_addr == htonl(INADDR_ANY);
    else
        wildcard = IN6_IS_ADDR_UNSPECIFIED(&((struct sockaddr_in6 *)ret_address)->sin6_addr);
    if (wildcard)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "'%s' is no address that peers can reach: name one of this host", host);
    return BT_OK;
}

/* The device's first address, IPv4 before IPv6. */
static enum bt_status address_of_device(const char *device, struct bt_error *error,
                                        struct sockaddr_storage *ret_address)
{
    static const int families[] = {AF_INET, AF_INET6};
    struct ifaddrs *list;
    bool found = false;

    if (getifaddrs(&list) != 0)
        return bt_error_set(error, BT_ERR_UNAVAILABLE, "can't list the network devices: %m");
    for (size_t i = 0; i < 2; i++) {
        for (const struct ifaddrs *at = list; at != NULL && !found; at = at->ifa_next) {
            if (at->ifa_addr == NULL || at->ifa_addr->sa_family != families[i] ||
                strcmp(at->ifa_name, device) != 0)
                continue;
            memset(ret_address, 0, sizeof(*ret_address));
            ret_address->ss_family = (sa_family_t)families[i];
            memcpy(ret_address, at->ifa_addr, kvt_tcp_sockaddr_size(ret_address));
            found = true;
        }
    }
    freeifaddrs(list);
    if (!found)
        return bt_error_set(error, BT_ERR_UNAVAILABLE, "no network device '%s' with an address",
                            device);
    return BT_OK;
}

/* ---- memory ---- */

static enum bt_status memory_add(struct kvt_transport *base, void *memory_base, size_t bytes,
                                 struct bt_error *error, struct kvt_memory **ret_memory)
{
    struct kvt_tcp *tcp = (struct kvt_tcp *)base;
    struct kvt_memory *memory = calloc(1, sizeof(*memory));

    if (memory == NULL)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory");
    *memory = (struct kvt_memory){
        .base = memory_base, .bytes = bytes, .registered = true, .next = tcp->memories};
    tcp->memories = memory;
    *ret_memory = memory;
    return BT_OK;
}

static enum bt_status memory_alloc(struct kvt_transport *base, size_t bytes, struct bt_error *error,
                                   struct kvt_memory **ret_memory)
{
    void *memory_base;
    enum bt_status status = kvt_pool_memory_map(bytes, error, &memory_base);

    if (status != BT_OK)
        return status;
    status = memory_add(base, memory_base, bytes, error, ret_memory);
    if (status != BT_OK)
        munmap(memory_base, bytes);
    else
        (*ret_memory)->registered = false;
    return status;
}

static void memory_free(struct kvt_transport *base, struct kvt_memory *memory)
{
    struct kvt_memory **link = &((struct kvt_tcp *)base)->memories;

    if (memory == NULL)
        return;
    while (*link != memory)
        link = &(*link)->next;
    *link = memory->next;
    if (!memory->registered)
        munmap(memory->base, memory->bytes);
    free(memory);
}

static void *memory_base_of(const struct kvt_memory *memory)
{
    return memory->base;
}

char *kvt_tcp_memory_at(const struct kvt_tcp *tcp, uint64_t address, uint64_t bytes)
{
    for (const struct kvt_memory *memory = tcp->memories; memory != NULL; memory = memory->next) {
        const struct kvt_key_range range = {.base = (uintptr_t)memory->base,
                                            .bytes = memory->bytes};
        if (kvt_key_range_has(&range, address, bytes))
            return (char *)memory->base + (address - range.base);
    }
    return NULL;
}

static enum bt_status memory_pack_key(struct kvt_transport *base, const struct kvt_memory *memory,
                                      struct bt_error *error, void **ret_key, size_t *ret_size)
{
    const struct kvt_key_range range = {.base = (uintptr_t)memory->base, .bytes = memory->bytes};

    (void)base;
    return kvt_key_pack(KVT_BLOB_TCP_KEY, &range, NULL, 0, error, ret_key, ret_size);
}

/* ---- progress ---- */

static bool take_events(struct kvt_tcp *tcp, int timeout_ms)
{
    struct epoll_event events[EVENTS_MAX];
    int count = epoll_wait(tcp->epoll_fd, events, EVENTS_MAX, timeout_ms);
    uint64_t kicks;

    for (int i = 0; i < count; i++) {
        struct kvt_tcp_socket *ready = events[i].data.ptr;
        if (ready->owner == KVT_TCP_WAKE) {
            if (read(ready->fd, &kicks, sizeof(kicks)) < 0)
                BT_ASSERT(errno == EAGAIN);
            continue;
        }
        ready->readable |= (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR | EPOLLRDHUP)) != 0;
        ready->writable |= (events[i].events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) != 0;
    }
    return count > 0;
}

static bool progress(struct kvt_transport *base)
{
    struct kvt_tcp *tcp = (struct kvt_tcp *)base;
    bool any = take_events(tcp, 0);

    for (struct kvt_peer *peer = tcp->peers; peer != NULL; peer = peer->next)
        any = kvt_tcp_peer_step(peer) || any;
    return kvt_tcp_sources_step(tcp) || any;
}

static bool has_work(const struct kvt_tcp *tcp)
{
    for (const struct kvt_peer *peer = tcp->peers; peer != NULL; peer = peer->next)
        if (peer->state == KVT_PEER_READY && peer->socket.writable && peer->unsent.first != NULL)
            return true;
    for (const struct kvt_tcp_source *source = tcp->sources; source != NULL; source = source->next)
        if (source->socket.readable)
            return true;
    return tcp->listener.readable;
}

static bool arm(struct kvt_transport *base, int *ret_timeout_ms)
{
    const struct kvt_tcp *tcp = (const struct kvt_tcp *)base;
    int64_t deadline_ns = kvt_tcp_sources_deadline_ns(tcp), left_ms;

    if (deadline_ns != BT_NEVER_NS) {
        left_ms = (deadline_ns - bt_clock_now_ns()) / BT_NS_PER_MS + 1;
        left_ms = left_ms < 0 ? 0 : left_ms;
        if (*ret_timeout_ms < 0 || left_ms < *ret_timeout_ms)
            *ret_timeout_ms = (int)left_ms;
    }
    return !has_work(tcp);
}

static void wait_for_event(struct kvt_transport *base, int timeout_ms)
{
    if (arm(base, &timeout_ms))
        take_events((struct kvt_tcp *)base, timeout_ms);
}

static void wake(struct kvt_transport *base)
{
    struct kvt_tcp *tcp = (struct kvt_tcp *)base;
    uint64_t one = 1;

    if (write(tcp->wake.fd, &one, sizeof(one)) < 0)
        BT_ASSERT(errno == EAGAIN); /* the counter is full: it is awake */
}

static int event_fd(const struct kvt_transport *base)
{
    return ((const struct kvt_tcp *)base)->epoll_fd;
}

/* ---- creation ---- */

static void destroy(struct kvt_transport *base)
{
    struct kvt_tcp *tcp = (struct kvt_tcp *)base;

    while (tcp->peers != NULL)
        kvt_tcp_peer_close(tcp->peers);
    kvt_tcp_sources_close(tcp);
    kvt_tcp_socket_close(&tcp->listener);
    kvt_tcp_socket_close(&tcp->wake);
    if (tcp->epoll_fd >= 0)
        close(tcp->epoll_fd);
    while (tcp->memories != NULL)
        memory_free(base, tcp->memories);
    free(tcp->ops);
    free(tcp);
}

static const struct kvt_transport_ops tcp_ops = {
    .destroy = destroy,
    .memory_alloc = memory_alloc,
    .memory_register = memory_add,
    .memory_free = memory_free,
    .memory_base = memory_base_of,
    .memory_pack_key = memory_pack_key,
    .address = kvt_tcp_address,
    .disconnect = kvt_tcp_disconnect,
    .connect = kvt_tcp_connect,
    .peer_state = kvt_tcp_peer_state,
    .peer_transport = kvt_tcp_peer_transport,
    .peer_rails = kvt_tcp_peer_rails,
    .peer_error = kvt_tcp_peer_error,
    .map = kvt_tcp_map,
    .write = kvt_tcp_write,
    .flush = kvt_tcp_flush,
    .peer_close = kvt_tcp_peer_close,
    .progress = progress,
    .wait = wait_for_event,
    .wake = wake,
    .event_fd = event_fd,
    .arm = arm,
};

static enum bt_status create_parts(struct kvt_tcp *tcp, const struct kvt_transport_options *options,
                                   struct bt_error *error)
{
    tcp->ops = calloc(KVT_TCP_OPS, sizeof(*tcp->ops));
    tcp->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    tcp->wake.fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (tcp->ops == NULL || tcp->epoll_fd < 0 || tcp->wake.fd < 0 ||
        !kvt_tcp_watch(tcp, &tcp->wake, EPOLLIN))
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory or file descriptor for tcp");
    for (size_t i = 0; i < KVT_TCP_OPS; i++) {
        tcp->ops[i].next = tcp->free_ops;
        tcp->free_ops = &tcp->ops[i];
    }
    if (getrandom(tcp->token, sizeof(tcp->token), 0) != (ssize_t)sizeof(tcp->token))
        return bt_error_set(error, BT_ERR_INTERNAL, "no random numbers: %m");
    tcp->bind_source = options->device != NULL;
    if (options->device != NULL && options->bind_host == NULL)
        return address_of_device(options->device, error, &tcp->bind);
    return resolve(options->bind_host, error, &tcp->bind);
}

enum bt_status kvt_tcp_transport_create(const struct kvt_transport_options *options,
                                        struct bt_error *error,
                                        struct kvt_transport **ret_transport)
{
    struct kvt_tcp *tcp;
    enum bt_status status;

    if (kvt_pool_memory_kind(options->pool_device) != BT_MEMORY_HOST)
        return bt_error_set(error, BT_ERR_UNAVAILABLE, "sockets don't reach memory of GPUs");
    tcp = calloc(1, sizeof(*tcp));
    if (tcp == NULL)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for tcp");
    tcp->base.ops = &tcp_ops;
    tcp->epoll_fd = -1;
    tcp->wake = (struct kvt_tcp_socket){.owner = KVT_TCP_WAKE, .fd = -1};
    tcp->listener = (struct kvt_tcp_socket){.owner = KVT_TCP_LISTENER, .fd = -1};
    status = create_parts(tcp, options, error);
    if (status != BT_OK) {
        destroy(&tcp->base);
        return status;
    }
    *ret_transport = &tcp->base;
    return BT_OK;
}
