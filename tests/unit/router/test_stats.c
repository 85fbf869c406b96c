/* Router/Stats: against sums made by hand, and of the whole service. */
#include <math.h>

#include "router/stats_message.h"
#include "tests/unit/router/service_driver.h"

#define STEP_NS RT_HISTORY_STEP_NS
#define UNIX_NS (INT64_C(1700000000) * BT_NS_PER_S)

static struct rt_history *history;

static int open_history(void **state)
{
    (void)state;
    history = rt_history_create(0);
    return history ? 0 : -1;
}

static int close_history(void **state)
{
    (void)state;
    rt_history_destroy(history);
    return 0;
}

static struct rt_stats_now at(int64_t now_ns, const struct rt_history_totals *totals)
{
    return (struct rt_stats_now){.now_ns = now_ns,
                                 .unix_ns = UNIX_NS + now_ns,
                                 .totals = *totals,
                                 .queued = 4,
                                 .running = 9};
}

static Baton__V1__StatsResponse *look(const struct rt_stats_now *now, uint32_t window_s)
{
    Baton__V1__StatsResponse *stats = rt_stats_message(history, now, window_s);
    assert_non_null(stats);
    return stats;
}

static void finish(Baton__V1__StatsResponse *stats)
{
    baton__v1__stats_response__free_unpacked(stats, NULL);
}

/* `step` steps of two seconds went by, each with 10 requests of 100 prompt tokens, 8 of them
 * finished with 30 tokens, one shed, one failed, 40 cached tokens and 6000 bytes. */
static struct rt_history_totals after_steps(uint64_t steps)
{
    return (struct rt_history_totals){
        .requests = 10 * steps,
        .finished = 8 * steps,
        .failed = steps,
        .shed = steps,
        .prompt_tokens = 1000 * steps,
        .cached_tokens = 40 * steps,
        .generated_tokens = 240 * steps,
        .kv_bytes = 6000 * steps,
        .finished_input = 800 * steps,
        .finished_output = 240 * steps,
    };
}

static void run_steps(uint64_t from, uint64_t to)
{
    for (uint64_t step = from; step <= to; step++) {
        struct rt_history_totals totals = after_steps(step);
        struct rt_history_gauges gauges = {.queued = (uint32_t)step, .kv_mean = 0.25f, .kv_max = 1};
        rt_history_step(history, &totals, &gauges, (int64_t)step * STEP_NS);
    }
}

static void assert_rates(const Baton__V1__StatsResponse *stats)
{
    assert_float_equal(stats->requests_s, 5, 1e-9);
    assert_float_equal(stats->failed_s, 0.5, 1e-9);
    assert_float_equal(stats->shed_s, 0.5, 1e-9);
    assert_float_equal(stats->prompt_tokens_s, 500, 1e-9);
    assert_float_equal(stats->cached_tokens_s, 20, 1e-9);
    assert_float_equal(stats->generated_tokens_s, 120, 1e-9);
    assert_float_equal(stats->kv_bytes_s, 3000, 1e-9);
    assert_float_equal(stats->input_tokens_mean, 100, 1e-9);
    assert_float_equal(stats->output_tokens_mean, 30, 1e-9);
}

static void test_nothing_yet(void **state)
{
    (void)state;
    const struct rt_history_totals none = {0};
    struct rt_stats_now now = at(0, &none);
    Baton__V1__StatsResponse *stats = look(&now, 0);
    assert_true(stats->window_s == 0 && stats->requests_s == 0 && stats->input_tokens_mean == 0);
    assert_int_equal(stats->ttft->count + stats->tpot->count, 0);
    assert_true(stats->ttft->p90_s == 0);
    assert_int_equal(stats->n_points + stats->n_stages, 0);
    assert_int_equal(stats->queued, 4);
    assert_int_equal(stats->running, 9);
    finish(stats);
}

/* The window is less than asked for after a start; and it takes the step under way along. */
static void test_young(void **state)
{
    (void)state;
    run_steps(1, 3);
    struct rt_history_totals totals = after_steps(4);
    struct rt_stats_now now = at(4 * STEP_NS, &totals);
    Baton__V1__StatsResponse *stats = look(&now, 0);
    assert_float_equal(stats->window_s, 8, 1e-9);
    assert_rates(stats);
    assert_int_equal(stats->n_points, 3);
    finish(stats);
    now.now_ns -= STEP_NS / 2; /* 40 requests in 7 s */
    stats = look(&now, 60);
    assert_float_equal(stats->requests_s, 40 / 7.0, 1e-9);
    finish(stats);
    now.now_ns = -1; /* a clock that went back */
    stats = look(&now, 60);
    assert_true(stats->window_s == 0 && stats->requests_s == 0);
    finish(stats);
}

/* What is before the window does not count: neither in rates nor in means, quantiles, stages. */
static void test_window(void **state)
{
    (void)state;
    const struct rt_history_totals huge = {
        .requests = 1 << 20, .finished = 1 << 20, .finished_input = UINT64_C(1) << 40};
    rt_history_ttft(history, 50 * BT_NS_PER_S);
    rt_history_stage(history, RT_TTFT_QUEUE, 40 * BT_NS_PER_S);
    rt_history_step(history, &huge, &(struct rt_history_gauges){0}, STEP_NS);
    struct rt_history_totals totals;
    for (int step = 2; step <= 6; step++) { /* 5 requests, 50 tokens a step */
        totals = huge;
        totals.requests += (uint64_t)(step - 1) * 5;
        totals.finished += (uint64_t)(step - 1) * 5;
        totals.finished_input += (uint64_t)(step - 1) * 50;
        rt_history_ttft(history, BT_NS_PER_S / 10);
        rt_history_tpot(history, BT_NS_PER_S / 100);
        rt_history_stage(history, RT_TTFT_QUEUE, BT_NS_PER_S / 50);
        rt_history_step(history, &totals, &(struct rt_history_gauges){0}, step * STEP_NS);
    }
    struct rt_stats_now now = at(6 * STEP_NS, &totals);
    Baton__V1__StatsResponse *stats = look(&now, 9); /* five steps */
    assert_float_equal(stats->window_s, 10, 1e-9);
    assert_float_equal(stats->requests_s, 2.5, 1e-9);
    assert_float_equal(stats->input_tokens_mean, 10, 1e-9);
    assert_int_equal(stats->ttft->count, 5);
    assert_int_equal(stats->tpot->count, 5);
    assert_float_equal(stats->ttft->p99_s, 0.1, 0.1 / 31);
    assert_float_equal(stats->tpot->p50_s, 0.01, 0.01 / 31);
    assert_int_equal(stats->n_stages, RT_TTFT_STAGES);
    assert_string_equal(stats->stages[RT_TTFT_QUEUE]->name, "queue");
    assert_float_equal(stats->stages[RT_TTFT_QUEUE]->mean_s, 0.02, 1e-9);
    assert_true(stats->stages[RT_TTFT_PREFILL_COMPUTE]->mean_s == 0);
    assert_int_equal(stats->n_points, 5);
    assert_true(stats->points[0]->unix_ns == UNIX_NS + 2 * STEP_NS);
    finish(stats);
    stats = look(&now, 12); /* all six */
    assert_int_equal(stats->ttft->count, 6);
    assert_true(stats->ttft->p99_s > 40 && stats->requests_s > 1e4);
    finish(stats);
}

/* As long as the history, and no longer, whatever is asked for. */
static void test_longest(void **state)
{
    (void)state;
    rt_history_tpot(history, BT_NS_PER_S);
    run_steps(1, RT_HISTORY_POINTS);
    struct rt_history_totals totals = after_steps(RT_HISTORY_POINTS);
    struct rt_stats_now now = at(RT_HISTORY_POINTS * STEP_NS, &totals);
    Baton__V1__StatsResponse *stats = look(&now, 600);
    assert_int_equal(stats->tpot->count, 1);
    finish(stats);
    run_steps(RT_HISTORY_POINTS + 1, RT_HISTORY_POINTS + 40);
    totals = after_steps(RT_HISTORY_POINTS + 40);
    now = at((RT_HISTORY_POINTS + 40) * STEP_NS, &totals);
    stats = look(&now, UINT32_MAX);
    assert_float_equal(stats->window_s, 600, 1e-9);
    assert_rates(stats);
    assert_int_equal(stats->tpot->count, 0);
    assert_int_equal(stats->n_points, RT_HISTORY_POINTS);
    assert_true(stats->points[0]->unix_ns == UNIX_NS + 41 * STEP_NS);
    assert_int_equal(stats->points[299]->queued, RT_HISTORY_POINTS + 40);
    assert_float_equal(stats->points[299]->kv_mean, 0.25, 1e-9);
    assert_true(stats->points[299]->ttft_p90_s < 0 && stats->points[299]->kv_max == 1);
    finish(stats);
}

/* One generation of the whole service: what it was long, how often it came, where its time went. */
static void test_service(void **state)
{
    (void)state;
    static struct seen seen;
    uint32_t count = (uint32_t)script.count;
    join(&p0, "p0", false);
    join(&d0, "d0", true);
    submit(&seen, count);
    RUN_UNTIL(p0.run);
    Baton__V1__StatsRequest request = BATON__V1__STATS_REQUEST__INIT;
    Baton__V1__StatsResponse *stats = rt_service_stats(service, &request);
    assert_int_equal(stats->queued, 0);
    assert_int_equal(stats->running, 1);
    finish(stats);
    fake_prefill_first_token(&p0);
    RUN_UNTIL(seen.token_count == 1);
    fake_prefill_done(&p0);
    fake_decode_step(&d0, 0, count, BATON__V1__FINISH_REASON__FINISH_LENGTH);
    RUN_UNTIL(seen.ended);
    SETTLE();
    stats = rt_service_stats(service, &request);
    assert_int_equal(stats->running, 0);
    assert_true(stats->window_s > 0);
    assert_float_equal(stats->requests_s * stats->window_s, 1, 1e-6);
    assert_float_equal(stats->prompt_tokens_s * stats->window_s, 5, 1e-6);
    assert_float_equal(stats->generated_tokens_s * stats->window_s, count, 1e-6);
    assert_float_equal(stats->kv_bytes_s * stats->window_s, 4096, 1e-6);
    assert_float_equal(stats->input_tokens_mean, 5, 1e-9);
    assert_float_equal(stats->output_tokens_mean, count, 1e-9);
    assert_int_equal(stats->ttft->count, 1);
    assert_int_equal(stats->tpot->count, 1);
    assert_float_equal(stats->stages[RT_TTFT_PREFILL_COMPUTE]->mean_s, 0.005, 1e-9);
    finish(stats);
}

#define OF_HISTORY(name) cmocka_unit_test_setup_teardown(name, open_history, close_history)

int main(void)
{
    const struct CMUnitTest tests[] = {
        OF_HISTORY(test_nothing_yet), OF_HISTORY(test_young), OF_HISTORY(test_window),
        OF_HISTORY(test_longest),     TEST(test_service),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
