/* Counts of refused connections, and a line in the log for the first in a while. Internal to this
 * folder. */
#ifndef BATON_COMMON_MESSAGING_REFUSAL_H
#define BATON_COMMON_MESSAGING_REFUSAL_H

#include "common/messaging/security.h"

struct bt_refusals {
    uint64_t counts[BT_REFUSAL_COUNT];
    struct bt_counter *counters[BT_REFUSAL_COUNT]; /* NULL: not exported */
    int64_t quiet_until_ns;
    uint64_t unlogged;
};

struct bt_refusals *bt_loop_refusals(struct bt_loop *loop);

/* `format` goes on after "refused a connection "; an empty text is counted and not logged. */
void bt_refusal_add(struct bt_refusals *refusals, enum bt_refusal reason, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
