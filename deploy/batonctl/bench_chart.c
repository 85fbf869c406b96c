/* The charts of a load: of one run its latencies and its throughput, of a sweep goodput by rate. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "deploy/batonctl/bench_report.h"
#include "deploy/batonctl/chart.h"

#define STEPS 200 /* points of a distribution */
#define LINES 4

struct curves {
    double x[LINES][STEPS + 1], y[LINES][STEPS + 1];
};

/* Share of requests (or tokens) that took no longer. */
static struct ctl_chart distribution(struct ctl_bench_result *result, struct curves *curves,
                                     struct ctl_chart_series series[LINES])
{
    const char *names[LINES] = {"TTFT", "TPOT", "ITL", "E2E"};
    struct ctl_bench_samples *samples[LINES] = {&result->ttft, &result->tpot, &result->itl,
                                                &result->e2e};
    size_t count = 0;
    for (size_t i = 0; i < LINES; i++) {
        if (samples[i]->count == 0)
            continue;
        for (size_t k = 0; k <= STEPS; k++) {
            double q = (double)k / STEPS;
            /* What takes no time has no place on a logarithmic axis. */
            curves->x[i][k] = fmax(ctl_bench_samples_quantile_s(samples[i], q) * 1e3, 1e-3);
            curves->y[i][k] = 100 * q;
        }
        series[count++] = (struct ctl_chart_series){.name = names[i],
                                                    .mark = CTL_CHART_LINE,
                                                    .x = curves->x[i],
                                                    .y = curves->y[i],
                                                    .count = STEPS + 1};
    }
    return (struct ctl_chart){.title = "Latency",
                              .x = {.name = "ms", .scale = CTL_CHART_LOG10},
                              .y = {.name = "done within (%)", .high = 100},
                              .series = series,
                              .series_count = count};
}

struct throughput {
    double time[CTL_BENCH_BINS], sent[CTL_BENCH_BINS], ended[CTL_BENCH_BINS],
        tokens[CTL_BENCH_BINS];
};

static void fill_throughput(const struct ctl_bench_series *bins, struct throughput *throughput)
{
    double width = (double)bins->width_ns / 1e9;
    for (uint32_t i = 0; i < bins->count; i++) {
        throughput->time[i] = (i + 0.5) * width;
        throughput->sent[i] = (double)bins->bins[i].sent / width;
        throughput->ended[i] = (double)bins->bins[i].ended / width;
        throughput->tokens[i] = (double)bins->bins[i].tokens / width;
    }
}

static enum bt_status chart_run(const struct ctl_bench_report *report, const char *subtitle,
                                const char *path, struct bt_error *error)
{
    struct ctl_bench_result *result = &report->results[0];
    struct curves *curves = calloc(1, sizeof *curves);
    struct throughput *t = calloc(1, sizeof *t);
    enum bt_status status = bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a chart");
    if (curves && t) {
        fill_throughput(&result->series, t);
        size_t count = result->series.count;
        struct ctl_chart_series lines[LINES];
        const struct ctl_chart_series requests[] = {
            {.name = "sent", .x = t->time, .y = t->sent, .count = count, .dashed = true},
            {.name = "ended", .x = t->time, .y = t->ended, .count = count}};
        const struct ctl_chart_series tokens[] = {
            {.name = "output tokens", .x = t->time, .y = t->tokens, .count = count}};
        struct ctl_chart charts[] = {distribution(result, curves, lines),
                                     {.title = "Requests",
                                      .x = {.name = "s"},
                                      .y = {.name = "requests/s"},
                                      .series = requests,
                                      .series_count = 2},
                                     {.title = "Output",
                                      .x = {.name = "s"},
                                      .y = {.name = "tokens/s"},
                                      .series = tokens,
                                      .series_count = 1}};
        charts[0].subtitle = subtitle;
        status = ctl_charts_write(charts, 3, path, error);
    }
    free(curves);
    free(t);
    return status;
}

static enum bt_status chart_sweep(const struct ctl_bench_report *report, const char *subtitle,
                                  const char *path, struct bt_error *error)
{
    double y[6][CTL_BENCH_RATES_MAX];
    for (uint32_t i = 0; i < report->run_count; i++) {
        struct ctl_bench_result *r = &report->results[i];
        double duration = ctl_bench_result_duration_s(r);
        y[0][i] = (double)r->succeeded / duration;
        y[1][i] = (double)r->good / duration;
        y[2][i] = ctl_bench_samples_quantile_s(&r->ttft, 0.5) * 1e3;
        y[3][i] = ctl_bench_samples_quantile_s(&r->ttft, 0.99) * 1e3;
        y[4][i] = ctl_bench_samples_quantile_s(&r->tpot, 0.5) * 1e3;
        y[5][i] = ctl_bench_samples_quantile_s(&r->tpot, 0.99) * 1e3;
    }
    const char *names[] = {"ended well", "goodput", "TTFT p50", "TTFT p99", "TPOT p50", "TPOT p99"};
    struct ctl_chart_series series[6];
    for (size_t i = 0; i < 6; i++)
        series[i] = (struct ctl_chart_series){.name = names[i],
                                              .mark = CTL_CHART_LINE_POINTS,
                                              .dashed = i == 0 || i == 2 || i == 4,
                                              .x = report->rates,
                                              .y = y[i],
                                              .count = report->run_count};
    const struct ctl_chart charts[] = {{.title = "Goodput by rate",
                                        .subtitle = subtitle,
                                        .x = {.name = "asked requests/s"},
                                        .y = {.name = "requests/s"},
                                        .series = series,
                                        .series_count = 2},
                                       {.title = "Latency by rate",
                                        .x = {.name = "asked requests/s"},
                                        .y = {.name = "ms", .scale = CTL_CHART_LOG10},
                                        .series = series + 2,
                                        .series_count = 4}};
    return ctl_charts_write(charts, 2, path, error);
}

enum bt_status ctl_bench_chart(const struct ctl_bench_report *report, const char *path,
                               struct bt_error *error)
{
    const struct ctl_bench_slo *slo = &report->load->slo;
    char subtitle[256];
    int size = snprintf(subtitle, sizeof subtitle, "%.80s, %s arrivals", report->model,
                        ctl_bench_arrival_names[report->load->arrivals.kind]);
    const char *names[] = {"TTFT", "TPOT", "E2E"};
    int64_t limits[] = {slo->ttft_ns, slo->tpot_ns, slo->e2e_ns};
    for (int i = 0; i < 3; i++)
        if (limits[i])
            size += snprintf(subtitle + size, sizeof subtitle - (size_t)size, ", %s within %g ms",
                             names[i], (double)limits[i] / 1e6);
    return report->sweep ? chart_sweep(report, subtitle, path, error)
                         : chart_run(report, subtitle, path, error);
}
