/*
 * Logging: lower case, one line an event, to stderr.
 *
 *     2026-01-31T12:00:00.123Z info  decode-0 [req 3f2a…] joined batch pages=12 tokens=711
 *
 * Any thread may log; a line is written with one write(2). Hot paths do not log per token, page or
 * layer. An expected rejection is a metric, not a warning.
 */
#ifndef BATON_COMMON_BASE_LOG_H
#define BATON_COMMON_BASE_LOG_H

#include <stdint.h>

enum bt_log_level { BT_LOG_ERROR, BT_LOG_WARN, BT_LOG_INFO, BT_LOG_DEBUG };

/* Call once at start, before threads. `who` is copied ("prefill-0"). The default level is info. */
void bt_log_init(const char *who, enum bt_log_level level);

/* `request` 0 means the line belongs to no request. */
void bt_log(enum bt_log_level level, uint64_t request, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#define bt_log_error(request, ...) bt_log(BT_LOG_ERROR, request, __VA_ARGS__)
#define bt_log_warn(request, ...)  bt_log(BT_LOG_WARN, request, __VA_ARGS__)
#define bt_log_info(request, ...)  bt_log(BT_LOG_INFO, request, __VA_ARGS__)
#define bt_log_debug(request, ...) bt_log(BT_LOG_DEBUG, request, __VA_ARGS__)

#endif
