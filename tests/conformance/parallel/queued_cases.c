/* What goes wrong while calls are queued is told where they are awaited, and ever after. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/conformance/parallel/cases.h"

#define FLOATS 64
/* Above what a thread may be kept from a busy machine's cores. */
#define SILENT_NS (6 * BT_NS_PER_S)

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
                                 .wait_timeout_ns = is_killed ? 0 : SILENT_NS,
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

/* A graph has calls of the group while it ends, and goes later: who waits learns of the loss first.
 */
static void lose_one_of_a_graph(const struct bt_group_options *options, const void *context)
{
    struct bt_group *group = join(options);
    float *x = buffer_alloc(FLOATS * sizeof(*x));
    (void)context;
    queue_calls(group);
    CHECK(bt_group_all_reduce(group, x, FLOATS) == BT_OK && await_calls(group) == BT_OK);
    record_calls();
    CHECK(bt_group_all_reduce(group, x, FLOATS) == BT_OK);
    struct bt_graph *graph = recorded_calls();
    repeat_calls(graph);
    CHECK(await_calls(group) == BT_OK);
    if (options->rank == 1)
        raise(SIGKILL);
    repeat_calls(graph);
    CHECK(await_calls(group) == BT_ERR_PEER_LOST);
    CHECK(strstr(bt_group_error(group), "a peer closed its connection"));
    check_over(group, BT_ERR_PEER_LOST, x);
    forget_calls(graph);
    stop_queueing(group);
    buffer_free(x);
    bt_group_destroy(group);
}

void test_killed_with_a_graph(void **state)
{
    (void)state;
    run_ranks(&(struct rig_case){.size = 3,
                                 .limits = limits,
                                 .fn = lose_one_of_a_graph,
                                 .victim = 1,
                                 .victim_end = RANK_KILLED});
}

/* Rank 0 has left before the others look for what it sent. */
static void send_and_leave(const struct bt_group_options *options, const void *context)
{
    _Atomic bool *is_sent = *(_Atomic bool *const *)context;
    struct bt_group *group = join(options);
    uint64_t word = options->rank == 0 ? 4711 : 0;
    CHECK(bt_group_barrier(group) == BT_OK);
    while (options->rank != 0 && !atomic_load(is_sent))
        ;
    CHECK(bt_group_broadcast(group, 0, &word, sizeof(word), NULL) == BT_OK);
    CHECK(word == 4711);
    if (options->rank == 0)
        atomic_store(is_sent, true);
    bt_group_destroy(group);
}

void test_what_was_sent_arrives(void **state)
{
    _Atomic bool *is_sent =
        mmap(NULL, sizeof(*is_sent), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    (void)state;
    assert_true(is_sent != MAP_FAILED);
    run_ranks(&(struct rig_case){
        .size = 3, .limits = limits, .fn = send_and_leave, .context = &is_sent, .victim = 3});
    munmap(is_sent, sizeof(*is_sent));
}

/* Rank 0 takes each expert for the next rank's. Both get rows that they take for the other's, and
 * who notices last may hear first that the other is gone. */
static void send_wrongly(const struct bt_group_options *options, const void *context)
{
    atomic_uint *mismatches = *(atomic_uint *const *)context;
    struct bt_group *group = join(options);
    uint32_t begin[9], ranks[8], *experts = buffer_alloc(2 * sizeof(*experts));
    float *x = buffer_alloc(16 * sizeof(*x)), *weights = buffer_alloc(2 * sizeof(*weights));
    struct bt_arrivals arrivals;
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
    atomic_fetch_add(mismatches, status == BT_ERR_MISMATCH);
    stop_queueing(group);
    buffer_free(experts);
    buffer_free(x);
    buffer_free(weights);
    bt_group_destroy(group);
}

void test_other_placement_while_queued(void **state)
{
    atomic_uint *mismatches =
        mmap(NULL, sizeof(*mismatches), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    (void)state;
    assert_true(mismatches != MAP_FAILED);
    run_ranks(&(struct rig_case){
        .size = 2, .limits = limits, .fn = send_wrongly, .context = &mismatches, .victim = 2});
    assert_true(atomic_load(mismatches) > 0);
    munmap(mismatches, sizeof(*mismatches));
}
