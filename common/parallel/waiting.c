/*
 * Waits of an exchange, and how the loss of a rank is noticed.
 *
 * What was posted counts, whatever became of who posted it: a rank that has left, ended or failed
 * is lost only to those that still miss something of it. So a group that has done its work may be
 * left in any order.
 */
#include <inttypes.h>

#include "common/base/clock.h"
#include "common/parallel/exchange_state.h"

/*
 * How long a rank spins before it sleeps. To be woken takes some 5 to 50 us, so that spinning that
 * long at most doubles the wait. Waits that end in sleep halve the time, those that a spin ended
 * double it. A spin that takes far longer by the clock than its instructions shared its core with
 * somebody: that one gets it.
 */
#define SPIN_MAX_NS   INT64_C(50000)
#define SPIN_MIN_NS   INT64_C(1000)
#define SPIN_ROUNDS   32
#define PREEMPTION_NS INT64_C(50000)

#define SLEEP_NS     (20 * BT_NS_PER_MS)
#define SLEEP_NET_NS (1 * BT_NS_PER_MS)  /* while others may need this rank to move the network */
#define PROBE_NS     (50 * BT_NS_PER_MS) /* between looks whether the neighbours live */
/* A lost connection may be ahead of data that came by another one. */
#define STRAGGLERS_NS (50 * BT_NS_PER_MS)

enum what { POSTED, INBOUND, SENT };

struct wait {
    enum what what;
    enum bt_channel channel;
    uint32_t rank, target; /* POSTED */
};

static inline void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#else
    atomic_signal_fence(memory_order_seq_cst);
#endif
}

/* ---- what is waited for ---- */

/* The first far rank that this one takes in for and whose parcel is not whole; or size. */
static uint32_t inbound_missing(struct bt_exchange *x, enum bt_channel channel)
{
    uint32_t number = x->channels[channel].number;
    for (uint32_t r = 0; r < x->ranks.size; r++) {
        if (!bt_exchange_relays(x, r))
            continue;
        const struct bt_inbound *inbound = bt_exchange_inbound(x, channel, number, r);
        if (inbound->total == 0 || inbound->received < inbound->total)
            return r;
    }
    return x->ranks.size;
}

static bool is_done(struct bt_exchange *x, const struct wait *wait)
{
    switch (wait->what) {
    case POSTED:
        return bt_counter_has(bt_exchange_counter(x, wait->rank, wait->channel), wait->target);
    case INBOUND:
        return inbound_missing(x, wait->channel) == x->ranks.size;
    case SENT:
        return bt_net_unsent(x->net) == 0;
    }
    return false;
}

static uint32_t waited_for(struct bt_exchange *x, const struct wait *wait)
{
    if (wait->what == POSTED)
        return wait->rank;
    uint32_t missing = inbound_missing(x, wait->channel);
    return missing < x->ranks.size ? missing : x->ranks.rank;
}

/* ---- losses ---- */

static uint32_t pack(enum bt_over why, uint32_t culprit)
{
    return (uint32_t)why << 8 | culprit;
}

static enum bt_status describe(struct bt_exchange *x, enum bt_over why, uint32_t culprit)
{
    struct bt_error *error = &x->error;
    switch (why) {
    case BT_OVER_LEFT:
        return bt_error_set(error, BT_ERR_PEER_LOST, "rank %u has left the group", culprit);
    case BT_OVER_ENDED:
        return bt_error_set(error, BT_ERR_PEER_LOST, "rank %u has ended", culprit);
    case BT_OVER_CUT_OFF:
        return bt_error_set(error, BT_ERR_PEER_LOST, "the connection to rank %u is lost", culprit);
    case BT_OVER_SILENT:
        return bt_error_set(error, BT_ERR_DEADLINE, "rank %u said nothing for %.1f s", culprit,
                            (double)x->timeout_ns / BT_NS_PER_S);
    case BT_OVER_CONFUSED:
        return bt_error_set(error, BT_ERR_PROTOCOL,
                            "rank %u is in another call of the group or sent what makes no sense",
                            culprit);
    }
    return bt_error_set(error, BT_ERR_PROTOCOL, "rank %u is over for no known reason", culprit);
}

static void tell(struct bt_exchange *x, uint32_t over)
{
    struct bt_window_head *own = x->windows[x->ranks.rank].head;
    const struct bt_net_head head = {.source = x->ranks.rank, .type = BT_NET_OVER, .offset = over};

    atomic_store(&own->over, over);
    for (uint32_t c = 0; c < BT_WINDOW_CHANNELS; c++)
        bt_counter_wake(&own->counters[c]);
    for (uint32_t m = 0; m < x->ranks.machines && x->net; m++)
        if (m != bt_ranks_machine(&x->ranks))
            bt_net_send(x->net, bt_ranks_relay(&x->ranks, x->ranks.rank, m), &head, NULL, 0);
}

enum bt_status bt_exchange_fail(struct bt_exchange *x, enum bt_over why, uint32_t culprit)
{
    if (x->error.status != BT_OK)
        return x->error.status;
    describe(x, why, culprit);
    tell(x, pack(why, culprit));
    return x->error.status;
}

void bt_exchange_leave(struct bt_exchange *x)
{
    if (x->error.status == BT_OK)
        bt_exchange_fail(x, BT_OVER_LEFT, x->ranks.rank);
}

/* A rank that is out of the group says whose fault it is. */
static enum bt_status adopt(struct bt_exchange *x, uint32_t over)
{
    return bt_exchange_fail(x, (enum bt_over)(over >> 8), over & 0xff);
}

/* Whether a neighbour still owes something to the open exchange. Looked at after its fate was: the
 * last that it did counts. */
static bool owes(const struct bt_exchange *x, enum bt_channel channel, uint32_t rank)
{
    return !bt_counter_has(bt_exchange_counter(x, rank, channel),
                           bt_posted_all(x, x->channels[channel].number));
}

static void look_at_neighbours(struct bt_exchange *x, enum bt_channel channel, bool probe)
{
    uint32_t machine = bt_ranks_machine(&x->ranks), first = x->ranks.first[machine];
    for (uint32_t r = first; r < first + x->ranks.count[machine]; r++) {
        if (r == x->ranks.rank || !owes(x, channel, r))
            continue;
        uint32_t over = atomic_load(&x->windows[r].head->over);
        bool dead = over == 0 && probe && bt_process_probe(&x->processes[r]) == BT_PROCESS_DEAD;
        if ((over == 0 && !dead) || !owes(x, channel, r))
            continue;
        if (over != 0)
            adopt(x, over);
        else
            bt_exchange_fail(x, BT_OVER_ENDED, r);
    }
}

static void look_at_far_ranks(struct bt_exchange *x, enum bt_channel channel)
{
    uint32_t missing = inbound_missing(x, channel);
    if (missing == x->ranks.size)
        return;
    int64_t now_ns = bt_clock_now_ns();
    for (uint32_t r = missing; r < x->ranks.size; r++) {
        if (!bt_exchange_relays(x, r))
            continue;
        const struct bt_inbound *inbound =
            bt_exchange_inbound(x, channel, x->channels[channel].number, r);
        int64_t lost_ns = bt_net_lost_ns(x->net, r);
        if (inbound->total != 0 && inbound->received == inbound->total)
            continue;
        if (x->far_over[r] != 0)
            adopt(x, x->far_over[r]);
        else if (lost_ns != 0 && now_ns - lost_ns > STRAGGLERS_NS)
            bt_exchange_fail(x, BT_OVER_CUT_OFF, r);
    }
}

/* ---- waiting ---- */

static bool try_once(struct bt_exchange *x, const struct wait *wait)
{
    if (x->net)
        bt_net_progress(x->net);
    return is_done(x, wait) || x->error.status != BT_OK;
}

/* Whether it was done within x->spin_ns, which is adapted. */
static bool spin(struct bt_exchange *x, const struct wait *wait)
{
    int64_t start_ns = bt_clock_now_ns(), last_ns = start_ns;
    for (;;) {
        for (int i = 0; i < SPIN_ROUNDS; i++) {
            relax();
            if (try_once(x, wait)) {
                x->spin_ns = x->spin_ns * 2 > SPIN_MAX_NS ? SPIN_MAX_NS : x->spin_ns * 2;
                return true;
            }
        }
        int64_t now_ns = bt_clock_now_ns();
        if (now_ns - last_ns > PREEMPTION_NS)
            x->spin_ns = SPIN_MIN_NS;
        if (now_ns - start_ns >= x->spin_ns)
            break;
        last_ns = now_ns;
    }
    x->spin_ns = x->spin_ns / 2 < SPIN_MIN_NS ? SPIN_MIN_NS : x->spin_ns / 2;
    return false;
}

static void sleep_a_little(struct bt_exchange *x, const struct wait *wait, int64_t deadline_ns)
{
    int64_t left_ns = deadline_ns - bt_clock_now_ns(), most_ns = x->net ? SLEEP_NET_NS : SLEEP_NS;
    int64_t timeout_ns = left_ns < 0 ? 0 : left_ns < most_ns ? left_ns : most_ns;
    if (wait->what != POSTED) {
        bt_net_wait(x->net, timeout_ns);
        return;
    }
    struct bt_window_counter *counter = bt_exchange_counter(x, wait->rank, wait->channel);
    uint32_t seen = bt_counter_read(counter);
    if ((int32_t)(seen - wait->target) < 0)
        bt_counter_sleep(counter, seen, timeout_ns);
}

static enum bt_status wait_slowly(struct bt_exchange *x, const struct wait *wait)
{
    int64_t start_ns = bt_clock_now_ns(), probe_ns = start_ns + PROBE_NS;
    while (!try_once(x, wait)) {
        int64_t now_ns = bt_clock_now_ns();
        bool probe = now_ns >= probe_ns;
        if (wait->what != SENT)
            look_at_neighbours(x, wait->channel, probe);
        if (wait->what != SENT && x->net)
            look_at_far_ranks(x, wait->channel);
        if (probe)
            probe_ns = now_ns + PROBE_NS;
        if (is_done(x, wait) || x->error.status != BT_OK)
            break;
        if (now_ns - start_ns >= x->timeout_ns)
            return bt_exchange_fail(x, BT_OVER_SILENT, waited_for(x, wait));
        sleep_a_little(x, wait, start_ns + x->timeout_ns);
    }
    return x->error.status;
}

static enum bt_status wait_for(struct bt_exchange *x, const struct wait *wait)
{
    if (x->error.status != BT_OK)
        return x->error.status;
    if (is_done(x, wait))
        return BT_OK;
    return spin(x, wait) ? x->error.status : wait_slowly(x, wait);
}

enum bt_status bt_exchange_wait_posted(struct bt_exchange *x, enum bt_channel channel,
                                       uint32_t rank, uint32_t target)
{
    return wait_for(
        x, &(struct wait){.what = POSTED, .channel = channel, .rank = rank, .target = target});
}

enum bt_status bt_exchange_wait_inbound(struct bt_exchange *x, enum bt_channel channel)
{
    return wait_for(x, &(struct wait){.what = INBOUND, .channel = channel});
}

enum bt_status bt_exchange_wait_sent(struct bt_exchange *x, enum bt_channel channel)
{
    return wait_for(x, &(struct wait){.what = SENT, .channel = channel});
}
