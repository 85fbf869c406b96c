/* Peers that break the protocol: bare sockets send what no client or server of ours would. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

#include "proto/rpc.pb-c.h"
#include "tests/unit/messaging/harness.h"

#define PATIENCE_NS (60 * BT_NS_PER_S)

struct fixture {
    struct harness harness;
    void *zmq;
    void *raw; /* a DEALER connected to the harness's server */
};

static void *raw_connect(struct fixture *fixture, const char *identity)
{
    void *raw = zmq_socket(fixture->zmq, ZMQ_DEALER);
    int zero = 0;
    zmq_setsockopt(raw, ZMQ_LINGER, &zero, sizeof zero);
    zmq_setsockopt(raw, ZMQ_SNDHWM, &zero, sizeof zero);
    if (identity) {
        zmq_setsockopt(raw, ZMQ_ROUTING_ID, identity, strlen(identity));
    }
    assert_int_equal(zmq_connect(raw, bt_rpc_server_endpoint(fixture->harness.server)), 0);
    return raw;
}

static void setup(struct fixture *fixture)
{
    harness_init(&fixture->harness, NULL);
    fixture->zmq = zmq_ctx_new();
    fixture->raw = raw_connect(fixture, NULL);
}

/* The server must still serve everybody else. */
static void teardown(struct fixture *fixture)
{
    struct outcome outcome;
    harness_call(&fixture->harness, "test/echo", "still here", &outcome);
    assert_int_equal(outcome.status, BT_OK);
    assert_int_equal(outcome.id_count, 10);
    zmq_close(fixture->raw);
    zmq_ctx_term(fixture->zmq);
    harness_finish(&fixture->harness);
}

static void part_send(void *socket, const void *data, size_t size, bool more)
{
    assert_int_equal(zmq_send(socket, data, size, more ? ZMQ_SNDMORE : 0), (int)size);
}

static void frame_send(void *socket, const Baton__V1__Frame *frame, const void *payload,
                       size_t payload_size)
{
    size_t size = baton__v1__frame__get_packed_size(frame);
    unsigned char *packed = malloc(size + 1);
    baton__v1__frame__pack(frame, packed);
    part_send(socket, packed, size, true);
    part_send(socket, payload, payload_size, false);
    free(packed);
}

static Baton__V1__Frame call_frame(uint64_t id, const char *method)
{
    Baton__V1__Frame frame = BATON__V1__FRAME__INIT;
    frame.kind = BATON__V1__FRAME__KIND__CALL;
    frame.call_id = id;
    frame.method = (char *)method;
    frame.version = 1;
    return frame;
}

static void call_send(void *socket, uint64_t id, const char *method)
{
    Baton__V1__Frame frame = call_frame(id, method);
    frame_send(socket, &frame, "", 0);
}

/* Runs the server until a message is there for `raw`, and unpacks its first part. */
static Baton__V1__Frame *frame_receive(struct fixture *fixture, void *raw)
{
    int64_t give_up_ns = bt_clock_now_ns() + PATIENCE_NS;
    unsigned char data[8192];
    int size;
    while ((size = zmq_recv(raw, data, sizeof data, ZMQ_DONTWAIT)) < 0) {
        assert_int_equal(errno, EAGAIN);
        assert_true(bt_clock_now_ns() < give_up_ns);
        bt_loop_run_once(fixture->harness.loop, bt_clock_now_ns() + BT_NS_PER_MS, NULL);
    }
    Baton__V1__Frame *frame = baton__v1__frame__unpack(NULL, (size_t)size, data);
    assert_non_null(frame);
    assert_true(zmq_recv(raw, data, sizeof data, ZMQ_DONTWAIT) >= 0);
    return frame;
}

static void expect_end(struct fixture *fixture, uint64_t id, const char *status, const char *text)
{
    Baton__V1__Frame *frame = frame_receive(fixture, fixture->raw);
    assert_int_equal(frame->kind, BATON__V1__FRAME__KIND__END);
    assert_int_equal(frame->call_id, id);
    assert_string_equal(frame->status, status);
    if (!strstr(frame->message, text)) {
        fail_msg("'%s' does not hold '%s'", frame->message, text);
    }
    baton__v1__frame__free_unpacked(frame, NULL);
}

/* An answered PING proves that all before it was handled: a connection keeps its order. */
static void run_until_pong(struct fixture *fixture, uint64_t id)
{
    Baton__V1__Frame ping = BATON__V1__FRAME__INIT;
    ping.kind = BATON__V1__FRAME__KIND__PING;
    ping.call_id = id;
    frame_send(fixture->raw, &ping, "", 0);
    Baton__V1__Frame *frame = frame_receive(fixture, fixture->raw);
    assert_int_equal(frame->kind, BATON__V1__FRAME__KIND__PONG);
    assert_int_equal(frame->call_id, id);
    baton__v1__frame__free_unpacked(frame, NULL);
}

static void test_broken_frames(void **state)
{
    (void)state;
    struct fixture fixture;
    setup(&fixture);
    void *raw = fixture.raw;
    part_send(raw, "alone", 5, false);
    part_send(raw, "", 0, false);
    for (int i = 0; i < 9; i++) {
        part_send(raw, "part", 4, true);
    }
    part_send(raw, "part", 4, false);
    part_send(raw, "", 0, true); /* as a REQ socket would: an empty delimiter first */
    part_send(raw, "\x08\x01", 2, true);
    part_send(raw, "", 0, false);
    part_send(raw, "\xff\xff\xff\xff\xff\xff", 6, true); /* no protobuf */
    part_send(raw, "", 0, false);
    part_send(raw, "\x1a\xff\xff\xff\x7f\x61", 6, true); /* a string longer than the frame */
    part_send(raw, "", 0, false);
    run_until_pong(&fixture, 1);
    assert_int_equal(bt_rpc_server_dropped(fixture.harness.server), 6);
    assert_int_equal(fixture.harness.handled, 0);
    teardown(&fixture);
}

static void test_wrong_kinds(void **state)
{
    (void)state;
    struct fixture fixture;
    setup(&fixture);
    const int kinds[] = {BATON__V1__FRAME__KIND__KIND_UNSPECIFIED, BATON__V1__FRAME__KIND__DATA,
                         BATON__V1__FRAME__KIND__END, 77};
    for (size_t i = 0; i < 4; i++) {
        Baton__V1__Frame frame = call_frame(1, "test/echo");
        frame.kind = (Baton__V1__Frame__Kind)kinds[i];
        frame_send(fixture.raw, &frame, "", 0);
    }
    Baton__V1__Frame cancel = BATON__V1__FRAME__INIT;
    cancel.kind = BATON__V1__FRAME__KIND__CANCEL;
    cancel.call_id = 12345; /* nobody's */
    frame_send(fixture.raw, &cancel, "", 0);
    run_until_pong(&fixture, UINT64_MAX);
    assert_int_equal(bt_rpc_server_dropped(fixture.harness.server), 4);
    assert_int_equal(fixture.harness.handled, 0);
    teardown(&fixture);
}

static void test_wrong_calls(void **state)
{
    (void)state;
    struct fixture fixture;
    setup(&fixture);
    call_send(fixture.raw, 1, "test/nothing");
    expect_end(&fixture, 1, "not_found", "test/nothing");
    call_send(fixture.raw, 2, "");
    expect_end(&fixture, 2, "not_found", "");
    call_send(fixture.raw, 3, "\xc3\x28\xff");
    expect_end(&fixture, 3, "not_found", "?(?");
    char *huge = malloc(1 << 20);
    memset(huge, 'm', 1 << 20);
    huge[(1 << 20) - 1] = '\0';
    call_send(fixture.raw, 4, huge);
    free(huge);
    expect_end(&fixture, 4, "not_found", "mmm");
    call_send(fixture.raw, 0, "test/echo");
    expect_end(&fixture, 0, "invalid_argument", "call_id");
    Baton__V1__Frame frame = call_frame(5, "test/echo");
    frame.version = 2;
    frame_send(fixture.raw, &frame, "", 0);
    expect_end(&fixture, 5, "mismatch", "version");
    frame = call_frame(6, "test/echo");
    frame_send(fixture.raw, &frame, "\x0a\x7f", 2);
    expect_end(&fixture, 6, "invalid_argument", "baton.v1.TokenizeRequest");
    frame = call_frame(7, "test/echo");
    frame.timeout_ms = UINT64_MAX;
    frame_send(fixture.raw, &frame, "", 0);
    expect_end(&fixture, 7, "ok", "");
    assert_true(fixture.harness.last_deadline_ns == BT_NEVER_NS);
    assert_int_equal(fixture.harness.handled, 1);
    teardown(&fixture);
}

static void test_call_id_in_use(void **state)
{
    (void)state;
    struct fixture fixture;
    setup(&fixture);
    call_send(fixture.raw, 9, "test/hold");
    call_send(fixture.raw, 9, "test/hold");
    run_until_pong(&fixture, 1);
    assert_int_equal(fixture.harness.held_count, 1);
    assert_int_equal(bt_rpc_server_dropped(fixture.harness.server), 1);
    bt_rpc_call_end(fixture.harness.held[0], BT_OK, NULL, NULL);
    expect_end(&fixture, 9, "ok", "");
    teardown(&fixture);
}

/* Two bytes on the wire that become an object of 40: memory is bounded, not only the message. */
static void test_amplification(void **state)
{
    (void)state;
    struct fixture fixture;
    setup(&fixture);
    size_t size = 32u << 20;
    unsigned char *payload = malloc(size);
    for (size_t i = 0; i < size; i += 2) {
        payload[i] = 0x12; /* TokenizeRequest.messages, empty */
        payload[i + 1] = 0;
    }
    Baton__V1__Frame frame = call_frame(1, "test/echo");
    frame_send(fixture.raw, &frame, payload, size);
    free(payload);
    expect_end(&fixture, 1, "invalid_argument", "TokenizeRequest");
    teardown(&fixture);
}

/* A message over the limit costs its sender the connection, and nobody else anything. */
static void test_oversized(void **state)
{
    (void)state;
    struct fixture fixture;
    setup(&fixture);
    call_send(fixture.raw, 1, "test/hold");
    run_until_pong(&fixture, 1);
    size_t size = BT_RPC_MAX_MESSAGE_BYTES + 1;
    unsigned char *payload = calloc(1, size);
    Baton__V1__Frame frame = call_frame(2, "test/echo");
    frame_send(fixture.raw, &frame, payload, size);
    free(payload);
    bt_rpc_server_set_keepalive(fixture.harness.server, 3600000); /* not by its silence */
    harness_run_size(&fixture.harness, &fixture.harness.cancels, 1);
    assert_int_equal(fixture.harness.handled, 1);
    assert_int_equal(bt_rpc_server_open_calls(fixture.harness.server), 0);
    teardown(&fixture);
}

static void test_too_many_calls(void **state)
{
    (void)state;
    struct fixture fixture;
    setup(&fixture);
    for (uint64_t id = 1; id <= BT_RPC_MAX_CALLS_PER_PEER; id++) {
        call_send(fixture.raw, id, "test/hold");
    }
    call_send(fixture.raw, 1000000, "test/hold");
    expect_end(&fixture, 1000000, "exhausted", "4096");
    assert_int_equal(fixture.harness.held_count, BT_RPC_MAX_CALLS_PER_PEER);
    bt_rpc_call_end(fixture.harness.held[--fixture.harness.held_count], BT_OK, NULL, NULL);
    expect_end(&fixture, BT_RPC_MAX_CALLS_PER_PEER, "ok", "");
    call_send(fixture.raw, 1000001, "test/echo");
    expect_end(&fixture, 1000001, "ok", "");
    zmq_close(fixture.raw);
    fixture.raw = raw_connect(&fixture, NULL);
    harness_run_size(&fixture.harness, &fixture.harness.cancels, BT_RPC_MAX_CALLS_PER_PEER - 1);
    assert_int_equal(bt_rpc_server_open_calls(fixture.harness.server), 0);
    teardown(&fixture);
}

/* A client that asks and never reads: what waits for it is bounded; what it reads is complete. */
static void test_never_reads(void **state)
{
    (void)state;
    struct fixture fixture;
    setup(&fixture);
    zmq_close(fixture.raw);
    fixture.raw = zmq_socket(fixture.zmq, ZMQ_DEALER);
    int zero = 0, few = 200, small = 1 << 16;
    zmq_setsockopt(fixture.raw, ZMQ_LINGER, &zero, sizeof zero);
    zmq_setsockopt(fixture.raw, ZMQ_SNDHWM, &zero, sizeof zero);
    zmq_setsockopt(fixture.raw, ZMQ_RCVHWM, &few, sizeof few);
    zmq_setsockopt(fixture.raw, ZMQ_RCVBUF, &small, sizeof small);
    assert_int_equal(zmq_connect(fixture.raw, bt_rpc_server_endpoint(fixture.harness.server)), 0);
    unsigned char payload[2048 + 3] = {0x0a, 0x80, 0x10}; /* text: 2048 bytes */
    memset(payload + 3, 'x', 2048);
    const size_t sent = 15000;
    for (uint64_t id = 1; id <= sent; id++) {
        Baton__V1__Frame frame = call_frame(id, "test/echo");
        frame_send(fixture.raw, &frame, payload, sizeof payload);
    }
    int64_t give_up_ns = bt_clock_now_ns() + PATIENCE_NS;
    while (bt_rpc_server_dropped(fixture.harness.server) == 0) {
        assert_true(bt_clock_now_ns() < give_up_ns);
        bt_loop_run_once(fixture.harness.loop, give_up_ns, NULL);
    }
    size_t received = 0;
    while (received + bt_rpc_server_dropped(fixture.harness.server) < sent) {
        Baton__V1__Frame *frame = frame_receive(&fixture, fixture.raw);
        received += frame->kind == BATON__V1__FRAME__KIND__END;
        baton__v1__frame__free_unpacked(frame, NULL);
    }
    assert_true(fixture.harness.handled >= BT_RPC_MAX_CALLS_PER_PEER);
    teardown(&fixture);
}

/* A connection that stands while its program says nothing, not even to PINGs. */
static void test_silent_client(void **state)
{
    (void)state;
    struct fixture fixture;
    setup(&fixture);
    bt_rpc_server_set_keepalive(fixture.harness.server, 10);
    call_send(fixture.raw, 1, "test/hold");
    harness_run_size(&fixture.harness, &fixture.harness.held_count, 1);
    int64_t before_ns = bt_clock_now_ns();
    harness_run_size(&fixture.harness, &fixture.harness.cancels, 1);
    assert_true(bt_clock_now_ns() - before_ns >= 90 * BT_NS_PER_MS);
    teardown(&fixture);
}

/* A name that a client gave itself does not let it inherit the calls of its last connection. */
static void test_same_identity_again(void **state)
{
    (void)state;
    struct fixture fixture;
    setup(&fixture);
    zmq_close(fixture.raw);
    fixture.raw = raw_connect(&fixture, "me");
    call_send(fixture.raw, 1, "test/hold");
    harness_run_size(&fixture.harness, &fixture.harness.held_count, 1);
    zmq_close(fixture.raw);
    harness_run_size(&fixture.harness, &fixture.harness.cancels, 1);
    fixture.raw = raw_connect(&fixture, "me");
    call_send(fixture.raw, 1, "test/hold");
    harness_run_size(&fixture.harness, &fixture.harness.held_count, 1);
    assert_int_equal(fixture.harness.cancels, 1);
    bt_rpc_call_end(fixture.harness.held[0], BT_OK, NULL, NULL);
    expect_end(&fixture, 1, "ok", "");
    teardown(&fixture);
}

/* ------------------------------------------------------------------ a server that lies */

struct liar {
    struct harness harness; /* without a server */
    void *zmq;
    void *router;
    unsigned char identity[256];
    size_t identity_size;
};

static void liar_init(struct liar *liar)
{
    char endpoint[256];
    size_t size = sizeof endpoint;
    *liar = (struct liar){.zmq = zmq_ctx_new()};
    liar->router = zmq_socket(liar->zmq, ZMQ_ROUTER);
    int zero = 0;
    zmq_setsockopt(liar->router, ZMQ_LINGER, &zero, sizeof zero);
    assert_int_equal(zmq_bind(liar->router, "tcp://127.0.0.1:*"), 0);
    zmq_getsockopt(liar->router, ZMQ_LAST_ENDPOINT, endpoint, &size);
    liar->harness.loop = bt_loop_create(NULL);
    assert_int_equal(
        bt_rpc_client_create(liar->harness.loop, endpoint, NULL, &liar->harness.client), BT_OK);
}

static void liar_finish(struct liar *liar)
{
    harness_finish(&liar->harness);
    zmq_close(liar->router);
    zmq_ctx_term(liar->zmq);
}

/* Runs the client until a frame of this kind came from it; its call id. */
static uint64_t liar_receive(struct liar *liar, Baton__V1__Frame__Kind kind)
{
    int64_t give_up_ns = bt_clock_now_ns() + PATIENCE_NS;
    for (;;) {
        int size;
        while ((size = zmq_recv(liar->router, liar->identity, sizeof liar->identity,
                                ZMQ_DONTWAIT)) < 0) {
            assert_true(bt_clock_now_ns() < give_up_ns);
            bt_loop_run_once(liar->harness.loop, bt_clock_now_ns() + BT_NS_PER_MS, NULL);
        }
        liar->identity_size = (size_t)size;
        unsigned char data[1024];
        size = zmq_recv(liar->router, data, sizeof data, 0);
        Baton__V1__Frame *frame = baton__v1__frame__unpack(NULL, (size_t)size, data);
        assert_non_null(frame);
        zmq_recv(liar->router, data, sizeof data, 0);
        bool wanted = frame->kind == kind;
        uint64_t id = frame->call_id;
        baton__v1__frame__free_unpacked(frame, NULL);
        if (wanted) {
            return id;
        }
    }
}

/* Starts a call and takes its CALL from the wire; its id. */
static uint64_t liar_take_call(struct liar *liar, struct outcome *outcome)
{
    Baton__V1__TokenizeRequest request = BATON__V1__TOKENIZE_REQUEST__INIT;
    *outcome = (struct outcome){0};
    struct bt_rpc_call_spec spec = harness_spec("test/any", &request, outcome);
    assert_int_equal(bt_rpc_client_call(liar->harness.client, &spec, NULL, NULL), BT_OK);
    return liar_receive(liar, BATON__V1__FRAME__KIND__CALL);
}

static void liar_send(struct liar *liar, Baton__V1__Frame__Kind kind, uint64_t id,
                      const char *status, const char *payload)
{
    Baton__V1__Frame frame = BATON__V1__FRAME__INIT;
    frame.kind = kind;
    frame.call_id = id;
    frame.status = (char *)status;
    part_send(liar->router, liar->identity, liar->identity_size, true);
    frame_send(liar->router, &frame, payload, strlen(payload));
}

static void test_lying_server(void **state)
{
    (void)state;
    static const struct {
        Baton__V1__Frame__Kind kind;
        const char *status;
        const char *payload;
        enum bt_status expected;
    } lies[] = {
        {BATON__V1__FRAME__KIND__DATA, "", "\x0a\x7f", BT_ERR_PROTOCOL},
        {BATON__V1__FRAME__KIND__END, "", "\x0a\x7f", BT_ERR_PROTOCOL},
        {BATON__V1__FRAME__KIND__END, "no such status", "", BT_ERR_PROTOCOL},
        {BATON__V1__FRAME__KIND__END, "in_progress", "", BT_ERR_PROTOCOL},
        {BATON__V1__FRAME__KIND__END, "stale", "\x0a\x7f", BT_ERR_STALE},
        {BATON__V1__FRAME__KIND__END, "", "", BT_OK},
    };
    struct liar liar;
    liar_init(&liar);
    for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++) {
        struct outcome outcome;
        uint64_t id = liar_take_call(&liar, &outcome);
        part_send(liar.router, liar.identity, liar.identity_size, true);
        part_send(liar.router, "\xff\xff", 2, false); /* one part, no frame */
        liar_send(&liar, BATON__V1__FRAME__KIND__PING, 4711, "", "");
        assert_int_equal(liar_receive(&liar, BATON__V1__FRAME__KIND__PONG), 4711);
        liar_send(&liar, BATON__V1__FRAME__KIND__CALL, id, "", "");
        liar_send(&liar, (Baton__V1__Frame__Kind)99, id, "", "");
        liar_send(&liar, BATON__V1__FRAME__KIND__END, id + 1000, "", "");
        liar_send(&liar, BATON__V1__FRAME__KIND__DATA, id + 1000, "", "");
        liar_send(&liar, lies[i].kind, id, lies[i].status, lies[i].payload);
        liar_send(&liar, BATON__V1__FRAME__KIND__END, id, "", ""); /* once more */
        harness_run_int(&liar.harness, &outcome.ends, 1);
        assert_int_equal(outcome.status, lies[i].expected);
        assert_int_equal(outcome.ends, 1);
    }
    liar_finish(&liar);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_broken_frames),  cmocka_unit_test(test_wrong_kinds),
        cmocka_unit_test(test_wrong_calls),    cmocka_unit_test(test_call_id_in_use),
        cmocka_unit_test(test_amplification),  cmocka_unit_test(test_oversized),
        cmocka_unit_test(test_too_many_calls), cmocka_unit_test(test_never_reads),
        cmocka_unit_test(test_silent_client),  cmocka_unit_test(test_same_identity_again),
        cmocka_unit_test(test_lying_server),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
