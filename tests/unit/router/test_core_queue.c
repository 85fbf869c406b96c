/* Whose turn it is: lengths and ageing, tenants' shares, priorities, limits, and who is shed. */
#include "tests/unit/router/core_driver.h"

static rt_worker_ref decode;

/* Nothing is taken until `open_gate`. 1 ms a token. */
static void gate_open_core(struct rt_core_options options)
{
    options.queue_capacity = 1000;
    options.prefill_depth_ns = BT_NEVER_NS;
    core_open(&options);
    worker_add("p0", RT_ROLE_PREFILL, 0);
    decode = worker_add("d0", RT_ROLE_DECODE, 100000);
    rt_core_worker_load(core, decode, &(struct rt_load){.pages_total = 100000});
}

static void open_gate(void)
{
    struct rt_load load = {.pages_total = 100000, .pages_free = 100000};
    rt_core_worker_heartbeat(core, "p0", 1, &(struct rt_load){0}, false, now);
    rt_core_worker_heartbeat(core, "d0", 1, &load, false, now);
}

static void put(uint64_t id, uint32_t prompt, uint32_t tenant, uint32_t priority)
{
    struct rt_request_spec spec = {.id = id,
                                   .prompt_tokens = prompt,
                                   .max_tokens = 1,
                                   .arrival_ns = now,
                                   .deadline_ns = BT_NEVER_NS,
                                   .tenant = tenant,
                                   .priority = priority};
    assert_int_equal(rt_core_submit(core, &spec, now, NULL, NULL), BT_OK);
}

static uint64_t taken(void)
{
    struct rt_action action;
    assert_true(rt_core_next_action(core, &action));
    assert_int_equal(action.kind, RT_ACTION_RESERVE);
    return action.request;
}

static void test_short_prompts_first(void **state)
{
    (void)state;
    struct rt_core_options options = default_options;
    options.patience = 10;
    gate_open_core(options);
    put(1, 4096, 0, 0);
    put(2, 500, 0, 0);
    put(3, 10, 0, 0);
    put(4, 480, 0, 0); /* as long as 2, as far as buckets go */
    open_gate();
    assert_int_equal(taken(), 3);
    assert_int_equal(taken(), 2);
    assert_int_equal(taken(), 4);
    assert_int_equal(taken(), 1);
}

/* 4096 tokens take 4096 ms; with patience 10 whatever comes within 40.96 s may go first, and
 * nothing that comes later. */
static void test_long_prompt_waits_no_longer_than_its_bound(void **state)
{
    (void)state;
    struct rt_core_options options = default_options;
    options.patience = 10;
    options.silent_after_ns = options.lost_after_ns = BT_NEVER_NS / 2;
    gate_open_core(options);
    int64_t begin_ns = now;
    put(1, 4096, 0, 0);
    uint64_t id = 2, before = 0;
    for (; now < begin_ns + 60 * BT_NS_PER_S; now += 500 * MS) {
        before += now + 640 * MS < begin_ns + 40960 * MS;
        put(id++, 64, 0, 0);
    }
    open_gate();
    for (uint64_t i = 0; i < before; i++) {
        assert_int_equal(taken(), i + 2);
    }
    assert_int_equal(taken(), 1);
    assert_int_equal(taken(), before + 2);
}

static void test_order_of_submission_without_patience(void **state)
{
    (void)state;
    gate_open_core(default_options);
    put(1, 4096, 0, 0);
    put(2, 10, 0, 0);
    open_gate();
    assert_int_equal(taken(), 1);
    assert_int_equal(taken(), 2);
}

static void set_limits(uint32_t tenant, uint32_t weight, uint32_t running, uint32_t waiting)
{
    struct rt_tenant_limits limits = {weight, running, waiting};
    assert_int_equal(rt_core_tenant_set(core, tenant, &limits), BT_OK);
}

static void test_shares_go_by_weight(void **state)
{
    (void)state;
    gate_open_core(default_options);
    set_limits(1, 3, 0, 0);
    set_limits(2, 1, 0, 0);
    for (uint64_t i = 0; i < 80; i++) {
        put(1000 + i, 99, 1, 0);
        put(2000 + i, 99, 2, 0);
    }
    open_gate();
    int first = 0;
    for (int i = 0; i < 40; i++) {
        first += taken() < 2000;
    }
    assert_in_range(first, 29, 31);
}

/* Tokens count, not requests. */
static void test_shares_are_of_tokens(void **state)
{
    (void)state;
    gate_open_core(default_options);
    for (uint64_t i = 0; i < 80; i++) {
        put(1000 + i, 299, 1, 0);
        put(2000 + i, 99, 2, 0);
    }
    open_gate();
    int first = 0;
    for (int i = 0; i < 40; i++) {
        first += taken() < 2000;
    }
    assert_in_range(first, 9, 11);
}

static void test_nobody_saves_up(void **state)
{
    (void)state;
    gate_open_core(default_options);
    for (uint64_t i = 0; i < 50; i++) {
        put(1000 + i, 99, 1, 0);
    }
    open_gate();
    for (int i = 0; i < 20; i++) {
        taken();
        if (i == 9) { /* from here on they share, though 2 had nothing until now */
            rt_core_worker_load(core, decode, &(struct rt_load){.pages_total = 100000});
            break;
        }
    }
    struct rt_action action;
    while (rt_core_next_action(core, &action)) {
    }
    for (uint64_t i = 0; i < 50; i++) {
        put(3000 + i, 99, 1, 0);
        put(2000 + i, 99, 2, 0);
    }
    open_gate();
    int second = 0;
    for (int i = 0; i < 20; i++) {
        uint64_t id = taken();
        second += id >= 2000 && id < 3000;
    }
    assert_in_range(second, 9, 11);
}

static void test_priorities_are_strict_but_age(void **state)
{
    (void)state;
    struct rt_core_options options = default_options;
    options.promote_after_ns = 2 * BT_NS_PER_S;
    options.silent_after_ns = options.lost_after_ns = BT_NEVER_NS / 2;
    gate_open_core(options);
    put(1, 10, 0, 2);
    put(2, 10, 0, 1);
    put(3, 10, 0, 0);
    open_gate();
    assert_int_equal(taken(), 3);
    assert_int_equal(taken(), 2);
    assert_int_equal(taken(), 1);
    rt_core_worker_load(core, decode, &(struct rt_load){.pages_total = 100000});
    put(4, 10, 0, 2); /* up by one after 2 s, by two after 4 s */
    now += 3 * BT_NS_PER_S;
    put(5, 10, 0, 1);
    put(6, 10, 0, 0);
    open_gate();
    assert_int_equal(taken(), 6);
    assert_int_equal(taken(), 4);
    assert_int_equal(taken(), 5);
    rt_core_worker_load(core, decode, &(struct rt_load){.pages_total = 100000});
    put(7, 10, 0, 2);
    now += 5 * BT_NS_PER_S;
    put(8, 10, 0, 0);
    open_gate();
    assert_int_equal(taken(), 7);
}

static void test_tenant_runs_no_more_than_its_limit(void **state)
{
    (void)state;
    gate_open_core(default_options);
    set_limits(1, 1, 1, 0);
    put(1, 10, 1, 0);
    put(2, 10, 1, 0);
    put(3, 10, 2, 0);
    open_gate();
    struct rt_action first = next(RT_ACTION_RESERVE, 1);
    assert_int_equal(taken(), 3);
    next_none();
    rt_core_finish(core, first.request, RT_FINISH_CANCELLED, now);
    next(RT_ACTION_CANCEL_DECODE, 1);
    next_end(1, RT_FINISH_CANCELLED);
    assert_int_equal(taken(), 2);
    /* One that comes back does not count while it waits. */
    rt_core_reserved(core, 2, 1, decode, BT_ERR_EXHAUSTED, "full", 0, now);
    put(4, 10, 1, 0);
    next_none();
    rt_core_worker_load(core, decode,
                        &(struct rt_load){.pages_total = 100000, .pages_free = 100000});
    assert_int_equal(taken(), 2);
    next_none();
    set_limits(1, 1, 2, 0);
    assert_int_equal(taken(), 4);
}

static void test_tenant_waits_with_no_more_than_its_limit(void **state)
{
    (void)state;
    gate_open_core(default_options);
    set_limits(1, 1, 0, 1);
    put(1, 10, 1, 0);
    struct rt_request_spec spec = {.id = 2,
                                   .prompt_tokens = 10,
                                   .max_tokens = 1,
                                   .arrival_ns = now,
                                   .deadline_ns = BT_NEVER_NS,
                                   .tenant = 1};
    int64_t retry_ns = 0;
    assert_int_equal(rt_core_submit(core, &spec, now, NULL, &retry_ns), BT_ERR_EXHAUSTED);
    assert_true(retry_ns >= RT_RETRY_AFTER_MIN_NS);
    spec.tenant = 2;
    assert_int_equal(rt_core_submit(core, &spec, now, NULL, &retry_ns), BT_OK);
}

static enum bt_status submit_slo(uint64_t id, uint32_t prompt, int64_t slo_ns,
                                 int64_t *ret_retry_ns)
{
    struct rt_request_spec spec = {.id = id,
                                   .prompt_tokens = prompt,
                                   .max_tokens = 1,
                                   .arrival_ns = now,
                                   .deadline_ns = BT_NEVER_NS,
                                   .slo_ttft_ns = slo_ns};
    return rt_core_submit(core, &spec, now, NULL, ret_retry_ns);
}

/* One worker, 1 ms a token, nothing measured yet: what waits is 10 times 64 ms. */
static void test_shed_what_would_come_too_late(void **state)
{
    (void)state;
    struct rt_core_options options = default_options;
    gate_open_core(options);
    int64_t retry_ns = 0;
    assert_int_equal(submit_slo(100, 900, 800 * MS, &retry_ns), BT_ERR_EXHAUSTED);
    assert_int_equal(retry_ns, 100 * MS);
    assert_int_equal(submit_slo(101, 900, 900 * MS, &retry_ns), BT_OK);
    rt_core_finish(core, 101, RT_FINISH_CANCELLED, now);
    next_end(101, RT_FINISH_CANCELLED);
    for (uint64_t id = 1; id <= 10; id++) {
        put(id, 64, 0, 0);
    }
    assert_int_equal(submit_slo(102, 60, 690 * MS, &retry_ns), BT_ERR_EXHAUSTED);
    assert_int_equal(submit_slo(103, 60, 710 * MS, &retry_ns), BT_OK);
    assert_int_equal(submit_slo(104, 60, 0, &retry_ns), BT_OK);
    struct rt_core_counts counts;
    rt_core_counts(core, &counts);
    assert_int_equal(counts.shed_slo, 2);
}

/* What holds the queue up is pages, not prefill: the measured rate knows. */
static void test_predictions_follow_the_measured_rate(void **state)
{
    (void)state;
    struct rt_core_options options = default_options;
    options.silent_after_ns = options.lost_after_ns = BT_NEVER_NS / 2;
    gate_open_core(options);
    for (uint64_t id = 1; id <= 100; id++) {
        put(id, 64, 0, 0);
    }
    /* One every 500 ms for 10 s: 64 ms of prefill in 500 ms, and 80 wait. */
    for (int i = 0; i < 20; i++) {
        now += 500 * MS;
        struct rt_load one = {.pages_total = 100000, .pages_free = 2};
        rt_core_worker_load(core, decode, &one);
        struct rt_action action = next(RT_ACTION_RESERVE, (uint64_t)i + 1);
        rt_core_reserved(core, action.request, action.attempt, decode, BT_OK, NULL, 7 + (uint64_t)i,
                         now);
        struct rt_action run = next(RT_ACTION_PREFILL, action.request);
        first_token(&run, 100);
        next_tokens(action.request, 0, 1);
        decoded(&run, 0, 1, true);
        next_end(action.request, RT_FINISH_LENGTH);
        rt_core_worker_load(core, decode, &(struct rt_load){.pages_total = 100000});
        next_none();
    }
    struct rt_request_spec spec = {.id = 500, .prompt_tokens = 64, .max_tokens = 1};
    int64_t predicted_ns = rt_core_predict_ttft_ns(core, &spec, now);
    assert_in_range(predicted_ns / MS, 80 * 500 * 8 / 10, 80 * 500 * 12 / 10);
}

#define TEST(name) cmocka_unit_test_teardown(name, core_close)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_short_prompts_first),
        TEST(test_long_prompt_waits_no_longer_than_its_bound),
        TEST(test_order_of_submission_without_patience),
        TEST(test_shares_go_by_weight),
        TEST(test_shares_are_of_tokens),
        TEST(test_nobody_saves_up),
        TEST(test_priorities_are_strict_but_age),
        TEST(test_tenant_runs_no_more_than_its_limit),
        TEST(test_tenant_waits_with_no_more_than_its_limit),
        TEST(test_shed_what_would_come_too_late),
        TEST(test_predictions_follow_the_measured_rate),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
