#include "router/stats_message.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "router/stages.h"

static Baton__V1__Quantiles *quantiles_message(uint64_t count, const double seconds[RT_PERCENTILES])
{
    Baton__V1__Quantiles *message = malloc(sizeof *message);
    if (!message) {
        return NULL;
    }
    baton__v1__quantiles__init(message);
    message->count = count;
    if (count > 0) {
        message->p50_s = seconds[RT_P50];
        message->p90_s = seconds[RT_P90];
        message->p99_s = seconds[RT_P99];
    }
    return message;
}

static bool add_stages(const struct rt_history_summary *summary, Baton__V1__StatsResponse *response)
{
    response->stages = calloc(RT_TTFT_STAGES, sizeof *response->stages);
    if (!response->stages) {
        return false;
    }
    for (int i = 0; i < RT_TTFT_STAGES; i++) {
        Baton__V1__StageTime *stage = malloc(sizeof *stage);
        char *name = strdup(rt_ttft_stage_names[i]);
        if (!stage || !name) {
            free(stage);
            free(name);
            return false;
        }
        baton__v1__stage_time__init(stage);
        stage->name = name;
        stage->mean_s = summary->stage_s[i];
        response->stages[response->n_stages++] = stage;
    }
    return true;
}

static double or_negative(float seconds)
{
    return isnan(seconds) ? -1 : (double)seconds;
}

static void fill_point(const struct rt_history_point *point, const struct rt_stats_now *now,
                       Baton__V1__StatsPoint *message)
{
    message->unix_ns = now->unix_ns - (now->now_ns - point->time_ns);
    message->requests_s = (double)point->requests_s;
    message->generated_tokens_s = (double)point->generated_tokens_s;
    message->prompt_tokens_s = (double)point->prompt_tokens_s;
    message->kv_bytes_s = (double)point->kv_bytes_s;
    message->ttft_p90_s = or_negative(point->ttft_s[RT_P90]);
    message->tpot_p90_s = or_negative(point->tpot_s[RT_P90]);
    message->queued = point->gauges.queued;
    message->running = point->gauges.running;
    message->kv_mean = (double)point->gauges.kv_mean;
    message->kv_max = (double)point->gauges.kv_max;
}

static bool add_points(const struct rt_history *history, uint32_t steps,
                       const struct rt_stats_now *now, Baton__V1__StatsResponse *response)
{
    uint64_t last = rt_history_last(history), number = last > steps ? last - steps + 1 : 1;
    response->points = calloc(steps, sizeof *response->points);
    if (!response->points) {
        return false;
    }
    for (; number <= last; number++) {
        Baton__V1__StatsPoint *point = malloc(sizeof *point);
        if (!point) {
            return false;
        }
        baton__v1__stats_point__init(point);
        fill_point(rt_history_point(history, number), now, point);
        response->points[response->n_points++] = point;
    }
    return true;
}

static double mean(uint64_t after, uint64_t before, uint64_t count)
{
    return count > 0 ? (double)(after - before) / (double)count : 0;
}

static void fill_rates(const struct rt_history_totals *before,
                       const struct rt_history_totals *after, double seconds,
                       Baton__V1__StatsResponse *response)
{
    uint64_t finished = after->finished - before->finished;
    response->window_s = seconds;
    response->input_tokens_mean = mean(after->finished_input, before->finished_input, finished);
    response->output_tokens_mean = mean(after->finished_output, before->finished_output, finished);
    if (seconds <= 0) {
        return;
    }
    response->requests_s = (double)(after->requests - before->requests) / seconds;
    response->failed_s = (double)(after->failed - before->failed) / seconds;
    response->shed_s = (double)(after->shed - before->shed) / seconds;
    response->prompt_tokens_s = (double)(after->prompt_tokens - before->prompt_tokens) / seconds;
    response->cached_tokens_s = (double)(after->cached_tokens - before->cached_tokens) / seconds;
    response->generated_tokens_s =
        (double)(after->generated_tokens - before->generated_tokens) / seconds;
    response->kv_bytes_s = (double)(after->kv_bytes - before->kv_bytes) / seconds;
}

static uint32_t steps_of(uint32_t window_s)
{
    const uint32_t step_s = RT_HISTORY_STEP_NS / BT_NS_PER_S;
    if (window_s == 0) {
        window_s = RT_STATS_WINDOW_S;
    }
    if (window_s > RT_STATS_WINDOW_MAX_S) {
        window_s = RT_STATS_WINDOW_MAX_S;
    }
    return (window_s + step_s - 1) / step_s;
}

Baton__V1__StatsResponse *rt_stats_message(const struct rt_history *history,
                                           const struct rt_stats_now *now, uint32_t window_s)
{
    Baton__V1__StatsResponse *response = malloc(sizeof *response);
    if (!response) {
        return NULL;
    }
    baton__v1__stats_response__init(response);
    uint32_t steps = steps_of(window_s);
    struct rt_history_summary summary;
    struct rt_history_totals before;
    rt_history_summarise(history, steps, &summary);
    int64_t begun_ns = rt_history_window(history, steps, &before);
    double seconds = now->now_ns > begun_ns ? (double)(now->now_ns - begun_ns) / 1e9 : 0;
    fill_rates(&before, &now->totals, seconds, response);
    response->queued = now->queued;
    response->running = now->running;
    response->ttft = quantiles_message(summary.ttft_count, summary.ttft_s);
    response->tpot = quantiles_message(summary.tpot_count, summary.tpot_s);
    if (!response->ttft || !response->tpot ||
        (summary.ttft_count > 0 && !add_stages(&summary, response)) ||
        !add_points(history, steps, now, response)) {
        baton__v1__stats_response__free_unpacked(response, NULL);
        return NULL;
    }
    return response;
}
