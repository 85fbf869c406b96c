/*
 * A cluster that is not there: Poisson arrivals, prefill workers that take one prompt at a time in
 * order of arrival, decode workers whose step takes fixed_s + sequence_s * batch and which have
 * places for so many sequences; a prompt starts when a prefill worker is free and a decode worker
 * has a place. New workers take cold_s to come and are slow for warm_s. Its clock is its own.
 */
#ifndef BATON_TESTS_UNIT_BATONCTL_AUTOSCALE_WORLD_H
#define BATON_TESTS_UNIT_BATONCTL_AUTOSCALE_WORLD_H

#include "deploy/batonctl/autoscale_decide.h"

#define WORLD_WORKERS  64
#define WORLD_REQUESTS 16384 /* under way and of the last window */
#define WORLD_CHANGES  256

struct world_spec {
    uint64_t seed;
    double (*rate)(double time_s);    /* requests/s */
    double prefill_s, prefill_spread; /* of a prompt: even within +- spread of it */
    double fixed_s, sequence_s;
    uint32_t places, output;
    double cold_s, warm_s, slow; /* slow: times the usual */
    uint32_t workers[2];
    struct ctl_autoscale_policy policy;
    const struct ctl_autoscale_predictor *predictor;
};

struct world_change {
    double time_s;
    uint32_t workers[2];
};

struct world {
    struct world_spec spec;
    double time_s;
    struct ctl_autoscaler scaler;
    struct world_change changes[WORLD_CHANGES];
    uint32_t change_count;
    struct ctl_autoscale_decision last;
    double first_good_s;
    /* of requests that came in [from, to) of world_run */
    uint64_t arrived, ttft_missed, tpot_missed, finished;
    uint32_t counts[2];
    double worker_s; /* that were paid for */
    struct world_state *state;
};

void world_create(struct world *world, const struct world_spec *spec);
void world_destroy(struct world *world);
/* On to `until_s`; the counters begin anew. */
void world_run(struct world *world, double until_s);
/* What an autoscaler would see now. `workers` needs room for 2 * WORLD_WORKERS. */
uint32_t world_changes_since(const struct world *world, double time_s);

#endif
