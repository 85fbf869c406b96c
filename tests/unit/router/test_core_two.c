/* Two routers' cores on one set of workers, which the test models: what each makes of the other's
 * requests. */
#include "tests/unit/router/core_driver.h"

#define POOL 40 /* pages of the rank */

/* What it holds: of each request the pages it has, and those that its Reserve named. */
struct rank {
    uint32_t used[8], expected[8];
};

static struct rt_core *cores[2];
static rt_worker_ref decode[2], other[2];

static void open_two(bool two_ranks)
{
    core_open(NULL);
    cores[0] = core;
    cores[1] = rt_core_create(&default_options);
    assert_non_null(cores[1]);
    for (int i = 0; i < 2; i++) {
        core = cores[i];
        worker_add("p0", RT_ROLE_PREFILL, 0);
        decode[i] = worker_add("d0", RT_ROLE_DECODE, POOL);
        if (two_ranks) {
            other[i] = worker_add("d1", RT_ROLE_DECODE, POOL);
        }
    }
}

static int close_two(void **state)
{
    (void)state;
    rt_core_destroy(cores[0]);
    rt_core_destroy(cores[1]);
    core = NULL;
    return 0;
}

static void report_to(const struct rank *rank, int router)
{
    struct rt_load load = {.pages_total = POOL, .pages_free = POOL};
    for (int i = 0; i < 8; i++) {
        load.pages_free -= rank->used[i];
        load.pages_expected +=
            rank->used[i] > rank->expected[i] ? rank->used[i] : rank->expected[i];
    }
    rt_core_worker_load(cores[router], decode[router], &load);
}

static void report(const struct rank *rank)
{
    report_to(rank, 0);
    report_to(rank, 1);
}

static uint32_t projected(int router)
{
    struct rt_worker_view view;
    assert_true(rt_core_worker(cores[router], decode[router], &view));
    return view.projected_pages;
}

/* The rank gives it a page to begin with. */
static struct rt_action place(struct rank *rank, int router, uint64_t id, uint32_t prompt,
                              uint32_t max_tokens)
{
    core = cores[router];
    submit(id, prompt, max_tokens);
    struct rt_action reserve = next(RT_ACTION_RESERVE, id);
    if (reserve.decode == decode[router]) {
        rank->used[id] = 1;
        rank->expected[id] = reserve.pages;
    }
    return reserve;
}

static void reserved(int router, const struct rt_action *reserve)
{
    core = cores[router];
    rt_core_reserved(core, reserve->request, reserve->attempt, reserve->decode, BT_OK, NULL,
                     reserve->request + 100, now);
    next(RT_ACTION_PREFILL, reserve->request);
}

/* 600 + 40 tokens are 10 pages, 300 + 20 are 5. */
static void test_the_others_growth_is_seen_before_it_happens(void **state)
{
    (void)state;
    struct rank rank = {0};
    open_two(false);
    struct rt_action first = place(&rank, 0, 1, 600, 40);
    assert_int_equal(first.pages, 10);
    reserved(0, &first);
    struct rt_action second = place(&rank, 1, 2, 300, 20);
    assert_int_equal(second.pages, 5);
    assert_int_equal(projected(1), 5);
    reserved(1, &second);
    report(&rank);
    assert_int_equal(projected(0), 15); /* two are used */
    assert_int_equal(projected(1), 15);
    for (uint32_t used = 1; used <= 10; used++) { /* nothing counts twice while it grows */
        rank.used[1] = used;
        rank.used[2] = used < 5 ? used : 5;
        report(&rank);
        assert_int_equal(projected(0), 15);
        assert_int_equal(projected(1), 15);
    }
    rank.used[1] = 12; /* longer than expected */
    report(&rank);
    assert_int_equal(projected(0), 17);
    assert_int_equal(projected(1), 17);
    rt_core_finish(cores[1], 2, RT_FINISH_CANCELLED, now);
    rank.used[2] = rank.expected[2] = 0;
    assert_int_equal(projected(1), 17); /* the last report had its five pages in use */
    report(&rank);
    assert_int_equal(projected(0), 12);
    assert_int_equal(projected(1), 12);
}

/* The report before the answer has not got it, the one after it has. */
static void test_what_is_in_transit_counts_beside_the_others(void **state)
{
    (void)state;
    struct rank rank = {0};
    open_two(false);
    struct rt_action first = place(&rank, 0, 1, 600, 40);
    reserved(0, &first);
    report(&rank);
    struct rank before = rank;
    struct rt_action second = place(&rank, 1, 2, 300, 20);
    assert_int_equal(projected(1), 15);
    report_to(&before, 1);
    assert_int_equal(projected(1), 15);
    reserved(1, &second);
    report(&rank);
    assert_int_equal(projected(1), 15);
}

/* 30 of 40 pages are promised away, one is used: a request of 11 goes to the other rank, though
 * more is used there; with only this one it waits. */
static void test_a_rank_that_another_promised_away_is_avoided(void **state)
{
    (void)state;
    struct rank rank = {0};
    open_two(true);
    struct rt_action first = place(&rank, 0, 1, 1880, 40);
    assert_int_equal(first.pages, 30);
    assert_int_equal(first.decode, decode[0]);
    reserved(0, &first);
    report(&rank);
    struct rt_load load = {.pages_total = POOL, .pages_free = POOL - 20, .pages_expected = 20};
    rt_core_worker_load(cores[1], other[1], &load);
    struct rt_action second = place(&rank, 1, 2, 660, 40);
    assert_int_equal(second.pages, 11);
    assert_int_equal(second.decode, other[1]);
}

static void test_what_was_promised_away_is_waited_for(void **state)
{
    (void)state;
    struct rank rank = {0};
    open_two(false);
    struct rt_action first = place(&rank, 0, 1, 1880, 40);
    reserved(0, &first);
    report(&rank);
    core = cores[1];
    submit(2, 660, 40);
    next_none();
    rank = (struct rank){0}; /* the first one is over */
    report(&rank);
    next(RT_ACTION_RESERVE, 2);
}

static void test_one_that_is_taken_over_is_no_others_any_more(void **state)
{
    (void)state;
    struct rank rank = {0};
    open_two(false);
    struct rt_action first = place(&rank, 0, 1, 600, 40);
    reserved(0, &first);
    report(&rank);
    assert_int_equal(projected(1), 10);
    const struct rt_request_spec spec = {.id = 1,
                                         .prompt_tokens = 600,
                                         .max_tokens = 40,
                                         .arrival_ns = now,
                                         .deadline_ns = BT_NEVER_NS};
    assert_int_equal(rt_core_adopt(cores[1], &spec, decode[1], 101, now, NULL), BT_OK);
    assert_int_equal(projected(1), 10);
    report(&rank);
    assert_int_equal(projected(1), 10);
}

static void test_a_rank_that_does_not_say(void **state)
{
    (void)state;
    struct rank rank = {0};
    open_two(false);
    struct rt_action first = place(&rank, 0, 1, 600, 40);
    reserved(0, &first);
    struct rt_load load = {.pages_total = POOL, .pages_free = POOL - 3};
    rt_core_worker_load(cores[0], decode[0], &load);
    rt_core_worker_load(cores[1], decode[1], &load);
    assert_int_equal(projected(0), 10);
    assert_int_equal(projected(1), 3);
}

/* The prompts of the other are ahead of one's own: 900 ms, and then 100. */
static void test_the_others_prompts_are_ahead(void **state)
{
    (void)state;
    struct rank rank = {0};
    open_two(false);
    rt_worker_ref prefill[2], idle;
    struct rt_worker_view view;
    for (int i = 0; i < 2; i++) {
        size_t cursor = 0;
        core = cores[i];
        do {
            assert_true(rt_core_next_worker(core, &cursor, &prefill[i]));
            assert_true(rt_core_worker(core, prefill[i], &view));
        } while (view.info->role != RT_ROLE_PREFILL);
    }
    struct rt_action first = place(&rank, 0, 1, 900, 10);
    reserved(0, &first);
    struct rt_load load = {.waiting_tokens = 900};
    rt_core_worker_load(cores[0], prefill[0], &load);
    rt_core_worker_load(cores[1], prefill[1], &load);
    core = cores[1];
    idle = worker_add("p1", RT_ROLE_PREFILL, 0);
    struct rt_action second = place(&rank, 1, 2, 100, 10);
    assert_int_equal(second.prefill, idle);
    load.waiting_tokens = 0;
    rt_core_worker_load(cores[1], prefill[1], &load);
    struct rt_action third = place(&rank, 1, 3, 50, 10);
    assert_int_equal(third.prefill, prefill[1]);
    /* One's own prompt is no other's: the report has it, and it counts once. */
    reserved(1, &third);
    load.waiting_tokens = 50;
    rt_core_worker_load(cores[1], prefill[1], &load);
    struct rt_action fourth = place(&rank, 1, 4, 10, 10);
    assert_int_equal(fourth.prefill, prefill[1]); /* 50 ahead there, 100 at the other */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_the_others_growth_is_seen_before_it_happens, close_two),
        cmocka_unit_test_teardown(test_what_is_in_transit_counts_beside_the_others, close_two),
        cmocka_unit_test_teardown(test_a_rank_that_another_promised_away_is_avoided, close_two),
        cmocka_unit_test_teardown(test_what_was_promised_away_is_waited_for, close_two),
        cmocka_unit_test_teardown(test_one_that_is_taken_over_is_no_others_any_more, close_two),
        cmocka_unit_test_teardown(test_a_rank_that_does_not_say, close_two),
        cmocka_unit_test_teardown(test_the_others_prompts_are_ahead, close_two),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
