/*
 * The sampler against a plain one in double arithmetic that sorts everything. All random values
 * are multiples of powers of two, so that float and double agree on sums and on ties.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/clock.h"
#include "common/base/random.h"
#include "common/model/logits.h"
#include "common/model/sampler.h"

#define SEED     20260131
#define VOCAB    500
#define LARGE    129280
#define EOS      3
#define CASES    3000
#define PROMPT   40
#define OUTPUT   40
#define BOUNDARY 1e-6 /* of the whole mass, whose weights are f32: nearer, either is right */

static uint64_t next_position;

static uint32_t below(uint32_t limit)
{
    return (uint32_t)(bt_random_u64(SEED, next_position++, 0) % limit);
}

static struct bt_sampling plain_sampling(void)
{
    return (struct bt_sampling){
        .temperature = 1,
        .top_p = 1,
        .repetition_penalty = 1,
        .logprobs = -1,
        .max_tokens = 100,
    };
}

struct history {
    uint32_t prompt[PROMPT], output[OUTPUT];
    uint32_t prompt_count, output_count;
};

struct entry {
    uint32_t token;
    double logit, weight;
    bool kept;
};

static int by_logit(const void *left, const void *right)
{
    const struct entry *a = left, *b = right;
    if (a->logit != b->logit)
        return a->logit > b->logit ? -1 : 1;
    return a->token < b->token ? -1 : 1;
}

static int by_token(const void *left, const void *right)
{
    const struct entry *a = left, *b = right;
    return a->token < b->token ? -1 : 1;
}

static uint32_t count_of(const uint32_t *list, uint32_t count, uint32_t token)
{
    uint32_t found = 0;
    for (uint32_t i = 0; i < count; i++)
        found += list[i] == token;
    return found;
}

static double expected_logit(const float *logits, uint32_t token, const struct bt_sampling *s,
                             const struct history *h, uint32_t position)
{
    double x = isnan(logits[token]) ? -INFINITY : logits[token];
    for (uint32_t i = 0; i < s->bias_count; i++)
        if (s->bias[i].token == token)
            x += s->bias[i].value;
    if (position < s->min_tokens && token == EOS)
        return -INFINITY;
    uint32_t outputs = count_of(h->output, h->output_count, token);
    if (outputs || count_of(h->prompt, h->prompt_count, token))
        x = x > 0 ? x / s->repetition_penalty : x * s->repetition_penalty;
    if (outputs)
        x -= outputs * (double)s->frequency_penalty + s->presence_penalty;
    return x;
}

/* Marks what min-p, top-k and top-p leave. False: a boundary is too near to call. */
static bool mark_kept(struct entry *list, uint32_t vocab, const struct bt_sampling *s)
{
    uint32_t count = 0;
    double total = 0, before = 0;
    for (uint32_t i = 0; i < vocab; i++) {
        list[i].weight = exp((list[i].logit - list[0].logit) / s->temperature);
        if (s->min_p > 0 && fabs(list[i].weight - s->min_p) < BOUNDARY)
            return false;
        list[i].kept = list[i].weight >= s->min_p && list[i].weight > 0 &&
                       (s->top_k <= 0 || count < (uint32_t)s->top_k);
        count += list[i].kept;
        total += list[i].kept ? list[i].weight : 0;
    }
    for (uint32_t i = 0; i < vocab && list[i].kept && s->top_p < 1; i++) {
        if (fabs(before - s->top_p * total) < BOUNDARY * total)
            return false;
        list[i].kept = before < s->top_p * total;
        before += list[i].weight;
    }
    return true;
}

static bool expected_token(const float *logits, uint32_t vocab, const struct bt_sampling *s,
                           const struct history *h, uint32_t position, uint32_t *ret_token)
{
    static struct entry list[LARGE];
    for (uint32_t i = 0; i < vocab; i++)
        list[i] = (struct entry){i, expected_logit(logits, i, s, h, position), 0, false};
    qsort(list, vocab, sizeof(list[0]), by_logit);
    *ret_token = list[0].token;
    if (s->temperature == 0)
        return true;
    if (!mark_kept(list, vocab, s))
        return false;
    qsort(list, vocab, sizeof(list[0]), by_token);
    double total = 0, at = 0;
    for (uint32_t i = 0; i < vocab; i++)
        total += list[i].kept ? list[i].weight : 0;
    double unit = bt_random_unit(s->seed, position, 0) * total;
    for (uint32_t i = 0; i < vocab; i++) {
        if (!list[i].kept)
            continue;
        at += list[i].weight;
        if (fabs(unit - at) < BOUNDARY * total)
            return false;
        if (unit < at) {
            *ret_token = list[i].token;
            return true;
        }
    }
    return false;
}

static void random_logits(float *logits, uint32_t vocab)
{
    static const uint32_t levels[] = {4, 64, 1024};
    uint32_t range = levels[below(3)];
    for (uint32_t i = 0; i < vocab; i++) {
        logits[i] = ((float)below(range) - (float)(range / 2)) / 64;
        if (below(200) == 0)
            logits[i] = NAN;
        else if (below(200) == 0)
            logits[i] = -INFINITY;
    }
    logits[0] = 0; /* so that never all are -inf */
}

static struct bt_sampling random_sampling(struct bt_logit_bias *bias, uint32_t vocab)
{
    static const float temperatures[] = {0, 0.25f, 1, 2}, repetitions[] = {0.5f, 1, 2};
    struct bt_sampling s = plain_sampling();
    s.seed = below(UINT32_MAX);
    s.temperature = temperatures[below(4)];
    s.top_p = below(2) ? 1 : (float)(1 + below(99)) / 100;
    s.top_k = below(2) ? -1 : (int32_t)(1 + below(vocab + 5));
    s.min_p = below(2) ? 0 : (float)below(100) / 101;
    s.repetition_penalty = repetitions[below(3)];
    s.presence_penalty = ((float)below(17) - 8) / 4;
    s.frequency_penalty = ((float)below(17) - 8) / 4;
    s.min_tokens = below(4);
    s.logprobs = (int32_t)below(22) - 1;
    s.bias = bias;
    for (uint32_t token = 0; token < vocab && s.bias_count < 8; token += 1 + below(vocab))
        bias[s.bias_count++] = (struct bt_logit_bias){token, ((float)below(81) - 40) / 4};
    return s;
}

static struct bt_sampler_history *random_history(struct history *h, uint32_t vocab)
{
    struct bt_sampler_history *history = bt_sampler_history_create();
    h->prompt_count = below(PROMPT);
    h->output_count = below(OUTPUT);
    for (uint32_t i = 0; i < h->prompt_count; i++)
        h->prompt[i] = below(vocab);
    assert_true(bt_sampler_history_add_prompt(history, h->prompt, h->prompt_count));
    for (uint32_t i = 0; i < h->output_count; i++) {
        h->output[i] = below(vocab / 8 + 1);
        assert_true(bt_sampler_history_add_output(history, h->output[i]));
    }
    return history;
}

static void check_logprobs(const float *logits, uint32_t vocab, int32_t wanted,
                           const struct bt_sample *sample)
{
    static struct entry list[LARGE];
    double sum = 0;
    for (uint32_t i = 0; i < vocab; i++)
        list[i] = (struct entry){i, isnan(logits[i]) ? -INFINITY : logits[i], 0, false};
    double own = list[sample->token].logit;
    qsort(list, vocab, sizeof(list[0]), by_logit);
    for (uint32_t i = 0; i < vocab; i++)
        sum += exp(list[i].logit - list[0].logit);
    double log_sum = list[0].logit + log(sum);
    assert_true(fabs(fmax(own - log_sum, -9999) - sample->logprob) < 1e-5);
    assert_int_equal(sample->top_count, (uint32_t)wanted < vocab ? (uint32_t)wanted : vocab);
    for (uint32_t i = 0; i < sample->top_count; i++) {
        assert_int_equal(sample->top[i].token, list[i].token);
        assert_true(fabs(fmax(list[i].logit - log_sum, -9999) - sample->top[i].logprob) < 1e-5);
    }
}

static void test_against_sorting(void **state)
{
    (void)state;
    uint32_t checked = 0, eos = EOS;
    print_message("seed %d\n", SEED);
    for (uint32_t i = 0; i < CASES; i++) {
        uint32_t vocab = i % 2 ? VOCAB : 1 + EOS + below(60), position = below(5), token;
        float logits[VOCAB], copy[VOCAB];
        struct bt_logit_bias bias[8];
        struct history h;
        random_logits(logits, vocab);
        memcpy(copy, logits, sizeof(copy));
        struct bt_sampling sampling = random_sampling(bias, vocab);
        struct bt_sampler_history *history = random_history(&h, vocab);
        struct bt_sampler *sampler = bt_sampler_create(vocab, &eos, 1);
        struct bt_sample sample;
        bt_sampler_draw(sampler, logits, &sampling, history, position, &sample);
        assert_memory_equal(logits, copy, vocab * sizeof(float));
        if (expected_token(logits, vocab, &sampling, &h, position, &token)) {
            if (sample.token != token)
                fail_msg("case %u: token %u, expected %u", i, sample.token, token);
            checked++;
        }
        if (sampling.logprobs >= 0)
            check_logprobs(logits, vocab, sampling.logprobs, &sample);
        bt_sampler_destroy(sampler);
        bt_sampler_history_destroy(history);
    }
    print_message("%u of %u cases away from all boundaries\n", checked, CASES);
    assert_true(checked > CASES * 9 / 10);
}

/* What makes selections slow or wrong: ties, ramps, almost nothing that counts, one peak. */
static void fill_shape(float *logits, uint32_t vocab, uint32_t shape)
{
    for (uint32_t i = 0; i < vocab; i++) {
        const float shapes[] = {
            2,
            (float)i / 4096,
            (float)(vocab - i) / 4096,
            i % 4099 ? -INFINITY : (float)(i % 7),
            i % 3 ? NAN : (float)(i % 5) / 4,
            i == vocab - 1 ? 40.0f : (float)below(64) / 64,
            i % 2 ? -0.0f : 0.0f,
            ((float)below(4096) - 2048) / 64,
        };
        logits[i] = shapes[shape];
    }
    logits[vocab / 2] = logits[vocab / 2] > -1 ? logits[vocab / 2] : -1;
}

static void test_large_against_sorting(void **state)
{
    (void)state;
    static const uint32_t vocabs[] = {LARGE, 5000, 129, 128, LARGE - 1};
    static const int32_t top_ks[] = {-1, 1, 50, 1010, 1011, 40000};
    static const float top_ps[] = {1, 0.9f, 1e-6f, 0.9999f};
    static float logits[LARGE];
    struct history h = {.prompt_count = 0};
    uint32_t eos = EOS, checked = 0, cases = 48;
    for (uint32_t i = 0; i < cases; i++) {
        uint32_t vocab = vocabs[i % 5], token;
        struct bt_sampling s = plain_sampling();
        struct bt_sample sample;
        s.seed = i;
        s.temperature = i % 7 == 0 ? 0.25f : 1;
        s.top_k = top_ks[i % 6];
        s.top_p = top_ps[i / 8 % 4];
        s.min_p = i % 11 == 0 ? 0.011f : 0;
        s.logprobs = (int32_t)(i % 3) * 10 - 1;
        fill_shape(logits, vocab, i % 8);
        struct bt_sampler *sampler = bt_sampler_create(vocab, &eos, 1);
        bt_sampler_draw(sampler, logits, &s, NULL, 9, &sample);
        if (expected_token(logits, vocab, &s, &h, 9, &token)) {
            if (sample.token != token)
                fail_msg("case %u: token %u, expected %u", i, sample.token, token);
            checked++;
        }
        if (s.logprobs >= 0)
            check_logprobs(logits, vocab, s.logprobs, &sample);
        bt_sampler_destroy(sampler);
    }
    print_message("%u of %u cases away from all boundaries\n", checked, cases);
    assert_true(checked > cases / 2); /* of equal weights a quarter is near one */
}

/* Weights against libm, and the same bits from all instruction sets. */
static void test_passes(void **state)
{
    (void)state;
    const struct bt_logits_passes *const *all = bt_logits_passes_available();
    for (uint32_t round = 0; round < 2000; round++) {
        float block[BT_LOGITS_BLOCK], first[BT_LOGITS_BLOCK], weights[BT_LOGITS_BLOCK];
        float range = (float)(1 << below(8)), best = range, least = round % 5 ? 0 : 0.01f;
        float inverse = 1 / ((float)(1 + below(8)) / 4), max = -INFINITY;
        for (uint32_t i = 0; i < BT_LOGITS_BLOCK; i++) {
            block[i] = range * (2 * (float)bt_random_unit(SEED, round, i) - 1);
            if (below(40) == 0)
                block[i] = below(2) ? NAN : -INFINITY;
            else if (below(40) == 0)
                block[i] = best;
            max = block[i] > max ? block[i] : max;
        }
        double sum = all[0]->weigh(block, best, inverse, least, first), exact_sum = 0;
        for (uint32_t i = 0; i < BT_LOGITS_BLOCK; i++) {
            double x = ((double)block[i] - best) * inverse, exact = exp(x);
            double slack = exact * (2e-7 + 1.3e-7 * fabs(x)) + (exact < 0x1p-11 ? 0x1p-36 : 0);
            exact_sum += (double)first[i];
            assert_true(rint((double)first[i] * 0x1p35) == (double)first[i] * 0x1p35);
            if (isnan(block[i]) || (x < -86.99 && first[i] == 0))
                assert_true(first[i] == 0);
            else if (fabs(exact - least) > slack)
                assert_true(fabs(first[i] - (exact < least ? 0 : exact)) <= slack);
        }
        assert_true(sum == exact_sum);
        for (uint32_t v = 0; all[v]; v++) {
            assert_true(all[v]->max(block) == max);
            assert_true(all[v]->weigh(block, best, inverse, least, weights) == sum);
            assert_memory_equal(weights, first, sizeof(first));
        }
    }
}

/* The probabilities by definition: softmax of the kept ones. */
static void fill_probabilities(const float *logits, const struct bt_sampling *s,
                               double *ret_probabilities)
{
    struct entry list[VOCAB];
    struct history h = {.prompt_count = 0};
    double total = 0;
    for (uint32_t i = 0; i < VOCAB; i++)
        list[i] = (struct entry){i, expected_logit(logits, i, s, &h, 0), 0, false};
    qsort(list, VOCAB, sizeof(list[0]), by_logit);
    assert_true(mark_kept(list, VOCAB, s));
    for (uint32_t i = 0; i < VOCAB; i++)
        total += list[i].kept ? list[i].weight : 0;
    for (uint32_t i = 0; i < VOCAB; i++)
        ret_probabilities[list[i].token] = list[i].kept ? list[i].weight / total : 0;
}

#define DRAWS 20000

/* Draws over seeds at one position, and over positions of one seed. */
static void check_distribution(const float *logits, struct bt_sampling s, bool over_seeds)
{
    static double probabilities[VOCAB];
    static uint32_t counts[VOCAB];
    uint32_t degrees = 0;
    double chi_square = 0, rare = 0, rare_count = 0;
    struct bt_sampler *sampler = bt_sampler_create(VOCAB, NULL, 0);
    memset(counts, 0, sizeof(counts));
    fill_probabilities(logits, &s, probabilities);
    for (uint32_t i = 0; i < DRAWS; i++) {
        struct bt_sample sample;
        s.seed = over_seeds ? i : 77;
        bt_sampler_draw(sampler, logits, &s, NULL, over_seeds ? 5 : i, &sample);
        counts[sample.token]++;
    }
    for (uint32_t i = 0; i < VOCAB; i++) {
        double expected = probabilities[i] * DRAWS;
        if (expected == 0)
            assert_int_equal(counts[i], 0);
        if (expected < 10) {
            rare += expected;
            rare_count += counts[i];
            continue;
        }
        chi_square += (counts[i] - expected) * (counts[i] - expected) / expected;
        degrees++;
    }
    if (rare > 10) {
        chi_square += (rare_count - rare) * (rare_count - rare) / rare;
        degrees++;
    }
    /* Mean degrees - 1, deviation sqrt(2 (degrees - 1)): five of them. */
    double limit = degrees - 1 + 5 * sqrt(2.0 * (degrees - 1));
    print_message("chi square %.1f of %u cells, limit %.1f\n", chi_square, degrees, limit);
    assert_true(degrees > 5 && chi_square < limit);
    bt_sampler_destroy(sampler);
}

static void test_distribution(void **state)
{
    (void)state;
    float logits[VOCAB];
    struct bt_sampling s = plain_sampling();
    for (uint32_t i = 0; i < VOCAB; i++)
        logits[i] = (float)(bt_random_unit(3, i, 0) * 6);
    check_distribution(logits, s, true);
    check_distribution(logits, s, false);
    s.temperature = 0.5f;
    s.top_k = 60;
    check_distribution(logits, s, true);
    s.top_p = 0.7f;
    s.min_p = 0.05f;
    check_distribution(logits, s, true);
    check_distribution(logits, s, false);
}

static void test_token_depends_on_seed_and_position_alone(void **state)
{
    (void)state;
    float logits[VOCAB];
    uint32_t first[64], different = 0;
    struct bt_sampling s = plain_sampling();
    for (uint32_t i = 0; i < VOCAB; i++)
        logits[i] = (float)(i % 7);
    s.seed = 5;
    s.top_p = 0.9f;
    struct bt_sampler *sampler = bt_sampler_create(VOCAB, NULL, 0);
    struct bt_sample sample;
    for (uint32_t i = 0; i < 64; i++) {
        bt_sampler_draw(sampler, logits, &s, NULL, i, &sample);
        first[i] = sample.token;
    }
    bt_sampler_destroy(sampler);
    sampler = bt_sampler_create(VOCAB, NULL, 0);
    for (uint32_t i = 64; i-- > 0;) {
        bt_sampler_draw(sampler, logits, &s, NULL, i, &sample);
        assert_int_equal(sample.token, first[i]);
        different += first[i] != first[(i + 1) % 64];
    }
    assert_true(different > 32);
    bt_sampler_destroy(sampler);
}

static uint32_t draw_token(const float *logits, uint32_t vocab, const struct bt_sampling *s,
                           uint32_t position)
{
    uint32_t eos[] = {0, 1};
    struct bt_sampler *sampler = bt_sampler_create(vocab, eos, 2);
    struct bt_sample sample;
    bt_sampler_draw(sampler, logits, s, NULL, position, &sample);
    bt_sampler_destroy(sampler);
    assert_true(!isnan(sample.logprob) && !isinf(sample.logprob));
    for (uint32_t i = 0; i < sample.top_count; i++)
        assert_true(!isnan(sample.top[i].logprob) && !isinf(sample.top[i].logprob));
    return sample.token;
}

static void test_logits_that_are_no_numbers(void **state)
{
    (void)state;
    const float nans[4] = {NAN, NAN, NAN, NAN}, one[4] = {NAN, -INFINITY, NAN, -5},
                nothing[4] = {-INFINITY, NAN, -INFINITY, NAN},
                infinite[4] = {1, -INFINITY, INFINITY, NAN},
                two[4] = {INFINITY, 3, -INFINITY, INFINITY};
    for (int i = 0; i < 2; i++) {
        struct bt_sampling s = plain_sampling();
        s.temperature = (float)i;
        s.top_p = 0.9f;
        s.logprobs = 4;
        assert_int_equal(draw_token(nans, 4, &s, 0), 0);
        assert_int_equal(draw_token(nothing, 4, &s, 0), 0);
        assert_int_equal(draw_token(one, 4, &s, 0), 3);
        assert_int_equal(draw_token(infinite, 4, &s, 0), 2);
        assert_int_equal(draw_token(two, 4, &s, 0) % 3, 0);
        s.min_tokens = 1; /* 0 and 1 are end tokens */
        assert_int_equal(draw_token(nans, 4, &s, 0), 2);
        assert_int_equal(draw_token(nans, 4, &s, 1), 0);
        assert_int_equal(draw_token(two, 4, &s, 0), 3);
        assert_int_equal(draw_token(two, 2, &s, 0), 0);
    }
}

/* Shapes that make a naive selection quadratic, at the size of a real vocabulary. */
static void test_large_vocabularies(void **state)
{
    (void)state;
    float *logits = calloc(LARGE, sizeof(*logits));
    for (int shape = 0; shape < 4; shape++) {
        struct bt_sampling s = plain_sampling();
        for (uint32_t i = 0; i < LARGE; i++) {
            uint32_t distance = i < LARGE / 2 ? i : LARGE - i;
            const float values[] = {0, (float)i, (float)(LARGE - i), (float)distance};
            logits[i] = values[shape] / LARGE;
        }
        s.top_p = 0.999f;
        s.top_k = LARGE / 3;
        assert_true(draw_token(logits, LARGE, &s, 0) < LARGE);
        /* The best alone: the lowest id of equals. */
        s.top_k = 1;
        uint32_t best[] = {0, LARGE - 1, 0, LARGE / 2};
        assert_int_equal(draw_token(logits, LARGE, &s, 0), best[shape]);
        s.top_k = 0;
        s.top_p = 1e-6f;
        assert_int_equal(draw_token(logits, LARGE, &s, 0), best[shape]);
    }
    free(logits);
}

/* Only with BATON_BENCH: the time of a token against that of reading the logits once. */
static int64_t best_ns(struct bt_sampler *sampler, const float *logits, struct bt_sampling *s)
{
    int64_t best = INT64_MAX;
    for (uint32_t i = 0; i < 200; i++) {
        struct bt_sample sample;
        int64_t start = bt_clock_now_ns();
        bt_sampler_draw(sampler, logits, s, NULL, i, &sample);
        int64_t took = bt_clock_now_ns() - start;
        best = took < best ? took : best;
    }
    return best;
}

static int64_t read_ns(const float *logits)
{
    int64_t best = INT64_MAX;
    for (uint32_t i = 0; i < 200; i++) {
        int64_t start = bt_clock_now_ns();
        uint64_t sums[8] = {0}, words[8];
        for (uint32_t at = 0; at < LARGE; at += 16) {
            memcpy(words, logits + at, sizeof(words));
            for (int j = 0; j < 8; j++)
                sums[j] += words[j];
        }
        volatile uint64_t sink =
            sums[0] + sums[1] + sums[2] + sums[3] + sums[4] + sums[5] + sums[6] + sums[7];
        (void)sink;
        int64_t took = bt_clock_now_ns() - start;
        best = took < best ? took : best;
    }
    return best;
}

static void test_time(void **state)
{
    (void)state;
    if (!getenv("BATON_BENCH"))
        skip();
    static float logits[LARGE];
    static const struct {
        const char *name;
        float temperature, top_p, min_p;
        int32_t top_k, logprobs;
    } cases[] = {
        {"greedy", 0, 1, 0, -1, -1},
        {"temperature", 1, 1, 0, -1, -1},
        {"top_k_50", 1, 1, 0, 50, -1},
        {"top_p_0.95", 1, 0.95f, 0, -1, -1},
        {"top_k_50_p_0.95", 1, 0.95f, 0, 50, -1},
        {"min_p_0.05", 1, 1, 0.05f, -1, -1},
        {"greedy_logprobs_20", 0, 1, 0, -1, 20},
    };
    for (uint32_t i = 0; i < LARGE; i++) /* a normal distribution, nearly, deviation 3 */
        for (uint32_t j = 0; j < 12; j++)
            logits[i] += 3 * (float)(bt_random_unit(SEED, i, j) - 0.5);
    struct bt_sampler *sampler = bt_sampler_create(LARGE, NULL, 0);
    int64_t read = read_ns(logits);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct bt_sampling s = plain_sampling();
        s.temperature = cases[i].temperature;
        s.top_p = cases[i].top_p;
        s.min_p = cases[i].min_p;
        s.top_k = cases[i].top_k;
        s.logprobs = cases[i].logprobs;
        int64_t took = best_ns(sampler, logits, &s);
        print_message("figure sampler/%s %.1f us %.1f %.3f\n", cases[i].name, (double)took / 1e3,
                      (double)read / 1e3, (double)read / (double)took);
    }
    bt_sampler_destroy(sampler);
}

static Baton__V1__SamplingParams valid_message(void)
{
    Baton__V1__SamplingParams message = BATON__V1__SAMPLING_PARAMS__INIT;
    message.temperature = 0.7f;
    message.top_p = 0.9f;
    message.repetition_penalty = 1;
    message.logprobs = -1;
    message.max_tokens = 16;
    return message;
}

static void expect_refused(Baton__V1__SamplingParams message, const char *field)
{
    struct bt_error error = {0};
    struct bt_sampling sampling;
    assert_int_equal(bt_sampling_from_message(&message, VOCAB, &error, &sampling),
                     BT_ERR_INVALID_ARGUMENT);
    if (!strstr(error.text, field))
        fail_msg("\"%s\" does not name %s", error.text, field);
}

#define REFUSE(member, value, name)                                                                \
    do {                                                                                           \
        Baton__V1__SamplingParams message_ = valid_message();                                      \
        message_.member = value;                                                                   \
        expect_refused(message_, name);                                                            \
    } while (0)

static void test_message_is_checked(void **state)
{
    (void)state;
    REFUSE(temperature, -0.1f, "temperature");
    REFUSE(temperature, NAN, "temperature");
    REFUSE(temperature, INFINITY, "temperature");
    REFUSE(top_p, 0, "top_p");
    REFUSE(top_p, 1.01f, "top_p");
    REFUSE(top_p, NAN, "top_p");
    REFUSE(min_p, -0.1f, "min_p");
    REFUSE(min_p, 1.5f, "min_p");
    REFUSE(top_k, -2, "top_k");
    REFUSE(repetition_penalty, 0, "repetition_penalty");
    REFUSE(repetition_penalty, -INFINITY, "repetition_penalty");
    REFUSE(presence_penalty, 2.5f, "presence_penalty");
    REFUSE(frequency_penalty, NAN, "frequency_penalty");
    REFUSE(logprobs, 21, "logprobs");
    REFUSE(logprobs, -2, "logprobs");
    REFUSE(max_tokens, 0, "max_tokens");
    REFUSE(max_tokens, UINT32_MAX, "max_tokens");
    REFUSE(min_tokens, 17, "min_tokens");
    REFUSE(n_logit_bias_token, 1, "logit_bias");
    struct bt_error error = {0};
    assert_int_equal(bt_sampling_from_message(NULL, VOCAB, &error, NULL), BT_ERR_INVALID_ARGUMENT);
}

static void expect_bias_refused(uint32_t *tokens, float *values, size_t count)
{
    Baton__V1__SamplingParams message = valid_message();
    message.logit_bias_token = tokens;
    message.logit_bias_value = values;
    message.n_logit_bias_token = message.n_logit_bias_value = count;
    expect_refused(message, "logit_bias");
}

static void test_bias_is_checked(void **state)
{
    (void)state;
    static uint32_t many_tokens[BT_SAMPLER_MAX_BIAS + 1];
    static float many_values[BT_SAMPLER_MAX_BIAS + 1];
    expect_bias_refused((uint32_t[]){VOCAB}, (float[]){1}, 1);
    expect_bias_refused((uint32_t[]){1}, (float[]){101}, 1);
    expect_bias_refused((uint32_t[]){1}, (float[]){NAN}, 1);
    expect_bias_refused((uint32_t[]){7, 3, 7}, (float[]){1, 2, 3}, 3);
    expect_bias_refused(many_tokens, many_values, BT_SAMPLER_MAX_BIAS + 1);

    Baton__V1__SamplingParams message = valid_message();
    struct bt_sampling sampling;
    message.logit_bias_token = (uint32_t[]){9, 2};
    message.logit_bias_value = (float[]){-100, 100};
    message.n_logit_bias_token = message.n_logit_bias_value = 2;
    assert_int_equal(bt_sampling_from_message(&message, VOCAB, NULL, &sampling), BT_OK);
    assert_int_equal(sampling.bias_count, 2);
    assert_false(bt_sampling_needs_history(&sampling));
    float logits[VOCAB] = {[9] = 90};
    sampling.temperature = 0;
    assert_int_equal(draw_token(logits, VOCAB, &sampling, 0), 2);
    bt_sampling_finish(&sampling);
}

static void test_history_is_needed_for_penalties(void **state)
{
    (void)state;
    struct bt_sampling s = plain_sampling();
    assert_false(bt_sampling_needs_history(&s));
    s.repetition_penalty = 1.1f;
    assert_true(bt_sampling_needs_history(&s));
    s = plain_sampling();
    s.presence_penalty = -1;
    assert_true(bt_sampling_needs_history(&s));
    s = plain_sampling();
    s.frequency_penalty = 0.5f;
    assert_true(bt_sampling_needs_history(&s));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_sorting),
        cmocka_unit_test(test_large_against_sorting),
        cmocka_unit_test(test_passes),
        cmocka_unit_test(test_distribution),
        cmocka_unit_test(test_token_depends_on_seed_and_position_alone),
        cmocka_unit_test(test_logits_that_are_no_numbers),
        cmocka_unit_test(test_large_vocabularies),
        cmocka_unit_test(test_time),
        cmocka_unit_test(test_message_is_checked),
        cmocka_unit_test(test_bias_is_checked),
        cmocka_unit_test(test_history_is_needed_for_penalties),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
