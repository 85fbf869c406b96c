/* Deadline, drain and metrics of a prefill worker and a decode rank. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "common/messaging/registration.h"
#include "decode-node/stepper.h"
#include "tests/unit/decode/cluster.h"
#include "tests/unit/decode/gate.h"

static const uint32_t prompt[4000] = {0};

static int cluster_setup(void **state)
{
    struct cluster *cluster = calloc(1, sizeof(*cluster));
    struct pf_worker_options prefill = cluster_prefill_options();
    struct dc_worker_options decode = cluster_decode_options();
    cluster_open(cluster, &prefill, &decode);
    *state = cluster;
    return 0;
}

static void expect_metrics(struct cluster *cluster, struct bt_rpc_client *client,
                           const char *const *lines)
{
    Baton__V1__MetricsRequest request = BATON__V1__METRICS_REQUEST__INIT;
    Baton__V1__MetricsResponse *response = NULL;
    assert_int_equal(cluster_call(cluster, client, "baton.v1.Worker/Metrics", &request.base,
                                  &baton__v1__metrics_response__descriptor,
                                  (ProtobufCMessage **)&response),
                     BT_OK);
    for (; *lines; lines++) {
        if (!strstr(response->text, *lines)) {
            fail_msg("no '%s' in\n%s", *lines, response->text);
        }
    }
    protobuf_c_message_free_unpacked(&response->base, NULL);
}

static void test_deadline_in_the_middle_of_prefill(void **state)
{
    struct cluster *cluster = *state;
    struct attempt attempt;
    attempt_init(&attempt, 1, prompt, 4000, 10);
    assert_int_equal(cluster_reserve(cluster, &attempt), BT_OK);
    prefill_gate(0); /* its first chunk is not over before the deadline */
    attempt.deadline_ns = bt_clock_now_ns() + 100 * BT_NS_PER_MS;
    cluster_run(cluster, &attempt);
    cluster_until(cluster, attempt.run_ended);
    assert_int_equal(attempt.run_status, BT_ERR_DEADLINE);
    assert_int_equal(attempt.first_token, -1);
    expect_metrics(cluster, cluster->to_prefill, (const char *[]){NULL}); /* so it heard of it */
    prefill_gate(GATE_OPEN);
    /* The worker ends the run, and Quiesced the landing. */
    cluster_until(cluster, dc_worker_requests(cluster->decode) == 0 &&
                               pf_worker_free_pages(cluster->prefill) == cluster->prefill_pages);
    /* The prompt was not computed to its end. */
    const char *const lines[] = {
        "vllm:prompt_tokens_total{model_name=\"tiny\",role=\"prefill\"} 0\n", NULL};
    expect_metrics(cluster, cluster->to_prefill, lines);
    cluster_close(cluster);
    free(cluster);
}

struct drain {
    bool over;
    enum bt_status status;
};

static void on_drained(void *context, enum bt_status status, const char *text,
                       const ProtobufCMessage *response)
{
    struct drain *drain = context;
    (void)text;
    (void)response;
    drain->over = true;
    drain->status = status;
}

static struct bt_rpc_pending *drain_start(struct bt_rpc_client *client, struct drain *drain)
{
    Baton__V1__DrainRequest request = BATON__V1__DRAIN_REQUEST__INIT;
    struct bt_rpc_pending *pending;
    const struct bt_rpc_call_spec spec = {
        .method = "baton.v1.Worker/Drain",
        .request = &request.base,
        .deadline_ns = BT_NEVER_NS,
        .on_end = on_drained,
        .context = drain,
    };
    *drain = (struct drain){0};
    assert_int_equal(bt_rpc_client_call(client, &spec, NULL, &pending), BT_OK);
    return pending;
}

static void test_drain_takes_nothing_new_and_waits_for_the_rest(void **state)
{
    struct cluster *cluster = *state;
    struct attempt running, late, refused;
    struct drain drains[3];
    attempt_init(&running, 1, prompt, 200, 100);
    attempt_init(&late, 2, prompt, 200, 100);
    attempt_init(&refused, 3, prompt, 200, 100);
    assert_int_equal(cluster_reserve(cluster, &running), BT_OK);
    assert_int_equal(cluster_reserve(cluster, &late), BT_OK);
    cluster_run(cluster, &running);
    cluster_until(cluster, running.started);
    drain_start(cluster->to_prefill, &drains[0]);
    drain_start(cluster->to_decode, &drains[1]);
    bt_rpc_pending_cancel(drain_start(cluster->to_decode, &drains[2]));
    cluster_run(cluster, &late);
    cluster_until(cluster, late.run_ended && drains[2].over);
    assert_int_equal(late.run_status, BT_ERR_UNAVAILABLE);
    assert_int_equal(drains[2].status, BT_ERR_CANCELLED);
    assert_int_equal(cluster_cancel(cluster, 2, 0), BT_OK);
    assert_int_equal(cluster_reserve(cluster, &refused), BT_ERR_UNAVAILABLE);
    cluster_until(cluster, drains[0].over);
    assert_true(running.run_ended && running.handed_off);
    cluster_until(cluster, drains[1].over);
    assert_int_equal(dc_worker_requests(cluster->decode), 0);
    assert_int_equal(drains[0].status, BT_OK);
    assert_int_equal(drains[1].status, BT_OK);
    cluster_until(cluster, running.finish != 0);
    assert_int_equal(running.token_count, 100);
    cluster_close(cluster);
    free(cluster);
}

static enum bt_status resume(struct cluster *cluster, struct bt_rpc_client *client)
{
    Baton__V1__ResumeRequest request = BATON__V1__RESUME_REQUEST__INIT;
    return cluster_call(cluster, client, "baton.v1.Worker/Resume", &request.base, NULL, NULL);
}

/* Whoever waits for the drain hears of it; what ran on goes on, and new ones are taken. */
static void test_resume_undoes_a_drain(void **state)
{
    struct cluster *cluster = *state;
    struct attempt running, next, refused;
    struct drain drains[2];
    attempt_init(&running, 1, prompt, 200, 4000);
    attempt_init(&refused, 2, prompt, 200, 100);
    attempt_init(&next, 3, prompt, 200, 100);
    decode_gate(1000);
    assert_int_equal(resume(cluster, cluster->to_decode), BT_OK); /* nothing to undo */
    assert_int_equal(resume(cluster, cluster->to_prefill), BT_OK);
    assert_int_equal(cluster_reserve(cluster, &running), BT_OK);
    cluster_run(cluster, &running);
    cluster_until(cluster, running.token_count > 0);
    drain_start(cluster->to_decode, &drains[0]);
    assert_int_equal(cluster_reserve(cluster, &refused), BT_ERR_UNAVAILABLE);
    drain_start(cluster->to_prefill, &drains[1]);
    cluster_until(cluster, drains[1].over); /* nothing is left there */
    assert_int_equal(drains[1].status, BT_OK);
    assert_false(drains[0].over);
    assert_int_equal(resume(cluster, cluster->to_decode), BT_OK);
    cluster_until(cluster, drains[0].over);
    assert_int_equal(drains[0].status, BT_ERR_CANCELLED);
    assert_int_equal(cluster_reserve(cluster, &refused), BT_OK);
    cluster_run(cluster, &refused);
    cluster_until(cluster, refused.run_ended);
    assert_int_equal(refused.run_status, BT_ERR_UNAVAILABLE); /* the prefill worker still drains */
    assert_int_equal(cluster_cancel(cluster, 2, 0), BT_OK);
    assert_int_equal(resume(cluster, cluster->to_prefill), BT_OK);
    assert_int_equal(cluster_reserve(cluster, &next), BT_OK);
    decode_gate(1000); /* half of what `running` needs, in all */
    cluster_run(cluster, &next);
    cluster_until(cluster, next.finish != 0);
    assert_int_equal(next.token_count, 100);
    assert_int_equal(running.finish, 0);
    drain_start(cluster->to_decode, &drains[0]); /* and it can drain again */
    assert_int_equal(cluster_cancel(cluster, 1, 0), BT_OK);
    decode_gate(GATE_OPEN);
    cluster_until(cluster, drains[0].over);
    assert_int_equal(drains[0].status, BT_OK);
    cluster_close(cluster);
    free(cluster);
}

static void test_who_stops_is_not_resumed(void **state)
{
    struct cluster *cluster = *state;
    struct attempt running;
    attempt_init(&running, 1, prompt, 200, 4000);
    decode_gate(1000);
    assert_int_equal(cluster_reserve(cluster, &running), BT_OK);
    cluster_run(cluster, &running);
    cluster_until(cluster, running.token_count > 0);
    dc_worker_stop(cluster->decode);
    pf_worker_stop(cluster->prefill);
    assert_int_equal(resume(cluster, cluster->to_decode), BT_ERR_UNAVAILABLE);
    assert_int_equal(resume(cluster, cluster->to_prefill), BT_ERR_UNAVAILABLE);
    decode_gate(GATE_OPEN);
    cluster_until(cluster, running.finish != 0);
    assert_int_equal(running.finish, BATON__V1__FINISH_REASON__FINISH_PREEMPTED);
    cluster_close(cluster);
    free(cluster);
}

/* What is here when the rank stops is run again elsewhere: none of it was cancelled, nor failed. */
static void test_a_rank_that_stops_gives_back(void **state)
{
    struct cluster *cluster = *state;
    struct attempt running, reserved;
    attempt_init(&running, 1, prompt, 200, 4000);
    attempt_init(&reserved, 2, prompt, 200, 100);
    decode_gate(1000);
    assert_int_equal(cluster_reserve(cluster, &running), BT_OK);
    cluster_run(cluster, &running);
    cluster_until(cluster, running.token_count > 0);
    assert_int_equal(cluster_reserve(cluster, &reserved), BT_OK);
    dc_worker_stop(cluster->decode);
    decode_gate(GATE_OPEN);
    cluster_until(cluster, running.finish != 0 && reserved.finish != 0);
    assert_int_equal(running.finish, BATON__V1__FINISH_REASON__FINISH_PREEMPTED);
    assert_int_equal(reserved.finish, BATON__V1__FINISH_REASON__FINISH_PREEMPTED);
    cluster_until(cluster, dc_worker_quiet(cluster->decode));
    cluster_close(cluster);
    free(cluster);
}

/* ---- the last steps of a group */

static enum { AS_IT_IS, TO_COME, THERE } leaving; /* a notice that the group was left */
static bool routers_know = true;

unsigned __real_dc_stepper_take_notices(struct dc_stepper *stepper);
unsigned __wrap_dc_stepper_take_notices(struct dc_stepper *stepper);
bool __real_dc_stepper_has_notices(const struct dc_stepper *stepper);
bool __wrap_dc_stepper_has_notices(const struct dc_stepper *stepper);
bool __real_bt_registration_gone(const struct bt_registration *registration);
bool __wrap_bt_registration_gone(const struct bt_registration *registration);

/* It comes when somebody has just looked. */
unsigned __wrap_dc_stepper_take_notices(struct dc_stepper *stepper)
{
    unsigned notices = __real_dc_stepper_take_notices(stepper);
    notices |= leaving == THERE ? DC_NOTICE_LEFT : 0;
    leaving = leaving == TO_COME ? THERE : AS_IT_IS;
    return notices;
}

bool __wrap_dc_stepper_has_notices(const struct dc_stepper *stepper)
{
    return leaving == THERE || __real_dc_stepper_has_notices(stepper);
}

bool __wrap_bt_registration_gone(const struct bt_registration *registration)
{
    (void)registration;
    return routers_know;
}

/* What a step thread reports after it was told that the group was left goes to routers when they
 * know of that, also where the control thread finds both at once. */
static void test_steps_after_the_group_was_left_are_held(void **state)
{
    (void)state;
    struct cluster cluster;
    struct attempt attempt;
    struct pf_worker_options prefill = cluster_prefill_options();
    struct dc_worker_options decode = cluster_decode_options();
    decode.routers = "ipc:///nowhere/at-all";
    cluster_open(&cluster, &prefill, &decode);
    attempt_init(&attempt, 1, prompt, 100, 10);
    decode_gate(8);
    assert_int_equal(cluster_reserve(&cluster, &attempt), BT_OK);
    cluster_run(&cluster, &attempt);
    cluster_until(&cluster, attempt.token_count == 9 && attempt.run_ended);
    routers_know = false;
    leaving = TO_COME;
    decode_gate(GATE_OPEN);
    cluster_until(&cluster, leaving == AS_IT_IS || attempt.token_count > 9);
    if (bt_loop_stopping(cluster.loop)) { /* with that it was told to: over at once */
        assert_int_equal(bt_loop_run(cluster.loop, NULL), BT_OK);
    }
    expect_metrics(&cluster, cluster.to_decode, (const char *[]){NULL}); /* all sent is here */
    assert_int_equal(attempt.token_count, 9);
    assert_int_equal(attempt.finish, 0);
    routers_know = true;
    cluster_until(&cluster, attempt.finish != 0);
    assert_int_equal(attempt.finish, BATON__V1__FINISH_REASON__FINISH_LENGTH);
    assert_int_equal(attempt.token_count, 10);
    cluster_close(&cluster);
}

static void test_metrics_have_the_known_names(void **state)
{
    struct cluster *cluster = *state;
    struct attempt attempt;
    attempt_init(&attempt, 1, prompt, 70, 7);
    assert_int_equal(cluster_reserve(cluster, &attempt), BT_OK);
    cluster_run(cluster, &attempt);
    cluster_until(cluster, attempt.run_ended && attempt.finish != 0);
#define P "{model_name=\"tiny\",role=\"prefill\""
#define D "{model_name=\"tiny\",role=\"decode\""
    /* 70 tokens of 6 layers of 64 + 16 floats; 2 pages are 2 writes or, as neighbours, 1 a layer.
     */
    const char *const prefill[] = {"vllm:prompt_tokens_total" P "} 70\n",
                                   "baton_prefill_runs_total" P ",result=\"handed_off\"} 1\n",
                                   "vllm:kv_cache_usage_perc" P "} 0\n",
                                   "baton_kv_pushed_bytes_total" P "} 134400\n",
                                   "baton_kv_writes_total" P "} 6\n",
                                   "vllm:cache_config_info" P ",block_size=\"64\"",
                                   NULL};
    const char *const decode[] = {"vllm:generation_tokens_total" D "} 6\n",
                                  "vllm:request_success_total" D ",finished_reason=\"length\"} 1\n",
                                  "vllm:num_requests_running" D "} 0\n",
                                  "vllm:inter_token_latency_seconds_count" D "} 6\n",
                                  "baton_kv_pages" D ",state=\"free\"} 128\n",
                                  NULL};
#undef P
#undef D
    expect_metrics(cluster, cluster->to_prefill, prefill);
    expect_metrics(cluster, cluster->to_decode, decode);
    cluster_close(cluster);
    free(cluster);
}

int main(void)
{
    bt_log_init("test", BT_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_deadline_in_the_middle_of_prefill, cluster_setup),
        cmocka_unit_test_setup(test_drain_takes_nothing_new_and_waits_for_the_rest, cluster_setup),
        cmocka_unit_test_setup(test_resume_undoes_a_drain, cluster_setup),
        cmocka_unit_test_setup(test_who_stops_is_not_resumed, cluster_setup),
        cmocka_unit_test_setup(test_a_rank_that_stops_gives_back, cluster_setup),
        cmocka_unit_test(test_steps_after_the_group_was_left_are_held),
        cmocka_unit_test_setup(test_metrics_have_the_known_names, cluster_setup),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
