/* Every path of the landing table, then a seeded walk against a shadow that knows who may write. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/clock.h"
#include "common/base/random.h"
#include "kvtransfer/landing.h"

#define PAGES       40
#define FIRST_EPOCH 1000
#define LEASE_NS    100
#define PEER        7

static const struct bt_process_id process = {.host = "h", .pid = 42, .start_ticks = 3};

struct rig {
    struct bt_page_pool *pool;
    struct kvt_landing_table *table;
    uint32_t failures;
    uint64_t failed_epoch;
    enum bt_status failed_status;
    enum kvt_landing_state failed_state;
    void *failed_user;
};

static void on_failed(void *context, const struct kvt_landing *landing, enum bt_status status,
                      const char *why)
{
    struct rig *rig = context;

    assert_non_null(why);
    rig->failures++;
    rig->failed_epoch = landing->epoch;
    rig->failed_status = status;
    rig->failed_state = landing->state;
    rig->failed_user = landing->user;
}

static void set_up(struct rig *rig)
{
    memset(rig, 0, sizeof(*rig));
    rig->pool = bt_page_pool_create(PAGES);
    rig->table = kvt_landing_table_create(rig->pool, FIRST_EPOCH, LEASE_NS, on_failed, rig);
}

static void tear_down(struct rig *rig)
{
    kvt_landing_table_destroy(rig->table);
    bt_page_pool_destroy(rig->pool);
}

static uint32_t pages_in(const struct rig *rig, enum bt_page_state state)
{
    return bt_page_pool_count(rig->pool, state);
}

static int64_t dead_pids[2];

/* Hosts are told apart by their first letter: 'e' is elsewhere. */
static enum kvt_writer_state state_by_pid(void *context, const struct bt_process_id *writer)
{
    (void)context;
    if (writer->host[0] == 'e')
        return KVT_WRITER_ELSEWHERE;
    return writer->pid == dead_pids[0] || writer->pid == dead_pids[1] ? KVT_WRITER_DEAD
                                                                      : KVT_WRITER_ALIVE;
}

static enum kvt_writer_state all_dead(void *context, const struct bt_process_id *writer)
{
    (void)context, (void)writer;
    return KVT_WRITER_DEAD;
}

/* Proven dead, and cut off. */
static void peer_dies(struct kvt_landing_table *table, uint64_t incarnation)
{
    kvt_landing_peer_lost(table, incarnation, all_dead, NULL, 0);
    kvt_landing_peer_gone(table, incarnation);
}

static bool is_lost(struct kvt_landing_table *table, int64_t silent_ns)
{
    return kvt_landing_peer_lost(table, PEER, state_by_pid, NULL, silent_ns);
}

static struct kvt_landing *reserve(struct rig *rig, uint64_t request, uint32_t tokens)
{
    struct kvt_landing *landing = NULL;

    assert_int_equal(kvt_landing_reserve(rig->table, request, tokens, 0, 0, NULL, &landing), BT_OK);
    return landing;
}

static uint64_t lease(struct rig *rig, uint64_t request, uint32_t tokens)
{
    uint64_t epoch = reserve(rig, request, tokens)->epoch;

    assert_true(kvt_landing_lease(rig->table, request, epoch, PEER, &process, 0));
    return epoch;
}

static uint64_t verifying(struct rig *rig, uint64_t request, uint32_t tokens)
{
    uint64_t epoch = lease(rig, request, tokens);
    struct kvt_landing *landing;

    assert_int_equal(
        kvt_landing_done(rig->table, request, epoch, tokens, (tokens + 63) / 64, NULL, &landing),
        KVT_DONE_VERIFY);
    return epoch;
}

static uint64_t ready(struct rig *rig, uint64_t request, uint32_t tokens)
{
    uint64_t epoch = verifying(rig, request, tokens);
    struct kvt_landing *landing;

    assert_int_equal(kvt_landing_verified(rig->table, request, epoch, true, &landing), BT_OK);
    return epoch;
}

/* Rules 1 and 5. */
static void test_the_whole_way(void **state)
{
    struct rig rig;
    struct kvt_landing *landing, *same;
    uint64_t epoch;

    (void)state;
    set_up(&rig);
    assert_int_equal(kvt_landing_reserve(rig.table, 5, 130, 70, 0, NULL, &landing), BT_OK);
    epoch = landing->epoch;
    assert_int_equal(epoch, FIRST_EPOCH);
    assert_int_equal(landing->page_count, 4); /* 200 tokens */
    assert_int_equal(pages_in(&rig, BT_PAGE_RESERVED), 4);
    assert_ptr_equal(kvt_landing_find(rig.table, 5), landing);
    assert_true(kvt_landing_lease(rig.table, 5, epoch, PEER, &process, 10));
    assert_int_equal(pages_in(&rig, BT_PAGE_LANDING), 4);
    assert_int_equal(landing->lease_until_ns, 110);
    assert_int_equal(landing->writer_count, 1);
    assert_int_equal(landing->writers[0].pid, 42);
    assert_int_equal(kvt_landing_done(rig.table, 5, epoch, 130, 3, NULL, &same), KVT_DONE_VERIFY);
    assert_ptr_equal(same, landing);
    assert_int_equal(kvt_landing_count(rig.table, KVT_LANDING_VERIFYING), 1);
    assert_int_equal(kvt_landing_done(rig.table, 5, epoch, 130, 3, NULL, &same), KVT_DONE_WAIT);
    assert_int_equal(kvt_landing_verified(rig.table, 5, epoch, true, &same), BT_OK);
    assert_int_equal(pages_in(&rig, BT_PAGE_READY), 4);
    assert_int_equal(kvt_landing_done(rig.table, 5, epoch, 130, 3, NULL, &same),
                     KVT_DONE_DUPLICATE);
    assert_false(kvt_landing_lease(rig.table, 5, epoch, PEER, &process, 20)); /* no more writes */
    kvt_landing_quiesced(rig.table, 5, epoch);                                /* harmless */
    kvt_landing_tick(rig.table, 1 << 20);
    peer_dies(rig.table, PEER);
    assert_int_equal(kvt_landing_grow(rig.table, landing, 2), BT_OK);
    assert_int_equal(landing->page_count, 6);
    assert_int_equal(pages_in(&rig, BT_PAGE_READY), 6);
    assert_int_equal(kvt_landing_grow(rig.table, landing, PAGES - 5), BT_ERR_EXHAUSTED);
    assert_int_equal(landing->page_count, 6);
    kvt_landing_release(rig.table, 5, epoch);
    assert_int_equal(pages_in(&rig, BT_PAGE_FREE), PAGES);
    assert_null(kvt_landing_find(rig.table, 5));
    assert_int_equal(rig.failures, 0);
    tear_down(&rig);
}

/* Rule 1. */
static void test_reserve_refusals(void **state)
{
    struct rig rig;
    struct kvt_landing *landing;
    struct bt_error error;

    (void)state;
    set_up(&rig);
    assert_int_equal(kvt_landing_reserve(rig.table, 1, 0, 64, 0, &error, &landing),
                     BT_ERR_INVALID_ARGUMENT);
    assert_int_equal(kvt_landing_reserve(rig.table, 1, PAGES * 64, 1, 0, &error, &landing),
                     BT_ERR_EXHAUSTED);
    assert_int_equal(kvt_landing_reserve(rig.table, 1, UINT32_MAX, UINT32_MAX, 0, &error, &landing),
                     BT_ERR_EXHAUSTED);
    reserve(&rig, 1, 64);
    assert_int_equal(kvt_landing_reserve(rig.table, 1, 64, 0, 0, &error, &landing),
                     BT_ERR_ALREADY_EXISTS);
    assert_int_equal(pages_in(&rig, BT_PAGE_FREE), PAGES - 1);
    tear_down(&rig);
}

/* Rule 1. */
static void test_epochs_are_never_used_twice(void **state)
{
    struct rig rig;
    uint64_t last = 0;

    (void)state;
    set_up(&rig);
    for (int i = 0; i < 10; i++) {
        uint64_t epoch = reserve(&rig, 3, 64)->epoch;
        assert_true(epoch > last);
        last = epoch;
        assert_int_equal(kvt_landing_cancel(rig.table, 3, 0), BT_OK);
    }
    assert_int_equal(pages_in(&rig, BT_PAGE_FREE), PAGES);
    tear_down(&rig);
}

/* Rule 1. */
static void test_lease_belongs_to_one_incarnation(void **state)
{
    struct rig rig;
    uint64_t epoch;

    (void)state;
    set_up(&rig);
    epoch = lease(&rig, 1, 64);
    assert_false(kvt_landing_lease(rig.table, 1, epoch, PEER + 1, &process, 50));
    assert_false(kvt_landing_lease(rig.table, 1, epoch + 1, PEER, &process, 50));
    assert_false(kvt_landing_lease(rig.table, 2, epoch, PEER, &process, 50));
    assert_int_equal(kvt_landing_find(rig.table, 1)->lease_until_ns, LEASE_NS);
    assert_true(kvt_landing_lease(rig.table, 1, epoch, PEER, &process, 50));
    assert_int_equal(kvt_landing_find(rig.table, 1)->lease_until_ns, 50 + LEASE_NS);
    assert_true(kvt_landing_lease(rig.table, 1, epoch, PEER, &process, 20)); /* never shorter */
    assert_int_equal(kvt_landing_next_deadline_ns(rig.table), 50 + LEASE_NS);
    tear_down(&rig);
}

/* Rule 2. */
static void test_lease_expiry_quarantines(void **state)
{
    struct rig rig;
    uint64_t epoch;
    struct kvt_landing *landing;
    struct bt_error error;

    (void)state;
    set_up(&rig);
    epoch = lease(&rig, 1, 64);
    kvt_landing_find(rig.table, 1)->user = &rig;
    kvt_landing_tick(rig.table, LEASE_NS - 1);
    assert_int_equal(rig.failures, 0);
    kvt_landing_tick(rig.table, LEASE_NS);
    assert_int_equal(rig.failures, 1);
    assert_int_equal(rig.failed_status, BT_ERR_DEADLINE);
    assert_ptr_equal(rig.failed_user, &rig);
    assert_int_equal(pages_in(&rig, BT_PAGE_QUARANTINED), 1);
    assert_null(kvt_landing_find(rig.table, 1));
    assert_false(kvt_landing_lease(rig.table, 1, epoch, PEER, &process, LEASE_NS));
    assert_int_equal(kvt_landing_done(rig.table, 1, epoch, 64, 1, &error, &landing),
                     KVT_DONE_REFUSED);
    assert_int_equal(error.status, BT_ERR_STALE);
    kvt_landing_tick(rig.table, 1 << 30); /* time alone frees nothing */
    assert_int_equal(pages_in(&rig, BT_PAGE_QUARANTINED), 1);
    reserve(&rig, 1, 64); /* over: the request may try again, in other pages */
    kvt_landing_quiesced(rig.table, 1, epoch);
    assert_int_equal(pages_in(&rig, BT_PAGE_QUARANTINED), 0);
    assert_int_equal(pages_in(&rig, BT_PAGE_RESERVED), 1);
    kvt_landing_quiesced(rig.table, 1, epoch); /* twice is harmless */
    assert_int_equal(rig.failures, 1);
    tear_down(&rig);
}

/* Rule 7. */
static void test_reservation_without_lease_ends(void **state)
{
    struct rig rig;

    (void)state;
    set_up(&rig);
    reserve(&rig, 1, 64);
    assert_int_equal(kvt_landing_next_deadline_ns(rig.table), KVT_RESERVED_LEASES * LEASE_NS);
    kvt_landing_tick(rig.table, KVT_RESERVED_LEASES * LEASE_NS - 1);
    assert_int_equal(rig.failures, 0);
    kvt_landing_tick(rig.table, KVT_RESERVED_LEASES * LEASE_NS);
    assert_int_equal(rig.failures, 1);
    assert_int_equal(pages_in(&rig, BT_PAGE_FREE), PAGES); /* nobody may write: no quarantine */
    assert_int_equal(kvt_landing_next_deadline_ns(rig.table), BT_NEVER_NS);
    tear_down(&rig);
}

/* Rules 5 and 6. */
static void test_done_refusals(void **state)
{
    struct rig rig;
    struct kvt_landing *landing;
    struct bt_error error;
    uint64_t epoch;

    (void)state;
    set_up(&rig);
    epoch = reserve(&rig, 1, 100)->epoch;
    assert_int_equal(kvt_landing_done(rig.table, 1, epoch, 100, 2, &error, &landing),
                     KVT_DONE_REFUSED);
    assert_int_equal(error.status, BT_ERR_PROTOCOL);
    assert_int_equal(pages_in(&rig, BT_PAGE_RESERVED), 2);
    assert_true(kvt_landing_lease(rig.table, 1, epoch, PEER, &process, 0));
    assert_int_equal(kvt_landing_done(rig.table, 1, epoch - 1, 100, 2, &error, &landing),
                     KVT_DONE_REFUSED);
    assert_int_equal(error.status, BT_ERR_STALE);
    assert_int_equal(pages_in(&rig, BT_PAGE_LANDING), 2);
    assert_int_equal(kvt_landing_done(rig.table, 1, epoch, 100, 1, &error, &landing),
                     KVT_DONE_REFUSED);
    assert_int_equal(error.status, BT_ERR_CORRUPT);
    assert_int_equal(rig.failed_status, BT_ERR_CORRUPT);
    assert_int_equal(pages_in(&rig, BT_PAGE_QUARANTINED), 2);
    epoch = lease(&rig, 2, 100);
    assert_int_equal(kvt_landing_done(rig.table, 2, epoch, 99, 2, &error, &landing),
                     KVT_DONE_REFUSED);
    assert_int_equal(rig.failures, 2);
    tear_down(&rig);
}

/* Rule 6. */
static void test_verdicts(void **state)
{
    struct rig rig;
    struct kvt_landing *landing;
    uint64_t epoch;

    (void)state;
    set_up(&rig);
    epoch = verifying(&rig, 1, 64);
    peer_dies(rig.table, PEER); /* its writes are over: nothing to do with it */
    kvt_landing_tick(rig.table, 1 << 20);
    assert_int_equal(kvt_landing_verified(rig.table, 1, epoch, false, &landing), BT_ERR_CORRUPT);
    assert_int_equal(pages_in(&rig, BT_PAGE_FREE), PAGES);
    assert_int_equal(kvt_landing_verified(rig.table, 1, epoch, true, &landing), BT_ERR_STALE);

    epoch = verifying(&rig, 1, 64);
    assert_int_equal(kvt_landing_cancel(rig.table, 1, epoch), BT_OK);
    assert_null(kvt_landing_find(rig.table, 1));
    assert_int_equal(pages_in(&rig, BT_PAGE_LANDING), 1); /* being read */
    reserve(&rig, 1, 64);
    assert_int_equal(kvt_landing_verified(rig.table, 1, epoch, true, &landing), BT_ERR_CANCELLED);
    assert_int_equal(pages_in(&rig, BT_PAGE_FREE), PAGES - 1);
    assert_non_null(kvt_landing_find(rig.table, 1)); /* the new one is untouched */
    assert_int_equal(rig.failures, 0);
    tear_down(&rig);
}

/* Rules 2 and 5. */
static void test_cancel(void **state)
{
    struct rig rig;
    uint64_t epoch;

    (void)state;
    set_up(&rig);
    assert_int_equal(kvt_landing_cancel(rig.table, 1, 0), BT_ERR_NOT_FOUND);
    epoch = reserve(&rig, 1, 64)->epoch;
    assert_int_equal(kvt_landing_cancel(rig.table, 1, epoch + 1), BT_ERR_STALE);
    assert_int_equal(kvt_landing_cancel(rig.table, 1, epoch), BT_OK);
    assert_int_equal(pages_in(&rig, BT_PAGE_FREE), PAGES);
    epoch = lease(&rig, 1, 64);
    assert_int_equal(kvt_landing_cancel(rig.table, 1, 0), BT_OK);
    assert_int_equal(pages_in(&rig, BT_PAGE_QUARANTINED), 1);
    assert_int_equal(kvt_landing_cancel(rig.table, 1, 0), BT_ERR_NOT_FOUND);
    kvt_landing_quiesced(rig.table, 2, epoch); /* another request's epoch */
    assert_int_equal(pages_in(&rig, BT_PAGE_QUARANTINED), 1);
    kvt_landing_quiesced(rig.table, 1, epoch);
    assert_int_equal(pages_in(&rig, BT_PAGE_FREE), PAGES);
    epoch = ready(&rig, 1, 64);
    assert_int_equal(kvt_landing_cancel(rig.table, 1, epoch), BT_ERR_ALREADY_EXISTS);
    assert_int_equal(pages_in(&rig, BT_PAGE_READY), 1);
    assert_int_equal(rig.failures, 0);
    tear_down(&rig);
}

/* Rule 5. */
static void test_quiesced_without_done(void **state)
{
    struct rig rig;
    uint64_t epoch;

    (void)state;
    set_up(&rig);
    epoch = lease(&rig, 1, 64);
    kvt_landing_quiesced(rig.table, 1, epoch);
    assert_int_equal(rig.failures, 1);
    assert_int_equal(rig.failed_status, BT_ERR_CANCELLED);
    assert_int_equal(pages_in(&rig, BT_PAGE_FREE), PAGES);
    epoch = reserve(&rig, 1, 64)->epoch;
    kvt_landing_quiesced(rig.table, 1, epoch);
    assert_int_equal(rig.failures, 2);
    assert_int_equal(pages_in(&rig, BT_PAGE_FREE), PAGES);
    assert_false(kvt_landing_lease(rig.table, 1, epoch, PEER, &process, 0)); /* came too late */
    epoch = verifying(&rig, 1, 64);
    kvt_landing_quiesced(rig.table, 1, epoch);
    assert_int_equal(kvt_landing_count(rig.table, KVT_LANDING_VERIFYING), 1);
    tear_down(&rig);
}

/* Rule 2. */
static void test_peers(void **state)
{
    struct rig rig;
    uint64_t peers[4];
    size_t cursor = 0;
    uint64_t epoch;

    (void)state;
    set_up(&rig);
    reserve(&rig, 1, 64);
    ready(&rig, 2, 64);
    verifying(&rig, 3, 64);
    assert_int_equal(kvt_landing_peers(rig.table, &cursor, peers, 4), 0);
    lease(&rig, 4, 64);
    lease(&rig, 5, 64);
    epoch = reserve(&rig, 6, 64)->epoch;
    assert_true(kvt_landing_lease(rig.table, 6, epoch, PEER + 1, &process, 0));
    assert_int_equal(kvt_landing_cancel(rig.table, 6, 0), BT_OK);
    assert_int_equal(kvt_landing_peers(rig.table, &cursor, peers, 4), 2);
    assert_int_equal(peers[0] + peers[1], 2 * PEER + 1);
    assert_int_equal(cursor, 0);
    assert_int_equal(kvt_landing_peers(rig.table, &cursor, peers, 1), 1);
    uint64_t first = peers[0], other = 0;
    while (other == 0) { /* the rest comes with the next calls */
        assert_true(cursor != 0);
        if (kvt_landing_peers(rig.table, &cursor, peers, 1) == 1 && peers[0] != first)
            other = peers[0];
    }
    assert_int_equal(first + other, 2 * PEER + 1);
    peer_dies(rig.table, PEER);
    assert_int_equal(rig.failures, 2);
    assert_int_equal(rig.failed_status, BT_ERR_PEER_LOST);
    assert_int_equal(pages_in(&rig, BT_PAGE_QUARANTINED), 1);
    peer_dies(rig.table, PEER + 1);
    assert_int_equal(rig.failures, 2); /* cancelled before: told already */
    assert_int_equal(pages_in(&rig, BT_PAGE_QUARANTINED), 0);
    assert_int_equal(pages_in(&rig, BT_PAGE_FREE), PAGES - 3);
    tear_down(&rig);
}

/* Rule 2 for a worker on another host, of which there is no proof of death: what is QUARANTINED
 * when it has been silent goes when its connections are closed, and nothing that came since. */
static void test_a_worker_elsewhere(void **state)
{
    struct bt_process_id far = process;
    struct rig rig;
    uint64_t epochs[4];

    (void)state;
    set_up(&rig);
    far.host[0] = 'e';
    dead_pids[0] = dead_pids[1] = 0;
    for (uint64_t i = 0; i < 3; i++) {
        epochs[i] = reserve(&rig, i, 64)->epoch;
        assert_true(kvt_landing_lease(rig.table, i, epochs[i], PEER, &far, 0));
    }
    assert_int_equal(kvt_landing_cancel(rig.table, 0, 0), BT_OK);
    assert_false(is_lost(rig.table, INT64_MAX)); /* it may hold the leases of the others */
    kvt_landing_tick(rig.table, LEASE_NS);
    assert_int_equal(pages_in(&rig, BT_PAGE_QUARANTINED), 3);
    assert_false(is_lost(rig.table, LEASE_NS)); /* not silent for long */
    kvt_landing_peer_gone(rig.table, PEER);
    assert_int_equal(pages_in(&rig, BT_PAGE_QUARANTINED), 3);
    kvt_landing_quiesced(rig.table, 2, epochs[2]);
    assert_true(is_lost(rig.table, LEASE_NS + 1));
    assert_int_equal(pages_in(&rig, BT_PAGE_QUARANTINED), 2); /* until the cut is over */
    epochs[3] = reserve(&rig, 3, 64)->epoch;                  /* it is back before that */
    assert_true(kvt_landing_lease(rig.table, 3, epochs[3], PEER, &far, LEASE_NS));
    assert_int_equal(kvt_landing_cancel(rig.table, 3, 0), BT_OK);
    kvt_landing_peer_gone(rig.table, PEER);
    assert_int_equal(pages_in(&rig, BT_PAGE_QUARANTINED), 1); /* over its new connection */
    kvt_landing_quiesced(rig.table, 3, epochs[3]);
    assert_int_equal(pages_in(&rig, BT_PAGE_FREE), PAGES);

    epochs[0] = reserve(&rig, 0, 64)->epoch; /* with one here that lives */
    assert_true(kvt_landing_lease(rig.table, 0, epochs[0], PEER, &far, 0));
    assert_true(kvt_landing_lease(rig.table, 0, epochs[0], PEER, &process, 0));
    kvt_landing_tick(rig.table, LEASE_NS);
    assert_false(is_lost(rig.table, INT64_MAX));
    dead_pids[0] = process.pid;
    assert_true(is_lost(rig.table, INT64_MAX));
    tear_down(&rig);
}

/* Rule 2. Who joins after the verdict may write: the landing is not lost any more. */
static void test_a_writer_joins_a_lost_landing(void **state)
{
    struct bt_process_id second = process;
    struct rig rig;
    uint64_t epoch;

    (void)state;
    set_up(&rig);
    second.pid = 43;
    epoch = lease(&rig, 1, 64);
    dead_pids[0] = process.pid;
    assert_true(is_lost(rig.table, 0));
    assert_true(kvt_landing_lease(rig.table, 1, epoch, PEER, &second, 0));
    kvt_landing_peer_gone(rig.table, PEER);
    assert_int_equal(pages_in(&rig, BT_PAGE_LANDING), 1);
    tear_down(&rig);
}

/* Rule 2 for a worker of several processes: gone when the last of those that may write is. */
static void test_a_worker_of_several_processes(void **state)
{
    struct bt_process_id second = process, other = process;
    struct rig rig;
    uint64_t first_epoch, epoch;

    (void)state;
    set_up(&rig);
    second.pid = 43;
    other.start_ticks++; /* the pid was used again */
    dead_pids[0] = dead_pids[1] = 0;
    first_epoch = lease(&rig, 1, 64);
    epoch = lease(&rig, 2, 64);
    assert_true(kvt_landing_lease(rig.table, 2, epoch, PEER, &second, 0));
    assert_true(kvt_landing_lease(rig.table, 2, epoch, PEER, &second, 0));
    assert_int_equal(kvt_landing_find(rig.table, 2)->writer_count, 2);
    assert_false(kvt_landing_lease(rig.table, 2, epoch, PEER + 1, &second, 0));
    assert_true(kvt_landing_lease(rig.table, 2, epoch, PEER, &other, 0));
    assert_int_equal(kvt_landing_find(rig.table, 2)->writer_count, 3);
    assert_false(is_lost(rig.table, 0));
    dead_pids[0] = 42;
    assert_false(is_lost(rig.table, 0));
    assert_int_equal(kvt_landing_cancel(rig.table, 2, 0), BT_OK); /* may be written in quarantine */
    assert_false(is_lost(rig.table, 0));
    dead_pids[1] = 43;
    assert_true(is_lost(rig.table, 0));
    assert_true(kvt_landing_lease(rig.table, 1, first_epoch, PEER, &second, 0));
    for (int64_t pid = 100; kvt_landing_lease(rig.table, 1, first_epoch, PEER, &second, 0); pid++)
        second.pid = pid;
    assert_int_equal(kvt_landing_find(rig.table, 1)->writer_count, KVT_WRITERS_MAX);
    tear_down(&rig);
}

/* ---- the walk ---- */

#define REQUESTS 9
#define WALKERS  3
#define EPOCHS   9000

/* What the outside world knows, kept without looking at the table's states. */
struct shadow {
    bool known;
    uint64_t request;
    uint32_t tokens;
    bool may_write; /* a lease was granted; neither Done, Quiesced nor death was seen */
    uint64_t writer;
    bool ended; /* it will not become READY, or was released */
    bool is_ready;
    bool in_done; /* Done was accepted, no verdict yet */
    int64_t until_ns;
    uint32_t pages[PAGES];
    uint32_t page_count;
    int ends; /* how often its end was told */
};

static struct shadow shadows[EPOCHS];

struct walk {
    struct bt_page_pool *pool;
    struct kvt_landing_table *table;
    uint64_t live[REQUESTS + 1]; /* epoch, 0: none */
    int64_t now_ns;
    uint64_t draws;
    uint64_t last_epoch;
};

static struct shadow *shadow_of(uint64_t epoch)
{
    assert_in_range(epoch, FIRST_EPOCH, FIRST_EPOCH + EPOCHS - 1);
    return &shadows[epoch - FIRST_EPOCH];
}

static void end_shadow(struct walk *walk, uint64_t epoch)
{
    struct shadow *shadow = shadow_of(epoch);

    assert_false(shadow->ended);
    shadow->ended = true;
    shadow->ends++;
    if (walk->live[shadow->request] == epoch)
        walk->live[shadow->request] = 0;
}

static void walk_failed(void *context, const struct kvt_landing *landing, enum bt_status status,
                        const char *why)
{
    (void)why;
    assert_true(status < 0);
    end_shadow(context, landing->epoch);
}

static uint32_t pick(struct walk *walk, uint32_t bound)
{
    return (uint32_t)(bt_random_u64(99, walk->draws++, 0) % bound);
}

/* No page belongs to two; no page that somebody may write, that is read by the verifier, or that
 * the engine owns, is FREE; nothing else is held. */
static void check_pages(const struct walk *walk)
{
    uint64_t holder[PAGES] = {0};
    uint32_t held = 0;

    for (uint64_t epoch = FIRST_EPOCH; epoch <= walk->last_epoch; epoch++) {
        const struct shadow *s = shadow_of(epoch);
        bool holds = !s->ended || s->may_write || s->in_done;
        struct bt_page_owner owner;
        for (uint32_t i = 0; holds && i < s->page_count; i++) {
            assert_int_equal(holder[s->pages[i]], 0);
            holder[s->pages[i]] = epoch;
            held++;
            enum bt_page_state page = bt_page_pool_state(walk->pool, s->pages[i], &owner);
            assert_int_equal(owner.epoch, epoch);
            assert_int_not_equal(page, BT_PAGE_FREE);
            assert_int_equal(page == BT_PAGE_READY, s->is_ready);
            assert_int_equal(page == BT_PAGE_QUARANTINED, s->ended && s->may_write);
        }
    }
    assert_int_equal(bt_page_pool_count(walk->pool, BT_PAGE_FREE), PAGES - held);
}

static void walk_reserve(struct walk *walk, uint64_t request)
{
    struct kvt_landing *landing;
    uint32_t tokens = 1 + pick(walk, 200), extra = pick(walk, 100);
    uint32_t free_count = bt_page_pool_count(walk->pool, BT_PAGE_FREE);
    enum bt_status status =
        kvt_landing_reserve(walk->table, request, tokens, extra, walk->now_ns, NULL, &landing);
    struct shadow *shadow;

    if (walk->live[request] != 0) {
        assert_int_equal(status, BT_ERR_ALREADY_EXISTS);
        return;
    }
    assert_int_equal(status == BT_OK, (tokens + extra + 63) / 64 <= free_count);
    if (status != BT_OK)
        return;
    assert_true(landing->epoch > walk->last_epoch);
    walk->last_epoch = landing->epoch;
    walk->live[request] = landing->epoch;
    shadow = shadow_of(landing->epoch);
    *shadow = (struct shadow){.known = true, .request = request, .tokens = tokens};
    shadow->until_ns = walk->now_ns + KVT_RESERVED_LEASES * LEASE_NS;
    shadow->page_count = landing->page_count;
    memcpy(shadow->pages, landing->pages, landing->page_count * sizeof(uint32_t));
}

static void walk_lease(struct walk *walk, uint64_t request, uint64_t epoch)
{
    struct shadow *s = shadow_of(epoch);
    uint64_t writer = 1 + pick(walk, WALKERS);
    bool fits = s->request == request && !s->ended && !s->is_ready && !s->in_done &&
                (s->writer == 0 || s->writer == writer);
    bool live = kvt_landing_lease(walk->table, request, epoch, writer, &process, walk->now_ns);

    assert_int_equal(live, fits);
    if (!live)
        return;
    s->may_write = true;
    s->writer = writer;
    s->until_ns = walk->now_ns + LEASE_NS;
}

static void walk_done(struct walk *walk, uint64_t request, uint64_t epoch)
{
    struct shadow *s = shadow_of(epoch);
    struct kvt_landing *landing = NULL;
    bool right = pick(walk, 8) != 0;
    bool landing_now = s->request == request && !s->ended && s->may_write;
    bool was_ready = s->request == request && !s->ended && s->is_ready;
    bool was_waiting = s->request == request && !s->ended && s->in_done;
    enum kvt_done_verdict verdict = kvt_landing_done(
        walk->table, request, epoch, s->tokens + !right, (s->tokens + 63) / 64, NULL, &landing);

    if (landing_now && right) {
        assert_int_equal(verdict, KVT_DONE_VERIFY);
        s->may_write = false;
        s->in_done = true;
    } else if (was_ready) {
        assert_int_equal(verdict, KVT_DONE_DUPLICATE);
    } else if (was_waiting) {
        assert_int_equal(verdict, KVT_DONE_WAIT);
    } else {
        assert_int_equal(verdict, KVT_DONE_REFUSED);
        assert_int_equal(s->ended, landing_now || s->ended); /* a miscount ended it */
    }
}

static void walk_verified(struct walk *walk, uint64_t request, uint64_t epoch)
{
    struct shadow *s = shadow_of(epoch);
    struct kvt_landing *landing;
    bool equal = pick(walk, 4) != 0, expected = s->request == request && s->in_done;
    enum bt_status status = kvt_landing_verified(walk->table, request, epoch, equal, &landing);

    if (!expected) {
        assert_int_equal(status, BT_ERR_STALE);
        return;
    }
    s->in_done = false;
    if (s->ended) {
        assert_int_equal(status, BT_ERR_CANCELLED);
    } else if (equal) {
        assert_int_equal(status, BT_OK);
        s->is_ready = true;
    } else {
        assert_int_equal(status, BT_ERR_CORRUPT);
        end_shadow(walk, epoch);
    }
}

static void walk_cancel(struct walk *walk, uint64_t request)
{
    uint64_t epoch = walk->live[request];
    enum bt_status status = kvt_landing_cancel(walk->table, request, pick(walk, 2) ? epoch : 0);

    if (epoch == 0) {
        assert_int_equal(status, BT_ERR_NOT_FOUND);
    } else if (shadow_of(epoch)->is_ready) {
        assert_int_equal(status, BT_ERR_ALREADY_EXISTS);
        shadow_of(epoch)->is_ready = false;
        end_shadow(walk, epoch);
        kvt_landing_release(walk->table, request, epoch);
    } else {
        assert_int_equal(status, BT_OK);
        end_shadow(walk, epoch);
    }
}

/* The prefill side says Quiesced truthfully: it writes nothing from now on. */
static void walk_quiesced(struct walk *walk, uint64_t request, uint64_t epoch)
{
    struct shadow *s = shadow_of(epoch);
    bool ends = s->request == request && !s->ended && !s->in_done && !s->is_ready;

    if (s->request == request)
        s->may_write = false;
    kvt_landing_quiesced(walk->table, request, epoch);
    assert_true(!ends || s->ended);
}

static void walk_peer_gone(struct walk *walk, uint64_t writer)
{
    for (uint64_t epoch = FIRST_EPOCH; epoch <= walk->last_epoch; epoch++)
        if (shadow_of(epoch)->writer == writer)
            shadow_of(epoch)->may_write = false;
    peer_dies(walk->table, writer);
}

static void walk_time(struct walk *walk)
{
    walk->now_ns += pick(walk, 60);
    kvt_landing_tick(walk->table, walk->now_ns);
    for (uint64_t epoch = FIRST_EPOCH; epoch <= walk->last_epoch; epoch++) {
        const struct shadow *s = shadow_of(epoch);
        if (!s->ended && !s->is_ready && !s->in_done)
            assert_true(s->until_ns > walk->now_ns);
    }
}

static void walk_grow(struct walk *walk, uint64_t request)
{
    struct kvt_landing *landing = kvt_landing_find(walk->table, request);
    struct shadow *s;

    assert_int_equal(landing == NULL, walk->live[request] == 0);
    if (landing == NULL || !shadow_of(landing->epoch)->is_ready)
        return;
    s = shadow_of(landing->epoch);
    if (kvt_landing_grow(walk->table, landing, 1) == BT_OK)
        s->pages[s->page_count++] = landing->pages[landing->page_count - 1];
}

static void walk_step(struct walk *walk)
{
    uint64_t request = 1 + pick(walk, REQUESTS);
    uint64_t epoch = walk->live[request];

    if (epoch == 0 || pick(walk, 5) == 0) /* some messages are about something old */
        epoch = walk->last_epoch - pick(walk, walk->last_epoch < FIRST_EPOCH + 40 ? 1 : 40);
    switch (pick(walk, 20)) {
    case 0:
    case 1:
    case 2:
    case 3:
    case 4:
        walk_reserve(walk, request);
        break;
    case 5:
    case 6:
    case 7:
    case 8:
        walk_lease(walk, request, epoch);
        break;
    case 9:
    case 10:
    case 11:
        walk_done(walk, request, epoch);
        break;
    case 12:
    case 13:
        walk_verified(walk, request, epoch);
        break;
    case 14:
        walk_cancel(walk, request);
        break;
    case 15:
    case 16:
        walk_quiesced(walk, shadow_of(epoch)->request, epoch);
        break;
    case 17:
        walk_time(walk);
        break;
    case 18:
        walk_grow(walk, request);
        break;
    default:
        if (pick(walk, 6) == 0)
            walk_peer_gone(walk, 1 + pick(walk, WALKERS));
    }
}

/* Rules 1, 2, 5, 6 and 7. */
static void test_random_walk(void **state)
{
    struct walk walk = {.last_epoch = FIRST_EPOCH};
    struct kvt_landing *landing;

    (void)state;
    print_message("seed 99\n");
    walk.pool = bt_page_pool_create(PAGES);
    walk.table = kvt_landing_table_create(walk.pool, FIRST_EPOCH, LEASE_NS, walk_failed, &walk);
    assert_int_equal(kvt_landing_reserve(walk.table, 1, 1, 0, 0, NULL, &landing), BT_OK);
    shadows[0] = (struct shadow){.known = true,
                                 .request = 1,
                                 .tokens = 1,
                                 .page_count = 1,
                                 .until_ns = KVT_RESERVED_LEASES * LEASE_NS};
    shadows[0].pages[0] = landing->pages[0];
    walk.live[1] = FIRST_EPOCH;
    for (int i = 0; i < 40000; i++) {
        walk_step(&walk);
        if (i % 8 == 0)
            check_pages(&walk);
    }
    print_message("epochs %llu\n", (unsigned long long)(walk.last_epoch - FIRST_EPOCH));
    assert_true(walk.last_epoch > FIRST_EPOCH + 500);
    /* Everybody quiesces: nothing leaks, and everything ended exactly once. */
    for (uint64_t epoch = FIRST_EPOCH; epoch <= walk.last_epoch; epoch++) {
        walk_quiesced(&walk, shadow_of(epoch)->request, epoch);
        walk_verified(&walk, shadow_of(epoch)->request, epoch);
    }
    for (uint64_t request = 1; request <= REQUESTS; request++)
        walk_cancel(&walk, request);
    check_pages(&walk);
    assert_int_equal(bt_page_pool_count(walk.pool, BT_PAGE_FREE), PAGES);
    for (uint64_t epoch = FIRST_EPOCH; epoch <= walk.last_epoch; epoch++)
        assert_int_equal(shadow_of(epoch)->ends, 1);
    kvt_landing_table_destroy(walk.table);
    bt_page_pool_destroy(walk.pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_whole_way),
        cmocka_unit_test(test_reserve_refusals),
        cmocka_unit_test(test_epochs_are_never_used_twice),
        cmocka_unit_test(test_lease_belongs_to_one_incarnation),
        cmocka_unit_test(test_lease_expiry_quarantines),
        cmocka_unit_test(test_reservation_without_lease_ends),
        cmocka_unit_test(test_done_refusals),
        cmocka_unit_test(test_verdicts),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_quiesced_without_done),
        cmocka_unit_test(test_peers),
        cmocka_unit_test(test_a_worker_elsewhere),
        cmocka_unit_test(test_a_writer_joins_a_lost_landing),
        cmocka_unit_test(test_a_worker_of_several_processes),
        cmocka_unit_test(test_random_walk),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
