/*
 * Calls of a server that wait for one thing, as a drain: few, ended together. One that its client
 * cancels ends by itself, and what it waited for goes on. A zeroed one is empty. Loop thread.
 */
#ifndef BATON_COMMON_MESSAGING_WAITING_CALLS_H
#define BATON_COMMON_MESSAGING_WAITING_CALLS_H

#include "common/messaging/rpc.h"

#define BT_WAITING_CALLS_MAX 64

struct bt_waiting_calls {
    struct bt_rpc_call *calls[BT_WAITING_CALLS_MAX];
    uint32_t count;
};

/* Takes the call; over the limit it ends with EXHAUSTED. `what`, for messages: "the drain". */
void bt_waiting_calls_add(struct bt_waiting_calls *waiting, struct bt_rpc_call *call,
                          const char *what);
void bt_waiting_calls_end(struct bt_waiting_calls *waiting, const ProtobufCMessage *response);
/* What they waited for will not come: all end with CANCELLED. */
void bt_waiting_calls_cancel(struct bt_waiting_calls *waiting, const char *why);

#endif
