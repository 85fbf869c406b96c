#include "router/http_exchange.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/log.h"
#include "router/http_response.h"
#include "router/http_tokenize.h"
#include "router/http_worker_metrics.h"
#include "router/openai_admit.h"

/* Of what the library asks for at once, where it writes a stream itself without chunks. */
#define STREAM_BLOCK_BYTES 512u
#define FIRST_BODY_BYTES   4096u

/* ------------------------------------------------------------------ life */

struct rt_http_exchange *rt_http_exchange_create(struct rt_http_exchanges *all,
                                                 struct rt_http_connection *connection)
{
    struct rt_http_exchange *exchange = calloc(1, sizeof *exchange);
    if (exchange == NULL)
        return NULL;
    exchange->all = all;
    exchange->mhd = connection->mhd;
    exchange->connection = connection;
    exchange->next = all->first;
    if (all->first != NULL)
        all->first->previous = exchange;
    all->first = exchange;
    return exchange;
}

void rt_http_exchange_destroy(struct rt_http_exchange *exchange)
{
    BT_ASSERT(!exchange->suspended);
    exchange->connection->exchange = NULL;
    rt_http_stream_forget(exchange);
    rt_openai_answer_destroy(exchange->answer);
    rt_http_tokenize_cancel(exchange);
    rt_http_worker_metrics_cancel(exchange);
    free(exchange->tokens.ids.ids);
    if (exchange->previous != NULL)
        exchange->previous->next = exchange->next;
    else
        exchange->all->first = exchange->next;
    if (exchange->next != NULL)
        exchange->next->previous = exchange->previous;
    free(exchange->body);
    free(exchange);
}

bool rt_http_exchange_receive(struct rt_http_exchange *exchange, const char *data, size_t size)
{
    if (exchange->route != NULL && size > exchange->all->max_body_bytes - exchange->body_size) {
        rt_openai_error_set(&exchange->refusal, BT_ERR_INVALID_ARGUMENT, NULL, "body_too_large",
                            "the body is larger than %u bytes", exchange->all->max_body_bytes);
        exchange->refusal.http_status = MHD_HTTP_CONTENT_TOO_LARGE;
        exchange->route = NULL;
    }
    if (exchange->route == NULL) {
        exchange->discarded += size;
        return exchange->discarded <= RT_HTTP_DISCARD_BYTES;
    }
    size_t needed = exchange->body_size + size;
    if (needed > exchange->body_capacity) {
        size_t capacity = exchange->body_capacity > 0 ? exchange->body_capacity : FIRST_BODY_BYTES;
        while (capacity < needed)
            capacity *= 2;
        char *body = realloc(exchange->body, capacity);
        if (body == NULL)
            return false;
        exchange->body = body;
        exchange->body_capacity = capacity;
    }
    memcpy(exchange->body + exchange->body_size, data, size);
    exchange->body_size = needed;
    return true;
}

void rt_http_exchange_drop_body(struct rt_http_exchange *exchange)
{
    free(exchange->body);
    exchange->body = NULL;
    exchange->body_size = exchange->body_capacity = 0;
}

/* ------------------------------------------------------------------ suspend and resume */

void rt_http_exchange_suspend(struct rt_http_exchange *exchange)
{
    exchange->connection->exchange = exchange;
    exchange->suspended = true;
    MHD_suspend_connection(exchange->mhd);
}

void rt_http_exchange_resume(struct rt_http_exchange *exchange)
{
    if (!exchange->suspended)
        return;
    exchange->suspended = false;
    rt_http_stream_forget(exchange);
    MHD_resume_connection(exchange->mhd);
    exchange->all->wake(exchange->all->wake_context);
}

static void on_change(void *context)
{
    struct rt_http_exchange *exchange = context;
    enum rt_openai_answer_state state = rt_openai_answer_state(exchange->answer);
    if (state >= RT_ANSWER_FAILED) {
        exchange->all->unsettled = true;
        exchange->all->wake(exchange->all->wake_context);
    }
    if (state == RT_ANSWER_OVERFLOWN) {
        bt_log_warn(rt_openai_answer_request(exchange->answer), "request dropped: %s",
                    rt_openai_answer_error(exchange->answer)->text);
        bt_counter_add(exchange->all->slow, 1);
    }
    bool written = state <= RT_ANSWER_BROKEN && rt_http_stream_changed(exchange);
    if (state != RT_ANSWER_WAITING && !written)
        rt_http_exchange_resume(exchange);
}

static void abandon(struct rt_http_exchange *exchange)
{
    if (exchange->answer != NULL)
        rt_openai_answer_abandon(exchange->answer);
    rt_http_tokenize_cancel(exchange);
    rt_http_worker_metrics_cancel(exchange);
}

void rt_http_exchange_gone(struct rt_http_exchange *exchange)
{
    struct rt_openai_answer *answer = exchange->answer;
    bool waits = answer != NULL ? rt_openai_answer_state(answer) < RT_ANSWER_DONE
                                : exchange->tokens.job != NULL;
    exchange->gone = true;
    if (waits) {
        bt_log_debug(answer != NULL ? rt_openai_answer_request(answer) : 0, "client is gone");
        bt_counter_add(exchange->all->gone, 1);
    }
    abandon(exchange);
    rt_http_exchange_resume(exchange);
}

bool rt_http_exchanges_busy(const struct rt_http_exchanges *all)
{
    const struct rt_http_exchange *exchange = all->first;
    while (exchange != NULL && !exchange->dispatched)
        exchange = exchange->next;
    return exchange != NULL;
}

void rt_http_exchanges_settle(struct rt_http_exchanges *all)
{
    if (!all->unsettled)
        return;
    all->unsettled = false;
    for (struct rt_http_exchange *exchange = all->first; exchange != NULL;
         exchange = exchange->next) {
        if (exchange->answer == NULL)
            continue;
        rt_openai_answer_settle(exchange->answer);
        if (rt_openai_answer_state(exchange->answer) == RT_ANSWER_OVERFLOWN && !exchange->gone) {
            exchange->gone = true;
            rt_http_connection_reset(exchange->connection);
        }
    }
}

void rt_http_exchanges_abandon(struct rt_http_exchanges *all)
{
    for (struct rt_http_exchange *exchange = all->first; exchange != NULL;
         exchange = exchange->next) {
        exchange->gone = true;
        abandon(exchange);
        rt_http_exchange_resume(exchange);
    }
}

/* ------------------------------------------------------------------ responses */

static ssize_t read_stream(void *context, uint64_t position, char *buffer, size_t capacity)
{
    (void)position;
    struct rt_http_exchange *exchange = context;
    enum rt_openai_answer_state state = rt_openai_answer_state(exchange->answer);
    if (exchange->gone || state == RT_ANSWER_OVERFLOWN)
        return MHD_CONTENT_READER_END_WITH_ERROR;
    struct rt_openai_json *output = rt_openai_answer_output(exchange->answer);
    size_t size;
    const char *data = rt_openai_json_unread(output, &size);
    if (size > 0) {
        size = size < capacity ? size : capacity;
        memcpy(buffer, data, size);
        rt_openai_json_take(output, size);
        return (ssize_t)size;
    }
    if (state == RT_ANSWER_DONE)
        return MHD_CONTENT_READER_END_OF_STREAM;
    if (state == RT_ANSWER_BROKEN)
        return MHD_CONTENT_READER_END_WITH_ERROR;
    rt_http_stream_begin(exchange);
    rt_http_exchange_suspend(exchange);
    return 0;
}

static enum MHD_Result respond_stream(struct rt_http_exchange *exchange)
{
    struct MHD_Response *response = MHD_create_response_from_callback(
        MHD_SIZE_UNKNOWN, STREAM_BLOCK_BYTES, read_stream, exchange, NULL);
    if (response == NULL)
        return MHD_NO;
    MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE,
                            "text/event-stream; charset=utf-8");
    MHD_add_response_header(response, MHD_HTTP_HEADER_CACHE_CONTROL, "no-cache");
    return rt_http_respond(exchange, MHD_HTTP_OK, response);
}

enum MHD_Result rt_http_exchange_continue(struct rt_http_exchange *exchange)
{
    if (exchange->gone)
        return MHD_NO;
    if (exchange->tokens.param != NULL)
        return rt_http_tokenize_respond(exchange);
    if (exchange->scrape.asked)
        return rt_http_worker_metrics_respond(exchange);
    if (exchange->answer == NULL)
        return MHD_NO;
    struct rt_openai_answer *answer = exchange->answer;
    switch (rt_openai_answer_state(answer)) {
    case RT_ANSWER_WAITING:
        rt_http_exchange_suspend(exchange);
        return MHD_YES;
    case RT_ANSWER_FAILED:
        return rt_http_respond_error(exchange, rt_openai_answer_error(answer));
    case RT_ANSWER_OVERFLOWN:
        return MHD_NO;
    case RT_ANSWER_DONE:
        if (!rt_openai_answer_is_stream(answer))
            return rt_http_respond_json(exchange, MHD_HTTP_OK, rt_openai_answer_output(answer));
        return respond_stream(exchange);
    default:
        return respond_stream(exchange);
    }
}

static bool header_asks_timing(const struct rt_http_exchange *exchange)
{
    const char *value =
        MHD_lookup_connection_value(exchange->mhd, MHD_HEADER_KIND, "X-Baton-Timing");
    return value != NULL && strcmp(value, "1") == 0;
}

/* NULL: it is not there, or empty. */
static const char *header(const struct rt_http_exchange *exchange, const char *name)
{
    const char *value = MHD_lookup_connection_value(exchange->mhd, MHD_HEADER_KIND, name);
    return value != NULL && value[0] != '\0' ? value : NULL;
}

void rt_http_exchange_identify(struct rt_http_exchange *exchange)
{
    const char *name = header(exchange, RT_HTTP_REQUEST_ID);
    exchange->named = name != NULL && rt_request_id_valid(name);
    if (exchange->named)
        snprintf(exchange->request_id, sizeof exchange->request_id, "%s", name);
    else
        rt_request_id_make(exchange->request_id);
}

/* Who it is, and what of it the client has. */
static enum bt_status read_identity(struct rt_http_exchange *exchange,
                                    struct rt_openai_request *request,
                                    struct rt_openai_error *error)
{
    if (!exchange->named && header(exchange, RT_HTTP_REQUEST_ID) != NULL)
        return rt_openai_error_field(error, RT_HTTP_REQUEST_ID,
                                     "must be 1 to %d visible ASCII characters", RT_REQUEST_ID_MAX);
    request->request_id = exchange->request_id;
    request->named = exchange->named;
    request->resume = header(exchange, RT_HTTP_RESUME);
    if (request->resume != NULL && !request->stream)
        return rt_openai_error_field(error, RT_HTTP_RESUME, "is for requests with \"stream\"");
    return BT_OK;
}

/* What is refused anyway costs no parsing and no tokenizing. */
static enum bt_status read_request(struct rt_http_exchange *exchange, enum rt_openai_kind kind,
                                   struct rt_openai_error *error,
                                   struct rt_openai_request *ret_request)
{
    struct rt_service *service = exchange->all->service;
    enum bt_status status = rt_openai_admit(service, exchange->tenant, error);
    if (status == BT_OK)
        status =
            rt_openai_request_parse(kind, exchange->body, exchange->body_size, error, ret_request);
    rt_http_exchange_drop_body(exchange);
    if (status == BT_OK)
        ret_request->caller = rt_openai_caller(service, exchange->tenant, ret_request->priority,
                                               kind == RT_OPENAI_CHAT);
    return status;
}

enum MHD_Result rt_http_exchange_generate(struct rt_http_exchange *exchange,
                                          enum rt_openai_kind kind)
{
    struct rt_openai_error error = {0};
    struct rt_openai_request request;
    if (exchange->connection->gone)
        return MHD_NO;
    enum bt_status status = read_request(exchange, kind, &error, &request);
    if (status != BT_OK)
        return rt_http_respond_error(exchange, &error);
    request.timing = request.timing || header_asks_timing(exchange);
    rt_service_trace_begin(
        exchange->all->service,
        MHD_lookup_connection_value(exchange->mhd, MHD_HEADER_KIND, "traceparent"),
        &exchange->trace);
    request.trace = exchange->trace;
    status = read_identity(exchange, &request, &error);
    if (status != BT_OK) {
        rt_openai_request_finish(&request);
        return rt_http_respond_error(exchange, &error);
    }
    status = rt_openai_answer_create(exchange->all->service, &request, on_change, exchange, &error,
                                     &exchange->answer);
    if (status != BT_OK)
        return rt_http_respond_error(exchange, &error);
    rt_http_exchange_suspend(exchange);
    return MHD_YES;
}
