/* Messages that no correct peer sends: each gets its answer, and the workers go on as before. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "tests/unit/decode/cluster.h"
#include "tests/unit/decode/gate.h"

static uint32_t prompt[100] = {0};

static int cluster_setup(void **state)
{
    struct cluster *cluster = calloc(1, sizeof(*cluster));
    struct pf_worker_options prefill = cluster_prefill_options();
    struct dc_worker_options decode = cluster_decode_options();
    prefill.kv_pages = 8;
    prefill.max_queued = 2;
    decode.kv_pages = 16;
    decode.max_reserved = 4;
    decode.lease_ms = 20000;
    cluster_open(cluster, &prefill, &decode);
    *state = cluster;
    return 0;
}

/* The workers answer a good request after all that, and every page is free. */
static int cluster_teardown(void **state)
{
    struct cluster *cluster = *state;
    static struct attempt attempt;
    attempt_init(&attempt, 4000, prompt, 100, 3);
    assert_int_equal(cluster_reserve(cluster, &attempt), BT_OK);
    cluster_run(cluster, &attempt);
    cluster_until(cluster, attempt.run_ended && attempt.finish != 0);
    assert_int_equal(attempt.run_status, BT_OK);
    assert_int_equal(attempt.token_count, 3);
    cluster_close(cluster);
    free(cluster);
    return 0;
}

/* ------------------------------------------------------------------ Reserve */

struct reserve {
    Baton__V1__ReserveRequest message;
    Baton__V1__SamplingParams sampling;
};

static void reserve_init(struct reserve *reserve)
{
    static struct attempt attempt;
    attempt_init(&attempt, 50, prompt, 100, 20);
    baton__v1__reserve_request__init(&reserve->message);
    reserve->sampling = attempt.sampling;
    reserve->message.request_id = 50;
    reserve->message.prompt_tokens = 100;
    reserve->message.sampling = &reserve->sampling;
    reserve->message.router_incarnation = ROUTER;
}

static enum bt_status reserve_send(struct cluster *cluster, struct reserve *reserve)
{
    return cluster_call(cluster, cluster->to_decode, "baton.v1.Decode/Reserve",
                        &reserve->message.base, &baton__v1__reserve_response__descriptor, NULL);
}

static void test_reserve(void **state)
{
    struct cluster *cluster = *state;
    struct reserve bad[12];
    uint32_t bad_tokens[100] = {[99] = 1u << 30};
    for (int i = 0; i < 12; i++) {
        reserve_init(&bad[i]);
    }
    bad[0].message.request_id = 0;
    bad[1].message.prompt_tokens = 0;
    bad[2].message.prompt_tokens = UINT32_MAX;
    bad[3].message.sampling = NULL;
    bad[4].sampling.temperature = NAN;
    bad[5].sampling.max_tokens = 0;
    bad[6].message.router_incarnation = 0;
    bad[7].sampling.repetition_penalty = 1.5f; /* and no prompt */
    bad[8].message.prompt = bad_tokens;
    bad[8].message.n_prompt = 100;
    bad[9].message.prompt = prompt;
    bad[9].message.n_prompt = 99;
    bad[10].sampling.logprobs = 1000000;
    bad[11].message.prompt_tokens = 16 * 64; /* fills the pool: no room for a token */
    for (int i = 0; i < 12; i++) {
        assert_int_equal(reserve_send(cluster, &bad[i]), BT_ERR_INVALID_ARGUMENT);
    }
    assert_int_equal(dc_worker_requests(cluster->decode), 0);
    /* A router that nobody knows; a request that is here; more than there may be. */
    struct reserve good;
    reserve_init(&good);
    good.message.router_incarnation = ROUTER + 1;
    assert_int_equal(reserve_send(cluster, &good), BT_ERR_STALE);
    reserve_init(&good);
    assert_int_equal(reserve_send(cluster, &good), BT_OK);
    assert_int_equal(reserve_send(cluster, &good), BT_ERR_ALREADY_EXISTS);
    good.sampling.max_tokens = 100000; /* cut to the context */
    good.message.full = true;
    good.message.request_id = 51;
    assert_int_equal(reserve_send(cluster, &good), BT_ERR_EXHAUSTED); /* not that many pages */
    good.sampling.max_tokens = 1;
    for (uint64_t id = 52; id < 55; id++) {
        good.message.request_id = id;
        assert_int_equal(reserve_send(cluster, &good), BT_OK);
    }
    good.message.request_id = 55;
    assert_int_equal(reserve_send(cluster, &good), BT_ERR_EXHAUSTED); /* max_reserved */
    for (uint64_t id = 50; id < 55; id++) {
        assert_int_equal(cluster_cancel(cluster, id, 0), BT_OK);
    }
}

/* What is wrong with a replay is said by name. */
static void test_replay(void **state)
{
    struct cluster *cluster = *state;
    uint32_t tokens[64] = {0};
    const struct bt_model_config *config = &cluster->model->config;
    static const char *const wrong[] = {"replay: 20 tokens, at most 19", "replay[18]: token",
                                        "replay[3]: token", "replay: 64 tokens, at most 23"};
    struct reserve bad[4];
    struct bt_error error;
    for (int i = 0; i < 4; i++) {
        reserve_init(&bad[i]);
        bad[i].message.replay = tokens;
        bad[i].message.n_replay = 19;
    }
    for (int i = 0; i < 4; i++) {
        memset(tokens, 0, sizeof(tokens));
        switch (i) {
        case 0:
            bad[i].message.n_replay = 20; /* of max_tokens 20 */
            break;
        case 1:
            tokens[18] = config->vocab_size;
            break;
        case 2:
            tokens[3] = config->eos_token_ids[0];
            bad[i].sampling.ignore_eos = false;
            break;
        case 3: /* the context holds 24 more */
            bad[i].message.prompt_tokens = 16 * 64 - 24;
            bad[i].sampling.max_tokens = 1000;
            bad[i].message.n_replay = 64;
            break;
        }
        const struct bt_rpc_call_spec spec = {
            .method = "baton.v1.Decode/Reserve",
            .request = &bad[i].message.base,
            .response = &baton__v1__reserve_response__descriptor,
            .deadline_ns = bt_clock_now_ns() + 30 * BT_NS_PER_S,
        };
        assert_int_equal(bt_rpc_client_call_wait(cluster->to_decode, &spec, &error, NULL),
                         BT_ERR_INVALID_ARGUMENT);
        if (!strstr(error.text, wrong[i])) {
            fail_msg("%s; expected: %s", error.text, wrong[i]);
        }
    }
    assert_int_equal(dc_worker_requests(cluster->decode), 0);
}

/* Tokens that prefill does not draw end the request, and say so to both. */
static void test_replay_of_another_prompt(void **state)
{
    struct cluster *cluster = *state;
    static struct attempt before, attempt;
    attempt_init(&before, 60, prompt, 100, 20);
    attempt_init(&attempt, 61, prompt, 100, 20);
    assert_int_equal(cluster_reserve(cluster, &before), BT_OK);
    cluster_run(cluster, &before);
    cluster_until(cluster, before.run_ended && before.finish != 0);
    attempt_replay(&attempt, &before, 5);
    before.tokens[0] ^= 1;
    assert_int_equal(cluster_reserve(cluster, &attempt), BT_OK);
    cluster_run(cluster, &attempt);
    cluster_until(cluster, attempt.run_ended && attempt.finish != 0);
    assert_int_equal(attempt.run_status, BT_ERR_MISMATCH);
    assert_int_equal(attempt.finish, BATON__V1__FINISH_REASON__FINISH_ERROR);
    assert_non_null(strstr(attempt.error, "replay[0]"));
    assert_non_null(strstr(attempt.run_text, "replay[0]"));
    assert_int_equal(attempt.token_count, 5);
}

/* ------------------------------------------------------------------ Lease, HandoffDone, the rest
 */

static enum bt_status lease_send(struct cluster *cluster, Baton__V1__LeaseRequest *message)
{
    return cluster_call(cluster, cluster->to_decode, "baton.v1.Decode/Lease", &message->base,
                        &baton__v1__lease_response__descriptor, NULL);
}

static void test_lease(void **state)
{
    struct cluster *cluster = *state;
    char long_host[BT_HOST_ID_SIZE + 1];
    memset(long_host, 'x', sizeof(long_host) - 1);
    long_host[sizeof(long_host) - 1] = '\0';
    Baton__V1__ProcessId process = BATON__V1__PROCESS_ID__INIT;
    Baton__V1__LeaseRequest message = BATON__V1__LEASE_REQUEST__INIT;
    message.incarnation = 1;
    assert_int_equal(lease_send(cluster, &message), BT_ERR_INVALID_ARGUMENT); /* no process */
    message.process = &process;
    assert_int_equal(lease_send(cluster, &message), BT_ERR_INVALID_ARGUMENT); /* pid 0 */
    process.pid = 1;
    process.host = long_host;
    assert_int_equal(lease_send(cluster, &message), BT_ERR_INVALID_ARGUMENT);
    process.host = (char *)"here";
    message.incarnation = 0;
    assert_int_equal(lease_send(cluster, &message), BT_ERR_INVALID_ARGUMENT);
    message.incarnation = 1;
    static Baton__V1__LeaseKey key = BATON__V1__LEASE_KEY__INIT;
    static Baton__V1__LeaseKey *keys[5000];
    for (int i = 0; i < 5000; i++) {
        keys[i] = &key;
    }
    message.lease = keys;
    message.n_lease = 5000;
    assert_int_equal(lease_send(cluster, &message), BT_ERR_INVALID_ARGUMENT);
    message.n_lease = 4096;
    assert_int_equal(lease_send(cluster, &message), BT_OK); /* none is live */
    message.n_lease = 0;
    assert_int_equal(lease_send(cluster, &message), BT_OK);
}

static void test_lease_held_by_another(void **state)
{
    struct cluster *cluster = *state;
    struct bt_error error;
    static struct attempt attempt;
    struct fake_prefill one = {.incarnation = 1}, two = {.incarnation = 2};
    assert_int_equal(bt_process_self(&error, &one.process), BT_OK);
    two.process = one.process;
    attempt_init(&attempt, 60, prompt, 100, 20);
    assert_int_equal(cluster_reserve(cluster, &attempt), BT_OK);
    assert_false(cluster_lease(cluster, &one, 60, attempt.epoch + 1));
    assert_false(cluster_lease(cluster, &one, 61, attempt.epoch));
    assert_true(cluster_lease(cluster, &one, 60, attempt.epoch));
    assert_true(cluster_lease(cluster, &one, 60, attempt.epoch));
    assert_false(cluster_lease(cluster, &two, 60, attempt.epoch));
    two.incarnation = 0;
    assert_int_equal(cluster_quiesced(cluster, &two, 60, attempt.epoch, true), BT_ERR_STALE);
    assert_int_equal(cluster_quiesced(cluster, &one, 60, attempt.epoch + 7, true), BT_OK);
    assert_int_equal(dc_worker_requests(cluster->decode), 1);
    assert_int_equal(cluster_quiesced(cluster, &one, 60, attempt.epoch, false), BT_OK);
    assert_int_equal(dc_worker_requests(cluster->decode), 0);
}

static void test_handoff_done(void **state)
{
    struct cluster *cluster = *state;
    struct bt_error error;
    static struct attempt attempt;
    struct fake_prefill fake = {.incarnation = 1};
    assert_int_equal(bt_process_self(&error, &fake.process), BT_OK);
    attempt_init(&attempt, 70, prompt, 100, 20);
    assert_int_equal(cluster_reserve(cluster, &attempt), BT_OK);
    assert_true(cluster_lease(cluster, &fake, 70, attempt.epoch));
    Baton__V1__TokenLogprob top = BATON__V1__TOKEN_LOGPROB__INIT;
    Baton__V1__TokenLogprob *tops[21];
    for (int i = 0; i < 21; i++) {
        tops[i] = &top;
    }
    Baton__V1__LinkCut cut = BATON__V1__LINK_CUT__INIT, *cuts[65];
    for (int i = 0; i < 65; i++) {
        cuts[i] = &cut;
    }
    for (int fault = 0; fault < 8; fault++) {
        Baton__V1__Token token = BATON__V1__TOKEN__INIT;
        Baton__V1__HandoffDoneRequest message = BATON__V1__HANDOFF_DONE_REQUEST__INIT;
        message.request_id = 70;
        message.epoch = attempt.epoch;
        message.prompt_tokens = 100;
        message.page_count = 2;
        message.has_checksum = true;
        message.first_token = fault == 0 ? NULL : &token;
        token.token = fault == 1 ? UINT32_MAX : 0;
        token.index = fault == 2;
        token.top = tops;
        token.n_top = fault == 3 ? 21 : 0;
        token.has_logprob = fault == 4;
        token.logprob = NAN;
        message.cuts = cuts;
        message.n_cuts = fault == 7 ? 65 : fault >= 5;
        cut.link = fault != 5;
        cut.lines = fault != 6;
        assert_int_equal(cluster_call(cluster, cluster->to_decode, "baton.v1.Decode/HandoffDone",
                                      &message.base, NULL, NULL),
                         BT_ERR_INVALID_ARGUMENT);
    }
    /* Other counts than were reserved end the handoff; its pages wait for Quiesced. */
    Baton__V1__Token token = BATON__V1__TOKEN__INIT;
    Baton__V1__HandoffDoneRequest message = BATON__V1__HANDOFF_DONE_REQUEST__INIT;
    message.request_id = 70;
    message.epoch = attempt.epoch;
    message.prompt_tokens = 100;
    message.page_count = UINT32_MAX;
    message.has_checksum = true;
    message.first_token = &token;
    assert_int_equal(cluster_call(cluster, cluster->to_decode, "baton.v1.Decode/HandoffDone",
                                  &message.base, NULL, NULL),
                     BT_ERR_CORRUPT);
    assert_int_equal(dc_worker_free_pages(cluster->decode), cluster->decode_pages - 2);
    assert_int_equal(cluster_quiesced(cluster, &fake, 70, attempt.epoch, false), BT_OK);
}

static void test_steps(void **state)
{
    struct cluster *cluster = *state;
    Baton__V1__StepsRequest message = BATON__V1__STEPS_REQUEST__INIT;
    assert_int_equal(cluster_call(cluster, cluster->to_decode, "baton.v1.Decode/Steps",
                                  &message.base, NULL, NULL),
                     BT_ERR_INVALID_ARGUMENT);
    assert_int_equal(cluster_cancel(cluster, 0, 0), BT_OK);
    assert_int_equal(cluster_cancel(cluster, 12345, 6789), BT_OK);
}

/* ------------------------------------------------------------------ Prefill/Run */

static void run_again(struct cluster *cluster, struct attempt *attempt, enum bt_status expected,
                      const char *field)
{
    attempt->run_ended = false;
    cluster_run(cluster, attempt);
    cluster_until(cluster, attempt->run_ended);
    assert_int_equal(attempt->run_status, expected);
    if (!strstr(attempt->run_text, field)) {
        fail_msg("'%s' does not name %s", attempt->run_text, field);
    }
}

static void test_run(void **state)
{
    struct cluster *cluster = *state;
    static struct attempt attempt;
    attempt_init(&attempt, 80, prompt, 100, 20);
    assert_int_equal(cluster_reserve(cluster, &attempt), BT_OK);
    Baton__V1__Landing *landing = attempt.reserved->landing;
    Baton__V1__KvEndpoint *endpoint = landing->endpoint;
    const struct attempt good = attempt;

    uint32_t bad_tokens[100] = {[3] = 1u << 30};
    attempt.prompt = bad_tokens;
    run_again(cluster, &attempt, BT_ERR_INVALID_ARGUMENT, "prompt[3]");
    attempt.prompt = prompt;
    attempt.prompt_tokens = 0;
    run_again(cluster, &attempt, BT_ERR_INVALID_ARGUMENT, "prompt");
    attempt = good;
    attempt.sampling.top_p = -3;
    run_again(cluster, &attempt, BT_ERR_INVALID_ARGUMENT, "top_p");
    attempt = good;
    attempt.reserved->landing = NULL;
    run_again(cluster, &attempt, BT_ERR_INVALID_ARGUMENT, "landing");
    attempt.reserved->landing = landing;

#define WITH(lvalue, bad, expected, field)                                                         \
    do {                                                                                           \
        __typeof__(lvalue) held = (lvalue);                                                        \
        (lvalue) = (bad);                                                                          \
        run_again(cluster, &attempt, expected, field);                                             \
        (lvalue) = held;                                                                           \
    } while (0)

    WITH(landing->endpoint, NULL, BT_ERR_INVALID_ARGUMENT, "landing.endpoint");
    WITH(landing->request_id, 81, BT_ERR_INVALID_ARGUMENT, "landing.request_id");
    WITH(landing->epoch, 0, BT_ERR_INVALID_ARGUMENT, "landing.epoch");
    WITH(landing->lease_ms, 0, BT_ERR_INVALID_ARGUMENT, "landing.lease_ms");
    WITH(landing->n_runs, 0, BT_ERR_INVALID_ARGUMENT, "landing.runs");
    WITH(landing->runs[0]->first, 15, BT_ERR_INVALID_ARGUMENT, "landing.runs[0]");
    WITH(landing->runs[0]->first, UINT32_MAX, BT_ERR_INVALID_ARGUMENT, "landing.runs[0]");
    WITH(landing->runs[0]->count, UINT32_MAX, BT_ERR_INVALID_ARGUMENT, "landing.runs[0]");
    WITH(landing->runs[0]->count, 1, BT_ERR_INVALID_ARGUMENT, "landing.runs");
    WITH(endpoint->incarnation, 0, BT_ERR_INVALID_ARGUMENT, "endpoint.incarnation");
    WITH(endpoint->control_endpoint, NULL, BT_ERR_INVALID_ARGUMENT, "endpoint.control_endpoint");
    WITH(endpoint->worker_id, NULL, BT_ERR_INVALID_ARGUMENT, "endpoint.worker_id");
    WITH(endpoint->process, NULL, BT_ERR_INVALID_ARGUMENT, "endpoint.process");
    WITH(endpoint->transport_address.len, 0, BT_ERR_INVALID_ARGUMENT, "transport_address");
    WITH(endpoint->pool_key.len, 0, BT_ERR_INVALID_ARGUMENT, "pool_key");
    WITH(endpoint->pool_pages, 0, BT_ERR_INVALID_ARGUMENT, "landing.runs");
    WITH(endpoint->pool_base, UINT64_MAX - 5, BT_ERR_INVALID_ARGUMENT, "pool_pages");
    WITH(endpoint->fingerprint, NULL, BT_ERR_INVALID_ARGUMENT, "fingerprint");
    WITH(endpoint->fingerprint->kv_lora_rank, 32, BT_ERR_MISMATCH, "kv_lora_rank");
    WITH(endpoint->fingerprint->model_hash, 1, BT_ERR_MISMATCH, "model_hash");
    WITH(endpoint->fingerprint->kv_dtype, (char *)"bf16", BT_ERR_MISMATCH, "kv_dtype");
    WITH(endpoint->fingerprint->page_tokens, 16, BT_ERR_MISMATCH, "page_tokens");
#undef WITH

    /* Two runs that give a page twice. */
    Baton__V1__PageRun twice[2] = {BATON__V1__PAGE_RUN__INIT, BATON__V1__PAGE_RUN__INIT};
    Baton__V1__PageRun *runs[2] = {&twice[0], &twice[1]};
    Baton__V1__PageRun **held = landing->runs;
    size_t held_count = landing->n_runs;
    twice[0].first = 3;
    twice[0].count = 2;
    twice[1].first = 4;
    twice[1].count = 1;
    landing->runs = runs;
    landing->n_runs = 2;
    run_again(cluster, &attempt, BT_ERR_INVALID_ARGUMENT, "page 4");
    landing->runs = held;
    landing->n_runs = held_count;

    /* A prompt that never fits this worker's pool of 8 pages. */
    uint32_t long_prompt[600] = {0};
    attempt.prompt = long_prompt;
    attempt.prompt_tokens = 600;
    run_again(cluster, &attempt, BT_ERR_INVALID_ARGUMENT, "prompt");
    attempt = good;

    /* An epoch that the rank does not hold: no lease, so not a byte is written. */
    landing->epoch++;
    run_again(cluster, &attempt, BT_ERR_STALE, "landing");
    landing->epoch--;
    assert_int_equal(pf_worker_free_pages(cluster->prefill), cluster->prefill_pages);
    assert_int_equal(cluster_cancel(cluster, 80, 0), BT_OK);
}

static void test_run_twice_and_too_many(void **state)
{
    struct cluster *cluster = *state;
    static struct attempt attempts[4];
    for (int i = 0; i < 3; i++) {
        attempt_init(&attempts[i], 90 + (uint64_t)i, prompt, 100, 20);
        assert_int_equal(cluster_reserve(cluster, &attempts[i]), BT_OK);
    }
    prefill_gate(0); /* those that are taken in are here when the others come */
    cluster_run(cluster, &attempts[0]);
    attempts[3] = attempts[0];
    attempts[3].run = NULL;
    cluster_run(cluster, &attempts[3]); /* the same epoch again */
    cluster_run(cluster, &attempts[1]);
    cluster_run(cluster, &attempts[2]); /* max_queued is 2 */
    cluster_until(cluster, attempts[3].run_ended && attempts[2].run_ended);
    assert_int_equal(attempts[3].run_status, BT_ERR_ALREADY_EXISTS);
    assert_int_equal(attempts[2].run_status, BT_ERR_EXHAUSTED);
    prefill_gate(GATE_OPEN);
    cluster_until(cluster, attempts[0].run_ended && attempts[1].run_ended);
    assert_int_equal(attempts[0].run_status, BT_OK);
    assert_int_equal(attempts[1].run_status, BT_OK);
    assert_int_equal(cluster_cancel(cluster, 92, 0), BT_OK);
}

/* Two routers may run one request at once, each with a landing of its own. */
static void test_one_request_of_two_routers(void **state)
{
    struct cluster *cluster = *state, other = {.loop = cluster->loop};
    struct dc_worker_options decode = cluster_decode_options();
    static struct attempt attempts[2]; /* the cluster has them */
    struct bt_error error;
    decode.worker_id = "decode-other";
    assert_int_equal(
        dc_worker_create(cluster->loop, cluster->model, &decode, &error, &other.decode), BT_OK);
    assert_int_equal(bt_rpc_client_create(cluster->loop, dc_worker_endpoint(other.decode), &error,
                                          &other.to_decode),
                     BT_OK);
    cluster_subscribe(&other);
    for (int i = 0; i < 2; i++) {
        struct cluster *rank = i == 0 ? cluster : &other;
        attempt_init(&attempts[i], 97, prompt, 100, 20);
        assert_int_equal(cluster_reserve(rank, &attempts[i]), BT_OK);
    }
    assert_true(attempts[0].epoch != attempts[1].epoch);
    cluster_run(cluster, &attempts[0]);
    cluster_run(cluster, &attempts[1]);
    cluster_until(cluster, attempts[0].finish != 0 && attempts[1].finish != 0);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(attempts[i].finish, BATON__V1__FINISH_REASON__FINISH_LENGTH);
        assert_int_equal(attempts[i].token_count, 20);
    }
    assert_memory_equal(attempts[0].tokens, attempts[1].tokens, 20 * sizeof(uint32_t));
    dc_worker_stop(other.decode);
    cluster_until(cluster, dc_worker_quiet(other.decode));
    bt_rpc_client_destroy(other.to_decode);
    dc_worker_destroy(other.decode);
    attempt_finish(&attempts[1]);
}

int main(void)
{
    bt_log_init("test", BT_LOG_ERROR);
#define TEST(name) cmocka_unit_test_setup_teardown(name, cluster_setup, cluster_teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_reserve),
        TEST(test_replay),
        TEST(test_replay_of_another_prompt),
        TEST(test_lease),
        TEST(test_lease_held_by_another),
        TEST(test_handoff_done),
        TEST(test_steps),
        TEST(test_run),
        TEST(test_run_twice_and_too_many),
        TEST(test_one_request_of_two_routers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
