/*
 * The engine against the goldens of tests/models/tiny: PyTorch in fp32 on the same bf16 weights.
 *
 * Tolerance of logits: MARGIN times the reference's own distance from fp64 on that prompt, which
 * the index gives (7e-6 to 1.5e-4). Measured are at most 1.0 times it. A softmax scale wrong by one
 * part in a thousand moves the logits by 22 times it or more, on every prompt.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "tests/golden/compare.h"

#define TINY   TESTS_MODELS "/tiny"
#define MARGIN 4

/* Of decode, on an emulated GPU, where a row takes as long as a tile of rows. */
#define FEW_STEPS 5

/* By length; the last three are for the fastest kernels alone, the one before not for ref. */
static const char *const prompts[] = {"short",           "chat-addition", "chat-story",
                                      "story",           "unicode",       "recall-150",
                                      "chat-recall-600", "recall-1400",   "recall-3300"};

static const char *kernels;   /* of this run */
static uint32_t prompt_count; /* of this run */
static bool is_slow;          /* ref, or an emulated GPU: short prompts */
static bool is_emulated;      /* a GPU, on which a token takes as long as a prompt elsewhere */

static void open_prompt(const char *name, struct golden *ret_golden)
{
    char path[512];
    snprintf(path, sizeof(path), "%s/golden/%s.safetensors", TINY, name);
    golden_open(path, name, ret_golden);
}

/* A number that the index has about the prompt. */
static double index_figure(const char *prompt, const char *figure)
{
    double value;
    json_t *index = json_load_file(TINY "/golden/index.json", 0, NULL);
    assert_int_equal(json_unpack(index, "{s:{s:{s:F}}}", "prompts", prompt, figure, &value), 0);
    json_decref(index);
    return value;
}

static double tolerance_of(const struct golden *golden)
{
    return MARGIN * index_figure(golden->name, "fp32_minus_fp64");
}

/* Decode's attention has a grid for the longest text that there may be. */
static struct engine *open_tiny(enum bt_dtype dtype, uint32_t max_rows)
{
    const struct engine_options options = {.kernels = kernels,
                                           .kv_dtype = dtype,
                                           .max_rows = max_rows,
                                           .pool_pages = is_emulated ? 8 : 64};
    return engine_open(TINY, &options);
}

static void test_logits(void **state)
{
    (void)state;
    struct engine *engine = open_tiny(BT_F32, is_emulated ? 128 : 3400);
    for (size_t i = is_emulated ? 1 : 0; i < prompt_count; i += is_emulated ? 2 : 1) {
        struct golden golden;
        open_prompt(prompts[i], &golden);
        double difference = compare_logits(engine, &golden, 0, tolerance_of(&golden));
        print_message("%s %s: %u tokens, logits differ by %g\n", kernels, golden.name,
                      golden.token_count, difference);
        golden_close(&golden);
    }
    engine_close(engine);
}

/* The experts must be the same ones: no choice is nearer to a tie than 7e-5, while the weights
 * that our scores make were measured to agree to 4e-7. */
static void test_states(void **state)
{
    (void)state;
    static const char *const names[] = {"short", "chat-addition"};
    struct engine *engine = open_tiny(BT_F32, 64);
    for (int i = 0; i < 2; i++) {
        struct golden golden;
        open_prompt(names[i], &golden);
        double gap = index_figure(names[i], "smallest_router_gap");
        assert_true(gap > 5e-5);
        compare_states(engine, &golden);
        golden_close(&golden);
    }
    engine_close(engine);
}

static void test_greedy(void **state)
{
    (void)state;
    struct engine *engine = open_tiny(BT_F32, is_emulated ? 128 : 3400);
    for (size_t i = is_emulated ? 1 : 0; i < (is_emulated ? 2 : prompt_count); i++) {
        struct golden golden;
        open_prompt(prompts[i], &golden);
        if (is_emulated)
            golden.greedy_count = FEW_STEPS;
        compare_greedy(engine, &golden);
        golden_close(&golden);
    }
    engine_close(engine);
}

/* The logits at the golden's positions, fed by `chunk` into pages of `seed`. */
static float *logits_of(struct engine *engine, const struct golden *golden,
                        enum bt_forward_form form, uint32_t chunk, uint64_t seed,
                        const struct probe *probe)
{
    float *logits = calloc((size_t)golden->position_count * engine->vocab, sizeof(*logits));
    struct text *text = engine_texts(engine, 1, golden->token_count, seed);
    engine_feed(engine, text, form, golden->ids, golden->token_count, chunk, golden->positions,
                golden->position_count, probe, logits);
    engine_texts_free(text, 1);
    return logits;
}

static void probe_nothing(void *context, int32_t layer, const float *x, const uint32_t *experts,
                          const float *weights)
{
    (void)context, (void)layer, (void)x, (void)experts, (void)weights;
}

static void test_chunks_and_pages_leave_the_bits(void **state)
{
    (void)state;
    static const uint32_t chunks[] = {23, 64, 100, 512};
    uint32_t first = is_emulated ? 0 : 1, last = is_emulated ? 1 : is_slow ? 3 : 4;
    struct golden golden;
    struct engine *engine = open_tiny(BT_F32, 700);
    open_prompt(is_emulated ? "story" : is_slow ? "recall-150" : "chat-recall-600", &golden);
    size_t count = (size_t)golden.position_count * engine->vocab;
    float *whole = logits_of(engine, &golden, BT_FORWARD_MULTI_HEAD, 0, 0, NULL);
    for (uint32_t i = first; i < last; i++) {
        char what[64];
        snprintf(what, sizeof(what), "chunks of %u", chunks[i]);
        float *other = logits_of(engine, &golden, BT_FORWARD_MULTI_HEAD, chunks[i], 3 + i, NULL);
        assert_same_bits(what, whole, other, count);
        free(other);
    }
    /* A probe sees all rows of the last layer: the rows with logits are the same then. */
    struct probe probe = {probe_nothing, NULL};
    float *probed = logits_of(engine, &golden, BT_FORWARD_MULTI_HEAD, 0, 9, &probe);
    assert_same_bits("all rows of the last layer", whole, probed, count);
    free(probed);
    free(whole);
    golden_close(&golden);
    engine_close(engine);
}

static void test_absorbed_rows_leave_the_bits(void **state)
{
    (void)state;
    struct golden golden;
    struct engine *engine = open_tiny(BT_F32, 200);
    open_prompt(is_emulated ? "short" : "recall-150", &golden);
    size_t count = (size_t)golden.position_count * engine->vocab;
    float *whole = logits_of(engine, &golden, BT_FORWARD_ABSORBED, 0, 0, NULL);
    float *single = logits_of(engine, &golden, BT_FORWARD_ABSORBED, 1, 5, NULL);
    assert_same_bits("token by token", whole, single, count);
    assert_true(largest_difference(whole, golden.logits, count) <= tolerance_of(&golden));
    free(single);
    free(whole);
    golden_close(&golden);
    engine_close(engine);
}

#define BATCH 5

/* Prompts alone, then with a decode step each. Logits [2][batch][vocab]. */
static void run_alone(struct engine *engine, const struct golden *goldens, uint32_t batch,
                      float *ret_logits)
{
    size_t vocab = engine->vocab;
    for (uint32_t i = 0; i < batch; i++) {
        struct text *text = engine_texts(engine, 1, goldens[i].token_count + 1, 0);
        uint32_t last = goldens[i].token_count - 1, zero = 0;
        float *prefill = ret_logits + i * vocab, *decode = ret_logits + (batch + i) * vocab;
        engine_feed(engine, text, BT_FORWARD_MULTI_HEAD, goldens[i].ids, last + 1, 0, &last, 1,
                    NULL, prefill);
        engine_feed(engine, text, BT_FORWARD_ABSORBED, goldens[i].greedy, 1, 0, &zero, 1, NULL,
                    decode);
        engine_texts_free(text, 1);
    }
}

/* The same in batches, the first halves of the prompts before, so that starts differ. */
static void run_together(struct engine *engine, const struct golden *goldens, uint32_t batch,
                         float *ret_logits)
{
    const uint32_t *tokens[BATCH];
    uint32_t counts[BATCH];
    struct text *texts = engine_texts(engine, batch, 200, 11);
    for (uint32_t i = 0; i < batch; i++) {
        tokens[i] = goldens[i].ids;
        counts[i] = goldens[i].token_count / (2 + i % 2);
    }
    engine_feed_batch(engine, texts, batch, BT_FORWARD_MULTI_HEAD, tokens, counts, ret_logits);
    for (uint32_t i = 0; i < batch; i++) {
        tokens[i] = goldens[i].ids + counts[i];
        counts[i] = goldens[i].token_count - counts[i];
    }
    engine_feed_batch(engine, texts, batch, BT_FORWARD_MULTI_HEAD, tokens, counts, ret_logits);
    for (uint32_t i = 0; i < batch; i++) {
        tokens[i] = goldens[i].greedy;
        counts[i] = 1;
    }
    engine_feed_batch(engine, texts, batch, BT_FORWARD_ABSORBED, tokens, counts,
                      ret_logits + (size_t)batch * engine->vocab);
    engine_texts_free(texts, batch);
}

static void test_batches_leave_the_bits(void **state)
{
    (void)state;
    static const char *const names[BATCH] = {"short", "chat-addition", "story", "recall-150",
                                             "unicode"};
    uint32_t batch = is_emulated ? 2 : BATCH;
    struct golden goldens[BATCH];
    struct engine *engine = open_tiny(BT_F32, 512);
    for (uint32_t i = 0; i < batch; i++)
        open_prompt(names[i], &goldens[i]);
    size_t count = (size_t)2 * batch * engine->vocab;
    float *alone = calloc(count, sizeof(*alone)), *together = calloc(count, sizeof(*together));
    run_alone(engine, goldens, batch, alone);
    run_together(engine, goldens, batch, together);
    assert_same_bits("batches", alone, together, count);
    for (uint32_t i = 0; i < batch; i++)
        golden_close(&goldens[i]);
    free(alone);
    free(together);
    engine_close(engine);
}

/*
 * bf16 pages round each cached value by up to 2^-9 of its size. What that does to the logits was
 * measured (0.05 to 0.16), not derived; BF16_TOLERANCE is half as much again. Tokens may differ
 * only where the reference's two best logits are closer than twice that. The golden's tokens are
 * fed, so that one such place does not change what follows.
 */
#define BF16_TOLERANCE 0.25

static double compare_bf16(struct engine *engine, const struct golden *golden)
{
    float *logits = calloc((size_t)golden->position_count * engine->vocab, sizeof(*logits));
    struct text *text = engine_texts(engine, 1, golden->token_count + golden->greedy_count, 13);
    engine_feed(engine, text, BT_FORWARD_MULTI_HEAD, golden->ids, golden->token_count, 0,
                golden->positions, golden->position_count, NULL, logits);
    double difference =
        largest_difference(logits, golden->logits, (size_t)golden->position_count * engine->vocab);
    assert_true(difference <= BF16_TOLERANCE);
    /* bf16 was really used: f32 pages come a thousand times closer. */
    assert_true(difference > tolerance_of(golden));
    uint32_t checked = 0, zero = 0;
    const float *step = logits + (size_t)(golden->position_count - 1) * engine->vocab;
    for (uint32_t i = 0; i < golden->greedy_count; i++) {
        if ((double)golden->greedy_gap[i] > 2 * BF16_TOLERANCE) {
            assert_int_equal(argmax(step, engine->vocab), golden->greedy[i]);
            checked++;
        }
        engine_feed(engine, text, BT_FORWARD_ABSORBED, &golden->greedy[i], 1, 0, &zero, 1, NULL,
                    logits);
        step = logits;
    }
    assert_true(checked > golden->greedy_count / 2);
    engine_texts_free(text, 1);
    free(logits);
    return difference;
}

static void test_bf16_pages(void **state)
{
    (void)state;
    static const char *const names[] = {"chat-addition", "recall-150", "chat-recall-600"};
    struct engine *engine = open_tiny(BT_BF16, 700);
    for (int i = 0; i < (is_emulated ? 1 : is_slow ? 2 : 3); i++) {
        struct golden golden;
        open_prompt(names[i], &golden);
        if (is_emulated)
            golden.greedy_count = FEW_STEPS;
        double difference = compare_bf16(engine, &golden);
        print_message("%s %s: bf16 pages, logits differ by %g\n", kernels, names[i], difference);
        golden_close(&golden);
    }
    engine_close(engine);
}

struct layer_log {
    uint32_t layers[64];
    uint32_t count;
    const struct engine *engine;
};

/* At the time of the call all rows of that layer lie in page 0, and on a CPU, which computes the
 * next layer after the call, that one's do not. */
static void log_layer(void *context, uint32_t layer)
{
    struct layer_log *log = context;
    const struct engine *engine = log->engine;
    log->layers[log->count++] = layer;
    for (uint32_t i = 0; i < engine->layout.layer_count; i++) {
        float value;
        engine_read_pool(engine, bt_kv_offset(&engine->layout, engine->pool_pages, i, 0, 3),
                         sizeof(value), &value);
        if (i <= layer || !engine_is_gpu(kernels))
            assert_int_equal(isnan(value), i > layer);
    }
}

static void test_layer_done(void **state)
{
    (void)state;
    static const uint32_t tokens[] = {5, 6, 7, 8}, page = 0;
    struct engine *engine = open_tiny(BT_F32, 16);
    struct layer_log log = {.engine = engine};
    struct bt_sequence_rows sequence = {&page, 0, 0, 4};
    struct bt_forward_batch batch = {
        .form = BT_FORWARD_MULTI_HEAD,
        .tokens = tokens,
        .rows = 4,
        .sequences = &sequence,
        .sequence_count = 1,
        .kv_pool = engine->pool,
        .layout = engine->layout,
        .pool_pages = engine->pool_pages,
        .layer_done = log_layer,
        .context = &log,
    };
    const float *logits;
    assert_int_equal(bt_forward_run(engine->forward, &batch, &logits), BT_OK);
    assert_int_equal(log.count, engine->model->config.num_hidden_layers);
    for (uint32_t i = 0; i < log.count; i++)
        assert_int_equal(log.layers[i], i);
    engine_close(engine);
}

static bool is_best(void)
{
    const struct bt_kernels *table, *best;
    return engine_is_gpu(kernels) ||
           (bt_kernels_select("auto", NULL, &best) == BT_OK &&
            bt_kernels_select(kernels, NULL, &table) == BT_OK && best == table);
}

/* The kernels, or a GPU (without the CPU for them, or the GPU, it is skipped); which tests. */
int main(int argc, char **argv)
{
    kernels = argc > 1 ? argv[1] : "auto";
    struct bt_error error = {0};
    if (!engine_can_open(kernels, &error)) {
        printf("skipped: %s\n", error.text);
        return 77;
    }
    is_emulated = engine_is_emulated(kernels);
    is_slow = is_emulated || !strcmp(kernels, "ref");
    prompt_count = is_slow ? 5 : is_best() ? 9 : 6;
    if (argc > 2)
        cmocka_set_test_filter(argv[2]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_logits),
        cmocka_unit_test(test_states),
        cmocka_unit_test(test_greedy),
        cmocka_unit_test(test_chunks_and_pages_leave_the_bits),
        cmocka_unit_test(test_absorbed_rows_leave_the_bits),
        cmocka_unit_test(test_batches_leave_the_bits),
        cmocka_unit_test(test_bf16_pages),
        cmocka_unit_test(test_layer_done),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
