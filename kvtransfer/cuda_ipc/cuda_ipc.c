/*
 * No code runs on the target and nothing is sent to it. A process that has died has nothing under
 * way: its driver's files are closed, and with them its copies ended, before its pidfd tells. So
 * `disconnect` has nothing to wait for, as with shm.
 */
#include "kvtransfer/cuda_ipc/cuda_ipc.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/base/process.h"
#include "kvtransfer/blob.h"
#include "kvtransfer/device_pool.h"
#include "kvtransfer/peer_process.h"

#define OPS        2048 /* writes and flushes out */
#define EVENTS_MAX 16
#define LOOK_MS    1 /* at copies that are out: a GPU wakes nobody */

/* A copy, or the end of all before it. */
struct op {
    struct bt_event *event;
    struct kvt_peer *peer;
    kvt_completion_fn *done;
    void *context;
    struct op *next;
};

struct kvt_memory {
    struct kvt_key_range range;
    struct bt_shared_memory shared;
};

struct ipc {
    struct kvt_transport base;
    struct bt_device *device;
    struct bt_stream *stream;
    struct bt_process_id self;
    int epoll_fd, wake_fd; /* epoll: the wake-up and every target's pidfd */
    struct kvt_memory *memory;
    struct kvt_peer *peers;
    struct op *ops; /* [OPS] */
    struct op *free_ops;
    struct op *first, *last; /* that are out, in order */
};

struct kvt_peer {
    struct ipc *ipc;
    enum kvt_peer_state state;
    struct bt_error error;
    struct bt_process_id process;
    int pid_fd;
    struct kvt_key_range range;
    char *mapped; /* range.base here */
    struct kvt_peer *next;
};

static struct ipc *ipc_of(struct kvt_transport *base)
{
    return (struct ipc *)base;
}

/* ---- peers ---- */

static void peer_fail(struct kvt_peer *peer, const char *why)
{
    if (peer->state == KVT_PEER_FAILED)
        return;
    peer->state = KVT_PEER_FAILED;
    bt_error_set(&peer->error, BT_ERR_PEER_LOST, "pid %" PRId64 ": %s", peer->process.pid, why);
}

static enum bt_status map_pool(struct kvt_peer *peer, const void *handle, size_t handle_size,
                               struct bt_error *error)
{
    struct bt_device *device = peer->ipc->device;
    struct bt_shared_memory shared;
    void *mapped;
    size_t bytes;

    if (handle_size != sizeof(shared))
        return bt_error_set(error, BT_ERR_PROTOCOL, "the key of pid %" PRId64 " has %zu bytes",
                            peer->process.pid, handle_size);
    memcpy(&shared, handle, sizeof(shared));
    enum bt_status status = device->ops->attach(device, &shared, error, &mapped, &bytes);
    if (status != BT_OK) {
        bt_error_prefix(error, "the pool of pid %" PRId64, peer->process.pid);
        return status;
    }
    peer->mapped = mapped;
    if (bytes < peer->range.bytes)
        return bt_error_set(error, BT_ERR_PROTOCOL,
                            "the pool of pid %" PRId64 " is smaller than its key says",
                            peer->process.pid);
    return BT_OK;
}

static void peer_finish(struct kvt_peer *peer)
{
    struct bt_device *device = peer->ipc->device;

    if (peer->mapped != NULL)
        device->ops->detach(device, peer->mapped);
    if (peer->pid_fd >= 0)
        close(peer->pid_fd);
    free(peer);
}

static enum bt_status connect_peer(struct kvt_transport *base, const void *address,
                                   size_t address_size, const void *key, size_t key_size,
                                   const struct kvt_origin *origin, struct bt_error *error,
                                   struct kvt_peer **ret_peer)
{
    struct ipc *ipc = ipc_of(base);
    struct kvt_peer *peer = calloc(1, sizeof(*peer));
    const void *name, *handle;
    size_t name_size, handle_size;
    enum bt_status status;

    (void)origin;
    if (peer == NULL)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a peer");
    peer->ipc = ipc;
    peer->pid_fd = -1;
    status = kvt_worker_address_unpack(KVT_BLOB_CUDA_IPC_ADDRESS, address, address_size, error,
                                       &peer->process, &name, &name_size);
    if (status == BT_OK)
        status = kvt_key_unpack(KVT_BLOB_CUDA_IPC_KEY, key, key_size, error, &peer->range, &handle,
                                &handle_size);
    if (status == BT_OK && !bt_process_same_host(&ipc->self, &peer->process))
        status = bt_error_set(error, BT_ERR_UNAVAILABLE,
                              "GPUs of another host can't be mapped: the peer is there");
    if (status == BT_OK)
        status = kvt_peer_process_watch(&peer->process, ipc->epoll_fd, peer, error, &peer->pid_fd);
    if (status == BT_OK)
        status = map_pool(peer, handle, handle_size, error);
    if (status != BT_OK) {
        peer_finish(peer);
        return status;
    }
    peer->state = KVT_PEER_READY;
    peer->next = ipc->peers;
    ipc->peers = peer;
    *ret_peer = peer;
    return BT_OK;
}

static enum kvt_peer_state peer_state(const struct kvt_peer *peer)
{
    return peer->state;
}

static const char *peer_transport(const struct kvt_peer *peer)
{
    (void)peer;
    return "cuda_ipc";
}

static uint32_t peer_rails(const struct kvt_peer *peer, struct kvt_rail_info *ret_rails,
                           uint32_t max)
{
    if (peer->state != KVT_PEER_READY)
        return 0;
    if (max > 0)
        ret_rails[0] = (struct kvt_rail_info){.transport = "cuda_ipc", .ordered = true};
    return 1;
}

static const char *peer_error(const struct kvt_peer *peer)
{
    return peer->error.text;
}

static void *map(struct kvt_peer *peer, uint64_t remote_address, size_t bytes)
{
    (void)peer, (void)remote_address, (void)bytes;
    return NULL; /* the host can't store there */
}

/* ---- copies ---- */

static enum bt_status post(struct kvt_peer *peer, kvt_completion_fn *done, void *context)
{
    struct ipc *ipc = peer->ipc;
    struct op *op = ipc->free_ops;

    ipc->free_ops = op->next;
    *op = (struct op){.event = op->event, .peer = peer, .done = done, .context = context};
    ipc->device->ops->event_record(op->event, ipc->stream);
    if (ipc->last != NULL)
        ipc->last->next = op;
    else
        ipc->first = op;
    ipc->last = op;
    return BT_IN_PROGRESS;
}

/* Of this memory, which is all that is pushed but for progress records: those are hints for hosts
 * that can read them, and the peer's can't. */
static bool is_pool(const struct ipc *ipc, const void *source, size_t bytes)
{
    return kvt_key_range_has(&ipc->memory->range, (uintptr_t)source, bytes);
}

static enum bt_status write_to(struct kvt_peer *peer, const void *source, size_t bytes,
                               uint64_t remote_address, kvt_completion_fn *done, void *context)
{
    struct ipc *ipc = peer->ipc;

    if (peer->state != KVT_PEER_READY)
        return BT_ERR_PEER_LOST;
    if (!kvt_key_range_has(&peer->range, remote_address, bytes))
        return BT_ERR_INVALID_ARGUMENT;
    if (!is_pool(ipc, source, bytes))
        return BT_OK;
    if (ipc->free_ops == NULL)
        return BT_ERR_EXHAUSTED;
    bt_device_copy(ipc->device, ipc->stream, peer->mapped + (remote_address - peer->range.base),
                   source, bytes);
    return post(peer, done, context);
}

static enum bt_status flush(struct kvt_peer *peer, kvt_completion_fn *done, void *context)
{
    if (peer->state != KVT_PEER_READY)
        return BT_ERR_PEER_LOST;
    return peer->ipc->free_ops == NULL ? BT_ERR_EXHAUSTED : post(peer, done, context);
}

static void release(struct ipc *ipc, struct op *op)
{
    op->next = ipc->free_ops;
    ipc->free_ops = op;
}

/* The eldest is over: its status. A device that failed has lost all. */
static enum bt_status outcome(struct ipc *ipc, const struct op *op)
{
    struct bt_error error = {0};

    if (ipc->device->ops->event_synchronize(op->event, &error) != BT_OK)
        peer_fail(op->peer, error.text);
    return op->peer->state == KVT_PEER_READY ? BT_OK : BT_ERR_PEER_LOST;
}

static bool finish_ops(struct ipc *ipc)
{
    bool any = false;

    while (ipc->first != NULL && ipc->device->ops->event_query(ipc->first->event)) {
        struct op *op = ipc->first;
        const struct op over = *op;
        ipc->first = op->next;
        if (ipc->first == NULL)
            ipc->last = NULL;
        enum bt_status status = outcome(ipc, op);
        release(ipc, op);
        over.done(over.context, status);
        any = true;
    }
    return any;
}

/* Of a peer that goes: they are told so, in order. */
static void abandon_ops(struct ipc *ipc, const struct kvt_peer *peer)
{
    struct op *list = ipc->first;

    ipc->first = ipc->last = NULL;
    while (list != NULL) {
        struct op *op = list;
        const struct op over = *op;
        list = op->next;
        op->next = NULL;
        if (over.peer == peer) {
            release(ipc, op);
            over.done(over.context, BT_ERR_PEER_LOST);
            continue;
        }
        if (ipc->last != NULL)
            ipc->last->next = op;
        else
            ipc->first = op;
        ipc->last = op;
    }
}

/* Its copies end first: they would go on into memory that is no longer mapped. */
static void peer_close(struct kvt_peer *peer)
{
    struct ipc *ipc = peer->ipc;
    struct kvt_peer **link = &ipc->peers;

    (void)bt_device_synchronize(ipc->device, ipc->stream, NULL);
    abandon_ops(ipc, peer);
    while (*link != peer)
        link = &(*link)->next;
    *link = peer->next;
    peer_finish(peer);
}

static void disconnect(struct kvt_transport *base, const struct kvt_cut *cut,
                       kvt_completion_fn *done, void *context)
{
    (void)base, (void)cut;
    done(context, BT_OK);
}

/* ---- memory ---- */

static enum bt_status memory_alloc(struct kvt_transport *base, size_t bytes, struct bt_error *error,
                                   struct kvt_memory **ret_memory)
{
    (void)base, (void)ret_memory;
    return bt_error_set(error, BT_ERR_UNSUPPORTED, "cuda_ipc allocates no pool of %zu bytes",
                        bytes);
}

static enum bt_status memory_register(struct kvt_transport *base, void *memory_base, size_t bytes,
                                      struct bt_error *error, struct kvt_memory **ret_memory)
{
    struct ipc *ipc = ipc_of(base);
    struct kvt_memory *memory = calloc(1, sizeof(*memory));
    enum bt_status status;

    BT_ASSERT(ipc->memory == NULL);
    if (memory == NULL)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory");
    memory->range = (struct kvt_key_range){.base = (uintptr_t)memory_base, .bytes = bytes};
    status = ipc->device->ops->share(ipc->device, memory_base, error, &memory->shared);
    if (status != BT_OK) {
        free(memory);
        return status;
    }
    ipc->memory = *ret_memory = memory;
    return BT_OK;
}

static void memory_free(struct kvt_transport *base, struct kvt_memory *memory)
{
    ipc_of(base)->memory = NULL;
    free(memory);
}

static void *memory_base_of(const struct kvt_memory *memory)
{
    return (void *)(uintptr_t)memory->range.base;
}

static enum bt_status pack_key(struct kvt_transport *base, const struct kvt_memory *memory,
                               struct bt_error *error, void **ret_key, size_t *ret_size)
{
    (void)base;
    return kvt_key_pack(KVT_BLOB_CUDA_IPC_KEY, &memory->range, &memory->shared,
                        sizeof(memory->shared), error, ret_key, ret_size);
}

static enum bt_status address(struct kvt_transport *base, struct bt_error *error,
                              void **ret_address, size_t *ret_size)
{
    const struct ipc *ipc = ipc_of(base);

    return kvt_worker_address_pack(KVT_BLOB_CUDA_IPC_ADDRESS, &ipc->self, ipc->device->name,
                                   sizeof(ipc->device->name), error, ret_address, ret_size);
}

/* ---- the loop ---- */

static void wake(struct kvt_transport *base)
{
    uint64_t one = 1;

    if (write(ipc_of(base)->wake_fd, &one, sizeof(one)) < 0)
        BT_ASSERT(errno == EAGAIN); /* the counter is full: it is awake */
}

static void drain_wake(const struct ipc *ipc)
{
    uint64_t count;

    if (read(ipc->wake_fd, &count, sizeof(count)) < 0)
        BT_ASSERT(errno == EAGAIN);
}

static bool take_events(struct ipc *ipc, int timeout_ms)
{
    struct epoll_event events[EVENTS_MAX];
    int count = epoll_wait(ipc->epoll_fd, events, EVENTS_MAX, timeout_ms);

    for (int i = 0; i < count; i++) {
        struct kvt_peer *peer = events[i].data.ptr;
        if (peer == NULL) {
            drain_wake(ipc);
            continue;
        }
        epoll_ctl(ipc->epoll_fd, EPOLL_CTL_DEL, peer->pid_fd, NULL);
        peer_fail(peer, "has ended");
    }
    return count > 0;
}

static bool progress(struct kvt_transport *base)
{
    struct ipc *ipc = ipc_of(base);
    bool any = finish_ops(ipc);

    return take_events(ipc, 0) || any;
}

static bool arm(struct kvt_transport *base, int *ret_timeout_ms)
{
    if (ipc_of(base)->first != NULL && (*ret_timeout_ms < 0 || *ret_timeout_ms > LOOK_MS))
        *ret_timeout_ms = LOOK_MS;
    return true;
}

static void wait_for_event(struct kvt_transport *base, int timeout_ms)
{
    (void)arm(base, &timeout_ms);
    take_events(ipc_of(base), timeout_ms);
}

static int event_fd(const struct kvt_transport *base)
{
    return ((const struct ipc *)base)->epoll_fd;
}

/* ---- life ---- */

static void destroy(struct kvt_transport *base)
{
    struct ipc *ipc = ipc_of(base);

    while (ipc->peers != NULL)
        peer_close(ipc->peers);
    free(ipc->memory);
    for (size_t i = 0; ipc->ops != NULL && i < OPS; i++)
        if (ipc->ops[i].event != NULL)
            ipc->device->ops->event_destroy(ipc->ops[i].event);
    free(ipc->ops);
    if (ipc->stream != NULL)
        bt_device_stream_destroy(ipc->device, ipc->stream);
    if (ipc->epoll_fd >= 0)
        close(ipc->epoll_fd);
    if (ipc->wake_fd >= 0)
        close(ipc->wake_fd);
    free(ipc);
}

static const struct kvt_transport_ops ipc_ops = {
    .destroy = destroy,
    .memory_alloc = memory_alloc,
    .memory_register = memory_register,
    .memory_free = memory_free,
    .memory_base = memory_base_of,
    .memory_pack_key = pack_key,
    .address = address,
    .disconnect = disconnect,
    .connect = connect_peer,
    .peer_state = peer_state,
    .peer_transport = peer_transport,
    .peer_rails = peer_rails,
    .peer_error = peer_error,
    .map = map,
    .write = write_to,
    .flush = flush,
    .peer_close = peer_close,
    .progress = progress,
    .wait = wait_for_event,
    .wake = wake,
    .event_fd = event_fd,
    .arm = arm,
};

static enum bt_status create_ops(struct ipc *ipc, struct bt_error *error)
{
    ipc->ops = calloc(OPS, sizeof(*ipc->ops));
    if (ipc->ops == NULL)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for cuda_ipc");
    for (size_t i = 0; i < OPS; i++) {
        enum bt_status status =
            ipc->device->ops->event_create(ipc->device, error, &ipc->ops[i].event);
        if (status != BT_OK)
            return status;
        release(ipc, &ipc->ops[i]);
    }
    return BT_OK;
}

static enum bt_status create_parts(struct ipc *ipc, struct bt_error *error)
{
    const struct bt_stream_limits limits = {0};
    struct epoll_event woken = {.events = EPOLLIN};
    enum bt_status status = bt_process_self(error, &ipc->self);

    ipc->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    ipc->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (ipc->epoll_fd < 0 || ipc->wake_fd < 0 ||
        epoll_ctl(ipc->epoll_fd, EPOLL_CTL_ADD, ipc->wake_fd, &woken) != 0)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no file descriptor for cuda_ipc: %m");
    if (status == BT_OK)
        status = bt_device_enter(ipc->device, error);
    if (status == BT_OK)
        status = bt_device_stream_create(ipc->device, &limits, NULL, error, &ipc->stream);
    return status == BT_OK ? create_ops(ipc, error) : status;
}

enum bt_status kvt_cuda_ipc_transport_create(const struct kvt_transport_options *options,
                                             struct bt_error *error,
                                             struct kvt_transport **ret_transport)
{
    struct ipc *ipc;
    enum bt_status status;

    if (kvt_pool_memory_kind(options->pool_device) != BT_MEMORY_CUDA)
        return bt_error_set(error, BT_ERR_UNAVAILABLE, "the pool is in memory of the host");
    if (options->pool_device->ops->share == NULL)
        return bt_error_set(error, BT_ERR_UNAVAILABLE, "%s can't share its memory",
                            options->pool_device->name);
    ipc = calloc(1, sizeof(*ipc));
    if (ipc == NULL)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for cuda_ipc");
    ipc->base.ops = &ipc_ops;
    ipc->epoll_fd = ipc->wake_fd = -1;
    ipc->device = options->pool_device;
    status = create_parts(ipc, error);
    if (status != BT_OK) {
        destroy(&ipc->base);
        return status;
    }
    *ret_transport = &ipc->base;
    return BT_OK;
}
