/* Ranks that load a model wait for each other longer than a call of their group does, but not for
 * ever, and not for one that is lost. Each rank is a thread. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/base/clock.h"
#include "common/model/loading.h"

#define RANKS 3
#define SLOW  1
/* Of one call: above what a thread may be kept from a busy machine's cores. */
#define WAIT_NS (6 * BT_NS_PER_S)
#define LONG_NS (120 * BT_NS_PER_S)

enum slow_rank { LOADS, LEAVES };

struct load {
    char endpoint[128];
    enum slow_rank slow;
    int64_t timeout_ns; /* of the fast ones */
    int64_t slow_ns;    /* how long the slow one loads */
    atomic_uint over;   /* fast ones that wait no more */
    bool until_over;    /* the slow one loads until then, too */
    struct outcome {
        enum bt_status status;
        struct bt_error error;
    } outcomes[RANKS];
};

struct rank {
    struct load *load;
    uint32_t index;
    pthread_t thread;
};

static struct bt_group *meet(const struct load *load, uint32_t index)
{
    struct bt_error error = {0};
    struct bt_group *group;
    const struct bt_group_options options = {
        .transport = "auto",
        .rank = index,
        .size = RANKS,
        .endpoint = load->endpoint,
        .secret = "of this test",
        .connect_timeout_ns = LONG_NS,
        .wait_timeout_ns = WAIT_NS,
        .limits = {.broadcast_bytes = 64},
    };
    if (bt_group_create(&options, &error, &group) != BT_OK) {
        fprintf(stderr, "rank %u: %s\n", index, error.text);
        abort();
    }
    return group;
}

static void load_slowly(const struct load *load)
{
    int64_t until_ns = bt_clock_now_ns() + load->slow_ns;
    while (bt_clock_now_ns() < until_ns || (load->until_over && atomic_load(&load->over) == 0)) {
        usleep(20000);
    }
}

static void *rank_main(void *argument)
{
    const struct rank *rank = argument;
    struct load *load = rank->load;
    struct outcome *outcome = &load->outcomes[rank->index];
    struct bt_group *group = meet(load, rank->index);
    struct bt_loading *loading = NULL;
    outcome->status = bt_loading_begin(group, &outcome->error, &loading);
    bool slow = rank->index == SLOW;
    if (slow) {
        load_slowly(load);
    }
    if (outcome->status == BT_OK && !(slow && load->slow == LEAVES)) {
        outcome->status =
            bt_loading_end(loading, slow ? LONG_NS : load->timeout_ns, &outcome->error);
        atomic_fetch_add(&load->over, 1);
    }
    bt_loading_destroy(loading);
    if (outcome->status == BT_OK && load->slow == LOADS) {
        outcome->status = bt_group_barrier(group); /* it is the caller's again */
    }
    bt_group_destroy(group);
    return NULL;
}

static void run(struct load *load)
{
    char directory[] = "/tmp/baton-loading-XXXXXX";
    struct rank ranks[RANKS];
    assert_non_null(mkdtemp(directory));
    snprintf(load->endpoint, sizeof(load->endpoint), "ipc://%s/meet", directory);
    for (uint32_t r = 0; r < RANKS; r++) {
        ranks[r] = (struct rank){.load = load, .index = r};
        assert_int_equal(pthread_create(&ranks[r].thread, NULL, rank_main, &ranks[r]), 0);
    }
    for (uint32_t r = 0; r < RANKS; r++) {
        pthread_join(ranks[r].thread, NULL);
    }
    rmdir(directory);
}

static void test_the_slow_is_waited_for(void **state)
{
    (void)state;
    struct load load = {.timeout_ns = LONG_NS, .slow_ns = WAIT_NS * 3 / 2};
    run(&load);
    for (uint32_t r = 0; r < RANKS; r++) {
        if (load.outcomes[r].status != BT_OK) {
            fail_msg("rank %u: %s", r, load.outcomes[r].error.text);
        }
    }
}

static void test_not_for_ever(void **state)
{
    (void)state;
    struct load load = {.timeout_ns = BT_NS_PER_S / 5, .until_over = true};
    run(&load);
    bool named = false;
    for (uint32_t r = 0; r < RANKS; r++) {
        assert_int_not_equal(load.outcomes[r].status, BT_OK);
        named = named || (load.outcomes[r].status == BT_ERR_UNAVAILABLE &&
                          strstr(load.outcomes[r].error.text, "not loaded yet on rank ") &&
                          strstr(load.outcomes[r].error.text, " 1,"));
    }
    assert_true(named); /* the other fast one may have seen the first leave */
}

static void test_the_lost_is_not(void **state)
{
    (void)state;
    struct load load = {.slow = LEAVES, .timeout_ns = LONG_NS};
    int64_t begin_ns = bt_clock_now_ns();
    run(&load);
    for (uint32_t r = 0; r < RANKS; r++) {
        if (r != SLOW) {
            assert_int_equal(load.outcomes[r].status, BT_ERR_PEER_LOST);
        }
    }
    assert_true(bt_clock_now_ns() - begin_ns < LONG_NS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_slow_is_waited_for),
        cmocka_unit_test(test_not_for_ever),
        cmocka_unit_test(test_the_lost_is_not),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
