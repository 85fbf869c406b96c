/*
 * Writes over connections that have no puts of their own (TCP). UCX would emulate a put by a
 * message to the target's worker and an answer from there, and abort the target when the answer
 * finds the source dead. So the message is ours: the target applies it only from a source that is
 * not cut off and only inside its memory, and answers nothing but a flush.
 *
 * A write goes out in chunks, each an eager message. A flush carries the number of chunks before it
 * and holds back later ones until it is answered, so that the count is exact in whatever order the
 * messages arrive.
 */
#include <string.h>

#include "common/base/log.h"
#include "kvtransfer/ucx/internal.h"

/* ---- source ---- */

static void dequeue(struct kvt_peer *peer)
{
    peer->queue = peer->queue->queue_next;
}

static void enqueue(struct kvt_ucx_op *op)
{
    struct kvt_ucx_op **link = &op->peer->queue;

    while (*link != NULL)
        link = &(*link)->queue_next;
    *link = op;
}

static bool is_over(const struct kvt_ucx_op *op)
{
    return op->sent_bytes == op->bytes && op->chunks_out == 0;
}

static void complete(struct kvt_ucx_op *op)
{
    struct kvt_ucx_op finished = *op;

    kvt_ucx_op_release(op);
    finished.done(finished.context, BT_OK);
}

static void chunk_free(struct kvt_ucx *ucx, struct kvt_ucx_chunk *chunk)
{
    chunk->op->chunks_out--;
    chunk->next = ucx->free_chunks;
    ucx->free_chunks = chunk;
}

static void on_sent(void *request, ucs_status_t status, void *user_data)
{
    struct kvt_ucx_chunk *chunk = user_data;
    struct kvt_ucx_op *op = chunk->op;

    ucp_request_free(request);
    chunk_free(op->ucx, chunk);
    if (op->peer == NULL) { /* its peer was closed */
        if (op->chunks_out == 0) {
            op->next = op->ucx->free_ops;
            op->ucx->free_ops = op;
        }
        return;
    }
    if (status != UCS_OK)
        kvt_ucx_peer_fail(op->peer, ucs_status_string(status));
    else if (is_over(op))
        complete(op);
}

/* False: no chunk is free, or the peer failed. */
static bool send_chunk(struct kvt_ucx_op *op)
{
    struct kvt_ucx_chunk *chunk = op->ucx->free_chunks;
    size_t bytes = op->bytes - op->sent_bytes;
    ucp_request_param_t param = {
        .op_attr_mask =
            UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
        .flags = UCP_AM_SEND_FLAG_REPLY | UCP_AM_SEND_FLAG_EAGER,
        .cb.send = on_sent,
        .user_data = chunk,
    };
    ucs_status_ptr_t request;

    if (chunk == NULL)
        return false;
    if (bytes > KVT_UCX_CHUNK_BYTES)
        bytes = KVT_UCX_CHUNK_BYTES;
    op->ucx->free_chunks = chunk->next;
    chunk->op = op;
    chunk->remote_address = op->remote_address + op->sent_bytes;
    op->chunks_out++;
    request =
        ucp_am_send_nbx(op->peer->endpoint->ep, KVT_UCX_AM_WRITE, &chunk->remote_address,
                        sizeof(chunk->remote_address), op->source + op->sent_bytes, bytes, &param);
    if (!UCS_PTR_IS_PTR(request))
        chunk_free(op->ucx, chunk);
    if (UCS_PTR_IS_ERR(request)) {
        kvt_ucx_peer_fail(op->peer, ucs_status_string(UCS_PTR_STATUS(request)));
        return false;
    }
    op->peer->chunks_sent++;
    op->sent_bytes += bytes;
    return true;
}

static void send_flush(struct kvt_ucx_op *op)
{
    struct kvt_ucx_hello flush = {
        .magic = KVT_UCX_AM_FLUSH, .cookie = op->peer->cookie, .value = op->peer->chunks_sent};

    op->flush_sent = true;
    kvt_ucx_endpoint_send(op->peer->endpoint->ep, KVT_UCX_AM_FLUSH, &flush);
}

/* Sends of the first in the queue what can be sent. True: it left the queue. */
static bool send_first(struct kvt_peer *peer)
{
    struct kvt_ucx_op *op = peer->queue;

    if (op->source == NULL) {
        if (!op->flush_sent)
            send_flush(op);
        return false;
    }
    while (op->sent_bytes < op->bytes)
        if (!send_chunk(op))
            return false;
    dequeue(peer);
    return true;
}

enum bt_status kvt_ucx_message_post(struct kvt_ucx_op *op)
{
    struct kvt_peer *peer = op->peer;

    enqueue(op);
    if (peer->queue == op && send_first(peer) && is_over(op)) {
        kvt_ucx_op_release(op);
        return BT_OK;
    }
    return BT_IN_PROGRESS;
}

void kvt_ucx_message_pump(struct kvt_peer *peer)
{
    while (peer->queue != NULL) {
        struct kvt_ucx_op *op = peer->queue;
        if (!send_first(peer))
            return;
        if (is_over(op))
            complete(op);
    }
}

ucs_status_t kvt_ucx_on_flushed(void *arg, const void *header, size_t header_size, void *data,
                                size_t size, const ucp_am_recv_param_t *param)
{
    struct kvt_ucx_hello flushed;
    struct kvt_peer *peer;
    struct kvt_ucx_op *op;

    (void)data, (void)size, (void)param;
    if (header_size != sizeof(flushed))
        return UCS_OK;
    memcpy(&flushed, header, sizeof(flushed));
    peer = kvt_ucx_find_peer(arg, flushed.cookie);
    if (peer == NULL || peer->queue == NULL || flushed.magic != KVT_UCX_AM_FLUSHED)
        return UCS_OK;
    op = peer->queue;
    if (op->source != NULL || !op->flush_sent || flushed.value != peer->chunks_sent)
        return UCS_OK;
    dequeue(peer);
    complete(op);
    return UCS_OK;
}

/* ---- target ---- */

static void answer_flush(struct kvt_ucx_source *source)
{
    if (!source->flush_waits || source->chunks_applied != source->flush.value)
        return;
    source->flush_waits = false;
    source->flush.magic = KVT_UCX_AM_FLUSHED;
    kvt_ucx_endpoint_send(source->endpoint->ep, KVT_UCX_AM_FLUSHED, &source->flush);
}

ucs_status_t kvt_ucx_on_write(void *arg, const void *header, size_t header_size, void *data,
                              size_t size, const ucp_am_recv_param_t *param)
{
    struct kvt_ucx *ucx = arg;
    struct kvt_ucx_source *source = kvt_ucx_find_source(ucx, param);
    uint64_t address;

    if (source == NULL || !source->named || source->failed)
        return UCS_OK; /* cut off: what it had under way is dropped here */
    if (header_size == sizeof(address))
        memcpy(&address, header, sizeof(address));
    if (header_size != sizeof(address) || (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0 ||
        !kvt_ucx_memory_has(ucx, address, size)) {
        bt_log_warn(0, "kv source %016llx sent a bad write: closing it",
                    (unsigned long long)source->incarnation);
        source->failed = true; /* closed by the next step */
        return UCS_OK;
    }
    memcpy((void *)(uintptr_t)address, data, size);
    source->chunks_applied++;
    answer_flush(source);
    return UCS_OK;
}

ucs_status_t kvt_ucx_on_flush(void *arg, const void *header, size_t header_size, void *data,
                              size_t size, const ucp_am_recv_param_t *param)
{
    struct kvt_ucx_source *source = kvt_ucx_find_source(arg, param);

    (void)data, (void)size;
    if (source == NULL || !source->named || source->failed || header_size != sizeof(source->flush))
        return UCS_OK;
    memcpy(&source->flush, header, sizeof(source->flush));
    source->flush_waits = true;
    answer_flush(source);
    return UCS_OK;
}
