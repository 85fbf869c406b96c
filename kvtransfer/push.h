/*
 * One push, as the pushing thread sees it (source.c runs the thread). Between the threads there are
 * two watermarks a layer: `ready` by the compute thread, `posted` by the pushing thread; so nothing
 * is queued or allocated per layer or page.
 */
#ifndef BATON_KVTRANSFER_PUSH_H
#define BATON_KVTRANSFER_PUSH_H

#include <stdatomic.h>

#include "kvtransfer/device_pool.h"
#include "kvtransfer/plan.h"
#include "kvtransfer/progress.h"
#include "kvtransfer/source.h"
#include "kvtransfer/transport.h"

#define KVT_BATCH_WRITES   64                    /* planned at a time */
#define KVT_WRITE_BYTES    (UINT64_C(4) << 20)   /* longest single write, but for one page */
#define KVT_STEP_BYTES     (UINT64_C(512) << 10) /* of one push, before the next has its turn */
#define KVT_INFLIGHT_BYTES (UINT64_C(128) << 20) /* of all pushes; one write may go past it */
#define KVT_INFLIGHT_MAX   1024                  /* writes of all pushes */
#define KVT_FLUSH_NS       (INT64_C(30) * BT_NS_PER_S) /* then the link counts as broken */

/* The source's account of one transport and device: the pushing thread writes, any may read. */
struct kvt_account {
    const char *transport;
    char device[KVT_DEVICE_NAME_SIZE];
    _Atomic uint64_t bytes, writes, connections;
    _Atomic uint32_t links;
};

struct kvt_link {
    struct kvt_source *source;
    uint64_t incarnation;
    uint64_t serial; /* its name for the target: kvt_origin.link */
    void *address;
    size_t address_size;
    void *key;
    size_t key_size;
    uint64_t pool_base;
    uint32_t pool_pages;
    uint32_t users; /* control thread */
    _Atomic int state;
    const char *transport; /* written before READY */
    struct kvt_rail_info rails[KVT_RAILS_MAX];
    uint32_t rail_count;
    bool ordered;                                /* what is written later arrives later */
    struct kvt_account *accounts[KVT_RAILS_MAX]; /* [rail_count] of them, while READY */
    struct bt_error error;                       /* written before FAILED */
    struct kvt_peer *peer;      /* from here on pushing thread; NULL: not yet, or closed */
    uint64_t cuts;              /* of the peer, when it was closed */
    _Atomic uint64_t cuts_over; /* from the control thread */
    char *mapped;        /* the target's pool here, when writes are stores; NULL: they are not */
    int64_t deadline_ns; /* of connecting */
    struct kvt_link *next;
};

struct kvt_write_record {
    struct kvt_push *push;
    uint64_t bytes;
    uint32_t layer, token_begin, token_end;
    int64_t begin_ns; /* of a push that is watched */
    struct kvt_write_record *next;
};

/* What all pushes of a source share; pushing thread. */
struct kvt_inflight {
    const struct kvt_transport_ops *ops;
    const struct bt_kv_layout *layout;
    const char *pool;
    struct kvt_device_pool *device_pool; /* that `pool` is of; NULL: the host's memory */
    uint32_t pool_pages;
    bool checksum;
    uint64_t bytes;
    uint32_t operations; /* writes and flushes out */
    struct kvt_write_record *free_records;
};

struct kvt_batch {
    struct kvt_write writes[KVT_BATCH_WRITES];
    uint32_t count;
    uint32_t next;
    uint64_t done_bytes; /* of writes[next] */
    uint32_t layer;
    uint32_t token; /* the first of writes[next] that is not written */
    uint32_t token_end;
};

enum kvt_push_phase { KVT_PUSH_RUNNING, KVT_PUSH_FLUSHING, KVT_PUSH_ENDED };

struct kvt_push {
    struct kvt_source *source;
    struct kvt_link *link;
    struct kvt_push_event event; /* filled as things happen; sent at the end */
    uint32_t prompt_tokens;
    uint32_t layer_count;
    bool layerwise;
    struct kvt_share share;
    const struct kvt_push_watch *watch;
    uint32_t *source_pages; /* [pages of the prompt] */
    uint32_t *target_pages;

    _Atomic int64_t lease_until_ns; /* 0: not granted yet */
    _Atomic bool cancelled;
    _Atomic bool finished;
    int64_t finish_ns;     /* written before `finished` */
    uint64_t hidden_bytes; /* likewise */
    _Atomic uint64_t bytes_done;
    _Atomic uint32_t *ready; /* [layer] tokens */

    enum kvt_push_phase phase; /* from here on pushing thread */
    uint32_t *posted;          /* [layer] tokens */
    uint32_t *summed;          /* [layer] pages in event.checksum */
    uint32_t layers_posted;    /* completely */
    uint32_t next_layer;
    struct kvt_batch batch;
    uint32_t writes_out;
    bool touched;         /* a write was given to the transport */
    uint64_t cuts_before; /* of the link, when the first one was */
    bool flush_out, flushed;
    bool summing;    /* the device sums its pages */
    bool progressed; /* since the last record was posted */
    bool record_out;
    struct kvt_progress record; /* the transport's while record_out */
    int64_t flush_deadline_ns;
    struct kvt_inflight *inflight;
};

/* One turn. Returns whether anything happened; phase ENDED: event is ready. A link that turns out
 * to be broken is reported in *ret_link_lost: the caller closes its peer, then calls again. */
bool kvt_push_step(struct kvt_push *push, int64_t now_ns, bool *ret_link_lost);

/* When it needs a turn though nothing happens. BT_NEVER_NS: not at all. */
int64_t kvt_push_next_deadline_ns(const struct kvt_push *push);

#endif
