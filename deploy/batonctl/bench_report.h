/* What a load's runs are shown as: a table, JSON, a chart, lines of single requests. */
#ifndef BATON_DEPLOY_BATONCTL_BENCH_REPORT_H
#define BATON_DEPLOY_BATONCTL_BENCH_REPORT_H

#include <jansson.h>
#include <stdio.h>

#include "deploy/batonctl/bench_run.h"

struct ctl_bench_report {
    const struct ctl_bench_load *load; /* what all runs have alike */
    uint64_t seed;
    const char *model;                /* that answered; flat */
    bool sweep;                       /* `rates` are what the runs differ in */
    const double *rates;              /* [run_count] */
    struct ctl_bench_result *results; /* [run_count]; quantiles sort what they have */
    uint32_t run_count;
};

/* Requests/s that were asked for; 0: no number. */
double ctl_bench_asked_rate(const struct ctl_bench_report *report, uint32_t run);

void ctl_bench_print(const struct ctl_bench_report *report, FILE *out);
json_t *ctl_bench_json(const struct ctl_bench_report *report); /* NULL: no memory */
enum bt_status ctl_bench_chart(const struct ctl_bench_report *report, const char *path,
                               struct bt_error *error);
/* One line of JSON. False: it could not be written. */
bool ctl_bench_print_request(const struct ctl_bench_outcome *outcome,
                             const struct ctl_bench_answer *answer, double rate, FILE *out);

#endif
