#include "kvtransfer/rails/rails.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "kvtransfer/rails/internal.h"

static struct kvt_transport *rail_transport(const struct kvt_rails *rails, uint32_t index)
{
    return rails->rails[index].rail.transport;
}

/* ---- memory: the first rail allocates, the others register ---- */

static void memory_free(struct kvt_transport *base, struct kvt_memory *memory)
{
    struct kvt_rails *rails = (struct kvt_rails *)base;
    struct kvt_memory **at = &rails->memories;

    while (*at != memory)
        at = &(*at)->next;
    *at = memory->next;
    for (uint32_t i = rails->count; i-- > 0;)
        if (memory->parts[i] != NULL)
            rail_transport(rails, i)->ops->memory_free(rail_transport(rails, i), memory->parts[i]);
    free(memory);
}

static enum bt_status memory_make(struct kvt_transport *base, void *given, size_t bytes,
                                  struct bt_error *error, struct kvt_memory **ret_memory)
{
    struct kvt_rails *rails = (struct kvt_rails *)base;
    struct kvt_memory *memory = calloc(1, sizeof(*memory));

    if (memory == NULL)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for the pool of rails");
    memory->base = given;
    memory->next = rails->memories;
    rails->memories = memory;
    for (uint32_t i = 0; i < rails->count; i++) {
        struct kvt_transport *transport = rail_transport(rails, i);
        enum bt_status status =
            memory->base == NULL
                ? transport->ops->memory_alloc(transport, bytes, error, &memory->parts[i])
                : transport->ops->memory_register(transport, memory->base, bytes, error,
                                                  &memory->parts[i]);
        if (status != BT_OK) {
            bt_error_prefix(error, "rail %s", rails->rails[i].rail.device);
            memory->parts[i] = NULL;
            memory_free(base, memory);
            return status;
        }
        if (memory->base == NULL)
            memory->base = transport->ops->memory_base(memory->parts[i]);
    }
    *ret_memory = memory;
    return BT_OK;
}

static enum bt_status memory_alloc(struct kvt_transport *base, size_t bytes, struct bt_error *error,
                                   struct kvt_memory **ret_memory)
{
    return memory_make(base, NULL, bytes, error, ret_memory);
}

static enum bt_status memory_register(struct kvt_transport *base, void *memory_base, size_t bytes,
                                      struct bt_error *error, struct kvt_memory **ret_memory)
{
    return memory_make(base, memory_base, bytes, error, ret_memory);
}

static void *memory_base_of(const struct kvt_memory *memory)
{
    return memory->base;
}

/* ---- blobs ---- */

/* Of `memory` the keys, of NULL the addresses. */
static enum bt_status pack_all(struct kvt_rails *rails, const struct kvt_memory *memory,
                               struct bt_error *error, void **ret_blob, size_t *ret_size)
{
    struct kvt_rails_part parts[KVT_RAILS_MAX] = {0};
    void *blobs[KVT_RAILS_MAX] = {NULL};
    enum bt_status status = BT_OK;

    for (uint32_t i = 0; i < rails->count && status == BT_OK; i++) {
        struct kvt_transport *transport = rail_transport(rails, i);
        status = memory != NULL
                     ? transport->ops->memory_pack_key(transport, memory->parts[i], error,
                                                       &blobs[i], &parts[i].size)
                     : transport->ops->address(transport, error, &blobs[i], &parts[i].size);
        parts[i].bytes = blobs[i];
        parts[i].rate_mbps = rails->rails[i].rail.rate_mbps;
        if (status != BT_OK)
            bt_error_prefix(error, "rail %s", rails->rails[i].rail.device);
    }
    if (status == BT_OK)
        status = kvt_rails_pack(memory != NULL ? KVT_BLOB_RAILS_KEY : KVT_BLOB_RAILS_ADDRESS, parts,
                                rails->count, error, ret_blob, ret_size);
    for (uint32_t i = 0; i < rails->count; i++)
        free(blobs[i]);
    return status;
}

static enum bt_status memory_pack_key(struct kvt_transport *base, const struct kvt_memory *memory,
                                      struct bt_error *error, void **ret_key, size_t *ret_size)
{
    return pack_all((struct kvt_rails *)base, memory, error, ret_key, ret_size);
}

static enum bt_status address(struct kvt_transport *base, struct bt_error *error,
                              void **ret_address, size_t *ret_size)
{
    return pack_all((struct kvt_rails *)base, NULL, error, ret_address, ret_size);
}

/* ---- cutting off ---- */

struct disconnect {
    uint32_t left;
    kvt_completion_fn *done;
    void *context;
};

static void on_disconnected(void *context, enum bt_status status)
{
    struct disconnect *disconnect = context;

    (void)status;
    if (--disconnect->left > 0)
        return;
    disconnect->done(disconnect->context, BT_OK);
    free(disconnect);
}

/* Which rail a line comes to is the source's business: all look. */
static void disconnect(struct kvt_transport *base, const struct kvt_cut *cut,
                       kvt_completion_fn *done, void *context)
{
    struct kvt_rails *rails = (struct kvt_rails *)base;
    struct disconnect *disconnect = malloc(sizeof(*disconnect));
    uint32_t count = rails->count;

    BT_ASSERT(disconnect != NULL); /* a lost one would keep pages in quarantine for ever */
    *disconnect = (struct disconnect){.left = count, .done = done, .context = context};
    for (uint32_t i = 0; i < count; i++)
        rail_transport(rails, i)->ops->disconnect(rail_transport(rails, i), cut, on_disconnected,
                                                  disconnect);
}

/* ---- what a peer is ---- */

uint32_t kvt_rails_choose(const struct kvt_rails_load *loads, uint32_t count, uint64_t bytes)
{
    uint32_t best = count;

    for (uint32_t i = 0; i < count; i++) {
        const struct kvt_rails_load *a = &loads[i], *b = &loads[best < count ? best : i];
        __uint128_t a_end = (__uint128_t)(a->queued + bytes) * b->rate;
        __uint128_t b_end = (__uint128_t)(b->queued + bytes) * a->rate;
        if (!a->usable)
            continue;
        if (best == count || a_end < b_end ||
            (a_end == b_end && (__uint128_t)a->given * b->rate < (__uint128_t)b->given * a->rate))
            best = i;
    }
    return best;
}

enum kvt_peer_state kvt_rails_peer_state(const struct kvt_peer *peer)
{
    return peer->state;
}

const char *kvt_rails_peer_transport(const struct kvt_peer *peer)
{
    for (uint32_t i = 0; i < peer->line_count; i++)
        if (peer->lines[i].transport[0] != '\0')
            return peer->lines[i].transport;
    return "";
}

uint32_t kvt_rails_peer_rails(const struct kvt_peer *peer, struct kvt_rail_info *ret_rails,
                              uint32_t max)
{
    if (peer->state == KVT_PEER_CONNECTING)
        return 0;
    for (uint32_t i = 0; i < peer->line_count && i < max; i++) {
        const struct kvt_rails_line *line = &peer->lines[i];
        ret_rails[i] = (struct kvt_rail_info){.transport = line->transport, .failed = !line->ready};
        snprintf(ret_rails[i].device, sizeof(ret_rails[i].device), "%s",
                 peer->rails->rails[line->rail].rail.device);
    }
    return peer->line_count;
}

const char *kvt_rails_peer_error(const struct kvt_peer *peer)
{
    return peer->error.text;
}

uint64_t kvt_rails_peer_cuts(const struct kvt_peer *peer)
{
    return peer->cuts;
}

/* ---- running ---- */

static bool progress(struct kvt_transport *base)
{
    struct kvt_rails *rails = (struct kvt_rails *)base;
    bool any = false;

    for (uint32_t i = 0; i < rails->count; i++)
        any = rail_transport(rails, i)->ops->progress(rail_transport(rails, i)) || any;
    for (struct kvt_peer *peer = rails->peers; peer != NULL; peer = peer->next)
        any = kvt_rails_peer_step(peer) || any;
    return any;
}

/* Stragglers are given up, and lines tried again, by the clock. */
static void bound_timeout(const struct kvt_rails *rails, int *timeout_ms)
{
    for (const struct kvt_peer *peer = rails->peers; peer != NULL; peer = peer->next) {
        int64_t deadline_ns = kvt_rails_peer_deadline_ns(peer);
        int64_t left_ns = deadline_ns - bt_clock_now_ns();
        int left_ms = left_ns <= 0 ? 0 : (int)(left_ns / BT_NS_PER_MS) + 1;
        if (deadline_ns != BT_NEVER_NS && (*timeout_ms < 0 || left_ms < *timeout_ms))
            *timeout_ms = left_ms;
    }
}

static bool arm(struct kvt_transport *base, int *ret_timeout_ms)
{
    struct kvt_rails *rails = (struct kvt_rails *)base;
    bool armed = true;

    bound_timeout(rails, ret_timeout_ms);
    for (uint32_t i = 0; i < rails->count && armed; i++)
        armed = rail_transport(rails, i)->ops->arm(rail_transport(rails, i), ret_timeout_ms);
    return armed;
}

static void wait_for_event(struct kvt_transport *base, int timeout_ms)
{
    struct kvt_rails *rails = (struct kvt_rails *)base;
    struct pollfd fds[] = {{.fd = rails->wake_fd, .events = POLLIN},
                           {.fd = rails->epoll_fd, .events = POLLIN}};
    uint64_t count;

    if (arm(base, &timeout_ms) && poll(fds, 2, timeout_ms) > 0 && (fds[0].revents & POLLIN) != 0 &&
        read(rails->wake_fd, &count, sizeof(count)) < 0)
        BT_ASSERT(errno == EAGAIN);
}

static int event_fd(const struct kvt_transport *base)
{
    return ((const struct kvt_rails *)base)->epoll_fd;
}

static void wake(struct kvt_transport *base)
{
    uint64_t one = 1;

    if (write(((struct kvt_rails *)base)->wake_fd, &one, sizeof(one)) < 0)
        BT_ASSERT(errno == EAGAIN); /* the counter is full: it is awake */
}

static uint32_t rail_stats(const struct kvt_transport *base, struct kvt_rail_stats *ret_stats,
                           uint32_t max)
{
    const struct kvt_rails *rails = (const struct kvt_rails *)base;

    for (uint32_t i = 0; i < rails->count && i < max; i++) {
        const struct kvt_rails_rail *rail = &rails->rails[i];
        struct kvt_rail_stats *stats = &ret_stats[i];
        *stats = (struct kvt_rail_stats){
            .transport = atomic_load(&rail->transport),
            .rate_mbps = rail->rail.rate_mbps,
            .lines = atomic_load_explicit(&rail->lines, memory_order_relaxed),
            .bytes = atomic_load_explicit(&rail->bytes, memory_order_relaxed),
            .writes = atomic_load_explicit(&rail->writes, memory_order_relaxed),
            .repeats = atomic_load_explicit(&rail->repeats, memory_order_relaxed),
            .failures = atomic_load_explicit(&rail->failures, memory_order_relaxed),
        };
        memcpy(stats->device, rail->rail.device, sizeof(stats->device));
    }
    return rails->count;
}

/* ---- making and ending ---- */

/* The first rail's memory is the others', so it ends last. */
static void destroy(struct kvt_transport *base)
{
    struct kvt_rails *rails = (struct kvt_rails *)base;

    while (rails->peers != NULL)
        kvt_rails_peer_close(rails->peers);
    for (uint32_t i = rails->count; i-- > 0;)
        rail_transport(rails, i)->ops->destroy(rail_transport(rails, i));
    while (rails->memories != NULL) {
        struct kvt_memory *memory = rails->memories;
        rails->memories = memory->next;
        free(memory);
    }
    if (rails->wake_fd >= 0)
        close(rails->wake_fd);
    if (rails->epoll_fd >= 0)
        close(rails->epoll_fd);
    free(rails->pieces);
    free(rails->ops);
    free(rails);
}

/* Every write goes through the rails. */
static void *map(struct kvt_peer *peer, uint64_t remote_address, size_t bytes)
{
    (void)peer, (void)remote_address, (void)bytes;
    return NULL;
}

static const struct kvt_transport_ops rails_ops = {
    .destroy = destroy,
    .memory_alloc = memory_alloc,
    .memory_register = memory_register,
    .memory_free = memory_free,
    .memory_base = memory_base_of,
    .memory_pack_key = memory_pack_key,
    .address = address,
    .disconnect = disconnect,
    .connect = kvt_rails_connect,
    .peer_state = kvt_rails_peer_state,
    .peer_transport = kvt_rails_peer_transport,
    .peer_rails = kvt_rails_peer_rails,
    .peer_error = kvt_rails_peer_error,
    .map = map,
    .peer_cuts = kvt_rails_peer_cuts,
    .write = kvt_rails_write,
    .flush = kvt_rails_flush,
    .peer_close = kvt_rails_peer_close,
    .progress = progress,
    .wait = wait_for_event,
    .wake = wake,
    .event_fd = event_fd,
    .arm = arm,
    .rail_stats = rail_stats,
};

static void make_free_lists(struct kvt_rails *rails)
{
    for (size_t i = 0; i < KVT_RAILS_PIECES; i++) {
        rails->pieces[i].next = rails->free_pieces;
        rails->free_pieces = &rails->pieces[i];
        rails->ops[i].next = rails->free_ops;
        rails->free_ops = &rails->ops[i];
    }
}

/* One without a descriptor shortens the time-out when it is armed. */
static void watch(struct kvt_rails *rails, const struct kvt_transport *transport)
{
    struct epoll_event event = {.events = EPOLLIN};
    int fd = transport->ops->event_fd(transport);

    if (fd >= 0)
        BT_ASSERT(epoll_ctl(rails->epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0);
}

enum bt_status kvt_rails_create(const struct kvt_rail *rails, uint32_t count,
                                struct bt_error *error, struct kvt_transport **ret_transport)
{
    struct kvt_rails *made = calloc(1, sizeof(*made));

    BT_ASSERT(count > 0 && count <= KVT_RAILS_MAX);
    if (made != NULL) {
        made->pieces = calloc(KVT_RAILS_PIECES, sizeof(*made->pieces));
        made->ops = calloc(KVT_RAILS_PIECES, sizeof(*made->ops));
        made->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        made->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    }
    if (made == NULL || made->pieces == NULL || made->ops == NULL || made->wake_fd < 0 ||
        made->epoll_fd < 0) {
        for (uint32_t i = 0; i < count; i++)
            rails[i].transport->ops->destroy(rails[i].transport);
        if (made != NULL)
            destroy(&made->base);
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory or file descriptor for rails");
    }
    made->base.ops = &rails_ops;
    made->count = count;
    for (uint32_t i = 0; i < count; i++) {
        BT_ASSERT(rails[i].rate_mbps > 0);
        made->rails[i].rail = rails[i];
        made->rails[i].transport = "";
        watch(made, rails[i].transport);
    }
    make_free_lists(made);
    *ret_transport = &made->base;
    return BT_OK;
}
