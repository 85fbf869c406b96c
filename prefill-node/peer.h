/*
 * The decode ranks that this worker writes to: for each incarnation the link of kvtransfer, the RPC
 * client, the leases that are held, and the Quiesced messages that are not acknowledged.
 *
 * A rank is connected when a router names it (so that the first request finds it warm) or when a
 * landing does. Messages to one rank go through one connection in order: a Lease of an epoch is
 * never sent after its Quiesced. Control thread only.
 */
#ifndef BATON_PREFILL_NODE_PEER_H
#define BATON_PREFILL_NODE_PEER_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/process.h"
#include "common/kvcache/layout.h"
#include "common/messaging/rpc.h"
#include "kvtransfer/source.h"
#include "prefill-node/cuts.h"
#include "proto/types.pb-c.h"

#define PF_MAX_PEERS         1024
#define PF_MAX_RUNS_PER_PEER 4096 /* runs and unacknowledged Quiesced together */
#define PF_FIRST_LEASE_NS    INT64_C(10000000000)

struct pf_peers;
struct pf_peer;

struct pf_peers_options {
    struct bt_loop *loop;
    struct kvt_source *source;
    const char *worker_id; /* of this worker, as is the rest */
    uint64_t incarnation;
    struct bt_process_id process;
    struct bt_fingerprint fingerprint;
    void (*changed)(void *context); /* a Quiesced was acknowledged or given up */
    void *context;
};

struct pf_peers *pf_peers_create(const struct pf_peers_options *options); /* NULL: no memory */
/* No run may use a peer any more. Unacknowledged Quiesced are given up. */
void pf_peers_destroy(struct pf_peers *peers);

/*
 * The peer of this endpoint, made and connected if it is new. INVALID_ARGUMENT names the field;
 * MISMATCH: another fingerprint; EXHAUSTED: PF_MAX_PEERS. Does not take a use.
 */
enum bt_status pf_peers_get(struct pf_peers *peers, const Baton__V1__KvEndpoint *endpoint,
                            struct bt_error *error, struct pf_peer **ret_peer);

bool pf_peers_warm(const struct pf_peers *peers); /* no link is still connecting */
uint32_t pf_peers_unacknowledged(const struct pf_peers *peers);

/* A use of the peer for one run. EXHAUSTED: PF_MAX_RUNS_PER_PEER. */
enum bt_status pf_peer_acquire(struct pf_peer *peer, struct bt_error *error);
void pf_peer_release(struct pf_peer *peer);

/* Connects anew if the last link failed. Valid while a use is held, until the next call. */
enum bt_status pf_peer_link(struct pf_peer *peer, struct bt_error *error,
                            struct kvt_link **ret_link);
const char *pf_peer_transport(const struct pf_peer *peer); /* see kvt_link_transport */
struct bt_rpc_client *pf_peer_client(const struct pf_peer *peer);

/*
 * A lease of one (request, epoch): asked for at once, renewed at a third of lease_ms until it is
 * dropped. `news`: granted or renewed until then (BT_OK); refused (STALE); never answered within
 * PF_FIRST_LEASE_NS (UNAVAILABLE); run out (DEADLINE). It may drop the lease.
 */
struct pf_lease {
    uint64_t request, epoch;
    uint32_t lease_ms;
    void (*news)(void *context, enum bt_status status, int64_t until_ns);
    void *context;

    int64_t asked_ns; /* first; 0: no message has named it yet */
    int64_t until_ns; /* 0: not granted */
    uint64_t serial;  /* of all that were held: an epoch may be held twice */
};
enum bt_status pf_peer_lease_hold(struct pf_peer *peer, struct pf_lease *lease);
void pf_peer_lease_drop(struct pf_peer *peer, const struct pf_lease *lease);

/* Allocated when the run starts, so that it can not fail when it is needed. */
struct pf_quiesced {
    uint64_t request, epoch;
    struct pf_cuts cuts;
    struct pf_quiesced *next;
};

/* Tells the rank until it acknowledges, or is proven dead, replaced, or (on another host) out of
 * reach for a minute. Takes `message` (malloc'd).
 * Call before the run's pf_peer_release. */
void pf_peer_quiesced(struct pf_peer *peer, struct pf_quiesced *message);
/* The rank was told that this epoch is over and has not acknowledged it: nothing of it may begin.
 */
bool pf_peer_is_quiescing(const struct pf_peer *peer, uint64_t request, uint64_t epoch);

#endif
