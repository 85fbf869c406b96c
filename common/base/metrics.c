#include "common/base/metrics.h"

#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/status.h"

#define MAX_BOUNDS 32

enum kind { COUNTER, GAUGE, HISTOGRAM };

static const char *const kind_names[] = {"counter", "gauge", "histogram"};

struct bt_counter {
    _Atomic uint64_t value;
};

struct bt_gauge {
    _Atomic uint64_t bits; /* of a double */
};

struct bt_histogram {
    size_t bound_count;
    double bounds[MAX_BOUNDS];
    _Atomic uint64_t buckets[MAX_BOUNDS + 1]; /* not cumulative; the last is +Inf */
    _Atomic uint64_t sum_bits;
};

struct metric {
    struct metric *next;
    enum kind kind;
    char *name;
    char *labels; /* "" : none */
    char *help;
    union {
        struct bt_counter counter;
        struct bt_gauge gauge;
        struct bt_histogram histogram;
    };
};

struct bt_metrics {
    pthread_mutex_t mutex; /* guards the list; values are atomic */
    struct metric *first;
    struct metric **last_next;
};

static uint64_t bits_of(double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static double double_of(uint64_t bits)
{
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

struct bt_metrics *bt_metrics_create(void)
{
    struct bt_metrics *metrics = calloc(1, sizeof *metrics);
    if (metrics) {
        pthread_mutex_init(&metrics->mutex, NULL);
        metrics->last_next = &metrics->first;
    }
    return metrics;
}

static void metric_free(struct metric *metric)
{
    free(metric->name);
    free(metric->labels);
    free(metric->help);
    free(metric);
}

void bt_metrics_destroy(struct bt_metrics *metrics)
{
    if (!metrics) {
        return;
    }
    for (struct metric *metric = metrics->first; metric;) {
        struct metric *next = metric->next;
        metric_free(metric);
        metric = next;
    }
    pthread_mutex_destroy(&metrics->mutex);
    free(metrics);
}

static bool name_ok(const char *name)
{
    static const char first[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_:";
    static const char rest[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_:0123456789";
    return name[0] && strchr(first, name[0]) && strspn(name, rest) == strlen(name);
}

static struct metric *metric_create(enum kind kind, const char *name, const char *labels,
                                    const char *help)
{
    struct metric *metric = calloc(1, sizeof *metric);
    if (!metric) {
        return NULL;
    }
    metric->kind = kind;
    metric->name = strdup(name);
    metric->labels = strdup(labels);
    metric->help = strdup(help);
    if (!metric->name || !metric->labels || !metric->help) {
        metric_free(metric);
        return NULL;
    }
    return metric;
}

/* Finds or adds; `setup` of a new one happens before anybody else can see it. */
static struct metric *metric_register(struct bt_metrics *metrics, enum kind kind, const char *name,
                                      const char *labels, const char *help, const double *bounds,
                                      size_t bound_count)
{
    BT_ASSERT(name_ok(name));
    labels = labels ? labels : "";
    pthread_mutex_lock(&metrics->mutex);
    struct metric *metric;
    for (metric = metrics->first; metric; metric = metric->next) {
        if (strcmp(metric->name, name) == 0) {
            BT_ASSERT(metric->kind == kind);
            if (strcmp(metric->labels, labels) == 0) {
                break;
            }
        }
    }
    if (!metric && (metric = metric_create(kind, name, labels, help ? help : ""))) {
        if (kind == HISTOGRAM) {
            metric->histogram.bound_count = bound_count;
            memcpy(metric->histogram.bounds, bounds, bound_count * sizeof *bounds);
        }
        *metrics->last_next = metric;
        metrics->last_next = &metric->next;
    }
    pthread_mutex_unlock(&metrics->mutex);
    return metric;
}

struct bt_counter *bt_metrics_counter(struct bt_metrics *metrics, const char *name,
                                      const char *labels, const char *help)
{
    struct metric *metric = metric_register(metrics, COUNTER, name, labels, help, NULL, 0);
    return metric ? &metric->counter : NULL;
}

struct bt_gauge *bt_metrics_gauge(struct bt_metrics *metrics, const char *name, const char *labels,
                                  const char *help)
{
    struct metric *metric = metric_register(metrics, GAUGE, name, labels, help, NULL, 0);
    return metric ? &metric->gauge : NULL;
}

struct bt_histogram *bt_metrics_histogram(struct bt_metrics *metrics, const char *name,
                                          const char *labels, const char *help,
                                          const double *bounds, size_t bound_count)
{
    BT_ASSERT(bound_count <= MAX_BOUNDS);
    for (size_t i = 1; i < bound_count; i++) {
        BT_ASSERT(bounds[i - 1] < bounds[i]);
    }
    struct metric *metric =
        metric_register(metrics, HISTOGRAM, name, labels, help, bounds, bound_count);
    return metric ? &metric->histogram : NULL;
}

void bt_counter_add(struct bt_counter *counter, uint64_t amount)
{
    if (counter) {
        atomic_fetch_add_explicit(&counter->value, amount, memory_order_relaxed);
    }
}

uint64_t bt_counter_value(const struct bt_counter *counter)
{
    return counter ? atomic_load_explicit(&counter->value, memory_order_relaxed) : 0;
}

void bt_gauge_set(struct bt_gauge *gauge, double value)
{
    if (gauge) {
        atomic_store_explicit(&gauge->bits, bits_of(value), memory_order_relaxed);
    }
}

double bt_gauge_value(const struct bt_gauge *gauge)
{
    return gauge ? double_of(atomic_load_explicit(&gauge->bits, memory_order_relaxed)) : 0;
}

void bt_histogram_observe(struct bt_histogram *histogram, double value)
{
    if (!histogram) {
        return;
    }
    size_t bucket = 0;
    while (bucket < histogram->bound_count && !(value <= histogram->bounds[bucket])) {
        bucket++;
    }
    uint64_t old = atomic_load_explicit(&histogram->sum_bits, memory_order_relaxed);
    while (!atomic_compare_exchange_weak_explicit(&histogram->sum_bits, &old,
                                                  bits_of(double_of(old) + value),
                                                  memory_order_relaxed, memory_order_relaxed)) {
    }
    atomic_fetch_add_explicit(&histogram->buckets[bucket], 1, memory_order_relaxed);
}

/* ------------------------------------------------------------------ exposition text */

/* The shortest text that reads back as the same double. */
static void value_print(FILE *out, double value)
{
    char text[40];
    if (isnan(value)) {
        fputs("NaN", out);
        return;
    }
    if (isinf(value)) {
        fputs(value > 0 ? "+Inf" : "-Inf", out);
        return;
    }
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (strtod(text, NULL) == value) {
            break;
        }
    }
    fputs(text, out);
}

static void help_print(FILE *out, const struct metric *metric)
{
    fprintf(out, "# HELP %s ", metric->name);
    for (const char *c = metric->help; *c; c++) {
        if (*c == '\\') {
            fputs("\\\\", out);
        } else if (*c == '\n') {
            fputs("\\n", out);
        } else {
            fputc(*c, out);
        }
    }
    fprintf(out, "\n# TYPE %s %s\n", metric->name, kind_names[metric->kind]);
}

static void sample_name_print(FILE *out, const struct metric *metric, const char *suffix)
{
    fprintf(out, "%s%s", metric->name, suffix);
    if (metric->labels[0]) {
        fprintf(out, "{%s}", metric->labels);
    }
    fputc(' ', out);
}

static void histogram_print(FILE *out, const struct metric *metric)
{
    const struct bt_histogram *histogram = &metric->histogram;
    uint64_t count = 0;
    for (size_t i = 0; i <= histogram->bound_count; i++) {
        count += atomic_load_explicit(&histogram->buckets[i], memory_order_relaxed);
        fprintf(out, "%s_bucket{%s%sle=\"", metric->name, metric->labels,
                metric->labels[0] ? "," : "");
        value_print(out, i < histogram->bound_count ? histogram->bounds[i] : (double)INFINITY);
        fprintf(out, "\"} %" PRIu64 "\n", count);
    }
    sample_name_print(out, metric, "_sum");
    value_print(out, double_of(atomic_load_explicit(&histogram->sum_bits, memory_order_relaxed)));
    fputc('\n', out);
    sample_name_print(out, metric, "_count");
    fprintf(out, "%" PRIu64 "\n", count);
}

static void metric_print(FILE *out, const struct metric *metric)
{
    if (metric->kind == HISTOGRAM) {
        histogram_print(out, metric);
        return;
    }
    sample_name_print(out, metric, "");
    if (metric->kind == COUNTER) {
        fprintf(out, "%" PRIu64, bt_counter_value(&metric->counter));
    } else {
        value_print(out, bt_gauge_value(&metric->gauge));
    }
    fputc('\n', out);
}

static bool name_seen_before(const struct bt_metrics *metrics, const struct metric *metric)
{
    for (const struct metric *other = metrics->first; other != metric; other = other->next) {
        if (strcmp(other->name, metric->name) == 0) {
            return true;
        }
    }
    return false;
}

/* All samples of a name stand together, as the format demands. */
static void all_print(FILE *out, const struct bt_metrics *metrics)
{
    for (const struct metric *metric = metrics->first; metric; metric = metric->next) {
        if (name_seen_before(metrics, metric)) {
            continue;
        }
        help_print(out, metric);
        for (const struct metric *same = metric; same; same = same->next) {
            if (strcmp(same->name, metric->name) == 0) {
                metric_print(out, same);
            }
        }
    }
}

char *bt_metrics_render(const struct bt_metrics *metrics, size_t *ret_size)
{
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    if (!out) {
        return NULL;
    }
    struct bt_metrics *locked = (struct bt_metrics *)metrics;
    pthread_mutex_lock(&locked->mutex);
    all_print(out, metrics);
    pthread_mutex_unlock(&locked->mutex);
    bool failed = ferror(out) != 0;
    if (fclose(out) != 0 || failed) {
        free(text);
        return NULL;
    }
    if (ret_size) {
        *ret_size = size;
    }
    return text;
}
