#include "router/rank_metrics.h"

#include <inttypes.h>
#include <math.h>

#include "common/base/clock.h"
#include "router/service_state.h"

#define RATE_WINDOW_NS (10 * BT_NS_PER_S)

/* ---- transfer */

void rt_rank_metrics_pushed(struct rt_worker_link *link, uint64_t bytes, int64_t now_ns)
{
    struct rt_pushed *pushed = &link->pushed;
    if (now_ns - pushed->window_ns >= RATE_WINDOW_NS) {
        bool next = now_ns - pushed->window_ns < 2 * RATE_WINDOW_NS;
        pushed->before_bytes = next ? pushed->window_bytes : 0;
        pushed->window_bytes = 0;
        pushed->window_ns = now_ns;
    }
    pushed->window_bytes += bytes;
    pushed->bytes += bytes;
}

/* Bytes a second over the last window, and what there is of this one. */
static double push_rate(const struct rt_pushed *pushed, int64_t now_ns)
{
    int64_t age_ns = now_ns - pushed->window_ns;
    if (pushed->window_ns == 0 || age_ns >= 2 * RATE_WINDOW_NS) {
        return 0;
    }
    double bytes = (double)pushed->window_bytes;
    if (age_ns < RATE_WINDOW_NS) {
        bytes += (double)pushed->before_bytes;
        age_ns += pushed->before_bytes > 0 ? RATE_WINDOW_NS : 0;
    }
    return bytes * 1e9 / (double)(age_ns > BT_NS_PER_S ? age_ns : BT_NS_PER_S);
}

/* ---- one line a rank */

struct rank {
    struct rt_worker_view view;
    const struct rt_worker_link *link; /* NULL: there is none any more */
    int64_t now_ns;
};

struct family {
    const char *name, *type, *help;
    const char *more; /* labels; "": none */
    int role;         /* enum rt_role; -1: both */
    double (*value)(const struct rank *rank);
};

static double share(uint64_t part, uint32_t all)
{
    return all > 0 ? (double)part / all : 0;
}

static uint32_t used_pages(const struct rt_load *load)
{
    return load->pages_total - load->pages_free;
}

static double is_up(const struct rank *rank)
{
    return rank->view.state == RT_WORKER_READY;
}

static double utilisation(const struct rank *rank)
{
    const struct rt_load *load = &rank->view.info->load;
    return share(used_pages(load), load->pages_total);
}

static double projected(const struct rank *rank)
{
    return share(rank->view.projected_pages, rank->view.info->load.pages_total);
}

static double pages_free(const struct rank *rank)
{
    return rank->view.info->load.pages_free;
}

static double pages_reserved(const struct rank *rank)
{
    return rank->view.info->load.pages_reserved;
}

static double pages_ready(const struct rank *rank)
{
    return rank->view.info->load.pages_ready;
}

static double pages_quarantined(const struct rank *rank)
{
    return rank->view.info->load.pages_quarantined;
}

static double running(const struct rank *rank)
{
    return rank->view.info->load.running;
}

static double waiting(const struct rank *rank)
{
    return rank->view.info->load.waiting;
}

static double waiting_tokens(const struct rank *rank)
{
    return (double)rank->view.info->load.waiting_tokens;
}

static double kv_tokens(const struct rank *rank)
{
    return (double)rank->view.info->load.kv_tokens;
}

static double ahead_seconds(const struct rank *rank)
{
    return (double)rank->view.ahead_ns / 1e9;
}

static double pushed_bytes(const struct rank *rank)
{
    return rank->link ? (double)rank->link->pushed.bytes : 0;
}

static double pushed_rate(const struct rank *rank)
{
    return rank->link ? push_rate(&rank->link->pushed, rank->now_ns) / 1e9 : 0;
}

/* Lines of one name stand together. */
static const struct family families[] = {
    {"baton_worker_up", "gauge", "1: ready.", "", -1, is_up},
    {"baton_rank_kv_utilisation", "gauge", "Pages in use; 1 is all.", "", -1, utilisation},
    {"baton_rank_kv_projected", "gauge",
     "Pages in use, promised or expected of what runs; 1 is all.", "", RT_ROLE_DECODE, projected},
    {"baton_rank_pages", "gauge", "KV pages by state.", ",state=\"free\"", -1, pages_free},
    {"baton_rank_pages", NULL, NULL, ",state=\"reserved\"", -1, pages_reserved},
    {"baton_rank_pages", NULL, NULL, ",state=\"ready\"", -1, pages_ready},
    {"baton_rank_pages", NULL, NULL, ",state=\"quarantined\"", -1, pages_quarantined},
    {"baton_rank_running", "gauge", "Requests that are computed.", "", -1, running},
    {"baton_rank_waiting", "gauge", "Requests that wait there.", "", -1, waiting},
    {"baton_rank_waiting_tokens", "gauge", "Prompt tokens not computed yet.", "", RT_ROLE_PREFILL,
     waiting_tokens},
    {"baton_rank_kv_tokens", "gauge", "Sum of the KV lengths of what runs.", "", RT_ROLE_DECODE,
     kv_tokens},
    {"baton_rank_ahead_seconds", "gauge", "Predicted time until it can begin a new prompt.", "",
     RT_ROLE_PREFILL, ahead_seconds},
    {"baton_rank_kv_pushed_bytes_total", "counter", "KV cache that it wrote into decode ranks.", "",
     RT_ROLE_PREFILL, pushed_bytes},
    {"baton_rank_transfer_gigabytes_per_second", "gauge",
     "The same as a rate, over 10 to 20 seconds.", "", RT_ROLE_PREFILL, pushed_rate},
};

/* Ids were checked at registration and need no escapes. */
static void render_family(const struct rt_service *service, const struct family *family, FILE *out)
{
    struct rank rank = {.now_ns = bt_clock_now_ns()};
    size_t cursor = 0, count = 0;
    rt_worker_ref ref;
    if (family->type) {
        fprintf(out, "# HELP %s %s\n# TYPE %s %s\n", family->name, family->help, family->name,
                family->type);
    }
    while (count++ < RT_RANK_METRICS_MAX && rt_core_next_worker(service->core, &cursor, &ref)) {
        rt_core_worker(service->core, ref, &rank.view);
        enum rt_role role = rank.view.info->role;
        if (family->role != -1 && family->role != (int)role) {
            continue;
        }
        rank.link = role == RT_ROLE_PREFILL ? rt_service_link(service, ref) : NULL;
        fprintf(out, "%s{worker=\"%s\",role=\"%s\"%s} %.15g\n", family->name, rank.view.info->id,
                rt_role_names[role], family->more, family->value(&rank));
    }
}

/* ---- all ranks together */

struct sums {
    uint32_t ranks, kv_ranks; /* that are not lost; of them decode ranks with pages */
    uint64_t pages;           /* of these */
    double sum, squares, largest;
};

static void sum_up(const struct rt_service *service, struct sums *sums)
{
    size_t cursor = 0;
    rt_worker_ref ref;
    struct rank rank = {0};
    while (rt_core_next_worker(service->core, &cursor, &ref)) {
        rt_core_worker(service->core, ref, &rank.view);
        const struct rt_worker_info *info = rank.view.info;
        if (rank.view.state == RT_WORKER_LOST) {
            continue;
        }
        sums->ranks++;
        if (info->role != RT_ROLE_DECODE || info->load.pages_total == 0) {
            continue;
        }
        double used = utilisation(&rank);
        sums->kv_ranks++;
        sums->pages += info->load.pages_total;
        sums->sum += used;
        sums->squares += used * used;
        sums->largest = used > sums->largest ? used : sums->largest;
    }
}

static void render_gauge(FILE *out, const char *name, const char *labels, double value,
                         const char *help)
{
    fprintf(out, "# HELP %s %s\n# TYPE %s gauge\n%s{%s} %.10g\n", name, help, name, name, labels,
            value);
}

static void render_sums(const struct sums *sums, const char *labels, FILE *out)
{
    double mean = sums->kv_ranks > 0 ? sums->sum / sums->kv_ranks : 0;
    double variance = sums->kv_ranks > 0 ? sums->squares / sums->kv_ranks - mean * mean : 0;
    render_gauge(out, "baton_ranks", labels, sums->ranks, "Ranks that are not lost.");
    render_gauge(out, "baton_ranks_untold", labels,
                 sums->ranks > RT_RANK_METRICS_MAX ? sums->ranks - RT_RANK_METRICS_MAX : 0,
                 "Ranks that are too many to have lines of their own.");
    render_gauge(out, "baton_decode_kv_imbalance_ratio", labels,
                 mean > 0 ? sums->largest / mean : 1,
                 "KV utilisation of the fullest decode rank by the mean of all; 1 is even.");
    render_gauge(out, "baton_decode_kv_utilisation_stddev", labels,
                 variance > 0 ? sqrt(variance) : 0,
                 "Standard deviation of the KV utilisation of decode ranks.");
}

/* As vLLM describes its cache: here of all decode ranks together. */
static void render_config(const struct rt_service *service, const struct sums *sums,
                          const char *labels, FILE *out)
{
    static const char name[] = "vllm:cache_config_info";
    if (!service->has_fingerprint) {
        return;
    }
    Baton__V1__LayoutFingerprint message;
    bt_fingerprint_to_message(&service->fingerprint, &message);
    fprintf(out,
            "# HELP %s The KV cache: tokens of a page, pages of all decode ranks, element type.\n"
            "# TYPE %s gauge\n"
            "%s{%s,block_size=\"%" PRIu32 "\",num_gpu_blocks=\"%" PRIu64
            "\",cache_dtype=\"%s\"} 1\n",
            name, name, name, labels, message.page_tokens, sums->pages, message.kv_dtype);
}

void rt_rank_metrics_render(const struct rt_service *service, const char *labels, FILE *out)
{
    struct sums sums = {0};
    sum_up(service, &sums);
    render_config(service, &sums, labels, out);
    render_sums(&sums, labels, out);
    for (size_t i = 0; i < sizeof families / sizeof families[0]; i++) {
        render_family(service, &families[i], out);
    }
}
