/* What a prefill worker counts, under the names that dashboards know; the rest as baton_…. */
#ifndef BATON_PREFILL_NODE_METRICS_H
#define BATON_PREFILL_NODE_METRICS_H

#include "common/base/metrics.h"
#include "common/base/status.h"
#include "kvtransfer/source.h"
#include "prefill-node/prompt_pages.h"

struct pf_metrics {
    struct bt_metrics *registry;
    struct bt_gauge *running, *waiting, *kv_usage, *unacknowledged;
    struct bt_counter *prompt_tokens, *succeeded, *cancelled, *failed, *refused;
    struct bt_counter *kv_bytes, *kv_bytes_hidden, *kv_writes;
    struct bt_counter *computed_tokens, *prefix_queries, *prefix_hits, *prefix_evictions;
    struct bt_gauge *prefix_pages;
    struct bt_histogram *queue_seconds, *prefill_seconds, *visible_transfer_seconds;
};

/* `model_name` and the cache's figures become labels. */
enum bt_status pf_metrics_init(struct pf_metrics *metrics, const char *model_name,
                               uint32_t kv_pages, const char *kv_dtype, struct bt_error *error);
/* What computes, as labels: `arithmetic="…",kernels="…"`. */
void pf_metrics_engine(struct pf_metrics *metrics, const char *labels);
void pf_metrics_finish(struct pf_metrics *metrics);

/* Brings baton_prefix_… up to date. */
void pf_metrics_prefixes(struct pf_metrics *metrics, const struct pf_pages *pages);

/* Brings baton_transfer_… up to date. */
void pf_metrics_transfer(struct pf_metrics *metrics, const struct kvt_source *source);

/* Brings baton_rail_… up to date; nothing where the transport has no rails. */
void pf_metrics_rails(struct pf_metrics *metrics, const struct kvt_source *source);

#endif
