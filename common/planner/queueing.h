/*
 * Waiting for one of `servers` equal servers with Poisson arrivals: the exact M/M/c wait, scaled by
 * (1 + cv^2)/2 for service times that vary by `cv` (0: all the same, M/D/c). Exact for M/M/c and
 * for one server (Pollaczek-Khinchine), an approximation else (Allen-Cunneen). Pure.
 */
#ifndef BATON_COMMON_PLANNER_QUEUEING_H
#define BATON_COMMON_PLANNER_QUEUEING_H

#include <stdint.h>

#define BT_PLAN_SERVERS_MAX 1048576

/* Erlang C: how likely an arrival waits, at `load` = arrivals/s * service_s; 1 from `servers` on.
 */
double bt_plan_wait_chance(uint32_t servers, double load);

/* Seconds an arrival waits: the mean (quantile 0) or the quantile in (0, 1) of all arrivals, of an
 * exponential tail. INFINITY where the load reaches the servers. */
double bt_plan_wait_s(uint32_t servers, double service_s, double arrivals_per_s, double cv,
                      double quantile);

#endif
