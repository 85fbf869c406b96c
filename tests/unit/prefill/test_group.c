/* A prefill worker of 1, 2 and 4 ranks before a decode rank: what lands, and what is left behind
 * when it is cancelled, told to end or broken. One test a run: its name is the argument. */
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "common/base/clock.h"
#include "common/base/random.h"
#include "tests/unit/prefill/ranks.h"

#define PROMPT_MAX 2048
/* f32 arithmetic in another order of sums, over six layers. */
#define TOLERANCE 2e-3

static uint32_t prompts[KV_PROMPTS][PROMPT_MAX];

static void fill_prompts(void)
{
    for (uint32_t i = 0; i < KV_PROMPTS; i++) {
        for (uint32_t k = 0; k < PROMPT_MAX; k++) {
            prompts[i][k] = 2 + (uint32_t)(bt_random_u64(11, i, k) % 2000);
        }
    }
}

static void start(struct ranks *ranks, struct attempt *attempt, uint64_t request, uint32_t prompt,
                  uint32_t tokens)
{
    attempt_init(attempt, request, prompts[prompt], tokens, 2);
    assert_int_equal(cluster_reserve(&ranks->cluster, attempt), BT_OK);
    cluster_run(&ranks->cluster, attempt);
}

static void finish(struct ranks *ranks, const struct attempt *attempt)
{
    cluster_until(&ranks->cluster, attempt->run_ended && attempt->finish != 0);
    if (attempt->run_status != BT_OK) {
        fail_msg("%s", attempt->run_text);
    }
    assert_int_equal(attempt->token_count, 2);
    assert_int_equal(attempt->first_token, attempt->tokens[0]);
}

/* Nothing of any run is left at a follower. */
static void expect_no_push(struct ranks *ranks)
{
    for (uint32_t rank = 1; rank < ranks->options.size; rank++) {
        int64_t until_ns = bt_clock_now_ns() + 60 * BT_NS_PER_S;
        while (ranks_metric(ranks, rank, "vllm:num_requests_running") != 0) {
            assert_true(bt_clock_now_ns() < until_ns);
            cluster_turn(&ranks->cluster);
        }
    }
}

/* A process may end before its last word was taken in here. */
static void expect_goodbyes(struct ranks *ranks, uint32_t count)
{
    cluster_until(&ranks->cluster, ranks->goodbyes >= count);
    assert_int_equal(ranks->goodbyes, count);
}

/* ---- what lands ---- */

#define LAYOUT_PROMPTS 4
static const uint32_t lengths[LAYOUT_PROMPTS] = {1, 64, 130, 701};

struct landed {
    int first[LAYOUT_PROMPTS];
    uint64_t bytes;
    size_t kv_bytes[LAYOUT_PROMPTS];
    float *kv[LAYOUT_PROMPTS];
};

/* All pages went out once, and every rank had a share of the work. */
static void expect_shares(struct ranks *ranks, const struct landed *landed, uint64_t told_bytes)
{
    double sum = 0;
    for (uint32_t rank = 0; rank < ranks->options.size; rank++) {
        double bytes = ranks_metric(ranks, rank, "baton_kv_pushed_bytes_total");
        assert_true(bytes > 0);
        sum += bytes;
    }
    assert_true(sum == (double)landed->bytes);
    assert_true(told_bytes == landed->bytes);
}

static void land(const struct ranks_options *options, struct landed *ret_landed)
{
    struct ranks ranks;
    struct attempt attempts[LAYOUT_PROMPTS];
    uint64_t told_bytes = 0;
    kv_forget();
    ranks_open(&ranks, options);
    assert_int_equal(ranks.has_group, options->size > 1);
    assert_true(options->size == 1 || (ranks.group.rank == 0 && ranks.group.size == options->size &&
                                       ranks.group.incarnation == ranks.incarnation));
    *ret_landed = (struct landed){0};
    for (uint32_t i = 0; i < LAYOUT_PROMPTS; i++) {
        start(&ranks, &attempts[i], i + 1, i, lengths[i]);
    }
    for (uint32_t i = 0; i < LAYOUT_PROMPTS; i++) {
        finish(&ranks, &attempts[i]);
        const struct kv_landed *kv = kv_of(i + 1);
        assert_int_equal(kv->tokens, lengths[i]);
        ret_landed->first[i] = attempts[i].first_token;
        ret_landed->kv_bytes[i] = kv->bytes;
        ret_landed->kv[i] = malloc(kv->bytes);
        memcpy(ret_landed->kv[i], kv->data, kv->bytes);
        ret_landed->bytes += kv->bytes;
        told_bytes += attempts[i].by_prefill.kv_bytes;
    }
    expect_shares(&ranks, ret_landed, told_bytes);
    expect_no_push(&ranks);
    ranks_signal(&ranks, 0, SIGTERM);
    cluster_until(&ranks.cluster, ranks_all_ended(&ranks));
    for (uint32_t rank = 0; rank < options->size; rank++) {
        assert_true(ranks_exited(&ranks, rank, 0));
    }
    expect_goodbyes(&ranks, 1);
    ranks_close(&ranks);
}

static void forget(struct landed *landed)
{
    for (uint32_t i = 0; i < LAYOUT_PROMPTS; i++) {
        free(landed->kv[i]);
    }
}

static void expect_close(const struct landed *a, const struct landed *b)
{
    for (uint32_t i = 0; i < LAYOUT_PROMPTS; i++) {
        assert_int_equal(a->first[i], b->first[i]);
        assert_int_equal(a->kv_bytes[i], b->kv_bytes[i]);
        double worst = 0, largest = 0;
        for (size_t k = 0; k < a->kv_bytes[i] / sizeof(float); k++) {
            worst = fmax(worst, fabs((double)a->kv[i][k] - b->kv[i][k]));
            largest = fmax(largest, fabs((double)b->kv[i][k]));
        }
        assert_true(largest > 0.1);
        if (worst > TOLERANCE * largest) {
            fail_msg("prompt %u: KV differs by %g of %g", i, worst, largest);
        }
    }
}

static void expect_same(const struct landed *a, const struct landed *b)
{
    for (uint32_t i = 0; i < LAYOUT_PROMPTS; i++) {
        assert_int_equal(a->first[i], b->first[i]);
        assert_int_equal(a->kv_bytes[i], b->kv_bytes[i]);
        assert_memory_equal(a->kv[i], b->kv[i], a->kv_bytes[i]);
    }
}

static void test_layouts(void **state)
{
    (void)state;
    struct landed alone;
    land(&(struct ranks_options){.size = 1}, &alone);
    for (uint32_t size = 2; size <= 4; size *= 2) {
        struct landed with, without;
        land(&(struct ranks_options){.size = size}, &with);
        land(&(struct ranks_options){.size = size, .no_expert_parallel = true}, &without);
        expect_same(&with, &without);
        expect_close(&with, &alone);
        forget(&with);
        forget(&without);
    }
    forget(&alone);
}

/* ---- cancel ---- */

static void end_run(struct ranks *ranks, struct attempt *attempt)
{
    cluster_until(&ranks->cluster, attempt->run_ended);
    cluster_cancel(&ranks->cluster, attempt->request, attempt->epoch);
    if (attempt->run_status == BT_OK) { /* it was faster */
        cluster_until(&ranks->cluster, attempt->finish != 0);
    } else {
        assert_int_equal(attempt->run_status, BT_ERR_CANCELLED);
    }
}

/* At once; when it computes; after some rounds of the loop; with the first token. How far each
 * comes is up to the machine; but in the second round none may write, so that all are cancelled. */
static void test_cancel(void **state)
{
    (void)state;
    struct ranks ranks;
    static struct attempt attempts[13];
    uint32_t cancelled = 0;
    ranks_open(&ranks, &(struct ranks_options){.size = 2, .chunk = "64", .pages = "40"});
    struct cluster *cluster = &ranks.cluster;
    for (uint32_t i = 0; i < 12; i++) {
        struct attempt *attempt = &attempts[i];
        ranks_hold_leases(i / 4 == 1);
        start(&ranks, attempt, i + 1, i % KV_PROMPTS, 1500);
        for (uint32_t turn = 0; i % 4 == 1 && turn < i; turn++) {
            cluster_turn(cluster);
        }
        if (i % 4 >= 2) {
            cluster_until(cluster, attempt->run_ended ||
                                       (i % 4 == 2 ? attempt->started : attempt->first_token >= 0));
        }
        if (attempt->run) {
            bt_rpc_pending_cancel(attempt->run);
        }
        end_run(&ranks, attempt);
        assert_true(i / 4 != 1 || attempt->run_status == BT_ERR_CANCELLED);
        cancelled += attempt->run_status == BT_ERR_CANCELLED;
    }
    start(&ranks, &attempts[12], 13, 3, 2000);
    finish(&ranks, &attempts[12]);
    expect_no_push(&ranks);
    cluster_until(cluster, ranks_metric(&ranks, 0, "vllm:kv_cache_usage_perc") == 0);
    assert_true(ranks_metric(&ranks, 0,
                             "baton_prefill_runs_total{model_name=\"tiny\",role="
                             "\"prefill\",result=\"cancelled\"}") == cancelled);
    ranks_close(&ranks);
}

/* ---- the end of the worker ---- */

/* By rank 0's last word, or by its end where that was sooner. */
static void expect_run_elsewhere(const struct attempt *attempt)
{
    if (attempt->run_status != BT_ERR_UNAVAILABLE && attempt->run_status != BT_ERR_PEER_LOST) {
        fail_msg("%s: %s", bt_status_name(attempt->run_status), attempt->run_text);
    }
}

/* With a run that computes, or waits for its lease: it ends with an error that has it run
 * elsewhere, all in order. */
static void stop_by(uint32_t rank)
{
    struct ranks ranks;
    struct attempt attempt;
    ranks_open(&ranks, &(struct ranks_options){.size = 2, .chunk = "16"});
    ranks_hold_leases(true);
    start(&ranks, &attempt, 1, 0, 2000);
    cluster_until(&ranks.cluster, attempt.started);
    ranks_signal(&ranks, rank, SIGTERM);
    cluster_until(&ranks.cluster, attempt.run_ended);
    expect_run_elsewhere(&attempt);
    cluster_until(&ranks.cluster, ranks_all_ended(&ranks));
    assert_true(ranks_exited(&ranks, 0, 0));
    assert_true(ranks_exited(&ranks, 1, 0));
    expect_goodbyes(&ranks, 1);
    ranks_close(&ranks);
}

static void test_stop_rank_0(void **state)
{
    (void)state;
    stop_by(0);
}

static void test_stop_follower(void **state)
{
    (void)state;
    stop_by(1);
}

/* The others end with an error soon, by themselves; the pages of the run come back. It waits for
 * its lease to the end, so that it can neither be over before nor lose one. */
static void lose(uint32_t size, uint32_t victim, int signal, bool computing)
{
    struct ranks ranks;
    struct attempt attempt;
    ranks_open(&ranks, &(struct ranks_options){.size = size,
                                               .chunk = "16",
                                               .lease_ms = 4000,
                                               .group_timeout = signal == SIGSTOP ? "10s" : "60s"});
    if (computing) {
        ranks_hold_leases(true);
        start(&ranks, &attempt, 1, 0, 2000);
        cluster_until(&ranks.cluster, attempt.started);
        ranks_await_lease(&ranks, victim);
    }
    int64_t lost_ns = bt_clock_now_ns();
    ranks_signal(&ranks, victim, signal);
    if (signal == SIGKILL) {
        cluster_until(&ranks.cluster, ranks_ended(&ranks, victim));
    }
    if (signal == SIGSTOP) {
        siginfo_t info;
        assert_int_equal(waitid(P_PID, (id_t)ranks.pids[victim], &info, WSTOPPED | WNOWAIT), 0);
    }
    for (uint32_t rank = 0; rank < size; rank++) {
        if (rank != victim) {
            cluster_until(&ranks.cluster, ranks_ended(&ranks, rank));
            assert_true(ranks_exited(&ranks, rank, 1));
        }
    }
    printf("all ended after %d ms\n", (int)((bt_clock_now_ns() - lost_ns) / BT_NS_PER_MS));
    if (computing) {
        cluster_until(&ranks.cluster, attempt.run_ended);
        expect_run_elsewhere(&attempt);
    }
    if (signal == SIGSTOP) { /* it may go on writing */
        cluster_cancel(&ranks.cluster, 1, attempt.epoch);
        assert_true(dc_worker_free_pages(ranks.cluster.decode) < ranks.cluster.decode_pages);
    }
    expect_goodbyes(&ranks, victim != 0);
    ranks_close(&ranks); /* kills the victim; every page comes back */
}

static void test_lost_follower(void **state)
{
    (void)state;
    lose(4, 2, SIGKILL, true);
}

static void test_lost_idle(void **state)
{
    (void)state;
    lose(2, 1, SIGKILL, false);
}

static void test_lost_rank_0(void **state)
{
    (void)state;
    lose(2, 0, SIGKILL, true);
}

static void test_stopped_follower(void **state)
{
    (void)state;
    lose(2, 1, SIGSTOP, true);
}

/* ---- hostile callers of a follower ---- */

struct push_call {
    bool opened, ended;
    enum bt_status status;
    char outcome[32], text[256];
    uint64_t bytes;
};

static void on_opened(void *context, const ProtobufCMessage *message)
{
    (void)message;
    ((struct push_call *)context)->opened = true;
}

static void on_outcome(void *context, enum bt_status status, const char *text,
                       const ProtobufCMessage *response)
{
    struct push_call *call = context;
    const Baton__V1__RankPushOutcome *outcome = (const Baton__V1__RankPushOutcome *)response;
    call->ended = true;
    call->status = status;
    snprintf(call->text, sizeof(call->text), "%s", text);
    if (outcome) {
        snprintf(call->outcome, sizeof(call->outcome), "%s", outcome->status);
        call->bytes = outcome->kv_bytes;
    }
}

static struct bt_rpc_pending *
push_send(struct ranks *ranks, const Baton__V1__RankPushRequest *request, struct push_call *call)
{
    struct bt_rpc_pending *pending;
    *call = (struct push_call){0};
    const struct bt_rpc_call_spec spec = {
        .method = "baton.v1.PrefillRank/Push",
        .request = &request->base,
        .data = &baton__v1__rank_push_opened__descriptor,
        .response = &baton__v1__rank_push_outcome__descriptor,
        .deadline_ns = BT_NEVER_NS,
        .on_data = on_opened,
        .on_end = on_outcome,
        .context = call,
    };
    assert_int_equal(bt_rpc_client_call(ranks->to_rank[1], &spec, NULL, &pending), BT_OK);
    return pending;
}

static void expect_refused(struct ranks *ranks, const Baton__V1__RankPushRequest *request,
                           enum bt_status status, const char *field)
{
    struct push_call call;
    push_send(ranks, request, &call);
    cluster_until(&ranks->cluster, call.ended);
    if (call.status != status || !strstr(call.text, field)) {
        fail_msg("%s wanted, it says: %s: %s", field, bt_status_name(call.status), call.text);
    }
    assert_false(call.opened);
}

/* A message that is right but for one field, given by its place. */
#define REFUSED(ranks, good, landing_copy, change, status, field)                                  \
    do {                                                                                           \
        Baton__V1__RankPushRequest bad = *(good);                                                  \
        Baton__V1__Landing bad_landing = *(landing_copy);                                          \
        bad.landing = &bad_landing;                                                                \
        change;                                                                                    \
        expect_refused(ranks, &bad, status, field);                                                \
    } while (0)

static void refuse_all(struct ranks *ranks, const Baton__V1__RankPushRequest *good)
{
    const Baton__V1__Landing *landing = good->landing;
    Baton__V1__PageRun outside = BATON__V1__PAGE_RUN__INIT, whole = BATON__V1__PAGE_RUN__INIT;
    outside.first = 63;
    outside.count = 2;
    whole.count = 64;
    Baton__V1__PageRun *outside_list[] = {&outside}, *twice[] = {&whole, &whole}, *none[] = {NULL};
    Baton__V1__KvEndpoint endpoint = *landing->endpoint;
    endpoint.incarnation = 0;
    (void)none;
    REFUSED(ranks, good, landing, bad.group_incarnation++, BT_ERR_STALE, "group_incarnation");
    REFUSED(ranks, good, landing, bad.serial = 0, BT_ERR_INVALID_ARGUMENT, "serial");
    REFUSED(ranks, good, landing, bad.request_id = 0, BT_ERR_INVALID_ARGUMENT, "request_id");
    REFUSED(ranks, good, landing, bad.request_id++, BT_ERR_INVALID_ARGUMENT, "landing.request_id");
    REFUSED(ranks, good, landing, bad.prompt_tokens = 0, BT_ERR_INVALID_ARGUMENT, "prompt_tokens");
    REFUSED(ranks, good, landing, bad.prompt_tokens = UINT32_MAX, BT_ERR_INVALID_ARGUMENT,
            "prompt_tokens");
    REFUSED(ranks, good, landing, bad.cached_tokens = 65, BT_ERR_INVALID_ARGUMENT, "cached_tokens");
    REFUSED(ranks, good, landing, bad.cached_tokens = 192, BT_ERR_INVALID_ARGUMENT,
            "cached_tokens");
    REFUSED(ranks, good, landing, bad.landing = NULL, BT_ERR_INVALID_ARGUMENT, "landing");
    REFUSED(ranks, good, landing, bad_landing.endpoint = NULL, BT_ERR_INVALID_ARGUMENT,
            "landing.endpoint");
    REFUSED(ranks, good, landing, bad_landing.endpoint = &endpoint, BT_ERR_INVALID_ARGUMENT,
            "endpoint.incarnation");
    REFUSED(ranks, good, landing, bad_landing.epoch = 0, BT_ERR_INVALID_ARGUMENT, "landing.epoch");
    REFUSED(ranks, good, landing, bad_landing.lease_ms = 1, BT_ERR_INVALID_ARGUMENT, "lease_ms");
    REFUSED(ranks, good, landing, bad_landing.n_runs = 0, BT_ERR_INVALID_ARGUMENT, "landing.runs");
    REFUSED(ranks, good, landing, bad.n_source = 0, BT_ERR_INVALID_ARGUMENT, "source");
    REFUSED(ranks, good, landing, bad.source = outside_list, BT_ERR_INVALID_ARGUMENT, "source[0]");
    REFUSED(ranks, good, landing, (bad.source = twice, bad.n_source = 2), BT_ERR_INVALID_ARGUMENT,
            "comes twice");
}

static void refuse_connect(struct ranks *ranks)
{
    Baton__V1__RankConnectRequest request = BATON__V1__RANK_CONNECT_REQUEST__INIT;
    Baton__V1__KvEndpoint garbage = BATON__V1__KV_ENDPOINT__INIT;
    Baton__V1__KvEndpoint *list[] = {&garbage};
    request.decode = list;
    request.n_decode = 1;
    assert_int_equal(cluster_call(&ranks->cluster, ranks->to_rank[1],
                                  "baton.v1.PrefillRank/Connect", &request.base, NULL, NULL),
                     BT_ERR_STALE);
    request.group_incarnation = ranks->incarnation;
    assert_int_equal(cluster_call(&ranks->cluster, ranks->to_rank[1],
                                  "baton.v1.PrefillRank/Connect", &request.base, NULL, NULL),
                     BT_OK); /* and logs it */
}

/* One serial once; CANCEL gives the outcome; a probe writes its share without any computing. */
static void push_for_real(struct ranks *ranks, Baton__V1__RankPushRequest *request)
{
    struct push_call first, second;
    struct cluster *cluster = &ranks->cluster;
    struct bt_rpc_pending *pending = push_send(ranks, request, &first);
    cluster_until(cluster, first.opened);
    expect_refused(ranks, request, BT_ERR_ALREADY_EXISTS, "serial");
    bt_rpc_pending_cancel(pending);
    cluster_until(cluster, first.ended);
    assert_int_equal(first.status, BT_OK);
    assert_string_equal(first.outcome, "cancelled");
    request->probe = true;
    push_send(ranks, request, &second);
    cluster_until(cluster, second.ended);
    assert_int_equal(second.status, BT_OK);
    assert_string_equal(second.outcome, "ok");
    struct bt_kv_layout layout = bt_model_kv_layout(cluster->model, BT_F32);
    /* Of pages 0, 1 and 2 with 150 tokens the second. */
    assert_int_equal(second.bytes, 6 * 64 * bt_kv_token_bytes(&layout));
    request->landing->epoch++;
    push_send(ranks, request, &second); /* a landing that is not there */
    cluster_until(cluster, second.ended);
    assert_int_equal(second.status, BT_OK);
    assert_string_equal(second.outcome, "stale");
    request->landing->epoch--;
}

static void test_hostile(void **state)
{
    (void)state;
    struct ranks ranks;
    struct attempt attempt, after;
    ranks_open(&ranks, &(struct ranks_options){.size = 2});
    attempt_init(&attempt, 1, prompts[0], 150, 2);
    assert_int_equal(cluster_reserve(&ranks.cluster, &attempt), BT_OK);
    Baton__V1__PageRun run = BATON__V1__PAGE_RUN__INIT;
    run.first = 7;
    run.count = 3;
    Baton__V1__PageRun *source[] = {&run};
    Baton__V1__RankPushRequest good = BATON__V1__RANK_PUSH_REQUEST__INIT;
    good.group_incarnation = ranks.incarnation;
    good.serial = 1000;
    good.request_id = 1;
    good.prompt_tokens = 150;
    good.landing = attempt.reserved->landing;
    good.source = source;
    good.n_source = 1;
    good.layerwise = true;
    refuse_all(&ranks, &good);
    refuse_connect(&ranks);
    push_for_real(&ranks, &good);
    expect_no_push(&ranks);
    assert_int_equal(cluster_cancel(&ranks.cluster, 1, 0), BT_OK);
    struct fake_prefill leader = {.incarnation = ranks.incarnation};
    assert_int_equal(cluster_quiesced(&ranks.cluster, &leader, 1, attempt.epoch, false), BT_OK);
    start(&ranks, &after, 2, 1, 300);
    finish(&ranks, &after);
    ranks_close(&ranks);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layouts),       cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_stop_rank_0),   cmocka_unit_test(test_stop_follower),
        cmocka_unit_test(test_lost_follower), cmocka_unit_test(test_lost_idle),
        cmocka_unit_test(test_lost_rank_0),   cmocka_unit_test(test_stopped_follower),
        cmocka_unit_test(test_hostile),
    };
    if (argc > 1) {
        cmocka_set_test_filter(argv[1]);
    }
    fill_prompts();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
