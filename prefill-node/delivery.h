/*
 * What one process does for a handoff: the lease of the landing, and the push of its share of the
 * pages. A run has one, and in a group each of the other ranks has one for it. Control thread only.
 *
 *     begin (the lease is asked for) -> open (the push) -> ended (its event) -> finish
 */
#ifndef BATON_PREFILL_NODE_DELIVERY_H
#define BATON_PREFILL_NODE_DELIVERY_H

#include "prefill-node/peer.h"

struct pf_delivery;

/* The lease is refused, not answered or over; not after `finish`. */
typedef void pf_delivery_lost_fn(void *context, enum bt_status status, const char *text);

struct pf_delivery_spec {
    const Baton__V1__KvEndpoint *endpoint;
    uint64_t request, epoch;
    uint32_t lease_ms;
    pf_delivery_lost_fn *lost;
    void *context; /* for `lost`, and whose delivery it is */
};

struct pf_delivery {
    struct pf_peer *peer; /* NULL: not begun, or finished */
    struct pf_lease lease;
    pf_delivery_lost_fn *lost;
    void *context;
    struct kvt_push *push; /* NULL: not open, or closed */
    struct kvt_link *link; /* the push's, valid as long */
    bool push_open;        /* its event has not come */
    struct kvt_push_event pushed;
};

struct pf_delivery_pages {
    const uint32_t *source, *target; /* [bt_kv_pages_for(prompt_tokens)] */
    uint32_t prompt_tokens;
    bool layerwise;
    struct kvt_share share;             /* count 0: all */
    const struct kvt_push_watch *watch; /* NULL: none; else as kvt_push_spec wants it */
};

/* Everything that may fail before anything is under way. The errors of pf_peers_get and
 * pf_peer_acquire; STALE: the rank was told that this epoch is over. */
enum bt_status pf_delivery_begin(struct pf_delivery *delivery, struct pf_peers *peers,
                                 const struct pf_delivery_spec *spec, struct bt_error *error);

/* The errors of pf_peer_link and kvt_push_open. The event's `user` is the delivery. */
enum bt_status pf_delivery_open(struct pf_delivery *delivery, struct kvt_source *source,
                                const struct pf_delivery_pages *pages, struct bt_error *error);

void pf_delivery_cancel(struct pf_delivery *delivery); /* harmless when nothing is open */
void pf_delivery_ended(struct pf_delivery *delivery, const struct kvt_push_event *event);
/* Why a push that ended otherwise than OK did. */
void pf_delivery_explain(const struct pf_delivery *delivery, char *ret_text, size_t size);

/* The decode rank may know this process as a writer. */
bool pf_delivery_leased(const struct pf_delivery *delivery);
void pf_delivery_drop_lease(struct pf_delivery *delivery);
/* Closes the push, which has ended, and lets go of the peer. */
void pf_delivery_finish(struct pf_delivery *delivery);

#endif
