/*
 * Messages of the RPC protocol on a ZeroMQ socket: [Frame][payload] on a DEALER, [routing
 * id][Frame] [payload] on a ROUTER. Internal to this folder; the owner of the socket calls it.
 */
#ifndef BATON_COMMON_MESSAGING_WIRE_H
#define BATON_COMMON_MESSAGING_WIRE_H

#include <zmq.h>

#include "common/base/status.h"
#include "common/messaging/arena.h"
#include "proto/rpc.pb-c.h"

#define BT_WIRE_VERSION            1
#define BT_WIRE_HANDSHAKE_MS       5000
#define BT_WIRE_MAX_IDENTITY_BYTES 255

struct bt_known_key;

/* Linger, queues, size limit and handshake time that all RPC sockets share. */
enum bt_status bt_wire_socket_setup(void *socket, struct bt_error *error);

/* ------------------------------------------------------------------ receiving */

struct bt_wire_message {
    zmq_msg_t identity; /* empty on a DEALER */
    zmq_msg_t payload;
    Baton__V1__Frame *frame;
    int fd;                          /* of the connection it came by; -1: unknown */
    const struct bt_known_key *user; /* NULL, until a secured server finds out */
};

/* OK: `ret_message` must be closed. IN_PROGRESS: nothing there. PROTOCOL: one message was taken
 * and dropped. INTERNAL: the socket failed. */
enum bt_status bt_wire_receive(void *socket, bool routed, struct bt_wire_message *ret_message);
void bt_wire_message_close(struct bt_wire_message *message);

/* NULL: it does not parse or needs more than a bounded amount of memory. Freed as usual, with
 * protobuf_c_message_free_unpacked(…, NULL). */
ProtobufCMessage *bt_wire_unpack(const ProtobufCMessageDescriptor *descriptor, const void *data,
                                 size_t size);

/* The same in an arena: it is not freed, but goes with a release. */
ProtobufCMessage *bt_wire_unpack_in(struct bt_arena *arena,
                                    const ProtobufCMessageDescriptor *descriptor, const void *data,
                                    size_t size);

/* ------------------------------------------------------------------ sending */

struct bt_wire_packet {
    zmq_msg_t header;
    zmq_msg_t payload;
    size_t size;
};

/* `payload` may be NULL. INVALID_ARGUMENT: over BT_RPC_MAX_MESSAGE_BYTES; NO_MEMORY. */
enum bt_status bt_wire_packet_init(struct bt_wire_packet *packet, const Baton__V1__Frame *frame,
                                   const ProtobufCMessage *payload);
void bt_wire_packet_finish(struct bt_wire_packet *packet);

/* Never blocks. EXHAUSTED: the queue is full and the packet is as before. Everything else took the
 * packet: OK, or PEER_LOST (no such peer any more), or INTERNAL. `identity` NULL on a DEALER. */
enum bt_status bt_wire_packet_send(struct bt_wire_packet *packet, void *socket,
                                   const void *identity, size_t identity_size);

/* Both in one, for packets that may be lost when the queue is full. */
enum bt_status bt_wire_send(void *socket, const void *identity, size_t identity_size,
                            const Baton__V1__Frame *frame, const ProtobufCMessage *payload);

/* Copies at most size - 1 bytes of `text` (may be NULL) as valid UTF-8: protobuf strings are. */
void bt_wire_text_copy(const char *text, char *ret_text, size_t size);

#endif
