/* Inside of struct bt_exchange: exchange.c (parcels), waiting.c (waits and losses), joining.c
 * (creation). */
#ifndef BATON_COMMON_PARALLEL_EXCHANGE_STATE_H
#define BATON_COMMON_PARALLEL_EXCHANGE_STATE_H

#include "common/parallel/exchange.h"
#include "common/parallel/net.h"

/* Why a rank is out of the group, in the `over` word of its window and in BT_NET_OVER. */
enum bt_over {
    BT_OVER_LEFT = 1,
    BT_OVER_ENDED,    /* its process has */
    BT_OVER_CUT_OFF,  /* the network says */
    BT_OVER_SILENT,   /* for the wait timeout */
    BT_OVER_CONFUSED, /* in another call, or what it sent makes no sense */
};

/* A far parcel on its way into this rank's window. */
struct bt_inbound {
    uint64_t total, received; /* bytes, head included; 0: nothing yet */
};

struct bt_exchange_channel {
    size_t slot_bytes; /* of one parcel with its head */
    uint32_t number;   /* of the last exchange that was begun */
    bool open, relayed;
    enum bt_parcel_kind kind;
    uint64_t detail;
    char *outgoing[2]; /* [machines] slots; NULL: one machine */
    struct bt_inbound inbound[2][BT_GROUP_RANKS_MAX];
};

struct bt_exchange {
    struct bt_ranks ranks;
    int64_t timeout_ns, spin_ns;
    struct bt_error error;                        /* status BT_OK: not over */
    struct bt_window windows[BT_GROUP_RANKS_MAX]; /* of the neighbours */
    struct bt_process_id processes[BT_GROUP_RANKS_MAX];
    uint32_t far_over[BT_GROUP_RANKS_MAX]; /* what a far rank said when it went */
    uint64_t outgoing_bytes;
    struct bt_exchange_channel channels[BT_WINDOW_CHANNELS];
    struct bt_net *net; /* NULL: one machine */
};

/* The counter of a window says: own parcel of exchange n is there; far ones of n are, too. */
static inline uint32_t bt_posted_own(uint32_t number)
{
    return 2 * number;
}

static inline uint32_t bt_posted_far(uint32_t number)
{
    return 2 * number + 1;
}

/* A neighbour has done all that others need of it in exchange `number`. */
static inline uint32_t bt_posted_all(const struct bt_exchange *x, uint32_t number)
{
    return x->ranks.machines > 1 ? bt_posted_far(number) : bt_posted_own(number);
}

static inline struct bt_window_counter *bt_exchange_counter(const struct bt_exchange *x,
                                                            uint32_t rank, enum bt_channel channel)
{
    return &x->windows[rank].head->counters[channel];
}

static inline struct bt_inbound *bt_exchange_inbound(struct bt_exchange *x, enum bt_channel channel,
                                                     uint32_t number, uint32_t source)
{
    return &x->channels[channel].inbound[number & 1][source];
}

/* Far, and this rank takes in what it sends. */
static inline bool bt_exchange_relays(const struct bt_exchange *x, uint32_t source)
{
    return !bt_ranks_near(&x->ranks, source) &&
           bt_ranks_relay(&x->ranks, source, bt_ranks_machine(&x->ranks)) == x->ranks.rank;
}

/* exchange.c */
/* Bytes of a rank's window. */
size_t bt_exchange_window_bytes(const struct bt_exchange *x, uint32_t rank);
/* The slot, in the window of `rank`, of what `source` sent to its machine. */
struct bt_parcel *bt_exchange_slot(const struct bt_exchange *x, uint32_t rank, uint32_t source,
                                   enum bt_channel channel, uint32_t number);
bt_net_fn bt_exchange_on_message;

/* waiting.c */
/* Until the neighbour's counter has `target`. */
enum bt_status bt_exchange_wait_posted(struct bt_exchange *x, enum bt_channel channel,
                                       uint32_t rank, uint32_t target);
/* Until all far parcels of the open exchange that come to this rank are there. */
enum bt_status bt_exchange_wait_inbound(struct bt_exchange *x, enum bt_channel channel);
/* Until all that was sent to far ranks is on its way. */
enum bt_status bt_exchange_wait_sent(struct bt_exchange *x, enum bt_channel channel);
/* The group is over for this rank; tells the others. Returns the status of it. */
enum bt_status bt_exchange_fail(struct bt_exchange *x, enum bt_over why, uint32_t culprit);
/* Tells the others that this rank goes, unless it is over already. */
void bt_exchange_leave(struct bt_exchange *x);

#endif
