#include "router/service.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/random.h"
#include "router/rpc_front.h"
#include "router/service_admit.h"
#include "router/service_state.h"

/* ---- life */

static void on_round_end(void *context)
{
    rt_service_pump(context);
}

static void on_timer(void *context)
{
    (void)context; /* the end of this round does the work */
}

static size_t count_methods(const struct bt_rpc_method *methods)
{
    size_t count = 0;
    while (methods[count].name) {
        count++;
    }
    return count;
}

/* Registry and Router are one server on one endpoint. */
static struct bt_rpc_method *join_methods(void)
{
    const struct bt_rpc_method *const tables[] = {rt_registry_methods, rt_rpc_front_methods,
                                                  rt_events_methods};
    enum { TABLES = sizeof tables / sizeof *tables };
    size_t counts[TABLES], count = 0;
    for (size_t i = 0; i < TABLES; i++) {
        counts[i] = count_methods(tables[i]);
        count += counts[i];
    }
    struct bt_rpc_method *methods = calloc(count + 1, sizeof *methods);
    for (size_t i = 0, at = 0; methods && i < TABLES; at += counts[i++]) {
        memcpy(methods + at, tables[i], counts[i] * sizeof *methods);
    }
    return methods;
}

static char *model_name(const struct rt_service_options *options)
{
    if (options->served_model_name) {
        return strdup(options->served_model_name);
    }
    char *path = realpath(options->model_dir, NULL);
    const char *slash = path ? strrchr(path, '/') : NULL;
    char *name = strdup(slash && slash[1] ? slash + 1 : options->model_dir);
    free(path);
    return name;
}

static enum bt_status load_model(struct rt_service *service,
                                 const struct rt_service_options *options, struct bt_error *error)
{
    enum bt_status status = rt_checkpoint_read(options->model_dir, error, &service->checkpoint);
    if (status != BT_OK) {
        return status;
    }
    status = bt_tokenizer_load(options->model_dir, error, &service->tokenizer);
    if (status != BT_OK) {
        return status;
    }
    if (options->tokenizer_cache_bytes > 0) {
        status =
            bt_tokenizer_cache_enable(service->tokenizer, options->tokenizer_cache_bytes, error);
    }
    if (status != BT_OK) {
        return status;
    }
    return bt_chat_form_load(options->model_dir, service->tokenizer, error, &service->chat_form);
}

static enum bt_status start_tokenization(struct rt_service *service,
                                         const struct rt_service_options *options,
                                         struct bt_error *error)
{
    const struct rt_tokenization_options tokenization = {
        .pool = {.tokenizer = service->tokenizer,
                 .chat_form = service->chat_form,
                 .thread_count = options->tokenizer_threads,
                 .max_jobs = options->tokenizer_max_jobs,
                 .max_bytes = options->tokenizer_max_bytes},
        .seconds = service->metrics.tokenize,
    };
    return rt_tokenization_create(service->loop, &tokenization, error, &service->tokenization);
}

static enum bt_status start_parts(struct rt_service *service,
                                  const struct rt_service_options *options, struct bt_error *error)
{
    service->model_name = model_name(options);
    struct rt_core_options core = options->core;
    core.on_change = rt_service_on_change;
    core.change_context = service;
    service->core = rt_core_create(&core);
    service->events = rt_events_create(service->loop);
    service->max_model_len = calloc(1, sizeof *service->max_model_len);
    service->prefixes = rt_worker_prefixes_create(options->prefix_blocks);
    service->orphans = rt_orphans_create();
    service->methods = join_methods();
    service->timer = bt_loop_add_timer(service->loop, BT_NEVER_NS, on_timer, service);
    service->scrape = rt_scrape_create(service);
    service->traces = rt_trace_store_create(options->trace_keep);
    if (!service->scrape || !service->traces || !service->model_name || !service->core ||
        !service->prefixes || !service->max_model_len || !service->orphans || !service->methods ||
        !service->events || !service->timer) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for the router");
    }
    rt_service_metrics_init(&service->metrics, service->registry, service->model_name);
    service->monitor = service->metrics.monitor = rt_monitor_create(service);
    if (!service->monitor) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for the router");
    }
    enum bt_status status = rt_service_admit_start(service, error);
    if (status == BT_OK) {
        rt_access_on_reload(service->access, rt_service_on_reload, service);
        status = start_tokenization(service, options, error);
    }
    if (status != BT_OK) {
        return status;
    }
    return bt_rpc_server_create(service->loop, options->worker_endpoint, service->methods, service,
                                error, &service->server);
}

enum bt_status rt_service_create(struct bt_loop *loop, const struct rt_service_options *options,
                                 struct bt_metrics *metrics, struct bt_error *error,
                                 struct rt_service **ret_service)
{
    struct rt_service *service = calloc(1, sizeof *service);
    if (!service) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for the router");
    }
    service->loop = loop;
    service->options = *options;
    service->registry = metrics;
    service->incarnation = bt_random_entropy();
    service->started_ns = bt_clock_now_ns();
    service->started_unix = bt_clock_unix_ns() / BT_NS_PER_S;
    bt_map_init(&service->streams);
    rt_worker_links_init(&service->links);
    enum bt_status status = load_model(service, options, error);
    if (status == BT_OK) {
        status = start_parts(service, options, error);
    }
    if (status != BT_OK) {
        rt_service_destroy(service);
        return status;
    }
    service->options.model_dir = NULL;
    service->options.access.keys_file = service->options.access.key = NULL;
    service->options.served_model_name = NULL;
    service->options.worker_endpoint = NULL;
    bt_loop_set_after(loop, on_round_end, service);
    rt_events_add(service->events, "router-started", "", "serves %s", service->model_name);
    *ret_service = service;
    return BT_OK;
}

/* Its client was told, and may come back with its id, to another router: the rank goes on with it
 * when this one is gone. */
static bool stays_at_rank(const struct rt_service *service, const struct rt_stream *stream)
{
    struct rt_request_view view;
    return stream->named && rt_stream_resumable(stream) && !stream->abandoned &&
           rt_core_request(service->core, stream->id, &view) && view.state == RT_DECODING;
}

static void stop_stream(struct rt_service *service, struct rt_stream *stream, int64_t now_ns)
{
    static const char why[] = "the router is stopping";
    if (stream->successor) {
        rt_stream_end(stream->successor, RT_FINISH_ERROR, BT_ERR_UNAVAILABLE, why, now_ns,
                      &service->metrics);
        rt_stream_destroy(stream->successor);
        stream->successor = NULL;
    }
    if (stream->ended) {
        return;
    }
    bool stays = stays_at_rank(service, stream);
    rt_stream_end(stream, RT_FINISH_ERROR, BT_ERR_UNAVAILABLE, why, now_ns, &service->metrics);
    stream->abandoned = true;
    if (!stays) {
        rt_core_finish(service->core, stream->id, RT_FINISH_CANCELLED, now_ns);
    }
}

void rt_service_stop(struct rt_service *service)
{
    rt_service_drain(service);
    rt_tokenization_stop(service->tokenization);
    size_t cursor = 0;
    uint64_t id;
    void *value;
    int64_t now_ns = bt_clock_now_ns();
    /* Sinks add nothing any more, and streams go away only with their END. */
    while (bt_map_next(&service->streams, &cursor, &id, &value)) {
        stop_stream(service, value, now_ns);
    }
    bt_loop_timer_set(service->timer, now_ns);
}

static void free_streams(struct rt_service *service)
{
    size_t cursor = 0;
    uint64_t id;
    void *stream;
    while (bt_map_next(&service->streams, &cursor, &id, &stream)) {
        rt_stream_destroy(stream);
    }
    bt_map_finish(&service->streams);
}

void rt_service_destroy(struct rt_service *service)
{
    if (!service) {
        return;
    }
    bt_loop_set_after(service->loop, NULL, NULL);
    if (service->server) {
        rt_service_stop(service);
    }
    service->closing = true;
    bt_rpc_server_destroy(service->server);
    rt_worker_links_finish(&service->links); /* the ranks drop what nobody may come back for */
    rt_monitor_destroy(service->monitor);
    service->metrics.monitor = NULL;
    rt_access_destroy(service->access);
    rt_core_destroy(service->core);
    rt_worker_prefixes_destroy(service->prefixes);
    rt_events_destroy(service->events);
    rt_trace_store_destroy(service->traces);
    rt_scrape_destroy(service->scrape);
    rt_orphans_destroy(service->orphans);
    free_streams(service);
    bt_loop_remove(service->timer);
    rt_output_buffer_finish(&service->output);
    rt_tokenization_destroy(service->tokenization);
    bt_chat_form_destroy(service->chat_form);
    bt_tokenizer_destroy(service->tokenizer);
    free(service->methods);
    free(service->max_model_len);
    free(service->model_name);
    free(service);
}

/* ---- looking in */

const struct bt_tokenizer *rt_service_tokenizer(const struct rt_service *service)
{
    return service->tokenizer;
}

struct rt_tokenization *rt_service_tokenization(struct rt_service *service)
{
    return service->tokenization;
}

const char *rt_service_model_name(const struct rt_service *service)
{
    return service->model_name;
}

static uint32_t smaller(uint32_t a, uint64_t b)
{
    return b < a ? (uint32_t)b : a;
}

/* The checkpoint's, cut by the option, by every live worker's own limit, and by the largest pool of
 * a decode rank: a context that fits nowhere is none. */
static uint32_t count_model_len(const struct rt_service *service)
{
    uint32_t length = service->checkpoint.max_position_embeddings;
    if (service->options.max_model_len > 0) {
        length = smaller(length, service->options.max_model_len);
    }
    uint64_t largest_pool = 0;
    size_t cursor = 0;
    rt_worker_ref ref;
    struct rt_worker_view view;
    while (rt_core_next_worker(service->core, &cursor, &ref)) {
        rt_core_worker(service->core, ref, &view);
        if (view.state == RT_WORKER_LOST) {
            continue;
        }
        length = smaller(length, view.info->max_model_len);
        if (view.info->load.pages_total > largest_pool && view.info->role == RT_ROLE_DECODE) {
            largest_pool = view.info->load.pages_total;
        }
    }
    return largest_pool > 0 ? smaller(length, largest_pool * BT_PAGE_TOKENS) : length;
}

uint32_t rt_service_max_model_len(const struct rt_service *service)
{
    struct rt_model_len *known = service->max_model_len;
    uint64_t liveness = rt_core_liveness(service->core);
    if (known->length == 0 || known->liveness != liveness) {
        *known = (struct rt_model_len){.length = count_model_len(service), .liveness = liveness};
    }
    return known->length;
}

uint64_t rt_service_model_hash(const struct rt_service *service)
{
    return service->has_fingerprint ? service->fingerprint.model_hash : 0;
}

int64_t rt_service_started_unix(const struct rt_service *service)
{
    return service->started_unix;
}

bool rt_service_ready(const struct rt_service *service, const char **ret_why)
{
    enum rt_local_prefill mode = service->options.core.local_prefill;
    bool ready[2] = {false, false}, local = false;
    size_t cursor = 0;
    rt_worker_ref ref;
    struct rt_worker_view view;
    while (rt_core_next_worker(service->core, &cursor, &ref)) {
        rt_core_worker(service->core, ref, &view);
        ready[view.info->role] |= view.state == RT_WORKER_READY;
        local |= view.state == RT_WORKER_READY && view.info->local_prefill_tokens > 0;
    }
    if (mode != RT_LOCAL_PREFILL_NEVER) {
        ready[RT_ROLE_PREFILL] =
            local || (ready[RT_ROLE_PREFILL] && mode != RT_LOCAL_PREFILL_ALWAYS);
    }
    const char *why = NULL;
    if (service->draining) {
        why = "draining";
    } else if (!ready[RT_ROLE_PREFILL]) {
        why = "no prefill worker is ready";
    } else if (!ready[RT_ROLE_DECODE]) {
        why = "no decode worker is ready";
    }
    if (why && ret_why) {
        *ret_why = why;
    }
    return why == NULL;
}

void rt_service_drain(struct rt_service *service)
{
    if (service->draining) {
        return;
    }
    service->draining = true;
    service->draining_since_ns = bt_clock_now_ns();
    rt_events_add(service->events, "router-draining", "", "takes nothing new, ends what runs");
    rt_tokenization_close(service->tokenization);
}

bool rt_service_draining(const struct rt_service *service)
{
    return service->draining;
}

bool rt_service_drained(const struct rt_service *service)
{
    bool idle = service->streams.size == 0 && rt_tokenization_open(service->tokenization) == 0;
    return idle || !rt_service_has_live_worker(service);
}

void rt_service_set_http_endpoint(struct rt_service *service, const char *endpoint)
{
    snprintf(service->http_endpoint, sizeof service->http_endpoint, "%s", endpoint);
}

const char *rt_service_rpc_endpoint(const struct rt_service *service)
{
    return bt_rpc_server_endpoint(service->server);
}
