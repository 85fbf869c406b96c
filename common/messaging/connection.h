/*
 * The connections that a server's socket accepted, by descriptor: who is at the other end, and
 * whether anything was heard of it. The library tells of them by its monitor and closes them
 * itself; here they can be broken, which it has no call for. Internal to this folder.
 */
#ifndef BATON_COMMON_MESSAGING_CONNECTION_H
#define BATON_COMMON_MESSAGING_CONNECTION_H

#include <netinet/in.h>
#include <stdint.h>

#include "common/base/map.h"
#include "common/base/status.h"
#include "common/messaging/curve.h"

#define BT_CONNECTION_TEXT_SIZE 64

enum bt_connection_state {
    BT_CONNECTION_NEW,    /* no message came by it yet */
    BT_CONNECTION_PROVEN, /* one did, on a secured server from an admitted key */
    BT_CONNECTION_DOOMED, /* to be broken: its key is admitted no more */
    BT_CONNECTION_BROKEN, /* the library will tell that it ended */
    BT_CONNECTION_STATES
};

struct bt_connection {
    struct bt_connection *previous; /* in the ring of its state, the oldest first */
    struct bt_connection *next;
    enum bt_connection_state state;
    int fd;
    uint64_t serial;                /* descriptors are used again, these are not */
    const struct bt_known_key *key; /* NULL: plain, or not proven */
    struct sockaddr_in6 remote;     /* or IPv4, or another family without an address */
};

struct bt_connections {
    struct bt_map by_fd;
    struct bt_connection rings[BT_CONNECTION_STATES]; /* heads */
    size_t counts[BT_CONNECTION_STATES];
    uint64_t last_serial;
    int idle_fd; /* an eventfd of no use but to be copied to copy_fd */
    int copy_fd;
};

enum bt_status bt_connections_init(struct bt_connections *connections, struct bt_error *error);
void bt_connections_finish(struct bt_connections *connections);

/* What the monitor told. */
void bt_connections_accepted(struct bt_connections *connections, int fd);
void bt_connections_closed(struct bt_connections *connections, int fd);

struct bt_connection *bt_connections_find(const struct bt_connections *connections, int fd);
struct bt_connection *bt_connections_first(const struct bt_connections *connections,
                                           enum bt_connection_state state); /* NULL: none */
void bt_connections_move(struct bt_connections *connections, struct bt_connection *connection,
                         enum bt_connection_state state);
/* Those that were proven with a key that is admitted no more become doomed. */
void bt_connections_doom(struct bt_connections *connections);

/*
 * The oldest new one, where new ones hold more than half of the descriptors that the process may
 * still open; NULL: no need to break any.
 */
struct bt_connection *bt_connections_excess(const struct bt_connections *connections);

/*
 * Breaking, in two steps, since the library may close the descriptor at any time and another thread
 * open it as something else: hold it, hear all that the monitor tells; then, if the connection is
 * still there with its serial, break what is held (or, with NULL, let go of it). The library tells
 * of the end before it closes, so what was there at the second step was it at the first.
 */
bool bt_connections_hold(struct bt_connections *connections,
                         const struct bt_connection *connection);
void bt_connections_break_held(struct bt_connections *connections,
                               struct bt_connection *connection);

/* "10.0.0.7:4711"; NULL: unknown. */
void bt_connection_text(const struct bt_connection *connection,
                        char ret_text[BT_CONNECTION_TEXT_SIZE]);

#endif
