/* The router's decisions, one situation a test. */
#include "tests/unit/router/core_driver.h"

static void test_one_request_from_submit_to_end(void **state)
{
    (void)state;
    core_open(NULL);
    rt_worker_ref prefill = worker_add("p0", RT_ROLE_PREFILL, 0);
    rt_worker_ref decode = worker_add("d0", RT_ROLE_DECODE, 10);
    submit(7, 100, 5);
    struct rt_action run = grant(7, 900);
    assert_int_equal(run.prefill, prefill);
    assert_int_equal(run.decode, decode);
    first_token(&run, 100);
    next_tokens(7, 0, 1);
    run_ended(&run, BT_OK);
    decoded(&run, 0, 3, false); /* repeats token 0 */
    next_tokens(7, 1, 2);
    decoded(&run, 3, 2, true);
    next_tokens(7, 3, 2);
    next_end(7, RT_FINISH_LENGTH);
    next_none();
    struct rt_request_view view;
    assert_false(rt_core_request(core, 7, &view));
}

static void test_decode_may_be_heard_before_prefill(void **state)
{
    (void)state;
    core_open(NULL);
    worker_add("p0", RT_ROLE_PREFILL, 0);
    worker_add("d0", RT_ROLE_DECODE, 10);
    submit(7, 100, 2);
    struct rt_action run = grant(7, 900);
    decoded(&run, 0, 1, false);
    next_tokens(7, 0, 1);
    first_token(&run, 100);
    next_none();
    decoded(&run, 1, 1, true);
    next_tokens(7, 1, 1);
    next_end(7, RT_FINISH_LENGTH);
    run_ended(&run, BT_OK);
    next_none();
}

static void test_error_of_the_run_after_decode_has_it_changes_nothing(void **state)
{
    (void)state;
    core_open(NULL);
    rt_worker_ref prefill = worker_add("p0", RT_ROLE_PREFILL, 0);
    worker_add("d0", RT_ROLE_DECODE, 10);
    submit(7, 100, 2);
    struct rt_action run = grant(7, 900);
    decoded(&run, 0, 1, false);
    next_tokens(7, 0, 1);
    rt_core_worker_lost(core, prefill, "killed", now);
    run_ended(&run, BT_ERR_PEER_LOST);
    next_none();
    decoded(&run, 1, 1, true);
    next_tokens(7, 1, 1);
    next_end(7, RT_FINISH_LENGTH);
}

static void test_submit_is_refused_for_what_can_never_run(void **state)
{
    (void)state;
    core_open(NULL);
    struct rt_request_spec spec = {.id = 1,
                                   .prompt_tokens = 100,
                                   .max_tokens = 5,
                                   .arrival_ns = now,
                                   .deadline_ns = BT_NEVER_NS};
    struct bt_error error;
    assert_int_equal(rt_core_submit(core, &spec, now, &error, NULL), BT_ERR_UNAVAILABLE);
    assert_non_null(strstr(error.text, "prefill"));
    worker_add("p0", RT_ROLE_PREFILL, 0);
    assert_int_equal(rt_core_submit(core, &spec, now, &error, NULL), BT_ERR_UNAVAILABLE);
    assert_non_null(strstr(error.text, "decode"));
    worker_add("d0", RT_ROLE_DECODE, 10);
    worker_add("d1", RT_ROLE_DECODE, 12);
    spec.max_tokens = 12 * 64 - 100;
    assert_int_equal(rt_core_submit(core, &spec, now, &error, NULL), BT_OK);
    spec.id = 2;
    spec.max_tokens += 64 * 3; /* 3 pages more than the largest has */
    assert_int_equal(rt_core_submit(core, &spec, now, &error, NULL), BT_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, " 3 more"));
    spec.id = 1;
    spec.max_tokens = 1;
    assert_int_equal(rt_core_submit(core, &spec, now, &error, NULL), BT_ERR_ALREADY_EXISTS);
}

static void test_queue_is_bounded_and_first_come_first_served(void **state)
{
    (void)state;
    core_open(NULL);
    worker_add("p0", RT_ROLE_PREFILL, 0);
    rt_worker_ref decode = worker_add("d0", RT_ROLE_DECODE, 4);
    submit(1, 200, 50);
    struct rt_action run = grant(1, 900);
    /* 1 has all pages. 2 needs as many, 3 would fit if it were let past: nothing is. */
    submit(2, 200, 50);
    for (uint64_t id = 3; id <= 9; id++) {
        submit(id, 10, 5);
    }
    next_none();
    assert_int_equal(rt_core_queued(core), 8);
    assert_int_equal(submit_until(10, 10, 5, BT_NEVER_NS), BT_ERR_EXHAUSTED);
    decoded(&run, 0, 1, true);
    next_tokens(1, 0, 1);
    next_end(1, RT_FINISH_LENGTH);
    struct rt_load load = {.pages_total = 4, .pages_free = 4};
    rt_core_worker_load(core, decode, &load);
    next(RT_ACTION_RESERVE, 2);
    next_none();
    assert_int_equal(submit_until(10, 10, 5, BT_NEVER_NS), BT_OK);
}

static void test_those_behind_a_head_that_leaves_go_at_once(void **state)
{
    (void)state;
    core_open(NULL);
    worker_add("p0", RT_ROLE_PREFILL, 0);
    worker_add("d0", RT_ROLE_DECODE, 5);
    submit(1, 200, 50);
    grant(1, 900);
    submit(2, 200, 50);
    submit(3, 10, 5);
    next_none();
    rt_core_finish(core, 2, RT_FINISH_CANCELLED, now);
    next_end(2, RT_FINISH_CANCELLED);
    next(RT_ACTION_RESERVE, 3);
}

/* a: 10 of 100 used. b: 2 of 10. A request of 2 pages makes 12 % against 40 %. */
static void test_decode_rank_with_lowest_projected_utilisation(void **state)
{
    (void)state;
    core_open(NULL);
    worker_add("p0", RT_ROLE_PREFILL, 0);
    rt_worker_ref a = worker_add("a", RT_ROLE_DECODE, 100);
    rt_worker_ref b = worker_add("b", RT_ROLE_DECODE, 10);
    rt_core_worker_load(core, a, &(struct rt_load){.pages_total = 100, .pages_free = 90});
    rt_core_worker_load(core, b, &(struct rt_load){.pages_total = 10, .pages_free = 8});
    submit(1, 70, 5);
    assert_int_equal(next(RT_ACTION_RESERVE, 1).decode, a);
    /* Now a is at 40 with b at 20: before, a would have been lower with the request (42 to 40). */
    rt_core_worker_load(core, a, &(struct rt_load){.pages_total = 100, .pages_free = 60});
    submit(2, 70, 5);
    assert_int_equal(next(RT_ACTION_RESERVE, 2).decode, b);
}

static void test_ties_go_to_fewest_running_then_first_registered(void **state)
{
    (void)state;
    core_open(NULL);
    worker_add("p0", RT_ROLE_PREFILL, 0);
    rt_worker_ref a = worker_add("a", RT_ROLE_DECODE, 100);
    rt_worker_ref b = worker_add("b", RT_ROLE_DECODE, 100);
    rt_worker_ref c = worker_add("c", RT_ROLE_DECODE, 100);
    rt_core_worker_load(core, a,
                        &(struct rt_load){.pages_total = 100, .pages_free = 100, .running = 2});
    rt_core_worker_load(core, b,
                        &(struct rt_load){.pages_total = 100, .pages_free = 100, .running = 1});
    rt_core_worker_load(core, c,
                        &(struct rt_load){.pages_total = 100, .pages_free = 100, .running = 1});
    submit(1, 70, 5);
    assert_int_equal(next(RT_ACTION_RESERVE, 1).decode, b);
}

static void test_pages_count_once(void **state)
{
    (void)state;
    core_open(NULL);
    worker_add("p0", RT_ROLE_PREFILL, 0);
    rt_worker_ref d = worker_add("d0", RT_ROLE_DECODE, 100);
    struct rt_worker_view view;
    submit(1, 130, 30);
    struct rt_action reserve = next(RT_ACTION_RESERVE, 1);
    rt_core_worker(core, d, &view);
    assert_int_equal(view.projected_pages, 3);
    /* A report before the answer does not hold the pages yet. */
    rt_core_worker_load(core, d, &(struct rt_load){.pages_total = 100, .pages_free = 100});
    rt_core_worker(core, d, &view);
    assert_int_equal(view.projected_pages, 3);
    rt_core_reserved(core, 1, reserve.attempt, d, BT_OK, NULL, 5, now);
    rt_core_worker_load(core, d, &(struct rt_load){.pages_total = 100, .pages_free = 97});
    rt_core_worker(core, d, &view);
    assert_int_equal(view.projected_pages, 3);
}

static void test_least_backlog_of_prefill_workers(void **state)
{
    (void)state;
    core_open(NULL);
    rt_worker_ref a = worker_add("a", RT_ROLE_PREFILL, 0);
    rt_worker_ref b = worker_add("b", RT_ROLE_PREFILL, 0);
    worker_add("d0", RT_ROLE_DECODE, 1000);
    submit(1, 600, 5);
    submit(2, 900, 5);
    submit(3, 600, 5);
    submit(4, 10, 5);
    submit(5, 10, 5);
    struct rt_action run1 = {0}, run2 = {0};
    struct rt_action reserve[4];
    for (int i = 0; i < 4; i++) {
        reserve[i] = next(RT_ACTION_RESERVE, (uint64_t)i + 1);
    }
    /* 600 | 0, 600 | 900, 1200 | 900, 1200 | 910: below the depth of 1000 only b takes more */
    assert_int_equal(reserve[0].prefill, a);
    assert_int_equal(reserve[1].prefill, b);
    assert_int_equal(reserve[2].prefill, a);
    assert_int_equal(reserve[3].prefill, b);
    assert_int_equal(next(RT_ACTION_RESERVE, 5).prefill, b);
    submit(6, 500, 5);
    submit(7, 10, 5);
    assert_int_equal(next(RT_ACTION_RESERVE, 6).prefill, b);
    next_none(); /* 1200 | 1420 */
    rt_core_reserved(core, 1, 1, reserve[0].decode, BT_OK, NULL, 5, now);
    rt_core_reserved(core, 3, 1, reserve[2].decode, BT_OK, NULL, 6, now);
    run1 = next(RT_ACTION_PREFILL, 1);
    run2 = next(RT_ACTION_PREFILL, 3);
    first_token(&run1, 100); /* computed: no backlog any more, though the run goes on */
    next_tokens(1, 0, 1);
    assert_int_equal(next(RT_ACTION_RESERVE, 7).prefill, a);
    run_ended(&run1, BT_OK);
    run_ended(&run2, BT_OK);
    next_none();
}

static void test_idle_prefill_worker_takes_any_prompt(void **state)
{
    (void)state;
    core_open(NULL);
    worker_add("p0", RT_ROLE_PREFILL, 0);
    worker_add("d0", RT_ROLE_DECODE, 1000);
    submit(1, 5000, 5);
    submit(2, 10, 5);
    next(RT_ACTION_RESERVE, 1);
    next_none();
}

static void test_backlog_of_others_counts_and_ours_once(void **state)
{
    (void)state;
    core_open(NULL);
    rt_worker_ref a = worker_add("a", RT_ROLE_PREFILL, 0);
    rt_worker_ref b = worker_add("b", RT_ROLE_PREFILL, 0);
    worker_add("d0", RT_ROLE_DECODE, 1000);
    submit(1, 600, 5);
    assert_int_equal(next(RT_ACTION_RESERVE, 1).prefill, a);
    rt_core_worker_load(core, a, &(struct rt_load){.waiting_tokens = 600}); /* it is ours */
    rt_core_worker_load(core, b, &(struct rt_load){.waiting_tokens = 700}); /* it is not */
    submit(2, 10, 5);
    assert_int_equal(next(RT_ACTION_RESERVE, 2).prefill, a);
}

static void test_refused_reserve_tries_the_next_rank_then_waits(void **state)
{
    (void)state;
    core_open(NULL);
    worker_add("p0", RT_ROLE_PREFILL, 0);
    rt_worker_ref a = worker_add("a", RT_ROLE_DECODE, 100);
    rt_worker_ref b = worker_add("b", RT_ROLE_DECODE, 90);
    submit(1, 70, 5);
    struct rt_action reserve = next(RT_ACTION_RESERVE, 1);
    assert_int_equal(reserve.decode, a);
    rt_core_reserved(core, 1, reserve.attempt, a, BT_ERR_EXHAUSTED, "full", 0, now);
    reserve = next(RT_ACTION_RESERVE, 1); /* EXHAUSTED took nothing: no cancel */
    assert_int_equal(reserve.decode, b);
    rt_core_reserved(core, 1, reserve.attempt, b, BT_ERR_UNAVAILABLE, "draining", 0, now);
    struct rt_action cancel = next(RT_ACTION_CANCEL_DECODE, 1);
    assert_int_equal(cancel.decode, b);
    assert_int_equal(cancel.epoch, 0);
    next_none();
    assert_int_equal(rt_core_queued(core), 1);
    assert_int_equal(rt_core_next_deadline_ns(core), now + 50 * MS);
    /* b's load is news of b alone. */
    rt_core_worker_load(core, b, &(struct rt_load){.pages_total = 90, .pages_free = 90});
    reserve = next(RT_ACTION_RESERVE, 1);
    assert_int_equal(reserve.decode, b);
    rt_core_reserved(core, 1, reserve.attempt, b, BT_ERR_EXHAUSTED, "full", 0, now);
    next_none();
    now += 50 * MS;
    rt_core_tick(core, now);
    assert_int_equal(next(RT_ACTION_RESERVE, 1).decode, a);
}

/* An attempt before has not ended there yet: it is asked to, waited for, and no failure. */
static void test_a_rank_that_still_has_the_request_is_waited_for(void **state)
{
    (void)state;
    core_open(NULL);
    worker_add("p0", RT_ROLE_PREFILL, 0);
    rt_worker_ref d = worker_add("d0", RT_ROLE_DECODE, 100);
    submit(1, 70, 5);
    for (uint32_t i = 0; i < 20; i++) {
        struct rt_action reserve = next(RT_ACTION_RESERVE, 1);
        rt_core_reserved(core, 1, reserve.attempt, d, BT_ERR_ALREADY_EXISTS, "it is here", 0, now);
        assert_int_equal(next(RT_ACTION_CANCEL_DECODE, 1).epoch, 0);
        next_none();
        now += 50 * MS;
        rt_core_tick(core, now);
    }
    next(RT_ACTION_RESERVE, 1);
}

static void test_preempted_runs_again_at_the_head_in_full(void **state)
{
    (void)state;
    struct rt_core_options options = default_options;
    options.max_attempts = 1; /* a preemption is no failure */
    core_open(&options);
    worker_add("p0", RT_ROLE_PREFILL, 0);
    rt_worker_ref d = worker_add("d0", RT_ROLE_DECODE, 20);
    submit(1, 64, 640); /* expected 64: 2 pages; in full: 11 */
    struct rt_action run = grant(1, 900);
    assert_false(run.full);
    decoded(&run, 0, 3, false);
    next_tokens(1, 0, 3);
    rt_core_worker_load(core, d, &(struct rt_load){.pages_total = 20, .pages_free = 10});
    submit(2, 64 * 10, 64);
    next_none();
    submit(3, 10, 10);
    decode_failed(&run, BT_ERR_PREEMPTED);
    next(RT_ACTION_CANCEL_PREFILL, 1);
    next_none(); /* 11 pages are not free, and 2 and 3 stay behind */
    rt_core_worker_load(core, d, &(struct rt_load){.pages_total = 20, .pages_free = 19});
    struct rt_action reserve = next(RT_ACTION_RESERVE, 1);
    assert_true(reserve.full);
    rt_core_reserved(core, 1, reserve.attempt, d, BT_OK, NULL, 901, now);
    run = next(RT_ACTION_PREFILL, 1);
    first_token(&run, 100);
    next_none();
    decoded(&run, 0, 4, true);
    next_tokens(1, 3, 1);
    next_end(1, RT_FINISH_LENGTH);
}

static void test_a_different_token_on_retry_is_an_error(void **state)
{
    (void)state;
    core_open(NULL);
    worker_add("p0", RT_ROLE_PREFILL, 0);
    rt_worker_ref a = worker_add("a", RT_ROLE_DECODE, 20);
    worker_add("b", RT_ROLE_DECODE, 20);
    submit(1, 64, 10);
    struct rt_action run = grant(1, 900);
    decoded(&run, 0, 2, false);
    next_tokens(1, 0, 2);
    rt_core_worker_lost(core, a, "killed", now);
    next(RT_ACTION_CANCEL_PREFILL, 1);
    assert_int_equal(next(RT_ACTION_CANCEL_DECODE, 1).decode, a);
    run = grant(1, 901);
    assert_int_not_equal(run.decode, a);
    struct rt_token wrong[2] = {{.index = 0, .token = 100}, {.index = 1, .token = 7}};
    rt_core_decoded(core, run.decode, 1, 901, wrong, 2, false, 0, BT_OK, NULL, now);
    next(RT_ACTION_CANCEL_PREFILL, 1);
    assert_int_equal(next(RT_ACTION_CANCEL_DECODE, 1).epoch, 901);
    next_error(1, BT_ERR_INTERNAL, "token 1 was 101 and is now 7");
    next_none();
}

static void test_gives_up_after_max_attempts_with_the_reason(void **state)
{
    (void)state;
    core_open(NULL);
    worker_add("p0", RT_ROLE_PREFILL, 0);
    worker_add("d0", RT_ROLE_DECODE, 20);
    submit(1, 64, 10);
    for (uint32_t attempt = 1; attempt <= 3; attempt++) {
        struct rt_action run = grant(1, 900 + attempt);
        assert_int_equal(run.attempt, attempt);
        run_ended(&run, BT_ERR_CORRUPT);
        assert_int_equal(next(RT_ACTION_CANCEL_DECODE, 1).epoch, 900 + attempt);
        if (attempt < 3) {
            next_none(); /* the only worker is on hold after a failure */
            now += 50 * MS;
            rt_core_tick(core, now);
        }
    }
    next_error(1, BT_ERR_CORRUPT, "3 attempts, the last on p0: because");
    next_none();
}

static void test_bad_request_is_not_tried_again(void **state)
{
    (void)state;
    core_open(NULL);
    worker_add("p0", RT_ROLE_PREFILL, 0);
    worker_add("d0", RT_ROLE_DECODE, 20);
    submit(1, 64, 10);
    struct rt_action run = grant(1, 900);
    run_ended(&run, BT_ERR_INVALID_ARGUMENT);
    next(RT_ACTION_CANCEL_DECODE, 1);
    next_error(1, BT_ERR_INVALID_ARGUMENT, "because");
}

static void test_cancel_in_every_state(void **state)
{
    (void)state;
    core_open(NULL);
    worker_add("p0", RT_ROLE_PREFILL, 0);
    rt_worker_ref d = worker_add("d0", RT_ROLE_DECODE, 4);
    submit(1, 200, 50);
    submit(2, 200, 50);
    struct rt_action reserve = next(RT_ACTION_RESERVE, 1);
    rt_core_finish(core, 2, RT_FINISH_CANCELLED, now); /* queued */
    next_end(2, RT_FINISH_CANCELLED);
    rt_core_finish(core, 1, RT_FINISH_CANCELLED, now); /* reserving */
    assert_int_equal(next(RT_ACTION_CANCEL_DECODE, 1).epoch, 0);
    next_end(1, RT_FINISH_CANCELLED);
    rt_core_reserved(core, 1, reserve.attempt, d, BT_OK, NULL, 900, now); /* too late */
    struct rt_action cancel = next(RT_ACTION_CANCEL_DECODE, 1);
    assert_int_equal(cancel.epoch, 900);
    assert_int_equal(cancel.decode, d);
    submit(3, 200, 50);
    struct rt_action run = grant(3, 901);
    rt_core_finish(core, 3, RT_FINISH_CANCELLED, now); /* prefilling */
    assert_int_equal(next(RT_ACTION_CANCEL_PREFILL, 3).prefill, run.prefill);
    assert_int_equal(next(RT_ACTION_CANCEL_DECODE, 3).epoch, 901);
    next_end(3, RT_FINISH_CANCELLED);
    submit(4, 200, 50);
    run = grant(4, 902);
    run_ended(&run, BT_OK);
    rt_core_finish(core, 4, RT_FINISH_STOP, now); /* decoding */
    assert_int_equal(next(RT_ACTION_CANCEL_DECODE, 4).epoch, 902);
    next_end(4, RT_FINISH_STOP);
    rt_core_finish(core, 4, RT_FINISH_STOP, now);
    next_none();
}

static void test_tokens_of_an_attempt_that_is_over_are_cancelled_once_a_second(void **state)
{
    (void)state;
    core_open(NULL);
    worker_add("p0", RT_ROLE_PREFILL, 0);
    worker_add("d0", RT_ROLE_DECODE, 10);
    struct rt_action old = {.request = 77, .epoch = 5, .decode = 1};
    decoded(&old, 0, 1, false);
    struct rt_action cancel = next(RT_ACTION_CANCEL_DECODE, 77);
    assert_int_equal(cancel.epoch, 5);
    assert_int_equal(cancel.decode, 1);
    decoded(&old, 1, 1, false);
    next_none();
    now += BT_NS_PER_S;
    decoded(&old, 2, 1, false);
    next(RT_ACTION_CANCEL_DECODE, 77);
    now += BT_NS_PER_S;
    decoded(&old, 3, 1, true); /* it let go by itself */
    next_none();
}

static void test_repeated_answers_are_harmless(void **state)
{
    (void)state;
    core_open(NULL);
    worker_add("p0", RT_ROLE_PREFILL, 0);
    worker_add("d0", RT_ROLE_DECODE, 10);
    submit(1, 100, 5);
    struct rt_action run = grant(1, 900);
    rt_core_reserved(core, 1, run.attempt, run.decode, BT_OK, NULL, 900, now);
    next_none();
    first_token(&run, 100);
    next_tokens(1, 0, 1);
    first_token(&run, 100);
    run_ended(&run, BT_OK);
    run_ended(&run, BT_ERR_PEER_LOST);
    next_none();
    decoded(&run, 0, 2, false);
    next_tokens(1, 1, 1);
    decoded(&run, 0, 2, false);
    next_none();
    decoded(&run, 2, 1, true);
    next_tokens(1, 2, 1);
    next_end(1, RT_FINISH_LENGTH);
    decoded(&run, 2, 1, true);
    next_none();
}

static void test_answers_of_an_older_attempt_are_not_taken_for_the_current_one(void **state)
{
    (void)state;
    core_open(NULL);
    worker_add("p0", RT_ROLE_PREFILL, 0);
    rt_worker_ref d = worker_add("d0", RT_ROLE_DECODE, 10);
    submit(1, 100, 5);
    struct rt_action first = next(RT_ACTION_RESERVE, 1);
    rt_core_reserved(core, 1, first.attempt, d, BT_ERR_DEADLINE, "", 0, now);
    assert_int_equal(next(RT_ACTION_CANCEL_DECODE, 1).epoch, 0);
    now += 50 * MS;
    rt_core_tick(core, now);
    struct rt_action second = next(RT_ACTION_RESERVE, 1);
    rt_core_reserved(core, 1, first.attempt, d, BT_OK, NULL, 900, now);
    assert_int_equal(next(RT_ACTION_CANCEL_DECODE, 1).epoch, 900);
    rt_core_reserved(core, 1, second.attempt, d, BT_OK, NULL, 901, now);
    struct rt_action run = next(RT_ACTION_PREFILL, 1);
    assert_int_equal(run.epoch, 901);
    struct rt_action old = run;
    old.epoch = 900;
    decoded(&old, 0, 1, true);
    next_none();
    decoded(&run, 0, 1, true);
    next_tokens(1, 0, 1);
    next_end(1, RT_FINISH_LENGTH);
}

static void test_gaps_and_tokens_beyond_the_limit_are_not_passed_on(void **state)
{
    (void)state;
    core_open(NULL);
    worker_add("p0", RT_ROLE_PREFILL, 0);
    worker_add("d0", RT_ROLE_DECODE, 10);
    worker_add("d1", RT_ROLE_DECODE, 10);
    submit(1, 100, 3);
    struct rt_action run = grant(1, 900);
    decoded(&run, 1, 1, false);
    next(RT_ACTION_CANCEL_PREFILL, 1);
    assert_int_equal(next(RT_ACTION_CANCEL_DECODE, 1).epoch, 900);
    run = grant(1, 901);
    decoded(&run, 0, 4, false);
    next_tokens(1, 0, 3);
    next(RT_ACTION_CANCEL_PREFILL, 1);
    next(RT_ACTION_CANCEL_DECODE, 1);
}

static void test_deadline_ends_wherever_the_request_is(void **state)
{
    (void)state;
    core_open(NULL);
    worker_add("p0", RT_ROLE_PREFILL, 0);
    worker_add("d0", RT_ROLE_DECODE, 4);
    assert_int_equal(submit_until(1, 200, 50, now + 30 * MS), BT_OK);
    assert_int_equal(submit_until(2, 200, 50, now + 20 * MS), BT_OK);
    grant(1, 900);
    assert_int_equal(rt_core_next_deadline_ns(core), now + 20 * MS);
    rt_core_tick(core, now + 20 * MS - 1);
    next_none();
    rt_core_tick(core, now + 20 * MS);
    next_end(2, RT_FINISH_DEADLINE);
    assert_int_equal(rt_core_next_deadline_ns(core), now + 30 * MS);
    rt_core_tick(core, now + 30 * MS);
    next(RT_ACTION_CANCEL_PREFILL, 1);
    next(RT_ACTION_CANCEL_DECODE, 1);
    next_end(1, RT_FINISH_DEADLINE);
    next_none();
}

static void test_silent_worker_gets_nothing_new_and_keeps_what_it_has(void **state)
{
    (void)state;
    core_open(NULL);
    worker_add("p0", RT_ROLE_PREFILL, 0);
    rt_worker_ref d = worker_add("d0", RT_ROLE_DECODE, 10);
    submit(1, 100, 5);
    struct rt_action run = grant(1, 900);
    now += 3000 * MS;
    struct rt_load none = {0}, load = {.pages_total = 10, .pages_free = 8};
    assert_int_equal(rt_core_worker_heartbeat(core, "p0", 1, &none, false, now), BT_OK);
    rt_core_tick(core, now);
    assert_int_equal(worker_state(d), RT_WORKER_SILENT);
    submit(2, 100, 5);
    next_none();
    decoded(&run, 0, 1, false);
    next_tokens(1, 0, 1);
    assert_int_equal(rt_core_worker_heartbeat(core, "d0", 1, &load, false, now), BT_OK);
    assert_int_equal(worker_state(d), RT_WORKER_READY);
    next(RT_ACTION_RESERVE, 2);
    now += 10000 * MS;
    assert_int_equal(rt_core_worker_heartbeat(core, "p0", 1, &none, false, now), BT_OK);
    rt_core_tick(core, now);
    assert_int_equal(worker_state(d), RT_WORKER_LOST);
    assert_int_equal(rt_core_worker_heartbeat(core, "d0", 1, &load, false, now), BT_ERR_NOT_FOUND);
}

static void test_draining_and_connecting_workers_get_nothing(void **state)
{
    (void)state;
    core_open(NULL);
    worker_add("p0", RT_ROLE_PREFILL, 0);
    struct rt_worker_info info = worker_info("d0", RT_ROLE_DECODE, 10);
    rt_worker_ref d;
    assert_int_equal(rt_core_worker_register(core, &info, now, NULL, &d), BT_OK);
    assert_int_equal(worker_state(d), RT_WORKER_CONNECTING);
    submit(1, 100, 5);
    next_none();
    rt_core_worker_heartbeat(core, "d0", 1, &info.load, true, now);
    rt_core_worker_connected(core, d, now);
    assert_int_equal(worker_state(d), RT_WORKER_DRAINING);
    next_none();
    rt_core_worker_heartbeat(core, "d0", 1, &info.load, false, now);
    next(RT_ACTION_RESERVE, 1);
}

static void test_same_id_other_incarnation(void **state)
{
    (void)state;
    core_open(NULL);
    worker_add("p0", RT_ROLE_PREFILL, 0);
    rt_worker_ref old = worker_add("d0", RT_ROLE_DECODE, 10);
    submit(1, 100, 5);
    struct rt_action run = grant(1, 900);
    struct rt_worker_info info = worker_info("d0", RT_ROLE_DECODE, 10);
    rt_worker_ref ref = RT_NO_WORKER;
    assert_int_equal(rt_core_worker_register(core, &info, now, NULL, &ref), BT_OK);
    assert_int_equal(ref, old); /* the same process again */
    assert_int_equal(worker_state(old), RT_WORKER_READY);
    info.incarnation = 2;
    struct bt_error error;
    assert_int_equal(rt_core_worker_register(core, &info, now, &error, &ref),
                     BT_ERR_ALREADY_EXISTS);
    rt_core_worker_lost(core, old, "proven dead", now);
    rt_core_worker_lost(core, old, "proven dead", now);
    next(RT_ACTION_CANCEL_PREFILL, 1);
    next(RT_ACTION_CANCEL_DECODE, 1);
    next_none();
    assert_int_equal(rt_core_worker_register(core, &info, now, &error, &ref), BT_OK);
    assert_int_not_equal(ref, old);
    struct rt_worker_view view;
    assert_false(rt_core_worker(core, old, &view));
    rt_core_worker_connected(core, ref, now);
    struct rt_action again = next(RT_ACTION_RESERVE, 1);
    assert_int_equal(again.decode, ref);
    assert_int_not_equal(again.attempt, run.attempt);
    rt_core_reserved(core, 1, again.attempt, ref, BT_OK, NULL, 901, now);
    next(RT_ACTION_PREFILL, 1);
    now += BT_NS_PER_S;
    decoded(&run, 0, 1, false); /* from the old one, which has not read its cancel */
    assert_int_equal(next(RT_ACTION_CANCEL_DECODE, 1).decode, old);
}

static void test_lost_prefill_worker_while_reserving_is_replaced(void **state)
{
    (void)state;
    core_open(NULL);
    rt_worker_ref a = worker_add("a", RT_ROLE_PREFILL, 0);
    rt_worker_ref b = worker_add("b", RT_ROLE_PREFILL, 0);
    worker_add("d0", RT_ROLE_DECODE, 10);
    submit(1, 100, 5);
    struct rt_action reserve = next(RT_ACTION_RESERVE, 1);
    assert_int_equal(reserve.prefill, a);
    rt_core_worker_lost(core, a, "killed", now);
    next_none();
    rt_core_reserved(core, 1, reserve.attempt, reserve.decode, BT_OK, NULL, 900, now);
    assert_int_equal(next(RT_ACTION_PREFILL, 1).prefill, b);
    rt_core_worker_lost(core, b, "killed", now);
    next(RT_ACTION_CANCEL_PREFILL, 1);
    assert_int_equal(next(RT_ACTION_CANCEL_DECODE, 1).epoch, 900);
    next_none();
    assert_int_equal(rt_core_queued(core), 1);
}

static void test_request_that_no_worker_left_can_hold_ends(void **state)
{
    (void)state;
    core_open(NULL);
    worker_add("p0", RT_ROLE_PREFILL, 0);
    rt_worker_ref large = worker_add("large", RT_ROLE_DECODE, 100);
    worker_add("small", RT_ROLE_DECODE, 2);
    rt_core_worker_load(core, large, &(struct rt_load){.pages_total = 100, .pages_free = 0});
    submit(1, 1000, 5);
    submit(2, 10, 5);
    next_none();
    rt_core_worker_lost(core, large, "killed", now);
    next_error(1, BT_ERR_UNAVAILABLE, "1000 prompt");
    next(RT_ACTION_RESERVE, 2);
}

/* One message may name any number of sequences that nobody knows. */
static void test_cancels_of_strangers_are_bounded(void **state)
{
    (void)state;
    core_open(NULL);
    rt_worker_ref d = worker_add("d0", RT_ROLE_DECODE, 10);
    struct rt_token token = {.index = 0, .token = 100};
    struct rt_action action;
    for (int round = 0; round < 2; round++) {
        uint32_t cancels = 0;
        for (uint64_t id = 1; id <= 5000; id++) {
            rt_core_decoded(core, d, id, 7, &token, 1, false, RT_FINISH_ERROR, BT_OK, NULL, now);
        }
        while (rt_core_next_action(core, &action)) {
            cancels += action.kind == RT_ACTION_CANCEL_DECODE;
        }
        assert_true(cancels > 500 && cancels <= 1024);
        now += 2000 * MS;
    }
}

static void test_an_end_without_a_token_is_no_success(void **state)
{
    (void)state;
    core_open(NULL);
    worker_add("p0", RT_ROLE_PREFILL, 0);
    worker_add("d0", RT_ROLE_DECODE, 10);
    submit(1, 100, 5);
    struct rt_action run = grant(1, 900);
    decoded(&run, 0, 0, true);
    next(RT_ACTION_CANCEL_PREFILL, 1);
    now += 50 * MS;
    rt_core_tick(core, now);
    run = grant(1, 901);
    decoded(&run, 0, 5, true);
    next_tokens(1, 0, 5);
    next_end(1, RT_FINISH_LENGTH);
}

#define TEST(name) cmocka_unit_test_teardown(name, core_close)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_one_request_from_submit_to_end),
        TEST(test_decode_may_be_heard_before_prefill),
        TEST(test_error_of_the_run_after_decode_has_it_changes_nothing),
        TEST(test_submit_is_refused_for_what_can_never_run),
        TEST(test_queue_is_bounded_and_first_come_first_served),
        TEST(test_those_behind_a_head_that_leaves_go_at_once),
        TEST(test_decode_rank_with_lowest_projected_utilisation),
        TEST(test_ties_go_to_fewest_running_then_first_registered),
        TEST(test_pages_count_once),
        TEST(test_least_backlog_of_prefill_workers),
        TEST(test_idle_prefill_worker_takes_any_prompt),
        TEST(test_backlog_of_others_counts_and_ours_once),
        TEST(test_refused_reserve_tries_the_next_rank_then_waits),
        TEST(test_a_rank_that_still_has_the_request_is_waited_for),
        TEST(test_preempted_runs_again_at_the_head_in_full),
        TEST(test_a_different_token_on_retry_is_an_error),
        TEST(test_gives_up_after_max_attempts_with_the_reason),
        TEST(test_bad_request_is_not_tried_again),
        TEST(test_cancel_in_every_state),
        TEST(test_tokens_of_an_attempt_that_is_over_are_cancelled_once_a_second),
        TEST(test_repeated_answers_are_harmless),
        TEST(test_answers_of_an_older_attempt_are_not_taken_for_the_current_one),
        TEST(test_gaps_and_tokens_beyond_the_limit_are_not_passed_on),
        TEST(test_deadline_ends_wherever_the_request_is),
        TEST(test_silent_worker_gets_nothing_new_and_keeps_what_it_has),
        TEST(test_draining_and_connecting_workers_get_nothing),
        TEST(test_same_id_other_incarnation),
        TEST(test_lost_prefill_worker_while_reserving_is_replaced),
        TEST(test_request_that_no_worker_left_can_hold_ends),
        TEST(test_cancels_of_strangers_are_bounded),
        TEST(test_an_end_without_a_token_is_no_success),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
