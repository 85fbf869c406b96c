#include "common/messaging/refusal.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

#include "common/base/clock.h"
#include "common/base/log.h"

#define QUIET_NS  (10 * BT_NS_PER_S)
#define TEXT_SIZE 384

static const char *const reason_names[BT_REFUSAL_COUNT] = {
    [BT_REFUSED_KEY] = "key",
    [BT_REFUSED_HANDSHAKE] = "handshake",
    [BT_REFUSED_REMOVED] = "removed",
    [BT_REFUSED_FLOOD] = "flood",
};

void bt_refusal_add(struct bt_refusals *refusals, enum bt_refusal reason, const char *format, ...)
{
    refusals->counts[reason]++;
    bt_counter_add(refusals->counters[reason], 1);
    char text[TEXT_SIZE];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    int64_t now_ns = bt_clock_now_ns();
    if (!text[0] || now_ns < refusals->quiet_until_ns) {
        refusals->unlogged++;
        return;
    }
    bt_log_warn(0, "refused a connection %s (%" PRIu64 " others since the last such line)", text,
                refusals->unlogged);
    refusals->quiet_until_ns = now_ns + QUIET_NS;
    refusals->unlogged = 0;
}

uint64_t bt_loop_refused(const struct bt_loop *loop, enum bt_refusal reason)
{
    return bt_loop_refusals((struct bt_loop *)loop)->counts[reason];
}

void bt_loop_export_refused(struct bt_loop *loop, struct bt_metrics *metrics)
{
    struct bt_refusals *refusals = bt_loop_refusals(loop);
    for (size_t i = 0; i < BT_REFUSAL_COUNT; i++) {
        char label[64];
        snprintf(label, sizeof label, "reason=\"%s\"", reason_names[i]);
        refusals->counters[i] =
            metrics ? bt_metrics_counter(metrics, "baton_rpc_refused_total", label,
                                         "RPC connections that were refused or broken, by reason.")
                    : NULL;
        bt_counter_add(refusals->counters[i], refusals->counts[i]);
    }
}
