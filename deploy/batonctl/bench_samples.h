/*
 * Many times in bounded memory, and their quantiles. Up to CTL_BENCH_EXACT of them are kept as they
 * are; beyond that they are counted in buckets of less than 1/128 of their value, so that a
 * quantile is off by at most 0.4 %. Count, mean, least and greatest are always exact.
 * Caller-owned, zero-initialised, one thread.
 */
#ifndef BATON_DEPLOY_BATONCTL_BENCH_SAMPLES_H
#define BATON_DEPLOY_BATONCTL_BENCH_SAMPLES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CTL_BENCH_EXACT 65536

struct ctl_bench_samples {
    int64_t *kept; /* [count], while there are at most CTL_BENCH_EXACT */
    size_t capacity;
    uint64_t *buckets; /* NULL: none came yet */
    uint64_t count;
    double sum;
    int64_t least, greatest;
    bool lossy; /* buckets alone */
    bool sorted;
};

void ctl_bench_samples_finish(struct ctl_bench_samples *samples);

/* `value_ns` `times` times; negative ones count as 0. Without memory nothing is added. */
void ctl_bench_samples_add(struct ctl_bench_samples *samples, int64_t value_ns, uint64_t times);

/* Between the neighbours in order, as numpy's linear method does; 0 of none. `q` in 0..1. */
double ctl_bench_samples_quantile_s(struct ctl_bench_samples *samples, double q);
/* By the buckets, which costs the same however many there are. */
double ctl_bench_samples_about_s(const struct ctl_bench_samples *samples, double q);
double ctl_bench_samples_mean_s(const struct ctl_bench_samples *samples); /* 0 of none */

#endif
