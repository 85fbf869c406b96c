/* Prompts that the decode engine computes itself: KV and tokens have the bits of a prefill
 * engine's, wherever the chunks are cut and whoever is beside them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/random.h"
#include "decode-node/prompts.h"
#include "tests/unit/decode/engine_bench.h"

static uint32_t running(const struct subject *subjects, uint32_t count)
{
    uint32_t left = 0;
    for (uint32_t i = 0; i < count; i++) {
        left += subjects[i].finish == DC_RUNNING;
    }
    return left;
}

/* A pass is of one kind, and no longer than it may be. */
static void check_pass(const struct bench *bench, uint32_t drawing_before)
{
    const struct dc_step *step = &bench->step;
    assert_true(step->rows == 0 || step->prompt_rows == 0);
    assert_true(step->prompt_rows <=
                (drawing_before > 0 ? PROMPT_CHUNK : DC_PROMPTS_IDLE * PROMPT_CHUNK));
}

/* Some come from a prefill engine, some with their prompt, some of these with a replay. */
static void run_mixed(struct subject *subjects, const struct subject *before, uint64_t seed,
                      uint32_t max_num_seqs, enum bt_dtype kv_dtype)
{
    struct bench bench;
    uint32_t order[POOL_PAGES], next = 0;
    bench_open(&bench, max_num_seqs, kv_dtype);
    order_pages(order, seed);
    for (uint64_t turn = 0; next < SEQUENCES || running(subjects, next) > 0; turn++) {
        if (next < SEQUENCES && bt_random_u64(seed, turn, 1) % 4 == 0) {
            struct subject *subject = &subjects[next];
            uint64_t kind = bt_random_u64(seed, next, 3) % 4;
            subject_init(subject, next, order);
            if (kind == 0) {
                prefill(&bench, subject, next + 1);
                join(&bench, subject, next + 1, 6);
            } else {
                if (kind == 1) {
                    replay_from(subject, &before[next],
                                1 + (uint32_t)(seed * 7 + next) %
                                        (subject->sampling.max_tokens - 1));
                }
                join_with_prompt(&bench, subject, next + 1, 6);
            }
            next++;
        }
        if (dc_engine_runnable(bench.decode)) {
            take_step(&bench);
            check_pass(&bench, bench.step.drawing);
        }
    }
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        bt_sampler_history_destroy(subjects[i].history);
    }
    bench_close(&bench);
}

static void bits(enum bt_dtype kv_dtype, uint64_t seeds)
{
    static struct subject alone[SEQUENCES], mixed[SEQUENCES];
    run_alone(alone, kv_dtype);
    for (uint64_t seed = 1; seed <= seeds; seed++) {
        printf("seed %d\n", (int)seed);
        run_mixed(mixed, alone, seed, seed == 1 ? SEQUENCES : 3, kv_dtype);
        for (uint32_t i = 0; i < SEQUENCES; i++) {
            expect_same(&alone[i], &mixed[i]);
        }
    }
}

static void test_bits_f32(void **state)
{
    (void)state;
    bits(BT_F32, 2);
}

static void test_bits_bf16(void **state)
{
    (void)state;
    bits(BT_BF16, 1);
}

static void test_bits_fp8(void **state)
{
    (void)state;
    bits(BT_F8_E4M3, 1);
}

/* The pages of one request and of another whose prompt is the same. */
static void expect_same_kv(const struct bench *bench, const struct subject *a,
                           const struct subject *b, uint32_t tokens)
{
    size_t token_bytes = bt_kv_token_bytes(&bench->layout);
    size_t page_bytes = token_bytes * BT_PAGE_TOKENS;
    const uint8_t *layer = bench->pool;
    for (uint32_t i = 0; i < bench->layout.layer_count; i++, layer += page_bytes * POOL_PAGES) {
        for (uint32_t position = 0; position < tokens; position++) {
            size_t page = position / BT_PAGE_TOKENS;
            size_t slot = position % BT_PAGE_TOKENS * token_bytes;
            assert_memory_equal(layer + a->pages[page] * page_bytes + slot,
                                layer + b->pages[page] * page_bytes + slot, token_bytes);
        }
    }
}

static void test_kv_is_that_of_a_prefill_engine(void **state)
{
    (void)state;
    struct bench bench;
    uint32_t order[POOL_PAGES];
    static struct subject there, here;
    bench_open(&bench, 4, BT_F32);
    order_pages(order, 5);
    subject_init(&there, 1, order);
    subject_init(&here, 1, order + 6);
    prefill(&bench, &there, 1);
    join_with_prompt(&bench, &here, 2, 6);
    while (here.sample_count == 0) {
        take_step(&bench);
    }
    expect_same_kv(&bench, &there, &here, there.prompt_tokens);
    assert_memory_equal(&here.samples[0], &there.job.first, sizeof(here.samples[0].token));
    bt_sampler_history_destroy(there.history);
    bt_sampler_history_destroy(here.history);
    bench_close(&bench);
}

/* Between two tokens of one that draws lies one chunk at most, however much waits. */
static void test_takes_turns(void **state)
{
    (void)state;
    struct bench bench;
    uint32_t order[POOL_PAGES], rows = 0, passes = 0;
    static struct subject draws, waits[2];
    bench_open(&bench, 4, BT_F32);
    order_pages(order, 0);
    subject_init(&draws, 9, order);
    prefill(&bench, &draws, 1);
    join(&bench, &draws, 1, 6);
    take_step(&bench);
    for (uint32_t i = 0; i < 2; i++) {
        subject_init(&waits[i], i, order + 6 + 6 * i);
        join_with_prompt(&bench, &waits[i], 2 + i, 6);
        rows += waits[i].prompt_tokens;
    }
    while (waits[0].sample_count == 0 || waits[1].sample_count == 0) {
        uint32_t before = draws.sample_count;
        take_step(&bench);
        passes += bench.step.prompt_rows > 0;
        assert_true(bench.step.prompt_rows <= PROMPT_CHUNK);
        if (bench.step.prompt_rows > 0) {
            take_step(&bench);
            assert_int_equal(draws.sample_count, before + 1);
        }
    }
    assert_int_equal(passes, (rows + PROMPT_CHUNK - 1) / PROMPT_CHUNK);
    /* Nobody draws on this rank, but on another. */
    dc_engine_stop_all(bench.decode, DC_FINISH_CANCELLED);
    take_step(&bench);
    dc_engine_beside(bench.decode, 1);
    static struct subject last;
    subject_init(&last, 4, order + 30);
    join_with_prompt(&bench, &last, 4, 6);
    take_step(&bench);
    assert_int_equal(bench.step.prompt_rows, PROMPT_CHUNK);
    dc_engine_beside(bench.decode, 0);
    take_step(&bench);
    uint32_t left = last.prompt_tokens - PROMPT_CHUNK;
    assert_int_equal(bench.step.prompt_rows,
                     left < DC_PROMPTS_IDLE * PROMPT_CHUNK ? left : DC_PROMPTS_IDLE * PROMPT_CHUNK);
    bench_close(&bench);
}

/* It is stopped before its first chunk, between two, and after the last; the pages of what was
 * stopped are nobody's matter any more. */
static void test_is_stopped_at_each_stage(void **state)
{
    (void)state;
    static const uint32_t prompt_tokens = 4 * DC_PROMPTS_IDLE * PROMPT_CHUNK - 20;
    for (uint32_t passes = 0; passes <= 4; passes++) {
        struct bench bench;
        uint32_t order[POOL_PAGES];
        static struct subject subject;
        bench_open(&bench, 4, BT_F32);
        order_pages(order, 0);
        subject_init(&subject, 0, order);
        subject.prompt_tokens = prompt_tokens;
        join_with_prompt(&bench, &subject, 1, 6);
        assert_true(dc_engine_runnable(bench.decode));
        for (uint32_t i = 0; i < passes; i++) {
            take_step(&bench);
            assert_int_equal(bench.step.kv_tokens, subject.sequence.computed);
        }
        assert_int_equal(subject.sample_count, passes == 4);
        dc_engine_stop(bench.decode, 1, 1, DC_FINISH_PREEMPTED);
        take_step(&bench);
        assert_int_equal(subject.finish, DC_FINISH_PREEMPTED);
        assert_int_equal(bench.step.rows + bench.step.prompt_rows, 0);
        assert_false(dc_engine_runnable(bench.decode));
        bench_close(&bench);
    }
}

static void test_replay_that_is_not_its_own(void **state)
{
    (void)state;
    struct bench bench;
    uint32_t order[POOL_PAGES];
    static struct subject subject;
    bench_open(&bench, 4, BT_F32);
    order_pages(order, 0);
    subject_init(&subject, 0, order);
    prefill(&bench, &subject, 1);
    subject.replay[0] = subject.job.first.token + 1;
    subject.replay_count = 1;
    join_with_prompt(&bench, &subject, 1, 6);
    while (subject.finish == DC_RUNNING) {
        take_step(&bench);
    }
    assert_int_equal(subject.finish, DC_FINISH_DIVERGED);
    assert_int_equal(subject.sample_count, 0);
    assert_false(dc_engine_runnable(bench.decode));
    bench_close(&bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bits_f32),
        cmocka_unit_test(test_bits_bf16),
        cmocka_unit_test(test_bits_fp8),
        cmocka_unit_test(test_kv_is_that_of_a_prefill_engine),
        cmocka_unit_test(test_takes_turns),
        cmocka_unit_test(test_is_stopped_at_each_stage),
        cmocka_unit_test(test_replay_that_is_not_its_own),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
