#include "decode-node/worker.h"

#include <stdlib.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/base/random.h"
#include "common/messaging/security.h"
#include "common/model/device_options.h"
#include "common/model/forward_metrics.h"
#include "decode-node/worker_state.h"

#define MIN_TICK_NS (5 * BT_NS_PER_MS)
#define GOODBYE_NS  (10 * BT_NS_PER_MS) /* between looks whether routers have answered it */

struct kvt_landing_table *dc_worker_landings(const struct dc_worker *worker)
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

static size_t registration_orphans(void *context, Baton__V1__Orphan ***ret_orphans)
{
    const struct dc_worker *worker = context;
    return dc_requests_orphans(worker->requests, ret_orphans);
}

void dc_worker_update_gauges(struct dc_worker *worker)
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
    struct dc_stepper_view view;
    dc_stepper_look(worker->stepper, &view);
    const struct dc_group_counts counts = {
        .rows = view.rows,
        .largest = view.largest,
        .agreements = view.agreements,
        .heartbeats = view.heartbeats,
        .woken = view.woken,
        .waking = dc_ranks_woken(worker->ranks),
    };
    dc_metrics_group(&worker->metrics, &counts);
    dc_ranks_update_metrics(worker->ranks);
    bt_forward_metrics(worker->model->device, dc_engine_forward(worker->engine),
                       worker->metrics.registry, worker->metrics.labels);
}

/* Nothing is left: no request, and no page that a peer might still write. */
static bool worker_empty(const struct dc_worker *worker)
{
    return dc_requests_count(worker->requests) == 0 &&
           kvt_landing_count(dc_worker_landings(worker), KVT_LANDING_QUARANTINED) == 0;
}

static bool in_group(const struct dc_worker *worker)
{
    return dc_ranks_member(worker->ranks) != NULL;
}

/* What the group hears of this rank. */
static void tell_group(struct dc_worker *worker)
{
    unsigned flags = worker->leaving ? DC_RANK_LEAVES : 0;
    if (worker->draining && !worker_empty(worker)) {
        flags |= DC_RANK_BUSY;
    }
    dc_stepper_tell(worker->stepper, flags, worker->will);
}

/* Nothing is left here, nor, as they agreed, on the other ranks. */
static bool worker_drained(const struct dc_worker *worker)
{
    struct dc_stepper_view view = {.will = worker->will, .drained = true};
    if (in_group(worker)) {
        dc_stepper_look(worker->stepper, &view);
    }
    return view.drained && view.will == worker->will && worker_empty(worker);
}

void dc_worker_drain_check(struct dc_worker *worker)
{
    if (!worker->draining) {
        return;
    }
    tell_group(worker);
    if (worker->drains.count == 0 || !worker_drained(worker)) {
        return;
    }
    Baton__V1__DrainResponse response = BATON__V1__DRAIN_RESPONSE__INIT;
    bt_waiting_calls_end(&worker->drains, &response.base);
}

/* What the group wants from now on, or this rank of it. */
static void follow_will(struct dc_worker *worker, uint64_t will)
{
    bool drains = dc_will_drains(will);
    worker->will = will;
    if (!worker->leaving && !worker->left && !worker->failed && worker->draining != drains) {
        bt_log_info(0, drains ? "draining" : "resumed");
        worker->draining = drains;
        if (!drains) {
            bt_waiting_calls_cancel(&worker->drains, "the worker was resumed");
        }
        if (worker->registration) {
            bt_registration_hurry(worker->registration);
        }
    }
    tell_group(worker);
}

void dc_worker_drain(struct dc_worker *worker)
{
    if (!dc_will_drains(worker->will)) {
        follow_will(worker, worker->will + 1);
    }
    dc_worker_drain_check(worker);
}

bool dc_worker_resume(struct dc_worker *worker)
{
    if (worker->leaving || worker->left || worker->failed) {
        return false;
    }
    if (dc_will_drains(worker->will)) {
        follow_will(worker, worker->will + 1);
    }
    return true;
}

/* Routers hear of orphans that appeared or went before a client asks for one of them. */
static void tell_orphans(struct dc_worker *worker)
{
    if (dc_requests_orphans_changed(worker->requests) && worker->registration) {
        bt_registration_hurry(worker->registration);
    }
}

/* After whatever may have ended requests or freed pages. */
void dc_worker_settle(void *context)
{
    struct dc_worker *worker = context;
    dc_requests_serve_pages(worker->requests);
    dc_subscribers_flush(worker->subscribers);
    tell_orphans(worker);
    dc_worker_drain_check(worker);
}

/* ------------------------------------------------------------------ events of threads and time */

static void on_notice(void *context);

/* Into worker->step. A notice comes before the steps that follow it, so that one which is here by
 * now may be of this step: what comes after the group was left is held. */
static bool next_step(struct dc_worker *worker)
{
    if (!worker->step && !bt_queue_try_pop(dc_stepper_steps(worker->stepper), &worker->step)) {
        return false;
    }
    if (dc_stepper_has_notices(worker->stepper)) {
        on_notice(worker);
    }
    return !worker->holding;
}

static void on_step(void *context)
{
    struct dc_worker *worker = context;
    on_notice(worker);
    while (!worker->holding && next_step(worker)) {
        dc_requests_step(worker->requests, worker->step);
        dc_stepper_return(worker->stepper, worker->step);
        worker->step = NULL;
    }
    tell_orphans(worker);
    dc_worker_drain_check(worker);
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
    dc_worker_settle(worker);
}

static void on_tick(void *context)
{
    struct dc_worker *worker = context;
    int64_t now_ns = bt_clock_now_ns();
    kvt_landing_tick(dc_worker_landings(worker), now_ns);
    dc_requests_tick(worker->requests, now_ns);
    dc_worker_settle(worker);
    int64_t next_ns = kvt_landing_next_deadline_ns(dc_worker_landings(worker));
    int64_t orphans_ns = dc_requests_next_deadline_ns(worker->requests);
    next_ns = orphans_ns < next_ns ? orphans_ns : next_ns;
    bt_loop_timer_set(worker->tick_timer,
                      next_ns < now_ns + MIN_TICK_NS ? now_ns + MIN_TICK_NS : next_ns);
}

/* A landing has a deadline that may be the first. */
void dc_worker_tick_by(struct dc_worker *worker, int64_t when_ns)
{
    bt_loop_timer_bring_forward(worker->tick_timer, when_ns);
}

static void deregister(struct dc_worker *worker)
{
    if (worker->registration && !worker->deregistered) {
        bt_registration_deregister(worker->registration);
    }
    worker->deregistered = true;
}

/* Routers that know that all ranks leave send what comes back from them elsewhere, not to the next
 * rank. Of those that do not answer nothing is waited for after a second. */
static void on_goodbye(void *context)
{
    struct dc_worker *worker = context;
    if (worker->registration && !bt_registration_gone(worker->registration)) {
        bt_loop_timer_set(worker->goodbye_timer, bt_clock_now_ns() + GOODBYE_NS);
        return;
    }
    if (!worker->step_source) {
        worker->step_source = bt_loop_add_fd(
            worker->loop, bt_queue_fd(dc_stepper_steps(worker->stepper)), on_step, worker);
    }
    if (!worker->step_source) { /* no memory: looks again and again */
        bt_loop_timer_set(worker->goodbye_timer, bt_clock_now_ns() + GOODBYE_NS);
    }
    worker->holding = false;
    on_step(worker);
}

static void hold_steps(struct dc_worker *worker)
{
    worker->holding = true;
    bt_loop_remove(worker->step_source);
    worker->step_source = NULL;
    deregister(worker);
    bt_loop_timer_set(worker->goodbye_timer, bt_clock_now_ns() + GOODBYE_NS);
}

static void group_left(struct dc_worker *worker)
{
    bt_log_info(0, "the group stops");
    worker->left = true;
    hold_steps(worker);
    if (worker->leaving) {
        dc_requests_give_back(worker->requests); /* those that no step thread has */
        dc_worker_settle(worker);
    } else {
        worker->draining = true;
        bt_loop_stop(worker->loop); /* dc_worker_stop follows */
    }
}

static void group_failed(struct dc_worker *worker)
{
    worker->failed = true;
    worker->draining = true;
    if (!worker->leaving) {
        bt_loop_stop(worker->loop);
    }
}

static void on_notice(void *context)
{
    struct dc_worker *worker = context;
    unsigned notices = dc_stepper_take_notices(worker->stepper);
    struct dc_stepper_view view;
    dc_stepper_look(worker->stepper, &view);
    if (notices & DC_NOTICE_WAKE) {
        dc_ranks_wake(worker->ranks);
    }
    if (notices & DC_NOTICE_LEFT) {
        group_left(worker);
    }
    if (notices & DC_NOTICE_FAILED) {
        group_failed(worker);
    }
    if ((notices & DC_NOTICE_AGREED) && view.will > worker->will) {
        follow_will(worker, view.will);
    }
    if (notices & DC_NOTICE_AGREED) {
        dc_worker_drain_check(worker);
    }
}

static void on_router_gone(void *context, uint64_t router_incarnation)
{
    struct dc_worker *worker = context;
    dc_requests_router_gone(worker->requests, router_incarnation, bt_clock_now_ns());
    dc_worker_tick_by(worker, dc_requests_next_deadline_ns(worker->requests));
    tell_orphans(worker);
    dc_worker_drain_check(worker);
}

static void on_router_opens(void *context, uint64_t router_incarnation)
{
    struct dc_worker *worker = context;
    dc_requests_router_back(worker->requests, router_incarnation);
    tell_orphans(worker);
    dc_worker_drain_check(worker);
}

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
    worker->identity.local_prefill_tokens = worker->options.local_prefill_tokens;
    worker->identity.transport = (char *)kvt_target_offers(worker->target);
    worker->identity.group = dc_ranks_member(worker->ranks);
    const struct bt_registration_events events = {
        .load = registration_load,
        .orphans = registration_orphans,
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

static enum bt_status create_staging(struct dc_worker *worker, struct bt_error *error)
{
    const struct kvt_staging_options staging = {
        .device = worker->model->device,
        .layout = worker->layout,
        .pool_pages = worker->options.kv_pages,
        .host_pool = kvt_target_pool(worker->target),
    };
    return worker->options.kv_staging && worker->model->device->memory != BT_MEMORY_HOST
               ? kvt_staging_create(&staging, error, &worker->staging)
               : BT_OK;
}

static enum bt_status create_engine(struct dc_worker *worker, struct bt_error *error)
{
    const struct dc_worker_options *options = &worker->options;
    const struct kvt_target_options target = {
        .transport = options->transport,
        .bind_host = options->transport_host,
        .forbid_fallback = options->forbid_fallback,
        .device = options->transport_devices,
        .pool_device = options->kv_staging ? NULL : worker->model->device,
        .layout = worker->layout,
        .pool_pages = options->kv_pages,
        .max_jobs = options->max_reserved + DC_MAX_CUTOFFS,
    };
    enum bt_status status = kvt_target_create(&target, error, &worker->target);
    if (status != BT_OK) {
        return status;
    }
    status = create_staging(worker, error);
    if (status != BT_OK) {
        return status;
    }
    worker->pages = bt_page_pool_create(options->kv_pages);
    if (!worker->pages) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "page pool: no memory");
    }
    const struct dc_engine_options engine = {
        .model = worker->model,
        .rank = options->rank,
        .layout = worker->layout,
        .kv_pool =
            worker->staging ? kvt_staging_pool(worker->staging) : kvt_target_pool(worker->target),
        .pool_pages = options->kv_pages,
        .staging = worker->staging,
        .max_num_seqs = options->max_num_seqs,
        .max_sequences = options->max_reserved,
        .max_model_len = options->max_model_len,
        .prompt_chunk = options->local_prefill_tokens > 0 ? options->local_prefill_chunk : 0,
    };
    return dc_engine_create(&engine, error, &worker->engine);
}

/* The ranks meet here; then the steps begin. Who is called before the loop runs waits. */
static enum bt_status create_ranks(struct dc_worker *worker, struct bt_error *error)
{
    const struct dc_worker_options *options = &worker->options;
    enum bt_status status = bt_rpc_server_create(worker->loop, options->listen, dc_worker_methods,
                                                 worker, error, &worker->server);
    if (status == BT_OK && options->advertise_host) {
        status = bt_rpc_server_advertise(worker->server, options->advertise_host, error);
        if (status != BT_OK) {
            bt_error_prefix(error, "--advertise-host");
        }
    }
    if (status != BT_OK) {
        return status;
    }
    const struct dc_ranks_options ranks = {
        .loop = worker->loop,
        .rank = options->rank,
        .model = worker->model,
        .forward = dc_engine_forward(worker->engine),
        .worker_id = options->worker_id,
        .endpoint = dc_worker_endpoint(worker),
        .metrics = worker->metrics.registry,
        .labels = worker->metrics.labels,
    };
    status = dc_ranks_create(&ranks, error, &worker->ranks);
    if (status != BT_OK) {
        return status;
    }
    const struct dc_stepper_options stepper = {
        .engine = worker->engine,
        .max_sequences = options->max_reserved,
        .rank = options->rank,
        .heartbeat_ns = options->heartbeat_ns > 0 ? options->heartbeat_ns : DC_HEARTBEAT_NS,
    };
    return dc_stepper_create(&stepper, error, &worker->stepper);
}

static enum bt_status create_requests(struct dc_worker *worker, struct bt_error *error)
{
    const struct dc_subscribers_events events = {
        .gone = on_router_gone,
        .opens = on_router_opens,
        .load = worker_load,
        .context = worker,
    };
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
        .limits = {.vocab_size = worker->model->config.vocab_size,
                   .eos = worker->model->config.eos_token_ids,
                   .eos_count = worker->model->config.eos_token_count,
                   .max_model_len = worker->options.max_model_len,
                   .local_prefill_tokens = worker->options.local_prefill_tokens,
                   .expected_output_tokens = worker->options.expected_output_tokens},
        .first_epoch = (uint64_t)bt_clock_unix_ns(),
        .lease_ns = worker->options.lease_ms * BT_NS_PER_MS,
        .orphan_grace_ns = worker->options.router_grace_ns,
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
        .landings = dc_worker_landings(worker),
        .process = worker->process,
        .freed = dc_worker_settle,
        .handoff_done = dc_worker_handoff_cut,
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
    worker->notice_source =
        bt_loop_add_fd(loop, dc_stepper_notice_fd(worker->stepper), on_notice, worker);
    worker->target_source =
        bt_loop_add_fd(loop, bt_queue_fd(kvt_target_events(worker->target)), on_target, worker);
    worker->tick_timer = bt_loop_add_timer(loop, BT_NEVER_NS, on_tick, worker);
    worker->goodbye_timer = bt_loop_add_timer(loop, BT_NEVER_NS, on_goodbye, worker);
    return worker->step_source && worker->notice_source && worker->target_source &&
                   worker->tick_timer && worker->goodbye_timer
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

enum bt_status dc_worker_create(struct bt_loop *loop, struct bt_model *model,
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
    if (worker->options.local_prefill_tokens >= worker->options.max_model_len) {
        worker->options.local_prefill_tokens = worker->options.max_model_len - 1;
    }
    worker->layout = bt_model_kv_layout(model, options->kv_dtype);
    worker->incarnation = bt_random_entropy();
    bt_model_fingerprint(model, options->served_model_name, options->kv_dtype,
                         &worker->fingerprint);
    enum bt_status status = bt_process_self(error, &worker->process);
    if (status == BT_OK) {
        status = dc_metrics_init(&worker->metrics, options->served_model_name, options->kv_pages,
                                 bt_dtype_name(options->kv_dtype), error);
    }
    if (status == BT_OK) {
        bt_loop_export_refused(worker->loop, worker->metrics.registry);
    }
    if (status == BT_OK && options->engine_labels) {
        dc_metrics_engine(&worker->metrics, options->engine_labels);
        bt_device_metrics(model->device, worker->metrics.registry, "role=\"decode\"");
    }
    if (status == BT_OK) {
        status = create_engine(worker, error);
    }
    if (status == BT_OK) {
        status = create_ranks(worker, error);
    }
    if (status == BT_OK) {
        status = create_requests(worker, error);
    }
    if (status == BT_OK) {
        status = create_sources(worker, error);
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
    bt_loop_remove(worker->notice_source);
    bt_loop_remove(worker->target_source);
    bt_loop_remove(worker->tick_timer);
    bt_loop_remove(worker->goodbye_timer);
    dc_stepper_destroy(worker->stepper);
    dc_ranks_destroy(worker->ranks);
    dc_cutoffs_destroy(worker->cutoffs);
    dc_requests_destroy(worker->requests);
    dc_subscribers_destroy(worker->subscribers);
    dc_engine_destroy(worker->engine);
    bt_page_pool_destroy(worker->pages);
    kvt_staging_destroy(worker->staging);
    kvt_target_destroy(worker->target);
    bt_loop_export_refused(worker->loop, NULL);
    dc_metrics_finish(&worker->metrics);
    free(worker);
}

const char *dc_worker_endpoint(const struct dc_worker *worker)
{
    return bt_rpc_server_endpoint(worker->server);
}

void dc_worker_stop(struct dc_worker *worker)
{
    worker->draining = worker->leaving = true;
    dc_requests_close_orphans(worker->requests);
    if (!in_group(worker) && !worker->left) {
        worker->left = true;
        hold_steps(worker);
    }
    deregister(worker);
    if (worker->left || worker->failed) {
        dc_requests_give_back(worker->requests);
    }
    tell_group(worker);
    dc_worker_settle(worker);
}

bool dc_worker_quiet(const struct dc_worker *worker)
{
    bool gone = !worker->registration || bt_registration_gone(worker->registration);
    bool stopped = dc_requests_count(worker->requests) == 0 && (!in_group(worker) || worker->left);
    return gone && (stopped || worker->failed);
}

bool dc_worker_failed(const struct dc_worker *worker, struct bt_error *error)
{
    if (worker->failed) {
        bt_error_set(error, BT_ERR_PEER_LOST, "%s", dc_stepper_error(worker->stepper));
    }
    return worker->failed;
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

uint32_t dc_worker_orphans(const struct dc_worker *worker)
{
    Baton__V1__Orphan **orphans;
    return (uint32_t)dc_requests_orphans(worker->requests, &orphans);
}
