#include "tests/unit/decode/engine_bench.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/random.h"

void bench_open(struct bench *bench, uint32_t max_num_seqs, enum bt_dtype kv_dtype)
{
    struct bt_error error = {0};
    const struct bt_model_options load = {.dir = TINY_MODEL};
    if (bt_model_load(&load, &error, &bench->model) != BT_OK) {
        fail_msg("%s", error.text);
    }
    bench->layout = bt_model_kv_layout(bench->model, kv_dtype);
    bench->pool = calloc(1, bt_kv_pool_bytes(&bench->layout, POOL_PAGES));
    const struct pf_engine_options prefill = {
        .model = bench->model,
        .layout = bench->layout,
        .kv_pool = bench->pool,
        .pool_pages = POOL_PAGES,
        .limits = {64, 4, BT_PROMPT_AGEING_TOKENS_PER_S},
        .max_jobs = SEQUENCES,
    };
    const struct dc_engine_options decode = {
        .model = bench->model,
        .layout = bench->layout,
        .kv_pool = bench->pool,
        .pool_pages = POOL_PAGES,
        .max_num_seqs = max_num_seqs,
        .max_sequences = SEQUENCES,
        .max_model_len = 256,
        .prompt_chunk = PROMPT_CHUNK,
    };
    assert_int_equal(pf_engine_create(&prefill, &error, &bench->prefill), BT_OK);
    assert_int_equal(dc_engine_create(&decode, &error, &bench->decode), BT_OK);
    assert_true(dc_step_init(&bench->step, SEQUENCES));
}

void bench_close(struct bench *bench)
{
    dc_step_finish(&bench->step);
    pf_engine_destroy(bench->prefill);
    dc_engine_destroy(bench->decode);
    bt_model_destroy(bench->model);
    free(bench->pool);
}

void subject_init(struct subject *subject, uint32_t index, const uint32_t *page_order)
{
    memset(subject, 0, sizeof(*subject));
    subject->prompt_tokens = 1 + (uint32_t)(bt_random_u64(1, index, 0) % MAX_PROMPT);
    for (uint32_t i = 0; i < subject->prompt_tokens; i++) {
        subject->prompt[i] = 2 + (uint32_t)(bt_random_u64(2, index, i) % 2000);
    }
    subject->sampling = (struct bt_sampling){
        .seed = index,
        .temperature = index % 3 == 0 ? 0 : 0.8f,
        .top_p = index % 2 ? 0.95f : 1,
        .top_k = index % 4 == 1 ? 40 : 0,
        .repetition_penalty = index % 5 == 2 ? 1.2f : 1,
        .frequency_penalty = index % 5 == 3 ? 0.5f : 0,
        .logprobs = 3,
        .ignore_eos = true,
        .max_tokens = 20 + index * 7,
    };
    if (bt_sampling_needs_history(&subject->sampling)) {
        subject->history = bt_sampler_history_create();
        assert_true(bt_sampler_history_add_prompt(subject->history, subject->prompt,
                                                  subject->prompt_tokens));
        assert_true(bt_sampler_history_reserve(subject->history, MAX_TOKENS));
    }
    for (uint32_t i = 0; i < 6; i++) {
        subject->pages[i] = page_order[index * 6 + i];
    }
}

void prefill(struct bench *bench, struct subject *subject, uint32_t serial)
{
    subject->job = (struct pf_job){
        .serial = serial,
        .tokens = subject->prompt,
        .token_count = subject->prompt_tokens,
        .pages = subject->pages,
        .sampling = &subject->sampling,
        .history = subject->history,
    };
    pf_engine_add(bench->prefill, &subject->job);
    struct pf_jobs jobs = {0};
    while (jobs.count == 0) {
        pf_engine_begin(bench->prefill, &jobs);
        pf_engine_run(bench->prefill, &jobs);
    }
    assert_ptr_equal(jobs.jobs[0], &subject->job);
}

void join(struct bench *bench, struct subject *subject, uint32_t request, uint32_t pages)
{
    subject->sequence = (struct dc_sequence){
        .request = request,
        .epoch = 1,
        .prompt_tokens = subject->prompt_tokens,
        .pages = subject->pages,
        .page_count = pages,
        .page_capacity = 6,
        .sampling = &subject->sampling,
        .history = subject->history,
        .last = subject->job.first,
        .replay = subject->replay,
        .replay_count = subject->replay_count,
        .user = subject,
    };
    dc_engine_add(bench->decode, &subject->sequence);
}

void join_with_prompt(struct bench *bench, struct subject *subject, uint32_t request,
                      uint32_t pages)
{
    subject->sequence = (struct dc_sequence){
        .request = request,
        .epoch = 1,
        .prompt_tokens = subject->prompt_tokens,
        .prompt = subject->prompt,
        .pages = subject->pages,
        .page_count = pages,
        .page_capacity = 6,
        .sampling = &subject->sampling,
        .history = subject->history,
        .replay = subject->replay,
        .replay_count = subject->replay_count,
        .user = subject,
    };
    dc_engine_add(bench->decode, &subject->sequence);
}

void take_step(struct bench *bench)
{
    assert_int_equal(dc_engine_step(bench->decode, &bench->step), BT_OK);
    for (uint32_t i = 0; i < bench->step.entry_count; i++) {
        const struct dc_entry *entry = &bench->step.entries[i];
        struct subject *subject = entry->user;
        assert_int_equal(subject->finish, DC_RUNNING);
        if (entry->has_token) {
            assert_int_equal(entry->index, subject->sample_count);
            subject->samples[subject->sample_count++] = entry->sample;
        }
        subject->finish = entry->finish;
    }
}

void order_pages(uint32_t *order, uint64_t seed)
{
    for (uint32_t i = 0; i < POOL_PAGES; i++) {
        order[i] = i;
    }
    for (uint32_t i = POOL_PAGES; seed && i-- > 1;) {
        uint32_t j = (uint32_t)(bt_random_u64(seed, i, 0) % (i + 1)), held = order[i];
        order[i] = order[j];
        order[j] = held;
    }
}

void run_alone(struct subject *subjects, enum bt_dtype kv_dtype)
{
    struct bench bench;
    uint32_t order[POOL_PAGES];
    bench_open(&bench, 1, kv_dtype);
    order_pages(order, 0);
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        subject_init(&subjects[i], i, order);
        prefill(&bench, &subjects[i], i + 1);
        join(&bench, &subjects[i], i + 1, 6);
        while (subjects[i].finish == DC_RUNNING) {
            take_step(&bench);
        }
        bt_sampler_history_destroy(subjects[i].history);
    }
    bench_close(&bench);
}

void expect_same(const struct subject *a, const struct subject *b)
{
    assert_int_equal(a->finish, DC_FINISH_LENGTH);
    assert_int_equal(b->finish, DC_FINISH_LENGTH);
    assert_int_equal(a->sample_count, a->sampling.max_tokens);
    assert_int_equal(b->sample_count, a->sample_count);
    for (uint32_t i = 0; i < a->sample_count; i++) {
        assert_int_equal(a->samples[i].token, b->samples[i].token);
        assert_memory_equal(&a->samples[i].logprob, &b->samples[i].logprob, sizeof(float));
        assert_int_equal(a->samples[i].top_count, 3);
        assert_memory_equal(a->samples[i].top, b->samples[i].top, 3 * sizeof(b->samples[i].top[0]));
    }
}

void replay_from(struct subject *subject, const struct subject *before, uint32_t count)
{
    subject->replay_count = subject->sample_count = count;
    for (uint32_t i = 0; i < count; i++) {
        subject->samples[i] = before->samples[i];
        subject->replay[i] = before->samples[i].token;
    }
}

void remember(struct subject *subject)
{
    for (uint32_t i = 0; subject->history && i < subject->replay_count; i++) {
        assert_true(bt_sampler_history_add_output(subject->history, subject->replay[i]));
    }
}
