/*
 * The forward pass on a device that queues (late_device.h): the bits of the CPU, whatever is
 * replayed, padded or begun ahead; one wait a step; layers told while later ones are still to run.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/random.h"
#include "common/model/draws.h"
#include "common/model/forward.h"
#include "tests/late-device/late_device.h"

#define PAGES     24
#define MOST      12 /* sequences, of 2 pages each */
#define MAX_ROWS  64
#define STEPS     40
#define LOAD_SPAN 64

/* One engine on the CPU, one on the device, with the same weights. */
struct side {
    struct bt_model view;
    struct bt_forward *forward;
    struct bt_expert_loads *loads;
    void *pool;
};

struct rig {
    struct bt_model *model;
    struct bt_device *late;
    struct bt_kv_layout layout;
    struct side cpu, device;
    uint32_t pages[MOST][2], lengths[MOST];
};

static void side_open(struct rig *rig, struct side *side, struct bt_device *device)
{
    struct bt_error error;
    const struct bt_model_config *c = &rig->model->config;
    side->view = *rig->model;
    if (device) {
        side->view.device = device;
        side->view.kernels = device->kernels;
    }
    assert_int_equal(bt_expert_loads_create(bt_model_moe_layers(c), c->n_routed_experts, 4,
                                            LOAD_SPAN, &error, &side->loads),
                     BT_OK);
    const struct bt_forward_options options = {
        .max_rows = MAX_ROWS, .max_logits = MOST, .max_sequences = MOST, .loads = side->loads};
    if (bt_forward_create(&side->view, &options, &error, &side->forward) != BT_OK)
        fail_msg("%s", error.text);
    side->pool = calloc(1, bt_kv_pool_bytes(&rig->layout, PAGES));
}

static void side_close(struct side *side)
{
    bt_forward_destroy(side->forward);
    bt_expert_loads_destroy(side->loads);
    free(side->pool);
}

static void rig_open(struct rig *rig, enum bt_model_dtype dtype)
{
    struct bt_error error;
    const struct bt_model_options load = {
        .dir = TESTS_MODELS "/tiny", .dtype = dtype, .max_tokens = 2 * BT_PAGE_TOKENS};
    memset(rig, 0, sizeof(*rig));
    if (bt_model_load(&load, &error, &rig->model) != BT_OK)
        fail_msg("%s", error.text);
    rig->layout = bt_model_kv_layout(rig->model, bt_model_kv_dtype(rig->model, "auto"));
    rig->late = late_device_create(rig->model->kernels);
    side_open(rig, &rig->cpu, NULL);
    side_open(rig, &rig->device, rig->late);
    for (uint32_t i = 0; i < MOST; i++) {
        rig->pages[i][0] = (i * 7 + 3) % PAGES;
        rig->pages[i][1] = ((i + MOST) * 7 + 3) % PAGES;
    }
}

static void rig_close(struct rig *rig)
{
    side_close(&rig->cpu);
    side_close(&rig->device);
    late_device_destroy(rig->late);
    bt_model_destroy(rig->model);
}

/* Rows of some sequences, and what is wanted of them. */
struct feed {
    enum bt_forward_form form;
    uint32_t tokens[MAX_ROWS], logit_rows[MOST];
    struct bt_sequence_rows sequences[MOST];
    struct bt_draw draws[MOST];
    uint32_t rows, count;
};

/* counts[i] rows of each sequence that has some; tokens by seed. */
static void feed_fill(struct rig *rig, struct feed *feed, enum bt_forward_form form,
                      const uint32_t *counts, uint64_t seed)
{
    memset(feed, 0, sizeof(*feed));
    feed->form = form;
    for (uint32_t i = 0; i < MOST; i++) {
        if (counts[i] == 0)
            continue;
        feed->sequences[feed->count] =
            (struct bt_sequence_rows){rig->pages[i], rig->lengths[i], feed->rows, counts[i]};
        for (uint32_t t = 0; t < counts[i]; t++)
            feed->tokens[feed->rows + t] =
                1 + (uint32_t)(bt_random_u64(seed, i, rig->lengths[i] + t) % 1000);
        rig->lengths[i] += counts[i];
        feed->rows += counts[i];
        feed->logit_rows[feed->count++] = feed->rows - 1;
    }
}

static struct bt_forward_batch batch_of(const struct rig *rig, const struct side *side,
                                        const struct feed *feed)
{
    return (struct bt_forward_batch){
        .form = feed->form,
        .tokens = feed->tokens,
        .rows = feed->rows,
        .sequences = feed->sequences,
        .sequence_count = feed->count,
        .kv_pool = side->pool,
        .layout = rig->layout,
        .pool_pages = PAGES,
        .logit_rows = feed->logit_rows,
        .logit_count = feed->count,
    };
}

static void run_both(struct rig *rig, const struct feed *feed, bool profiled)
{
    const float *expected, *logits;
    struct bt_forward_batch cpu = batch_of(rig, &rig->cpu, feed);
    struct bt_forward_batch device = batch_of(rig, &rig->device, feed);
    uint64_t waits = late_device_count(rig->late).waits;
    assert_int_equal(bt_forward_run(rig->cpu.forward, &cpu, &expected), BT_OK);
    assert_int_equal(bt_forward_run(rig->device.forward, &device, &logits), BT_OK);
    assert_memory_equal(logits, expected,
                        (size_t)feed->count * rig->model->config.vocab_size * sizeof(float));
    assert_true(profiled || late_device_count(rig->late).waits == waits + 1);
}

static void same_pools_and_loads(const struct rig *rig)
{
    const struct bt_model_config *c = &rig->model->config;
    size_t count = (size_t)bt_model_moe_layers(c) * c->n_routed_experts;
    uint64_t *cpu = calloc(count, sizeof(*cpu)), *device = calloc(count, sizeof(*device));
    bt_expert_loads_sum(rig->cpu.loads, cpu);
    bt_expert_loads_sum(rig->device.loads, device);
    assert_memory_equal(cpu, device, count * sizeof(*cpu));
    assert_true(bt_expert_loads_rows(rig->cpu.loads) > 0);
    assert_memory_equal(rig->cpu.pool, rig->device.pool, bt_kv_pool_bytes(&rig->layout, PAGES));
    free(cpu);
    free(device);
}

/* Which sequences have a row: `most` of them. */
static void choose(uint32_t *counts, uint32_t most)
{
    for (uint32_t i = 0; i < MOST; i++)
        counts[i] = i < most;
}

static void prompts(struct rig *rig)
{
    uint32_t counts[MOST];
    struct feed feed;
    for (uint32_t i = 0; i < MOST; i++)
        counts[i] = 1 + i % 5;
    feed_fill(rig, &feed, BT_FORWARD_MULTI_HEAD, counts, 1);
    run_both(rig, &feed, false);
}

static void bits(enum bt_model_dtype dtype)
{
    struct rig rig;
    struct feed feed;
    uint32_t counts[MOST];
    rig_open(&rig, dtype);
    prompts(&rig);
    for (uint32_t step = 0; step < STEPS; step++) {
        choose(counts, 1 + (uint32_t)(bt_random_u64(2, step, 0) % MOST));
        if (step % 5 == 4)
            counts[step % MOST] += 1 + step % 3; /* a replay: more rows than logits */
        feed_fill(&rig, &feed, BT_FORWARD_ABSORBED, counts, 3);
        run_both(&rig, &feed, false);
    }
    same_pools_and_loads(&rig);
    struct bt_forward_counts count;
    bt_forward_count(rig.device.forward, &count);
    struct late_device_counts late = late_device_count(rig.late);
    assert_int_equal(count.graph_launches, late.launches);
    assert_int_equal(count.graphs, late.captures);
    assert_int_equal(count.device_waits, late.waits);
    assert_true(late.launches > STEPS / 2 && late.captures < STEPS / 3);
    rig_close(&rig);
}

static void test_bits_of_the_cpu_f32(void **state)
{
    (void)state;
    bits(BT_MODEL_FLOAT32);
}

static void test_bits_of_the_cpu_bf16(void **state)
{
    (void)state;
    bits(BT_MODEL_BFLOAT16);
}

/* Warmed, no step of these sizes captures any more, nor allocates. */
static void test_warm(void **state)
{
    (void)state;
    struct rig rig;
    struct feed feed;
    uint32_t counts[MOST];
    rig_open(&rig, BT_MODEL_FLOAT32);
    const struct bt_forward_batch where = batch_of(&rig, &rig.device, &feed);
    void *before = malloc(bt_kv_pool_bytes(&rig.layout, PAGES));
    memcpy(before, rig.device.pool, bt_kv_pool_bytes(&rig.layout, PAGES));
    assert_int_equal(bt_forward_warm(rig.device.forward, &where, MOST), BT_OK);
    assert_memory_equal(before, rig.device.pool, bt_kv_pool_bytes(&rig.layout, PAGES));
    free(before);
    struct late_device_counts warm = late_device_count(rig.late);
    assert_int_equal(warm.captures, 5); /* 1, 2, 4, 8, 12 of 16 */
    prompts(&rig);
    for (uint32_t n = 1; n <= MOST; n++) {
        choose(counts, n);
        feed_fill(&rig, &feed, BT_FORWARD_ABSORBED, counts, n);
        const float *expected;
        struct bt_forward_batch cpu = batch_of(&rig, &rig.cpu, &feed);
        struct bt_forward_batch device = batch_of(&rig, &rig.device, &feed);
        struct bt_forward_result result;
        assert_int_equal(bt_forward_run(rig.cpu.forward, &cpu, &expected), BT_OK);
        device.draws = feed.draws; /* temperature 0 */
        assert_int_equal(bt_forward_begin(rig.device.forward, &device), BT_OK);
        assert_int_equal(bt_forward_finish(rig.device.forward, &result), BT_OK);
        assert_memory_equal(result.logits, expected,
                            (size_t)n * rig.model->config.vocab_size * sizeof(float));
    }
    struct late_device_counts after = late_device_count(rig.late);
    assert_int_equal(after.captures, warm.captures);
    assert_int_equal(after.launches, warm.launches + MOST);
    assert_int_equal(after.allocations, warm.allocations);
    rig_close(&rig);
}

static void test_padded(void **state)
{
    (void)state;
    static const uint32_t cases[][2] = {{0, 0},     {1, 1},     {2, 2},     {3, 4},    {5, 8},
                                        {8, 8},     {9, 16},    {17, 24},   {24, 24},  {65, 72},
                                        {128, 128}, {129, 144}, {256, 256}, {257, 288}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        assert_int_equal(bt_forward_padded(cases[i][0], UINT32_MAX), cases[i][1]);
    assert_int_equal(bt_forward_padded(9, 12), 12);
    for (uint32_t n = 1; n < 3000; n++) {
        uint32_t padded = bt_forward_padded(n, UINT32_MAX);
        assert_true(padded >= n && (n <= 64 || padded - n <= n / 8));
        assert_int_equal(bt_forward_padded(padded, UINT32_MAX), padded);
    }
}

/* ---- tokens that stay on the device ---- */

enum { AHEAD = 20, OF = 5 };

/* What each of OF sequences draws in AHEAD steps, none where it has no row. */
struct story {
    struct bt_sampling sampling[OF];
    struct bt_sampler *sampler;
    struct bt_sample drawn[AHEAD][OF];
};

static bool has_row(uint32_t step, uint32_t i)
{
    return (step + i) % 4 != 0;
}

static uint32_t generated_before(uint32_t step, uint32_t i)
{
    uint32_t count = 0;
    for (uint32_t s = 0; s < step; s++)
        count += has_row(s, i);
    return count;
}

/* The token that sequence i goes on with. */
static uint32_t token_before(const struct story *story, uint32_t step, uint32_t i)
{
    while (step-- > 0)
        if (has_row(step, i))
            return story->drawn[step][i].token;
    return 10 + i;
}

/* Of the tokens that it drew in the steps before. */
static struct bt_sampler_history *history_before(const struct story *story, uint32_t step,
                                                 uint32_t i)
{
    struct bt_sampler_history *history = bt_sampler_history_create();
    uint32_t first = 10 + i;
    assert_true(bt_sampler_history_add_prompt(history, &first, 1));
    for (uint32_t s = 0; s < step; s++)
        if (has_row(s, i))
            assert_true(bt_sampler_history_add_output(history, story->drawn[s][i].token));
    return history;
}

/* The draw of the next row. `ahead`: nobody knows what the step before drew, in row `from`. */
static void ask(const struct story *story, uint32_t step, uint32_t i, bool ahead, uint32_t from,
                struct bt_draws *draws)
{
    struct bt_draw_ask ask = {.sampling = &story->sampling[i],
                              .position = generated_before(step, i)};
    struct bt_sampler_history *history = history_before(story, ahead ? step - 1 : step, i);
    ask.history = history;
    if (ahead) {
        ask.newest = BT_NEWEST_DRAWN;
        ask.newest_token = from;
    }
    assert_true(bt_draws_add(draws, story->sampler, &ask));
    bt_sampler_history_destroy(history);
}

static void story_feed(struct rig *rig, const struct story *story, uint32_t step, struct feed *feed)
{
    uint32_t counts[MOST] = {0}, row = 0;
    for (uint32_t i = 0; i < OF; i++)
        counts[i] = has_row(step, i);
    feed_fill(rig, feed, BT_FORWARD_ABSORBED, counts, 0);
    for (uint32_t i = 0; i < OF; i++)
        if (counts[i])
            feed->tokens[row++] = token_before(story, step, i);
}

static void story_init(struct rig *rig, struct story *story)
{
    struct feed feed;
    for (uint32_t i = 0; i < OF; i++)
        story->sampling[i] = (struct bt_sampling){.seed = i,
                                                  .temperature = i % 2 ? 0.9f : 0,
                                                  .top_p = i == 3 ? 0.8f : 1,
                                                  .top_k = i == 1 ? 20 : 0,
                                                  .repetition_penalty = i == 2 ? 5 : 1,
                                                  .frequency_penalty = i == 3 ? 2 : 0,
                                                  .logprobs = i == 1 ? -1 : (int32_t)i,
                                                  .min_tokens = i == 4 ? 5 : 0,
                                                  .max_tokens = 100};
    const struct bt_model_config *c = &rig->model->config;
    story->sampler = bt_sampler_create(c->vocab_size, c->eos_token_ids, c->eos_token_count);
    assert_non_null(story->sampler);
    for (uint32_t step = 0; step < AHEAD; step++) {
        const float *logits;
        story_feed(rig, story, step, &feed);
        struct bt_forward_batch batch = batch_of(rig, &rig->cpu, &feed);
        assert_int_equal(bt_forward_run(rig->cpu.forward, &batch, &logits), BT_OK);
        for (uint32_t i = 0; i < OF; i++)
            if (has_row(step, i)) {
                struct bt_sampler_history *history = history_before(story, step, i);
                bt_sampler_draw(story->sampler, logits, &story->sampling[i], history,
                                generated_before(step, i), &story->drawn[step][i]);
                bt_sampler_history_destroy(history);
                logits += c->vocab_size;
            }
    }
}

static void begin_ahead(struct rig *rig, const struct story *story, uint32_t step)
{
    struct feed feed;
    uint32_t from[OF], row = 0, before = 0;
    struct bt_draws draws;
    assert_true(bt_draws_init(&draws, OF));
    story_feed(rig, story, step, &feed);
    for (uint32_t i = 0; i < OF; i++) {
        bool drew = step > 0 && has_row(step - 1, i);
        if (has_row(step, i)) {
            from[row] = drew ? before : BT_TOKEN_GIVEN;
            feed.tokens[row] = drew ? UINT32_MAX : feed.tokens[row];
            ask(story, step, i, drew, before, &draws);
            row++;
        }
        before += drew;
    }
    struct bt_forward_batch batch = batch_of(rig, &rig->device, &feed);
    batch.draws = draws.draws;
    batch.adjusts = draws.adjusts;
    batch.adjust_count = draws.adjust_count;
    batch.no_logits = true;
    batch.token_from = step > 0 ? from : NULL;
    assert_int_equal(bt_forward_begin(rig->device.forward, &batch), BT_OK);
    memset(&feed, 0xff, sizeof(feed)); /* it was read */
    bt_draws_finish(&draws);
}

static void finish_ahead(struct rig *rig, const struct story *story, uint32_t step)
{
    struct bt_forward_result result;
    uint32_t row = 0;
    assert_int_equal(bt_forward_finish(rig->device.forward, &result), BT_OK);
    assert_null(result.logits);
    for (uint32_t i = 0; i < OF; i++)
        if (has_row(step, i)) {
            const struct bt_sample *want = &story->drawn[step][i];
            struct bt_sample got;
            bt_draw_sample(&story->sampling[i], result.tokens[row],
                           result.logprobs ? &result.logprobs[row] : NULL, &got);
            row++;
            assert_int_equal(got.token, want->token);
            assert_int_equal(got.top_count, want->top_count);
            assert_memory_equal(&got.logprob, &want->logprob, sizeof(float));
            assert_memory_equal(got.top, want->top, want->top_count * sizeof(want->top[0]));
        }
}

/* Each step is begun before the tokens of the one before are looked at: the same tokens as of one
 * after the other, and one wait a step. */
static void test_steps_begun_ahead(void **state)
{
    (void)state;
    struct rig rig;
    struct story story;
    uint32_t lengths[MOST];
    rig_open(&rig, BT_MODEL_FLOAT32);
    prompts(&rig);
    memcpy(lengths, rig.lengths, sizeof(lengths));
    story_init(&rig, &story);
    memcpy(rig.lengths, lengths, sizeof(lengths));
    uint64_t waits = late_device_count(rig.late).waits;
    begin_ahead(&rig, &story, 0);
    for (uint32_t step = 0; step < AHEAD; step++) {
        if (step + 1 < AHEAD)
            begin_ahead(&rig, &story, step + 1);
        assert_int_equal(late_device_count(rig.late).waits, waits + step);
        finish_ahead(&rig, &story, step);
        assert_int_equal(late_device_count(rig.late).waits, waits + step + 1);
    }
    same_pools_and_loads(&rig);
    bt_sampler_destroy(story.sampler);
    rig_close(&rig);
}

/* ---- layers ---- */

struct layers {
    struct rig *rig;
    uint32_t told;
    uint64_t done; /* operations of the device, at the layer before */
};

static void on_layer(void *context, uint32_t layer)
{
    struct layers *layers = context;
    struct late_device_counts counts = late_device_count(layers->rig->late);
    assert_int_equal(layer, layers->told);
    layers->told++;
    /* More was done than at the layer before, and what comes after is queued and not begun. */
    assert_true(counts.done > layers->done && counts.done < counts.queued);
    assert_int_equal(counts.waits, layers->told);
    layers->done = counts.done;
}

static void test_layers_are_told_while_later_ones_run(void **state)
{
    (void)state;
    struct rig rig;
    struct feed feed;
    uint32_t counts[MOST] = {7, 0, 9};
    rig_open(&rig, BT_MODEL_FLOAT32);
    struct layers layers = {.rig = &rig};
    feed_fill(&rig, &feed, BT_FORWARD_MULTI_HEAD, counts, 1);
    struct bt_forward_batch batch = batch_of(&rig, &rig.device, &feed);
    struct bt_forward_result result;
    batch.layer_done = on_layer;
    batch.context = &layers;
    assert_int_equal(bt_forward_begin(rig.device.forward, &batch), BT_OK);
    assert_int_equal(layers.told, 0);
    assert_int_equal(late_device_count(rig.late).waits, 0);
    assert_int_equal(bt_forward_finish(rig.device.forward, &result), BT_OK);
    assert_int_equal(layers.told, rig.model->config.num_hidden_layers);
    assert_int_equal(late_device_count(rig.late).waits, layers.told + 1);
    rig_close(&rig);
}

/* ---- probes ---- */

#define SEEN ((size_t)1 << 20)

struct seen {
    const struct rig *rig;
    uint32_t rows;
    float *x;
    size_t count;
    uint64_t experts;
};

static void see(void *context, int32_t layer, const float *x, const uint32_t *experts,
                const float *weights)
{
    struct seen *seen = context;
    size_t width = (size_t)seen->rows * seen->rig->model->config.hidden_size;
    uint32_t picks = seen->rows * seen->rig->model->config.route.experts_per_token;
    assert_true(seen->count + width < SEEN);
    memcpy(seen->x + seen->count, x, width * sizeof(float));
    seen->count += width;
    for (uint32_t i = 0; experts && i < picks; i++)
        seen->experts = seen->experts * 31 + experts[i] + (weights[i] > 0) + (uint32_t)layer;
}

static void test_probes_see_the_same(void **state)
{
    (void)state;
    struct rig rig;
    struct feed feed;
    uint32_t counts[MOST] = {3, 2};
    const float *logits, *expected;
    rig_open(&rig, BT_MODEL_FLOAT32);
    struct seen cpu = {.rig = &rig, .rows = 5, .x = calloc(SEEN, sizeof(float))};
    struct seen device = {.rig = &rig, .rows = 5, .x = calloc(SEEN, sizeof(float))};
    feed_fill(&rig, &feed, BT_FORWARD_ABSORBED, counts, 1);
    struct bt_forward_batch on_cpu = batch_of(&rig, &rig.cpu, &feed);
    struct bt_forward_batch on_device = batch_of(&rig, &rig.device, &feed);
    on_cpu.probe = on_device.probe = see;
    on_cpu.context = &cpu;
    on_device.context = &device;
    assert_int_equal(bt_forward_run(rig.cpu.forward, &on_cpu, &expected), BT_OK);
    assert_int_equal(bt_forward_run(rig.device.forward, &on_device, &logits), BT_OK);
    assert_memory_equal(logits, expected, 2 * rig.model->config.vocab_size * sizeof(float));
    assert_int_equal(cpu.count, device.count);
    assert_memory_equal(cpu.x, device.x, cpu.count * sizeof(float));
    assert_int_equal(cpu.experts, device.experts);
    free(cpu.x);
    free(device.x);
    rig_close(&rig);
}

/* ---- faults, profile ---- */

static void test_a_broken_device_says_so(void **state)
{
    (void)state;
    struct rig rig;
    struct feed feed;
    uint32_t counts[MOST] = {1, 1};
    rig_open(&rig, BT_MODEL_FLOAT32);
    feed_fill(&rig, &feed, BT_FORWARD_ABSORBED, counts, 1);
    struct bt_forward_batch batch = batch_of(&rig, &rig.device, &feed);
    struct bt_forward_result result;
    batch.draws = feed.draws;
    batch.no_logits = true;
    assert_int_equal(bt_forward_begin(rig.device.forward, &batch), BT_OK);
    assert_int_equal(bt_forward_begin(rig.device.forward, &batch), BT_OK);
    late_device_break(rig.late);
    assert_int_equal(bt_forward_finish(rig.device.forward, &result), BT_ERR_INTERNAL);
    assert_non_null(strstr(bt_forward_error(rig.device.forward), "broke"));
    /* Nothing is under way; the next one fails likewise. */
    const float *logits;
    assert_int_equal(bt_forward_run(rig.device.forward, &batch, &logits), BT_ERR_INTERNAL);
    rig_close(&rig);
}

static void test_profile(void **state)
{
    (void)state;
    struct rig rig;
    struct feed feed;
    struct bt_profile profile = {0};
    uint32_t counts[MOST] = {1, 1, 1};
    rig_open(&rig, BT_MODEL_FLOAT32);
    uint32_t layers = rig.model->config.num_hidden_layers;
    bt_forward_profile(rig.device.forward, &profile);
    for (uint32_t i = 0; i < 3; i++) {
        feed_fill(&rig, &feed, BT_FORWARD_ABSORBED, counts, i);
        run_both(&rig, &feed, true);
    }
    assert_int_equal(late_device_count(rig.late).captures, 0);
    assert_int_equal(profile.calls[BT_PROFILE_MLA_DECODE], 3 * layers);
    assert_true(profile.ns[BT_PROFILE_MLA_DECODE] > 0);
    assert_int_equal(profile.calls[BT_PROFILE_EMBED], 3);
    rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bits_of_the_cpu_f32),
        cmocka_unit_test(test_bits_of_the_cpu_bf16),
        cmocka_unit_test(test_warm),
        cmocka_unit_test(test_padded),
        cmocka_unit_test(test_steps_begun_ahead),
        cmocka_unit_test(test_layers_are_told_while_later_ones_run),
        cmocka_unit_test(test_probes_see_the_same),
        cmocka_unit_test(test_a_broken_device_says_so),
        cmocka_unit_test(test_profile),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
