#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kvtransfer/ucx/rdma.h"

static void peer_fail(struct kvt_peer *peer, ucs_status_t status)
{
    if (peer->state == KVT_PEER_FAILED)
        return;
    peer->state = KVT_PEER_FAILED;
    bt_error_set(&peer->error, BT_ERR_PEER_LOST, "rdma: %s", ucs_status_string(status));
}

static void on_failed(void *owner, ucs_status_t status)
{
    peer_fail(owner, status);
}

static enum bt_status say_hello(struct kvt_peer *peer, const struct kvt_origin *origin,
                                const unsigned char *token, struct bt_error *error)
{
    struct kvt_rdma_hello hello = {.magic = KVT_RDMA_HELLO,
                                   .cookie = peer->cookie,
                                   .incarnation = origin->incarnation,
                                   .link = origin->link,
                                   .line = origin->line};
    enum bt_status status;
    void *address;
    size_t size;

    memcpy(hello.token, token, sizeof(hello.token));
    status = kvt_ucx_worker_address(&peer->rdma->ucx, KVT_BLOB_RDMA_HELLO, error, &address, &size);
    if (status != BT_OK)
        return status;
    kvt_rdma_send(peer->endpoint->ep, KVT_RDMA_HELLO, &hello, address, size);
    free(address);
    return BT_OK;
}

static enum bt_status open_peer(struct kvt_peer *peer, const unsigned char *worker,
                                size_t worker_size, const void *rkey,
                                const struct kvt_origin *origin, struct bt_error *error)
{
    enum bt_status status;
    ucs_status_t code;

    if (worker_size <= KVT_RDMA_TOKEN_BYTES)
        return bt_error_set(error, BT_ERR_PROTOCOL, "transport address: no worker in it");
    status = kvt_rdma_endpoint_open(peer->rdma, worker + KVT_RDMA_TOKEN_BYTES, on_failed, peer,
                                    error, &peer->endpoint);
    if (status != BT_OK)
        return status;
    code = ucp_ep_rkey_unpack(peer->endpoint->ep, rkey, &peer->endpoint->rkey);
    if (code != UCS_OK) {
        peer->endpoint->rkey = NULL;
        return bt_error_set(error, BT_ERR_UNAVAILABLE, "rdma does not reach the peer's pool: %s",
                            ucs_status_string(code));
    }
    return say_hello(peer, origin, worker, error);
}

enum bt_status kvt_rdma_connect(struct kvt_transport *base, const void *address,
                                size_t address_size, const void *key, size_t key_size,
                                const struct kvt_origin *origin, struct bt_error *error,
                                struct kvt_peer **ret_peer)
{
    struct kvt_rdma *rdma = (struct kvt_rdma *)base;
    struct kvt_peer *peer = calloc(1, sizeof(*peer));
    size_t worker_size, rkey_size;
    const void *worker, *rkey;
    enum bt_status status;

    if (peer == NULL)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a peer");
    peer->rdma = rdma;
    peer->cookie = rdma->next_cookie++;
    status = kvt_worker_address_unpack(KVT_BLOB_RDMA_ADDRESS, address, address_size, error,
                                       &peer->process, &worker, &worker_size);
    if (status == BT_OK)
        status = kvt_key_unpack(KVT_BLOB_RDMA_KEY, key, key_size, error, &peer->range, &rkey,
                                &rkey_size);
    if (status == BT_OK)
        status = open_peer(peer, worker, worker_size, rkey, origin, error);
    if (status != BT_OK) {
        if (peer->endpoint != NULL)
            kvt_rdma_endpoint_close(peer->endpoint, NULL);
        free(peer);
        return status;
    }
    peer->next = rdma->peers;
    rdma->peers = peer;
    *ret_peer = peer;
    return BT_OK;
}

/*
 * The lane of puts, in UCX's words "… 6:rc_verbs/mlx5_0:1 …"; there is no call that tells it.
 * False: there is none, so that UCX would emulate puts by datagrams that are copied.
 */
static bool find_device(struct kvt_peer *peer)
{
    char *text = NULL, *lane, *end;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);

    if (out == NULL)
        return false;
    ucp_ep_print_info(peer->endpoint->ep, out);
    if (fclose(out) == 0 && text != NULL) {
        lane = strstr(text, ":rc_");
        if (lane == NULL)
            lane = strstr(text, ":dc_");
        lane = lane == NULL ? NULL : strchr(lane, '/');
        end = lane == NULL ? NULL : lane + strcspn(lane, " .\n");
        if (end != NULL)
            snprintf(peer->device, sizeof(peer->device), "%.*s", (int)(end - lane - 1), lane + 1);
    }
    free(text);
    return peer->device[0] != '\0';
}

ucs_status_t kvt_rdma_on_ack(void *arg, const void *header, size_t header_size, void *data,
                             size_t size, const ucp_am_recv_param_t *param)
{
    struct kvt_peer *peer = ((struct kvt_rdma *)arg)->peers;
    struct kvt_rdma_hello ack;

    (void)data, (void)size, (void)param;
    if (header_size != sizeof(ack))
        return UCS_OK;
    memcpy(&ack, header, sizeof(ack));
    while (peer != NULL && peer->cookie != ack.cookie)
        peer = peer->next;
    if (peer == NULL || ack.magic != KVT_RDMA_ACK || peer->state != KVT_PEER_CONNECTING)
        return UCS_OK;
    if (find_device(peer)) {
        peer->state = KVT_PEER_READY;
    } else {
        peer->state = KVT_PEER_FAILED;
        bt_error_set(&peer->error, BT_ERR_UNAVAILABLE, "rdma: no RC or DC lane to the peer");
    }
    return UCS_OK;
}

enum kvt_peer_state kvt_rdma_peer_state(const struct kvt_peer *peer)
{
    return peer->state;
}

const char *kvt_rdma_peer_transport(const struct kvt_peer *peer)
{
    (void)peer;
    return "rdma";
}

uint32_t kvt_rdma_peer_rails(const struct kvt_peer *peer, struct kvt_rail_info *ret_rails,
                             uint32_t max)
{
    if (peer->state != KVT_PEER_READY)
        return 0;
    if (max > 0) {
        ret_rails[0] = (struct kvt_rail_info){.transport = "rdma"};
        memcpy(ret_rails[0].device, peer->device, sizeof(peer->device));
    }
    return 1;
}

const char *kvt_rdma_peer_error(const struct kvt_peer *peer)
{
    return peer->error.text;
}

void *kvt_rdma_map(struct kvt_peer *peer, uint64_t remote_address, size_t bytes)
{
    (void)peer, (void)remote_address, (void)bytes;
    return NULL;
}

/* ---- writes ---- */

static struct kvt_rdma_op *op_take(struct kvt_peer *peer, kvt_completion_fn *done, void *context)
{
    struct kvt_rdma_op *op = peer->rdma->free_ops;

    if (op == NULL)
        return NULL;
    peer->rdma->free_ops = op->next;
    *op = (struct kvt_rdma_op){
        .rdma = peer->rdma, .peer = peer, .done = done, .context = context, .next = peer->ops};
    if (op->next != NULL)
        op->next->previous = op;
    peer->ops = op;
    return op;
}

static void op_unlink(struct kvt_rdma_op *op)
{
    if (op->previous != NULL)
        op->previous->next = op->next;
    else
        op->peer->ops = op->next;
    if (op->next != NULL)
        op->next->previous = op->previous;
}

static void op_free(struct kvt_rdma_op *op)
{
    op->next = op->rdma->free_ops;
    op->rdma->free_ops = op;
}

static void on_completed(void *request, ucs_status_t status, void *user_data)
{
    struct kvt_rdma_op *op = user_data;
    struct kvt_peer *peer = op->peer;
    struct kvt_rdma_op finished = *op;

    ucp_request_free(request);
    if (peer != NULL)
        op_unlink(op);
    op_free(op);
    if (peer == NULL)
        return;
    if (status != UCS_OK)
        peer_fail(peer, status);
    finished.done(finished.context, status == UCS_OK ? BT_OK : BT_ERR_PEER_LOST);
}

static enum bt_status posted(struct kvt_rdma_op *op, ucs_status_ptr_t request)
{
    struct kvt_peer *peer = op->peer;

    if (UCS_PTR_IS_PTR(request))
        return BT_IN_PROGRESS;
    op_unlink(op);
    op_free(op);
    if (request == NULL)
        return BT_OK;
    peer_fail(peer, UCS_PTR_STATUS(request));
    return BT_ERR_PEER_LOST;
}

enum bt_status kvt_rdma_write(struct kvt_peer *peer, const void *source, size_t bytes,
                              uint64_t remote_address, kvt_completion_fn *done, void *context)
{
    ucp_request_param_t param = {
        .op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
        .cb.send = on_completed,
    };
    struct kvt_rdma_op *op;

    if (peer->state != KVT_PEER_READY)
        return BT_ERR_PEER_LOST;
    if (!kvt_key_range_has(&peer->range, remote_address, bytes))
        return BT_ERR_INVALID_ARGUMENT;
    op = op_take(peer, done, context);
    if (op == NULL)
        return BT_ERR_EXHAUSTED;
    param.user_data = op;
    return posted(op, ucp_put_nbx(peer->endpoint->ep, source, bytes, remote_address,
                                  peer->endpoint->rkey, &param));
}

enum bt_status kvt_rdma_flush(struct kvt_peer *peer, kvt_completion_fn *done, void *context)
{
    ucp_request_param_t param = {
        .op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
        .cb.send = on_completed,
    };
    struct kvt_rdma_op *op;

    if (peer->state != KVT_PEER_READY)
        return BT_ERR_PEER_LOST;
    op = op_take(peer, done, context);
    if (op == NULL)
        return BT_ERR_EXHAUSTED;
    param.user_data = op;
    return posted(op, ucp_ep_flush_nbx(peer->endpoint->ep, &param));
}

void kvt_rdma_peer_close(struct kvt_peer *peer)
{
    struct kvt_peer **link = &peer->rdma->peers;

    peer->state = KVT_PEER_FAILED;
    while (peer->ops != NULL) { /* freed when UCX completes them */
        struct kvt_rdma_op *op = peer->ops;
        struct kvt_rdma_op finished = *op;
        op_unlink(op);
        op->peer = NULL;
        finished.done(finished.context, BT_ERR_PEER_LOST);
    }
    while (*link != peer)
        link = &(*link)->next;
    *link = peer->next;
    kvt_rdma_endpoint_close(peer->endpoint, NULL);
    free(peer);
}
