#include "common/messaging/waiting_calls.h"

#include <stdio.h>

static void on_cancel(void *context, struct bt_rpc_call *call)
{
    struct bt_waiting_calls *waiting = context;
    for (uint32_t i = 0; i < waiting->count; i++) {
        if (waiting->calls[i] == call) {
            waiting->calls[i] = waiting->calls[--waiting->count];
            break;
        }
    }
    bt_rpc_call_end(call, BT_ERR_CANCELLED, "nobody waits for it; it goes on", NULL);
}

void bt_waiting_calls_add(struct bt_waiting_calls *waiting, struct bt_rpc_call *call,
                          const char *what)
{
    if (waiting->count == BT_WAITING_CALLS_MAX) {
        char text[128];
        snprintf(text, sizeof(text), "%d calls wait for %s already", BT_WAITING_CALLS_MAX, what);
        bt_rpc_call_end(call, BT_ERR_EXHAUSTED, text, NULL);
        return;
    }
    waiting->calls[waiting->count++] = call;
    bt_rpc_call_on_cancel(call, on_cancel, waiting);
}

static void end_all(struct bt_waiting_calls *waiting, enum bt_status status, const char *why,
                    const ProtobufCMessage *response)
{
    while (waiting->count > 0) {
        struct bt_rpc_call *call = waiting->calls[--waiting->count];
        bt_rpc_call_on_cancel(call, NULL, NULL);
        bt_rpc_call_end(call, status, why, response);
    }
}

void bt_waiting_calls_end(struct bt_waiting_calls *waiting, const ProtobufCMessage *response)
{
    end_all(waiting, BT_OK, NULL, response);
}

void bt_waiting_calls_cancel(struct bt_waiting_calls *waiting, const char *why)
{
    end_all(waiting, BT_ERR_CANCELLED, why, NULL);
}
