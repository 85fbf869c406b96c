/*
 * What happens to the connections of a ZeroMQ socket. Internal to this folder; created, read and
 * destroyed on the thread of the socket, before the socket is closed.
 */
#ifndef BATON_COMMON_MESSAGING_MONITOR_H
#define BATON_COMMON_MESSAGING_MONITOR_H

#include <stdint.h>

#include "common/base/status.h"
#include "common/messaging/key.h"

struct bt_monitor {
    void *socket;  /* the watched one */
    void *channel; /* readable while events wait */
};

struct bt_monitor_event {
    uint16_t event;                 /* ZMQ_EVENT_… */
    int32_t value;                  /* a descriptor or an errno, by the event */
    char address[BT_ENDPOINT_SIZE]; /* the endpoint that was bound or connected to; cut */
};

/* Events outside the mask `events` are not reported. */
enum bt_status bt_monitor_init(struct bt_monitor *monitor, void *zmq, void *socket, int events,
                               struct bt_error *error);
void bt_monitor_finish(struct bt_monitor *monitor);

/* False: no event waits. */
bool bt_monitor_next(struct bt_monitor *monitor, struct bt_monitor_event *ret_event);

#endif
