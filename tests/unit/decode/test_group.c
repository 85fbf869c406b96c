/* Decode workers of several ranks, processes of baton-decode each: tokens do not depend on the
 * ranks, which live as one. */
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
#include "tests/unit/decode/group.h"

#define REQUESTS   14
#define MAX_PROMPT 150

static uint32_t prompts[REQUESTS][MAX_PROMPT];
static struct attempt expected[REQUESTS]; /* as one rank gives them */

/* Prompts, lengths and ways of sampling of all kinds. */
static void subject_init(struct attempt *attempt, uint32_t i)
{
    uint32_t prompt_tokens = 1 + (uint32_t)(bt_random_u64(1, i, 0) % MAX_PROMPT);
    for (uint32_t k = 0; k < prompt_tokens; k++) {
        prompts[i][k] = 2 + (uint32_t)(bt_random_u64(2, i, k) % 2000);
    }
    attempt_init(attempt, i + 1, prompts[i], prompt_tokens, 20 + 5 * i);
    attempt->sampling.temperature = i % 3 == 0 ? 0 : 0.8f;
    attempt->sampling.top_p = i % 2 ? 0.95f : 1;
    attempt->sampling.repetition_penalty = i % 5 == 2 ? 1.2f : 1;
}

static int expect_of_one_rank(void **state)
{
    (void)state;
    struct cluster cluster;
    struct pf_worker_options prefill = cluster_prefill_options();
    struct dc_worker_options decode = cluster_decode_options();
    cluster_open(&cluster, &prefill, &decode);
    for (uint32_t i = 0; i < REQUESTS; i++) {
        subject_init(&expected[i], i);
        assert_int_equal(cluster_reserve(&cluster, &expected[i]), BT_OK);
        cluster_run(&cluster, &expected[i]);
        cluster_until(&cluster, expected[i].run_ended && expected[i].finish != 0);
        assert_int_equal(expected[i].finish, BATON__V1__FINISH_REASON__FINISH_LENGTH);
    }
    cluster_close(&cluster);
    return 0;
}

static void expect_prefix(const struct attempt *attempt, uint32_t i)
{
    assert_true(attempt->token_count <= expected[i].token_count);
    assert_memory_equal(attempt->tokens, expected[i].tokens,
                        attempt->token_count * sizeof(uint32_t));
    assert_memory_equal(attempt->logprobs, expected[i].logprobs,
                        attempt->token_count * sizeof(float));
}

static void start(struct group *group, uint32_t rank, struct attempt *attempt, uint32_t i)
{
    subject_init(attempt, i);
    assert_int_equal(cluster_reserve(&group->ranks[rank].cluster, attempt), BT_OK);
    cluster_run(&group->ranks[rank].cluster, attempt);
}

/* ------------------------------------------------------------------ tokens */

/* One rank alone, then others that join, leave, idle and are cancelled beside it. */
static void tokens(uint32_t size, const char *const *flags)
{
    struct group group;
    static struct attempt attempts[REQUESTS];
    group_open(&group, size, flags);
    uint32_t last = size - 1;
    start(&group, last, &attempts[REQUESTS - 1], REQUESTS - 1);
    group_until(&group, attempts[REQUESTS - 1].token_count >= 3);
    for (uint32_t i = 0; i < 5; i++) { /* the first rank alone has several */
        start(&group, 0, &attempts[i], i);
    }
    group_until(&group, attempts[4].token_count >= 4);
    assert_int_equal(cluster_cancel(&group.ranks[0].cluster, 5, 0), BT_OK);
    for (uint32_t i = 5; i < REQUESTS - 1; i++) { /* and then all have some */
        start(&group, i % size, &attempts[i], i);
    }
    group_until(&group, attempts[9].token_count >= 2);
    assert_int_equal(cluster_cancel(&group.ranks[9 % size].cluster, 10, 0), BT_OK);
    for (uint32_t i = 0; i < REQUESTS; i++) {
        group_until(&group, attempts[i].finish != 0);
        expect_prefix(&attempts[i], i);
        if (attempts[i].finish == BATON__V1__FINISH_REASON__FINISH_LENGTH) {
            assert_int_equal(attempts[i].token_count, expected[i].token_count);
        } else {
            assert_true(i == 4 || i == 9);
            assert_int_equal(attempts[i].finish, BATON__V1__FINISH_REASON__FINISH_CANCELLED);
        }
    }
    for (uint32_t r = 0; r < size; r++) {
        const struct rank *rank = &group.ranks[r];
        assert_int_equal(rank->member.rank, r);
        assert_int_equal(rank->member.size, size);
        assert_true(rank->member.incarnation == group.ranks[0].member.incarnation);
        assert_string_equal(rank->member_name, "decode-g");
        assert_int_equal((int)group_metric(&group, r, "baton_kv_pages", "state=\"free\""), 128);
        /* Agreed on by all: 5 at first, then what the last steps had. */
        assert_true(group_metric(&group, r, "baton_decode_rows_agreed", "") >=
                    group_metric(&group, r, "baton_decode_rows", ""));
    }
    group_close(&group);
}

static void test_tokens_of_two(void **state)
{
    (void)state;
    tokens(2, (const char *[]){NULL});
}

static void test_tokens_of_four(void **state)
{
    (void)state;
    tokens(4, (const char *[]){NULL});
}

static void test_tokens_contiguous(void **state)
{
    (void)state;
    tokens(4, (const char *[]){"--expert-placement", "contiguous", NULL});
}

static void test_tokens_balanced(void **state)
{
    (void)state;
    tokens(2, (const char *[]){"--expert-placement", "balanced", "--redundant-experts", "8",
                               "--rebalance-interval", "50ms", NULL});
}

/* ------------------------------------------------------------------ replay */

/* Cut at every kind of point, on ranks that have other work beside. */
static void replays(uint32_t size)
{
    struct group group;
    static struct attempt attempts[2 * REQUESTS];
    group_open(&group, size, (const char *[]){NULL});
    for (uint32_t n = 0; n < 2 * REQUESTS; n++) {
        uint32_t i = n % REQUESTS, most = expected[i].token_count - 1;
        uint32_t edge = BT_PAGE_TOKENS - expected[i].prompt_tokens % BT_PAGE_TOKENS;
        const uint32_t cuts[] = {1, most, edge, edge + 1, most / 2, 0};
        uint32_t cut = cuts[(n + n / REQUESTS) % 6];
        subject_init(&attempts[n], i);
        attempts[n].request = n + 1; /* `seed` stays */
        attempt_replay(&attempts[n], &expected[i], cut <= most ? cut : 1 + n % most);
        assert_int_equal(cluster_reserve(&group.ranks[n % size].cluster, &attempts[n]), BT_OK);
        cluster_run(&group.ranks[n % size].cluster, &attempts[n]);
    }
    for (uint32_t n = 0; n < 2 * REQUESTS; n++) {
        group_until(&group, attempts[n].finish != 0);
        expect_prefix(&attempts[n], n % REQUESTS);
        assert_int_equal(attempts[n].finish, BATON__V1__FINISH_REASON__FINISH_LENGTH);
        assert_int_equal(attempts[n].token_count, expected[n % REQUESTS].token_count);
    }
    group_close(&group);
}

static void test_replays_of_two(void **state)
{
    (void)state;
    replays(2);
}

static void test_replays_of_four(void **state)
{
    (void)state;
    replays(4);
}

/* ------------------------------------------------------------------ rest and wake */

static double heartbeats(struct group *group)
{
    double sum = 0;
    for (uint32_t r = 0; r < group->size; r++) {
        sum += group_metric(group, r, "baton_group_heartbeats_total", "");
    }
    return sum;
}

static double wakes_sent(struct group *group, uint32_t rank)
{
    return group_metric(group, rank, "baton_group_wakes_total", "sent");
}

/* A heartbeat would come in twenty minutes: whatever happens, happens because of a wake. */
static void test_work_ends_the_rest_of_all(void **state)
{
    (void)state;
    static const char *const flags[] = {"--group-timeout", "1h", "--group-heartbeat", "1h", NULL};
    static struct attempt attempts[32];
    struct group group;
    uint32_t n = 0;
    group_open(&group, 4, flags);
    for (uint32_t i = 0; i < 4; i++) {
        uint32_t rank = (i * 2 + 1) % 4;
        /* One that comes while the others have not gone to rest yet wakes nobody. */
        for (double before = wakes_sent(&group, rank); wakes_sent(&group, rank) < before + 3; n++) {
            assert_true(n < 32);
            subject_init(&attempts[n], i);
            attempts[n].request = n + 1; /* `seed` stays */
            assert_int_equal(cluster_reserve(&group.ranks[rank].cluster, &attempts[n]), BT_OK);
            cluster_run(&group.ranks[rank].cluster, &attempts[n]);
            group_until(&group, attempts[n].finish != 0);
            expect_prefix(&attempts[n], i);
            assert_int_equal(attempts[n].token_count, expected[i].token_count);
        }
    }
    assert_true(heartbeats(&group) == 0);
    for (uint32_t r = 0; r < 4; r++) {
        group_until(&group, group_metric(&group, r, "baton_group_wakes_total", "received") >= 1);
    }
    group_close(&group);
}

static double agreements(struct group *group, uint32_t rank)
{
    return group_metric(group, rank, "baton_group_agreements_total", "");
}

/* A call that is none of the group's, or of another, wakes nobody. */
static void test_wake_of_another_group(void **state)
{
    (void)state;
    static const char *const flags[] = {"--group-timeout", "1h", "--group-heartbeat", "1h", NULL};
    struct group group;
    group_open(&group, 2, flags);
    struct cluster *cluster = &group.ranks[1].cluster;
    group_until(&group, agreements(&group, 0) >= 1 && agreements(&group, 1) >= 1); /* the first */
    double before = agreements(&group, 1);
    Baton__V1__WakeRequest wake = BATON__V1__WAKE_REQUEST__INIT;
    wake.group_incarnation = group.ranks[0].member.incarnation + 1;
    assert_int_equal(
        cluster_call(cluster, cluster->to_decode, "baton.v1.Group/Wake", &wake.base, NULL, NULL),
        BT_ERR_STALE);
    wake.group_incarnation--;
    for (uint32_t r = 0; r < 2; r++) { /* both: an agreement, of which nothing comes */
        cluster = &group.ranks[r].cluster;
        assert_int_equal(cluster_call(cluster, cluster->to_decode, "baton.v1.Group/Wake",
                                      &wake.base, NULL, NULL),
                         BT_OK);
    }
    group_until(&group, agreements(&group, 1) > before);
    assert_true(agreements(&group, 1) == before + 1);
    group_close(&group);
}

/* ------------------------------------------------------------------ drain and end */

struct waiting {
    bool ended;
    enum bt_status status;
};

static void on_drained(void *context, enum bt_status status, const char *text,
                       const ProtobufCMessage *response)
{
    struct waiting *waiting = context;
    (void)text;
    (void)response;
    waiting->ended = true;
    waiting->status = status;
}

static void drain(struct group *group, uint32_t rank, struct waiting *waiting)
{
    Baton__V1__DrainRequest request = BATON__V1__DRAIN_REQUEST__INIT;
    struct bt_error error;
    const struct bt_rpc_call_spec spec = {
        .method = "baton.v1.Worker/Drain",
        .request = &request.base,
        .deadline_ns = BT_NEVER_NS,
        .on_end = on_drained,
        .context = waiting,
    };
    *waiting = (struct waiting){0};
    assert_int_equal(bt_rpc_client_call(group->ranks[rank].cluster.to_decode, &spec, &error, NULL),
                     BT_OK);
}

/* Nothing is left on the rank, whatever of it was heard yet: another one may be heard first. */
static bool is_empty(struct group *group, uint32_t rank)
{
    return group_metric(group, rank, "vllm:num_requests_running", "") == 0;
}

static bool all_drain(const struct group *group)
{
    bool all = true;
    for (uint32_t r = 0; r < group->size; r++) {
        all = all && group->ranks[r].draining;
    }
    return all;
}

static void test_one_that_drains_drains_all(void **state)
{
    (void)state;
    static struct attempt long_one, refused;
    struct group group;
    struct waiting waiting;
    group_open(&group, 4, (const char *[]){NULL});
    attempt_init(&long_one, 1, prompts[0], 10, 500);
    assert_int_equal(cluster_reserve(&group.ranks[2].cluster, &long_one), BT_OK);
    cluster_run(&group.ranks[2].cluster, &long_one);
    group_until(&group, long_one.token_count > 3);
    drain(&group, 1, &waiting);
    group_until(&group, all_drain(&group));
    for (uint32_t r = 0; r < 4; r++) {
        attempt_init(&refused, 50, prompts[0], 10, 10);
        assert_int_equal(cluster_reserve(&group.ranks[r].cluster, &refused), BT_ERR_UNAVAILABLE);
    }
    /* Rank 2 has something left, and goes on with it; nobody else has. */
    uint32_t before = long_one.token_count;
    group_until(&group, long_one.token_count > before + 20 || long_one.finish != 0);
    assert_true(!waiting.ended || is_empty(&group, 2));
    assert_int_equal(cluster_cancel(&group.ranks[2].cluster, 1, 0), BT_OK);
    group_until(&group, long_one.finish != 0);
    group_until(&group, waiting.ended);
    assert_int_equal(waiting.status, BT_OK);
    drain(&group, 3, &waiting); /* once more, elsewhere: at once */
    group_until(&group, waiting.ended);
    assert_int_equal(waiting.status, BT_OK);
    group_close(&group);
}

static enum bt_status resume(struct group *group, uint32_t rank)
{
    Baton__V1__ResumeRequest request = BATON__V1__RESUME_REQUEST__INIT;
    struct cluster *cluster = &group->ranks[rank].cluster;
    return cluster_call(cluster, cluster->to_decode, "baton.v1.Worker/Resume", &request.base, NULL,
                        NULL);
}

static bool any_drains(const struct group *group)
{
    bool any = false;
    for (uint32_t r = 0; r < group->size; r++) {
        any = any || group->ranks[r].draining;
    }
    return any;
}

/* A group drains, and is told to take requests again at another rank; then once more each. */
static void test_one_that_is_resumed_resumes_all(void **state)
{
    (void)state;
    static struct attempt long_one, next;
    struct group group;
    struct waiting waiting;
    group_open(&group, 3, (const char *[]){NULL});
    attempt_init(&long_one, 1, prompts[0], 10, MAX_TOKENS);
    assert_int_equal(cluster_reserve(&group.ranks[2].cluster, &long_one), BT_OK);
    cluster_run(&group.ranks[2].cluster, &long_one);
    group_until(&group, long_one.token_count > 3);
    drain(&group, 1, &waiting);
    group_until(&group, all_drain(&group));
    assert_int_equal(resume(&group, 0), BT_OK);
    group_until(&group, !any_drains(&group));
    group_until(&group, waiting.ended);
    assert_true(waiting.status == BT_ERR_CANCELLED || is_empty(&group, 2));
    for (uint32_t r = 0; r < 3; r++) {
        attempt_init(&next, 50 + r, prompts[0], 10, 10);
        assert_int_equal(cluster_reserve(&group.ranks[r].cluster, &next), BT_OK);
        cluster_run(&group.ranks[r].cluster, &next);
        group_until(&group, next.finish != 0 && next.run_ended);
        assert_int_equal(next.token_count, 10);
        attempt_finish(&next);
    }
    assert_int_equal(cluster_cancel(&group.ranks[2].cluster, 1, 0), BT_OK);
    drain(&group, 0, &waiting); /* the second time, all are empty */
    group_until(&group, waiting.ended);
    assert_int_equal(waiting.status, BT_OK);
    group_until(&group, all_drain(&group));
    assert_int_equal(resume(&group, 2), BT_OK);
    group_until(&group, !any_drains(&group));
    group_close(&group);
}

/* A long request on each rank, so that all of them step. */
static void keep_busy(struct group *group, struct attempt *attempts)
{
    for (uint32_t r = 0; r < group->size; r++) {
        attempt_init(&attempts[r], r + 1, prompts[r], 30, MAX_TOKENS);
        assert_int_equal(cluster_reserve(&group->ranks[r].cluster, &attempts[r]), BT_OK);
        cluster_run(&group->ranks[r].cluster, &attempts[r]);
    }
    for (uint32_t r = 0; r < group->size; r++) {
        group_until(group, attempts[r].token_count > 2);
    }
}

/* Its rank ended, and that was seen: with the entry, or with the stream. */
static void expect_over(struct group *group, uint32_t rank, const struct attempt *attempt)
{
    const struct cluster *cluster = &group->ranks[rank].cluster;
    group_until(group, attempt->finish != 0 || cluster->steps_ended);
    if (attempt->finish != 0 && attempt->finish != BATON__V1__FINISH_REASON__FINISH_LENGTH) {
        assert_int_equal(attempt->finish, BATON__V1__FINISH_REASON__FINISH_PREEMPTED);
    }
}

static void one_stops_all(uint32_t size, uint32_t stopped, bool busy)
{
    static struct attempt attempts[MAX_RANKS];
    struct group group;
    group_open(&group, size, (const char *[]){NULL});
    if (busy) {
        keep_busy(&group, attempts);
    }
    group_signal(&group, stopped, SIGTERM);
    group_ends(&group, size, 0);
    for (uint32_t r = 0; r < size; r++) {
        group_until(&group, group.ranks[r].deregistered);
        if (busy) {
            expect_over(&group, r, &attempts[r]);
        }
    }
    group_close(&group);
}

static void test_one_that_stops_stops_all(void **state)
{
    (void)state;
    one_stops_all(4, 2, true);
    one_stops_all(2, 0, false);
}

/* A rank that waits for others that never come ends when it is told to, not when it gives up. */
static void test_one_that_waits_alone_is_ended(void **state)
{
    (void)state;
    struct group group;
    for (int signal = 0; signal < 2; signal++) {
        group_open_one(&group);
        assert_int_equal(kill(group.ranks[0].pid, signal ? SIGINT : SIGTERM), 0);
        group_until(&group, group.ranks[0].exited);
        assert_true(WIFSIGNALED(group.ranks[0].exit_status));
        group_close(&group);
    }
}

/* ------------------------------------------------------------------ loss */

static void one_is_lost(uint32_t size, uint32_t lost, int signal, bool busy,
                        const char *const *flags)
{
    static struct attempt attempts[MAX_RANKS];
    struct group group;
    group_open(&group, size, flags);
    if (busy) {
        keep_busy(&group, attempts);
    }
    group_signal(&group, lost, signal);
    group_ends(&group, lost, 1);
    for (uint32_t r = 0; r < size; r++) {
        group_until(&group, group.ranks[r].deregistered || r == lost);
        if (busy && r != lost) {
            expect_over(&group, r, &attempts[r]);
        }
    }
    assert_false(group.ranks[lost].deregistered);
    group_close(&group);
}

static void test_one_that_is_killed_ends_all(void **state)
{
    (void)state;
    one_is_lost(4, 3, SIGKILL, true, (const char *[]){NULL});
    one_is_lost(2, 0, SIGKILL, false, (const char *[]){NULL});
}

static void test_one_that_hangs_ends_all(void **state)
{
    (void)state;
    static const char *const flags[] = {"--group-timeout", "10s", NULL};
    one_is_lost(4, 0, SIGSTOP, true, flags);
    one_is_lost(2, 1, SIGSTOP, false, flags);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_tokens_of_two, expect_of_one_rank),
        cmocka_unit_test_setup(test_tokens_of_four, expect_of_one_rank),
        cmocka_unit_test_setup(test_tokens_contiguous, expect_of_one_rank),
        cmocka_unit_test_setup(test_tokens_balanced, expect_of_one_rank),
        cmocka_unit_test_setup(test_replays_of_two, expect_of_one_rank),
        cmocka_unit_test_setup(test_replays_of_four, expect_of_one_rank),
        cmocka_unit_test_setup(test_work_ends_the_rest_of_all, expect_of_one_rank),
        cmocka_unit_test(test_wake_of_another_group),
        cmocka_unit_test(test_one_that_waits_alone_is_ended),
        cmocka_unit_test(test_one_that_drains_drains_all),
        cmocka_unit_test(test_one_that_is_resumed_resumes_all),
        cmocka_unit_test(test_one_that_stops_stops_all),
        cmocka_unit_test(test_one_that_is_killed_ends_all),
        cmocka_unit_test(test_one_that_hangs_ends_all),
    };
    if (argc > 1) {
        cmocka_set_test_filter(argv[1]);
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
