/*
 * Tokens that the emulated grid draws, and their logprobs, against bt_sampler_draw: the same bits,
 * whatever the logits, the parameters and the history are.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/random.h"
#include "common/kernels/cuda/sample.h"
#include "common/kernels/cuda/table.h"
#include "common/model/draws.h"
#include "common/model/sampler.h"
#include "tests/seed.h"

#define ROWS       64
#define MOST_BIAS  40
#define MOST_SEEN  700
#define EOS_TOKENS 5

static uint64_t seed, drawn;
static struct bt_cuda_device device;
static struct bt_cuda_stream stream;

/* ---- what stream.c and rows.c do ---- */

bool bt_cuda_ok(struct bt_cuda_stream *of, cudaError_t result)
{
    of->fault = of->fault ? of->fault : result;
    return of->fault == cudaSuccess;
}

static uint32_t *kept;
static struct bt_draws asked;
static struct bt_cuda_draws there;

static void *take(size_t bytes)
{
    void *memory;
    assert_int_equal(cudaMalloc(&memory, bytes + 1), cudaSuccess);
    return memory;
}

static void *upload(const void *from, size_t bytes)
{
    void *memory = take(bytes);
    assert_int_equal(cudaMemcpy(memory, from, bytes, cudaMemcpyHostToDevice), cudaSuccess);
    return memory;
}

struct bt_cuda_draws bt_cuda_draws_of(struct bt_cuda_stream *of, const struct bt_draw *draws,
                                      const struct bt_adjust *adjusts, uint32_t count)
{
    (void)of;
    there.draws = upload(draws, count * sizeof(*draws));
    there.adjusts = upload(adjusts, asked.adjust_count * sizeof(*adjusts));
    return there;
}

uint32_t *bt_cuda_drawn(struct bt_cuda_stream *of)
{
    (void)of;
    return kept;
}

/* ---- rows ---- */

static uint32_t below(uint32_t limit)
{
    return (uint32_t)(bt_random_u64(seed, drawn++, 0) % limit);
}

static float normal(void)
{
    float sum = 0;
    for (int i = 0; i < 4; i++)
        sum += (float)below(65536) * 0x1p-15f - 1;
    return sum;
}

/* Peaks, plains, ties, numbers that are none. */
static void fill_row(float *logits, uint32_t vocab)
{
    static const float odd[] = {NAN, -NAN, INFINITY, -INFINITY, 0, -0.0f, 1e-40f, -1e-40f, 3e38f};
    uint32_t kind = below(11);
    float size = (float)(1 << below(6)) * 0.25f;
    for (uint32_t i = 0; i < vocab; i++) {
        switch (kind) {
        case 0:
            logits[i] = (float)below(4);
            break;
        case 1:
            logits[i] = odd[below(9)];
            break;
        case 2:
            logits[i] = i % 97 ? normal() : odd[below(9)];
            break;
        case 3:
            logits[i] = i % 3 ? NAN : -INFINITY;
            break;
        case 4:
            logits[i] = normal() * 1e-3f;
            break;
        case 5:
            logits[i] = below(200) ? -INFINITY : normal();
            break;
        case 6:
            logits[i] = i % 2 ? -0.0f : 0.0f;
            break;
        case 7:
            logits[i] = NAN;
            break;
        default:
            logits[i] = normal() * size;
        }
    }
    if (kind != 3 && kind != 7 && below(3) == 0) /* a peak, and one beside it */
        logits[below(vocab)] = logits[below(vocab)] = 4 * size + 3;
}

/* ---- what is asked ---- */

struct row {
    struct bt_sampling sampling;
    struct bt_logit_bias bias[MOST_BIAS];
    struct bt_sampler_history *known, *all; /* without and with the newest token */
    struct bt_draw_ask ask;
    struct bt_sample want;
};

static void choose_sampling(struct row *row, uint32_t vocab)
{
    static const float temperatures[] = {0, 1, 1, 0.7f, 0.01f, 100, 1e-30f, 1e-40f, 2};
    static const float top_ps[] = {1, 1, 0.9f, 0.999f, 1e-6f, 0.5f, 0.99999994f};
    static const float min_ps[] = {0, 0, 0, 0.05f, 1, 1e-11f, 0.3f, 1.5e-11f};
    const int32_t top_ks[] = {0,        -1, 0, 1, 2, 40, (int32_t)below(vocab) + 1, (int32_t)vocab,
                              INT32_MAX};
    row->sampling = (struct bt_sampling){.seed = bt_random_u64(seed, drawn++, 1),
                                         .temperature = temperatures[below(9)],
                                         .top_p = top_ps[below(7)],
                                         .min_p = min_ps[below(8)],
                                         .top_k = top_ks[below(9)],
                                         .repetition_penalty = 1,
                                         .logprobs = -1,
                                         .max_tokens = 1};
    row->ask.position = below(3) ? below(100) : below(UINT32_MAX);
    if (below(2))
        row->sampling.logprobs = (int32_t)below((vocab < 20 ? vocab : 20) + 1);
    if (below(4) == 0)
        row->sampling.min_tokens = row->ask.position + 1;
}

static void choose_bias(struct row *row, uint32_t vocab, uint32_t best)
{
    uint32_t token = below(2) ? best : below(vocab), count = 0;
    static const float values[] = {100, -100, 1, -1, 0.1f, -0.1f, 0, -0.0f, 1e-30f};
    if (below(3))
        return;
    for (uint32_t i = 1 + below(MOST_BIAS); i > 0 && token < vocab && count < MOST_BIAS; i--) {
        row->bias[count++] = (struct bt_logit_bias){token, values[below(9)]};
        token += 1 + below(below(3) ? 3 : vocab);
    }
    row->sampling.bias = row->bias;
    row->sampling.bias_count = count;
}

static void add_to(struct row *row, uint32_t token, uint32_t outputs)
{
    assert_true(bt_sampler_history_add_prompt(row->known, &token, 1));
    assert_true(bt_sampler_history_add_prompt(row->all, &token, 1));
    for (uint32_t i = 0; i < outputs; i++) {
        assert_true(bt_sampler_history_add_output(row->known, token));
        assert_true(bt_sampler_history_add_output(row->all, token));
    }
}

/* `before`: tokens of the draw before this one. */
static void choose_history(struct row *row, uint32_t vocab, uint32_t best, const uint32_t *before,
                           uint32_t rows)
{
    static const float repetitions[] = {1, 1, 1.3f, 0.5f, 1e-3f, 1000, 0.99999994f, 1.1f};
    static const float penalties[] = {0, 0, 1.5f, -2, 0.1f, 0.33333334f, 2};
    row->sampling.repetition_penalty = repetitions[below(8)];
    row->sampling.presence_penalty = penalties[below(7)];
    row->sampling.frequency_penalty = penalties[below(7)];
    row->known = bt_sampler_history_create();
    row->all = bt_sampler_history_create();
    for (uint32_t i = below(2) ? below(MOST_SEEN) : 0; i > 0; i--)
        add_to(row, below(vocab + 3), below(3) ? below(4) : 0);
    if (below(2))
        add_to(row, best, below(3));
    row->ask.newest = below(3);
    uint32_t from = below(rows);
    bool is_drawn = row->ask.newest == BT_NEWEST_DRAWN;
    row->ask.newest_token = is_drawn ? from : below(4) ? best : below(vocab);
    if (row->ask.newest != BT_NEWEST_NONE)
        assert_true(bt_sampler_history_add_output(row->all,
                                                  is_drawn ? before[from] : row->ask.newest_token));
}

static void row_init(struct row *row, struct bt_sampler *sampler, const float *logits,
                     uint32_t vocab, const uint32_t *before, uint32_t rows)
{
    struct bt_sample plain;
    memset(row, 0, sizeof(*row));
    choose_sampling(row, vocab);
    row->ask.sampling = &row->sampling;
    bt_sampler_draw(sampler, logits, &row->sampling, NULL, row->ask.position, &plain);
    choose_bias(row, vocab, plain.token);
    if (below(2))
        choose_history(row, vocab, plain.token, before, rows);
    row->ask.history = row->known;
    bt_sampler_draw(sampler, logits, &row->sampling, row->all, row->ask.position, &row->want);
    assert_true(bt_draws_add(&asked, sampler, &row->ask));
}

static void same_sample(const struct row *row, uint32_t vocab, uint32_t number,
                        const struct bt_sample *got)
{
    const struct bt_sample *want = &row->want;
    const struct bt_sampling *of = &row->sampling;
    bool same = got->token == want->token && got->top_count == want->top_count &&
                memcmp(&got->logprob, &want->logprob, sizeof(float)) == 0 &&
                memcmp(got->top, want->top, want->top_count * sizeof(want->top[0])) == 0;
    if (same)
        return;
    for (uint32_t i = 0; i < want->top_count && i < got->top_count; i++)
        print_message("%u: token %u %.9g, not %u %.9g\n", i, got->top[i].token,
                      (double)got->top[i].logprob, want->top[i].token,
                      (double)want->top[i].logprob);
    fail_msg("seed %llu vocab %u row %u temperature %g top_p %.9g min_p %g top_k %d bias %u "
             "penalties %g %g %g newest %u min_tokens %u logprobs %d: token %u %.9g, not %u %.9g",
             (unsigned long long)seed, vocab, number, (double)of->temperature, (double)of->top_p,
             (double)of->min_p, of->top_k, of->bias_count, (double)of->repetition_penalty,
             (double)of->presence_penalty, (double)of->frequency_penalty, row->ask.newest,
             of->min_tokens, of->logprobs, got->token, (double)got->logprob, want->token,
             (double)want->logprob);
}

static void check_rows(uint32_t rows, uint32_t vocab)
{
    static struct row all[ROWS];
    size_t bytes = (size_t)rows * vocab * sizeof(float);
    float *logits = malloc(bytes), *memory;
    uint32_t tokens[ROWS], before[ROWS], *out;
    static struct bt_logprobs got[ROWS];
    struct bt_logprobs *logprobs;
    const uint32_t eos[EOS_TOKENS] = {1, 0, vocab / 2, 1, vocab - 1};
    struct bt_sampler *sampler = bt_sampler_create(vocab, eos, EOS_TOKENS - below(2));
    bt_draws_clear(&asked);
    for (uint32_t i = 0; i < rows; i++)
        before[i] = below(vocab);
    for (uint32_t i = 0; i < rows; i++) {
        fill_row(logits + (size_t)i * vocab, vocab);
        row_init(&all[i], sampler, logits + (size_t)i * vocab, vocab, before, rows);
    }
    stream.base.limits = (struct bt_stream_limits){
        .max_rows = rows, .vocab_size = vocab, .max_adjusts = asked.adjust_count};
    stream.scratch_bytes = bt_cuda_draw_scratch(&stream);
    stream.scratch = take(stream.scratch_bytes);
    memory = upload(logits, bytes);
    kept = upload(before, rows * sizeof(*kept));
    out = take(rows * sizeof(*out));
    logprobs = take(rows * sizeof(*logprobs));
    bt_cuda_draw(&stream.base, memory, rows, vocab, asked.draws, asked.adjusts, out, logprobs);
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
    assert_int_equal(cudaMemcpy(got, logprobs, rows * sizeof(*got), cudaMemcpyDeviceToHost),
                     cudaSuccess);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(
            cudaMemcpy(tokens, i ? kept : out, rows * sizeof(*out), cudaMemcpyDeviceToHost),
            cudaSuccess);
        for (uint32_t row = 0; row < rows; row++) {
            struct bt_sample sample;
            bt_draw_sample(&all[row].sampling, tokens[row], &got[row], &sample);
            same_sample(&all[row], vocab, row, &sample);
        }
    }
    void *blocks[] = {memory,
                      out,
                      kept,
                      logprobs,
                      stream.scratch,
                      (void *)(uintptr_t)there.draws,
                      (void *)(uintptr_t)there.adjusts};
    for (size_t i = 0; i < sizeof(blocks) / sizeof(blocks[0]); i++)
        cudaFree(blocks[i]);
    for (uint32_t i = 0; i < rows; i++) {
        bt_sampler_history_destroy(all[i].known);
        bt_sampler_history_destroy(all[i].all);
    }
    bt_sampler_destroy(sampler);
    free(logits);
}

static void test_small_vocabularies(void **state)
{
    (void)state;
    static const uint32_t vocabs[] = {1, 2, 3, 127, 128, 129, 500, 512, 1000, 4096};
    for (uint32_t i = 0; i < 10; i++)
        check_rows(ROWS, vocabs[i]);
}

static void test_large_vocabularies(void **state)
{
    (void)state;
    check_rows(4, 102400);
    check_rows(4, 129280);
    check_rows(2, 129279);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_small_vocabularies),
        cmocka_unit_test(test_large_vocabularies),
    };
    seed = test_seed();
    stream.device = &device;
    if (cudaStreamCreateWithFlags(&stream.stream, cudaStreamNonBlocking) != cudaSuccess ||
        !bt_draws_init(&asked, ROWS))
        return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    bt_draws_finish(&asked);
    return failed;
}
