/* Traces: kept when requests end, and told to operators (baton.v1.Router/Trace). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "router/service_state.h"

static const char *const outcomes[] = {
    [RT_FINISH_STOP] = "stop",           [RT_FINISH_LENGTH] = "length",
    [RT_FINISH_CANCELLED] = "cancelled", [RT_FINISH_DEADLINE] = "deadline",
    [RT_FINISH_ERROR] = "error",
};

void rt_service_trace_begin(const struct rt_service *service, const char *traceparent,
                            struct rt_trace_context *ret_context)
{
    rt_trace_context_begin(traceparent, service->options.trace_sample, ret_context);
}

/* Of a stream that is there; its detail stays with it. */
static void fill_record(const struct rt_stream *stream, const char *outcome, int64_t now_ns,
                        struct rt_trace_record *record)
{
    *record = (struct rt_trace_record){
        .request = stream->id,
        .prompt_tokens = stream->prompt_tokens,
        .completion_tokens = stream->completion_tokens,
        .cached_tokens = stream->done.cached_tokens,
        .kv_bytes = stream->done.kv_bytes,
        .hidden_bytes = stream->done.hidden_bytes,
        .outcome = outcome,
        .last_token_ns = stream->last_token_ns,
        .end_ns = now_ns,
    };
    snprintf(record->client_id, sizeof record->client_id, "%s", stream->name);
    memcpy(record->prefill_worker, stream->prefill_worker, sizeof record->prefill_worker);
    memcpy(record->decode_worker, stream->decode_worker, sizeof record->decode_worker);
    rt_stages_fill_record(&stream->stages, record);
}

void rt_service_trace_keep(struct rt_service *service, struct rt_stream *stream,
                           enum rt_finish finish, int64_t now_ns)
{
    struct rt_trace_record record;
    fill_record(stream, outcomes[finish], now_ns, &record);
    stream->stages.detail = NULL;
    rt_trace_store_add(service->traces, &record);
}

void rt_service_trace_late_done(struct rt_service *service, uint64_t request, uint32_t attempt,
                                const Baton__V1__PrefillDone *done)
{
    struct rt_trace_record *record = rt_trace_store_recent(service->traces, request);
    if (record && rt_stages_late_done(record, attempt, done, &service->metrics)) {
        rt_trace_store_layers(service->traces, record, done);
    }
}

/* ---- Trace */

struct answer {
    Baton__V1__TraceResponse *response;
    int64_t unix_offset_ns;
    uint32_t room;
    bool failed;
};

/* False: enough, or no memory. */
static bool add(struct answer *answer, const struct rt_trace_record *record)
{
    Baton__V1__RequestTrace *trace = rt_trace_message_create(record, answer->unix_offset_ns);
    if (!trace) {
        answer->failed = true;
        return false;
    }
    answer->response->traces[answer->response->n_traces++] = trace;
    return --answer->room > 0;
}

/* Those under way, then those that ended, the last first. */
static void add_named(const struct rt_service *service, const char *name, struct answer *answer)
{
    size_t cursor = 0;
    uint64_t id;
    void *value;
    struct rt_trace_record record;
    while (bt_map_next(&service->streams, &cursor, &id, &value)) {
        fill_record(value, "running", bt_clock_now_ns(), &record);
        if (rt_trace_record_is(&record, name) && !add(answer, &record)) {
            return;
        }
    }
    const struct rt_trace_record *kept;
    for (uint32_t age = 0; (kept = rt_trace_store_get(service->traces, age)) != NULL; age++) {
        if (rt_trace_record_is(kept, name) && !add(answer, kept)) {
            return;
        }
    }
}

static void add_last(const struct rt_service *service, uint32_t count, struct answer *answer)
{
    const struct rt_trace_record *kept;
    for (uint32_t age = 0;
         age < count && (kept = rt_trace_store_get(service->traces, age)) && add(answer, kept);
         age++) {
    }
}

Baton__V1__TraceResponse *rt_service_trace(const struct rt_service *service,
                                           const Baton__V1__TraceRequest *request)
{
    struct answer answer = {
        .response = malloc(sizeof *answer.response),
        .unix_offset_ns = bt_clock_unix_ns() - bt_clock_now_ns(),
        .room = RT_TRACE_ANSWER_MAX,
    };
    if (!answer.response) {
        return NULL;
    }
    baton__v1__trace_response__init(answer.response);
    answer.response->traces = calloc(answer.room, sizeof *answer.response->traces);
    if (!answer.response->traces) {
        answer.failed = true;
    } else if (request->request_id[0]) {
        add_named(service, request->request_id, &answer);
    } else {
        add_last(service, request->last > 0 ? request->last : 1, &answer);
    }
    if (answer.failed) {
        baton__v1__trace_response__free_unpacked(answer.response, NULL);
        return NULL;
    }
    return answer.response;
}
