#include "common/base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    enum bt_status status;
    const char *name;
} names[] = {
    {BT_OK, "ok"},
    {BT_IN_PROGRESS, "in_progress"},
    {BT_ERR_INVALID_ARGUMENT, "invalid_argument"},
    {BT_ERR_NOT_FOUND, "not_found"},
    {BT_ERR_ALREADY_EXISTS, "already_exists"},
    {BT_ERR_CANCELLED, "cancelled"},
    {BT_ERR_DEADLINE, "deadline"},
    {BT_ERR_EXHAUSTED, "exhausted"},
    {BT_ERR_STALE, "stale"},
    {BT_ERR_UNSUPPORTED, "unsupported"},
    {BT_ERR_PREEMPTED, "preempted"},
    {BT_ERR_UNAUTHORISED, "unauthorised"},
    {BT_ERR_UNAVAILABLE, "unavailable"},
    {BT_ERR_PEER_LOST, "peer_lost"},
    {BT_ERR_PROTOCOL, "protocol"},
    {BT_ERR_MISMATCH, "mismatch"},
    {BT_ERR_CORRUPT, "corrupt"},
    {BT_ERR_IO, "io"},
    {BT_ERR_NO_MEMORY, "no_memory"},
    {BT_ERR_INTERNAL, "internal"},
};

#define NAME_COUNT (sizeof names / sizeof names[0])

const char *bt_status_name(enum bt_status status)
{
    for (size_t i = 0; i < NAME_COUNT; i++) {
        if (names[i].status == status) {
            return names[i].name;
        }
    }
    return "unknown";
}

enum bt_status bt_status_from_name(const char *name)
{
    for (size_t i = 0; i < NAME_COUNT; i++) {
        if (strcmp(names[i].name, name) == 0) {
            return names[i].status;
        }
    }
    return BT_ERR_PROTOCOL;
}

/* Cut text must stay valid UTF-8: it goes into protobuf strings. */
static void text_trim(char *text, size_t size, int wanted)
{
    if (wanted < 0) {
        text[0] = '\0';
        return;
    }
    if ((size_t)wanted < size) {
        return;
    }
    size_t start = size - 1;
    size_t back = 0;
    while (start > 0 && back < 3 && ((unsigned char)text[start - 1] & 0xc0) == 0x80) {
        start--;
        back++;
    }
    unsigned char lead = start > 0 ? (unsigned char)text[start - 1] : 0;
    size_t tail = lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : lead >= 0xc0 ? 1 : 0;
    if (tail > back) {
        text[start - 1] = '\0';
    }
}

static void newlines_flatten(char *text)
{
    for (char *c = text; *c; c++) {
        if (*c == '\n' || *c == '\r') {
            *c = ' ';
        }
    }
}

enum bt_status bt_error_set(struct bt_error *error, enum bt_status status, const char *format, ...)
{
    if (error) {
        va_list arguments;
        va_start(arguments, format);
        int wanted = vsnprintf(error->text, sizeof error->text, format, arguments);
        va_end(arguments);
        text_trim(error->text, sizeof error->text, wanted);
        newlines_flatten(error->text);
        error->status = status;
    }
    return status;
}

void bt_error_prefix(struct bt_error *error, const char *format, ...)
{
    if (!error) {
        return;
    }
    char prefix[BT_ERROR_TEXT_SIZE];
    char old[BT_ERROR_TEXT_SIZE];
    va_list arguments;
    va_start(arguments, format);
    int wanted = vsnprintf(prefix, sizeof prefix, format, arguments);
    va_end(arguments);
    text_trim(prefix, sizeof prefix, wanted);
    memcpy(old, error->text, sizeof old);
    old[sizeof old - 1] = '\0';

    size_t prefix_length = strlen(prefix);
    size_t room = sizeof error->text - 1;
    memcpy(error->text, prefix, prefix_length);
    int total = (int)prefix_length;
    if (prefix_length < room) {
        int rest =
            snprintf(error->text + prefix_length, sizeof error->text - prefix_length, ": %s", old);
        total += rest;
    }
    error->text[room] = '\0';
    text_trim(error->text, sizeof error->text, total);
    newlines_flatten(error->text);
}

void bt_assert_failed(const char *expression, const char *file, int line)
{
    fprintf(stderr, "%s:%d: assertion failed: %s\n", file, line, expression);
    abort();
}
