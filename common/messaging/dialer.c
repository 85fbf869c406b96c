#include "common/messaging/dialer.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

#include "common/base/clock.h"
#include "common/base/map.h"
#include "common/base/random.h"

#define MESSAGES_PER_ROUND 256
/* How many messages of all connections are read, at most, before an end is told although there may
 * be more of what came before it. */
#define MESSAGES_BEFORE_END 65536
#define SPELLINGS           64 /* of one endpoint */
/* Whoever opened a dial decides when there is another. */
#define RECONNECT_NEVER_MS (24 * 3600 * 1000)
/* So many are dialled at a time. More fill the queues of those who accept; and the library looks
 * through all timers of handshakes to take out one. */
#define MAX_DIALLING 512
/* Where a whole cluster connects at once, the kernel drops what it can't queue, and asks again
 * after 1, 3, 7, … 63 s. The next dial is sooner. */
#define CONNECT_TIMEOUT_MS 3500
#define CONNECTION_EVENTS                                                                          \
    (ZMQ_EVENT_CONNECTED | ZMQ_EVENT_HANDSHAKE_SUCCEEDED | ZMQ_EVENT_DISCONNECTED |                \
     ZMQ_EVENT_CONNECT_RETRIED | ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL |                            \
     ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL | ZMQ_EVENT_HANDSHAKE_FAILED_AUTH)

static const char inproc[] = "inproc://";

/* A message that was read and not told yet. */
struct kept {
    struct kept *next;
    struct bt_wire_message message;
};

struct bt_dialer {
    const struct bt_security *security; /* NULL: plain */
    void *socket;
    struct bt_monitor monitor;
    struct bt_loop_source *socket_source;
    struct bt_loop_source *monitor_source;
    struct bt_loop_source *again; /* set while ends are to be told and there is more to read */
    struct bt_dial *only;         /* whose own socket it is; NULL: shared */
    struct bt_map by_id;
    struct bt_map by_fd;
    struct bt_map by_address; /* by hash; a dial whose hash is taken is spelled otherwise */
    uint64_t hash_seed;
    uint64_t last_id;
    unsigned turn;     /* of spellings, so that one is not used again soon */
    uint64_t reads;    /* messages, since the start */
    struct kept *kept; /* to be told before what is read next */
    struct kept **kept_last;
    struct bt_dial ended;   /* ring heads */
    struct bt_dial waiting; /* in their order */
    size_t dialling;
    unsigned depth;
    bool dead;
};

/* ------------------------------------------------------------------ the socket */

static void dialer_enter(struct bt_dialer *dialer)
{
    dialer->depth++;
}

static void dialer_leave(struct bt_dialer *dialer)
{
    if (--dialer->depth == 0 && dialer->dead) {
        bt_map_finish(&dialer->by_id);
        bt_map_finish(&dialer->by_fd);
        bt_map_finish(&dialer->by_address);
        free(dialer);
    }
}

/* False: none. */
static bool kept_take(struct bt_dialer *dialer, struct bt_wire_message *ret_message)
{
    struct kept *kept = dialer->kept;
    if (!kept) {
        return false;
    }
    dialer->kept = kept->next;
    if (!dialer->kept) {
        dialer->kept_last = &dialer->kept;
    }
    *ret_message = kept->message;
    free(kept);
    return true;
}

static void dialer_destroy(struct bt_dialer *dialer)
{
    if (!dialer) {
        return;
    }
    dialer_enter(dialer);
    dialer->dead = true;
    struct bt_wire_message message;
    while (kept_take(dialer, &message)) {
        bt_wire_message_close(&message);
    }
    bt_loop_remove(dialer->socket_source);
    bt_loop_remove(dialer->monitor_source);
    bt_loop_remove(dialer->again);
    if (dialer->monitor.channel) {
        bt_monitor_finish(&dialer->monitor);
    }
    if (dialer->socket) {
        zmq_close(dialer->socket);
    }
    dialer_leave(dialer);
}

static enum bt_status socket_setup(void *socket, struct bt_error *error)
{
    int mandatory = 1; /* a full queue is its connection's own matter, and is told */
    int never_ms = RECONNECT_NEVER_MS;
    int timeout_ms = CONNECT_TIMEOUT_MS;
    enum bt_status status = bt_wire_socket_setup(socket, error);
    if (status == BT_OK &&
        (zmq_setsockopt(socket, ZMQ_ROUTER_MANDATORY, &mandatory, sizeof mandatory) < 0 ||
         zmq_setsockopt(socket, ZMQ_RECONNECT_IVL, &never_ms, sizeof never_ms) < 0 ||
         zmq_setsockopt(socket, ZMQ_CONNECT_TIMEOUT, &timeout_ms, sizeof timeout_ms) < 0)) {
        status = bt_error_set(error, BT_ERR_INTERNAL, "zmq_setsockopt: %s", zmq_strerror(errno));
    }
    return status;
}

static void on_readable(void *context);
static void on_connection(void *context);

static enum bt_status dialer_create(struct bt_loop *loop, struct bt_error *error,
                                    struct bt_dialer **ret_dialer)
{
    struct bt_dialer *dialer = calloc(1, sizeof *dialer);
    if (!dialer) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for connections");
    }
    dialer->security = bt_loop_security(loop);
    dialer->hash_seed = bt_random_entropy();
    dialer->ended.previous = dialer->ended.next = &dialer->ended;
    dialer->waiting.previous = dialer->waiting.next = &dialer->waiting;
    dialer->kept_last = &dialer->kept;
    bt_map_init(&dialer->by_id);
    bt_map_init(&dialer->by_fd);
    bt_map_init(&dialer->by_address);
    void *zmq = bt_loop_zmq(loop);
    enum bt_status status = BT_ERR_INTERNAL;
    dialer->socket = zmq_socket(zmq, ZMQ_ROUTER);
    if (!dialer->socket) {
        bt_error_set(error, status, "zmq_socket: %s", zmq_strerror(errno));
        goto err_dialer;
    }
    status = socket_setup(dialer->socket, error);
    if (status == BT_OK) {
        status = bt_monitor_init(&dialer->monitor, zmq, dialer->socket, CONNECTION_EVENTS, error);
    }
    if (status != BT_OK) {
        goto err_dialer;
    }
    dialer->socket_source = bt_loop_add_socket(loop, dialer->socket, on_readable, dialer);
    dialer->monitor_source =
        bt_loop_add_socket(loop, dialer->monitor.channel, on_connection, dialer);
    dialer->again = bt_loop_add_timer(loop, BT_NEVER_NS, on_readable, dialer);
    if (!dialer->socket_source || !dialer->monitor_source || !dialer->again) {
        status = bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for connections");
        goto err_dialer;
    }
    *ret_dialer = dialer;
    return BT_OK;

err_dialer:
    dialer_destroy(dialer);
    return status;
}

void bt_dialers_join(struct bt_loop *loop)
{
    bt_loop_dialers(loop)->users++;
}

void bt_dialers_leave(struct bt_loop *loop)
{
    struct bt_dialers *dialers = bt_loop_dialers(loop);
    if (--dialers->users == 0) {
        dialer_destroy(dialers->shared);
        dialers->shared = NULL;
    }
}

/* ------------------------------------------------------------------ spellings */

/* Where in the address `zeros` or slashes may be put in, and how many at most; 0: nowhere. */
static size_t spelling_room(const char *address, size_t *ret_at, char *ret_filler)
{
    size_t size = strlen(address);
    if (strncmp(address, "tcp://", 6) == 0) {
        const char *colon = strrchr(address, ':');
        size_t digits = strspn(colon + 1, "0123456789");
        *ret_at = (size_t)(colon + 1 - address);
        *ret_filler = '0';
        return digits > 0 && colon[1 + digits] == '\0' && size + SPELLINGS < BT_ENDPOINT_SIZE
                   ? SPELLINGS
                   : 0;
    }
    struct sockaddr_un path;
    size_t room = 6 + sizeof path.sun_path - 1;
    *ret_at = 6;
    *ret_filler = '/';
    if (strncmp(address, "ipc:///", 7) != 0 || size >= room) {
        return 0;
    }
    return room - size < SPELLINGS ? room - size : SPELLINGS;
}

static uint64_t address_hash(const struct bt_dialer *dialer, const char *address)
{
    uint64_t hash = dialer->hash_seed;
    for (; *address; address++) {
        hash = (hash ^ (unsigned char)*address) * UINT64_C(0x100000001b3);
    }
    return hash;
}

/* A way to spell the address that no dial of the socket uses, and not the plain one: the library
 * itself speaks of that when it means what is over already. False: there is none. */
static bool spell(struct bt_dialer *dialer, const char *address, char ret_spelled[BT_ENDPOINT_SIZE])
{
    size_t at;
    char filler;
    size_t room = spelling_room(address, &at, &filler);
    for (size_t i = 0; i < room; i++) {
        size_t count = 1 + dialer->turn++ % room;
        memcpy(ret_spelled, address, at);
        memset(ret_spelled + at, filler, count);
        snprintf(ret_spelled + at + count, BT_ENDPOINT_SIZE - at - count, "%s", address + at);
        if (!bt_map_get(&dialer->by_address, address_hash(dialer, ret_spelled))) {
            return true;
        }
    }
    return false;
}

/* ------------------------------------------------------------------ opening and closing */

static void ring_add(struct bt_dial *head, struct bt_dial *dial)
{
    dial->next = head;
    dial->previous = head->previous;
    dial->previous->next = dial;
    head->previous = dial;
}

static void ring_remove(struct bt_dial *dial)
{
    dial->previous->next = dial->next;
    dial->next->previous = dial->previous;
}

/* It is connected, or will not be: another may be dialled. */
static void dial_settled(struct bt_dial *dial)
{
    struct bt_dialer *dialer = dial->dialer;
    if (dial->dialling) {
        dial->dialling = false;
        dialer->dialling--;
        if (dialer->waiting.next != &dialer->waiting) {
            bt_loop_timer_set(dialer->again, 0);
        }
    }
}

/* What the socket is told just before it connects holds for this connection alone. */
static enum bt_status dial_connect(struct bt_dial *dial, struct bt_error *error)
{
    void *socket = dial->dialer->socket;
    enum bt_status status =
        bt_curve_client_setup(dial->dialer->security, socket, dial->server, error);
    if (status != BT_OK) {
        return status;
    }
    if (zmq_setsockopt(socket, ZMQ_CONNECT_ROUTING_ID, &dial->id, sizeof dial->id) < 0) {
        return bt_error_set(error, BT_ERR_INTERNAL, "zmq_setsockopt: %s", zmq_strerror(errno));
    }
    if (zmq_connect(socket, dial->address) < 0) {
        bool bad = errno == EINVAL || errno == EPROTONOSUPPORT || errno == ENOCOMPATPROTO;
        return bt_error_set(error, bad ? BT_ERR_INVALID_ARGUMENT : BT_ERR_IO, "%s",
                            zmq_strerror(errno));
    }
    dial->dialling = true;
    dial->dialer->dialling++;
    return BT_OK;
}

/* Picks the socket and the spelling. */
static enum bt_status dial_place(struct bt_loop *loop, struct bt_dial *dial, const char *address,
                                 struct bt_error *error)
{
    struct bt_dialers *dialers = bt_loop_dialers(loop);
    char spelled[BT_ENDPOINT_SIZE];
    enum bt_status status = BT_OK;
    if (!dialers->shared) {
        status = dialer_create(loop, error, &dialers->shared);
    }
    if (status != BT_OK) {
        return status;
    }
    dial->dialer = dialers->shared;
    if (!spell(dialers->shared, address, spelled)) {
        snprintf(spelled, sizeof spelled, "%s", address);
        status = dialer_create(loop, error, &dial->dialer);
        if (status != BT_OK) {
            return status;
        }
        dial->dialer->only = dial;
    }
    dial->address = strdup(spelled);
    dial->id = ++dial->dialer->last_id;
    uint64_t hash = address_hash(dial->dialer, spelled);
    if (!dial->address || !bt_map_put(&dial->dialer->by_id, dial->id, dial) ||
        !bt_map_put(&dial->dialer->by_address, hash, dial) ||
        !bt_map_reserve(&dial->dialer->by_fd, 1)) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a connection");
    }
    return BT_OK;
}

/* As far as it came. */
static void dial_forget(struct bt_dial *dial)
{
    struct bt_dialer *dialer = dial->dialer;
    if (!dialer) {
        return;
    }
    if (dial->ended || dial->waiting) {
        ring_remove(dial);
    }
    dial_settled(dial);
    if (dial->fd >= 0) {
        bt_map_remove(&dialer->by_fd, (uint64_t)dial->fd);
    }
    bt_map_remove(&dialer->by_id, dial->id);
    uint64_t hash = dial->address ? address_hash(dialer, dial->address) : 0;
    if (dial->address && bt_map_get(&dialer->by_address, hash) == dial) {
        bt_map_remove(&dialer->by_address, hash);
    }
    free(dial->address);
    bool own = dialer->only == dial;
    *dial = (struct bt_dial){.fd = -1};
    if (own) {
        dialer_destroy(dialer);
    }
}

enum bt_status bt_dial_open(struct bt_loop *loop, struct bt_dial *dial, const char *address,
                            const struct bt_key *server, const struct bt_dials *calls, void *owner,
                            struct bt_error *error)
{
    BT_ASSERT(!dial->dialer);
    *dial = (struct bt_dial){.fd = -1, .calls = calls, .owner = owner, .server = server};
    enum bt_status status = dial_place(loop, dial, address, error);
    if (status == BT_OK && dial->dialer->dialling >= MAX_DIALLING) {
        dial->waiting = true;
        ring_add(&dial->dialer->waiting, dial);
        return BT_OK;
    }
    if (status == BT_OK) {
        status = dial_connect(dial, error);
    }
    if (status != BT_OK) {
        bt_error_prefix(error, "connect %s", address);
        dial_forget(dial);
    }
    return status;
}

/*
 * The library takes the first part of a message from its connection when it is asked whether there
 * is any, and asserts later that it finds the rest: so no message may be begun while a connection
 * is closed. False: no memory to keep the one that is.
 */
static bool message_keep(struct bt_dialer *dialer)
{
    struct kept *kept = calloc(1, sizeof *kept);
    if (!kept) {
        return false;
    }
    if (bt_wire_receive(dialer->socket, true, &kept->message) != BT_OK) {
        free(kept);
        return true;
    }
    *dialer->kept_last = kept;
    dialer->kept_last = &kept->next;
    bt_loop_timer_set(dialer->again, 0);
    return true;
}

void bt_dial_close(struct bt_dial *dial)
{
    bool known = dial->dialer && !dial->dialer->only && !dial->given_up && !dial->waiting;
    /* One that stays open for lack of memory is nobody's, until the socket is closed. */
    if (known && message_keep(dial->dialer)) {
        zmq_disconnect(dial->dialer->socket, dial->address);
    }
    dial_forget(dial);
}

bool bt_dial_is_silent(const struct bt_dial *dial)
{
    return dial->address && strncmp(dial->address, inproc, sizeof inproc - 1) == 0;
}

enum bt_status bt_dial_send(struct bt_dial *dial, const Baton__V1__Frame *frame,
                            const ProtobufCMessage *payload)
{
    return bt_wire_send(dial->dialer->socket, &dial->id, sizeof dial->id, frame, payload);
}

enum bt_status bt_dial_send_packet(struct bt_dial *dial, struct bt_wire_packet *packet)
{
    return bt_wire_packet_send(packet, dial->dialer->socket, &dial->id, sizeof dial->id);
}

/* ------------------------------------------------------------------ what comes in */

static struct bt_dial *find_by_id(const struct bt_dialer *dialer, zmq_msg_t *identity)
{
    uint64_t id;
    if (zmq_msg_size(identity) != sizeof id) {
        return NULL;
    }
    memcpy(&id, zmq_msg_data(identity), sizeof id);
    return bt_map_get(&dialer->by_id, id);
}

/* At most `limit` messages. True: there are no more. */
static bool messages_read(struct bt_dialer *dialer, int limit)
{
    for (int i = 0; i < limit && !dialer->dead; i++) {
        struct bt_wire_message message;
        enum bt_status status =
            kept_take(dialer, &message) ? BT_OK : bt_wire_receive(dialer->socket, true, &message);
        if (status == BT_ERR_PROTOCOL) {
            continue;
        }
        if (status != BT_OK) {
            return true;
        }
        dialer->reads++;
        struct bt_dial *dial = find_by_id(dialer, &message.identity);
        if (dial) {
            dial->calls->received(dial->owner, &message);
        }
        bt_wire_message_close(&message);
    }
    return false;
}

/* Ends are told when all that came before them was. */
static void ends_tell(struct bt_dialer *dialer, bool drained)
{
    while (!dialer->dead && dialer->ended.next != &dialer->ended) {
        struct bt_dial *dial = dialer->ended.next;
        if (!drained && dialer->reads - dial->ended_at < MESSAGES_BEFORE_END) {
            bt_loop_timer_set(dialer->again, 0);
            return;
        }
        dial->ended = false;
        ring_remove(dial);
        struct bt_monitor_event event = {.event = ZMQ_EVENT_DISCONNECTED, .value = dial->fd};
        dial->calls->told(dial->owner, &event);
    }
}

/* Those that waited. What keeps one from it is found again, and told, when its owner tries anew. */
static void waiting_dial(struct bt_dialer *dialer)
{
    struct bt_monitor_event failed = {.event = ZMQ_EVENT_CONNECT_RETRIED};
    while (!dialer->dead && dialer->dialling < MAX_DIALLING &&
           dialer->waiting.next != &dialer->waiting) {
        struct bt_dial *dial = dialer->waiting.next;
        ring_remove(dial);
        dial->waiting = false;
        if (dial_connect(dial, NULL) != BT_OK) {
            dial->given_up = true;
            dial->calls->told(dial->owner, &failed);
        }
    }
}

static void read_and_tell(struct bt_dialer *dialer)
{
    /* Of what is read from here on, nothing is of a connection that ended after it. */
    bool any_ended = dialer->ended.next != &dialer->ended;
    bool drained = messages_read(dialer, MESSAGES_PER_ROUND);
    if (any_ended) {
        ends_tell(dialer, drained);
    }
    waiting_dial(dialer);
}

static void on_readable(void *context)
{
    struct bt_dialer *dialer = context;
    dialer_enter(dialer);
    read_and_tell(dialer);
    dialer_leave(dialer);
}

/* ------------------------------------------------------------------ connections */

static void dial_connected(struct bt_dialer *dialer, struct bt_dial *dial, int fd)
{
    struct bt_dial *before = fd >= 0 ? bt_map_get(&dialer->by_fd, (uint64_t)fd) : NULL;
    if (before) {
        before->fd = -1; /* its descriptor is another's by now */
    }
    if (fd >= 0 && bt_map_put(&dialer->by_fd, (uint64_t)fd, dial)) {
        dial->fd = fd;
    }
}

static void dial_ended(struct bt_dialer *dialer, struct bt_dial *dial)
{
    if (dial->ended) {
        return;
    }
    dial->ended = true;
    dial->ended_at = dialer->reads;
    ring_add(&dialer->ended, dial);
}

static struct bt_dial *find_by_event(const struct bt_dialer *dialer,
                                     const struct bt_monitor_event *event)
{
    if (dialer->only) {
        return dialer->only;
    }
    if (event->event == ZMQ_EVENT_DISCONNECTED) {
        return event->value >= 0 ? bt_map_get(&dialer->by_fd, (uint64_t)event->value) : NULL;
    }
    struct bt_dial *dial = bt_map_get(&dialer->by_address, address_hash(dialer, event->address));
    return dial && strcmp(dial->address, event->address) == 0 ? dial : NULL;
}

static void event_take(struct bt_dialer *dialer, const struct bt_monitor_event *event)
{
    struct bt_dial *dial = find_by_event(dialer, event);
    if (!dial) {
        return; /* of a dial that was closed */
    }
    if (event->event == ZMQ_EVENT_CONNECTED) {
        dial_connected(dialer, dial, event->value);
    } else {
        dial_settled(dial);
    }
    if (event->event == ZMQ_EVENT_DISCONNECTED) {
        dial_ended(dialer, dial);
        return;
    }
    /* After a refusal that has a reason the library forgets the endpoint by itself. */
    dial->given_up = event->event == ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL ||
                     event->event == ZMQ_EVENT_HANDSHAKE_FAILED_AUTH;
    dial->calls->told(dial->owner, event);
}

static void on_connection(void *context)
{
    struct bt_dialer *dialer = context;
    dialer_enter(dialer);
    struct bt_monitor_event event;
    while (!dialer->dead && bt_monitor_next(&dialer->monitor, &event)) {
        event_take(dialer, &event);
    }
    if (!dialer->dead) {
        read_and_tell(dialer);
    }
    dialer_leave(dialer);
}
