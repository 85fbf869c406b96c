/* Two ranks in this process, a thread each: rank 0's engine, or a rank 0 that says anything, and
 * the compute thread of rank 1. */
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/base/clock.h"
#include "common/base/random.h"
#include "kvtransfer/checksum.h"
#include "kvtransfer/sim/sim.h"
#include "kvtransfer/target.h"
#include "prefill-node/agreement.h"
#include "prefill-node/compute.h"
#include "prefill-node/follower_compute.h"

#define POOL_PAGES 64
#define BUDGET     96
#define SHARE      3
#define JOBS       6
#define JOB_PAGES  4
#define MAX_TOKENS 1024
#define WAIT_NS    (60 * BT_NS_PER_S)

struct side {
    struct bt_rank_options options;
    struct bt_rank *rank;
    struct bt_model *model;
    struct kvt_source *source;
    struct kvt_link *link;
};

struct pair {
    char dir[64], endpoint[96], secret[96];
    struct side sides[2];
    struct bt_kv_layout layout;
    struct kvt_sim *sim;
    struct kvt_target *target;
    struct pf_follower_compute *follower;
    uint32_t pushes_taken[2];
};

static void *join(void *argument)
{
    struct side *side = argument;
    struct bt_error error = {0};
    if (bt_rank_join(&side->options, TINY_MODEL, &error, &side->rank) != BT_OK) {
        fprintf(stderr, "join: %s\n", error.text);
        abort();
    }
    return NULL;
}

static void meet(struct pair *pair)
{
    pthread_t thread;
    snprintf(pair->dir, sizeof(pair->dir), "/tmp/baton-pair-XXXXXX");
    assert_non_null(mkdtemp(pair->dir));
    snprintf(pair->endpoint, sizeof(pair->endpoint), "ipc://%s/meet", pair->dir);
    snprintf(pair->secret, sizeof(pair->secret), "%s/secret", pair->dir);
    FILE *file = fopen(pair->secret, "w");
    assert_non_null(file);
    fputs("a secret of the tests\n", file);
    fclose(file);
    assert_int_equal(chmod(pair->secret, 0600), 0);
    for (uint32_t rank = 0; rank < 2; rank++) {
        pair->sides[rank].options = (struct bt_rank_options){
            .rank = rank,
            .size = 2,
            .tensor_parallel = true,
            .expert_parallel = true,
            .endpoint = pair->endpoint,
            .secret_file = pair->secret,
            .connect_timeout_ns = WAIT_NS,
            .wait_timeout_ns = WAIT_NS,
            .max_rows = BUDGET,
            .dispatch = BT_DISPATCH_THROUGHPUT,
            .placement = BT_PLACEMENT_ROUND_ROBIN,
        };
    }
    assert_int_equal(pthread_create(&thread, NULL, join, &pair->sides[1]), 0);
    join(&pair->sides[0]);
    pthread_join(thread, NULL);
    unlink(pair->endpoint + strlen("ipc://"));
    unlink(pair->secret);
    rmdir(pair->dir);
}

static struct kvt_transport *transport(struct pair *pair)
{
    struct kvt_transport *result;
    assert_int_equal(kvt_sim_transport_create(pair->sim, NULL, &result), BT_OK);
    return result;
}

static void open_side(struct pair *pair, struct side *side)
{
    struct bt_error error = {0};
    struct bt_model_options load = {.dir = TINY_MODEL};
    bt_rank_part(side->rank, &load);
    if (bt_model_load(&load, &error, &side->model) != BT_OK) {
        fail_msg("%s", error.text);
    }
    pair->layout = bt_model_kv_layout(side->model, BT_F32);
    const struct kvt_source_options source = {.given = transport(pair),
                                              .layout = pair->layout,
                                              .pool_pages = POOL_PAGES,
                                              .incarnation = 5,
                                              .writer = side->options.rank,
                                              .checksum = true,
                                              .max_pushes = 2 * JOBS};
    assert_int_equal(kvt_source_create(&source, &error, &side->source), BT_OK);
}

static void link_side(struct pair *pair, struct side *side)
{
    struct bt_error error;
    struct kvt_remote remote = {.incarnation = 7, .pool_pages = POOL_PAGES};
    kvt_target_address(pair->target, &remote.address, &remote.address_size);
    kvt_target_key(pair->target, &remote.key, &remote.key_size);
    remote.pool_base = (uint64_t)(uintptr_t)kvt_target_pool(pair->target);
    assert_int_equal(kvt_source_connect(side->source, &remote, &error, &side->link), BT_OK);
}

/* Where no engine starts the rank. */
static void *start_rank(void *argument)
{
    struct side *side = argument;
    struct bt_error error = {0};
    if (bt_rank_start(side->rank, side->model, NULL, &error) != BT_OK) {
        fprintf(stderr, "start: %s\n", error.text);
        abort();
    }
    return NULL;
}

/* Returns when rank 0 has started, too. */
static void start_follower(struct pair *pair)
{
    struct side *side = &pair->sides[1];
    struct bt_error error;
    const struct pf_follower_compute_options options = {
        .pass = {.model = side->model,
                 .rank = side->rank,
                 .layout = pair->layout,
                 .kv_pool = kvt_source_pool(side->source),
                 .pool_pages = POOL_PAGES,
                 .max_chunks = SHARE,
                 .max_rows = BUDGET},
        .limits = {.max_chunks = SHARE,
                   .max_rows = BUDGET,
                   .max_tokens = MAX_TOKENS,
                   .pool_pages = POOL_PAGES,
                   .vocab_size = side->model->config.vocab_size},
        .max_pushes = JOBS,
    };
    assert_int_equal(pf_follower_compute_create(&options, &error, &pair->follower), BT_OK);
    assert_int_equal(pf_follower_compute_start(pair->follower, &error), BT_OK);
}

static void pair_open(struct pair *pair)
{
    struct bt_error error;
    *pair = (struct pair){0};
    meet(pair);
    pair->sim = kvt_sim_create(3);
    open_side(pair, &pair->sides[0]);
    open_side(pair, &pair->sides[1]);
    const struct kvt_target_options target = {
        .given = transport(pair), .layout = pair->layout, .pool_pages = POOL_PAGES, .max_jobs = 4};
    assert_int_equal(kvt_target_create(&target, &error, &pair->target), BT_OK);
    link_side(pair, &pair->sides[0]);
    link_side(pair, &pair->sides[1]);
}

static void pair_close(struct pair *pair)
{
    pf_follower_compute_destroy(pair->follower);
    for (uint32_t rank = 0; rank < 2; rank++) {
        struct side *side = &pair->sides[rank];
        kvt_link_release(side->link);
        kvt_source_destroy(side->source);
        bt_rank_leave(side->rank);
        bt_model_destroy(side->model);
    }
    kvt_target_destroy(pair->target);
    kvt_sim_destroy(pair->sim);
}

static void await(struct bt_queue *queue, void *ret_item)
{
    struct pollfd poller = {.fd = bt_queue_fd(queue), .events = POLLIN};
    assert_int_equal(poll(&poller, 1, 60000), 1);
    assert_true(bt_queue_try_pop(queue, ret_item));
}

/* ---- a rank 0 that means it ---- */

struct subject {
    uint32_t prompt[JOB_PAGES * BT_PAGE_TOKENS], pages[JOB_PAGES], target[JOB_PAGES];
    struct bt_sampling sampling;
    struct pf_job job;
    struct kvt_push *pushes[2];
    uint64_t checksum;
    bool cancelled, closed; /* its push on rank 1 */
};

static void subject_open(struct pair *pair, struct subject *subject, uint32_t index)
{
    struct bt_error error;
    uint32_t tokens = 40 + index * 35;
    *subject = (struct subject){0};
    for (uint32_t i = 0; i < tokens; i++) {
        subject->prompt[i] = 2 + (uint32_t)(bt_random_u64(21, index, i) % 2000);
    }
    for (uint32_t i = 0; i < JOB_PAGES; i++) {
        subject->pages[i] = i * JOBS + index;
        subject->target[i] = POOL_PAGES - 1 - index * JOB_PAGES - i;
    }
    subject->sampling = (struct bt_sampling){
        .temperature = 0, .top_p = 1, .repetition_penalty = 1, .logprobs = -1, .max_tokens = 2};
    for (uint32_t rank = 0; rank < 2; rank++) {
        const struct kvt_push_spec spec = {
            .request = index + 1,
            .epoch = index + 100,
            .link = pair->sides[rank].link,
            .source_pages = subject->pages,
            .target_pages = subject->target,
            .prompt_tokens = tokens,
            .layerwise = true,
            .share = {rank, 2},
            .user = subject,
        };
        assert_int_equal(
            kvt_push_open(pair->sides[rank].source, &spec, &error, &subject->pushes[rank]), BT_OK);
        kvt_push_lease(subject->pushes[rank], BT_NEVER_NS - 1);
    }
    subject->job = (struct pf_job){
        .serial = index + 1,
        .tokens = subject->prompt,
        .token_count = tokens,
        .pages = subject->pages,
        .sampling = &subject->sampling,
        .push = subject->pushes[0],
        .arrival_ns = index,
        .user = subject,
    };
    const struct pf_follower_push push = {index + 1, subject->pushes[1], subject->pages, tokens};
    assert_int_equal(pf_follower_compute_add(pair->follower, &push, &error), BT_OK);
    assert_int_equal(pf_follower_compute_add(pair->follower, &push, &error), BT_ERR_ALREADY_EXISTS);
}

static void released(struct pair *pair, struct subject *subject)
{
    if (!pf_follower_compute_remove(pair->follower, subject->job.serial)) {
        struct pf_follower_event event;
        await(pf_follower_compute_events(pair->follower), &event);
        assert_int_equal(event.kind, PF_FOLLOWER_RELEASED);
        assert_true(event.serial == subject->job.serial);
    }
    assert_true(pf_follower_compute_remove(pair->follower, subject->job.serial));
    kvt_push_close(subject->pushes[1]);
}

static void take_push(struct pair *pair, uint32_t rank)
{
    struct kvt_push_event event;
    await(kvt_source_events(pair->sides[rank].source), &event);
    struct subject *subject = event.user;
    bool cancelled = rank == 1 && subject->cancelled;
    assert_true(event.status == BT_OK || (cancelled && event.status == BT_ERR_CANCELLED));
    subject->checksum += event.checksum;
    if (rank == 1) {
        released(pair, subject);
        subject->closed = true;
    }
    pair->pushes_taken[rank]++;
}

/* In the midst of a pass every third loses its push, and is let go of at once. */
static void take_jobs(struct pair *pair, struct pf_compute *compute, struct subject *subjects)
{
    for (uint32_t back = 0; back < JOBS;) {
        struct pf_compute_event event;
        await(pf_compute_events(compute), &event);
        struct subject *subject = event.job->user;
        if (event.kind == PF_COMPUTE_STARTED && (subject - subjects) % 3 == 2 && !subject->closed) {
            subject->cancelled = true;
            kvt_push_cancel(subject->pushes[1]);
            while (!subject->closed) {
                take_push(pair, 1);
            }
        }
        back += event.kind == PF_COMPUTE_COMPUTED;
        assert_int_not_equal(event.kind, PF_COMPUTE_CANCELLED);
    }
}

struct engine_start {
    struct pair *pair;
    struct pf_engine *engine;
};

/* Returns when rank 1 has started, too. */
static void *engine_open(void *argument)
{
    struct engine_start *start = argument;
    struct side *side = &start->pair->sides[0];
    struct bt_error error = {0};
    const struct pf_engine_options options = {
        .model = side->model,
        .rank = side->rank,
        .heartbeat_ns = 20 * BT_NS_PER_MS,
        .layout = start->pair->layout,
        .kv_pool = kvt_source_pool(side->source),
        .pool_pages = POOL_PAGES,
        .limits = {BUDGET, SHARE, BT_PROMPT_AGEING_TOKENS_PER_S},
        .max_jobs = JOBS,
        .max_tokens = MAX_TOKENS,
    };
    if (pf_engine_create(&options, &error, &start->engine) != BT_OK) {
        fprintf(stderr, "engine: %s\n", error.text);
        abort();
    }
    return NULL;
}

static void test_both_push_what_is_planned(void **state)
{
    (void)state;
    static struct pair pair;
    static struct subject subjects[JOBS];
    struct pf_compute *compute;
    pthread_t thread;
    struct pf_follower_event last;
    struct bt_error error = {0};
    pair_open(&pair);
    struct engine_start start = {.pair = &pair};
    assert_int_equal(pthread_create(&thread, NULL, engine_open, &start), 0);
    start_follower(&pair);
    pthread_join(thread, NULL);
    struct pf_engine *engine = start.engine;
    assert_int_equal(pf_compute_create(engine, JOBS, &error, &compute), BT_OK);
    for (uint32_t i = 0; i < JOBS; i++) {
        subject_open(&pair, &subjects[i], i);
        pf_compute_add(compute, &subjects[i].job);
    }
    take_jobs(&pair, compute, subjects);
    for (uint32_t rank = 0; rank < 2; rank++) {
        while (pair.pushes_taken[rank] < JOBS) {
            take_push(&pair, rank);
        }
    }
    for (uint32_t i = 0; i < JOBS; i++) {
        uint64_t landed =
            kvt_checksum_sequence(&pair.layout, kvt_target_pool(pair.target), POOL_PAGES,
                                  subjects[i].target, subjects[i].job.token_count);
        assert_true(subjects[i].cancelled || landed == subjects[i].checksum);
        kvt_push_close(subjects[i].pushes[0]);
    }
    /* The pools of both ranks are the same, bit by bit. */
    for (uint32_t i = 0; i < JOBS; i++) {
        uint64_t sums[2];
        for (uint32_t rank = 0; rank < 2; rank++) {
            sums[rank] =
                kvt_checksum_sequence(&pair.layout, kvt_source_pool(pair.sides[rank].source),
                                      POOL_PAGES, subjects[i].pages, subjects[i].job.token_count);
        }
        assert_true(sums[0] == sums[1]);
    }
    pf_follower_compute_stop(pair.follower);
    struct pf_compute_event stop;
    await(pf_compute_events(compute), &stop);
    assert_int_equal(stop.kind, PF_COMPUTE_STOP);
    pf_compute_destroy(compute);
    await(pf_follower_compute_events(pair.follower), &last);
    assert_int_equal(last.kind, PF_FOLLOWER_LEFT);
    pf_engine_destroy(engine);
    pair_close(&pair);
}

/* The test is rank 1: hears of rank 0 though that has nothing to do, sees its plan, and leaves it
 * alone with that. */
static void test_rank_0_beats_and_gives_jobs_back(void **state)
{
    (void)state;
    static struct pair pair;
    static struct subject subject, late;
    struct pf_compute *compute;
    pthread_t thread;
    struct pf_compute_event event;
    struct bt_error error = {0};
    struct pf_intent all = {0}, mine = {0};
    pair_open(&pair);
    struct engine_start start = {.pair = &pair};
    assert_int_equal(pthread_create(&thread, NULL, engine_open, &start), 0);
    start_rank(&pair.sides[1]);
    pthread_join(thread, NULL);
    struct pf_engine *engine = start.engine;
    assert_int_equal(pf_compute_create(engine, JOBS, &error, &compute), BT_OK);
    for (uint32_t i = 0; i < 10; i++) {
        assert_int_equal(pf_agree(pair.sides[1].rank, &mine, &error, &all), BT_OK);
        assert_int_equal(all.plan_words, 0);
        assert_false(all.leave || all.stop);
    }
    subject.prompt[0] = late.prompt[0] = 5;
    subject.job = late.job = (struct pf_job){
        .serial = 1, .tokens = subject.prompt, .token_count = 1, .pages = subject.pages};
    late.job.serial = 2;
    pf_compute_add(compute, &subject.job);
    while (all.plan_words == 0) {
        assert_int_equal(pf_agree(pair.sides[1].rank, &mine, &error, &all), BT_OK);
    }
    assert_int_equal(all.plan_words, 1 + 5 + 1 + 1); /* of one page and one token */
    bt_rank_leave(pair.sides[1].rank);
    pair.sides[1].rank = NULL;
    await(pf_compute_events(compute), &event);
    assert_int_equal(event.kind, PF_COMPUTE_STARTED);
    await(pf_compute_events(compute), &event);
    assert_int_equal(event.kind, PF_COMPUTE_FAILED);
    assert_int_equal(event.error->status, BT_ERR_PEER_LOST);
    await(pf_compute_events(compute), &event);
    assert_int_equal(event.kind, PF_COMPUTE_CANCELLED);
    assert_ptr_equal(event.job, &subject.job);
    pf_compute_add(compute, &late.job);
    await(pf_compute_events(compute), &event);
    assert_int_equal(event.kind, PF_COMPUTE_CANCELLED);
    assert_ptr_equal(event.job, &late.job);
    pf_compute_destroy(compute);
    pf_engine_destroy(engine);
    pair_close(&pair);
}

/* ---- a rank 0 that says anything ---- */

#define WORDS_MAX 1024

struct lie {
    uint32_t words[WORDS_MAX];
    uint32_t agreed, sent; /* words; sent 0: nothing */
    const char *says;      /* the follower */
    uint32_t cached;       /* tokens, of the push */
};

static void tell(struct pair *pair, struct lie *lie)
{
    struct pf_follower_event event;
    struct pf_intent mine = {.plan_words = lie->agreed}, all;
    struct bt_error error = {0};
    struct bt_rank *rank = pair->sides[0].rank;
    assert_int_equal(pf_agree(rank, &mine, &error, &all), BT_OK);
    if (lie->sent > 0) {
        bt_group_broadcast(bt_rank_group(rank), 0, lie->words, lie->sent * sizeof(uint32_t), NULL);
    }
    await(pf_follower_compute_events(pair->follower), &event);
    assert_int_equal(event.kind, PF_FOLLOWER_FAILED);
    assert_int_equal(event.error->status, BT_ERR_PROTOCOL);
    if (!strstr(event.error->text, lie->says)) {
        fail_msg("'%s' wanted: %s", lie->says, event.error->text);
    }
}

/* One plan of one push of 100 tokens in pages 3 and 4, but for what `change` breaks. */
static void plan_fill(struct lie *lie, struct pf_plan_chunk change)
{
    static uint32_t pages[2] = {3, 4}, tokens[BUDGET];
    static const struct pf_plan_limits limits = {.max_chunks = SHARE,
                                                 .max_rows = BUDGET,
                                                 .max_tokens = MAX_TOKENS,
                                                 .pool_pages = POOL_PAGES};
    change.serial = 9;
    change.pages = change.pages ? change.pages : pages;
    change.tokens = tokens;
    lie->agreed = lie->sent = pf_plan_encode(&change, 1, &limits, lie->words);
}

static void expect_lie(struct lie *lie)
{
    static struct pair pair;
    static const uint32_t source[2] = {3, 4}, target[2] = {0, 1};
    struct bt_error error;
    struct kvt_push_event ended;
    pthread_t thread;
    pair_open(&pair);
    assert_int_equal(pthread_create(&thread, NULL, start_rank, &pair.sides[0]), 0);
    start_follower(&pair);
    pthread_join(thread, NULL);
    const struct kvt_push_spec spec = {
        .request = 1,
        .epoch = 1,
        .link = pair.sides[1].link,
        .source_pages = source,
        .target_pages = target,
        .prompt_tokens = 100,
        .share = {1, 2},
    };
    struct pf_follower_push push = {9, NULL, source, 100, lie->cached};
    assert_int_equal(kvt_push_open(pair.sides[1].source, &spec, &error, &push.push), BT_OK);
    assert_int_equal(pf_follower_compute_add(pair.follower, &push, &error), BT_OK);
    tell(&pair, lie);
    kvt_push_cancel(push.push);
    await(kvt_source_events(pair.sides[1].source), &ended);
    assert_true(pf_follower_compute_remove(pair.follower, 9));
    kvt_push_close(push.push);
    pair_close(&pair);
}

static void test_lies_end_the_group(void **state)
{
    (void)state;
    static const uint32_t others[2] = {4, 3};
    static struct lie lie;
    lie = (struct lie){.words = {7, 7, 7}, .agreed = 3, .sent = 3, .says = "plan: 7 chunks"};
    expect_lie(&lie);
    lie = (struct lie){.agreed = 1u << 30, .says = "words"};
    expect_lie(&lie);
    lie = (struct lie){.agreed = 40, .sent = 30, .says = "shorter"};
    expect_lie(&lie);
    lie = (struct lie){.agreed = 30, .sent = 40, .says = "longer"};
    expect_lie(&lie);
    const struct pf_plan_chunk changes[] = {
        {.start = 10, .rows = 20},     /* does not go on where it was */
        {.rows = 60, .is_last = true}, /* the prompt does not end there */
        {.rows = 70, .pages = others}, /* other pages */
        {.rows = 20},                  /* computes what is cached */
    };
    for (size_t i = 0; i < sizeof(changes) / sizeof(changes[0]); i++) {
        plan_fill(&lie, changes[i]);
        lie.says = "do not fit its push";
        lie.cached = i == 3 ? 64 : 0;
        expect_lie(&lie);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_both_push_what_is_planned),
        cmocka_unit_test(test_rank_0_beats_and_gives_jobs_back),
        cmocka_unit_test(test_lies_end_the_group),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
