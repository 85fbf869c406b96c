#include "decode-node/metrics.h"

#include <inttypes.h>
#include <stdio.h>

#include "common/kernels/kernels.h"

#define LABELS_SIZE 512

static const double second_bounds[] = {0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075,
                                       0.1,    0.2,   0.5,   1,     2,    5,    10,   60};
static const double row_bounds[] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024};
#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))

/* Quotes and backslashes may not stand in a label. */
static void label_escape(const char *text, char *ret_text, size_t size)
{
    size_t length = 0;
    for (; *text && length + 1 < size; text++) {
        ret_text[length++] = *text == '"' || *text == '\\' || *text == '\n' ? '_' : *text;
    }
    ret_text[length] = '\0';
}

static struct bt_counter *counter_with(struct dc_metrics *metrics, const char *name,
                                       const char *labels, const char *extra, const char *help)
{
    char text[LABELS_SIZE];
    snprintf(text, sizeof(text), "%s,%s", labels, extra);
    return bt_metrics_counter(metrics->registry, name, text, help);
}

static struct bt_gauge *pages_in(struct dc_metrics *metrics, const char *labels, const char *state)
{
    char text[LABELS_SIZE];
    snprintf(text, sizeof(text), "%s,state=\"%s\"", labels, state);
    return bt_metrics_gauge(metrics->registry, "baton_kv_pages", text, "KV pages by state.");
}

static void register_gauges(struct dc_metrics *metrics, const char *labels)
{
    struct bt_metrics *registry = metrics->registry;
    metrics->running =
        bt_metrics_gauge(registry, "vllm:num_requests_running", labels, "Sequences in the batch.");
    metrics->waiting = bt_metrics_gauge(registry, "vllm:num_requests_waiting", labels,
                                        "Sequences that wait for a place or a page.");
    metrics->kv_usage = bt_metrics_gauge(registry, "vllm:kv_cache_usage_perc", labels,
                                         "Share of the KV pages in use, 0 to 1.");
    metrics->kv_tokens = bt_metrics_gauge(registry, "baton_kv_tokens", labels,
                                          "Sum of the KV lengths of all sequences.");
    metrics->pages_free = pages_in(metrics, labels, "free");
    metrics->pages_reserved = pages_in(metrics, labels, "reserved");
    metrics->pages_ready = pages_in(metrics, labels, "ready");
    metrics->pages_quarantined = pages_in(metrics, labels, "quarantined");
}

static void register_counters(struct dc_metrics *metrics, const char *labels)
{
    struct bt_metrics *registry = metrics->registry;
    static const char success[] = "vllm:request_success_total";
    static const char success_help[] = "Requests that ended well, by reason.";
    static const char handoffs[] = "baton_handoffs_total";
    static const char handoffs_help[] = "Handoffs by verdict.";
    static const char reserves[] = "baton_reservations_total";
    static const char reserves_help[] = "Reservations by answer.";
    static const char orphans[] = "baton_orphans_total";
    static const char orphans_help[] =
        "Requests whose router went away; of these, those that another took over, and those that "
        "nobody did in time or that their router ran elsewhere.";
    static const char ended[] = "baton_requests_ended_total";
    static const char ended_help[] = "Requests that ended otherwise, by reason.";
    metrics->generated = bt_metrics_counter(registry, "vllm:generation_tokens_total", labels,
                                            "Tokens generated, first tokens excepted.");
    metrics->preempted = bt_metrics_counter(registry, "vllm:num_preemptions_total", labels,
                                            "Sequences that gave their pages to others.");
    metrics->stopped =
        counter_with(metrics, success, labels, "finished_reason=\"stop\"", success_help);
    metrics->lengthy =
        counter_with(metrics, success, labels, "finished_reason=\"length\"", success_help);
    metrics->cancelled = counter_with(metrics, ended, labels, "reason=\"cancelled\"", ended_help);
    metrics->failed = counter_with(metrics, ended, labels, "reason=\"failed\"", ended_help);
    metrics->handed_off = counter_with(metrics, handoffs, labels, "verdict=\"ok\"", handoffs_help);
    metrics->corrupt =
        counter_with(metrics, handoffs, labels, "verdict=\"corrupt\"", handoffs_help);
    metrics->refused_done =
        counter_with(metrics, handoffs, labels, "verdict=\"refused\"", handoffs_help);
    metrics->reserved = counter_with(metrics, reserves, labels, "answer=\"ok\"", reserves_help);
    metrics->refused_reserve =
        counter_with(metrics, reserves, labels, "answer=\"refused\"", reserves_help);
    metrics->local_prompts =
        bt_metrics_counter(registry, "baton_local_prefills_total", labels,
                           "Prompts that this rank computed itself, up to the first token.");
    metrics->local_prompt_tokens = bt_metrics_counter(registry, "baton_local_prefill_tokens_total",
                                                      labels, "Tokens of these prompts.");
    metrics->orphaned = counter_with(metrics, orphans, labels, "event=\"made\"", orphans_help);
    metrics->adopted = counter_with(metrics, orphans, labels, "event=\"adopted\"", orphans_help);
    metrics->orphans_dropped =
        counter_with(metrics, orphans, labels, "event=\"dropped\"", orphans_help);
}

static void register_times(struct dc_metrics *metrics, const char *labels)
{
    struct bt_metrics *registry = metrics->registry;
    size_t bounds = COUNT_OF(second_bounds);
    metrics->inter_token_seconds =
        bt_metrics_histogram(registry, "vllm:inter_token_latency_seconds", labels,
                             "Between two tokens of a request.", second_bounds, bounds);
    metrics->per_token_seconds =
        bt_metrics_histogram(registry, "vllm:request_time_per_output_token_seconds", labels,
                             "Decode time of a request by its tokens.", second_bounds, bounds);
    metrics->decode_seconds =
        bt_metrics_histogram(registry, "vllm:request_decode_time_seconds", labels,
                             "Handoff to the last token.", second_bounds, bounds);
    metrics->step_seconds = bt_metrics_histogram(registry, "baton_decode_step_seconds", labels,
                                                 "One step.", second_bounds, bounds);
    metrics->step_rows =
        bt_metrics_histogram(registry, "baton_decode_step_rows", labels, "Sequences in a step.",
                             row_bounds, COUNT_OF(row_bounds));
}

static void register_group(struct dc_metrics *metrics, const char *labels)
{
    struct bt_metrics *registry = metrics->registry;
    static const char wakes[] = "baton_group_wakes_total";
    static const char wakes_help[] = "Calls that end the rest of another rank, by direction.";
    metrics->rows = bt_metrics_gauge(registry, "baton_decode_rows", labels,
                                     "Sequences of this rank in the last step.");
    metrics->largest =
        bt_metrics_gauge(registry, "baton_decode_rows_agreed", labels,
                         "Sequences of the rank of the group that had most in the last step.");
    metrics->agreements = bt_metrics_counter(registry, "baton_group_agreements_total", labels,
                                             "Agreements of the ranks of the group.");
    metrics->heartbeats = bt_metrics_counter(registry, "baton_group_heartbeats_total", labels,
                                             "Agreements that began because nothing had happened.");
    metrics->woken = counter_with(metrics, wakes, labels, "direction=\"received\"", wakes_help);
    metrics->waking = counter_with(metrics, wakes, labels, "direction=\"sent\"", wakes_help);
}

enum bt_status dc_metrics_init(struct dc_metrics *metrics, const char *model_name,
                               uint32_t kv_pages, const char *kv_dtype, struct bt_error *error)
{
    *metrics = (struct dc_metrics){.registry = bt_metrics_create()};
    if (!metrics->registry) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "metrics: no memory");
    }
    char name[128], info[LABELS_SIZE], *labels = metrics->labels;
    label_escape(model_name, name, sizeof(name));
    snprintf(labels, sizeof(metrics->labels), "model_name=\"%s\",role=\"decode\"", name);
    snprintf(info, sizeof(info),
             "%s,block_size=\"%d\",num_gpu_blocks=\"%" PRIu32 "\",cache_dtype=\"%s\"", labels,
             BT_PAGE_TOKENS, kv_pages, kv_dtype);
    bt_gauge_set(bt_metrics_gauge(metrics->registry, "vllm:cache_config_info", info,
                                  "The KV cache: tokens of a page, pages, element type."),
                 1);
    register_gauges(metrics, labels);
    register_counters(metrics, labels);
    register_times(metrics, labels);
    register_group(metrics, labels);
    return BT_OK;
}

void dc_metrics_engine(struct dc_metrics *metrics, const char *labels)
{
    char text[LABELS_SIZE];
    snprintf(text, sizeof(text), "role=\"decode\",%s", labels);
    bt_gauge_set(
        bt_metrics_gauge(metrics->registry, "baton_engine_info", text, "What computes here."), 1);
}

static void counter_raise(struct bt_counter *counter, uint64_t value)
{
    bt_counter_add(counter, value - bt_counter_value(counter));
}

void dc_metrics_group(struct dc_metrics *metrics, const struct dc_group_counts *counts)
{
    bt_gauge_set(metrics->rows, counts->rows);
    bt_gauge_set(metrics->largest, counts->largest);
    counter_raise(metrics->agreements, counts->agreements);
    counter_raise(metrics->heartbeats, counts->heartbeats);
    counter_raise(metrics->woken, counts->woken);
    counter_raise(metrics->waking, counts->waking);
}

void dc_metrics_finish(struct dc_metrics *metrics)
{
    bt_metrics_destroy(metrics->registry);
}
