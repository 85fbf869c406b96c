/* The decode engine without threads: a sequence's tokens do not depend on who is beside it, nor on
 * where its first ones were drawn. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/random.h"
#include "tests/unit/decode/engine_bench.h"

static void run_together(struct subject *subjects, uint64_t seed, uint32_t max_num_seqs)
{
    struct bench bench;
    uint32_t order[POOL_PAGES], next = 0, running = 0;
    bench_open(&bench, max_num_seqs, BT_F32);
    order_pages(order, seed);
    for (uint64_t turn = 0; next < SEQUENCES || running > 0; turn++) {
        if (next < SEQUENCES && bt_random_u64(seed, turn, 1) % 4 == 0) {
            subject_init(&subjects[next], next, order);
            prefill(&bench, &subjects[next], next + 1);
            join(&bench, &subjects[next], next + 1, 6);
            next++;
        }
        if (dc_engine_runnable(bench.decode)) {
            take_step(&bench);
        }
        running = 0;
        for (uint32_t i = 0; i < next; i++) {
            running += subjects[i].finish == DC_RUNNING;
        }
    }
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        bt_sampler_history_destroy(subjects[i].history);
    }
    bench_close(&bench);
}

static void test_together_gives_the_bits_of_alone(void **state)
{
    (void)state;
    static struct subject alone[SEQUENCES], together[SEQUENCES];
    run_alone(alone, BT_F32);
    for (uint64_t seed = 1; seed <= 2; seed++) {
        printf("seed %d\n", (int)seed);
        run_together(together, seed, seed == 1 ? SEQUENCES : 3);
        for (uint32_t i = 0; i < SEQUENCES; i++) {
            expect_same(&alone[i], &together[i]);
        }
    }
}

/* A page is wished for ahead, its lack stalls the sequence, its coming lets it go on with the same
 * tokens. */
static void test_growth_page_by_page(void **state)
{
    (void)state;
    struct bench bench;
    uint32_t order[POOL_PAGES];
    static struct subject full, lean;
    bench_open(&bench, 4, BT_F32);
    order_pages(order, 0);
    subject_init(&full, 7, order);
    subject_init(&lean, 7, order + 6);
    full.sampling.max_tokens = lean.sampling.max_tokens = MAX_TOKENS;
    prefill(&bench, &full, 1);
    prefill(&bench, &lean, 2);
    /* As many pages as it can need, and never a wish. */
    join(&bench, &full, 1, bt_kv_pages_for(full.prompt_tokens + MAX_TOKENS));
    uint32_t first_pages = bt_kv_pages_for(lean.prompt_tokens);
    join(&bench, &lean, 2, first_pages);
    uint32_t slots = first_pages * BT_PAGE_TOKENS - lean.prompt_tokens;

    take_step(&bench);
    assert_int_equal(bench.step.wish_count, 1);
    assert_int_equal(bench.step.wishes[0].request, 2);
    assert_int_equal(bench.step.wishes[0].stalled, slots == 1);
    uint32_t stalls = 0;
    while (full.finish == DC_RUNNING) {
        take_step(&bench);
        stalls += bench.step.wish_count;
        assert_true(bench.step.wish_count == 0 || bench.step.wishes[0].stalled);
    }
    assert_int_equal(stalls, 1);
    assert_int_equal(lean.sample_count, slots + 1);
    assert_false(dc_engine_runnable(bench.decode));
    for (uint32_t i = first_pages; lean.finish == DC_RUNNING;) {
        dc_engine_grow(bench.decode, 2, 1, order[6 + i++]);
        assert_true(dc_engine_runnable(bench.decode));
        while (dc_engine_runnable(bench.decode)) {
            take_step(&bench);
        }
    }
    expect_same(&full, &lean);
    bt_sampler_history_destroy(full.history);
    bt_sampler_history_destroy(lean.history);
    bench_close(&bench);
}

static void test_ends_by_eos_context_and_stop(void **state)
{
    (void)state;
    struct bench bench;
    uint32_t order[POOL_PAGES];
    static struct subject eos, context, stopped;
    bench_open(&bench, 4, BT_F32);
    order_pages(order, 0);
    uint32_t eos_token = bench.model->config.eos_token_ids[0];
    subject_init(&eos, 0, order);
    subject_init(&context, 3, order + 6);
    subject_init(&stopped, 6, order + 12);
    /* EOS by a bias that nothing can beat, but not before the fourth token. */
    struct bt_logit_bias bias = {eos_token, 100};
    eos.sampling.bias = &bias;
    eos.sampling.bias_count = 1;
    eos.sampling.ignore_eos = false;
    eos.sampling.min_tokens = 3;
    prefill(&bench, &eos, 1);
    /* The context of 256 is full before max_tokens. */
    context.prompt_tokens = MAX_PROMPT;
    for (uint32_t i = 0; i < MAX_PROMPT; i++) {
        context.prompt[i] = 2 + i;
    }
    prefill(&bench, &context, 2);
    context.sampling.max_tokens = 1000;
    prefill(&bench, &stopped, 3);
    join(&bench, &eos, 1, 6);
    join(&bench, &stopped, 3, 6);
    take_step(&bench);
    dc_engine_stop(bench.decode, 3, 2, DC_FINISH_CANCELLED); /* another epoch */
    take_step(&bench);
    assert_int_equal(stopped.finish, DC_RUNNING);
    dc_engine_stop(bench.decode, 3, 1, DC_FINISH_CANCELLED);
    dc_engine_stop(bench.decode, 3, 1, DC_FINISH_PREEMPTED); /* the first counts */
    take_step(&bench);
    assert_int_equal(stopped.finish, DC_FINISH_CANCELLED);
    assert_int_equal(stopped.sample_count, 3);
    assert_int_equal(eos.finish, DC_FINISH_STOP);
    assert_int_equal(eos.sample_count, 4);
    assert_int_equal(eos.samples[3].token, eos_token);
    /* MAX_TOKENS of samples do not hold it all: only the count matters here. */
    join(&bench, &context, 2, 6);
    uint32_t tokens = 0;
    enum dc_finish finish = DC_RUNNING;
    while (finish == DC_RUNNING) {
        dc_engine_step(bench.decode, &bench.step);
        for (uint32_t i = 0; i < bench.step.entry_count; i++) {
            tokens += bench.step.entries[i].has_token;
            finish = bench.step.entries[i].finish;
        }
    }
    assert_int_equal(finish, DC_FINISH_LENGTH);
    assert_int_equal(MAX_PROMPT + tokens, 256);
    assert_false(dc_engine_runnable(bench.decode));
    bt_sampler_history_destroy(eos.history);
    bt_sampler_history_destroy(context.history);
    bt_sampler_history_destroy(stopped.history);
    bench_close(&bench);
}

/* ------------------------------------------------------------------ replay */

#define CUTS 6

/* Where the output is cut: of every kind, and what does not fit is as good as any. */
static uint32_t cut_at(const struct subject *subject, uint32_t kind)
{
    uint32_t most = subject->sampling.max_tokens - 1;
    uint32_t edge = BT_PAGE_TOKENS - subject->prompt_tokens % BT_PAGE_TOKENS;
    const uint32_t cuts[CUTS] = {1, most, edge, edge + 1, edge > 1 ? edge - 1 : 2, most / 2};
    return cuts[kind] <= most ? cuts[kind] : 1 + (cuts[kind] * 7 + kind) % most;
}

/* The rows that replays have beyond one of each sequence. */
static void check_bound(const struct bench *bench, uint32_t max_num_seqs)
{
    const struct dc_step *step = &bench->step;
    uint32_t quarter = max_num_seqs / 4;
    assert_true(step->rows <= max_num_seqs && step->sequences <= step->rows);
    if (step->drawing > 0) {
        assert_true(step->rows - step->sequences <=
                    (step->drawing > quarter ? step->drawing : quarter));
    }
}

/* Pages come when they are wished for. */
static void grant(struct bench *bench, struct subject *subjects)
{
    for (uint32_t i = 0; i < bench->step.wish_count; i++) {
        const struct dc_page_wish *wish = &bench->step.wishes[i];
        struct subject *subject = &subjects[wish->request - 1];
        if (subject->finish == DC_RUNNING) {
            dc_engine_grow(bench->decode, wish->request, wish->epoch,
                           subject->pages[subject->sequence.page_count]);
        }
    }
}

static void run_cut(struct subject *subjects, const struct subject *before, uint32_t round,
                    uint32_t max_num_seqs, enum bt_dtype kv_dtype)
{
    struct bench bench;
    uint32_t order[POOL_PAGES], next = 0, running = 0;
    bench_open(&bench, max_num_seqs, kv_dtype);
    order_pages(order, round + 1);
    for (uint64_t turn = 0; next < SEQUENCES || running > 0; turn++) {
        if (next < SEQUENCES && bt_random_u64(round, turn, 2) % 4 == 0) {
            struct subject *subject = &subjects[next];
            subject_init(subject, next, order);
            prefill(&bench, subject, next + 1);
            if ((next + round) % 4 != 3) { /* the others run for the first time */
                replay_from(subject, &before[next], cut_at(subject, (next + round) % CUTS));
                remember(subject);
            }
            join(&bench, subject, next + 1,
                 bt_kv_pages_for(subject->prompt_tokens + subject->replay_count + next % 2));
            next++;
        }
        if (dc_engine_runnable(bench.decode)) {
            take_step(&bench);
            check_bound(&bench, max_num_seqs);
            grant(&bench, subjects);
        }
        running = 0;
        for (uint32_t i = 0; i < next; i++) {
            running += subjects[i].finish == DC_RUNNING;
        }
    }
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        bt_sampler_history_destroy(subjects[i].history);
    }
    bench_close(&bench);
}

static void replays(enum bt_dtype kv_dtype)
{
    static struct subject alone[SEQUENCES], cut[SEQUENCES];
    static const uint32_t batches[] = {3, SEQUENCES, 40};
    run_alone(alone, kv_dtype);
    for (uint32_t round = 0; round < 3; round++) {
        run_cut(cut, alone, round, batches[round], kv_dtype);
        for (uint32_t i = 0; i < SEQUENCES; i++) {
            expect_same(&alone[i], &cut[i]);
        }
    }
}

static void test_replay_f32(void **state)
{
    (void)state;
    replays(BT_F32);
}

static void test_replay_bf16(void **state)
{
    (void)state;
    replays(BT_BF16);
}

static void test_replay_fp8(void **state)
{
    (void)state;
    replays(BT_F8_E4M3);
}

/* Alone a replay has the whole batch; beside others, of this rank or another, a share of it. */
static void test_replay_makes_way(void **state)
{
    (void)state;
    enum { BATCH = 16, CUT = 70 };
    static const struct {
        uint32_t here, there, share;
    } cases[] = {{0, 0, BATCH}, {1, 0, BATCH / 4 + 1}, {0, 1, BATCH / 4 + 1}, {0, 9, 10}};
    static struct subject whole, cut, beside;
    for (uint32_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct bench bench;
        uint32_t order[POOL_PAGES], steps = 0;
        bench_open(&bench, BATCH, BT_F32);
        order_pages(order, 0);
        subject_init(&whole, 0, order);
        subject_init(&cut, 0, order + 6);
        subject_init(&beside, 3, order + 12);
        whole.sampling.max_tokens = cut.sampling.max_tokens = MAX_TOKENS;
        prefill(&bench, &whole, 1);
        prefill(&bench, &cut, 2);
        prefill(&bench, &beside, 3);
        join(&bench, &whole, 1, 6);
        while (whole.finish == DC_RUNNING) {
            take_step(&bench);
        }
        if (cases[i].here) {
            join(&bench, &beside, 3, 6);
        }
        dc_engine_beside(bench.decode, cases[i].there);
        replay_from(&cut, &whole, CUT);
        join(&bench, &cut, 2, 6);
        for (; cut.sample_count == CUT; steps++) {
            take_step(&bench);
        }
        assert_int_equal(steps, (CUT + cases[i].share - 1) / cases[i].share);
        while (cut.finish == DC_RUNNING) {
            take_step(&bench);
        }
        expect_same(&whole, &cut);
        bt_sampler_history_destroy(beside.history);
        bench_close(&bench);
    }
}

/* It ends like any other, in the midst of its replay; nothing of the replay was reported. */
static void test_replay_is_stopped(void **state)
{
    (void)state;
    static struct subject whole, cut;
    struct bench bench;
    uint32_t order[POOL_PAGES];
    bench_open(&bench, 4, BT_F32);
    order_pages(order, 0);
    subject_init(&whole, 0, order);
    subject_init(&cut, 0, order + 6);
    whole.sampling.max_tokens = cut.sampling.max_tokens = MAX_TOKENS;
    prefill(&bench, &whole, 1);
    prefill(&bench, &cut, 2);
    join(&bench, &whole, 1, 6);
    while (whole.finish == DC_RUNNING) {
        take_step(&bench);
    }
    replay_from(&cut, &whole, 50);
    join(&bench, &cut, 2, 6);
    take_step(&bench);
    assert_int_equal(bench.step.kv_tokens, cut.prompt_tokens + 4);
    take_step(&bench);
    dc_engine_stop(bench.decode, 2, 1, DC_FINISH_PREEMPTED);
    take_step(&bench);
    assert_int_equal(cut.finish, DC_FINISH_PREEMPTED);
    assert_int_equal(cut.sample_count, 50);
    assert_false(dc_engine_runnable(bench.decode));
    bench_close(&bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_together_gives_the_bits_of_alone),
        cmocka_unit_test(test_growth_page_by_page),
        cmocka_unit_test(test_ends_by_eos_context_and_stop),
        cmocka_unit_test(test_replay_f32),
        cmocka_unit_test(test_replay_bf16),
        cmocka_unit_test(test_replay_fp8),
        cmocka_unit_test(test_replay_makes_way),
        cmocka_unit_test(test_replay_is_stopped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
