#include "common/messaging/pending.h"

void bt_pending_ring_init(struct bt_rpc_pending *head)
{
    head->next = head->previous = head;
}

bool bt_pending_ring_empty(const struct bt_rpc_pending *head)
{
    return head->next == head;
}

void bt_pending_ring_add(struct bt_rpc_pending *head, struct bt_rpc_pending *pending)
{
    pending->previous = head->previous;
    pending->next = head;
    head->previous->next = pending;
    head->previous = pending;
}

void bt_pending_ring_remove(struct bt_rpc_pending *pending)
{
    pending->previous->next = pending->next;
    pending->next->previous = pending->previous;
}

void bt_pending_ring_move(struct bt_rpc_pending *to, struct bt_rpc_pending *from)
{
    if (bt_pending_ring_empty(from)) {
        return;
    }
    from->next->previous = to->previous;
    to->previous->next = from->next;
    from->previous->next = to;
    to->previous = from->previous;
    bt_pending_ring_init(from);
}
