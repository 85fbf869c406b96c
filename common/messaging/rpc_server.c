#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/messaging/bind.h"
#include "common/messaging/connection.h"
#include "common/messaging/curve.h"
#include "common/messaging/monitor.h"
#include "common/messaging/peer.h"
#include "common/messaging/refusal.h"
#include "common/messaging/rpc.h"
#include "common/messaging/wire.h"

#define MESSAGES_PER_ROUND 64
#define CLOSE_LINGER_MS    500
#define CONNECTION_EVENTS                                                                          \
    (ZMQ_EVENT_ACCEPTED | ZMQ_EVENT_DISCONNECTED | ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL |          \
     ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL)

struct bt_rpc_call {
    struct bt_rpc_server *server;
    struct bt_peer *peer;
    uint64_t id;
    int64_t deadline_ns;
    struct bt_loop_source *timer; /* NULL until there is a deadline or a late on_cancel */
    bool cancelled;
    bool cancel_fired;
    bt_rpc_cancel_fn *on_cancel;
    void *on_cancel_context;
};

struct bt_rpc_server {
    struct bt_loop *loop;
    const struct bt_rpc_method *methods;
    void *context;
    void *socket;
    struct bt_monitor monitor;
    struct bt_loop_source *socket_source;
    struct bt_loop_source *monitor_source;
    struct bt_peers peers;
    struct bt_connections connections;
    const struct bt_security *security; /* NULL: plain */
    struct bt_curve_watch watch;
    bool keys_changed;              /* since connections were looked through */
    struct bt_monitor_event failed; /* of a connection that is about to end; event 0: none */
    size_t open_calls;
    unsigned depth; /* callbacks of the loop on the stack */
    bool dead;
    char endpoint[BT_BOUND_ENDPOINT_SIZE];
};

enum bt_status bt_rpc_call_send(struct bt_rpc_call *call, const ProtobufCMessage *message)
{
    struct bt_peer *peer = call->peer;
    if (peer->gone || peer->lost) {
        return BT_OK;
    }
    if (!bt_peer_flush(peer)) {
        return BT_ERR_EXHAUSTED;
    }
    Baton__V1__Frame frame = BATON__V1__FRAME__INIT;
    frame.kind = BATON__V1__FRAME__KIND__DATA;
    frame.call_id = call->id;
    enum bt_status status =
        bt_wire_send(call->server->socket, peer->identity, peer->identity_size, &frame, message);
    if (status == BT_ERR_PEER_LOST || status == BT_ERR_INTERNAL) {
        bt_peer_mark_lost(peer);
        return BT_OK;
    }
    return status;
}

/* ------------------------------------------------------------------ calls */

static void call_free(struct bt_rpc_call *call)
{
    struct bt_peer *peer = call->peer;
    bt_map_remove(&peer->calls, call->id);
    bt_loop_remove(call->timer);
    call->server->open_calls--;
    free(call);
    bt_peer_release_if_idle(peer);
}

void bt_rpc_call_end(struct bt_rpc_call *call, enum bt_status status, const char *text,
                     const ProtobufCMessage *response)
{
    BT_ASSERT(status <= BT_OK);
    bt_peer_send_end(call->peer, call->id, status, text, response);
    call_free(call);
}

/* The call may be gone afterwards. */
static void call_fire(struct bt_rpc_call *call)
{
    if (call->cancelled && !call->cancel_fired && call->on_cancel) {
        call->cancel_fired = true;
        call->on_cancel(call->on_cancel_context, call);
    }
}

static void call_cancel(struct bt_rpc_call *call)
{
    call->cancelled = true;
    call_fire(call);
}

static void server_enter(struct bt_rpc_server *server);
static void server_leave(struct bt_rpc_server *server);

static void on_call_timer(void *context)
{
    struct bt_rpc_call *call = context;
    struct bt_rpc_server *server = call->server;
    server_enter(server);
    call_cancel(call);
    server_leave(server);
}

void bt_rpc_call_on_cancel(struct bt_rpc_call *call, bt_rpc_cancel_fn *fn, void *context)
{
    call->on_cancel = fn;
    call->on_cancel_context = context;
    if (!call->cancelled || call->cancel_fired) {
        return;
    }
    if (!call->timer) {
        call->timer = bt_loop_add_timer(call->server->loop, 0, on_call_timer, call);
    } else {
        bt_loop_timer_set(call->timer, 0);
    }
}

bool bt_rpc_call_cancelled(const struct bt_rpc_call *call)
{
    return call->cancelled;
}

const char *bt_rpc_call_key_name(const struct bt_rpc_call *call)
{
    return call->peer->key ? call->peer->key->name : NULL;
}

int64_t bt_rpc_call_deadline_ns(const struct bt_rpc_call *call)
{
    return call->deadline_ns;
}

static int64_t deadline_from_wire(uint64_t timeout_ms)
{
    int64_t now_ns = bt_clock_now_ns();
    if (timeout_ms == 0 || timeout_ms > (uint64_t)(BT_NEVER_NS - now_ns) / BT_NS_PER_MS) {
        return BT_NEVER_NS;
    }
    return now_ns + (int64_t)timeout_ms * BT_NS_PER_MS;
}

static struct bt_rpc_call *call_create(struct bt_rpc_server *server, struct bt_peer *peer,
                                       const Baton__V1__Frame *frame)
{
    struct bt_rpc_call *call = calloc(1, sizeof *call);
    if (!call) {
        return NULL;
    }
    call->server = server;
    call->peer = peer;
    call->id = frame->call_id;
    call->deadline_ns = deadline_from_wire(frame->timeout_ms);
    if (call->deadline_ns != BT_NEVER_NS) {
        call->timer = bt_loop_add_timer(server->loop, call->deadline_ns, on_call_timer, call);
        if (!call->timer) {
            goto err_call;
        }
    }
    if (!bt_map_put(&peer->calls, call->id, call)) {
        goto err_timer;
    }
    server->open_calls++;
    return call;

err_timer:
    bt_loop_remove(call->timer);
err_call:
    free(call);
    return NULL;
}

/* Tells all calls, in no order. Callbacks may end any call and destroy the server: the caller holds
 * the peer. */
static void peer_cancel_calls(struct bt_peer *peer)
{
    size_t cursor = 0;
    uint64_t id;
    void *call;
    while (bt_map_next(&peer->calls, &cursor, &id, &call)) {
        call_cancel(call);
    }
}

/* A client that is still there hears why its calls are over. As far as there is room: a closed
 * connection takes nothing. */
static void peer_tell(struct bt_peer *peer, const char *text)
{
    size_t cursor = 0;
    uint64_t id;
    void *call;
    while (bt_map_next(&peer->calls, &cursor, &id, &call)) {
        struct bt_wire_packet packet;
        if (bt_peer_pack_end(id, BT_ERR_UNAVAILABLE, text, NULL, &packet) != BT_OK) {
            return;
        }
        enum bt_status sent =
            bt_wire_packet_send(&packet, peer->peers->socket, peer->identity, peer->identity_size);
        if (sent == BT_ERR_EXHAUSTED) {
            bt_wire_packet_finish(&packet);
        }
        if (sent != BT_OK) {
            return;
        }
    }
}

static void peer_lose(struct bt_peer *peer, const char *text)
{
    peer_tell(peer, text);
    peer->holds++;
    peer->lost = true;
    bt_peer_retire(peer);
    peer_cancel_calls(peer);
    peer->holds--;
    bt_peer_release_if_idle(peer);
}

/* ------------------------------------------------------------------ what comes in */

static const struct bt_rpc_method *method_find(const struct bt_rpc_server *server, const char *name)
{
    for (const struct bt_rpc_method *method = server->methods; method->name; method++) {
        if (strcmp(method->name, name) == 0) {
            return method;
        }
    }
    return NULL;
}

/* OK, or the status and text to refuse the call with. */
static enum bt_status call_check(const struct bt_rpc_server *server, const struct bt_peer *peer,
                                 const Baton__V1__Frame *frame, struct bt_error *error,
                                 const struct bt_rpc_method **ret_method)
{
    if (frame->version != BT_WIRE_VERSION) {
        return bt_error_set(error, BT_ERR_MISMATCH,
                            "version: the client speaks %" PRIu32 ", this server %d",
                            frame->version, BT_WIRE_VERSION);
    }
    if (frame->call_id == 0) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "call_id: must not be 0");
    }
    *ret_method = method_find(server, frame->method);
    if (!*ret_method) {
        return bt_error_set(error, BT_ERR_NOT_FOUND, "no method '%.100s' here", frame->method);
    }
    if (peer->calls.size + peer->end_count >= BT_RPC_MAX_CALLS_PER_PEER) {
        return bt_error_set(error, BT_ERR_EXHAUSTED, "more than %d open calls",
                            BT_RPC_MAX_CALLS_PER_PEER);
    }
    return BT_OK;
}

static void call_open(struct bt_rpc_server *server, struct bt_peer *peer,
                      struct bt_wire_message *message)
{
    const Baton__V1__Frame *frame = message->frame;
    const struct bt_rpc_method *method = NULL;
    struct bt_error error = {0};
    enum bt_status status = call_check(server, peer, frame, &error, &method);
    ProtobufCMessage *request = NULL;
    struct bt_rpc_call *call = NULL;
    if (status == BT_OK) {
        request = bt_wire_unpack(method->request, zmq_msg_data(&message->payload),
                                 zmq_msg_size(&message->payload));
        if (!request) {
            status = bt_error_set(&error, BT_ERR_INVALID_ARGUMENT, "the request is no valid %s",
                                  method->request->name);
        }
    }
    if (status == BT_OK && !(call = call_create(server, peer, frame))) {
        status = bt_error_set(&error, BT_ERR_NO_MEMORY, "no memory for the call");
    }
    if (status != BT_OK) {
        bt_peer_send_end(peer, frame->call_id, status, error.text, NULL);
    } else {
        method->handle(server->context, call, request);
    }
    if (request) {
        protobuf_c_message_free_unpacked(request, NULL);
    }
}

/* Told to a client that is not worth remembering, once, if there is room. */
static void stranger_refuse(struct bt_rpc_server *server, struct bt_wire_message *message)
{
    struct bt_wire_packet packet;
    if (bt_peer_pack_end(message->frame->call_id, BT_ERR_EXHAUSTED, "too many clients", NULL,
                         &packet) != BT_OK) {
        return;
    }
    if (bt_wire_packet_send(&packet, server->socket, zmq_msg_data(&message->identity),
                            zmq_msg_size(&message->identity)) == BT_ERR_EXHAUSTED) {
        bt_wire_packet_finish(&packet);
    }
}

static void frame_call(struct bt_rpc_server *server, struct bt_peer *peer,
                       struct bt_wire_message *message)
{
    if (!peer) {
        peer = bt_peer_create(&server->peers, zmq_msg_data(&message->identity),
                              zmq_msg_size(&message->identity), message->fd);
    }
    if (!peer) {
        stranger_refuse(server, message);
        return;
    }
    peer->key = message->user;
    if (bt_map_get(&peer->calls, message->frame->call_id)) {
        server->peers.dropped++; /* an END would end the call that has this id by right */
        return;
    }
    peer->holds++;
    call_open(server, peer, message);
    peer->holds--;
    bt_peer_release_if_idle(peer);
}

static void frame_cancel(struct bt_peer *peer, uint64_t id)
{
    struct bt_rpc_call *call = peer ? bt_map_get(&peer->calls, id) : NULL;
    if (call && !call->cancelled) {
        call_cancel(call);
    }
}

static void frame_ping(struct bt_rpc_server *server, struct bt_wire_message *message)
{
    Baton__V1__Frame pong = BATON__V1__FRAME__INIT;
    pong.kind = BATON__V1__FRAME__KIND__PONG;
    pong.call_id = message->frame->call_id;
    bt_wire_send(server->socket, zmq_msg_data(&message->identity), zmq_msg_size(&message->identity),
                 &pong, NULL);
}

static void events_take(struct bt_rpc_server *server);
static void connection_revoke(struct bt_rpc_server *server, struct bt_connection *connection);

/* Whether the message counts: on a secured server it must come from a key that is admitted now. */
static bool message_admit(struct bt_rpc_server *server, struct bt_wire_message *message)
{
    struct bt_connection *connection = bt_connections_find(&server->connections, message->fd);
    if (server->security) {
        message->user = bt_curve_user(server->security, &message->payload);
    }
    if (server->security && (!message->user || !message->user->allowed)) {
        server->peers.dropped++;
        if (connection && connection->state != BT_CONNECTION_BROKEN) {
            connection->key = message->user;
            connection_revoke(server, connection);
        }
        return false;
    }
    if (connection && connection->state == BT_CONNECTION_NEW) {
        connection->key = message->user;
        bt_connections_move(&server->connections, connection, BT_CONNECTION_PROVEN);
    }
    return true;
}

static void message_handle(struct bt_rpc_server *server, struct bt_wire_message *message)
{
    const unsigned char *identity = zmq_msg_data(&message->identity);
    size_t identity_size = zmq_msg_size(&message->identity);
    /* Its identity or descriptor may be in use again: hear of the old connection's end first. */
    events_take(server);
    if (server->dead || !message_admit(server, message)) {
        return;
    }
    struct bt_peer *peer = bt_peer_find(&server->peers, identity, identity_size);
    if (peer) {
        peer->silent_ticks = 0;
    }
    switch ((int)message->frame->kind) {
    case BATON__V1__FRAME__KIND__CALL:
        frame_call(server, peer, message);
        break;
    case BATON__V1__FRAME__KIND__CANCEL:
        frame_cancel(peer, message->frame->call_id);
        break;
    case BATON__V1__FRAME__KIND__PING:
        frame_ping(server, message);
        break;
    case BATON__V1__FRAME__KIND__PONG:
        break;
    default:
        server->peers.dropped++;
        break;
    }
}

static void on_readable(void *context)
{
    struct bt_rpc_server *server = context;
    server_enter(server);
    for (int i = 0; i < MESSAGES_PER_ROUND && !server->dead; i++) {
        struct bt_wire_message message;
        enum bt_status status = bt_wire_receive(server->socket, true, &message);
        if (status == BT_OK) {
            message_handle(server, &message);
            bt_wire_message_close(&message);
        } else if (status == BT_ERR_PROTOCOL) {
            server->peers.dropped++;
        } else {
            break;
        }
    }
    server_leave(server);
}

/* ------------------------------------------------------------------ connections */

/* A connection is one peer, or none while it has no calls. */
static void connection_lose(struct bt_rpc_server *server, int fd, const char *text)
{
    struct bt_peer *peer = bt_peer_find_by_fd(&server->peers, fd);
    if (peer) {
        peer_lose(peer, text);
    }
}

/* A connection ended in its handshake. Who only opened and closed it (a probe whether the port is
 * open) is not worth a line. */
static void handshake_refused(struct bt_rpc_server *server, const struct bt_connection *connection)
{
    struct bt_refusals *refusals = bt_loop_refusals(server->loop);
    char who[BT_CONNECTION_TEXT_SIZE];
    bt_connection_text(connection, who);
    if (server->failed.event == ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL) {
        bt_refusal_add(refusals, BT_REFUSED_HANDSHAKE, "from %s: %s", who,
                       bt_curve_explain_client(server->security, server->failed.value));
    } else {
        bt_refusal_add(refusals, BT_REFUSED_HANDSHAKE, "%s", "");
    }
}

static void connection_closed(struct bt_rpc_server *server, int fd)
{
    const struct bt_connection *connection = bt_connections_find(&server->connections, fd);
    bool ours = connection && connection->state == BT_CONNECTION_BROKEN;
    if (server->failed.event && !ours) {
        handshake_refused(server, connection);
    }
    server->failed.event = 0;
    bt_connections_closed(&server->connections, fd);
    connection_lose(server, fd, "the connection was closed");
}

/* The library's thread tells of a failed handshake and of the connection's end in one go. */
static void events_take(struct bt_rpc_server *server)
{
    struct bt_monitor_event event;
    while (!server->dead && bt_monitor_next(&server->monitor, &event)) {
        if (event.event == ZMQ_EVENT_ACCEPTED) {
            bt_connections_accepted(&server->connections, event.value);
        } else if (event.event == ZMQ_EVENT_DISCONNECTED) {
            connection_closed(server, event.value);
        } else {
            server->failed = event;
        }
    }
}

/* The connection may end by itself in here, and callbacks destroy the server. */
static void connection_break(struct bt_rpc_server *server, const struct bt_connection *connection,
                             const char *text)
{
    int fd = connection->fd;
    uint64_t serial = connection->serial;
    struct bt_connection *found = NULL;
    bool held = bt_connections_hold(&server->connections, connection);
    events_take(server);
    if (!server->dead) {
        found = bt_connections_find(&server->connections, fd);
        found = found && found->serial == serial ? found : NULL;
    }
    if (held) {
        bt_connections_break_held(&server->connections, found);
    } else if (found) {
        bt_connections_move(&server->connections, found, BT_CONNECTION_BROKEN);
    }
    if (found) {
        connection_lose(server, fd, text);
    }
}

static void connection_revoke(struct bt_rpc_server *server, struct bt_connection *connection)
{
    char who[BT_CONNECTION_TEXT_SIZE];
    bt_connection_text(connection, who);
    bt_refusal_add(bt_loop_refusals(server->loop), BT_REFUSED_REMOVED,
                   "from %s: the key of '%s' is admitted no more", who,
                   connection->key ? connection->key->name : "");
    connection_break(server, connection, "the client's key is admitted no more");
}

static void connections_recheck(struct bt_rpc_server *server)
{
    struct bt_connection *connection;
    server->keys_changed = false;
    bt_connections_doom(&server->connections);
    while (!server->dead &&
           (connection = bt_connections_first(&server->connections, BT_CONNECTION_DOOMED))) {
        connection_revoke(server, connection);
    }
}

/* Descriptors are for those who speak. */
static void connections_limit(struct bt_rpc_server *server)
{
    const struct bt_connection *connection;
    while (!server->dead && (connection = bt_connections_excess(&server->connections))) {
        char who[BT_CONNECTION_TEXT_SIZE];
        bt_connection_text(connection, who);
        bt_refusal_add(bt_loop_refusals(server->loop), BT_REFUSED_FLOOD,
                       "from %s: it is the oldest of %zu that have said nothing", who,
                       server->connections.counts[BT_CONNECTION_NEW]);
        connection_break(server, connection, "too many connections");
    }
}

static void on_connection(void *context)
{
    struct bt_rpc_server *server = context;
    server_enter(server);
    events_take(server);
    connections_limit(server);
    server_leave(server);
}

static void on_keys_changed(void *context)
{
    struct bt_rpc_server *server = context;
    server->keys_changed = true;
    bt_loop_timer_bring_forward(server->peers.tick, 0);
}

/* ------------------------------------------------------------------ the tick */

static void on_tick(void *context)
{
    struct bt_rpc_server *server = context;
    server_enter(server);
    if (server->keys_changed) {
        connections_recheck(server);
    }
    bt_peers_flush(&server->peers);
    int64_t now_ns = bt_clock_now_ns();
    if (now_ns >= server->peers.sweep_ns) {
        server->peers.sweep_ns = now_ns + server->peers.keepalive_ns;
        bt_peers_sweep(&server->peers);
    }
    struct bt_peer *peer;
    while (!server->dead && (peer = bt_peers_find_lost(&server->peers))) {
        peer_lose(peer, "the client was silent for too long");
    }
    if (!server->dead && server->peers.first) {
        bt_loop_timer_bring_forward(server->peers.tick, server->peers.sweep_ns);
    }
    server_leave(server);
}

/* ------------------------------------------------------------------ the server */

static void server_enter(struct bt_rpc_server *server)
{
    server->depth++;
}

static void server_leave(struct bt_rpc_server *server)
{
    if (--server->depth == 0 && server->dead) {
        bt_peers_finish(&server->peers);
        bt_connections_finish(&server->connections);
        free(server);
    }
}

static bool sources_add(struct bt_rpc_server *server)
{
    struct bt_loop *loop = server->loop;
    server->socket_source = bt_loop_add_socket(loop, server->socket, on_readable, server);
    server->monitor_source =
        bt_loop_add_socket(loop, server->monitor.channel, on_connection, server);
    server->peers.tick = bt_loop_add_timer(loop, BT_NEVER_NS, on_tick, server);
    return server->socket_source && server->monitor_source && server->peers.tick;
}

static void sources_remove(struct bt_rpc_server *server)
{
    bt_loop_remove(server->socket_source);
    bt_loop_remove(server->monitor_source);
    bt_loop_remove(server->peers.tick);
    server->peers.tick = NULL;
}

enum bt_status bt_rpc_server_create(struct bt_loop *loop, const char *endpoint,
                                    const struct bt_rpc_method *methods, void *context,
                                    struct bt_error *error, struct bt_rpc_server **ret_server)
{
    BT_ASSERT(endpoint);
    const struct bt_security *security = bt_loop_security(loop);
    char address[BT_ENDPOINT_SIZE];
    enum bt_status status = bt_curve_server_address(security, endpoint, error, address);
    if (status != BT_OK) {
        bt_error_prefix(error, "bind");
        return status;
    }
    struct bt_rpc_server *server = calloc(1, sizeof *server);
    if (!server) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for an rpc server");
    }
    server->loop = loop;
    server->methods = methods;
    server->context = context;
    server->security = security;
    server->watch = (struct bt_curve_watch){.changed = on_keys_changed, .context = server};
    status = bt_connections_init(&server->connections, error);
    if (status != BT_OK) {
        goto err_server;
    }
    server->socket = zmq_socket(bt_loop_zmq(loop), ZMQ_ROUTER);
    if (!server->socket) {
        status = bt_error_set(error, BT_ERR_INTERNAL, "zmq_socket: %s", zmq_strerror(errno));
        goto err_connections;
    }
    bt_peers_init(&server->peers, server->socket);
    status = bt_monitor_init(&server->monitor, bt_loop_zmq(loop), server->socket, CONNECTION_EVENTS,
                             error);
    if (status != BT_OK) {
        goto err_socket;
    }
    status = bt_bind(security, server->socket, address, error, server->endpoint);
    if (status != BT_OK) {
        goto err_monitor;
    }
    if (!sources_add(server)) {
        status = bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for an rpc server");
        goto err_sources;
    }
    if (security) {
        bt_curve_watch_add(bt_loop_security(loop), &server->watch);
    }
    *ret_server = server;
    return BT_OK;

err_sources:
    sources_remove(server);
err_monitor:
    bt_monitor_finish(&server->monitor);
err_socket:
    zmq_close(server->socket);
err_connections:
    bt_connections_finish(&server->connections);
err_server:
    free(server);
    return status;
}

/* Callbacks may end calls of any peer, and with them the peer: so one is held, and the search
 * starts anew after it. */
static void calls_end_all(struct bt_rpc_server *server)
{
    struct bt_peer *peer = server->peers.first;
    while (peer) {
        if (peer->calls.size == 0) {
            peer = peer->next;
            continue;
        }
        peer->holds++;
        size_t cursor = 0;
        uint64_t id;
        void *call;
        while (bt_map_next(&peer->calls, &cursor, &id, &call)) {
            call_cancel(call);
            if (bt_map_get(&peer->calls, id) == call) {
                bt_rpc_call_end(call, BT_ERR_UNAVAILABLE, "the server is shutting down", NULL);
            }
        }
        peer->holds--;
        bt_peer_release_if_idle(peer);
        peer = server->peers.first;
    }
}

static void peers_drop(struct bt_rpc_server *server)
{
    struct bt_peer *next;
    for (struct bt_peer *peer = server->peers.first; peer; peer = next) {
        next = peer->next;
        bt_peer_flush(peer);
        if (!peer->gone) {
            bt_peer_retire(peer);
        }
        bt_peer_release_if_idle(peer);
    }
}

void bt_rpc_server_destroy(struct bt_rpc_server *server)
{
    if (!server) {
        return;
    }
    BT_ASSERT(!server->dead);
    server_enter(server);
    server->dead = true;
    calls_end_all(server);
    peers_drop(server);
    sources_remove(server);
    bt_curve_watch_remove(&server->watch);
    bt_monitor_finish(&server->monitor);
    int linger_ms = CLOSE_LINGER_MS;
    zmq_setsockopt(server->socket, ZMQ_LINGER, &linger_ms, sizeof linger_ms);
    zmq_close(server->socket);
    server_leave(server);
}

enum bt_status bt_rpc_server_advertise(struct bt_rpc_server *server, const char *host,
                                       struct bt_error *error)
{
    static const char tcp[] = "tcp://";
    char endpoint[sizeof server->endpoint];
    const char *port = strrchr(server->endpoint, ':'); /* also where a key follows */
    if (strncmp(server->endpoint, tcp, sizeof tcp - 1) != 0) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s is not at a TCP port",
                            server->endpoint);
    }
    bool six = host[0] != '[' && strchr(host, ':');
    int length = snprintf(endpoint, sizeof endpoint, "%s%s%s%s%s", tcp, six ? "[" : "", host,
                          six ? "]" : "", port);
    if (!host[0] || host[strcspn(host, "/#*, ")] || length < 0 ||
        (size_t)length >= BT_ENDPOINT_SIZE) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "'%.100s' is no address or name of a host", host);
    }
    memcpy(server->endpoint, endpoint, (size_t)length + 1);
    return BT_OK;
}

const char *bt_rpc_server_endpoint(const struct bt_rpc_server *server)
{
    return server->endpoint;
}

uint64_t bt_rpc_server_dropped(const struct bt_rpc_server *server)
{
    return server->peers.dropped;
}

size_t bt_rpc_server_open_calls(const struct bt_rpc_server *server)
{
    return server->open_calls;
}

void bt_rpc_server_set_keepalive(struct bt_rpc_server *server, int64_t keepalive_ms)
{
    server->peers.keepalive_ns = keepalive_ms * BT_NS_PER_MS;
}
