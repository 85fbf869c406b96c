/* Where a request goes: predicted prefill, cached prefixes, the policies of decode. */
#include "tests/unit/router/core_driver.h"

static struct rt_core_options roomy;

static void open_roomy(enum rt_decode_policy policy)
{
    roomy = default_options;
    roomy.queue_capacity = 1000;
    roomy.prefill_depth_ns = 1000 * BT_NS_PER_S;
    roomy.decode_policy = policy;
    roomy.seed = 42;
    core_open(&roomy);
}

static struct rt_action run_one(uint64_t id, uint32_t prompt)
{
    submit(id, prompt, 5);
    return grant(id, id + 10000);
}

/* Its prefill took `ms`, and it is over. */
static void computed(struct rt_action *run, int64_t ms)
{
    rt_core_prefill_done(core, run->request, run->attempt, ms * MS, 0);
    rt_core_finish(core, run->request, RT_FINISH_CANCELLED, now);
    struct rt_action action;
    while (rt_core_next_action(core, &action)) {
    }
}

/* a takes 4 ms a token, b 1 ms. 100 tokens behind 250 of b are done before 100 of a. */
static void test_prefill_goes_by_what_workers_report(void **state)
{
    (void)state;
    open_roomy(RT_DECODE_KV_UTILIZATION);
    rt_worker_ref a = worker_add("a", RT_ROLE_PREFILL, 0);
    rt_worker_ref b = worker_add("b", RT_ROLE_PREFILL, 0);
    worker_add("d0", RT_ROLE_DECODE, 100000);
    uint64_t id = 1;
    for (int i = 0; i < 200; i++) {
        struct rt_action run = run_one(id++, 100 + 10 * (uint32_t)(i % 40));
        struct rt_action other = run_one(id++, 100 + 10 * (uint32_t)(i % 40));
        computed(&run, (run.prefill == a ? 4 : 1) * (100 + 10 * (i % 40)));
        computed(&other, (other.prefill == a ? 4 : 1) * (100 + 10 * (i % 40)));
        if (i == 0) {
            assert_int_not_equal(run.prefill, other.prefill);
        }
        if (i < 60) { /* later the slow one is left alone: so much that it gets some */
            struct rt_action extra[8];
            uint32_t extra_tokens = 100 + 50 * (uint32_t)(i % 9);
            int count = 0;
            do {
                extra[count] = run_one(id++, extra_tokens);
            } while (extra[count++].prefill != a && count < 8);
            while (count-- > 0) {
                computed(&extra[count], (extra[count].prefill == a ? 4 : 1) * extra_tokens);
            }
        }
    }
    struct rt_worker_view view;
    assert_true(rt_core_worker(core, a, &view));
    assert_in_range((int64_t)(view.prefill_base_ns + 400 * view.prefill_token_ns) / MS, 1500, 1700);
    struct rt_action first = run_one(id++, 250);
    assert_int_equal(first.prefill, b);
    assert_int_equal(run_one(id++, 100).prefill, b); /* 350 ms against 400 */
    assert_int_equal(run_one(id++, 100).prefill, a); /* 450 ms against 400 */
}

static enum bt_status submit_cached(uint64_t id, uint32_t prompt, rt_worker_ref worker,
                                    uint32_t tokens)
{
    struct rt_cached cached[2] = {{worker, tokens}, {77777, tokens / 2}};
    struct rt_request_spec spec = {.id = id,
                                   .prompt_tokens = prompt,
                                   .max_tokens = 5,
                                   .arrival_ns = now,
                                   .deadline_ns = BT_NEVER_NS,
                                   .cached = cached,
                                   .cached_count = 2};
    return rt_core_submit(core, &spec, now, NULL, NULL);
}

static void test_cached_prefix_is_weighed_against_load(void **state)
{
    (void)state;
    open_roomy(RT_DECODE_KV_UTILIZATION);
    rt_worker_ref a = worker_add("a", RT_ROLE_PREFILL, 0);
    rt_worker_ref b = worker_add("b", RT_ROLE_PREFILL, 0);
    worker_add("d0", RT_ROLE_DECODE, 100000);
    assert_int_equal(submit_cached(1, 1000, b, 900), BT_OK);
    assert_int_equal(grant(1, 901).prefill, b);
    struct rt_worker_view view;
    assert_true(rt_core_worker(core, b, &view));
    assert_int_equal(view.ahead_ns, 100 * MS); /* what is cached takes no time */
    /* b: 100 + 400 ms; a: 1000 ms. */
    assert_int_equal(submit_cached(2, 1000, b, 600), BT_OK);
    assert_int_equal(grant(2, 902).prefill, b);
    /* b: 500 + 600 ms; a: 1000 ms. */
    assert_int_equal(submit_cached(3, 1000, b, 400), BT_OK);
    assert_int_equal(grant(3, 903).prefill, a);
    /* All of it cached: one token is computed. */
    assert_int_equal(submit_cached(4, 1000, b, 1000), BT_OK);
    assert_int_equal(grant(4, 904).prefill, b);
    assert_true(rt_core_worker(core, b, &view));
    assert_int_equal(view.ahead_ns, 501 * MS);
}

/* 5000 tokens are 5 s; after 4.5 s there is room for another within the depth of 1 s. */
static void test_work_ahead_shrinks_with_time(void **state)
{
    (void)state;
    core_open(NULL);
    rt_worker_ref p = worker_add("p0", RT_ROLE_PREFILL, 0);
    worker_add("d0", RT_ROLE_DECODE, 100000);
    struct rt_action run = run_one(1, 5000);
    submit(2, 600, 5);
    next_none();
    struct rt_worker_view view;
    for (int i = 0; i < 4; i++) {
        now += BT_NS_PER_S;
        rt_core_worker_heartbeat(core, "p0", 1, &(struct rt_load){0}, false, now);
        rt_core_worker_heartbeat(core, "d0", 1,
                                 &(struct rt_load){.pages_total = 100000, .pages_free = 100000},
                                 false, now);
        next_none();
    }
    rt_core_tick(core, ++now);
    rt_core_worker_load(core, p, &(struct rt_load){0});
    grant(2, 902);
    rt_core_worker(core, p, &view);
    assert_int_equal(view.ahead_ns, 1600 * MS - 1);
    /* However late it is: what can't have been begun is still ahead. */
    now += 2 * BT_NS_PER_S;
    rt_core_tick(core, now);
    rt_core_worker(core, p, &view);
    assert_int_equal(view.ahead_ns, 600 * MS);
    first_token(&run, 100);
    next_tokens(1, 0, 1);
    rt_core_worker(core, p, &view);
    assert_int_equal(view.ahead_ns, 600 * MS);
}

/* ---- decode */

static rt_worker_ref ranks[4];

static void open_ranks(enum rt_decode_policy policy)
{
    open_roomy(policy);
    worker_add("p0", RT_ROLE_PREFILL, 0);
    for (int i = 0; i < 4; i++) {
        char id[8];
        snprintf(id, sizeof id, "d%d", i);
        ranks[i] = worker_add(id, RT_ROLE_DECODE, 100);
    }
}

static void load(int rank, uint32_t used, uint32_t running, uint64_t kv_tokens)
{
    struct rt_load report = {.pages_total = 100,
                             .pages_free = 100 - used,
                             .running = running,
                             .max_running = 16,
                             .kv_tokens = kv_tokens};
    rt_core_worker_load(core, ranks[rank], &report);
}

static void test_round_robin(void **state)
{
    (void)state;
    open_ranks(RT_DECODE_ROUND_ROBIN);
    load(1, 100, 9, 0); /* full */
    const int order[] = {0, 2, 3, 0, 2, 3};
    for (uint64_t i = 0; i < 6; i++) {
        assert_int_equal(run_one(i + 1, 10).decode, ranks[order[i]]);
    }
}

static void test_remaining_slots(void **state)
{
    (void)state;
    open_ranks(RT_DECODE_REMAINING_SLOTS);
    load(0, 10, 15, 0); /* most pages, one row left */
    load(1, 50, 6, 0);
    load(2, 60, 3, 0);
    load(3, 90, 1, 0);
    /* A request has a page: slots are 1, 10, 13, 10. */
    assert_int_equal(run_one(1, 10).decode, ranks[2]);
}

static void test_mean_kv_length(void **state)
{
    (void)state;
    open_ranks(RT_DECODE_MEAN_KV_LENGTH);
    load(0, 20, 1, 1280);
    load(1, 80, 16, 5120); /* 320 each */
    load(2, 40, 4, 2560);  /* 640 each */
    load(3, 20, 2, 1280);
    assert_int_equal(run_one(1, 10).decode, ranks[1]);
}

static void test_power_of_two(void **state)
{
    (void)state;
    uint32_t chosen[2][200];
    uint32_t counts[4] = {0};
    for (int round = 0; round < 2; round++) {
        open_ranks(RT_DECODE_POWER_OF_TWO);
        for (uint64_t i = 0; i < 200; i++) {
            load(0, 10, 0, 0);
            load(1, 20, 0, 0);
            load(2, 30, 0, 0);
            load(3, 40, 0, 0);
            struct rt_action run = run_one(i + 1, 10);
            chosen[round][i] = run.decode;
            counts[run.decode - ranks[0]] += round == 0;
            computed(&run, 10);
        }
        core_close(NULL);
    }
    assert_memory_equal(chosen[0], chosen[1], sizeof chosen[0]);
    /* The best of two of four: 7, 5, 3, 1 of 16. Five standard deviations are about 35. */
    assert_in_range(counts[0], 87 - 35, 87 + 35);
    assert_in_range(counts[1], 62 - 35, 62 + 35);
    assert_in_range(counts[2], 37 - 30, 37 + 35);
    assert_in_range(counts[3], 1, 12 + 25);
}

/* A rank is projected to need what its requests will, though it reports less so far. */
static void test_expected_growth_is_reserved(void **state)
{
    (void)state;
    open_roomy(RT_DECODE_KV_UTILIZATION);
    worker_add("p0", RT_ROLE_PREFILL, 0);
    rt_worker_ref d = worker_add("d0", RT_ROLE_DECODE, 10);
    for (uint64_t id = 1; id <= 5; id++) { /* a page of prompt and a page of output each */
        submit(id, 64, 64);
        grant(id, 900 + id);
    }
    rt_core_worker_load(core, d, &(struct rt_load){.pages_total = 10, .pages_free = 5});
    submit(6, 64, 64);
    next_none();
    struct rt_worker_view view;
    assert_true(rt_core_worker(core, d, &view));
    assert_int_equal(view.projected_pages, 10);
}

static uint32_t projected(rt_worker_ref ref)
{
    struct rt_worker_view view;
    assert_true(rt_core_worker(core, ref, &view));
    return view.projected_pages;
}

/* A rank may take more pages than the core thought of: they count at once, not with a report. */
static void test_pages_that_a_rank_took_count(void **state)
{
    (void)state;
    open_roomy(RT_DECODE_KV_UTILIZATION);
    worker_add("p0", RT_ROLE_PREFILL, 0);
    rt_worker_ref d = worker_add("d0", RT_ROLE_DECODE, 10);
    submit(1, 64, 64);
    struct rt_action reserve = next(RT_ACTION_RESERVE, 1);
    assert_int_equal(projected(d), 2);
    rt_core_landed(core, 1, reserve.attempt + 1, 9); /* of another attempt */
    rt_core_landed(core, 1, reserve.attempt, 11);    /* more than it has */
    rt_core_landed(core, 1, reserve.attempt, 1);     /* less: it may grow */
    assert_int_equal(projected(d), 2);
    rt_core_landed(core, 1, reserve.attempt, 9);
    rt_core_reserved(core, 1, reserve.attempt, d, BT_OK, NULL, 900, now);
    next(RT_ACTION_PREFILL, 1);
    assert_int_equal(projected(d), 9);
    submit(2, 64, 64);
    next_none();
    rt_core_worker_load(core, d, &(struct rt_load){.pages_total = 10, .pages_free = 1});
    assert_int_equal(projected(d), 9);
    rt_core_finish(core, 1, RT_FINISH_CANCELLED, now);
    rt_core_worker_load(core, d, &(struct rt_load){.pages_total = 10, .pages_free = 10});
    assert_int_equal(projected(d), 0);
    struct rt_action action;
    while (rt_core_next_action(core, &action) && action.kind != RT_ACTION_RESERVE) {
    }
    assert_int_equal(action.request, 2);
}

/* Outputs of the class turn out short: more requests fit. */
static void test_expected_output_is_learned(void **state)
{
    (void)state;
    open_roomy(RT_DECODE_KV_UTILIZATION);
    worker_add("p0", RT_ROLE_PREFILL, 0);
    worker_add("d0", RT_ROLE_DECODE, 100);
    for (uint64_t id = 1; id <= 300; id++) {
        submit(id, 64, 1000);
        struct rt_action run = grant(id, 900 + id);
        decoded(&run, 0, 2, false);
        next_tokens(id, 0, 2);
        rt_core_finish(core, id, RT_FINISH_STOP, now);
        struct rt_action action;
        while (rt_core_next_action(core, &action)) {
        }
    }
    struct rt_worker_view view;
    submit(400, 60, 1000); /* 2 tokens more: one page */
    struct rt_action run = grant(400, 5000);
    assert_true(rt_core_worker(core, run.decode, &view));
    assert_int_equal(view.projected_pages, 1);
}

/* After RT_REFUSALS_MAX ranks refused it the request steps aside, and others pass it. */
static void test_request_that_many_refuse_lets_others_pass(void **state)
{
    (void)state;
    open_roomy(RT_DECODE_KV_UTILIZATION);
    worker_add("p0", RT_ROLE_PREFILL, 0);
    for (int i = 0; i < 20; i++) {
        char id[8];
        snprintf(id, sizeof id, "d%d", i);
        worker_add(id, RT_ROLE_DECODE, 100);
    }
    submit(1, 10, 5);
    rt_worker_ref last = RT_NO_WORKER;
    for (int i = 0; i < 16; i++) {
        struct rt_action reserve = next(RT_ACTION_RESERVE, 1);
        assert_int_not_equal(reserve.decode, last);
        last = reserve.decode;
        rt_core_reserved(core, 1, reserve.attempt, last, BT_ERR_EXHAUSTED, "full", 0, now);
    }
    next_none();
    assert_int_equal(rt_core_queued(core), 1);
    submit(2, 10, 5);
    next(RT_ACTION_RESERVE, 2);
    assert_int_equal(rt_core_next_deadline_ns(core), now + 50 * MS);
    now += 50 * MS;
    rt_core_tick(core, now);
    next(RT_ACTION_RESERVE, 1);
}

#define TEST(name) cmocka_unit_test_teardown(name, core_close)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_prefill_goes_by_what_workers_report),
        TEST(test_cached_prefix_is_weighed_against_load),
        TEST(test_work_ahead_shrinks_with_time),
        TEST(test_round_robin),
        TEST(test_remaining_slots),
        TEST(test_mean_kv_length),
        TEST(test_power_of_two),
        TEST(test_expected_growth_is_reserved),
        TEST(test_pages_that_a_rank_took_count),
        TEST(test_expected_output_is_learned),
        TEST(test_request_that_many_refuse_lets_others_pass),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
