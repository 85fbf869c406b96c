#include <math.h>
#include <stdio.h>

#include "deploy/batonctl/chart.h"
#include "deploy/batonctl/plan_report.h"

#define ROOF_POINTS 4
#define GROUPS      5 /* lengths that decode's roofline shows */

struct roof {
    double x[ROOF_POINTS], peak[ROOF_POINTS], reached[ROOF_POINTS]; /* both ends and both knees */
    char peak_name[64], reached_name[64];
};

/* The card's own, and what calibration leaves of it; over the intensities from `low` to `high`. */
static void fill_roof(const struct bt_plan_hardware *hardware, double peak, double mfu,
                      double share, double low, double high, struct roof *roof)
{
    double bandwidth = hardware->figure[BT_PLAN_MEMORY_BANDWIDTH];
    double knee = peak / bandwidth, reached = knee * mfu / share;
    roof->x[0] = fmin(low, fmin(knee, reached)) / 3;
    roof->x[1] = fmin(knee, reached);
    roof->x[2] = fmax(knee, reached);
    roof->x[3] = fmax(high, fmax(knee, reached)) * 3;
    for (int i = 0; i < ROOF_POINTS; i++) {
        roof->peak[i] = fmin(peak, bandwidth * roof->x[i]) / 1e12;
        roof->reached[i] = fmin(peak * mfu, bandwidth * share * roof->x[i]) / 1e12;
    }
    snprintf(roof->peak_name, sizeof(roof->peak_name), "%.31s", hardware->name);
    snprintf(roof->reached_name, sizeof(roof->reached_name), "%.0f%% MFU, %.0f%% of memory",
             100 * mfu, 100 * share);
}

static struct ctl_chart roofline(const char *title, struct ctl_chart_series *series, size_t count)
{
    return (struct ctl_chart){
        .title = title,
        .x = {.name = "operations per byte of memory", .scale = CTL_CHART_LOG10},
        .y = {.name = "TFLOP/s of a card", .scale = CTL_CHART_LOG10},
        .series = series,
        .series_count = count,
    };
}

static void add_roof(const struct roof *roof, struct ctl_chart_series *series)
{
    series[0] = (struct ctl_chart_series){roof->peak_name, CTL_CHART_LINE, false,
                                          roof->x,         roof->peak,     ROOF_POINTS};
    series[1] = (struct ctl_chart_series){roof->reached_name, CTL_CHART_LINE, true, roof->x,
                                          roof->reached,      ROOF_POINTS};
}

struct phase_chart {
    struct roof roof;
    struct ctl_chart_series series[2 + GROUPS];
    char names[GROUPS][48];
    double x[CTL_PLAN_LENGTHS], y[CTL_PLAN_LENGTHS];
};

static struct ctl_chart prefill_chart(const struct ctl_plan_report *report,
                                      struct phase_chart *chart)
{
    const struct bt_plan_question *q = &report->question;
    double low = INFINITY, high = 0;
    for (size_t i = 0; i < report->length_count; i++) {
        const struct bt_plan_cost *c = &report->lengths[i].prefill;
        chart->x[i] = c->operations / (c->weight_bytes + c->kv_bytes + c->activation_bytes);
        chart->y[i] = c->operations / c->seconds / 1e12;
        low = fmin(low, chart->x[i]);
        high = fmax(high, chart->x[i]);
    }
    fill_roof(&q->prefill_hardware, report->lengths[0].prefill.peak, q->calibration.prefill_mfu,
              q->calibration.prefill_bandwidth, low, high, &chart->roof);
    add_roof(&chart->roof, chart->series);
    chart->series[2] = (struct ctl_chart_series){
        "prompts, 128 to 128 Ki", CTL_CHART_LINE_POINTS, false, chart->x, chart->y,
        report->length_count};
    return roofline("Prefill against its roofline", chart->series, 3);
}

static struct ctl_chart decode_chart(const struct ctl_plan_report *report,
                                     struct phase_chart *chart, double *values)
{
    const struct bt_plan_question *q = &report->question;
    double low = INFINITY, high = 0;
    size_t count = 2;
    for (size_t i = 0, group = 0; i < report->length_count && group < GROUPS; i += 2, group++) {
        const struct ctl_plan_length *l = &report->lengths[i];
        double *y = values + group * CTL_PLAN_BATCHES;
        for (size_t b = 0; b < report->batch_count; b++) {
            y[b] = l->tpot_s[b] > 0 ? l->achieved[b] / 1e12 : NAN;
            if (l->tpot_s[b] > 0) {
                low = fmin(low, l->intensity[b]);
                high = fmax(high, l->intensity[b]);
            }
        }
        snprintf(chart->names[group], sizeof(chart->names[group]), "batch 1 to %u, %.0f tokens",
                 report->batches[report->batch_count - 1], l->tokens);
        chart->series[count++] = (struct ctl_chart_series){
            chart->names[group], CTL_CHART_LINE_POINTS, false, l->intensity, y,
            report->batch_count};
    }
    enum bt_plan_number used;
    double peak = bt_plan_hardware_peak(&q->decode_hardware, q->dtypes.compute, &used);
    fill_roof(&q->decode_hardware, peak, q->calibration.decode_mfu, q->calibration.decode_bandwidth,
              fmin(low, 1e6), fmax(high, 1e-6), &chart->roof);
    add_roof(&chart->roof, chart->series);
    return roofline("Decode against its roofline", chart->series, count);
}

struct curve_chart {
    double x[CTL_PLAN_POINTS], prefill[CTL_PLAN_POINTS], decode[CTL_PLAN_POINTS],
        both[CTL_PLAN_POINTS], together[CTL_PLAN_POINTS];
    struct ctl_chart_series series[4];
    struct ctl_chart_note note;
    char title[96], subtitle[128], best[64];
};

static struct ctl_chart curve_chart(const struct ctl_plan_report *report, struct curve_chart *chart)
{
    const struct bt_plan_curve *curve = &report->curve;
    for (size_t i = 0; i < curve->count; i++) {
        const struct bt_plan_point *p = &curve->points[i];
        chart->x[i] = (double)p->prefill_cards / (p->prefill_cards + p->decode_cards);
        chart->prefill[i] = p->prefill_limit;
        chart->decode[i] = p->decode_limit;
        chart->both[i] = p->goodput;
        chart->together[i] = curve->aggregated;
    }
    const struct bt_plan_point *best = &curve->points[curve->best];
    snprintf(chart->title, sizeof(chart->title), "Goodput of %u cards against the ratio",
             report->curve_cards);
    snprintf(chart->subtitle, sizeof(chart->subtitle), "prefill %s, decode %s",
             ctl_plan_layout_name(&report->prefill_pool.layout).text,
             ctl_plan_layout_name(&report->decode_pool.layout).text);
    if (curve->count) {
        snprintf(chart->best, sizeof(chart->best), "P:D %u:%u", best->prefill_instances,
                 best->decode_instances);
        chart->note = (struct ctl_chart_note){chart->x[curve->best], best->goodput, chart->best};
    }
    chart->series[0] = (struct ctl_chart_series){"prefill bears", CTL_CHART_LINE, true,
                                                 chart->x,        chart->prefill, curve->count};
    chart->series[1] = (struct ctl_chart_series){"decode bears", CTL_CHART_LINE, true,
                                                 chart->x,       chart->decode,  curve->count};
    chart->series[2] = (struct ctl_chart_series){
        "goodput apart", CTL_CHART_LINE_POINTS, false, chart->x, chart->both, curve->count};
    chart->series[3] = (struct ctl_chart_series){"goodput together", CTL_CHART_LINE,  false,
                                                 chart->x,           chart->together, curve->count};
    return (struct ctl_chart){
        .title = chart->title,
        .subtitle = chart->subtitle,
        .x = {.name = "share of the cards that prefill"},
        .y = {.name = "requests/s within the limits"},
        .series = chart->series,
        .series_count = 4,
        .notes = &chart->note,
        .note_count = curve->count > 0,
    };
}

enum bt_status ctl_plan_draw(const struct ctl_plan_report *report, const char *path,
                             struct bt_error *error)
{
    struct phase_chart prefill, decode;
    struct curve_chart curve;
    double values[GROUPS * CTL_PLAN_BATCHES];
    if (!report->has_pair)
        return bt_error_set(error, BT_ERR_UNSUPPORTED, "no chart: %s", report->answer.why_not);
    const struct ctl_chart charts[] = {
        prefill_chart(report, &prefill),
        decode_chart(report, &decode, values),
        curve_chart(report, &curve),
    };
    return ctl_charts_write(charts, 3, path, error);
}
