/*
 * The tiny model on the emulated GPU (BATON_CUDA_MODULE): logits near those of the CPU, tokens
 * drawn in the graph, one wait a decode step and none inside, layers told one after the other.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/model/draws.h"
#include "common/model/forward.h"

#define PAGES     6
#define PROMPT    8
#define SEQUENCES 3
#define STEPS     3
#define TOLERANCE 2e-3 /* of logits of a few units */

struct side {
    struct bt_device *device;
    struct bt_model *model;
    struct bt_forward *forward;
    struct bt_kv_layout layout;
    void *pool;
};

static void side_open(struct side *side, const char *device)
{
    struct bt_error error;
    if (bt_device_open(device, NULL, &error, &side->device) != BT_OK)
        fail_msg("%s", error.text);
    const struct bt_model_options load = {
        .dir = TESTS_MODELS "/tiny", .device = side->device, .max_tokens = PAGES * BT_PAGE_TOKENS};
    const struct bt_forward_options options = {
        .max_rows = SEQUENCES * PROMPT, .max_logits = SEQUENCES, .max_sequences = SEQUENCES};
    if (bt_model_load(&load, &error, &side->model) != BT_OK ||
        bt_forward_create(side->model, &options, &error, &side->forward) != BT_OK)
        fail_msg("%s", error.text);
    side->layout = bt_model_kv_layout(side->model, BT_F32);
    size_t bytes = bt_kv_pool_bytes(&side->layout, PAGES);
    if (bt_device_alloc(side->device, bytes, &error, &side->pool) != BT_OK)
        fail_msg("%s", error.text);
}

static void side_close(struct side *side)
{
    bt_forward_destroy(side->forward);
    bt_device_free(side->device, side->pool);
    bt_model_destroy(side->model);
    bt_device_close(side->device);
}

static uint64_t waits(const struct side *side)
{
    return side->device->ops->waits(side->device);
}

struct feed {
    uint32_t pages[SEQUENCES], tokens[SEQUENCES * PROMPT], logit_rows[SEQUENCES];
    struct bt_sequence_rows sequences[SEQUENCES];
    struct bt_draw draws[SEQUENCES];
    uint32_t each;
};

static void feed_init(struct feed *feed, uint32_t start, uint32_t each)
{
    feed->each = each;
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        feed->pages[i] = 5 - 2 * i;
        feed->sequences[i] = (struct bt_sequence_rows){&feed->pages[i], start, i * each, each};
        feed->logit_rows[i] = i * each + each - 1;
        feed->draws[i] = (struct bt_draw){.seed = i, .position = start, .top_p = 1};
    }
}

static struct bt_forward_batch batch_of(const struct side *side, const struct feed *feed,
                                        enum bt_forward_form form)
{
    return (struct bt_forward_batch){
        .form = form,
        .tokens = feed->tokens,
        .rows = SEQUENCES * feed->each,
        .sequences = feed->sequences,
        .sequence_count = SEQUENCES,
        .kv_pool = side->pool,
        .layout = side->layout,
        .pool_pages = PAGES,
        .logit_rows = feed->logit_rows,
        .logit_count = SEQUENCES,
    };
}

static void count_layer(void *context, uint32_t layer)
{
    uint32_t *layers = context;
    assert_int_equal(layer, *layers);
    ++*layers;
}

static void same_logits(const struct side *side, const float *got, const float *want)
{
    size_t count = (size_t)SEQUENCES * side->model->config.vocab_size;
    double most = 0;
    for (size_t i = 0; i < count; i++) {
        double difference = fabs((double)got[i] - (double)want[i]);
        most = difference <= most ? most : difference;
    }
    if (!(most < TOLERANCE))
        fail_msg("logits differ by %g", most);
}

static uint32_t best_of(const float *logits, uint32_t count)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < count; i++)
        best = logits[i] > logits[best] ? i : best;
    return best;
}

static void test_steps(void **state)
{
    (void)state;
    struct side cpu, gpu;
    struct feed feed;
    struct bt_forward_result want, got;
    uint32_t told = 0;
    side_open(&cpu, "cpu");
    side_open(&gpu, "cuda");
    assert_true(bt_forward_draws(gpu.forward));
    uint32_t layers = gpu.model->config.num_hidden_layers, vocab = gpu.model->config.vocab_size;

    feed_init(&feed, 0, PROMPT);
    for (uint32_t i = 0; i < SEQUENCES * PROMPT; i++)
        feed.tokens[i] = 3 + i * 17 % 900;
    struct bt_forward_batch on_cpu = batch_of(&cpu, &feed, BT_FORWARD_MULTI_HEAD);
    struct bt_forward_batch on_gpu = batch_of(&gpu, &feed, BT_FORWARD_MULTI_HEAD);
    on_gpu.layer_done = count_layer;
    on_gpu.context = &told;
    uint64_t before = waits(&gpu);
    assert_int_equal(bt_forward_begin(gpu.forward, &on_gpu), BT_OK);
    assert_int_equal(waits(&gpu), before);
    assert_int_equal(bt_forward_finish(gpu.forward, &got), BT_OK);
    assert_int_equal(waits(&gpu), before + layers + 1);
    assert_int_equal(told, layers);
    assert_int_equal(bt_forward_run(cpu.forward, &on_cpu, &want.logits), BT_OK);
    same_logits(&gpu, got.logits, want.logits);

    for (uint32_t step = 0; step < STEPS; step++) { /* as it is, captured, replayed */
        for (uint32_t i = 0; i < SEQUENCES; i++)
            feed.tokens[i] = best_of(want.logits + (size_t)i * vocab, vocab);
        feed_init(&feed, PROMPT + step, 1);
        on_cpu = batch_of(&cpu, &feed, BT_FORWARD_ABSORBED);
        on_gpu = batch_of(&gpu, &feed, BT_FORWARD_ABSORBED);
        on_gpu.draws = feed.draws;
        before = waits(&gpu);
        assert_int_equal(bt_forward_begin(gpu.forward, &on_gpu), BT_OK);
        assert_int_equal(waits(&gpu), before);
        assert_int_equal(bt_forward_finish(gpu.forward, &got), BT_OK);
        assert_int_equal(waits(&gpu), before + 1);
        assert_int_equal(bt_forward_run(cpu.forward, &on_cpu, &want.logits), BT_OK);
        same_logits(&gpu, got.logits, want.logits);
        for (uint32_t i = 0; i < SEQUENCES; i++)
            assert_int_equal(got.tokens[i], best_of(got.logits + (size_t)i * vocab, vocab));
    }
    struct bt_forward_counts counts;
    bt_forward_count(gpu.forward, &counts);
    assert_int_equal(counts.graphs, 1);
    assert_int_equal(counts.graph_launches, STEPS - 1);
    side_close(&gpu);
    side_close(&cpu);
}

/* ---- draws of all kinds in one graph */

/* Of a row: bias, mask, penalties, logprobs; row 0 has none. The history has not `newest`. */
struct wish {
    struct bt_logit_bias bias;
    struct bt_sampling sampling;
    struct bt_sampler_history *known, *all;
};

static void wish_init(struct wish *wish, uint32_t row, uint32_t best, uint32_t newest)
{
    wish->bias = (struct bt_logit_bias){best, -2};
    wish->sampling = (struct bt_sampling){.seed = row,
                                          .temperature = row % 2 ? 0.8f : 0,
                                          .top_p = 0.95f,
                                          .repetition_penalty = row > 0 ? 1.3f : 1,
                                          .presence_penalty = row > 0 ? 0.5f : 0,
                                          .frequency_penalty = row > 1 ? 0.25f : 0,
                                          .logprobs = row > 0 ? (int32_t)row * 3 : -1,
                                          .bias_count = row > 1,
                                          .bias = &wish->bias,
                                          .min_tokens = row == 1 ? 100 : 0,
                                          .max_tokens = 100};
    wish->known = bt_sampler_history_create();
    wish->all = bt_sampler_history_create();
    for (uint32_t i = 0; i < 9; i++) {
        uint32_t token = i < 8 ? 3 + i * 50 : best;
        assert_true(bt_sampler_history_add_output(wish->known, token));
        assert_true(bt_sampler_history_add_output(wish->all, token));
    }
    assert_true(bt_sampler_history_add_output(wish->all, newest));
}

/* A step twice: as it is, whose logits the host sees, and drawing with all that a draw can have,
 * with tokens of the first as those that the host does not know. */
static void check_draws(struct side *gpu, struct bt_sampler *sampler, struct bt_draws *draws,
                        uint32_t step)
{
    struct feed feed;
    struct bt_forward_result got;
    struct wish wishes[SEQUENCES];
    struct bt_sample want[SEQUENCES], sample;
    uint32_t vocab = gpu->model->config.vocab_size, drawn[SEQUENCES];
    feed_init(&feed, step, 1);
    for (uint32_t i = 0; i < SEQUENCES; i++)
        feed.tokens[i] = 3 + (step * 31 + i * 17) % 900;
    struct bt_forward_batch batch = batch_of(gpu, &feed, BT_FORWARD_ABSORBED);
    batch.draws = feed.draws;
    assert_int_equal(bt_forward_begin(gpu->forward, &batch), BT_OK);
    assert_int_equal(bt_forward_finish(gpu->forward, &got), BT_OK);
    assert_null(got.logprobs);
    memcpy(drawn, got.tokens, sizeof(drawn));

    bt_draws_clear(draws);
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        uint32_t from = SEQUENCES - 1 - i;
        wish_init(&wishes[i], i, drawn[i], drawn[from]);
        const struct bt_draw_ask ask = {&wishes[i].sampling, wishes[i].known, step, BT_NEWEST_DRAWN,
                                        from};
        assert_true(bt_draws_add(draws, sampler, &ask));
        bt_sampler_draw(sampler, got.logits + (size_t)i * vocab, &wishes[i].sampling, wishes[i].all,
                        step, &want[i]);
        bt_sampler_history_destroy(wishes[i].known);
        bt_sampler_history_destroy(wishes[i].all);
    }
    batch.draws = draws->draws;
    batch.adjusts = draws->adjusts;
    batch.adjust_count = draws->adjust_count;
    batch.no_logits = true;
    uint64_t before = waits(gpu);
    assert_int_equal(bt_forward_begin(gpu->forward, &batch), BT_OK);
    assert_int_equal(waits(gpu), before);
    assert_int_equal(bt_forward_finish(gpu->forward, &got), BT_OK);
    assert_int_equal(waits(gpu), before + 1);
    assert_null(got.logits);
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        bt_draw_sample(&wishes[i].sampling, got.tokens[i], &got.logprobs[i], &sample);
        assert_int_equal(sample.token, want[i].token);
        assert_int_equal(sample.top_count, want[i].top_count);
        assert_memory_equal(&sample.logprob, &want[i].logprob, sizeof(float));
        assert_memory_equal(sample.top, want[i].top, want[i].top_count * sizeof(want[i].top[0]));
    }
}

static void test_draws(void **state)
{
    (void)state;
    struct side gpu;
    struct bt_draws draws;
    struct bt_forward_counts counts;
    side_open(&gpu, "cuda");
    const struct bt_model_config *c = &gpu.model->config;
    struct bt_sampler *sampler =
        bt_sampler_create(c->vocab_size, c->eos_token_ids, c->eos_token_count);
    assert_true(sampler && bt_draws_init(&draws, SEQUENCES));
    for (uint32_t step = 0; step < STEPS; step++)
        check_draws(&gpu, sampler, &draws, step);
    bt_forward_count(gpu.forward, &counts);
    assert_int_equal(counts.graphs, 1);
    assert_int_equal(counts.graph_launches, 2 * STEPS - 1);
    bt_draws_finish(&draws);
    bt_sampler_destroy(sampler);
    side_close(&gpu);
}

/* ---- what the kernels are not made for, or has no room ---- */

static void refused(struct bt_device *device, struct bt_stream_limits limits, enum bt_status want,
                    const char *words[3])
{
    struct bt_error error;
    struct bt_stream *stream = NULL;
    assert_int_equal(bt_device_stream_create(device, &limits, NULL, &error, &stream), want);
    assert_null(stream);
    for (int i = 0; i < 3; i++)
        if (!strstr(error.text, words[i]))
            fail_msg("%s: does not say %s", error.text, words[i]);
}

static void test_refusals(void **state)
{
    (void)state;
    struct bt_error error;
    struct bt_device *device;
    struct bt_stream *stream;
    struct bt_stream_limits limits = {.max_rows = 4,
                                      .max_cols = 64,
                                      .hidden = 64,
                                      .moe_intermediate = 64,
                                      .experts = 513,
                                      .experts_per_token = 2};
    if (bt_device_open("cuda", NULL, &error, &device) != BT_OK)
        fail_msg("%s", error.text);
    refused(device, limits, BT_ERR_UNSUPPORTED,
            (const char *[]){"cuda:0: ", "513 experts", "--device cpu"});
    limits.experts = 512;
    limits.max_page_numbers = UINT32_C(1) << 26;
    limits.max_rows = 1 << 16;
    limits.mla = (struct bt_mla_shape){.heads = 1, .kv_lora_rank = 64, .qk_rope_head_dim = 8};
    refused(device, limits, BT_ERR_NO_MEMORY,
            (const char *[]){"cuda:0: ", "65536 rows", "bytes are free"});
    limits.max_page_numbers = 0;
    limits.max_cols = 1 << 20;
    refused(device, limits, BT_ERR_NO_MEMORY,
            (const char *[]){"scratch of kernels", "65536 rows", "bytes are free"});
    limits.max_rows = 4;
    assert_int_equal(bt_device_stream_create(device, &limits, NULL, &error, &stream), BT_OK);
    assert_int_equal(bt_device_synchronize(device, stream, &error),
                     BT_OK); /* nothing is left of them */
    bt_device_stream_destroy(device, stream);
    bt_device_close(device);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_refusals),
                                       cmocka_unit_test(test_steps), cmocka_unit_test(test_draws)};
    setenv("BATON_EMULATED_MEMORY", "268435456", 1); /* which refusals reach */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
