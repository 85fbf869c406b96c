#include "router/http_response.h"

#include <stdio.h>
#include <stdlib.h>

static void count(const struct rt_http_exchange *exchange, int http_status)
{
    if (exchange->all->metrics == NULL)
        return;
    char labels[32];
    snprintf(labels, sizeof labels, "code=\"%d\"", http_status);
    bt_counter_add(bt_metrics_counter(exchange->all->metrics, "baton_http_responses_total", labels,
                                      "HTTP responses by status code."),
                   1);
}

enum MHD_Result rt_http_respond(struct rt_http_exchange *exchange, int http_status,
                                struct MHD_Response *response)
{
    if (response == NULL)
        return MHD_NO;
    if (exchange->trace.span != 0) { /* as W3C Trace Context names it, level 2 */
        char text[RT_TRACEPARENT_SIZE];
        rt_trace_context_write(&exchange->trace, text);
        MHD_add_response_header(response, "traceresponse", text);
    }
    MHD_add_response_header(response, RT_HTTP_REQUEST_ID, exchange->request_id);
    /* The next request is for another router. */
    if (exchange->all->leaving || rt_service_draining(exchange->all->service))
        MHD_add_response_header(response, MHD_HTTP_HEADER_CONNECTION, "close");
    enum MHD_Result result = MHD_queue_response(exchange->mhd, (unsigned)http_status, response);
    MHD_destroy_response(response);
    count(exchange, http_status);
    return result;
}

/* `data` is malloc'd and taken. NULL: no memory. */
static struct MHD_Response *from_data(char *data, size_t size, const char *content_type)
{
    struct MHD_Response *response =
        MHD_create_response_from_buffer(size, data, MHD_RESPMEM_MUST_FREE);
    if (response == NULL) {
        free(data);
        return NULL;
    }
    MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, content_type);
    return response;
}

static struct MHD_Response *from_json(struct rt_openai_json *json)
{
    size_t size;
    if (json->failed) {
        rt_openai_json_finish(json);
        return NULL;
    }
    char *data = rt_openai_json_detach(json, &size);
    return from_data(data, size, "application/json");
}

enum MHD_Result rt_http_respond_json(struct rt_http_exchange *exchange, int http_status,
                                     struct rt_openai_json *json)
{
    return rt_http_respond(exchange, http_status, from_json(json));
}

static void add_retry_after(struct MHD_Response *response, const struct rt_openai_error *error)
{
    char seconds[16];
    snprintf(seconds, sizeof seconds, "%u", rt_openai_error_retry_s(error));
    MHD_add_response_header(response, MHD_HTTP_HEADER_RETRY_AFTER, seconds);
}

enum MHD_Result rt_http_respond_error(struct rt_http_exchange *exchange,
                                      const struct rt_openai_error *error)
{
    struct rt_openai_json json = {0};
    rt_openai_error_write(error, &json);
    struct MHD_Response *response = from_json(&json);
    if (response != NULL && (error->http_status == 429 || error->http_status == 503))
        add_retry_after(response, error);
    if (response != NULL && error->http_status == MHD_HTTP_UNAUTHORIZED)
        MHD_add_response_header(response, MHD_HTTP_HEADER_WWW_AUTHENTICATE,
                                "Bearer realm=\"baton\"");
    if (response != NULL && exchange->allow[0] != '\0')
        MHD_add_response_header(response, MHD_HTTP_HEADER_ALLOW, exchange->allow);
    return rt_http_respond(exchange, error->http_status, response);
}

enum MHD_Result rt_http_respond_text(struct rt_http_exchange *exchange, char *text, size_t size,
                                     const char *content_type)
{
    return rt_http_respond(exchange, MHD_HTTP_OK, from_data(text, size, content_type));
}
