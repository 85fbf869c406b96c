#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "decode-node/worker_state.h"
#include "kvtransfer/preflight.h"

#define MAX_LEASE_KEYS 4096

static void answer_landing(struct dc_worker *worker, struct bt_rpc_call *call,
                           const struct kvt_landing *landing)
{
    struct bt_page_run *runs = calloc(landing->page_count, sizeof(*runs));
    Baton__V1__PageRun *run_messages = calloc(landing->page_count, sizeof(*run_messages));
    Baton__V1__PageRun **list = calloc(landing->page_count, sizeof(*list));
    if (!runs || !run_messages || !list) {
        dc_requests_cancel(worker->requests, landing->request, landing->epoch, 0);
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
    if (landing->state == KVT_LANDING_READY) { /* nobody else is going to write it */
        Baton__V1__ReserveResponse response = BATON__V1__RESERVE_RESPONSE__INIT;
        response.epoch = landing->epoch;
        bt_rpc_call_end(call, BT_OK, NULL, &response.base);
        return;
    }
    dc_worker_tick_by(worker, landing->lease_until_ns);
    answer_landing(worker, call, landing);
    dc_worker_settle(worker); /* an orphan may have made way */
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
        live[i] = key && kvt_landing_lease(dc_worker_landings(worker), key->request_id, key->epoch,
                                           request->incarnation, &process, now_ns);
        if (live[i]) {
            dc_requests_leased(worker->requests, key->epoch);
        }
    }
    dc_worker_tick_by(worker, now_ns + worker->options.lease_ms * BT_NS_PER_MS);
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
        kvt_landing_of(dc_worker_landings(worker), message->request_id, message->epoch);
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
    dc_worker_settle(worker);
}

void dc_worker_handoff_cut(void *context, struct bt_rpc_call *call,
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
        kvt_landing_of(dc_worker_landings(worker), request->request_id, request->epoch);
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
    kvt_landing_quiesced(dc_worker_landings(worker), request->request_id, request->epoch);
    bt_rpc_call_end(call, BT_OK, NULL, &response.base);
    dc_worker_settle(worker);
}

static void handle_cancel(void *context, struct bt_rpc_call *call, const ProtobufCMessage *message)
{
    struct dc_worker *worker = context;
    const Baton__V1__CancelRequest *request = (const Baton__V1__CancelRequest *)message;
    Baton__V1__CancelResponse response = BATON__V1__CANCEL_RESPONSE__INIT;
    dc_requests_cancel(worker->requests, request->request_id, request->epoch,
                       request->router_incarnation);
    bt_rpc_call_end(call, BT_OK, NULL, &response.base);
    dc_worker_settle(worker);
}

static void handle_adopt(void *context, struct bt_rpc_call *call, const ProtobufCMessage *request)
{
    struct dc_worker *worker = context;
    dc_requests_adopt(worker->requests, call, (const Baton__V1__AdoptRequest *)request);
    dc_worker_settle(worker);
}

static void handle_steps(void *context, struct bt_rpc_call *call, const ProtobufCMessage *request)
{
    struct dc_worker *worker = context;
    dc_subscribers_open(worker->subscribers, call, (const Baton__V1__StepsRequest *)request);
}

static void handle_wake(void *context, struct bt_rpc_call *call, const ProtobufCMessage *request)
{
    struct dc_worker *worker = context;
    const Baton__V1__GroupMember *member = dc_ranks_member(worker->ranks);
    Baton__V1__WakeResponse response = BATON__V1__WAKE_RESPONSE__INIT;
    uint64_t incarnation = ((const Baton__V1__WakeRequest *)request)->group_incarnation;
    if (!member || member->incarnation != incarnation) {
        bt_rpc_call_end(call, BT_ERR_STALE, "group_incarnation: this rank is of another group",
                        NULL);
        return;
    }
    dc_stepper_wake(worker->stepper);
    bt_rpc_call_end(call, BT_OK, NULL, &response.base);
}

static void handle_metrics(void *context, struct bt_rpc_call *call, const ProtobufCMessage *request)
{
    struct dc_worker *worker = context;
    (void)request;
    dc_worker_update_gauges(worker);
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

static void handle_drain(void *context, struct bt_rpc_call *call, const ProtobufCMessage *request)
{
    struct dc_worker *worker = context;
    (void)request;
    dc_worker_drain(worker);
    bt_waiting_calls_add(&worker->drains, call, "the drain");
    dc_worker_drain_check(worker);
}

static const char *not_ready(const struct dc_worker *worker)
{
    return worker->draining                                   ? "draining"
           : bt_registration_count(worker->registration) == 0 ? "no router knows this worker"
                                                              : NULL;
}

static void handle_resume(void *context, struct bt_rpc_call *call, const ProtobufCMessage *request)
{
    struct dc_worker *worker = context;
    (void)request;
    if (!dc_worker_resume(worker)) {
        bt_rpc_call_end(call, BT_ERR_UNAVAILABLE, "this rank is ending", NULL);
        return;
    }
    Baton__V1__ResumeResponse response = BATON__V1__RESUME_RESPONSE__INIT;
    bt_rpc_call_end(call, BT_OK, NULL, &response.base);
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
        .not_ready = not_ready(worker),
    };
    Baton__V1__PreflightResponse *response = kvt_preflight_create(&options);
    if (response) {
        bt_rpc_call_end(call, BT_OK, NULL, &response->base);
    } else {
        bt_rpc_call_end(call, BT_ERR_NO_MEMORY, "preflight: no memory", NULL);
    }
    kvt_preflight_destroy(response);
}

const struct bt_rpc_method dc_worker_methods[] = {
    {"baton.v1.Decode/Reserve", &baton__v1__reserve_request__descriptor, handle_reserve},
    {"baton.v1.Decode/Lease", &baton__v1__lease_request__descriptor, handle_lease},
    {"baton.v1.Decode/HandoffDone", &baton__v1__handoff_done_request__descriptor,
     handle_handoff_done},
    {"baton.v1.Decode/Quiesced", &baton__v1__quiesced_request__descriptor, handle_quiesced},
    {"baton.v1.Decode/Cancel", &baton__v1__cancel_request__descriptor, handle_cancel},
    {"baton.v1.Decode/Adopt", &baton__v1__adopt_request__descriptor, handle_adopt},
    {"baton.v1.Decode/Steps", &baton__v1__steps_request__descriptor, handle_steps},
    {"baton.v1.Group/Wake", &baton__v1__wake_request__descriptor, handle_wake},
    {"baton.v1.Worker/Metrics", &baton__v1__metrics_request__descriptor, handle_metrics},
    {"baton.v1.Worker/Drain", &baton__v1__drain_request__descriptor, handle_drain},
    {"baton.v1.Worker/Resume", &baton__v1__resume_request__descriptor, handle_resume},
    {"baton.v1.Worker/Preflight", &baton__v1__preflight_request__descriptor, handle_preflight},
    {NULL, NULL, NULL},
};
