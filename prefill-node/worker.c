#include "prefill-node/worker.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/messaging/registration.h"
#include "common/messaging/waiting_calls.h"
#include "prefill-node/node.h"
#include "prefill-node/prefix_summary.h"
#include "prefill-node/run.h"

#define READY_CHECK_NS   (20 * BT_NS_PER_MS)
#define MAX_HEARTBEAT_NS (100 * BT_NS_PER_MS)

struct pf_worker {
    struct pf_node node;
    struct pf_pages pages;
    struct pf_prefix_summary prefix_summary;
    struct pf_engine *engine;
    struct pf_compute *compute;
    struct pf_group *group; /* NULL: alone */
    struct pf_runs *runs;

    struct bt_registration *registration;
    bool registered, ready, refused, draining;
    bool stopping; /* and drained for good */
    struct bt_loop_source *ready_timer;
    struct bt_error lost; /* status BT_OK: the group is whole */

    struct bt_waiting_calls drains;
};

/* ------------------------------------------------------------------ state for others */

static void worker_load(void *context, Baton__V1__RankLoad *ret_load, bool *ret_draining)
{
    const struct pf_worker *worker = context;
    struct pf_runs_view view;
    pf_runs_look(worker->runs, &view);
    pf_pages_load(&worker->pages, ret_load);
    ret_load->running = view.running;
    ret_load->waiting = view.waiting;
    ret_load->waiting_tokens = view.waiting_tokens;
    ret_load->max_running = worker->node.options.max_queued;
    *ret_draining = worker->draining;
}

static bool worker_prefixes(void *context, uint64_t since, Baton__V1__PrefixSummary *ret_summary,
                            bool *ret_more)
{
    struct pf_worker *worker = context;
    return worker->pages.prefixes &&
           pf_prefix_summary_fill(&worker->prefix_summary, worker->pages.prefixes, since,
                                  ret_summary, ret_more);
}

static void worker_update_gauges(struct pf_worker *worker)
{
    Baton__V1__RankLoad load = BATON__V1__RANK_LOAD__INIT;
    bool draining;
    worker_load(worker, &load, &draining);
    const struct pf_metrics *metrics = &worker->node.metrics;
    bt_gauge_set(metrics->running, load.running);
    bt_gauge_set(metrics->waiting, load.waiting);
    bt_gauge_set(metrics->kv_usage, 1 - (double)load.pages_free / load.pages_total);
    bt_gauge_set(metrics->unacknowledged, pf_peers_unacknowledged(worker->node.peers));
}

/* ------------------------------------------------------------------ ready */

/* Ready when a router knows us and every link to a decode rank is up, of all ranks, so that the
 * first request does not pay for connecting. */
static void worker_check_ready(void *context)
{
    struct pf_worker *worker = context;
    if (worker->ready || !worker->registered) {
        return;
    }
    if (!pf_peers_warm(worker->node.peers) || (worker->group && !pf_group_warm(worker->group))) {
        bt_loop_timer_set(worker->ready_timer, bt_clock_now_ns() + READY_CHECK_NS);
        return;
    }
    worker->ready = true;
    bt_log_info(0, "ready at %s", pf_worker_endpoint(worker));
    pf_node_write_ready_file(&worker->node);
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
        if (pf_peers_get(worker->node.peers, ranks[i], &error, &peer) != BT_OK) {
            bt_log_warn(0, "decode rank from the router: %s", error.text);
        }
    }
    if (worker->group && rank_count > 0) {
        pf_group_connect(worker->group, ranks, rank_count);
    }
}

static void on_refused(void *context, enum bt_status status, const char *text)
{
    struct pf_worker *worker = context;
    bt_log_error(0, "%s (%s)", text, bt_status_name(status));
    worker->refused = true;
    bt_loop_stop(worker->node.loop);
}

/* ------------------------------------------------------------------ the group */

/* A rank is lost, or the device failed, also of a worker that is alone. The runs go elsewhere; what
 * is left of this worker ends. */
static void on_group_over(void *context, const char *why)
{
    struct pf_worker *worker = context;
    if (worker->lost.status != BT_OK) {
        return;
    }
    bt_error_set(&worker->lost, BT_ERR_PEER_LOST, "%s: %s",
                 worker->group ? "the group is over" : "computing failed", why);
    bt_log_error(0, "%s", worker->lost.text);
    pf_runs_fail_all(worker->runs, BT_ERR_UNAVAILABLE,
                     worker->group ? "the prefill worker has lost a rank"
                                   : "the prefill worker's device failed");
    if (worker->group) {
        pf_group_abandon(worker->group);
    }
    bt_loop_stop(worker->node.loop);
}

static void on_stop_wanted(void *context)
{
    struct pf_worker *worker = context;
    bt_log_info(0, "another rank was told to end");
    bt_loop_stop(worker->node.loop);
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
    pf_metrics_prefixes(&worker->node.metrics, &worker->pages);
    pf_node_answer_metrics(&worker->node, call);
}

static void drain_check(void *context)
{
    struct pf_worker *worker = context;
    if (worker->drains.count == 0 || pf_runs_count(worker->runs) > 0 ||
        pf_peers_unacknowledged(worker->node.peers) > 0) {
        return;
    }
    Baton__V1__DrainResponse response = BATON__V1__DRAIN_RESPONSE__INIT;
    bt_waiting_calls_end(&worker->drains, &response.base);
}

static void handle_drain(void *context, struct bt_rpc_call *call, const ProtobufCMessage *request)
{
    struct pf_worker *worker = context;
    (void)request;
    if (!worker->draining) {
        bt_log_info(0, "draining");
        worker->draining = true;
        if (worker->registration) {
            bt_registration_hurry(worker->registration);
        }
    }
    bt_waiting_calls_add(&worker->drains, call, "the drain");
    drain_check(worker);
}

static void handle_resume(void *context, struct bt_rpc_call *call, const ProtobufCMessage *request)
{
    struct pf_worker *worker = context;
    (void)request;
    if (worker->stopping || worker->lost.status != BT_OK) {
        bt_rpc_call_end(call, BT_ERR_UNAVAILABLE, "this worker is ending", NULL);
        return;
    }
    if (worker->draining) {
        bt_log_info(0, "resumed");
        worker->draining = false;
        bt_waiting_calls_cancel(&worker->drains, "the worker was resumed");
        if (worker->registration) {
            bt_registration_hurry(worker->registration);
        }
    }
    Baton__V1__ResumeResponse response = BATON__V1__RESUME_RESPONSE__INIT;
    bt_rpc_call_end(call, BT_OK, NULL, &response.base);
}

static const char *not_ready(const struct pf_worker *worker)
{
    return worker->draining                                   ? "draining"
           : bt_registration_count(worker->registration) == 0 ? "no router knows this worker"
                                                              : NULL;
}

static void handle_preflight(void *context, struct bt_rpc_call *call,
                             const ProtobufCMessage *request)
{
    const struct pf_worker *worker = context;
    pf_node_answer_preflight(&worker->node, call, (const Baton__V1__PreflightRequest *)request,
                             not_ready(worker));
}

static const struct bt_rpc_method methods[] = {
    {"baton.v1.Prefill/Run", &baton__v1__prefill_request__descriptor, handle_run},
    {"baton.v1.Worker/Metrics", &baton__v1__metrics_request__descriptor, handle_metrics},
    {"baton.v1.Worker/Drain", &baton__v1__drain_request__descriptor, handle_drain},
    {"baton.v1.Worker/Resume", &baton__v1__resume_request__descriptor, handle_resume},
    {"baton.v1.Worker/Preflight", &baton__v1__preflight_request__descriptor, handle_preflight},
    {NULL, NULL, NULL},
};

/* ------------------------------------------------------------------ putting it together */

/* Often enough that no rank takes another for lost. */
static int64_t heartbeat_ns(const struct pf_worker_options *options)
{
    int64_t third_ns = options->group_timeout_ns / 3;
    return third_ns < MAX_HEARTBEAT_NS ? third_ns : MAX_HEARTBEAT_NS;
}

static enum bt_status create_engine(struct pf_worker *worker, struct bt_error *error)
{
    const struct pf_worker_options *options = &worker->node.options;
    if (!pf_pages_init(&worker->pages, options->kv_pages, &worker->node.fingerprint,
                       options->prefix_caching)) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "page pool: no memory");
    }
    const struct pf_engine_options engine = {
        .model = worker->node.model,
        .rank = options->rank,
        .heartbeat_ns = heartbeat_ns(options),
        .layout = worker->node.layout,
        .kv_pool = pf_node_pool(&worker->node),
        .staging = worker->node.staging,
        .pool_pages = options->kv_pages,
        .limits = {options->chunked_prefill_size, options->max_num_seqs,
                   BT_PROMPT_AGEING_TOKENS_PER_S},
        .max_jobs = options->max_queued,
        .max_tokens = options->max_model_len,
    };
    return pf_engine_create(&engine, error, &worker->engine);
}

/* From here on the ranks are in step. */
static enum bt_status join_ranks(struct pf_worker *worker, struct bt_error *error)
{
    struct pf_node *node = &worker->node;
    char(*endpoints)[PF_ENDPOINT_SIZE] = calloc(node->size, sizeof(*endpoints));
    if (!endpoints) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "ranks: no memory");
    }
    const struct pf_group_options group = {
        .loop = node->loop,
        .incarnation = node->incarnation,
        .size = node->size,
        .keepalive_ms = pf_node_keepalive_ms(node),
        .endpoints = (const char(*)[PF_ENDPOINT_SIZE])endpoints,
        .lost = on_group_over,
        .warm = worker_check_ready,
        .context = worker,
    };
    enum bt_status status = pf_node_meet(node, endpoints, error);
    if (status == BT_OK) {
        status = pf_group_create(&group, error, &worker->group);
    }
    free(endpoints);
    return status;
}

static enum bt_status create_runs(struct pf_worker *worker, struct bt_error *error)
{
    struct pf_node *node = &worker->node;
    const struct pf_worker_options *options = &node->options;
    const struct pf_runs_options runs = {
        .loop = node->loop,
        .source = node->source,
        .compute = worker->compute,
        .peers = node->peers,
        .group = worker->group,
        .share = {node->rank, node->size},
        .pages = &worker->pages,
        .layer_count = node->layout.layer_count,
        .metrics = &node->metrics,
        .limits = {node->model->config.vocab_size, options->max_model_len},
        .checksum = options->checksum,
        .layerwise_threshold = options->layerwise_threshold,
        .max_runs = options->max_queued,
        .changed = drain_check,
        .stop_wanted = on_stop_wanted,
        .group_over = on_group_over,
        .context = worker,
    };
    return pf_runs_create(&runs, error, &worker->runs);
}

static enum bt_status create_registration(struct pf_worker *worker, struct bt_error *error)
{
    struct pf_node *node = &worker->node;
    const struct bt_registration_events events = {
        .load = worker_load,
        .prefixes = worker_prefixes,
        .decode_ranks = on_decode_ranks,
        .registered = on_registered,
        .refused = on_refused,
        .context = worker,
    };
    return node->options.routers
               ? bt_registration_create(node->loop, node->options.routers, &node->identity, &events,
                                        error, &worker->registration)
               : BT_OK;
}

static enum bt_status worker_init(struct pf_worker *worker, struct bt_error *error)
{
    enum bt_status status = create_engine(worker, error);
    if (status == BT_OK) {
        status = pf_node_serve(&worker->node, methods, worker, error);
    }
    if (status == BT_OK && worker->node.size > 1) {
        status = join_ranks(worker, error);
    }
    if (status == BT_OK) {
        status = pf_compute_create(worker->engine, worker->node.options.max_queued, error,
                                   &worker->compute);
    }
    if (status == BT_OK) {
        status = create_runs(worker, error);
    }
    worker->ready_timer =
        bt_loop_add_timer(worker->node.loop, BT_NEVER_NS, worker_check_ready, worker);
    if (status == BT_OK && !worker->ready_timer) {
        status = bt_error_set(error, BT_ERR_NO_MEMORY, "timer: no memory");
    }
    return status == BT_OK ? create_registration(worker, error) : status;
}

enum bt_status pf_worker_create(struct bt_loop *loop, const struct bt_model *model,
                                const struct pf_worker_options *options, struct bt_error *error,
                                struct pf_worker **ret_worker)
{
    struct pf_worker *worker = calloc(1, sizeof(*worker));
    if (!worker) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "worker: no memory");
    }
    enum bt_status status =
        pf_node_init(&worker->node, loop, model, options, drain_check, worker, error);
    if (status == BT_OK) {
        status = worker_init(worker, error);
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
    pf_node_close(&worker->node);
    pf_runs_destroy(worker->runs);
    pf_compute_destroy(worker->compute);
    pf_group_destroy(worker->group);
    pf_engine_destroy(worker->engine);
    pf_node_finish(&worker->node);
    pf_pages_finish(&worker->pages);
    free(worker);
}

const char *pf_worker_endpoint(const struct pf_worker *worker)
{
    return pf_node_endpoint(&worker->node);
}

void pf_worker_stop(struct pf_worker *worker)
{
    worker->draining = worker->stopping = true;
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
    return pf_worker_idle(worker) && pf_peers_unacknowledged(worker->node.peers) == 0 &&
           (!worker->registration || bt_registration_gone(worker->registration));
}

bool pf_worker_refused(const struct pf_worker *worker)
{
    return worker->refused;
}

bool pf_worker_lost(const struct pf_worker *worker, struct bt_error *ret_error)
{
    if (worker->lost.status != BT_OK && ret_error) {
        *ret_error = worker->lost;
    }
    return worker->lost.status != BT_OK;
}

uint32_t pf_worker_free_pages(const struct pf_worker *worker)
{
    return pf_pages_free(&worker->pages);
}
