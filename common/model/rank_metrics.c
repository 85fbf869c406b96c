#include "common/model/rank_metrics.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#define LABELS_BYTES 512
#define KINDS        4

/* A counter of the registry, and what it was told. */
struct count {
    struct bt_counter *counter;
    uint64_t told;
};

struct bt_rank_metrics {
    struct bt_rank_metrics_options options;
    uint32_t experts;
    size_t cells;             /* of loads */
    struct bt_gauge **gauges; /* [layer][expert] */
    uint64_t *loads;          /* likewise */
    struct bt_gauge *imbalance;
    struct count bytes[KINDS], crossing, moves, rebalances, ended;
};

void bt_rank_traffic_set(struct bt_rank_traffic *traffic, const struct bt_group *group)
{
    struct bt_group_traffic now;
    bt_group_traffic(group, &now);
    atomic_store_explicit(&traffic->reduce, now.reduce, memory_order_relaxed);
    atomic_store_explicit(&traffic->dispatch, now.dispatch, memory_order_relaxed);
    atomic_store_explicit(&traffic->combine, now.combine, memory_order_relaxed);
    atomic_store_explicit(&traffic->other, now.other, memory_order_relaxed);
    atomic_store_explicit(&traffic->crossing, now.between_machines, memory_order_relaxed);
}

/* ---- registering ---- */

__attribute__((format(printf, 3, 4))) static void add_labels(char *out, const char *labels,
                                                             const char *format, ...)
{
    va_list arguments;
    int used = labels && labels[0] ? snprintf(out, LABELS_BYTES, "%s,", labels) : 0;
    if (used < 0 || used >= LABELS_BYTES)
        used = 0;
    va_start(arguments, format);
    vsnprintf(out + used, (size_t)(LABELS_BYTES - used), format, arguments);
    va_end(arguments);
}

static void add_group(struct bt_rank_metrics *m, struct bt_metrics *metrics, const char *labels)
{
    static const char *const kinds[KINDS] = {"reduce", "dispatch", "combine", "other"};
    for (size_t i = 0; i < KINDS; i++) {
        char text[LABELS_BYTES];
        add_labels(text, labels, "kind=\"%s\"", kinds[i]);
        m->bytes[i].counter =
            bt_metrics_counter(metrics, "baton_group_bytes_total", text,
                               "Bytes that this rank sent to the others of its group.");
    }
    m->crossing.counter =
        bt_metrics_counter(metrics, "baton_group_crossing_bytes_total", labels,
                           "What of these bytes crossed from one machine to another.");
}

static void add_loads(struct bt_rank_metrics *m, struct bt_metrics *metrics, const char *labels)
{
    const struct bt_model_config *c = m->options.config;
    size_t at = 0;
    for (uint32_t layer = 0; layer < c->num_hidden_layers; layer++) {
        for (uint32_t e = 0; bt_model_layer_is_moe(c, layer) && e < c->n_routed_experts; e++) {
            char text[LABELS_BYTES];
            add_labels(text, labels, "layer=\"%u\",expert=\"%u\"", layer, e);
            m->gauges[at++] =
                bt_metrics_gauge(metrics, "baton_expert_load", text,
                                 "How often the expert was chosen, in the window of loads.");
        }
    }
}

static void add_experts(struct bt_rank_metrics *m, struct bt_metrics *metrics, const char *labels)
{
    m->imbalance = bt_metrics_gauge(metrics, "baton_expert_load_imbalance", labels,
                                    "Largest load of a rank over the mean, all layers together.");
    m->moves.counter = bt_metrics_counter(metrics, "baton_expert_moves_total", labels,
                                          "Experts that this rank loaded while it served.");
    m->rebalances.counter = bt_metrics_counter(metrics, "baton_expert_rebalances_total", labels,
                                               "Times that experts moved between ranks.");
    m->ended.counter =
        bt_metrics_counter(metrics, "baton_expert_rebalances_ended_total", labels,
                           "Times that a rank's fault kept experts from moving, or some of them.");
    if (m->options.loads)
        add_loads(m, metrics, labels);
}

struct bt_rank_metrics *bt_rank_metrics_create(const struct bt_rank_metrics_options *options,
                                               struct bt_metrics *metrics, const char *labels)
{
    struct bt_rank_metrics *m = calloc(1, sizeof(*m));
    if (!m)
        return NULL;
    m->options = *options;
    m->cells = (size_t)bt_model_moe_layers(options->config) * options->config->n_routed_experts;
    m->gauges = calloc(m->cells + 1, sizeof(struct bt_gauge *));
    m->loads = calloc(m->cells + 1, sizeof(*m->loads));
    if (!m->gauges || !m->loads) {
        bt_rank_metrics_destroy(m);
        return NULL;
    }
    if (options->traffic)
        add_group(m, metrics, labels);
    if (options->rebalance)
        add_experts(m, metrics, labels);
    return m;
}

void bt_rank_metrics_destroy(struct bt_rank_metrics *m)
{
    if (!m)
        return;
    free(m->gauges);
    free(m->loads);
    free(m);
}

/* ---- refreshing ---- */

static void tell(struct count *count, uint64_t value)
{
    bt_counter_add(count->counter, value - count->told);
    count->told = value;
}

static void refresh_group(struct bt_rank_metrics *m)
{
    struct bt_rank_traffic *traffic = m->options.traffic;
    tell(&m->bytes[0], atomic_load_explicit(&traffic->reduce, memory_order_relaxed));
    tell(&m->bytes[1], atomic_load_explicit(&traffic->dispatch, memory_order_relaxed));
    tell(&m->bytes[2], atomic_load_explicit(&traffic->combine, memory_order_relaxed));
    tell(&m->bytes[3], atomic_load_explicit(&traffic->other, memory_order_relaxed));
    tell(&m->crossing, atomic_load_explicit(&traffic->crossing, memory_order_relaxed));
}

static void refresh_experts(struct bt_rank_metrics *m)
{
    struct bt_rebalance_report report;
    bt_rebalance_look(m->options.rebalance, &report, m->options.loads ? m->loads : NULL);
    bt_gauge_set(m->imbalance, report.imbalance);
    tell(&m->moves, report.moves);
    tell(&m->rebalances, report.done);
    tell(&m->ended, report.ended);
    for (size_t i = 0; m->options.loads && i < m->cells; i++)
        bt_gauge_set(m->gauges[i], (double)m->loads[i]);
}

void bt_rank_metrics_refresh(struct bt_rank_metrics *m)
{
    if (m && m->options.traffic)
        refresh_group(m);
    if (m && m->options.rebalance)
        refresh_experts(m);
}
