#include "router/core_metrics.h"

#include <stddef.h>

static const char sheds_help[] = "Requests refused, by what they ran into.";

static const struct {
    const char *name, *labels, *help;
    size_t offset; /* in struct rt_core_counts */
} table[RT_CORE_COUNTERS] = {
    {"baton_router_sheds_total", "reason=\"queue\"", sheds_help,
     offsetof(struct rt_core_counts, shed_queue)},
    {"baton_router_sheds_total", "reason=\"tenant\"", sheds_help,
     offsetof(struct rt_core_counts, shed_tenant)},
    {"baton_router_sheds_total", "reason=\"slo\"", sheds_help,
     offsetof(struct rt_core_counts, shed_slo)},
    {"baton_router_poisoned_total", NULL, "Requests stopped since they killed workers.",
     offsetof(struct rt_core_counts, poisoned)},
    {"baton_router_budget_refused_total", NULL,
     "Requests ended since too many attempts had to be repeated.",
     offsetof(struct rt_core_counts, budget_refused)},
    {"baton_router_breaker_openings_total", NULL, "Workers kept out after failures.",
     offsetof(struct rt_core_counts, breakers_opened)},
    {"baton_router_workers_kept_out_total", NULL, "Workers kept out after short lives.",
     offsetof(struct rt_core_counts, kept_out)},
};

void rt_core_metrics_init(struct rt_core_metrics *metrics, struct bt_metrics *registry)
{
    for (size_t i = 0; i < RT_CORE_COUNTERS; i++) {
        metrics->counters[i] =
            bt_metrics_counter(registry, table[i].name, table[i].labels, table[i].help);
    }
}

void rt_core_metrics_update(const struct rt_core_metrics *metrics, const struct rt_core *core)
{
    struct rt_core_counts counts;
    rt_core_counts(core, &counts);
    for (size_t i = 0; i < RT_CORE_COUNTERS; i++) {
        uint64_t count = *(const uint64_t *)((const char *)&counts + table[i].offset);
        if (metrics->counters[i]) {
            bt_counter_add(metrics->counters[i], count - bt_counter_value(metrics->counters[i]));
        }
    }
}

void rt_core_metrics_render(const struct rt_core *core, FILE *out)
{
    size_t cursor = 0;
    rt_worker_ref ref;
    struct rt_worker_view view;
    fprintf(out, "# HELP baton_worker_breaker 0: closed, 1: open, it gets nothing, 2: on trial.\n"
                 "# TYPE baton_worker_breaker gauge\n");
    while (rt_core_next_worker(core, &cursor, &ref)) {
        rt_core_worker(core, ref, &view);
        int state = view.breaker == RT_BREAKER_CLOSED ? 0 : view.breaker == RT_BREAKER_OPEN ? 1 : 2;
        fprintf(out, "baton_worker_breaker{worker=\"%s\"} %d\n", view.info->id, state);
    }
}
