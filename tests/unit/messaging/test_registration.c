/* A worker and two routers that forget, refuse, and go away. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/messaging/registration.h"
#include "common/messaging/rpc.h"

struct router {
    struct bt_rpc_server *server;
    uint32_t registers, heartbeats, deregisters;
    uint64_t last_sequence;
    uint32_t last_free_pages;
    bool last_draining;
    uint32_t heartbeat_ms;
    enum bt_status register_answer;
    bool forgot;              /* answers the next heartbeat with NOT_FOUND */
    bool broken;              /* answers the next heartbeat with INTERNAL */
    struct bt_rpc_call *held; /* a Register that is not answered */
    bool hold;
    uint64_t prefix_version; /* that it has */
    uint32_t prefix_changes; /* that it was told */
    bool prefix_deaf;        /* takes in no summary */
    size_t names;            /* that many ranks, in each answer to a heartbeat */
};

struct world {
    struct bt_loop *loop;
    struct router routers[2];
    Baton__V1__RegisterRequest identity;
    struct bt_registration *registration;
    uint32_t registered, ranks, refused;
    enum bt_status refused_status;
    char refused_text[512];
    bool draining;
    uint64_t prefix_version; /* 0: there is no cache */
};

static void handle_register(void *context, struct bt_rpc_call *call,
                            const ProtobufCMessage *message)
{
    struct router *router = context;
    const Baton__V1__RegisterRequest *request = (const Baton__V1__RegisterRequest *)message;
    router->registers++;
    assert_string_equal(request->worker_id, "worker-7");
    assert_int_equal(request->incarnation, 99);
    assert_non_null(request->load);
    if (router->hold) {
        router->held = call;
        return;
    }
    if (router->register_answer != BT_OK) {
        bt_rpc_call_end(call, router->register_answer, "kv_dtype: f32 here, bf16 there", NULL);
        return;
    }
    Baton__V1__KvEndpoint endpoint = BATON__V1__KV_ENDPOINT__INIT;
    Baton__V1__KvEndpoint *list[] = {&endpoint};
    Baton__V1__RegisterResponse response = BATON__V1__REGISTER_RESPONSE__INIT;
    response.heartbeat_ms = router->heartbeat_ms; /* 0: the least that is kept is more */
    response.decode = list;
    response.n_decode = 1;
    bt_rpc_call_end(call, BT_OK, NULL, &response.base);
}

static void handle_heartbeat(void *context, struct bt_rpc_call *call,
                             const ProtobufCMessage *message)
{
    struct router *router = context;
    const Baton__V1__HeartbeatRequest *request = (const Baton__V1__HeartbeatRequest *)message;
    Baton__V1__HeartbeatResponse response = BATON__V1__HEARTBEAT_RESPONSE__INIT;
    router->heartbeats++;
    assert_true(request->sequence > router->last_sequence);
    router->last_sequence = request->sequence;
    router->last_draining = request->draining;
    router->last_free_pages = request->load->pages_free;
    if (request->prefix && !router->prefix_deaf) {
        assert_true(request->prefix->since == 0 ||
                    request->prefix->since == router->prefix_version);
        router->prefix_changes = request->prefix->since == 0 ? 0 : router->prefix_changes;
        router->prefix_version = request->prefix->version;
        router->prefix_changes += (uint32_t)request->prefix->n_page;
    }
    response.prefix_version = router->prefix_version;
    if (router->forgot) {
        router->forgot = false;
        bt_rpc_call_end(call, BT_ERR_NOT_FOUND, "who?", NULL);
        return;
    }
    if (router->broken) {
        router->broken = false;
        bt_rpc_call_end(call, BT_ERR_INTERNAL, "no answer that is one", NULL);
        return;
    }
    static Baton__V1__KvEndpoint endpoint = BATON__V1__KV_ENDPOINT__INIT;
    Baton__V1__KvEndpoint **list = calloc(router->names + 1, sizeof(*list));
    assert_non_null(list);
    for (size_t i = 0; i < router->names; i++) {
        list[i] = &endpoint;
    }
    response.decode = list;
    response.n_decode = router->names;
    bt_rpc_call_end(call, BT_OK, NULL, &response.base);
    free(list);
}

static void handle_deregister(void *context, struct bt_rpc_call *call,
                              const ProtobufCMessage *message)
{
    struct router *router = context;
    Baton__V1__DeregisterResponse response = BATON__V1__DEREGISTER_RESPONSE__INIT;
    (void)message;
    router->deregisters++;
    bt_rpc_call_end(call, BT_OK, NULL, &response.base);
}

static const struct bt_rpc_method methods[] = {
    {"baton.v1.Registry/Register", &baton__v1__register_request__descriptor, handle_register},
    {"baton.v1.Registry/Heartbeat", &baton__v1__heartbeat_request__descriptor, handle_heartbeat},
    {"baton.v1.Registry/Deregister", &baton__v1__deregister_request__descriptor, handle_deregister},
    {NULL, NULL, NULL},
};

static void on_load(void *context, Baton__V1__RankLoad *ret_load, bool *ret_draining)
{
    struct world *world = context;
    ret_load->pages_free = 321;
    *ret_draining = world->draining;
}

/* A change a version, two a summary. */
static bool on_prefixes(void *context, uint64_t since, Baton__V1__PrefixSummary *ret_summary,
                        bool *ret_more)
{
    static uint32_t pages[2] = {5, 6}, parents[2] = {UINT32_MAX, 5};
    static uint64_t blocks[2] = {77, 78};
    const struct world *world = context;
    uint64_t count = world->prefix_version - since < 2 ? world->prefix_version - since : 2;
    ret_summary->since = since;
    ret_summary->version = since + count;
    ret_summary->page = pages;
    ret_summary->parent = parents;
    ret_summary->block = blocks;
    ret_summary->n_page = ret_summary->n_parent = ret_summary->n_block = count;
    *ret_more = count == 2;
    return count > 0;
}

static void on_ranks(void *context, Baton__V1__KvEndpoint *const *ranks, size_t count)
{
    struct world *world = context;
    assert_non_null(ranks[0]);
    world->ranks += (uint32_t)count;
}

static void on_registered(void *context)
{
    struct world *world = context;
    world->registered++;
}

static void on_refused(void *context, enum bt_status status, const char *text)
{
    struct world *world = context;
    world->refused++;
    world->refused_status = status;
    snprintf(world->refused_text, sizeof(world->refused_text), "%s", text);
}

static void router_open(struct world *world, struct router *router, const char *endpoint)
{
    struct bt_error error;
    assert_int_equal(
        bt_rpc_server_create(world->loop, endpoint, methods, router, &error, &router->server),
        BT_OK);
}

static int world_setup(void **state)
{
    struct bt_error error;
    struct world *world = calloc(1, sizeof(*world));
    world->loop = bt_loop_create(&error);
    router_open(world, &world->routers[0], "tcp://127.0.0.1:*");
    router_open(world, &world->routers[1], "tcp://127.0.0.1:*");
    baton__v1__register_request__init(&world->identity);
    world->identity.worker_id = (char *)"worker-7";
    world->identity.incarnation = 99;
    *state = world;
    return 0;
}

static int world_teardown(void **state)
{
    struct world *world = *state;
    bt_registration_destroy(world->registration);
    bt_rpc_server_destroy(world->routers[0].server);
    bt_rpc_server_destroy(world->routers[1].server);
    bt_loop_destroy(world->loop);
    free(world);
    return 0;
}

static enum bt_status start(struct world *world, const char *routers)
{
    struct bt_error error;
    const struct bt_registration_events events = {on_load,    on_ranks, on_registered,
                                                  on_refused, world,    on_prefixes};
    return bt_registration_create(world->loop, routers, &world->identity, &events, &error,
                                  &world->registration);
}

static void start_with_both(struct world *world)
{
    char routers[256];
    snprintf(routers, sizeof(routers), "%s,%s", bt_rpc_server_endpoint(world->routers[0].server),
             bt_rpc_server_endpoint(world->routers[1].server));
    assert_int_equal(start(world, routers), BT_OK);
}

#define until(world, done)                                                                         \
    do {                                                                                           \
        int64_t until_ns_ = bt_clock_now_ns() + 60 * BT_NS_PER_S;                                  \
        while (!(done)) {                                                                          \
            assert_true(bt_clock_now_ns() < until_ns_);                                            \
            assert_int_equal(bt_loop_run_once((world)->loop, until_ns_, NULL), BT_OK);             \
        }                                                                                          \
    } while (0)

/* The worker may have given up on the answer when a router comes to its goodbye. */
static void expect_goodbye(struct world *world, const struct router *router)
{
    until(world, router->deregisters > 0);
    assert_int_equal(router->deregisters, 1);
}

static void test_register_heartbeat_and_leave(void **state)
{
    struct world *world = *state;
    start_with_both(world);
    until(world, world->routers[0].heartbeats >= 3 && world->routers[1].heartbeats >= 3);
    assert_int_equal(world->registered, 2);
    assert_int_equal(world->ranks, 2);
    assert_int_equal(world->routers[0].registers, 1);
    assert_int_equal(world->routers[0].last_free_pages, 321);
    assert_false(world->routers[1].last_draining);
    world->draining = true;
    bt_registration_hurry(world->registration);
    until(world, world->routers[0].last_draining && world->routers[1].last_draining);
    bt_registration_deregister(world->registration);
    assert_false(bt_registration_gone(world->registration));
    until(world, bt_registration_gone(world->registration));
    expect_goodbye(world, &world->routers[0]);
    expect_goodbye(world, &world->routers[1]);
}

static void test_ranks_of_an_answer_are_bounded(void **state)
{
    struct world *world = *state;
    start_with_both(world);
    until(world, world->registered == 2);
    assert_int_equal(world->ranks, 2);
    world->routers[1].names = 200000;
    until(world, world->ranks > 2);
    assert_int_equal(world->ranks, 2 + BT_REGISTRATION_MAX_RANKS);
}

static void test_a_router_that_forgot_is_told_again(void **state)
{
    struct world *world = *state;
    start_with_both(world);
    until(world, world->registered == 2);
    world->routers[1].forgot = true;
    until(world, world->registered == 3);
    assert_int_equal(world->routers[0].registers, 1);
    assert_int_equal(world->routers[1].registers, 2);
}

/* Ranks that the lost answer named would not be named again. */
static void test_after_a_lost_answer_all_ranks_are_asked_for(void **state)
{
    struct world *world = *state;
    start_with_both(world);
    until(world, world->registered == 2);
    assert_int_equal(world->ranks, 2);
    world->routers[0].broken = true;
    until(world, world->registered == 3);
    assert_int_equal(world->routers[0].registers, 2);
    assert_int_equal(world->ranks, 3);
}

/* Register can't say it; the interval of heartbeats is longer than this test runs. */
static void test_a_draining_worker_says_so_at_once(void **state)
{
    struct world *world = *state;
    world->draining = true;
    world->routers[0].heartbeat_ms = world->routers[1].heartbeat_ms = 60000;
    start_with_both(world);
    until(world, world->routers[0].last_draining && world->routers[1].last_draining);
}

/* Each from where it is; what does not fit one heartbeat follows at once, but not to a router that
 * does not take it in. */
static void test_prefixes_are_told_until_they_are_known(void **state)
{
    struct world *world = *state;
    world->routers[0].heartbeat_ms = world->routers[1].heartbeat_ms = 60000;
    world->routers[1].prefix_deaf = true;
    world->prefix_version = 7;
    start_with_both(world);
    until(world, world->registered == 2);
    bt_registration_hurry(world->registration);
    until(world, world->routers[0].prefix_version == 7 && world->routers[1].heartbeats >= 1);
    assert_int_equal(world->routers[0].prefix_changes, 7);
    assert_int_equal(world->routers[0].heartbeats, 4);
    world->routers[1].prefix_deaf = false;
    world->prefix_version = 8;
    bt_registration_hurry(world->registration);
    until(world, world->routers[0].prefix_version == 8 && world->routers[1].prefix_version == 8);
    assert_int_equal(world->routers[0].heartbeats, 5);
    assert_int_equal(world->routers[0].prefix_changes, 8);
    assert_in_range(world->routers[1].heartbeats, 1 + 4, 1 + 4 + 1);
    assert_int_equal(world->routers[1].prefix_changes, 8);
}

/* One that registered the worker anew may have been started anew. */
static void test_prefixes_are_told_anew_after_a_register(void **state)
{
    struct world *world = *state;
    world->prefix_version = 3;
    start_with_both(world);
    until(world, world->routers[0].prefix_version == 3 && world->routers[1].prefix_version == 3);
    world->routers[1].prefix_version = 0;
    world->routers[1].prefix_changes = 0;
    world->routers[1].forgot = true;
    until(world, world->routers[1].registers == 2 && world->routers[1].prefix_changes == 3);
    assert_int_equal(world->routers[0].prefix_changes, 3);
}

static void test_goodbye_follows_a_register_that_is_out(void **state)
{
    struct world *world = *state;
    world->routers[1].hold = true;
    start_with_both(world);
    until(world, world->routers[0].heartbeats > 0 && world->routers[1].held);
    bt_registration_deregister(world->registration);
    until(world, bt_registration_gone(world->registration));
    expect_goodbye(world, &world->routers[0]);
    expect_goodbye(world, &world->routers[1]);
    bt_rpc_call_end(world->routers[1].held, BT_ERR_INTERNAL, NULL, NULL);
}

static void test_a_refusal_names_router_and_field(void **state)
{
    struct world *world = *state;
    world->routers[1].register_answer = BT_ERR_MISMATCH;
    start_with_both(world);
    until(world, world->refused > 0 && world->routers[0].heartbeats > 2);
    assert_int_equal(world->refused, 1);
    assert_int_equal(world->refused_status, BT_ERR_MISMATCH);
    assert_non_null(strstr(world->refused_text, "kv_dtype"));
    assert_non_null(strstr(world->refused_text, bt_rpc_server_endpoint(world->routers[1].server)));
    assert_int_equal(world->routers[1].registers, 1); /* asking again would change nothing */
    /* Goodbye goes only to those who know us. */
    bt_registration_deregister(world->registration);
    until(world, bt_registration_gone(world->registration));
    assert_int_equal(world->routers[1].deregisters, 0);
}

/* A worker that was here under this id may be seen as alive for a while. */
static void test_already_exists_is_tried_again(void **state)
{
    struct world *world = *state;
    world->routers[0].register_answer = BT_ERR_ALREADY_EXISTS;
    start_with_both(world);
    until(world, world->routers[0].registers >= 2);
    world->routers[0].register_answer = BT_OK;
    until(world, world->registered == 2);
    assert_int_equal(world->refused, 0);
}

static void test_a_router_may_come_later(void **state)
{
    struct world *world = *state;
    char endpoint[128];
    snprintf(endpoint, sizeof(endpoint), "%s", bt_rpc_server_endpoint(world->routers[0].server));
    bt_rpc_server_destroy(world->routers[0].server);
    world->routers[0].server = NULL;
    char routers[256];
    snprintf(routers, sizeof(routers), "%s,%s", endpoint,
             bt_rpc_server_endpoint(world->routers[1].server));
    assert_int_equal(start(world, routers), BT_OK);
    until(world, world->routers[1].heartbeats > 3);
    assert_int_equal(world->registered, 1);
    router_open(world, &world->routers[0], endpoint);
    until(world, world->routers[0].heartbeats > 0);
    assert_int_equal(world->registered, 2);
}

static void test_router_lists(void **state)
{
    struct world *world = *state;
    assert_int_equal(start(world, ""), BT_ERR_INVALID_ARGUMENT);
    assert_int_equal(start(world, ",,"), BT_ERR_INVALID_ARGUMENT);
    assert_int_equal(start(world, "tcp://127.0.0.1:1,no endpoint"), BT_ERR_INVALID_ARGUMENT);
    char many[BT_REGISTRATION_MAX_ROUTERS * 20 + 40] = "";
    for (int i = 0; i <= BT_REGISTRATION_MAX_ROUTERS; i++) {
        strcat(many, "tcp://127.0.0.1:1,");
    }
    assert_int_equal(start(world, many), BT_ERR_INVALID_ARGUMENT);
    world->registration = NULL;
}

static void test_ready_file(void **state)
{
    (void)state;
    struct bt_error error;
    char directory[] = "/tmp/baton-ready-XXXXXX", path[128], text[256] = "", expected[256];
    assert_non_null(mkdtemp(directory));
    snprintf(path, sizeof(path), "%s/ready", directory);
    assert_int_equal(bt_ready_file_write(path, "w", "tcp://h:1", &error), BT_OK);
    assert_int_equal(bt_ready_file_write(path, "w2", "tcp://h:2", &error), BT_OK);
    FILE *file = fopen(path, "r");
    assert_non_null(fgets(text, sizeof(text), file));
    fclose(file);
    snprintf(expected, sizeof(expected),
             "{\"worker_id\":\"w2\",\"rpc\":\"tcp://h:2\",\"pid\":%d}\n", (int)getpid());
    assert_string_equal(text, expected);
    unlink(path);
    assert_int_equal(rmdir(directory), 0); /* nothing else was left there */
    assert_int_equal(bt_ready_file_write(path, "w", "r", &error), BT_ERR_IO);
    assert_non_null(strstr(error.text, path));
}

int main(void)
{
    bt_log_init("test", BT_LOG_ERROR);
#define TEST(name) cmocka_unit_test_setup_teardown(name, world_setup, world_teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_register_heartbeat_and_leave),
        TEST(test_ranks_of_an_answer_are_bounded),
        TEST(test_a_router_that_forgot_is_told_again),
        TEST(test_a_refusal_names_router_and_field),
        TEST(test_already_exists_is_tried_again),
        TEST(test_a_router_may_come_later),
        TEST(test_router_lists),
        TEST(test_after_a_lost_answer_all_ranks_are_asked_for),
        TEST(test_a_draining_worker_says_so_at_once),
        TEST(test_prefixes_are_told_until_they_are_known),
        TEST(test_prefixes_are_told_anew_after_a_register),
        TEST(test_goodbye_follows_a_register_that_is_out),
        cmocka_unit_test(test_ready_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
