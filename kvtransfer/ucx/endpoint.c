#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kvtransfer/ucx/internal.h"

static void on_error(void *arg, ucp_ep_h ep, ucs_status_t status)
{
    struct kvt_ucx_endpoint *endpoint = arg;

    (void)ep;
    endpoint->failed = true;
    if (endpoint->owner != NULL)
        endpoint->on_failed(endpoint->owner, status);
}

enum bt_status kvt_ucx_endpoint_open(struct kvt_ucx *ucx, ucp_ep_params_t *params, bool local,
                                     void (*on_failed)(void *owner, ucs_status_t status),
                                     void *owner, struct bt_error *error,
                                     struct kvt_ucx_endpoint **ret_endpoint)
{
    struct kvt_ucx_endpoint *endpoint = calloc(1, sizeof(*endpoint));
    ucs_status_t status;

    if (endpoint == NULL)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for an endpoint");
    endpoint->ucx = ucx;
    endpoint->local = local;
    endpoint->on_failed = on_failed;
    endpoint->owner = owner;
    params->field_mask |= UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | UCP_EP_PARAM_FIELD_ERR_HANDLER;
    params->err_mode = local ? UCP_ERR_HANDLING_MODE_NONE : UCP_ERR_HANDLING_MODE_PEER;
    params->err_handler.cb = on_error;
    params->err_handler.arg = endpoint;
    status = ucp_ep_create(ucx->worker, params, &endpoint->ep);
    if (status != UCS_OK) {
        free(endpoint);
        return bt_error_set(error, kvt_ucx_status(status), "ucp_ep_create: %s",
                            ucs_status_string(status));
    }
    *ret_endpoint = endpoint;
    return BT_OK;
}

static void drop_rkey(struct kvt_ucx_endpoint *endpoint)
{
    if (endpoint->rkey != NULL)
        ucp_rkey_destroy(endpoint->rkey);
    endpoint->rkey = NULL;
}

static void closed(struct kvt_ucx_endpoint *endpoint)
{
    drop_rkey(endpoint);
    if (endpoint->ret_closed != NULL)
        *endpoint->ret_closed = true;
    endpoint->ucx->closing--;
    free(endpoint);
}

static void on_closed(void *request, ucs_status_t status, void *user_data)
{
    (void)status;
    ucp_request_free(request);
    closed(user_data);
}

void kvt_ucx_endpoint_close(struct kvt_ucx_endpoint *endpoint, bool *ret_closed)
{
    struct kvt_ucx *ucx = endpoint->ucx;
    ucp_request_param_t param = {
        .op_attr_mask =
            UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
        .flags = endpoint->local ? 0 : UCP_EP_CLOSE_FLAG_FORCE,
        .cb.send = on_closed,
        .user_data = endpoint,
    };
    ucs_status_ptr_t request;

    endpoint->owner = NULL;
    endpoint->ret_closed = ret_closed;
    if (endpoint->local) {
        /* A store to shared memory is over when its call returns: nothing can be under way. */
        drop_rkey(endpoint);
        if (ret_closed != NULL)
            *ret_closed = true;
        endpoint->ret_closed = NULL;
    }
    if (endpoint->local && endpoint->failed) {
        endpoint->next = ucx->abandoned;
        ucx->abandoned = endpoint;
        return;
    }
    ucx->closing++;
    request = ucp_ep_close_nbx(endpoint->ep, &param);
    if (!UCS_PTR_IS_PTR(request))
        closed(endpoint);
}

const char *kvt_ucx_endpoint_transport(const struct kvt_ucx_endpoint *endpoint, bool *ret_puts)
{
    static const struct {
        const char *lane, *transport;
    } known[] = {{":sysv/", "shm"}, {":posix/", "shm"}, {":rc_", "rdma"},
                 {":ud_", "rdma"},  {":dc_", "rdma"},   {":tcp/", "tcp"}};
    const char *result = "unknown";
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);

    *ret_puts = false;
    if (out == NULL)
        return result;
    ucp_ep_print_info(endpoint->ep, out);
    if (fclose(out) == 0 && text != NULL) {
        *ret_puts = strstr(text, " put[") != NULL;
        for (size_t i = sizeof(known) / sizeof(known[0]); i-- > 0;)
            if (strstr(text, known[i].lane) != NULL)
                result = known[i].transport;
    }
    free(text);
    return result;
}

static void on_sent(void *request, ucs_status_t status, void *user_data)
{
    (void)status; /* a failure is told by the error handler */
    ucp_request_free(request);
    free(user_data);
}

void kvt_ucx_endpoint_send(ucp_ep_h ep, unsigned id, const struct kvt_ucx_hello *hello)
{
    struct kvt_ucx_hello *copy = malloc(sizeof(*copy)); /* lives until it is sent */
    ucp_request_param_t param = {
        .op_attr_mask =
            UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
        .flags = UCP_AM_SEND_FLAG_REPLY | UCP_AM_SEND_FLAG_EAGER,
        .cb.send = on_sent,
        .user_data = copy,
    };
    ucs_status_ptr_t request;

    if (copy == NULL)
        return; /* the source's connect times out */
    *copy = *hello;
    request = ucp_am_send_nbx(ep, id, copy, sizeof(*copy), NULL, 0, &param);
    if (!UCS_PTR_IS_PTR(request))
        free(copy);
}
