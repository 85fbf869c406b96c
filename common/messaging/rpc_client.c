#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/map.h"
#include "common/base/random.h"
#include "common/messaging/curve.h"
#include "common/messaging/dialer.h"
#include "common/messaging/pending.h"
#include "common/messaging/rpc.h"
#include "common/messaging/wire.h"

#define REDIAL_NS     (100 * BT_NS_PER_MS)
#define REDIAL_MAX_NS (1000 * BT_NS_PER_MS)
/* A broken handshake may be a server that just went down; after so many it is a refusal. */
#define PATIENCE_HANDSHAKES 3
#define WHY_SIZE            256
/* The second loss within this time is followed by a pause of as much, so that a peer which accepts
 * and closes costs little. */
#define REOPEN_PAUSE_NS (100 * BT_NS_PER_MS)
/* A connection by which nothing came for so many ticks is asked whether anybody is there. */
#define PING_TICKS 2

enum peer_state { PEER_UNKNOWN, PEER_UP, PEER_DOWN };

struct bt_rpc_client {
    struct bt_loop *loop;
    struct bt_dial dial;
    bool paused;    /* no dial, and no calls: a connection broke at once, or was refused */
    bool connected; /* the handshake is done */
    unsigned fails; /* dials in a row that came to no connection */
    struct bt_loop_source *tick;        /* keepalive while calls are open */
    struct bt_loop_source *redial;      /* armed while there is no dial, or after keys changed */
    const struct bt_security *security; /* NULL: plain */
    struct bt_curve_watch watch;
    struct bt_key server_key;
    int64_t tcp_ns;     /* when the connection was there last, before its handshake */
    unsigned refusals;  /* handshakes in a row that failed */
    char why[WHY_SIZE]; /* the last one did; "" after one that did not */
    int64_t lost_ns;    /* when a connection broke last; 0: never */
    int64_t keepalive_ns;
    enum peer_state state;
    unsigned silent_ticks;
    struct bt_map pending_by_id;
    struct bt_rpc_pending open;    /* ring heads */
    struct bt_rpc_pending failing; /* of a connection that broke; their on_end is under way */
    size_t unsent_count;           /* of the newest in `open` */
    uint64_t last_id;
    bt_rpc_peer_fn *on_peer;
    void *on_peer_context;
    unsigned depth;
    bool dead;
    char *endpoint; /* the address alone */
};

static void client_enter(struct bt_rpc_client *client)
{
    client->depth++;
}

static void client_leave(struct bt_rpc_client *client)
{
    if (--client->depth == 0 && client->dead) {
        bt_map_finish(&client->pending_by_id);
        free(client->endpoint);
        free(client);
    }
}

/* ------------------------------------------------------------------ the end of a call */

/* Takes the response. */
static void wait_end(struct bt_rpc_wait *wait, enum bt_status status, const char *text,
                     ProtobufCMessage *response)
{
    wait->done = true;
    wait->status = status;
    wait->response = response;
    bt_wire_text_copy(text[0] ? text : bt_status_name(status), wait->text, sizeof wait->text);
}

static void unsent_drop(struct bt_rpc_pending *pending)
{
    if (pending->unsent) {
        bt_wire_packet_finish(pending->unsent);
        free(pending->unsent);
        pending->unsent = NULL;
        pending->client->unsent_count--;
    }
}

/* The one place where on_end runs. The client may be dead afterwards; the caller has entered it. */
static void pending_finish(struct bt_rpc_pending *pending, enum bt_status status, const char *text,
                           ProtobufCMessage *response)
{
    struct bt_rpc_client *client = pending->client;
    bt_pending_ring_remove(pending);
    unsent_drop(pending);
    if (bt_map_get(&client->pending_by_id, pending->id) == pending) {
        bt_map_remove(&client->pending_by_id, pending->id);
    }
    bt_loop_remove(pending->timer);
    if (pending->wait) {
        wait_end(pending->wait, status, text, response);
        free(pending);
        return;
    }
    if (pending->on_end) {
        pending->on_end(pending->context, status, text, response);
    }
    if (response) {
        protobuf_c_message_free_unpacked(response, NULL);
    }
    free(pending);
}

static void ring_finish(struct bt_rpc_pending *head, enum bt_status status, const char *text)
{
    while (!bt_pending_ring_empty(head)) {
        pending_finish(head->next, status, text, NULL);
    }
}

static void peer_state_set(struct bt_rpc_client *client, enum peer_state state)
{
    if (client->state == state) {
        return;
    }
    client->state = state;
    if (client->on_peer) {
        client->on_peer(client->on_peer_context, state == PEER_UP);
    }
}

/* ------------------------------------------------------------------ the connection */

static void on_message(void *owner, struct bt_wire_message *message);
static void on_connection(void *owner, const struct bt_monitor_event *event);

static const struct bt_dials dial_calls = {.received = on_message, .told = on_connection};

static enum bt_status client_dial(struct bt_rpc_client *client, struct bt_error *error)
{
    enum bt_status status = bt_dial_open(client->loop, &client->dial, client->endpoint,
                                         &client->server_key, &dial_calls, client, error);
    if (status == BT_OK) {
        bt_loop_timer_set(client->redial, BT_NEVER_NS); /* keys were looked at just now */
        client->paused = false;
        client->connected = bt_dial_is_silent(&client->dial);
    }
    return status;
}

static void client_hang_up(struct bt_rpc_client *client)
{
    client->connected = false;
    bt_dial_close(&client->dial);
}

static int64_t doubled_ns(int64_t pause_ns, unsigned doublings)
{
    pause_ns <<= doublings < 4 ? doublings : 4;
    return pause_ns < REDIAL_MAX_NS ? pause_ns : REDIAL_MAX_NS;
}

/* Calls wait for another dial. Clients that lost their servers at one time come back one by one. */
static void dial_failed(struct bt_rpc_client *client)
{
    client_hang_up(client);
    int64_t pause_ns = doubled_ns(REDIAL_NS, client->fails++);
    uint64_t spread = bt_random_u64((uintptr_t)client, client->fails, 0) % (uint64_t)REDIAL_NS;
    bt_loop_timer_set(client->redial, bt_clock_now_ns() + pause_ns + (int64_t)spread);
    peer_state_set(client, PEER_DOWN);
}

/* False: the reason is in `why`. */
static bool client_redial(struct bt_rpc_client *client)
{
    struct bt_error error;
    if (client_dial(client, &error) == BT_OK) {
        return true;
    }
    client->refusals++;
    bt_wire_text_copy(error.text, client->why, sizeof client->why);
    return false;
}

/*
 * Gives up the connection and all calls on it. What was queued and not sent goes with the dial: the
 * next connection must not see calls that were reported as lost.
 */
static void client_lose(struct bt_rpc_client *client, enum bt_status status, const char *text)
{
    int64_t now_ns = bt_clock_now_ns();
    bool again = client->lost_ns && now_ns - client->lost_ns < REOPEN_PAUSE_NS;
    client->lost_ns = now_ns;
    client_hang_up(client);
    bt_map_finish(&client->pending_by_id);
    bt_pending_ring_move(&client->failing, &client->open);
    bt_loop_timer_set(client->tick, BT_NEVER_NS);
    client->paused = again || client->refusals > 0 || !client_redial(client);
    if (client->paused) {
        bt_loop_timer_set(client->redial, now_ns + doubled_ns(REOPEN_PAUSE_NS, client->refusals));
    }
    peer_state_set(client, PEER_DOWN);
    ring_finish(&client->failing, status, text);
}

/* The list of keys changed: the server's may have left it, or come back. */
static void keys_recheck(struct bt_rpc_client *client)
{
    const struct bt_known_key *known = bt_curve_find(client->security, &client->server_key);
    if (!known || !known->allowed) {
        snprintf(client->why, sizeof client->why, "the server's key is admitted no more");
        client->refusals++;
        client_lose(client, BT_ERR_UNAVAILABLE, client->why);
    }
}

static void on_redial(void *context)
{
    struct bt_rpc_client *client = context;
    client_enter(client);
    if (client->dial.dialer) {
        keys_recheck(client);
    } else if (!client_redial(client)) {
        client_lose(client, BT_ERR_UNAVAILABLE, client->why);
    }
    client_leave(client);
}

static void on_keys_changed(void *context)
{
    struct bt_rpc_client *client = context;
    bt_loop_timer_set(client->redial, 0);
}

static enum bt_status send_plain(struct bt_rpc_client *client, Baton__V1__Frame__Kind kind,
                                 uint64_t id)
{
    Baton__V1__Frame frame = BATON__V1__FRAME__INIT;
    frame.kind = kind;
    frame.call_id = id;
    return client->connected ? bt_dial_send(&client->dial, &frame, NULL) : BT_ERR_EXHAUSTED;
}

/* ------------------------------------------------------------------ what waits */

/* The calls that wait for the connection, or for room in its queue, are among the newest. */
static struct bt_rpc_pending *unsent_first(struct bt_rpc_client *client)
{
    struct bt_rpc_pending *pending = &client->open;
    for (size_t left = client->unsent_count; left > 0; left -= pending->unsent != NULL) {
        pending = pending->previous;
    }
    return pending;
}

/* In their order. True: none waits any more. */
static bool unsent_flush(struct bt_rpc_client *client)
{
    if (client->unsent_count == 0) {
        return true;
    }
    struct bt_rpc_pending *pending = unsent_first(client);
    for (; pending != &client->open; pending = pending->next) {
        if (!pending->unsent) {
            continue; /* its deadline had passed */
        }
        if (bt_dial_send_packet(&client->dial, pending->unsent) == BT_ERR_EXHAUSTED) {
            return false;
        }
        free(pending->unsent); /* sent, or of a connection whose end will be told */
        pending->unsent = NULL;
        client->unsent_count--;
    }
    return true;
}

static void cancel_send(struct bt_rpc_pending *pending)
{
    pending->cancel_unsent =
        pending->unsent ||
        send_plain(pending->client, BATON__V1__FRAME__KIND__CANCEL, pending->id) != BT_OK;
}

static void waiting_send(struct bt_rpc_client *client)
{
    if (!unsent_flush(client)) {
        return;
    }
    for (struct bt_rpc_pending *pending = client->open.next; pending != &client->open;
         pending = pending->next) {
        if (pending->cancel_unsent) {
            cancel_send(pending);
        }
    }
}

/* ------------------------------------------------------------------ what comes in */

/* Tells the server too, if it can be told: it would stop at the deadline or loss by itself. */
static void pending_abandon(struct bt_rpc_pending *pending, enum bt_status status, const char *text)
{
    if (!pending->unsent) {
        send_plain(pending->client, BATON__V1__FRAME__KIND__CANCEL, pending->id);
    }
    pending_finish(pending, status, text, NULL);
}

static void frame_data(struct bt_rpc_pending *pending, struct bt_wire_message *wire)
{
    struct bt_arena *arena = bt_loop_arena(pending->client->loop);
    struct bt_arena_mark mark = bt_arena_mark(arena);
    ProtobufCMessage *message =
        pending->data ? bt_wire_unpack_in(arena, pending->data, zmq_msg_data(&wire->payload),
                                          zmq_msg_size(&wire->payload))
                      : NULL;
    if (!message) {
        pending_abandon(pending, BT_ERR_PROTOCOL, "the server sent a stream message that is none");
    } else if (pending->on_data) {
        pending->on_data(pending->context, message);
    }
    bt_arena_release(arena, mark);
}

static void frame_end(struct bt_rpc_pending *pending, struct bt_wire_message *wire)
{
    const char *name = wire->frame->status;
    enum bt_status status = name[0] ? bt_status_from_name(name) : BT_OK;
    const char *text = wire->frame->message;
    ProtobufCMessage *response = NULL;
    if (status == BT_IN_PROGRESS) {
        status = BT_ERR_PROTOCOL;
    }
    if (status == BT_OK && pending->response) {
        response = bt_wire_unpack(pending->response, zmq_msg_data(&wire->payload),
                                  zmq_msg_size(&wire->payload));
        if (!response) {
            status = BT_ERR_PROTOCOL;
            text = "the server's response does not parse";
        }
    }
    pending_finish(pending, status, text, response);
}

static void on_message(void *owner, struct bt_wire_message *wire)
{
    struct bt_rpc_client *client = owner;
    client_enter(client);
    client->silent_ticks = 0;
    peer_state_set(client, PEER_UP);
    struct bt_rpc_pending *pending = bt_map_get(&client->pending_by_id, wire->frame->call_id);
    switch ((int)wire->frame->kind) {
    case BATON__V1__FRAME__KIND__DATA:
        if (pending) {
            frame_data(pending, wire);
        }
        break;
    case BATON__V1__FRAME__KIND__END:
        if (pending) {
            frame_end(pending, wire);
        }
        break;
    case BATON__V1__FRAME__KIND__PING:
        send_plain(client, BATON__V1__FRAME__KIND__PONG, wire->frame->call_id);
        break;
    default:
        break;
    }
    client_leave(client);
}

static void connection_closed(struct bt_rpc_client *client)
{
    if (client->connected) {
        client_lose(client, BT_ERR_PEER_LOST, "the peer closed the connection");
    } else {
        dial_failed(client);
    }
}

/* The end of the connection follows, unless it is given up here. */
static void handshake_failed(struct bt_rpc_client *client, const struct bt_monitor_event *event)
{
    int64_t waited_ms = (bt_clock_now_ns() - client->tcp_ns) / BT_NS_PER_MS;
    bt_curve_explain_server(client->security, event, waited_ms, client->why, sizeof client->why);
    client->refusals++;
    if (event->event != ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL ||
        client->refusals >= PATIENCE_HANDSHAKES) {
        client_lose(client, BT_ERR_UNAVAILABLE, client->why);
    } else {
        peer_state_set(client, PEER_DOWN);
    }
}

static void connection_up(struct bt_rpc_client *client)
{
    client->connected = true;
    client->refusals = client->fails = 0;
    client->why[0] = '\0';
    waiting_send(client);
    /* That the library shook hands says nothing about the program behind it; a PONG does. */
    send_plain(client, BATON__V1__FRAME__KIND__PING, 0);
}

static void on_connection(void *owner, const struct bt_monitor_event *event)
{
    struct bt_rpc_client *client = owner;
    client_enter(client);
    switch (event->event) {
    case ZMQ_EVENT_CONNECTED:
        client->tcp_ns = bt_clock_now_ns();
        break;
    case ZMQ_EVENT_HANDSHAKE_SUCCEEDED:
        connection_up(client);
        break;
    case ZMQ_EVENT_DISCONNECTED:
        connection_closed(client);
        break;
    case ZMQ_EVENT_CONNECT_RETRIED:
        if (!client->connected) {
            dial_failed(client); /* nobody is there */
        }
        break;
    default:
        handshake_failed(client, event);
        break;
    }
    client_leave(client);
}

/* ------------------------------------------------------------------ keepalive */

static void on_tick(void *context)
{
    struct bt_rpc_client *client = context;
    if (bt_pending_ring_empty(&client->open)) {
        return;
    }
    client_enter(client);
    if (++client->silent_ticks > BT_RPC_SILENT_TICKS) {
        bool known = client->connected;
        const char *why = client->why[0] ? client->why : "no connection to the peer";
        client_lose(client, known ? BT_ERR_PEER_LOST : BT_ERR_UNAVAILABLE,
                    known ? "the peer does not answer" : why);
    } else {
        if (client->connected && client->silent_ticks >= PING_TICKS) {
            send_plain(client, BATON__V1__FRAME__KIND__PING, 0);
        }
        if (client->connected) {
            waiting_send(client);
        }
        bt_loop_timer_set(client->tick, bt_clock_now_ns() + client->keepalive_ns);
    }
    client_leave(client);
}

/* ------------------------------------------------------------------ calls */

static void on_pending_timer(void *context)
{
    struct bt_rpc_pending *pending = context;
    struct bt_rpc_client *client = pending->client;
    client_enter(client);
    if (bt_clock_now_ns() >= pending->deadline_ns) {
        pending_abandon(pending, BT_ERR_DEADLINE, "the deadline passed");
    } else {
        pending_finish(pending, BT_ERR_CANCELLED, "cancelled; the server did not answer", NULL);
    }
    client_leave(client);
}

/* Arms the timer for what comes first. False: no memory for it. */
static bool pending_timer_set(struct bt_rpc_pending *pending)
{
    int64_t when_ns =
        pending->deadline_ns < pending->give_up_ns ? pending->deadline_ns : pending->give_up_ns;
    if (pending->timer) {
        bt_loop_timer_set(pending->timer, when_ns);
    } else if (when_ns != BT_NEVER_NS) {
        pending->timer =
            bt_loop_add_timer(pending->client->loop, when_ns, on_pending_timer, pending);
    }
    return pending->timer || when_ns == BT_NEVER_NS;
}

static struct bt_rpc_pending *pending_create(struct bt_rpc_client *client,
                                             const struct bt_rpc_call_spec *spec)
{
    struct bt_rpc_pending *pending = calloc(1, sizeof *pending);
    if (!pending) {
        return NULL;
    }
    *pending = (struct bt_rpc_pending){.client = client,
                                       .id = client->last_id + 1,
                                       .deadline_ns = spec->deadline_ns,
                                       .give_up_ns = BT_NEVER_NS,
                                       .cancel_wait_ns = spec->cancel_wait_ns,
                                       .data = spec->data,
                                       .response = spec->response,
                                       .on_data = spec->on_data,
                                       .on_end = spec->on_end,
                                       .context = spec->context};
    if (!pending_timer_set(pending)) {
        goto err_pending;
    }
    if (!bt_map_put(&client->pending_by_id, pending->id, pending)) {
        goto err_timer;
    }
    client->last_id++;
    return pending;

err_timer:
    bt_loop_remove(pending->timer);
err_pending:
    free(pending);
    return NULL;
}

/* 0 on the wire means no deadline, so what is left is at least 1 ms. */
static uint64_t timeout_to_wire(int64_t deadline_ns, int64_t now_ns)
{
    if (deadline_ns == BT_NEVER_NS) {
        return 0;
    }
    return (uint64_t)((deadline_ns - now_ns - 1) / BT_NS_PER_MS + 1);
}

/* Sends the packet, or has the call keep it. Takes it where the call is accepted. */
static enum bt_status packet_send(struct bt_rpc_client *client, struct bt_rpc_pending *pending,
                                  struct bt_wire_packet *packet)
{
    if (client->connected) {
        if (!unsent_flush(client)) {
            return BT_ERR_EXHAUSTED;
        }
        enum bt_status status = bt_dial_send_packet(&client->dial, packet);
        /* A connection that broke in the middle is reported soon, which ends the call. */
        return status == BT_ERR_PEER_LOST ? BT_OK : status;
    }
    if (client->unsent_count >= BT_RPC_SEND_QUEUE_MESSAGES) {
        return BT_ERR_EXHAUSTED;
    }
    pending->unsent = malloc(sizeof *pending->unsent);
    if (!pending->unsent) {
        return BT_ERR_NO_MEMORY;
    }
    *pending->unsent = *packet;
    client->unsent_count++;
    return BT_OK;
}

static enum bt_status call_send(struct bt_rpc_client *client, const struct bt_rpc_call_spec *spec,
                                struct bt_rpc_pending *pending)
{
    int64_t now_ns = bt_clock_now_ns();
    if (spec->deadline_ns <= now_ns) {
        return BT_OK; /* the timer ends it in the next round */
    }
    Baton__V1__Frame frame = BATON__V1__FRAME__INIT;
    frame.kind = BATON__V1__FRAME__KIND__CALL;
    frame.call_id = pending->id;
    frame.method = (char *)spec->method;
    frame.timeout_ms = timeout_to_wire(spec->deadline_ns, now_ns);
    frame.version = BT_WIRE_VERSION;
    struct bt_wire_packet packet;
    enum bt_status status = bt_wire_packet_init(&packet, &frame, spec->request);
    if (status != BT_OK) {
        return status;
    }
    status = packet_send(client, pending, &packet);
    if (status == BT_ERR_EXHAUSTED || status == BT_ERR_NO_MEMORY) {
        bt_wire_packet_finish(&packet);
    }
    return status;
}

static enum bt_status call_refused(struct bt_rpc_client *client, enum bt_status status,
                                   const char *method, struct bt_error *error)
{
    const char *reason = "the send queue is full";
    if (status == BT_ERR_INVALID_ARGUMENT) {
        reason = "the request is too large";
    } else if (status == BT_ERR_NO_MEMORY) {
        reason = "no memory for the call";
    } else if (status == BT_ERR_INTERNAL) {
        reason = "the socket failed";
    }
    return bt_error_set(error, status, "%s at %s: %s", method, client->endpoint, reason);
}

static enum bt_status call_admit(struct bt_rpc_client *client, struct bt_error *error)
{
    if (client->dead) {
        return bt_error_set(error, BT_ERR_CANCELLED, "%s: the client is closing", client->endpoint);
    }
    if (client->paused) {
        return bt_error_set(error, BT_ERR_UNAVAILABLE, "%s: %s", client->endpoint,
                            client->why[0] ? client->why : "the peer keeps closing the connection");
    }
    if (client->pending_by_id.size >= BT_RPC_MAX_CALLS_PER_PEER) {
        return bt_error_set(error, BT_ERR_EXHAUSTED, "%s: more than %d open calls",
                            client->endpoint, BT_RPC_MAX_CALLS_PER_PEER);
    }
    return BT_OK;
}

enum bt_status bt_rpc_client_call(struct bt_rpc_client *client, const struct bt_rpc_call_spec *spec,
                                  struct bt_error *error, struct bt_rpc_pending **ret_pending)
{
    enum bt_status status = call_admit(client, error);
    if (status != BT_OK) {
        return status;
    }
    struct bt_rpc_pending *pending = pending_create(client, spec);
    if (!pending) {
        return call_refused(client, BT_ERR_NO_MEMORY, spec->method, error);
    }
    status = call_send(client, spec, pending);
    if (status != BT_OK) {
        bt_map_remove(&client->pending_by_id, pending->id);
        bt_loop_remove(pending->timer);
        free(pending);
        return call_refused(client, status, spec->method, error);
    }
    if (bt_pending_ring_empty(&client->open)) {
        client->silent_ticks = 0;
        bt_loop_timer_set(client->tick, bt_clock_now_ns() + client->keepalive_ns);
    }
    bt_pending_ring_add(&client->open, pending);
    if (ret_pending) {
        *ret_pending = pending;
    }
    return BT_OK;
}

void bt_rpc_pending_cancel(struct bt_rpc_pending *pending)
{
    struct bt_rpc_client *client = pending->client;
    bool open = bt_map_get(&client->pending_by_id, pending->id) == pending;
    if (pending->cancelled || !open) {
        return; /* not open: it ends in this very round, with its connection */
    }
    pending->cancelled = true;
    cancel_send(pending);
    int64_t wait_ns = pending->cancel_wait_ns > 0 ? pending->cancel_wait_ns
                                                  : BT_RPC_SILENT_TICKS * client->keepalive_ns;
    pending->give_up_ns = bt_clock_now_ns() + wait_ns;
    pending_timer_set(pending); /* without memory for it, the loss of the peer ends the call */
}

/* ------------------------------------------------------------------ the client */

enum bt_status bt_rpc_client_create(struct bt_loop *loop, const char *endpoint,
                                    struct bt_error *error, struct bt_rpc_client **ret_client)
{
    BT_ASSERT(endpoint);
    struct bt_rpc_client *client = calloc(1, sizeof *client);
    if (!client) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for an rpc client");
    }
    client->loop = loop;
    client->security = bt_loop_security(loop);
    client->watch = (struct bt_curve_watch){.changed = on_keys_changed, .context = client};
    client->keepalive_ns = BT_RPC_KEEPALIVE_MS * BT_NS_PER_MS;
    bt_map_init(&client->pending_by_id);
    bt_pending_ring_init(&client->open);
    bt_pending_ring_init(&client->failing);
    char address[BT_ENDPOINT_SIZE];
    enum bt_status status =
        bt_curve_client_address(client->security, endpoint, error, address, &client->server_key);
    if (status != BT_OK) {
        bt_error_prefix(error, "connect");
        goto err_client;
    }
    client->endpoint = strdup(address);
    client->tick = bt_loop_add_timer(loop, BT_NEVER_NS, on_tick, client);
    client->redial = bt_loop_add_timer(loop, BT_NEVER_NS, on_redial, client);
    if (!client->endpoint || !client->tick || !client->redial) {
        status = bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for an rpc client");
        goto err_client;
    }
    bt_dialers_join(loop);
    status = client_dial(client, error);
    if (status != BT_OK) {
        goto err_dialers;
    }
    if (client->security) {
        bt_curve_watch_add(bt_loop_security(loop), &client->watch);
    }
    *ret_client = client;
    return BT_OK;

err_dialers:
    bt_dialers_leave(loop);
err_client:
    bt_loop_remove(client->tick);
    bt_loop_remove(client->redial);
    free(client->endpoint);
    free(client);
    return status;
}

void bt_rpc_client_destroy(struct bt_rpc_client *client)
{
    if (!client) {
        return;
    }
    BT_ASSERT(!client->dead);
    client_enter(client);
    client->dead = true;
    client_hang_up(client); /* the server hears of it by the end of the connection */
    bt_dialers_leave(client->loop);
    bt_curve_watch_remove(&client->watch);
    bt_loop_remove(client->tick);
    bt_loop_remove(client->redial);
    bt_map_finish(&client->pending_by_id);
    bt_pending_ring_move(&client->failing, &client->open);
    ring_finish(&client->failing, BT_ERR_CANCELLED, "the client was closed");
    client_leave(client);
}

void bt_rpc_client_on_peer(struct bt_rpc_client *client, bt_rpc_peer_fn *fn, void *context)
{
    client->on_peer = fn;
    client->on_peer_context = context;
}

void bt_rpc_client_set_keepalive(struct bt_rpc_client *client, int64_t keepalive_ms)
{
    client->keepalive_ns = keepalive_ms * BT_NS_PER_MS;
}

/* ------------------------------------------------------------------ blocking calls */

enum bt_status bt_rpc_client_call_wait(struct bt_rpc_client *client,
                                       const struct bt_rpc_call_spec *spec, struct bt_error *error,
                                       ProtobufCMessage **ret_response)
{
    struct bt_rpc_wait wait = {0};
    struct bt_rpc_pending *pending;
    struct bt_loop *loop = client->loop;
    char endpoint[BT_ENDPOINT_SIZE]; /* a callback may destroy the client meanwhile */
    snprintf(endpoint, sizeof endpoint, "%s", client->endpoint);
    enum bt_status status = bt_rpc_client_call(client, spec, error, &pending);
    if (status != BT_OK) {
        return status;
    }
    pending->wait = &wait;
    while (!wait.done && status == BT_OK && !bt_loop_stopping(loop)) {
        status = bt_loop_run_once(loop, BT_NEVER_NS, error);
    }
    if (!wait.done) {
        pending->wait = NULL;
        pending->on_end = NULL;
        pending->on_data = NULL;
        bt_rpc_pending_cancel(pending);
        return status != BT_OK ? status
                               : bt_error_set(error, BT_ERR_CANCELLED, "%s at %s: interrupted",
                                              spec->method, endpoint);
    }
    if (wait.status != BT_OK) {
        return bt_error_set(error, wait.status, "%s at %s: %s", spec->method, endpoint, wait.text);
    }
    if (ret_response) {
        *ret_response = wait.response;
    } else if (wait.response) {
        protobuf_c_message_free_unpacked(wait.response, NULL);
    }
    return BT_OK;
}
