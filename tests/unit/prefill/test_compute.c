/* The prefill engine, by hand and behind its thread: chunks do not change a bit, and every job
 * comes back once. */
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/random.h"
#include "common/model/safetensors.h"
#include "prefill-node/compute.h"

#define POOL_PAGES 64
#define JOBS       12

struct bench {
    struct bt_model *model;
    struct bt_kv_layout layout;
    void *pool;
    struct pf_engine *engine;
};

static void bench_open(struct bench *bench, uint32_t budget, uint32_t share)
{
    struct bt_error error = {0};
    const struct bt_model_options load = {.dir = TINY_MODEL};
    if (bt_model_load(&load, &error, &bench->model) != BT_OK) {
        fail_msg("%s", error.text);
    }
    bench->layout = bt_model_kv_layout(bench->model, BT_F32);
    bench->pool = calloc(1, bt_kv_pool_bytes(&bench->layout, POOL_PAGES));
    const struct pf_engine_options options = {
        .model = bench->model,
        .layout = bench->layout,
        .kv_pool = bench->pool,
        .pool_pages = POOL_PAGES,
        .limits = {budget, share, BT_PROMPT_AGEING_TOKENS_PER_S},
        .max_jobs = JOBS,
    };
    assert_int_equal(pf_engine_create(&options, &error, &bench->engine), BT_OK);
}

static void bench_close(struct bench *bench)
{
    pf_engine_destroy(bench->engine);
    bt_model_destroy(bench->model);
    free(bench->pool);
}

/* Prompts of 1 to 250 tokens, four pages each. */
struct subject {
    uint32_t prompt[256], pages[4];
    struct bt_sampling sampling;
    struct pf_job job;
};

static void subject_init(struct subject *subject, uint32_t index)
{
    memset(subject, 0, sizeof(*subject));
    uint32_t tokens = 1 + (uint32_t)(bt_random_u64(7, index, 0) % 250);
    for (uint32_t i = 0; i < tokens; i++) {
        subject->prompt[i] = 2 + (uint32_t)(bt_random_u64(8, index, i) % 2000);
    }
    for (uint32_t i = 0; i < 4; i++) {
        subject->pages[i] = i * JOBS + index;
    }
    subject->sampling = (struct bt_sampling){.seed = index,
                                             .temperature = 1,
                                             .top_p = 1,
                                             .repetition_penalty = 1,
                                             .logprobs = 5,
                                             .max_tokens = 10};
    subject->job = (struct pf_job){
        .serial = index + 1,
        .tokens = subject->prompt,
        .token_count = tokens,
        .pages = subject->pages,
        .sampling = &subject->sampling,
        .arrival_ns = index,
        .user = subject,
    };
}

static void run_all(struct subject *subjects, uint32_t budget, uint32_t share)
{
    struct bench bench;
    bench_open(&bench, budget, share);
    for (uint32_t i = 0; i < JOBS; i++) {
        subject_init(&subjects[i], i);
        pf_engine_add(bench.engine, &subjects[i].job);
    }
    uint32_t started = 0, finished = 0;
    while (pf_engine_job_count(bench.engine) > 0) {
        struct pf_jobs jobs;
        pf_engine_begin(bench.engine, &jobs);
        started += jobs.count;
        pf_engine_run(bench.engine, &jobs);
        finished += jobs.count;
    }
    assert_int_equal(started, JOBS);
    assert_int_equal(finished, JOBS);
    bench_close(&bench);
}

static void test_chunks_change_no_bit(void **state)
{
    (void)state;
    static struct subject whole[JOBS], cut[JOBS];
    run_all(whole, 256, 1);
    run_all(cut, 37, 5);
    for (uint32_t i = 0; i < JOBS; i++) {
        assert_int_equal(whole[i].job.first.token, cut[i].job.first.token);
        assert_memory_equal(&whole[i].job.first.logprob, &cut[i].job.first.logprob, sizeof(float));
        assert_memory_equal(whole[i].job.first.top, cut[i].job.first.top,
                            5 * sizeof(cut[i].job.first.top[0]));
    }
}

static void test_first_token_is_the_golden_one(void **state)
{
    (void)state;
    struct bt_error error;
    struct bt_safetensors *file;
    assert_int_equal(
        bt_safetensors_open_file(TINY_MODEL "/golden/recall-150.safetensors", &error, &file),
        BT_OK);
    const struct bt_tensor *ids = bt_safetensors_find(file, "ids");
    const struct bt_tensor *greedy = bt_safetensors_find(file, "greedy");
    struct bench bench;
    struct subject subject;
    bench_open(&bench, 64, 1);
    subject_init(&subject, 0);
    assert_true(ids->dims[0] <= 256);
    subject.job.tokens = ids->data;
    subject.job.token_count = (uint32_t)ids->dims[0];
    subject.sampling.temperature = 0;
    pf_engine_add(bench.engine, &subject.job);
    struct pf_jobs jobs = {0};
    while (jobs.count == 0) {
        pf_engine_begin(bench.engine, &jobs);
        pf_engine_run(bench.engine, &jobs);
    }
    assert_int_equal(subject.job.first.token, *(const uint32_t *)greedy->data);
    bench_close(&bench);
    bt_safetensors_close(file);
}

/* To its first token. */
static void run_one(struct bench *bench, struct pf_job *job)
{
    struct pf_jobs jobs = {0};
    pf_engine_add(bench->engine, job);
    while (jobs.count == 0) {
        pf_engine_begin(bench->engine, &jobs);
        pf_engine_run(bench->engine, &jobs);
    }
}

/* KV of the tokens up to `end`, layer by layer: ret_bytes [layers][end]. */
static size_t read_kv(const struct bench *bench, const uint32_t *pages, uint32_t end,
                      char *ret_bytes)
{
    size_t token_bytes = bt_kv_token_bytes(&bench->layout), at = 0;
    for (uint32_t layer = 0; layer < bench->layout.layer_count; layer++) {
        for (uint32_t i = 0; i < end; i++, at += token_bytes) {
            uint64_t offset = bt_kv_offset(&bench->layout, POOL_PAGES, layer,
                                           pages[i / BT_PAGE_TOKENS], i % BT_PAGE_TOKENS);
            memcpy(ret_bytes + at, (const char *)bench->pool + offset, token_bytes);
        }
    }
    return at;
}

/* With two pages that are there, the rest has the bits of the whole; and the two are read, not
 * computed again: what is in them stays, whatever it is, and shows in what comes after. */
static void test_cached_pages_are_read_only(void **state)
{
    (void)state;
    struct bench bench;
    struct subject whole, rest;
    bench_open(&bench, 100, 1);
    subject_init(&whole, 0);
    subject_init(&rest, 1);
    for (uint32_t i = 0; i < 250; i++) {
        whole.prompt[i] = rest.prompt[i] = 2 + (uint32_t)(bt_random_u64(9, 0, i) % 2000);
    }
    whole.job.token_count = rest.job.token_count = 250;
    rest.sampling = whole.sampling;
    run_one(&bench, &whole.job);
    size_t bytes = 250 * bench.layout.layer_count * bt_kv_token_bytes(&bench.layout);
    char *want = malloc(bytes), *got = malloc(bytes), *before = malloc(bytes);
    assert_int_equal(read_kv(&bench, whole.pages, 250, want), bytes);
    rest.pages[0] = whole.pages[0];
    rest.pages[1] = whole.pages[1];
    rest.job.computed = 128;
    run_one(&bench, &rest.job);
    read_kv(&bench, rest.pages, 250, got);
    assert_memory_equal(got, want, bytes);
    assert_int_equal(rest.job.first.token, whole.job.first.token);
    assert_memory_equal(&rest.job.first.logprob, &whole.job.first.logprob, sizeof(float));
    uint64_t offset = bt_kv_offset(&bench.layout, POOL_PAGES, 0, whole.pages[1], 7);
    *(float *)((char *)bench.pool + offset) += 8;
    size_t cached = read_kv(&bench, whole.pages, 128, before);
    subject_init(&rest, 1);
    rest.job.tokens = whole.prompt;
    rest.job.token_count = 250;
    rest.job.computed = 128;
    rest.pages[0] = whole.pages[0];
    rest.pages[1] = whole.pages[1];
    run_one(&bench, &rest.job);
    read_kv(&bench, rest.pages, 128, got);
    assert_memory_equal(got, before, cached);
    read_kv(&bench, rest.pages, 250, got);
    assert_true(memcmp(got, want, bytes) != 0);
    free(want);
    free(got);
    free(before);
    bench_close(&bench);
}

static void take_event(struct pf_compute *compute, struct pf_compute_event *event)
{
    struct pollfd poller = {.fd = bt_queue_fd(pf_compute_events(compute)), .events = POLLIN};
    assert_int_equal(poll(&poller, 1, 60000), 1);
    assert_true(bt_queue_try_pop(pf_compute_events(compute), event));
}

/* Cancelled at random, also after they came back. */
static void test_every_job_comes_back_once(void **state)
{
    (void)state;
    static struct subject alone[JOBS], subjects[JOBS];
    run_all(alone, 256, 1);
    struct bench bench;
    struct pf_compute *compute;
    struct bt_error error;
    bench_open(&bench, 64, 3);
    assert_int_equal(pf_compute_create(bench.engine, JOBS, &error, &compute), BT_OK);
    for (uint32_t i = 0; i < JOBS; i++) {
        subject_init(&subjects[i], i);
        pf_compute_add(compute, &subjects[i].job);
    }
    uint32_t back = 0, computed = 0;
    bool over[JOBS] = {false}, cancelled[JOBS] = {false};
    while (back < JOBS) {
        struct pf_compute_event event;
        take_event(compute, &event);
        uint32_t index = (uint32_t)event.job->serial - 1;
        assert_false(over[index]);
        if (event.kind == PF_COMPUTE_STARTED) {
            /* Its right neighbour: waiting, computing, or back already. */
            uint32_t victim = (index + 1) % JOBS;
            if (index % 3 == 0 && !cancelled[victim]) {
                cancelled[victim] = true;
                pf_compute_cancel(compute, victim + 1);
            }
            continue;
        }
        over[index] = true;
        back++;
        if (event.kind == PF_COMPUTE_COMPUTED) {
            computed++;
            assert_int_equal(event.job->computed, event.job->token_count);
            assert_int_equal(event.job->first.token, alone[index].job.first.token);
        } else {
            assert_true(cancelled[index]);
        }
    }
    assert_true(computed >= JOBS - JOBS / 3 - 1);
    pf_compute_destroy(compute);
    bench_close(&bench);
}

/* Passes wait until somebody joins a thread: by then it was told to end. */
static pthread_mutex_t gate_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t gate_opens = PTHREAD_COND_INITIALIZER;
static bool gate_shut;

enum bt_status __real_pf_engine_run(struct pf_engine *engine, struct pf_jobs *ret_finished);
enum bt_status __wrap_pf_engine_run(struct pf_engine *engine, struct pf_jobs *ret_finished);
int __real_pthread_join(pthread_t thread, void **ret_value);
int __wrap_pthread_join(pthread_t thread, void **ret_value);

static void gate_set(bool shut)
{
    pthread_mutex_lock(&gate_lock);
    gate_shut = shut;
    pthread_cond_broadcast(&gate_opens);
    pthread_mutex_unlock(&gate_lock);
}

enum bt_status __wrap_pf_engine_run(struct pf_engine *engine, struct pf_jobs *ret_finished)
{
    pthread_mutex_lock(&gate_lock);
    while (gate_shut) {
        pthread_cond_wait(&gate_opens, &gate_lock);
    }
    pthread_mutex_unlock(&gate_lock);
    return __real_pf_engine_run(engine, ret_finished);
}

int __wrap_pthread_join(pthread_t thread, void **ret_value)
{
    gate_set(false);
    return __real_pthread_join(thread, ret_value);
}

static void test_destroyed_in_the_middle(void **state)
{
    (void)state;
    static struct subject subjects[JOBS];
    struct bench bench;
    struct pf_compute *compute;
    struct bt_error error;
    struct pf_compute_event event;
    bench_open(&bench, 16, 3);
    gate_set(true);
    assert_int_equal(pf_compute_create(bench.engine, JOBS, &error, &compute), BT_OK);
    for (uint32_t i = 0; i < JOBS; i++) {
        subject_init(&subjects[i], i);
        subjects[i].job.token_count = 250; /* none is done in the one pass that there is */
        pf_compute_add(compute, &subjects[i].job);
    }
    take_event(compute, &event);
    pf_compute_destroy(compute);
    assert_true(pf_engine_job_count(bench.engine) > 0);
    bench_close(&bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chunks_change_no_bit),
        cmocka_unit_test(test_first_token_is_the_golden_one),
        cmocka_unit_test(test_cached_pages_are_read_only),
        cmocka_unit_test(test_every_job_comes_back_once),
        cmocka_unit_test(test_destroyed_in_the_middle),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
