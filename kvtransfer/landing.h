/*
 * The decode side of the handoff: which request may be written into which pages, and what has to
 * happen before they go to anybody else. Rules 1-5 of the protocol live here
 * (kvtransfer/README.md).
 *
 * Pure: no clock, no I/O; the control thread feeds it messages, the time and verdicts, and does
 * what it says. Page states are kept in the page pool.
 *
 *   reserve ---> RESERVED --lease--> LANDING --done--> VERIFYING --verified--> READY --release-->
 * FREE |                   |                  |                     (engine owns it) | cancel |
 * cancel, lease    | cancel: waits for the verdict, then FREE v                   v  expired FREE
 * QUARANTINED --quiesced | peer proven gone--> FREE
 *
 * One that nobody else is going to write (kvt_landing_own) is READY from RESERVED on.
 *
 * A RESERVED landing that nobody takes a lease of ends too, after KVT_RESERVED_LEASES lease times:
 * the router or the prefill worker that knew of it may be gone. Quiesced without Done ends a
 * RESERVED or LANDING one (the prefill side gave it up); no write is under way, so its pages are
 * FREE at once.
 *
 * A landing is live until it is QUARANTINED, cancelled while VERIFYING, or retired while READY.
 */
#ifndef BATON_KVTRANSFER_LANDING_H
#define BATON_KVTRANSFER_LANDING_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/process.h"
#include "common/base/status.h"
#include "common/kvcache/page_pool.h"

#define KVT_RESERVED_LEASES 16
#define KVT_WRITERS_MAX     64 /* processes of one prefill worker */

enum kvt_landing_state {
    KVT_LANDING_RESERVED,
    KVT_LANDING_LANDING,
    KVT_LANDING_VERIFYING,
    KVT_LANDING_READY,
    KVT_LANDING_QUARANTINED,
};

struct kvt_landing {
    uint64_t request;
    uint64_t epoch;
    enum kvt_landing_state state;
    bool cancelled; /* VERIFYING only: free on the verdict */
    uint32_t prompt_tokens;
    uint32_t *pages;     /* in token order; owned by the table; may move when it grows */
    uint32_t page_count; /* >= pages of the prompt */
    int64_t lease_until_ns;
    uint64_t peer_incarnation;     /* of the prefill worker, after the first lease */
    struct bt_process_id *writers; /* its processes that took the lease; owned by the table */
    uint32_t writer_count;
    bool lost;  /* open: free when its peer's connections are closed */
    void *user; /* of the control thread: its request object */
};

struct kvt_landing_table;

/* The landing ended without becoming READY, by itself: DEADLINE (lease expired or never taken),
 * PEER_LOST (peer gone), CORRUPT (bad Done), CANCELLED (Quiesced without Done). Pages are dealt
 * with already; `landing` is valid inside the call. Called inside the function that found out; must
 * not call the table. */
typedef void kvt_landing_failed_fn(void *context, const struct kvt_landing *landing,
                                   enum bt_status status, const char *why);

/* `pool` must outlive the table, whose destruction leaves it as it is. `first_epoch`: above every
 * epoch this rank has ever used (time of start in nanoseconds); epochs count up from it. */
struct kvt_landing_table *kvt_landing_table_create(struct bt_page_pool *pool, uint64_t first_epoch,
                                                   int64_t lease_ns, kvt_landing_failed_fn *failed,
                                                   void *context);
void kvt_landing_table_destroy(struct kvt_landing_table *table);

/*
 * Pages for the prompt and `extra_tokens` of output. EXHAUSTED: not enough free pages.
 * ALREADY_EXISTS: the request has a live landing here. INVALID_ARGUMENT: no prompt. NO_MEMORY.
 */
enum bt_status kvt_landing_reserve(struct kvt_landing_table *table, uint64_t request,
                                   uint32_t prompt_tokens, uint32_t extra_tokens, int64_t now_ns,
                                   struct bt_error *error, struct kvt_landing **ret_landing);

/* RESERVED -> READY: this rank itself writes the pages, nobody gets a lease of them. */
void kvt_landing_own(struct kvt_landing_table *table, struct kvt_landing *landing);

/* By request, live ones only. NULL: none. */
struct kvt_landing *kvt_landing_find(struct kvt_landing_table *table, uint64_t request);
/* By both, quarantined ones included. */
const struct kvt_landing *kvt_landing_of(const struct kvt_landing_table *table, uint64_t request,
                                         uint64_t epoch);
/* It has a lease that may be in use: neither Done nor Quiesced was heard. NULL: no. */
bool kvt_landing_is_open(const struct kvt_landing *landing);

/* Grants or renews; each process of the worker that writes takes the lease for itself. False: no
 * such epoch, over, cancelled, or held by another incarnation (or by KVT_WRITERS_MAX processes, or
 * no memory); and after Done, when nobody may write any more: a Run that came twice would get a
 * lease for the pages of a running sequence. */
bool kvt_landing_lease(struct kvt_landing_table *table, uint64_t request, uint64_t epoch,
                       uint64_t peer_incarnation, const struct bt_process_id *peer, int64_t now_ns);

enum kvt_done_verdict {
    KVT_DONE_VERIFY,    /* checksum the pages, then call kvt_landing_verified */
    KVT_DONE_WAIT,      /* a duplicate while the first is being verified */
    KVT_DONE_DUPLICATE, /* READY already: answer OK again */
    KVT_DONE_REFUSED,   /* *error says: STALE (no such epoch, over); PROTOCOL (no lease was taken);
                         * CORRUPT (its counts are wrong: the landing failed and is QUARANTINED, as a
                         * sender that miscounts may be wrong about its flush, too, until Quiesced) */
};
enum kvt_done_verdict kvt_landing_done(struct kvt_landing_table *table, uint64_t request,
                                       uint64_t epoch, uint32_t prompt_tokens, uint32_t page_count,
                                       struct bt_error *error, struct kvt_landing **ret_landing);

/* BT_OK: READY, the caller owns the sequence now. Otherwise the landing is gone (CORRUPT: the
 * checksum differs; CANCELLED: it was cancelled meanwhile); pages are FREE, as all writes are over.
 * STALE: nothing of that epoch was being verified. */
enum bt_status kvt_landing_verified(struct kvt_landing_table *table, uint64_t request,
                                    uint64_t epoch, bool checksum_equal,
                                    struct kvt_landing **ret_landing);

/* Whatever is not READY yet; epoch 0: any. READY ones are the engine's: BT_ERR_ALREADY_EXISTS, the
 * caller stops the sequence and then releases. NOT_FOUND and STALE are harmless. */
enum bt_status kvt_landing_cancel(struct kvt_landing_table *table, uint64_t request,
                                  uint64_t epoch);

/* The prefill side says that no write of this epoch is or will be under way. */
void kvt_landing_quiesced(struct kvt_landing_table *table, uint64_t request, uint64_t epoch);

/* Makes way for another landing of its request: it is not live any more, and is found by request
 * and epoch until it is released. Asserts that it is READY. */
void kvt_landing_retire(struct kvt_landing_table *table, struct kvt_landing *landing);

/* READY -> FREE. Pages given by kvt_landing_grow go too. Asserts that it is READY. */
void kvt_landing_release(struct kvt_landing_table *table, uint64_t request, uint64_t epoch);

/* More pages for a READY landing, appended. EXHAUSTED, NO_MEMORY: nothing changed. */
enum bt_status kvt_landing_grow(struct kvt_landing_table *table, struct kvt_landing *landing,
                                uint32_t page_count);

/* Lease expiry. Call at kvt_landing_next_deadline_ns or later. */
void kvt_landing_tick(struct kvt_landing_table *table, int64_t now_ns);
/* BT_NEVER_NS: none. */
int64_t kvt_landing_next_deadline_ns(const struct kvt_landing_table *table);

/* Incarnations that hold open landings, for the control thread to probe. Returns how many were
 * written (at most `max`) and goes on from *cursor the next time; 0: from the beginning. */
uint32_t kvt_landing_peers(const struct kvt_landing_table *table, size_t *cursor,
                           uint64_t *ret_incarnations, uint32_t max);

/* What is known of a process that took a lease. Who is elsewhere, on another host or in another pid
 * namespace, shares no memory with this one: each write of it comes over a connection that this
 * side can close. */
enum kvt_writer_state { KVT_WRITER_ALIVE, KVT_WRITER_DEAD, KVT_WRITER_ELSEWHERE };
typedef enum kvt_writer_state kvt_writer_state_fn(void *context,
                                                  const struct bt_process_id *process);

/*
 * Decides which landings of this incarnation are lost: the peer can't write them any more once its
 * connections are closed. All open ones, if every process that took a lease of one is dead. The
 * QUARANTINED ones, if each is dead or elsewhere, none is LANDING, and the last lease of all was
 * over before `silent_ns`. False: none is. After the connections are closed, kvt_landing_peer_gone.
 */
bool kvt_landing_peer_lost(struct kvt_landing_table *table, uint64_t incarnation,
                           kvt_writer_state_fn *state_of, void *context, int64_t silent_ns);

/* This side's ends of all connections were closed after kvt_landing_peer_lost: what was lost then
 * is over. LANDING ones fail, QUARANTINED ones are freed. */
void kvt_landing_peer_gone(struct kvt_landing_table *table, uint64_t incarnation);

uint32_t kvt_landing_count(const struct kvt_landing_table *table, enum kvt_landing_state state);
/* Start with *cursor = 0; NULL at the end. Quarantined ones included. */
const struct kvt_landing *kvt_landing_next(const struct kvt_landing_table *table, size_t *cursor);

#endif
