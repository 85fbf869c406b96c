#include "deploy/batonctl/bench_report.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "deploy/batonctl/verbs.h"

static double seconds(int64_t ns)
{
    return (double)ns / 1e9;
}

double ctl_bench_asked_rate(const struct ctl_bench_report *report, uint32_t run)
{
    const struct ctl_bench_arrivals *arrivals = &report->load->arrivals;
    const struct ctl_bench_trace *trace = report->load->trace;
    switch (arrivals->kind) {
    case CTL_BENCH_GAMMA:
        return report->sweep ? report->rates[run] : arrivals->rate;
    case CTL_BENCH_BURST:
        return arrivals->burst / seconds(arrivals->every_ns);
    case CTL_BENCH_TRACE: {
        double span = seconds(trace->entries[trace->count - 1].at_ns) * report->load->time_scale;
        return trace->count > 1 && span > 0 ? (double)(trace->count - 1) / span : 0;
    }
    default:
        return 0;
    }
}

static bool has_slo(const struct ctl_bench_slo *slo)
{
    return slo->ttft_ns || slo->tpot_ns || slo->e2e_ns;
}

static double per_s(const struct ctl_bench_result *result, uint64_t count)
{
    return (double)count / ctl_bench_result_duration_s(result);
}

/* ------------------------------------------------------------------ JSON */

static json_t *samples_json(struct ctl_bench_samples *samples)
{
    return json_pack("{s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:b}", "count",
                     (json_int_t)samples->count, "mean", ctl_bench_samples_mean_s(samples), "p50",
                     ctl_bench_samples_quantile_s(samples, 0.5), "p90",
                     ctl_bench_samples_quantile_s(samples, 0.9), "p99",
                     ctl_bench_samples_quantile_s(samples, 0.99), "min", seconds(samples->least),
                     "max", seconds(samples->greatest), "exact", !samples->lossy);
}

static json_t *errors_json(const struct ctl_bench_result *result)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < result->error_count; i++) {
        const struct ctl_bench_error_count *error = &result->errors[i];
        json_array_append_new(list,
                              json_pack("{s:s, s:I, s:s}", "code", bt_status_name(error->status),
                                        "count", (json_int_t)error->count, "text", error->text));
    }
    return list;
}

static json_t *limit_json(int64_t ns)
{
    return ns ? json_real(seconds(ns)) : json_null();
}

static json_t *number_json(double value)
{
    return value > 0 ? json_real(value) : json_null();
}

static json_t *goodput_json(const struct ctl_bench_result *result)
{
    if (!has_slo(&result->slo))
        return json_null();
    return json_pack("{s:o, s:o, s:o, s:I, s:f, s:f}", "ttft_s", limit_json(result->slo.ttft_ns),
                     "tpot_s", limit_json(result->slo.tpot_ns), "e2e_s",
                     limit_json(result->slo.e2e_ns), "good_requests", (json_int_t)result->good,
                     "requests_per_s", per_s(result, result->good), "share",
                     ctl_bench_result_good_share(result));
}

/* By time since the start, warm-up too. */
static json_t *series_json(const struct ctl_bench_series *series)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < series->count; i++)
        json_array_append_new(list, json_pack("[I, I, I]", (json_int_t)series->bins[i].sent,
                                              (json_int_t)series->bins[i].ended,
                                              (json_int_t)series->bins[i].tokens));
    return json_pack("{s:f, s:o}", "width_s", seconds(series->width_ns), "sent_ended_tokens", list);
}

static json_t *run_json(const struct ctl_bench_report *report, uint32_t run)
{
    struct ctl_bench_result *result = &report->results[run];
    json_t *json = json_pack(
        "{s:o, s:f, s:f, s:I, s:I, s:I, s:I, s:I, s:I, s:b}", "asked_requests_per_s",
        number_json(ctl_bench_asked_rate(report, run)), "sent_requests_per_s",
        ctl_bench_result_sent_per_s(result), "duration_s", ctl_bench_result_duration_s(result),
        "sent", (json_int_t)result->sent, "succeeded", (json_int_t)result->succeeded, "failed",
        (json_int_t)result->failed, "unfinished", (json_int_t)result->unfinished, "warmup",
        (json_int_t)result->warmup, "peak_open", (json_int_t)result->peak_open, "interrupted",
        result->interrupted);
    json_t *rest = json_pack(
        "{s:f, s:I, s:I, s:I, s:f, s:f, s:f, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}",
        "requests_per_s", per_s(result, result->succeeded), "input_tokens",
        (json_int_t)result->input_tokens, "cached_tokens", (json_int_t)result->cached_tokens,
        "output_tokens", (json_int_t)result->output_tokens, "input_tokens_per_s",
        per_s(result, result->input_tokens), "output_tokens_per_s",
        per_s(result, result->output_tokens), "client_cpu_s", result->cpu_s, "ttft_s",
        samples_json(&result->ttft), "tpot_s", samples_json(&result->tpot), "itl_s",
        samples_json(&result->itl), "e2e_s", samples_json(&result->e2e), "send_lag_s",
        samples_json(&result->lag), "goodput", goodput_json(result), "errors", errors_json(result),
        "series", series_json(&result->series));
    if (json_object_update(json, rest) != 0) {
        json_decref(json);
        json = NULL;
    }
    json_decref(rest);
    return json;
}

json_t *ctl_bench_json(const struct ctl_bench_report *report)
{
    json_t *runs = json_array();
    for (uint32_t i = 0; i < report->run_count; i++)
        if (json_array_append_new(runs, run_json(report, i)) != 0) {
            json_decref(runs);
            return NULL;
        }
    const struct ctl_bench_load *load = report->load;
    char seed[24];
    snprintf(seed, sizeof seed, "%" PRIu64, report->seed);
    return json_pack(
        "{s:s, s:s, s:s, s:o, s:o, s:o}", "model", report->model, "seed", seed, "arrivals",
        ctl_bench_arrival_names[load->arrivals.kind], "concurrency",
        load->arrivals.kind == CTL_BENCH_CLOSED ? json_integer(load->concurrency) : json_null(),
        "burstiness",
        load->arrivals.kind == CTL_BENCH_GAMMA ? json_real(load->arrivals.burstiness) : json_null(),
        "runs", runs);
}

bool ctl_bench_print_request(const struct ctl_bench_outcome *outcome,
                             const struct ctl_bench_answer *answer, double rate, FILE *out)
{
    bool good = outcome->status == BT_OK && !outcome->unfinished;
    json_t *error =
        good ? json_null()
             : json_string(outcome->unfinished ? "unfinished" : bt_status_name(outcome->status));
    json_t *json = json_pack(
        "{s:I, s:b, s:f, s:f, s:f, s:I, s:I, s:o, s:s, s:s}", "index", (json_int_t)outcome->index,
        "warmup", outcome->warmup, "scheduled_s", seconds(outcome->scheduled_ns), "sent_s",
        seconds(outcome->sent_ns), "end_s", seconds(outcome->end_ns), "input_tokens_asked",
        (json_int_t)outcome->input_asked, "output_tokens_asked", (json_int_t)outcome->output_asked,
        "error", error, "error_text", outcome->text, "request_id", answer->request_id);
    if (json && rate > 0)
        json_object_set_new(json, "asked_requests_per_s", json_real(rate));
    json_t *rest =
        !good ? json_object()
              : json_pack("{s:f, s:f, s:f, s:f, s:I, s:I, s:I, s:b, s:s, s:s, s:s}", "ttft_s",
                          seconds(ctl_bench_ttft_ns(outcome)), "router_ttft_s",
                          answer->router_ttft_s, "tpot_s", seconds(ctl_bench_tpot_ns(outcome)),
                          "e2e_s", seconds(ctl_bench_e2e_ns(outcome)), "prompt_tokens",
                          (json_int_t)outcome->prompt_tokens, "output_tokens",
                          (json_int_t)outcome->output_tokens, "cached_tokens",
                          (json_int_t)outcome->cached_tokens, "good", outcome->good,
                          "finish_reason", answer->finish_reason, "prefill_worker",
                          answer->prefill_worker, "decode_worker", answer->decode_worker);
    bool written = json_object_update(json, rest) == 0 &&
                   json_dumpf(json, out, JSON_COMPACT | JSON_REAL_PRECISION(12)) == 0 &&
                   fputc('\n', out) != EOF;
    json_decref(json);
    json_decref(rest);
    return written;
}

/* ------------------------------------------------------------------ tables */

static void print_samples(const char *name, struct ctl_bench_samples *samples, FILE *out)
{
    if (samples->count == 0)
        return;
    fprintf(out, "%-14s %10.2f %10.2f %10.2f %10.2f %10.2f\n", name,
            ctl_bench_samples_mean_s(samples) * 1e3,
            ctl_bench_samples_quantile_s(samples, 0.5) * 1e3,
            ctl_bench_samples_quantile_s(samples, 0.9) * 1e3,
            ctl_bench_samples_quantile_s(samples, 0.99) * 1e3, seconds(samples->greatest) * 1e3);
}

static void print_limits(const struct ctl_bench_slo *slo, FILE *out)
{
    const char *names[] = {"TTFT", "TPOT", "E2E"};
    int64_t limits[] = {slo->ttft_ns, slo->tpot_ns, slo->e2e_ns};
    const char *between = "";
    for (int i = 0; i < 3; i++) {
        if (!limits[i])
            continue;
        fprintf(out, "%s%s %g ms", between, names[i], seconds(limits[i]) * 1e3);
        between = ", ";
    }
}

static void print_errors(const struct ctl_bench_result *result, FILE *out)
{
    for (uint32_t i = 0; i < result->error_count; i++)
        fprintf(out, "%-14s %" PRIu64 " %s: %s\n", i ? "" : "errors", result->errors[i].count,
                bt_status_name(result->errors[i].status), result->errors[i].text);
}

static void print_counts(const struct ctl_bench_report *report, uint32_t run, FILE *out)
{
    const struct ctl_bench_result *r = &report->results[run];
    double asked = ctl_bench_asked_rate(report, run);
    fprintf(out, "%-14s %" PRIu64 " ended well, %" PRIu64 " failed", "requests", r->succeeded,
            r->failed);
    if (r->unfinished)
        fprintf(out, ", %" PRIu64 " not finished", r->unfinished);
    if (r->warmup)
        fprintf(out, "; %" PRIu64 " of warm-up left out", r->warmup);
    fprintf(out, "; at most %u at once\n", r->peak_open);
    fprintf(out, "%-14s %.2f requests/s", "throughput", per_s(r, r->succeeded));
    if (asked > 0)
        fprintf(out, "; asked for %.2f/s, sent %.2f/s", asked, ctl_bench_result_sent_per_s(r));
    fprintf(out, "\n");
    double share = r->input_tokens ? 100. * (double)r->cached_tokens / (double)r->input_tokens : 0;
    fprintf(out, "%-14s %" PRIu64 " tokens, %.1f/s; %" PRIu64 " from the cache (%.1f %%)\n",
            "input", r->input_tokens, per_s(r, r->input_tokens), r->cached_tokens, share);
    fprintf(out, "%-14s %" PRIu64 " tokens, %.1f/s\n", "output", r->output_tokens,
            per_s(r, r->output_tokens));
    if (has_slo(&r->slo)) {
        fprintf(out, "%-14s %.2f requests/s, %.1f %% within ", "goodput", per_s(r, r->good),
                100 * ctl_bench_result_good_share(r));
        print_limits(&r->slo, out);
        fprintf(out, "\n");
    }
}

static void print_run(const struct ctl_bench_report *report, uint32_t run, FILE *out)
{
    struct ctl_bench_result *r = &report->results[run];
    fprintf(out, "%-14s %10s %10s %10s %10s %10s\n", "ms", "mean", "p50", "p90", "p99", "max");
    print_samples("TTFT", &r->ttft, out);
    print_samples("TPOT", &r->tpot, out);
    print_samples("ITL", &r->itl, out);
    print_samples("E2E", &r->e2e, out);
    print_samples("sent late by", &r->lag, out);
    fprintf(out, "\n");
    print_counts(report, run, out);
    print_errors(r, out);
    fprintf(out, "%-14s %.1f s%s; the load took %.0f %% of a core here\n", "time",
            ctl_bench_result_duration_s(r), r->interrupted ? ", interrupted" : "",
            100 * r->cpu_s / ctl_bench_result_duration_s(r));
}

static void print_sweep(const struct ctl_bench_report *report, FILE *out)
{
    fprintf(out, "%9s %9s %9s %9s %7s %9s %9s %9s %9s %9s %7s\n", "asked/s", "sent/s", "done/s",
            "good/s", "good %", "TTFT p50", "TTFT p99", "TPOT p50", "TPOT p99", "E2E p99",
            "failed");
    for (uint32_t i = 0; i < report->run_count; i++) {
        struct ctl_bench_result *r = &report->results[i];
        fprintf(out, "%9.2f %9.2f %9.2f %9.2f %7.1f %9.1f %9.1f %9.2f %9.2f %9.1f %7" PRIu64 "\n",
                report->rates[i], ctl_bench_result_sent_per_s(r), per_s(r, r->succeeded),
                per_s(r, r->good), 100 * ctl_bench_result_good_share(r),
                ctl_bench_samples_quantile_s(&r->ttft, 0.5) * 1e3,
                ctl_bench_samples_quantile_s(&r->ttft, 0.99) * 1e3,
                ctl_bench_samples_quantile_s(&r->tpot, 0.5) * 1e3,
                ctl_bench_samples_quantile_s(&r->tpot, 0.99) * 1e3,
                ctl_bench_samples_quantile_s(&r->e2e, 0.99) * 1e3, r->failed);
    }
    if (report->run_count > 0 && has_slo(&report->results[0].slo)) {
        fprintf(out, "good: ");
        print_limits(&report->results[0].slo, out);
        fprintf(out, "; times in ms\n");
    }
    for (uint32_t i = 0; i < report->run_count; i++)
        print_errors(&report->results[i], out);
}

void ctl_bench_print(const struct ctl_bench_report *report, FILE *out)
{
    fprintf(out, "model %s, arrivals %s, seed %" PRIu64 "\n\n", report->model,
            ctl_bench_arrival_names[report->load->arrivals.kind], report->seed);
    if (report->sweep)
        print_sweep(report, out);
    else if (report->run_count > 0)
        print_run(report, 0, out);
}
