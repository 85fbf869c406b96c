/*
 * Two running workers: this process plays a router for a moment. It opens a Steps stream, reserves
 * landings at the decode worker and has the prefill worker push into them (PrefillRequest.probe),
 * so what is measured is the path of every request: leases, links, pages, flush.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/random.h"
#include "deploy/batonctl/connection.h"
#include "deploy/batonctl/doctor.h"
#include "proto/worker.pb-c.h"

#define LATENCIES 9
#define ROUNDS    5

struct pair {
    struct ctl_report *report;
    const Baton__V1__WorkerStatus *prefill, *decode;
    struct bt_loop *loop;
    struct bt_rpc_client *to_prefill, *to_decode;
    int64_t timeout_ns;
    uint64_t next_request;
    uint64_t incarnation;
    uint32_t *prompt; /* zeros */
};

/* What PrefillDone said. */
struct figures {
    bool told;
    char transport[16];
    uint64_t bytes;
    int64_t transfer_ns;
};

static void ignore_step(void *context, const ProtobufCMessage *message)
{
    (void)context, (void)message;
}

static void ignore_end(void *context, enum bt_status status, const char *text,
                       const ProtobufCMessage *response)
{
    (void)context, (void)status, (void)text, (void)response;
}

static void on_prefill_event(void *context, const ProtobufCMessage *message)
{
    const Baton__V1__PrefillEvent *event = (const Baton__V1__PrefillEvent *)message;
    struct figures *figures = context;

    if (event->event_case != BATON__V1__PREFILL_EVENT__EVENT_DONE || event->done == NULL)
        return;
    figures->told = true;
    figures->bytes = event->done->kv_bytes;
    figures->transfer_ns = (int64_t)event->done->visible_transfer_ns;
    snprintf(figures->transport, sizeof(figures->transport), "%s",
             event->done->transport != NULL ? event->done->transport : "");
}

static enum bt_status open_steps(struct pair *pair, struct bt_error *error)
{
    Baton__V1__StepsRequest request = BATON__V1__STEPS_REQUEST__INIT;
    const struct bt_rpc_call_spec spec = {.method = "baton.v1.Decode/Steps",
                                          .request = &request.base,
                                          .data = &baton__v1__step_event__descriptor,
                                          .deadline_ns = BT_NEVER_NS,
                                          .on_data = ignore_step,
                                          .on_end = ignore_end};

    request.router_incarnation = pair->incarnation;
    return bt_rpc_client_call(pair->to_decode, &spec, error, NULL);
}

static void set_sampling(Baton__V1__SamplingParams *sampling)
{
    baton__v1__sampling_params__init(sampling);
    sampling->top_p = 1;
    sampling->repetition_penalty = 1;
    sampling->logprobs = -1;
    sampling->max_tokens = 1;
}

static enum bt_status reserve(struct pair *pair, uint64_t id, uint32_t tokens,
                              Baton__V1__SamplingParams *sampling, struct bt_error *error,
                              Baton__V1__ReserveResponse **ret_response)
{
    Baton__V1__ReserveRequest request = BATON__V1__RESERVE_REQUEST__INIT;
    const struct bt_rpc_call_spec spec = {.method = "baton.v1.Decode/Reserve",
                                          .request = &request.base,
                                          .response = &baton__v1__reserve_response__descriptor,
                                          .deadline_ns = bt_clock_now_ns() + pair->timeout_ns};
    ProtobufCMessage *response = NULL;
    enum bt_status status;

    request.request_id = id;
    request.prompt_tokens = tokens;
    request.sampling = sampling;
    request.router_incarnation = pair->incarnation;
    status = bt_rpc_client_call_wait(pair->to_decode, &spec, error, &response);
    if (status == BT_OK)
        *ret_response = (Baton__V1__ReserveResponse *)response;
    return status;
}

/* Whatever became of it: the pages are given back, or quarantined until the prefill side speaks. */
static void cancel_landing(struct pair *pair, uint64_t id)
{
    Baton__V1__CancelRequest request = BATON__V1__CANCEL_REQUEST__INIT;
    const struct bt_rpc_call_spec spec = {.method = "baton.v1.Decode/Cancel",
                                          .request = &request.base,
                                          .response = &baton__v1__cancel_response__descriptor,
                                          .deadline_ns = bt_clock_now_ns() + pair->timeout_ns};

    request.request_id = id;
    bt_rpc_client_call_wait(pair->to_decode, &spec, NULL, NULL);
}

/* One push. On an error *ret_culprit is the worker that did not do its part. */
static enum bt_status probe(struct pair *pair, uint32_t tokens, struct bt_error *error,
                            const char **ret_culprit, struct figures *ret_figures)
{
    Baton__V1__PrefillRequest request = BATON__V1__PREFILL_REQUEST__INIT;
    Baton__V1__SamplingParams sampling;
    Baton__V1__ReserveResponse *reserved = NULL;
    uint64_t id = pair->next_request++;
    enum bt_status status;
    struct bt_rpc_call_spec spec = {.method = "baton.v1.Prefill/Run",
                                    .request = &request.base,
                                    .data = &baton__v1__prefill_event__descriptor,
                                    .on_data = on_prefill_event,
                                    .context = ret_figures};

    set_sampling(&sampling);
    *ret_culprit = pair->decode->worker_id;
    status = reserve(pair, id, tokens, &sampling, error, &reserved);
    if (status != BT_OK)
        return status;
    *ret_culprit = pair->prefill->worker_id;
    *ret_figures = (struct figures){0};
    request.request_id = id;
    request.prompt = pair->prompt;
    request.n_prompt = tokens;
    request.sampling = &sampling;
    request.landing = reserved->landing;
    request.probe = true;
    spec.deadline_ns = bt_clock_now_ns() + pair->timeout_ns;
    status = reserved->landing == NULL
                 ? bt_error_set(error, BT_ERR_PROTOCOL, "a reservation without a landing")
                 : bt_rpc_client_call_wait(pair->to_prefill, &spec, error, NULL);
    if (status == BT_OK && (!ret_figures->told || ret_figures->transfer_ns <= 0))
        status = bt_error_set(error, BT_ERR_PROTOCOL, "it does not tell how the push went");
    if (status != BT_OK)
        cancel_landing(pair, id);
    protobuf_c_message_free_unpacked(&reserved->base, NULL);
    return status;
}

static int compare_times(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

    return (x > y) - (x < y);
}

/* The middle one of `rounds` pushes; one more before them warms up. */
static bool probe_often(struct pair *pair, uint32_t tokens, uint32_t rounds,
                        struct figures *ret_figures)
{
    int64_t times[16];
    struct bt_error error;
    const char *culprit;

    for (uint32_t i = 0; i <= rounds; i++) {
        enum bt_status status = probe(pair, tokens, &error, &culprit, ret_figures);
        if (status != BT_OK) {
            ctl_report_add(pair->report, CTL_BROKEN, culprit, "%s%s",
                           status == BT_ERR_DEADLINE ? "does not do its part in time: " : "",
                           error.text);
            return false;
        }
        if (i > 0)
            times[i - 1] = ret_figures->transfer_ns;
    }
    qsort(times, rounds, sizeof(times[0]), compare_times);
    ret_figures->transfer_ns = times[rounds / 2];
    return true;
}

/* "tcp://10.0.0.1:5555" and "tcp://10.0.0.1:6666": one machine. */
static bool on_one_host(const struct pair *pair)
{
    const char *a = pair->prefill->control_endpoint, *b = pair->decode->control_endpoint;
    const char *a_end = strrchr(a, ':'), *b_end = strrchr(b, ':');

    return a_end != NULL && b_end != NULL && a_end - a == b_end - b &&
           memcmp(a, b, (size_t)(a_end - a)) == 0;
}

static bool is_loopback(const struct pair *pair)
{
    return on_one_host(pair) && (strncmp(pair->prefill->control_endpoint, "tcp://127.", 10) == 0 ||
                                 strncmp(pair->prefill->control_endpoint, "ipc:", 4) == 0);
}

static double limit_of(const struct pair *pair, const char *transport)
{
    if (strcmp(transport, "shm") == 0 && is_loopback(pair))
        return ctl_doctor_memcpy_gbps();
    return strcmp(transport, "rdma") == 0 ? (double)ctl_doctor_rails_mbps() / 8000 : 0;
}

static void judge_transport(const struct pair *pair, const char *transport, const char *expected)
{
    if (expected != NULL && strcmp(expected, transport) != 0)
        ctl_report_add(pair->report, CTL_BROKEN, "transport", "%s is in use, and not %s", transport,
                       expected);
    else if (expected == NULL && strcmp(transport, "tcp") == 0 && on_one_host(pair))
        ctl_report_add(pair->report, CTL_DEGRADED, "transport",
                       "both are on one host, and tcp is in use instead of shm");
    else if (expected == NULL && strcmp(transport, "tcp") == 0 && ctl_doctor_rails_mbps() > 0)
        ctl_report_add(pair->report, CTL_DEGRADED, "transport",
                       "there are RDMA ports here, and tcp is in use");
    else
        ctl_report_add(pair->report, CTL_FINE, "transport", "%s", transport);
}

static void measure_pair(struct pair *pair, const char *expected, uint32_t tokens)
{
    struct ctl_transfer transfer = {0};
    struct figures small, large;

    if (!probe_often(pair, 1, LATENCIES, &small) || !probe_often(pair, tokens, ROUNDS, &large))
        return;
    snprintf(transfer.from, sizeof(transfer.from), "%s", pair->prefill->worker_id);
    snprintf(transfer.to, sizeof(transfer.to), "%s", pair->decode->worker_id);
    memcpy(transfer.transport, large.transport, sizeof(transfer.transport));
    transfer.latency_us = (double)small.transfer_ns / 1000;
    transfer.gbps = (double)large.bytes / (double)large.transfer_ns;
    transfer.bytes = large.bytes;
    transfer.limit_gbps = large.bytes >= (4u << 20) ? limit_of(pair, large.transport) : 0;
    judge_transport(pair, large.transport, expected);
    ctl_report_transfer(pair->report, &transfer);
}

static void look_at_worker(struct ctl_report *report, const Baton__V1__WorkerStatus *worker)
{
    bool serves = strcmp(worker->state, "ready") == 0;

    ctl_report_add(report, serves ? CTL_FINE : CTL_BROKEN, worker->worker_id,
                   "%s; last heartbeat %.1f s ago, pid %" PRId64 ", %s", worker->state,
                   worker->last_heartbeat_s, worker->pid, worker->control_endpoint);
}

static const Baton__V1__WorkerStatus *find_worker(const Baton__V1__StatusResponse *status,
                                                  const char *id, struct bt_error *error)
{
    char known[400] = "";

    for (size_t i = 0; i < status->n_workers; i++) {
        const Baton__V1__WorkerStatus *worker = status->workers[i];
        if (strcmp(worker->worker_id, id) == 0)
            return worker;
        snprintf(known + strlen(known), sizeof(known) - strlen(known), "%s%s", i > 0 ? ", " : "",
                 worker->worker_id);
    }
    bt_error_set(error, BT_ERR_NOT_FOUND, "there is no worker '%s'; there are: %s", id,
                 known[0] != '\0' ? known : "none");
    return NULL;
}

static enum bt_status find_pair(struct pair *pair, const Baton__V1__StatusResponse *status,
                                const char *worker_a, const char *worker_b, struct bt_error *error)
{
    const Baton__V1__WorkerStatus *a = find_worker(status, worker_a, error);
    const Baton__V1__WorkerStatus *b = a != NULL ? find_worker(status, worker_b, error) : NULL;

    if (b == NULL)
        return BT_ERR_NOT_FOUND;
    pair->prefill = a->role == BATON__V1__WORKER_ROLE__ROLE_PREFILL ? a : b;
    pair->decode = pair->prefill == a ? b : a;
    if (pair->prefill->role != BATON__V1__WORKER_ROLE__ROLE_PREFILL ||
        pair->decode->role != BATON__V1__WORKER_ROLE__ROLE_DECODE)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "'%s' and '%s' have one role: name a prefill and a decode worker",
                            worker_a, worker_b);
    return BT_OK;
}

static void ask_workers(struct pair *pair, const char *expected, uint32_t tokens)
{
    struct bt_error error;

    pair->prompt = calloc(tokens, sizeof(*pair->prompt));
    if (pair->prompt == NULL ||
        bt_rpc_client_create(pair->loop, pair->prefill->control_endpoint, &error,
                             &pair->to_prefill) != BT_OK ||
        bt_rpc_client_create(pair->loop, pair->decode->control_endpoint, &error,
                             &pair->to_decode) != BT_OK ||
        open_steps(pair, &error) != BT_OK)
        ctl_report_add(pair->report, CTL_BROKEN, "asking", "%s",
                       pair->prompt == NULL ? "no memory" : error.text);
    else
        measure_pair(pair, expected, tokens);
    bt_rpc_client_destroy(pair->to_prefill);
    bt_rpc_client_destroy(pair->to_decode);
    free(pair->prompt);
}

enum bt_status ctl_doctor_pair(struct ctl_report *report, const struct ctl_target *target,
                               const char *worker_a, const char *worker_b, const char *expected,
                               uint32_t tokens, struct bt_error *error)
{
    static struct ctl_cluster cluster;
    struct pair pair = {.report = report,
                        .timeout_ns = target->timeout_ns,
                        .next_request = bt_random_entropy(),
                        .incarnation = bt_random_entropy()};
    struct ctl_connection connection;
    Baton__V1__StatusResponse *status = NULL;
    const char *endpoint;
    enum bt_status result = ctl_target_endpoint(target, &cluster, error, &endpoint);

    if (result == BT_OK)
        result = ctl_connection_init(&connection, endpoint, target->timeout_ns, error);
    if (result != BT_OK)
        return result;
    pair.loop = connection.loop;
    result = ctl_connection_status(&connection, error, &status);
    if (result == BT_OK)
        result = find_pair(&pair, status, worker_a, worker_b, error);
    if (result == BT_OK) {
        look_at_worker(report, pair.prefill);
        look_at_worker(report, pair.decode);
        ask_workers(&pair, expected, tokens);
    }
    if (status != NULL)
        baton__v1__status_response__free_unpacked(status, NULL);
    ctl_connection_finish(&connection);
    return result;
}
