/* An open call of a client, and rings of them. Internal to this folder. */
#ifndef BATON_COMMON_MESSAGING_PENDING_H
#define BATON_COMMON_MESSAGING_PENDING_H

#include "common/messaging/rpc.h"
#include "common/messaging/wire.h"

/* A blocking call, on the stack of bt_rpc_client_call_wait. */
struct bt_rpc_wait {
    bool done;
    enum bt_status status;
    char text[BT_ERROR_TEXT_SIZE];
    ProtobufCMessage *response;
};

struct bt_rpc_pending {
    struct bt_rpc_client *client;
    struct bt_rpc_pending *previous; /* in a ring with a head in the client */
    struct bt_rpc_pending *next;
    uint64_t id;
    struct bt_loop_source *timer; /* NULL until there is a deadline or a cancel */
    int64_t deadline_ns;
    int64_t give_up_ns; /* after a cancel; else BT_NEVER_NS */
    int64_t cancel_wait_ns;
    bool cancelled;
    bool cancel_unsent;
    struct bt_wire_packet *unsent; /* the CALL, until there is a connection with room for it */
    const ProtobufCMessageDescriptor *data;
    const ProtobufCMessageDescriptor *response;
    bt_rpc_data_fn *on_data;
    bt_rpc_end_fn *on_end;
    void *context;
    struct bt_rpc_wait *wait; /* set: the end goes there, not to on_end */
};

void bt_pending_ring_init(struct bt_rpc_pending *head);
bool bt_pending_ring_empty(const struct bt_rpc_pending *head);
void bt_pending_ring_add(struct bt_rpc_pending *head, struct bt_rpc_pending *pending);
void bt_pending_ring_remove(struct bt_rpc_pending *pending);
/* All of `from` to the end of `to`. */
void bt_pending_ring_move(struct bt_rpc_pending *to, struct bt_rpc_pending *from);

#endif
