#include "prefill-node/forward.h"

#include <stdlib.h>

struct forwarded {
    struct bt_rpc_call *call;
    struct bt_rpc_pending *pending;
};

static void on_cancel(void *context, struct bt_rpc_call *call)
{
    struct forwarded *forwarded = context;
    (void)call;
    bt_rpc_pending_cancel(forwarded->pending);
}

static void on_end(void *context, enum bt_status status, const char *text,
                   const ProtobufCMessage *response)
{
    struct forwarded *forwarded = context;
    bt_rpc_call_on_cancel(forwarded->call, NULL, NULL);
    bt_rpc_call_end(forwarded->call, status, text, response);
    free(forwarded);
}

void pf_forward_call(struct bt_rpc_client *client, const char *method,
                     const ProtobufCMessageDescriptor *response, struct bt_rpc_call *call,
                     const ProtobufCMessage *request)
{
    struct bt_error error;
    struct forwarded *forwarded = calloc(1, sizeof(*forwarded));
    if (!forwarded) {
        bt_rpc_call_end(call, BT_ERR_NO_MEMORY, "no memory", NULL);
        return;
    }
    const struct bt_rpc_call_spec spec = {
        .method = method,
        .request = request,
        .response = response,
        .deadline_ns = bt_rpc_call_deadline_ns(call),
        .on_end = on_end,
        .context = forwarded,
    };
    forwarded->call = call;
    enum bt_status status = bt_rpc_client_call(client, &spec, &error, &forwarded->pending);
    if (status != BT_OK) {
        free(forwarded);
        bt_rpc_call_end(call, status, error.text, NULL);
        return;
    }
    bt_rpc_call_on_cancel(call, on_cancel, forwarded);
}
