/*
 * Several transports as one: a rail for each port of each NIC. All rails know one pool; writes go
 * to them in proportion to their rate, long ones in pieces.
 *
 * A rail that fails is taken out of its peer, and what it had not flushed is written again by the
 * others: the same bytes to the same addresses. What the failed rail still had under way may arrive
 * at any later time, so the line becomes one of the peer's cuts (kvt_transport_ops.peer_cuts), and
 * the target has to cut it off before the pages are READY or FREE. Without a rail left the peer has
 * failed. A line that is out is tried again after 1 to 32 s, under a new number; a
 * write that is repeated goes only over lines that were up when it was posted.
 *
 * More than the interface asks of callers: the source of a write stays as it is until a flush after
 * it is over, since a rail may fail between the two.
 *
 * Pairs: with N rails here and M at the target there are max(N, M) lines; line k goes from rail
 * k mod N to rail k mod M, at the lower of the two rates (a rate is shared by the lines of a rail).
 */
#ifndef BATON_KVTRANSFER_RAILS_RAILS_H
#define BATON_KVTRANSFER_RAILS_RAILS_H

#include "kvtransfer/transport.h"

#define KVT_RAILS_PIECE_BYTES (UINT64_C(256) << 10) /* a write of two or more is cut into these */
#define KVT_RAILS_PIECES      8192                  /* of one transport: under way or not flushed */
#define KVT_RAILS_FLUSH_EVERY                                                                      \
    512                       /* writes of a line that are not flushed: then it flushes itself */
#define KVT_RAILS_FLUSHES 256 /* of one peer at once */
#define KVT_RAILS_STRAGGLE_NS                                                                      \
    (INT64_C(3) * BT_NS_PER_S) /* a line that is not up this long after the                        \
                                  first one that is: goes without it */

#define KVT_RAILS_AGAIN_MIN_NS BT_NS_PER_S
#define KVT_RAILS_AGAIN_MAX_NS (32 * BT_NS_PER_S)
#define KVT_RAILS_UP_NS        (10 * BT_NS_PER_S) /* for a line that is tried again to come up */

struct kvt_rail {
    struct kvt_transport *transport;
    char device[KVT_DEVICE_NAME_SIZE]; /* "mlx5_0:1" */
    uint32_t rate_mbps;                /* > 0 */
};

/* 1 to KVT_RAILS_MAX rails; takes the transports, also when it fails. */
enum bt_status kvt_rails_create(const struct kvt_rail *rails, uint32_t count,
                                struct bt_error *error, struct kvt_transport **ret_transport);

/* What a line has to do, for the choice of the next one. */
struct kvt_rails_load {
    bool usable;
    uint64_t rate;   /* any unit, > 0 */
    uint64_t queued; /* bytes given to it and not over */
    uint64_t given;  /* bytes ever given: decides between equals */
};

/* The line that is through with `bytes` more first; ties go to the one that was given least for its
 * rate, then to the first. `count` when none is usable. Pure. */
uint32_t kvt_rails_choose(const struct kvt_rails_load *loads, uint32_t count, uint64_t bytes);

#endif
