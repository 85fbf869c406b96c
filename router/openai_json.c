#include "router/openai_json.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/text/utf8.h"

#define FIRST_CAPACITY  512u /* one chunk of a stream */
#define UNREPRESENTABLE -9999.0

void rt_openai_json_finish(struct rt_openai_json *json)
{
    free(json->data);
    *json = (struct rt_openai_json){0};
}

const char *rt_openai_json_unread(const struct rt_openai_json *json, size_t *ret_size)
{
    *ret_size = json->end - json->start;
    return *ret_size > 0 ? json->data + json->start : NULL;
}

void rt_openai_json_take(struct rt_openai_json *json, size_t size)
{
    json->start += size;
    json->open = 0;
    if (json->start < json->end)
        return;
    free(json->data); /* most streams have nothing to send, most of the time */
    json->data = NULL;
    json->start = json->end = json->capacity = 0;
}

void rt_openai_json_open(struct rt_openai_json *json, uint32_t owner)
{
    json->open = json->end;
    json->open_owner = owner;
}

bool rt_openai_json_reopen(struct rt_openai_json *json, uint32_t owner)
{
    if (json->open == 0 || json->open_owner != owner || json->failed)
        return false;
    json->end = json->open;
    return true;
}

void rt_openai_json_seal(struct rt_openai_json *json)
{
    json->open = 0;
}

char *rt_openai_json_detach(struct rt_openai_json *json, size_t *ret_size)
{
    char *data = json->data;
    *ret_size = json->end - json->start;
    if (json->start > 0)
        memmove(data, data + json->start, *ret_size);
    *json = (struct rt_openai_json){.limit = json->limit};
    return data;
}

static bool make_room(struct rt_openai_json *json, size_t size)
{
    size_t unread = json->end - json->start;
    if (json->failed || size > SIZE_MAX / 4 || (json->limit > 0 && size > json->limit - unread)) {
        json->failed = true;
        return false;
    }
    if (size <= json->capacity - json->end)
        return true;
    if (json->start > 0) {
        memmove(json->data, json->data + json->start, unread);
        json->open -= json->open > 0 ? json->start : 0;
        json->start = 0;
        json->end = unread;
    }
    size_t capacity = json->capacity > 0 ? json->capacity : FIRST_CAPACITY;
    while (capacity - unread < size)
        capacity *= 2;
    if (capacity == json->capacity)
        return true;
    char *data = realloc(json->data, capacity);
    if (data == NULL) {
        json->failed = true;
        return false;
    }
    json->data = data;
    json->capacity = capacity;
    return true;
}

void rt_openai_json_raw(struct rt_openai_json *json, const char *text, size_t size)
{
    if (size == 0 || !make_room(json, size))
        return;
    memcpy(json->data + json->end, text, size);
    json->end += size;
}

static void write_escape(struct rt_openai_json *json, unsigned char c)
{
    char text[8];
    switch (c) {
    case '"':
        rt_openai_json_raw(json, "\\\"", 2);
        break;
    case '\\':
        rt_openai_json_raw(json, "\\\\", 2);
        break;
    case '\n':
        rt_openai_json_raw(json, "\\n", 2);
        break;
    case '\r':
        rt_openai_json_raw(json, "\\r", 2);
        break;
    case '\t':
        rt_openai_json_raw(json, "\\t", 2);
        break;
    default:
        snprintf(text, sizeof text, "\\u%04x", (unsigned)c);
        rt_openai_json_raw(json, text, 6);
    }
}

void rt_openai_json_string(struct rt_openai_json *json, const char *text, size_t size)
{
    if (text == NULL) {
        rt_openai_json_literal(json, "null");
        return;
    }
    rt_openai_json_raw(json, "\"", 1);
    rt_openai_json_text(json, text, size);
    rt_openai_json_raw(json, "\"", 1);
}

void rt_openai_json_text(struct rt_openai_json *json, const char *text, size_t size)
{
    size_t plain = 0; /* start of the run that can be copied as it is */
    for (size_t at = 0; at < size;) {
        unsigned char c = (unsigned char)text[at];
        size_t length = 1;
        bool copy = c >= 0x20 && c < 0x80 && c != '"' && c != '\\';
        if (c >= 0x80)
            copy = bt_utf8_next(text + at, size - at, &length) == BT_UTF8_CHARACTER;
        if (!copy) {
            rt_openai_json_raw(json, text + plain, at - plain);
            if (c < 0x80)
                write_escape(json, c);
            else
                rt_openai_json_literal(json, BT_UTF8_REPLACEMENT);
            plain = at + length;
        }
        at += length;
    }
    rt_openai_json_raw(json, text + plain, size - plain);
}

void rt_openai_json_cstring(struct rt_openai_json *json, const char *text)
{
    rt_openai_json_string(json, text, text != NULL ? strlen(text) : 0);
}

void rt_openai_json_int(struct rt_openai_json *json, int64_t value)
{
    char text[20];
    size_t at = sizeof text;
    uint64_t rest = value < 0 ? -(uint64_t)value : (uint64_t)value;
    do
        text[--at] = (char)('0' + rest % 10);
    while ((rest /= 10) > 0);
    if (value < 0)
        text[--at] = '-';
    rt_openai_json_raw(json, text + at, sizeof text - at);
}

void rt_openai_json_float(struct rt_openai_json *json, float value)
{
    char text[40];
    double wide = isfinite(value) ? (double)value : UNREPRESENTABLE;
    rt_openai_json_raw(json, text, (size_t)snprintf(text, sizeof text, "%.9g", wide));
}

void rt_openai_json_double(struct rt_openai_json *json, double value)
{
    char text[40];
    double wide = isfinite(value) ? value : UNREPRESENTABLE;
    rt_openai_json_raw(json, text, (size_t)snprintf(text, sizeof text, "%.12g", wide));
}
