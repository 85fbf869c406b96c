/* Workers that fail, flap and die: breakers, retry budget, poison. */
#include "tests/unit/router/core_driver.h"

static const struct rt_core_options *careful(void)
{
    static struct rt_core_options options;
    options = default_options;
    options.queue_capacity = 100;
    options.max_attempts = 100;
    options.reserve_retry_ns = MS;
    options.silent_after_ns = options.lost_after_ns = BT_NEVER_NS / 2;
    options.breaker_failures = 3;
    options.breaker_window_ns = 10 * BT_NS_PER_S;
    options.breaker_open_ns = BT_NS_PER_S;
    options.breaker_open_max_ns = 4 * BT_NS_PER_S;
    options.flap_lives = 2;
    options.flap_life_ns = 5 * BT_NS_PER_S;
    options.poison_deaths = 2;
    return &options;
}

static enum rt_breaker breaker(rt_worker_ref ref)
{
    struct rt_worker_view view;
    assert_true(rt_core_worker(core, ref, &view));
    return view.breaker;
}

/* A new request is run by `ref`, or by another. */
static bool goes_to(uint64_t id, rt_worker_ref ref, struct rt_action *ret_run)
{
    submit(id, 10, 5);
    *ret_run = grant(id, id + 1000);
    return ret_run->prefill == ref;
}

static void settle(struct rt_action *run)
{
    rt_core_finish(core, run->request, RT_FINISH_CANCELLED, now);
    struct rt_action action;
    while (rt_core_next_action(core, &action)) {
    }
}

/* The request's run fails and the request goes away. */
static void fail_once(struct rt_action *run)
{
    run_ended(run, BT_ERR_CORRUPT);
    rt_core_finish(core, run->request, RT_FINISH_CANCELLED, now);
    struct rt_action action;
    while (rt_core_next_action(core, &action)) {
    }
}

static void open_breaker(rt_worker_ref bad, uint64_t id)
{
    for (int i = 0; i < 3; i++) {
        struct rt_action run;
        assert_true(goes_to(id + (uint64_t)i, bad, &run));
        fail_once(&run);
    }
}

static void test_breaker_opens_probes_and_closes(void **state)
{
    (void)state;
    core_open(careful());
    rt_worker_ref bad = worker_add("a", RT_ROLE_PREFILL, 0);
    rt_worker_ref good = worker_add("b", RT_ROLE_PREFILL, 0);
    worker_add("d0", RT_ROLE_DECODE, 1000);
    struct rt_action run, probe, other;
    open_breaker(bad, 1);
    assert_int_equal(breaker(bad), RT_BREAKER_OPEN);
    assert_true(goes_to(10, good, &run));
    settle(&run);
    assert_int_equal(rt_core_next_deadline_ns(core), now + BT_NS_PER_S);
    now += BT_NS_PER_S;
    rt_core_tick(core, now);
    assert_int_equal(breaker(bad), RT_BREAKER_HALF_OPEN);
    assert_true(goes_to(11, bad, &probe));
    assert_true(goes_to(12, good, &other)); /* one at a time */
    fail_once(&probe);
    settle(&other);
    assert_int_equal(breaker(bad), RT_BREAKER_OPEN); /* for twice as long */
    now += 2 * BT_NS_PER_S - 1;
    rt_core_tick(core, now);
    assert_int_equal(breaker(bad), RT_BREAKER_OPEN);
    now += 1;
    rt_core_tick(core, now);
    assert_true(goes_to(13, bad, &probe));
    first_token(&probe, 100);
    next_tokens(13, 0, 1);
    assert_int_equal(breaker(bad), RT_BREAKER_CLOSED);
    settle(&probe);
    assert_true(goes_to(14, bad, &run));
    settle(&run);
    open_breaker(bad, 20); /* it begins anew */
    now += BT_NS_PER_S;
    rt_core_tick(core, now);
    assert_int_equal(breaker(bad), RT_BREAKER_HALF_OPEN);
    /* A probe that proves nothing leaves room for the next. */
    assert_true(goes_to(30, bad, &probe));
    settle(&probe);
    assert_true(goes_to(31, bad, &probe));
}

static void test_old_failures_are_forgotten(void **state)
{
    (void)state;
    core_open(careful());
    rt_worker_ref bad = worker_add("a", RT_ROLE_PREFILL, 0);
    worker_add("b", RT_ROLE_PREFILL, 0);
    worker_add("d0", RT_ROLE_DECODE, 1000);
    struct rt_action run;
    for (uint64_t id = 1; id <= 6; id++) {
        assert_true(goes_to(id, bad, &run));
        fail_once(&run);
        now += 6 * BT_NS_PER_S; /* two in any window */
    }
    assert_int_equal(breaker(bad), RT_BREAKER_CLOSED);
}

static void test_the_only_worker_is_never_kept_out(void **state)
{
    (void)state;
    core_open(careful());
    rt_worker_ref bad = worker_add("a", RT_ROLE_PREFILL, 0);
    worker_add("d0", RT_ROLE_DECODE, 1000);
    open_breaker(bad, 1);
    open_breaker(bad, 10);
    assert_int_equal(breaker(bad), RT_BREAKER_CLOSED);
}

static rt_worker_ref reborn(const char *id, uint64_t incarnation)
{
    struct rt_worker_info info = worker_info(id, RT_ROLE_DECODE, 100);
    info.incarnation = incarnation;
    rt_worker_ref ref;
    assert_int_equal(rt_core_worker_register(core, &info, now, NULL, &ref), BT_OK);
    rt_core_worker_connected(core, ref, now);
    return ref;
}

static void test_flapping_worker_is_kept_out_for_longer_and_longer(void **state)
{
    (void)state;
    core_open(careful());
    worker_add("steady", RT_ROLE_DECODE, 100);
    rt_worker_ref ref = reborn("flap", 1);
    const int64_t out_ns[] = {0, BT_NS_PER_S, 2 * BT_NS_PER_S, 4 * BT_NS_PER_S, 4 * BT_NS_PER_S};
    for (uint64_t life = 2; life <= 6; life++) {
        now += BT_NS_PER_S;
        rt_core_worker_lost(core, ref, "killed", now);
        ref = reborn("flap", life);
        struct rt_worker_view view;
        assert_true(rt_core_worker(core, ref, &view));
        assert_int_equal(view.breaker, out_ns[life - 2] ? RT_BREAKER_OPEN : RT_BREAKER_CLOSED);
        if (out_ns[life - 2]) {
            assert_int_equal(view.breaker_until_ns, now + out_ns[life - 2]);
        }
    }
    now += 6 * BT_NS_PER_S; /* a life long enough */
    rt_core_worker_lost(core, ref, "killed", now);
    ref = reborn("flap", 7);
    assert_int_equal(breaker(ref), RT_BREAKER_CLOSED);
    for (uint64_t life = 8; life < 14; life++) { /* it left each time */
        rt_core_worker_left(core, ref, now);
        ref = reborn("flap", life);
        assert_int_equal(breaker(ref), RT_BREAKER_CLOSED);
    }
}

static void drain_until_reserve(void)
{
    struct rt_action action;
    size_t cancels = 0;
    while (rt_core_queued(core) > 0 && rt_core_next_action(core, &action)) {
        cancels += action.kind != RT_ACTION_RESERVE;
        assert_true(action.kind != RT_ACTION_RESERVE && action.kind != RT_ACTION_END);
    }
}

/* The only decode worker there was leaves. */
static void without_decode(void)
{
    rt_core_worker_left(core, worker_add("boot", RT_ROLE_DECODE, 100), now);
}

static void test_poison_is_not_tried_a_third_time(void **state)
{
    (void)state;
    core_open(careful());
    worker_add("p0", RT_ROLE_PREFILL, 0);
    rt_worker_ref a = worker_add("a", RT_ROLE_DECODE, 100);
    submit(1, 10, 5);
    struct rt_action run = grant(1, 900);
    decoded(&run, 0, 1, false);
    next_tokens(1, 0, 1);
    rt_core_worker_lost(core, a, "killed", now);
    next(RT_ACTION_CANCEL_PREFILL, 1);
    next(RT_ACTION_CANCEL_DECODE, 1);
    next_none();
    rt_worker_ref b = worker_add("b", RT_ROLE_DECODE, 100);
    run = grant(1, 901);
    decoded(&run, 0, 1, false);
    rt_core_worker_lost(core, b, "killed again", now);
    next(RT_ACTION_CANCEL_PREFILL, 1);
    next(RT_ACTION_CANCEL_DECODE, 1);
    next_error(1, BT_ERR_PEER_LOST,
               "2 workers were lost while it ran there, the last is b: killed");
    next_none();
}

/* Waiting for pages, leaving workers and group mates that die are no sign of poison. */
static void test_what_is_no_sign_of_poison(void **state)
{
    (void)state;
    core_open(careful());
    worker_add("p0", RT_ROLE_PREFILL, 0);
    rt_worker_ref a = worker_add("a", RT_ROLE_DECODE, 100);
    submit(1, 10, 5);
    next(RT_ACTION_RESERVE, 1);
    rt_core_worker_lost(core, a, "killed", now); /* it did not run there yet */
    drain_until_reserve();
    a = worker_add("b", RT_ROLE_DECODE, 100);
    struct rt_action run = grant(1, 901);
    decoded(&run, 0, 1, false);
    next_tokens(1, 0, 1);
    rt_core_worker_left(core, a, now);
    drain_until_reserve();
    for (uint64_t group = 7; group < 10; group++) {
        rt_worker_ref r0 = rank_add(group, 0, 2, 100);
        rt_worker_ref r1 = rank_add(group, 1, 2, 100);
        run = grant(1, 902 + group);
        assert_int_equal(run.decode, r0);
        decoded(&run, 0, 1, false);
        rt_core_worker_lost(core, r1, "killed", now);
        drain_until_reserve();
    }
    worker_add("c", RT_ROLE_DECODE, 100);
    run = grant(1, 999);
    decoded(&run, 0, 5, true);
    next_tokens(1, 1, 4);
    next_end(1, RT_FINISH_LENGTH);
}

/* One that gets on between the deaths of its workers did not kill them, however many they are; and
 * what lost workers ran does not count as tried. */
static void test_who_gets_on_is_no_poison(void **state)
{
    (void)state;
    struct rt_core_options options = *careful();
    options.max_attempts = 3;
    options.flap_lives = 0;
    core_open(&options);
    without_decode();
    worker_add("p0", RT_ROLE_PREFILL, 0);
    submit(1, 10, 40);
    for (uint32_t death = 0; death < 20; death++) {
        rt_worker_ref d = reborn("d", death + 1);
        struct rt_action run = grant(1, 900 + death);
        decoded(&run, 0, death + 1, false);
        next_tokens(1, death, 1);
        rt_core_worker_lost(core, d, "killed", now);
        drain_until_reserve();
    }
    reborn("d", 100);
    struct rt_action run = grant(1, 990);
    decoded(&run, 0, 40, true);
    next_tokens(1, 20, 20);
    next_end(1, RT_FINISH_LENGTH);
}

/* Its prompt was computed once: it is not that which kills prefill workers. */
static void test_a_prompt_that_was_computed_is_no_poison(void **state)
{
    (void)state;
    core_open(careful());
    worker_add("d", RT_ROLE_DECODE, 100);
    rt_worker_ref p = worker_add("p0", RT_ROLE_PREFILL, 0);
    submit(1, 10, 5);
    struct rt_action run = grant(1, 900);
    first_token(&run, 100);
    next_tokens(1, 0, 1);
    char name[8];
    for (uint64_t death = 1; death <= 4; death++) {
        rt_core_worker_lost(core, p, "killed", now);
        drain_until_reserve();
        snprintf(name, sizeof name, "p%d", (int)death);
        p = worker_add(name, RT_ROLE_PREFILL, 0);
        grant(1, 900 + death);
    }
    rt_core_finish(core, 1, RT_FINISH_CANCELLED, now);
    drain_until_reserve();
}

/* Carries out what the core wants: the rank grants, prompts are handed over, and all but request 1
 * get the token `got`. Returns a bit for each request that ran. */
static unsigned play(uint32_t got)
{
    static uint64_t epoch = 5000;
    unsigned ran = 0;
    struct rt_action action;
    while (rt_core_next_action(core, &action)) {
        if (action.kind == RT_ACTION_RESERVE) {
            rt_core_reserved(core, action.request, action.attempt, action.decode, BT_OK, NULL,
                             ++epoch, now);
        } else if (action.kind == RT_ACTION_PREFILL) {
            ran |= 1u << action.request;
            run_ended(&action, BT_OK);
            if (action.request != 1) {
                decoded(&action, 0, got + 1, false);
            }
        } else if (action.kind == RT_ACTION_END) {
            assert_int_equal(action.request, 1);
            assert_int_equal(action.status, BT_ERR_PEER_LOST);
        }
    }
    return ran;
}

/* Of three that run together one kills their worker each time. The deaths are shared; the others,
 * which get on, are never blamed. The third time it is alone, and is stopped. */
static void test_poison_among_others(void **state)
{
    (void)state;
    struct rt_core_options options = *careful();
    options.flap_lives = 0;
    core_open(&options);
    without_decode();
    worker_add("p0", RT_ROLE_PREFILL, 0);
    for (uint64_t id = 1; id <= 3; id++) {
        submit(id, 10, 40);
    }
    const unsigned ran[] = {1 << 1 | 1 << 2 | 1 << 3, 1 << 1 | 1 << 2 | 1 << 3, 1 << 1};
    struct rt_core_counts counts;
    for (uint32_t death = 0; death < 3; death++) { /* it has a third, one, and one of them */
        rt_core_counts(core, &counts);
        assert_int_equal(counts.poisoned, 0);
        rt_worker_ref d = reborn("d", death + 1);
        assert_int_equal(play(death), ran[death]);
        rt_core_worker_lost(core, d, "killed", now);
    }
    reborn("d", 9);
    assert_int_equal(play(2), 1 << 2 | 1 << 3);
    rt_core_counts(core, &counts);
    assert_int_equal(counts.poisoned, 1);
}

/* An isolated request lets others onto its workers as soon as it has got on. */
static void test_isolation_ends(void **state)
{
    (void)state;
    struct rt_core_options options = *careful();
    options.flap_lives = options.breaker_failures = 0;
    options.poison_deaths = 3;
    core_open(&options);
    without_decode();
    worker_add("p0", RT_ROLE_PREFILL, 0);
    submit(1, 10, 40);
    for (uint64_t life = 1; life <= 2; life++) {
        rt_worker_ref d = reborn("d", life);
        assert_int_equal(play(0), 1 << 1);
        rt_core_worker_lost(core, d, "killed", now);
    }
    assert_int_equal(play(0), 0);
    reborn("d", 3);
    struct rt_action run = grant(1, 7000);
    submit(2, 10, 40);
    assert_int_equal(play(0), 0);
    decoded(&run, 0, 1, false);
    assert_int_equal(play(0), 1 << 2);
}

/* While workers die that it never was on, deaths in a row say less: each is one more that it takes,
 * but no more than twice as many in all; and only for a minute. */
static void test_deaths_elsewhere_excuse(void **state)
{
    (void)state;
    struct rt_core_options options = *careful();
    options.flap_lives = 0;
    core_open(&options);
    without_decode();
    worker_add("p0", RT_ROLE_PREFILL, 0);
    uint64_t incarnation = 1;
    for (uint64_t id = 1; id <= 2; id++) {
        submit(id, 10, 40);
        uint32_t elsewhere = id == 1 ? 9 : 0; /* then a minute later */
        for (uint32_t i = 0; i < elsewhere; i++) {
            rt_core_worker_lost(core, reborn("other", incarnation++), "killed", now);
            struct rt_action action;
            while (rt_core_queued(core) > 0 && rt_core_next_action(core, &action)) {
            }
            if (rt_core_queued(core) == 0) { /* it was reserved there */
                drain_until_reserve();
            }
        }
        uint32_t deaths = 0;
        struct rt_request_view view;
        while (rt_core_request(core, id, &view)) {
            rt_worker_ref d = reborn("d", incarnation++);
            struct rt_action action, run = {0};
            while (run.kind != RT_ACTION_PREFILL && rt_core_next_action(core, &action)) {
                if (action.kind == RT_ACTION_RESERVE) {
                    rt_core_reserved(core, id, action.attempt, d, BT_OK, NULL, 9000 + incarnation,
                                     now);
                }
                run = action;
            }
            assert_int_equal(run.kind, RT_ACTION_PREFILL);
            run_ended(&run, BT_OK);
            rt_core_worker_lost(core, d, "killed", now);
            deaths++;
            while (rt_core_request(core, id, &view) && view.state != RT_QUEUED) {
                assert_true(rt_core_next_action(core, &action));
            }
        }
        assert_int_equal(deaths, id == 1 ? 4 : 2);
        struct rt_action action;
        while (rt_core_next_action(core, &action)) {
        }
        now += 61 * BT_NS_PER_S;
        rt_core_tick(core, now);
    }
}

/* A run that broke off before it was known that its worker is lost, was not tried. */
static void test_failures_at_lost_workers_do_not_count(void **state)
{
    (void)state;
    struct rt_core_options options = *careful();
    options.max_attempts = 2;
    options.breaker_failures = options.flap_lives = 0;
    core_open(&options);
    without_decode();
    worker_add("p0", RT_ROLE_PREFILL, 0);
    submit(1, 10, 5);
    struct rt_action run;
    for (uint64_t death = 1; death <= 10; death++) {
        rt_worker_ref d = reborn("d", death);
        run = grant(1, 900 + death);
        run_ended(&run, BT_ERR_PEER_LOST); /* what it writes to is gone */
        next(RT_ACTION_CANCEL_DECODE, 1);
        next_none();
        rt_core_worker_lost(core, d, "killed", now);
        next_none();
        now += 2 * MS;
        rt_core_tick(core, now);
    }
    worker_add("d2", RT_ROLE_DECODE, 100);
    run = grant(1, 990);
    run_ended(&run, BT_ERR_PEER_LOST);
    next(RT_ACTION_CANCEL_DECODE, 1);
    now += 2 * MS;
    rt_core_tick(core, now);
    run = grant(1, 991);
    run_ended(&run, BT_ERR_PEER_LOST);
    next(RT_ACTION_CANCEL_DECODE, 1);
    next_error(1, BT_ERR_PEER_LOST, "gave up after 2 attempts");
}

static void test_retry_budget(void **state)
{
    (void)state;
    struct rt_core_options options = *careful();
    options.breaker_failures = 0;
    options.retry_budget = 10; /* in 10 s */
    core_open(&options);
    worker_add("p0", RT_ROLE_PREFILL, 0);
    rt_worker_ref d = worker_add("d0", RT_ROLE_DECODE, 100);
    submit(1, 10, 5);
    struct rt_action action;
    for (int i = 0; i < 10; i++) {
        struct rt_action run = grant(1, 900 + (uint64_t)i);
        run_ended(&run, BT_ERR_CORRUPT);
        next(RT_ACTION_CANCEL_DECODE, 1);
        now += MS;
        rt_core_tick(core, now);
    }
    struct rt_action run = grant(1, 990);
    run_ended(&run, BT_ERR_CORRUPT);
    next(RT_ACTION_CANCEL_DECODE, 1);
    next_error(1, BT_ERR_CORRUPT, "p0 failed, and so do too many: because");
    /* What a lost worker ran is run again all the same. */
    submit(2, 10, 5);
    run = grant(2, 991);
    decoded(&run, 0, 1, false);
    next_tokens(2, 0, 1);
    rt_core_worker_lost(core, d, "killed", now);
    drain_until_reserve();
    assert_int_equal(rt_core_queued(core), 1);
    worker_add("d1", RT_ROLE_DECODE, 100);
    grant(2, 992);
    /* A second gives one back. */
    now += BT_NS_PER_S;
    submit(3, 10, 5);
    run = grant(3, 993);
    run_ended(&run, BT_ERR_CORRUPT);
    next(RT_ACTION_CANCEL_DECODE, 3);
    while (rt_core_next_action(core, &action)) {
        assert_int_not_equal(action.kind, RT_ACTION_END);
    }
}

#define TEST(name) cmocka_unit_test_teardown(name, core_close)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_breaker_opens_probes_and_closes),
        TEST(test_old_failures_are_forgotten),
        TEST(test_the_only_worker_is_never_kept_out),
        TEST(test_flapping_worker_is_kept_out_for_longer_and_longer),
        TEST(test_poison_is_not_tried_a_third_time),
        TEST(test_what_is_no_sign_of_poison),
        TEST(test_who_gets_on_is_no_poison),
        TEST(test_a_prompt_that_was_computed_is_no_poison),
        TEST(test_poison_among_others),
        TEST(test_isolation_ends),
        TEST(test_deaths_elsewhere_excuse),
        TEST(test_failures_at_lost_workers_do_not_count),
        TEST(test_retry_budget),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
