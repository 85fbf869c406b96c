/* CURVE between parties with keys of their own. Party 0 serves; 1 and 2 are clients; 3 is somebody
 * else. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zmq.h>

#include "common/messaging/curve.h"
#include "tests/unit/messaging/secured.h"

#define MANY_CALLS 40

/* A client that hears of the end of its connection in the middle of a call says so first. */
static void expect_refused(struct world *world, size_t party, const char *text)
{
    struct outcome outcome;
    do {
        world_call(world, party, "test/echo", "hello", &outcome);
    } while (outcome.status == BT_ERR_PEER_LOST);
    assert_string_equal(bt_status_name(outcome.status), "unavailable");
    expect_text(outcome.text, text);
}

/* ------------------------------------------------------------------ files */

static void expect_secure(struct world *world, const char *secret, const char *allow,
                          enum bt_status status, const char *text)
{
    (void)world;
    struct bt_loop *loop = bt_loop_create(NULL);
    struct bt_error error = {0};
    const struct bt_security_values values = {secret, allow};
    assert_string_equal(bt_status_name(bt_loop_secure(loop, &values, &error)),
                        bt_status_name(status));
    expect_text(error.text, text);
    assert_true(status == BT_OK || bt_loop_public_key(loop) == NULL);
    bt_loop_destroy(loop);
}

static void test_flags(void **state)
{
    struct world *world = *state;
    struct party *party = &world->parties[0];
    party_allow(world, 0, ALL);
    expect_secure(world, NULL, NULL, BT_OK, "");
    expect_secure(world, party->secret_path, NULL, BT_ERR_INVALID_ARGUMENT, "--curve-allow-file");
    expect_secure(world, NULL, party->allow_path, BT_ERR_INVALID_ARGUMENT, "--curve-secret-file");
    expect_secure(world, "/nowhere/secret", party->allow_path, BT_ERR_NOT_FOUND, "/nowhere/secret");
    expect_secure(world, party->secret_path, "/nowhere/list", BT_ERR_NOT_FOUND, "/nowhere/list");
    expect_secure(world, world->directory, party->allow_path, BT_ERR_IO, world->directory);
    /* Each in the other's place; neither is repeated in the text. */
    expect_secure(world, party->allow_path, party->allow_path, BT_ERR_INVALID_ARGUMENT,
                  "mode 0644");
    expect_secure(world, party->secret_path, party->secret_path, BT_ERR_INVALID_ARGUMENT,
                  "line 2: does not start with a public key");
}

/* The library's, unless a test says that it has none. */
static bool no_curve;
int __real_zmq_has(const char *capability);
int __wrap_zmq_has(const char *capability);

int __wrap_zmq_has(const char *capability)
{
    return strcmp(capability, "curve") == 0 && no_curve ? 0 : __real_zmq_has(capability);
}

static void test_library_without_curve(void **state)
{
    struct world *world = *state;
    struct party *party = &world->parties[0];
    char hex[BT_KEY_HEX_SIZE];
    struct bt_error error = {0};
    party_allow(world, 0, ALL);
    no_curve = true;
    expect_secure(world, party->secret_path, party->allow_path, BT_ERR_UNSUPPORTED, "CURVE");
    assert_int_equal(bt_security_generate("/nowhere/key", &error, hex), BT_ERR_UNSUPPORTED);
    no_curve = false;
    expect_secure(world, party->secret_path, party->allow_path, BT_OK, "");
}

static void test_secret_modes(void **state)
{
    struct world *world = *state;
    struct party *party = &world->parties[0];
    struct stat info;
    party_allow(world, 0, ALL);
    assert_int_equal(stat(party->secret_path, &info), 0);
    assert_int_equal(info.st_mode & 07777u, 0600);
    static const unsigned bad[] = {0640, 0620, 0610, 0604, 0602, 0601, 0777};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        char text[64];
        snprintf(text, sizeof text, "mode %04o", bad[i]);
        assert_int_equal(chmod(party->secret_path, bad[i]), 0);
        expect_secure(world, party->secret_path, party->allow_path, BT_ERR_INVALID_ARGUMENT, text);
    }
    assert_int_equal(chmod(party->secret_path, 0400), 0);
    expect_secure(world, party->secret_path, party->allow_path, BT_OK, "");
    assert_int_equal(chmod(party->secret_path, 0600), 0);
    struct bt_error error = {0};
    char hex[BT_KEY_HEX_SIZE] = "untouched";
    assert_int_equal(bt_security_generate(party->secret_path, &error, hex), BT_ERR_ALREADY_EXISTS);
    assert_string_equal(hex, "untouched");
    assert_int_equal(bt_security_generate("/nowhere/key", &error, hex), BT_ERR_IO);
}

/* X25519 of RFC 7748, section 6.1: the keys of Alice and Bob. */
static void test_public_of_secret(void **state)
{
    struct world *world = *state;
    struct party *party = &world->parties[0];
    static const char *const pairs[][2] = {
        {"77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a",
         "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"},
        {"5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
         "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"},
    };
    char path[PATH_SIZE + 8];
    party_allow(world, 0, ALL);
    snprintf(path, sizeof path, "%s.pair", party->secret_path);
    for (size_t i = 0; i < 2; i++) {
        char text[256];
        snprintf(text, sizeof text, "secret-key %s", pairs[i][0]);
        file_write(path, text, 0600);
        const struct bt_security_values values = {path, party->allow_path};
        struct bt_loop *loop = bt_loop_create(NULL);
        assert_int_equal(bt_loop_secure(loop, &values, NULL), BT_OK);
        unlink(path);
        assert_string_equal(bt_loop_public_key(loop), pairs[i][1]);
        bt_loop_destroy(loop);
    }
}

/* ------------------------------------------------------------------ admission */

static void test_both_know_each_other(void **state)
{
    struct world *world = *state;
    serve_two(world);
    const char *key = strchr(endpoint_of(world, 0), '#');
    assert_non_null(key);
    assert_string_equal(key + 1, world->parties[0].public_hex);
    expect_call(world, 1, BT_OK, "");
    expect_call(world, 2, BT_OK, "");
    struct outcome outcome;
    world_call(world, 1, "test/count", "200", &outcome);
    assert_int_equal(outcome.data_count, 200);
    world_start(world, 2, "test/hold", &outcome);
    world_run_size(world, &world->parties[0].harness.held_count, 1);
    struct bt_rpc_call *call = world->parties[0].harness.held[0];
    assert_string_equal(bt_rpc_call_key_name(call), "party-2");
    bt_rpc_call_end(call, BT_OK, NULL, NULL);
    world_run_int(world, &outcome.ends, 1);
    for (int reason = 0; reason < BT_REFUSAL_COUNT; reason++) {
        assert_int_equal(bt_loop_refused(world->parties[0].harness.loop, (enum bt_refusal)reason),
                         0);
    }
    assert_int_equal(bt_rpc_server_dropped(world->parties[0].harness.server), 0);
}

static void test_over_a_path(void **state)
{
    struct world *world = *state;
    char endpoint[PATH_SIZE + 16];
    party_allow(world, 0, ALL);
    party_secure(world, 0);
    snprintf(endpoint, sizeof endpoint, "ipc://%.200s/socket", world->directory);
    party_serve(world, 0, endpoint);
    party_allow(world, 1, ALL);
    party_secure(world, 1);
    party_connect(world, 1, endpoint_of(world, 0));
    expect_call(world, 1, BT_OK, "");
}

/* The endpoint holds a key that the client admits and another process has. */
static void test_wrong_server_key(void **state)
{
    struct world *world = *state;
    char endpoint[512];
    serve_two(world);
    endpoint_with(world, world->parties[3].public_hex, endpoint, sizeof endpoint);
    party_connect(world, 1, endpoint);
    /* Not by its silence. */
    bt_rpc_client_set_keepalive(world->parties[1].harness.client, 3600000);
    expect_call(world, 1, BT_ERR_UNAVAILABLE, "its key is not the one in the endpoint");
    expect_call(world, 1, BT_ERR_UNAVAILABLE, "its key is not the one in the endpoint");
    world_run_refused(world, 0, BT_REFUSED_HANDSHAKE, 1);
    assert_int_equal(world->parties[0].harness.handled, 0);
    expect_call(world, 2, BT_OK, "");
    char log[8192];
    world_log_read(world, log, sizeof log);
    expect_text(log, "refused a connection from ");
    expect_text(log, "it takes this server for one with another key");
}

static void test_unlisted_client(void **state)
{
    struct world *world = *state;
    serve_two(world);
    party_allow(world, 0, ALL & ~2u);
    struct bt_error error = {0};
    assert_int_equal(bt_security_reload(world->parties[0].harness.loop, &error), BT_OK);
    expect_call(world, 1, BT_ERR_UNAVAILABLE, "does not admit our key");
    struct outcome outcome;
    world_call(world, 1, "test/echo", "hello", &outcome);
    expect_text(outcome.text, world->parties[1].public_hex);
    assert_int_equal(world->parties[0].harness.handled, 0);
    assert_true(bt_loop_refused(world->parties[0].harness.loop, BT_REFUSED_KEY) > 0);
    expect_call(world, 2, BT_OK, "");
    char log[8192];
    world_log_read(world, log, sizeof log);
    expect_text(log, world->parties[1].public_hex);
    expect_text(log, "(was 'party-1')");
    /* And when the operator has put it into the list: without anything done at the client. */
    party_allow(world, 0, ALL);
    assert_int_equal(bt_security_reload(world->parties[0].harness.loop, &error), BT_OK);
    world_call_until_ok(world, 1);
}

static void test_unlisted_server(void **state)
{
    struct world *world = *state;
    serve_two(world);
    party_allow(world, 3, 1u << 1);
    party_secure(world, 3);
    struct bt_error error = {0};
    assert_int_equal(bt_rpc_client_create(world->parties[3].harness.loop, endpoint_of(world, 0),
                                          &error, &world->parties[3].harness.client),
                     BT_ERR_UNAVAILABLE);
    assert_null(world->parties[3].harness.client);
    expect_text(error.text, world->parties[0].public_hex);
    expect_text(error.text, world->parties[3].allow_path);
}

/* ------------------------------------------------------------------ lists that change */

/* Its connections are broken, the idle one too; nobody else's. */
static void test_client_removed(void **state)
{
    struct world *world = *state;
    struct harness *server = &world->parties[0].harness;
    struct outcome held, other;
    serve_two(world);
    server->end_on_cancel = true;
    world_start(world, 1, "test/hold", &held);
    world_run_size(world, &server->held_count, 1);
    world_start(world, 2, "test/hold", &other);
    world_run_size(world, &server->held_count, 2);
    party_connect(world, 1, endpoint_of(world, 0));
    expect_call(world, 1, BT_OK, ""); /* so that it is there, and now idle */
    party_allow(world, 0, ALL & ~2u);
    assert_int_equal(bt_security_reload(server->loop, NULL), BT_OK);
    assert_int_equal(held.ends, 0); /* nothing is called back in there */
    world_run_int(world, &held.ends, 1);
    assert_int_equal(held.status, BT_ERR_PEER_LOST);
    assert_int_equal(server->cancels, 1);
    world_run_refused(world, 0, BT_REFUSED_REMOVED, 2);
    expect_refused(world, 1, "does not admit our key");
    struct bt_rpc_client *idle = world->parties[1].harness.client;
    world->parties[1].harness.client = world->parties[1].other_client;
    world->parties[1].other_client = idle;
    expect_refused(world, 1, "does not admit our key");
    /* The other one's call is untouched. */
    assert_int_equal(other.ends, 0);
    assert_int_equal(server->held_count, 1);
    bt_rpc_call_end(server->held[--server->held_count], BT_OK, NULL, NULL);
    world_run_int(world, &other.ends, 1);
    assert_int_equal(other.status, BT_OK);
    assert_int_equal(bt_loop_refused(server->loop, BT_REFUSED_REMOVED), 2);
}

/* Its handshake was before, its first message comes after. */
static void test_silent_client_removed(void **state)
{
    struct world *world = *state;
    char address[512];
    struct harness *server = &world->parties[0].harness;
    serve_two(world);
    const struct bt_security *security = bt_loop_security(world->parties[1].harness.loop);
    const struct bt_security *its = bt_loop_security(server->loop);
    void *zmq = zmq_ctx_new();
    void *raw = zmq_socket(zmq, ZMQ_DEALER);
    struct bt_monitor monitor;
    struct bt_monitor_event event;
    struct bt_error error = {0};
    int zero = 0;
    zmq_setsockopt(raw, ZMQ_LINGER, &zero, sizeof zero);
    assert_int_equal(bt_curve_client_setup(security, raw, &its->public_key, &error), BT_OK);
    assert_int_equal(bt_monitor_init(&monitor, zmq, raw, ZMQ_EVENT_HANDSHAKE_SUCCEEDED, &error),
                     BT_OK);
    assert_int_equal(zmq_connect(raw, endpoint_with(world, NULL, address, sizeof address)), 0);
    int64_t give_up_ns = bt_clock_now_ns() + 60 * BT_NS_PER_S;
    while (!bt_monitor_next(&monitor, &event)) {
        assert_true(bt_clock_now_ns() < give_up_ns);
        world_round(world);
    }
    party_allow(world, 0, ALL & ~2u);
    assert_int_equal(bt_security_reload(server->loop, &error), BT_OK);
    world_round(world);
    uint64_t before = bt_loop_refused(server->loop, BT_REFUSED_REMOVED);
    static const char call[] = "\x08\x01\x10\x07\x1a\x09test/echo\x38\x01";
    zmq_send(raw, call, sizeof call - 1, ZMQ_SNDMORE);
    zmq_send(raw, "", 0, 0);
    world_run_refused(world, 0, BT_REFUSED_REMOVED, before + 1);
    assert_int_equal(server->handled, 0);
    bt_monitor_finish(&monitor);
    zmq_close(raw);
    zmq_ctx_term(zmq);
}

static void test_server_removed(void **state)
{
    struct world *world = *state;
    struct harness *client = &world->parties[1].harness;
    struct outcome held;
    serve_two(world);
    world_start(world, 1, "test/hold", &held);
    world_run_size(world, &world->parties[0].harness.held_count, 1);
    party_allow(world, 1, ALL & ~1u);
    assert_int_equal(bt_security_reload(client->loop, NULL), BT_OK);
    assert_int_equal(held.ends, 0);
    world_run_int(world, &held.ends, 1);
    assert_int_equal(held.status, BT_ERR_UNAVAILABLE);
    expect_text(held.text, "admitted no more");
    expect_call(world, 1, BT_ERR_UNAVAILABLE, "admitted no more");
    world_run_size(world, &world->parties[0].harness.cancels, 1);
    party_allow(world, 1, ALL);
    assert_int_equal(bt_security_reload(client->loop, NULL), BT_OK);
    world_call_until_ok(world, 1);
}

/* By the file alone; a list that is cut off or broken changes nothing. */
static void test_file_is_watched(void **state)
{
    struct world *world = *state;
    struct harness *server = &world->parties[0].harness;
    struct bt_error error = {0};
    serve_two(world);
    expect_call(world, 1, BT_OK, "");
    file_write(world->parties[0].allow_path, "# cut off\n", 0644);
    assert_int_equal(bt_security_reload(server->loop, &error), BT_ERR_INVALID_ARGUMENT);
    expect_text(error.text, "holds no key");
    file_write(world->parties[0].allow_path, "nonsense\n", 0644);
    assert_int_equal(bt_security_reload(server->loop, &error), BT_ERR_INVALID_ARGUMENT);
    assert_int_equal(unlink(world->parties[0].allow_path), 0);
    assert_int_equal(bt_security_reload(server->loop, &error), BT_ERR_NOT_FOUND);
    expect_call(world, 1, BT_OK, "");
    party_allow(world, 0, ALL & ~2u);
    world_run_refused(world, 0, BT_REFUSED_REMOVED, 1);
    expect_call(world, 2, BT_OK, "");
    party_allow(world, 0, ALL);
    world_call_until_ok(world, 1);
}

/* ------------------------------------------------------------------ never silently plain */

static void expect_server_error(struct bt_loop *loop, const char *endpoint, const char *text)
{
    struct bt_error error = {0};
    struct bt_rpc_server *server = NULL;
    enum bt_status status =
        bt_rpc_server_create(loop, endpoint, harness_methods, NULL, &error, &server);
    bt_rpc_server_destroy(server);
    assert_int_equal(status, BT_ERR_INVALID_ARGUMENT);
    expect_text(error.text, text);
}

static void expect_client_error(struct bt_loop *loop, const char *endpoint, const char *text)
{
    struct bt_error error = {0};
    struct bt_rpc_client *client = NULL;
    enum bt_status status = bt_rpc_client_create(loop, endpoint, &error, &client);
    bt_rpc_client_destroy(client);
    assert_int_equal(status, BT_ERR_INVALID_ARGUMENT);
    expect_text(error.text, text);
}

static void test_endpoints(void **state)
{
    struct world *world = *state;
    char keyed[512];
    party_allow(world, 0, ALL);
    party_secure(world, 0);
    party_plain(world, 1);
    snprintf(keyed, sizeof keyed, "tcp://127.0.0.1:9#%s", world->parties[0].public_hex);
    struct bt_loop *secured = world->parties[0].harness.loop;
    struct bt_loop *plain = world->parties[1].harness.loop;
    expect_client_error(secured, "tcp://127.0.0.1:9", "names no key");
    expect_client_error(secured, "tcp://127.0.0.1:9#12", "64 hex digits");
    expect_client_error(secured, "inproc://here", "inproc");
    expect_client_error(plain, keyed, "--curve-secret-file");
    expect_client_error(plain, "tcp://127.0.0.1:9#", "64 hex digits");
    expect_server_error(secured, keyed, "told no key");
    expect_server_error(secured, "inproc://here", "inproc");
    expect_server_error(plain, keyed, "--curve-secret-file");
}

static void test_plain_client(void **state)
{
    struct world *world = *state;
    char endpoint[512];
    serve_two(world);
    party_plain(world, 3);
    party_connect(world, 3, endpoint_with(world, NULL, endpoint, sizeof endpoint));
    expect_call(world, 3, BT_ERR_UNAVAILABLE, "CURVE");
    expect_call(world, 3, BT_ERR_UNAVAILABLE, "CURVE");
    world_run_refused(world, 0, BT_REFUSED_HANDSHAKE, 1);
    assert_int_equal(world->parties[0].harness.handled, 0);
    expect_call(world, 1, BT_OK, "");
}

/* A server may refuse before the first call, and before the client's loop has run to hear of it. */
static void test_refused_before_calling(void **state)
{
    struct world *world = *state;
    struct outcome outcomes[MANY_CALLS];
    char endpoint[512];
    serve_two(world);
    party_plain(world, 3);
    party_connect(world, 3, endpoint_with(world, NULL, endpoint, sizeof endpoint));
    for (size_t i = 0; i < MANY_CALLS; i++) {
        bt_loop_run_once(world->parties[0].harness.loop, bt_clock_now_ns() + 5 * BT_NS_PER_MS,
                         NULL);
        world_start(world, 3, "test/echo", &outcomes[i]);
    }
    for (size_t i = 0; i < MANY_CALLS; i++) {
        world_run_int(world, &outcomes[i].ends, 1);
        assert_int_equal(outcomes[i].status, BT_ERR_UNAVAILABLE);
        expect_text(outcomes[i].text, "CURVE");
    }
}

static void test_plain_server(void **state)
{
    struct world *world = *state;
    char endpoint[512];
    party_plain(world, 0);
    party_serve(world, 0, NULL);
    party_allow(world, 1, ALL);
    party_secure(world, 1);
    endpoint_with(world, world->parties[0].public_hex, endpoint, sizeof endpoint);
    party_connect(world, 1, endpoint);
    expect_call(world, 1, BT_ERR_UNAVAILABLE, "without CURVE");
    world_run_refused(world, 0, BT_REFUSED_HANDSHAKE, 1);
    assert_int_equal(world->parties[0].harness.handled, 0);
    party_plain(world, 2);
    party_connect(world, 2, endpoint_of(world, 0));
    expect_call(world, 2, BT_OK, "");
    struct outcome outcome;
    world_start(world, 2, "test/hold", &outcome);
    world_run_size(world, &world->parties[0].harness.held_count, 1);
    assert_null(bt_rpc_call_key_name(world->parties[0].harness.held[0]));
    bt_rpc_call_end(world->parties[0].harness.held[0], BT_OK, NULL, NULL);
    world_run_int(world, &outcome.ends, 1);
}

/* Without the handler the library would admit everybody; nobody is served. */
static void test_nobody_answers_for_admission(void **state)
{
    struct world *world = *state;
    struct outcome outcome;
    party_allow(world, 0, ALL);
    party_secure(world, 0);
    party_serve(world, 0, NULL);
    bt_curve_zap_stop(bt_loop_security(world->parties[0].harness.loop));
    party_allow(world, 1, ALL);
    party_secure(world, 1);
    party_connect(world, 1, endpoint_of(world, 0));
    world_call(world, 1, "test/echo", "hello", &outcome);
    assert_int_not_equal(outcome.status, BT_OK);
    assert_int_equal(world->parties[0].harness.handled, 0);
}

/* ------------------------------------------------------------------ restarts */

static void test_server_restarts(void **state)
{
    struct world *world = *state;
    char endpoint[512], address[512];
    struct outcome held;
    serve_two(world);
    expect_call(world, 1, BT_OK, "");
    world_start(world, 1, "test/hold", &held);
    world_run_size(world, &world->parties[0].harness.held_count, 1);
    snprintf(endpoint, sizeof endpoint, "%s", endpoint_of(world, 0));
    endpoint_with(world, NULL, address, sizeof address);
    party_end(world, 0);
    world_run_int(world, &held.ends, 1);
    party_secure(world, 0);
    party_serve(world, 0, address);
    assert_string_equal(endpoint_of(world, 0), endpoint);
    world_call_until_ok(world, 1);
    world_call_until_ok(world, 2);
    /* With another key it is another server. */
    party_end(world, 0);
    char other[PATH_SIZE];
    snprintf(other, sizeof other, "%s", world->parties[3].secret_path);
    const struct bt_security_values values = {other, world->parties[0].allow_path};
    party_plain(world, 0);
    assert_int_equal(bt_loop_secure(world->parties[0].harness.loop, &values, NULL), BT_OK);
    party_serve(world, 0, address);
    struct outcome outcome;
    do {
        world_call(world, 1, "test/echo", "hello", &outcome);
        assert_int_not_equal(outcome.status, BT_OK);
        world_round(world);
    } while (!strstr(outcome.text, "its key is not the one in the endpoint"));
    assert_int_equal(outcome.status, BT_ERR_UNAVAILABLE);
    assert_int_equal(world->parties[0].harness.handled, 0);
}

static void test_metrics(void **state)
{
    struct world *world = *state;
    struct bt_metrics *metrics = bt_metrics_create();
    serve_two(world);
    party_allow(world, 0, ALL & ~2u);
    assert_int_equal(bt_security_reload(world->parties[0].harness.loop, NULL), BT_OK);
    expect_call(world, 1, BT_ERR_UNAVAILABLE, "does not admit");
    bt_loop_export_refused(world->parties[0].harness.loop, metrics);
    uint64_t refused = bt_loop_refused(world->parties[0].harness.loop, BT_REFUSED_KEY);
    world_run_refused(world, 0, BT_REFUSED_KEY, refused + 1);
    refused = bt_loop_refused(world->parties[0].harness.loop, BT_REFUSED_KEY);
    char line[128];
    snprintf(line, sizeof line, "\nbaton_rpc_refused_total{reason=\"key\"} %llu\n",
             (unsigned long long)refused);
    char *text = bt_metrics_render(metrics, NULL);
    expect_text(text, line);
    expect_text(text, "\nbaton_rpc_refused_total{reason=\"flood\"} 0\n");
    free(text);
    party_end(world, 0);
    bt_metrics_destroy(metrics);
}

/* usage: test-messaging-security [PATTERN] */
int main(int argc, char **argv)
{
    if (argc > 1) {
        cmocka_set_test_filter(argv[1]);
    }
#define WORLD_TEST(name) cmocka_unit_test_setup_teardown(name, world_setup, world_teardown)
    const struct CMUnitTest tests[] = {
        WORLD_TEST(test_flags),
        WORLD_TEST(test_library_without_curve),
        WORLD_TEST(test_secret_modes),
        WORLD_TEST(test_public_of_secret),
        WORLD_TEST(test_both_know_each_other),
        WORLD_TEST(test_over_a_path),
        WORLD_TEST(test_wrong_server_key),
        WORLD_TEST(test_unlisted_client),
        WORLD_TEST(test_unlisted_server),
        WORLD_TEST(test_client_removed),
        WORLD_TEST(test_silent_client_removed),
        WORLD_TEST(test_server_removed),
        WORLD_TEST(test_file_is_watched),
        WORLD_TEST(test_endpoints),
        WORLD_TEST(test_plain_client),
        WORLD_TEST(test_refused_before_calling),
        WORLD_TEST(test_plain_server),
        WORLD_TEST(test_nobody_answers_for_admission),
        WORLD_TEST(test_server_restarts),
        WORLD_TEST(test_metrics),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
