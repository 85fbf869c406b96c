#include "common/messaging/peer.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/random.h"
#include "common/messaging/rpc.h"

#define RETRY_NS (5 * BT_NS_PER_MS)
/* Refusals come on top of the ends of real calls; a peer that does not take even them gets none. */
#define MAX_WAITING_ENDS (2 * BT_RPC_MAX_CALLS_PER_PEER)

struct bt_waiting_end {
    struct bt_waiting_end *next;
    struct bt_wire_packet packet;
};

void bt_peers_init(struct bt_peers *peers, void *socket)
{
    *peers = (struct bt_peers){.socket = socket,
                               .hash_seed = bt_random_entropy(),
                               .keepalive_ns = BT_RPC_KEEPALIVE_MS * BT_NS_PER_MS};
    bt_map_init(&peers->by_hash);
    bt_map_init(&peers->by_fd);
}

void bt_peers_finish(struct bt_peers *peers)
{
    BT_ASSERT(!peers->first);
    bt_map_finish(&peers->by_hash);
    bt_map_finish(&peers->by_fd);
}

static void tick_at(struct bt_peers *peers, int64_t when_ns)
{
    if (peers->tick) {
        bt_loop_timer_bring_forward(peers->tick, when_ns);
    }
}

/* ------------------------------------------------------------------ attention */

static void attend(struct bt_peer *peer)
{
    struct bt_peers *peers = peer->peers;
    if (peer->attended || peer->gone) {
        return;
    }
    peer->attended = true;
    peer->previous_attended = NULL;
    peer->next_attended = peers->attention;
    if (peers->attention) {
        peers->attention->previous_attended = peer;
    }
    peers->attention = peer;
}

static void unattend(struct bt_peer *peer)
{
    if (!peer->attended) {
        return;
    }
    peer->attended = false;
    if (peer->previous_attended) {
        peer->previous_attended->next_attended = peer->next_attended;
    } else {
        peer->peers->attention = peer->next_attended;
    }
    if (peer->next_attended) {
        peer->next_attended->previous_attended = peer->previous_attended;
    }
}

/* ------------------------------------------------------------------ peers */

static uint64_t identity_hash(const struct bt_peers *peers, const unsigned char *identity,
                              size_t size)
{
    uint64_t hash = peers->hash_seed;
    for (size_t i = 0; i < size; i++) {
        hash = (hash ^ identity[i]) * UINT64_C(0x100000001b3);
    }
    return hash;
}

struct bt_peer *bt_peer_find(struct bt_peers *peers, const unsigned char *identity, size_t size)
{
    struct bt_peer *peer = bt_map_get(&peers->by_hash, identity_hash(peers, identity, size));
    while (peer && (peer->identity_size != size || memcmp(peer->identity, identity, size) != 0)) {
        peer = peer->next_same_hash;
    }
    return peer;
}

struct bt_peer *bt_peer_find_by_fd(const struct bt_peers *peers, int fd)
{
    return fd >= 0 ? bt_map_get(&peers->by_fd, (uint64_t)fd) : NULL;
}

struct bt_peer *bt_peer_create(struct bt_peers *peers, const unsigned char *identity, size_t size,
                               int fd)
{
    if (peers->count >= BT_RPC_MAX_PEERS) {
        return NULL;
    }
    struct bt_peer *peer = calloc(1, sizeof *peer + size);
    if (!peer) {
        return NULL;
    }
    peer->peers = peers;
    peer->hash = identity_hash(peers, identity, size);
    peer->fd = fd;
    peer->ends_last = &peer->ends;
    peer->identity_size = size;
    memcpy(peer->identity, identity, size);
    bt_map_init(&peer->calls);
    peer->next_same_hash = bt_map_get(&peers->by_hash, peer->hash);
    if (!bt_map_reserve(&peers->by_hash, 1) ||
        (fd >= 0 && !bt_map_put(&peers->by_fd, (uint64_t)fd, peer))) {
        free(peer);
        return NULL;
    }
    bool ok = bt_map_put(&peers->by_hash, peer->hash, peer);
    BT_ASSERT(ok); /* there is room */
    peer->next = peers->first;
    if (peer->next) {
        peer->next->previous = peer;
    }
    peers->first = peer;
    if (peers->count++ == 0) {
        peers->sweep_ns = bt_clock_now_ns() + peers->keepalive_ns;
        tick_at(peers, peers->sweep_ns);
    }
    return peer;
}

static void peer_unhash(struct bt_peer *peer)
{
    struct bt_map *map = &peer->peers->by_hash;
    struct bt_peer *first = bt_map_get(map, peer->hash);
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

static void ends_drop_first(struct bt_peer *peer)
{
    struct bt_waiting_end *end = peer->ends;
    peer->ends = end->next;
    if (!peer->ends) {
        peer->ends_last = &peer->ends;
    }
    peer->end_count--;
    peer->end_bytes -= end->packet.size;
    free(end);
}

static void ends_drop(struct bt_peer *peer)
{
    while (peer->ends) {
        bt_wire_packet_finish(&peer->ends->packet);
        ends_drop_first(peer);
    }
}

void bt_peer_retire(struct bt_peer *peer)
{
    peer_unhash(peer);
    if (bt_peer_find_by_fd(peer->peers, peer->fd) == peer) {
        bt_map_remove(&peer->peers->by_fd, (uint64_t)peer->fd);
    }
    unattend(peer);
    peer->gone = true;
    ends_drop(peer);
}

static void peer_free(struct bt_peer *peer)
{
    struct bt_peers *peers = peer->peers;
    if (peer->previous) {
        peer->previous->next = peer->next;
    } else {
        peers->first = peer->next;
    }
    if (peer->next) {
        peer->next->previous = peer->previous;
    }
    peers->count--;
    bt_map_finish(&peer->calls);
    free(peer);
}

void bt_peer_release_if_idle(struct bt_peer *peer)
{
    if (peer->holds > 0 || peer->calls.size > 0 || (peer->ends && !peer->gone)) {
        return;
    }
    if (!peer->gone) {
        bt_peer_retire(peer);
    }
    peer_free(peer);
}

/* ------------------------------------------------------------------ sending */

void bt_peer_mark_lost(struct bt_peer *peer)
{
    if (!peer->lost) {
        peer->lost = true;
        attend(peer);
        tick_at(peer->peers, 0);
    }
}

bool bt_peer_flush(struct bt_peer *peer)
{
    while (peer->ends && !peer->lost) {
        enum bt_status status = bt_wire_packet_send(&peer->ends->packet, peer->peers->socket,
                                                    peer->identity, peer->identity_size);
        if (status == BT_ERR_EXHAUSTED) {
            tick_at(peer->peers, bt_clock_now_ns() + RETRY_NS);
            return false;
        }
        ends_drop_first(peer);
        if (status != BT_OK) {
            bt_peer_mark_lost(peer);
        }
    }
    return true;
}

/* Takes the packet. */
static void end_wait(struct bt_peer *peer, struct bt_wire_packet *packet)
{
    struct bt_waiting_end *end = peer->end_count < MAX_WAITING_ENDS ? calloc(1, sizeof *end) : NULL;
    if (!end) {
        bt_wire_packet_finish(packet);
        peer->peers->dropped++;
        return;
    }
    end->packet = *packet;
    *peer->ends_last = end;
    peer->ends_last = &end->next;
    peer->end_count++;
    peer->end_bytes += packet->size;
    attend(peer);
    tick_at(peer->peers, bt_clock_now_ns() + RETRY_NS);
}

enum bt_status bt_peer_pack_end(uint64_t id, enum bt_status status, const char *text,
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

void bt_peer_send_end(struct bt_peer *peer, uint64_t id, enum bt_status status, const char *text,
                      const ProtobufCMessage *response)
{
    if (peer->gone || peer->lost) {
        return;
    }
    struct bt_wire_packet packet;
    enum bt_status packed = bt_peer_pack_end(id, status, text, response, &packet);
    if (packed == BT_OK && peer->end_bytes + packet.size > BT_RPC_MAX_MESSAGE_BYTES) {
        bt_wire_packet_finish(&packet);
        packed = BT_ERR_EXHAUSTED;
    }
    if (packed != BT_OK) {
        const char *why = packed == BT_ERR_INVALID_ARGUMENT ? "the response is too large"
                                                            : "no room for the response";
        if (bt_peer_pack_end(id, BT_ERR_EXHAUSTED, why, NULL, &packet) != BT_OK) {
            peer->peers->dropped++;
            return;
        }
    }
    if (!bt_peer_flush(peer)) {
        end_wait(peer, &packet);
        return;
    }
    enum bt_status sent =
        bt_wire_packet_send(&packet, peer->peers->socket, peer->identity, peer->identity_size);
    if (sent == BT_ERR_EXHAUSTED) {
        end_wait(peer, &packet);
    } else if (sent != BT_OK) {
        bt_peer_mark_lost(peer);
    }
}

/* ------------------------------------------------------------------ the tick */

/* A PING to a peer that vanished fails, which tells faster than its silence. */
static void peer_ping(struct bt_peer *peer)
{
    Baton__V1__Frame ping = BATON__V1__FRAME__INIT;
    ping.kind = BATON__V1__FRAME__KIND__PING;
    if (bt_wire_send(peer->peers->socket, peer->identity, peer->identity_size, &ping, NULL) ==
        BT_ERR_PEER_LOST) {
        bt_peer_mark_lost(peer);
    }
}

void bt_peers_sweep(struct bt_peers *peers)
{
    for (struct bt_peer *peer = peers->first; peer; peer = peer->next) {
        if (peer->gone) {
            continue;
        }
        peer->silent_ticks++;
        if (peer->silent_ticks > BT_RPC_SILENT_TICKS) {
            bt_peer_mark_lost(peer);
        } else if (peer->silent_ticks > 2) {
            peer_ping(peer);
        }
    }
}

struct bt_peer *bt_peers_find_lost(struct bt_peers *peers)
{
    struct bt_peer *peer = peers->attention;
    while (peer && !peer->lost) {
        peer = peer->next_attended;
    }
    return peer;
}

void bt_peers_flush(struct bt_peers *peers)
{
    struct bt_peer *next;
    for (struct bt_peer *peer = peers->attention; peer; peer = next) {
        next = peer->next_attended;
        if (bt_peer_flush(peer) && !peer->lost) {
            unattend(peer);
            bt_peer_release_if_idle(peer);
        }
    }
}
