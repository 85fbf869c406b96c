#include "common/messaging/wire.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/messaging/rpc.h"

/* Connections that wait to be accepted: all workers come at once when a router was restarted. What
 * the kernel allows by default. */
#define BACKLOG 4096
/* Idle connections of hosts that vanished are closed after about two minutes; connections with open
 * calls have the protocol's own keepalive. */
#define TCP_IDLE_S     60
#define TCP_INTERVAL_S 10
#define TCP_PROBES     6
/* Decoded, a message may be many times its size on the wire: two bytes can stand for an object. */
#define MAX_UNPACKED_BYTES ((size_t)BT_RPC_MAX_MESSAGE_BYTES * 4)

enum bt_status bt_wire_socket_setup(void *socket, struct bt_error *error)
{
    int linger_ms = 0;
    int queue = BT_RPC_SEND_QUEUE_MESSAGES;
    int64_t max_bytes = BT_RPC_MAX_MESSAGE_BYTES;
    int handshake_ms = BT_WIRE_HANDSHAKE_MS;
    int backlog = BACKLOG;
    int on = 1, idle_s = TCP_IDLE_S, interval_s = TCP_INTERVAL_S, probes = TCP_PROBES;
    if (zmq_setsockopt(socket, ZMQ_TCP_KEEPALIVE, &on, sizeof on) < 0 ||
        zmq_setsockopt(socket, ZMQ_TCP_KEEPALIVE_IDLE, &idle_s, sizeof idle_s) < 0 ||
        zmq_setsockopt(socket, ZMQ_TCP_KEEPALIVE_INTVL, &interval_s, sizeof interval_s) < 0 ||
        zmq_setsockopt(socket, ZMQ_TCP_KEEPALIVE_CNT, &probes, sizeof probes) < 0) {
        return bt_error_set(error, BT_ERR_INTERNAL, "zmq_setsockopt: %s", zmq_strerror(errno));
    }
    if (zmq_setsockopt(socket, ZMQ_LINGER, &linger_ms, sizeof linger_ms) < 0 ||
        zmq_setsockopt(socket, ZMQ_SNDHWM, &queue, sizeof queue) < 0 ||
        zmq_setsockopt(socket, ZMQ_RCVHWM, &queue, sizeof queue) < 0 ||
        zmq_setsockopt(socket, ZMQ_MAXMSGSIZE, &max_bytes, sizeof max_bytes) < 0 ||
        zmq_setsockopt(socket, ZMQ_HANDSHAKE_IVL, &handshake_ms, sizeof handshake_ms) < 0 ||
        zmq_setsockopt(socket, ZMQ_BACKLOG, &backlog, sizeof backlog) < 0) {
        return bt_error_set(error, BT_ERR_INTERNAL, "zmq_setsockopt: %s", zmq_strerror(errno));
    }
    return BT_OK;
}

/* ------------------------------------------------------------------ receiving */

struct budget {
    size_t left;
    struct bt_arena *arena; /* NULL: the heap */
};

static void *budget_alloc(void *context, size_t size)
{
    struct budget *budget = context;
    if (size > budget->left) {
        return NULL;
    }
    budget->left -= size;
    return budget->arena ? bt_arena_alloc(budget->arena, size) : malloc(size);
}

static void budget_free(void *context, void *pointer)
{
    const struct budget *budget = context;
    if (!budget->arena) {
        free(pointer);
    }
}

ProtobufCMessage *bt_wire_unpack(const ProtobufCMessageDescriptor *descriptor, const void *data,
                                 size_t size)
{
    return bt_wire_unpack_in(NULL, descriptor, data, size);
}

ProtobufCMessage *bt_wire_unpack_in(struct bt_arena *arena,
                                    const ProtobufCMessageDescriptor *descriptor, const void *data,
                                    size_t size)
{
    struct budget budget = {MAX_UNPACKED_BYTES, arena};
    ProtobufCAllocator allocator = {budget_alloc, budget_free, &budget};
    static const unsigned char nothing;
    return protobuf_c_message_unpack(descriptor, &allocator, size, size ? data : &nothing);
}

/* Takes the parts that are left of a message that nobody wants. */
static void rest_drop(void *socket)
{
    zmq_msg_t part;
    zmq_msg_init(&part);
    int more = 1;
    while (more && zmq_msg_recv(&part, socket, ZMQ_DONTWAIT) >= 0) {
        more = zmq_msg_more(&part);
    }
    zmq_msg_close(&part);
}

/* The next of `count` parts into `part`; false and nothing left where the count is another. */
static bool part_receive(void *socket, zmq_msg_t *part, bool last)
{
    if (zmq_msg_recv(part, socket, ZMQ_DONTWAIT) < 0) {
        return false;
    }
    bool more = zmq_msg_more(part) != 0;
    if (last && more) {
        rest_drop(socket);
    }
    return more != last;
}

enum bt_status bt_wire_receive(void *socket, bool routed, struct bt_wire_message *ret_message)
{
    struct bt_wire_message message = {.fd = -1};
    zmq_msg_t header;
    zmq_msg_init(&message.identity);
    zmq_msg_init(&message.payload);
    zmq_msg_init(&header);
    zmq_msg_t *first = routed ? &message.identity : &header;
    enum bt_status status = BT_ERR_PROTOCOL;
    if (zmq_msg_recv(first, socket, ZMQ_DONTWAIT) < 0) {
        status = errno == EAGAIN || errno == EINTR ? BT_IN_PROGRESS : BT_ERR_INTERNAL;
        goto err_parts;
    }
    if (!zmq_msg_more(first) || (routed && !part_receive(socket, &header, false)) ||
        !part_receive(socket, &message.payload, true)) {
        goto err_parts;
    }
    message.frame = (Baton__V1__Frame *)bt_wire_unpack(
        &baton__v1__frame__descriptor, zmq_msg_data(&header), zmq_msg_size(&header));
    if (!message.frame) {
        goto err_parts;
    }
    message.fd = zmq_msg_get(&message.payload, ZMQ_SRCFD);
    zmq_msg_close(&header);
    *ret_message = message;
    return BT_OK;

err_parts:
    zmq_msg_close(&header);
    zmq_msg_close(&message.payload);
    zmq_msg_close(&message.identity);
    return status;
}

void bt_wire_message_close(struct bt_wire_message *message)
{
    baton__v1__frame__free_unpacked(message->frame, NULL);
    zmq_msg_close(&message->payload);
    zmq_msg_close(&message->identity);
}

/* ------------------------------------------------------------------ sending */

static enum bt_status message_pack(zmq_msg_t *part, const ProtobufCMessage *message)
{
    size_t size = message ? protobuf_c_message_get_packed_size(message) : 0;
    if (size > BT_RPC_MAX_MESSAGE_BYTES) {
        return BT_ERR_INVALID_ARGUMENT;
    }
    if (zmq_msg_init_size(part, size) < 0) {
        return BT_ERR_NO_MEMORY;
    }
    if (size > 0) {
        protobuf_c_message_pack(message, zmq_msg_data(part));
    }
    return BT_OK;
}

enum bt_status bt_wire_packet_init(struct bt_wire_packet *packet, const Baton__V1__Frame *frame,
                                   const ProtobufCMessage *payload)
{
    enum bt_status status = message_pack(&packet->header, &frame->base);
    if (status != BT_OK) {
        return status;
    }
    status = message_pack(&packet->payload, payload);
    if (status != BT_OK) {
        zmq_msg_close(&packet->header);
        return status;
    }
    packet->size = zmq_msg_size(&packet->header) + zmq_msg_size(&packet->payload);
    return BT_OK;
}

void bt_wire_packet_finish(struct bt_wire_packet *packet)
{
    zmq_msg_close(&packet->header);
    zmq_msg_close(&packet->payload);
}

static enum bt_status send_status(void)
{
    switch (errno) {
    case EAGAIN:
    case EINTR:
        return BT_ERR_EXHAUSTED;
    case EHOSTUNREACH:
        return BT_ERR_PEER_LOST;
    default:
        return BT_ERR_INTERNAL;
    }
}

enum bt_status bt_wire_packet_send(struct bt_wire_packet *packet, void *socket,
                                   const void *identity, size_t identity_size)
{
    /* Whether there is room is decided at the first part. */
    const int flags = ZMQ_DONTWAIT | ZMQ_SNDMORE;
    int sent = identity ? zmq_send(socket, identity, identity_size, flags)
                        : zmq_msg_send(&packet->header, socket, flags);
    enum bt_status status = sent < 0 ? send_status() : BT_OK;
    if (status == BT_ERR_EXHAUSTED) {
        return status;
    }
    if (status == BT_OK && ((identity && zmq_msg_send(&packet->header, socket, flags) < 0) ||
                            zmq_msg_send(&packet->payload, socket, ZMQ_DONTWAIT) < 0)) {
        /* The connection broke between two parts; the library takes back the first. */
        status = BT_ERR_PEER_LOST;
    }
    bt_wire_packet_finish(packet); /* what was sent is empty by now */
    return status;
}

enum bt_status bt_wire_send(void *socket, const void *identity, size_t identity_size,
                            const Baton__V1__Frame *frame, const ProtobufCMessage *payload)
{
    struct bt_wire_packet packet;
    enum bt_status status = bt_wire_packet_init(&packet, frame, payload);
    if (status != BT_OK) {
        return status;
    }
    status = bt_wire_packet_send(&packet, socket, identity, identity_size);
    if (status == BT_ERR_EXHAUSTED) {
        bt_wire_packet_finish(&packet);
    }
    return status;
}

/* Bytes of the UTF-8 character at `text`, or 0 where there is none. */
static size_t character_size(const unsigned char *text)
{
    static const struct {
        unsigned char mask, lead;
        unsigned minimum;
    } forms[] = {{0x80, 0, 0}, {0xe0, 0xc0, 0x80}, {0xf0, 0xe0, 0x800}, {0xf8, 0xf0, 0x10000}};
    for (size_t extra = 0; extra < 4; extra++) {
        if ((text[0] & forms[extra].mask) != forms[extra].lead) {
            continue;
        }
        unsigned code = text[0] & (unsigned char)~forms[extra].mask;
        for (size_t i = 1; i <= extra; i++) {
            if ((text[i] & 0xc0) != 0x80) { /* a NUL ends it here too */
                return 0;
            }
            code = code << 6 | (text[i] & 0x3fu);
        }
        bool surrogate = code >= 0xd800 && code < 0xe000;
        return code < forms[extra].minimum || code > 0x10ffff || surrogate ? 0 : extra + 1;
    }
    return 0;
}

void bt_wire_text_copy(const char *text, char *ret_text, size_t size)
{
    const unsigned char *from = (const unsigned char *)(text ? text : "");
    size_t length = 0;
    while (*from) {
        size_t bytes = character_size(from);
        if (length + (bytes ? bytes : 1) >= size) {
            break;
        }
        if (bytes == 0) {
            ret_text[length++] = '?';
            from++;
            continue;
        }
        memcpy(ret_text + length, from, bytes);
        length += bytes;
        from += bytes;
    }
    ret_text[length] = '\0';
}
