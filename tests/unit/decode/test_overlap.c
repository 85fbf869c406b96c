/*
 * Steps that are begun before the last one is over, on a device that does its work as late as it
 * may, against steps one after the other on the CPU: random arrivals, stops, pages, prompts,
 * replays and sampling.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/random.h"
#include "decode-node/engine_state.h"
#include "tests/late-device/late_device.h"

#define SUBJECTS   20
#define EACH       4 /* pages of one at most */
#define POOL_PAGES (SUBJECTS * EACH)
#define TURNS_MAX  900
#define MAX_LENGTH 192
#define MAX_OUTPUT 90

#define LITTLE_ROOM 16 /* the seed where the host draws for some rows: adjusts have no room */

struct subject {
    struct dc_sequence sequence;
    struct bt_sampling sampling;
    struct bt_sampler_history *history;
    uint32_t pages[EACH], granted; /* of its own; those that the engine was told of */
    uint32_t prompt[MAX_LENGTH], replay[MAX_OUTPUT];
    uint32_t arrival; /* turn */
    uint32_t tokens[MAX_OUTPUT], token_count;
    enum dc_finish finish;
    bool stopped;
    uint32_t left_pages;
    uint64_t left; /* a hash of its pages when it had come back */
};

/* What one step said. */
struct record {
    bool there;
    struct dc_step step;
};

struct world {
    uint64_t seed;
    bool ends_with_eos; /* some do; and nobody is stopped */
    uint32_t max_num_seqs;
    struct bt_model view;
    struct bt_kv_layout layout;
    void *pool;
    size_t pool_bytes;
    struct dc_engine *engine;
    struct bt_device *late; /* NULL: one step after the other */
    struct subject subjects[SUBJECTS];
    struct record records[TURNS_MAX + 2];
    uint32_t turn, overlapped;
};

static uint32_t dice(const struct world *world, uint32_t what, uint32_t of, uint32_t sides)
{
    return (uint32_t)(bt_random_u64(world->seed, what, of) % sides);
}

/* ---- subjects ---- */

static void choose_sampling(const struct world *world, uint32_t i, struct bt_sampling *sampling)
{
    static const float penalties[] = {0, 0, 1, -0.5f};
    bool mixed = world->seed % 2 == 0; /* with penalties, bias and logprobs */
    static struct bt_logit_bias bias[SUBJECTS][2];
    bias[i][0] = (struct bt_logit_bias){dice(world, 15, i, 1000), 3};
    bias[i][1] = (struct bt_logit_bias){1000 + dice(world, 16, i, 1000), -100};
    *sampling = (struct bt_sampling){
        .seed = i,
        .temperature = dice(world, 1, i, 3) == 0 ? 0 : 1.5f,
        .top_p = dice(world, 2, i, 2) ? 0.95f : 1,
        .top_k = dice(world, 3, i, 4) == 0 ? 40 : 0,
        .repetition_penalty = mixed && dice(world, 4, i, 3) == 0 ? 1.3f : 1,
        .presence_penalty = mixed ? penalties[dice(world, 17, i, 4)] : 0,
        .frequency_penalty = mixed ? penalties[dice(world, 18, i, 4)] : 0,
        .bias = bias[i],
        .bias_count = mixed && dice(world, 19, i, 3) == 0 ? 2 : 0,
        .logprobs = mixed && dice(world, 5, i, 3) == 0 ? 2 : -1,
        .ignore_eos = !world->ends_with_eos,
        .min_tokens = dice(world, 6, i, 4) == 0 ? 6 : 0,
        .max_tokens = 1 + dice(world, 7, i, MAX_OUTPUT - 1),
    };
}

static void subject_init(struct world *world, uint32_t i, struct subject *subject)
{
    struct dc_sequence *sequence = &subject->sequence;
    choose_sampling(world, i, &subject->sampling);
    uint32_t prompt = 1 + dice(world, 8, i, 100);
    if (dice(world, 9, i, 4) == 0)
        prompt = BT_PAGE_TOKENS; /* a page is full */
    for (uint32_t t = 0; t < MAX_LENGTH; t++)
        subject->prompt[t] = 1 + dice(world, 1000 + t, i, 2000);
    for (uint32_t t = 0; t < MAX_OUTPUT; t++)
        subject->replay[t] = 1 + dice(world, 2000 + t, i, 2000);
    for (uint32_t p = 0; p < EACH; p++)
        subject->pages[p] = (p * SUBJECTS + i) * 7 % POOL_PAGES;
    uint32_t most = subject->sampling.max_tokens;
    *sequence = (struct dc_sequence){
        .request = i + 1,
        .epoch = 1,
        .prompt_tokens = prompt,
        .pages = calloc(EACH, sizeof(uint32_t)),
        .page_count = bt_kv_pages_for(prompt) + dice(world, 10, i, 2),
        .page_capacity = EACH,
        .sampling = &subject->sampling,
        .last = {.token = subject->replay[0]},
        .user = subject,
    };
    if (dice(world, 11, i, 5) == 0) {
        sequence->prompt = subject->prompt;
    } else if (most > 1 && dice(world, 12, i, 5) == 0) {
        sequence->replay = subject->replay;
        sequence->replay_count = 1 + dice(world, 13, i, most - 1);
        uint32_t pages = bt_kv_pages_for(prompt + sequence->replay_count);
        sequence->page_count = pages > sequence->page_count ? pages : sequence->page_count;
    }
    subject->granted = sequence->page_count;
    memcpy(sequence->pages, subject->pages, subject->granted * sizeof(uint32_t));
    subject->arrival = dice(world, 14, i, 60);
    if (bt_sampling_needs_history(&subject->sampling)) {
        subject->history = sequence->history = bt_sampler_history_create();
        assert_true(bt_sampler_history_add_prompt(subject->history, subject->prompt, prompt));
        assert_true(bt_sampler_history_reserve(subject->history, MAX_OUTPUT));
        for (uint32_t t = 0; t < sequence->replay_count; t++)
            bt_sampler_history_add_output(subject->history, subject->replay[t]);
    }
}

/* ---- the world ---- */

static void world_open(struct world *world, const struct bt_model *model, uint64_t seed, bool late,
                       bool ends_with_eos)
{
    struct bt_error error;
    memset(world, 0, sizeof(*world));
    world->seed = seed;
    world->ends_with_eos = ends_with_eos;
    world->view = *model;
    if (late) {
        world->late = late_device_create(model->kernels);
        world->view.device = world->late;
        world->view.kernels = world->late->kernels;
    }
    world->layout = bt_model_kv_layout(model, BT_F32);
    world->pool_bytes = bt_kv_pool_bytes(&world->layout, POOL_PAGES);
    world->pool = calloc(1, world->pool_bytes);
    world->max_num_seqs = seed % 3 == 0 ? 4 : SUBJECTS;
    const struct dc_engine_options options = {
        .model = &world->view,
        .layout = world->layout,
        .kv_pool = world->pool,
        .pool_pages = POOL_PAGES,
        .max_num_seqs = world->max_num_seqs,
        .max_sequences = SUBJECTS,
        .max_model_len = MAX_LENGTH,
        .prompt_chunk = 16,
    };
    if (dc_engine_create(&options, &error, &world->engine) != BT_OK)
        fail_msg("%s", error.text);
    assert_int_equal(dc_engine_enter(world->engine, &error), BT_OK);
    assert_int_equal(dc_engine_overlaps(world->engine), late);
    if (seed == LITTLE_ROOM)
        world->engine->draws.adjust_capacity = 100;
    for (uint32_t i = 0; i < SUBJECTS; i++)
        subject_init(world, i, &world->subjects[i]);
}

static void world_close(struct world *world)
{
    dc_engine_destroy(world->engine);
    late_device_destroy(world->late);
    for (uint32_t i = 0; i < SUBJECTS; i++) {
        free(world->subjects[i].sequence.pages);
        bt_sampler_history_destroy(world->subjects[i].history);
    }
    for (uint32_t t = 0; t < TURNS_MAX + 2; t++)
        if (world->records[t].step.entries)
            dc_step_finish(&world->records[t].step);
    free(world->pool);
}

static uint64_t pages_hash(const struct world *world, const struct subject *subject, uint32_t count)
{
    uint64_t hash = 1;
    for (uint32_t layer = 0; layer < world->layout.layer_count; layer++)
        for (uint32_t p = 0; p < count; p++) {
            const unsigned char *page =
                (const unsigned char *)world->pool +
                bt_kv_offset(&world->layout, POOL_PAGES, layer, subject->pages[p], 0);
            size_t bytes = bt_kv_offset(&world->layout, POOL_PAGES, 0, 1, 0) -
                           bt_kv_offset(&world->layout, POOL_PAGES, 0, 0, 0);
            for (size_t b = 0; b + sizeof(uint64_t) <= bytes; b += sizeof(uint64_t)) {
                uint64_t word;
                memcpy(&word, page + b, sizeof(word));
                hash = (hash ^ word) * 1099511628211u;
            }
        }
    return hash;
}

/* The record of turn t is complete: the control side sees it. */
static void take_record(struct world *world, uint32_t t)
{
    struct record *record = &world->records[t];
    record->there = true;
    for (uint32_t i = 0; i < record->step.entry_count; i++) {
        const struct dc_entry *entry = &record->step.entries[i];
        struct subject *subject = entry->user;
        assert_int_equal(subject->finish, DC_RUNNING);
        if (entry->has_token) {
            assert_true(entry->index < MAX_OUTPUT);
            subject->tokens[subject->token_count++] = entry->sample.token;
        }
        subject->finish = entry->finish;
        if (entry->finish != DC_RUNNING)
            subject->left = pages_hash(world, subject, subject->left_pages = subject->granted);
    }
}

static void grant(struct world *world, const struct dc_page_wish *wish)
{
    struct subject *subject = &world->subjects[wish->request - 1];
    if (subject->granted < EACH) {
        dc_engine_grow(world->engine, wish->request, wish->epoch, subject->pages[subject->granted]);
        subject->granted++;
    }
}

/* What the control thread says before turn t: by the dice, and by records of turn t - 2 and before,
 * since that of t - 1 may not be there yet. Pages come a while after the wish. */
static void say(struct world *world, uint32_t t)
{
    for (uint32_t i = 0; i < SUBJECTS; i++) {
        struct subject *subject = &world->subjects[i];
        if (subject->arrival == t)
            dc_engine_add(world->engine, &subject->sequence);
        if (!world->ends_with_eos && t > subject->arrival && !subject->stopped &&
            dice(world, 3000 + t, i, 150) == 0) {
            subject->stopped = true;
            dc_engine_stop(world->engine, i + 1, 1, DC_FINISH_CANCELLED);
        }
    }
    for (uint32_t ago = 2; ago <= 5 && ago <= t; ago++) {
        const struct record *record = &world->records[t - ago];
        for (uint32_t w = 0; record->there && w < record->step.wish_count; w++)
            if (2 + dice(world, 4000 + t - ago, w, 4) == ago)
                grant(world, &record->step.wishes[w]);
    }
}

/* One step after the other, those that are begun early included where there is a device. */
static struct dc_step *begin_turn(struct world *world, uint32_t t)
{
    struct dc_engine *engine = world->engine;
    struct dc_step *step = &world->records[t].step;
    dc_engine_begin(engine, step);
    enum dc_pass pass = dc_engine_turn(engine, step->rows > 0, step->prompt_rows > 0);
    if (pass == DC_PASS_STEP && dc_engine_overlaps(engine)) {
        assert_int_equal(dc_engine_set_out(engine, step), BT_OK);
        return step;
    }
    if (pass != DC_PASS_NONE)
        assert_int_equal(dc_engine_run(engine, step, pass), BT_OK);
    dc_engine_account(engine, step);
    take_record(world, t);
    return NULL;
}

static bool all_back(const struct world *world)
{
    bool back = true;
    for (uint32_t i = 0; i < SUBJECTS; i++)
        back = back && world->subjects[i].finish != DC_RUNNING;
    return back;
}

static void run(struct world *world)
{
    struct dc_step *under_way = NULL;
    uint32_t t;
    for (t = 0; t < TURNS_MAX && !all_back(world); t++) {
        bool begun = false;
        struct dc_step *next = &world->records[t].step;
        assert_true(dc_step_init(next, SUBJECTS));
        say(world, t);
        if (under_way) {
            uint64_t waits = late_device_count(world->late).waits;
            assert_int_equal(dc_engine_go_on(world->engine, under_way, next, &begun), BT_OK);
            assert_int_equal(late_device_count(world->late).waits, waits + 1);
            take_record(world, t - 1);
            world->overlapped += begun;
        }
        under_way = begun ? next : NULL;
        if (!begun && dc_engine_runnable(world->engine))
            under_way = begin_turn(world, t);
    }
    assert_true(t < TURNS_MAX);
    assert_null(under_way);
    world->turn = t;
    /* Nobody wrote to the pages of one that had come back. */
    for (uint32_t i = 0; i < SUBJECTS; i++)
        assert_true(pages_hash(world, &world->subjects[i], world->subjects[i].left_pages) ==
                    world->subjects[i].left);
}

/* ---- comparisons ---- */

static void same_entry(const struct dc_entry *a, const struct dc_entry *b)
{
    assert_int_equal(a->request, b->request);
    assert_int_equal(a->has_token, b->has_token);
    assert_int_equal(a->drawn, b->drawn);
    assert_int_equal(a->finish, b->finish);
    if (a->has_token) {
        assert_int_equal(a->index, b->index);
        assert_int_equal(a->sample.token, b->sample.token);
        assert_int_equal(a->sample.top_count, b->sample.top_count);
        assert_memory_equal(&a->sample.logprob, &b->sample.logprob, sizeof(float));
        assert_memory_equal(a->sample.top, b->sample.top,
                            a->sample.top_count * sizeof(a->sample.top[0]));
    }
}

static void same_record(const struct dc_step *a, const struct dc_step *b)
{
    assert_int_equal(a->entry_count, b->entry_count);
    for (uint32_t i = 0; i < a->entry_count; i++)
        same_entry(&a->entries[i], &b->entries[i]);
    assert_int_equal(a->wish_count, b->wish_count);
    for (uint32_t i = 0; i < a->wish_count; i++) {
        assert_int_equal(a->wishes[i].request, b->wishes[i].request);
        assert_int_equal(a->wishes[i].stalled, b->wishes[i].stalled);
    }
    assert_int_equal(a->rows, b->rows);
    assert_int_equal(a->sequences, b->sequences);
    assert_int_equal(a->drawing, b->drawing);
    assert_int_equal(a->prompt_rows, b->prompt_rows);
    assert_int_equal(a->kv_tokens, b->kv_tokens);
}

static struct world *plain, *ahead;

static void run_both(const struct bt_model *model, uint64_t seed, bool ends_with_eos)
{
    world_open(plain, model, seed, false, ends_with_eos);
    world_open(ahead, model, seed, true, ends_with_eos);
    run(plain);
    run(ahead);
    print_message("seed %u: %u turns, %u begun behind another\n", (unsigned)seed, ahead->turn,
                  ahead->overlapped);
    for (uint32_t i = 0; i < SUBJECTS; i++) {
        const struct subject *a = &plain->subjects[i], *b = &ahead->subjects[i];
        assert_int_equal(a->finish, b->finish);
        assert_int_equal(a->token_count, b->token_count);
        assert_memory_equal(a->tokens, b->tokens, a->token_count * sizeof(uint32_t));
    }
}

static void close_both(void)
{
    world_close(plain);
    world_close(ahead);
}

static struct bt_model *model_of(void)
{
    struct bt_error error;
    struct bt_model *model;
    const struct bt_model_options load = {.dir = TINY_MODEL};
    if (bt_model_load(&load, &error, &model) != BT_OK)
        fail_msg("%s", error.text);
    return model;
}

/* Every record is the same, and so is all of KV. */
static void test_the_same_steps(void **state)
{
    (void)state;
    struct bt_model *model = model_of();
    uint32_t overlapped = 0;
    static const uint64_t seeds[] = {1, 4, LITTLE_ROOM};
    for (uint32_t s = 0; s < 3; s++) {
        run_both(model, seeds[s], false);
        assert_true(seeds[s] == LITTLE_ROOM ? ahead->overlapped > 0
                                            : ahead->overlapped > ahead->turn / 2);
        for (uint32_t t = 0; t < TURNS_MAX; t++) {
            const struct record *a = &plain->records[t], *b = &ahead->records[t];
            assert_int_equal(a->there, b->there);
            if (a->there)
                same_record(&a->step, &b->step);
        }
        assert_memory_equal(plain->pool, ahead->pool, plain->pool_bytes);
        overlapped += ahead->overlapped;
        close_both();
    }
    assert_true(overlapped > 100);
    bt_model_destroy(model);
}

/* EOS comes unforeseen: the same tokens and ends, whatever was computed for nothing. */
static void test_the_same_tokens_with_eos(void **state)
{
    (void)state;
    struct bt_model *model = model_of();
    uint32_t stopped = 0, overlapped = 0;
    for (uint64_t seed = 11; seed <= 12; seed++) {
        model->config.eos_token_count = BT_MAX_EOS_TOKENS;
        world_open(plain, model, seed, false, false);
        run(plain); /* for tokens that are drawn, in the midst of outputs */
        for (uint32_t e = 0, i = 0; e < BT_MAX_EOS_TOKENS && i < SUBJECTS; i++) {
            const struct subject *subject = &plain->subjects[i];
            if (subject->token_count > 8)
                model->config.eos_token_ids[e++] = subject->tokens[4 + i % 4];
        }
        world_close(plain);
        run_both(model, seed, true);
        for (uint32_t i = 0; i < SUBJECTS; i++)
            stopped += ahead->subjects[i].finish == DC_FINISH_STOP;
        overlapped += ahead->overlapped;
        close_both();
    }
    assert_true(stopped > 5 && overlapped > 50);
    bt_model_destroy(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_same_steps),
        cmocka_unit_test(test_the_same_tokens_with_eos),
    };
    plain = calloc(1, sizeof(*plain));
    ahead = calloc(1, sizeof(*ahead));
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    free(plain);
    free(ahead);
    return failed;
}
