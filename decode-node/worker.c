#include "decode-node/worker.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/random.h"
#include "common/messaging/registration.h"
#include "decode-node/cutoff.h"
#include "decode-node/request.h"
#include "kvtransfer/preflight.h"

#define MAX_DRAIN_CALLS 16
#define MAX_LEASE_KEYS  4096
#define MIN_TICK_NS     (5 * BT_NS_PER_MS)

struct dc_worker {
    struct bt_loop *loop;
    const struct bt_model *model;
    struct dc_worker_options options;
    struct bt_kv_layout layout;
    uint64_t incarnation;
    struct bt_process_id process;
    struct bt_fingerprint fingerprint;

    struct dc_metrics metrics;
    struct kvt_target *target;
    struct bt_page_pool *pages;
    struct dc_engine *engine;
    struct dc_stepper *stepper;
    struct dc_subscribers *subscribers;
    struct dc_requests *requests;
    struct dc_cutoffs *cutoffs;
    struct bt_rpc_server *server;
    struct bt_loop_source *step_source, *target_source, *tick_timer;

    Baton__V1__LayoutFingerprint fingerprint_message;
    Baton__V1__ProcessId process_message;
    Baton__V1__KvEndpoint endpoint_message;
    Baton__V1__RegisterRequest identity;
    struct bt_registration *registration;
    bool ready, refused, draining;

    struct bt_rpc_call *drains[MAX_DRAIN_CALLS];
    uint32_t drain_count;
};

static struct kvt_landing_table *landings(const struct dc_worker *worker)
{
    return dc_requests_landings(worker->requests);
}

/* ------------------------------------------------------------------ state for others */

static void worker_load(void *context, Baton__V1__RankLoad *ret_load)
{
    const struct dc_worker *worker = context;
    dc_requests_load(worker->requests, ret_load);
}

static void registration_load(void *context, Baton__V1__RankLoad *ret_load, bool *ret_draining)
{
    const struct dc_worker *worker = context;
    dc_requests_load(worker->requests, ret_load);
    *ret_draining = worker->draining;
}

static void worker_update_gauges(struct dc_worker *worker)
{
    Baton__V1__RankLoad load = BATON__V1__RANK_LOAD__INIT;
    worker_load(worker, &load);
    bt_gauge_set(worker->metrics.running, load.running);
    bt_gauge_set(worker->metrics.waiting, load.waiting);
    bt_gauge_set(worker->metrics.kv_tokens, (double)load.kv_tokens);
    bt_gauge_set(worker->metrics.kv_usage, 1 - (double)load.pages_free / load.pages_total);
    bt_gauge_set(worker->metrics.pages_free, load.pages_free);
    bt_gauge_set(worker->metrics.pages_reserved, load.pages_reserved);
    bt_gauge_set(worker->metrics.pages_ready, load.pages_ready);
    bt_gauge_set(worker->metrics.pages_quarantined, load.pages_quarantined);
}

/* Nothing is left: no request, and no page that a peer might still write. */
static bool worker_empty(const struct dc_worker *worker)
{
    return dc_requests_count(worker->requests) == 0 &&
           kvt_landing_count(landings(worker), KVT_LANDING_QUARANTINED) == 0;
}

static void drain_check(struct dc_worker *worker)
{
    if (worker->drain_count == 0 || !worker_empty(worker)) {
        return;
    }
    Baton__V1__DrainResponse response = BATON__V1__DRAIN_RESPONSE__INIT;
    while (worker->drain_count > 0) {
        struct bt_rpc_call *call = worker->drains[--worker->drain_count];
        bt_rpc_call_on_cancel(call, NULL, NULL);
        bt_rpc_call_end(call, BT_OK, NULL, &response.base);
    }
}

/* After whatever may have ended requests or freed pages. */
static void settle(void *context)
{
    struct dc_worker *worker = context;
    dc_requests_serve_pages(worker->requests);
    dc_subscribers_flush(worker->subscribers);
    drain_check(worker);
}

/* ------------------------------------------------------------------ events of threads and time */

static void on_step(void *context)
{
    struct dc_worker *worker = context;
    struct dc_step *step;
    while (bt_queue_try_pop(dc_stepper_steps(worker->stepper), &step)) {
        dc_requests_step(worker->requests, step);
        dc_stepper_return(worker->stepper, step);
    }
    drain_check(worker);
}

static void on_target(void *context)
{
    struct dc_worker *worker = context;
    struct kvt_target_event event;
    while (bt_queue_try_pop(kvt_target_events(worker->target), &event)) {
        if (event.kind == KVT_TARGET_CHECKSUM) {
            dc_requests_checksum(worker->requests, event.epoch, event.checksum, event.early);
        } else {
            dc_cutoffs_disconnected(worker->cutoffs, event.incarnation, event.link);
        }
    }
    settle(worker);
}

static void on_tick(void *context)
{
    struct dc_worker *worker = context;
    int64_t now_ns = bt_clock_now_ns();
    kvt_landing_tick(landings(worker), now_ns);
    settle(worker);
    int64_t next_ns = kvt_landing_next_deadline_ns(landings(worker));
    bt_loop_timer_set(worker->tick_timer,
                      next_ns < now_ns + MIN_TICK_NS ? now_ns + MIN_TICK_NS : next_ns);
}

/* A landing has a deadline that may be the first. */
static void tick_by(struct dc_worker *worker, int64_t when_ns)
{
    bt_loop_timer_bring_forward(worker->tick_timer, when_ns);
}

static void on_router_gone(void *context, uint64_t router_incarnation)
{
    struct dc_worker *worker = context;
    dc_requests_cancel_router(worker->requests, router_incarnation);
    drain_check(worker);
}

/* ------------------------------------------------------------------ calls */

static void answer_landing(struct dc_worker *worker, struct bt_rpc_call *call,
                           const struct kvt_landing *landing)
{
    struct bt_page_run *runs = calloc(landing->page_count, sizeof(*runs));
    Baton__V1__PageRun *run_messages = calloc(landing->page_count, sizeof(*run_messages));
    Baton__V1__PageRun **list = calloc(landing->page_count, sizeof(*list));
    if (!runs || !run_messages || !list) {
        dc_requests_cancel(worker->requests, landing->request, landing->epoch);
        bt_rpc_call_end(call, BT_ERR_NO_MEMORY, "landing: no memory", NULL);
        goto out;
    }
    Baton__V1__Landing message = BATON__V1__LANDING__INIT;
    message.n_runs = bt_page_runs(landing->pages, landing->page_count, runs);
    for (size_t i = 0; i < message.n_runs; i++) {
        baton__v1__page_run__init(&run_messages[i]);
        run_messages[i].first = runs[i].first;
        run_messages[i].count = runs[i].count;
        list[i] = &run_messages[i];
    }
    message.runs = list;
    message.request_id = landing->request;
    message.epoch = landing->epoch;
    message.endpoint = &worker->endpoint_message;
    message.lease_ms = worker->options.lease_ms;
    Baton__V1__ReserveResponse response = BATON__V1__RESERVE_RESPONSE__INIT;
    response.landing = &message;
    bt_rpc_call_end(call, BT_OK, NULL, &response.base);
out:
    free(runs);
    free(run_messages);
    free(list);
}

static void handle_reserve(void *context, struct bt_rpc_call *call, const ProtobufCMessage *request)
{
    struct dc_worker *worker = context;
    struct bt_error error;
    const struct kvt_landing *landing;
    if (worker->draining) {
        bt_rpc_call_end(call, BT_ERR_UNAVAILABLE, "this rank is draining", NULL);
        return;
    }
    enum bt_status status = dc_requests_reserve(
        worker->requests, (const Baton__V1__ReserveRequest *)request, &error, &landing);
    if (status != BT_OK) {
        bt_rpc_call_end(call, status, error.text, NULL);
        return;
    }
    tick_by(worker, landing->lease_until_ns);
    answer_landing(worker, call, landing);
}

static enum bt_status check_lease(const Baton__V1__LeaseRequest *request, struct bt_error *error)
{
    const Baton__V1__ProcessId *process = request->process;
    if (request->incarnation == 0) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "incarnation is 0");
    }
    if (!process || !process->host || strlen(process->host) >= BT_HOST_ID_SIZE ||
        process->pid <= 0) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "process is not a process id");
    }
    if (request->n_lease > MAX_LEASE_KEYS) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "lease: %zu keys, at most %d",
                            request->n_lease, MAX_LEASE_KEYS);
    }
    return BT_OK;
}

static void handle_lease(void *context, struct bt_rpc_call *call, const ProtobufCMessage *message)
{
    struct dc_worker *worker = context;
    const Baton__V1__LeaseRequest *request = (const Baton__V1__LeaseRequest *)message;
    struct bt_error error;
    enum bt_status status = check_lease(request, &error);
    if (status != BT_OK) {
        bt_rpc_call_end(call, status, error.text, NULL);
        return;
    }
    struct bt_process_id process = {.pid = request->process->pid,
                                    .start_ticks = request->process->start_ticks};
    strncpy(process.host, request->process->host, sizeof(process.host) - 1);
    protobuf_c_boolean live[MAX_LEASE_KEYS];
    int64_t now_ns = bt_clock_now_ns();
    for (size_t i = 0; i < request->n_lease; i++) {
        const Baton__V1__LeaseKey *key = request->lease[i];
        live[i] = key && kvt_landing_lease(landings(worker), key->request_id, key->epoch,
                                           request->incarnation, &process, now_ns);
        if (live[i]) {
            dc_requests_leased(worker->requests, key->epoch);
        }
    }
    tick_by(worker, now_ns + worker->options.lease_ms * BT_NS_PER_MS);
    Baton__V1__LeaseResponse response = BATON__V1__LEASE_RESPONSE__INIT;
    response.live = live;
    response.n_live = request->n_lease;
    response.lease_ms = worker->options.lease_ms;
    bt_rpc_call_end(call, BT_OK, NULL, &response.base);
}

static void handle_handoff_done(void *context, struct bt_rpc_call *call,
                                const ProtobufCMessage *request)
{
    struct dc_worker *worker = context;
    const Baton__V1__HandoffDoneRequest *message = (const Baton__V1__HandoffDoneRequest *)request;
    const struct kvt_landing *landing =
        kvt_landing_of(landings(worker), message->request_id, message->epoch);
    struct dc_cut_list list;
    struct bt_error error;
    enum bt_status status = dc_cut_list_read(
        message->cuts, message->n_cuts, landing ? landing->peer_incarnation : 0, &error, &list);
    if (status != BT_OK) {
        bt_rpc_call_end(call, status, error.text, NULL);
        return;
    }
    if (list.count > 0 && landing && landing->state == KVT_LANDING_LANDING) {
        dc_cutoffs_handoff_done(worker->cutoffs, call, message, &list);
        return;
    }
    dc_requests_handoff_done(worker->requests, call, message);
    settle(worker);
}

static void on_handoff_cut(void *context, struct bt_rpc_call *call,
                           const Baton__V1__HandoffDoneRequest *message)
{
    struct dc_worker *worker = context;
    kvt_target_forget(worker->target, message->epoch); /* may have been written again since */
    dc_requests_handoff_done(worker->requests, call, message);
}

/* Whether somebody else than `incarnation` holds the lease. */
static bool held_by_another(const struct kvt_landing *landing, uint64_t incarnation)
{
    uint64_t holder = landing ? landing->peer_incarnation : 0;
    return holder != 0 && holder != incarnation;
}

static void handle_quiesced(void *context, struct bt_rpc_call *call,
                            const ProtobufCMessage *message)
{
    struct dc_worker *worker = context;
    const Baton__V1__QuiescedRequest *request = (const Baton__V1__QuiescedRequest *)message;
    const struct kvt_landing *landing =
        kvt_landing_of(landings(worker), request->request_id, request->epoch);
    struct dc_cut_list list;
    struct bt_error error;
    enum bt_status status =
        dc_cut_list_read(request->cuts, request->n_cuts, request->incarnation, &error, &list);
    if (status != BT_OK) {
        bt_rpc_call_end(call, status, error.text, NULL);
        return;
    }
    if (request->incarnation == 0 || held_by_another(landing, request->incarnation)) {
        bt_rpc_call_end(call, BT_ERR_STALE,
                        "incarnation: another prefill worker holds the lease of this epoch", NULL);
        return;
    }
    if (list.count > 0 && kvt_landing_is_open(landing)) {
        dc_cutoffs_quiesced(worker->cutoffs, call, request->request_id, request->epoch, &list);
        return;
    }
    Baton__V1__QuiescedResponse response = BATON__V1__QUIESCED_RESPONSE__INIT;
    kvt_landing_quiesced(landings(worker), request->request_id, request->epoch);
    bt_rpc_call_end(call, BT_OK, NULL, &response.base);
    settle(worker);
}

static void handle_cancel(void *context, struct bt_rpc_call *call, const ProtobufCMessage *message)
{
    struct dc_worker *worker = context;
    const Baton__V1__CancelRequest *request = (const Baton__V1__CancelRequest *)message;
    Baton__V1__CancelResponse response = BATON__V1__CANCEL_RESPONSE__INIT;
    dc_requests_cancel(worker->requests, request->request_id, request->epoch);
    bt_rpc_call_end(call, BT_OK, NULL, &response.base);
    settle(worker);
}

static void handle_steps(void *context, struct bt_rpc_call *call, const ProtobufCMessage *request)
{
    struct dc_worker *worker = context;
    dc_subscribers_open(worker->subscribers, call, (const Baton__V1__StepsRequest *)request);
}

static void handle_metrics(void *context, struct bt_rpc_call *call, const ProtobufCMessage *request)
{
    struct dc_worker *worker = context;
    (void)request;
    worker_update_gauges(worker);
    size_t size;
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

static void on_drain_cancel(void *context, struct bt_rpc_call *call)
{
    struct dc_worker *worker = context;
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
    struct dc_worker *worker = context;
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
    const struct dc_worker *worker = context;
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
    {"baton.v1.Decode/Reserve", &baton__v1__reserve_request__descriptor, handle_reserve},
    {"baton.v1.Decode/Lease", &baton__v1__lease_request__descriptor, handle_lease},
    {"baton.v1.Decode/HandoffDone", &baton__v1__handoff_done_request__descriptor,
     handle_handoff_done},
    {"baton.v1.Decode/Quiesced", &baton__v1__quiesced_request__descriptor, handle_quiesced},
    {"baton.v1.Decode/Cancel", &baton__v1__cancel_request__descriptor, handle_cancel},
    {"baton.v1.Decode/Steps", &baton__v1__steps_request__descriptor, handle_steps},
    {"baton.v1.Worker/Metrics", &baton__v1__metrics_request__descriptor, handle_metrics},
    {"baton.v1.Worker/Drain", &baton__v1__drain_request__descriptor, handle_drain},
    {"baton.v1.Worker/Preflight", &baton__v1__preflight_request__descriptor, handle_preflight},
    {NULL, NULL, NULL},
};

/* ------------------------------------------------------------------ registration */

static void on_registered(void *context)
{
    struct dc_worker *worker = context;
    struct bt_error error;
    if (worker->ready) {
        return;
    }
    worker->ready = true;
    bt_log_info(0, "ready at %s", dc_worker_endpoint(worker));
    if (worker->options.ready_file &&
        bt_ready_file_write(worker->options.ready_file, worker->options.worker_id,
                            dc_worker_endpoint(worker), &error) != BT_OK) {
        bt_log_error(0, "%s", error.text);
    }
}

static void on_refused(void *context, enum bt_status status, const char *text)
{
    struct dc_worker *worker = context;
    bt_log_error(0, "%s (%s)", text, bt_status_name(status));
    worker->refused = true;
    bt_loop_stop(worker->loop);
}

/* Who and where this rank is, as landings and the registration say it. */
static void fill_endpoint(struct dc_worker *worker)
{
    Baton__V1__KvEndpoint *endpoint = &worker->endpoint_message;
    const void *bytes;
    bt_fingerprint_to_message(&worker->fingerprint, &worker->fingerprint_message);
    baton__v1__process_id__init(&worker->process_message);
    worker->process_message.host = worker->process.host;
    worker->process_message.pid = worker->process.pid;
    worker->process_message.start_ticks = worker->process.start_ticks;
    baton__v1__kv_endpoint__init(endpoint);
    endpoint->worker_id = (char *)worker->options.worker_id;
    endpoint->incarnation = worker->incarnation;
    kvt_target_address(worker->target, &bytes, &endpoint->transport_address.len);
    endpoint->transport_address.data = (uint8_t *)bytes;
    kvt_target_key(worker->target, &bytes, &endpoint->pool_key.len);
    endpoint->pool_key.data = (uint8_t *)bytes;
    endpoint->pool_base = (uint64_t)(uintptr_t)kvt_target_pool(worker->target);
    endpoint->pool_pages = worker->options.kv_pages;
    endpoint->fingerprint = &worker->fingerprint_message;
    endpoint->process = &worker->process_message;
    endpoint->control_endpoint = (char *)dc_worker_endpoint(worker);
}

static enum bt_status create_registration(struct dc_worker *worker, struct bt_error *error)
{
    fill_endpoint(worker);
    baton__v1__register_request__init(&worker->identity);
    worker->identity.worker_id = (char *)worker->options.worker_id;
    worker->identity.incarnation = worker->incarnation;
    worker->identity.role = BATON__V1__WORKER_ROLE__ROLE_DECODE;
    worker->identity.control_endpoint = (char *)dc_worker_endpoint(worker);
    worker->identity.fingerprint = &worker->fingerprint_message;
    worker->identity.process = &worker->process_message;
    worker->identity.kv = &worker->endpoint_message;
    worker->identity.max_model_len = worker->options.max_model_len;
    worker->identity.transport = (char *)kvt_target_offers(worker->target);
    const struct bt_registration_events events = {
        .load = registration_load,
        .registered = on_registered,
        .refused = on_refused,
        .context = worker,
    };
    return worker->options.routers
               ? bt_registration_create(worker->loop, worker->options.routers, &worker->identity,
                                        &events, error, &worker->registration)
               : BT_OK;
}

/* ------------------------------------------------------------------ putting it together */

static enum bt_status create_engine(struct dc_worker *worker, struct bt_error *error)
{
    const struct dc_worker_options *options = &worker->options;
    const struct kvt_target_options target = {
        .transport = options->transport,
        .bind_host = options->transport_host,
        .forbid_fallback = options->forbid_fallback,
        .device = options->transport_devices,
        .layout = worker->layout,
        .pool_pages = options->kv_pages,
        .max_jobs = options->max_reserved + DC_MAX_CUTOFFS,
    };
    enum bt_status status = kvt_target_create(&target, error, &worker->target);
    if (status != BT_OK) {
        return status;
    }
    worker->pages = bt_page_pool_create(options->kv_pages);
    if (!worker->pages) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "page pool: no memory");
    }
    const struct dc_engine_options engine = {
        .model = worker->model,
        .layout = worker->layout,
        .kv_pool = kvt_target_pool(worker->target),
        .pool_pages = options->kv_pages,
        .max_num_seqs = options->max_num_seqs,
        .max_sequences = options->max_reserved,
        .max_model_len = options->max_model_len,
    };
    status = dc_engine_create(&engine, error, &worker->engine);
    return status == BT_OK
               ? dc_stepper_create(worker->engine, options->max_reserved, error, &worker->stepper)
               : status;
}

static enum bt_status create_requests(struct dc_worker *worker, struct bt_error *error)
{
    const struct dc_subscribers_events events = {
        .gone = on_router_gone, .load = worker_load, .context = worker};
    worker->subscribers = dc_subscribers_create(&events);
    if (!worker->subscribers) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "streams: no memory");
    }
    const struct dc_requests_options requests = {
        .target = worker->target,
        .stepper = worker->stepper,
        .pages = worker->pages,
        .subscribers = worker->subscribers,
        .metrics = &worker->metrics,
        .limits = {worker->model->config.vocab_size, worker->options.max_model_len,
                   worker->options.expected_output_tokens},
        .first_epoch = (uint64_t)bt_clock_unix_ns(),
        .lease_ns = worker->options.lease_ms * BT_NS_PER_MS,
        .max_requests = worker->options.max_reserved,
        .require_checksum = worker->options.checksum,
    };
    enum bt_status status = dc_requests_create(&requests, error, &worker->requests);
    if (status != BT_OK) {
        return status;
    }
    const struct dc_cutoffs_options cutoffs = {
        .loop = worker->loop,
        .target = worker->target,
        .landings = landings(worker),
        .process = worker->process,
        .freed = settle,
        .handoff_done = on_handoff_cut,
        .context = worker,
    };
    worker->cutoffs = dc_cutoffs_create(&cutoffs);
    return worker->cutoffs ? BT_OK : bt_error_set(error, BT_ERR_NO_MEMORY, "cutoffs: no memory");
}

static enum bt_status create_sources(struct dc_worker *worker, struct bt_error *error)
{
    struct bt_loop *loop = worker->loop;
    worker->step_source =
        bt_loop_add_fd(loop, bt_queue_fd(dc_stepper_steps(worker->stepper)), on_step, worker);
    worker->target_source =
        bt_loop_add_fd(loop, bt_queue_fd(kvt_target_events(worker->target)), on_target, worker);
    worker->tick_timer = bt_loop_add_timer(loop, BT_NEVER_NS, on_tick, worker);
    return worker->step_source && worker->target_source && worker->tick_timer
               ? BT_OK
               : bt_error_set(error, BT_ERR_NO_MEMORY, "event loop: no memory");
}

/* A sequence has to fit the model and the pool. */
static uint32_t effective_model_len(const struct dc_worker_options *options,
                                    const struct bt_model *model)
{
    uint64_t length = model->config.max_position_embeddings;
    uint64_t pool_tokens = (uint64_t)options->kv_pages * BT_PAGE_TOKENS;
    length =
        options->max_model_len && options->max_model_len < length ? options->max_model_len : length;
    return (uint32_t)(pool_tokens < length ? pool_tokens : length);
}

enum bt_status dc_worker_create(struct bt_loop *loop, const struct bt_model *model,
                                const struct dc_worker_options *options, struct bt_error *error,
                                struct dc_worker **ret_worker)
{
    struct dc_worker *worker = calloc(1, sizeof(*worker));
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
        status = dc_metrics_init(&worker->metrics, options->served_model_name, options->kv_pages,
                                 bt_dtype_name(options->kv_dtype), error);
    }
    if (status == BT_OK && options->engine_labels) {
        dc_metrics_engine(&worker->metrics, options->engine_labels);
    }
    if (status == BT_OK) {
        status = create_engine(worker, error);
    }
    if (status == BT_OK) {
        status = create_requests(worker, error);
    }
    if (status == BT_OK) {
        status = create_sources(worker, error);
    }
    if (status == BT_OK) {
        status =
            bt_rpc_server_create(loop, options->listen, methods, worker, error, &worker->server);
    }
    if (status == BT_OK) {
        status = create_registration(worker, error);
    }
    if (status != BT_OK) {
        dc_worker_destroy(worker);
        return status;
    }
    *ret_worker = worker;
    return BT_OK;
}

/* The step thread first: after it nobody touches sequences. Calls go with the server. */
void dc_worker_destroy(struct dc_worker *worker)
{
    if (!worker) {
        return;
    }
    bt_registration_destroy(worker->registration);
    bt_rpc_server_destroy(worker->server);
    bt_loop_remove(worker->step_source);
    bt_loop_remove(worker->target_source);
    bt_loop_remove(worker->tick_timer);
    dc_stepper_destroy(worker->stepper);
    dc_cutoffs_destroy(worker->cutoffs);
    dc_requests_destroy(worker->requests);
    dc_subscribers_destroy(worker->subscribers);
    dc_engine_destroy(worker->engine);
    bt_page_pool_destroy(worker->pages);
    kvt_target_destroy(worker->target);
    dc_metrics_finish(&worker->metrics);
    free(worker);
}

const char *dc_worker_endpoint(const struct dc_worker *worker)
{
    return bt_rpc_server_endpoint(worker->server);
}

void dc_worker_stop(struct dc_worker *worker)
{
    worker->draining = true;
    if (worker->registration) {
        bt_registration_deregister(worker->registration);
    }
    dc_requests_cancel_all(worker->requests);
    settle(worker);
}

bool dc_worker_quiet(const struct dc_worker *worker)
{
    return dc_requests_count(worker->requests) == 0 &&
           (!worker->registration || bt_registration_gone(worker->registration));
}

bool dc_worker_refused(const struct dc_worker *worker)
{
    return worker->refused;
}

uint32_t dc_worker_free_pages(const struct dc_worker *worker)
{
    return bt_page_pool_count(worker->pages, BT_PAGE_FREE);
}

uint32_t dc_worker_requests(const struct dc_worker *worker)
{
    return dc_requests_count(worker->requests);
}
