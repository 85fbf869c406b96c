/*
 * Shared memory: UCX allocates the pool where other processes can map it, packs its key, and maps
 * it here; from then on a write is a store, made by us (checksum.h: past the caches, summed on the
 * way). No code runs on the target, nothing is sent to it, and a store is over when it returns: so
 * a dead source has nothing under way, and `disconnect` has nothing to wait for.
 *
 * The death of a target is told by its pidfd.
 */
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "common/base/log.h"
#include "kvtransfer/checksum.h"
#include "kvtransfer/device_pool.h"
#include "kvtransfer/peer_process.h"
#include "kvtransfer/ucx/context.h"
#include "kvtransfer/ucx/ucx.h"

#define EVENTS_MAX 16

struct shm {
    struct kvt_ucx ucx;
    int epoll_fd; /* the wake-up and every target's pidfd */
    struct kvt_peer *peers;
};

struct kvt_peer {
    struct shm *shm;
    enum kvt_peer_state state;
    struct bt_error error;
    struct bt_process_id process;
    int pid_fd;
    ucp_ep_h ep; /* what UCX wants for unpacking a key; carries nothing */
    ucp_rkey_h rkey;
    struct kvt_key_range range;
    char *mapped; /* range.base here */
    struct kvt_peer *next;
};

static void peer_fail(struct kvt_peer *peer, const char *why)
{
    if (peer->state == KVT_PEER_FAILED)
        return;
    peer->state = KVT_PEER_FAILED;
    bt_error_set(&peer->error, BT_ERR_PEER_LOST, "pid %" PRId64 ": %s", peer->process.pid, why);
}

static enum bt_status map_pool(struct kvt_peer *peer, const void *worker, const void *rkey,
                               struct bt_error *error)
{
    ucp_ep_params_t params = {
        .field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE,
        .address = worker,
        .err_mode = UCP_ERR_HANDLING_MODE_NONE, /* UCX has shared memory for no other */
    };
    ucs_status_t status = ucp_ep_create(peer->shm->ucx.worker, &params, &peer->ep);
    void *mapped;

    if (status == UCS_OK)
        status = ucp_ep_rkey_unpack(peer->ep, rkey, &peer->rkey);
    if (status == UCS_OK)
        status = ucp_rkey_ptr(peer->rkey, peer->range.base, &mapped);
    if (status != UCS_OK)
        return bt_error_set(error, BT_ERR_UNAVAILABLE,
                            "shared memory does not reach pid %" PRId64 ": %s", peer->process.pid,
                            ucs_status_string(status));
    if (!kvt_ucx_is_shared(mapped, peer->range.bytes))
        return bt_error_set(error, BT_ERR_PROTOCOL,
                            "the pool of pid %" PRId64 " is smaller than its key says",
                            peer->process.pid);
    peer->mapped = mapped;
    return BT_OK;
}

static void peer_finish(struct kvt_peer *peer)
{
    ucp_request_param_t param = {0};
    ucs_status_ptr_t request;

    if (peer->rkey != NULL)
        ucp_rkey_destroy(peer->rkey);
    if (peer->ep != NULL) {
        request = ucp_ep_close_nbx(peer->ep, &param);
        if (UCS_PTR_IS_PTR(request))
            ucp_request_free(request); /* what is left of it goes with the worker */
    }
    if (peer->pid_fd >= 0)
        close(peer->pid_fd);
    free(peer);
}

static enum bt_status connect_peer(struct kvt_transport *base, const void *address,
                                   size_t address_size, const void *key, size_t key_size,
                                   const struct kvt_origin *origin, struct bt_error *error,
                                   struct kvt_peer **ret_peer)
{
    struct shm *shm = (struct shm *)base;
    struct kvt_peer *peer = calloc(1, sizeof(*peer));
    size_t worker_size, rkey_size;
    const void *worker, *rkey;
    enum bt_status status;

    (void)origin;
    if (peer == NULL)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a peer");
    peer->shm = shm;
    peer->pid_fd = -1;
    status = kvt_worker_address_unpack(KVT_BLOB_SHM_ADDRESS, address, address_size, error,
                                       &peer->process, &worker, &worker_size);
    if (status == BT_OK)
        status =
            kvt_key_unpack(KVT_BLOB_SHM_KEY, key, key_size, error, &peer->range, &rkey, &rkey_size);
    if (status == BT_OK && !bt_process_same_host(&shm->ucx.self, &peer->process))
        status = bt_error_set(error, BT_ERR_UNAVAILABLE,
                              "shared memory does not reach the peer: it is on another host");
    if (status == BT_OK)
        status = kvt_peer_process_watch(&peer->process, shm->epoll_fd, peer, error, &peer->pid_fd);
    if (status == BT_OK)
        status = map_pool(peer, worker, rkey, error);
    if (status != BT_OK) {
        peer_finish(peer);
        return status;
    }
    peer->state = KVT_PEER_READY;
    peer->next = shm->peers;
    shm->peers = peer;
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
    return "shm";
}

static uint32_t peer_rails(const struct kvt_peer *peer, struct kvt_rail_info *ret_rails,
                           uint32_t max)
{
    if (peer->state != KVT_PEER_READY)
        return 0;
    if (max > 0)
        ret_rails[0] = (struct kvt_rail_info){.transport = "shm"};
    return 1;
}

static const char *peer_error(const struct kvt_peer *peer)
{
    return peer->error.text;
}

static void *map(struct kvt_peer *peer, uint64_t remote_address, size_t bytes)
{
    if (peer->state != KVT_PEER_READY || !kvt_key_range_has(&peer->range, remote_address, bytes))
        return NULL;
    return peer->mapped + (remote_address - peer->range.base);
}

static enum bt_status write_to(struct kvt_peer *peer, const void *source, size_t bytes,
                               uint64_t remote_address, kvt_completion_fn *done, void *context)
{
    void *to = map(peer, remote_address, bytes);

    (void)done, (void)context;
    if (peer->state != KVT_PEER_READY)
        return BT_ERR_PEER_LOST;
    if (to == NULL)
        return BT_ERR_INVALID_ARGUMENT;
    kvt_copy(to, source, bytes);
    kvt_copy_fence();
    return BT_OK;
}

static enum bt_status flush(struct kvt_peer *peer, kvt_completion_fn *done, void *context)
{
    struct pollfd ended = {.fd = peer->pid_fd, .events = POLLIN};

    (void)done, (void)context;
    if (poll(&ended, 1, 0) == 1)
        peer_fail(peer, "has ended");
    return peer->state == KVT_PEER_READY ? BT_OK : BT_ERR_PEER_LOST;
}

static void peer_close(struct kvt_peer *peer)
{
    struct kvt_peer **link = &peer->shm->peers;

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

static enum bt_status pack_key(struct kvt_transport *base, const struct kvt_memory *memory,
                               struct bt_error *error, void **ret_key, size_t *ret_size)
{
    return kvt_ucx_key_pack((struct kvt_ucx *)base, KVT_BLOB_SHM_KEY, memory, error, ret_key,
                            ret_size);
}

static enum bt_status address(struct kvt_transport *base, struct bt_error *error,
                              void **ret_address, size_t *ret_size)
{
    return kvt_ucx_worker_address((struct kvt_ucx *)base, KVT_BLOB_SHM_ADDRESS, error, ret_address,
                                  ret_size);
}

static bool take_events(struct shm *shm, int timeout_ms)
{
    struct epoll_event events[EVENTS_MAX];
    int count = epoll_wait(shm->epoll_fd, events, EVENTS_MAX, timeout_ms);

    for (int i = 0; i < count; i++) {
        struct kvt_peer *peer = events[i].data.ptr;
        if (peer == NULL) {
            kvt_ucx_drain_wake(&shm->ucx);
            continue;
        }
        epoll_ctl(shm->epoll_fd, EPOLL_CTL_DEL, peer->pid_fd, NULL);
        peer_fail(peer, "has ended");
    }
    return count > 0;
}

static bool progress(struct kvt_transport *base)
{
    struct shm *shm = (struct shm *)base;
    bool any = ucp_worker_progress(shm->ucx.worker) != 0; /* what other endpoints say hello with */

    return take_events(shm, 0) || any;
}

static void wait_for_event(struct kvt_transport *base, int timeout_ms)
{
    take_events((struct shm *)base, timeout_ms);
}

static int event_fd(const struct kvt_transport *base)
{
    return ((const struct shm *)base)->epoll_fd;
}

static bool arm(struct kvt_transport *base, int *ret_timeout_ms)
{
    (void)base, (void)ret_timeout_ms;
    return true;
}

static void destroy(struct kvt_transport *base)
{
    struct shm *shm = (struct shm *)base;

    while (shm->peers != NULL)
        peer_close(shm->peers);
    if (shm->epoll_fd >= 0)
        close(shm->epoll_fd);
    kvt_ucx_close(&shm->ucx);
    free(shm);
}

/* Every peer of it would have to map it, too. */
static enum bt_status memory_register(struct kvt_transport *base, void *memory_base, size_t bytes,
                                      struct bt_error *error, struct kvt_memory **ret_memory)
{
    (void)base, (void)memory_base, (void)ret_memory;
    return bt_error_set(error, BT_ERR_UNSUPPORTED,
                        "shm shares memory of its own, not %zu bytes of others", bytes);
}

static const struct kvt_transport_ops shm_ops = {
    .destroy = destroy,
    .memory_alloc = kvt_ucx_memory_alloc_shared,
    .memory_register = memory_register,
    .memory_free = kvt_ucx_memory_free,
    .memory_base = kvt_ucx_memory_base,
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
    .wake = kvt_ucx_wake,
    .event_fd = event_fd,
    .arm = arm,
};

enum bt_status kvt_shm_transport_create(const struct kvt_transport_options *options,
                                        struct bt_error *error,
                                        struct kvt_transport **ret_transport)
{
    const struct kvt_ucx_config config = {.tls = "posix,sysv", .features = UCP_FEATURE_RMA};
    struct epoll_event woken = {.events = EPOLLIN};
    struct shm *shm;
    enum bt_status status;

    if (kvt_pool_memory_kind(options->pool_device) != BT_MEMORY_HOST)
        return bt_error_set(error, BT_ERR_UNAVAILABLE,
                            "shared memory of the host is no memory of GPUs");
    shm = calloc(1, sizeof(*shm));
    if (shm == NULL)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for shm");
    shm->ucx.base.ops = &shm_ops;
    shm->ucx.wake_fd = -1;
    shm->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    status = kvt_ucx_open(&shm->ucx, &config, error);
    if (status == BT_OK && (shm->epoll_fd < 0 ||
                            epoll_ctl(shm->epoll_fd, EPOLL_CTL_ADD, shm->ucx.wake_fd, &woken) != 0))
        status = bt_error_set(error, BT_ERR_NO_MEMORY, "no file descriptor for shm: %m");
    if (status != BT_OK) {
        destroy(&shm->ucx.base);
        return status;
    }
    *ret_transport = &shm->ucx.base;
    return BT_OK;
}
