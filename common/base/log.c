#include "common/base/log.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/base/clock.h"

#define LINE_SIZE 2048

static char log_who[64] = "baton";
static atomic_int log_level = BT_LOG_INFO;

static const char *const level_names[] = {"error", "warn ", "info ", "debug"};

void bt_log_init(const char *who, enum bt_log_level level)
{
    snprintf(log_who, sizeof log_who, "%s", who);
    atomic_store(&log_level, (int)level);
}

static size_t put_header(char *line, enum bt_log_level level, uint64_t request)
{
    int64_t now_ns = bt_clock_unix_ns();
    time_t seconds = (time_t)(now_ns / BT_NS_PER_S);
    struct tm utc;
    gmtime_r(&seconds, &utc);
    size_t length = strftime(line, LINE_SIZE, "%Y-%m-%dT%H:%M:%S", &utc);
    length +=
        (size_t)snprintf(line + length, LINE_SIZE - length, ".%03dZ %s %s ",
                         (int)(now_ns % BT_NS_PER_S / BT_NS_PER_MS), level_names[level], log_who);
    if (request) {
        length +=
            (size_t)snprintf(line + length, LINE_SIZE - length, "[req %016" PRIx64 "] ", request);
    }
    return length;
}

/* A line stays one line whatever a peer put into its text. */
static void controls_flatten(char *text, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        if ((unsigned char)text[i] < 0x20 || text[i] == 0x7f) {
            text[i] = ' ';
        }
    }
}

void bt_log(enum bt_log_level level, uint64_t request, const char *format, ...)
{
    if ((int)level > atomic_load_explicit(&log_level, memory_order_relaxed)) {
        return;
    }
    int saved_errno = errno;
    char line[LINE_SIZE];
    size_t header = put_header(line, level, request);
    size_t room = LINE_SIZE - header - 1;
    va_list arguments;
    va_start(arguments, format);
    errno = saved_errno; /* for %m */
    int wanted = vsnprintf(line + header, room, format, arguments);
    va_end(arguments);
    size_t body = wanted < 0 ? 0 : (size_t)wanted;
    if (body >= room) {
        body = room - 1;
        memcpy(line + header + body - 3, "...", 3);
    }
    controls_flatten(line + header, body);
    line[header + body] = '\n';
    ssize_t written = write(STDERR_FILENO, line, header + body + 1);
    (void)written; /* nobody to tell */
    errno = saved_errno;
}
