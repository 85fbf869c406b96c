#include "router/openai_error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/random.h"

#define RETRY_MOST_S 3600

int rt_openai_http_status(enum bt_status status)
{
    switch (status) {
    case BT_ERR_INVALID_ARGUMENT:
    case BT_ERR_UNSUPPORTED:
        return 400;
    case BT_ERR_UNAUTHORISED:
        return 401;
    case BT_ERR_NOT_FOUND:
        return 404;
    case BT_ERR_ALREADY_EXISTS:
        return 409;
    case BT_ERR_EXHAUSTED:
        return 429;
    case BT_ERR_DEADLINE:
        return 504;
    case BT_ERR_CANCELLED:
    case BT_ERR_PREEMPTED:
    case BT_ERR_UNAVAILABLE:
    case BT_ERR_PEER_LOST:
        return 503;
    default:
        return 500;
    }
}

static const char *default_code(enum bt_status status)
{
    switch (status) {
    case BT_ERR_ALREADY_EXISTS:
        return "request_id_in_use";
    case BT_ERR_EXHAUSTED:
        return "queue_full";
    case BT_ERR_DEADLINE:
        return "timeout";
    case BT_ERR_UNAVAILABLE:
    case BT_ERR_PEER_LOST:
    case BT_ERR_PREEMPTED:
        return "unavailable";
    case BT_ERR_CANCELLED:
        return "cancelled";
    case BT_ERR_UNSUPPORTED:
        return "unsupported";
    default:
        return NULL;
    }
}

static void fill(struct rt_openai_error *error, enum bt_status status, const char *param,
                 const char *code)
{
    error->status = status;
    error->http_status = rt_openai_http_status(status);
    error->code = code != NULL ? code : default_code(status);
    snprintf(error->param, sizeof error->param, "%s", param != NULL ? param : "");
}

enum bt_status rt_openai_error_set(struct rt_openai_error *error, enum bt_status status,
                                   const char *param, const char *code, const char *format, ...)
{
    fill(error, status, param, code);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error->text, sizeof error->text, format, arguments);
    va_end(arguments);
    return status;
}

static void field_text(struct rt_openai_error *error, const char *format, va_list arguments)
{
    int used = snprintf(error->text, sizeof error->text, "%s ", error->param);
    vsnprintf(error->text + used, sizeof error->text - (size_t)used, format, arguments);
}

enum bt_status rt_openai_error_field(struct rt_openai_error *error, const char *param,
                                     const char *format, ...)
{
    fill(error, BT_ERR_INVALID_ARGUMENT, param, NULL);
    va_list arguments;
    va_start(arguments, format);
    field_text(error, format, arguments);
    va_end(arguments);
    return error->status;
}

enum bt_status rt_openai_error_unsupported(struct rt_openai_error *error, const char *param,
                                           const char *format, ...)
{
    fill(error, BT_ERR_UNSUPPORTED, param, NULL);
    va_list arguments;
    va_start(arguments, format);
    field_text(error, format, arguments);
    va_end(arguments);
    return error->status;
}

enum bt_status rt_openai_error_from(struct rt_openai_error *error, enum bt_status status,
                                    const char *param, const char *text)
{
    return rt_openai_error_set(error, status, param, NULL, "%s",
                               text != NULL && text[0] != '\0' ? text : bt_status_name(status));
}

static const char *error_type(int http_status)
{
    switch (http_status) {
    case 401:
        return "authentication_error";
    case 429:
        return "rate_limit_error";
    case 408:
    case 504:
        return "timeout_error";
    case 503:
        return "service_unavailable_error";
    default:
        return http_status >= 500 ? "server_error" : "invalid_request_error";
    }
}

uint32_t rt_openai_error_retry_s(const struct rt_openai_error *error)
{
    int64_t whole_s = (error->retry_after_ns + BT_NS_PER_S - 1) / BT_NS_PER_S;
    uint32_t least_s = whole_s < 1 ? 1 : whole_s > RETRY_MOST_S ? RETRY_MOST_S : (uint32_t)whole_s;
    return least_s + (uint32_t)(bt_random_entropy() % (least_s / 4 + 2));
}

void rt_openai_error_write(const struct rt_openai_error *error, struct rt_openai_json *json)
{
    rt_openai_json_literal(json, "{\"error\":{\"message\":");
    rt_openai_json_cstring(json, error->text);
    rt_openai_json_literal(json, ",\"type\":");
    rt_openai_json_cstring(json, error_type(error->http_status));
    rt_openai_json_literal(json, ",\"param\":");
    rt_openai_json_cstring(json, error->param[0] != '\0' ? error->param : NULL);
    rt_openai_json_literal(json, ",\"code\":");
    rt_openai_json_cstring(json, error->code);
    rt_openai_json_literal(json, "}}");
}
