/*
 * Many clients on one loop: they share a socket, and must notice nothing of it. Servers that others
 * may kill run in processes of their own.
 */
#include <arpa/inet.h>
#include <dirent.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/process.h"
#include "common/base/random.h"
#include "tests/seed.h"
#include "tests/unit/messaging/secured.h"

#define PROCESSES           20
#define SERVERS_PER_PROCESS 5
#define CLIENTS_PER_SERVER  20
#define CLIENTS             (PROCESSES * SERVERS_PER_PROCESS * CLIENTS_PER_SERVER)
#define ENDPOINT_SIZE       64
#define PATIENCE_NS         (60 * BT_NS_PER_S)
#define FOR_EVER_MS         (1000 * 1000)

static size_t descriptors(void)
{
    size_t count = 0;
    DIR *directory = opendir("/proc/self/fd");
    assert_non_null(directory);
    while (readdir(directory)) {
        count++;
    }
    closedir(directory);
    return count;
}

static void run_round(struct bt_loop *loop, int64_t give_up_ns)
{
    if (bt_clock_now_ns() >= give_up_ns) {
        fail_msg("nothing came in time");
    }
    assert_int_equal(bt_loop_run_once(loop, give_up_ns, NULL), BT_OK);
}

/* ------------------------------------------------------------------ servers of others */

struct served {
    pid_t pid;
    char endpoints[SERVERS_PER_PROCESS][ENDPOINT_SIZE];
};

static void serve(int out)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    static struct harness harness = {.end_on_cancel = true};
    struct bt_loop *loop = bt_loop_create(NULL);
    char endpoints[SERVERS_PER_PROCESS][ENDPOINT_SIZE] = {{0}};
    for (size_t i = 0; i < SERVERS_PER_PROCESS; i++) {
        struct bt_rpc_server *server;
        if (bt_rpc_server_create(loop, "tcp://127.0.0.1:*", harness_methods, &harness, NULL,
                                 &server) != BT_OK) {
            _exit(1);
        }
        snprintf(endpoints[i], ENDPOINT_SIZE, "%s", bt_rpc_server_endpoint(server));
    }
    if (write(out, endpoints, sizeof endpoints) != (ssize_t)sizeof endpoints) {
        _exit(1);
    }
    close(out);
    bt_loop_run(loop, NULL);
    _exit(0);
}

static void served_start(struct served *served)
{
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    served->pid = fork();
    assert_true(served->pid >= 0);
    if (served->pid == 0) {
        close(ends[0]);
        serve(ends[1]);
    }
    close(ends[1]);
    size_t got = 0;
    while (got < sizeof served->endpoints) {
        ssize_t more =
            read(ends[0], (char *)served->endpoints + got, sizeof served->endpoints - got);
        assert_true(more > 0);
        got += (size_t)more;
    }
    close(ends[0]);
}

static void served_kill(struct served *served)
{
    if (served->pid > 0) {
        kill(served->pid, SIGKILL);
        waitpid(served->pid, NULL, 0);
        served->pid = 0;
    }
}

/* ------------------------------------------------------------------ losses */

struct one {
    struct bt_rpc_client *client;
    struct outcome held;
    int downs;
    bool up;
};

struct many {
    struct bt_loop *loop;
    struct served served[PROCESSES];
    struct one ones[CLIENTS];
};

static void on_peer(void *context, bool up)
{
    struct one *one = context;
    one->up = up;
    one->downs += !up;
}

static void many_connect(struct many *many)
{
    Baton__V1__TokenizeRequest request = BATON__V1__TOKENIZE_REQUEST__INIT;
    for (size_t i = 0; i < CLIENTS; i++) {
        struct one *one = &many->ones[i];
        size_t server = i / CLIENTS_PER_SERVER;
        const struct served *served = &many->served[server / SERVERS_PER_PROCESS];
        assert_int_equal(bt_rpc_client_create(many->loop,
                                              served->endpoints[server % SERVERS_PER_PROCESS], NULL,
                                              &one->client),
                         BT_OK);
        bt_rpc_client_on_peer(one->client, on_peer, one);
        bt_rpc_client_set_keepalive(one->client, FOR_EVER_MS);
        struct bt_rpc_call_spec spec = harness_spec("test/hold", &request, &one->held);
        assert_int_equal(bt_rpc_client_call(one->client, &spec, NULL, NULL), BT_OK);
    }
    int64_t give_up_ns = bt_clock_now_ns() + PATIENCE_NS;
    for (size_t i = 0; i < CLIENTS; i++) {
        while (!many->ones[i].up) {
            run_round(many->loop, give_up_ns);
        }
    }
}

/* Those of the processes that were killed have heard it; nobody else has heard anything. */
static void many_expect(struct many *many)
{
    int64_t give_up_ns = bt_clock_now_ns() + PATIENCE_NS;
    for (size_t i = 0; i < CLIENTS; i++) {
        struct one *one = &many->ones[i];
        bool alive = many->served[i / CLIENTS_PER_SERVER / SERVERS_PER_PROCESS].pid > 0;
        while (!alive && one->held.ends == 0) {
            run_round(many->loop, give_up_ns);
        }
        if (!alive) {
            assert_int_equal(one->held.status, BT_ERR_PEER_LOST);
            assert_string_equal(one->held.text, "the peer closed the connection");
        }
        assert_int_equal(one->held.ends, !alive);
        assert_int_equal(one->downs, !alive);
        assert_int_equal(one->up, alive);
    }
}

/* No keepalive tells of them: the connections do. */
static void test_losses_are_ones_own(void **state)
{
    (void)state;
    uint64_t seed = test_seed();
    struct many *many = calloc(1, sizeof *many);
    assert_non_null(many);
    for (size_t i = 0; i < PROCESSES; i++) {
        served_start(&many->served[i]);
    }
    many->loop = bt_loop_create(NULL);
    size_t before = descriptors();
    many_connect(many);
    assert_in_range(descriptors() - before, CLIENTS, CLIENTS + 16);
    many_expect(many);
    for (uint64_t killed = 0; killed < PROCESSES / 2; killed++) {
        served_kill(&many->served[bt_random_u64(seed, killed, 0) % PROCESSES]);
        many_expect(many);
    }
    for (size_t i = 0; i < CLIENTS; i++) {
        bt_rpc_client_destroy(many->ones[i].client);
    }
    bt_loop_destroy(many->loop);
    for (size_t i = 0; i < PROCESSES; i++) {
        served_kill(&many->served[i]);
    }
    free(many);
}

/* ------------------------------------------------------------------ a peer that does not read */

#define LARGE_BYTES (1u << 20)

/* Its queue fills up; the calls of all others go on, and its own loss is still heard. */
static void test_one_that_does_not_read(void **state)
{
    (void)state;
    struct harness harness;
    struct outcome stuck = {0}, other;
    struct one reader = {0};
    struct bt_rpc_client *client;
    struct served served;
    served_start(&served);
    harness_init(&harness, NULL);
    assert_int_equal(bt_rpc_client_create(harness.loop, served.endpoints[0], NULL, &client), BT_OK);
    bt_rpc_client_on_peer(client, on_peer, &reader);
    bt_rpc_client_set_keepalive(client, FOR_EVER_MS);
    char *text = malloc(LARGE_BYTES);
    assert_non_null(text);
    memset(text, 'x', LARGE_BYTES - 1);
    text[LARGE_BYTES - 1] = '\0';
    Baton__V1__TokenizeRequest request = BATON__V1__TOKENIZE_REQUEST__INIT;
    request.text = text;
    struct bt_rpc_call_spec spec = harness_spec("test/hold", &request, &stuck);
    assert_int_equal(bt_rpc_client_call(client, &spec, NULL, NULL), BT_OK);
    int64_t give_up_ns = bt_clock_now_ns() + PATIENCE_NS;
    while (!reader.up) {
        run_round(harness.loop, give_up_ns);
    }
    kill(served.pid, SIGSTOP);
    int started = 1;
    enum bt_status status = BT_OK;
    while (status == BT_OK) {
        if (started == 40) { /* more than the kernel holds */
            text[0] = '\0';
        }
        status = bt_rpc_client_call(client, &spec, NULL, NULL);
        started += status == BT_OK;
        harness_call(&harness, "test/echo", "on", &other);
        assert_int_equal(other.status, BT_OK);
        assert_int_equal(stuck.ends, 0);
    }
    assert_int_equal(status, BT_ERR_EXHAUSTED);
    assert_in_range(started, BT_RPC_SEND_QUEUE_MESSAGES / 2, 2 * BT_RPC_SEND_QUEUE_MESSAGES);
    served_kill(&served);
    harness_run_int(&harness, &stuck.ends, started);
    assert_int_equal(stuck.ends, started);
    assert_int_equal(stuck.status, BT_ERR_PEER_LOST);
    harness_call(&harness, "test/echo", "on", &other);
    assert_int_equal(other.status, BT_OK);
    free(text);
    bt_rpc_client_destroy(client);
    harness_finish(&harness);
}

/* ------------------------------------------------------------------ one endpoint, many clients */

/* More than there are ways to spell it, where there is any. */
static void many_of_one(const char *endpoint, size_t descriptors_expected)
{
    enum { COUNT = 70 };
    struct harness harness;
    struct outcome outcomes[COUNT] = {0};
    struct bt_rpc_client *clients[COUNT];
    harness_init(&harness, endpoint);
    Baton__V1__TokenizeRequest request = BATON__V1__TOKENIZE_REQUEST__INIT;
    size_t before = descriptors();
    for (size_t i = 0; i < COUNT; i++) {
        struct bt_rpc_call_spec spec = harness_spec("test/hold", &request, &outcomes[i]);
        assert_int_equal(bt_rpc_client_create(harness.loop, bt_rpc_server_endpoint(harness.server),
                                              NULL, &clients[i]),
                         BT_OK);
        assert_int_equal(bt_rpc_client_call(clients[i], &spec, NULL, NULL), BT_OK);
    }
    harness_run_size(&harness, &harness.held_count, COUNT);
    assert_in_range(descriptors() - before, 2 * COUNT, descriptors_expected);
    for (size_t i = 0; i < COUNT; i += 2) { /* every other */
        bt_rpc_client_destroy(clients[i]);
        assert_int_equal(outcomes[i].status, BT_ERR_CANCELLED);
    }
    harness_run_size(&harness, &harness.cancels, COUNT / 2);
    for (size_t i = 1; i < COUNT; i += 2) {
        assert_int_equal(outcomes[i].ends, 0);
    }
    assert_int_equal(harness.cancels, COUNT / 2);
    bt_rpc_server_destroy(harness.server);
    harness.server = NULL;
    for (size_t i = 1; i < COUNT; i += 2) {
        harness_run_int(&harness, &outcomes[i].ends, 1);
        assert_int_equal(outcomes[i].status, BT_ERR_CANCELLED); /* its on_cancel ended it */
        bt_rpc_client_destroy(clients[i]);
    }
    harness_finish(&harness);
}

static void test_one_endpoint(void **state)
{
    (void)state;
    char abstract[64], path[64], folder[] = "/tmp/baton-test-XXXXXX";
    many_of_one("tcp://127.0.0.1:*", 2 * 70 + 6 * 4 + 16);
    snprintf(abstract, sizeof abstract, "ipc://@baton-test-%d", (int)getpid());
    many_of_one(abstract, 2 * 70 + 70 * 4 + 16);
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "ipc://%s/socket", folder);
    many_of_one(path, 2 * 70 + 6 * 4 + 16);
    unlink(path + 6);
    rmdir(folder);
}

/* What is still told of connections that were given up is taken for nothing of the new ones. */
static void test_again_and_again(void **state)
{
    (void)state;
    uint64_t seed = test_seed();
    struct harness harness;
    struct outcome outcome = {0}, echo;
    harness_init(&harness, NULL);
    Baton__V1__TokenizeRequest request = BATON__V1__TOKENIZE_REQUEST__INIT;
    struct bt_rpc_call_spec spec = harness_spec("test/hold", &request, &outcome);
    for (uint64_t i = 0; i < 300; i++) {
        struct bt_rpc_client *client;
        assert_int_equal(bt_rpc_client_create(harness.loop, bt_rpc_server_endpoint(harness.server),
                                              NULL, &client),
                         BT_OK);
        assert_int_equal(bt_rpc_client_call(client, &spec, NULL, NULL), BT_OK);
        for (uint64_t rounds = bt_random_u64(seed, i, 0) % 6; rounds > 0; rounds--) {
            assert_int_equal(bt_loop_run_once(harness.loop, 0, NULL), BT_OK);
        }
        assert_int_equal(outcome.ends, i);
        bt_rpc_client_destroy(client);
        assert_int_equal(outcome.status, BT_ERR_CANCELLED);
    }
    harness_call(&harness, "test/echo", "abc", &echo);
    assert_int_equal(echo.id_count, 3);
    assert_int_equal(harness.peer_downs, 0);
    harness_finish(&harness);
}

/* ------------------------------------------------------------------ keys */

/* Two servers with keys of their own, many clients of each over one socket. */
static void test_many_with_keys(void **state)
{
    enum { EACH = 40 };
    struct world *world = *state;
    struct bt_rpc_client *clients[2 * EACH];
    struct outcome outcomes[2 * EACH] = {0};
    for (size_t i = 0; i < 3; i++) {
        party_allow(world, i, ALL);
        party_secure(world, i);
    }
    party_serve(world, 0, NULL);
    party_serve(world, 1, NULL);
    struct bt_loop *loop = world->parties[2].harness.loop;
    Baton__V1__TokenizeRequest request = BATON__V1__TOKENIZE_REQUEST__INIT;
    for (size_t i = 0; i < 2 * EACH; i++) {
        struct bt_rpc_call_spec spec = harness_spec("test/hold", &request, &outcomes[i]);
        assert_int_equal(bt_rpc_client_create(loop, endpoint_of(world, i % 2), NULL, &clients[i]),
                         BT_OK);
        assert_int_equal(bt_rpc_client_call(clients[i], &spec, NULL, NULL), BT_OK);
    }
    world_run_size(world, &world->parties[0].harness.held_count, EACH);
    world_run_size(world, &world->parties[1].harness.held_count, EACH);

    /* One of the keys leaves the list: the connections to it break, and those alone. */
    party_allow(world, 2, ALL & ~2u);
    assert_int_equal(bt_security_reload(loop, NULL), BT_OK);
    for (size_t i = 1; i < 2 * EACH; i += 2) {
        world_run_int(world, &outcomes[i].ends, 1);
        assert_int_equal(outcomes[i].status, BT_ERR_UNAVAILABLE);
    }
    world_run_size(world, &world->parties[1].harness.cancels, EACH);
    for (size_t i = 0; i < 2 * EACH; i += 2) {
        assert_int_equal(outcomes[i].ends, 0);
    }
    assert_int_equal(world->parties[0].harness.cancels, 0);
    for (size_t i = 0; i < 2 * EACH; i++) {
        bt_rpc_client_destroy(clients[i]);
    }
}

int main(void)
{
    bt_process_raise_file_limit();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_losses_are_ones_own),
        cmocka_unit_test(test_one_that_does_not_read),
        cmocka_unit_test(test_one_endpoint),
        cmocka_unit_test(test_again_and_again),
        cmocka_unit_test_setup_teardown(test_many_with_keys, world_setup, world_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
