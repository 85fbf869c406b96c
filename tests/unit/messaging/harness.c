#include "tests/unit/messaging/harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PATIENCE_NS (60 * BT_NS_PER_S)

static const Baton__V1__TokenizeRequest *as_request(const ProtobufCMessage *message)
{
    return (const Baton__V1__TokenizeRequest *)message;
}

static void handle_echo(void *context, struct bt_rpc_call *call, const ProtobufCMessage *request)
{
    struct harness *harness = context;
    harness->handled++;
    harness->last_deadline_ns = bt_rpc_call_deadline_ns(call);
    const char *text = as_request(request)->text;
    Baton__V1__TokenizeResponse response = BATON__V1__TOKENIZE_RESPONSE__INIT;
    response.n_ids = strlen(text);
    response.ids = calloc(response.n_ids + 1, sizeof *response.ids);
    for (size_t i = 0; i < response.n_ids; i++) {
        response.ids[i] = (unsigned char)text[i];
    }
    bt_rpc_call_end(call, BT_OK, NULL, &response.base);
    free(response.ids);
}

static void handle_fail(void *context, struct bt_rpc_call *call, const ProtobufCMessage *request)
{
    struct harness *harness = context;
    (void)request;
    harness->handled++;
    bt_rpc_call_end(call, BT_ERR_NOT_FOUND, "no such \xff thing", NULL);
}

static void handle_count(void *context, struct bt_rpc_call *call, const ProtobufCMessage *request)
{
    struct harness *harness = context;
    harness->handled++;
    int count = atoi(as_request(request)->text);
    for (int i = 0; i < count; i++) {
        char text[32];
        snprintf(text, sizeof text, "message %d", i);
        Baton__V1__GenerateEvent event = BATON__V1__GENERATE_EVENT__INIT;
        event.text = text;
        if (bt_rpc_call_send(call, &event.base) != BT_OK) {
            bt_rpc_call_end(call, BT_ERR_EXHAUSTED, "the client reads too slowly", NULL);
            return;
        }
    }
    bt_rpc_call_end(call, BT_OK, NULL, NULL);
}

static void on_cancel(void *context, struct bt_rpc_call *call)
{
    struct harness *harness = context;
    harness->cancels++;
    assert_true(bt_rpc_call_cancelled(call));
    if (!harness->end_on_cancel) {
        return;
    }
    for (size_t i = 0; i < harness->held_count; i++) {
        if (harness->held[i] == call) {
            harness->held[i] = harness->held[--harness->held_count];
            break;
        }
    }
    bt_rpc_call_end(call, BT_ERR_CANCELLED, "as you wish", NULL);
}

static void handle_hold(void *context, struct bt_rpc_call *call, const ProtobufCMessage *request)
{
    struct harness *harness = context;
    (void)request;
    harness->handled++;
    assert_true(harness->held_count < HELD_CALLS);
    harness->held[harness->held_count++] = call;
    bt_rpc_call_on_cancel(call, on_cancel, harness);
}

const struct bt_rpc_method harness_methods[] = {
    {"test/echo", &baton__v1__tokenize_request__descriptor, handle_echo},
    {"test/fail", &baton__v1__tokenize_request__descriptor, handle_fail},
    {"test/count", &baton__v1__tokenize_request__descriptor, handle_count},
    {"test/hold", &baton__v1__tokenize_request__descriptor, handle_hold},
    {0},
};

static void on_peer(void *context, bool up)
{
    struct harness *harness = context;
    harness->peer_ups += up;
    harness->peer_downs += !up;
}

void harness_init(struct harness *harness, const char *endpoint)
{
    struct bt_error error = {0};
    *harness = (struct harness){.end_on_cancel = true};
    harness->loop = bt_loop_create(&error);
    assert_non_null(harness->loop);
    enum bt_status status =
        bt_rpc_server_create(harness->loop, endpoint ? endpoint : "tcp://127.0.0.1:*",
                             harness_methods, harness, &error, &harness->server);
    if (status != BT_OK) {
        fail_msg("%s", error.text);
    }
    status = bt_rpc_client_create(harness->loop, bt_rpc_server_endpoint(harness->server), &error,
                                  &harness->client);
    if (status != BT_OK) {
        fail_msg("%s", error.text);
    }
    bt_rpc_client_on_peer(harness->client, on_peer, harness);
}

void harness_finish(struct harness *harness)
{
    bt_rpc_client_destroy(harness->client);
    bt_rpc_server_destroy(harness->server);
    bt_loop_destroy(harness->loop);
}

static void on_data(void *context, const ProtobufCMessage *message)
{
    struct outcome *outcome = context;
    outcome->data_count++;
    snprintf(outcome->last_data, sizeof outcome->last_data, "%s",
             ((const Baton__V1__GenerateEvent *)message)->text);
}

static void on_end(void *context, enum bt_status status, const char *text,
                   const ProtobufCMessage *response)
{
    struct outcome *outcome = context;
    outcome->ends++;
    outcome->status = status;
    snprintf(outcome->text, sizeof outcome->text, "%s", text);
    if (response) {
        outcome->id_count = ((const Baton__V1__TokenizeResponse *)response)->n_ids;
    }
}

struct bt_rpc_call_spec harness_spec(const char *method, Baton__V1__TokenizeRequest *request,
                                     struct outcome *outcome)
{
    return (struct bt_rpc_call_spec){
        .method = method,
        .request = &request->base,
        .data = &baton__v1__generate_event__descriptor,
        .response = &baton__v1__tokenize_response__descriptor,
        .deadline_ns = BT_NEVER_NS,
        .on_data = on_data,
        .on_end = on_end,
        .context = outcome,
    };
}

static void run_round(struct harness *harness, int64_t give_up_ns)
{
    struct bt_error error = {0};
    if (bt_clock_now_ns() >= give_up_ns) {
        fail_msg("nothing came in time");
    }
    assert_int_equal(bt_loop_run_once(harness->loop, give_up_ns, &error), BT_OK);
}

void harness_run_int(struct harness *harness, const int *value, int wanted)
{
    int64_t give_up_ns = bt_clock_now_ns() + PATIENCE_NS;
    while (*value < wanted) {
        run_round(harness, give_up_ns);
    }
}

void harness_run_size(struct harness *harness, const size_t *value, size_t wanted)
{
    int64_t give_up_ns = bt_clock_now_ns() + PATIENCE_NS;
    while (*value < wanted) {
        run_round(harness, give_up_ns);
    }
}

void harness_call(struct harness *harness, const char *method, const char *text,
                  struct outcome *outcome)
{
    Baton__V1__TokenizeRequest request = BATON__V1__TOKENIZE_REQUEST__INIT;
    request.text = (char *)text;
    *outcome = (struct outcome){.harness = harness};
    struct bt_rpc_call_spec spec = harness_spec(method, &request, outcome);
    struct bt_error error = {0};
    if (bt_rpc_client_call(harness->client, &spec, &error, NULL) != BT_OK) {
        fail_msg("%s", error.text);
    }
    assert_int_equal(outcome->ends, 0);
    harness_run_int(harness, &outcome->ends, 1);
}
