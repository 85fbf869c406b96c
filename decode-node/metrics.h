/* What a decode rank counts, under the names that dashboards know; the rest as baton_…. */
#ifndef BATON_DECODE_NODE_METRICS_H
#define BATON_DECODE_NODE_METRICS_H

#include "common/base/metrics.h"
#include "common/base/status.h"

#define DC_METRICS_LABELS 448

struct dc_metrics {
    struct bt_metrics *registry;
    char labels[DC_METRICS_LABELS]; /* that all have but the _info ones */
    struct bt_gauge *rows, *largest;
    struct bt_gauge *running, *waiting, *kv_usage, *kv_tokens;
    struct bt_gauge *pages_free, *pages_reserved, *pages_ready, *pages_quarantined;
    struct bt_counter *generated, *stopped, *lengthy, *preempted, *cancelled, *failed;
    struct bt_counter *handed_off, *corrupt, *refused_done;
    struct bt_counter *reserved, *refused_reserve;
    struct bt_counter *local_prompts, *local_prompt_tokens;
    struct bt_counter *orphaned, *adopted, *orphans_dropped;
    struct bt_histogram *inter_token_seconds, *per_token_seconds, *decode_seconds;
    struct bt_histogram *step_seconds, *step_rows;
    struct bt_counter *agreements, *heartbeats, *woken, *waking;
};

/* Since the start; rows: of the last step. */
struct dc_group_counts {
    uint32_t rows, largest;
    uint64_t agreements, heartbeats, woken, waking;
};

/* `model_name` and the cache's figures become labels. */
enum bt_status dc_metrics_init(struct dc_metrics *metrics, const char *model_name,
                               uint32_t kv_pages, const char *kv_dtype, struct bt_error *error);
/* What computes, as labels: `arithmetic="…",kernels="…"`. */
void dc_metrics_engine(struct dc_metrics *metrics, const char *labels);
void dc_metrics_group(struct dc_metrics *metrics, const struct dc_group_counts *counts);
void dc_metrics_finish(struct dc_metrics *metrics);

#endif
