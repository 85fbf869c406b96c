#include "router/http_route.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "router/http_response.h"
#include "router/http_status.h"
#include "router/http_tokenize.h"
#include "router/http_worker_metrics.h"
#include "router/openai_prompt.h"

/* As a client that knows of a proxy says it: "http://HOST:PORT/path". */
static const char *path_of(const char *target)
{
    size_t scheme = strncasecmp(target, "http://", 7) == 0    ? 7
                    : strncasecmp(target, "https://", 8) == 0 ? 8
                                                              : 0;
    const char *path = scheme > 0 ? strchr(target + scheme, '/') : target;
    return path != NULL ? path : "/";
}

/* ------------------------------------------------------------------ generation */

static enum MHD_Result handle_chat(struct rt_http_exchange *exchange)
{
    return rt_http_exchange_generate(exchange, RT_OPENAI_CHAT);
}

static enum MHD_Result handle_completion(struct rt_http_exchange *exchange)
{
    return rt_http_exchange_generate(exchange, RT_OPENAI_COMPLETION);
}

/* ------------------------------------------------------------------ models */

static void write_model(const struct rt_service *service, struct rt_openai_json *json)
{
    rt_openai_json_literal(json, "{\"id\":");
    rt_openai_json_cstring(json, rt_service_model_name(service));
    rt_openai_json_literal(json, ",\"object\":\"model\",\"created\":");
    rt_openai_json_int(json, rt_service_started_unix(service));
    rt_openai_json_literal(json, ",\"owned_by\":\"baton\",\"max_model_len\":");
    rt_openai_json_int(json, rt_service_max_model_len(service));
    rt_openai_json_literal(json, "}");
}

static enum MHD_Result handle_models(struct rt_http_exchange *exchange)
{
    struct rt_openai_json json = {0};
    rt_openai_json_literal(&json, "{\"object\":\"list\",\"data\":[");
    write_model(exchange->all->service, &json);
    rt_openai_json_literal(&json, "]}");
    return rt_http_respond_json(exchange, MHD_HTTP_OK, &json);
}

static enum MHD_Result handle_model(struct rt_http_exchange *exchange)
{
    struct rt_openai_error error = {0};
    const char *name = path_of(exchange->path) + strlen(exchange->route->path);
    if (name[0] == '\0')
        return handle_models(exchange);
    if (rt_openai_prompt_check_model(exchange->all->service, name, &error) != BT_OK)
        return rt_http_respond_error(exchange, &error);
    struct rt_openai_json json = {0};
    write_model(exchange->all->service, &json);
    return rt_http_respond_json(exchange, MHD_HTTP_OK, &json);
}

/* ------------------------------------------------------------------ tokens */

static enum bt_status decode(const struct rt_service *service,
                             const struct rt_openai_prompt *tokens, struct rt_openai_error *error,
                             struct rt_openai_json *text)
{
    const struct bt_tokenizer *tokenizer = rt_service_tokenizer(service);
    for (size_t i = 0; i < tokens->count; i++) {
        if (tokens->ids[i] >= bt_tokenizer_vocab_size(tokenizer))
            return rt_openai_error_field(error, "tokens",
                                         "[%zu] is %" PRIu32 ", which is not in the vocabulary", i,
                                         tokens->ids[i]);
        size_t size = 0;
        const char *bytes = bt_tokenizer_bytes(tokenizer, tokens->ids[i], &size);
        rt_openai_json_raw(text, bytes, size);
    }
    return BT_OK;
}

static enum MHD_Result handle_detokenize(struct rt_http_exchange *exchange)
{
    struct rt_openai_error error = {0};
    struct rt_openai_request request;
    if (rt_openai_request_parse(RT_OPENAI_DETOKENIZE, exchange->body, exchange->body_size, &error,
                                &request) != BT_OK)
        return rt_http_respond_error(exchange, &error);
    struct rt_openai_json text = {0}, json = {0};
    enum bt_status status = decode(exchange->all->service, &request.prompts[0], &error, &text);
    rt_openai_request_finish(&request);
    if (status == BT_OK) {
        size_t size;
        const char *bytes = rt_openai_json_unread(&text, &size);
        rt_openai_json_literal(&json, "{\"prompt\":");
        rt_openai_json_string(&json, size > 0 ? bytes : "", size);
        rt_openai_json_literal(&json, "}");
        json.failed = json.failed || text.failed;
    }
    rt_openai_json_finish(&text);
    if (status != BT_OK)
        return rt_http_respond_error(exchange, &error);
    return rt_http_respond_json(exchange, MHD_HTTP_OK, &json);
}

/* ------------------------------------------------------------------ state */

static enum MHD_Result handle_health(struct rt_http_exchange *exchange)
{
    struct rt_openai_json json = {0};
    rt_openai_json_literal(&json, rt_service_draining(exchange->all->service)
                                      ? "{\"status\":\"draining\"}"
                                      : "{\"status\":\"ok\"}");
    return rt_http_respond_json(exchange, MHD_HTTP_OK, &json);
}

static enum MHD_Result handle_ready(struct rt_http_exchange *exchange)
{
    struct rt_openai_json json = {0};
    const char *why = NULL;
    bool ready = rt_service_ready(exchange->all->service, &why);
    rt_openai_json_literal(&json, ready ? "{\"status\":\"ready\"" : "{\"status\":\"not ready\"");
    if (!ready) {
        rt_openai_json_literal(&json, ",\"reason\":");
        rt_openai_json_cstring(&json, why);
    }
    rt_openai_json_literal(&json, "}");
    return rt_http_respond_json(exchange, ready ? MHD_HTTP_OK : MHD_HTTP_SERVICE_UNAVAILABLE, &json);
}

static enum MHD_Result handle_metrics(struct rt_http_exchange *exchange)
{
    size_t size;
    char *text = rt_service_metrics(exchange->all->service, &size);
    if (text == NULL)
        return MHD_NO;
    return rt_http_respond_text(exchange, text, size, "text/plain; version=0.0.4; charset=utf-8");
}

/* ------------------------------------------------------------------ table */

static const struct rt_http_route routes[] = {
    {"POST", "/v1/chat/completions", false, RT_HTTP_CLIENTS, handle_chat},
    {"POST", "/v1/completions", false, RT_HTTP_CLIENTS, handle_completion},
    {"GET", "/v1/models", false, RT_HTTP_CLIENTS, handle_models},
    {"GET", "/v1/models/", true, RT_HTTP_CLIENTS, handle_model},
    {"POST", "/tokenize", false, RT_HTTP_CLIENTS, rt_http_tokenize},
    {"POST", "/detokenize", false, RT_HTTP_CLIENTS, handle_detokenize},
    {"GET", "/health", false, RT_HTTP_EVERYBODY, handle_health},
    {"GET", "/ready", false, RT_HTTP_EVERYBODY, handle_ready},
    {"GET", "/metrics", false, RT_HTTP_OPERATORS, handle_metrics},
    {"GET", "/metrics/workers", false, RT_HTTP_OPERATORS, rt_http_worker_metrics},
    {"GET", "/status", false, RT_HTTP_OPERATORS, rt_http_status},
    {"GET", "/", false, RT_HTTP_EVERYBODY, rt_http_dashboard},
};

bool rt_http_route_asks_key(const struct rt_http_route *route, enum rt_access_scope scope)
{
    return route->audience == RT_HTTP_CLIENTS ||
           (route->audience == RT_HTTP_OPERATORS && scope == RT_ACCESS_ALL);
}

static bool serves(const struct rt_http_route *route, const char *path)
{
    return route->prefix ? strncmp(path, route->path, strlen(route->path)) == 0
                         : strcmp(path, route->path) == 0;
}

static bool takes(const struct rt_http_route *route, const char *method)
{
    return strcmp(method, route->method) == 0 ||
           (strcmp(method, "HEAD") == 0 && strcmp(route->method, "GET") == 0);
}

void rt_http_route_find(struct rt_http_exchange *exchange, const char *method, const char *target)
{
    const char *path = path_of(target);
    for (size_t i = 0; i < sizeof routes / sizeof *routes; i++) {
        if (!serves(&routes[i], path))
            continue;
        if (takes(&routes[i], method)) {
            exchange->route = &routes[i];
            return;
        }
        bool get = strcmp(routes[i].method, "GET") == 0;
        snprintf(exchange->allow, sizeof exchange->allow, "%s", get ? "GET, HEAD" : "POST");
        rt_openai_error_set(&exchange->refusal, BT_ERR_INVALID_ARGUMENT, NULL, "method_not_allowed",
                            "%.20s is not allowed on %.100s, use %s", method, path,
                            routes[i].method);
        exchange->refusal.http_status = MHD_HTTP_METHOD_NOT_ALLOWED;
        return;
    }
    rt_openai_error_set(&exchange->refusal, BT_ERR_NOT_FOUND, NULL, "unknown_url",
                        "unknown path: %.20s %.200s", method, path);
}
