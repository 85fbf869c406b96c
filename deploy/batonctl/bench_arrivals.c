#include "deploy/batonctl/bench_arrivals.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/random.h"

#define RATE_MAX   1e6
#define TRIES_MAX  1000 /* each is taken with a probability over 0.95 */
#define DRAW_BOOST 0    /* what else a gap draws has greater numbers */

const char *const ctl_bench_arrival_names[] = {"closed", "at-once", "gamma",
                                               "burst",  "trace",   NULL};

/* In (0, 1]. */
static double uniform(uint64_t seed, uint64_t position, uint32_t draw)
{
    return 1 - bt_random_unit(seed, position, draw);
}

static double normal(uint64_t seed, uint64_t position, uint32_t draw)
{
    return sqrt(-2 * log(uniform(seed, position, draw))) *
           cos(2 * M_PI * uniform(seed, position, draw + 1));
}

/* Marsaglia and Tsang, "A simple method for generating gamma variables", 2000; of scale 1. */
static double gamma_above_one(uint64_t seed, uint64_t position, double shape)
{
    double d = shape - 1 / 3., c = 1 / sqrt(9 * d);
    for (uint32_t try = 0; try < TRIES_MAX; try++) {
        uint32_t draw = DRAW_BOOST + 1 + 3 * try;
        double x = normal(seed, position, draw), v = 1 + c * x;
        if (v <= 0)
            continue;
        v = v * v * v;
        if (log(uniform(seed, position, draw + 2)) < x * x / 2 + d - d * v + d * log(v))
            return d * v;
    }
    return shape;
}

double ctl_bench_gamma(uint64_t seed, uint64_t position, double shape)
{
    if (shape == 1)
        return -log(uniform(seed, position, DRAW_BOOST));
    if (shape > 1)
        return gamma_above_one(seed, position, shape) / shape;
    double boost = pow(uniform(seed, position, DRAW_BOOST), 1 / shape);
    return gamma_above_one(seed, position, shape + 1) * boost / shape;
}

int64_t ctl_bench_arrivals_next(struct ctl_bench_arrivals *arrivals)
{
    uint64_t index = arrivals->index++;
    switch (arrivals->kind) {
    case CTL_BENCH_GAMMA:
        arrivals->at_s +=
            ctl_bench_gamma(arrivals->seed, index, arrivals->burstiness) / arrivals->rate;
        break;
    case CTL_BENCH_BURST:
        arrivals->at_s = (double)(index / arrivals->burst) * (double)arrivals->every_ns / 1e9;
        break;
    default:
        break;
    }
    arrivals->at_s = fmin(arrivals->at_s, CTL_BENCH_LONGEST_S);
    return (int64_t)(arrivals->at_s * (double)BT_NS_PER_S);
}

enum bt_status ctl_bench_rate_parse(const char *text, struct bt_error *error, double *ret_rate)
{
    if (strcmp(text, "inf") == 0) {
        *ret_rate = 0;
        return BT_OK;
    }
    char *end;
    double rate = strtod(text, &end);
    if (end == text || *end || !(rate > 0 && rate <= RATE_MAX))
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "'%s' is not a rate of requests/s above 0, up to %g, and not inf", text,
                            RATE_MAX);
    *ret_rate = rate;
    return BT_OK;
}

enum bt_status ctl_bench_rates_parse(const char *text, struct bt_error *error,
                                     double ret_rates[CTL_BENCH_RATES_MAX], uint32_t *ret_count)
{
    uint32_t count = 0;
    for (const char *at = text;; at++) {
        char one[32];
        size_t size = strcspn(at, ",");
        if (count == CTL_BENCH_RATES_MAX)
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "more than %d rates",
                                CTL_BENCH_RATES_MAX);
        if (size == 0 || size >= sizeof one)
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "'%s' is not a list of rates",
                                text);
        memcpy(one, at, size);
        one[size] = '\0';
        enum bt_status status = ctl_bench_rate_parse(one, error, &ret_rates[count]);
        if (status != BT_OK)
            return status;
        if (ret_rates[count++] == 0)
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "no sweep has the rate inf");
        at += size;
        if (!*at)
            break;
    }
    *ret_count = count;
    return BT_OK;
}
