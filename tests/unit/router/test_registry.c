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

/* tcp://HOST:PORT#KEY, where a host has 253 characters at most; it is shown whole. Nobody answers
 * to that name, and a plain router does not speak to who has a key. */
static void test_longest_endpoint(void **state)
{
    (void)state;
    char endpoint[400], host[254];
    memset(host, 'h', 253);
    host[253] = '\0';
    fake_worker_open(&p0, loop, "p0", false);
    Baton__V1__RegisterRequest r = *fake_worker_registration(&p0);
    r.control_endpoint = endpoint;
    snprintf(endpoint, sizeof endpoint, "tcp://%s:65535#%064x", host, 1);
    expect_refused(&r, BT_ERR_INVALID_ARGUMENT, "--curve-secret-file");
    snprintf(endpoint, sizeof endpoint, "tcp://%s:65535#%0120x", host, 1);
    expect_refused(&r, BT_ERR_INVALID_ARGUMENT, "control_endpoint");
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

/* ---- groups */

/* A good registration as rank `rank` of `size` of the group "g"; valid until the next call. */
static Baton__V1__RegisterRequest member(const struct fake_worker *worker, uint32_t rank,
                                         uint32_t size)
{
    static Baton__V1__GroupMember group;
    baton__v1__group_member__init(&group);
    group.incarnation = 7;
    group.name = (char *)"g";
    group.rank = rank;
    group.size = size;
    Baton__V1__RegisterRequest r = *fake_worker_registration(worker);
    r.group = &group;
    return r;
}

static void join_group(struct fake_worker *worker, const char *id, uint32_t rank)
{
    fake_worker_open(worker, loop, id, true);
    Baton__V1__RegisterRequest r = member(worker, rank, 2);
    assert_int_equal(register_with(&r), BT_OK);
    RUN_UNTIL(worker->steps);
    fake_decode_hello(worker);
}

static void test_every_field_of_a_group_is_checked(void **state)
{
    (void)state;
    fake_worker_open(&d0, loop, "g", true);
    fake_worker_open(&d1, loop, "g.1", true);
    fake_worker_open(&p0, loop, "g", false);
    fake_worker_open(&p1, loop, "g.1", false);
#define EXPECT_BAD_MEMBER(worker, rank, size, change, part)                                        \
    do {                                                                                           \
        Baton__V1__RegisterRequest r = member(worker, rank, size);                                 \
        change;                                                                                    \
        expect_refused(&r, BT_ERR_INVALID_ARGUMENT, part);                                         \
    } while (0)
    EXPECT_BAD_MEMBER(&d0, 0, 2, r.group->incarnation = 0, "group.incarnation");
    EXPECT_BAD_MEMBER(&d1, 1, 2, r.group->name = (char *)"", "group.name");
    EXPECT_BAD_MEMBER(&d1, 1, 2, r.group->name = (char *)"a\"b", "group.name");
    EXPECT_BAD_MEMBER(&d0, 0, 2, r.group->name = (char *)"h", "group.name");
    EXPECT_BAD_MEMBER(&d1, 1, 2, r.group->name = (char *)"g.1", "group.name");
    EXPECT_BAD_MEMBER(&d0, 0, 0, (void)0, "group.size");
    EXPECT_BAD_MEMBER(&d0, 0, 1, (void)0, "group.size");
    EXPECT_BAD_MEMBER(&d0, 0, 65, (void)0, "group.size");
    EXPECT_BAD_MEMBER(&d0, 0, UINT32_MAX, (void)0, "group.size");
    EXPECT_BAD_MEMBER(&d1, 2, 2, (void)0, "group.rank");
    EXPECT_BAD_MEMBER(&d1, UINT32_MAX, 64, (void)0, "group.rank");
    EXPECT_BAD_MEMBER(&p1, 1, 2, (void)0, "group.rank");
    Baton__V1__RegisterRequest good = member(&d1, 1, 2);
    assert_int_equal(register_with(&good), BT_OK);
    good = member(&d0, 0, 3);
    expect_refused(&good, BT_ERR_MISMATCH, "group.size");
    good = member(&p0, 0, 2);
    expect_refused(&good, BT_ERR_MISMATCH, "role");
}

static void test_status_shows_the_group(void **state)
{
    (void)state;
    join_group(&d1, "g.1", 1);
    RUN_UNTIL(worker_is("g.1", "connecting"));
    join_group(&d0, "g", 0);
    RUN_UNTIL(worker_is("g", "ready") && worker_is("g.1", "ready"));
    join(&p0, "p0", false);
    Baton__V1__StatusResponse *status = rt_service_status(service);
    assert_int_equal(status->n_workers, 3);
    for (size_t i = 0; i < 3; i++) {
        const Baton__V1__WorkerStatus *worker = status->workers[i];
        bool first = strcmp(worker->worker_id, "g") == 0;
        if (strcmp(worker->worker_id, "p0") == 0) {
            assert_null(worker->group);
            continue;
        }
        assert_non_null(worker->group);
        assert_int_equal(worker->group->incarnation, 7);
        assert_string_equal(worker->group->name, "g");
        assert_int_equal(worker->group->rank, first ? 0 : 1);
        assert_int_equal(worker->group->size, 2);
    }
    baton__v1__status_response__free_unpacked(status, NULL);
}

/* The connections to the other ranks, which stand, are closed: each rank lets go of its requests,
 * and may come back. */
static void test_lost_rank_takes_its_group_along(void **state)
{
    (void)state;
    static struct seen seen;
    join(&p0, "p0", false);
    join_group(&d0, "g", 0);
    join_group(&d1, "g.1", 1);
    RUN_UNTIL(worker_is("g", "ready"));
    submit(&seen, 10);
    RUN_UNTIL(p0.run);
    assert_string_equal(p0.run_rank, "g");
    uint64_t epoch = p0.run_epoch;
    fake_worker_close(&d1);
    d1.steps = NULL;
    RUN_UNTIL(worker_is("g", "lost") && worker_is("g.1", "lost"));
    RUN_UNTIL(!d0.steps && p0.run_cancels == 1);
    assert_int_equal(heartbeat("g", d0.incarnation), BT_ERR_NOT_FOUND);
    const char *name = "baton_router_worker_losses_total";
    struct bt_counter *losses = bt_metrics_counter(metrics, name, "model_name=\"tiny\"", "");
    assert_int_equal(bt_counter_value(losses), 2);
    assert_false(seen.ended);
    /* The rank that is left serves nothing until the other is back. */
    Baton__V1__RegisterRequest r = member(&d0, 0, 2);
    assert_int_equal(register_with(&r), BT_OK);
    RUN_UNTIL(d0.steps);
    fake_decode_hello(&d0);
    SETTLE();
    assert_true(worker_is("g", "connecting"));
    assert_null(p0.run);
    join_group(&d1, "g.1", 1);
    RUN_UNTIL(p0.run);
    assert_int_not_equal(p0.run_epoch, epoch);
}

static void test_group_leaves_as_one(void **state)
{
    (void)state;
    join_group(&d0, "g", 0);
    join_group(&d1, "g.1", 1);
    RUN_UNTIL(worker_is("g", "ready"));
    Baton__V1__DeregisterRequest request = BATON__V1__DEREGISTER_REQUEST__INIT;
    request.worker_id = d1.id;
    request.incarnation = d1.incarnation;
    assert_int_equal(call("baton.v1.Registry/Deregister", &request.base, NULL), BT_OK);
    assert_true(worker_is("g", "lost") && worker_is("g.1", "lost"));
    RUN_UNTIL(!d0.steps && !d1.steps);
    const char *name = "baton_router_worker_losses_total";
    struct bt_counter *losses = bt_metrics_counter(metrics, name, "model_name=\"tiny\"", "");
    assert_int_equal(bt_counter_value(losses), 0);
}

int main(void)
{
    bt_log_init("test-router-registry",
                BT_LOG_ERROR); /* losses and refusals are what it is about */
    const struct CMUnitTest tests[] = {
        TEST(test_every_field_of_a_registration_is_checked),
        TEST(test_longest_endpoint),
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
        TEST(test_every_field_of_a_group_is_checked),
        TEST(test_status_shows_the_group),
        TEST(test_lost_rank_takes_its_group_along),
        TEST(test_group_leaves_as_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
