/*
 * Whole models in each format of weights against themselves: the same bits for any chunks, batches,
 * pages and threads. The weights are random, and small shapes of both families; what the bits of
 * rows depend on does not care.
 */
#include <ftw.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/bench/checkpoint.h"
#include "tests/golden/compare.h"

#define TOKENS     2100 /* more than the largest chunk */
#define STEPS      3    /* of decode */
#define POSITIONS  6    /* of the prompt, with logits */
#define BATCH      64
#define POOL_PAGES (3 * BATCH)
#define FEW_PAGES  16 /* emulated: the grid of decode's attention is for the longest text */
#define SEED       11

/* q_lora_rank, groups and a router of its own in the second; sizes that are no whole tiles, but
 * what int4 needs: inputs of experts in whole groups of 128. */
static const struct checkpoint_shape shapes[] = {
    {"v2", "deepseek_v2", 3, 1, 256, 3, 0, 72, 40, 24, 36, 300, 128, 6, 2, 2, 1, 1, 400, 4096},
    {"v3", "deepseek_v3", 3, 1, 128, 8, 80, 64, 32, 32, 32, 200, 128, 8, 1, 3, 4, 2, 300, 4096},
};

static const struct format {
    const char *name;
    enum checkpoint_dtype weights;
    enum bt_dtype pages;
} formats[] = {
    {"bf16", CHECKPOINT_BF16, BT_BF16}, {"int8", CHECKPOINT_INT8, BT_BF16},
    {"w4", CHECKPOINT_W4, BT_BF16},     {"fp8", CHECKPOINT_FP8, BT_BF16},
    {"w4", CHECKPOINT_W4, BT_F8_E4M3},  {"fp8", CHECKPOINT_FP8, BT_F8_E4M3},
};
#define FORMATS (sizeof(formats) / sizeof(formats[0]))

static const char *kernels; /* of this run */
static bool is_emulated;    /* a GPU, on which a token takes as long as a prompt elsewhere */
static uint32_t batch_size = BATCH, token_count = TOKENS; /* at most these */
static uint32_t chosen[POSITIONS] = {0, 63, 64, 1000, 2047, TOKENS - 1};

static struct engine *open_model(const char *dir, const struct format *format, uint32_t threads)
{
    const struct engine_options options = {.kernels = kernels,
                                           .dtype = BT_MODEL_BFLOAT16,
                                           .kv_dtype = format->pages,
                                           .threads = threads,
                                           .max_rows = is_emulated ? 2 * BATCH : BATCH * BATCH,
                                           .pool_pages = is_emulated ? FEW_PAGES : POOL_PAGES};
    return engine_open(dir, &options);
}

static uint32_t token_at(const struct engine *engine, uint32_t i)
{
    return (i * 2654435761u >> 8) % engine->vocab;
}

/* Logits of places in the prompt, then of decode steps: [POSITIONS + STEPS][vocab]. */
static float *run_prompt(struct engine *engine, uint32_t chunk, uint64_t seed)
{
    size_t vocab = engine->vocab;
    uint32_t tokens[TOKENS + STEPS], zero = 0;
    for (uint32_t i = 0; i < token_count + STEPS; i++)
        tokens[i] = token_at(engine, i);
    float *logits = calloc((POSITIONS + STEPS) * vocab, sizeof(*logits));
    struct text *text = engine_texts(engine, 1, token_count + STEPS, seed);
    engine_feed(engine, text, BT_FORWARD_MULTI_HEAD, tokens, token_count, chunk, chosen, POSITIONS,
                NULL, logits);
    for (uint32_t i = 0; i < STEPS; i++)
        engine_feed(engine, text, BT_FORWARD_ABSORBED, &tokens[token_count + i], 1, 0, &zero, 1,
                    NULL, logits + (POSITIONS + i) * vocab);
    engine_texts_free(text, 1);
    return logits;
}

/* Text i: 1 + 2i tokens, then a decode step. Logits of both of `count` texts from `first` on:
 * [text][vocab]. */
static void run_batch(struct engine *engine, uint32_t first, uint32_t count, float *ret_prompt,
                      float *ret_step)
{
    uint32_t stream[2 * BATCH + 1], counts[BATCH], ones[BATCH];
    const uint32_t *tokens[BATCH], *next[BATCH];
    for (uint32_t i = 0; i < 2 * BATCH + 1; i++)
        stream[i] = token_at(engine, i);
    for (uint32_t i = 0; i < count; i++) {
        counts[i] = 1 + 2 * (first + i);
        ones[i] = 1;
        tokens[i] = stream;
        next[i] = stream + counts[i];
    }
    struct text *texts = engine_texts(engine, count, 2 * BATCH, 5 + first);
    engine_feed_batch(engine, texts, count, BT_FORWARD_MULTI_HEAD, tokens, counts, ret_prompt);
    engine_feed_batch(engine, texts, count, BT_FORWARD_ABSORBED, next, ones, ret_step);
    engine_texts_free(texts, count);
}

/* What all other runs must repeat: one thread, everything at once, every text alone. */
struct expected {
    float *prompt;        /* [POSITIONS + STEPS][vocab] */
    float *texts, *steps; /* [batch_size][vocab] */
    size_t vocab;
};

static struct expected expect(const char *dir, const struct format *format)
{
    struct engine *engine = open_model(dir, format, 0);
    size_t vocab = engine->vocab;
    struct expected e = {.prompt = run_prompt(engine, 0, 0), .vocab = vocab};
    e.texts = calloc(batch_size * vocab, sizeof(float));
    e.steps = calloc(batch_size * vocab, sizeof(float));
    for (uint32_t i = 0; i < batch_size; i++)
        run_batch(engine, i, 1, e.texts + i * vocab, e.steps + i * vocab);
    for (size_t i = 1; i < POSITIONS + STEPS; i++) /* logits that are all the same prove nothing */
        assert_true(largest_difference(e.prompt, e.prompt + i * vocab, vocab) > 0.01);
    engine_close(engine);
    return e;
}

static void check_chunk(struct engine *engine, const struct expected *e, const char *what,
                        uint32_t chunk)
{
    char text[160];
    float *other = run_prompt(engine, chunk, 3 + chunk);
    snprintf(text, sizeof(text), "%s, chunks of %u", what, chunk);
    assert_same_bits(text, e->prompt, other, (size_t)(POSITIONS + STEPS) * engine->vocab);
    free(other);
}

static void check_batch(struct engine *engine, const struct expected *e, const char *what,
                        uint32_t count)
{
    char text[160];
    size_t vocab = engine->vocab, first = batch_size - count;
    float *prompt = calloc(count * vocab, sizeof(float));
    float *step = calloc(count * vocab, sizeof(float));
    run_batch(engine, (uint32_t)first, count, prompt, step);
    snprintf(text, sizeof(text), "%s, batch of %u", what, count);
    assert_same_bits(text, e->texts + first * vocab, prompt, count * vocab);
    assert_same_bits(text, e->steps + first * vocab, step, count * vocab);
    free(prompt);
    free(step);
}

static double rms_difference(const float *a, const float *b, size_t count)
{
    double sum = 0;
    for (size_t i = 0; i < count; i++)
        sum += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
    return sqrt(sum / (double)count);
}

/* Logits of this CPU's best kernels. */
static float *run_on_cpu(const char *dir, const struct format *format, enum bt_model_dtype dtype)
{
    const struct engine_options options = {.kernels = "auto",
                                           .dtype = dtype,
                                           .kv_dtype = format->pages,
                                           .max_rows = BATCH * BATCH,
                                           .pool_pages = POOL_PAGES};
    struct engine *engine = engine_open(dir, &options);
    float *logits = run_prompt(engine, 0, 0);
    engine_close(engine);
    return logits;
}

/*
 * A GPU rounds where the CPU does, by other sums: how far logits are from those of the dequantised
 * model in float32 is about the same. But for fp8 it rounds inputs of products to e4m3, whose
 * significand has four bits fewer than that of bf16: about 16 times as far, or less where what both
 * round to bf16 weighs more.
 */
#define SIMILAR    1.5
#define F8_TO_BF16 16

static void check_accuracy(const char *dir, const struct format *format, const struct expected *e)
{
    size_t count = (POSITIONS + STEPS) * e->vocab;
    float *exact = run_on_cpu(dir, format, BT_MODEL_FLOAT32);
    float *cpu = run_on_cpu(dir, format, BT_MODEL_BFLOAT16);
    double ours = rms_difference(e->prompt, exact, count);
    double theirs = rms_difference(cpu, exact, count);
    print_message("%s %s weights, %s pages: %g from exact (rms), the CPU %g\n", kernels,
                  format->name, bt_dtype_name(format->pages), ours, theirs);
    if (format->weights == CHECKPOINT_FP8)
        assert_true(ours > SIMILAR * theirs && ours < SIMILAR * F8_TO_BF16 * theirs);
    else
        assert_true(ours < SIMILAR * theirs && theirs < SIMILAR * ours);
    free(exact);
    free(cpu);
}

static void check_runs(const char *dir, const struct format *format, uint32_t threads,
                       const struct expected *e)
{
    static const uint32_t chunks[2][2] = {{64, 512}, {512, 2048}}, sizes[] = {2, 5, 17, 33, 64};
    char what[96];
    struct engine *engine = open_model(dir, format, threads);
    snprintf(what, sizeof(what), "%s weights, %s pages, %u threads", format->name,
             bt_dtype_name(format->pages), threads);
    for (unsigned i = 0; i < 2 && !is_emulated; i++)
        check_chunk(engine, e, what, chunks[threads - 1][i]);
    if (is_emulated)
        check_chunk(engine, e, what, 23);
    for (unsigned i = threads - 1; i < 5 && sizes[i] <= batch_size; i += threads == 1 ? 2 : 1)
        check_batch(engine, e, what, sizes[i]);
    engine_close(engine);
}

static void check_format(const char *dir, const struct format *format)
{
    struct expected e = expect(dir, format);
    for (uint32_t threads = is_emulated ? 2 : 1; threads <= 2; threads++)
        check_runs(dir, format, threads, &e);
    if (engine_is_gpu(kernels))
        check_accuracy(dir, format, &e);
    free(e.prompt);
    free(e.texts);
    free(e.steps);
}

static int remove_one(const char *path, const struct stat *info, int kind, struct FTW *at)
{
    (void)info, (void)kind, (void)at;
    return remove(path);
}

struct fixture {
    char dir[64];
};

static int make_dir(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    strcpy(f->dir, "/tmp/baton-quantized-XXXXXX");
    *state = f;
    return mkdtemp(f->dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    struct fixture *f = *state;
    nftw(f->dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
    free(f);
    return 0;
}

/* `few`: the formats for an emulated GPU, a bit each. */
static void check_shape(const char *parent, const struct checkpoint_shape *shape, unsigned few)
{
    for (size_t i = 0; i < FORMATS; i++) {
        if (is_emulated && !(few >> i & 1))
            continue;
        char dir[128];
        struct bt_error error = {0};
        snprintf(dir, sizeof(dir), "%s/%s-%zu", parent, shape->name, i);
        assert_int_equal(mkdir(dir, 0700), 0);
        if (checkpoint_write(dir, shape, formats[i].weights, SEED, &error) != BT_OK)
            fail_msg("%s", error.text);
        check_format(dir, &formats[i]);
    }
}

static void test_v2_leaves_the_bits(void **state)
{
    check_shape(((struct fixture *)*state)->dir, &shapes[0], 1 << 1 | 1 << 5);
}

static void test_v3_leaves_the_bits(void **state)
{
    check_shape(((struct fixture *)*state)->dir, &shapes[1], 1 << 2 | 1 << 3);
}

/* For emulated GPUs: a prompt of little more than a page, and a few texts. */
static void shorten(void)
{
    static const uint32_t positions[POSITIONS] = {0, 30, 62, 63, 64, 69};
    memcpy(chosen, positions, sizeof(chosen));
    token_count = 70;
    batch_size = 5;
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
    if (is_emulated)
        shorten();
    if (argc > 2)
        cmocka_set_test_filter(argv[2]);
    printf("seed %d\n", SEED);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_v2_leaves_the_bits, make_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_v3_leaves_the_bits, make_dir, remove_dir),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
