/* Quantiles against a sort, and what becomes of requests against a count by hand. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/random.h"
#include "deploy/batonctl/bench_result.h"

#define SEED 11
#define MS   INT64_C(1000000)

static const double quantiles[] = {0, 0.001, 0.25, 0.5, 0.9, 0.99, 0.999, 1};

static int compare(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* Over many powers of two. */
static int64_t value(uint64_t i)
{
    return (int64_t)(pow(bt_random_unit(SEED, i, 0), 8) * 1e12);
}

/* As numpy.quantile has it, in seconds. */
static double sorted_quantile(const int64_t *sorted, size_t count, double q)
{
    double place = q * (double)(count - 1);
    size_t low = (size_t)floor(place), high = (size_t)ceil(place);
    double part = place - (double)low;
    return ((double)sorted[low] * (1 - part) + (double)sorted[high] * part) / 1e9;
}

static void check_quantiles(size_t count, double tolerance, bool lossy)
{
    struct ctl_bench_samples samples = {0};
    int64_t *all = calloc(count, sizeof *all);
    double sum = 0;
    for (size_t i = 0; i < count; i++) {
        all[i] = value(i);
        sum += (double)all[i];
        ctl_bench_samples_add(&samples, all[i], 1);
    }
    qsort(all, count, sizeof *all, compare);
    assert_int_equal(samples.count, count);
    assert_int_equal(samples.lossy, lossy);
    assert_int_equal(samples.least, all[0]);
    assert_int_equal(samples.greatest, all[count - 1]);
    assert_true(fabs(ctl_bench_samples_mean_s(&samples) * 1e9 * (double)count / sum - 1) < 1e-12);
    for (size_t i = 0; i < sizeof quantiles / sizeof *quantiles; i++) {
        double q = quantiles[i], wanted = sorted_quantile(all, count, q);
        double got = ctl_bench_samples_quantile_s(&samples, q);
        if (fabs(got - wanted) > tolerance * wanted + 1e-12)
            fail_msg("%zu values, quantile %g: %.12g, not %.12g", count, q, got, wanted);
        /* The quick way is off by a bucket at most, from one of the two neighbours. */
        double low = (double)all[(size_t)floor(q * (double)(count - 1))] / 1e9;
        double about = ctl_bench_samples_about_s(&samples, q);
        assert_true(fabs(about - low) <= 0.004 * low + 1e-9);
    }
    ctl_bench_samples_finish(&samples);
    free(all);
}

static void test_quantiles(void **state)
{
    (void)state;
    check_quantiles(1, 1e-12, false);
    check_quantiles(2, 1e-12, false);
    check_quantiles(1001, 1e-12, false);
    check_quantiles(CTL_BENCH_EXACT, 1e-12, false);
    check_quantiles(CTL_BENCH_EXACT + 1, 0.005, true);
    check_quantiles(300000, 0.005, true);
}

/* Every bucket, at its ends, holds what it says. */
static void test_precision(void **state)
{
    (void)state;
    for (unsigned bit = 0; bit < 62; bit++)
        for (int64_t off = -1; off <= 1; off++) {
            int64_t at = (INT64_C(1) << bit) + off;
            struct ctl_bench_samples samples = {0};
            /* Neighbours far away, so that the bucket and not the bounds answers. */
            ctl_bench_samples_add(&samples, 0, 1);
            ctl_bench_samples_add(&samples, at, 3);
            ctl_bench_samples_add(&samples, INT64_MAX, 1);
            double got = ctl_bench_samples_about_s(&samples, 0.5) * 1e9;
            assert_true(fabs(got - (double)at) <= (double)at * 0.004);
            ctl_bench_samples_finish(&samples);
        }
}

static void test_odd_samples(void **state)
{
    (void)state;
    struct ctl_bench_samples samples = {0};
    assert_true(ctl_bench_samples_quantile_s(&samples, 0.5) == 0);
    assert_true(ctl_bench_samples_about_s(&samples, 0.5) == 0);
    assert_true(ctl_bench_samples_mean_s(&samples) == 0);
    ctl_bench_samples_add(&samples, 5, 0);
    assert_int_equal(samples.count, 0);
    ctl_bench_samples_add(&samples, -5, 1);
    ctl_bench_samples_add(&samples, INT64_MAX, 2);
    assert_true(ctl_bench_samples_quantile_s(&samples, 0) == 0);
    assert_true(ctl_bench_samples_quantile_s(&samples, 1) == (double)INT64_MAX / 1e9);
    /* As a peer may say that so many tokens came: memory stays as it is. */
    ctl_bench_samples_add(&samples, 1000, UINT32_MAX);
    assert_true(samples.lossy && !samples.kept);
    assert_true(fabs(ctl_bench_samples_quantile_s(&samples, 0.5) * 1e9 - 1000) < 4);
    ctl_bench_samples_finish(&samples);
    struct ctl_bench_samples weighted = {0};
    ctl_bench_samples_add(&weighted, 10, 3);
    ctl_bench_samples_add(&weighted, 50, 1);
    assert_true(fabs(ctl_bench_samples_mean_s(&weighted) * 1e9 - 20) < 1e-9);
    assert_true(fabs(ctl_bench_samples_quantile_s(&weighted, 0.5) * 1e9 - 10) < 1e-9);
    ctl_bench_samples_finish(&weighted);
}

/* ------------------------------------------------------------------ results */

static struct ctl_bench_outcome outcome(int64_t scheduled, int64_t sent, int64_t first,
                                        int64_t last, int64_t end, uint32_t tokens)
{
    return (struct ctl_bench_outcome){.scheduled_ns = scheduled * MS,
                                      .sent_ns = sent * MS,
                                      .first_ns = first * MS,
                                      .last_ns = last * MS,
                                      .end_ns = end * MS,
                                      .prompt_tokens = 100,
                                      .cached_tokens = 30,
                                      .output_tokens = tokens};
}

static void add(struct ctl_bench_result *result, struct ctl_bench_outcome one)
{
    ctl_bench_result_sent(result, &one);
    ctl_bench_result_add(result, &one);
}

/* TTFT 100, TPOT 20, E2E 310 ms; sent 40 ms late, which counts. */
static void test_latencies(void **state)
{
    (void)state;
    struct ctl_bench_outcome one = outcome(1000, 1040, 1100, 1300, 1310, 11);
    assert_int_equal(ctl_bench_ttft_ns(&one), 100 * MS);
    assert_int_equal(ctl_bench_tpot_ns(&one), 20 * MS);
    assert_int_equal(ctl_bench_e2e_ns(&one), 310 * MS);
    const struct {
        struct ctl_bench_slo slo;
        bool good;
    } cases[] = {{{0, 0, 0}, true},
                 {{100 * MS, 20 * MS, 310 * MS}, true},
                 {{100 * MS - 1, 0, 0}, false},
                 {{0, 20 * MS - 1, 0}, false},
                 {{0, 0, 310 * MS - 1}, false},
                 {{1, 1, 1}, false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(ctl_bench_is_good(&cases[i].slo, &one), cases[i].good);
    struct ctl_bench_slo any = {0}, tight = {.tpot_ns = 1};
    one.status = BT_ERR_EXHAUSTED;
    assert_false(ctl_bench_is_good(&any, &one));
    one.status = BT_OK;
    one.unfinished = true;
    assert_false(ctl_bench_is_good(&any, &one));
    one.unfinished = false;
    one.output_tokens = 1;
    assert_true(ctl_bench_is_good(&tight, &one));
    one.output_tokens = 0;
    assert_true(ctl_bench_is_good(&tight, &one));
}

static void test_counts(void **state)
{
    (void)state;
    struct ctl_bench_result result = {.slo = {.ttft_ns = 150 * MS}};
    struct ctl_bench_outcome warm = outcome(0, 0, 900, 901, 902, 2);
    warm.warmup = true;
    add(&result, warm);
    add(&result, outcome(1000, 1000, 1100, 1300, 1310, 11));
    add(&result, outcome(1500, 1501, 1700, 1900, 1900, 2));
    struct ctl_bench_outcome failed = outcome(2000, 2000, 2001, 2001, 2001, 0);
    failed.status = BT_ERR_EXHAUSTED;
    failed.text = "the queue is full";
    add(&result, failed);
    failed.text = "another";
    add(&result, failed);
    failed.status = BT_ERR_PEER_LOST;
    add(&result, failed);
    struct ctl_bench_outcome open = outcome(3000, 3000, 3000, 3000, 3000, 0);
    open.unfinished = true;
    open.status = BT_ERR_CANCELLED;
    add(&result, open);
    assert_int_equal(result.sent, 6);
    assert_int_equal(result.warmup, 1);
    assert_int_equal(result.succeeded, 2);
    assert_int_equal(result.failed, 3);
    assert_int_equal(result.unfinished, 1);
    assert_int_equal(result.good, 1);
    assert_int_equal(result.input_tokens, 200);
    assert_int_equal(result.cached_tokens, 60);
    assert_int_equal(result.output_tokens, 13);
    assert_int_equal(result.error_count, 2);
    assert_int_equal(result.errors[0].status, BT_ERR_EXHAUSTED);
    assert_int_equal(result.errors[0].count, 2);
    assert_string_equal(result.errors[0].text, "the queue is full");
    assert_int_equal(result.errors[1].count, 1);
    assert_int_equal(result.ttft.count, 2);
    assert_int_equal(result.tpot.count, 2);
    assert_int_equal(result.lag.count, 6);
    assert_int_equal(result.peak_open, 1);
    assert_int_equal(result.open, 0);
    assert_true(fabs(ctl_bench_result_duration_s(&result) - 2) < 1e-9); /* 1 s to 3 s */
    assert_true(fabs(ctl_bench_result_sent_per_s(&result) - 2.5) < 1e-9);
    assert_true(fabs(ctl_bench_result_good_share(&result) - 0.2) < 1e-9);
    assert_false(ctl_bench_result_clean(&result));
    ctl_bench_result_finish(&result);
    struct ctl_bench_result none = {0};
    assert_false(ctl_bench_result_clean(&none));
    assert_true(ctl_bench_result_duration_s(&none) > 0);
    add(&none, outcome(0, 0, 1, 2, 3, 2));
    assert_true(ctl_bench_result_clean(&none));
    ctl_bench_result_finish(&none);
}

static void test_gaps_between_tokens(void **state)
{
    (void)state;
    struct ctl_bench_result result = {0};
    ctl_bench_result_tokens(&result, 100 * MS, 100 * MS, 1, true, false);
    ctl_bench_result_tokens(&result, 130 * MS, 30 * MS, 1, false, false);
    ctl_bench_result_tokens(&result, 190 * MS, 60 * MS, 3, false, false);
    ctl_bench_result_tokens(&result, 200 * MS, 10 * MS, 1, false, true); /* warm-up */
    assert_int_equal(result.itl.count, 4);
    assert_true(fabs(ctl_bench_samples_mean_s(&result.itl) - 0.0225) < 1e-12); /* 90 ms of 4 */
    assert_true(fabs(ctl_bench_samples_quantile_s(&result.itl, 0.5) - 0.02) < 1e-12);
    /* Three at once to begin with: two of them had no gap. */
    ctl_bench_result_tokens(&result, 300 * MS, 300 * MS, 3, true, false);
    assert_int_equal(result.itl.count, 6);
    assert_int_equal(result.itl.least, 0);
    ctl_bench_result_finish(&result);
}

/* A sum of each series stays the same however often its bins get wider. */
static void test_series(void **state)
{
    (void)state;
    struct ctl_bench_series series = {0};
    uint64_t sum = 0, first = 0;
    for (int64_t i = 0; i < 100000; i++)
        ctl_bench_series_at(&series, i * 37 * MS)->tokens += (uint64_t)i;
    assert_true(series.count <= CTL_BENCH_BINS && series.count > CTL_BENCH_BINS / 2);
    for (uint32_t i = 0; i < series.count; i++)
        sum += series.bins[i].tokens;
    assert_int_equal(sum, 99999ull * 100000 / 2);
    for (int64_t i = 0; i * 37 * MS < series.width_ns; i++)
        first += (uint64_t)i;
    assert_int_equal(series.bins[0].tokens, first);
    ctl_bench_series_at(&series, INT64_MAX / 2)->sent++;
    ctl_bench_series_at(&series, -5)->sent++;
    assert_true(series.count <= CTL_BENCH_BINS);
    assert_int_equal(series.bins[0].sent, 1);
}

int main(void)
{
    print_message("seed %d\n", SEED);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_quantiles),   cmocka_unit_test(test_precision),
        cmocka_unit_test(test_odd_samples), cmocka_unit_test(test_latencies),
        cmocka_unit_test(test_counts),      cmocka_unit_test(test_gaps_between_tokens),
        cmocka_unit_test(test_series),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
