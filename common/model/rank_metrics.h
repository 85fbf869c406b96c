/* The metrics of a rank: see rank.h. Inside common/model. */
#ifndef BATON_COMMON_MODEL_RANK_METRICS_H
#define BATON_COMMON_MODEL_RANK_METRICS_H

#include <stdatomic.h>

#include "common/base/metrics.h"
#include "common/model/rebalance.h"

/* Counts of the group, set by the thread that steps for who shows them. */
struct bt_rank_traffic {
    _Atomic uint64_t reduce, dispatch, combine, other, crossing;
};
void bt_rank_traffic_set(struct bt_rank_traffic *traffic, const struct bt_group *group);

struct bt_rank_metrics_options { /* all borrowed */
    const struct bt_model_config *config;
    struct bt_rank_traffic *traffic; /* NULL: alone */
    struct bt_rebalance *rebalance;  /* NULL: no experts */
    bool loads;                      /* of all ranks, by expert */
};

struct bt_rank_metrics;
/* NULL: no memory, or nothing to show; the others take that. */
struct bt_rank_metrics *bt_rank_metrics_create(const struct bt_rank_metrics_options *options,
                                               struct bt_metrics *metrics, const char *labels);
void bt_rank_metrics_destroy(struct bt_rank_metrics *metrics);
void bt_rank_metrics_refresh(struct bt_rank_metrics *metrics);

#endif
