#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/metrics.h"

static void assert_rendered(const struct bt_metrics *metrics, const char *expected)
{
    size_t size;
    char *text = bt_metrics_render(metrics, &size);
    assert_non_null(text);
    assert_string_equal(text, expected);
    assert_int_equal(size, strlen(expected));
    free(text);
}

/* Samples of a name stand together under one HELP and TYPE, however they were registered. */
static void test_text(void **state)
{
    (void)state;
    struct bt_metrics *metrics = bt_metrics_create();
    assert_rendered(metrics, "");
    struct bt_counter *ok =
        bt_metrics_counter(metrics, "bt_calls_total", "status=\"ok\"", "Calls, \\ by\nstatus.");
    struct bt_gauge *pages = bt_metrics_gauge(metrics, "bt_pages", NULL, "Free pages.");
    struct bt_counter *bad = bt_metrics_counter(metrics, "bt_calls_total", "status=\"bad\"", "");
    bt_counter_add(ok, 3);
    bt_counter_add(bad, UINT64_MAX);
    bt_gauge_set(pages, -0.1);
    assert_rendered(metrics, "# HELP bt_calls_total Calls, \\\\ by\\nstatus.\n"
                             "# TYPE bt_calls_total counter\n"
                             "bt_calls_total{status=\"ok\"} 3\n"
                             "bt_calls_total{status=\"bad\"} 18446744073709551615\n"
                             "# HELP bt_pages Free pages.\n"
                             "# TYPE bt_pages gauge\n"
                             "bt_pages -0.1\n");
    bt_metrics_destroy(metrics);
}

static void test_histogram(void **state)
{
    (void)state;
    struct bt_metrics *metrics = bt_metrics_create();
    const double bounds[] = {0.005, 0.5, 2};
    struct bt_histogram *plain =
        bt_metrics_histogram(metrics, "bt_ttft_seconds", NULL, "TTFT.", bounds, 3);
    bt_metrics_histogram(metrics, "bt_ttft_seconds", "role=\"decode\"", "", bounds, 1);
    const double values[] = {0.001, 0.5, 0.500001, 2, 100};
    for (size_t i = 0; i < 5; i++) {
        bt_histogram_observe(plain, values[i]);
    }
    assert_rendered(metrics, "# HELP bt_ttft_seconds TTFT.\n"
                             "# TYPE bt_ttft_seconds histogram\n"
                             "bt_ttft_seconds_bucket{le=\"0.005\"} 1\n"
                             "bt_ttft_seconds_bucket{le=\"0.5\"} 2\n"
                             "bt_ttft_seconds_bucket{le=\"2\"} 4\n"
                             "bt_ttft_seconds_bucket{le=\"+Inf\"} 5\n"
                             "bt_ttft_seconds_sum 103.001001\n"
                             "bt_ttft_seconds_count 5\n"
                             "bt_ttft_seconds_bucket{role=\"decode\",le=\"0.005\"} 0\n"
                             "bt_ttft_seconds_bucket{role=\"decode\",le=\"+Inf\"} 0\n"
                             "bt_ttft_seconds_sum{role=\"decode\"} 0\n"
                             "bt_ttft_seconds_count{role=\"decode\"} 0\n");
    bt_metrics_destroy(metrics);
}

static void test_special_values(void **state)
{
    (void)state;
    struct bt_metrics *metrics = bt_metrics_create();
    bt_gauge_set(bt_metrics_gauge(metrics, "a", NULL, ""), NAN);
    bt_gauge_set(bt_metrics_gauge(metrics, "b", NULL, ""), -INFINITY);
    bt_gauge_set(bt_metrics_gauge(metrics, "c", NULL, ""), 1e300);
    bt_gauge_set(bt_metrics_gauge(metrics, "d", NULL, ""), 0x1.fffffffffffffp-1);
    char *text = bt_metrics_render(metrics, NULL);
    assert_non_null(strstr(text, "\na NaN\n"));
    assert_non_null(strstr(text, "\nb -Inf\n"));
    assert_non_null(strstr(text, "\nc 1e+300\n"));
    assert_non_null(strstr(text, "\nd 0.9999999999999999\n"));
    free(text);
    bt_metrics_destroy(metrics);
}

static void test_same_object(void **state)
{
    (void)state;
    struct bt_metrics *metrics = bt_metrics_create();
    struct bt_counter *counter = bt_metrics_counter(metrics, "n", "a=\"1\"", "");
    assert_ptr_equal(bt_metrics_counter(metrics, "n", "a=\"1\"", "other"), counter);
    assert_ptr_not_equal(bt_metrics_counter(metrics, "n", "a=\"2\"", ""), counter);
    assert_ptr_not_equal(bt_metrics_counter(metrics, "n", NULL, ""), counter);
    bt_counter_add(NULL, 1);
    bt_gauge_set(NULL, 1);
    bt_histogram_observe(NULL, 1);
    assert_int_equal(bt_counter_value(NULL), 0);
    bt_metrics_destroy(metrics);
    bt_metrics_destroy(NULL);
}

#define THREADS 4
#define UPDATES 5000

static void *update(void *context)
{
    struct bt_metrics *metrics = context;
    const double bound = 1;
    for (int i = 0; i < UPDATES; i++) {
        bt_counter_add(bt_metrics_counter(metrics, "n", NULL, ""), 1);
        bt_histogram_observe(bt_metrics_histogram(metrics, "h", NULL, "", &bound, 1), 1);
        bt_gauge_set(bt_metrics_gauge(metrics, "g", NULL, ""), i);
        if (i % 1000 == 0) {
            free(bt_metrics_render(metrics, NULL));
        }
    }
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    struct bt_metrics *metrics = bt_metrics_create();
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, update, metrics), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
    }
    assert_int_equal(bt_counter_value(bt_metrics_counter(metrics, "n", NULL, "")),
                     THREADS * UPDATES);
    assert_true(bt_gauge_value(bt_metrics_gauge(metrics, "g", NULL, "")) == UPDATES - 1);
    char *text = bt_metrics_render(metrics, NULL);
    assert_non_null(strstr(text, "h_sum 20000\nh_count 20000\n"));
    free(text);
    bt_metrics_destroy(metrics);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text),           cmocka_unit_test(test_histogram),
        cmocka_unit_test(test_special_values), cmocka_unit_test(test_same_object),
        cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
