#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/map.h"
#include "common/base/random.h"
#include "common/messaging/monitor.h"
#include "common/messaging/rpc.h"
#include "common/messaging/wire.h"

#define MESSAGES_PER_ROUND 64
#define RETRY_NS           (5 * BT_NS_PER_MS)
#define CLOSE_LINGER_MS    100
#define ENDPOINT_SIZE      512
/* Refusals come on top of the ends of real calls; a peer that does not take even them gets none. */
#define MAX_WAITING_ENDS (2 * BT_RPC_MAX_CALLS_PER_PEER)

/* An END that found the peer's queue full. */
struct waiting_end {
    struct waiting_end *next;
    struct bt_wire_packet packet;
};

/* A connection with open calls or waiting ENDs. */
struct peer {
    struct bt_rpc_server *server;
    struct peer *previous;
    struct peer *next;
    struct peer *next_same_hash;
    uint64_t hash;
    int fd; /* of its connection; -1: unknown */
    unsigned silent_ticks;
    bool lost;      /* found to be gone; its calls hear of it in the next tick */
    bool gone;      /* no more found by identity; lives until its calls ended */
    unsigned holds; /* users on the stack */
    struct bt_map calls;
    struct waiting_end *ends;
    struct waiting_end **ends_last;
    size_t end_count;
    size_t end_bytes;
    size_t identity_size;
    unsigned char identity[];
};

struct bt_rpc_call {
    struct bt_rpc_server *server;
    struct peer *peer;
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
    struct bt_loop_source *tick;
    int64_t keepalive_ns;
    int64_t sweep_ns; /* when silence is counted next */
    struct peer *peers;
    size_t peer_count;
    struct bt_map peers_by_hash;
    uint64_t hash_seed;
    size_t open_calls;
    uint64_t dropped;
    unsigned depth; /* callbacks of the loop on the stack */
    bool dead;
    char endpoint[ENDPOINT_SIZE];
};

/* ------------------------------------------------------------------ peers */

static uint64_t identity_hash(const struct bt_rpc_server *server, const unsigned char *identity,
                              size_t size)
{
    uint64_t hash = server->hash_seed;
    for (size_t i = 0; i < size; i++) {
        hash = (hash ^ identity[i]) * UINT64_C(0x100000001b3);
    }
    return hash;
}

static struct peer *peer_find(struct bt_rpc_server *server, const unsigned char *identity,
                              size_t size)
{
    struct peer *peer = bt_map_get(&server->peers_by_hash, identity_hash(server, identity, size));
    while (peer && (peer->identity_size != size || memcmp(peer->identity, identity, size) != 0)) {
        peer = peer->next_same_hash;
    }
    return peer;
}

static void tick_at(struct bt_rpc_server *server, int64_t when_ns);

static struct peer *peer_create(struct bt_rpc_server *server, const unsigned char *identity,
                                size_t size, int fd)
{
    if (server->peer_count >= BT_RPC_MAX_PEERS) {
        return NULL;
    }
    struct peer *peer = calloc(1, sizeof *peer + size);
    if (!peer) {
        return NULL;
    }
    peer->server = server;
    peer->hash = identity_hash(server, identity, size);
    peer->fd = fd;
    peer->ends_last = &peer->ends;
    peer->identity_size = size;
    memcpy(peer->identity, identity, size);
    bt_map_init(&peer->calls);
    peer->next_same_hash = bt_map_get(&server->peers_by_hash, peer->hash);
    if (!bt_map_put(&server->peers_by_hash, peer->hash, peer)) {
        free(peer);
        return NULL;
    }
    peer->next = server->peers;
    if (peer->next) {
        peer->next->previous = peer;
    }
    server->peers = peer;
    if (server->peer_count++ == 0) {
        server->sweep_ns = bt_clock_now_ns() + server->keepalive_ns;
        tick_at(server, server->sweep_ns);
    }
    return peer;
}

static void peer_unhash(struct peer *peer)
{
    struct bt_map *map = &peer->server->peers_by_hash;
    struct peer *first = bt_map_get(map, peer->hash);
    if (first != peer) {
        while (first->next_same_hash != peer) {
            first = first->next_same_hash;
        }
        first->next_same_hash = peer->next_same_hash;
    } else if (peer->next_same_hash) {
        bool ok = bt_map_put(map, peer->hash, peer->next_same_hash);
        BT_ASSERT(ok); /* replaces, so needs no memory */
    } else {
        bt_map_remove(map, peer->hash);
    }
}

/* From here on its identity is free for another connection. */
static void peer_retire(struct peer *peer)
{
    peer_unhash(peer);
    peer->gone = true;
}

static void peer_free(struct peer *peer)
{
    struct bt_rpc_server *server = peer->server;
    if (peer->previous) {
        peer->previous->next = peer->next;
    } else {
        server->peers = peer->next;
    }
    if (peer->next) {
        peer->next->previous = peer->previous;
    }
    server->peer_count--;
    bt_map_finish(&peer->calls);
    free(peer);
}

static void ends_drop_first(struct peer *peer)
{
    struct waiting_end *end = peer->ends;
    peer->ends = end->next;
    if (!peer->ends) {
        peer->ends_last = &peer->ends;
    }
    peer->end_count--;
    peer->end_bytes -= end->packet.size;
    free(end);
}

static void ends_drop(struct peer *peer)
{
    while (peer->ends) {
        bt_wire_packet_finish(&peer->ends->packet);
        ends_drop_first(peer);
    }
}

/* A peer is kept for its calls and waiting ENDs alone. */
static void peer_release_if_idle(struct peer *peer)
{
    if (peer->holds > 0 || peer->calls.size > 0 || (peer->ends && !peer->gone)) {
        return;
    }
    if (!peer->gone) {
        peer_retire(peer);
    }
    ends_drop(peer);
    peer_free(peer);
}

/* ------------------------------------------------------------------ sending */

static void peer_mark_lost(struct peer *peer)
{
    if (!peer->lost) {
        peer->lost = true;
        tick_at(peer->server, 0);
    }
}

/* True when nothing waits any more. */
static bool ends_flush(struct peer *peer)
{
    while (peer->ends && !peer->lost) {
        enum bt_status status = bt_wire_packet_send(&peer->ends->packet, peer->server->socket,
                                                    peer->identity, peer->identity_size);
        if (status == BT_ERR_EXHAUSTED) {
            tick_at(peer->server, bt_clock_now_ns() + RETRY_NS);
            return false;
        }
        ends_drop_first(peer);
        if (status != BT_OK) {
            peer_mark_lost(peer);
        }
    }
    return true;
}

/* Takes the packet. */
static void end_wait(struct peer *peer, struct bt_wire_packet *packet)
{
    struct waiting_end *end = peer->end_count < MAX_WAITING_ENDS ? calloc(1, sizeof *end) : NULL;
    if (!end) {
        bt_wire_packet_finish(packet);
        peer->server->dropped++;
        return;
    }
    end->packet = *packet;
    *peer->ends_last = end;
    peer->ends_last = &end->next;
    peer->end_count++;
    peer->end_bytes += packet->size;
    tick_at(peer->server, bt_clock_now_ns() + RETRY_NS);
}

static enum bt_status end_pack(uint64_t id, enum bt_status status, const char *text,
                               const ProtobufCMessage *response, struct bt_wire_packet *ret_packet)
{
    char message[BT_ERROR_TEXT_SIZE];
    bt_wire_text_copy(text, message, sizeof message);
    Baton__V1__Frame frame = BATON__V1__FRAME__INIT;
    frame.kind = BATON__V1__FRAME__KIND__END;
    frame.call_id = id;
    frame.status = (char *)bt_status_name(status);
    frame.message = message;
    return bt_wire_packet_init(ret_packet, &frame, status == BT_OK ? response : NULL);
}

static void peer_send_end(struct peer *peer, uint64_t id, enum bt_status status, const char *text,
                          const ProtobufCMessage *response)
{
    if (peer->gone || peer->lost) {
        return;
    }
    struct bt_wire_packet packet;
    enum bt_status packed = end_pack(id, status, text, response, &packet);
    if (packed == BT_OK && peer->end_bytes + packet.size > BT_RPC_MAX_MESSAGE_BYTES) {
        bt_wire_packet_finish(&packet);
        packed = BT_ERR_EXHAUSTED;
    }
    if (packed != BT_OK) {
        const char *why = packed == BT_ERR_INVALID_ARGUMENT ? "the response is too large"
                                                            : "no room for the response";
        if (end_pack(id, BT_ERR_EXHAUSTED, why, NULL, &packet) != BT_OK) {
            peer->server->dropped++;
            return;
        }
    }
    if (!ends_flush(peer)) {
        end_wait(peer, &packet);
        return;
    }
    enum bt_status sent =
        bt_wire_packet_send(&packet, peer->server->socket, peer->identity, peer->identity_size);
    if (sent == BT_ERR_EXHAUSTED) {
        end_wait(peer, &packet);
    } else if (sent != BT_OK) {
        peer_mark_lost(peer);
    }
}

enum bt_status bt_rpc_call_send(struct bt_rpc_call *call, const ProtobufCMessage *message)
{
    struct peer *peer = call->peer;
    if (peer->gone || peer->lost) {
        return BT_OK;
    }
    if (!ends_flush(peer)) {
        return BT_ERR_EXHAUSTED;
    }
    Baton__V1__Frame frame = BATON__V1__FRAME__INIT;
    frame.kind = BATON__V1__FRAME__KIND__DATA;
    frame.call_id = call->id;
    enum bt_status status =
        bt_wire_send(call->server->socket, peer->identity, peer->identity_size, &frame, message);
    if (status == BT_ERR_PEER_LOST || status == BT_ERR_INTERNAL) {
        peer_mark_lost(peer);
        return BT_OK;
    }
    return status;
}

/* ------------------------------------------------------------------ calls */

static void call_free(struct bt_rpc_call *call)
{
    struct peer *peer = call->peer;
    bt_map_remove(&peer->calls, call->id);
    bt_loop_remove(call->timer);
    call->server->open_calls--;
    free(call);
    peer_release_if_idle(peer);
}

void bt_rpc_call_end(struct bt_rpc_call *call, enum bt_status status, const char *text,
                     const ProtobufCMessage *response)
{
    BT_ASSERT(status <= BT_OK);
    peer_send_end(call->peer, call->id, status, text, response);
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

static struct bt_rpc_call *call_create(struct peer *peer, const Baton__V1__Frame *frame)
{
    struct bt_rpc_call *call = calloc(1, sizeof *call);
    if (!call) {
        return NULL;
    }
    call->server = peer->server;
    call->peer = peer;
    call->id = frame->call_id;
    call->deadline_ns = deadline_from_wire(frame->timeout_ms);
    if (call->deadline_ns != BT_NEVER_NS) {
        call->timer = bt_loop_add_timer(peer->server->loop, call->deadline_ns, on_call_timer, call);
        if (!call->timer) {
            goto err_call;
        }
    }
    if (!bt_map_put(&peer->calls, call->id, call)) {
        goto err_timer;
    }
    peer->server->open_calls++;
    return call;

err_timer:
    bt_loop_remove(call->timer);
err_call:
    free(call);
    return NULL;
}

/* Tells all calls, in no order. Callbacks may end any call and destroy the server: the caller holds
 * the peer. */
static void peer_cancel_calls(struct peer *peer)
{
    size_t cursor = 0;
    uint64_t id;
    void *call;
    while (bt_map_next(&peer->calls, &cursor, &id, &call)) {
        call_cancel(call);
    }
}

/* The connection is gone: nothing more can be sent or will come. */
static void peer_lose(struct peer *peer)
{
    peer->holds++;
    peer->lost = true;
    peer_retire(peer);
    ends_drop(peer);
    peer_cancel_calls(peer);
    peer->holds--;
    peer_release_if_idle(peer);
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
static enum bt_status call_check(const struct peer *peer, const Baton__V1__Frame *frame,
                                 struct bt_error *error, const struct bt_rpc_method **ret_method)
{
    if (frame->version != BT_WIRE_VERSION) {
        return bt_error_set(error, BT_ERR_MISMATCH,
                            "version: the client speaks %" PRIu32 ", this server %d",
                            frame->version, BT_WIRE_VERSION);
    }
    if (frame->call_id == 0) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "call_id: must not be 0");
    }
    *ret_method = method_find(peer->server, frame->method);
    if (!*ret_method) {
        return bt_error_set(error, BT_ERR_NOT_FOUND, "no method '%.100s' here", frame->method);
    }
    if (peer->calls.size + peer->end_count >= BT_RPC_MAX_CALLS_PER_PEER) {
        return bt_error_set(error, BT_ERR_EXHAUSTED, "more than %d open calls",
                            BT_RPC_MAX_CALLS_PER_PEER);
    }
    return BT_OK;
}

static void call_open(struct peer *peer, struct bt_wire_message *message)
{
    const Baton__V1__Frame *frame = message->frame;
    const struct bt_rpc_method *method = NULL;
    struct bt_error error = {0};
    enum bt_status status = call_check(peer, frame, &error, &method);
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
    if (status == BT_OK && !(call = call_create(peer, frame))) {
        status = bt_error_set(&error, BT_ERR_NO_MEMORY, "no memory for the call");
    }
    if (status != BT_OK) {
        peer_send_end(peer, frame->call_id, status, error.text, NULL);
    } else {
        method->handle(peer->server->context, call, request);
    }
    if (request) {
        protobuf_c_message_free_unpacked(request, NULL);
    }
}

/* Told to a client that is not worth remembering, once, if there is room. */
static void stranger_refuse(struct bt_rpc_server *server, struct bt_wire_message *message)
{
    struct bt_wire_packet packet;
    if (end_pack(message->frame->call_id, BT_ERR_EXHAUSTED, "too many clients", NULL, &packet) !=
        BT_OK) {
        return;
    }
    if (bt_wire_packet_send(&packet, server->socket, zmq_msg_data(&message->identity),
                            zmq_msg_size(&message->identity)) == BT_ERR_EXHAUSTED) {
        bt_wire_packet_finish(&packet);
    }
}

static void frame_call(struct bt_rpc_server *server, struct peer *peer,
                       struct bt_wire_message *message)
{
    if (!peer) {
        peer = peer_create(server, zmq_msg_data(&message->identity),
                           zmq_msg_size(&message->identity), message->fd);
    }
    if (!peer) {
        stranger_refuse(server, message);
        return;
    }
    if (bt_map_get(&peer->calls, message->frame->call_id)) {
        server->dropped++; /* an END would end the call that has this id by right */
        return;
    }
    peer->holds++;
    call_open(peer, message);
    peer->holds--;
    peer_release_if_idle(peer);
}

static void frame_cancel(struct peer *peer, uint64_t id)
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

static void connections_update(struct bt_rpc_server *server);

static void message_handle(struct bt_rpc_server *server, struct bt_wire_message *message)
{
    const unsigned char *identity = zmq_msg_data(&message->identity);
    size_t identity_size = zmq_msg_size(&message->identity);
    if (message->frame->kind == BATON__V1__FRAME__KIND__CALL) {
        /* A descriptor number may be in use again: hear of the end of the old connection first. */
        connections_update(server);
    }
    struct peer *peer = server->dead ? NULL : peer_find(server, identity, identity_size);
    if (peer && peer->fd != message->fd) {
        peer_lose(peer); /* the client chose its identity itself, and connected anew with it */
        peer = NULL;
    }
    if (server->dead) {
        return;
    }
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
        server->dropped++;
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
            server->dropped++;
        } else {
            break;
        }
    }
    server_leave(server);
}

static void connection_lose(struct bt_rpc_server *server, int fd)
{
    for (struct peer *peer = server->peers; peer; peer = peer->next) {
        if (peer->fd == fd && !peer->gone) {
            peer_lose(peer);
            return; /* a connection is one peer */
        }
    }
}

static void connections_update(struct bt_rpc_server *server)
{
    struct bt_monitor_event event;
    while (!server->dead && bt_monitor_next(&server->monitor, &event)) {
        if (event.event == ZMQ_EVENT_DISCONNECTED) {
            connection_lose(server, event.value);
        }
    }
}

static void on_connection(void *context)
{
    struct bt_rpc_server *server = context;
    server_enter(server);
    connections_update(server);
    server_leave(server);
}

/* ------------------------------------------------------------------ the tick */

static void tick_at(struct bt_rpc_server *server, int64_t when_ns)
{
    if (!server->dead) {
        bt_loop_timer_bring_forward(server->tick, when_ns);
    }
}

/* A PING to a peer that vanished fails, which tells faster than its silence. */
static void peer_ping(struct peer *peer)
{
    Baton__V1__Frame ping = BATON__V1__FRAME__INIT;
    ping.kind = BATON__V1__FRAME__KIND__PING;
    if (bt_wire_send(peer->server->socket, peer->identity, peer->identity_size, &ping, NULL) ==
        BT_ERR_PEER_LOST) {
        peer->lost = true;
    }
}

static void peers_sweep(struct bt_rpc_server *server)
{
    for (struct peer *peer = server->peers; peer; peer = peer->next) {
        if (peer->gone) {
            continue;
        }
        peer->silent_ticks++;
        if (peer->silent_ticks > BT_RPC_SILENT_TICKS) {
            peer->lost = true;
        } else if (peer->silent_ticks > 2) {
            peer_ping(peer);
        }
    }
}

/* One lost peer, or NULL. Callbacks change the list, so the search starts anew for each. */
static struct peer *peer_find_lost(struct bt_rpc_server *server)
{
    struct peer *peer = server->peers;
    while (peer && (!peer->lost || peer->gone)) {
        peer = peer->next;
    }
    return peer;
}

static void peers_flush(struct bt_rpc_server *server)
{
    struct peer *next;
    for (struct peer *peer = server->peers; peer; peer = next) {
        next = peer->next;
        if (peer->ends && ends_flush(peer) && !peer->lost) {
            peer_release_if_idle(peer);
        }
    }
}

static void on_tick(void *context)
{
    struct bt_rpc_server *server = context;
    server_enter(server);
    peers_flush(server);
    int64_t now_ns = bt_clock_now_ns();
    if (now_ns >= server->sweep_ns) {
        server->sweep_ns = now_ns + server->keepalive_ns;
        peers_sweep(server);
    }
    struct peer *peer;
    while (!server->dead && (peer = peer_find_lost(server))) {
        peer_lose(peer);
    }
    if (!server->dead && server->peers) {
        tick_at(server, server->sweep_ns);
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
        bt_map_finish(&server->peers_by_hash);
        free(server);
    }
}

static enum bt_status server_bind(struct bt_rpc_server *server, const char *endpoint,
                                  struct bt_error *error)
{
    int mandatory = 1;
    enum bt_status status = bt_wire_socket_setup(server->socket, error);
    if (status != BT_OK) {
        return status;
    }
    if (zmq_setsockopt(server->socket, ZMQ_ROUTER_MANDATORY, &mandatory, sizeof mandatory) < 0) {
        return bt_error_set(error, BT_ERR_INTERNAL, "zmq_setsockopt: %s", zmq_strerror(errno));
    }
    if (zmq_bind(server->socket, endpoint) < 0) {
        bool bad = errno == EINVAL || errno == EPROTONOSUPPORT || errno == ENOCOMPATPROTO;
        return bt_error_set(error, bad ? BT_ERR_INVALID_ARGUMENT : BT_ERR_IO, "bind %s: %s",
                            endpoint, zmq_strerror(errno));
    }
    size_t size = sizeof server->endpoint;
    if (zmq_getsockopt(server->socket, ZMQ_LAST_ENDPOINT, server->endpoint, &size) < 0) {
        return bt_error_set(error, BT_ERR_INTERNAL, "endpoint of %s: %s", endpoint,
                            zmq_strerror(errno));
    }
    return BT_OK;
}

static bool sources_add(struct bt_rpc_server *server)
{
    struct bt_loop *loop = server->loop;
    server->socket_source = bt_loop_add_socket(loop, server->socket, on_readable, server);
    server->monitor_source =
        bt_loop_add_socket(loop, server->monitor.channel, on_connection, server);
    server->tick = bt_loop_add_timer(loop, BT_NEVER_NS, on_tick, server);
    return server->socket_source && server->monitor_source && server->tick;
}

static void sources_remove(struct bt_rpc_server *server)
{
    bt_loop_remove(server->socket_source);
    bt_loop_remove(server->monitor_source);
    bt_loop_remove(server->tick);
}

enum bt_status bt_rpc_server_create(struct bt_loop *loop, const char *endpoint,
                                    const struct bt_rpc_method *methods, void *context,
                                    struct bt_error *error, struct bt_rpc_server **ret_server)
{
    BT_ASSERT(endpoint);
    enum bt_status status;
    struct bt_rpc_server *server = calloc(1, sizeof *server);
    if (!server) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for an rpc server");
    }
    server->loop = loop;
    server->methods = methods;
    server->context = context;
    server->hash_seed = bt_random_entropy();
    server->keepalive_ns = BT_RPC_KEEPALIVE_MS * BT_NS_PER_MS;
    bt_map_init(&server->peers_by_hash);
    server->socket = zmq_socket(bt_loop_zmq(loop), ZMQ_ROUTER);
    if (!server->socket) {
        status = bt_error_set(error, BT_ERR_INTERNAL, "zmq_socket: %s", zmq_strerror(errno));
        goto err_server;
    }
    status = bt_monitor_init(&server->monitor, bt_loop_zmq(loop), server->socket,
                             ZMQ_EVENT_DISCONNECTED, error);
    if (status != BT_OK) {
        goto err_socket;
    }
    status = server_bind(server, endpoint, error);
    if (status != BT_OK) {
        goto err_monitor;
    }
    if (!sources_add(server)) {
        status = bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for an rpc server");
        goto err_sources;
    }
    *ret_server = server;
    return BT_OK;

err_sources:
    sources_remove(server);
err_monitor:
    bt_monitor_finish(&server->monitor);
err_socket:
    zmq_close(server->socket);
err_server:
    free(server);
    return status;
}

/* Callbacks may end calls of any peer, and with them the peer: so one is held, and the search
 * starts anew after it. */
static void calls_end_all(struct bt_rpc_server *server)
{
    struct peer *peer = server->peers;
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
        peer_release_if_idle(peer);
        peer = server->peers;
    }
}

static void peers_drop(struct bt_rpc_server *server)
{
    struct peer *next;
    for (struct peer *peer = server->peers; peer; peer = next) {
        next = peer->next;
        ends_flush(peer);
        ends_drop(peer);
        peer_release_if_idle(peer);
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
    bt_monitor_finish(&server->monitor);
    int linger_ms = CLOSE_LINGER_MS;
    zmq_setsockopt(server->socket, ZMQ_LINGER, &linger_ms, sizeof linger_ms);
    zmq_close(server->socket);
    server_leave(server);
}

const char *bt_rpc_server_endpoint(const struct bt_rpc_server *server)
{
    return server->endpoint;
}

uint64_t bt_rpc_server_dropped(const struct bt_rpc_server *server)
{
    return server->dropped;
}

size_t bt_rpc_server_open_calls(const struct bt_rpc_server *server)
{
    return server->open_calls;
}

void bt_rpc_server_set_keepalive(struct bt_rpc_server *server, int64_t keepalive_ms)
{
    server->keepalive_ns = keepalive_ms * BT_NS_PER_MS;
}
