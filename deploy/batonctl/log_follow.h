/*
 * Lines of a process's log to the standard output: the last ones, and those that come until the
 * process ends. It may be truncated or replaced meanwhile. Lines are flat (ctl_text_flatten) but
 * for tabs; one longer than CTL_LOG_LINE_MAX comes in pieces.
 */
#ifndef BATON_DEPLOY_BATONCTL_LOG_FOLLOW_H
#define BATON_DEPLOY_BATONCTL_LOG_FOLLOW_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/status.h"

#define CTL_LOG_LINE_MAX (64 << 10)

struct ctl_log_follow {
    const char *path;
    int64_t tail; /* lines from the end to begin with; -1: all */
    bool follow;
    /* Asked again and again while it follows; false: what is in the file by then is the last. NULL:
     * it never ends. */
    bool (*is_alive)(void *context);
    void *context;
    int interrupt; /* of ctl_interrupt_hold; -1: none */
};

/* IO: no such file, or it can't be read or written. CANCELLED: interrupted. */
enum bt_status ctl_log_follow(const struct ctl_log_follow *follow, struct bt_error *error);

#endif
