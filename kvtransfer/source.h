/*
 * The prefill side of the handoff: the KV pool that is pushed from, and the thread that pushes.
 *
 * A push belongs to one (request, epoch). The compute thread says how far each layer is; the
 * pushing thread writes what is ready, never without a live lease, and flushes; every push ends
 * with exactly one event, after which no write of it is under way. Source pages must stay as they
 * are until then.
 */
#ifndef BATON_KVTRANSFER_SOURCE_H
#define BATON_KVTRANSFER_SOURCE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/queue.h"
#include "common/base/status.h"
#include "common/kernels/device.h"
#include "common/kvcache/layout.h"
#include "kvtransfer/plan.h"
#include "kvtransfer/transport.h"

struct kvt_source;
struct kvt_push;
struct kvt_link; /* a connection to one decode rank's incarnation */

struct kvt_source_options {
    const char *transport; /* these four: see struct kvt_transport_options */
    const char *bind_host;
    const char *device;
    bool forbid_fallback;
    struct kvt_transport *given; /* used, and destroyed, instead of the above, unless NULL */
    /* Whose memory the pool is in; NULL: the host's. */
    struct bt_device *pool_device;
    struct bt_kv_layout layout;
    uint32_t pool_pages;
    uint64_t incarnation;
    /* Of the processes that share the incarnation: each numbers its links by itself, so that what
     * is cut off is of one alone. Below KVT_WRITERS_MAX. */
    uint32_t writer;
    bool checksum;
    uint32_t max_pushes; /* at once; bounds the event queue */
};

/* Allocates pool and thread. */
enum bt_status kvt_source_create(const struct kvt_source_options *options, struct bt_error *error,
                                 struct kvt_source **ret_source);
/* Every push must have ended. Closes all links, stops the thread. NULL is fine. */
void kvt_source_destroy(struct kvt_source *source);

void *kvt_source_pool(const struct kvt_source *source); /* [layer][page][token][dim] */

/* Connects in the background. The link counts its users: each connect needs one release. */
struct kvt_remote {
    uint64_t incarnation;
    const void *address;
    size_t address_size;
    const void *key;
    size_t key_size;
    uint64_t pool_base;
    uint32_t pool_pages;
};
/* Control thread, like release, open and close. INVALID_ARGUMENT: a pool that can't be; EXHAUSTED:
 * too many links. What is wrong inside address and key makes the link FAILED. */
enum bt_status kvt_source_connect(struct kvt_source *source, const struct kvt_remote *remote,
                                  struct bt_error *error, struct kvt_link **ret_link);
void kvt_link_release(struct kvt_link *link);
/* The target has acknowledged that it cut these lines of that link (see struct kvt_push_event):
 * later pushes need not name them. Control thread. */
void kvt_source_cuts_over(struct kvt_source *source, uint64_t link, uint64_t lines);

enum kvt_link_state { KVT_LINK_CONNECTING, KVT_LINK_READY, KVT_LINK_FAILED };
enum kvt_link_state kvt_link_state(const struct kvt_link *link); /* any thread */
/* "shm", "tcp", "rdma": what the writes really go over, or went; "" before READY. */
const char *kvt_link_transport(const struct kvt_link *link);
/* What the rails of a READY link go over (failed ones among them are told by the log);
 * fills the first `max` and returns how many there are. Any thread. */
uint32_t kvt_link_rails(const struct kvt_link *link, struct kvt_rail_info *ret_rails, uint32_t max);
/* What went over one transport and device since the source was made. */
struct kvt_traffic {
    const char *transport;             /* a constant */
    char device[KVT_DEVICE_NAME_SIZE]; /* "": memory */
    uint64_t bytes, writes;
    uint64_t connections; /* that came up, ever */
    uint32_t links;       /* that are up */
};
/* Over all links; a link of several rails counts for each of them, what it wrote for the one that
 * wrote it. Fills the first `max` and returns how many there are. Any thread. */
uint32_t kvt_source_traffic(const struct kvt_source *source, struct kvt_traffic *ret_traffic,
                            uint32_t max);
/* Links for which the best transport of both ends did not do. Any thread. */
uint64_t kvt_source_fallbacks(const struct kvt_source *source);
/* The transports that can be chosen from, the best first: "shm,tcp". "" for a given transport. */
const char *kvt_source_offers(const struct kvt_source *source);

/* What the rails of this side have done; fills the first `max` and returns how many there are.
 * Any thread. */
uint32_t kvt_source_rails(const struct kvt_source *source, struct kvt_rail_stats *ret_stats,
                          uint32_t max);
/* Why it is FAILED; "" while it is not. Valid as long as the link. */
const char *kvt_link_error(const struct kvt_link *link);

struct kvt_push_watch;

struct kvt_push_spec {
    uint64_t request;
    uint64_t epoch;
    struct kvt_link *link;        /* the push takes a use of its own */
    const uint32_t *source_pages; /* [pages of prompt_tokens], copied */
    const uint32_t *target_pages; /* likewise; checked against both pools: INVALID_ARGUMENT */
    uint32_t prompt_tokens;
    bool layerwise; /* false: nothing is written before kvt_push_finish */
    /* Only these of the pages: the ranks of a group push a prompt together, each from a pool of its
     * own, all with one incarnation, and their checksums add up. count 0: all; at most
     * KVT_SHARES_MAX. */
    struct kvt_share share;
    const struct kvt_push_watch *watch; /* NULL: nobody watches; else valid until the end event */
    void *user;
};

/* What was written of a push, when it is complete here: tokens [token_begin, token_end) of a layer,
 * between two times of bt_clock_now_ns. Pages of other shares are left out, but not from the range.
 * Pushing thread: must be quick. */
struct kvt_push_watch {
    void (*written)(void *context, uint32_t layer, uint32_t token_begin, uint32_t token_end,
                    uint64_t bytes, int64_t begin_ns, int64_t end_ns);
    void *context;
};

enum bt_status kvt_push_open(struct kvt_source *source, const struct kvt_push_spec *spec,
                             struct bt_error *error, struct kvt_push **ret_push);

/* Control thread: the lease is live until then (bt_clock_now_ns base). Only ever later. */
void kvt_push_lease(struct kvt_push *push, int64_t until_ns);

/* Compute thread: KV of tokens [0, token_end) of this layer is final in the source pages.
 * Wait-free; token_end only grows. */
void kvt_push_ready(struct kvt_push *push, uint32_t layer, uint32_t token_end);

/* Compute thread: every layer is ready up to prompt_tokens. The push flushes and ends. */
void kvt_push_finish(struct kvt_push *push);

/* Any thread, any time before the end event was taken: posts nothing more, flushes, ends. */
void kvt_push_cancel(struct kvt_push *push);

struct kvt_push_event {
    struct kvt_push *push;
    uint64_t request;
    uint64_t epoch;
    void *user;
    /* BT_OK: all is in the target's memory. CANCELLED; DEADLINE: the lease ran out; PEER_LOST. */
    enum bt_status status;
    /* No write is under way or will be. False only with PEER_LOST: the link broke, and the target
     * has to cut this source off before it may reuse the pages. */
    bool quiesced;
    uint64_t link; /* of this source, that the push used: names it in what the target cuts off */
    /* With `quiesced`: lines of the link (bit i: line i) on which writes may still arrive, since
     * the line failed and others repeated them. The target has to cut these off (kvt_target_cut)
     * before the pages are READY or FREE. */
    uint64_t cut_lines;
    uint64_t checksum;
    uint64_t bytes;
    uint64_t writes;
    uint64_t hidden_bytes;  /* completed before kvt_push_finish; 0 when it was never called */
    int64_t first_write_ns; /* of the first post; 0: none */
    int64_t finish_ns;      /* of kvt_push_finish; 0: never called */
    int64_t end_ns;         /* of the flush's completion */
};

/* Items are struct kvt_push_event; one consumer, the control thread. */
struct bt_queue *kvt_source_events(const struct kvt_source *source);

/* After its event was taken. */
void kvt_push_close(struct kvt_push *push);

#endif
