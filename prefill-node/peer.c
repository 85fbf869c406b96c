#include "prefill-node/peer.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "prefill-node/rank_endpoint.h"
#include "proto/worker.pb-c.h"

#define SWEEP_NS         BT_NS_PER_S
#define MIN_RETRY_NS     (50 * BT_NS_PER_MS)
#define MAX_RETRY_NS     (2 * BT_NS_PER_S)
#define QUIESCED_CALL_NS (5 * BT_NS_PER_S)
#define LEASES_IN_CALL   1024
#define HEAL_TRIES       6 /* of a link that broke, before its rank is forgotten */
/* A rank elsewhere that answers nothing and has no link is given up: after the first when no router
 * names it any more, after the second in any case. */
#define UNNAMED_NS     (10 * BT_NS_PER_S)
#define UNREACHABLE_NS (60 * BT_NS_PER_S)

struct pf_peer {
    struct pf_peers *peers;
    struct pf_rank_endpoint endpoint;
    struct kvt_link *link; /* NULL: not connected */
    struct bt_rpc_client *client;
    uint32_t uses;        /* runs */
    bool was_up;          /* the link, once */
    uint32_t heal_tries;  /* since it was */
    int64_t heal_next_ns; /* not before */
    int64_t heard_ns;     /* it answered, or its link was up */
    int64_t named_ns;     /* by a router or a landing */

    struct bt_loop_source *lease_timer;
    struct pf_lease **leases;
    uint32_t lease_count, lease_capacity;
    uint64_t last_lease;

    struct bt_loop_source *quiesced_timer;
    struct pf_quiesced *quiesced_head, *quiesced_tail; /* the head's call may be out */
    uint32_t quiesced_count;
    bool quiesced_calling;
    bool quiesced_given_up; /* what the call that is out says is not in the list any more */
    int64_t quiesced_retry_ns;
};

struct pf_peers {
    struct pf_peers_options options;
    struct bt_loop_source *sweep_timer;
    struct pf_peer *list[PF_MAX_PEERS];
    uint32_t count;
    bool closing;
};

static void peer_answered(struct pf_peer *peer, enum bt_status status)
{
    if (!pf_rank_worth_retrying(status)) {
        peer->heard_ns = bt_clock_now_ns();
    }
}

/* ------------------------------------------------------------------ quiesced */

static void quiesced_pop(struct pf_peer *peer)
{
    struct pf_quiesced *first = peer->quiesced_head;
    peer->quiesced_head = first->next;
    if (!peer->quiesced_head) {
        peer->quiesced_tail = NULL;
    }
    peer->quiesced_count--;
    free(first);
}

static void quiesced_later(struct pf_peer *peer)
{
    bt_loop_timer_set(peer->quiesced_timer, bt_clock_now_ns() + peer->quiesced_retry_ns);
    peer->quiesced_retry_ns =
        peer->quiesced_retry_ns * 2 < MAX_RETRY_NS ? peer->quiesced_retry_ns * 2 : MAX_RETRY_NS;
}

static void on_quiesced(void *context, enum bt_status status, const char *text,
                        const ProtobufCMessage *response)
{
    struct pf_peer *peer = context;
    (void)response;
    peer->quiesced_calling = false;
    peer_answered(peer, status);
    if (peer->peers->closing) {
        return;
    }
    if (peer->quiesced_given_up) {
        peer->quiesced_given_up = false;
        bt_loop_timer_set(peer->quiesced_timer, 0);
        return;
    }
    if (pf_rank_worth_retrying(status)) {
        quiesced_later(peer);
        return;
    }
    if (status != BT_OK) {
        bt_log_error(peer->quiesced_head->request, "%s refuses quiesced: %s",
                     peer->endpoint.worker_id, text);
    }
    quiesced_pop(peer);
    peer->quiesced_retry_ns = MIN_RETRY_NS;
    bt_loop_timer_set(peer->quiesced_timer, 0);
    peer->peers->options.changed(peer->peers->options.context);
}

/* One at a time, in order: there are few, and a lost answer is asked for again. */
static void quiesced_fire(void *context)
{
    struct pf_peer *peer = context;
    if (peer->quiesced_calling || !peer->quiesced_head) {
        return;
    }
    struct pf_cuts_message cuts;
    pf_cuts_message_fill(&cuts, &peer->quiesced_head->cuts);
    Baton__V1__QuiescedRequest request = BATON__V1__QUIESCED_REQUEST__INIT;
    request.request_id = peer->quiesced_head->request;
    request.epoch = peer->quiesced_head->epoch;
    request.cuts = cuts.list;
    request.n_cuts = peer->quiesced_head->cuts.count;
    request.incarnation = peer->peers->options.incarnation;
    const struct bt_rpc_call_spec spec = {
        .method = "baton.v1.Decode/Quiesced",
        .request = &request.base,
        .response = &baton__v1__quiesced_response__descriptor,
        .deadline_ns = bt_clock_now_ns() + QUIESCED_CALL_NS,
        .on_end = on_quiesced,
        .context = peer,
    };
    if (bt_rpc_client_call(peer->client, &spec, NULL, NULL) == BT_OK) {
        peer->quiesced_calling = true;
    } else {
        quiesced_later(peer);
    }
}

void pf_peer_quiesced(struct pf_peer *peer, struct pf_quiesced *message)
{
    message->next = NULL;
    if (peer->quiesced_tail) {
        peer->quiesced_tail->next = message;
    } else {
        peer->quiesced_head = message;
    }
    peer->quiesced_tail = message;
    peer->quiesced_count++;
    if (!peer->quiesced_calling && peer->quiesced_count == 1) {
        peer->quiesced_retry_ns = MIN_RETRY_NS;
        bt_loop_timer_set(peer->quiesced_timer, 0);
    }
}

bool pf_peer_is_quiescing(const struct pf_peer *peer, uint64_t request, uint64_t epoch)
{
    const struct pf_quiesced *message = peer->quiesced_head;
    while (message && (message->request != request || message->epoch != epoch)) {
        message = message->next;
    }
    return message != NULL;
}

/* ------------------------------------------------------------------ leases */

struct lease_call {
    struct pf_peer *peer;
    int64_t sent_ns;
    uint32_t count;
    uint64_t serials[LEASES_IN_CALL];
    Baton__V1__LeaseKey keys[LEASES_IN_CALL];
    Baton__V1__LeaseKey *list[LEASES_IN_CALL];
};

static struct pf_lease *lease_find(const struct pf_peer *peer, uint64_t request, uint64_t epoch)
{
    for (uint32_t i = 0; i < peer->lease_count; i++) {
        if (peer->leases[i]->request == request && peer->leases[i]->epoch == epoch) {
            return peer->leases[i];
        }
    }
    return NULL;
}

/* Of a call that named this lease: one of an earlier run of the same epoch grants nothing. The time
 * counts from before the message was sent: the rank's own clock of it ends later. */
static void lease_answered(struct pf_lease *lease, bool live, int64_t sent_ns)
{
    if (!live) {
        lease->news(lease->context, BT_ERR_STALE, 0);
        return;
    }
    int64_t until_ns = sent_ns + lease->lease_ms * BT_NS_PER_MS;
    if (until_ns > lease->until_ns) {
        lease->until_ns = until_ns;
        lease->news(lease->context, BT_OK, until_ns);
    }
}

static void on_lease(void *context, enum bt_status status, const char *text,
                     const ProtobufCMessage *message)
{
    struct lease_call *call = context;
    const Baton__V1__LeaseResponse *response = (const Baton__V1__LeaseResponse *)message;
    (void)text;
    peer_answered(call->peer, status);
    if (status == BT_OK && response && response->n_live == call->count &&
        !call->peer->peers->closing) {
        for (uint32_t i = 0; i < call->count; i++) {
            const Baton__V1__LeaseKey *key = &call->keys[i];
            struct pf_lease *lease = lease_find(call->peer, key->request_id, key->epoch);
            if (lease && lease->serial == call->serials[i]) {
                lease_answered(lease, response->live[i], call->sent_ns);
            }
        }
    }
    call->peer->uses--;
    free(call);
}

static void lease_call_fill(struct lease_call *call, struct pf_peer *peer, uint32_t first)
{
    for (uint32_t i = first; i < peer->lease_count && call->count < LEASES_IN_CALL; i++) {
        struct pf_lease *lease = peer->leases[i];
        Baton__V1__LeaseKey *key = &call->keys[call->count];
        baton__v1__lease_key__init(key);
        key->request_id = lease->request;
        key->epoch = lease->epoch;
        call->serials[call->count] = lease->serial;
        call->list[call->count++] = key;
        if (lease->asked_ns == 0) {
            lease->asked_ns = call->sent_ns;
        }
    }
}

/* Returns how many leases went along; 0: could not send. The call holds a use of the peer. */
static uint32_t lease_send(struct pf_peer *peer, uint32_t first)
{
    const struct pf_peers_options *self = &peer->peers->options;
    struct lease_call *call = malloc(sizeof(*call));
    if (!call) {
        return 0;
    }
    call->peer = peer;
    call->sent_ns = bt_clock_now_ns();
    call->count = 0;
    lease_call_fill(call, peer, first);
    Baton__V1__ProcessId process = BATON__V1__PROCESS_ID__INIT;
    process.host = (char *)self->process.host;
    process.pid = self->process.pid;
    process.start_ticks = self->process.start_ticks;
    Baton__V1__LeaseRequest request = BATON__V1__LEASE_REQUEST__INIT;
    request.worker_id = (char *)self->worker_id;
    request.incarnation = self->incarnation;
    request.process = &process;
    request.lease = call->list;
    request.n_lease = call->count;
    const struct bt_rpc_call_spec spec = {
        .method = "baton.v1.Decode/Lease",
        .request = &request.base,
        .response = &baton__v1__lease_response__descriptor,
        .deadline_ns = call->sent_ns + peer->leases[first]->lease_ms * BT_NS_PER_MS,
        .on_end = on_lease,
        .context = call,
    };
    if (bt_rpc_client_call(peer->client, &spec, NULL, NULL) != BT_OK) {
        free(call);
        return 0;
    }
    peer->uses++;
    return call->count;
}

/* `news` may drop leases: the list is walked from its end. */
static void leases_check(struct pf_peer *peer, int64_t now_ns)
{
    for (uint32_t i = peer->lease_count; i-- > 0;) {
        if (i >= peer->lease_count) {
            continue;
        }
        struct pf_lease *lease = peer->leases[i];
        if (lease->until_ns != 0 && lease->until_ns <= now_ns) {
            lease->news(lease->context, BT_ERR_DEADLINE, 0);
        } else if (lease->until_ns == 0 && lease->asked_ns != 0 &&
                   now_ns - lease->asked_ns >= PF_FIRST_LEASE_NS) {
            lease->news(lease->context, BT_ERR_UNAVAILABLE, 0);
        }
    }
}

static void leases_fire(void *context)
{
    struct pf_peer *peer = context;
    int64_t now_ns = bt_clock_now_ns();
    leases_check(peer, now_ns);
    int64_t interval_ns = BT_NEVER_NS;
    for (uint32_t i = 0; i < peer->lease_count; i++) {
        int64_t third_ns = peer->leases[i]->lease_ms * BT_NS_PER_MS / 3;
        interval_ns = third_ns < interval_ns ? third_ns : interval_ns;
    }
    for (uint32_t first = 0, count; first < peer->lease_count; first += count) {
        count = lease_send(peer, first);
        if (count == 0) {
            break;
        }
    }
    bt_loop_timer_set(peer->lease_timer,
                      peer->lease_count > 0 ? now_ns + interval_ns : BT_NEVER_NS);
}

enum bt_status pf_peer_lease_hold(struct pf_peer *peer, struct pf_lease *lease)
{
    if (peer->lease_count == peer->lease_capacity) {
        uint32_t capacity = peer->lease_capacity ? 2 * peer->lease_capacity : 16;
        struct pf_lease **grown = realloc(peer->leases, capacity * sizeof(struct pf_lease *));
        if (!grown) {
            return BT_ERR_NO_MEMORY;
        }
        peer->leases = grown;
        peer->lease_capacity = capacity;
    }
    lease->asked_ns = lease->until_ns = 0;
    lease->serial = ++peer->last_lease;
    peer->leases[peer->lease_count++] = lease;
    bt_loop_timer_set(peer->lease_timer, 0); /* with all others of this round */
    return BT_OK;
}

void pf_peer_lease_drop(struct pf_peer *peer, const struct pf_lease *lease)
{
    for (uint32_t i = 0; i < peer->lease_count; i++) {
        if (peer->leases[i] == lease) {
            peer->leases[i] = peer->leases[--peer->lease_count];
            return;
        }
    }
}

/* ------------------------------------------------------------------ peers */

static void peer_destroy(struct pf_peer *peer)
{
    if (peer->client) {
        bt_rpc_client_destroy(peer->client); /* its calls end in here */
    }
    BT_ASSERT(peer->uses == 0 && peer->lease_count == 0);
    while (peer->quiesced_head) {
        quiesced_pop(peer);
    }
    bt_loop_remove(peer->lease_timer);
    bt_loop_remove(peer->quiesced_timer);
    if (peer->link) {
        kvt_link_release(peer->link);
    }
    pf_rank_endpoint_finish(&peer->endpoint);
    free(peer->leases);
    free(peer);
}

static enum bt_status peer_create(struct pf_peers *peers, const Baton__V1__KvEndpoint *endpoint,
                                  struct bt_error *error, struct pf_peer **ret_peer)
{
    struct pf_peer *peer = calloc(1, sizeof(*peer));
    if (!peer) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "decode rank: no memory");
    }
    peer->peers = peers;
    peer->heard_ns = peer->named_ns = bt_clock_now_ns();
    enum bt_status status = pf_rank_endpoint_init(&peer->endpoint, endpoint, error);
    if (status != BT_OK) {
        goto err_peer;
    }
    struct bt_loop *loop = peers->options.loop;
    status = bt_rpc_client_create(loop, peer->endpoint.control_endpoint, error, &peer->client);
    if (status != BT_OK) {
        goto err_peer;
    }
    peer->lease_timer = bt_loop_add_timer(loop, BT_NEVER_NS, leases_fire, peer);
    peer->quiesced_timer = bt_loop_add_timer(loop, BT_NEVER_NS, quiesced_fire, peer);
    if (!peer->lease_timer || !peer->quiesced_timer) {
        status = bt_error_set(error, BT_ERR_NO_MEMORY, "decode rank: no memory");
        goto err_peer;
    }
    status = kvt_source_connect(peers->options.source, &peer->endpoint.remote, error, &peer->link);
    if (status != BT_OK) {
        goto err_peer;
    }
    *ret_peer = peer;
    return BT_OK;

err_peer:
    bt_error_prefix(error, "decode rank %s", endpoint->worker_id);
    peer_destroy(peer);
    return status;
}

static bool peer_idle(const struct pf_peer *peer)
{
    return peer->uses == 0 && peer->quiesced_count == 0 && !peer->quiesced_calling;
}

/* Another host or pid namespace tells no death. Without a link nothing of this worker is under way
 * to it, and a rank there that lives after all closes its own end when it hears nothing. */
static bool peer_out_of_reach(const struct pf_peer *peer, int64_t now_ns)
{
    int64_t silent_ns = now_ns - peer->heard_ns, unnamed_ns = now_ns - peer->named_ns;
    return bt_process_probe(&peer->endpoint.process) == BT_PROCESS_UNKNOWN && peer->uses == 0 &&
           kvt_link_state(peer->link) != KVT_LINK_READY &&
           (silent_ns >= UNREACHABLE_NS || (silent_ns >= UNNAMED_NS && unnamed_ns >= UNNAMED_NS));
}

/* A rank that is gone needs no Quiesced: its pages went with it. */
static void quiesced_give_up(struct pf_peer *peer)
{
    peer->quiesced_given_up = peer->quiesced_calling;
    while (peer->quiesced_head) {
        quiesced_pop(peer);
    }
}

/* By one that was heard of later and could be connected to: a router may name a rank that is long
 * dead after its successor. */
static bool peer_replaced(const struct pf_peer *peer)
{
    const struct pf_peers *peers = peer->peers;
    for (uint32_t i = peers->count; i-- > 0 && peers->list[i] != peer;) {
        const struct pf_peer *later = peers->list[i];
        if (strcmp(later->endpoint.worker_id, peer->endpoint.worker_id) == 0 &&
            kvt_link_state(later->link) == KVT_LINK_READY) {
            return true;
        }
    }
    return false;
}

static enum bt_status peer_reconnect(struct pf_peer *peer, struct bt_error *error)
{
    struct kvt_link *link;
    enum bt_status status =
        kvt_source_connect(peer->peers->options.source, &peer->endpoint.remote, error, &link);
    if (status == BT_OK) {
        kvt_link_release(peer->link);
        peer->link = link;
    }
    return status;
}

/* A link that broke under a rank that may live is connected again, less and less often, so that
 * the next request finds it up. False: it never was up, or no hope is left. */
static bool peer_heal(struct pf_peer *peer, int64_t now_ns)
{
    struct bt_error error;
    enum kvt_link_state state = kvt_link_state(peer->link);
    peer->was_up = peer->was_up || kvt_link_transport(peer->link)[0] != '\0';
    if (state == KVT_LINK_READY) {
        peer->heal_tries = 0;
        peer->heard_ns = now_ns;
    }
    if (state != KVT_LINK_FAILED) {
        return true;
    }
    if (!peer->was_up || peer->heal_tries == HEAL_TRIES) {
        return false;
    }
    if (now_ns >= peer->heal_next_ns) {
        peer->heal_next_ns = now_ns + (SWEEP_NS << peer->heal_tries++);
        peer_reconnect(peer, &error);
    }
    return true;
}

static void peers_sweep(void *context)
{
    struct pf_peers *peers = context;
    uint32_t kept = 0;
    int64_t now_ns = bt_clock_now_ns();
    for (uint32_t i = 0; i < peers->count; i++) {
        struct pf_peer *peer = peers->list[i];
        bool gone = bt_process_probe(&peer->endpoint.process) == BT_PROCESS_DEAD ||
                    peer_replaced(peer) || peer_out_of_reach(peer, now_ns);
        if (gone) {
            quiesced_give_up(peer);
        }
        if ((gone || !peer_heal(peer, now_ns)) && peer_idle(peer)) {
            bt_log_info(0, "decode rank %s left", peer->endpoint.worker_id);
            peer_destroy(peer);
            peers->list[i] = NULL;
        }
    }
    for (uint32_t i = 0; i < peers->count; i++) {
        if (peers->list[i]) {
            peers->list[kept++] = peers->list[i];
        }
    }
    peers->count = kept;
    peers->options.changed(peers->options.context);
    bt_loop_timer_set(peers->sweep_timer, bt_clock_now_ns() + SWEEP_NS);
}

struct pf_peers *pf_peers_create(const struct pf_peers_options *options)
{
    struct pf_peers *peers = calloc(1, sizeof(*peers));
    if (!peers) {
        return NULL;
    }
    peers->options = *options;
    peers->sweep_timer =
        bt_loop_add_timer(options->loop, bt_clock_now_ns() + SWEEP_NS, peers_sweep, peers);
    if (!peers->sweep_timer) {
        free(peers);
        return NULL;
    }
    return peers;
}

void pf_peers_destroy(struct pf_peers *peers)
{
    if (!peers) {
        return;
    }
    peers->closing = true;
    for (uint32_t i = 0; i < peers->count; i++) {
        peer_destroy(peers->list[i]);
    }
    bt_loop_remove(peers->sweep_timer);
    free(peers);
}

static struct pf_peer *peers_find(const struct pf_peers *peers, uint64_t incarnation)
{
    for (uint32_t i = 0; i < peers->count; i++) {
        if (peers->list[i]->endpoint.remote.incarnation == incarnation) {
            return peers->list[i];
        }
    }
    return NULL;
}

enum bt_status pf_peers_get(struct pf_peers *peers, const Baton__V1__KvEndpoint *endpoint,
                            struct bt_error *error, struct pf_peer **ret_peer)
{
    enum bt_status status = pf_rank_endpoint_check(endpoint, &peers->options.fingerprint, error);
    if (status != BT_OK) {
        return status;
    }
    struct pf_peer *peer = peers_find(peers, endpoint->incarnation);
    if (!peer) {
        if (peers->count == PF_MAX_PEERS) {
            return bt_error_set(error, BT_ERR_EXHAUSTED, "%d decode ranks are known already",
                                PF_MAX_PEERS);
        }
        status = peer_create(peers, endpoint, error, &peer);
        if (status != BT_OK) {
            return status;
        }
        peers->list[peers->count++] = peer;
    } else if (peer->endpoint.remote.pool_pages != endpoint->pool_pages ||
               peer->endpoint.remote.pool_base != endpoint->pool_base) {
        return bt_error_set(error, BT_ERR_PROTOCOL,
                            "endpoint.pool_pages or pool_base changed within one incarnation");
    }
    peer->named_ns = bt_clock_now_ns();
    *ret_peer = peer;
    return BT_OK;
}

bool pf_peers_warm(const struct pf_peers *peers)
{
    for (uint32_t i = 0; i < peers->count; i++) {
        if (kvt_link_state(peers->list[i]->link) == KVT_LINK_CONNECTING) {
            return false;
        }
    }
    return true;
}

uint32_t pf_peers_unacknowledged(const struct pf_peers *peers)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < peers->count; i++) {
        count += peers->list[i]->quiesced_count;
    }
    return count;
}

enum bt_status pf_peer_acquire(struct pf_peer *peer, struct bt_error *error)
{
    if (peer->uses + peer->quiesced_count >= PF_MAX_RUNS_PER_PEER) {
        return bt_error_set(error, BT_ERR_EXHAUSTED, "decode rank %s: %d requests are open with it",
                            peer->endpoint.worker_id, PF_MAX_RUNS_PER_PEER);
    }
    peer->uses++;
    return BT_OK;
}

void pf_peer_release(struct pf_peer *peer)
{
    BT_ASSERT(peer->uses > 0);
    peer->uses--;
}

enum bt_status pf_peer_link(struct pf_peer *peer, struct bt_error *error,
                            struct kvt_link **ret_link)
{
    if (kvt_link_state(peer->link) == KVT_LINK_FAILED) {
        enum bt_status status = peer_reconnect(peer, error);
        if (status != BT_OK) {
            return status;
        }
    }
    *ret_link = peer->link;
    return BT_OK;
}

const char *pf_peer_transport(const struct pf_peer *peer)
{
    return kvt_link_transport(peer->link);
}

struct bt_rpc_client *pf_peer_client(const struct pf_peer *peer)
{
    return peer->client;
}
