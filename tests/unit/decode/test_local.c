/* A decode rank that computes prompts itself, over its wire: the same tokens as over a prefill
 * worker, at every stage an end that frees all pages, and no lease for anybody. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/clock.h"
#include "common/base/random.h"
#include "tests/unit/decode/cluster.h"
#include "tests/unit/decode/gate.h"

#define LONGEST  900
#define REQUESTS 6

static uint32_t prompt[LONGEST + 100];

static void cluster_with(struct cluster *cluster, uint32_t chunk)
{
    struct pf_worker_options prefill = cluster_prefill_options();
    struct dc_worker_options decode = cluster_decode_options();
    decode.local_prefill_tokens = LONGEST;
    decode.local_prefill_chunk = chunk;
    for (uint32_t i = 0; i < LONGEST + 100; i++) {
        prompt[i] = 3 + (uint32_t)(bt_random_u64(9, i, 0) % 2000);
    }
    cluster_open(cluster, &prefill, &decode);
}

static void local_init(struct attempt *attempt, uint64_t request, uint32_t tokens,
                       uint32_t max_tokens)
{
    attempt_init(attempt, request, prompt, tokens, max_tokens);
    attempt->local = true;
}

static void expect_equal(const struct attempt *a, const struct attempt *b)
{
    assert_int_equal(a->finish, BATON__V1__FINISH_REASON__FINISH_LENGTH);
    assert_int_equal(b->finish, BATON__V1__FINISH_REASON__FINISH_LENGTH);
    assert_int_equal(a->token_count, b->token_count);
    assert_memory_equal(a->tokens, b->tokens, a->token_count * sizeof(uint32_t));
    assert_memory_equal(a->logprobs, b->logprobs, a->token_count * sizeof(float));
}

/* Both ways at once, of each request; then the local one again from some of its tokens on. */
static void test_tokens_of_both_ways(void **state)
{
    (void)state;
    static struct attempt remote[REQUESTS], local[REQUESTS], again[REQUESTS];
    static const uint32_t lengths[REQUESTS] = {1, 64, 65, 130, 300, 700};
    struct cluster cluster;
    cluster_with(&cluster, 24);
    for (uint32_t i = 0; i < REQUESTS; i++) {
        attempt_init(&remote[i], 1 + i, prompt, lengths[i], 12);
        local_init(&local[i], 101 + i, lengths[i], 12);
        remote[i].sampling.temperature = local[i].sampling.temperature = i % 2 ? 0.9f : 0;
        remote[i].sampling.repetition_penalty = i % 3 ? 1.3f : 1;
        local[i].sampling.repetition_penalty = remote[i].sampling.repetition_penalty;
        remote[i].sampling.presence_penalty = local[i].sampling.presence_penalty = 0.5f;
        local[i].sampling.seed = remote[i].sampling.seed;
        assert_int_equal(cluster_reserve(&cluster, &local[i]), BT_OK);
        assert_int_equal(cluster_reserve(&cluster, &remote[i]), BT_OK);
        cluster_run(&cluster, &remote[i]);
    }
    for (uint32_t i = 0; i < REQUESTS; i++) {
        cluster_until(&cluster, local[i].finish != 0 && remote[i].finish != 0 && !remote[i].run);
        expect_equal(&remote[i], &local[i]);
    }
    for (uint32_t i = 0; i < REQUESTS; i++) {
        again[i] = local[i];
        again[i].reserved = NULL;
        again[i].finish = 0;
        again[i].request = 201 + i;
        attempt_replay(&again[i], &local[i], 1 + i % 11);
        assert_int_equal(cluster_reserve(&cluster, &again[i]), BT_OK);
    }
    for (uint32_t i = 0; i < REQUESTS; i++) {
        cluster_until(&cluster, again[i].finish != 0);
        expect_equal(&local[i], &again[i]);
    }
    cluster_close(&cluster);
}

/* Before its first chunk is over, in the midst of it, and when tokens came; it has no pass for the
 * rest before it is cancelled. */
static void test_cancel_frees_every_page(void **state)
{
    (void)state;
    static const uint32_t passes[3] = {0, 5, LONGEST / 4 + 50};
    static struct attempt attempts[3];
    struct cluster cluster;
    cluster_with(&cluster, 4);
    for (uint32_t i = 0; i < 3; i++) {
        local_init(&attempts[i], 1 + i, LONGEST, 100);
        decode_gate(passes[i]);
        assert_int_equal(cluster_reserve(&cluster, &attempts[i]), BT_OK);
        if (i == 2) {
            cluster_until(&cluster, attempts[i].token_count > 2);
        } else {
            cluster_until(&cluster, decode_gate_left() == 0);
        }
        assert_int_equal(cluster_cancel(&cluster, attempts[i].request, attempts[i].epoch), BT_OK);
        decode_gate(GATE_OPEN);
        cluster_until(&cluster, attempts[i].finish != 0);
        assert_int_equal(attempts[i].finish, BATON__V1__FINISH_REASON__FINISH_CANCELLED);
        cluster_until(&cluster, dc_worker_free_pages(cluster.decode) == cluster.decode_pages);
    }
    cluster_close(&cluster);
}

static void test_nobody_gets_a_lease(void **state)
{
    (void)state;
    static struct attempt attempt;
    struct cluster cluster;
    struct fake_prefill fake = {.incarnation = 5};
    struct bt_error error;
    assert_int_equal(bt_process_self(&error, &fake.process), BT_OK);
    cluster_with(&cluster, 4);
    local_init(&attempt, 1, LONGEST, 3);
    assert_int_equal(cluster_reserve(&cluster, &attempt), BT_OK);
    assert_false(cluster_lease(&cluster, &fake, 1, attempt.epoch));
    assert_int_equal(cluster_quiesced(&cluster, &fake, 1, attempt.epoch, false), BT_OK);
    cluster_until(&cluster, attempt.finish != 0);
    assert_int_equal(attempt.finish, BATON__V1__FINISH_REASON__FINISH_LENGTH);
    assert_int_equal(attempt.token_count, 3);
    cluster_close(&cluster);
}

static void test_refuses_what_it_can_not_compute(void **state)
{
    (void)state;
    static struct attempt attempt;
    struct cluster cluster;
    cluster_with(&cluster, 4);
    local_init(&attempt, 1, LONGEST + 1, 3);
    assert_int_equal(cluster_reserve(&cluster, &attempt), BT_ERR_INVALID_ARGUMENT);
    Baton__V1__ReserveRequest request = BATON__V1__RESERVE_REQUEST__INIT;
    request.request_id = 2;
    request.prompt_tokens = 10;
    request.sampling = &attempt.sampling;
    request.router_incarnation = ROUTER;
    request.local_prefill = true;
    for (uint32_t tokens = 0; tokens <= 11; tokens += 9) { /* 0, 9 of 10 */
        request.prompt = prompt;
        request.n_prompt = tokens;
        assert_int_equal(cluster_call(&cluster, cluster.to_decode, "baton.v1.Decode/Reserve",
                                      &request.base, NULL, NULL),
                         BT_ERR_INVALID_ARGUMENT);
    }
    static uint32_t outside[10] = {[9] = UINT32_MAX};
    request.prompt = outside;
    request.n_prompt = 10;
    assert_int_equal(cluster_call(&cluster, cluster.to_decode, "baton.v1.Decode/Reserve",
                                  &request.base, NULL, NULL),
                     BT_ERR_INVALID_ARGUMENT);
    cluster_close(&cluster);
}

static void test_wrong_replay_is_told(void **state)
{
    (void)state;
    static struct attempt first, wrong;
    struct cluster cluster;
    cluster_with(&cluster, 24);
    local_init(&first, 1, 100, 4);
    assert_int_equal(cluster_reserve(&cluster, &first), BT_OK);
    cluster_until(&cluster, first.finish != 0);
    local_init(&wrong, 2, 100, 4);
    wrong.sampling.seed = 1;
    uint32_t replay = first.tokens[0] ^ 1;
    wrong.replay = &replay;
    wrong.replay_count = 1;
    assert_int_equal(cluster_reserve(&cluster, &wrong), BT_OK);
    cluster_until(&cluster, wrong.finish != 0);
    assert_int_equal(wrong.finish, BATON__V1__FINISH_REASON__FINISH_ERROR);
    assert_non_null(strstr(wrong.error, "replay"));
    cluster_close(&cluster);
}

/* It stops with prompts in every stage. */
static void test_stop_with_prompts_waiting(void **state)
{
    (void)state;
    static struct attempt attempts[4];
    struct cluster cluster;
    cluster_with(&cluster, 1);
    for (uint32_t i = 0; i < 4; i++) {
        local_init(&attempts[i], 1 + i, 400, 50);
        assert_int_equal(cluster_reserve(&cluster, &attempts[i]), BT_OK);
    }
    dc_worker_stop(cluster.decode);
    cluster_until(&cluster, dc_worker_quiet(cluster.decode));
    cluster_close(&cluster);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tokens_of_both_ways),
        cmocka_unit_test(test_cancel_frees_every_page),
        cmocka_unit_test(test_nobody_gets_a_lease),
        cmocka_unit_test(test_refuses_what_it_can_not_compute),
        cmocka_unit_test(test_wrong_replay_is_told),
        cmocka_unit_test(test_stop_with_prompts_waiting),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
