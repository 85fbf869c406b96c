#include "prefill-node/worker.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/random.h"
#include "common/messaging/registration.h"
#include "kvtransfer/preflight.h"
#include "prefill-node/run.h"

#define READY_CHECK_NS  (20 * BT_NS_PER_MS)
#define MAX_DRAIN_CALLS 16

struct pf_worker {
    struct bt_loop *loop;
    const struct bt_model *model;
    struct pf_worker_options options;
    struct bt_kv_layout layout;
    uint64_t incarnation;
    struct bt_process_id process;
    struct bt_fingerprint fingerprint;

    struct pf_metrics metrics;
    struct kvt_source *source;
    struct bt_page_pool *pages;
    struct pf_engine *engine;
    struct pf_compute *compute;
    struct pf_peers *peers;
    struct pf_runs *runs;
    struct bt_rpc_server *server;

    Baton__V1__RegisterRequest identity;
    Baton__V1__LayoutFingerprint identity_fingerprint;
    Baton__V1__ProcessId identity_process;
    struct bt_registration *registration;
    bool registered, ready, refused, draining;
    struct bt_loop_source *ready_timer;

    struct bt_rpc_call *drains[MAX_DRAIN_CALLS];
    uint32_t drain_count;
};

/* ------------------------------------------------------------------ state for others */

static void worker_load(void *context, Baton__V1__RankLoad *ret_load, bool *ret_draining)
{
    const struct pf_worker *worker = context;
    const struct bt_page_pool *pages = worker->pages;
    struct pf_runs_view view;
    pf_runs_look(worker->runs, &view);
    ret_load->pages_total = bt_page_pool_total(pages);
    ret_load->pages_free = bt_page_pool_count(pages, BT_PAGE_FREE);
    ret_load->pages_reserved =
        bt_page_pool_count(pages, BT_PAGE_RESERVED) + bt_page_pool_count(pages, BT_PAGE_LANDING);
    ret_load->pages_ready = bt_page_pool_count(pages, BT_PAGE_READY);
    ret_load->pages_quarantined = bt_page_pool_count(pages, BT_PAGE_QUARANTINED);
    ret_load->running = view.running;
    ret_load->waiting = view.waiting;
    ret_load->waiting_tokens = view.waiting_tokens;
    ret_load->max_running = worker->options.max_queued;
    *ret_draining = worker->draining;
}

static void worker_update_gauges(struct pf_worker *worker)
{
    Baton__V1__RankLoad load = BATON__V1__RANK_LOAD__INIT;
    bool draining;
    worker_load(worker, &load, &draining);
    bt_gauge_set(worker->metrics.running, load.running);
    bt_gauge_set(worker->metrics.waiting, load.waiting);
    bt_gauge_set(worker->metrics.kv_usage, 1 - (double)load.pages_free / load.pages_total);
    bt_gauge_set(worker->metrics.unacknowledged, pf_peers_unacknowledged(worker->peers));
}

/* ------------------------------------------------------------------ ready */

static void worker_write_ready_file(struct pf_worker *worker)
{
    struct bt_error error;
    if (worker->options.ready_file &&
        bt_ready_file_write(worker->options.ready_file, worker->options.worker_id,
                            pf_worker_endpoint(worker), &error) != BT_OK) {
        bt_log_error(0, "%s", error.text);
    }
}

/* Ready when a router knows us and every link to a decode rank is up, so that the first request
 * does not pay for connecting. */
static void worker_check_ready(void *context)
{
    struct pf_worker *worker = context;
    if (worker->ready || !worker->registered) {
        return;
    }
    if (!pf_peers_warm(worker->peers)) {
        bt_loop_timer_set(worker->ready_timer, bt_clock_now_ns() + READY_CHECK_NS);
        return;
    }
    worker->ready = true;
    bt_log_info(0, "ready at %s", pf_worker_endpoint(worker));
    worker_write_ready_file(worker);
}

static void on_registered(void *context)
{
    struct pf_worker *worker = context;
    worker->registered = true;
    worker_check_ready(worker);
}

static void on_decode_ranks(void *context, Baton__V1__KvEndpoint *const *ranks, size_t rank_count)
{
    struct pf_worker *worker = context;
    for (size_t i = 0; i < rank_count; i++) {
        struct bt_error error;
        struct pf_peer *peer;
        if (pf_peers_get(worker->peers, ranks[i], &error, &peer) != BT_OK) {
            bt_log_warn(0, "decode rank from the router: %s", error.text);
        }
    }
}

static void on_refused(void *context, enum bt_status status, const char *text)
{
    struct pf_worker *worker = context;
    bt_log_error(0, "%s (%s)", text, bt_status_name(status));
    worker->refused = true;
    bt_loop_stop(worker->loop);
}

/* ------------------------------------------------------------------ calls */

static void handle_run(void *context, struct bt_rpc_call *call, const ProtobufCMessage *request)
{
    struct pf_worker *worker = context;
    if (worker->draining) {
        bt_rpc_call_end(call, BT_ERR_UNAVAILABLE, "this worker is draining", NULL);
        return;
    }
    pf_runs_accept(worker->runs, call, (const Baton__V1__PrefillRequest *)request);
}

static void handle_metrics(void *context, struct bt_rpc_call *call, const ProtobufCMessage *request)
{
    struct pf_worker *worker = context;
    (void)request;
    worker_update_gauges(worker);
    size_t size;
    pf_metrics_transfer(&worker->metrics, worker->source);
    pf_metrics_rails(&worker->metrics, worker->source);
    char *text = bt_metrics_render(worker->metrics.registry, &size);
    if (!text) {
        bt_rpc_call_end(call, BT_ERR_NO_MEMORY, "metrics: no memory", NULL);
        return;
    }
    Baton__V1__MetricsResponse response = BATON__V1__METRICS_RESPONSE__INIT;
    response.text = text;
    bt_rpc_call_end(call, BT_OK, NULL, &response.base);
    free(text);
}

static void drain_check(void *context)
{
    struct pf_worker *worker = context;
    if (worker->drain_count == 0 || pf_runs_count(worker->runs) > 0 ||
        pf_peers_unacknowledged(worker->peers) > 0) {
        return;
    }
    Baton__V1__DrainResponse response = BATON__V1__DRAIN_RESPONSE__INIT;
    while (worker->drain_count > 0) {
        struct bt_rpc_call *call = worker->drains[--worker->drain_count];
        bt_rpc_call_on_cancel(call, NULL, NULL);
        bt_rpc_call_end(call, BT_OK, NULL, &response.base);
    }
}

static void on_drain_cancel(void *context, struct bt_rpc_call *call)
{
    struct pf_worker *worker = context;
    for (uint32_t i = 0; i < worker->drain_count; i++) {
        if (worker->drains[i] == call) {
            worker->drains[i] = worker->drains[--worker->drain_count];
            break;
        }
    }
    bt_rpc_call_end(call, BT_ERR_CANCELLED, "nobody waits for the drain; it goes on", NULL);
}

static void handle_drain(void *context, struct bt_rpc_call *call, const ProtobufCMessage *request)
{
    struct pf_worker *worker = context;
    (void)request;
    if (worker->drain_count == MAX_DRAIN_CALLS) {
        bt_rpc_call_end(call, BT_ERR_EXHAUSTED, "too many wait for the drain already", NULL);
        return;
    }
    if (!worker->draining) {
        bt_log_info(0, "draining");
        worker->draining = true;
        if (worker->registration) {
            bt_registration_hurry(worker->registration);
        }
    }
    worker->drains[worker->drain_count++] = call;
    bt_rpc_call_on_cancel(call, on_drain_cancel, worker);
    drain_check(worker);
}

static void handle_preflight(void *context, struct bt_rpc_call *call,
                             const ProtobufCMessage *request)
{
    const struct pf_worker *worker = context;
    const struct kvt_preflight_options options = {
        .identity = &worker->identity,
        .bind_host = worker->options.transport_host,
        .device = worker->options.transport_devices,
        .brief = ((const Baton__V1__PreflightRequest *)request)->brief,
    };
    Baton__V1__PreflightResponse *response = kvt_preflight_create(&options);
    if (response) {
        bt_rpc_call_end(call, BT_OK, NULL, &response->base);
    } else {
        bt_rpc_call_end(call, BT_ERR_NO_MEMORY, "preflight: no memory", NULL);
    }
    kvt_preflight_destroy(response);
}

static const struct bt_rpc_method methods[] = {
    {"baton.v1.Prefill/Run", &baton__v1__prefill_request__descriptor, handle_run},
    {"baton.v1.Worker/Metrics", &baton__v1__metrics_request__descriptor, handle_metrics},
    {"baton.v1.Worker/Drain", &baton__v1__drain_request__descriptor, handle_drain},
    {"baton.v1.Worker/Preflight", &baton__v1__preflight_request__descriptor, handle_preflight},
    {NULL, NULL, NULL},
};

/* ------------------------------------------------------------------ putting it together */

static enum bt_status create_engine(struct pf_worker *worker, struct bt_error *error)
{
    const struct pf_worker_options *options = &worker->options;
    const struct kvt_source_options source = {
        .transport = options->transport,
        .bind_host = options->transport_host,
        .forbid_fallback = options->forbid_fallback,
        .device = options->transport_devices,
        .layout = worker->layout,
        .pool_pages = options->kv_pages,
        .incarnation = worker->incarnation,
        .checksum = options->checksum,
        .max_pushes = options->max_queued,
    };
    enum bt_status status = kvt_source_create(&source, error, &worker->source);
    if (status != BT_OK) {
        return status;
    }
    worker->pages = bt_page_pool_create(options->kv_pages);
    if (!worker->pages) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "page pool: no memory");
    }
    const struct pf_engine_options engine = {
        .model = worker->model,
        .layout = worker->layout,
        .kv_pool = kvt_source_pool(worker->source),
        .pool_pages = options->kv_pages,
        .limits = {options->chunked_prefill_size, options->max_num_seqs, PF_AGEING_TOKENS_PER_S},
        .max_jobs = options->max_queued,
    };
    status = pf_engine_create(&engine, error, &worker->engine);
    return status == BT_OK
               ? pf_compute_create(worker->engine, options->max_queued, error, &worker->compute)
               : status;
}

static enum bt_status create_runs(struct pf_worker *worker, struct bt_error *error)
{
    const struct pf_worker_options *options = &worker->options;
    const struct pf_peers_options peers = {
        .loop = worker->loop,
        .source = worker->source,
        .worker_id = options->worker_id,
        .incarnation = worker->incarnation,
        .process = worker->process,
        .fingerprint = worker->fingerprint,
        .changed = drain_check,
        .context = worker,
    };
    worker->peers = pf_peers_create(&peers);
    if (!worker->peers) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "decode ranks: no memory");
    }
    const struct pf_runs_options runs = {
        .loop = worker->loop,
        .source = worker->source,
        .compute = worker->compute,
        .peers = worker->peers,
        .pages = worker->pages,
        .metrics = &worker->metrics,
        .limits = {worker->model->config.vocab_size, options->max_model_len},
        .checksum = options->checksum,
        .layerwise_threshold = options->layerwise_threshold,
        .max_runs = options->max_queued,
        .changed = drain_check,
        .context = worker,
    };
    return pf_runs_create(&runs, error, &worker->runs);
}

static enum bt_status create_registration(struct pf_worker *worker, struct bt_error *error)
{
    bt_fingerprint_to_message(&worker->fingerprint, &worker->identity_fingerprint);
    baton__v1__process_id__init(&worker->identity_process);
    worker->identity_process.host = worker->process.host;
    worker->identity_process.pid = worker->process.pid;
    worker->identity_process.start_ticks = worker->process.start_ticks;
    baton__v1__register_request__init(&worker->identity);
    worker->identity.worker_id = (char *)worker->options.worker_id;
    worker->identity.incarnation = worker->incarnation;
    worker->identity.role = BATON__V1__WORKER_ROLE__ROLE_PREFILL;
    worker->identity.control_endpoint = (char *)pf_worker_endpoint(worker);
    worker->identity.fingerprint = &worker->identity_fingerprint;
    worker->identity.process = &worker->identity_process;
    worker->identity.max_model_len = worker->options.max_model_len;
    worker->identity.transport = (char *)kvt_source_offers(worker->source);
    const struct bt_registration_events events = {
        .load = worker_load,
        .decode_ranks = on_decode_ranks,
        .registered = on_registered,
        .refused = on_refused,
        .context = worker,
    };
    worker->ready_timer = bt_loop_add_timer(worker->loop, BT_NEVER_NS, worker_check_ready, worker);
    if (!worker->ready_timer) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "timer: no memory");
    }
    return worker->options.routers
               ? bt_registration_create(worker->loop, worker->options.routers, &worker->identity,
                                        &events, error, &worker->registration)
               : BT_OK;
}

/* A prompt has to fit the model and the pool. */
static uint32_t effective_model_len(const struct pf_worker_options *options,
                                    const struct bt_model *model)
{
    uint64_t length = model->config.max_position_embeddings;
    uint64_t pool_tokens = (uint64_t)options->kv_pages * BT_PAGE_TOKENS;
    length =
        options->max_model_len && options->max_model_len < length ? options->max_model_len : length;
    return (uint32_t)(pool_tokens < length ? pool_tokens : length);
}

enum bt_status pf_worker_create(struct bt_loop *loop, const struct bt_model *model,
                                const struct pf_worker_options *options, struct bt_error *error,
                                struct pf_worker **ret_worker)
{
    struct pf_worker *worker = calloc(1, sizeof(*worker));
    if (!worker) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "worker: no memory");
    }
    worker->loop = loop;
    worker->model = model;
    worker->options = *options;
    worker->options.max_model_len = effective_model_len(options, model);
    worker->layout = bt_model_kv_layout(model, options->kv_dtype);
    worker->incarnation = bt_random_entropy();
    bt_model_fingerprint(model, options->served_model_name, options->kv_dtype,
                         &worker->fingerprint);
    enum bt_status status = bt_process_self(error, &worker->process);
    if (status == BT_OK) {
        status = pf_metrics_init(&worker->metrics, options->served_model_name, options->kv_pages,
                                 bt_dtype_name(options->kv_dtype), error);
    }
    if (status == BT_OK && options->engine_labels) {
        pf_metrics_engine(&worker->metrics, options->engine_labels);
    }
    if (status == BT_OK) {
        status = create_engine(worker, error);
    }
    if (status == BT_OK) {
        status = create_runs(worker, error);
    }
    if (status == BT_OK) {
        status =
            bt_rpc_server_create(loop, options->listen, methods, worker, error, &worker->server);
    }
    if (status == BT_OK) {
        status = create_registration(worker, error);
    }
    if (status != BT_OK) {
        pf_worker_destroy(worker);
        return status;
    }
    *ret_worker = worker;
    return BT_OK;
}

void pf_worker_destroy(struct pf_worker *worker)
{
    if (!worker) {
        return;
    }
    bt_registration_destroy(worker->registration);
    bt_loop_remove(worker->ready_timer);
    bt_rpc_server_destroy(worker->server);
    pf_runs_destroy(worker->runs);
    pf_compute_destroy(worker->compute);
    pf_peers_destroy(worker->peers);
    pf_engine_destroy(worker->engine);
    bt_page_pool_destroy(worker->pages);
    kvt_source_destroy(worker->source);
    pf_metrics_finish(&worker->metrics);
    free(worker);
}

const char *pf_worker_endpoint(const struct pf_worker *worker)
{
    return bt_rpc_server_endpoint(worker->server);
}

void pf_worker_stop(struct pf_worker *worker)
{
    worker->draining = true;
    if (worker->registration) {
        bt_registration_deregister(worker->registration);
    }
    pf_runs_fail_all(worker->runs, BT_ERR_UNAVAILABLE, "the prefill worker is stopping");
}

bool pf_worker_idle(const struct pf_worker *worker)
{
    return pf_runs_count(worker->runs) == 0;
}

bool pf_worker_quiet(const struct pf_worker *worker)
{
    return pf_worker_idle(worker) && pf_peers_unacknowledged(worker->peers) == 0 &&
           (!worker->registration || bt_registration_gone(worker->registration));
}

bool pf_worker_refused(const struct pf_worker *worker)
{
    return worker->refused;
}

uint32_t pf_worker_free_pages(const struct pf_worker *worker)
{
    return bt_page_pool_count(worker->pages, BT_PAGE_FREE);
}
