#include "prefill-node/metrics.h"

#include <inttypes.h>
#include <stdio.h>

#include "common/kernels/kernels.h"
#include "kvtransfer/transport.h"

#define LABELS_SIZE 512

static const double second_bounds[] = {0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2,
                                       0.5,   1,     2,     5,    10,   20,   60};
#define SECOND_BOUNDS (sizeof(second_bounds) / sizeof(second_bounds[0]))

/* Quotes and backslashes may not stand in a label. */
static void label_escape(const char *text, char *ret_text, size_t size)
{
    size_t length = 0;
    for (; *text && length + 1 < size; text++) {
        ret_text[length++] = *text == '"' || *text == '\\' || *text == '\n' ? '_' : *text;
    }
    ret_text[length] = '\0';
}

static void register_gauges(struct pf_metrics *metrics, const char *labels)
{
    struct bt_metrics *registry = metrics->registry;
    metrics->running = bt_metrics_gauge(registry, "vllm:num_requests_running", labels,
                                        "Requests that hold KV pages.");
    metrics->waiting = bt_metrics_gauge(registry, "vllm:num_requests_waiting", labels,
                                        "Requests that wait for KV pages.");
    metrics->kv_usage = bt_metrics_gauge(registry, "vllm:kv_cache_usage_perc", labels,
                                         "Share of the KV pages in use, 0 to 1.");
    metrics->prefix_pages = bt_metrics_gauge(registry, "baton_prefix_pages", labels,
                                             "KV pages of prefixes that are kept for prompts.");
    metrics->unacknowledged =
        bt_metrics_gauge(registry, "baton_quiesced_unacknowledged", labels,
                         "Epochs that a decode rank was told are over and has not acknowledged.");
}

static void register_counters(struct pf_metrics *metrics, const char *labels)
{
    struct bt_metrics *registry = metrics->registry;
    metrics->prompt_tokens =
        bt_metrics_counter(registry, "vllm:prompt_tokens_total", labels,
                           "Tokens of prompts whose KV was complete, cached ones included.");
    metrics->computed_tokens = bt_metrics_counter(
        registry, "baton_prefill_computed_tokens_total", labels,
        "Prompt tokens whose KV was computed, those of cancelled prompts included.");
    metrics->prefix_queries =
        bt_metrics_counter(registry, "vllm:prefix_cache_queries_total", labels,
                           "Prompt tokens that were looked for in the prefix cache.");
    metrics->prefix_hits = bt_metrics_counter(registry, "vllm:prefix_cache_hits_total", labels,
                                              "Of them, found there.");
    metrics->prefix_evictions =
        bt_metrics_counter(registry, "baton_prefix_evictions_total", labels,
                           "Pages that the prefix cache gave up for other prompts.");
    metrics->kv_bytes = bt_metrics_counter(registry, "baton_kv_pushed_bytes_total", labels,
                                           "KV bytes written to decode ranks.");
    metrics->kv_bytes_hidden =
        bt_metrics_counter(registry, "baton_kv_pushed_hidden_bytes_total", labels,
                           "Of them, written before the last layer was computed.");
    metrics->kv_writes = bt_metrics_counter(registry, "baton_kv_writes_total", labels,
                                            "One-sided writes after merging.");
}

static void register_ends(struct pf_metrics *metrics, const char *labels)
{
    static const char name[] = "baton_prefill_runs_total";
    static const char help[] = "Prefill runs by how they ended.";
    char text[LABELS_SIZE];
    snprintf(text, sizeof(text), "%s,result=\"handed_off\"", labels);
    metrics->succeeded = bt_metrics_counter(metrics->registry, name, text, help);
    snprintf(text, sizeof(text), "%s,result=\"cancelled\"", labels);
    metrics->cancelled = bt_metrics_counter(metrics->registry, name, text, help);
    snprintf(text, sizeof(text), "%s,result=\"failed\"", labels);
    metrics->failed = bt_metrics_counter(metrics->registry, name, text, help);
    snprintf(text, sizeof(text), "%s,result=\"refused\"", labels);
    metrics->refused = bt_metrics_counter(metrics->registry, name, text, help);
}

static void register_times(struct pf_metrics *metrics, const char *labels)
{
    struct bt_metrics *registry = metrics->registry;
    metrics->queue_seconds =
        bt_metrics_histogram(registry, "vllm:request_queue_time_seconds", labels,
                             "Acceptance to first chunk.", second_bounds, SECOND_BOUNDS);
    metrics->prefill_seconds =
        bt_metrics_histogram(registry, "vllm:request_prefill_time_seconds", labels,
                             "First chunk to last layer.", second_bounds, SECOND_BOUNDS);
    metrics->visible_transfer_seconds =
        bt_metrics_histogram(registry, "baton_visible_transfer_seconds", labels,
                             "Last layer to flush.", second_bounds, SECOND_BOUNDS);
}

enum bt_status pf_metrics_init(struct pf_metrics *metrics, const char *model_name,
                               uint32_t kv_pages, const char *kv_dtype, struct bt_error *error)
{
    *metrics = (struct pf_metrics){.registry = bt_metrics_create()};
    if (!metrics->registry) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "metrics: no memory");
    }
    char name[128], labels[LABELS_SIZE - 64], info[LABELS_SIZE];
    label_escape(model_name, name, sizeof(name));
    snprintf(labels, sizeof(labels), "model_name=\"%s\",role=\"prefill\"", name);
    snprintf(info, sizeof(info),
             "%s,block_size=\"%d\",num_gpu_blocks=\"%" PRIu32 "\",cache_dtype=\"%s\"", labels,
             BT_PAGE_TOKENS, kv_pages, kv_dtype);
    bt_gauge_set(bt_metrics_gauge(metrics->registry, "vllm:cache_config_info", info,
                                  "The KV cache: tokens of a page, pages, element type."),
                 1);
    register_gauges(metrics, labels);
    register_counters(metrics, labels);
    register_ends(metrics, labels);
    register_times(metrics, labels);
    return BT_OK;
}

void pf_metrics_engine(struct pf_metrics *metrics, const char *labels)
{
    char text[LABELS_SIZE];
    snprintf(text, sizeof(text), "role=\"prefill\",%s", labels);
    bt_gauge_set(
        bt_metrics_gauge(metrics->registry, "baton_engine_info", text, "What computes here."), 1);
}

void pf_metrics_finish(struct pf_metrics *metrics)
{
    bt_metrics_destroy(metrics->registry);
}

static void count_up_to(struct bt_counter *counter, uint64_t value)
{
    bt_counter_add(counter, value - bt_counter_value(counter));
}

void pf_metrics_prefixes(struct pf_metrics *metrics, const struct pf_pages *pages)
{
    bt_gauge_set(metrics->prefix_pages, bt_page_pool_count(pages->pool, BT_PAGE_CACHED));
    if (pages->prefixes) {
        count_up_to(metrics->prefix_evictions, bt_prefix_index_evictions(pages->prefixes));
    }
}

void pf_metrics_transfer(struct pf_metrics *metrics, const struct kvt_source *source)
{
    struct kvt_traffic traffic[KVT_RAILS_MAX];
    uint32_t count = kvt_source_traffic(source, traffic, KVT_RAILS_MAX);
    for (uint32_t i = 0; i < count && i < KVT_RAILS_MAX; i++) {
        char labels[KVT_DEVICE_NAME_SIZE + 64];
        snprintf(labels, sizeof(labels), "transport=\"%.15s\",device=\"%.63s\"",
                 traffic[i].transport, traffic[i].device);
        count_up_to(bt_metrics_counter(metrics->registry, "baton_transfer_bytes_total", labels,
                                       "KV bytes that went over this."),
                    traffic[i].bytes);
        count_up_to(bt_metrics_counter(metrics->registry, "baton_transfer_writes_total", labels,
                                       "Writes that went over this."),
                    traffic[i].writes);
        count_up_to(bt_metrics_counter(metrics->registry, "baton_transfer_connections_total",
                                       labels, "Connections to decode ranks that came up."),
                    traffic[i].connections);
        bt_gauge_set(bt_metrics_gauge(metrics->registry, "baton_transfer_links", labels,
                                      "Connections to decode ranks that are up."),
                     traffic[i].links);
    }
    count_up_to(bt_metrics_counter(metrics->registry, "baton_transfer_fallbacks_total", NULL,
                                   "Decode ranks that the best transport of both ends did not "
                                   "reach."),
                kvt_source_fallbacks(source));
}

void pf_metrics_rails(struct pf_metrics *metrics, const struct kvt_source *source)
{
    struct kvt_rail_stats rails[KVT_RAILS_MAX];
    uint32_t count = kvt_source_rails(source, rails, KVT_RAILS_MAX);
    for (uint32_t i = 0; i < count && i < KVT_RAILS_MAX; i++) {
        char labels[KVT_DEVICE_NAME_SIZE + 64];
        snprintf(labels, sizeof(labels), "device=\"%.63s\",transport=\"rdma\"", rails[i].device);
        count_up_to(bt_metrics_counter(metrics->registry, "baton_rail_bytes_total", labels,
                                       "Bytes given to this rail."),
                    rails[i].bytes);
        count_up_to(bt_metrics_counter(metrics->registry, "baton_rail_writes_total", labels,
                                       "Writes given to this rail."),
                    rails[i].writes);
        count_up_to(bt_metrics_counter(metrics->registry, "baton_rail_repeats_total", labels,
                                       "Writes that other rails repeated when this one failed."),
                    rails[i].repeats);
        count_up_to(bt_metrics_counter(metrics->registry, "baton_rail_failures_total", labels,
                                       "Connections over this rail that broke or never came up."),
                    rails[i].failures);
        bt_gauge_set(bt_metrics_gauge(metrics->registry, "baton_rail_connections", labels,
                                      "Connections over this rail that are up."),
                     rails[i].lines);
        bt_gauge_set(bt_metrics_gauge(metrics->registry, "baton_rail_link_bits_per_second", labels,
                                      "Rate of this rail's link."),
                     rails[i].rate_mbps * 1e6);
    }
}
