/*
 * The one thing that all calls of a group over memory and UCX are made of: an exchange of parcels.
 * Each rank makes one parcel for every machine; then each rank can read, in place, the parcels that
 * all ranks made for its machine.
 *
 * The parcel for the own machine is made in this rank's window, where the neighbours read it: none
 * is copied. The one for another machine crosses the network once, into the window of the rank
 * there that takes in for this one (bt_ranks_relay), where its neighbours read it.
 *
 * An exchange ends on a rank only when it has seen the parcels of all. So a rank that has ended
 * number n knows that everybody has begun n, and thus has read all of n - 1: buffers of n - 1 can
 * be used for n + 1, and two of each are enough. Nothing is posted, granted or asked for.
 *
 * Two channels, so that one exchange (an agreement) may be open while others come and go.
 */
#ifndef BATON_COMMON_PARALLEL_EXCHANGE_H
#define BATON_COMMON_PARALLEL_EXCHANGE_H

#include "common/parallel/ranks.h"
#include "common/parallel/window.h"

#define BT_PARCEL_ALIGNMENT 64

enum bt_channel { BT_CHANNEL_ROWS, BT_CHANNEL_WORDS };

/* What the ranks are doing: ranks that call different things find out. */
enum bt_parcel_kind {
    BT_PARCEL_BARRIER = 1,
    BT_PARCEL_BROADCAST,
    BT_PARCEL_AGREE,
    BT_PARCEL_REDUCE,
    BT_PARCEL_GATHER,
    BT_PARCEL_DISPATCH,
    BT_PARCEL_COMBINE,
};

/* Ahead of a parcel's data. Written by another process: to be believed only where checked. */
struct bt_parcel {
    uint32_t number, kind;
    uint64_t bytes;  /* of data */
    uint64_t detail; /* equal on all ranks: floats, rows … of the call */
    uint64_t unused[5];
};
_Static_assert(sizeof(struct bt_parcel) == BT_PARCEL_ALIGNMENT, "data stay aligned");

static inline void *bt_parcel_data(struct bt_parcel *parcel)
{
    return parcel + 1;
}

struct bt_exchange;

struct bt_exchange_options {
    const struct bt_group_options *group;
    size_t capacity[BT_WINDOW_CHANNELS]; /* bytes of a parcel's data */
};

/* Meets the others. Errors: see bt_group_create. */
enum bt_status bt_exchange_create(const struct bt_exchange_options *options, struct bt_error *error,
                                  struct bt_exchange **ret_exchange);
void bt_exchange_destroy(struct bt_exchange *exchange);

const struct bt_ranks *bt_exchange_ranks(const struct bt_exchange *exchange);
/* Why it is over: from then on every call returns error->status. */
const struct bt_error *bt_exchange_error(const struct bt_exchange *exchange);

/*
 * begin; fill the data of bt_exchange_parcel(machine) and its `bytes`; post; take what is wanted;
 * end. A parcel taken is valid until the second next begin, its bytes and kind are checked.
 */
enum bt_status bt_exchange_begin(struct bt_exchange *exchange, enum bt_channel channel);
struct bt_parcel *bt_exchange_parcel(struct bt_exchange *exchange, enum bt_channel channel,
                                     uint32_t machine);
/* `same`: only the parcel of the own machine was filled, and goes to all. */
void bt_exchange_post(struct bt_exchange *exchange, enum bt_channel channel,
                      enum bt_parcel_kind kind, uint64_t detail, bool same);
/* Waits. For another rank. */
enum bt_status bt_exchange_take(struct bt_exchange *exchange, enum bt_channel channel,
                                uint32_t source, const struct bt_parcel **ret_parcel);
enum bt_status bt_exchange_end(struct bt_exchange *exchange, enum bt_channel channel);

/* What a rank sent makes no sense: the group is over. */
enum bt_status bt_exchange_reject(struct bt_exchange *exchange, uint32_t source, const char *what);

/* For walking the others: neighbours first, beginning behind this rank, then the far ones; so that
 * not all read the same window at the same time. i: 0 … size - 2. */
uint32_t bt_exchange_other(const struct bt_exchange *exchange, uint32_t i);

#endif
