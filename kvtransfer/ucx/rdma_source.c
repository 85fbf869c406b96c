/*
 * Target side: who said hello, and cutting them off. A source may write only after the ack, so
 * whoever wrote anything is known here by its origin, and closing its endpoints (which takes
 * the queue pairs down) is enough to be sure that nothing more of it arrives.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/log.h"
#include "kvtransfer/ucx/rdma.h"

static void on_failed(void *owner, ucs_status_t status)
{
    struct kvt_rdma_source *source = owner;

    bt_log_debug(0, "kv source %016" PRIx64 " left: %s", source->origin.incarnation,
                 ucs_status_string(status));
    source->failed = true; /* closed by the next step: not from inside UCX's handler */
}

enum bt_status kvt_rdma_address(struct kvt_transport *base, struct bt_error *error,
                                void **ret_address, size_t *ret_size)
{
    struct kvt_rdma *rdma = (struct kvt_rdma *)base;
    ucp_address_t *address;
    enum bt_status result = BT_ERR_NO_MEMORY;
    ucs_status_t status;
    char *payload;
    size_t size;

    status = ucp_worker_get_address(rdma->ucx.worker, &address, &size);
    if (status != UCS_OK)
        return bt_error_set(error, kvt_ucx_status(status), "ucp_worker_get_address: %s",
                            ucs_status_string(status));
    payload = malloc(sizeof(rdma->token) + size);
    if (payload != NULL) {
        memcpy(payload, rdma->token, sizeof(rdma->token));
        memcpy(payload + sizeof(rdma->token), address, size);
        result = kvt_worker_address_pack(KVT_BLOB_RDMA_ADDRESS, &rdma->ucx.self, payload,
                                         sizeof(rdma->token) + size, error, ret_address, ret_size);
    }
    free(payload);
    ucp_worker_release_address(rdma->ucx.worker, address);
    return result;
}

static bool is_ours(const struct kvt_rdma *rdma, const struct kvt_rdma_hello *hello)
{
    unsigned char different = 0;

    for (size_t i = 0; i < KVT_RDMA_TOKEN_BYTES; i++)
        different |= hello->token[i] ^ rdma->token[i];
    return different == 0 && hello->magic == KVT_RDMA_HELLO && hello->line < KVT_LINES_MAX;
}

static void welcome(struct kvt_rdma *rdma, const struct kvt_rdma_hello *hello,
                    const void *worker_address)
{
    struct kvt_rdma_hello ack = *hello;
    struct kvt_rdma_source *source = NULL;

    if (rdma->source_count < KVT_RDMA_SOURCES_MAX)
        source = calloc(1, sizeof(*source));
    if (source == NULL) {
        bt_log_warn(0, "kv connection refused: %u are open", rdma->source_count);
        return;
    }
    source->origin = (struct kvt_origin){
        .incarnation = hello->incarnation, .link = hello->link, .line = hello->line};
    if (kvt_rdma_endpoint_open(rdma, worker_address, on_failed, source, NULL, &source->endpoint) !=
        BT_OK) {
        free(source);
        return;
    }
    source->next = rdma->sources;
    rdma->sources = source;
    rdma->source_count++;
    ack.magic = KVT_RDMA_ACK;
    kvt_rdma_send(source->endpoint->ep, KVT_RDMA_ACK, &ack, NULL, 0);
}

ucs_status_t kvt_rdma_on_hello(void *arg, const void *header, size_t header_size, void *data,
                               size_t size, const ucp_am_recv_param_t *param)
{
    struct kvt_rdma *rdma = arg;
    struct kvt_rdma_hello hello;
    struct bt_process_id process;
    const void *worker;
    size_t worker_size;

    if (header_size != sizeof(hello) || size > KVT_RDMA_HELLO_MAX ||
        (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0)
        return UCS_OK;
    memcpy(&hello, header, sizeof(hello));
    if (is_ours(rdma, &hello) &&
        kvt_worker_address_unpack(KVT_BLOB_RDMA_HELLO, data, size, NULL, &process, &worker,
                                  &worker_size) == BT_OK)
        welcome(rdma, &hello, worker);
    return UCS_OK;
}

static void source_close(struct kvt_rdma_source *source)
{
    struct kvt_rdma_endpoint *endpoint = source->endpoint;

    if (endpoint == NULL)
        return;
    source->endpoint = NULL;
    kvt_rdma_endpoint_close(endpoint, &source->closed);
}

void kvt_rdma_disconnect(struct kvt_transport *base, const struct kvt_cut *cut,
                         kvt_completion_fn *done, void *context)
{
    struct kvt_rdma *rdma = (struct kvt_rdma *)base;
    struct kvt_rdma_cut *pending = calloc(1, sizeof(*pending));

    BT_ASSERT(pending != NULL); /* a lost cut would keep pages in quarantine for ever */
    *pending =
        (struct kvt_rdma_cut){.cut = *cut, .done = done, .context = context, .next = rdma->cuts};
    rdma->cuts = pending;
    for (struct kvt_rdma_source *source = rdma->sources; source != NULL; source = source->next)
        if (kvt_cut_covers(cut, &source->origin))
            source_close(source);
}

/* Of what the cut covers; who connects meanwhile has its endpoint. */
static bool is_closing(const struct kvt_rdma *rdma, const struct kvt_cut *cut)
{
    const struct kvt_rdma_source *source = rdma->sources;

    while (source != NULL && (source->endpoint != NULL || !kvt_cut_covers(cut, &source->origin)))
        source = source->next;
    return source != NULL;
}

static bool finish_cuts(struct kvt_rdma *rdma)
{
    struct kvt_rdma_cut **link = &rdma->cuts;
    bool any = false;

    while (*link != NULL) {
        struct kvt_rdma_cut *cut = *link;
        if (is_closing(rdma, &cut->cut)) {
            link = &cut->next;
            continue;
        }
        *link = cut->next;
        cut->done(cut->context, BT_OK);
        free(cut);
        any = true;
    }
    return any;
}

bool kvt_rdma_sources_step(struct kvt_rdma *rdma)
{
    struct kvt_rdma_source **link = &rdma->sources;

    while (*link != NULL) {
        struct kvt_rdma_source *source = *link;
        if (source->failed)
            source_close(source);
        if (!source->closed) {
            link = &source->next;
            continue;
        }
        *link = source->next;
        rdma->source_count--;
        free(source);
    }
    return finish_cuts(rdma);
}

void kvt_rdma_sources_close(struct kvt_rdma *rdma)
{
    for (struct kvt_rdma_source *source = rdma->sources; source != NULL; source = source->next)
        source_close(source);
}
