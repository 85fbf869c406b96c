/* Groups of ranks: they come, serve, go silent, drain and go as one worker. */
#include "tests/unit/router/core_driver.h"

static enum bt_status beat(const struct rt_worker_info *info, bool draining)
{
    return rt_core_worker_heartbeat(core, info->id, info->incarnation, &info->load, draining, now);
}

static const char *why_lost(rt_worker_ref ref)
{
    struct rt_worker_view view;
    assert_true(rt_core_worker(core, ref, &view));
    return view.why_lost;
}

static void test_group_serves_when_all_ranks_are_connected(void **state)
{
    (void)state;
    core_open(NULL);
    worker_add("p0", RT_ROLE_PREFILL, 0);
    rt_worker_ref r2 = rank_add(7, 2, 3, 10);
    submit(1, 100, 5);
    rt_worker_ref r0 = rank_add(7, 0, 3, 10);
    assert_int_equal(worker_state(r2), RT_WORKER_CONNECTING);
    next_none();
    struct rt_worker_info last = rank_info(7, 1, 3, RT_ROLE_DECODE, 10);
    rt_worker_ref r1;
    assert_int_equal(rt_core_worker_register(core, &last, now, NULL, &r1), BT_OK);
    assert_int_equal(worker_state(r0), RT_WORKER_CONNECTING);
    next_none();
    rt_core_worker_connected(core, r1, now);
    rt_core_worker_connected(core, r1, now);
    assert_int_equal(worker_state(r0), RT_WORKER_READY);
    assert_int_equal(worker_state(r1), RT_WORKER_READY);
    assert_int_equal(worker_state(r2), RT_WORKER_READY);
    /* Each rank takes requests of its own. */
    submit(2, 100, 5);
    submit(3, 100, 5);
    assert_int_equal(next(RT_ACTION_RESERVE, 1).decode, r2);
    assert_int_equal(next(RT_ACTION_RESERVE, 2).decode, r0);
    assert_int_equal(next(RT_ACTION_RESERVE, 3).decode, r1);
}

static void test_leader_of_a_prefill_group_stands_for_all(void **state)
{
    (void)state;
    core_open(NULL);
    worker_add("d0", RT_ROLE_DECODE, 10);
    struct rt_worker_info leader = rank_info(7, 0, 2, RT_ROLE_PREFILL, 0);
    rt_worker_ref ref;
    assert_int_equal(rt_core_worker_register(core, &leader, now, NULL, &ref), BT_OK);
    submit(1, 100, 5);
    next_none();
    rt_core_worker_connected(core, ref, now);
    assert_int_equal(worker_state(ref), RT_WORKER_READY);
    assert_int_equal(next(RT_ACTION_RESERVE, 1).prefill, ref);
}

static void test_one_rank_lost_all_lost(void **state)
{
    (void)state;
    core_open(NULL);
    worker_add("p0", RT_ROLE_PREFILL, 0);
    rt_worker_ref ranks[3];
    for (uint32_t r = 0; r < 3; r++) {
        ranks[r] = rank_add(7, r, 3, 100);
    }
    struct rt_action runs[3];
    for (uint64_t id = 1; id <= 3; id++) {
        submit(id, 100, 5);
        runs[id - 1] = grant(id, 900 + id);
        assert_int_equal(runs[id - 1].decode, ranks[id - 1]);
    }
    decoded(&runs[0], 0, 2, false);
    next_tokens(1, 0, 2);
    rt_worker_ref other = worker_add("d9", RT_ROLE_DECODE, 100);
    rt_core_worker_lost(core, ranks[2], "killed", now);
    for (uint32_t r = 0; r < 3; r++) {
        assert_int_equal(worker_state(ranks[r]), RT_WORKER_LOST);
    }
    assert_string_equal(why_lost(ranks[2]), "killed");
    assert_string_equal(why_lost(ranks[0]), "rank 2 (g.2) of its group is gone: killed");
    uint32_t cancelled = 0, reserved = 0;
    struct rt_action action;
    while (rt_core_next_action(core, &action)) {
        cancelled += action.kind == RT_ACTION_CANCEL_DECODE &&
                     action.epoch == 900 + action.request &&
                     action.decode == ranks[action.request - 1];
        if (action.kind == RT_ACTION_RESERVE) {
            assert_int_equal(action.decode, other);
            assert_int_equal(action.attempt, 2);
            reserved++;
        }
    }
    assert_int_equal(cancelled, 3);
    assert_int_equal(reserved, 3);
    struct rt_worker_info info = rank_info(7, 0, 3, RT_ROLE_DECODE, 100);
    assert_int_equal(beat(&info, false), BT_ERR_NOT_FOUND);
}

/* The loss of a group is one failure of a request, however many of its ranks are seen to go. */
static void test_loss_of_a_group_counts_once(void **state)
{
    (void)state;
    struct rt_core_options options = default_options;
    options.max_attempts = 2;
    core_open(&options);
    worker_add("p0", RT_ROLE_PREFILL, 0);
    rt_worker_ref r0 = rank_add(7, 0, 2, 100), r1 = rank_add(7, 1, 2, 100);
    submit(1, 100, 5);
    grant(1, 900);
    rt_core_worker_lost(core, r1, "killed", now);
    next(RT_ACTION_CANCEL_PREFILL, 1);
    next(RT_ACTION_CANCEL_DECODE, 1);
    next_none();
    rt_core_worker_lost(core, r0, "its group is over", now);
    next_none();
    r0 = rank_add(8, 0, 2, 100), r1 = rank_add(8, 1, 2, 100);
    struct rt_action run = grant(1, 901);
    assert_int_equal(run.decode, r0);
    rt_core_worker_lost(core, r1, "no heartbeat", now);
    next(RT_ACTION_CANCEL_PREFILL, 1);
    next(RT_ACTION_CANCEL_DECODE, 1);
    next_none();
    struct rt_core_counts counts;
    rt_core_counts(core, &counts);
    assert_int_equal(counts.retries, 2);
    struct rt_worker_view view;
    assert_true(rt_core_worker(core, r0, &view));
    assert_string_equal(view.why_lost, "rank 1 (g.1) of its group is gone: no heartbeat");
}

static void test_lost_leader_takes_its_runs_along(void **state)
{
    (void)state;
    core_open(NULL);
    struct rt_worker_info leader = rank_info(7, 0, 2, RT_ROLE_PREFILL, 0);
    rt_worker_ref ref;
    assert_int_equal(rt_core_worker_register(core, &leader, now, NULL, &ref), BT_OK);
    rt_core_worker_connected(core, ref, now);
    worker_add("d0", RT_ROLE_DECODE, 10);
    submit(1, 100, 5);
    grant(1, 900);
    rt_core_worker_lost(core, ref, "killed", now);
    next(RT_ACTION_CANCEL_PREFILL, 1);
    next(RT_ACTION_CANCEL_DECODE, 1);
    next_none();
    leader.incarnation++;
    leader.group.incarnation++;
    assert_int_equal(rt_core_worker_register(core, &leader, now, NULL, &ref), BT_OK);
    rt_core_worker_connected(core, ref, now);
    assert_int_equal(next(RT_ACTION_RESERVE, 1).prefill, ref);
}

static void test_one_rank_silent_or_draining_stops_all(void **state)
{
    (void)state;
    core_open(NULL);
    struct rt_worker_info p = worker_info("p0", RT_ROLE_PREFILL, 0);
    worker_add("p0", RT_ROLE_PREFILL, 0);
    rt_worker_ref r0 = rank_add(7, 0, 2, 100), r1 = rank_add(7, 1, 2, 100);
    struct rt_worker_info i0 = rank_info(7, 0, 2, RT_ROLE_DECODE, 100);
    struct rt_worker_info i1 = rank_info(7, 1, 2, RT_ROLE_DECODE, 100);
    submit(1, 100, 5);
    struct rt_action run = grant(1, 900);
    assert_int_equal(beat(&i0, false), BT_OK);
    assert_int_equal(beat(&i1, true), BT_OK);
    assert_int_equal(worker_state(r0), RT_WORKER_DRAINING);
    assert_int_equal(worker_state(r1), RT_WORKER_DRAINING);
    submit(2, 100, 5);
    next_none();
    assert_int_equal(beat(&i1, false), BT_OK);
    struct rt_action second = grant(2, 901);
    now += 3000 * MS;
    assert_int_equal(beat(&p, false), BT_OK);
    assert_int_equal(beat(&i1, false), BT_OK);
    rt_core_tick(core, now); /* rank 0 was not heard */
    assert_int_equal(worker_state(r0), RT_WORKER_SILENT);
    assert_int_equal(worker_state(r1), RT_WORKER_SILENT);
    submit(3, 100, 5);
    next_none();
    decoded(&run, 0, 1, false); /* what it has goes on */
    next_tokens(1, 0, 1);
    assert_int_equal(beat(&i0, false), BT_OK);
    assert_int_equal(worker_state(r1), RT_WORKER_READY);
    grant(3, 902);
    /* Silent for too long is lost, and takes the other along. */
    now += 10000 * MS;
    assert_int_equal(beat(&p, false), BT_OK);
    assert_int_equal(beat(&i1, false), BT_OK);
    rt_core_tick(core, now);
    assert_int_equal(worker_state(r0), RT_WORKER_LOST);
    assert_int_equal(worker_state(r1), RT_WORKER_LOST);
    assert_string_equal(why_lost(r1), "rank 0 (g) of its group is gone: no heartbeat");
    decoded(&second, 0, 1, false);
    struct rt_action action;
    while (rt_core_next_action(core, &action)) {
        assert_int_not_equal(action.kind, RT_ACTION_RESERVE);
        assert_int_not_equal(action.kind, RT_ACTION_TOKENS);
    }
    assert_int_equal(rt_core_queued(core), 3);
}

/* The router's connections broke, the processes live: the same group again. */
static void test_same_group_comes_back(void **state)
{
    (void)state;
    core_open(NULL);
    worker_add("p0", RT_ROLE_PREFILL, 0);
    rt_worker_ref r0 = rank_add(7, 0, 2, 100), r1 = rank_add(7, 1, 2, 100);
    rt_core_worker_lost(core, r1, "the connection is gone", now);
    submit(1, 100, 5);
    assert_int_equal(rank_add(7, 1, 2, 100), r1);
    assert_int_equal(worker_state(r1), RT_WORKER_CONNECTING);
    assert_string_equal(why_lost(r1), "");
    assert_int_equal(worker_state(r0), RT_WORKER_LOST);
    next_none();
    assert_int_equal(rank_add(7, 0, 2, 100), r0);
    next(RT_ACTION_RESERVE, 1);
}

/* Half of the new group is there while half of the old one still shows. */
static void test_successors_take_over_rank_by_rank(void **state)
{
    (void)state;
    core_open(NULL);
    worker_add("p0", RT_ROLE_PREFILL, 0);
    rt_worker_ref old0 = rank_add(7, 0, 2, 100), old1 = rank_add(7, 1, 2, 100);
    struct rt_worker_info again = rank_info(8, 0, 2, RT_ROLE_DECODE, 100);
    rt_worker_ref ref;
    assert_int_equal(rt_core_worker_register(core, &again, now, NULL, &ref), BT_ERR_ALREADY_EXISTS);
    rt_core_worker_lost(core, old0, "proven dead", now);
    submit(1, 100, 5);
    rt_worker_ref new0 = rank_add(8, 0, 2, 100);
    assert_int_equal(worker_state(new0), RT_WORKER_CONNECTING);
    assert_int_equal(worker_state(old1), RT_WORKER_LOST);
    next_none();
    rt_worker_ref new1 = rank_add(8, 1, 2, 100);
    struct rt_worker_view view;
    assert_false(rt_core_worker(core, old1, &view));
    assert_int_equal(worker_state(new1), RT_WORKER_READY);
    next(RT_ACTION_RESERVE, 1);
}

static void expect_refused(struct rt_worker_info info, enum bt_status status, const char *part)
{
    struct bt_error error = {0};
    rt_worker_ref ref;
    assert_int_equal(rt_core_worker_register(core, &info, now, &error, &ref), status);
    if (!strstr(error.text, part)) {
        fail_msg("'%s' is not in '%s'", part, error.text);
    }
}

static void test_ranks_have_to_agree(void **state)
{
    (void)state;
    core_open(NULL);
    rt_worker_ref r1 = rank_add(7, 1, 3, 100);
    struct rt_worker_info good = rank_info(7, 2, 3, RT_ROLE_DECODE, 100), bad = good;
    bad.group.size = 4;
    expect_refused(bad, BT_ERR_MISMATCH, "group.size: 4");
    bad = good;
    snprintf(bad.group.name, sizeof bad.group.name, "h");
    expect_refused(bad, BT_ERR_MISMATCH, "group.name: h");
    bad = good;
    bad.role = RT_ROLE_PREFILL;
    expect_refused(bad, BT_ERR_MISMATCH, "role");
    bad = good;
    bad.group.rank = 1;
    expect_refused(bad, BT_ERR_ALREADY_EXISTS, "rank 1 of group g is g.1");
    /* Nor may one say something else than before. */
    struct rt_worker_info same = rank_info(7, 1, 3, RT_ROLE_DECODE, 100);
    same.group.rank = 0;
    expect_refused(same, BT_ERR_MISMATCH, "group");
    same = rank_info(7, 1, 3, RT_ROLE_DECODE, 100);
    same.group.incarnation = 0;
    expect_refused(same, BT_ERR_MISMATCH, "group");
    same.group.incarnation = 70;
    expect_refused(same, BT_ERR_MISMATCH, "group");
    /* A rank that is lost is free for another process, and then taken. */
    rt_core_worker_lost(core, r1, "killed", now);
    struct rt_worker_info heir = rank_info(7, 1, 3, RT_ROLE_DECODE, 100);
    snprintf(heir.id, sizeof heir.id, "heir");
    rt_worker_ref ref;
    assert_int_equal(rt_core_worker_register(core, &heir, now, NULL, &ref), BT_OK);
    expect_refused(rank_info(7, 1, 3, RT_ROLE_DECODE, 100), BT_ERR_ALREADY_EXISTS, "is heir");
}

/* A group is known as long as one of its ranks is. */
static void test_group_is_forgotten_with_its_last_rank(void **state)
{
    (void)state;
    core_open(NULL);
    rt_worker_ref r0 = rank_add(7, 0, 2, 100);
    rank_add(7, 1, 2, 100);
    rt_core_worker_lost(core, r0, "killed", now);
    now += 59 * BT_NS_PER_S;
    rt_core_tick(core, now);
    expect_refused(rank_info(7, 2, 3, RT_ROLE_DECODE, 100), BT_ERR_MISMATCH, "group.size");
    now += BT_NS_PER_S;
    rt_core_tick(core, now);
    size_t cursor = 0;
    rt_worker_ref ref;
    assert_false(rt_core_next_worker(core, &cursor, &ref));
    rank_add(7, 2, 3, 100);
}

#define TEST(name) cmocka_unit_test_teardown(name, core_close)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_group_serves_when_all_ranks_are_connected),
        TEST(test_leader_of_a_prefill_group_stands_for_all),
        TEST(test_one_rank_lost_all_lost),
        TEST(test_loss_of_a_group_counts_once),
        TEST(test_lost_leader_takes_its_runs_along),
        TEST(test_one_rank_silent_or_draining_stops_all),
        TEST(test_same_group_comes_back),
        TEST(test_successors_take_over_rank_by_rank),
        TEST(test_ranks_have_to_agree),
        TEST(test_group_is_forgotten_with_its_last_rank),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
