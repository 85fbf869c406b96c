#include "router/service_metrics.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "router/rank_metrics.h"
#include "router/service_state.h"

static const double seconds_bounds[] = {0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08,
                                        0.1,   0.25,   0.5,   0.75, 1,    2.5,  5,    7.5,
                                        10,    20,     40,    80,   160,  640,  2560};
static const double token_bounds[] = {1,    2,    5,    10,    20,    50,    100,    200,   500,
                                      1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000};
#define SECONDS_BOUNDS seconds_bounds, sizeof seconds_bounds / sizeof seconds_bounds[0]

/* Long names are cut. */
static void escape_label(const char *value, size_t size, char *ret_escaped)
{
    size_t used = 0;
    for (; *value && used + 3 < size; value++) {
        if (*value == '"' || *value == '\\' || *value == '\n') {
            ret_escaped[used++] = '\\';
        }
        ret_escaped[used++] = *value == '\n' ? 'n' : *value;
    }
    ret_escaped[used] = '\0';
}

static void init_histograms(struct rt_service_metrics *metrics, struct bt_metrics *registry,
                            const char *labels)
{
    const struct {
        struct bt_histogram **histogram;
        const char *name, *help;
    } table[] = {
        {&metrics->ttft, "vllm:time_to_first_token_seconds", "Arrival to first token."},
        {&metrics->inter_token, "vllm:inter_token_latency_seconds", "Between two tokens."},
        {&metrics->tpot, "vllm:request_time_per_output_token_seconds",
         "Mean time between the tokens of a request."},
        {&metrics->e2e, "vllm:e2e_request_latency_seconds", "Arrival to end."},
        {&metrics->queue_time, "vllm:request_queue_time_seconds",
         "Arrival until a prefill worker got the request."},
        {&metrics->prefill_time, "vllm:request_prefill_time_seconds",
         "From then to the first token."},
        {&metrics->decode_time, "vllm:request_decode_time_seconds", "First to last token."},
        {&metrics->inference_time, "vllm:request_inference_time_seconds",
         "From the prefill worker's getting the request to its last token."},
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        *table[i].histogram =
            bt_metrics_histogram(registry, table[i].name, labels, table[i].help, SECONDS_BOUNDS);
    }
}

static void init_stages(struct rt_service_metrics *metrics, struct bt_metrics *registry,
                        const char *labels)
{
    for (size_t i = 0; i < RT_TTFT_STAGES; i++) {
        char both[512];
        snprintf(both, sizeof both, "%s,stage=\"%s\"", labels, rt_ttft_stage_names[i]);
        metrics->stages[i] = bt_metrics_histogram(
            registry, "baton_ttft_stage_seconds", both,
            "Parts of the time to the first token: tokenize, queue, earlier_attempts, reserve, "
            "prefill_queue, prefill_compute, delivery or local_prefill; and of what the second "
            "token then waits for: visible_transfer, decode_queue, first_step.",
            SECONDS_BOUNDS);
    }
}

static void init_tokens(struct rt_service_metrics *metrics, struct bt_metrics *registry,
                        const char *labels)
{
    const struct {
        struct bt_histogram **histogram;
        const char *name, *help;
    } table[] = {
        {&metrics->request_prompt_tokens, "vllm:request_prompt_tokens",
         "Prompt tokens of a request."},
        {&metrics->request_generation_tokens, "vllm:request_generation_tokens",
         "Tokens that a request generated."},
        {&metrics->request_max_tokens, "vllm:request_params_max_tokens",
         "Tokens that a request may generate at most."},
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        *table[i].histogram =
            bt_metrics_histogram(registry, table[i].name, labels, table[i].help, token_bounds,
                                 sizeof token_bounds / sizeof token_bounds[0]);
    }
}

static void init_chosen(struct rt_service_metrics *metrics, struct bt_metrics *registry,
                        const char *labels)
{
    for (int role = 0; role < 2; role++) {
        for (int choice = 0; choice < RT_CHOICES; choice++) {
            int impossible = role == RT_ROLE_PREFILL ? RT_CHOICE_LOCAL : RT_CHOICE_PREFIX;
            if (choice == impossible) {
                continue;
            }
            char both[512];
            snprintf(both, sizeof both, "%s,role=\"%s\",reason=\"%s\"", labels, rt_role_names[role],
                     rt_choice_names[choice]);
            metrics->chosen[role][choice] =
                bt_metrics_counter(registry, "baton_router_decisions_total", both,
                                   "Workers chosen for requests, by role and reason.");
        }
    }
}

static void init_ways(struct rt_service_metrics *metrics, struct bt_metrics *registry,
                      const char *labels)
{
    for (int way = 0; way < RT_WAYS; way++) {
        char both[512];
        snprintf(both, sizeof both, "%s,way=\"%s\",reason=\"%s\"", labels,
                 way < RT_WAY_LOCAL_CHEAPER ? "remote" : "local", rt_way_names[way]);
        metrics->ways[way] = bt_metrics_counter(
            registry, "baton_router_prompt_ways_total", both,
            "Prompts sent to a prefill worker, or to a decode rank that computes them, and why.");
    }
}

static void init_retries(struct rt_service_metrics *metrics, struct bt_metrics *registry,
                         const char *labels)
{
    for (int cause = 0; cause < RT_RETRY_CAUSES; cause++) {
        char both[512];
        snprintf(both, sizeof both, "%s,cause=\"%s\"", labels, rt_retry_cause_names[cause]);
        metrics->retries[cause] =
            bt_metrics_counter(registry, "baton_router_retries_total", both,
                               "Attempts that were followed by another, by what ended them.");
    }
}

static void init_counters(struct rt_service_metrics *metrics, struct bt_metrics *registry,
                          const char *labels)
{
    const struct {
        struct bt_counter **counter;
        const char *name, *help;
    } table[] = {
        {&metrics->prompt_tokens, "vllm:prompt_tokens_total", "Prompt tokens prefilled."},
        {&metrics->generation_tokens, "vllm:generation_tokens_total", "Tokens generated."},
        {&metrics->prefix_queries, "vllm:prefix_cache_queries_total",
         "Prompt tokens that prefill workers looked for in their caches."},
        {&metrics->prefix_hits, "vllm:prefix_cache_hits_total", "Of them, found there."},
        {&metrics->preemptions, "vllm:num_preemptions_total",
         "Requests that gave their pages to others."},
        {&metrics->reserve_refusals, "baton_router_reserve_refusals_total",
         "Reservations that a decode rank did not grant."},
        {&metrics->adopted, "baton_router_adopted_total",
         "Requests taken over from ranks that ran them for a router that is gone."},
        {&metrics->taken_over, "baton_router_taken_over_total",
         "Streams that another connection with their request id took over."},
        {&metrics->resumed, "baton_router_resumed_total",
         "Generations of which the client had tokens already."},
        {&metrics->replayed_tokens, "baton_router_replayed_tokens_total",
         "Tokens that a decode rank took over from one that was lost."},
        {&metrics->refused, "baton_router_requests_refused_total",
         "Requests not accepted: full, invalid or unavailable."},
        {&metrics->worker_losses, "baton_router_worker_losses_total", "Workers lost."},
        {&metrics->rpc_dropped, "baton_rpc_dropped_messages_total",
         "Messages that broke the protocol, and ENDs that their client did not take."},
        {&metrics->kv_pushed_bytes, "baton_kv_pushed_bytes_total",
         "KV cache written into decode ranks."},
        {&metrics->kv_hidden_bytes, "baton_kv_hidden_bytes_total",
         "Of them, written while later layers computed."},
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        *table[i].counter = bt_metrics_counter(registry, table[i].name, labels, table[i].help);
    }
}

static void init_ended(struct rt_service_metrics *metrics, struct bt_metrics *registry,
                       const char *labels)
{
    static const char *const reasons[] = {
        [RT_FINISH_STOP] = "stop",       [RT_FINISH_LENGTH] = "length",
        [RT_FINISH_CANCELLED] = "abort", [RT_FINISH_DEADLINE] = "deadline",
        [RT_FINISH_ERROR] = "error",
    };
    for (size_t i = 0; i <= RT_FINISH_ERROR; i++) {
        char both[512];
        snprintf(both, sizeof both, "%s,finished_reason=\"%s\"", labels, reasons[i]);
        metrics->ended[i] = bt_metrics_counter(registry, "vllm:request_success_total", both,
                                               "Requests ended, by reason.");
    }
}

static void init_tokenization(struct rt_service_metrics *metrics, struct bt_metrics *registry,
                              const char *labels)
{
    metrics->tokenize = bt_metrics_histogram(
        registry, "baton_tokenize_seconds", labels,
        "Text to ids: the wait for a thread and the encoding, together.", SECONDS_BOUNDS);
    metrics->tokenize_waiting = bt_metrics_gauge(registry, "baton_tokenize_waiting", labels,
                                                 "Texts that wait for a thread.");
    metrics->tokenize_running =
        bt_metrics_gauge(registry, "baton_tokenize_running", labels, "Texts being encoded.");
    metrics->tokenize_bytes = bt_metrics_gauge(registry, "baton_tokenize_bytes", labels,
                                               "Memory of texts until their ids are taken.");
    metrics->tokenize_cache_bytes = bt_metrics_gauge(registry, "baton_tokenize_cache_bytes", labels,
                                                     "Memory of texts and ids that are kept.");
    metrics->tokenize_cache_queries =
        bt_metrics_counter(registry, "baton_tokenize_cache_queries_total", labels,
                           "Parts of texts that were looked for.");
    metrics->tokenize_cache_hits = bt_metrics_counter(registry, "baton_tokenize_cache_hits_total",
                                                      labels, "Of them, those that were found.");
}

void rt_service_metrics_init(struct rt_service_metrics *metrics, struct bt_metrics *registry,
                             const char *model_name)
{
    char escaped[256];
    escape_label(model_name, sizeof escaped, escaped);
    char *labels = metrics->labels;
    snprintf(labels, sizeof metrics->labels, "model_name=\"%s\"", escaped);
    init_histograms(metrics, registry, labels);
    init_tokens(metrics, registry, labels);
    init_stages(metrics, registry, labels);
    init_chosen(metrics, registry, labels);
    init_ways(metrics, registry, labels);
    init_retries(metrics, registry, labels);
    init_counters(metrics, registry, labels);
    init_ended(metrics, registry, labels);
    init_tokenization(metrics, registry, labels);
    rt_core_metrics_init(&metrics->core, registry);
    metrics->running =
        bt_metrics_gauge(registry, "vllm:num_requests_running", labels, "Requests on workers.");
    metrics->waiting =
        bt_metrics_gauge(registry, "vllm:num_requests_waiting", labels, "Requests in the queue.");
    metrics->kv_usage = bt_metrics_gauge(registry, "vllm:kv_cache_usage_perc", labels,
                                         "Pages in use, of all decode ranks; 1 is all.");
    metrics->queue_depth =
        bt_metrics_gauge(registry, "baton_router_queue_depth", labels, "Requests in the queue.");
    metrics->queue_capacity = bt_metrics_gauge(registry, "baton_router_queue_capacity", labels,
                                               "Requests the queue takes.");
}

static double seconds(int64_t from_ns, int64_t to_ns)
{
    return (double)(to_ns - from_ns) / 1e9;
}

void rt_service_metrics_first_token(const struct rt_service_metrics *metrics,
                                    const struct rt_stream *stream, int64_t now_ns)
{
    bt_histogram_observe(metrics->ttft, seconds(stream->arrival_ns, now_ns));
    bt_histogram_observe(metrics->prefill_time, seconds(stream->dispatched_ns, now_ns));
    bt_counter_add(metrics->prompt_tokens, stream->prompt_tokens);
    rt_monitor_first_token(metrics->monitor, stream, now_ns);
}

void rt_service_metrics_end(const struct rt_service_metrics *metrics,
                            const struct rt_stream *stream, enum rt_finish finish, int64_t now_ns)
{
    bt_counter_add(metrics->ended[finish], 1);
    rt_monitor_end(metrics->monitor, stream, finish);
    if (finish != RT_FINISH_STOP && finish != RT_FINISH_LENGTH) {
        return;
    }
    double decode_s = seconds(stream->first_token_ns, stream->last_token_ns);
    bt_histogram_observe(metrics->e2e, seconds(stream->arrival_ns, now_ns));
    bt_histogram_observe(metrics->decode_time, decode_s);
    bt_histogram_observe(metrics->inference_time,
                         seconds(stream->dispatched_ns, stream->last_token_ns));
    bt_histogram_observe(metrics->request_prompt_tokens, stream->prompt_tokens);
    bt_histogram_observe(metrics->request_generation_tokens, stream->completion_tokens);
    bt_histogram_observe(metrics->request_max_tokens, stream->sampling.max_tokens);
    if (stream->completion_tokens > 1) {
        bt_histogram_observe(metrics->tpot, decode_s / (stream->completion_tokens - 1));
    }
}

/* ---- rendering */

/* To a count that only grows. */
static void catch_up(struct bt_counter *counter, uint64_t count)
{
    bt_counter_add(counter, count - bt_counter_value(counter));
}

static void update_tokenization(struct rt_service *service)
{
    const struct rt_service_metrics *metrics = &service->metrics;
    struct bt_tokenize_pool_stats pool;
    struct bt_tokenizer_cache_stats cache;
    rt_tokenization_read(service->tokenization, &pool);
    bt_tokenizer_cache_read(service->tokenizer, &cache);
    bt_gauge_set(metrics->tokenize_waiting, (double)pool.waiting);
    bt_gauge_set(metrics->tokenize_running, (double)pool.running);
    bt_gauge_set(metrics->tokenize_bytes, (double)pool.bytes);
    bt_gauge_set(metrics->tokenize_cache_bytes, (double)cache.bytes);
    catch_up(metrics->tokenize_cache_queries, cache.queries);
    catch_up(metrics->tokenize_cache_hits, cache.hits);
}

static void update_counts(struct rt_service *service)
{
    const struct rt_service_metrics *metrics = &service->metrics;
    struct rt_core_counts counts;
    rt_core_counts(service->core, &counts);
    for (int role = 0; role < 2; role++) {
        for (int choice = 0; choice < RT_CHOICES; choice++) {
            catch_up(metrics->chosen[role][choice], counts.chosen[role][choice]);
        }
    }
    for (int way = 0; way < RT_WAYS; way++) {
        catch_up(metrics->ways[way], counts.ways[way]);
    }
    for (int cause = 0; cause < RT_RETRY_CAUSES; cause++) {
        catch_up(metrics->retries[cause], counts.retried[cause]);
    }
}

static void update_gauges(struct rt_service *service)
{
    const struct rt_service_metrics *metrics = &service->metrics;
    uint32_t queued = rt_core_queued(service->core);
    uint64_t used = 0, total = 0;
    size_t cursor = 0;
    rt_worker_ref ref;
    struct rt_worker_view view;
    while (rt_core_next_worker(service->core, &cursor, &ref)) {
        rt_core_worker(service->core, ref, &view);
        if (view.info->role == RT_ROLE_DECODE && view.state != RT_WORKER_LOST) {
            total += view.info->load.pages_total;
            used += view.info->load.pages_total - view.info->load.pages_free;
        }
    }
    update_tokenization(service);
    update_counts(service);
    rt_core_metrics_update(&metrics->core, service->core);
    catch_up(metrics->rpc_dropped, bt_rpc_server_dropped(service->server));
    bt_gauge_set(metrics->queue_depth, queued);
    bt_gauge_set(metrics->queue_capacity, service->options.core.queue_capacity);
    bt_gauge_set(metrics->waiting, queued);
    bt_gauge_set(metrics->running, (double)(service->streams.size - queued));
    bt_gauge_set(metrics->kv_usage, total > 0 ? (double)used / (double)total : 0);
}

char *rt_service_metrics(struct rt_service *service, size_t *ret_size)
{
    update_gauges(service);
    size_t registered_size = 0;
    char *registered = bt_metrics_render(service->registry, &registered_size);
    char *text = NULL;
    size_t size = 0;
    FILE *out = registered ? open_memstream(&text, &size) : NULL;
    if (out) {
        fwrite(registered, 1, registered_size, out);
        rt_rank_metrics_render(service, service->metrics.labels, out);
        rt_core_metrics_render(service->core, out);
        rt_worker_prefixes_render(service->prefixes, out);
        if (fclose(out) != 0) {
            free(text);
            text = NULL;
        }
    }
    free(registered);
    if (text) {
        *ret_size = size;
    }
    return text;
}
