/* What goes wrong while calls are queued is told where they are awaited, and ever after. */
#include <signal.h>
#include <unistd.h>

#include "tests/conformance/parallel/cases.h"

#define FLOATS 64

static const struct bt_group_limits limits = {.floats = FLOATS,
                                              .broadcast_bytes = 64,
                                              .rows = 4,
                                              .hidden = 16,
                                              .experts = 8,
                                              .experts_per_token = 2};

static void check_over(struct bt_group *group, enum bt_status status, float *x)
{
    CHECK(strcmp(bt_group_error(group), "") != 0);
    CHECK(bt_group_all_reduce(group, x, FLOATS) == status);
    CHECK(await_calls(group) == status);
    CHECK(bt_group_barrier(group) == status);
}

static void lose_one(const struct bt_group_options *options, const void *context)
{
    const bool *is_killed = context;
    struct bt_group *group = join(options);
    float *x = buffer_alloc(FLOATS * sizeof(*x));
    queue_calls(group);
    CHECK(bt_group_barrier(group) == BT_OK);
    if (options->rank == 1)
        raise(*is_killed ? SIGKILL : SIGSTOP);
    enum bt_status status = BT_OK;
    for (int i = 0; i < 3 && status == BT_OK; i++)
        status = bt_group_all_reduce(group, x, FLOATS);
    if (status == BT_OK)
        status = await_calls(group);
    CHECK(status == BT_ERR_PEER_LOST || status == BT_ERR_DEADLINE);
    CHECK(!*is_killed || status == BT_ERR_PEER_LOST); /* long before the deadline */
    check_over(group, status, x);
    stop_queueing(group);
    buffer_free(x);
    bt_group_destroy(group);
}

static void run_losing(bool is_killed)
{
    run_ranks(&(struct rig_case){.size = 3,
                                 .limits = limits,
                                 .wait_timeout_ns = is_killed ? 0 : BT_NS_PER_S,
                                 .fn = lose_one,
                                 .context = &is_killed,
                                 .victim = 1,
                                 .victim_end = is_killed ? RANK_KILLED : RANK_STOPPED});
}

void test_killed_while_queued(void **state)
{
    (void)state;
    run_losing(true);
}

void test_silent_while_queued(void **state)
{
    (void)state;
    run_losing(false);
}

/* Rank 0 takes each expert for the next rank's. */
static void send_wrongly(const struct bt_group_options *options, const void *context)
{
    struct bt_group *group = join(options);
    uint32_t begin[9], ranks[8], *experts = buffer_alloc(2 * sizeof(*experts));
    float *x = buffer_alloc(16 * sizeof(*x)), *weights = buffer_alloc(2 * sizeof(*weights));
    struct bt_arrivals arrivals;
    (void)context;
    for (uint32_t e = 0; e <= 8; e++)
        begin[e] = e;
    for (uint32_t e = 0; e < 8; e++)
        ranks[e] = (e + (options->rank == 0)) % options->size;
    experts[0] = 2;
    experts[1] = 5;
    const struct bt_routing routing = {.experts = experts, .weights = weights};
    const struct bt_placement_layer placement = {.begin = begin, .ranks = ranks};
    queue_calls(group);
    CHECK(bt_group_queues(group, BT_DISPATCH_LATENCY));
    enum bt_status status =
        bt_group_dispatch_begin(group, BT_DISPATCH_LATENCY, x, 1, &routing, &placement, BT_F32);
    if (status == BT_OK)
        status = bt_group_dispatch_finish(group, &arrivals);
    if (status == BT_OK)
        status = await_calls(group);
    CHECK(status == BT_ERR_MISMATCH || status == BT_ERR_PEER_LOST);
    CHECK(options->rank != 0 || status == BT_ERR_MISMATCH || options->size > 2);
    stop_queueing(group);
    buffer_free(experts);
    buffer_free(x);
    buffer_free(weights);
    bt_group_destroy(group);
}

void test_other_placement_while_queued(void **state)
{
    (void)state;
    run_ranks(&(struct rig_case){.size = 2, .limits = limits, .fn = send_wrongly, .victim = 2});
}
