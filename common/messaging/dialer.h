/*
 * The connections that the clients of a loop open: all of them over one ROUTER socket with one
 * monitor, so that a connection costs one descriptor, and a round of the loop costs the same
 * however many there are. Internal to this folder. Loop thread only.
 *
 * A dial is one attempt to connect and the connection that comes of it: it never connects again.
 * The library tells of a connection's descriptor when it is there and when it ends, and of all
 * before and between by the endpoint alone. So each dial spells its endpoint in its own way (zeros
 * before the port, slashes before the path). Where that can't be done, the dial has a socket of its
 * own.
 *
 * Rules: what came by a connection is told before its end. After bt_dial_close nothing is told of a
 * dial any more; what was queued on it and not sent is dropped. Callbacks may open and close any
 * dial.
 */
#ifndef BATON_COMMON_MESSAGING_DIALER_H
#define BATON_COMMON_MESSAGING_DIALER_H

#include <stdint.h>

#include "common/messaging/curve.h"
#include "common/messaging/loop.h"
#include "common/messaging/monitor.h"
#include "common/messaging/wire.h"

struct bt_dialer; /* one socket */

/* In each loop. */
struct bt_dialers {
    struct bt_dialer *shared; /* NULL: no client needed it yet */
    size_t users;
};

struct bt_dials {
    void (*received)(void *owner, struct bt_wire_message *message);
    /* CONNECTED (of TCP), HANDSHAKE_SUCCEEDED, HANDSHAKE_FAILED_…, DISCONNECTED (the last), and
     * CONNECT_RETRIED: nobody is there; this dial does not try again. */
    void (*told)(void *owner, const struct bt_monitor_event *event);
};

/* Zeroed: closed. Embedded in its owner. */
struct bt_dial {
    struct bt_dialer *dialer; /* NULL: closed */
    const struct bt_dials *calls;
    void *owner;
    uint64_t id;   /* its routing id, never used again */
    char *address; /* as it is spelled */
    int fd;        /* -1: not connected */
    const struct bt_key *server;
    bool waiting;  /* for others to be connected first */
    bool dialling; /* neither connected nor failed yet */
    bool given_up; /* by the library, which knows it no more */
    bool ended;    /* its end is to be told */
    uint64_t ended_at;
    struct bt_dial *previous, *next; /* in the ring of those that wait, or that have ended */
};

/* Defined by the loop. */
struct bt_dialers *bt_loop_dialers(struct bt_loop *loop);

/* A client comes and goes; with the last one the shared socket is closed. */
void bt_dialers_join(struct bt_loop *loop);
void bt_dialers_leave(struct bt_loop *loop);

/* `server` is of use on a secured loop, and as long as the dial is open. Errors: INVALID_ARGUMENT
 * (address), UNAVAILABLE (the key is not in the list), IO, NO_MEMORY, INTERNAL. */
enum bt_status bt_dial_open(struct bt_loop *loop, struct bt_dial *dial, const char *address,
                            const struct bt_key *server, const struct bt_dials *calls, void *owner,
                            struct bt_error *error);
void bt_dial_close(struct bt_dial *dial); /* a closed one is fine */

/* The library says nothing of connections inside a process: such a dial is connected at once. */
bool bt_dial_is_silent(const struct bt_dial *dial);

/* As bt_wire_send and bt_wire_packet_send. */
enum bt_status bt_dial_send(struct bt_dial *dial, const Baton__V1__Frame *frame,
                            const ProtobufCMessage *payload);
enum bt_status bt_dial_send_packet(struct bt_dial *dial, struct bt_wire_packet *packet);

#endif
