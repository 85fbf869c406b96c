#include "common/messaging/monitor.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <zmq.h>

static atomic_uint monitor_count;

enum bt_status bt_monitor_init(struct bt_monitor *monitor, void *zmq, void *socket, int events,
                               struct bt_error *error)
{
    char name[64];
    int unbounded = 0; /* the library's I/O thread would block on a full channel */
    int linger_ms = 0;
    snprintf(name, sizeof name, "inproc://monitor-%u", atomic_fetch_add(&monitor_count, 1));
    if (zmq_socket_monitor(socket, name, events) < 0) {
        return bt_error_set(error, BT_ERR_INTERNAL, "zmq_socket_monitor: %s", zmq_strerror(errno));
    }
    void *channel = zmq_socket(zmq, ZMQ_PAIR);
    if (!channel) {
        goto err_monitor;
    }
    if (zmq_setsockopt(channel, ZMQ_RCVHWM, &unbounded, sizeof unbounded) < 0 ||
        zmq_setsockopt(channel, ZMQ_LINGER, &linger_ms, sizeof linger_ms) < 0 ||
        zmq_connect(channel, name) < 0) {
        goto err_channel;
    }
    *monitor = (struct bt_monitor){.socket = socket, .channel = channel};
    return BT_OK;

err_channel:
    zmq_close(channel);
err_monitor:
    bt_error_set(error, BT_ERR_INTERNAL, "socket monitor: %s", zmq_strerror(errno));
    zmq_socket_monitor(socket, NULL, 0);
    return BT_ERR_INTERNAL;
}

void bt_monitor_finish(struct bt_monitor *monitor)
{
    zmq_socket_monitor(monitor->socket, NULL, 0);
    zmq_close(monitor->channel);
    *monitor = (struct bt_monitor){0};
}

/* An event is two parts: event and value, then the address. */
bool bt_monitor_next(struct bt_monitor *monitor, struct bt_monitor_event *ret_event)
{
    unsigned char head[sizeof ret_event->event + sizeof ret_event->value];
    if (zmq_recv(monitor->channel, head, sizeof head, ZMQ_DONTWAIT) != (int)sizeof head) {
        return false;
    }
    size_t room = sizeof ret_event->address - 1;
    int size = zmq_recv(monitor->channel, ret_event->address, room, ZMQ_DONTWAIT);
    ret_event->address[size < 0 ? 0 : (size_t)size < room ? (size_t)size : room] = '\0';
    memcpy(&ret_event->event, head, sizeof ret_event->event);
    memcpy(&ret_event->value, head + sizeof ret_event->event, sizeof ret_event->value);
    return true;
}
