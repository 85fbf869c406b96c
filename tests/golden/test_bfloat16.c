/*
 * The tiny model in bfloat16 arithmetic (weights in tiles) against the same goldens, and against
 * itself: the same bits for any chunks, batches, pages and threads.
 *
 * Tolerance of logits. What differs from the reference is that the inputs of products are rounded:
 * each value by up to 2^-8 of its size, at some ten places a layer; the weights are bf16 in the
 * file. Where two experts' scores are closer than that, another expert is chosen, which moves
 * single logits by some units; so the measure is the root of the mean square over all positions of
 * a prompt. How far it may go is found by rounding the float32 model at random (noise.h), over
 * SEEDS seeds for each prompt: the mean over the prompts is within SIGMAS of its own standard
 * deviations of the noise's, and so is the longest prompt, which is left out of that, as noise is
 * slow and no more there. Tokens may differ only where the reference's two best logits are closer
 * than SURE_GAP.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/golden/compare.h"
#include "tests/golden/noise.h"
#ifdef BT_HAVE_X86_KERNELS
#include "tests/golden/emulated.h"
#endif

#define TINY       TESTS_MODELS "/tiny"
#define POOL_PAGES 160
#define FEW_PAGES  16 /* emulated: the grid of decode's attention is for the longest text */
#define MAX_ROWS   3400
#define SURE_GAP   2.5

static const char *kernels; /* of this run */
static bool is_slow;        /* ref, or emulated: the shortest prompts */
static bool is_emulated;    /* amx, or a GPU */

/* Of its own for each test, as cmocka has its handlers of signals for each. */
static bool emulate(void)
{
#ifdef BT_HAVE_X86_KERNELS
    return !strcmp(kernels, "amx") && golden_amx_emulate();
#else
    return false;
#endif
}

static struct engine *open_tiny(enum bt_dtype kv_dtype, uint32_t threads, uint32_t max_rows)
{
    const struct engine_options options = {.kernels = kernels,
                                           .dtype = BT_MODEL_BFLOAT16,
                                           .kv_dtype = kv_dtype,
                                           .threads = threads,
                                           .max_rows = max_rows,
                                           .pool_pages = is_emulated ? FEW_PAGES : POOL_PAGES};
    emulate();
    return engine_open(TINY, &options);
}

static void open_prompt(const char *name, struct golden *ret_golden)
{
    char path[512];
    snprintf(path, sizeof(path), "%s/golden/%s.safetensors", TINY, name);
    golden_open(path, name, ret_golden);
}

static double rms_difference(const float *a, const float *b, size_t count)
{
    double sum = 0;
    for (size_t i = 0; i < count; i++)
        sum += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
    return sqrt(sum / (double)count);
}

/* What rounding at random does to the logits of a prompt, over SEEDS seeds: see noise.h. */
#define SEEDS  6
#define SIGMAS 4

struct spread {
    double mean, deviation;
};

static struct spread spread_of(const double *values)
{
    struct spread spread = {0, 0};
    for (int i = 0; i < SEEDS; i++)
        spread.mean += values[i] / SEEDS;
    for (int i = 0; i < SEEDS; i++)
        spread.deviation += pow(values[i] - spread.mean, 2) / (SEEDS - 1);
    spread.deviation = sqrt(spread.deviation);
    return spread;
}

static struct spread noise_of(struct engine *exact, const struct golden *golden)
{
    size_t count = (size_t)golden->position_count * exact->vocab;
    float *logits = calloc(count, sizeof(*logits));
    double rms[SEEDS];
    for (int i = 0; i < SEEDS; i++) {
        struct text *text = engine_texts(exact, 1, golden->token_count, 13);
        noise_begin(exact, (uint64_t)i + 1);
        engine_feed(exact, text, BT_FORWARD_MULTI_HEAD, golden->ids, golden->token_count, 0,
                    golden->positions, golden->position_count, NULL, logits);
        rms[i] = rms_difference(logits, golden->logits, count);
        engine_texts_free(text, 1);
    }
    free(logits);
    struct spread noise = spread_of(rms);
    print_message("%s, pages of %s: noise moves logits by %g, give or take %g (rms)\n",
                  golden->name, bt_dtype_name(exact->layout.dtype), noise.mean, noise.deviation);
    return noise;
}

/* Feeds the golden's tokens, so that a step that may differ does not change what follows. */
static double compare_prompt(struct engine *engine, const struct golden *golden)
{
    size_t count = (size_t)golden->position_count * engine->vocab;
    float *logits = calloc(count, sizeof(*logits));
    struct text *text = engine_texts(engine, 1, golden->token_count + golden->greedy_count, 13);
    engine_feed(engine, text, BT_FORWARD_MULTI_HEAD, golden->ids, golden->token_count, 0,
                golden->positions, golden->position_count, NULL, logits);
    double difference = rms_difference(logits, golden->logits, count);
    double largest = largest_difference(logits, golden->logits, count);
    const float *step = logits + count - engine->vocab;
    uint32_t zero = 0, checked = 0, steps = golden->greedy_count;
    if (is_slow)
        steps = engine_is_gpu(kernels) ? 20 : is_emulated ? 3 : 8;
    for (uint32_t i = 0; i < steps; i++) {
        if ((double)golden->greedy_gap[i] > SURE_GAP) {
            if (argmax(step, engine->vocab) != golden->greedy[i])
                fail_msg("%s: greedy token %u differs", golden->name, i);
            checked++;
        }
        engine_feed(engine, text, BT_FORWARD_ABSORBED, &golden->greedy[i], 1, 0, &zero, 1, NULL,
                    logits);
        step = logits;
    }
    print_message("%s %s, pages of %s: logits differ by %g (rms), %g (most), %u of %u steps sure\n",
                  kernels, golden->name, bt_dtype_name(engine->layout.dtype), difference, largest,
                  checked, steps);
    engine_texts_free(text, 1);
    free(logits);
    return difference;
}

static void compare_prompts(enum bt_dtype kv_dtype)
{
    static const char *const prompts[] = {"short",      "chat-addition",   "story",
                                          "recall-150", "chat-recall-600", "recall-3300"};
    enum { LAST = 5 };
    uint32_t count = LAST + 1;
    if (is_slow)
        count = is_emulated && !engine_is_gpu(kernels) ? 1 : 2;
    const struct engine_options float32 = {
        .kernels = "auto", .kv_dtype = kv_dtype, .max_rows = MAX_ROWS, .pool_pages = POOL_PAGES};
    struct engine *engine = open_tiny(kv_dtype, 0, MAX_ROWS), *exact = engine_open(TINY, &float32);
    double sum = 0, mean = 0, square = 0, longest = 0;
    uint32_t used = count < LAST ? count : LAST;
    for (uint32_t i = 0; i < count; i++) {
        struct golden golden;
        open_prompt(prompts[i], &golden);
        double difference = compare_prompt(engine, &golden);
        if (i < LAST) {
            struct spread noise = noise_of(exact, &golden);
            sum += difference / used;
            mean += noise.mean / used;
            square += pow(noise.deviation / used, 2);
        } else {
            longest = difference;
        }
        golden_close(&golden);
    }
    double bound = mean + SIGMAS * sqrt(square);
    print_message("%s: logits differ by %g on average, the longest by %g, expected %g, bound %g\n",
                  kernels, sum, longest, mean, bound);
    assert_true(sum <= bound && longest <= bound);
    /* bfloat16 was really used: f32 arithmetic comes a thousand times closer. */
    assert_true(sum > 0.002);
    engine_close(engine);
    engine_close(exact);
}

static void test_bf16_pages(void **state)
{
    (void)state;
    compare_prompts(BT_BF16);
}

static void test_fp8_pages(void **state)
{
    (void)state;
    compare_prompts(BT_F8_E4M3);
}

/* Logits of the golden's positions, then of a few decode steps: [positions + STEPS][vocab]. */
#define STEPS 4
static float *run_prompt(struct engine *engine, const struct golden *golden,
                         enum bt_forward_form form, uint32_t chunk, uint64_t seed)
{
    size_t vocab = engine->vocab;
    uint32_t zero = 0;
    float *logits = calloc((golden->position_count + STEPS) * vocab, sizeof(*logits));
    struct text *text = engine_texts(engine, 1, golden->token_count + STEPS, seed);
    engine_feed(engine, text, form, golden->ids, golden->token_count, chunk, golden->positions,
                golden->position_count, NULL, logits);
    for (uint32_t i = 0; i < STEPS; i++)
        engine_feed(engine, text, BT_FORWARD_ABSORBED, &golden->greedy[i], 1, 0, &zero, 1, NULL,
                    logits + (golden->position_count + i) * vocab);
    engine_texts_free(text, 1);
    return logits;
}

static void same_for_chunks_and_threads(enum bt_dtype kv_dtype, enum bt_forward_form form,
                                        const char *prompt, const uint32_t *chunks, uint32_t count)
{
    struct golden golden;
    open_prompt(prompt, &golden);
    struct engine *engine = open_tiny(kv_dtype, 0, MAX_ROWS);
    float *whole = run_prompt(engine, &golden, form, 0, 0);
    size_t values = (size_t)(golden.position_count + STEPS) * engine->vocab;
    engine_close(engine);
    for (uint32_t threads = engine_is_gpu(kernels) ? 2 : 1; threads <= 2; threads++) {
        engine = open_tiny(kv_dtype, threads, MAX_ROWS);
        for (uint32_t i = 0; i < (threads == 1 ? 1 : count); i++) {
            char what[96];
            snprintf(what, sizeof(what), "%s pages, chunks of %u, %u threads",
                     bt_dtype_name(kv_dtype), chunks[i], threads);
            float *other = run_prompt(engine, &golden, form, chunks[i], 3 + i);
            assert_same_bits(what, whole, other, values);
            free(other);
        }
        engine_close(engine);
    }
    free(whole);
    golden_close(&golden);
}

static void test_chunks_and_threads_leave_the_bits(void **state)
{
    (void)state;
    static const uint32_t chunks[] = {100, 64, 512, 2048};
    static const uint32_t small[] = {5, 64};
    static const uint32_t few[] = {23, 4};
    if (is_emulated && engine_is_gpu(kernels)) {
        same_for_chunks_and_threads(BT_BF16, BT_FORWARD_MULTI_HEAD, "story", few, 1);
        same_for_chunks_and_threads(BT_F8_E4M3, BT_FORWARD_MULTI_HEAD, "chat-story", few + 1, 1);
        return;
    }
    if (is_slow) {
        same_for_chunks_and_threads(BT_BF16, BT_FORWARD_MULTI_HEAD, "short", small, 1);
        return;
    }
    same_for_chunks_and_threads(BT_BF16, BT_FORWARD_MULTI_HEAD, "recall-3300", chunks, 4);
    same_for_chunks_and_threads(BT_F8_E4M3, BT_FORWARD_MULTI_HEAD, "chat-recall-600", chunks, 3);
    same_for_chunks_and_threads(BT_F32, BT_FORWARD_MULTI_HEAD, "recall-150", small, 2);
}

/* Several rows of one sequence in a decode step have the bits of one at a time. */
static void test_absorbed_rows_leave_the_bits(void **state)
{
    (void)state;
    static const uint32_t rows[] = {1, 3, 64};
    const char *prompt = is_slow ? "short" : "recall-150";
    same_for_chunks_and_threads(BT_BF16, BT_FORWARD_ABSORBED, prompt, rows, is_slow ? 2 : 3);
    same_for_chunks_and_threads(BT_F8_E4M3, BT_FORWARD_ABSORBED, prompt, rows, is_slow ? 1 : 3);
}

#define BATCH 64

/* Text i: the first 1 + 2i tokens of the story's prompt repeated, then a decode step of token i. */
struct batch {
    uint32_t tokens[2 * BATCH];
    uint32_t lengths[BATCH], next[BATCH];
};

static void fill_batch(struct batch *batch)
{
    struct golden golden;
    open_prompt("story", &golden);
    for (uint32_t i = 0; i < 2 * BATCH; i++)
        batch->tokens[i] = golden.ids[i % golden.token_count];
    for (uint32_t i = 0; i < BATCH; i++) {
        batch->lengths[i] = 1 + 2 * i;
        batch->next[i] = 100 + 7 * i;
    }
    golden_close(&golden);
}

/* Texts `first` … `first + count - 1` together; logits of prompt and step [count][2][vocab]. */
static void run_batch(struct engine *engine, const struct batch *batch, uint32_t first,
                      uint32_t count, float *ret_prompt, float *ret_step)
{
    const uint32_t *tokens[BATCH];
    uint32_t ones[BATCH];
    struct text *texts = engine_texts(engine, count, 2 * BATCH, 5 + first);
    for (uint32_t i = 0; i < count; i++)
        tokens[i] = batch->tokens;
    engine_feed_batch(engine, texts, count, BT_FORWARD_MULTI_HEAD, tokens, batch->lengths + first,
                      ret_prompt);
    for (uint32_t i = 0; i < count; i++) {
        tokens[i] = batch->next + first + i;
        ones[i] = 1;
    }
    engine_feed_batch(engine, texts, count, BT_FORWARD_ABSORBED, tokens, ones, ret_step);
    engine_texts_free(texts, count);
}

static void same_for_batches(enum bt_dtype kv_dtype)
{
    static const uint32_t sizes[] = {2, 3, 8, 17, 32, 64};
    uint32_t last = is_slow ? 3 : BATCH;
    struct batch batch;
    fill_batch(&batch);
    struct engine *engine = open_tiny(kv_dtype, 0, BATCH * BATCH);
    size_t vocab = engine->vocab, each = BATCH * vocab;
    float *alone = calloc(2 * each, sizeof(float)), *together = calloc(2 * each, sizeof(float));
    for (uint32_t i = 0; i < last; i++)
        run_batch(engine, &batch, i, 1, alone + i * vocab, alone + each + i * vocab);
    engine_close(engine);
    for (uint32_t threads = 1; threads <= 2; threads++) {
        engine = open_tiny(kv_dtype, threads, BATCH * BATCH);
        for (size_t k = 0; k < sizeof(sizes) / sizeof(sizes[0]) && sizes[k] <= last; k++) {
            uint32_t first = last - sizes[k];
            if (threads == 1 && sizes[k] != 17)
                continue;
            char what[64];
            run_batch(engine, &batch, first, sizes[k], together, together + each);
            snprintf(what, sizeof(what), "batch of %u, %u threads", sizes[k], threads);
            assert_same_bits(what, alone + first * vocab, together, sizes[k] * vocab);
            assert_same_bits(what, alone + each + first * vocab, together + each, sizes[k] * vocab);
        }
        engine_close(engine);
    }
    free(alone);
    free(together);
}

static void test_batches_leave_the_bits(void **state)
{
    (void)state;
    same_for_batches(BT_BF16);
    if (!is_slow || engine_is_gpu(kernels))
        same_for_batches(BT_F8_E4M3);
}

#define REPLAYED_STEPS 3
#define REPLAYED_BATCH 5

/* Texts of the first tokens of one prompt, of these lengths, and then what follows them. */
static const uint32_t replayed_lengths[REPLAYED_BATCH] = {3, 62, 5, 9, 2};

/* `count` texts from `first` on in one run a step. Logits [step][count][vocab]. */
static float *run_steps(struct engine *engine, const struct golden *golden, uint32_t first,
                        uint32_t count)
{
    const uint32_t *tokens[REPLAYED_BATCH], *lengths = replayed_lengths + first;
    static const uint32_t ones[REPLAYED_BATCH] = {1, 1, 1, 1, 1};
    size_t each = (size_t)count * engine->vocab;
    float *logits = calloc(REPLAYED_STEPS * each, sizeof(*logits));
    struct text *texts = engine_texts(engine, count, 62 + REPLAYED_STEPS, 17 + count);
    for (uint32_t i = 0; i < count; i++)
        tokens[i] = golden->ids;
    engine_feed_batch(engine, texts, count, BT_FORWARD_MULTI_HEAD, tokens, lengths, logits);
    for (uint32_t step = 0; step < REPLAYED_STEPS; step++) {
        for (uint32_t i = 0; i < count; i++)
            tokens[i] = golden->ids + lengths[i] + step;
        engine_feed_batch(engine, texts, count, BT_FORWARD_ABSORBED, tokens, ones,
                          logits + step * each);
    }
    engine_texts_free(texts, count);
    return logits;
}

static uint64_t replays(const struct engine *engine)
{
    struct bt_forward_counts counts;
    bt_forward_count(engine->forward, &counts);
    return counts.graph_launches;
}

static void warm(struct engine *engine, uint32_t rows)
{
    const struct bt_forward_batch where = {
        .kv_pool = engine->pool, .layout = engine->layout, .pool_pages = engine->pool_pages};
    assert_int_equal(bt_forward_warm(engine->forward, &where, rows), BT_OK);
}

/* Steps of texts together, of which a GPU replays padded ones, against each alone and direct. */
static void same_for_replays(enum bt_dtype kv_dtype)
{
    struct golden golden;
    open_prompt("recall-150", &golden);
    struct engine *engine = open_tiny(kv_dtype, 0, 200);
    size_t vocab = engine->vocab;
    float *alone[REPLAYED_BATCH];
    engine->direct = true;
    for (uint32_t i = 0; i < REPLAYED_BATCH; i++)
        alone[i] = run_steps(engine, &golden, i, 1);
    assert_int_equal(replays(engine), 0);
    engine->direct = false;
    warm(engine, REPLAYED_BATCH);
    for (uint32_t first = 0; first < REPLAYED_BATCH; first += 2) {
        uint32_t count = REPLAYED_BATCH - first;
        uint64_t before = replays(engine);
        float *together = run_steps(engine, &golden, first, count);
        assert_int_equal(replays(engine) - before, engine_is_gpu(kernels) ? REPLAYED_STEPS : 0);
        for (uint32_t i = 0; i < REPLAYED_STEPS * count; i++)
            assert_same_bits("steps of several texts", alone[first + i % count] + i / count * vocab,
                             together + i * vocab, vocab);
        free(together);
    }
    for (uint32_t i = 0; i < REPLAYED_BATCH; i++)
        free(alone[i]);
    golden_close(&golden);
    engine_close(engine);
}

static void test_replays(void **state)
{
    (void)state;
    if (!is_slow)
        same_for_replays(BT_BF16);
    same_for_replays(BT_F8_E4M3);
}

/* The kernels, or a GPU (without the CPU for them, or the GPU, it is skipped); which tests. */
int main(int argc, char **argv)
{
    kernels = argc > 1 ? argv[1] : "auto";
    is_slow = !strcmp(kernels, "ref");
    struct bt_error error = {0};
    is_emulated = emulate();
    if (!engine_can_open(kernels, &error)) {
        printf("skipped: %s\n", error.text);
        return 77;
    }
    is_emulated |= engine_is_emulated(kernels);
    is_slow |= is_emulated;
    if (argc > 2)
        cmocka_set_test_filter(argv[2]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bf16_pages),
        cmocka_unit_test(test_fp8_pages),
        cmocka_unit_test(test_chunks_and_threads_leave_the_bits),
        cmocka_unit_test(test_absorbed_rows_leave_the_bits),
        cmocka_unit_test(test_batches_leave_the_bits),
        cmocka_unit_test(test_replays),
    };
    int failures = cmocka_run_group_tests(tests, NULL, NULL);
#ifdef BT_HAVE_X86_KERNELS
    if (is_emulated && !engine_is_gpu(kernels))
        printf("amx: %llu instructions emulated\n", (unsigned long long)golden_amx_emulated());
#endif
    return failures;
}
