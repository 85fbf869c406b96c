/*
 * Target side: listeners, who connected, and cutting them off.
 *
 * A source may write only after the ack of its hello. So whoever wrote anything is known here by
 * its incarnation, and closing its endpoints is enough to be sure that nothing more of it arrives.
 */
#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/log.h"
#include "kvtransfer/ucx/internal.h"

static void on_failed(void *owner, ucs_status_t status)
{
    struct kvt_ucx_source *source = owner;

    bt_log_debug(0, "kv source %016llx left: %s", (unsigned long long)source->incarnation,
                 ucs_status_string(status));
    source->failed = true; /* closed by the next step: not from inside UCX's handler */
}

static void on_connection(ucp_conn_request_h request, void *arg)
{
    struct kvt_ucx_listener *listener = arg;
    struct kvt_ucx *ucx = listener->ucx;
    struct kvt_ucx_source *source = NULL;
    ucp_ep_params_t params = {
        .field_mask = UCP_EP_PARAM_FIELD_CONN_REQUEST,
        .conn_request = request,
    };

    if (ucx->source_count < KVT_UCX_SOURCES_MAX)
        source = calloc(1, sizeof(*source));
    if (source == NULL) {
        bt_log_warn(0, "kv connection refused: %u are open", ucx->source_count);
        ucp_listener_reject(listener->listener, request);
        return;
    }
    if (kvt_ucx_endpoint_open(ucx, &params, listener->local, on_failed, source, NULL,
                              &source->endpoint) != BT_OK) {
        free(source);
        return;
    }
    source->next = ucx->sources;
    ucx->sources = source;
    ucx->source_count++;
}

static enum bt_status listen_on(struct kvt_ucx_listener *listener, const struct sockaddr *address,
                                socklen_t size, struct bt_error *error,
                                struct sockaddr_storage *ret_bound)
{
    ucp_listener_params_t params = {
        .field_mask = UCP_LISTENER_PARAM_FIELD_SOCK_ADDR | UCP_LISTENER_PARAM_FIELD_CONN_HANDLER,
        .sockaddr = {.addr = address, .addrlen = size},
        .conn_handler = {.cb = on_connection, .arg = listener},
    };
    ucp_listener_attr_t attributes = {.field_mask = UCP_LISTENER_ATTR_FIELD_SOCKADDR};
    ucs_status_t status;

    status = ucp_listener_create(listener->ucx->worker, &params, &listener->listener);
    if (status != UCS_OK) {
        listener->listener = NULL;
        return bt_error_set(error, kvt_ucx_status(status), "can't listen for kv writers: %s",
                            ucs_status_string(status));
    }
    status = ucp_listener_query(listener->listener, &attributes);
    if (status != UCS_OK)
        return bt_error_set(error, kvt_ucx_status(status), "ucp_listener_query: %s",
                            ucs_status_string(status));
    *ret_bound = attributes.sockaddr;
    return BT_OK;
}

static void fill_ip(const struct sockaddr_storage *bound, struct kvt_ucx_address *ret_address)
{
    const struct sockaddr_in *v4 = (const struct sockaddr_in *)bound;
    const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)bound;

    ret_address->family = bound->ss_family;
    if (bound->ss_family == AF_INET) {
        ret_address->port = ntohs(v4->sin_port);
        memcpy(ret_address->ip, &v4->sin_addr, sizeof(v4->sin_addr));
    } else {
        ret_address->port = ntohs(v6->sin6_port);
        memcpy(ret_address->ip, &v6->sin6_addr, sizeof(v6->sin6_addr));
    }
}

enum bt_status kvt_ucx_address(struct kvt_transport *transport, struct bt_error *error,
                               void **ret_address, size_t *ret_size)
{
    struct kvt_ucx *ucx = (struct kvt_ucx *)transport;
    struct sockaddr_in loopback = {.sin_family = AF_INET,
                                   .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct kvt_ucx_address address = {.process = ucx->self};
    struct sockaddr_storage bound;
    enum bt_status status;

    BT_ASSERT(ucx->listen_all.listener == NULL);
    status = listen_on(&ucx->listen_all, (struct sockaddr *)&ucx->bind,
                       ucx->bind.ss_family == AF_INET ? sizeof(struct sockaddr_in)
                                                      : sizeof(struct sockaddr_in6),
                       error, &bound);
    if (status != BT_OK)
        return status;
    fill_ip(&bound, &address);
    if (ucx->mode == KVT_UCX_AUTO || ucx->mode == KVT_UCX_SHM) {
        status = listen_on(&ucx->listen_local, (struct sockaddr *)&loopback, sizeof(loopback),
                           error, &bound);
        if (status != BT_OK)
            return status;
        address.local_port = ntohs(((struct sockaddr_in *)&bound)->sin_port);
    }
    return kvt_ucx_address_pack(&address, error, ret_address, ret_size);
}

struct kvt_ucx_source *kvt_ucx_find_source(const struct kvt_ucx *ucx,
                                           const ucp_am_recv_param_t *param)
{
    struct kvt_ucx_source *source = ucx->sources;

    if (!(param->recv_attr & UCP_AM_RECV_ATTR_FIELD_REPLY_EP))
        return NULL;
    while (source != NULL && (source->endpoint == NULL || source->endpoint->ep != param->reply_ep))
        source = source->next;
    return source;
}

ucs_status_t kvt_ucx_on_hello(void *arg, const void *header, size_t header_size, void *data,
                              size_t size, const ucp_am_recv_param_t *param)
{
    struct kvt_ucx *ucx = arg;
    struct kvt_ucx_source *source = kvt_ucx_find_source(ucx, param);
    struct kvt_ucx_hello hello;

    (void)data, (void)size;
    if (source == NULL || source->named || header_size != sizeof(hello))
        return UCS_OK;
    memcpy(&hello, header, sizeof(hello));
    if (hello.magic != KVT_UCX_AM_HELLO)
        return UCS_OK;
    source->named = true;
    source->incarnation = hello.value;
    hello.magic = KVT_UCX_AM_ACK;
    kvt_ucx_endpoint_send(param->reply_ep, KVT_UCX_AM_ACK, &hello);
    return UCS_OK;
}

static void source_close(struct kvt_ucx_source *source)
{
    struct kvt_ucx_endpoint *endpoint = source->endpoint;

    if (endpoint == NULL)
        return;
    source->endpoint = NULL;
    kvt_ucx_endpoint_close(endpoint, &source->closed);
}

void kvt_ucx_disconnect(struct kvt_transport *transport, uint64_t incarnation,
                        kvt_completion_fn *done, void *context)
{
    struct kvt_ucx *ucx = (struct kvt_ucx *)transport;
    struct kvt_ucx_cut *cut = calloc(1, sizeof(*cut));

    BT_ASSERT(cut != NULL); /* a lost cut would keep pages in quarantine for ever */
    cut->incarnation = incarnation;
    cut->done = done;
    cut->context = context;
    cut->next = ucx->cuts;
    ucx->cuts = cut;
    for (struct kvt_ucx_source *source = ucx->sources; source != NULL; source = source->next)
        if (source->named && source->incarnation == incarnation)
            source_close(source);
}

static bool is_open(const struct kvt_ucx *ucx, uint64_t incarnation)
{
    const struct kvt_ucx_source *source = ucx->sources;

    while (source != NULL && !(source->named && source->incarnation == incarnation))
        source = source->next;
    return source != NULL;
}

static bool finish_cuts(struct kvt_ucx *ucx)
{
    struct kvt_ucx_cut **link = &ucx->cuts;
    bool any = false;

    while (*link != NULL) {
        struct kvt_ucx_cut *cut = *link;
        if (is_open(ucx, cut->incarnation)) {
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

bool kvt_ucx_sources_step(struct kvt_ucx *ucx)
{
    struct kvt_ucx_source **link = &ucx->sources;

    while (*link != NULL) {
        struct kvt_ucx_source *source = *link;
        if (source->failed)
            source_close(source);
        if (!source->closed) {
            link = &source->next;
            continue;
        }
        *link = source->next;
        ucx->source_count--;
        free(source);
    }
    return finish_cuts(ucx);
}

void kvt_ucx_sources_close(struct kvt_ucx *ucx)
{
    for (struct kvt_ucx_source *source = ucx->sources; source != NULL; source = source->next)
        source_close(source);
}
