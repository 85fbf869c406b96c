#include "router/monitor.h"

#include <stdlib.h>

#include "common/base/clock.h"
#include "router/service_state.h"

_Static_assert(RT_TTFT_STAGES <= RT_HISTORY_STAGES, "stages do not fit");

/* Between two slices of a look. */
#define SLICE_NS (5 * BT_NS_PER_MS)

struct rt_monitor {
    struct rt_service *service;
    struct bt_loop_source *timer;
    struct rt_history *history;
    struct rt_survey *survey;
    uint64_t finished, failed, cached_tokens, finished_input, finished_output;
};

void rt_monitor_totals(const struct rt_monitor *monitor, struct rt_history_totals *ret_totals)
{
    const struct rt_service_metrics *metrics = &monitor->service->metrics;
    struct rt_core_counts counts;
    rt_core_counts(monitor->service->core, &counts);
    *ret_totals = (struct rt_history_totals){
        .requests = counts.submitted,
        .finished = monitor->finished,
        .failed = monitor->failed,
        .shed = counts.shed_queue + counts.shed_tenant + counts.shed_slo,
        .prompt_tokens = bt_counter_value(metrics->prompt_tokens),
        .cached_tokens = monitor->cached_tokens,
        .generated_tokens = bt_counter_value(metrics->generation_tokens),
        .kv_bytes = bt_counter_value(metrics->kv_pushed_bytes),
        .finished_input = monitor->finished_input,
        .finished_output = monitor->finished_output,
    };
}

static void take_step(struct rt_monitor *monitor, int64_t now_ns)
{
    const struct rt_survey_sum *decode = &rt_survey_last(monitor->survey)->roles[RT_ROLE_DECODE];
    uint32_t queued = rt_core_queued(monitor->service->core);
    struct rt_history_gauges gauges = {
        .queued = queued,
        .running = (uint32_t)monitor->service->streams.size - queued,
        .kv_mean = decode->kv_ranks > 0 ? (float)(decode->kv_sum / decode->kv_ranks) : 0,
        .kv_max = (float)decode->kv_max,
    };
    struct rt_history_totals totals;
    rt_monitor_totals(monitor, &totals);
    rt_history_step(monitor->history, &totals, &gauges, now_ns);
}

static void on_timer(void *context)
{
    struct rt_monitor *monitor = context;
    int64_t now_ns = bt_clock_now_ns();
    if (rt_survey_go_on(monitor->survey, monitor->service->core, RT_MONITOR_SLICE)) {
        take_step(monitor, now_ns);
        bt_loop_timer_set(monitor->timer, rt_history_next_ns(monitor->history));
    } else {
        bt_loop_timer_set(monitor->timer, now_ns + SLICE_NS);
    }
}

struct rt_monitor *rt_monitor_create(struct rt_service *service)
{
    struct rt_monitor *monitor = calloc(1, sizeof *monitor);
    if (!monitor) {
        return NULL;
    }
    int64_t now_ns = bt_clock_now_ns();
    monitor->service = service;
    monitor->history = rt_history_create(now_ns);
    monitor->survey = rt_survey_create();
    monitor->timer =
        bt_loop_add_timer(service->loop, now_ns + RT_HISTORY_STEP_NS, on_timer, monitor);
    if (!monitor->history || !monitor->survey || !monitor->timer) {
        rt_monitor_destroy(monitor);
        return NULL;
    }
    return monitor;
}

void rt_monitor_destroy(struct rt_monitor *monitor)
{
    if (!monitor) {
        return;
    }
    bt_loop_remove(monitor->timer);
    rt_survey_destroy(monitor->survey);
    rt_history_destroy(monitor->history);
    free(monitor);
}

/* ---- requests */

void rt_monitor_first_token(struct rt_monitor *monitor, const struct rt_stream *stream,
                            int64_t now_ns)
{
    if (monitor) {
        rt_history_ttft(monitor->history, now_ns - stream->arrival_ns);
    }
}

void rt_monitor_stage(struct rt_monitor *monitor, enum rt_ttft_stage stage, int64_t stage_ns)
{
    if (monitor) {
        rt_history_stage(monitor->history, stage, stage_ns);
    }
}

void rt_monitor_end(struct rt_monitor *monitor, const struct rt_stream *stream,
                    enum rt_finish finish)
{
    if (!monitor) {
        return;
    }
    if (finish != RT_FINISH_STOP && finish != RT_FINISH_LENGTH) {
        monitor->failed += finish != RT_FINISH_CANCELLED;
        return;
    }
    monitor->finished++;
    monitor->cached_tokens += stream->done.cached_tokens;
    monitor->finished_input += stream->prompt_tokens;
    monitor->finished_output += stream->completion_tokens;
    if (stream->completion_tokens > 1) {
        rt_history_tpot(monitor->history, (stream->last_token_ns - stream->first_token_ns) /
                                              (stream->completion_tokens - 1));
    }
}

/* ---- looking in */

const struct rt_history *rt_monitor_history(const struct rt_monitor *monitor)
{
    return monitor->history;
}

const struct rt_survey_result *rt_monitor_survey(struct rt_monitor *monitor)
{
    const struct rt_survey_result *last = rt_survey_last(monitor->survey);
    const struct rt_core *core = monitor->service->core;
    uint32_t ranks = last->roles[RT_ROLE_PREFILL].ranks + last->roles[RT_ROLE_DECODE].ranks;
    if (ranks < RT_MONITOR_SLICE / 2 && monitor->service->streams.size < RT_MONITOR_SLICE) {
        /* The first may end a pass that had begun long ago. */
        rt_survey_go_on(monitor->survey, core, RT_MONITOR_SLICE);
        rt_survey_go_on(monitor->survey, core, RT_MONITOR_SLICE);
    }
    return rt_survey_last(monitor->survey);
}
