#include "common/planner/queueing.h"

#include <math.h>

double bt_plan_wait_chance(uint32_t servers, double load)
{
    if (load >= servers)
        return 1;
    double blocked = 1; /* Erlang B */
    for (uint32_t i = 1; i <= servers; i++)
        blocked = load * blocked / (i + load * blocked);
    return blocked / (1 - load / servers * (1 - blocked));
}

double bt_plan_wait_s(uint32_t servers, double service_s, double arrivals_per_s, double cv,
                      double quantile)
{
    double load = arrivals_per_s * service_s;
    if (load >= servers)
        return INFINITY;
    double chance = bt_plan_wait_chance(servers, load);
    double of_waiting = service_s / (servers - load) * (1 + cv * cv) / 2;
    if (quantile <= 0)
        return chance * of_waiting;
    return chance <= 1 - quantile ? 0 : of_waiting * log(chance / (1 - quantile));
}
