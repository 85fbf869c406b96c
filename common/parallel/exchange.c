#include "common/parallel/exchange.h"

#include <string.h>

#include "common/base/log.h"
#include "common/parallel/exchange_state.h"

/* ---- where parcels are ---- */

/* Slots of a window by the source of what is in them: the owner's first, then the far ones it takes
 * in for, ascending. */
static uint32_t slot_index(const struct bt_ranks *ranks, uint32_t owner, uint32_t source)
{
    uint32_t machine = ranks->machine_of[owner], index = 0;
    if (owner == source)
        return 0;
    for (uint32_t r = 0; r < source; r++)
        index += ranks->machine_of[r] != machine && bt_ranks_relay(ranks, r, machine) == owner;
    return index + 1;
}

static size_t channel_bytes(const struct bt_exchange *x, uint32_t owner, enum bt_channel channel)
{
    uint32_t slots = slot_index(&x->ranks, owner, x->ranks.size); /* behind the last one */
    return 2 * slots * x->channels[channel].slot_bytes;
}

size_t bt_exchange_window_bytes(const struct bt_exchange *x, uint32_t rank)
{
    return channel_bytes(x, rank, BT_CHANNEL_ROWS) + channel_bytes(x, rank, BT_CHANNEL_WORDS);
}

struct bt_parcel *bt_exchange_slot(const struct bt_exchange *x, uint32_t rank, uint32_t source,
                                   enum bt_channel channel, uint32_t number)
{
    size_t start = channel == BT_CHANNEL_ROWS ? 0 : channel_bytes(x, rank, BT_CHANNEL_ROWS);
    size_t index = 2 * slot_index(&x->ranks, rank, source) + (number & 1);
    return (struct bt_parcel *)(x->windows[rank].data + start +
                                index * x->channels[channel].slot_bytes);
}

struct bt_parcel *bt_exchange_parcel(struct bt_exchange *x, enum bt_channel channel,
                                     uint32_t machine)
{
    struct bt_exchange_channel *c = &x->channels[channel];
    BT_ASSERT(c->open);
    if (machine == bt_ranks_machine(&x->ranks))
        return bt_exchange_slot(x, x->ranks.rank, x->ranks.rank, channel, c->number);
    return (struct bt_parcel *)(c->outgoing[c->number & 1] + machine * c->slot_bytes);
}

const struct bt_ranks *bt_exchange_ranks(const struct bt_exchange *x)
{
    return &x->ranks;
}

const struct bt_error *bt_exchange_error(const struct bt_exchange *x)
{
    return &x->error;
}

uint32_t bt_exchange_other(const struct bt_exchange *x, uint32_t i)
{
    const struct bt_ranks *ranks = &x->ranks;
    uint32_t machine = bt_ranks_machine(ranks), first = ranks->first[machine],
             near = ranks->count[machine];
    if (i < near - 1)
        return first + (ranks->rank - first + 1 + i) % near;
    return (first + near + (i - (near - 1))) % ranks->size;
}

/* ---- what comes from far ---- */

static void take_piece(struct bt_exchange *x, const struct bt_net_head *head, const void *data,
                       size_t bytes)
{
    struct bt_exchange_channel *c = &x->channels[head->channel];
    struct bt_inbound *inbound = bt_exchange_inbound(x, head->channel, head->number, head->source);
    uint32_t ahead = head->number - c->number;

    if (ahead > 1 || (ahead == 0 && !c->open) || head->total < sizeof(struct bt_parcel) ||
        head->total > c->slot_bytes || (inbound->total != 0 && inbound->total != head->total) ||
        head->offset > head->total || bytes > head->total - head->offset ||
        bytes > head->total - inbound->received) {
        bt_exchange_fail(x, BT_OVER_CONFUSED, head->source);
        return;
    }
    struct bt_parcel *slot =
        bt_exchange_slot(x, x->ranks.rank, head->source, head->channel, head->number);
    memcpy((char *)slot + head->offset, data, bytes);
    inbound->total = head->total;
    inbound->received += bytes;
}

void bt_exchange_on_message(void *context, const struct bt_net_head *head, const void *data,
                            size_t bytes)
{
    struct bt_exchange *x = context;
    if (head->source >= x->ranks.size || bt_ranks_near(&x->ranks, head->source) ||
        head->channel >= BT_WINDOW_CHANNELS || x->error.status != BT_OK)
        return;
    if (head->type == BT_NET_OVER)
        x->far_over[head->source] = (uint32_t)head->offset;
    else if (head->type == BT_NET_PARCEL && bt_exchange_relays(x, head->source))
        take_piece(x, head, data, bytes);
    else
        bt_exchange_fail(x, BT_OVER_CONFUSED, head->source);
}

/* What came is shown to the neighbours. Once in every exchange. */
static enum bt_status relay(struct bt_exchange *x, enum bt_channel channel)
{
    struct bt_exchange_channel *c = &x->channels[channel];
    if (c->relayed || x->ranks.machines == 1)
        return BT_OK;
    enum bt_status status = bt_exchange_wait_inbound(x, channel);
    if (status != BT_OK)
        return status;
    bt_counter_post(bt_exchange_counter(x, x->ranks.rank, channel), bt_posted_far(c->number));
    c->relayed = true;
    return BT_OK;
}

/* ---- an exchange ---- */

enum bt_status bt_exchange_begin(struct bt_exchange *x, enum bt_channel channel)
{
    struct bt_exchange_channel *c = &x->channels[channel];
    BT_ASSERT(!c->open || x->error.status != BT_OK);
    if (x->error.status == BT_OK && x->net)
        bt_exchange_wait_sent(x, channel);
    if (x->error.status != BT_OK)
        return x->error.status;
    c->number++;
    c->open = true;
    c->relayed = false;
    return BT_OK;
}

static void send_parcel(struct bt_exchange *x, enum bt_channel channel, uint32_t machine,
                        const struct bt_parcel *parcel)
{
    uint32_t to = bt_ranks_relay(&x->ranks, x->ranks.rank, machine);
    size_t total = sizeof(*parcel) + parcel->bytes;
    struct bt_net_head head = {.source = x->ranks.rank,
                               .number = x->channels[channel].number,
                               .type = BT_NET_PARCEL,
                               .channel = channel,
                               .total = total};
    for (; head.offset < total; head.offset += BT_NET_FRAGMENT_BYTES) {
        size_t left = total - head.offset;
        bt_net_send(x->net, to, &head, (const char *)parcel + head.offset,
                    left < BT_NET_FRAGMENT_BYTES ? left : BT_NET_FRAGMENT_BYTES);
    }
}

static void seal(const struct bt_exchange_channel *c, struct bt_parcel *parcel)
{
    BT_ASSERT(parcel->bytes <= c->slot_bytes - sizeof(*parcel));
    parcel->number = c->number;
    parcel->kind = c->kind;
    parcel->detail = c->detail;
}

void bt_exchange_post(struct bt_exchange *x, enum bt_channel channel, enum bt_parcel_kind kind,
                      uint64_t detail, bool same)
{
    struct bt_exchange_channel *c = &x->channels[channel];
    uint32_t here = bt_ranks_machine(&x->ranks);
    struct bt_parcel *own = bt_exchange_parcel(x, channel, here);

    c->kind = kind;
    c->detail = detail;
    seal(c, own);
    bt_counter_post(bt_exchange_counter(x, x->ranks.rank, channel), bt_posted_own(c->number));
    for (uint32_t machine = 0; machine < x->ranks.machines; machine++) {
        struct bt_parcel *parcel = same ? own : bt_exchange_parcel(x, channel, machine);
        if (machine == here)
            continue;
        if (!same)
            seal(c, parcel);
        send_parcel(x, channel, machine, parcel);
    }
    if (x->net)
        bt_net_progress(x->net);
}

static enum bt_status check_parcel(struct bt_exchange *x, const struct bt_exchange_channel *c,
                                   uint32_t source, const struct bt_parcel *parcel)
{
    if (parcel->number != c->number || parcel->kind != c->kind || parcel->detail != c->detail ||
        parcel->bytes > c->slot_bytes - sizeof(*parcel))
        return bt_exchange_fail(x, BT_OVER_CONFUSED, source);
    return BT_OK;
}

enum bt_status bt_exchange_take(struct bt_exchange *x, enum bt_channel channel, uint32_t source,
                                const struct bt_parcel **ret_parcel)
{
    struct bt_exchange_channel *c = &x->channels[channel];
    uint32_t holder = source, target = bt_posted_own(c->number);
    enum bt_status status = BT_OK;

    BT_ASSERT(c->open && source != x->ranks.rank);
    if (!bt_ranks_near(&x->ranks, source)) {
        status = relay(x, channel);
        holder = bt_ranks_relay(&x->ranks, source, bt_ranks_machine(&x->ranks));
        target = bt_posted_far(c->number);
    }
    if (status == BT_OK && holder != x->ranks.rank)
        status = bt_exchange_wait_posted(x, channel, holder, target);
    if (status != BT_OK)
        return status;
    const struct bt_parcel *parcel = bt_exchange_slot(x, holder, source, channel, c->number);
    status = check_parcel(x, c, source, parcel);
    if (status == BT_OK)
        *ret_parcel = parcel;
    return status;
}

enum bt_status bt_exchange_end(struct bt_exchange *x, enum bt_channel channel)
{
    struct bt_exchange_channel *c = &x->channels[channel];
    enum bt_status status = relay(x, channel);
    for (uint32_t i = 0; i + 1 < x->ranks.size && status == BT_OK; i++) {
        const struct bt_parcel *parcel;
        status = bt_exchange_take(x, channel, bt_exchange_other(x, i), &parcel);
    }
    if (status != BT_OK)
        return status;
    memset(c->inbound[c->number & 1], 0, sizeof(c->inbound[0]));
    c->open = false;
    return BT_OK;
}

enum bt_status bt_exchange_reject(struct bt_exchange *x, uint32_t source, const char *what)
{
    bt_log_warn(0, "group: rank %u sent %s", source, what);
    return bt_exchange_fail(x, BT_OVER_CONFUSED, source);
}
