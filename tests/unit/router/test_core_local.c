/* Which prompts decode ranks compute themselves. Times of the model of cost are from its header: a
 * prefill worker takes 1 ms a token here until it reports, and so does a rank. */
#include "tests/unit/router/core_driver.h"

#define LONGEST 2000

static struct rt_core_options options_of(enum rt_local_prefill mode)
{
    struct rt_core_options options = default_options;
    options.local_prefill = mode;
    return options;
}

static void open_mode(enum rt_local_prefill mode)
{
    struct rt_core_options options = options_of(mode);
    core_open(&options);
}

static rt_worker_ref local_add(const char *id, uint32_t longest)
{
    struct rt_worker_info info = worker_info(id, RT_ROLE_DECODE, 1000);
    info.local_prefill_tokens = longest;
    rt_worker_ref ref;
    assert_int_equal(rt_core_worker_register(core, &info, now, NULL, &ref), BT_OK);
    rt_core_worker_connected(core, ref, now);
    return ref;
}

/* The next action is a RESERVE with the prompt; the rank grants it, and nothing follows. */
static struct rt_action grant_local(uint64_t request, uint64_t epoch)
{
    struct rt_action reserve = next(RT_ACTION_RESERVE, request);
    assert_true(reserve.local);
    assert_int_equal(reserve.prefill, RT_NO_WORKER);
    rt_core_reserved(core, request, reserve.attempt, reserve.decode, BT_OK, NULL, epoch, now);
    next_none();
    reserve.epoch = epoch;
    return reserve;
}

static struct rt_action next_way(uint64_t request, bool local)
{
    struct rt_action reserve = next(RT_ACTION_RESERVE, request);
    assert_int_equal(reserve.local, local);
    return reserve;
}

/* A remote prompt whose first token comes `late_ns` after the computation that was predicted. */
static void teach_remote(uint64_t request, uint32_t tokens, int64_t late_ns)
{
    submit(request, tokens, 1);
    struct rt_action run = grant(request, request);
    assert_false(run.local);
    now += tokens * MS + late_ns;
    rt_core_prefill_done(core, request, run.attempt, tokens * MS, tokens);
    first_token(&run, 100);
    next_tokens(request, 0, 1);
    run_ended(&run, BT_OK);
    decoded(&run, 0, 1, true);
    next_end(request, RT_FINISH_LENGTH);
}

/* Messages and transfer of the remote way: 16 ms in the mean of the first 32. */
static void teach_handoffs(void)
{
    for (uint64_t i = 0; i < 32; i++) {
        teach_remote(1000 + i, 64, 25 * MS);
    }
}

static uint64_t chosen(enum rt_way way)
{
    struct rt_core_counts counts;
    rt_core_counts(core, &counts);
    return counts.ways[way];
}

static void test_short_prompts_stay_on_an_idle_rank(void **state)
{
    (void)state;
    open_mode(RT_LOCAL_PREFILL_AUTO);
    worker_add("p", RT_ROLE_PREFILL, 0);
    worker_add("plain", RT_ROLE_DECODE, 1000);
    teach_handoffs();
    assert_int_equal(chosen(RT_WAY_REMOTE_ONLY), 32);
    local_add("d", LONGEST);
    /* 16 tokens: here 16 ms, there 16 + 16: less than 0.8 of it. 100: 100 of 116. */
    submit(1, 16, 4);
    struct rt_action here = grant_local(1, 5);
    assert_int_equal(chosen(RT_WAY_LOCAL_CHEAPER), 1);
    now += 16 * MS;
    rt_core_local_prefill_done(core, here.decode, 1, 5, 16 * MS);
    decoded(&here, 0, 4, true);
    next_tokens(1, 0, 4);
    next_end(1, RT_FINISH_LENGTH);
    submit(2, 100, 4);
    next_way(2, false);
    assert_int_equal(chosen(RT_WAY_REMOTE_CHEAPER), 1);
}

/* Those that run there are delayed: 0.2 of 16 ms for each. */
static void test_running_sequences_speak_against_it(void **state)
{
    (void)state;
    for (uint32_t running = 0; running < 6; running++) {
        core_close(NULL);
        open_mode(RT_LOCAL_PREFILL_AUTO);
        worker_add("p", RT_ROLE_PREFILL, 0);
        worker_add("plain", RT_ROLE_DECODE, 1000);
        teach_handoffs();
        rt_worker_ref decode = local_add("d", LONGEST);
        struct rt_load load = {
            .pages_total = 1000, .pages_free = 1000, .running = running, .max_running = 100};
        rt_core_worker_load(core, decode, &load);
        submit(1, 16, 4);
        /* 16 + 3.2 a sequence < 0.8 * (16 + 15.9) = 25.5: two, and not three. */
        next_way(1, running < 3);
    }
}

static void test_prompts_ahead_speak_against_it(void **state)
{
    (void)state;
    open_mode(RT_LOCAL_PREFILL_AUTO);
    worker_add("p", RT_ROLE_PREFILL, 0);
    worker_add("plain", RT_ROLE_DECODE, 1000);
    teach_handoffs();
    rt_worker_ref decode = local_add("d", LONGEST);
    submit(1, 8, 4);
    next_way(1, true); /* 8 < 0.8 * 24 */
    submit(2, 8, 4);
    next_way(2, true); /* 16 + 1.6 */
    submit(3, 8, 4);
    next_way(3, false); /* 24 and more */
    /* As the rank reports it, once it has answered. */
    struct rt_load load = {.pages_total = 1000, .pages_free = 1000, .waiting_tokens = 30};
    rt_core_reserved(core, 1, 1, decode, BT_OK, NULL, 5, now);
    rt_core_reserved(core, 2, 1, decode, BT_OK, NULL, 6, now);
    rt_core_worker_load(core, decode, &load);
    submit(4, 8, 4);
    next_way(4, false);
    load.waiting_tokens = 0;
    rt_core_worker_load(core, decode, &load);
    submit(5, 8, 4);
    next_way(5, true);
}

/* Of a prompt that is cached there hardly anything is left to be computed. */
static void test_cached_prompts_go_where_they_are(void **state)
{
    (void)state;
    open_mode(RT_LOCAL_PREFILL_AUTO);
    rt_worker_ref prefill = worker_add("p", RT_ROLE_PREFILL, 0);
    worker_add("plain", RT_ROLE_DECODE, 1000);
    teach_handoffs();
    local_add("d", LONGEST);
    const struct rt_cached cached = {prefill, 40};
    struct rt_request_spec spec = {.id = 1,
                                   .prompt_tokens = 41,
                                   .max_tokens = 4,
                                   .arrival_ns = now,
                                   .deadline_ns = BT_NEVER_NS,
                                   .cached = &cached,
                                   .cached_count = 1};
    assert_int_equal(rt_core_submit(core, &spec, now, NULL, NULL), BT_OK);
    next_way(1, false);
    submit(2, 41, 4);
    now += 60 * MS; /* the first one's work ahead is over */
    struct rt_action action;
    assert_true(rt_core_next_action(core, &action));
    assert_int_equal(action.request, 2);
    assert_int_equal(action.local, 41 < 0.8 * (41 + 15.9));
}

/* A prefill worker that has its depth ahead, and a rank with nothing to do. */
static void test_overloaded_prefill_workers_are_helped(void **state)
{
    (void)state;
    struct rt_core_options options = options_of(RT_LOCAL_PREFILL_AUTO);
    core_open(&options);
    worker_add("p", RT_ROLE_PREFILL, 0);
    local_add("d", LONGEST);
    submit(1, 900, 4);
    next_way(1, false);
    submit(2, 900, 4); /* there 1800 ms, here 900 */
    next_way(2, true);
    submit(3, 900, 4); /* there 1800, here 1800 and harm */
    next_way(3, false);
    submit(4, 100, 4);
    next_none(); /* room for it is there hardly later than here */
}

static void test_without_prefill_workers(void **state)
{
    (void)state;
    struct bt_error error;
    open_mode(RT_LOCAL_PREFILL_AUTO);
    rt_worker_ref decode = local_add("d", 100);
    submit(1, 100, 4);
    struct rt_action here = grant_local(1, 5);
    assert_int_equal(chosen(RT_WAY_LOCAL_ALONE), 1);
    decoded(&here, 0, 4, true);
    next_tokens(1, 0, 4);
    next_end(1, RT_FINISH_LENGTH);
    /* Longer ones need a prefill worker. */
    struct rt_request_spec spec = {
        .id = 2, .prompt_tokens = 101, .max_tokens = 4, .deadline_ns = BT_NEVER_NS};
    assert_int_equal(rt_core_submit(core, &spec, now, &error, NULL), BT_ERR_UNAVAILABLE);
    assert_non_null(strstr(error.text, "101"));
    rt_worker_ref prefill = worker_add("p", RT_ROLE_PREFILL, 0);
    submit(2, 101, 4);
    next_way(2, false);
    /* It is lost: the long one waits for another, and keeps nobody waiting. */
    rt_core_worker_lost(core, prefill, "test", now);
    rt_core_reserved(core, 2, 1, decode, BT_OK, NULL, 6, now);
    next(RT_ACTION_CANCEL_DECODE, 2);
    next_none();
    submit(3, 50, 4);
    here = grant_local(3, 7);
    decoded(&here, 0, 4, true);
    next_tokens(3, 0, 4);
    next_end(3, RT_FINISH_LENGTH);
    assert_int_equal(rt_core_queued(core), 1);
    worker_add("q", RT_ROLE_PREFILL, 0);
    next_way(2, false);
    assert_int_equal(rt_core_queued(core), 0);
}

static void submit_as(uint64_t id, uint32_t prompt, uint32_t priority, int64_t deadline_ns)
{
    const struct rt_request_spec spec = {.id = id,
                                         .prompt_tokens = prompt,
                                         .max_tokens = 4,
                                         .arrival_ns = now,
                                         .deadline_ns = deadline_ns,
                                         .priority = priority};
    assert_int_equal(rt_core_submit(core, &spec, now, NULL, NULL), BT_OK);
}

/* While no prefill worker is ready: shorter ones go, and they keep their order, end at their
 * deadlines and when their clients leave, and go to a rank that has a higher limit. */
static void test_long_prompts_stand_aside(void **state)
{
    (void)state;
    open_mode(RT_LOCAL_PREFILL_AUTO);
    rt_worker_ref decode = local_add("d", 100);
    rt_worker_ref prefill = worker_add("p", RT_ROLE_PREFILL, 0);
    rt_core_worker_lost(core, prefill, "test", now);
    const int64_t soon = now + 500 * MS;
    submit_as(1, 300, 1, BT_NEVER_NS);
    submit_as(2, 200, 1, BT_NEVER_NS);
    submit_as(3, 200, 0, soon);
    submit_as(4, 101, 0, BT_NEVER_NS);
    submit_as(5, 200, 0, BT_NEVER_NS);
    submit_as(6, 100, 1, BT_NEVER_NS);
    struct rt_action here = grant_local(6, 7);
    assert_int_equal(rt_core_queued(core), 5);
    assert_int_equal(rt_core_next_deadline_ns(core), soon);
    /* Nothing to be recalled for: they stay, and those that come later go. */
    struct rt_load load = {.pages_total = 1000, .pages_free = 999, .running = 1};
    rt_core_worker_load(core, decode, &load);
    next_none();
    submit_as(7, 50, 1, BT_NEVER_NS);
    grant_local(7, 8);
    rt_core_finish(core, 5, RT_FINISH_CANCELLED, now);
    next_end(5, RT_FINISH_CANCELLED);
    now = soon;
    rt_core_tick(core, now);
    next_end(3, RT_FINISH_DEADLINE);
    /* A rank that computes one of them. */
    rt_worker_ref longer = local_add("e", 150);
    assert_int_equal(next_way(4, true).decode, longer);
    next_none();
    worker_add("q", RT_ROLE_PREFILL, 0);
    next_way(1, false);
    next_way(2, false);
    assert_int_equal(rt_core_queued(core), 0);
    decoded(&here, 0, 4, true);
    next_tokens(6, 0, 4);
    next_end(6, RT_FINISH_LENGTH);
}

/* They are no work before others: the prediction for one that can go is of what can go. */
static void test_those_aside_are_no_work_ahead(void **state)
{
    (void)state;
    open_mode(RT_LOCAL_PREFILL_AUTO);
    local_add("d", 100);
    rt_worker_ref prefill = worker_add("p", RT_ROLE_PREFILL, 0);
    rt_core_worker_lost(core, prefill, "test", now);
    const struct rt_request_spec spec = {.id = 99, .prompt_tokens = 50, .max_tokens = 4};
    int64_t before = rt_core_predict_ttft_ns(core, &spec, now);
    assert_true(before > 0);
    for (uint64_t i = 1; i <= 5; i++) {
        submit(i, 900, 4);
    }
    next_none();
    assert_int_equal(rt_core_queued(core), 5);
    assert_int_equal(rt_core_predict_ttft_ns(core, &spec, now), before);
    /* They come back as work, and all of it is gone when they are. */
    worker_add("q", RT_ROLE_PREFILL, 0);
    next_way(1, false);
    next_way(2, false);
    next_none(); /* its depth is reached */
    assert_true(rt_core_predict_ttft_ns(core, &spec, now) >= before + 1800 * MS);
    for (uint64_t i = 3; i <= 5; i++) {
        rt_core_finish(core, i, RT_FINISH_CANCELLED, now);
        next_end(i, RT_FINISH_CANCELLED);
    }
    assert_int_equal(rt_core_queued(core), 0);
}

/* What may have killed a worker is tried on a prefill worker, which takes no sequences with it. */
static void test_what_lost_a_worker_is_not_for_ranks(void **state)
{
    (void)state;
    open_mode(RT_LOCAL_PREFILL_AUTO);
    local_add("d", LONGEST);
    local_add("e", LONGEST);
    worker_add("p", RT_ROLE_PREFILL, 0);
    worker_add("plain", RT_ROLE_DECODE, 1000);
    teach_handoffs();
    submit(1, 8, 4);
    submit(2, 8, 4);
    struct rt_action first = next_way(1, true), second = next_way(2, true);
    assert_int_not_equal(first.decode, second.decode);
    rt_core_reserved(core, 1, 1, first.decode, BT_OK, NULL, 5, now);
    rt_core_reserved(core, 2, 1, second.decode, BT_OK, NULL, 6, now);
    rt_core_worker_lost(core, first.decode, "test", now);
    next(RT_ACTION_CANCEL_DECODE, 1);
    struct rt_action again = next_way(1, false);
    assert_int_equal(chosen(RT_WAY_REMOTE_SAFER), 1);
    /* So is one that failed; others are not concerned. */
    decode_failed(&(struct rt_action){.request = 2, .decode = second.decode, .epoch = 6},
                  BT_ERR_CORRUPT);
    next_way(2, false);
    assert_int_equal(chosen(RT_WAY_REMOTE_SAFER), 2);
    submit(3, 8, 4);
    next_way(3, true);
    /* Where no prefill worker is there, a rank has to do. */
    rt_core_reserved(core, 1, 2, again.decode, BT_OK, NULL, 9, now);
    struct rt_action run = next(RT_ACTION_PREFILL, 1);
    rt_core_worker_lost(core, run.prefill, "test", now);
    next(RT_ACTION_CANCEL_PREFILL, 1);
    next(RT_ACTION_CANCEL_DECODE, 1);
    next_way(1, true);
    assert_int_equal(chosen(RT_WAY_LOCAL_ALONE), 1);
}

static void test_never_and_nobody(void **state)
{
    (void)state;
    struct bt_error error;
    struct rt_request_spec spec = {
        .id = 1, .prompt_tokens = 10, .max_tokens = 4, .deadline_ns = BT_NEVER_NS};
    open_mode(RT_LOCAL_PREFILL_NEVER);
    local_add("d", LONGEST);
    assert_int_equal(rt_core_submit(core, &spec, now, &error, NULL), BT_ERR_UNAVAILABLE);
    core_close(NULL);
    open_mode(RT_LOCAL_PREFILL_AUTO);
    worker_add("d", RT_ROLE_DECODE, 1000);
    assert_int_equal(rt_core_submit(core, &spec, now, &error, NULL), BT_ERR_UNAVAILABLE);
    core_close(NULL);
    open_mode(RT_LOCAL_PREFILL_ALWAYS);
    worker_add("d", RT_ROLE_DECODE, 1000);
    worker_add("p", RT_ROLE_PREFILL, 0);
    assert_int_equal(rt_core_submit(core, &spec, now, &error, NULL), BT_ERR_UNAVAILABLE);
    local_add("e", 9);
    assert_int_equal(rt_core_submit(core, &spec, now, &error, NULL), BT_ERR_INVALID_ARGUMENT);
    spec.prompt_tokens = 9;
    assert_int_equal(rt_core_submit(core, &spec, now, &error, NULL), BT_OK);
    next_way(1, true);
    assert_int_equal(chosen(RT_WAY_LOCAL_ONLY), 1);
}

/* Several ranks compute other bits. */
static void test_groups_are_not_mixed_with_it(void **state)
{
    (void)state;
    open_mode(RT_LOCAL_PREFILL_AUTO);
    rt_worker_ref decode = local_add("d", LONGEST);
    submit(1, 10, 8);
    struct rt_action here = grant_local(1, 5);
    decoded(&here, 0, 2, false);
    next_tokens(1, 0, 2);
    struct rt_worker_info wide = rank_info(7, 0, 2, RT_ROLE_PREFILL, 0);
    wide.group.size = 2;
    rt_worker_ref group;
    assert_int_equal(rt_core_worker_register(core, &wide, now, NULL, &group), BT_OK);
    submit(2, 10, 8);
    next_none(); /* the group is not up yet, and waited for */
    /* The first one's rank is lost: what its client has came from a rank alone, and so goes on. */
    local_add("e", LONGEST);
    rt_core_worker_lost(core, decode, "test", now);
    next(RT_ACTION_CANCEL_DECODE, 1);
    struct rt_action again = next(RT_ACTION_RESERVE, 1);
    assert_true(again.local);
    /* The group is gone: nothing speaks against it any more. */
    rt_core_worker_lost(core, group, "test", now);
    next_way(2, true);
    assert_int_equal(chosen(RT_WAY_LOCAL_ONLY), 1);
}

/* What is in a client's hands came from a group: no rank alone goes on with it. */
static void test_tokens_of_a_group_wait_for_a_group(void **state)
{
    (void)state;
    open_mode(RT_LOCAL_PREFILL_AUTO);
    struct rt_worker_info wide = rank_info(7, 0, 2, RT_ROLE_PREFILL, 0);
    rt_worker_ref group;
    local_add("d", LONGEST);
    assert_int_equal(rt_core_worker_register(core, &wide, now, NULL, &group), BT_OK);
    rt_core_worker_connected(core, group, now);
    submit(1, 10, 8);
    struct rt_action run = grant(1, 5);
    first_token(&run, 100);
    next_tokens(1, 0, 1);
    rt_core_worker_lost(core, group, "test", now);
    next(RT_ACTION_CANCEL_PREFILL, 1);
    next(RT_ACTION_CANCEL_DECODE, 1);
    next_none();
    wide.incarnation++;
    wide.group.incarnation++;
    assert_int_equal(rt_core_worker_register(core, &wide, now, NULL, &group), BT_OK);
    rt_core_worker_connected(core, group, now);
    next_way(1, false);
}

/* The rank dies while it computes: elsewhere, from the prompt. */
static void test_rank_is_lost_while_it_computes(void **state)
{
    (void)state;
    open_mode(RT_LOCAL_PREFILL_ALWAYS);
    rt_worker_ref first = local_add("d", LONGEST);
    submit(1, 100, 4);
    struct rt_action here = grant_local(1, 5);
    assert_int_equal(here.decode, first);
    rt_worker_ref second = local_add("e", LONGEST);
    rt_core_worker_lost(core, first, "test", now);
    next(RT_ACTION_CANCEL_DECODE, 1);
    struct rt_action again = grant_local(1, 9);
    assert_int_equal(again.decode, second);
    assert_int_equal(again.attempt, 2);
    /* What the first one still says is nothing. */
    decoded(&here, 0, 1, false);
    decoded(&again, 0, 4, true);
    struct rt_action action;
    bool ended = false;
    while (rt_core_next_action(core, &action)) {
        ended |= action.kind == RT_ACTION_END;
        assert_true(action.kind != RT_ACTION_TOKENS || action.token_count == 4);
    }
    assert_true(ended);
}

/* A rank's own line is that of its reports. */
static void test_learns_what_ranks_report(void **state)
{
    (void)state;
    open_mode(RT_LOCAL_PREFILL_ALWAYS);
    rt_worker_ref decode = local_add("d", LONGEST);
    for (uint64_t i = 1; i <= 40; i++) {
        submit(i, 100, 1);
        struct rt_action here = grant_local(i, i);
        now += 300 * MS;
        rt_core_local_prefill_done(core, decode, i, i, 300 * MS);
        decoded(&here, 0, 1, true);
        next_tokens(i, 0, 1);
        next_end(i, RT_FINISH_LENGTH);
    }
    struct rt_worker_view view;
    assert_true(rt_core_worker(core, decode, &view));
    double at_100 = view.prefill_base_ns + 100 * view.prefill_token_ns;
    assert_true(at_100 > 290.0 * MS && at_100 < 310.0 * MS);
    struct rt_request_spec spec = {.id = 99, .prompt_tokens = 100, .max_tokens = 1};
    int64_t predicted = rt_core_predict_ttft_ns(core, &spec, now);
    assert_true(predicted > 280 * MS && predicted < 500 * MS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_short_prompts_stay_on_an_idle_rank, core_close),
        cmocka_unit_test_teardown(test_running_sequences_speak_against_it, core_close),
        cmocka_unit_test_teardown(test_prompts_ahead_speak_against_it, core_close),
        cmocka_unit_test_teardown(test_cached_prompts_go_where_they_are, core_close),
        cmocka_unit_test_teardown(test_overloaded_prefill_workers_are_helped, core_close),
        cmocka_unit_test_teardown(test_without_prefill_workers, core_close),
        cmocka_unit_test_teardown(test_long_prompts_stand_aside, core_close),
        cmocka_unit_test_teardown(test_those_aside_are_no_work_ahead, core_close),
        cmocka_unit_test_teardown(test_what_lost_a_worker_is_not_for_ranks, core_close),
        cmocka_unit_test_teardown(test_never_and_nobody, core_close),
        cmocka_unit_test_teardown(test_groups_are_not_mixed_with_it, core_close),
        cmocka_unit_test_teardown(test_tokens_of_a_group_wait_for_a_group, core_close),
        cmocka_unit_test_teardown(test_rank_is_lost_while_it_computes, core_close),
        cmocka_unit_test_teardown(test_learns_what_ranks_report, core_close),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
