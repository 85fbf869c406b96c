/* What happens in the service is told as events, when it happens and with whom. */
#include <unistd.h>

#include "tests/unit/router/service_driver.h"

struct told {
    size_t count;
    char kinds[32][32], workers[32][64], texts[32][256];
    bool ended;
    enum bt_status status;
};
static struct told told;

static void on_event(void *context, const ProtobufCMessage *message)
{
    (void)context;
    const Baton__V1__ClusterEvent *event = (const Baton__V1__ClusterEvent *)message;
    assert_true(told.count < 32);
    assert_int_equal(event->number, told.count + 1);
    snprintf(told.kinds[told.count], 32, "%s", event->kind);
    snprintf(told.workers[told.count], 64, "%s", event->worker_id);
    snprintf(told.texts[told.count++], 256, "%s", event->text);
}

static void on_events_end(void *context, enum bt_status status, const char *text,
                          const ProtobufCMessage *response)
{
    (void)context;
    (void)text;
    (void)response;
    told.ended = true;
    told.status = status;
}

/* All that was told so far, into `told`. */
static void ask(void)
{
    Baton__V1__EventsRequest request = BATON__V1__EVENTS_REQUEST__INIT;
    struct bt_rpc_call_spec spec = {.method = "baton.v1.Router/Events",
                                    .request = &request.base,
                                    .data = &baton__v1__cluster_event__descriptor,
                                    .deadline_ns = BT_NEVER_NS,
                                    .on_data = on_event,
                                    .on_end = on_events_end};
    memset(&told, 0, sizeof told);
    assert_int_equal(bt_rpc_client_call(client, &spec, NULL, NULL), BT_OK);
    RUN_UNTIL(told.ended);
    assert_int_equal(told.status, BT_OK);
}

/* The last that was told, and that it is number `count`. */
static void expect_last(size_t count, const char *kind, const char *worker, const char *part)
{
    ask();
    assert_int_equal(told.count, count);
    assert_string_equal(told.kinds[count - 1], kind);
    assert_string_equal(told.workers[count - 1], worker);
    if (!strstr(told.texts[count - 1], part))
        fail_msg("'%s' is not in '%s'", part, told.texts[count - 1]);
}

static void heartbeat_draining(const char *id, uint64_t incarnation, bool draining)
{
    Baton__V1__RankLoad load = BATON__V1__RANK_LOAD__INIT;
    load.pages_total = load.pages_free = 100;
    Baton__V1__HeartbeatRequest request = BATON__V1__HEARTBEAT_REQUEST__INIT;
    request.worker_id = (char *)id;
    request.incarnation = incarnation;
    request.load = &load;
    request.draining = draining;
    assert_int_equal(call("baton.v1.Registry/Heartbeat", &request.base,
                          &baton__v1__heartbeat_response__descriptor),
                     BT_OK);
}

static void test_a_workers_life(void **state)
{
    (void)state;
    expect_last(1, "router-started", "", "tiny");
    fake_worker_open(&d0, loop, "d0", true);
    assert_int_equal(register_with(fake_worker_registration(&d0)), BT_OK);
    expect_last(2, "worker-connecting", "d0", "decode");
    RUN_UNTIL(d0.steps);
    fake_decode_hello(&d0);
    RUN_UNTIL(worker_is("d0", "ready"));
    expect_last(3, "worker-ready", "d0", "decode");
    heartbeat_draining("d0", d0.incarnation, false); /* nothing new */
    expect_last(3, "worker-ready", "d0", "decode");
    heartbeat_draining("d0", d0.incarnation, true);
    expect_last(4, "worker-draining", "d0", "ends what it has");
    heartbeat_draining("d0", d0.incarnation, false);
    expect_last(5, "worker-resumed", "d0", "it gets requests");
    fake_worker_close(&d0);
    RUN_UNTIL(!worker_is("d0", "ready"));
    ask();
    assert_int_equal(told.count, 6);
    assert_string_equal(told.kinds[5], "worker-lost");
    rt_service_drain(service);
    expect_last(7, "router-draining", "", "nothing new");
}

static void test_refused(void **state)
{
    (void)state;
    fake_worker_open(&d0, loop, "d0", true);
    Baton__V1__RegisterRequest r = *fake_worker_registration(&d0);
    r.max_model_len = 0;
    assert_int_equal(register_with(&r), BT_ERR_INVALID_ARGUMENT);
    expect_last(2, "worker-refused", "d0", "max_model_len");
    assert_int_equal(register_with(&r), BT_ERR_INVALID_ARGUMENT); /* as it goes on to ask */
    expect_last(2, "worker-refused", "d0", "max_model_len");
    r = *fake_worker_registration(&d0);
    r.worker_id = (char *)"a\x1b[2J";
    assert_int_equal(register_with(&r), BT_ERR_INVALID_ARGUMENT);
    expect_last(3, "worker-refused", "a?[2J", "worker_id");
}

/* When the core says so is tested with the core. */
static void test_changes_of_the_core(void **state)
{
    (void)state;
    struct rt_change change = {.kind = RT_CHANGE_BREAKER, .worker_id = "p0", .open = true};
    rt_service_on_change(service, &change);
    expect_last(2, "breaker-open", "p0", "failed too often");
    change.open = false;
    rt_service_on_change(service, &change);
    expect_last(3, "breaker-closed", "p0", "works again");
    change = (struct rt_change){.kind = RT_CHANGE_POISONED,
                                .worker_id = "d0",
                                .request = 0xabc,
                                .deaths = 2,
                                .why = "killed"};
    rt_service_on_change(service, &change);
    expect_last(4, "request-poisoned", "d0", "request 0000000000000abc ends: 2 workers");
    assert_non_null(strstr(told.texts[3], "killed"));
}

static void test_keys(void **state)
{
    (void)state;
    rt_service_on_reload(service, BT_OK, "");
    expect_last(2, "keys-reloaded", "", "changed");
    rt_service_on_reload(service, BT_ERR_INVALID_ARGUMENT, "keys: line 3: no name");
    expect_last(3, "keys-refused", "", "line 3: no name; those before stay in force");
}

int main(void)
{
    bt_log_init("test-router-service_events", BT_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        TEST(test_a_workers_life),
        TEST(test_refused),
        TEST(test_changes_of_the_core),
        TEST(test_keys),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
