/* The time series and the sliding window of the router's status: against sorted samples. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/clock.h"
#include "common/base/random.h"
#include "router/history.h"

#define STEP_NS RT_HISTORY_STEP_NS
#define SEED    UINT64_C(20261)

static const struct rt_history_totals no_totals;
static const struct rt_history_gauges no_gauges;

static int setup(void **state)
{
    *state = rt_history_create(0);
    return *state ? 0 : -1;
}

static int teardown(void **state)
{
    rt_history_destroy(*state);
    return 0;
}

static void step_to(struct rt_history *history, int64_t step)
{
    rt_history_step(history, &no_totals, &no_gauges, step * STEP_NS);
}

static int by_size(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* Nearest rank of the sorted samples, within half of a bucket's width. */
static void assert_percentile(double seconds, int64_t *samples, size_t count, unsigned percent)
{
    qsort(samples, count, sizeof *samples, by_size);
    double exact = (double)samples[(count * percent + 99) / 100 - 1] / 1e9;
    if (fabs(seconds - exact) > exact / 31) {
        fail_msg("p%u is %g, not %g (seed %llu)", percent, seconds, exact,
                 (unsigned long long)SEED);
    }
}

static void test_percentiles(void **state)
{
    enum { SAMPLES = 5000 };
    static int64_t ttft[SAMPLES], tpot[SAMPLES];
    for (unsigned i = 0; i < SAMPLES; i++) { /* from 10 us to 100 s, evenly in the logarithm */
        ttft[i] =
            (int64_t)(1e4 * pow(10, 7.0 * (double)(bt_random_u64(SEED, i, 0) >> 11) * 0x1p-53));
        tpot[i] = (int64_t)(1e6 + (double)(bt_random_u64(SEED, i, 1) >> 11) * 0x1p-53 * 5e6);
        rt_history_ttft(*state, ttft[i]);
        rt_history_tpot(*state, tpot[i]);
    }
    struct rt_history_summary summary;
    rt_history_summarise(*state, RT_HISTORY_WINDOW, &summary);
    assert_int_equal(summary.ttft_count, SAMPLES);
    assert_int_equal(summary.tpot_count, SAMPLES);
    static const unsigned percents[] = {50, 90, 99};
    for (int i = 0; i < RT_PERCENTILES; i++) {
        assert_percentile(summary.ttft_s[i], ttft, SAMPLES, percents[i]);
        assert_percentile(summary.tpot_s[i], tpot, SAMPLES, percents[i]);
    }
}

static void test_extremes(void **state)
{
    struct rt_history_summary summary;
    rt_history_summarise(*state, RT_HISTORY_WINDOW, &summary);
    assert_true(isnan(summary.ttft_s[RT_P50]) && isnan(summary.stage_s[0]));
    rt_history_ttft(*state, -5);
    rt_history_ttft(*state, 0);
    rt_history_tpot(*state, INT64_MAX);
    rt_history_stage(*state, 0, -5);
    rt_history_summarise(*state, RT_HISTORY_WINDOW, &summary);
    assert_true(summary.ttft_s[RT_P99] < 1e-5);
    assert_true(summary.tpot_s[RT_P50] > 1000);
    assert_true(summary.stage_s[0] == 0);
    rt_history_ttft(NULL, 1);
    rt_history_tpot(NULL, 1);
    rt_history_stage(NULL, 0, 1);
    rt_history_step(NULL, &no_totals, &no_gauges, 1);
}

/* A sample counts in the step under way and in RT_HISTORY_WINDOW - 1 steps after it, and then no
 * more. */
static void test_window_slides(void **state)
{
    struct rt_history_summary summary;
    rt_history_ttft(*state, BT_NS_PER_S);
    rt_history_stage(*state, 3, BT_NS_PER_S / 2);
    for (int step = 1; step <= RT_HISTORY_WINDOW; step++) {
        step_to(*state, step);
        rt_history_summarise(*state, RT_HISTORY_WINDOW, &summary);
        assert_int_equal(summary.ttft_count, 1);
        assert_float_equal(summary.stage_s[3], 0.5, 1e-9);
    }
    step_to(*state, RT_HISTORY_WINDOW + 1);
    rt_history_summarise(*state, RT_HISTORY_WINDOW, &summary);
    assert_int_equal(summary.ttft_count, 0);
    assert_true(isnan(summary.stage_s[3]));
}

static void test_points_smooth(void **state)
{
    rt_history_ttft(*state, 100 * BT_NS_PER_MS);
    for (int step = 1; step <= RT_HISTORY_SMOOTH + 1; step++) {
        step_to(*state, step);
        const struct rt_history_point *point = rt_history_point(*state, (uint64_t)step);
        assert_int_equal(point->time_ns, step * STEP_NS);
        if (step <= RT_HISTORY_SMOOTH) {
            assert_float_equal(point->ttft_s[RT_P99], 0.1, 0.1 / 31);
        } else {
            assert_true(isnan(point->ttft_s[RT_P99]));
        }
        assert_true(isnan(point->tpot_s[RT_P50]));
    }
}

static void test_rates(void **state)
{
    struct rt_history_totals totals = {.requests = 10, .shed = 4, .prompt_tokens = 1000};
    const struct rt_history_gauges gauges = {
        .queued = 7, .running = 3, .kv_mean = 0.25f, .kv_max = 1};
    rt_history_step(*state, &totals, &gauges, STEP_NS);
    const struct rt_history_point *point = rt_history_point(*state, 1);
    assert_float_equal(point->requests_s, 5, 1e-6);
    assert_float_equal(point->shed_s, 2, 1e-6);
    assert_float_equal(point->prompt_tokens_s, 500, 1e-4);
    assert_int_equal(point->gauges.queued, 7);
    assert_float_equal(point->gauges.kv_max, 1, 0);
    totals.generated_tokens = 90;
    totals.kv_bytes = 3000000;
    /* Late by half a step: the rate is over the time that went by. */
    rt_history_step(*state, &totals, &gauges, STEP_NS * 5 / 2);
    point = rt_history_point(*state, 2);
    assert_float_equal(point->requests_s, 0, 0);
    assert_float_equal(point->generated_tokens_s, 30, 1e-5);
    assert_float_equal(point->kv_bytes_s, 1e6, 1);
    assert_int_equal(rt_history_next_ns(*state), STEP_NS * 7 / 2);
}

static void test_ring(void **state)
{
    assert_int_equal(rt_history_last(*state), 0);
    assert_null(rt_history_point(*state, 0));
    assert_null(rt_history_point(*state, 1));
    for (int step = 1; step <= RT_HISTORY_POINTS + 7; step++) {
        step_to(*state, step);
    }
    rt_history_step(*state, &no_totals, &no_gauges, 5); /* a clock that went back */
    assert_int_equal(rt_history_first(*state), 8);
    assert_int_equal(rt_history_last(*state), RT_HISTORY_POINTS + 7);
    assert_null(rt_history_point(*state, 7));
    for (uint64_t number = 8; number <= RT_HISTORY_POINTS + 7; number++) {
        assert_int_equal(rt_history_point(*state, number)->time_ns, (int64_t)number * STEP_NS);
    }
    assert_null(rt_history_point(*state, RT_HISTORY_POINTS + 8));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_percentiles),   TEST(test_extremes), TEST(test_window_slides),
        TEST(test_points_smooth), TEST(test_rates),    TEST(test_ring),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
