/*
 * Tokens that the emulated grid draws against bt_sampler_draw: the same ones, whatever the logits
 * and the parameters are.
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
#include "common/model/sampler.h"
#include "tests/seed.h"

#define ROWS 64

static uint64_t seed, drawn;
static struct bt_cuda_device device;
static struct bt_cuda_stream stream;

/* ---- what rows.c does ---- */

static uint32_t *kept;
static struct bt_draw *draws_there; /* [ROWS] */

const struct bt_draw *bt_cuda_draws_of(struct bt_cuda_stream *of, const struct bt_draw *draws,
                                       uint32_t count)
{
    (void)of;
    assert_int_equal(cudaMemcpy(draws_there, draws, count * sizeof(*draws), cudaMemcpyHostToDevice),
                     cudaSuccess);
    return draws_there;
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
    uint32_t kind = below(10);
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
        default:
            logits[i] = normal() * size;
        }
    }
    if (kind != 3 && below(3) == 0) /* a peak, and one beside it */
        logits[below(vocab)] = logits[below(vocab)] = 4 * size + 3;
}

static struct bt_draw random_draw(uint32_t vocab)
{
    static const float temperatures[] = {0, 1, 1, 0.7f, 0.01f, 100, 1e-30f, 1e-40f, 2};
    static const float top_ps[] = {1, 1, 0.9f, 0.999f, 1e-6f, 0.5f, 0.99999994f};
    static const float min_ps[] = {0, 0, 0, 0.05f, 1, 1e-11f, 0.3f, 1.5e-11f};
    const int32_t top_ks[] = {0,        -1, 0, 1, 2, 40, (int32_t)below(vocab) + 1, (int32_t)vocab,
                              INT32_MAX};
    return (struct bt_draw){.seed = bt_random_u64(seed, drawn++, 1),
                            .position = below(3) ? below(100) : below(UINT32_MAX),
                            .temperature = temperatures[below(9)],
                            .top_p = top_ps[below(7)],
                            .min_p = min_ps[below(8)],
                            .top_k = top_ks[below(9)]};
}

static uint32_t expected(struct bt_sampler *sampler, const float *logits,
                         const struct bt_draw *draw)
{
    struct bt_sampling sampling = {.seed = draw->seed,
                                   .temperature = draw->temperature,
                                   .top_p = draw->top_p,
                                   .min_p = draw->min_p,
                                   .top_k = draw->top_k,
                                   .repetition_penalty = 1,
                                   .logprobs = -1,
                                   .max_tokens = 1};
    struct bt_sample sample;
    bt_sampler_draw(sampler, logits, &sampling, NULL, draw->position, &sample);
    return sample.token;
}

static void check_rows(uint32_t rows, uint32_t vocab)
{
    size_t bytes = (size_t)rows * vocab * sizeof(float);
    float *logits = malloc(bytes), *memory;
    struct bt_draw draws[ROWS];
    uint32_t tokens[ROWS], *out;
    struct bt_sampler *sampler = bt_sampler_create(vocab, NULL, 0);
    for (uint32_t i = 0; i < rows; i++) {
        fill_row(logits + (size_t)i * vocab, vocab);
        draws[i] = random_draw(vocab);
    }
    stream.base.limits = (struct bt_stream_limits){.max_rows = rows, .vocab_size = vocab};
    stream.scratch_bytes = bt_cuda_draw_scratch(&stream);
    assert_int_equal(cudaMalloc((void **)&stream.scratch, stream.scratch_bytes), cudaSuccess);
    assert_int_equal(cudaMalloc((void **)&memory, bytes), cudaSuccess);
    assert_int_equal(cudaMalloc((void **)&out, rows * sizeof(*out)), cudaSuccess);
    assert_int_equal(cudaMalloc((void **)&kept, rows * sizeof(*kept)), cudaSuccess);
    assert_int_equal(cudaMemcpy(memory, logits, bytes, cudaMemcpyHostToDevice), cudaSuccess);
    bt_cuda_draw(&stream.base, memory, rows, vocab, draws, out);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
        assert_int_equal(
            cudaMemcpy(tokens, i ? kept : out, rows * sizeof(*out), cudaMemcpyDeviceToHost),
            cudaSuccess);
        for (uint32_t row = 0; row < rows; row++) {
            uint32_t want = expected(sampler, logits + (size_t)row * vocab, &draws[row]);
            if (tokens[row] != want)
                fail_msg("seed %llu vocab %u row %u temperature %g top_p %.9g min_p %g top_k %d: "
                         "token %u, not %u",
                         (unsigned long long)seed, vocab, row, (double)draws[row].temperature,
                         (double)draws[row].top_p, (double)draws[row].min_p, draws[row].top_k,
                         tokens[row], want);
        }
    }
    cudaFree(memory);
    cudaFree(out);
    cudaFree(kept);
    cudaFree(stream.scratch);
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
        cudaMalloc((void **)&draws_there, ROWS * sizeof(*draws_there)) != cudaSuccess)
        return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    cudaFree(draws_there);
    return failed;
}
