/*
 * The RPC server and client against arbitrary messages. An input is a list of messages, each
 * [part count][part size][bytes]…: those with bit 7 of the part count go to the client, as from a
 * server, the others to the server, as from a client. After it both must still work.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

#include "common/base/clock.h"
#include "common/messaging/rpc.h"
#include "proto/router.pb-c.h"
#include "proto/rpc.pb-c.h"
#include "tests/fuzz/driver.h"

#define TO_CLIENT   0x80
#define MAX_PARTS   4
#define PING_ID     UINT64_C(0x70696e67)
#define PATIENCE_NS (10 * BT_NS_PER_S)

struct fuzz {
    struct bt_loop *loop;
    struct bt_rpc_server *server;
    struct bt_rpc_client *client;
    void *dealer; /* plays the client */
    void *router; /* plays the server */
    zmq_msg_t identity;
    int ends;
};

static void must(bool ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "%s\n", what);
        abort();
    }
}

/* ------------------------------------------------------------------ the honest halves */

static void handle_echo(void *context, struct bt_rpc_call *call, const ProtobufCMessage *request)
{
    (void)context;
    bt_rpc_call_send(call, request);
    bt_rpc_call_end(call, BT_OK, NULL, request);
}

static void on_cancel(void *context, struct bt_rpc_call *call)
{
    (void)context;
    bt_rpc_call_end(call, BT_ERR_CANCELLED, "cancelled", NULL);
}

static void handle_hold(void *context, struct bt_rpc_call *call, const ProtobufCMessage *request)
{
    (void)request;
    bt_rpc_call_on_cancel(call, on_cancel, context);
}

static const struct bt_rpc_method methods[] = {
    {"echo", &baton__v1__tokenize_request__descriptor, handle_echo},
    {"hold", &baton__v1__tokenize_request__descriptor, handle_hold},
    {0},
};

static void on_data(void *context, const ProtobufCMessage *message)
{
    (void)context;
    must(protobuf_c_message_get_packed_size(message) < 1 << 20, "a message out of nothing");
}

static void on_end(void *context, enum bt_status status, const char *text,
                   const ProtobufCMessage *response)
{
    must(status <= BT_OK && text && (!response || status == BT_OK), "an impossible end");
    ((struct fuzz *)context)->ends++;
}

static void client_start(struct fuzz *fuzz)
{
    Baton__V1__TokenizeRequest request = BATON__V1__TOKENIZE_REQUEST__INIT;
    struct bt_rpc_call_spec spec = {
        .method = "any",
        .request = &request.base,
        .data = &baton__v1__tokenize_request__descriptor,
        .response = &baton__v1__status_response__descriptor,
        .deadline_ns = BT_NEVER_NS,
        .on_data = on_data,
        .on_end = on_end,
        .context = fuzz,
    };
    must(bt_rpc_client_call(fuzz->client, &spec, NULL, NULL) == BT_OK, "no call");
}

/* ------------------------------------------------------------------ the bare halves */

static void *bare_socket(struct fuzz *fuzz, int type)
{
    void *socket = zmq_socket(bt_loop_zmq(fuzz->loop), type);
    must(socket != NULL, "no socket");
    return socket;
}

static void fuzz_init(struct fuzz *fuzz)
{
    *fuzz = (struct fuzz){.loop = bt_loop_create(NULL)};
    must(fuzz->loop != NULL, "no loop");
    must(bt_rpc_server_create(fuzz->loop, "inproc://server", methods, NULL, NULL, &fuzz->server) ==
             BT_OK,
         "no server");
    fuzz->dealer = bare_socket(fuzz, ZMQ_DEALER);
    fuzz->router = bare_socket(fuzz, ZMQ_ROUTER);
    must(zmq_connect(fuzz->dealer, "inproc://server") == 0, "no connection");
    must(zmq_bind(fuzz->router, "inproc://client") == 0, "no bind");
    must(bt_rpc_client_create(fuzz->loop, "inproc://client", NULL, &fuzz->client) == BT_OK,
         "no client");
    client_start(fuzz);
    zmq_msg_init(&fuzz->identity);
    must(zmq_msg_recv(&fuzz->identity, fuzz->router, 0) > 0, "no identity");
}

static void fuzz_finish(struct fuzz *fuzz)
{
    bt_rpc_client_destroy(fuzz->client);
    must(fuzz->ends == 1, "a call did not end once");
    bt_rpc_server_destroy(fuzz->server);
    zmq_msg_close(&fuzz->identity);
    zmq_close(fuzz->dealer);
    zmq_close(fuzz->router);
    bt_loop_destroy(fuzz->loop);
}

static void identity_send(struct fuzz *fuzz)
{
    zmq_send(fuzz->router, zmq_msg_data(&fuzz->identity), zmq_msg_size(&fuzz->identity),
             ZMQ_SNDMORE | ZMQ_DONTWAIT);
}

/* Sends the first message of the input; how many bytes it took. */
static size_t message_send(struct fuzz *fuzz, const uint8_t *data, size_t size)
{
    bool to_client = data[0] & TO_CLIENT;
    void *socket = to_client ? fuzz->router : fuzz->dealer;
    size_t parts = 1 + data[0] % MAX_PARTS;
    size_t used = 1;
    if (to_client) {
        identity_send(fuzz);
    }
    for (size_t i = 0; i < parts; i++) {
        size_t part = used < size ? data[used++] : 0;
        part = part < size - used ? part : size - used;
        zmq_send(socket, data + used, part, ZMQ_DONTWAIT | (i + 1 < parts ? ZMQ_SNDMORE : 0));
        used += part;
    }
    return used;
}

static void ping_send(void *socket)
{
    uint8_t packed[32];
    Baton__V1__Frame ping = BATON__V1__FRAME__INIT;
    ping.kind = BATON__V1__FRAME__KIND__PING;
    ping.call_id = PING_ID;
    size_t size = baton__v1__frame__pack(&ping, packed);
    zmq_send(socket, packed, size, ZMQ_SNDMORE);
    zmq_send(socket, "", 0, 0);
}

/* Reads what is there; true when the PONG to our PING was in it. */
static bool pong_seen(void *socket)
{
    bool seen = false;
    zmq_msg_t part;
    zmq_msg_init(&part);
    while (zmq_msg_recv(&part, socket, ZMQ_DONTWAIT) >= 0) {
        Baton__V1__Frame *frame =
            baton__v1__frame__unpack(NULL, zmq_msg_size(&part), zmq_msg_data(&part));
        seen |= frame && frame->kind == BATON__V1__FRAME__KIND__PONG && frame->call_id == PING_ID;
        if (frame) {
            baton__v1__frame__free_unpacked(frame, NULL);
        }
    }
    zmq_msg_close(&part);
    return seen;
}

/* Both answer a PING that came after everything else. */
static void still_alive(struct fuzz *fuzz)
{
    ping_send(fuzz->dealer);
    identity_send(fuzz);
    ping_send(fuzz->router);
    bool server = false, client = false;
    int64_t give_up_ns = bt_clock_now_ns() + PATIENCE_NS;
    while (!server || !client) {
        must(bt_clock_now_ns() < give_up_ns, "no answer to a ping");
        bt_loop_run_once(fuzz->loop, 0, NULL);
        server |= pong_seen(fuzz->dealer);
        client |= pong_seen(fuzz->router);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz fuzz;
    fuzz_init(&fuzz);
    for (size_t at = 0; at < size;) {
        at += message_send(&fuzz, data + at, size - at);
    }
    still_alive(&fuzz);
    fuzz_finish(&fuzz);
    return 0;
}

/* ------------------------------------------------------------------ seeds */

static size_t put_message(uint8_t *ret_data, bool to_client, const Baton__V1__Frame *frame,
                          const char *payload)
{
    size_t header = baton__v1__frame__get_packed_size(frame);
    ret_data[0] = (uint8_t)(1 | (to_client ? TO_CLIENT : 0)); /* two parts */
    ret_data[1] = (uint8_t)header;
    baton__v1__frame__pack(frame, ret_data + 2);
    ret_data[2 + header] = (uint8_t)strlen(payload);
    memcpy(ret_data + 3 + header, payload, strlen(payload));
    return 3 + header + strlen(payload);
}

static size_t put_frame(uint8_t *ret_data, Baton__V1__Frame__Kind kind, uint64_t id,
                        const char *method, const char *payload)
{
    Baton__V1__Frame frame = BATON__V1__FRAME__INIT;
    frame.kind = kind;
    frame.call_id = id;
    frame.method = (char *)method;
    frame.version = method[0] ? 1 : 0;
    frame.timeout_ms = id;
    bool to_client = kind == BATON__V1__FRAME__KIND__DATA || kind == BATON__V1__FRAME__KIND__END;
    return put_message(ret_data, to_client, &frame, payload);
}

size_t fuzz_seed(size_t index, uint8_t *ret_data, size_t capacity)
{
    must(capacity >= 1024, "no room for a seed");
    size_t size = 0;
    switch (index) {
    case 0:
        size += put_frame(ret_data, BATON__V1__FRAME__KIND__CALL, 1, "echo", "\x0a\x02hi");
        size += put_frame(ret_data + size, BATON__V1__FRAME__KIND__CALL, 2, "hold", "");
        size += put_frame(ret_data + size, BATON__V1__FRAME__KIND__CALL, 3, "nothing", "");
        size += put_frame(ret_data + size, BATON__V1__FRAME__KIND__CANCEL, 2, "", "");
        size += put_frame(ret_data + size, BATON__V1__FRAME__KIND__PING, 9, "", "");
        return size;
    case 1:
        size += put_frame(ret_data, BATON__V1__FRAME__KIND__DATA, 1, "",
                          "\x0a\x02hi\x12\x06\x0a\x01u\x12\x01x");
        return size + put_frame(ret_data + size, BATON__V1__FRAME__KIND__END, 1, "",
                                "\x0a\x04\x0a\x02w0\x18\x03");
    case 2:
        return put_frame(ret_data, BATON__V1__FRAME__KIND__CALL, 7, "hold", "");
    default:
        return 0;
    }
}
