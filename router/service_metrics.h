/*
 * The router's metrics: those that exist elsewhere under their known names (vllm:…), the others
 * under baton_…. Internal to the service.
 */
#ifndef BATON_ROUTER_SERVICE_METRICS_H
#define BATON_ROUTER_SERVICE_METRICS_H

#include "common/base/metrics.h"
#include "router/core.h"
#include "router/core_metrics.h"
#include "router/stages.h"

struct rt_monitor;
struct rt_stream;
struct rt_service;

#define RT_SERVICE_LABELS_SIZE 300

struct rt_service_metrics {
    struct rt_core_metrics core;
    struct bt_gauge *running, *waiting, *kv_usage;
    struct bt_histogram *ttft, *inter_token, *tpot, *e2e, *queue_time, *prefill_time, *decode_time,
        *inference_time;
    struct bt_histogram *tokenize;
    struct bt_histogram *stages[RT_TTFT_STAGES]; /* [enum rt_ttft_stage] */
    struct bt_gauge *tokenize_waiting, *tokenize_running, *tokenize_bytes, *tokenize_cache_bytes;
    struct bt_counter *tokenize_cache_queries, *tokenize_cache_hits;
    struct bt_counter *prompt_tokens, *generation_tokens, *preemptions;
    struct bt_counter *ended[RT_FINISH_ERROR + 1]; /* [enum rt_finish] */
    struct bt_gauge *queue_depth, *queue_capacity;
    struct bt_counter *rpc_dropped;
    struct bt_counter *reserve_refusals, *refused, *worker_losses;
    struct bt_counter *ways[RT_WAYS];
    struct bt_counter *chosen[2][RT_CHOICES]; /* [enum rt_role]; NULL where it never happens */
    struct bt_counter *retries[RT_RETRY_CAUSES];
    struct bt_counter *prefix_queries, *prefix_hits;
    struct bt_histogram *request_prompt_tokens, *request_generation_tokens, *request_max_tokens;
    char labels[RT_SERVICE_LABELS_SIZE]; /* model_name="…" */
    struct bt_counter *replayed_tokens;
    struct bt_counter *adopted, *taken_over, *resumed;
    struct bt_counter *kv_pushed_bytes, *kv_hidden_bytes;
    struct rt_monitor *monitor; /* hears of the same events */
};

void rt_service_metrics_init(struct rt_service_metrics *metrics, struct bt_metrics *registry,
                             const char *model_name);
void rt_service_metrics_first_token(const struct rt_service_metrics *metrics,
                                    const struct rt_stream *stream, int64_t now_ns);
void rt_service_metrics_end(const struct rt_service_metrics *metrics,
                            const struct rt_stream *stream, enum rt_finish finish, int64_t now_ns);

#endif
