/* Requests that a decode rank runs already when the core hears of them. */
#include "tests/unit/router/core_driver.h"

static rt_worker_ref prefill, decode, other;

static void open_cluster(void)
{
    core_open(NULL);
    prefill = worker_add("prefill", RT_ROLE_PREFILL, 0);
    decode = worker_add("decode", RT_ROLE_DECODE, 100);
}

static struct rt_request_spec spec_of(uint64_t id, uint32_t prompt, uint32_t max_tokens)
{
    return (struct rt_request_spec){.id = id,
                                    .prompt_tokens = prompt,
                                    .max_tokens = max_tokens,
                                    .arrival_ns = now,
                                    .deadline_ns = BT_NEVER_NS};
}

static enum bt_status adopt(uint64_t id, rt_worker_ref worker, uint64_t epoch)
{
    struct rt_request_spec spec = spec_of(id, 100, 32);
    return rt_core_adopt(core, &spec, worker, epoch, now, NULL);
}

static struct rt_action at(uint64_t id, rt_worker_ref worker, uint64_t epoch)
{
    return (struct rt_action){.request = id, .decode = worker, .epoch = epoch, .attempt = 1};
}

static uint32_t projected(rt_worker_ref worker)
{
    struct rt_worker_view view;
    assert_true(rt_core_worker(core, worker, &view));
    return view.projected_pages;
}

static void test_adopted_is_decoding_and_ends_with_its_tokens(void **state)
{
    (void)state;
    open_cluster();
    assert_int_equal(adopt(7, decode, 5), BT_OK);
    next_none(); /* nothing is asked of any worker */
    struct rt_request_view view;
    assert_true(rt_core_request(core, 7, &view));
    assert_int_equal(view.state, RT_DECODING);
    assert_int_equal(view.decode, decode);
    assert_int_equal(rt_core_queued(core), 0);
    struct rt_action run = at(7, decode, 5);
    decoded(&run, 0, 20, false);
    next_tokens(7, 0, 20);
    decoded(&run, 20, 12, true);
    next_tokens(7, 20, 12);
    next_end(7, RT_FINISH_LENGTH);
    next_none();
    assert_int_equal(projected(decode), 0);
    struct rt_core_counts counts;
    rt_core_counts(core, &counts);
    assert_int_equal(counts.adopted, 1);
    assert_int_equal(counts.submitted, 1);
}

/* 100 + 32 tokens are 3 pages. They are in the rank's reports, and expected where those say less.
 */
static void test_pages_of_the_adopted_count_once(void **state)
{
    (void)state;
    open_cluster();
    struct rt_load load = {.pages_total = 100, .pages_free = 97, .running = 1};
    rt_core_worker_load(core, decode, &load);
    assert_int_equal(projected(decode), 3);
    assert_int_equal(adopt(7, decode, 5), BT_OK);
    assert_int_equal(projected(decode), 3);
    load.pages_free = 99; /* it has grown into one only */
    rt_core_worker_load(core, decode, &load);
    assert_int_equal(projected(decode), 3);
    rt_core_finish(core, 7, RT_FINISH_CANCELLED, now);
    assert_int_equal(projected(decode), 1);
}

static void test_refused_where_it_can_not_be(void **state)
{
    (void)state;
    open_cluster();
    assert_int_equal(adopt(7, prefill, 5), BT_ERR_UNAVAILABLE);
    assert_int_equal(adopt(7, 999, 5), BT_ERR_UNAVAILABLE);
    assert_int_equal(adopt(7, decode, 0), BT_ERR_UNAVAILABLE);
    assert_int_equal(adopt(0, decode, 5), BT_ERR_ALREADY_EXISTS);
    assert_int_equal(adopt(7, decode, 5), BT_OK);
    assert_int_equal(adopt(7, decode, 6), BT_ERR_ALREADY_EXISTS);
    assert_int_equal(submit_until(7, 10, 10, BT_NEVER_NS), BT_ERR_ALREADY_EXISTS);
    rt_core_worker_lost(core, decode, "test", now);
    assert_int_equal(adopt(8, decode, 5), BT_ERR_UNAVAILABLE);
}

/* What the rank does not have runs from its prompt, on any rank. */
static void test_failed_adoption_runs_anew(void **state)
{
    (void)state;
    open_cluster();
    other = worker_add("other", RT_ROLE_DECODE, 100);
    assert_int_equal(adopt(7, decode, 5), BT_OK);
    struct rt_action run = at(7, decode, 5);
    decode_failed(&run, BT_ERR_UNAVAILABLE);
    struct rt_action again = grant(7, 6);
    assert_int_equal(again.attempt, 2);
    assert_int_equal(again.decode, other); /* the other one refused a moment ago */
    first_token(&again, 100);
    next_tokens(7, 0, 1);
    run_ended(&again, BT_OK);
    decoded(&again, 0, 32, true);
    next_tokens(7, 1, 31);
    next_end(7, RT_FINISH_LENGTH);
    struct rt_core_counts counts;
    rt_core_counts(core, &counts);
    assert_int_equal(counts.retries, 0); /* nobody is blamed */
}

/* The tokens that came stay; what repeats them is checked against them. */
static void test_lost_rank_of_an_adopted_one(void **state)
{
    (void)state;
    open_cluster();
    assert_int_equal(adopt(7, decode, 5), BT_OK);
    struct rt_action run = at(7, decode, 5);
    decoded(&run, 0, 8, false);
    next_tokens(7, 0, 8);
    other = worker_add("other", RT_ROLE_DECODE, 100);
    rt_core_worker_lost(core, decode, "killed", now);
    next(RT_ACTION_CANCEL_DECODE, 7);
    struct rt_action again = grant(7, 9);
    assert_int_equal(again.decode, other);
    const uint32_t *tokens;
    assert_int_equal(rt_core_delivered(core, 7, &tokens), 8);
    first_token(&again, 100);
    run_ended(&again, BT_OK);
    decoded(&again, 0, 16, false);
    next_tokens(7, 8, 8);
}

static void test_cancel_of_an_adopted_one_reaches_the_rank(void **state)
{
    (void)state;
    open_cluster();
    assert_int_equal(adopt(7, decode, 5), BT_OK);
    rt_core_finish(core, 7, RT_FINISH_CANCELLED, now);
    struct rt_action cancel = next(RT_ACTION_CANCEL_DECODE, 7);
    assert_int_equal(cancel.decode, decode);
    assert_int_equal(cancel.epoch, 5);
    next_end(7, RT_FINISH_CANCELLED);
}

static void test_deadline_of_its_own(void **state)
{
    (void)state;
    open_cluster();
    struct rt_request_spec spec = spec_of(7, 100, 32);
    spec.deadline_ns = now + 100 * MS;
    assert_int_equal(rt_core_adopt(core, &spec, decode, 5, now, NULL), BT_OK);
    rt_core_set_deadline(core, 7, now + 300 * MS); /* somebody else waits for it now */
    now += 200 * MS;
    rt_core_tick(core, now);
    next_none();
    now += 100 * MS;
    assert_true(rt_core_next_deadline_ns(core) <= now);
    rt_core_tick(core, now);
    next(RT_ACTION_CANCEL_DECODE, 7);
    next_end(7, RT_FINISH_DEADLINE);
    rt_core_set_deadline(core, 7, now); /* it ended */
    next_none();
}

/* It fills its tenant's share of what may run. */
static void test_tenant_limits_count_it(void **state)
{
    (void)state;
    open_cluster();
    struct rt_tenant_limits limits = {.weight = 1, .max_running = 1};
    assert_int_equal(rt_core_tenant_set(core, 3, &limits), BT_OK);
    struct rt_request_spec spec = spec_of(7, 100, 32);
    spec.tenant = 3;
    assert_int_equal(rt_core_adopt(core, &spec, decode, 5, now, NULL), BT_OK);
    spec.id = 8;
    assert_int_equal(rt_core_submit(core, &spec, now, NULL, NULL), BT_OK);
    next_none();
    rt_core_finish(core, 7, RT_FINISH_STOP, now);
    next(RT_ACTION_CANCEL_DECODE, 7);
    next_end(7, RT_FINISH_STOP);
    next(RT_ACTION_RESERVE, 8);
}

#define TEST(name) cmocka_unit_test_teardown(name, core_close)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_adopted_is_decoding_and_ends_with_its_tokens),
        TEST(test_pages_of_the_adopted_count_once),
        TEST(test_refused_where_it_can_not_be),
        TEST(test_failed_adoption_runs_anew),
        TEST(test_lost_rank_of_an_adopted_one),
        TEST(test_cancel_of_an_adopted_one_reaches_the_rank),
        TEST(test_deadline_of_its_own),
        TEST(test_tenant_limits_count_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
