/*
 * When requests come: a pure function of what was asked for, the seed and the request's number.
 * Times are nanoseconds from the start of the run. Any thread.
 */
#ifndef BATON_DEPLOY_BATONCTL_BENCH_ARRIVALS_H
#define BATON_DEPLOY_BATONCTL_BENCH_ARRIVALS_H

#include <stdint.h>

#include "common/base/status.h"

/* Of one run at most; longer runs stop there. */
#define CTL_BENCH_LONGEST_S (365 * 86400.0)

enum ctl_bench_arrival_kind {
    CTL_BENCH_CLOSED,  /* a request follows the end of another: no times */
    CTL_BENCH_AT_ONCE, /* all at 0 */
    CTL_BENCH_GAMMA,   /* gaps of a gamma distribution; burstiness 1 is Poisson */
    CTL_BENCH_BURST,   /* `burst` requests at once, each `every_ns` */
    CTL_BENCH_TRACE,   /* the times of a file */
};
extern const char *const ctl_bench_arrival_names[];

struct ctl_bench_arrivals {
    enum ctl_bench_arrival_kind kind;
    double rate;       /* requests/s, of GAMMA */
    double burstiness; /* the shape: the variation of gaps is 1/sqrt(burstiness) */
    uint32_t burst;
    int64_t every_ns;
    uint64_t seed;
    uint64_t index; /* of the next one */
    double at_s;    /* of the last one */
};

/* Of mean 1. `shape` > 0. Draws of (seed, position) alone. */
double ctl_bench_gamma(uint64_t seed, uint64_t position, double shape);

/* The time of the next one, never before the last; not for CLOSED and TRACE. GAMMA: the first comes
 * after a gap too. */
int64_t ctl_bench_arrivals_next(struct ctl_bench_arrivals *arrivals);

/* "inf" (ret 0) or a number of requests/s above 0. INVALID_ARGUMENT. */
enum bt_status ctl_bench_rate_parse(const char *text, struct bt_error *error, double *ret_rate);

#define CTL_BENCH_RATES_MAX 32
/* "4,8,16": rates, none infinite. */
enum bt_status ctl_bench_rates_parse(const char *text, struct bt_error *error,
                                     double ret_rates[CTL_BENCH_RATES_MAX], uint32_t *ret_count);

#endif
