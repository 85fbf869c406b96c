/* The service and its workers: how they come, what of them is believed, how they go. */
#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/router/service_driver.h"

/* ---- the registry */

static void expect_refused(const Baton__V1__RegisterRequest *request, enum bt_status status,
                           const char *part)
{
    assert_int_equal(register_with(request), status);
    if (!strstr(answer.text, part)) {
        fail_msg("'%s' is not in '%s'", part, answer.text);
    }
}

static void test_every_field_of_a_registration_is_checked(void **state)
{
    (void)state;
    fake_worker_open(&d0, loop, "d0", true);
#define EXPECT_BAD(change, part)                                                                   \
    do {                                                                                           \
        Baton__V1__RegisterRequest r = *fake_worker_registration(&d0);                             \
        change;                                                                                    \
        expect_refused(&r, BT_ERR_INVALID_ARGUMENT, part);                                         \
    } while (0)
    EXPECT_BAD(r.worker_id = (char *)"", "worker_id");
    EXPECT_BAD(r.worker_id = (char *)"a\"b", "worker_id");
    EXPECT_BAD(r.incarnation = 0, "incarnation");
    EXPECT_BAD(r.role = 0, "role");
    EXPECT_BAD(r.role = 7, "role");
    EXPECT_BAD(r.control_endpoint = (char *)"inproc://x", "control_endpoint");
    EXPECT_BAD(r.control_endpoint = (char *)"tcp://a\nb:1", "control_endpoint");
    EXPECT_BAD(r.control_endpoint = (char *)"tcp://\xff:1", "control_endpoint");
    EXPECT_BAD(r.max_model_len = 0, "max_model_len");
    EXPECT_BAD(r.process = NULL, "process");
    EXPECT_BAD(r.load = NULL, "load");
    EXPECT_BAD(r.fingerprint = NULL, "fingerprint");
    EXPECT_BAD(r.kv = NULL, "kv");
    EXPECT_BAD(r.kv->incarnation++, "kv");
    EXPECT_BAD(r.kv->transport_address.len = 0, "transport_address");
    EXPECT_BAD(r.load->pages_total++, "pages_total");
    EXPECT_BAD(r.kv->fingerprint = NULL, "kv.fingerprint");
    Baton__V1__StatusResponse *status = rt_service_status(service);
    assert_int_equal(status->n_workers, 0);
    baton__v1__status_response__free_unpacked(status, NULL);
}

static void test_endpoint_that_can_not_be_connected_to(void **state)
{
    (void)state;
    fake_worker_open(&p0, loop, "p0", false);
    Baton__V1__RegisterRequest r = *fake_worker_registration(&p0);
    r.control_endpoint = (char *)"tcp://no-port";
    assert_int_not_equal(register_with(&r), BT_OK);
    assert_false(worker_is("p0", "connecting"));
}

static void test_other_fingerprint_is_refused_by_field(void **state)
{
    (void)state;
    join(&p0, "p0", false);
    fake_worker_open(&d0, loop, "d0", true);
    Baton__V1__RegisterRequest r = *fake_worker_registration(&d0);
    r.fingerprint->kv_lora_rank = 128;
    expect_refused(&r, BT_ERR_MISMATCH, "kv_lora_rank");
    r = *fake_worker_registration(&d0);
    r.fingerprint->model_hash = 78;
    expect_refused(&r, BT_ERR_MISMATCH, "model_hash");
    r = *fake_worker_registration(&d0);
    r.fingerprint->page_tokens = 32;
    expect_refused(&r, BT_ERR_MISMATCH, "page");
    assert_false(worker_is("d0", "connecting"));
}

static void test_unknown_worker_is_told_to_register(void **state)
{
    (void)state;
    assert_int_equal(heartbeat("p0", 1), BT_ERR_NOT_FOUND);
    join(&p0, "p0", false);
    assert_int_equal(answer.heartbeat_ms, 250);
    assert_int_equal(heartbeat("p0", p0.incarnation), BT_OK);
    assert_int_equal(heartbeat("p0", p0.incarnation + 100), BT_ERR_NOT_FOUND);
}

static void test_prefill_workers_hear_of_decode_ranks(void **state)
{
    (void)state;
    join(&d0, "d0", true);
    assert_int_equal(answer.announced, 0);
    join(&p0, "p0", false);
    assert_int_equal(answer.announced, 1);
    assert_string_equal(answer.first_announced, "d0");
    assert_int_equal(heartbeat("p0", p0.incarnation), BT_OK);
    assert_int_equal(answer.announced, 0);
    join(&d1, "d1", true);
    assert_int_equal(heartbeat("p0", p0.incarnation), BT_OK);
    assert_int_equal(answer.announced, 1);
    assert_string_equal(answer.first_announced, "d1");
    assert_int_equal(heartbeat("p0", p0.incarnation), BT_OK);
    assert_int_equal(answer.announced, 0);
}

/* A process that has ended, as a predecessor's. */
static int64_t dead_pid(void)
{
    pid_t pid = fork();
    if (pid == 0) {
        _exit(0);
    }
    assert_true(pid > 0);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    return pid;
}

static void test_successor_waits_until_the_predecessor_is_proven_dead(void **state)
{
    (void)state;
    join(&d0, "d0", true);
    fake_worker_open(&d1, loop, "d0", true);
    expect_refused(fake_worker_registration(&d1), BT_ERR_ALREADY_EXISTS, "d0");
    fake_worker_close(&d0); /* its endpoint is gone */
    RUN_UNTIL(worker_is("d0", "lost"));
    assert_int_equal(register_with(fake_worker_registration(&d1)), BT_OK);
    RUN_UNTIL(d1.steps);
    /* Its process is dead, though somebody still holds the connection. */
    fake_worker_open(&p0, loop, "x", true);
    Baton__V1__RegisterRequest r = *fake_worker_registration(&p0);
    r.process->pid = dead_pid();
    assert_int_equal(register_with(&r), BT_OK);
    fake_worker_open(&p1, loop, "x", true);
    assert_int_equal(register_with(fake_worker_registration(&p1)), BT_OK);
}

static void test_cancels_wait_for_a_broken_link(void **state)
{
    (void)state;
    static struct seen seen;
    join(&p0, "p0", false);
    join(&d0, "d0", true);
    submit(&seen, 10);
    RUN_UNTIL(p0.run);
    uint64_t epoch = p0.run_epoch;
    /* The rank ends the stream and lives on: its link is down until it registers again. */
    bt_rpc_call_end(d0.steps, BT_ERR_UNAVAILABLE, NULL, NULL);
    d0.steps = NULL;
    RUN_UNTIL(worker_is("d0", "lost"));
    assert_int_equal(heartbeat("d0", d0.incarnation), BT_ERR_NOT_FOUND);
    assert_int_equal(d0.cancel_count, 0);
    assert_int_equal(register_with(fake_worker_registration(&d0)), BT_OK);
    RUN_UNTIL(d0.steps && d0.cancel_count == 1);
    assert_int_equal(d0.cancels[0].epoch, epoch);
    fake_decode_hello(&d0);
    RUN_UNTIL(worker_is("d0", "ready"));
    RUN_UNTIL(p0.run && p0.run_epoch != epoch);
    assert_int_equal(d0.cancel_count, 1);
}

static void test_deregistered_worker_is_gone(void **state)
{
    (void)state;
    join(&p0, "p0", false);
    Baton__V1__DeregisterRequest request = BATON__V1__DEREGISTER_REQUEST__INIT;
    request.worker_id = p0.id;
    request.incarnation = p0.incarnation;
    assert_int_equal(call("baton.v1.Registry/Deregister", &request.base, NULL), BT_OK);
    assert_true(worker_is("p0", "lost"));
    assert_int_equal(heartbeat("p0", p0.incarnation), BT_ERR_NOT_FOUND);
    const char *name = "baton_router_worker_losses_total";
    struct bt_counter *losses = bt_metrics_counter(metrics, name, "model_name=\"tiny\"", "");
    assert_int_equal(bt_counter_value(losses), 0);
    join(&p1, "p1", false);
    fake_worker_close(&p1);
    RUN_UNTIL(worker_is("p1", "lost") && bt_counter_value(losses) == 1);
}

/* Both messages are read in one round: the worker is never seen as gone. */
static void test_worker_that_leaves_and_comes_back_at_once(void **state)
{
    (void)state;
    join(&p0, "p0", false);
    Baton__V1__DeregisterRequest request = BATON__V1__DEREGISTER_REQUEST__INIT;
    request.worker_id = p0.id;
    request.incarnation = p0.incarnation;
    struct bt_rpc_call_spec spec = {.method = "baton.v1.Registry/Deregister",
                                    .request = &request.base,
                                    .deadline_ns = BT_NEVER_NS,
                                    .on_end = on_answer};
    assert_int_equal(bt_rpc_client_call(client, &spec, NULL, NULL), BT_OK);
    spec.method = "baton.v1.Registry/Register";
    spec.request = &fake_worker_registration(&p0)->base;
    assert_int_equal(bt_rpc_client_call(client, &spec, NULL, NULL), BT_OK);
    SETTLE();
    RUN_UNTIL(worker_is("p0", "ready"));
}

/* As after a restart at the same endpoint, when the router has not heard of it yet. */
static void test_landing_of_another_incarnation_is_not_used(void **state)
{
    (void)state;
    static struct seen seen;
    join(&p0, "p0", false);
    join(&d0, "d0", true);
    d0.impostor = true;
    submit(&seen, 10);
    RUN_UNTIL(seen.ended);
    assert_int_equal(seen.result.status, BT_ERR_STALE);
    assert_non_null(strstr(seen.error, "another worker or incarnation"));
    SETTLE();
    assert_int_equal(p0.run_count, 0);
    RUN_UNTIL(d0.cancel_count == 3); /* it gave pages */
}

static void assert_transport(const char *id, const char *expected)
{
    Baton__V1__StatusResponse *status = rt_service_status(service);
    for (size_t i = 0; i < status->n_workers; i++) {
        if (strcmp(status->workers[i]->worker_id, id) == 0) {
            assert_string_equal(status->workers[i]->transport, expected);
        }
    }
    baton__v1__status_response__free_unpacked(status, NULL);
}

static void test_status_shows_the_transport_that_is_used(void **state)
{
    (void)state;
    static struct seen seen;
    join(&p0, "p0", false);
    join(&d0, "d0", true);
    join(&d1, "d1", true);
    assert_transport("p0", "auto");
    assert_transport("d0", "auto");
    submit(&seen, 10);
    RUN_UNTIL(p0.run);
    assert_string_equal(p0.run_rank, "d0");
    fake_prefill_done(&p0);
    fake_decode_step(&d0, 0, 1, 0);
    RUN_UNTIL(seen.token_count == 1);
    SETTLE();
    assert_transport("p0", "shm");
    assert_transport("d0", "shm");
    assert_transport("d1", "auto");
}

/* A message of ours with a string that is no UTF-8 could not be read by its clients. */
static void test_transport_names_are_text(void **state)
{
    (void)state;
    fake_worker_open(&p0, loop, "p0", false);
    Baton__V1__RegisterRequest r = *fake_worker_registration(&p0);
    r.transport = (char *)"a\xff\n and more than there is room for";
    assert_int_equal(register_with(&r), BT_OK);
    assert_transport("p0", "a?? and more than there is room");
}

int main(void)
{
    bt_log_init("test-router-registry",
                BT_LOG_ERROR); /* losses and refusals are what it is about */
    const struct CMUnitTest tests[] = {
        TEST(test_every_field_of_a_registration_is_checked),
        TEST(test_endpoint_that_can_not_be_connected_to),
        TEST(test_other_fingerprint_is_refused_by_field),
        TEST(test_unknown_worker_is_told_to_register),
        TEST(test_prefill_workers_hear_of_decode_ranks),
        TEST(test_successor_waits_until_the_predecessor_is_proven_dead),
        TEST(test_cancels_wait_for_a_broken_link),
        TEST(test_deregistered_worker_is_gone),
        TEST(test_worker_that_leaves_and_comes_back_at_once),
        TEST(test_landing_of_another_incarnation_is_not_used),
        TEST(test_status_shows_the_transport_that_is_used),
        TEST(test_transport_names_are_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
