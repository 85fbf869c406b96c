/*
 * Prometheus metrics: counters, gauges, histograms in one registry, written as exposition text.
 *
 * Register at start (any thread, locked), then update lock-free from any thread. A metric is
 * identified by name + label string (`role="decode",reason="eos"`, may be NULL); registering the
 * same pair twice returns the same object. Objects live as long as the registry. A name belongs to
 * one kind; label values come escaped. Registering gives NULL where there is no memory, and updates
 * of NULL do nothing, so that callers need no check.
 */
#ifndef BATON_COMMON_BASE_METRICS_H
#define BATON_COMMON_BASE_METRICS_H

#include <stddef.h>
#include <stdint.h>

struct bt_metrics;
struct bt_counter;
struct bt_gauge;
struct bt_histogram;

struct bt_metrics *bt_metrics_create(void);
void bt_metrics_destroy(struct bt_metrics *metrics);

struct bt_counter *bt_metrics_counter(struct bt_metrics *metrics, const char *name,
                                      const char *labels, const char *help);
struct bt_gauge *bt_metrics_gauge(struct bt_metrics *metrics, const char *name, const char *labels,
                                  const char *help);
/* `bounds`: ascending upper bounds, `bound_count` <= 32; +Inf is implied. */
struct bt_histogram *bt_metrics_histogram(struct bt_metrics *metrics, const char *name,
                                          const char *labels, const char *help,
                                          const double *bounds, size_t bound_count);

void bt_counter_add(struct bt_counter *counter, uint64_t amount);
uint64_t bt_counter_value(const struct bt_counter *counter);
void bt_gauge_set(struct bt_gauge *gauge, double value);
double bt_gauge_value(const struct bt_gauge *gauge);
void bt_histogram_observe(struct bt_histogram *histogram, double value);

/* Exposition text (version 0.0.4), NUL-terminated, malloc'd: the caller frees. NULL: no memory. */
char *bt_metrics_render(const struct bt_metrics *metrics, size_t *ret_size);

#endif
