#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/log.h"
#include "kvtransfer/ucx/internal.h"

void kvt_ucx_peer_fail(struct kvt_peer *peer, const char *why)
{
    if (peer->state == KVT_PEER_FAILED)
        return;
    peer->state = KVT_PEER_FAILED;
    snprintf(peer->why, sizeof(peer->why), "%s", why);
    bt_log_info(0, "kv link to pid %lld failed: %s", (long long)peer->address.process.pid, why);
}

static void on_failed(void *owner, ucs_status_t status)
{
    struct kvt_peer *peer = owner;

    kvt_ucx_peer_fail(peer, ucs_status_string(status));
}

static socklen_t socket_address(const struct kvt_ucx_address *address, bool local,
                                struct sockaddr_storage *ret_socket)
{
    struct sockaddr_in *v4 = (struct sockaddr_in *)ret_socket;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)ret_socket;

    memset(ret_socket, 0, sizeof(*ret_socket));
    if (local || address->family == AF_INET) {
        v4->sin_family = AF_INET;
        v4->sin_port = htons(local ? address->local_port : address->port);
        v4->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        if (!local)
            memcpy(&v4->sin_addr, address->ip, sizeof(v4->sin_addr));
        return sizeof(*v4);
    }
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(address->port);
    memcpy(&v6->sin6_addr, address->ip, sizeof(v6->sin6_addr));
    return sizeof(*v6);
}

static enum bt_status open_endpoint(struct kvt_peer *peer, bool local, struct bt_error *error)
{
    struct kvt_ucx_hello hello = {.magic = KVT_UCX_AM_HELLO, .value = peer->incarnation};
    struct sockaddr_storage address;
    ucp_ep_params_t params = {
        .field_mask = UCP_EP_PARAM_FIELD_SOCK_ADDR | UCP_EP_PARAM_FIELD_FLAGS,
        .flags = UCP_EP_PARAMS_FLAGS_CLIENT_SERVER,
    };
    enum bt_status status;

    params.sockaddr.addrlen = socket_address(&peer->address, local, &address);
    params.sockaddr.addr = (struct sockaddr *)&address;
    status =
        kvt_ucx_endpoint_open(peer->ucx, &params, local, on_failed, peer, error, &peer->endpoint);
    if (status != BT_OK)
        return status;
    peer->cookie = hello.cookie = peer->ucx->next_cookie++;
    kvt_ucx_endpoint_send(peer->endpoint->ep, KVT_UCX_AM_HELLO, &hello);
    return BT_OK;
}

/* Whether to go by shared memory; UNAVAILABLE when it must and can't. */
static enum bt_status choose_path(const struct kvt_ucx *ucx, const struct kvt_ucx_address *address,
                                  struct bt_error *error, bool *ret_local)
{
    bool reachable =
        bt_process_same_host(&ucx->self, &address->process) && address->local_port != 0;

    if (ucx->mode == KVT_UCX_SHM && !reachable)
        return bt_error_set(error, BT_ERR_UNAVAILABLE,
                            "shared memory does not reach the peer: it is %s",
                            address->local_port == 0 ? "not offering it" : "on another host");
    *ret_local = reachable && (ucx->mode == KVT_UCX_SHM || ucx->mode == KVT_UCX_AUTO);
    return BT_OK;
}

enum bt_status kvt_ucx_connect(struct kvt_transport *transport, const void *address,
                               size_t address_size, const void *key, size_t key_size,
                               uint64_t incarnation, struct bt_error *error,
                               struct kvt_peer **ret_peer)
{
    struct kvt_ucx *ucx = (struct kvt_ucx *)transport;
    struct kvt_ucx_address unpacked;
    struct kvt_ucx_key range;
    struct kvt_peer *peer;
    const void *rkey;
    size_t rkey_size;
    bool local = false;
    enum bt_status status;

    status = kvt_ucx_address_unpack(address, address_size, error, &unpacked);
    if (status == BT_OK)
        status = kvt_ucx_key_unpack(key, key_size, error, &range, &rkey, &rkey_size);
    if (status == BT_OK)
        status = choose_path(ucx, &unpacked, error, &local);
    if (status != BT_OK)
        return status;
    peer = calloc(1, sizeof(*peer) + rkey_size);
    if (peer == NULL)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a peer");
    peer->ucx = ucx;
    peer->address = unpacked;
    peer->range = range;
    peer->incarnation = incarnation;
    peer->transport = "";
    peer->key_size = rkey_size;
    memcpy(peer->key, rkey, rkey_size);
    status = open_endpoint(peer, local, error);
    if (status != BT_OK) {
        free(peer);
        return status;
    }
    peer->next = ucx->peers;
    ucx->peers = peer;
    *ret_peer = peer;
    return BT_OK;
}

static void check_transport(struct kvt_peer *peer)
{
    static const char *const required[] = {
        [KVT_UCX_SHM] = "shm", [KVT_UCX_TCP] = "tcp", [KVT_UCX_RDMA] = "rdma"};
    const char *must = required[peer->ucx->mode];
    bool puts;

    peer->transport = kvt_ucx_endpoint_transport(peer->endpoint, &puts);
    peer->by_message = !puts;
    if (must != NULL && strcmp(must, peer->transport) != 0) {
        bt_log_error(0, "kv link to pid %lld goes over %s, but %s is required",
                     (long long)peer->address.process.pid, peer->transport, must);
        kvt_ucx_peer_fail(peer, "wrong transport");
    } else if (peer->endpoint->local && strcmp(peer->transport, "shm") != 0) {
        bt_log_warn(0, "pid %lld is on this host, but shared memory does not reach it",
                    (long long)peer->address.process.pid);
        peer->reopen = true;
    }
}

struct kvt_peer *kvt_ucx_find_peer(const struct kvt_ucx *ucx, uint64_t cookie)
{
    struct kvt_peer *peer = ucx->peers;

    while (peer != NULL && peer->cookie != cookie)
        peer = peer->next;
    return peer;
}

ucs_status_t kvt_ucx_on_ack(void *arg, const void *header, size_t header_size, void *data,
                            size_t size, const ucp_am_recv_param_t *param)
{
    struct kvt_ucx *ucx = arg;
    struct kvt_peer *peer;
    struct kvt_ucx_hello ack;
    ucs_status_t status;

    (void)data, (void)size, (void)param;
    if (header_size != sizeof(ack))
        return UCS_OK;
    memcpy(&ack, header, sizeof(ack));
    peer = kvt_ucx_find_peer(ucx, ack.cookie);
    if (peer == NULL || ack.magic != KVT_UCX_AM_ACK || peer->state != KVT_PEER_CONNECTING)
        return UCS_OK;
    check_transport(peer);
    if (peer->state == KVT_PEER_FAILED || peer->reopen)
        return UCS_OK;
    status = ucp_ep_rkey_unpack(peer->endpoint->ep, peer->key, &peer->endpoint->rkey);
    if (status != UCS_OK) {
        peer->endpoint->rkey = NULL;
        kvt_ucx_peer_fail(peer, ucs_status_string(status));
        return UCS_OK;
    }
    peer->state = KVT_PEER_READY;
    return UCS_OK;
}

void kvt_ucx_peers_step(struct kvt_ucx *ucx)
{
    for (struct kvt_peer *peer = ucx->peers; peer != NULL; peer = peer->next) {
        if (peer->queue != NULL && peer->state == KVT_PEER_READY)
            kvt_ucx_message_pump(peer);
        if (!peer->reopen)
            continue;
        peer->reopen = false;
        kvt_ucx_endpoint_close(peer->endpoint, NULL);
        peer->endpoint = NULL;
        if (open_endpoint(peer, false, NULL) != BT_OK)
            kvt_ucx_peer_fail(peer, "can't connect once more");
    }
}

enum kvt_peer_state kvt_ucx_peer_state(const struct kvt_peer *peer)
{
    return peer->state;
}

const char *kvt_ucx_peer_transport(const struct kvt_peer *peer)
{
    return peer->transport;
}

uint32_t kvt_ucx_peer_rails(const struct kvt_peer *peer, struct kvt_rail_info *ret_rails,
                            uint32_t max)
{
    if (peer->state != KVT_PEER_READY)
        return 0;
    if (max > 0)
        ret_rails[0] = (struct kvt_rail_info){.transport = peer->transport};
    return 1;
}

const char *kvt_ucx_peer_error(const struct kvt_peer *peer)
{
    return peer->why;
}

static struct kvt_ucx_op *op_take(struct kvt_peer *peer, kvt_completion_fn *done, void *context)
{
    struct kvt_ucx_op *op = peer->ucx->free_ops;

    if (op == NULL)
        return NULL;
    peer->ucx->free_ops = op->next;
    *op = (struct kvt_ucx_op){
        .ucx = peer->ucx, .peer = peer, .done = done, .context = context, .next = peer->ops};
    if (op->next != NULL)
        op->next->previous = op;
    peer->ops = op;
    return op;
}

static void op_unlink(struct kvt_ucx_op *op)
{
    if (op->previous != NULL)
        op->previous->next = op->next;
    else
        op->peer->ops = op->next;
    if (op->next != NULL)
        op->next->previous = op->previous;
}

static void op_free(struct kvt_ucx *ucx, struct kvt_ucx_op *op)
{
    op->next = ucx->free_ops;
    ucx->free_ops = op;
}

void kvt_ucx_op_release(struct kvt_ucx_op *op)
{
    op_unlink(op);
    op_free(op->ucx, op);
}

static void op_completed(void *request, ucs_status_t status, void *user_data)
{
    struct kvt_ucx_op *op = user_data;
    struct kvt_peer *peer = op->peer;
    struct kvt_ucx_op finished = *op;

    ucp_request_free(request);
    if (peer == NULL) {
        op_free(op->ucx, op);
        return;
    }
    if (status != UCS_OK)
        kvt_ucx_peer_fail(peer, ucs_status_string(status));
    kvt_ucx_op_release(op);
    finished.done(finished.context, status == UCS_OK ? BT_OK : BT_ERR_PEER_LOST);
}

static enum bt_status posted(struct kvt_ucx_op *op, ucs_status_ptr_t request)
{
    struct kvt_peer *peer = op->peer;

    if (UCS_PTR_IS_PTR(request))
        return BT_IN_PROGRESS;
    kvt_ucx_op_release(op);
    if (request == NULL)
        return BT_OK;
    kvt_ucx_peer_fail(peer, ucs_status_string(UCS_PTR_STATUS(request)));
    return BT_ERR_PEER_LOST;
}

static bool in_range(const struct kvt_ucx_key *range, uint64_t address, uint64_t bytes)
{
    return bytes <= range->bytes && address >= range->base &&
           address - range->base <= range->bytes - bytes;
}

enum bt_status kvt_ucx_write(struct kvt_peer *peer, const void *source, size_t bytes,
                             uint64_t remote_address, kvt_completion_fn *done, void *context)
{
    ucp_request_param_t param = {
        .op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
        .cb.send = op_completed,
    };
    struct kvt_ucx_op *op;

    if (peer->state != KVT_PEER_READY)
        return BT_ERR_PEER_LOST;
    if (!in_range(&peer->range, remote_address, bytes))
        return BT_ERR_INVALID_ARGUMENT;
    op = op_take(peer, done, context);
    if (op == NULL)
        return BT_ERR_EXHAUSTED;
    if (peer->by_message) {
        op->source = source;
        op->bytes = bytes;
        op->remote_address = remote_address;
        return kvt_ucx_message_post(op);
    }
    param.user_data = op;
    return posted(op, ucp_put_nbx(peer->endpoint->ep, source, bytes, remote_address,
                                  peer->endpoint->rkey, &param));
}

enum bt_status kvt_ucx_flush(struct kvt_peer *peer, kvt_completion_fn *done, void *context)
{
    ucp_request_param_t param = {
        .op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
        .cb.send = op_completed,
    };
    struct kvt_ucx_op *op;

    if (peer->state != KVT_PEER_READY)
        return BT_ERR_PEER_LOST;
    op = op_take(peer, done, context);
    if (op == NULL)
        return BT_ERR_EXHAUSTED;
    if (peer->by_message)
        return kvt_ucx_message_post(op);
    param.user_data = op;
    return posted(op, ucp_ep_flush_nbx(peer->endpoint->ep, &param));
}

void kvt_ucx_peer_close(struct kvt_peer *peer)
{
    struct kvt_peer **link = &peer->ucx->peers;

    peer->state = KVT_PEER_FAILED;
    while (peer->ops != NULL) {
        struct kvt_ucx_op *op = peer->ops;
        struct kvt_ucx_op finished = *op;
        op_unlink(op);
        op->peer = NULL;
        if (peer->by_message && op->chunks_out == 0)
            op_free(op->ucx, op); /* else its last chunk does it */
        finished.done(finished.context, BT_ERR_PEER_LOST);
    }
    while (*link != peer)
        link = &(*link)->next;
    *link = peer->next;
    if (peer->endpoint != NULL)
        kvt_ucx_endpoint_close(peer->endpoint, NULL);
    free(peer);
}
