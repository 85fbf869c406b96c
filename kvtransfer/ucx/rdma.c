#include "kvtransfer/ucx/rdma.h"

#include <dirent.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "common/base/clock.h"
#include "kvtransfer/device_pool.h"
#include "kvtransfer/ucx/ucx.h"

/* ---- endpoints ---- */

static void on_error(void *arg, ucp_ep_h ep, ucs_status_t status)
{
    struct kvt_rdma_endpoint *endpoint = arg;

    (void)ep;
    if (endpoint->owner != NULL)
        endpoint->on_failed(endpoint->owner, status);
}

enum bt_status kvt_rdma_endpoint_open(struct kvt_rdma *rdma, const void *worker_address,
                                      void (*on_failed)(void *owner, ucs_status_t status),
                                      void *owner, struct bt_error *error,
                                      struct kvt_rdma_endpoint **ret_endpoint)
{
    struct kvt_rdma_endpoint *endpoint = calloc(1, sizeof(*endpoint));
    ucp_ep_params_t params = {
        .field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                      UCP_EP_PARAM_FIELD_ERR_HANDLER,
        .address = worker_address,
        .err_mode = UCP_ERR_HANDLING_MODE_PEER,
        .err_handler = {.cb = on_error, .arg = endpoint},
    };
    ucs_status_t status;

    if (endpoint == NULL)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for an endpoint");
    *endpoint = (struct kvt_rdma_endpoint){.rdma = rdma, .on_failed = on_failed, .owner = owner};
    status = ucp_ep_create(rdma->ucx.worker, &params, &endpoint->ep);
    if (status != UCS_OK) {
        free(endpoint);
        return bt_error_set(error, BT_ERR_UNAVAILABLE, "rdma does not reach the peer: %s",
                            ucs_status_string(status));
    }
    *ret_endpoint = endpoint;
    return BT_OK;
}

static void closed(struct kvt_rdma_endpoint *endpoint)
{
    if (endpoint->rkey != NULL)
        ucp_rkey_destroy(endpoint->rkey);
    if (endpoint->ret_closed != NULL)
        *endpoint->ret_closed = true;
    endpoint->rdma->closing--;
    free(endpoint);
}

static void on_closed(void *request, ucs_status_t status, void *user_data)
{
    (void)status;
    ucp_request_free(request);
    closed(user_data);
}

void kvt_rdma_endpoint_close(struct kvt_rdma_endpoint *endpoint, bool *ret_closed)
{
    ucp_request_param_t param = {
        .op_attr_mask =
            UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
        .flags = UCP_EP_CLOSE_FLAG_FORCE,
        .cb.send = on_closed,
        .user_data = endpoint,
    };

    endpoint->owner = NULL;
    endpoint->ret_closed = ret_closed;
    endpoint->rdma->closing++;
    if (!UCS_PTR_IS_PTR(ucp_ep_close_nbx(endpoint->ep, &param)))
        closed(endpoint);
}

static void on_sent(void *request, ucs_status_t status, void *user_data)
{
    (void)status; /* a failure is told by the error handler */
    ucp_request_free(request);
    free(user_data);
}

void kvt_rdma_send(ucp_ep_h ep, unsigned id, const struct kvt_rdma_hello *hello,
                   const void *payload, size_t payload_size)
{
    char *copy = malloc(sizeof(*hello) + payload_size); /* lives until it is sent */
    ucp_request_param_t param = {
        .op_attr_mask =
            UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
        .flags = UCP_AM_SEND_FLAG_EAGER,
        .cb.send = on_sent,
        .user_data = copy,
    };
    ucs_status_ptr_t request;

    if (copy == NULL)
        return; /* the source's connect times out */
    memcpy(copy, hello, sizeof(*hello));
    if (payload_size > 0)
        memcpy(copy + sizeof(*hello), payload, payload_size);
    request =
        ucp_am_send_nbx(ep, id, copy, sizeof(*hello), copy + sizeof(*hello), payload_size, &param);
    if (!UCS_PTR_IS_PTR(request))
        free(copy);
}

/* ---- progress ---- */

static bool progress(struct kvt_transport *base)
{
    struct kvt_rdma *rdma = (struct kvt_rdma *)base;
    bool any = ucp_worker_progress(rdma->ucx.worker) != 0;

    return kvt_rdma_sources_step(rdma) || any;
}

static bool arm(struct kvt_transport *base, int *ret_timeout_ms)
{
    struct kvt_rdma *rdma = (struct kvt_rdma *)base;
    ucs_status_t status =
        rdma->worker_fd < 0 ? UCS_ERR_UNSUPPORTED : ucp_worker_arm(rdma->ucx.worker);

    /* A worker that can't wake anybody has to be looked at. */
    if (status != UCS_OK && status != UCS_ERR_BUSY && (*ret_timeout_ms < 0 || *ret_timeout_ms > 1))
        *ret_timeout_ms = 1;
    return status != UCS_ERR_BUSY;
}

static void wait_for_event(struct kvt_transport *base, int timeout_ms)
{
    struct kvt_rdma *rdma = (struct kvt_rdma *)base;
    struct pollfd fds[] = {{.fd = rdma->ucx.wake_fd, .events = POLLIN},
                           {.fd = rdma->worker_fd, .events = POLLIN}};

    if (!arm(base, &timeout_ms))
        return;
    if (poll(fds, 2, timeout_ms) > 0 && (fds[0].revents & POLLIN) != 0)
        kvt_ucx_drain_wake(&rdma->ucx);
}

static int event_fd(const struct kvt_transport *base)
{
    return ((const struct kvt_rdma *)base)->worker_fd;
}

/* ---- creation ---- */

static enum bt_status pack_key(struct kvt_transport *base, const struct kvt_memory *memory,
                               struct bt_error *error, void **ret_key, size_t *ret_size)
{
    return kvt_ucx_key_pack((struct kvt_ucx *)base, KVT_BLOB_RDMA_KEY, memory, error, ret_key,
                            ret_size);
}

/* Closing may need an answer of the peer, so the wait for it is bounded. */
static void close_endpoints(struct kvt_rdma *rdma)
{
    int64_t deadline_ns = bt_clock_now_ns() + KVT_RDMA_DESTROY_MS * BT_NS_PER_MS;

    while (rdma->peers != NULL)
        kvt_rdma_peer_close(rdma->peers);
    kvt_rdma_sources_close(rdma);
    while (rdma->closing > 0 && bt_clock_now_ns() < deadline_ns)
        if (!progress(&rdma->ucx.base))
            wait_for_event(&rdma->ucx.base, 1);
    kvt_rdma_sources_step(rdma);
}

static void destroy(struct kvt_transport *base)
{
    struct kvt_rdma *rdma = (struct kvt_rdma *)base;

    if (rdma->ucx.worker != NULL)
        close_endpoints(rdma);
    kvt_ucx_close(&rdma->ucx);
    while (rdma->sources != NULL) {
        struct kvt_rdma_source *source = rdma->sources;
        rdma->sources = source->next;
        free(source);
    }
    while (rdma->cuts != NULL) {
        struct kvt_rdma_cut *cut = rdma->cuts;
        rdma->cuts = cut->next;
        cut->done(cut->context, BT_OK); /* the worker is gone: nothing arrives any more */
        free(cut);
    }
    free(rdma->ops);
    free(rdma);
}

static const struct kvt_transport_ops rdma_ops = {
    .destroy = destroy,
    .memory_alloc = kvt_ucx_memory_alloc,
    .memory_register = kvt_ucx_memory_register,
    .memory_free = kvt_ucx_memory_free,
    .memory_base = kvt_ucx_memory_base,
    .memory_pack_key = pack_key,
    .address = kvt_rdma_address,
    .disconnect = kvt_rdma_disconnect,
    .connect = kvt_rdma_connect,
    .peer_state = kvt_rdma_peer_state,
    .peer_transport = kvt_rdma_peer_transport,
    .peer_rails = kvt_rdma_peer_rails,
    .peer_error = kvt_rdma_peer_error,
    .map = kvt_rdma_map,
    .write = kvt_rdma_write,
    .flush = kvt_rdma_flush,
    .peer_close = kvt_rdma_peer_close,
    .progress = progress,
    .wait = wait_for_event,
    .wake = kvt_ucx_wake,
    .event_fd = event_fd,
    .arm = arm,
};

static bool has_device(void)
{
    DIR *devices = opendir("/sys/class/infiniband");
    const struct dirent *entry;
    bool found = false;

    while (devices != NULL && (entry = readdir(devices)) != NULL)
        found = found || entry->d_name[0] != '.';
    if (devices != NULL)
        closedir(devices);
    return found;
}

static enum bt_status set_handler(struct kvt_rdma *rdma, unsigned id,
                                  ucp_am_recv_callback_t callback, struct bt_error *error)
{
    ucp_am_handler_param_t params = {
        .field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB |
                      UCP_AM_HANDLER_PARAM_FIELD_ARG,
        .id = id,
        .cb = callback,
        .arg = rdma,
    };
    ucs_status_t status = ucp_worker_set_am_recv_handler(rdma->ucx.worker, &params);

    if (status != UCS_OK)
        return bt_error_set(error, kvt_ucx_status(status), "ucp_worker_set_am_recv_handler: %s",
                            ucs_status_string(status));
    return BT_OK;
}

static enum bt_status create_parts(struct kvt_rdma *rdma,
                                   const struct kvt_transport_options *options, int gid_index,
                                   struct bt_error *error)
{
    char index[16];
    enum bt_memory_kind memory = kvt_pool_memory_kind(options->pool_device);
    const struct kvt_ucx_config config = {
        /* ud carries the wiring up of the others; cuda_copy lets UCX know GPUs' memory */
        .tls = memory == BT_MEMORY_CUDA ? "ib,cuda_copy" : "ib",
        .devices = options->device,
        .memory = memory,
        .gid_index = gid_index >= 0 ? index : NULL,
        .features = UCP_FEATURE_RMA | UCP_FEATURE_AM | UCP_FEATURE_WAKEUP,
    };
    enum bt_status status;

    snprintf(index, sizeof(index), "%d", gid_index);
    rdma->ops = calloc(KVT_RDMA_OPS, sizeof(*rdma->ops));
    if (rdma->ops == NULL)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for rdma");
    for (size_t i = 0; i < KVT_RDMA_OPS; i++) {
        rdma->ops[i].rdma = rdma;
        rdma->ops[i].next = rdma->free_ops;
        rdma->free_ops = &rdma->ops[i];
    }
    if (getrandom(rdma->token, sizeof(rdma->token), 0) != (ssize_t)sizeof(rdma->token))
        return bt_error_set(error, BT_ERR_INTERNAL, "no random numbers: %m");
    status = kvt_ucx_open(&rdma->ucx, &config, error);
    if (status == BT_OK)
        status = set_handler(rdma, KVT_RDMA_HELLO, kvt_rdma_on_hello, error);
    if (status == BT_OK)
        status = set_handler(rdma, KVT_RDMA_ACK, kvt_rdma_on_ack, error);
    if (status == BT_OK && ucp_worker_get_efd(rdma->ucx.worker, &rdma->worker_fd) != UCS_OK)
        rdma->worker_fd = -1;
    return status;
}

enum bt_status kvt_rdma_transport_create(const struct kvt_transport_options *options, int gid_index,
                                         struct bt_error *error,
                                         struct kvt_transport **ret_transport)
{
    struct kvt_rdma *rdma;
    enum bt_status status;

    if (!has_device())
        return bt_error_set(error, BT_ERR_UNAVAILABLE,
                            "no rdma device on this host: /sys/class/infiniband is empty");
    rdma = calloc(1, sizeof(*rdma));
    if (rdma == NULL)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for rdma");
    rdma->ucx.base.ops = &rdma_ops;
    rdma->ucx.wake_fd = rdma->worker_fd = -1;
    rdma->next_cookie = 1;
    status = create_parts(rdma, options, gid_index, error);
    if (status != BT_OK) {
        destroy(&rdma->ucx.base);
        return status;
    }
    *ret_transport = &rdma->ucx.base;
    return BT_OK;
}
