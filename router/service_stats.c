/* What the router saw lately: baton.v1.Router/Stats. */
#include "common/base/clock.h"
#include "router/service_state.h"
#include "router/stats_message.h"

_Static_assert(RT_STATS_WINDOW_MAX_S *BT_NS_PER_S <= RT_HISTORY_POINTS * RT_HISTORY_STEP_NS,
               "the window is longer than the history");

Baton__V1__StatsResponse *rt_service_stats(const struct rt_service *service,
                                           const Baton__V1__StatsRequest *request)
{
    uint32_t queued = rt_core_queued(service->core);
    struct rt_stats_now now = {
        .now_ns = bt_clock_now_ns(),
        .unix_ns = bt_clock_unix_ns(),
        .queued = queued,
        .running = (uint32_t)service->streams.size - queued,
    };
    rt_monitor_totals(service->monitor, &now.totals);
    return rt_stats_message(rt_monitor_history(service->monitor), &now, request->window_s);
}
