#include "deploy/batonctl/bench_result.h"

#include <stdio.h>
#include <string.h>

#include "common/base/clock.h"

#define FIRST_WIDTH_NS (50 * BT_NS_PER_MS)

int64_t ctl_bench_ttft_ns(const struct ctl_bench_outcome *outcome)
{
    return outcome->first_ns - outcome->scheduled_ns;
}

int64_t ctl_bench_tpot_ns(const struct ctl_bench_outcome *outcome)
{
    if (outcome->output_tokens < 2)
        return 0;
    return (outcome->last_ns - outcome->first_ns) / (outcome->output_tokens - 1);
}

int64_t ctl_bench_e2e_ns(const struct ctl_bench_outcome *outcome)
{
    return outcome->end_ns - outcome->scheduled_ns;
}

static bool within(int64_t value_ns, int64_t limit_ns)
{
    return limit_ns == 0 || value_ns <= limit_ns;
}

bool ctl_bench_is_good(const struct ctl_bench_slo *slo, const struct ctl_bench_outcome *outcome)
{
    return !outcome->unfinished && outcome->status == BT_OK &&
           within(ctl_bench_ttft_ns(outcome), slo->ttft_ns) &&
           within(ctl_bench_tpot_ns(outcome), slo->tpot_ns) &&
           within(ctl_bench_e2e_ns(outcome), slo->e2e_ns);
}

/* ------------------------------------------------------------------ series */

static void widen(struct ctl_bench_series *series)
{
    for (uint32_t i = 0; i < CTL_BENCH_BINS; i++) {
        struct ctl_bench_bin pair = series->bins[i];
        memset(&series->bins[i], 0, sizeof pair);
        series->bins[i / 2].sent += pair.sent;
        series->bins[i / 2].ended += pair.ended;
        series->bins[i / 2].tokens += pair.tokens;
    }
    series->width_ns *= 2;
    series->count = (series->count + 1) / 2;
}

struct ctl_bench_bin *ctl_bench_series_at(struct ctl_bench_series *series, int64_t at_ns)
{
    if (series->width_ns == 0)
        series->width_ns = FIRST_WIDTH_NS;
    int64_t at = at_ns > 0 ? at_ns : 0;
    while (at / series->width_ns >= CTL_BENCH_BINS)
        widen(series);
    uint32_t index = (uint32_t)(at / series->width_ns);
    if (index >= series->count)
        series->count = index + 1;
    return &series->bins[index];
}

/* ------------------------------------------------------------------ a run */

void ctl_bench_result_finish(struct ctl_bench_result *result)
{
    ctl_bench_samples_finish(&result->ttft);
    ctl_bench_samples_finish(&result->tpot);
    ctl_bench_samples_finish(&result->itl);
    ctl_bench_samples_finish(&result->e2e);
    ctl_bench_samples_finish(&result->lag);
}

void ctl_bench_result_tokens(struct ctl_bench_result *result, int64_t at_ns, int64_t gap_ns,
                             uint32_t tokens, bool first, bool warmup)
{
    ctl_bench_series_at(&result->series, at_ns)->tokens += tokens;
    if (tokens == 0 || warmup)
        return;
    if (first)
        ctl_bench_samples_add(&result->itl, 0, tokens - 1);
    else
        ctl_bench_samples_add(&result->itl, gap_ns / tokens, tokens);
}

void ctl_bench_result_sent(struct ctl_bench_result *result, const struct ctl_bench_outcome *outcome)
{
    ctl_bench_series_at(&result->series, outcome->sent_ns)->sent++;
    result->open++;
    if (result->open > result->peak_open)
        result->peak_open = result->open;
    if (outcome->warmup) {
        result->warmup++;
        return;
    }
    if (result->sent++ == 0) {
        result->first_scheduled_ns = outcome->scheduled_ns;
        result->first_sent_ns = outcome->sent_ns;
    }
    result->last_scheduled_ns = outcome->scheduled_ns;
    result->last_sent_ns = outcome->sent_ns;
    ctl_bench_samples_add(&result->lag, outcome->sent_ns - outcome->scheduled_ns, 1);
}

static void count_error(struct ctl_bench_result *result, const struct ctl_bench_outcome *outcome)
{
    uint32_t i = 0;
    while (i < result->error_count && result->errors[i].status != outcome->status)
        i++;
    if (i == CTL_BENCH_ERRORS)
        i--; /* statuses are fewer */
    struct ctl_bench_error_count *error = &result->errors[i];
    if (i == result->error_count) {
        result->error_count++;
        error->status = outcome->status;
        snprintf(error->text, sizeof error->text, "%s", outcome->text ? outcome->text : "");
    }
    error->count++;
}

static void add_success(struct ctl_bench_result *result, const struct ctl_bench_outcome *outcome)
{
    result->succeeded++;
    result->good += outcome->good;
    result->input_tokens += outcome->prompt_tokens;
    result->cached_tokens += outcome->cached_tokens;
    result->output_tokens += outcome->output_tokens;
    ctl_bench_samples_add(&result->ttft, ctl_bench_ttft_ns(outcome), 1);
    ctl_bench_samples_add(&result->e2e, ctl_bench_e2e_ns(outcome), 1);
    if (outcome->output_tokens > 1)
        ctl_bench_samples_add(&result->tpot, ctl_bench_tpot_ns(outcome), 1);
}

void ctl_bench_result_add(struct ctl_bench_result *result, struct ctl_bench_outcome *outcome)
{
    outcome->good = ctl_bench_is_good(&result->slo, outcome);
    result->open--;
    if (!outcome->unfinished)
        ctl_bench_series_at(&result->series, outcome->end_ns)->ended++;
    if (outcome->warmup)
        return;
    if (outcome->end_ns > result->end_ns)
        result->end_ns = outcome->end_ns;
    if (outcome->unfinished) {
        result->unfinished++;
    } else if (outcome->status != BT_OK) {
        result->failed++;
        count_error(result, outcome);
    } else {
        add_success(result, outcome);
    }
}

double ctl_bench_result_duration_s(const struct ctl_bench_result *result)
{
    int64_t ns = result->end_ns - result->first_scheduled_ns;
    return (double)(ns > 0 ? ns : 1) / 1e9;
}

double ctl_bench_result_sent_per_s(const struct ctl_bench_result *result)
{
    int64_t ns = result->last_sent_ns - result->first_sent_ns;
    return result->sent > 1 && ns > 0 ? (double)(result->sent - 1) * 1e9 / (double)ns : 0;
}

double ctl_bench_result_good_share(const struct ctl_bench_result *result)
{
    uint64_t ended = result->succeeded + result->failed;
    return ended ? (double)result->good / (double)ended : 0;
}

bool ctl_bench_result_clean(const struct ctl_bench_result *result)
{
    return result->succeeded > 0 && result->failed == 0;
}
