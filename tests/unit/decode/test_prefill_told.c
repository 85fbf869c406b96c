/* What a prefill worker tells of its work comes with the rank's first step, too. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/clock.h"
#include "tests/unit/decode/cluster.h"
#include "tests/unit/decode/gate.h"

#define PROMPT 300          /* tokens */
#define FOUND  256          /* of them, when it was there before: the last page is computed again */
#define OTHER  UINT64_C(78) /* incarnation of another router */
#define LONG   4000         /* tokens: it has no pass for the last before the test opens the gate */
#define SOME   1000         /* passes */

static const uint32_t prompt[PROMPT] = {0};
static const uint8_t key[32] = {1, 2, 3, [31] = 4};

static void open_cluster(struct cluster *cluster)
{
    struct pf_worker_options prefill = cluster_prefill_options();
    struct dc_worker_options decode = cluster_decode_options();
    prefill.prefix_caching = true;
    decode.router_grace_ns = 600 * BT_NS_PER_S;
    decode.local_prefill_tokens = PROMPT;
    decode.local_prefill_chunk = 64;
    decode.checksum = false; /* whoever plays prefill has no pages to sum */
    cluster_open(cluster, &prefill, &decode);
}

/* But for the layers, which a trace asks for. */
static void check_told(const struct attempt *attempt, uint32_t cached_tokens)
{
    assert_int_equal(attempt->rank_told, 1);
    assert_true(attempt->layers_told > 0);
    assert_int_equal(attempt->by_rank.cached_tokens, cached_tokens);
    assert_true(attempt->by_rank.kv_bytes > 0 && attempt->by_rank.compute_ns > 0);
    assert_int_not_equal(attempt->by_rank.transport[0], '\0');
    assert_memory_equal(&attempt->by_rank, &attempt->by_prefill, sizeof(attempt->by_rank));
}

static void test_first_step_tells_what_prefill_told(void **state)
{
    (void)state;
    struct cluster cluster;
    struct attempt attempts[3]; /* anew, found, gone on with */
    static const uint32_t max_tokens[] = {8, 1, 8}, cached[] = {0, FOUND, FOUND};
    open_cluster(&cluster);
    for (int i = 0; i < 3; i++) {
        struct attempt *attempt = &attempts[i];
        attempt_init(attempt, (uint64_t)i + 1, prompt, PROMPT, max_tokens[i]);
        attempt->sampled = true;
        if (i == 2) {
            attempt_replay(attempt, &attempts[0], 4);
        }
        assert_int_equal(cluster_reserve(&cluster, attempt), BT_OK);
        cluster_run(&cluster, attempt);
        cluster_until(&cluster, attempt->run_ended && attempt->finish != 0);
        assert_int_equal(attempt->run_status, BT_OK);
        assert_int_equal(attempt->finish, BATON__V1__FINISH_REASON__FINISH_LENGTH);
        check_told(attempt, cached[i]);
    }
    cluster_close(&cluster);
}

static void test_a_rank_that_computes_prompts_tells_nothing_of_others(void **state)
{
    (void)state;
    struct cluster cluster;
    struct attempt attempt;
    open_cluster(&cluster);
    attempt_init(&attempt, 1, prompt, PROMPT, 8);
    attempt.local = true;
    assert_int_equal(cluster_reserve(&cluster, &attempt), BT_OK);
    cluster_until(&cluster, attempt.finish != 0);
    assert_int_equal(attempt.rank_told, 0);
    cluster_close(&cluster);
}

/* Of what a peer says nothing is passed on that is not known, that is long, or that was not asked
 * for; and none of it is kept where the message was. */
static void test_what_is_not_passed_on(void **state)
{
    (void)state;
    struct cluster cluster;
    struct attempt attempt;
    struct fake_prefill fake = {.incarnation = 4711};
    open_cluster(&cluster);
    assert_int_equal(bt_process_self(NULL, &fake.process), BT_OK);
    attempt_init(&attempt, 9, prompt, 100, 1);
    assert_int_equal(cluster_reserve(&cluster, &attempt), BT_OK);
    assert_true(cluster_lease(&cluster, &fake, 9, attempt.epoch));
    Baton__V1__LayerTime layer = BATON__V1__LAYER_TIME__INIT, *layers[] = {&layer, &layer};
    ProtobufCMessageUnknownField unknown = {
        .tag = 1000, .wire_type = PROTOBUF_C_WIRE_TYPE_VARINT, .len = 1, .data = (uint8_t *)"\1"};
    static char transport[1000];
    memset(transport, 't', sizeof(transport) - 1);
    Baton__V1__PrefillDone told = BATON__V1__PREFILL_DONE__INIT;
    told.base.n_unknown_fields = 1;
    told.base.unknown_fields = &unknown;
    told.n_layers = 2;
    told.layers = layers;
    told.transport = transport;
    told.cached_tokens = 64;
    Baton__V1__Token token = BATON__V1__TOKEN__INIT;
    Baton__V1__HandoffDoneRequest done = BATON__V1__HANDOFF_DONE_REQUEST__INIT;
    done.request_id = 9;
    done.epoch = attempt.epoch;
    done.prompt_tokens = 100;
    done.page_count = 2;
    done.first_token = &token;
    done.done = &told;
    assert_int_equal(cluster_call(&cluster, cluster.to_decode, "baton.v1.Decode/HandoffDone",
                                  &done.base, NULL, NULL),
                     BT_OK);
    cluster_until(&cluster, attempt.finish != 0);
    assert_int_equal(attempt.rank_told, 1); /* without layers: see cluster.c */
    assert_int_equal(attempt.by_rank.cached_tokens, 64);
    assert_int_equal(attempt.unknown_told, 0);
    assert_true(attempt.transport_size < 64);
    cluster_close(&cluster);
}

/* ---- a router that never spoke with the prefill worker */

struct router {
    struct bt_rpc_pending *steps;
    bool ended, hello;
    uint32_t tokens, told;
    struct prefill_figures figures;
};

static void on_step(void *context, const ProtobufCMessage *message)
{
    struct router *router = context;
    const Baton__V1__StepEvent *event = (const Baton__V1__StepEvent *)message;
    router->hello = true;
    for (size_t i = 0; i < event->n_sequences; i++) {
        const Baton__V1__SequenceStep *step = event->sequences[i];
        if (step->prefill) {
            assert_int_equal(router->tokens, 0);
            router->told++;
            router->figures = prefill_figures_of(step->prefill);
        }
        router->tokens += (uint32_t)step->n_tokens;
    }
}

static void on_steps_end(void *context, enum bt_status status, const char *text,
                         const ProtobufCMessage *response)
{
    struct router *router = context;
    (void)status;
    (void)text;
    (void)response;
    router->ended = true;
}

static void router_open(struct cluster *cluster, struct router *router)
{
    Baton__V1__StepsRequest request = BATON__V1__STEPS_REQUEST__INIT;
    request.router_incarnation = OTHER;
    const struct bt_rpc_call_spec spec = {
        .method = "baton.v1.Decode/Steps",
        .request = &request.base,
        .data = &baton__v1__step_event__descriptor,
        .deadline_ns = BT_NEVER_NS,
        .on_data = on_step,
        .on_end = on_steps_end,
        .context = router,
    };
    *router = (struct router){0};
    assert_int_equal(bt_rpc_client_call(cluster->to_decode, &spec, NULL, &router->steps), BT_OK);
    cluster_until(cluster, router->hello);
}

static enum bt_status adopt(struct cluster *cluster, const struct attempt *attempt)
{
    Baton__V1__AdoptRequest message = BATON__V1__ADOPT_REQUEST__INIT;
    message.request_id = attempt->request;
    message.epoch = attempt->epoch;
    message.resume_key = (ProtobufCBinaryData){sizeof(key), (uint8_t *)key};
    message.router_incarnation = OTHER;
    return cluster_call(cluster, cluster->to_decode, "baton.v1.Decode/Adopt", &message.base, NULL,
                        NULL);
}

static void test_who_adopts_is_told(void **state)
{
    (void)state;
    struct cluster cluster;
    struct attempt before, left;
    struct router other;
    open_cluster(&cluster);
    attempt_init(&before, 1, prompt, PROMPT, 1);
    attempt_init(&left, 2, prompt, PROMPT, LONG);
    left.sampling.logprobs = -1;
    left.resume_key = key;
    struct attempt *both[] = {&before, &left};
    decode_gate(SOME);
    for (int i = 0; i < 2; i++) {
        both[i]->sampled = true;
        assert_int_equal(cluster_reserve(&cluster, both[i]), BT_OK);
        cluster_run(&cluster, both[i]);
        cluster_until(&cluster, both[i]->run_ended && both[i]->token_count > 0);
    }
    bt_rpc_pending_cancel(cluster.steps);
    cluster_until(&cluster, cluster.steps_ended && dc_worker_orphans(cluster.decode) == 1);
    router_open(&cluster, &other);
    assert_int_equal(adopt(&cluster, &left), BT_OK);
    decode_gate(SOME);
    cluster_until(&cluster, other.tokens > left.token_count);
    assert_int_equal(other.told, 1);
    assert_int_equal(other.figures.cached_tokens, FOUND);
    check_told(&left, FOUND);
    assert_memory_equal(&other.figures, &left.by_prefill, sizeof(other.figures));
    bt_rpc_pending_cancel(other.steps); /* and with it another router */
    cluster_until(&cluster, other.ended);
    assert_int_equal(cluster_cancel(&cluster, 2, left.epoch), BT_OK);
    decode_gate(GATE_OPEN);
    cluster_close(&cluster);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_first_step_tells_what_prefill_told),
        cmocka_unit_test(test_a_rank_that_computes_prompts_tells_nothing_of_others),
        cmocka_unit_test(test_what_is_not_passed_on),
        cmocka_unit_test(test_who_adopts_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
