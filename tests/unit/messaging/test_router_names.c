/* A worker whose routers stand behind one name, and come and go. The resolver is a fake, and asked
 * again after some milliseconds. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <arpa/inet.h>
#include <cmocka.h>
#include <netdb.h>
#include <pthread.h>
#include <time.h>

#include "common/base/clock.h"
#include "common/messaging/registration.h"
#include "common/messaging/router_names.h"
#include "common/messaging/rpc.h"

/* ------------------------------------------------------------------ the resolver */

#define FAKE_ADDRESSES 80

static struct {
    pthread_mutex_t lock;
    pthread_cond_t open;
    char addresses[FAKE_ADDRESSES][64];
    size_t count;
    int code;  /* of getaddrinfo */
    bool held; /* it does not answer */
    uint32_t asked;
} fake = {.lock = PTHREAD_MUTEX_INITIALIZER, .open = PTHREAD_COND_INITIALIZER};

int __real_getaddrinfo(const char *node, const char *service, const struct addrinfo *hints,
                       struct addrinfo **ret);
void __real_freeaddrinfo(struct addrinfo *list);
int __real_pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *mutex,
                                  const struct timespec *until);
int __wrap_getaddrinfo(const char *node, const char *service, const struct addrinfo *hints,
                       struct addrinfo **ret);
void __wrap_freeaddrinfo(struct addrinfo *list);
int __wrap_pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *mutex,
                                  const struct timespec *until);

int __wrap_getaddrinfo(const char *node, const char *service, const struct addrinfo *hints,
                       struct addrinfo **ret)
{
    if (strcmp(node, "routers.test") != 0) {
        return __real_getaddrinfo(node, service, hints, ret);
    }
    struct addrinfo *list = NULL, **end = &list;
    pthread_mutex_lock(&fake.lock);
    fake.asked++;
    while (fake.held) {
        pthread_cond_wait(&fake.open, &fake.lock);
    }
    int code = fake.code;
    for (size_t i = 0; code == 0 && i < fake.count; i++) {
        const struct addrinfo numeric = {.ai_flags = AI_NUMERICHOST, .ai_socktype = SOCK_STREAM};
        code = __real_getaddrinfo(fake.addresses[i], NULL, &numeric, end);
        end = &(*end)->ai_next;
    }
    pthread_mutex_unlock(&fake.lock);
    *ret = list;
    return code;
}

/* The lists of one numeric address each were chained. */
void __wrap_freeaddrinfo(struct addrinfo *list)
{
    while (list) {
        struct addrinfo *next = list->ai_next;
        list->ai_next = NULL;
        __real_freeaddrinfo(list);
        list = next;
    }
}

int __wrap_pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *mutex,
                                  const struct timespec *until)
{
    int64_t soon_ns = bt_clock_now_ns() + 5 * BT_NS_PER_MS;
    const struct timespec soon = {soon_ns / BT_NS_PER_S, soon_ns % BT_NS_PER_S};
    (void)until;
    return __real_pthread_cond_timedwait(cond, mutex, &soon);
}

static void fake_says(int code, size_t count, const char *const *addresses)
{
    pthread_mutex_lock(&fake.lock);
    fake.code = code;
    fake.count = count;
    for (size_t i = 0; i < count; i++) {
        snprintf(fake.addresses[i], sizeof fake.addresses[i], "%s", addresses[i]);
    }
    pthread_mutex_unlock(&fake.lock);
}

static uint32_t fake_asked(void)
{
    pthread_mutex_lock(&fake.lock);
    uint32_t asked = fake.asked;
    pthread_mutex_unlock(&fake.lock);
    return asked;
}

static void fake_hold(bool held)
{
    pthread_mutex_lock(&fake.lock);
    fake.held = held;
    pthread_cond_broadcast(&fake.open);
    pthread_mutex_unlock(&fake.lock);
}

/* ------------------------------------------------------------------ routers */

struct router {
    struct bt_rpc_server *server;
    uint32_t registers, heartbeats, deregisters;
};

struct world {
    struct bt_loop *loop;
    struct router routers[2]; /* at 127.0.0.1 and 127.0.0.2, the same port */
    unsigned port;
    Baton__V1__RegisterRequest identity;
    struct bt_registration *registration;
    uint32_t registered;
};

static void handle_register(void *context, struct bt_rpc_call *call, const ProtobufCMessage *m)
{
    struct router *router = context;
    Baton__V1__RegisterResponse response = BATON__V1__REGISTER_RESPONSE__INIT;
    (void)m;
    router->registers++;
    bt_rpc_call_end(call, BT_OK, NULL, &response.base);
}

static void handle_heartbeat(void *context, struct bt_rpc_call *call, const ProtobufCMessage *m)
{
    struct router *router = context;
    Baton__V1__HeartbeatResponse response = BATON__V1__HEARTBEAT_RESPONSE__INIT;
    (void)m;
    router->heartbeats++;
    bt_rpc_call_end(call, BT_OK, NULL, &response.base);
}

static void handle_deregister(void *context, struct bt_rpc_call *call, const ProtobufCMessage *m)
{
    struct router *router = context;
    Baton__V1__DeregisterResponse response = BATON__V1__DEREGISTER_RESPONSE__INIT;
    (void)m;
    router->deregisters++;
    bt_rpc_call_end(call, BT_OK, NULL, &response.base);
}

static const struct bt_rpc_method methods[] = {
    {"baton.v1.Registry/Register", &baton__v1__register_request__descriptor, handle_register},
    {"baton.v1.Registry/Heartbeat", &baton__v1__heartbeat_request__descriptor, handle_heartbeat},
    {"baton.v1.Registry/Deregister", &baton__v1__deregister_request__descriptor, handle_deregister},
    {NULL, NULL, NULL},
};

static bool open_router(struct world *world, size_t i)
{
    struct bt_error error;
    char endpoint[64];
    snprintf(endpoint, sizeof endpoint, "tcp://127.0.0.%zu:%u", i + 1, world->port);
    return bt_rpc_server_create(world->loop, endpoint, methods, &world->routers[i], &error,
                                &world->routers[i].server) == BT_OK;
}

static void close_router(struct world *world, size_t i)
{
    bt_rpc_server_destroy(world->routers[i].server);
    world->routers[i].server = NULL;
}

/* A port that is free at both addresses. */
static void open_routers(struct world *world)
{
    struct bt_error error;
    for (int tries = 0; tries < 100; tries++) {
        assert_int_equal(bt_rpc_server_create(world->loop, "tcp://127.0.0.1:*", methods,
                                              &world->routers[0], &error,
                                              &world->routers[0].server),
                         BT_OK);
        const char *endpoint = bt_rpc_server_endpoint(world->routers[0].server);
        world->port = (unsigned)atoi(strrchr(endpoint, ':') + 1);
        if (open_router(world, 1)) {
            return;
        }
        close_router(world, 0);
    }
    fail_msg("no port is free at two addresses");
}

static void on_load(void *context, Baton__V1__RankLoad *ret_load, bool *ret_draining)
{
    (void)context, (void)ret_load;
    *ret_draining = false;
}

static void on_registered(void *context)
{
    struct world *world = context;
    world->registered++;
}

static void on_refused(void *context, enum bt_status status, const char *text)
{
    (void)context, (void)status;
    fail_msg("%s", text);
}

static int setup(void **state)
{
    struct bt_error error;
    struct world *world = calloc(1, sizeof *world);
    world->loop = bt_loop_create(&error);
    open_routers(world);
    baton__v1__register_request__init(&world->identity);
    world->identity.worker_id = (char *)"worker-7";
    fake_says(EAI_NONAME, 0, NULL);
    *state = world;
    return 0;
}

static int teardown(void **state)
{
    struct world *world = *state;
    bt_registration_destroy(world->registration);
    fake_hold(false);
    close_router(world, 0);
    close_router(world, 1);
    bt_loop_destroy(world->loop);
    free(world);
    return 0;
}

static enum bt_status start_at(struct world *world, const char *routers, struct bt_error *error)
{
    const struct bt_registration_events events = {
        .load = on_load, .registered = on_registered, .refused = on_refused, .context = world};
    return bt_registration_create(world->loop, routers, &world->identity, &events, error,
                                  &world->registration);
}

static void start(struct world *world)
{
    struct bt_error error;
    char routers[64];
    snprintf(routers, sizeof routers, "dns+tcp://routers.test:%u", world->port);
    assert_int_equal(start_at(world, routers, &error), BT_OK);
}

#define until(world, done)                                                                         \
    do {                                                                                           \
        int64_t until_ns_ = bt_clock_now_ns() + 60 * BT_NS_PER_S;                                  \
        while (!(done)) {                                                                          \
            assert_true(bt_clock_now_ns() < until_ns_);                                            \
            int64_t round_ns_ = bt_clock_now_ns() + 20 * BT_NS_PER_MS;                             \
            assert_int_equal(bt_loop_run_once((world)->loop, round_ns_, NULL), BT_OK);             \
        }                                                                                          \
    } while (0)

static const char *const both[] = {"127.0.0.1", "127.0.0.2", "127.0.0.1"};

/* Nobody is behind the name at first; then one, then both, each met once. */
static void test_routers_come(void **state)
{
    struct world *world = *state;
    start(world);
    uint32_t asked = fake_asked();
    until(world, fake_asked() >= asked + 3);
    assert_int_equal(bt_registration_count(world->registration), 0);
    fake_says(0, 1, both);
    until(world, world->routers[0].heartbeats > 0);
    assert_int_equal(world->routers[1].registers, 0);
    fake_says(0, 3, both);
    until(world, world->routers[1].heartbeats > 0);
    assert_int_equal(bt_registration_count(world->registration), 2);
    assert_int_equal(world->registered, 2);
    assert_int_equal(world->routers[0].registers, 1);
    bt_registration_deregister(world->registration);
    until(world, bt_registration_gone(world->registration));
    assert_int_equal(world->routers[0].deregisters, 1);
    assert_int_equal(world->routers[1].deregisters, 1);
}

/* The name may be wrong for a while, or the resolver away: who answers is kept. */
static void test_a_router_that_answers_is_kept(void **state)
{
    struct world *world = *state;
    fake_says(0, 2, both);
    start(world);
    until(world, bt_registration_count(world->registration) == 2);
    fake_says(0, 1, both);
    uint32_t asked = fake_asked(), heartbeats = world->routers[1].heartbeats;
    until(world, fake_asked() >= asked + 3 && world->routers[1].heartbeats >= heartbeats + 3);
    fake_says(EAI_AGAIN, 0, NULL);
    asked = fake_asked(), heartbeats = world->routers[0].heartbeats;
    until(world, fake_asked() >= asked + 3 && world->routers[0].heartbeats >= heartbeats + 3);
    assert_int_equal(bt_registration_count(world->registration), 2);
    assert_int_equal(world->registered, 2);
}

/* Its place is free then for another: more come and go than there are places. */
static void test_a_router_that_is_gone_is_forgotten(void **state)
{
    struct world *world = *state;
    char texts[FAKE_ADDRESSES][64];
    const char *nobody[FAKE_ADDRESSES];
    for (size_t i = 0; i < BT_REGISTRATION_MAX_ROUTERS; i++) {
        snprintf(texts[i], sizeof texts[i], "127.0.1.%zu", i);
        nobody[i] = texts[i];
    }
    fake_says(0, BT_REGISTRATION_MAX_ROUTERS, nobody);
    start(world);
    uint32_t asked = fake_asked();
    until(world, fake_asked() >= asked + 3);
    fake_says(0, 2, both);
    until(world, bt_registration_count(world->registration) == 2);
    /* And one that was registered: it is not tried for ever. */
    close_router(world, 1);
    fake_says(0, 1, both);
    until(world, bt_registration_count(world->registration) == 1);
    asked = fake_asked();
    until(world, fake_asked() >= asked + 3);
    for (size_t i = 0; i + 1 < BT_REGISTRATION_MAX_ROUTERS; i++) {
        snprintf(texts[i], sizeof texts[i], "127.0.2.%zu", i);
    }
    nobody[BT_REGISTRATION_MAX_ROUTERS - 1] = both[0];
    fake_says(0, BT_REGISTRATION_MAX_ROUTERS, nobody);
    asked = fake_asked();
    until(world, fake_asked() >= asked + 3);
    assert_int_equal(bt_registration_count(world->registration), 1);
    assert_int_equal(world->routers[0].registers, 1);
}

/* More than there are places: those that are known are kept. */
static void test_routers_are_bounded(void **state)
{
    struct world *world = *state;
    char texts[FAKE_ADDRESSES][64];
    const char *many[FAKE_ADDRESSES];
    for (size_t i = 0; i < FAKE_ADDRESSES; i++) {
        snprintf(texts[i], sizeof texts[i], "127.0.1.%zu", i);
        many[i] = texts[i];
    }
    many[0] = both[0];
    fake_says(0, FAKE_ADDRESSES, many);
    start(world);
    until(world, world->routers[0].heartbeats > 2);
    assert_int_equal(bt_registration_count(world->registration), 1);
}

/* A router has addresses of both families where pods do. */
static void test_one_family(void **state)
{
    static const char *const mixed[] = {"::1", "127.0.0.2"};
    struct world *world = *state;
    fake_says(0, 2, mixed);
    start(world);
    until(world, world->routers[1].heartbeats > 2);
    assert_int_equal(bt_registration_count(world->registration), 1);
}

struct heard {
    struct bt_router_answer answer;
    uint32_t answers;
};

static void on_answer(void *context, const struct bt_router_answer *answer)
{
    struct heard *heard = context;
    heard->answer = *answer;
    heard->answers++;
}

static void test_addresses_as_text(void **state)
{
    static const char *const six[] = {"fd00::7", "fd00::8", "fd00::7"};
    struct world *world = *state;
    struct bt_error error;
    struct bt_router_names *names;
    struct heard heard = {.answers = 0};
    fake_says(0, 3, six);
    assert_int_equal(bt_router_names_create(world->loop, "routers.test", BT_NS_PER_S, on_answer,
                                            &heard, &error, &names),
                     BT_OK);
    until(world, heard.answers > 0);
    assert_int_equal(heard.answer.count, 2);
    assert_string_equal(heard.answer.addresses[0], "[fd00::7]");
    assert_string_equal(heard.answer.addresses[1], "[fd00::8]");
    fake_says(EAI_NONAME, 0, NULL);
    until(world, heard.answer.count == 0);
    assert_non_null(strstr(heard.answer.problem, "routers.test: "));
    bt_router_names_destroy(names);
}

/* A resolver that says nothing delays neither the loop nor the end. */
static void test_a_silent_resolver(void **state)
{
    struct world *world = *state;
    struct bt_error error;
    char routers[128];
    fake_says(0, 2, both);
    fake_hold(true);
    snprintf(routers, sizeof routers, "tcp://127.0.0.2:%u,dns+tcp://routers.test:%u", world->port,
             world->port);
    assert_int_equal(start_at(world, routers, &error), BT_OK);
    until(world, world->routers[1].heartbeats > 2);
    bt_registration_destroy(world->registration);
    world->registration = NULL;
    assert_int_equal(world->routers[0].registers, 0);
}

static void test_wrong_names(void **state)
{
    static const char *const wrong[] = {
        "dns+tcp://",
        "dns+tcp://routers.test",
        "dns+tcp://routers.test:",
        "dns+tcp://:5557",
        "dns+tcp://routers.test:port",
        "dns+tcp://routers.test:#00",
        "dns+tcp://[::1]:557",
        "dns+tcp://routers.test:1#0000",
        "dns+ipc://routers.test:1",
        "dns+tcp://routers.test:1#1111111111111111111111111111111111111111111111111111111111111111",
    };
    struct world *world = *state;
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        struct bt_error error;
        assert_int_equal(start_at(world, wrong[i], &error), BT_ERR_INVALID_ARGUMENT);
    }
    world->registration = NULL;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_routers_come, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_router_that_answers_is_kept, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_router_that_is_gone_is_forgotten, setup, teardown),
        cmocka_unit_test_setup_teardown(test_routers_are_bounded, setup, teardown),
        cmocka_unit_test_setup_teardown(test_one_family, setup, teardown),
        cmocka_unit_test_setup_teardown(test_addresses_as_text, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_silent_resolver, setup, teardown),
        cmocka_unit_test_setup_teardown(test_wrong_names, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
