/* What the network gets to see of a server and can do to it. Party 0 serves; the others are
 * clients. */
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
#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/messaging/secured.h"

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
    int64_t give_up_ns = bt_clock_now_ns() + 60 * BT_NS_PER_S;
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
    int64_t give_up_ns = bt_clock_now_ns() + 60 * BT_NS_PER_S;
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

/* usage: test-messaging-exposure [PATTERN] */
int main(int argc, char **argv)
{
    if (argc > 1) {
        cmocka_set_test_filter(argv[1]);
    }
#define WORLD_TEST(name) cmocka_unit_test_setup_teardown(name, world_setup, world_teardown)
    const struct CMUnitTest tests[] = {
        WORLD_TEST(test_all_interfaces),
        WORLD_TEST(test_encrypted),
        WORLD_TEST(test_flood),
        WORLD_TEST(test_flood_plain),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
