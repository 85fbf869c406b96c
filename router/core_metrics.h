/* What the core counts, and the breakers of workers, as metrics. Internal to the service. */
#ifndef BATON_ROUTER_CORE_METRICS_H
#define BATON_ROUTER_CORE_METRICS_H

#include <stdio.h>

#include "common/base/metrics.h"
#include "router/core.h"

#define RT_CORE_COUNTERS 7

struct rt_core_metrics {
    struct bt_counter *counters[RT_CORE_COUNTERS];
};

void rt_core_metrics_init(struct rt_core_metrics *metrics, struct bt_metrics *registry);
/* Before each rendering of the registry. */
void rt_core_metrics_update(const struct rt_core_metrics *metrics, const struct rt_core *core);
/* A line a worker, as exposition text. */
void rt_core_metrics_render(const struct rt_core *core, FILE *out);

#endif
