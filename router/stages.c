#include "router/stages.h"

#include <string.h>

#include "router/monitor.h"
#include "router/service_metrics.h"

/* Longer than a request may take. */
#define LONGEST_NS (UINT64_C(1) << 50)

const char *const rt_ttft_stage_names[RT_TTFT_STAGES] = {
    [RT_TTFT_TOKENIZE] = "tokenize",
    [RT_TTFT_QUEUE] = "queue",
    [RT_TTFT_EARLIER_ATTEMPTS] = "earlier_attempts",
    [RT_TTFT_RESERVE] = "reserve",
    [RT_TTFT_PREFILL_QUEUE] = "prefill_queue",
    [RT_TTFT_PREFILL_COMPUTE] = "prefill_compute",
    [RT_TTFT_DELIVERY] = "delivery",
    [RT_TTFT_LOCAL_PREFILL] = "local_prefill",
    [RT_TTFT_VISIBLE_TRANSFER] = "visible_transfer",
    [RT_TTFT_DECODE_QUEUE] = "decode_queue",
    [RT_TTFT_FIRST_STEP] = "first_step",
};

static uint64_t duration(uint64_t said_ns)
{
    return said_ns < LONGEST_NS ? said_ns : LONGEST_NS;
}

static int64_t unix_time(int64_t said_ns)
{
    return said_ns > 0 && said_ns < INT64_MAX / 2 ? said_ns : 0;
}

static void observe(const struct rt_service_metrics *metrics, enum rt_ttft_stage stage, int64_t ns)
{
    bt_histogram_observe(metrics->stages[stage], (double)(ns > 0 ? ns : 0) / 1e9);
    rt_monitor_stage(metrics->monitor, stage, ns);
}

void rt_stages_init(struct rt_stages *stages, const struct rt_trace_context *trace,
                    int64_t arrival_ns, int64_t submitted_ns)
{
    *stages = (struct rt_stages){
        .trace = *trace,
        .detail = trace->sampled ? rt_trace_detail_create() : NULL,
        .arrival_ns = arrival_ns,
        .submitted_ns = submitted_ns,
    };
}

void rt_stages_finish(struct rt_stages *stages)
{
    rt_trace_detail_destroy(stages->detail);
    stages->detail = NULL;
}

void rt_stages_reserve(struct rt_stages *stages, int64_t now_ns)
{
    stages->attempts++;
    if (stages->first_reserve_ns == 0) {
        stages->first_reserve_ns = now_ns;
    }
    if (stages->first_token_ns == 0) {
        stages->reserve_ns = now_ns;
        stages->prefill_ns = 0;
    }
}

void rt_stages_prefill(struct rt_stages *stages, uint32_t attempt, int64_t now_ns)
{
    if (stages->first_token_ns == 0) {
        stages->prefill_ns = now_ns;
        stages->token_attempt = attempt;
    }
}

void rt_stages_first_token(struct rt_stages *stages, int64_t now_ns,
                           const struct rt_service_metrics *metrics)
{
    stages->first_token_ns = now_ns;
    observe(metrics, RT_TTFT_TOKENIZE, stages->submitted_ns - stages->arrival_ns);
    if (stages->reserve_ns == 0) {
        return; /* taken over from another router: what was before is not known */
    }
    observe(metrics, RT_TTFT_QUEUE, stages->first_reserve_ns - stages->submitted_ns);
    if (stages->reserve_ns > stages->first_reserve_ns) {
        observe(metrics, RT_TTFT_EARLIER_ATTEMPTS, stages->reserve_ns - stages->first_reserve_ns);
    }
    if (stages->prefill_ns > 0) {
        observe(metrics, RT_TTFT_RESERVE, stages->prefill_ns - stages->reserve_ns);
    } else {
        observe(metrics, RT_TTFT_LOCAL_PREFILL, now_ns - stages->reserve_ns);
    }
}

void rt_stages_prefill_done(struct rt_stages *stages, uint32_t attempt,
                            const Baton__V1__PrefillDone *done,
                            const struct rt_service_metrics *metrics)
{
    if (stages->prefill_told || attempt != stages->token_attempt || stages->first_token_ns == 0) {
        return;
    }
    stages->prefill_told = true;
    stages->prefill_begin_unix_ns = unix_time(done->begin_unix_ns);
    stages->prefill_queue_ns = duration(done->queue_ns);
    stages->prefill_compute_ns = duration(done->compute_ns);
    stages->visible_transfer_ns = duration(done->visible_transfer_ns);
    int64_t in_worker_ns = (int64_t)(stages->prefill_queue_ns + stages->prefill_compute_ns);
    observe(metrics, RT_TTFT_PREFILL_QUEUE, (int64_t)stages->prefill_queue_ns);
    observe(metrics, RT_TTFT_PREFILL_COMPUTE, (int64_t)stages->prefill_compute_ns);
    observe(metrics, RT_TTFT_DELIVERY, stages->first_token_ns - stages->prefill_ns - in_worker_ns);
    observe(metrics, RT_TTFT_VISIBLE_TRANSFER, (int64_t)stages->visible_transfer_ns);
    if (stages->detail) {
        rt_trace_detail_layers(stages->detail, done);
    }
}

bool rt_stages_late_done(struct rt_trace_record *record, uint32_t attempt,
                         const Baton__V1__PrefillDone *done,
                         const struct rt_service_metrics *metrics)
{
    struct rt_stages stages = {
        .prefill_ns = record->prefill_ns,
        .first_token_ns = record->first_token_ns,
        .token_attempt = record->token_attempt,
        .prefill_told = record->prefill_begin_unix_ns != 0,
    };
    if (stages.prefill_told) {
        return false;
    }
    rt_stages_prefill_done(&stages, attempt, done, metrics);
    if (stages.prefill_told) {
        record->prefill_begin_unix_ns = stages.prefill_begin_unix_ns;
        record->prefill_queue_ns = stages.prefill_queue_ns;
        record->prefill_compute_ns = stages.prefill_compute_ns;
        record->visible_transfer_ns = stages.visible_transfer_ns;
        record->kv_bytes = done->kv_bytes;
        record->hidden_bytes = done->hidden_bytes;
    }
    return stages.prefill_told;
}

void rt_stages_step(struct rt_stages *stages, const Baton__V1__SequenceStart *start,
                    const struct rt_service_metrics *metrics)
{
    if (stages->step_told) {
        return;
    }
    stages->step_told = true;
    stages->step_begin_unix_ns = unix_time(start->begin_unix_ns);
    stages->step_wait_ns = duration(start->wait_ns);
    stages->step_ns = duration(start->step_ns);
    if (stages->prefill_ns > 0) {
        observe(metrics, RT_TTFT_DECODE_QUEUE, (int64_t)stages->step_wait_ns);
        observe(metrics, RT_TTFT_FIRST_STEP, (int64_t)stages->step_ns);
    }
}

static double ms(int64_t from_ns, int64_t to_ns)
{
    return from_ns > 0 && to_ns > from_ns ? (double)(to_ns - from_ns) / 1e6 : 0;
}

void rt_stages_fill_timing(const struct rt_stages *stages, char trace_id[RT_TRACE_ID_SIZE],
                           Baton__V1__Timing *timing)
{
    timing->reserve_ms = ms(stages->reserve_ns, stages->prefill_ns);
    timing->decode_queue_ms = (double)stages->step_wait_ns / 1e6;
    timing->first_step_ms = (double)stages->step_ns / 1e6;
    timing->attempts = stages->attempts;
    timing->trace_id = trace_id;
    rt_trace_id_write(&stages->trace, trace_id);
}

void rt_stages_fill_record(const struct rt_stages *stages, struct rt_trace_record *record)
{
    record->context = stages->trace;
    record->attempts = stages->attempts;
    record->arrival_ns = stages->arrival_ns;
    record->submitted_ns = stages->submitted_ns;
    record->first_reserve_ns = stages->first_reserve_ns;
    record->reserve_ns = stages->reserve_ns;
    record->prefill_ns = stages->prefill_ns;
    record->token_attempt = stages->token_attempt;
    record->first_token_ns = stages->first_token_ns;
    record->prefill_begin_unix_ns = stages->prefill_begin_unix_ns;
    record->prefill_queue_ns = stages->prefill_queue_ns;
    record->prefill_compute_ns = stages->prefill_compute_ns;
    record->visible_transfer_ns = stages->visible_transfer_ns;
    record->step_begin_unix_ns = stages->step_begin_unix_ns;
    record->step_wait_ns = stages->step_wait_ns;
    record->step_ns = stages->step_ns;
    record->detail = stages->detail;
}
