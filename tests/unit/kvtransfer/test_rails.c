/*
 * Several transports as one, each of them a simulated fabric of its own, so that one rail can be
 * held or broken while the others go on. Both ends run in this thread.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/random.h"
#include "kvtransfer/rails/blob.h"
#include "kvtransfer/rails/rails.h"
#include "kvtransfer/sim/sim.h"

#define POOL_BYTES  (UINT64_C(8) << 20)
#define INCARNATION UINT64_C(0x1234)
#define SEED        UINT64_C(99)

struct rig {
    struct kvt_sim *fabrics[KVT_RAILS_MAX];
    uint32_t fabric_count;
    struct kvt_transport *source, *target;
    struct kvt_transport *source_rails[KVT_RAILS_MAX];
    struct kvt_memory *source_memory, *target_memory;
    unsigned char *from, *to;
    void *address, *key;
    size_t address_size, key_size;
    struct kvt_peer *peer;
    struct kvt_origin origin;
    uint32_t done, lost, flushed, flush_lost;
};

static void on_done(void *context, enum bt_status status)
{
    struct rig *rig = context;

    rig->done += status == BT_OK;
    rig->lost += status != BT_OK;
}

static void on_flushed(void *context, enum bt_status status)
{
    struct rig *rig = context;

    rig->flushed += status == BT_OK;
    rig->flush_lost += status != BT_OK;
}

static void count_call(void *context, enum bt_status status)
{
    assert_int_equal(status, BT_OK);
    ++*(uint32_t *)context;
}

/* Rail i is on fabric i, so sides with fewer rails share the first fabrics. */
static struct kvt_transport *make_side(struct rig *rig, const uint32_t *rates, uint32_t count,
                                       struct kvt_transport **ret_rails)
{
    struct kvt_rail rails[KVT_RAILS_MAX] = {0};
    struct kvt_transport *side = NULL;

    for (uint32_t i = 0; i < count; i++) {
        assert_int_equal(kvt_sim_transport_create(rig->fabrics[i], NULL, &rails[i].transport),
                         BT_OK);
        snprintf(rails[i].device, sizeof(rails[i].device), "mlx5_%u:1", i);
        rails[i].rate_mbps = rates[i];
        ret_rails[i] = rails[i].transport;
    }
    assert_int_equal(kvt_rails_create(rails, count, NULL, &side), BT_OK);
    return side;
}

static void rig_connect(struct rig *rig)
{
    rig->origin.incarnation = INCARNATION;
    rig->origin.link++;
    assert_int_equal(rig->source->ops->connect(rig->source, rig->address, rig->address_size,
                                               rig->key, rig->key_size, &rig->origin, NULL,
                                               &rig->peer),
                     BT_OK);
}

static void rig_step(struct rig *rig)
{
    rig->source->ops->progress(rig->source);
    rig->target->ops->progress(rig->target);
}

static void rig_wait_state(struct rig *rig, enum kvt_peer_state wanted)
{
    int64_t deadline_ns = bt_clock_now_ns() + 60 * BT_NS_PER_S;

    while (rig->source->ops->peer_state(rig->peer) != wanted) {
        assert_true(bt_clock_now_ns() < deadline_ns);
        rig_step(rig);
    }
}

/* The fabrics are shared where the sides have unequal rails: line k needs source rail k % N on the
 * fabric of target rail k % M, so with unequal counts everything is on fabric 0. */
static void rig_init(struct rig *rig, const uint32_t *source_rates, uint32_t source_count,
                     const uint32_t *target_rates, uint32_t target_count)
{
    bool one_fabric = source_count != target_count;

    *rig = (struct rig){0};
    rig->fabric_count = one_fabric ? 1 : source_count;
    for (uint32_t i = 0; i < KVT_RAILS_MAX; i++)
        rig->fabrics[i] = i < rig->fabric_count ? kvt_sim_create(SEED + i) : rig->fabrics[0];
    rig->target = make_side(rig, target_rates, target_count, rig->source_rails);
    rig->source = make_side(rig, source_rates, source_count, rig->source_rails);
    assert_int_equal(
        rig->source->ops->memory_alloc(rig->source, POOL_BYTES, NULL, &rig->source_memory), BT_OK);
    assert_int_equal(
        rig->target->ops->memory_alloc(rig->target, POOL_BYTES, NULL, &rig->target_memory), BT_OK);
    rig->from = rig->source->ops->memory_base(rig->source_memory);
    rig->to = rig->target->ops->memory_base(rig->target_memory);
    for (uint64_t i = 0; i < POOL_BYTES; i += 8)
        memcpy(rig->from + i, &(uint64_t){bt_random_u64(SEED, i, 2) | 1}, 8);
    assert_int_equal(
        rig->target->ops->address(rig->target, NULL, &rig->address, &rig->address_size), BT_OK);
    assert_int_equal(rig->target->ops->memory_pack_key(rig->target, rig->target_memory, NULL,
                                                       &rig->key, &rig->key_size),
                     BT_OK);
}

static void rig_finish(struct rig *rig)
{
    if (rig->peer != NULL)
        rig->source->ops->peer_close(rig->peer);
    rig->source->ops->destroy(rig->source);
    rig->target->ops->destroy(rig->target);
    for (uint32_t i = 0; i < rig->fabric_count; i++)
        kvt_sim_destroy(rig->fabrics[i]);
    free(rig->address);
    free(rig->key);
}

/* As the target does when it is told of these lines of the link. */
static void cut_lines(struct rig *rig, uint64_t lines, uint32_t *calls)
{
    const struct kvt_cut cut = {
        .incarnation = INCARNATION, .link = rig->origin.link, .lines = lines};

    rig->target->ops->disconnect(rig->target, &cut, count_call, calls);
}

static void rig_up(struct rig *rig, const uint32_t *rates, uint32_t count)
{
    rig_init(rig, rates, count, rates, count);
    rig_connect(rig);
    rig_wait_state(rig, KVT_PEER_READY);
}

static void hold_all(struct rig *rig, bool held)
{
    for (uint32_t i = 0; i < rig->fabric_count; i++)
        kvt_sim_hold(rig->fabrics[i], held);
}

static void write_at(struct rig *rig, uint64_t offset, size_t bytes)
{
    enum bt_status status;

    do {
        status = rig->source->ops->write(rig->peer, rig->from + offset, bytes,
                                         (uintptr_t)rig->to + offset, on_done, rig);
        if (status == BT_ERR_EXHAUSTED)
            rig_step(rig);
    } while (status == BT_ERR_EXHAUSTED);
    assert_true(status >= 0);
    rig->done += status == BT_OK;
}

static void flush_and_wait(struct rig *rig)
{
    uint32_t before = rig->flushed;
    int64_t deadline_ns = bt_clock_now_ns() + 60 * BT_NS_PER_S;
    enum bt_status status = rig->source->ops->flush(rig->peer, on_flushed, rig);

    assert_true(status >= 0);
    rig->flushed += status == BT_OK;
    while (rig->flushed == before) {
        assert_true(bt_clock_now_ns() < deadline_ns);
        rig_step(rig);
    }
}

static struct kvt_rail_stats stats_of(const struct kvt_transport *side, uint32_t rail)
{
    struct kvt_rail_stats stats[KVT_RAILS_MAX];

    assert_true(side->ops->rail_stats(side, stats, KVT_RAILS_MAX) > rail);
    return stats[rail];
}

static uint64_t stray(const struct rig *rig)
{
    uint64_t sum = 0;

    for (uint32_t i = 0; i < rig->fabric_count; i++)
        sum += kvt_sim_stray(rig->fabrics[i]);
    return sum;
}

/* ---- the choice ---- */

static void choice_follows_rates(void **state)
{
    struct kvt_rails_load loads[] = {{.usable = true, .rate = 400000},
                                     {.usable = true, .rate = 200000},
                                     {.usable = false, .rate = 400000},
                                     {.usable = true, .rate = 100000}};
    uint64_t sums[4] = {0};
    (void)state;

    for (int i = 0; i < 7000; i++) {
        uint32_t chosen = kvt_rails_choose(loads, 4, 65536);
        loads[chosen].queued += 65536;
        loads[chosen].given += 65536;
        sums[chosen] += 1;
    }
    assert_in_range(sums[0], 3999, 4001);
    assert_in_range(sums[1], 1999, 2001);
    assert_int_equal(sums[2], 0);
    assert_in_range(sums[3], 999, 1001);
}

static void choice_avoids_the_backlog(void **state)
{
    struct kvt_rails_load loads[] = {{.usable = true, .rate = 100, .queued = 1 << 20},
                                     {.usable = true, .rate = 100}};
    (void)state;

    assert_int_equal(kvt_rails_choose(loads, 2, 4096), 1);
    loads[0].queued = 0;
    loads[1].given = 1; /* equal otherwise */
    assert_int_equal(kvt_rails_choose(loads, 2, 4096), 0);
    loads[0].given = 2;
    assert_int_equal(kvt_rails_choose(loads, 2, 4096), 1);
    loads[0].usable = loads[1].usable = false;
    assert_int_equal(kvt_rails_choose(loads, 2, 4096), 2);
    loads[1] = (struct kvt_rails_load){.usable = true, .rate = 1, .queued = UINT64_MAX / 2};
    loads[0] =
        (struct kvt_rails_load){.usable = true, .rate = UINT64_MAX / 2, .queued = UINT64_MAX / 2};
    assert_int_equal(kvt_rails_choose(loads, 2, 1), 0); /* no overflow */
}

/* ---- writing ---- */

static void writes_are_shared_by_rate(void **state)
{
    static const uint32_t rates[] = {400000, 200000, 100000};
    struct rig rig;
    (void)state;

    rig_up(&rig, rates, 3);
    hold_all(&rig, true);
    for (uint32_t i = 0; i < 700; i++)
        write_at(&rig, i * 8192, 8192);
    for (uint32_t i = 0; i < 3; i++) {
        struct kvt_rail_stats stats = stats_of(rig.source, i);
        uint64_t share = UINT64_C(700) * 8192 * rates[i] / 700000;
        assert_in_range(stats.bytes, share - 8192, share + 8192);
        assert_int_equal(stats.lines, 1);
        assert_string_equal(stats.transport, "sim");
    }
    hold_all(&rig, false);
    flush_and_wait(&rig);
    assert_int_equal(rig.done, 700);
    assert_memory_equal(rig.from, rig.to, 700 * 8192);
    assert_int_equal(rig.source->ops->peer_cuts(rig.peer), 0);
    rig_finish(&rig);
}

static void long_writes_use_all_rails(void **state)
{
    static const uint32_t rates[] = {100000, 100000, 100000, 100000};
    struct rig rig;
    (void)state;

    rig_up(&rig, rates, 4);
    hold_all(&rig, true);
    write_at(&rig, 4096, UINT64_C(4) << 20);
    for (uint32_t i = 0; i < 4; i++)
        assert_int_equal(stats_of(rig.source, i).bytes, UINT64_C(1) << 20);
    assert_int_equal(rig.done, 0);
    hold_all(&rig, false);
    flush_and_wait(&rig);
    assert_int_equal(rig.done, 1); /* once, not once a piece */
    assert_memory_equal(rig.from + 4096, rig.to + 4096, UINT64_C(4) << 20);
    assert_int_equal(rig.to[4095], 0);
    assert_int_equal(rig.to[4096 + (4 << 20)], 0);
    rig_finish(&rig);
}

static void unequal_sides_use_every_rail(void **state)
{
    static const uint32_t rates[] = {100000, 100000, 100000};
    static const uint32_t sides[][2] = {{1, 3}, {3, 1}, {2, 3}, {3, 2}};
    (void)state;

    for (size_t i = 0; i < sizeof(sides) / sizeof(sides[0]); i++) {
        struct kvt_rail_info infos[KVT_RAILS_MAX];
        struct rig rig;
        rig_init(&rig, rates, sides[i][0], rates, sides[i][1]);
        rig_connect(&rig);
        rig_wait_state(&rig, KVT_PEER_READY);
        assert_int_equal(rig.source->ops->peer_rails(rig.peer, infos, KVT_RAILS_MAX), 3);
        assert_string_equal(infos[0].device, "mlx5_0:1");
        assert_string_equal(infos[2].transport, "sim");
        for (uint32_t at = 0; at < 300; at++)
            write_at(&rig, at * 4096, 4096);
        flush_and_wait(&rig);
        assert_memory_equal(rig.from, rig.to, 300 * 4096);
        for (uint32_t rail = 0; rail < sides[i][0]; rail++)
            assert_true(stats_of(rig.source, rail).bytes > 0);
        rig_finish(&rig);
    }
}

/* Rule 1. */
static void a_write_outside_the_pool_is_refused(void **state)
{
    static const uint32_t rates[] = {100000, 100000};
    struct rig rig;
    enum bt_status status;
    (void)state;

    rig_up(&rig, rates, 2);
    status = rig.source->ops->write(rig.peer, rig.from, 4096, (uintptr_t)rig.to + POOL_BYTES - 100,
                                    on_done, &rig);
    assert_int_equal(status, BT_ERR_INVALID_ARGUMENT);
    /* in pieces, of which the last is outside: the peer is no good any more */
    status = rig.source->ops->write(rig.peer, rig.from, UINT64_C(1) << 20,
                                    (uintptr_t)rig.to + POOL_BYTES - (UINT64_C(1) << 20) + 8,
                                    on_done, &rig);
    assert_true(status >= 0);
    rig_wait_state(&rig, KVT_PEER_FAILED);
    rig.source->ops->peer_close(rig.peer);
    rig.peer = NULL;
    assert_int_equal(rig.lost, 1);
    rig_finish(&rig);
}

static void unflushed_writes_are_bounded(void **state)
{
    static const uint32_t rates[] = {100000, 100000};
    struct rig rig;
    (void)state;

    rig_up(&rig, rates, 2);
    for (uint32_t i = 0; i < 3 * KVT_RAILS_PIECES; i++) /* no flush of ours: the lines do it */
        write_at(&rig, (i % 2048) * 64, 64);
    for (int i = 0; i < 200; i++)
        rig_step(&rig);
    kvt_sim_break_links(rig.fabrics[0]); /* so little is left to repeat */
    flush_and_wait(&rig);
    assert_in_range(stats_of(rig.source, 0).repeats, 0, KVT_RAILS_FLUSH_EVERY - 1);
    assert_int_equal(rig.done, 3 * KVT_RAILS_PIECES);
    assert_memory_equal(rig.from, rig.to, 2048 * 64);
    rig_finish(&rig);
}

static void flush_of_nothing_is_over(void **state)
{
    static const uint32_t rates[] = {100000, 100000};
    struct rig rig;
    (void)state;

    rig_up(&rig, rates, 2);
    assert_int_equal(rig.source->ops->flush(rig.peer, on_flushed, &rig), BT_OK);
    hold_all(&rig, true);
    write_at(&rig, 0, 64);
    for (uint32_t i = 0; i < KVT_RAILS_FLUSHES; i++)
        assert_int_equal(rig.source->ops->flush(rig.peer, on_flushed, &rig), BT_IN_PROGRESS);
    assert_int_equal(rig.source->ops->flush(rig.peer, on_flushed, &rig), BT_ERR_EXHAUSTED);
    for (int i = 0; i < 100; i++)
        rig_step(&rig);
    assert_int_equal(rig.flushed, 0); /* the write has not arrived */
    hold_all(&rig, false);
    while (rig.flushed < KVT_RAILS_FLUSHES)
        rig_step(&rig);
    assert_memory_equal(rig.from, rig.to, 64);
    rig_finish(&rig);
}

/* ---- a rail fails ---- */

/* Three rails to so many; what was under way on rail 1 is stray, as the target makes no progress.
 */
static void post_and_break_rail_1(struct rig *rig, uint32_t target_rails)
{
    static const uint32_t rates[] = {100000, 100000, 100000};
    int64_t deadline_ns = bt_clock_now_ns() + 60 * BT_NS_PER_S;

    rig_init(rig, rates, 3, rates, target_rails);
    rig_connect(rig);
    rig_wait_state(rig, KVT_PEER_READY);
    hold_all(rig, true);
    for (uint32_t i = 0; i < 600; i++)
        write_at(rig, i * 4096, 4096);
    kvt_sim_break_links_of(rig->source_rails[1]);
    hold_all(rig, false);
    assert_int_equal(rig->source->ops->flush(rig->peer, on_flushed, rig), BT_IN_PROGRESS);
    while (rig->flushed == 0) {
        assert_true(bt_clock_now_ns() < deadline_ns);
        rig->source->ops->progress(rig->source);
    }
}

/* Rule 12. */
static void a_failed_rail_is_repeated_by_the_others(void **state)
{
    struct kvt_rail_info infos[3];
    struct rig rig;
    (void)state;

    post_and_break_rail_1(&rig, 3);
    assert_int_equal(rig.done, 600);
    assert_int_equal(rig.lost, 0);
    assert_memory_equal(rig.from, rig.to, 600 * 4096);
    assert_int_equal(rig.source->ops->peer_state(rig.peer), KVT_PEER_READY);
    assert_int_equal(rig.source->ops->peer_cuts(rig.peer), 1u << 1);
    assert_int_equal(rig.source->ops->peer_rails(rig.peer, infos, 3), 3);
    assert_false(infos[0].failed);
    assert_int_equal(stats_of(rig.source, 1).failures, 1);
    assert_in_range(stats_of(rig.source, 1).repeats, 150, 250);
    for (uint32_t i = 600; i < 700; i++) /* and it goes on */
        write_at(&rig, i * 4096, 4096);
    flush_and_wait(&rig);
    assert_memory_equal(rig.from, rig.to, 700 * 4096);
    rig_finish(&rig);
}

/* The rule of peer_cuts: without the cut what was under way overwrites the next owner's pages. */
static void check_late_writes(bool cut, uint32_t target_rails)
{
    struct rig rig;
    uint32_t cuts_done = 0;
    bool intact = true;
    post_and_break_rail_1(&rig, target_rails);
    assert_true(stray(&rig) > 100);
    if (cut)
        cut_lines(&rig, rig.source->ops->peer_cuts(rig.peer), &cuts_done);
    memset(rig.to, 0xee, 600 * 4096); /* the pages are somebody else's now */
    hold_all(&rig, false);
    for (int i = 0; i < 1000; i++)
        rig_step(&rig);
    for (uint32_t i = 0; i < 600 * 4096; i++)
        intact = intact && rig.to[i] == 0xee;
    assert_int_equal(cuts_done, cut);
    assert_int_equal(intact, cut);
    write_at(&rig, 0, 4096); /* the other rails of this source are as they were */
    flush_and_wait(&rig);
    for (uint32_t i = 0; i < 3; i++)
        assert_int_equal(stats_of(rig.source, i).failures, i == 1);
    assert_memory_equal(rig.from, rig.to, 4096);
    rig_finish(&rig);
}

/* Rule 12. */
static void late_writes_stop_with_the_cut_only(void **state)
{
    (void)state;

    for (uint32_t target_rails = 1; target_rails <= 3; target_rails++) {
        check_late_writes(false, target_rails);
        check_late_writes(true, target_rails);
    }
}

static const struct kvt_transport_ops *honest_ops;
static bool losing;

/* Done as far as this side can see, and never delivered: what a NIC that dies does. */
static enum bt_status losing_write(struct kvt_peer *peer, const void *source, size_t bytes,
                                   uint64_t remote_address, kvt_completion_fn *done, void *context)
{
    return losing ? BT_OK : honest_ops->write(peer, source, bytes, remote_address, done, context);
}

/* Rules 8 and 12. */
static void done_is_not_delivered(void **state)
{
    struct kvt_rail rails[2] = {{.device = "a:1", .rate_mbps = 1000},
                                {.device = "b:1", .rate_mbps = 1000}};
    static const uint32_t rates[] = {1000, 1000};
    struct kvt_transport_ops losing_ops;
    struct rig rig;
    (void)state;

    rig_init(&rig, rates, 2, rates, 2);
    rig.source->ops->destroy(rig.source);
    for (uint32_t i = 0; i < 2; i++)
        assert_int_equal(kvt_sim_transport_create(rig.fabrics[i], NULL, &rails[i].transport),
                         BT_OK);
    honest_ops = rails[1].transport->ops;
    losing_ops = *honest_ops;
    losing_ops.write = losing_write;
    rails[1].transport->ops = &losing_ops;
    assert_int_equal(kvt_rails_create(rails, 2, NULL, &rig.source), BT_OK);
    assert_int_equal(
        rig.source->ops->memory_alloc(rig.source, POOL_BYTES, NULL, &rig.source_memory), BT_OK);
    rig.from = rig.source->ops->memory_base(rig.source_memory);
    memset(rig.from, 0x5a, POOL_BYTES);
    rig_connect(&rig);
    rig_wait_state(&rig, KVT_PEER_READY);
    losing = true;
    for (uint32_t i = 0; i < 100; i++)
        write_at(&rig, i * 4096, 4096);
    while (rig.done < 100)
        rig_step(&rig);
    assert_memory_not_equal(rig.from, rig.to, 100 * 4096);
    kvt_sim_break_links(rig.fabrics[1]);
    flush_and_wait(&rig);
    assert_memory_equal(rig.from, rig.to, 100 * 4096);
    assert_int_equal(rig.done, 100); /* told once */
    assert_int_equal(rig.source->ops->peer_cuts(rig.peer), 1u << 1);
    losing = false;
    rig_finish(&rig);
}

/* Rule 12. */
static void a_rail_that_was_idle_needs_no_cut(void **state)
{
    static const uint32_t rates[] = {100000, 100000};
    struct rig rig;
    (void)state;

    rig_up(&rig, rates, 2);
    for (uint32_t i = 0; i < 50; i++)
        write_at(&rig, i * 4096, 4096);
    flush_and_wait(&rig);
    kvt_sim_break_links(rig.fabrics[0]);
    for (uint32_t i = 50; i < 100; i++)
        write_at(&rig, i * 4096, 4096);
    flush_and_wait(&rig);
    assert_memory_equal(rig.from, rig.to, 100 * 4096);
    assert_int_equal(rig.source->ops->peer_cuts(rig.peer), 0);
    rig_finish(&rig);
}

/* Rules 2 and 12. */
static void the_last_rail_takes_the_peer_with_it(void **state)
{
    static const uint32_t rates[] = {100000, 100000};
    struct rig rig;
    (void)state;

    rig_up(&rig, rates, 2);
    hold_all(&rig, true);
    for (uint32_t i = 0; i < 100; i++)
        write_at(&rig, i * 4096, 4096);
    assert_int_equal(rig.source->ops->flush(rig.peer, on_flushed, &rig), BT_IN_PROGRESS);
    kvt_sim_break_links(rig.fabrics[0]);
    kvt_sim_break_links(rig.fabrics[1]);
    rig_wait_state(&rig, KVT_PEER_FAILED);
    assert_true(rig.source->ops->peer_error(rig.peer)[0] != '\0');
    assert_int_equal(
        rig.source->ops->write(rig.peer, rig.from, 64, (uintptr_t)rig.to, on_done, &rig),
        BT_ERR_PEER_LOST);
    assert_int_equal(rig.source->ops->flush(rig.peer, on_flushed, &rig), BT_ERR_PEER_LOST);
    rig.source->ops->peer_close(rig.peer);
    assert_int_equal(rig.lost, 100);
    assert_int_equal(rig.flush_lost, 1);
    hold_all(&rig, false);
    rig_connect(&rig); /* both rails are back with the next connect */
    rig_wait_state(&rig, KVT_PEER_READY);
    assert_int_equal(stats_of(rig.source, 0).lines + stats_of(rig.source, 1).lines, 2);
    write_at(&rig, 0, 4096);
    flush_and_wait(&rig);
    rig_finish(&rig);
}

static void wait_lines(struct rig *rig, uint32_t rail, uint32_t lines)
{
    int64_t deadline_ns = bt_clock_now_ns() + 60 * BT_NS_PER_S;

    while (stats_of(rig->source, rail).lines != lines) {
        assert_true(bt_clock_now_ns() < deadline_ns);
        rig_step(rig);
        rig->source->ops->wait(rig->source, -1); /* the time-out is the rails' own */
    }
}

/* Rule 12. Under a new number, so that a cut of the old connection, late or twice, is none of it.
 */
static void a_rail_that_failed_comes_back(void **state)
{
    int64_t begin_ns = bt_clock_now_ns();
    uint64_t before;
    uint32_t cuts = 0;
    struct rig rig;
    (void)state;

    post_and_break_rail_1(&rig, 3);
    wait_lines(&rig, 1, 1);
    assert_true(bt_clock_now_ns() - begin_ns >= KVT_RAILS_AGAIN_MIN_NS);
    assert_int_equal(rig.source->ops->peer_cuts(rig.peer), 1u << 1);
    for (int i = 0; i < 2; i++)
        cut_lines(&rig, rig.source->ops->peer_cuts(rig.peer), &cuts);
    assert_int_equal(cuts, 2);
    before = stats_of(rig.source, 1).bytes;
    for (uint32_t i = 600; i < 900; i++)
        write_at(&rig, i * 4096, 4096);
    flush_and_wait(&rig);
    assert_memory_equal(rig.from, rig.to, 900 * 4096);
    assert_true(stats_of(rig.source, 1).bytes >= before + 50 * 4096);
    assert_int_equal(stats_of(rig.source, 1).lines, 1);
    hold_all(&rig, true);
    for (uint32_t i = 900; i < 1200; i++)
        write_at(&rig, i * 4096, 4096);
    kvt_sim_break_links_of(rig.source_rails[1]);
    hold_all(&rig, false);
    flush_and_wait(&rig);
    assert_memory_equal(rig.from, rig.to, 1200 * 4096);
    assert_int_equal(rig.source->ops->peer_cuts(rig.peer), 1u << 1 | 1u << 3); /* the fourth */
    rig_finish(&rig);
}

/* Rule 12. A try that came to nothing wrote nothing: its number, which the next one takes, is no
 * cut. */
static void a_try_that_fails_is_no_cut(void **state)
{
    uint64_t failures;
    struct rig rig;
    (void)state;

    post_and_break_rail_1(&rig, 3);
    failures = stats_of(rig.source, 1).failures;
    kvt_sim_hold(rig.fabrics[1], true); /* nobody connects */
    while (stats_of(rig.source, 1).failures == failures) {
        kvt_sim_break_links(rig.fabrics[1]);
        rig_step(&rig);
    }
    kvt_sim_hold(rig.fabrics[1], false);
    wait_lines(&rig, 1, 1);
    assert_int_equal(rig.source->ops->peer_cuts(rig.peer), 1u << 1);
    rig_finish(&rig);
}

/* Rule 12. A target may have closed all lines that it knew when a write was posted, and given the
 * pages to somebody else: no repeat goes over a line that came up since. */
static void repeats_go_over_lines_that_were_up(void **state)
{
    static const uint32_t rates[] = {100000, 100000};
    struct rig rig;
    (void)state;

    rig_up(&rig, rates, 2);
    kvt_sim_break_links(rig.fabrics[1]);
    kvt_sim_hold(rig.fabrics[0], true);
    while (stats_of(rig.source, 1).lines != 0)
        rig_step(&rig);
    for (uint32_t i = 0; i < 100; i++)
        write_at(&rig, i * 4096, 4096);
    wait_lines(&rig, 1, 1);
    cut_lines(&rig, 1, &(uint32_t){0}); /* of line 0: nothing of it arrives any more */
    kvt_sim_break_links(rig.fabrics[0]);
    kvt_sim_hold(rig.fabrics[0], false);
    rig_wait_state(&rig, KVT_PEER_FAILED);
    for (uint32_t i = 0; i < 100 * 4096; i++)
        assert_int_equal(rig.to[i], 0);
    rig.source->ops->peer_close(rig.peer);
    rig.peer = NULL;
    assert_int_equal(rig.done + rig.lost, 100);
    rig_finish(&rig);
}

/* Rule 12. Whatever fails when: what is flushed is there, every write ends once. */
static void random_failures(void **state)
{
    static const uint32_t rates[] = {400000, 100000, 200000, 100000};
    (void)state;

    for (uint64_t seed = 0; seed < 60; seed++) {
        struct rig rig;
        uint64_t draws = 0, end = 0;
        uint32_t written = 0, broken = 0;
        rig_up(&rig, rates, 4);
        for (int i = 0; i < 400; i++) {
            uint64_t draw = bt_random_u64(seed, draws++, 3) % 100;
            if (draw < 80 && end + 65536 <= POOL_BYTES) {
                write_at(&rig, end, 1 + draw * 700);
                end += 1 + draw * 700;
                written++;
            } else if (draw < 95) {
                rig_step(&rig);
            } else if (draw < 97) {
                flush_and_wait(&rig);
                if (memcmp(rig.from, rig.to, end) != 0)
                    fail_msg("seed %ju: flushed bytes are not there", (uintmax_t)seed);
            } else if (broken < 3 && draw == 97) {
                kvt_sim_break_links(rig.fabrics[broken++]);
            }
        }
        flush_and_wait(&rig);
        while (rig.done < written)
            rig_step(&rig);
        if (memcmp(rig.from, rig.to, end) != 0 || rig.done != written || rig.lost != 0)
            fail_msg("seed %ju: %u of %u", (uintmax_t)seed, rig.done, written);
        rig_finish(&rig);
    }
}

/* ---- connecting ---- */

static void a_rail_that_never_comes_up_is_left_out(void **state)
{
    static const uint32_t rates[] = {100000, 100000};
    struct rig rig;
    int64_t begin_ns = bt_clock_now_ns();
    (void)state;

    rig_init(&rig, rates, 2, rates, 2);
    kvt_sim_hold(rig.fabrics[1], true);
    rig_connect(&rig);
    while (rig.source->ops->peer_state(rig.peer) == KVT_PEER_CONNECTING) {
        rig_step(&rig);
        rig.source->ops->wait(rig.source, -1); /* the time-out is the rails' own */
        assert_true(bt_clock_now_ns() - begin_ns < 60 * BT_NS_PER_S);
    }
    assert_true(bt_clock_now_ns() - begin_ns >= KVT_RAILS_STRAGGLE_NS);
    assert_int_equal(rig.source->ops->peer_state(rig.peer), KVT_PEER_READY);
    write_at(&rig, 0, 4096);
    flush_and_wait(&rig);
    assert_memory_equal(rig.from, rig.to, 4096);
    assert_int_equal(rig.source->ops->peer_cuts(rig.peer), 0);
    rig_finish(&rig);
}

static void expect_refused(struct rig *rig, const void *address, size_t address_size,
                           const void *key, size_t key_size)
{
    struct kvt_peer *peer = NULL;
    struct bt_error error = {0};

    assert_true(rig->source->ops->connect(rig->source, address, address_size, key, key_size,
                                          &rig->origin, &error, &peer) < 0);
    assert_null(peer);
    assert_true(error.text[0] != '\0');
}

/* Rule 9. */
static void garbage_is_refused(void **state)
{
    static const uint32_t rates[] = {100000, 100000, 100000};
    struct rig rig;
    unsigned char *copy;
    (void)state;

    rig_init(&rig, rates, 3, rates, 3);
    copy = malloc(rig.address_size + rig.key_size);
    assert_non_null(copy);
    for (size_t i = 0; i < rig.address_size; i++) {
        memcpy(copy, rig.address, rig.address_size);
        copy[i] ^= (unsigned char)(1 + i % 255);
        expect_refused(&rig, copy, rig.address_size, rig.key, rig.key_size);
        expect_refused(&rig, rig.address, i, rig.key, rig.key_size);
    }
    for (size_t i = 0; i < rig.key_size; i++) {
        memcpy(copy, rig.key, rig.key_size);
        copy[i] ^= (unsigned char)(1 + i % 255);
        expect_refused(&rig, rig.address, rig.address_size, copy, rig.key_size);
        expect_refused(&rig, rig.address, rig.address_size, rig.key, i);
    }
    expect_refused(&rig, rig.key, rig.key_size, rig.address, rig.address_size);
    expect_refused(&rig, NULL, 0, NULL, 0);
    free(copy);
    rig_finish(&rig);
}

/* Rule 9. Well sealed, as a hostile peer would: the counts and lengths inside are checked, too. */
static void hostile_blobs_are_refused(void **state)
{
    static const struct {
        const char *what;
        uint32_t words[6];
        size_t bytes;
    } hostile[] = {
        {"nothing", {0}, 0},
        {"half a count", {1}, 2},
        {"no rails", {0}, 4},
        {"too many", {KVT_RAILS_MAX + 1, 1, 4, 0}, 16},
        {"far too many", {UINT32_MAX, 1, 4, 0}, 16},
        {"a cut header", {1, 1}, 8},
        {"longer than the blob", {1, 1, 5, 0}, 16},
        {"much longer", {1, 1, UINT32_MAX, 0}, 16},
        {"empty", {1, 1, 0}, 12},
        {"no rate", {1, 0, 4, 0}, 16},
        {"one is missing", {2, 1, 4, 0}, 16},
        {"bytes too many", {1, 1, 4, 0, 0}, 20},
    };
    struct kvt_rails_part parts[KVT_RAILS_MAX];
    uint32_t count;
    (void)state;

    for (size_t i = 0; i < sizeof(hostile) / sizeof(hostile[0]); i++) {
        struct bt_error error = {0};
        void *blob;
        size_t size;
        assert_int_equal(kvt_blob_wrap(KVT_BLOB_RAILS_KEY, hostile[i].words, hostile[i].bytes, NULL,
                                       &blob, &size),
                         BT_OK);
        if (kvt_rails_unpack(KVT_BLOB_RAILS_KEY, blob, size, &error, parts, &count) !=
            BT_ERR_PROTOCOL)
            fail_msg("%s was accepted", hostile[i].what);
        free(blob);
    }
    uint32_t good[] = {1, 7, 4, 42};
    void *blob;
    size_t size;
    assert_int_equal(kvt_blob_wrap(KVT_BLOB_RAILS_KEY, good, sizeof(good), NULL, &blob, &size),
                     BT_OK);
    assert_int_equal(kvt_rails_unpack(KVT_BLOB_RAILS_KEY, blob, size, NULL, parts, &count), BT_OK);
    assert_int_equal(count, 1);
    assert_int_equal(parts[0].rate_mbps, 7);
    assert_int_equal(parts[0].size, 4);
    assert_int_equal(memcmp(parts[0].bytes, &good[3], 4), 0);
    free(blob);
}

/* Rule 2. */
static void disconnect_cuts_every_rail(void **state)
{
    static const uint32_t rates[] = {100000, 100000, 100000};
    struct rig rig;
    uint32_t calls = 0;
    (void)state;

    rig_up(&rig, rates, 3);
    hold_all(&rig, true);
    for (uint32_t i = 0; i < 300; i++)
        write_at(&rig, i * 4096, 4096);
    rig.source->ops->peer_close(rig.peer);
    rig.peer = NULL;
    assert_true(stray(&rig) >= 300 - 3);
    cut_lines(&rig, KVT_ALL_LINES, &calls);
    assert_int_equal(calls, 1);
    assert_int_equal(stray(&rig), 0);
    cut_lines(&rig, ~UINT64_C(0xff), &calls);
    assert_int_equal(calls, 2); /* lines that are not there */
    rig_finish(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(choice_follows_rates),
        cmocka_unit_test(choice_avoids_the_backlog),
        cmocka_unit_test(writes_are_shared_by_rate),
        cmocka_unit_test(long_writes_use_all_rails),
        cmocka_unit_test(unequal_sides_use_every_rail),
        cmocka_unit_test(a_write_outside_the_pool_is_refused),
        cmocka_unit_test(unflushed_writes_are_bounded),
        cmocka_unit_test(flush_of_nothing_is_over),
        cmocka_unit_test(a_failed_rail_is_repeated_by_the_others),
        cmocka_unit_test(late_writes_stop_with_the_cut_only),
        cmocka_unit_test(done_is_not_delivered),
        cmocka_unit_test(a_rail_that_was_idle_needs_no_cut),
        cmocka_unit_test(the_last_rail_takes_the_peer_with_it),
        cmocka_unit_test(a_rail_that_failed_comes_back),
        cmocka_unit_test(a_try_that_fails_is_no_cut),
        cmocka_unit_test(repeats_go_over_lines_that_were_up),
        cmocka_unit_test(random_failures),
        cmocka_unit_test(a_rail_that_never_comes_up_is_left_out),
        cmocka_unit_test(garbage_is_refused),
        cmocka_unit_test(hostile_blobs_are_refused),
        cmocka_unit_test(disconnect_cuts_every_rail),
    };

    bt_log_init("test", BT_LOG_ERROR);
    printf("seed %ju\n", (uintmax_t)SEED);
    return cmocka_run_group_tests_name("rails", tests, NULL, NULL);
}
