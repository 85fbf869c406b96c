/* Calls as both ends see them: results, streams, deadlines, cancel, loss, limits, destruction. */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/messaging/harness.h"

static void start(struct harness *harness, const char *method, int64_t timeout_ms,
                  struct outcome *outcome, struct bt_rpc_pending **ret_pending)
{
    Baton__V1__TokenizeRequest request = BATON__V1__TOKENIZE_REQUEST__INIT;
    *outcome = (struct outcome){.harness = harness};
    struct bt_rpc_call_spec spec = harness_spec(method, &request, outcome);
    if (timeout_ms) {
        spec.deadline_ns = bt_clock_now_ns() + timeout_ms * BT_NS_PER_MS;
    }
    struct bt_error error = {0};
    if (bt_rpc_client_call(harness->client, &spec, &error, ret_pending) != BT_OK) {
        fail_msg("%s", error.text);
    }
}

static void unary_on(const char *endpoint)
{
    struct harness harness;
    struct outcome outcome;
    harness_init(&harness, endpoint);
    harness_call(&harness, "test/echo", "hello", &outcome);
    assert_int_equal(outcome.status, BT_OK);
    assert_int_equal(outcome.id_count, 5);
    assert_true(harness.last_deadline_ns == BT_NEVER_NS);
    harness_call(&harness, "test/echo", "", &outcome);
    assert_int_equal(outcome.status, BT_OK);
    assert_int_equal(outcome.id_count, 0);
    harness_call(&harness, "test/fail", "", &outcome);
    assert_int_equal(outcome.status, BT_ERR_NOT_FOUND);
    assert_string_equal(outcome.text, "no such ? thing"); /* text on the wire is UTF-8 */
    harness_call(&harness, "test/nothing", "", &outcome);
    assert_int_equal(outcome.status, BT_ERR_NOT_FOUND);
    assert_non_null(strstr(outcome.text, "test/nothing"));
    assert_int_equal(bt_rpc_server_open_calls(harness.server), 0);
    assert_int_equal(harness.peer_ups, 1);
    assert_int_equal(harness.peer_downs, 0);
    harness_finish(&harness);
}

static void test_unary(void **state)
{
    (void)state;
    unary_on(NULL);
    char endpoint[] = "ipc:///tmp/baton-test-XXXXXX";
    int fd = mkstemp(endpoint + strlen("ipc://"));
    assert_true(fd >= 0);
    close(fd);
    unary_on(endpoint);
    unlink(endpoint + strlen("ipc://"));
}

static const char *endpoint_of(const char *bound, char *ret_endpoint, size_t size)
{
    struct bt_loop *loop = bt_loop_create(NULL);
    struct bt_rpc_server *server;
    *ret_endpoint = '\0';
    if (bt_rpc_server_create(loop, bound, harness_methods, NULL, NULL, &server) == BT_OK) {
        snprintf(ret_endpoint, size, "%s", bt_rpc_server_endpoint(server));
        bt_rpc_server_destroy(server);
    }
    bt_loop_destroy(loop);
    return ret_endpoint;
}

static void test_endpoints_are_named_as_they_were_bound(void **state)
{
    (void)state;
    char endpoint[256];
    unsigned port;
    assert_int_equal(
        sscanf(endpoint_of("tcp://127.0.0.1:*", endpoint, 256), "tcp://127.0.0.1:%u", &port), 1);
    assert_true(port > 0 && port < 65536);
    assert_int_equal(
        sscanf(endpoint_of("tcp://0.0.0.0:*", endpoint, 256), "tcp://0.0.0.0:%u", &port), 1);
    int probe = socket(AF_INET6, SOCK_STREAM, 0);
    struct sockaddr_in6 any = {.sin6_family = AF_INET6, .sin6_addr = in6addr_loopback};
    bool ipv6 = probe >= 0 && bind(probe, (struct sockaddr *)&any, sizeof any) == 0;
    close(probe);
    if (ipv6) {
        assert_int_equal(
            sscanf(endpoint_of("tcp://[::1]:*", endpoint, 256), "tcp://[::1]:%u", &port), 1);
        unary_on("tcp://[::1]:*");
    } else {
        print_message("no ipv6 here\n");
    }
}

/* Both ends of a connection, as they are in this process. */
static void test_idle_connections_are_probed(void **state)
{
    (void)state;
    struct harness harness;
    struct outcome outcome;
    harness_init(&harness, NULL);
    harness_call(&harness, "test/echo", "on", &outcome);
    const char *colon = strrchr(bt_rpc_server_endpoint(harness.server), ':');
    uint16_t port = htons((uint16_t)atoi(colon + 1));
    int probed = 0;
    for (int fd = 0; fd < 1024; fd++) {
        struct sockaddr_in own = {0}, other = {0};
        socklen_t own_size = sizeof own, other_size = sizeof other, size = sizeof(int);
        int on = 0, idle_s = 0;
        if (getsockname(fd, (struct sockaddr *)&own, &own_size) == 0 && own.sin_port == port &&
            getpeername(fd, (struct sockaddr *)&other, &other_size) == 0) {
            assert_int_equal(getsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, &size), 0);
            assert_int_equal(getsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, &size), 0);
            assert_true(on);
            assert_int_equal(idle_s, 60);
            probed++;
        }
    }
    assert_int_equal(probed, 1);
    harness_finish(&harness);
}

static void test_bad_endpoints(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "tcp://127.0.0.1:notaport",     "carrier://pigeon", "nonsense", "",
        "ipc:///no/such/folder/socket", "tcp://192.0.2.1:1"};
    struct bt_error error = {0};
    struct bt_loop *loop = bt_loop_create(&error);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct bt_rpc_server *server;
        assert_true(bt_rpc_server_create(loop, bad[i], harness_methods, NULL, &error, &server) < 0);
        assert_non_null(strstr(error.text, bad[i]));
    }
    for (size_t i = 0; i < 4; i++) {
        struct bt_rpc_client *client;
        assert_int_equal(bt_rpc_client_create(loop, bad[i], &error, &client),
                         BT_ERR_INVALID_ARGUMENT);
        assert_non_null(strstr(error.text, bad[i]));
    }
    bt_loop_destroy(loop);
}

static void test_stream(void **state)
{
    (void)state;
    struct harness harness;
    struct outcome outcome;
    harness_init(&harness, NULL);
    harness_call(&harness, "test/count", "100", &outcome);
    assert_int_equal(outcome.status, BT_OK);
    assert_int_equal(outcome.data_count, 100);
    assert_string_equal(outcome.last_data, "message 99");
    harness_finish(&harness);
}

/* The queue of a connection and the kernel's buffers end somewhere; the END still arrives. */
static void test_stream_flow_limit(void **state)
{
    (void)state;
    struct harness harness;
    struct outcome outcome;
    harness_init(&harness, NULL);
    harness_call(&harness, "test/count", "1000000", &outcome);
    assert_int_equal(outcome.status, BT_ERR_EXHAUSTED);
    assert_string_equal(outcome.text, "the client reads too slowly");
    assert_true(outcome.data_count >= BT_RPC_SEND_QUEUE_MESSAGES);
    assert_true(outcome.data_count < 1000000);
    char last[64];
    snprintf(last, sizeof last, "message %zu", outcome.data_count - 1);
    assert_string_equal(outcome.last_data, last); /* no gap */
    harness_call(&harness, "test/echo", "on", &outcome);
    assert_int_equal(outcome.status, BT_OK);
    harness_finish(&harness);
}

static void test_deadline(void **state)
{
    (void)state;
    struct harness harness;
    struct outcome outcome;
    harness_init(&harness, NULL);
    size_t handled = 0;
    do { /* one that has passed before it can be sent is not sent */
        int64_t before_ns = bt_clock_now_ns();
        start(&harness, "test/hold", 60, &outcome, NULL);
        harness_run_int(&harness, &outcome.ends, 1);
        assert_int_equal(outcome.status, BT_ERR_DEADLINE);
        assert_true(bt_clock_now_ns() - before_ns >= 60 * BT_NS_PER_MS);
        harness_call(&harness, "test/echo", "x", &outcome);
    } while (harness.handled == ++handled);
    harness_run_size(&harness, &harness.cancels, 1); /* the server sees it too */
    assert_int_equal(harness.held_count, 0);

    start(&harness, "test/hold", -1, &outcome, NULL); /* passed already: not even sent */
    assert_int_equal(outcome.ends, 0);
    harness_run_int(&harness, &outcome.ends, 1);
    assert_int_equal(outcome.status, BT_ERR_DEADLINE);
    harness_call(&harness, "test/echo", "x", &outcome);
    assert_int_equal(harness.handled, handled + 2);
    harness_finish(&harness);
}

static void test_deadline_travels(void **state)
{
    (void)state;
    struct harness harness;
    struct outcome outcome;
    harness_init(&harness, NULL);
    int64_t before_ns = bt_clock_now_ns();
    start(&harness, "test/echo", 5000, &outcome, NULL);
    harness_run_int(&harness, &outcome.ends, 1);
    assert_int_equal(outcome.status, BT_OK);
    assert_true(harness.last_deadline_ns > before_ns + 4000 * BT_NS_PER_MS);
    assert_true(harness.last_deadline_ns < bt_clock_now_ns() + 5001 * BT_NS_PER_MS);
    harness_finish(&harness);
}

static void test_cancel(void **state)
{
    (void)state;
    struct harness harness;
    struct outcome outcome;
    struct bt_rpc_pending *pending;
    harness_init(&harness, NULL);
    start(&harness, "test/hold", 0, &outcome, &pending);
    harness_run_size(&harness, &harness.held_count, 1);
    bt_rpc_pending_cancel(pending);
    bt_rpc_pending_cancel(pending);
    assert_int_equal(outcome.ends, 0);
    harness_run_int(&harness, &outcome.ends, 1);
    assert_int_equal(outcome.status, BT_ERR_CANCELLED);
    assert_string_equal(outcome.text, "as you wish");
    assert_int_equal(harness.cancels, 1);
    harness_finish(&harness);
}

/* The server does not answer the cancel; the peer timeout is far. */
static void test_cancel_waits_as_long_as_asked(void **state)
{
    (void)state;
    struct harness harness;
    struct outcome outcome = {.harness = &harness};
    struct bt_rpc_pending *pending;
    harness_init(&harness, NULL);
    harness.end_on_cancel = false;
    bt_rpc_client_set_keepalive(harness.client, 3600 * 1000);
    Baton__V1__TokenizeRequest request = BATON__V1__TOKENIZE_REQUEST__INIT;
    struct bt_rpc_call_spec spec = harness_spec("test/hold", &request, &outcome);
    spec.cancel_wait_ns = BT_NS_PER_MS;
    assert_int_equal(bt_rpc_client_call(harness.client, &spec, NULL, &pending), BT_OK);
    harness_run_size(&harness, &harness.held_count, 1);
    bt_rpc_pending_cancel(pending);
    harness_run_int(&harness, &outcome.ends, 1);
    assert_int_equal(outcome.status, BT_ERR_CANCELLED);
    bt_rpc_call_end(harness.held[0], BT_OK, NULL, NULL);
    harness_finish(&harness);
}

static void on_late_cancel(void *context, struct bt_rpc_call *call)
{
    *(size_t *)context += 1;
    bt_rpc_call_end(call, BT_ERR_CANCELLED, "late", NULL);
}

static void test_cancel_unanswered(void **state)
{
    (void)state;
    struct harness harness;
    struct outcome outcome;
    struct bt_rpc_pending *pending;
    harness_init(&harness, NULL);
    harness.end_on_cancel = false;
    bt_rpc_client_set_keepalive(harness.client, 20);
    start(&harness, "test/hold", 0, &outcome, &pending);
    harness_run_size(&harness, &harness.held_count, 1);
    bt_rpc_pending_cancel(pending);
    harness_run_int(&harness, &outcome.ends, 1); /* after ten keepalives */
    assert_int_equal(outcome.status, BT_ERR_CANCELLED);
    harness_run_size(&harness, &harness.cancels, 1);
    size_t late = 0;
    bt_rpc_call_on_cancel(harness.held[0], on_late_cancel, &late);
    assert_int_equal(bt_rpc_server_open_calls(harness.server), 1);
    bt_rpc_call_end(harness.held[0], BT_OK, NULL, NULL);
    assert_int_equal(late, 0); /* it fired once before */
    harness_finish(&harness);
}

static void handle_slow_owner(void *context, struct bt_rpc_call *call,
                              const ProtobufCMessage *request)
{
    (void)request;
    *(struct bt_rpc_call **)context = call;
}

/* Whoever takes over a call after its cancellation still hears of it. */
static void test_on_cancel_set_late(void **state)
{
    (void)state;
    struct bt_error error = {0};
    struct bt_rpc_call *call = NULL;
    const struct bt_rpc_method methods[] = {
        {"test/hold", &baton__v1__tokenize_request__descriptor, handle_slow_owner}, {0}};
    struct harness harness = {.loop = bt_loop_create(&error)};
    assert_int_equal(bt_rpc_server_create(harness.loop, "tcp://127.0.0.1:*", methods, &call, &error,
                                          &harness.server),
                     BT_OK);
    assert_int_equal(bt_rpc_client_create(harness.loop, bt_rpc_server_endpoint(harness.server),
                                          &error, &harness.client),
                     BT_OK);
    struct outcome outcome;
    start(&harness, "test/hold", 0, &outcome, NULL);
    while (!call) {
        assert_int_equal(bt_loop_run_once(harness.loop, BT_NEVER_NS, &error), BT_OK);
    }
    bt_rpc_client_destroy(harness.client);
    harness.client = NULL;
    while (!bt_rpc_call_cancelled(call)) {
        assert_int_equal(bt_loop_run_once(harness.loop, BT_NEVER_NS, &error), BT_OK);
    }
    size_t late = 0;
    bt_rpc_call_on_cancel(call, on_late_cancel, &late);
    assert_int_equal(late, 0);
    harness_run_size(&harness, &late, 1);
    assert_int_equal(bt_rpc_server_open_calls(harness.server), 0);
    harness_finish(&harness);
}

/* ------------------------------------------------------------------ loss */

#define FOR_EVER_MS 3600000 /* between keepalives: no silence tells of a loss */

/* A client that goes away is noticed by its connection. */
static void test_client_gone(void **state)
{
    (void)state;
    struct harness harness;
    struct outcome outcomes[3];
    harness_init(&harness, NULL);
    for (int i = 0; i < 3; i++) {
        start(&harness, "test/hold", 0, &outcomes[i], NULL);
    }
    harness_run_size(&harness, &harness.held_count, 3);
    bt_rpc_server_set_keepalive(harness.server, FOR_EVER_MS);
    bt_rpc_client_destroy(harness.client);
    harness.client = NULL;
    for (int i = 0; i < 3; i++) {
        assert_int_equal(outcomes[i].ends, 1);
        assert_int_equal(outcomes[i].status, BT_ERR_CANCELLED);
    }
    harness_run_size(&harness, &harness.cancels, 3);
    assert_int_equal(bt_rpc_server_open_calls(harness.server), 0);
    harness_finish(&harness);
}

static void test_server_destroyed(void **state)
{
    (void)state;
    struct harness harness;
    struct outcome outcomes[2];
    harness_init(&harness, NULL);
    start(&harness, "test/hold", 0, &outcomes[0], NULL);
    start(&harness, "test/hold", 0, &outcomes[1], NULL);
    harness_run_size(&harness, &harness.held_count, 2);
    harness.end_on_cancel = false;
    bt_rpc_server_destroy(harness.server);
    harness.server = NULL;
    assert_int_equal(harness.cancels, 2);
    for (int i = 0; i < 2; i++) {
        harness_run_int(&harness, &outcomes[i].ends, 1);
        assert_int_equal(outcomes[i].status, BT_ERR_UNAVAILABLE);
    }
    harness_run_int(&harness, &harness.peer_downs, 1);
    harness_finish(&harness);
}

/* A server in a process of its own; it tells its endpoint through a pipe. */
static pid_t server_fork(const char *endpoint, char *ret_endpoint, size_t size)
{
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        struct harness harness = {.end_on_cancel = true};
        harness.loop = bt_loop_create(NULL);
        if (bt_rpc_server_create(harness.loop, endpoint, harness_methods, &harness, NULL,
                                 &harness.server) != BT_OK) {
            _exit(1);
        }
        const char *name = bt_rpc_server_endpoint(harness.server);
        if (write(ends[1], name, strlen(name)) < 0) {
            _exit(1);
        }
        close(ends[1]);
        bt_loop_run(harness.loop, NULL);
        _exit(0);
    }
    close(ends[1]);
    ssize_t got = read(ends[0], ret_endpoint, size - 1);
    close(ends[0]);
    if (got <= 0) {
        kill(child, SIGKILL);
        fail_msg("the server did not start");
    }
    ret_endpoint[got] = '\0';
    return child;
}

static void process_end(pid_t child)
{
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
}

static void client_only(struct harness *harness, const char *endpoint)
{
    *harness = (struct harness){.loop = bt_loop_create(NULL)};
    assert_int_equal(bt_rpc_client_create(harness->loop, endpoint, NULL, &harness->client), BT_OK);
}

static void on_peer_count(void *context, bool up)
{
    struct harness *harness = context;
    harness->peer_ups += up;
    harness->peer_downs += !up;
}

static void test_server_killed(void **state)
{
    (void)state;
    char endpoint[256];
    struct harness harness;
    struct outcome held, other;
    pid_t child = server_fork("tcp://127.0.0.1:*", endpoint, sizeof endpoint);
    client_only(&harness, endpoint);
    bt_rpc_client_on_peer(harness.client, on_peer_count, &harness);
    start(&harness, "test/hold", 0, &held, NULL);
    harness_call(&harness, "test/echo", "abc", &other);
    assert_int_equal(other.id_count, 3);
    bt_rpc_client_set_keepalive(harness.client, FOR_EVER_MS);
    process_end(child);
    harness_run_int(&harness, &held.ends, 1);
    assert_int_equal(held.status, BT_ERR_PEER_LOST);
    assert_int_equal(harness.peer_downs, 1);

    /* The same client finds the next server at that address by itself. */
    start(&harness, "test/echo", 0, &other, NULL);
    child = server_fork(endpoint, endpoint, sizeof endpoint);
    harness_run_int(&harness, &other.ends, 1);
    process_end(child);
    assert_int_equal(other.status, BT_OK);
    assert_int_equal(harness.peer_ups, 2);
    harness_finish(&harness);
}

/* A stopped process keeps its connections; only its silence tells. */
static void test_server_silent(void **state)
{
    (void)state;
    char endpoint[256];
    struct harness harness;
    struct outcome outcome;
    pid_t child = server_fork("tcp://127.0.0.1:*", endpoint, sizeof endpoint);
    client_only(&harness, endpoint);
    bt_rpc_client_on_peer(harness.client, on_peer_count, &harness);
    harness_call(&harness, "test/echo", "", &outcome);
    bt_rpc_client_set_keepalive(harness.client, 30);
    kill(child, SIGSTOP);
    int64_t before_ns = bt_clock_now_ns();
    start(&harness, "test/hold", 0, &outcome, NULL);
    harness_run_int(&harness, &outcome.ends, 1);
    process_end(child);
    assert_int_equal(outcome.status, BT_ERR_PEER_LOST);
    assert_true(bt_clock_now_ns() - before_ns >= 300 * BT_NS_PER_MS);
    assert_int_equal(harness.peer_downs, 1);
    harness_finish(&harness);
}

/* Long calls stay alive through keepalives on both sides. */
static void test_keepalive(void **state)
{
    (void)state;
    struct harness harness;
    struct outcome outcome;
    harness_init(&harness, NULL);
    /* Ten of these are more than a thread may be kept from a busy machine's cores. */
    bt_rpc_client_set_keepalive(harness.client, 350);
    bt_rpc_server_set_keepalive(harness.server, 350);
    start(&harness, "test/hold", 8000, &outcome, NULL); /* twice as long as silence may be */
    harness_run_int(&harness, &outcome.ends, 1);
    assert_int_equal(outcome.status, BT_ERR_DEADLINE);
    assert_int_equal(harness.peer_downs, 0);
    harness_finish(&harness);
}

static void test_nobody_there(void **state)
{
    (void)state;
    struct harness harness;
    struct outcome outcome;
    client_only(&harness, "ipc:///tmp/baton-test-nobody-listens-here");
    bt_rpc_client_on_peer(harness.client, on_peer_count, &harness);
    bt_rpc_client_set_keepalive(harness.client, 10);
    start(&harness, "test/echo", 0, &outcome, NULL);
    harness_run_int(&harness, &outcome.ends, 1);
    assert_int_equal(outcome.status, BT_ERR_UNAVAILABLE);
    assert_int_equal(harness.peer_downs, 1);
    harness_finish(&harness);
}

/* Nobody is there, and then somebody who accepts and says nothing: the attempt that was to come is
 * not made beside the one that is under way. */
static void test_somebody_silent_there(void **state)
{
    (void)state;
    struct harness harness;
    struct outcome outcome;
    char folder[] = "/tmp/baton-test-XXXXXX", endpoint[64];
    assert_non_null(mkdtemp(folder));
    snprintf(endpoint, sizeof endpoint, "ipc://%s/socket", folder);
    client_only(&harness, endpoint);
    bt_rpc_client_on_peer(harness.client, on_peer_count, &harness);
    bt_rpc_client_set_keepalive(harness.client, 5);
    harness_run_int(&harness, &harness.peer_downs, 1);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", endpoint + strlen("ipc://"));
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(listener, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(listen(listener, 16), 0);
    start(&harness, "test/echo", 0, &outcome, NULL);
    harness_run_int(&harness, &outcome.ends, 1);
    assert_int_equal(outcome.status, BT_ERR_UNAVAILABLE);
    int64_t until_ns = bt_clock_now_ns() + 300 * BT_NS_PER_MS; /* over the time of that attempt */
    while (bt_clock_now_ns() < until_ns) {
        assert_int_equal(bt_loop_run_once(harness.loop, until_ns, NULL), BT_OK);
    }
    close(listener);
    harness_finish(&harness);
    unlink(address.sun_path);
    rmdir(folder);
}

/* ------------------------------------------------------------------ limits */

static void test_call_limit(void **state)
{
    (void)state;
    struct harness harness;
    struct outcome *outcomes = calloc(BT_RPC_MAX_CALLS_PER_PEER, sizeof *outcomes);
    harness_init(&harness, NULL);
    Baton__V1__TokenizeRequest request = BATON__V1__TOKENIZE_REQUEST__INIT;
    struct outcome extra = {0};
    struct bt_rpc_call_spec spec = harness_spec("test/hold", &request, &extra);
    struct bt_error error = {0};
    for (size_t i = 0; i < BT_RPC_MAX_CALLS_PER_PEER; i++) {
        start(&harness, "test/hold", 0, &outcomes[i], NULL);
        harness_run_size(&harness, &harness.held_count, i & ~(size_t)255);
    }
    assert_int_equal(bt_rpc_client_call(harness.client, &spec, &error, NULL), BT_ERR_EXHAUSTED);
    assert_non_null(strstr(error.text, "4096"));
    harness_run_size(&harness, &harness.held_count, BT_RPC_MAX_CALLS_PER_PEER);
    /* All answers at once are more than the queue takes, and none is lost. */
    while (harness.held_count > 0) {
        bt_rpc_call_end(harness.held[--harness.held_count], BT_OK, NULL, NULL);
    }
    for (size_t i = 0; i < BT_RPC_MAX_CALLS_PER_PEER; i++) {
        harness_run_int(&harness, &outcomes[i].ends, 1);
        assert_int_equal(outcomes[i].status, BT_OK);
        assert_int_equal(outcomes[i].ends, 1);
    }
    assert_int_equal(bt_rpc_server_dropped(harness.server), 0);
    assert_int_equal(bt_rpc_server_open_calls(harness.server), 0);
    harness_finish(&harness);
    free(outcomes);
}

static void test_send_queue_limit(void **state)
{
    (void)state;
    struct harness harness;
    struct outcome outcome = {0};
    struct bt_error error = {0};
    client_only(&harness, "ipc:///tmp/baton-test-nobody-listens-here");
    Baton__V1__TokenizeRequest request = BATON__V1__TOKENIZE_REQUEST__INIT;
    struct bt_rpc_call_spec spec = harness_spec("test/hold", &request, &outcome);
    int started = 0;
    while (bt_rpc_client_call(harness.client, &spec, &error, NULL) == BT_OK) {
        started++;
    }
    assert_int_equal(started, BT_RPC_SEND_QUEUE_MESSAGES);
    assert_int_equal(error.status, BT_ERR_EXHAUSTED);
    bt_rpc_client_destroy(harness.client);
    harness.client = NULL;
    assert_int_equal(outcome.ends, started);
    harness_finish(&harness);
}

static void test_too_large(void **state)
{
    (void)state;
    struct harness harness;
    struct outcome outcome = {0};
    struct bt_error error = {0};
    harness_init(&harness, NULL);
    char *text = malloc(BT_RPC_MAX_MESSAGE_BYTES + 1);
    memset(text, 'x', BT_RPC_MAX_MESSAGE_BYTES);
    text[BT_RPC_MAX_MESSAGE_BYTES] = '\0';
    Baton__V1__TokenizeRequest request = BATON__V1__TOKENIZE_REQUEST__INIT;
    request.text = text;
    struct bt_rpc_call_spec spec = harness_spec("test/echo", &request, &outcome);
    assert_int_equal(bt_rpc_client_call(harness.client, &spec, &error, NULL),
                     BT_ERR_INVALID_ARGUMENT);
    free(text);
    harness_call(&harness, "test/echo", "ok", &outcome);
    assert_int_equal(outcome.status, BT_OK);
    harness_finish(&harness);
}

/* ------------------------------------------------------------------ destruction in callbacks */

static void end_destroys_client(void *context, enum bt_status status, const char *text,
                                const ProtobufCMessage *response)
{
    struct outcome *outcome = context;
    (void)text;
    (void)response;
    outcome->ends++;
    outcome->status = status;
    struct bt_rpc_client *client = outcome->harness->client;
    outcome->harness->client = NULL;
    bt_rpc_client_destroy(client);
}

static void test_destroy_client_in_end(void **state)
{
    (void)state;
    struct harness harness;
    struct outcome held, outcome = {.harness = &harness};
    harness_init(&harness, NULL);
    start(&harness, "test/hold", 0, &held, NULL);
    Baton__V1__TokenizeRequest request = BATON__V1__TOKENIZE_REQUEST__INIT;
    struct bt_rpc_call_spec spec = harness_spec("test/echo", &request, &outcome);
    spec.on_end = end_destroys_client;
    assert_int_equal(bt_rpc_client_call(harness.client, &spec, NULL, NULL), BT_OK);
    harness_run_int(&harness, &outcome.ends, 1);
    assert_int_equal(held.ends, 1);
    assert_int_equal(held.status, BT_ERR_CANCELLED);
    harness_finish(&harness);
}

static void data_destroys_client(void *context, const ProtobufCMessage *message)
{
    struct outcome *outcome = context;
    (void)message;
    bt_rpc_client_destroy(outcome->harness->client);
    outcome->harness->client = NULL;
}

static void test_destroy_client_in_data(void **state)
{
    (void)state;
    struct harness harness;
    struct outcome outcome = {.harness = &harness};
    harness_init(&harness, NULL);
    Baton__V1__TokenizeRequest request = BATON__V1__TOKENIZE_REQUEST__INIT;
    request.text = (char *)"5";
    struct bt_rpc_call_spec spec = harness_spec("test/count", &request, &outcome);
    spec.on_data = data_destroys_client;
    assert_int_equal(bt_rpc_client_call(harness.client, &spec, NULL, NULL), BT_OK);
    harness_run_int(&harness, &outcome.ends, 1);
    assert_int_equal(outcome.status, BT_ERR_CANCELLED);
    harness_finish(&harness);
}

static void peer_down_destroys_client(void *context, bool up)
{
    struct harness *harness = context;
    if (!up) {
        bt_rpc_client_destroy(harness->client);
        harness->client = NULL;
    }
}

static void test_destroy_client_on_loss(void **state)
{
    (void)state;
    struct harness harness;
    struct outcome outcome;
    harness_init(&harness, NULL);
    bt_rpc_client_on_peer(harness.client, peer_down_destroys_client, &harness);
    start(&harness, "test/hold", 0, &outcome, NULL);
    harness_run_size(&harness, &harness.held_count, 1);
    bt_rpc_server_destroy(harness.server); /* its END comes first */
    harness.server = NULL;
    harness_run_int(&harness, &outcome.ends, 1);
    while (harness.client) {
        assert_int_equal(bt_loop_run_once(harness.loop, BT_NEVER_NS, NULL), BT_OK);
    }
    assert_int_equal(outcome.ends, 1);
    harness_finish(&harness);
}

struct destroyer {
    struct harness harness;
    int calls;
};

static void handle_destroys_server(void *context, struct bt_rpc_call *call,
                                   const ProtobufCMessage *request)
{
    struct destroyer *destroyer = context;
    (void)call;
    (void)request;
    if (++destroyer->calls == 2) {
        bt_rpc_server_destroy(destroyer->harness.server);
        destroyer->harness.server = NULL;
    }
}

static void test_destroy_server_in_handler(void **state)
{
    (void)state;
    const struct bt_rpc_method methods[] = {
        {"test/end", &baton__v1__tokenize_request__descriptor, handle_destroys_server}, {0}};
    struct destroyer destroyer = {.harness.loop = bt_loop_create(NULL)};
    struct harness *harness = &destroyer.harness;
    assert_int_equal(bt_rpc_server_create(harness->loop, "tcp://127.0.0.1:*", methods, &destroyer,
                                          NULL, &harness->server),
                     BT_OK);
    assert_int_equal(bt_rpc_client_create(harness->loop, bt_rpc_server_endpoint(harness->server),
                                          NULL, &harness->client),
                     BT_OK);
    struct outcome outcomes[3];
    for (int i = 0; i < 3; i++) {
        start(harness, "test/end", 0, &outcomes[i], NULL);
    }
    for (int i = 0; i < 3; i++) {
        harness_run_int(harness, &outcomes[i].ends, 1);
        /* The third was never read by the server. */
        assert_int_equal(outcomes[i].status, i < 2 ? BT_ERR_UNAVAILABLE : BT_ERR_PEER_LOST);
    }
    harness_finish(harness);
}

#define LAST_WORDS      900
#define LAST_WORD_BYTES (16 << 10) /* in all more than the kernel buffers */

static void handle_last_words(void *context, struct bt_rpc_call *call,
                              const ProtobufCMessage *request)
{
    struct harness *harness = context;
    (void)request;
    char text[LAST_WORD_BYTES];
    memset(text, 'w', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    Baton__V1__GenerateEvent event = BATON__V1__GENERATE_EVENT__INIT;
    event.text = text;
    for (int i = 0; i < LAST_WORDS; i++) {
        assert_int_equal(bt_rpc_call_send(call, &event.base), BT_OK);
    }
    bt_rpc_call_end(call, BT_OK, NULL, NULL);
    bt_rpc_server_destroy(harness->server);
    harness->server = NULL;
}

/* What a server said before it closed arrives, although the end of the connection overtakes it. */
static void test_last_words(void **state)
{
    (void)state;
    const struct bt_rpc_method methods[] = {
        {"test/last", &baton__v1__tokenize_request__descriptor, handle_last_words}, {0}};
    struct harness harness = {.loop = bt_loop_create(NULL)};
    assert_int_equal(bt_rpc_server_create(harness.loop, "tcp://127.0.0.1:*", methods, &harness,
                                          NULL, &harness.server),
                     BT_OK);
    assert_int_equal(bt_rpc_client_create(harness.loop, bt_rpc_server_endpoint(harness.server),
                                          NULL, &harness.client),
                     BT_OK);
    struct outcome outcome;
    start(&harness, "test/last", 0, &outcome, NULL);
    harness_run_int(&harness, &outcome.ends, 1);
    assert_int_equal(outcome.status, BT_OK);
    assert_int_equal(outcome.data_count, LAST_WORDS);
    harness_finish(&harness);
}

static void cancel_destroys_server(void *context, struct bt_rpc_call *call)
{
    struct harness *harness = context;
    (void)call;
    if (harness->server) {
        struct bt_rpc_server *server = harness->server;
        harness->server = NULL;
        bt_rpc_server_destroy(server);
    }
}

static void test_destroy_server_in_cancel(void **state)
{
    (void)state;
    struct harness harness;
    struct outcome outcomes[4];
    harness_init(&harness, NULL);
    for (int i = 0; i < 4; i++) {
        start(&harness, "test/hold", 0, &outcomes[i], NULL);
    }
    harness_run_size(&harness, &harness.held_count, 4);
    for (int i = 0; i < 4; i++) {
        bt_rpc_call_on_cancel(harness.held[i], cancel_destroys_server, &harness);
    }
    bt_rpc_client_destroy(harness.client);
    harness.client = NULL;
    while (harness.server) {
        assert_int_equal(bt_loop_run_once(harness.loop, BT_NEVER_NS, NULL), BT_OK);
    }
    harness_finish(&harness);
}

/* ------------------------------------------------------------------ blocking calls */

static void stop_loop(void *context)
{
    bt_loop_stop(context);
}

static void test_call_wait(void **state)
{
    (void)state;
    struct harness harness;
    harness_init(&harness, NULL);
    Baton__V1__TokenizeRequest request = BATON__V1__TOKENIZE_REQUEST__INIT;
    request.text = (char *)"abcd";
    struct outcome outcome = {0};
    struct bt_rpc_call_spec spec = harness_spec("test/echo", &request, &outcome);
    ProtobufCMessage *response = NULL;
    struct bt_error error = {0};
    assert_int_equal(bt_rpc_client_call_wait(harness.client, &spec, &error, &response), BT_OK);
    assert_int_equal(((Baton__V1__TokenizeResponse *)response)->n_ids, 4);
    protobuf_c_message_free_unpacked(response, NULL);

    spec.method = "test/fail";
    assert_int_equal(bt_rpc_client_call_wait(harness.client, &spec, &error, &response),
                     BT_ERR_NOT_FOUND);
    assert_non_null(strstr(error.text, "no such ? thing"));

    spec.method = "test/count";
    spec.response = NULL;
    assert_int_equal(bt_rpc_client_call_wait(harness.client, &spec, &error, NULL), BT_OK);
    assert_int_equal(outcome.ends, 0);

    spec.method = "test/hold";
    struct bt_loop_source *timer =
        bt_loop_add_timer(harness.loop, bt_clock_now_ns() + BT_NS_PER_MS, stop_loop, harness.loop);
    assert_int_equal(bt_rpc_client_call_wait(harness.client, &spec, &error, NULL),
                     BT_ERR_CANCELLED);
    bt_loop_remove(timer);
    harness_finish(&harness);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_server_killed), /* forks: before other threads were */
        cmocka_unit_test(test_server_silent),
        cmocka_unit_test(test_unary),
        cmocka_unit_test(test_bad_endpoints),
        cmocka_unit_test(test_endpoints_are_named_as_they_were_bound),
        cmocka_unit_test(test_idle_connections_are_probed),
        cmocka_unit_test(test_stream),
        cmocka_unit_test(test_stream_flow_limit),
        cmocka_unit_test(test_deadline),
        cmocka_unit_test(test_deadline_travels),
        cmocka_unit_test(test_cancel_waits_as_long_as_asked),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_cancel_unanswered),
        cmocka_unit_test(test_on_cancel_set_late),
        cmocka_unit_test(test_client_gone),
        cmocka_unit_test(test_server_destroyed),
        cmocka_unit_test(test_last_words),
        cmocka_unit_test(test_keepalive),
        cmocka_unit_test(test_nobody_there),
        cmocka_unit_test(test_somebody_silent_there),
        cmocka_unit_test(test_call_limit),
        cmocka_unit_test(test_send_queue_limit),
        cmocka_unit_test(test_too_large),
        cmocka_unit_test(test_destroy_client_in_end),
        cmocka_unit_test(test_destroy_client_in_data),
        cmocka_unit_test(test_destroy_client_on_loss),
        cmocka_unit_test(test_destroy_server_in_handler),
        cmocka_unit_test(test_destroy_server_in_cancel),
        cmocka_unit_test(test_call_wait),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
