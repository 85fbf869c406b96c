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
#include "kvtransfer/preflight.h"
#include "proto/worker.pb-c.h"

#define LATENCIES 9
#define ROUNDS    5

struct pair {
    struct ctl_report *report;
    const Baton__V1__WorkerStatus *prefill, *decode; /* or two of one role */
    struct ctl_end ends[2];                          /* the same */
    struct bt_loop *loop;
    struct bt_rpc_client *to_prefill, *to_decode; /* of the ends */
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

static void judge_transport(const struct pair *pair, const char *transport, const char *expected)
{
    const struct ctl_end *ends = pair->ends;
    bool rdma = kvt_preflight_rails_mbps(ends[0].preflight) > 0 &&
                kvt_preflight_rails_mbps(ends[1].preflight) > 0;

    if (expected != NULL && strcmp(expected, transport) != 0)
        ctl_report_add(pair->report, CTL_BROKEN, "transport", "%s is in use, and not %s", transport,
                       expected);
    else if (expected == NULL && strcmp(transport, "tcp") == 0 &&
             ctl_doctor_same_host(&ends[0], &ends[1]))
        ctl_report_add(pair->report, CTL_DEGRADED, "transport",
                       "both are on one host, and tcp is in use instead of shm");
    else if (expected == NULL && strcmp(transport, "tcp") == 0 && rdma)
        ctl_report_add(pair->report, CTL_DEGRADED, "transport",
                       "both have RDMA ports, and tcp is in use");
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
    transfer.limit_gbps =
        large.bytes >= (4u << 20)
            ? ctl_doctor_limit_gbps(&pair->ends[0], &pair->ends[1], large.transport)
            : 0;
    judge_transport(pair, large.transport, expected);
    ctl_report_transfer(pair->report, &transfer);
}

/* Of a prefill group rank 0 alone is registered. */
static bool is_follower(const Baton__V1__WorkerStatus *worker, const char *id)
{
    size_t size = strlen(worker->worker_id);

    return worker->group != NULL && worker->role == BATON__V1__WORKER_ROLE__ROLE_PREFILL &&
           strncmp(worker->worker_id, id, size) == 0 && id[size] == '.';
}

static const Baton__V1__WorkerStatus *find_worker(const Baton__V1__StatusResponse *status,
                                                  const char *id, struct bt_error *error)
{
    char known[400] = "";

    for (size_t i = 0; i < status->n_workers; i++) {
        const Baton__V1__WorkerStatus *worker = status->workers[i];
        if (strcmp(worker->worker_id, id) == 0)
            return worker;
        if (is_follower(worker, id)) {
            bt_error_set(error, BT_ERR_NOT_FOUND,
                         "'%s' is a rank of %s, which stands for it: name that", id,
                         worker->worker_id);
            return NULL;
        }
        snprintf(known + strlen(known), sizeof(known) - strlen(known), "%s%s", i > 0 ? ", " : "",
                 worker->worker_id);
    }
    bt_error_set(error, BT_ERR_NOT_FOUND, "there is no worker '%s'; there are: %s", id,
                 known[0] != '\0' ? known : "none");
    return NULL;
}

/* The ends in the order of writes, where there is one. */
static enum bt_status find_pair(struct pair *pair, const Baton__V1__StatusResponse *status,
                                const char *worker_a, const char *worker_b, struct bt_error *error)
{
    const Baton__V1__WorkerStatus *a = find_worker(status, worker_a, error);
    const Baton__V1__WorkerStatus *b = a != NULL ? find_worker(status, worker_b, error) : NULL;
    bool turned;

    if (b == NULL)
        return BT_ERR_NOT_FOUND;
    if (a == b)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "'%s' twice: name two workers",
                            worker_a);
    turned = a->role == BATON__V1__WORKER_ROLE__ROLE_DECODE &&
             b->role == BATON__V1__WORKER_ROLE__ROLE_PREFILL;
    pair->prefill = turned ? b : a;
    pair->decode = turned ? a : b;
    return BT_OK;
}

static bool is_handoff(const struct pair *pair)
{
    return pair->prefill->role == BATON__V1__WORKER_ROLE__ROLE_PREFILL &&
           pair->decode->role == BATON__V1__WORKER_ROLE__ROLE_DECODE;
}

/* So that nobody takes what is not measured for what is broken. */
static void say_what_never_flows(const struct pair *pair)
{
    const char *a = pair->prefill->worker_id, *b = pair->decode->worker_id;
    char what[96];

    if (is_handoff(pair)) {
        snprintf(what, sizeof(what), "%.40s to %.40s", b, a);
        ctl_report_add(pair->report, CTL_FINE, what,
                       "no KV ever flows from a decode to a prefill worker: nothing to measure but "
                       "control messages");
        return;
    }
    snprintf(what, sizeof(what), "%.40s, %.40s", a, b);
    ctl_report_add(pair->report, CTL_FINE, what,
                   "both are %s workers, between which no KV ever flows: what they offer is "
                   "compared, and control messages are measured",
                   pair->prefill->role == BATON__V1__WORKER_ROLE__ROLE_PREFILL ? "prefill"
                                                                               : "decode");
}

static void ask_workers(struct pair *pair, const char *expected, uint32_t tokens)
{
    struct bt_error error;

    pair->prompt = calloc(tokens, sizeof(*pair->prompt));
    pair->to_prefill = pair->ends[0].client;
    pair->to_decode = pair->ends[1].client;
    if (pair->prompt == NULL || open_steps(pair, &error) != BT_OK)
        ctl_report_add(pair->report, CTL_BROKEN, "asking", "%s",
                       pair->prompt == NULL ? "no memory" : error.text);
    else
        measure_pair(pair, expected, tokens);
    free(pair->prompt);
}

static void look_at_pair(struct pair *pair, const char *expected, uint32_t tokens)
{
    ctl_end_init(&pair->ends[0], pair->loop, pair->prefill, pair->timeout_ns, pair->report);
    ctl_end_init(&pair->ends[1], pair->loop, pair->decode, pair->timeout_ns, pair->report);
    say_what_never_flows(pair);
    if (pair->ends[0].preflight != NULL && pair->ends[1].preflight != NULL &&
        ctl_doctor_compare(pair->report, &pair->ends[0], &pair->ends[1], expected) &&
        is_handoff(pair))
        ask_workers(pair, expected, tokens);
    ctl_end_finish(&pair->ends[0]);
    ctl_end_finish(&pair->ends[1]);
}

enum bt_status ctl_doctor_pair(struct ctl_report *report, const struct ctl_target *target,
                               const char *worker_a, const char *worker_b, const char *expected,
                               uint32_t tokens, struct bt_error *error)
{
    struct pair pair = {.report = report,
                        .timeout_ns = target->timeout_ns,
                        .next_request = bt_random_entropy(),
                        .incarnation = bt_random_entropy()};
    struct ctl_connection connection;
    Baton__V1__StatusResponse *status = NULL;
    enum bt_status result = ctl_connection_init(&connection, target, error);

    if (result != BT_OK)
        return result;
    pair.loop = connection.loop;
    result = ctl_connection_status(&connection, error, &status);
    if (result == BT_OK)
        result = find_pair(&pair, status, worker_a, worker_b, error);
    if (result == BT_OK)
        look_at_pair(&pair, expected, tokens);
    if (status != NULL)
        baton__v1__status_response__free_unpacked(status, NULL);
    ctl_connection_finish(&connection);
    return result;
}
