/* CURVE between parties with keys of their own. Party 0 serves; 1 and 2 are clients; 3 is somebody
 * else. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zmq.h>

#include "common/messaging/curve.h"
#include "tests/unit/messaging/secured.h"

#define ALL 0xfu

static const char *endpoint_of(struct world *world, size_t party)
{
    return bt_rpc_server_endpoint(world->parties[party].harness.server);
}

/* The address of a server, with another key or none. */
static const char *endpoint_with(struct world *world, const char *key, char *ret_text, size_t size)
{
    const char *endpoint = endpoint_of(world, 0);
    snprintf(ret_text, size, "%.*s%s%s", (int)strcspn(endpoint, "#"), endpoint, key ? "#" : "",
             key ? key : "");
    return ret_text;
}

/* 0 serves all; 1 and 2 are connected. */
static void serve_two(struct world *world)
{
    for (size_t i = 0; i < 3; i++) {
        party_allow(world, i, ALL);
        party_secure(world, i);
    }
    party_serve(world, 0, NULL);
    party_connect(world, 1, endpoint_of(world, 0));
    party_connect(world, 2, endpoint_of(world, 0));
}

static void expect_call(struct world *world, size_t party, enum bt_status status, const char *text)
{
    struct outcome outcome;
    world_call(world, party, "test/echo", "hello", &outcome);
    assert_string_equal(bt_status_name(outcome.status), bt_status_name(status));
    expect_text(outcome.text, text);
    assert_int_equal(outcome.id_count, status == BT_OK ? 5 : 0);
}

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
    struct bt_rpc_client *client = NULL;
    assert_int_equal(bt_rpc_client_create(world->parties[3].harness.loop, endpoint_of(world, 0),
                                          &error, &client),
                     BT_ERR_UNAVAILABLE);
    assert_null(client);
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
    assert_int_equal(bt_rpc_server_create(loop, endpoint, harness_methods, NULL, &error, &server),
                     BT_ERR_INVALID_ARGUMENT);
    assert_null(server);
    expect_text(error.text, text);
}

static void expect_client_error(struct bt_loop *loop, const char *endpoint, const char *text)
{
    struct bt_error error = {0};
    struct bt_rpc_client *client = NULL;
    assert_int_equal(bt_rpc_client_create(loop, endpoint, &error, &client),
                     BT_ERR_INVALID_ARGUMENT);
    assert_null(client);
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

static void test_all_interfaces(void **state)
{
    struct world *world = *state;
    static const char *const everywhere[] = {"tcp://*:*", "tcp://0.0.0.0:*", "tcp://[::]:*"};
    char log[8192];
    party_allow(world, 0, ALL);
    party_secure(world, 0);
    party_serve(world, 0, "tcp://0.0.0.0:*");
    party_plain(world, 1);
    party_serve(world, 1, "tcp://127.0.0.1:*");
    world_log_read(world, log, sizeof log);
    assert_null(strstr(log, "all interfaces"));
    for (size_t i = 0; i < 3; i++) {
        struct bt_rpc_server *server;
        unsigned warnings = 0;
        if (bt_rpc_server_create(world->parties[1].harness.loop, everywhere[i], harness_methods,
                                 NULL, NULL, &server) == BT_OK) {
            bt_rpc_server_destroy(server);
            warnings++;
        }
        assert_true(warnings == 1 || i == 2); /* IPv6 may be missing */
    }
    world_log_read(world, log, sizeof log);
    const char *line = strstr(log, "all interfaces");
    assert_non_null(line);
    assert_non_null(strstr(line + 1, "all interfaces"));
}

/* ------------------------------------------------------------------ what goes over the wire */

/* A TCP relay between a client and a server that looks for a word. */
struct relay {
    int listener, client, server;
    bool seen;
    size_t bytes;
    char last[64];
    struct sockaddr_in to;
};

static int tcp_socket(struct sockaddr_in *address)
{
    *address = (struct sockaddr_in){.sin_family = AF_INET};
    address->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    return fd;
}

static void relay_init(struct relay *relay, const char *endpoint, char *ret_endpoint, size_t size)
{
    struct sockaddr_in own;
    socklen_t own_size = sizeof own;
    *relay = (struct relay){.client = -1, .server = tcp_socket(&relay->to)};
    relay->to = (struct sockaddr_in){.sin_family = AF_INET};
    relay->to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    relay->to.sin_port = htons((uint16_t)atoi(strrchr(endpoint, ':') + 1));
    relay->listener = tcp_socket(&own);
    assert_int_equal(bind(relay->listener, (struct sockaddr *)&own, sizeof own), 0);
    assert_int_equal(listen(relay->listener, 1), 0);
    assert_int_equal(getsockname(relay->listener, (struct sockaddr *)&own, &own_size), 0);
    const char *key = strchr(endpoint, '#');
    snprintf(ret_endpoint, size, "tcp://127.0.0.1:%u%s", ntohs(own.sin_port), key ? key : "");
    assert_int_equal(fcntl(relay->listener, F_SETFL, O_NONBLOCK), 0);
}

static void relay_finish(struct relay *relay)
{
    close(relay->listener);
    close(relay->server);
    if (relay->client >= 0) {
        close(relay->client);
    }
}

static void relay_move(struct relay *relay, int from, int to)
{
    char data[4096];
    ssize_t got = recv(from, data, sizeof data, MSG_DONTWAIT);
    if (got > 0) {
        relay->seen |= memmem(data, (size_t)got, "open sesame", 11) != NULL;
        relay->bytes += (size_t)got;
        assert_int_equal(send(to, data, (size_t)got, MSG_NOSIGNAL), got);
    }
}

static void relay_run(struct relay *relay)
{
    if (relay->client < 0) {
        relay->client = accept(relay->listener, NULL, NULL);
        if (relay->client >= 0) {
            assert_int_equal(
                connect(relay->server, (struct sockaddr *)&relay->to, sizeof relay->to), 0);
        }
        return;
    }
    relay_move(relay, relay->client, relay->server);
    relay_move(relay, relay->server, relay->client);
}

/* Says the word from party 2 to party 0 through the relay. */
static bool word_is_seen(struct world *world)
{
    char endpoint[512];
    struct relay relay;
    relay_init(&relay, endpoint_of(world, 0), endpoint, sizeof endpoint);
    party_connect(world, 2, endpoint);
    struct harness *harness = &world->parties[2].harness;
    Baton__V1__TokenizeRequest request = BATON__V1__TOKENIZE_REQUEST__INIT;
    struct outcome outcome = {0};
    request.text = (char *)"open sesame";
    struct bt_rpc_call_spec spec = harness_spec("test/echo", &request, &outcome);
    assert_int_equal(bt_rpc_client_call(harness->client, &spec, NULL, NULL), BT_OK);
    int64_t give_up_ns = bt_clock_now_ns() + 20 * BT_NS_PER_S;
    while (outcome.ends == 0 && bt_clock_now_ns() < give_up_ns) {
        relay_run(&relay);
        world_round(world);
    }
    relay_finish(&relay);
    assert_int_equal(outcome.ends, 1);
    assert_int_equal(outcome.status, BT_OK);
    assert_int_equal(outcome.id_count, 11);
    assert_true(relay.bytes > 64);
    return relay.seen;
}

static void test_encrypted(void **state)
{
    struct world *world = *state;
    for (size_t i = 0; i < 3; i += 2) {
        party_allow(world, i, ALL);
        party_secure(world, i);
    }
    party_serve(world, 0, NULL);
    assert_false(word_is_seen(world));
    party_end(world, 0);
    party_end(world, 2);
    party_plain(world, 0);
    party_plain(world, 2);
    party_serve(world, 0, NULL);
    assert_true(word_is_seen(world));
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

/* ------------------------------------------------------------------ floods */

/* Connections that say nothing, or nonsense, until the parent closes the pipe. */
static _Noreturn void flood_run(const char *address, size_t count, int done, int stop)
{
    struct sockaddr_in to = {.sin_family = AF_INET};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    to.sin_port = htons((uint16_t)atoi(strrchr(address, ':') + 1));
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (size_t i = 0; i < count; i++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to) != 0) {
            _exit(1);
        }
        const char *text = i % 3 == 0 ? "\xff\0\0\0\0\0\0\0\x01\x7f\x03" : "GET / HTTP/1.1\r\n\r\n";
        if (i % 3 < 2 && send(fd, text, 11, MSG_NOSIGNAL) < 0 && errno != EPIPE &&
            errno != ECONNRESET) {
            _exit(2);
        }
    }
    char end = 0;
    if (write(done, &end, 1) != 1) {
        _exit(4);
    }
    _exit(read(stop, &end, 1) == 0 ? 0 : 3);
}

/* More half-open connections than the process may have descriptors; the child has the higher limit.
 */
static void flood_test(struct world *world)
{
    const size_t limit = 256, count = 700;
    struct rlimit few = world->file_limit;
    struct harness *server = &world->parties[0].harness;
    char address[512];
    int stop[2], from_child[2];
    endpoint_with(world, NULL, address, sizeof address);
    if (few.rlim_cur < count + 64) {
        print_message("the limit of open files is too low for this test\n");
        return;
    }
    assert_int_equal(pipe(stop), 0);
    assert_int_equal(pipe2(from_child, O_NONBLOCK), 0);
    pid_t child = fork();
    if (child == 0) {
        close(stop[1]);
        flood_run(address, count, from_child[1], stop[0]);
    }
    assert_true(child > 0);
    close(stop[0]);
    few.rlim_cur = limit;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
    /* While they come, and when all are there… */
    int64_t give_up_ns = bt_clock_now_ns() + 20 * BT_NS_PER_S;
    char byte;
    bool all_there = false;
    while (!(all_there = all_there || read(from_child[0], &byte, 1) == 1) ||
           bt_loop_refused(server->loop, BT_REFUSED_FLOOD) < count / 10) {
        assert_true(bt_clock_now_ns() < give_up_ns);
        world_round(world);
    }
    /* …who is connected works, and who is new gets through as soon as the last was accepted and
     * broken: until then there may be no descriptor for its socket. */
    expect_call(world, 1, BT_OK, "");
    struct harness *newcomer = &world->parties[3].harness;
    while (bt_rpc_client_create(newcomer->loop, endpoint_of(world, 0), NULL, &newcomer->client) !=
           BT_OK) {
        assert_true(bt_clock_now_ns() < give_up_ns);
        world_round(world);
    }
    world_call_until_ok(world, 3);
    setrlimit(RLIMIT_NOFILE, &world->file_limit);
    int status;
    close(stop[1]);
    close(from_child[0]);
    close(from_child[1]);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_int_equal(bt_rpc_server_open_calls(server->server), 0);
}

static void test_flood(void **state)
{
    struct world *world = *state;
    serve_two(world);
    party_allow(world, 3, ALL);
    party_secure(world, 3);
    expect_call(world, 1, BT_OK, "");
    flood_test(world);
    expect_call(world, 2, BT_OK, "");
}

static void test_flood_plain(void **state)
{
    struct world *world = *state;
    party_plain(world, 0);
    party_serve(world, 0, NULL);
    party_plain(world, 1);
    party_connect(world, 1, endpoint_of(world, 0));
    party_plain(world, 3);
    expect_call(world, 1, BT_OK, "");
    flood_test(world);
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
        WORLD_TEST(test_secret_modes),
        WORLD_TEST(test_public_of_secret),
        WORLD_TEST(test_both_know_each_other),
        WORLD_TEST(test_over_a_path),
        WORLD_TEST(test_wrong_server_key),
        WORLD_TEST(test_unlisted_client),
        WORLD_TEST(test_unlisted_server),
        WORLD_TEST(test_client_removed),
        WORLD_TEST(test_server_removed),
        WORLD_TEST(test_file_is_watched),
        WORLD_TEST(test_endpoints),
        WORLD_TEST(test_plain_client),
        WORLD_TEST(test_plain_server),
        WORLD_TEST(test_nobody_answers_for_admission),
        WORLD_TEST(test_all_interfaces),
        WORLD_TEST(test_encrypted),
        WORLD_TEST(test_server_restarts),
        WORLD_TEST(test_flood),
        WORLD_TEST(test_flood_plain),
        WORLD_TEST(test_metrics),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
