/* Shared by the files of kvtransfer/rails/: the transport of rails.c, the peers of peer.c. */
#ifndef BATON_KVTRANSFER_RAILS_INTERNAL_H
#define BATON_KVTRANSFER_RAILS_INTERNAL_H

#include <stdatomic.h>

#include "common/base/clock.h"
#include "kvtransfer/rails/blob.h"
#include "kvtransfer/rails/rails.h"

/* A write as the caller posted it, until all its pieces are written. */
struct kvt_rails_op {
    struct kvt_peer *peer;
    kvt_completion_fn *done;
    void *context;
    uint32_t pieces_left;
    struct kvt_rails_op *next, *previous; /* of the peer; or next of the free list */
};

/* From being posted until its line has flushed it. */
struct kvt_rails_piece {
    struct kvt_peer *peer;
    struct kvt_rails_op *op; /* NULL: written, the caller knows */
    uint64_t serial;         /* of its write, in the order of posting */
    const char *source;
    size_t bytes;
    uint64_t remote_address;
    uint32_t line;
    bool out;                                /* the line's transport will call back */
    uint64_t sequence;                       /* on the line */
    struct kvt_rails_piece *next, *previous; /* of the line's or the peer's waiting list */
};

struct kvt_rails_pieces {
    struct kvt_rails_piece *first, *last;
};

struct kvt_rails_line {
    struct kvt_peer *owner;
    struct kvt_peer *peer; /* of the rail's transport; NULL: out */
    bool ready;
    bool lost; /* a call back said so: taken out by the next step */
    uint32_t rail, target_rail;
    uint32_t number;  /* of its connection: kvt_origin.line */
    int64_t up_by_ns; /* of a connection after the first; 0: it is up, or out */
    int64_t up_since_ns;
    uint64_t up_serial;    /* writes posted later may go over it */
    int64_t again_ns;      /* out: when it is tried again; BT_NEVER_NS: not at all */
    uint32_t tries;        /* since it was up for long */
    const char *transport; /* what it went over when it was up; "" before */
    struct kvt_rails_load load;
    uint64_t burst; /* bytes written at once since the last step: they count as queued until then */
    struct kvt_rails_pieces pieces; /* under way, or written and not flushed */
    uint32_t unflushed;             /* pieces in the list */
    uint64_t posted, flushed;       /* sequence numbers */
    bool flush_out, flush_wanted;
    uint64_t flush_sequence; /* all up to here are flushed when it is over */
};

struct kvt_rails_flush {
    kvt_completion_fn *done; /* NULL: free slot */
    void *context;
    uint64_t serial;                /* writes up to here */
    bool armed;                     /* none of them waits for a line any more */
    uint64_t wanted[KVT_RAILS_MAX]; /* sequence of each line */
};

struct kvt_peer {
    struct kvt_rails *rails;
    enum kvt_peer_state state;
    struct bt_error error;
    struct kvt_origin origin;
    int64_t give_up_ns; /* on lines that are not up; 0: none is */
    struct kvt_rails_line lines[KVT_RAILS_MAX];
    uint32_t line_count;
    uint64_t cuts; /* bit: number of a line */
    uint32_t next_number;
    void *address, *key; /* for lines that are tried again; the parts point into them */
    struct kvt_rails_part addresses[KVT_RAILS_MAX], keys[KVT_RAILS_MAX];
    uint64_t serial;
    struct kvt_rails_op *ops;
    struct kvt_rails_pieces waiting; /* for a line, in order */
    struct kvt_rails_flush flushes[KVT_RAILS_FLUSHES];
    uint32_t flush_count;
    bool closing;
    struct kvt_peer *next;
};

struct kvt_memory {
    void *base;
    struct kvt_memory *parts[KVT_RAILS_MAX]; /* of the rails' transports */
    struct kvt_memory *next;
};

struct kvt_rails_rail {
    struct kvt_rail rail;
    /* Any thread may read these: */
    _Atomic uint64_t bytes, writes, repeats, failures;
    _Atomic uint32_t lines;        /* up now */
    const char *_Atomic transport; /* of the last line that came up; "" before */
};

struct kvt_rails {
    struct kvt_transport base;
    struct kvt_rails_rail rails[KVT_RAILS_MAX];
    uint32_t count;
    int wake_fd, epoll_fd; /* the latter: of all rails */
    struct kvt_memory *memories;
    struct kvt_peer *peers;
    struct kvt_rails_piece *pieces, *free_pieces;
    struct kvt_rails_op *ops, *free_ops;
};

/* peer.c: see kvt_transport_ops */
enum bt_status kvt_rails_connect(struct kvt_transport *base, const void *address,
                                 size_t address_size, const void *key, size_t key_size,
                                 const struct kvt_origin *origin, struct bt_error *error,
                                 struct kvt_peer **ret_peer);
enum kvt_peer_state kvt_rails_peer_state(const struct kvt_peer *peer);
const char *kvt_rails_peer_transport(const struct kvt_peer *peer);
uint32_t kvt_rails_peer_rails(const struct kvt_peer *peer, struct kvt_rail_info *ret_rails,
                              uint32_t max);
const char *kvt_rails_peer_error(const struct kvt_peer *peer);
uint64_t kvt_rails_peer_cuts(const struct kvt_peer *peer);
enum bt_status kvt_rails_write(struct kvt_peer *peer, const void *source, size_t bytes,
                               uint64_t remote_address, kvt_completion_fn *done, void *context);
enum bt_status kvt_rails_flush(struct kvt_peer *peer, kvt_completion_fn *done, void *context);
void kvt_rails_peer_close(struct kvt_peer *peer);
/* After the transports made progress. Whether anything happened. */
bool kvt_rails_peer_step(struct kvt_peer *peer);
/* When it wants a step though nothing happens; BT_NEVER_NS: not at all. */
int64_t kvt_rails_peer_deadline_ns(const struct kvt_peer *peer);

#endif
