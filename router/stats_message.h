/*
 * The answer of baton.v1.Router/Stats, made of a history. Pure.
 */
#ifndef BATON_ROUTER_STATS_MESSAGE_H
#define BATON_ROUTER_STATS_MESSAGE_H

#include "proto/router.pb-c.h"
#include "router/history.h"

#define RT_STATS_WINDOW_S     60 /* where nobody says */
#define RT_STATS_WINDOW_MAX_S 600

struct rt_stats_now {
    int64_t now_ns, unix_ns; /* the same moment by the history's clock and by the calendar */
    struct rt_history_totals totals;
    uint32_t queued, running;
};

/* Over the steps that reach back at least `window_s`, as far as there are any; 0 and what is too
 * long are RT_STATS_WINDOW_S and RT_STATS_WINDOW_MAX_S. Free with
 * baton__v1__stats_response__free_unpacked. NULL: no memory. */
Baton__V1__StatsResponse *rt_stats_message(const struct rt_history *history,
                                           const struct rt_stats_now *now, uint32_t window_s);

#endif
