/*
 * The clients of an RPC server, as its socket knows them: who has open calls, what answers wait for
 * room in its queue, how long it has been silent. Internal to this folder. No function here runs a
 * callback of the server's user; a peer found to be gone is marked lost, and the server tells its
 * calls in the next tick.
 */
#ifndef BATON_COMMON_MESSAGING_PEER_H
#define BATON_COMMON_MESSAGING_PEER_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/map.h"
#include "common/messaging/curve.h"
#include "common/messaging/loop.h"
#include "common/messaging/wire.h"

struct bt_waiting_end; /* an END that found the peer's queue full */

/* All peers of one ROUTER socket. */
struct bt_peers {
    void *socket;
    struct bt_loop_source *tick; /* brought forward as needed; NULL: the server closes */
    int64_t keepalive_ns;
    int64_t sweep_ns; /* when silence is counted next */
    struct bt_peer *first;
    struct bt_peer *attention; /* those that are lost or have waiting ENDs */
    size_t count;
    struct bt_map by_hash; /* of the identity; chains by next_same_hash */
    struct bt_map by_fd;   /* of those that are not gone */
    uint64_t hash_seed;
    uint64_t dropped; /* messages */
};

/* A connection with open calls or waiting ENDs. */
struct bt_peer {
    struct bt_peers *peers;
    struct bt_peer *previous;
    struct bt_peer *next;
    struct bt_peer *next_same_hash;
    bool attended;
    struct bt_peer *previous_attended;
    struct bt_peer *next_attended;
    uint64_t hash;
    int fd;                         /* of its connection; -1: unknown */
    const struct bt_known_key *key; /* NULL: plain */
    unsigned silent_ticks;
    bool lost;           /* found to be gone; its calls hear of it in the next tick */
    bool gone;           /* no more found by identity; lives until its calls ended */
    unsigned holds;      /* users on the stack */
    struct bt_map calls; /* the server's, by call id */
    struct bt_waiting_end *ends;
    struct bt_waiting_end **ends_last;
    size_t end_count;
    size_t end_bytes;
    size_t identity_size;
    unsigned char identity[];
};

void bt_peers_init(struct bt_peers *peers, void *socket);
void bt_peers_finish(struct bt_peers *peers); /* all peers must be gone */

struct bt_peer *bt_peer_find(struct bt_peers *peers, const unsigned char *identity, size_t size);
/* NULL: none, or it is gone. */
struct bt_peer *bt_peer_find_by_fd(const struct bt_peers *peers, int fd);
/* The identity must be new. NULL: too many peers, or no memory. */
struct bt_peer *bt_peer_create(struct bt_peers *peers, const unsigned char *identity, size_t size,
                               int fd);
/* Makes it gone: its identity is free for another connection, what waits for it is dropped. */
void bt_peer_retire(struct bt_peer *peer);
/* Frees it unless it has calls, holds, or ENDs that can still be sent. */
void bt_peer_release_if_idle(struct bt_peer *peer);

void bt_peer_mark_lost(struct bt_peer *peer);

/* Sends waiting ENDs. True when nothing waits any more. */
bool bt_peer_flush(struct bt_peer *peer);
/* Sends an END or keeps it waiting; `response` over the limits turns it into EXHAUSTED. */
void bt_peer_send_end(struct bt_peer *peer, uint64_t id, enum bt_status status, const char *text,
                      const ProtobufCMessage *response);
enum bt_status bt_peer_pack_end(uint64_t id, enum bt_status status, const char *text,
                                const ProtobufCMessage *response,
                                struct bt_wire_packet *ret_packet);

/* For the tick: waiting ENDs; then, each keepalive_ns, silence. */
void bt_peers_flush(struct bt_peers *peers);
void bt_peers_sweep(struct bt_peers *peers);
/* One that is lost and not yet gone, or NULL. */
struct bt_peer *bt_peers_find_lost(struct bt_peers *peers);

#endif
