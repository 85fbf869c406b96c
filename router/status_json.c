/*
 * GET /status: the cluster for the dashboard and for scripts. Bounded whatever the size of the
 * cluster: RT_STATUS_RANKS ranks, or tiles of more (survey.h), RT_STATUS_REQUESTS requests and
 * RT_HISTORY_POINTS points.
 */
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>

#include "common/base/clock.h"
#include "router/openai_json.h"
#include "router/service_state.h"

/* Points that a rate of the present is the mean of. */
#define RATE_POINTS 5

/* Without strings from outside: those are written by rt_openai_json_cstring. */
__attribute__((format(printf, 2, 3))) static void put(struct rt_openai_json *json,
                                                      const char *format, ...)
{
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    int size = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    BT_ASSERT(size >= 0 && (size_t)size < sizeof text);
    rt_openai_json_raw(json, text, (size_t)size);
}

static void put_string(struct rt_openai_json *json, const char *key, const char *value)
{
    put(json, ",\"%s\":", key);
    rt_openai_json_cstring(json, value);
}

/* JSON has no NaN. */
static void put_number(struct rt_openai_json *json, double value)
{
    if (isfinite(value)) {
        put(json, "%.6g", value);
    } else {
        put(json, "null");
    }
}

static double seconds_ago(int64_t then_ns, int64_t now_ns)
{
    return then_ns == BT_NEVER_NS ? NAN : (double)(now_ns - then_ns) / 1e9;
}

/* ---- workers */

static const char *const breakers[] = {
    [RT_BREAKER_CLOSED] = "closed",
    [RT_BREAKER_OPEN] = "open",
    [RT_BREAKER_HALF_OPEN] = "half-open",
    [RT_BREAKER_PROBING] = "probing",
};

static const enum rt_worker_state worst_first[RT_SURVEY_STATES] = {
    RT_WORKER_LOST, RT_WORKER_CONNECTING, RT_WORKER_SILENT, RT_WORKER_DRAINING, RT_WORKER_READY};

static const char *worst_state(const struct rt_survey_sum *sum)
{
    for (int i = 0; i < RT_SURVEY_STATES; i++) {
        if (sum->states[worst_first[i]] > 0) {
            return rt_worker_state_names[worst_first[i]];
        }
    }
    return "none";
}

/* What ranks, tiles and roles have in common; the object is open before and after. */
static void put_sum(struct rt_openai_json *json, const struct rt_survey_sum *sum, int64_t now_ns)
{
    put(json, "\"ranks\":%" PRIu32 ",\"states\":{", sum->ranks);
    for (int i = 0; i < RT_SURVEY_STATES; i++) {
        put(json, "%s\"%s\":%" PRIu32, i > 0 ? "," : "", rt_worker_state_names[i], sum->states[i]);
    }
    put(json, "},\"state\":\"%s\",\"breakers_open\":%" PRIu32, worst_state(sum),
        sum->breakers_open);
    put(json,
        ",\"pages\":{\"total\":%" PRIu64 ",\"free\":%" PRIu64 ",\"reserved\":%" PRIu64
        ",\"ready\":%" PRIu64 ",\"quarantined\":%" PRIu64 ",\"projected\":%" PRIu64 "}",
        sum->pages_total, sum->pages_free, sum->pages_reserved, sum->pages_ready,
        sum->pages_quarantined, sum->pages_projected);
    put(json,
        ",\"running\":%" PRIu64 ",\"waiting\":%" PRIu64 ",\"waiting_tokens\":%" PRIu64
        ",\"requests\":%" PRIu64,
        sum->running, sum->waiting, sum->waiting_tokens, sum->requests);
    put(json, ",\"kv_mean\":");
    put_number(json, sum->kv_ranks > 0 ? sum->kv_sum / sum->kv_ranks : NAN);
    put(json, ",\"kv_max\":");
    put_number(json, sum->kv_ranks > 0 ? sum->kv_max : NAN);
    put(json, ",\"ahead_s\":");
    put_number(json, (double)sum->ahead_ns / 1e9);
    put(json, ",\"heartbeat_age_s\":");
    put_number(json, seconds_ago(sum->heartbeat_ns, now_ns));
}

static void put_group(struct rt_openai_json *json, const struct rt_group_member *group)
{
    put(json, ",\"group\":");
    if (group->incarnation == 0) {
        put(json, "null");
        return;
    }
    put(json, "{\"rank\":%" PRIu32 ",\"size\":%" PRIu32, group->rank, group->size);
    put_string(json, "name", group->name);
    put(json, "}");
}

static void put_rank(struct rt_openai_json *json, const struct rt_service *service,
                     rt_worker_ref ref, const struct rt_worker_view *view, int64_t now_ns)
{
    struct rt_survey_sum sum = {.heartbeat_ns = BT_NEVER_NS};
    const struct rt_worker_link *link = rt_service_link(service, ref);
    rt_survey_add(&sum, view);
    put(json, "{");
    put_sum(json, &sum, now_ns);
    put_string(json, "id", view->info->id);
    put_string(json, "role", rt_role_names[view->info->role]);
    put_string(json, "breaker", breakers[view->breaker]);
    put_string(json, "why_lost", view->why_lost);
    put_string(json, "transport",
               !link                     ? ""
               : link->used_transport[0] ? link->used_transport
                                         : link->transport);
    put(json, ",\"max_running\":%" PRIu32, view->info->load.max_running);
    put_group(json, &view->info->group);
    put(json, "}");
}

static void put_ranks(struct rt_openai_json *json, const struct rt_service *service, size_t offset,
                      int64_t now_ns)
{
    size_t cursor = 0, at = 0, written = 0;
    rt_worker_ref ref;
    struct rt_worker_view view;
    while (written < RT_STATUS_RANKS && rt_core_next_worker(service->core, &cursor, &ref)) {
        if (at++ >= offset && rt_core_worker(service->core, ref, &view)) {
            rt_openai_json_literal(json, written++ > 0 ? "," : "");
            put_rank(json, service, ref, &view, now_ns);
        }
    }
}

static void put_tiles(struct rt_openai_json *json, const struct rt_survey_result *survey,
                      int64_t now_ns)
{
    size_t written = 0;
    for (int role = 0; role < 2; role++) {
        for (uint32_t i = 0; i < survey->tile_counts[role]; i++) {
            rt_openai_json_literal(json, written++ > 0 ? ",{" : "{");
            put_sum(json, &survey->tiles[role][i], now_ns);
            put_string(json, "id", survey->tiles[role][i].name);
            put_string(json, "role", rt_role_names[role]);
            put(json, "}");
        }
    }
}

static void put_workers(struct rt_openai_json *json, const struct rt_service *service,
                        const struct rt_survey_result *survey, const struct rt_status_query *query,
                        int64_t now_ns)
{
    uint32_t ranks = survey->roles[0].ranks + survey->roles[1].ranks;
    bool each = ranks <= RT_STATUS_RANKS || query->ranks;
    for (int role = 0; role < 2; role++) {
        put(json, "%s\"%s\":{", role > 0 ? "," : ",\"roles\":{", rt_role_names[role]);
        put_sum(json, &survey->roles[role], now_ns);
        put(json, "}");
    }
    put(json, "},\"detail\":\"%s\",\"workers\":[", each ? "rank" : "group");
    if (each) {
        put_ranks(json, service, query->offset, now_ns);
    } else {
        put_tiles(json, survey, now_ns);
    }
    put(json, "]");
}

/* ---- requests */

/* Where the request is, or was last. */
static void put_worker_id(struct rt_openai_json *json, const struct rt_service *service,
                          const char *key, rt_worker_ref ref, const char *last)
{
    struct rt_worker_view view;
    bool known = ref != RT_NO_WORKER && rt_core_worker(service->core, ref, &view);
    put_string(json, key, known ? view.info->id : last);
}

static void put_open_requests(struct rt_openai_json *json, const struct rt_service *service,
                              int64_t now_ns)
{
    size_t cursor = 0, written = 0;
    struct rt_request_view view;
    put(json, "\"open\":[");
    while (written < RT_STATUS_REQUESTS && rt_core_next_request(service->core, &cursor, &view)) {
        put(json, "%s{\"id\":\"%016" PRIx64 "\",\"state\":\"%s\",\"attempt\":%" PRIu32,
            written++ > 0 ? "," : "", view.id, rt_request_state_names[view.state], view.attempt);
        put(json, ",\"prompt_tokens\":%" PRIu32 ",\"generated_tokens\":%" PRIu32 ",\"age_s\":%.3f",
            view.prompt_tokens, view.generated_tokens, seconds_ago(view.arrival_ns, now_ns));
        const struct rt_stream *stream = bt_map_get(&service->streams, view.id);
        put_worker_id(json, service, "prefill_worker", view.prefill,
                      stream ? stream->prefill_worker : "");
        put_worker_id(json, service, "decode_worker", view.decode,
                      stream ? stream->decode_worker : "");
        put(json, "}");
    }
    put(json, "]");
}

static void put_requests(struct rt_openai_json *json, const struct rt_service *service,
                         const struct rt_survey_result *survey, int64_t now_ns)
{
    struct rt_history_totals totals;
    struct rt_core_counts counts;
    rt_monitor_totals(service->monitor, &totals);
    rt_core_counts(service->core, &counts);
    put(json, ",\"requests\":{\"states\":{");
    for (int i = 0; i <= RT_DECODING; i++) {
        put(json, "%s\"%s\":%" PRIu32, i > 0 ? "," : "", rt_request_state_names[i],
            survey->requests[i]);
    }
    put(json, "},");
    put_open_requests(json, service, now_ns);
    put(json,
        "},\"totals\":{\"requests\":%" PRIu64 ",\"finished\":%" PRIu64 ",\"failed\":%" PRIu64
        ",\"shed_queue\":%" PRIu64 ",\"shed_tenant\":%" PRIu64 ",\"shed_slo\":%" PRIu64,
        totals.requests, totals.finished, totals.failed, counts.shed_queue, counts.shed_tenant,
        counts.shed_slo);
    put(json, ",\"retries\":%" PRIu64 ",\"preemptions\":%" PRIu64 ",\"refusals\":%" PRIu64,
        counts.retries, counts.preemptions, counts.refusals);
    put(json,
        ",\"prompt_tokens\":%" PRIu64 ",\"cached_tokens\":%" PRIu64 ",\"generated_tokens\":%" PRIu64
        ",\"kv_bytes\":%" PRIu64 "},\"prefix_hit_rate\":",
        totals.prompt_tokens, totals.cached_tokens, totals.generated_tokens, totals.kv_bytes);
    put_number(json, totals.prompt_tokens > 0
                         ? (double)totals.cached_tokens / (double)totals.prompt_tokens
                         : NAN);
}

/* ---- times and history */

static void put_percentiles(struct rt_openai_json *json, const char *key, uint64_t count,
                            const double seconds[RT_PERCENTILES])
{
    put(json, ",\"%s\":{\"count\":%" PRIu64 ",\"p50\":", key, count);
    put_number(json, seconds[RT_P50]);
    put(json, ",\"p90\":");
    put_number(json, seconds[RT_P90]);
    put(json, ",\"p99\":");
    put_number(json, seconds[RT_P99]);
    put(json, "}");
}

static void put_summary(struct rt_openai_json *json, const struct rt_history *history)
{
    struct rt_history_summary summary;
    rt_history_summarise(history, RT_HISTORY_WINDOW, &summary);
    put(json, ",\"window_s\":%d", (int)(RT_HISTORY_WINDOW * RT_HISTORY_STEP_NS / BT_NS_PER_S));
    put_percentiles(json, "ttft_s", summary.ttft_count, summary.ttft_s);
    put_percentiles(json, "tpot_s", summary.tpot_count, summary.tpot_s);
    for (int i = 0; i < RT_TTFT_STAGES; i++) {
        put(json, "%s\"%s\":", i > 0 ? "," : ",\"stages_s\":{", rt_ttft_stage_names[i]);
        put_number(json, summary.stage_s[i]);
    }
    put(json, "}");
}

typedef double point_field(const struct rt_history_point *point, int64_t started_ns);

static double point_time(const struct rt_history_point *point, int64_t started_ns)
{
    return (double)(point->time_ns - started_ns) / 1e9;
}

#define POINT_FIELD(name, field)                                                                   \
    static double name(const struct rt_history_point *point, int64_t started_ns)                   \
    {                                                                                              \
        (void)started_ns;                                                                          \
        return (double)point->field;                                                               \
    }
POINT_FIELD(point_requests, requests_s)
POINT_FIELD(point_shed, shed_s)
POINT_FIELD(point_prompt, prompt_tokens_s)
POINT_FIELD(point_generated, generated_tokens_s)
POINT_FIELD(point_kv_bytes, kv_bytes_s)
POINT_FIELD(point_queued, gauges.queued)
POINT_FIELD(point_running, gauges.running)
POINT_FIELD(point_kv_mean, gauges.kv_mean)
POINT_FIELD(point_kv_max, gauges.kv_max)
POINT_FIELD(point_ttft_p50, ttft_s[RT_P50])
POINT_FIELD(point_ttft_p90, ttft_s[RT_P90])
POINT_FIELD(point_ttft_p99, ttft_s[RT_P99])
POINT_FIELD(point_tpot_p50, tpot_s[RT_P50])
POINT_FIELD(point_tpot_p90, tpot_s[RT_P90])
POINT_FIELD(point_tpot_p99, tpot_s[RT_P99])

static const struct {
    const char *key;
    point_field *field;
} series[] = {
    {"t_s", point_time},
    {"requests_s", point_requests},
    {"shed_s", point_shed},
    {"prompt_tokens_s", point_prompt},
    {"generated_tokens_s", point_generated},
    {"kv_bytes_s", point_kv_bytes},
    {"queued", point_queued},
    {"running", point_running},
    {"kv_mean", point_kv_mean},
    {"kv_max", point_kv_max},
    {"ttft_p50_s", point_ttft_p50},
    {"ttft_p90_s", point_ttft_p90},
    {"ttft_p99_s", point_ttft_p99},
    {"tpot_p50_s", point_tpot_p50},
    {"tpot_p90_s", point_tpot_p90},
    {"tpot_p99_s", point_tpot_p99},
};
#define SERIES_COUNT (sizeof series / sizeof series[0])

/* Column by column. */
static void put_history(struct rt_openai_json *json, const struct rt_service *service,
                        const struct rt_history *history, uint64_t after)
{
    uint64_t first = rt_history_first(history), last = rt_history_last(history);
    if (after >= first && after <= last) {
        first = after + 1;
    }
    put(json, ",\"history\":{\"step_s\":%d,\"points\":%d,\"first\":%" PRIu64 ",\"last\":%" PRIu64,
        (int)(RT_HISTORY_STEP_NS / BT_NS_PER_S), RT_HISTORY_POINTS, first, last);
    for (size_t i = 0; i < SERIES_COUNT; i++) {
        put(json, ",\"%s\":[", series[i].key);
        for (uint64_t number = first; number <= last; number++) {
            rt_openai_json_literal(json, number > first ? "," : "");
            put_number(json,
                       series[i].field(rt_history_point(history, number), service->started_ns));
        }
        put(json, "]");
    }
    put(json, "}");
}

static void put_rates(struct rt_openai_json *json, const struct rt_history *history)
{
    static const char *const keys[] = {"requests", "shed", "prompt_tokens", "generated_tokens",
                                       "kv_bytes"};
    uint64_t last = rt_history_last(history), count = last < RATE_POINTS ? last : RATE_POINTS;
    double sums[5] = {0};
    for (uint64_t i = 0; i < count; i++) {
        const struct rt_history_point *point = rt_history_point(history, last - i);
        const double values[5] = {point->requests_s, point->shed_s, point->prompt_tokens_s,
                                  point->generated_tokens_s, point->kv_bytes_s};
        for (int j = 0; j < 5; j++) {
            sums[j] += values[j];
        }
    }
    put(json, ",\"rates_per_s\":{");
    for (int j = 0; j < 5; j++) {
        put(json, "%s\"%s\":", j > 0 ? "," : "", keys[j]);
        put_number(json, count > 0 ? sums[j] / (double)count : 0);
    }
    put(json, "}");
}

/* ---- all */

void rt_service_write_status(struct rt_service *service, const struct rt_status_query *query,
                             struct rt_openai_json *json)
{
    int64_t now_ns = bt_clock_now_ns();
    const struct rt_history *history = rt_monitor_history(service->monitor);
    const struct rt_survey_result *survey = rt_monitor_survey(service->monitor);
    bool ready = !service->draining && survey->roles[RT_ROLE_PREFILL].states[RT_WORKER_READY] > 0 &&
                 survey->roles[RT_ROLE_DECODE].states[RT_WORKER_READY] > 0;
    put(json, "{\"router\":\"%016" PRIx64 "\",\"uptime_s\":%.3f,\"ready\":%s", service->incarnation,
        seconds_ago(service->started_ns, now_ns), ready ? "true" : "false");
    put_string(json, "model", service->model_name);
    put(json, ",\"draining\":%s,\"queue\":{\"waiting\":%" PRIu32 ",\"capacity\":%" PRIu32 "}",
        service->draining ? "true" : "false", rt_core_queued(service->core),
        service->options.core.queue_capacity);
    put_rates(json, history);
    put_summary(json, history);
    put_requests(json, service, survey, now_ns);
    put_workers(json, service, survey, query, now_ns);
    put_history(json, service, history, query->after);
    put(json, "}");
}
