/*
 * Why a request of the client API was refused: a status, the field at fault, and a message that
 * names it. HTTP shows it as OpenAI's error object, the RPC as status and text.
 */
#ifndef BATON_ROUTER_OPENAI_ERROR_H
#define BATON_ROUTER_OPENAI_ERROR_H

#include "common/base/status.h"
#include "router/openai_json.h"

#define RT_OPENAI_PARAM_SIZE 96

struct rt_openai_error {
    enum bt_status status;
    int http_status;
    char param[RT_OPENAI_PARAM_SIZE]; /* "": none */
    const char *code;                 /* static, or NULL */
    int64_t retry_after_ns;           /* 0: not known */
    char text[BT_ERROR_TEXT_SIZE];
};

/* Fills `error` and returns `status`; the HTTP status follows from it. `param` and `code` may be
 * NULL. */
enum bt_status rt_openai_error_set(struct rt_openai_error *error, enum bt_status status,
                                   const char *param, const char *code, const char *format, ...)
    __attribute__((format(printf, 5, 6)));

/* INVALID_ARGUMENT on `param`: the message is "PARAM " and the rest. */
enum bt_status rt_openai_error_field(struct rt_openai_error *error, const char *param,
                                     const char *format, ...) __attribute__((format(printf, 3, 4)));

/* UNSUPPORTED on `param`, likewise. */
enum bt_status rt_openai_error_unsupported(struct rt_openai_error *error, const char *param,
                                           const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* An error of a layer below. */
enum bt_status rt_openai_error_from(struct rt_openai_error *error, enum bt_status status,
                                    const char *param, const char *text);

/* Whole seconds that a client is asked to wait, for 429 and 503: rounded up, and some more by
 * chance, lest all that were refused together come back together. */
uint32_t rt_openai_error_retry_s(const struct rt_openai_error *error);

/* The status line for `status`: 400, 401, 404, 409, 429, 500, 503, 504. */
int rt_openai_http_status(enum bt_status status);

/* {"error":{"message":…,"type":…,"param":…,"code":…}} */
void rt_openai_error_write(const struct rt_openai_error *error, struct rt_openai_json *json);

#endif
