/* Requests whose router goes away: kept, adopted, dropped; and two routers on one rank. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/base/clock.h"
#include "common/base/log.h"
#include "decode-node/subscriber.h"
#include "decode-node/token_log.h"
#include "proto/registry.pb-c.h"
#include "tests/unit/decode/cluster.h"
#include "tests/unit/decode/gate.h"

#define OTHER UINT64_C(78) /* incarnations of other routers */
#define THIRD UINT64_C(79)
#define LONG  4000 /* tokens: it has no pass for the last before the test opens the gate */
#define SOME  1000 /* passes: more than a test looks at, and a few times that is less than LONG */

static const uint32_t prompt[200] = {0};
static const uint8_t key[32] = {1, 2, 3, [31] = 4};

/* ------------------------------------------------------------------ routers */

/* What a router hears of one request. */
struct router {
    struct bt_rpc_pending *steps;
    bool hello, ended;
    uint32_t pages_expected; /* as the rank last said */
    uint64_t request, epoch;
    uint32_t tokens[LONG], count, messages;
    Baton__V1__FinishReason finish;
};

static void on_step(void *context, const ProtobufCMessage *message)
{
    struct router *router = context;
    const Baton__V1__StepEvent *event = (const Baton__V1__StepEvent *)message;
    router->hello = true;
    router->pages_expected = event->load->pages_expected;
    for (size_t i = 0; i < event->n_sequences; i++) {
        const Baton__V1__SequenceStep *step = event->sequences[i];
        if (step->request_id != router->request || step->epoch != router->epoch) {
            continue;
        }
        assert_int_equal(router->finish, 0);
        router->messages++;
        for (size_t k = 0; k < step->n_tokens; k++) {
            assert_int_equal(step->tokens[k]->index, router->count);
            assert_true(router->count < LONG);
            router->tokens[router->count++] = step->tokens[k]->token;
        }
        router->finish = step->finish;
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

static struct router *router_open(struct cluster *cluster, uint64_t incarnation)
{
    struct router *router = calloc(1, sizeof(*router));
    Baton__V1__StepsRequest request = BATON__V1__STEPS_REQUEST__INIT;
    request.router_incarnation = incarnation;
    const struct bt_rpc_call_spec spec = {
        .method = "baton.v1.Decode/Steps",
        .request = &request.base,
        .data = &baton__v1__step_event__descriptor,
        .deadline_ns = BT_NEVER_NS,
        .on_data = on_step,
        .on_end = on_steps_end,
        .context = router,
    };
    assert_int_equal(bt_rpc_client_call(cluster->to_decode, &spec, NULL, &router->steps), BT_OK);
    cluster_until(cluster, router->hello);
    return router;
}

static void router_close(struct cluster *cluster, struct router *router)
{
    if (!router->ended) {
        bt_rpc_pending_cancel(router->steps);
    }
    cluster_until(cluster, router->ended);
    free(router);
}

static enum bt_status adopt_with(struct cluster *cluster, const struct attempt *attempt,
                                 uint64_t epoch, uint64_t router, const uint8_t *shown,
                                 size_t key_size)
{
    Baton__V1__AdoptRequest message = BATON__V1__ADOPT_REQUEST__INIT;
    message.request_id = attempt->request;
    message.epoch = epoch;
    message.resume_key.data = (uint8_t *)shown;
    message.resume_key.len = key_size;
    message.router_incarnation = router;
    return cluster_call(cluster, cluster->to_decode, "baton.v1.Decode/Adopt", &message.base, NULL,
                        NULL);
}

static enum bt_status adopt(struct cluster *cluster, const struct attempt *attempt,
                            struct router *router, uint64_t incarnation)
{
    if (router) {
        router->request = attempt->request;
        router->epoch = attempt->epoch;
    }
    return adopt_with(cluster, attempt, attempt->epoch, incarnation, key, sizeof(key));
}

static void cancel_by(struct cluster *cluster, uint64_t request, uint64_t epoch, uint64_t router)
{
    Baton__V1__CancelRequest message = BATON__V1__CANCEL_REQUEST__INIT;
    message.request_id = request;
    message.epoch = epoch;
    message.router_incarnation = router;
    assert_int_equal(cluster_call(cluster, cluster->to_decode, "baton.v1.Decode/Cancel",
                                  &message.base, NULL, NULL),
                     BT_OK);
}

/* ------------------------------------------------------------------ requests */

static struct cluster *open_with(const struct dc_worker_options *decode)
{
    struct cluster *cluster = calloc(1, sizeof(*cluster));
    struct pf_worker_options prefill = cluster_prefill_options();
    cluster_open(cluster, &prefill, decode);
    return cluster;
}

static struct cluster *open_cluster(void)
{
    struct dc_worker_options decode = cluster_decode_options();
    decode.router_grace_ns = 600 * BT_NS_PER_S;
    return open_with(&decode);
}

static void close_cluster(struct cluster *cluster)
{
    decode_gate(GATE_OPEN);
    cluster_close(cluster);
    free(cluster);
}

static void keyed(struct attempt *attempt, uint64_t request, uint32_t max_tokens)
{
    attempt_init(attempt, request, prompt, 100, max_tokens);
    attempt->sampling.seed = 5;
    attempt->sampling.logprobs = -1;
    attempt->resume_key = key;
}

/* Until it runs. Of a LONG one nobody collects all tokens. */
static void run(struct cluster *cluster, struct attempt *attempt)
{
    assert_int_equal(cluster_reserve(cluster, attempt), BT_OK);
    cluster_run(cluster, attempt);
    cluster_until(cluster, attempt->run_ended);
    assert_int_equal(attempt->run_status, BT_OK);
}

/* ROUTER goes away, without closing the connection. */
static void lose_router(struct cluster *cluster)
{
    bt_rpc_pending_cancel(cluster->steps);
    cluster_until(cluster, cluster->steps_ended);
}

/* A LONG one that ROUTER left behind. */
static void leave(struct cluster *cluster, struct attempt *attempt, uint64_t request)
{
    keyed(attempt, request, LONG);
    decode_gate(SOME);
    run(cluster, attempt);
    lose_router(cluster);
    cluster_until(cluster, dc_worker_orphans(cluster->decode) == 1);
}

/* ------------------------------------------------------------------ tests */

static void test_adopted_with_all_its_tokens(void **state)
{
    (void)state;
    struct cluster *cluster = open_cluster();
    struct attempt whole, left;
    keyed(&whole, 1, 300);
    run(cluster, &whole);
    cluster_until(cluster, whole.finish != 0);
    keyed(&left, 2, 300);
    decode_gate(20);
    run(cluster, &left);
    cluster_until(cluster, left.token_count >= 3);
    lose_router(cluster);
    assert_int_equal(dc_worker_orphans(cluster->decode), 1);
    decode_gate(GATE_OPEN);
    struct router *other = router_open(cluster, OTHER);
    assert_int_equal(adopt(cluster, &left, other, OTHER), BT_OK);
    cluster_until(cluster, other->finish != 0);
    assert_int_equal(other->finish, BATON__V1__FINISH_REASON__FINISH_LENGTH);
    assert_int_equal(other->count, 300);
    assert_memory_equal(other->tokens, whole.tokens, 300 * sizeof(uint32_t));
    assert_int_equal(dc_worker_requests(cluster->decode), 0);
    router_close(cluster, other);
    close_cluster(cluster);
}

static void test_replayed_tokens_are_kept(void **state)
{
    (void)state;
    struct cluster *cluster = open_cluster();
    struct attempt whole, left;
    keyed(&whole, 1, 300);
    run(cluster, &whole);
    cluster_until(cluster, whole.finish != 0);
    keyed(&left, 2, 300);
    attempt_replay(&left, &whole, 40);
    decode_gate(0);
    run(cluster, &left);
    lose_router(cluster);
    cluster_until(cluster, dc_worker_orphans(cluster->decode) == 1);
    decode_gate(GATE_OPEN);
    struct router *other = router_open(cluster, OTHER);
    assert_int_equal(adopt(cluster, &left, other, OTHER), BT_OK);
    cluster_until(cluster, other->finish != 0);
    assert_int_equal(other->count, 300);
    assert_memory_equal(other->tokens, whole.tokens, 300 * sizeof(uint32_t));
    router_close(cluster, other);
    close_cluster(cluster);
}

static void test_one_that_ended_holds_tokens_alone(void **state)
{
    (void)state;
    struct cluster *cluster = open_cluster();
    struct attempt left;
    keyed(&left, 2, 500);
    decode_gate(0);
    run(cluster, &left);
    lose_router(cluster);
    assert_int_equal(dc_worker_orphans(cluster->decode), 1);
    decode_gate(GATE_OPEN);
    cluster_until(cluster, dc_worker_free_pages(cluster->decode) == cluster->decode_pages);
    assert_int_equal(dc_worker_orphans(cluster->decode), 1);
    struct router *other = router_open(cluster, OTHER);
    assert_int_equal(adopt(cluster, &left, other, OTHER), BT_OK);
    cluster_until(cluster, other->finish != 0);
    assert_int_equal(other->finish, BATON__V1__FINISH_REASON__FINISH_LENGTH);
    assert_int_equal(other->count, 500);
    assert_int_equal(other->messages, 1);
    assert_int_equal(dc_worker_requests(cluster->decode), 0);
    assert_int_equal(adopt(cluster, &left, NULL, OTHER), BT_ERR_NOT_FOUND);
    router_close(cluster, other);
    close_cluster(cluster);
}

static void test_only_with_its_id_epoch_and_key(void **state)
{
    (void)state;
    struct cluster *cluster = open_cluster();
    struct attempt left, alike;
    uint8_t wrong[32];
    leave(cluster, &left, 2);
    struct router *other = router_open(cluster, OTHER), *third = router_open(cluster, THIRD);
    for (size_t i = 0; i < sizeof(wrong); i += 31) {
        memcpy(wrong, key, sizeof(key));
        wrong[i] ^= 128;
        assert_int_equal(adopt_with(cluster, &left, left.epoch, OTHER, wrong, 32),
                         BT_ERR_NOT_FOUND);
    }
    assert_int_equal(adopt_with(cluster, &left, left.epoch + 1, OTHER, key, 32), BT_ERR_NOT_FOUND);
    assert_int_equal(adopt_with(cluster, &left, 0, OTHER, key, 32), BT_ERR_INVALID_ARGUMENT);
    assert_int_equal(adopt_with(cluster, &left, left.epoch, OTHER, key, 31),
                     BT_ERR_INVALID_ARGUMENT);
    assert_int_equal(adopt_with(cluster, &left, left.epoch, OTHER, NULL, 0),
                     BT_ERR_INVALID_ARGUMENT);
    assert_int_equal(adopt_with(cluster, &left, left.epoch, 0, key, 32), BT_ERR_INVALID_ARGUMENT);
    assert_int_equal(adopt_with(cluster, &left, left.epoch, 80, key, 32), BT_ERR_STALE);
    alike = left;
    alike.request = 3;
    assert_int_equal(adopt(cluster, &alike, NULL, OTHER), BT_ERR_NOT_FOUND);
    assert_int_equal(adopt(cluster, &left, other, OTHER), BT_OK);
    assert_int_equal(adopt(cluster, &left, other, OTHER), BT_OK); /* tokens come once: on_step */
    assert_int_equal(adopt(cluster, &left, third, THIRD), BT_ERR_NOT_FOUND);
    cluster_until(cluster, other->count >= 5);
    cancel_by(cluster, 2, 0, THIRD);
    cancel_by(cluster, 2, left.epoch, THIRD);
    uint32_t before = other->count;
    decode_gate(SOME);
    cluster_until(cluster, other->count > before + 5);
    cancel_by(cluster, 2, left.epoch, OTHER);
    decode_gate(GATE_OPEN);
    cluster_until(cluster, other->finish != 0);
    assert_int_equal(other->finish, BATON__V1__FINISH_REASON__FINISH_CANCELLED);
    assert_int_equal(third->count, 0);
    router_close(cluster, other);
    router_close(cluster, third);
    close_cluster(cluster);
}

static void test_the_second_router_goes_too(void **state)
{
    (void)state;
    struct cluster *cluster = open_cluster();
    struct attempt left;
    leave(cluster, &left, 2);
    struct router *other = router_open(cluster, OTHER);
    assert_int_equal(adopt(cluster, &left, other, OTHER), BT_OK);
    assert_int_equal(dc_worker_orphans(cluster->decode), 0);
    cluster_until(cluster, other->count >= 5);
    router_close(cluster, other);
    cluster_until(cluster, dc_worker_orphans(cluster->decode) == 1);
    struct router *third = router_open(cluster, THIRD);
    assert_int_equal(adopt(cluster, &left, third, THIRD), BT_OK);
    cluster_until(cluster, third->count >= 5);
    cancel_by(cluster, 2, 0, THIRD);
    router_close(cluster, third);
    close_cluster(cluster);
}

static void test_what_does_not_outlive_its_router(void **state)
{
    (void)state;
    struct cluster *cluster = open_cluster();
    struct attempt plain, reserved;
    keyed(&plain, 1, LONG);
    plain.resume_key = NULL;
    keyed(&reserved, 2, 300);
    decode_gate(SOME);
    run(cluster, &plain);
    assert_int_equal(cluster_reserve(cluster, &reserved), BT_OK);
    lose_router(cluster);
    assert_int_equal(dc_worker_orphans(cluster->decode), 0);
    decode_gate(GATE_OPEN);
    cluster_until(cluster, dc_worker_requests(cluster->decode) == 0);
    close_cluster(cluster);
}

static void test_no_grace(void **state)
{
    (void)state;
    struct dc_worker_options decode = cluster_decode_options();
    struct cluster *cluster = open_with(&decode);
    struct attempt left;
    keyed(&left, 2, LONG);
    decode_gate(SOME);
    run(cluster, &left);
    lose_router(cluster);
    assert_int_equal(dc_worker_orphans(cluster->decode), 0);
    decode_gate(GATE_OPEN);
    cluster_until(cluster, dc_worker_requests(cluster->decode) == 0);
    close_cluster(cluster);
}

static void test_the_grace_ends(void **state)
{
    (void)state;
    struct dc_worker_options decode = cluster_decode_options();
    decode.router_grace_ns = 100 * BT_NS_PER_MS;
    struct cluster *cluster = open_with(&decode);
    struct attempt left;
    keyed(&left, 2, LONG);
    decode_gate(SOME);
    run(cluster, &left);
    int64_t before_ns = bt_clock_now_ns();
    lose_router(cluster);
    decode_gate(GATE_OPEN);
    cluster_until(cluster, dc_worker_requests(cluster->decode) == 0);
    assert_true(bt_clock_now_ns() - before_ns >= decode.router_grace_ns);
    close_cluster(cluster);
}

static void test_the_same_router_wants_none_of_them(void **state)
{
    (void)state;
    struct cluster *cluster = open_cluster();
    struct attempt left, again;
    leave(cluster, &left, 2);
    cluster_subscribe(cluster);
    assert_int_equal(dc_worker_orphans(cluster->decode), 0);
    decode_gate(GATE_OPEN);
    keyed(&again, 2, 20); /* at once, while the other is being stopped */
    run(cluster, &again);
    cluster_until(cluster, again.finish != 0);
    assert_int_equal(again.token_count, 20);
    close_cluster(cluster);
}

static void test_makes_way_for_its_own_id(void **state)
{
    (void)state;
    struct cluster *cluster = open_cluster();
    struct attempt left, ended, anew[2];
    leave(cluster, &left, 2);
    struct router *other = router_open(cluster, OTHER);
    other->request = 2;
    for (int i = 0; i < 2; i++) {
        keyed(&anew[i], 2, 60);
        anew[i].router = OTHER;
        assert_int_equal(cluster_reserve(cluster, &anew[i]), BT_OK);
        decode_gate(GATE_OPEN);
        other->epoch = anew[i].epoch;
        other->count = 0;
        other->finish = 0;
        cluster_run(cluster, &anew[i]);
        cluster_until(cluster, other->finish != 0);
        assert_int_equal(other->count, 60);
        cluster_until(cluster, dc_worker_requests(cluster->decode) == 0);
        if (i == 0) { /* the next one finds an orphan that has ended */
            cluster_subscribe(cluster);
            keyed(&ended, 2, 500);
            decode_gate(0);
            run(cluster, &ended);
            lose_router(cluster);
            decode_gate(GATE_OPEN);
            cluster_until(cluster, dc_worker_free_pages(cluster->decode) == cluster->decode_pages);
            assert_int_equal(dc_worker_orphans(cluster->decode), 1);
        }
    }
    assert_int_equal(adopt(cluster, &left, NULL, OTHER), BT_ERR_NOT_FOUND);
    router_close(cluster, other);
    close_cluster(cluster);
}

static void test_what_another_router_runs_is_not_touched(void **state)
{
    (void)state;
    struct cluster *cluster = open_cluster();
    struct attempt mine, theirs, whole;
    struct router *other = router_open(cluster, OTHER), *third = router_open(cluster, THIRD);
    keyed(&mine, 2, LONG);
    mine.router = OTHER;
    assert_int_equal(cluster_reserve(cluster, &mine), BT_OK);
    other->request = third->request = mine.request;
    other->epoch = third->epoch = mine.epoch;
    keyed(&theirs, 2, 300);
    theirs.router = THIRD;
    assert_int_equal(cluster_reserve(cluster, &theirs), BT_ERR_ALREADY_EXISTS);
    cancel_by(cluster, 2, 0, THIRD);
    decode_gate(SOME);
    cluster_run(cluster, &mine);
    cluster_until(cluster, mine.run_ended);
    assert_int_equal(mine.run_status, BT_OK);
    assert_int_equal(cluster_reserve(cluster, &theirs), BT_ERR_ALREADY_EXISTS);
    cancel_by(cluster, 2, 0, THIRD);
    cancel_by(cluster, 2, mine.epoch, THIRD);
    assert_int_equal(third->count, 0);
    router_close(cluster, third);
    cluster_until(cluster, other->count >= 300);
    cancel_by(cluster, 2, 0, OTHER);
    decode_gate(GATE_OPEN);
    cluster_until(cluster, other->finish != 0);
    keyed(&whole, 3, 300);
    run(cluster, &whole);
    cluster_until(cluster, whole.finish != 0);
    assert_memory_equal(other->tokens, whole.tokens, 300 * sizeof(uint32_t));
    router_close(cluster, other);
    close_cluster(cluster);
}

static void test_cancel_of_an_orphan(void **state)
{
    (void)state;
    struct cluster *cluster = open_cluster();
    struct attempt left;
    leave(cluster, &left, 2);
    cancel_by(cluster, 2, 0, OTHER); /* whatever that router had */
    assert_int_equal(dc_worker_orphans(cluster->decode), 1);
    cancel_by(cluster, 2, left.epoch, OTHER);
    assert_int_equal(dc_worker_orphans(cluster->decode), 0);
    decode_gate(GATE_OPEN);
    cluster_until(cluster, dc_worker_requests(cluster->decode) == 0);
    close_cluster(cluster);
}

static uint32_t pages_expected(struct cluster *cluster)
{
    struct router *router = router_open(cluster, THIRD);
    uint32_t pages = router->pages_expected;
    router_close(cluster, router);
    return pages;
}

/* A page for 60 + 1 tokens; 20 are expected of the second, more than its 60 + 300 can be. */
static void test_load_has_what_is_expected(void **state)
{
    (void)state;
    struct dc_worker_options decode = cluster_decode_options();
    decode.expected_output_tokens = 1;
    decode.router_grace_ns = 600 * BT_NS_PER_S;
    struct cluster *cluster = open_with(&decode);
    struct router *other = router_open(cluster, OTHER);
    struct attempt attempts[3];
    const uint32_t expected[] = {0, 20, 4}, sum[] = {1, 7, 11};
    for (int i = 0; i < 3; i++) {
        keyed(&attempts[i], 1 + (uint64_t)i, 300);
        attempts[i].prompt_tokens = 60;
        attempts[i].expected_pages = expected[i];
        attempts[i].router = i == 1 ? OTHER : ROUTER;
        assert_int_equal(cluster_reserve(cluster, &attempts[i]), BT_OK);
        assert_int_equal(pages_expected(cluster), sum[i]);
    }
    cancel_by(cluster, 2, 0, OTHER);
    assert_int_equal(pages_expected(cluster), 5);
    decode_gate(0);
    cluster_run(cluster, &attempts[0]); /* 360 tokens are 6 pages, got one by one */
    cluster_run(cluster, &attempts[2]);
    cluster_until(cluster, attempts[0].run_ended && attempts[2].run_ended);
    lose_router(cluster);
    decode_gate(GATE_OPEN);
    cluster_until(cluster, dc_worker_free_pages(cluster->decode) == cluster->decode_pages);
    assert_int_equal(dc_worker_orphans(cluster->decode), 2);
    assert_int_equal(pages_expected(cluster), 0);
    cluster_subscribe(cluster); /* drops them */
    router_close(cluster, other);
    close_cluster(cluster);
}

/* ROUTER's two requests end without it, in an order that does not matter. */
static void test_ended_ones_make_room(void **state)
{
    (void)state;
    struct dc_worker_options decode = cluster_decode_options();
    decode.router_grace_ns = 600 * BT_NS_PER_S;
    decode.max_reserved = 2;
    struct cluster *cluster = open_with(&decode);
    struct attempt left[2], anew[3];
    decode_gate(0);
    for (uint64_t i = 0; i < 2; i++) {
        keyed(&left[i], 1 + i, 500);
        run(cluster, &left[i]);
    }
    lose_router(cluster);
    decode_gate(GATE_OPEN);
    cluster_until(cluster, dc_worker_free_pages(cluster->decode) == cluster->decode_pages);
    assert_int_equal(dc_worker_orphans(cluster->decode), 2);
    struct router *other = router_open(cluster, OTHER);
    for (uint64_t i = 0; i < 3; i++) {
        keyed(&anew[i], 3 + i, 60);
        anew[i].router = OTHER;
        assert_int_equal(cluster_reserve(cluster, &anew[i]), i < 2 ? BT_OK : BT_ERR_EXHAUSTED);
        assert_int_equal(dc_worker_orphans(cluster->decode), i == 0);
    }
    router_close(cluster, other);
    close_cluster(cluster);
}

/* The orphan holds all it can need, and the other wants to grow: as a request of a router's it
 * would have had to give way itself. */
static void test_orphans_are_preempted_first(void **state)
{
    (void)state;
    struct dc_worker_options decode = cluster_decode_options();
    decode.router_grace_ns = 600 * BT_NS_PER_S;
    decode.expected_output_tokens = 1;
    decode.kv_pages = (100 + LONG + 63) / 64 + 2;
    struct cluster *cluster = open_with(&decode);
    struct attempt left, grows;
    keyed(&left, 1, LONG);
    left.full = true;
    decode_gate(SOME);
    run(cluster, &left);
    lose_router(cluster);
    assert_int_equal(dc_worker_orphans(cluster->decode), 1);
    struct router *other = router_open(cluster, OTHER);
    keyed(&grows, 2, 300);
    grows.router = OTHER;
    assert_int_equal(cluster_reserve(cluster, &grows), BT_OK);
    other->request = grows.request;
    other->epoch = grows.epoch;
    assert_int_equal(dc_worker_free_pages(cluster->decode), 0);
    decode_gate(SOME);
    cluster_run(cluster, &grows);
    cluster_until(cluster, other->finish != 0);
    assert_int_equal(other->finish, BATON__V1__FINISH_REASON__FINISH_LENGTH);
    assert_int_equal(other->count, 300);
    assert_int_equal(dc_worker_orphans(cluster->decode), 0);
    router_close(cluster, other);
    close_cluster(cluster);
}

bool __real_dc_token_log_add(struct dc_token_log *log, const uint32_t *ids, uint32_t count);
bool __wrap_dc_token_log_add(struct dc_token_log *log, const uint32_t *ids, uint32_t count);

static uint32_t log_room; /* tokens; 0: any */

bool __wrap_dc_token_log_add(struct dc_token_log *log, const uint32_t *ids, uint32_t count)
{
    return (log_room == 0 || log->count + count <= log_room) &&
           __real_dc_token_log_add(log, ids, count);
}

static void test_no_memory_for_tokens(void **state)
{
    (void)state;
    struct cluster *cluster = open_cluster();
    struct attempt left[2];
    keyed(&left[0], 1, 300);
    log_room = 3;
    run(cluster, &left[0]);
    cluster_until(cluster, left[0].finish != 0); /* goes on with its router */
    assert_int_equal(left[0].token_count, 300);
    log_room = 0;
    leave(cluster, &left[1], 2);
    log_room = 3;
    decode_gate(SOME);
    cluster_until(cluster, dc_worker_requests(cluster->decode) == 0); /* not without one */
    log_room = 0;
    close_cluster(cluster);
}

/* ------------------------------------------------------------------ what is told of them */

struct registry {
    uint32_t registers, heartbeats, orphans; /* the last: as last told */
    uint64_t request, epoch;
    bool right_key;
    bool forgets; /* the worker, at its next heartbeat */
};

static void note_orphans(struct registry *registry, Baton__V1__Orphan *const *orphans, size_t count)
{
    registry->orphans = (uint32_t)count;
    if (count > 0) {
        registry->request = orphans[0]->request_id;
        registry->epoch = orphans[0]->epoch;
        registry->right_key = orphans[0]->resume_key.len == sizeof(key) &&
                              memcmp(orphans[0]->resume_key.data, key, sizeof(key)) == 0;
    }
}

static void handle_register(void *context, struct bt_rpc_call *call,
                            const ProtobufCMessage *message)
{
    struct registry *registry = context;
    const Baton__V1__RegisterRequest *request = (const Baton__V1__RegisterRequest *)message;
    Baton__V1__RegisterResponse response = BATON__V1__REGISTER_RESPONSE__INIT;
    response.heartbeat_ms = 60000;
    registry->registers++;
    note_orphans(registry, request->orphans, request->n_orphans);
    bt_rpc_call_end(call, BT_OK, NULL, &response.base);
}

static void handle_heartbeat(void *context, struct bt_rpc_call *call,
                             const ProtobufCMessage *message)
{
    struct registry *registry = context;
    const Baton__V1__HeartbeatRequest *request = (const Baton__V1__HeartbeatRequest *)message;
    Baton__V1__HeartbeatResponse response = BATON__V1__HEARTBEAT_RESPONSE__INIT;
    if (registry->forgets) {
        registry->forgets = false;
        bt_rpc_call_end(call, BT_ERR_NOT_FOUND, NULL, NULL);
        return;
    }
    registry->heartbeats++;
    note_orphans(registry, request->orphans, request->n_orphans);
    bt_rpc_call_end(call, BT_OK, NULL, &response.base);
}

static void handle_deregister(void *context, struct bt_rpc_call *call,
                              const ProtobufCMessage *message)
{
    Baton__V1__DeregisterResponse response = BATON__V1__DEREGISTER_RESPONSE__INIT;
    (void)context;
    (void)message;
    bt_rpc_call_end(call, BT_OK, NULL, &response.base);
}

static const struct bt_rpc_method registry_methods[] = {
    {"baton.v1.Registry/Register", &baton__v1__register_request__descriptor, handle_register},
    {"baton.v1.Registry/Heartbeat", &baton__v1__heartbeat_request__descriptor, handle_heartbeat},
    {"baton.v1.Registry/Deregister", &baton__v1__deregister_request__descriptor, handle_deregister},
    {NULL, NULL, NULL},
};

/* At once when they change: the next heartbeat is a minute away. */
static void test_routers_are_told(void **state)
{
    (void)state;
    char directory[] = "/tmp/test-orphans-XXXXXX", endpoint[64];
    assert_non_null(mkdtemp(directory));
    snprintf(endpoint, sizeof(endpoint), "ipc://%s/registry", directory);
    struct dc_worker_options decode = cluster_decode_options();
    decode.router_grace_ns = 600 * BT_NS_PER_S;
    decode.routers = endpoint;
    struct cluster *cluster = open_with(&decode);
    struct attempt left, second;
    struct registry registry = {0};
    struct bt_rpc_server *server;
    struct bt_error error;
    leave(cluster, &left, 2);
    assert_int_equal(
        bt_rpc_server_create(cluster->loop, endpoint, registry_methods, &registry, &error, &server),
        BT_OK);
    /* A Register that has waited since before is followed by a heartbeat at once. */
    cluster_until(cluster, registry.orphans == 1);
    assert_int_equal(registry.registers, 1);
    assert_int_equal(registry.request, 2);
    assert_int_equal(registry.epoch, left.epoch);
    assert_true(registry.right_key);
    struct router *other = router_open(cluster, OTHER);
    assert_int_equal(adopt(cluster, &left, other, OTHER), BT_OK);
    cluster_until(cluster, registry.orphans == 0);
    cancel_by(cluster, 2, 0, OTHER);
    decode_gate(GATE_OPEN);
    cluster_until(cluster, other->finish != 0);
    cluster_subscribe(cluster);
    registry.forgets = true;
    leave(cluster, &second, 3);
    cluster_until(cluster, registry.registers == 2);
    assert_int_equal(registry.orphans, 1); /* with the Register */
    assert_int_equal(registry.request, 3);
    cluster_subscribe(cluster); /* drops it */
    cluster_until(cluster, registry.orphans == 0);
    router_close(cluster, other);
    bt_rpc_server_destroy(server);
    close_cluster(cluster);
    snprintf(endpoint, sizeof(endpoint), "%s/registry", directory);
    unlink(endpoint);
    assert_int_equal(rmdir(directory), 0);
}

/* ------------------------------------------------------------------ long histories */

#define HISTORY (2 * DC_DELIVERED_TOKENS + 5)

struct listener {
    struct bt_loop *loop;
    struct dc_subscribers *subscribers;
    uint32_t next, messages;
    bool hello, finished;
};

static void no_router(void *context, uint64_t router_incarnation)
{
    (void)context;
    (void)router_incarnation;
}

static void no_load(void *context, Baton__V1__RankLoad *ret_load)
{
    (void)context;
    (void)ret_load;
}

static void handle_steps(void *context, struct bt_rpc_call *call, const ProtobufCMessage *request)
{
    struct listener *listener = context;
    dc_subscribers_open(listener->subscribers, call, (const Baton__V1__StepsRequest *)request);
}

static void on_part(void *context, const ProtobufCMessage *message)
{
    struct listener *listener = context;
    const Baton__V1__StepEvent *event = (const Baton__V1__StepEvent *)message;
    listener->hello = true;
    for (size_t i = 0; i < event->n_sequences; i++) {
        const Baton__V1__SequenceStep *step = event->sequences[i];
        assert_false(listener->finished);
        assert_true(step->n_tokens <= DC_DELIVERED_TOKENS);
        for (size_t k = 0; k < step->n_tokens; k++) {
            assert_int_equal(step->tokens[k]->index, listener->next);
            assert_int_equal(step->tokens[k]->token, 3 * listener->next);
            listener->next++;
        }
        listener->messages++;
        listener->finished = step->finish != 0;
    }
}

static void on_parts_end(void *context, enum bt_status status, const char *text,
                         const ProtobufCMessage *response)
{
    const struct listener *listener = context;
    (void)status;
    (void)text;
    (void)response;
    assert_true(listener->finished);
}

static void test_a_long_history_comes_in_parts(void **state)
{
    (void)state;
    static const struct bt_rpc_method methods[] = {
        {"baton.v1.Decode/Steps", &baton__v1__steps_request__descriptor, handle_steps},
        {NULL, NULL, NULL},
    };
    static uint32_t tokens[HISTORY];
    for (uint32_t i = 0; i < HISTORY; i++) {
        tokens[i] = 3 * i;
    }
    struct bt_error error;
    struct bt_rpc_server *server;
    struct bt_rpc_client *client;
    const struct dc_subscribers_events events = {no_router, no_router, no_load, NULL};
    struct listener listener = {.loop = bt_loop_create(&error),
                                .subscribers = dc_subscribers_create(&events)};
    assert_int_equal(bt_rpc_server_create(listener.loop, "tcp://127.0.0.1:*", methods, &listener,
                                          &error, &server),
                     BT_OK);
    assert_int_equal(
        bt_rpc_client_create(listener.loop, bt_rpc_server_endpoint(server), &error, &client),
        BT_OK);
    Baton__V1__StepsRequest request = BATON__V1__STEPS_REQUEST__INIT;
    request.router_incarnation = OTHER;
    const struct bt_rpc_call_spec spec = {
        .method = "baton.v1.Decode/Steps",
        .request = &request.base,
        .data = &baton__v1__step_event__descriptor,
        .deadline_ns = bt_clock_now_ns() + 60 * BT_NS_PER_S,
        .on_data = on_part,
        .on_end = on_parts_end,
        .context = &listener,
    };
    assert_int_equal(bt_rpc_client_call(client, &spec, NULL, NULL), BT_OK);
    while (!listener.hello) {
        assert_int_equal(bt_loop_run_once(listener.loop, BT_NEVER_NS, &error), BT_OK);
    }
    const struct dc_history history = {
        .request = 2,
        .epoch = 9,
        .tokens = tokens,
        .count = HISTORY,
        .finish = BATON__V1__FINISH_REASON__FINISH_LENGTH,
    };
    dc_subscribers_deliver(listener.subscribers, THIRD, &history); /* who is not there */
    dc_subscribers_deliver(listener.subscribers, OTHER, &history);
    while (!listener.finished) {
        assert_int_equal(bt_loop_run_once(listener.loop, BT_NEVER_NS, &error), BT_OK);
    }
    assert_int_equal(listener.next, HISTORY);
    assert_int_equal(listener.messages, 3);
    bt_rpc_client_destroy(client);
    bt_rpc_server_destroy(server);
    dc_subscribers_destroy(listener.subscribers);
    bt_loop_destroy(listener.loop);
}

int main(void)
{
    bt_log_init("test", BT_LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_adopted_with_all_its_tokens),
        cmocka_unit_test(test_replayed_tokens_are_kept),
        cmocka_unit_test(test_one_that_ended_holds_tokens_alone),
        cmocka_unit_test(test_only_with_its_id_epoch_and_key),
        cmocka_unit_test(test_the_second_router_goes_too),
        cmocka_unit_test(test_what_does_not_outlive_its_router),
        cmocka_unit_test(test_no_grace),
        cmocka_unit_test(test_the_grace_ends),
        cmocka_unit_test(test_the_same_router_wants_none_of_them),
        cmocka_unit_test(test_makes_way_for_its_own_id),
        cmocka_unit_test(test_what_another_router_runs_is_not_touched),
        cmocka_unit_test(test_cancel_of_an_orphan),
        cmocka_unit_test(test_load_has_what_is_expected),
        cmocka_unit_test(test_ended_ones_make_room),
        cmocka_unit_test(test_orphans_are_preempted_first),
        cmocka_unit_test(test_no_memory_for_tokens),
        cmocka_unit_test(test_routers_are_told),
        cmocka_unit_test(test_a_long_history_comes_in_parts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
