#include "router/trace_context.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/base/random.h"

#define VERSION_AT 0
#define TRACE_AT   3
#define PARENT_AT  36
#define FLAGS_AT   53
#define TEXT_SIZE  55
#define SAMPLED    1

/* -1: not a digit; upper case is none here. */
static int hex_digit(char c)
{
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* False: some are no digits. ret_bytes [count]. */
static bool read_hex(const char *text, size_t count, uint8_t *ret_bytes)
{
    for (size_t i = 0; i < count; i++) {
        int high = hex_digit(text[2 * i]), low = hex_digit(text[2 * i + 1]);
        if (high < 0 || low < 0) {
            return false;
        }
        ret_bytes[i] = (uint8_t)(high << 4 | low);
    }
    return true;
}

static uint64_t number(const uint8_t bytes[8])
{
    uint64_t value = 0;
    for (int i = 0; i < 8; i++) {
        value = value << 8 | bytes[i];
    }
    return value;
}

static bool all_zero(const uint8_t *bytes, size_t count)
{
    uint8_t any = 0;
    for (size_t i = 0; i < count; i++) {
        any |= bytes[i];
    }
    return any == 0;
}

/* Later versions may have more behind the flags, after a dash. */
static bool has_form(const char *header)
{
    size_t size = strlen(header);
    return size >= TEXT_SIZE && header[TRACE_AT - 1] == '-' && header[PARENT_AT - 1] == '-' &&
           header[FLAGS_AT - 1] == '-' && (size == TEXT_SIZE || header[TEXT_SIZE] == '-') &&
           (size == TEXT_SIZE || strncmp(header, "00", 2) != 0);
}

static bool parse(const char *header, struct rt_trace_context *context)
{
    uint8_t version, parent[8], flags;
    if (!has_form(header) || !read_hex(&header[VERSION_AT], 1, &version) || version == 0xff ||
        !read_hex(&header[TRACE_AT], RT_TRACE_ID_BYTES, context->trace_id) ||
        !read_hex(&header[PARENT_AT], sizeof parent, parent) ||
        !read_hex(&header[FLAGS_AT], 1, &flags)) {
        return false;
    }
    context->parent = number(parent);
    context->sampled = (flags & SAMPLED) != 0;
    return !all_zero(context->trace_id, RT_TRACE_ID_BYTES) && context->parent != 0;
}

static void begin_own(double ratio, struct rt_trace_context *context)
{
    uint64_t words[2] = {bt_random_entropy(), bt_random_entropy()};
    memcpy(context->trace_id, words, sizeof words);
    context->parent = 0;
    context->sampled = (double)(words[1] >> 11) * 0x1p-53 < ratio;
}

void rt_trace_context_begin(const char *header, double ratio, struct rt_trace_context *ret_context)
{
    struct rt_trace_context context = {0};
    if (!header || !parse(header, &context)) {
        begin_own(ratio, &context);
    }
    context.span = bt_random_entropy();
    *ret_context = context;
}

void rt_trace_id_write(const struct rt_trace_context *context, char ret_text[RT_TRACE_ID_SIZE])
{
    for (size_t i = 0; i < RT_TRACE_ID_BYTES; i++) {
        snprintf(&ret_text[2 * i], 3, "%02x", context->trace_id[i]);
    }
}

void rt_trace_context_write(const struct rt_trace_context *context,
                            char ret_text[RT_TRACEPARENT_SIZE])
{
    char trace[RT_TRACE_ID_SIZE];
    rt_trace_id_write(context, trace);
    snprintf(ret_text, RT_TRACEPARENT_SIZE, "00-%s-%016" PRIx64 "-%02x", trace, context->span,
             context->sampled ? SAMPLED : 0);
}

void rt_trace_context_fill(const struct rt_trace_context *context, Baton__V1__TraceContext *message)
{
    baton__v1__trace_context__init(message);
    message->trace_id.data = (uint8_t *)context->trace_id;
    message->trace_id.len = RT_TRACE_ID_BYTES;
    message->parent_id = context->span;
    message->sampled = context->sampled;
}
