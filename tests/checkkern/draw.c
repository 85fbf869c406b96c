/*
 * draw: tokens and logprobs of a device against bt_sampler_draw, to the bit, on logits made for one
 * thing each: who wins by an adjust or does not, ties, -inf, nothing left, a newest token that the
 * list has and one that it has not, drawn by the draw before. The winner is also said by hand.
 */
#include <math.h>
#include <string.h>

#include "common/model/draws.h"
#include "tests/checkkern/check.h"

enum { MOST = 32, MOST_BIAS = 4, MOST_SEEN = 4 };
#define ANY UINT32_MAX

/* One row. */
struct needle {
    const char *what;
    float others; /* all logits but these */
    struct {
        uint32_t token;
        float logit;
    } given[5];
    struct bt_sampling sampling; /* 0: repetition_penalty 1, logprobs all */
    struct bt_logit_bias bias[MOST_BIAS];
    struct {
        uint32_t token, outputs;
    } seen[MOST_SEEN];
    uint32_t seen_count;
    enum bt_newest newest;
    uint32_t newest_token;
    uint32_t winner; /* or ANY */
};

#define FAR 100 /* a token beyond the first blocks of small vocabularies */
#define INF INFINITY

static const struct needle needles[] = {
    {.what = "ties", .others = 1, .winner = 0},
    {.what = "a peak", .given = {{7, 3}}, .winner = 7},
    {.what = "equal peaks", .given = {{FAR, 3}, {9, 3}}, .winner = 9},
    {.what = "nothing but -inf", .others = -INF, .winner = 0},
    {.what = "nothing but NaN", .others = NAN, .winner = 0},
    {.what = "NaN beside a number", .others = NAN, .given = {{5, -3}}, .winner = 5},
    {.what = "infinity", .given = {{5, INF}, {FAR, INF}}, .winner = 5},
    {.what = "bias of another",
     .given = {{7, 3}, {9, 2}},
     .sampling = {.bias_count = 1},
     .bias = {{9, 1.5f}},
     .winner = 9},
    {.what = "bias that is not enough",
     .given = {{7, 3}, {9, 2}},
     .sampling = {.bias_count = 1},
     .bias = {{9, 0.5f}},
     .winner = 7},
    {.what = "bias that makes a tie",
     .given = {{7, 2}, {9, 3}},
     .sampling = {.bias_count = 2},
     .bias = {{7, 1}, {8, -1}},
     .winner = 7},
    {.what = "bias on -inf",
     .others = -INF,
     .given = {{7, -5}},
     .sampling = {.bias_count = 1},
     .bias = {{3, 100}},
     .winner = 7},
    {.what = "masked", .given = {{1, 3}, {9, 2}}, .sampling = {.min_tokens = 100}, .winner = 9},
    {.what = "not masked any more",
     .given = {{1, 3}, {9, 2}},
     .sampling = {.min_tokens = 3},
     .winner = 1},
    {.what = "masked in spite of bias",
     .given = {{1, 3}, {9, 2}},
     .sampling = {.min_tokens = 100, .bias_count = 1},
     .bias = {{1, 100}},
     .winner = 9},
    {.what = "masked, and nothing else",
     .others = -INF,
     .given = {{1, 3}},
     .sampling = {.min_tokens = 100},
     .winner = 2},
    {.what = "repetition of the prompt",
     .given = {{7, 3}, {9, 2.9f}},
     .sampling = {.repetition_penalty = 1.1f},
     .seen = {{7, 0}, {FAR, 2}},
     .seen_count = 2,
     .winner = 9},
    {.what = "repetition below 0",
     .others = -9,
     .given = {{7, -3}, {9, -3.1f}},
     .sampling = {.repetition_penalty = 1.1f},
     .seen = {{7, 1}},
     .seen_count = 1,
     .winner = 9},
    {.what = "presence, of outputs alone",
     .given = {{7, 3}, {9, 2.9f}},
     .sampling = {.presence_penalty = 2},
     .seen = {{7, 0}, {9, 1}},
     .seen_count = 2,
     .winner = 7},
    {.what = "frequency",
     .given = {{7, 3}, {9, 2.5f}},
     .sampling = {.frequency_penalty = 0.2f},
     .seen = {{7, 4}, {9, 1}},
     .seen_count = 2,
     .winner = 9},
    {.what = "frequency of one less",
     .given = {{7, 3}, {9, 2.5f}},
     .sampling = {.frequency_penalty = 0.2f},
     .seen = {{7, 3}, {9, 1}},
     .seen_count = 2,
     .winner = 7},
    {.what = "the newest makes it one more",
     .given = {{7, 3}, {9, 2.5f}},
     .sampling = {.frequency_penalty = 0.2f},
     .seen = {{7, 3}, {9, 1}},
     .seen_count = 2,
     .newest = BT_NEWEST_GIVEN,
     .newest_token = 7,
     .winner = 9},
    {.what = "the newest, in no list",
     .given = {{7, 3}, {9, 2.9f}},
     .sampling = {.presence_penalty = 0.2f},
     .newest = BT_NEWEST_GIVEN,
     .newest_token = 7,
     .winner = 9},
    {.what = "the newest, in no list, and best all the same",
     .given = {{7, 3}, {9, 2.9f}},
     .sampling = {.presence_penalty = 0.05f},
     .newest = BT_NEWEST_GIVEN,
     .newest_token = 7,
     .winner = 7},
    {.what = "the newest, of the draw before",
     .given = {{7, 3}, {9, 2.9f}},
     .sampling = {.presence_penalty = 0.2f},
     .newest = BT_NEWEST_DRAWN,
     .newest_token = 1, /* "a peak": 7 */
     .winner = 9},
    {.what = "bias, penalty and temperature",
     .sampling = {.temperature = 1, .top_p = 0.9f, .bias_count = 1, .presence_penalty = 1},
     .bias = {{9, 3}},
     .seen = {{9, 1}, {8, 2}},
     .seen_count = 2,
     .winner = ANY},
};

#define NEEDLES (sizeof(needles) / sizeof(needles[0]))
_Static_assert(NEEDLES <= MOST, "needles");

static struct bt_sampling sampling_of(const struct needle *needle, struct bt_logit_bias *bias,
                                      uint32_t vocab)
{
    struct bt_sampling sampling = needle->sampling;
    sampling.repetition_penalty =
        sampling.repetition_penalty != 0 ? sampling.repetition_penalty : 1;
    sampling.top_p = sampling.top_p != 0 ? sampling.top_p : 1;
    sampling.logprobs = vocab < 20 ? (int32_t)vocab : 20;
    sampling.max_tokens = 1000;
    memcpy(bias, needle->bias, sizeof(needle->bias));
    sampling.bias = bias;
    return sampling;
}

static void fill(const struct needle *needle, float *logits, uint32_t vocab)
{
    for (uint32_t i = 0; i < vocab; i++)
        logits[i] = needle->others;
    for (unsigned i = 0; i < 5; i++)
        if (needle->given[i].token != 0 && needle->given[i].token < vocab)
            logits[needle->given[i].token] = needle->given[i].logit;
}

static struct bt_sampler_history *history_of(const struct needle *needle, bool with_newest,
                                             const uint32_t *before)
{
    struct bt_sampler_history *history = bt_sampler_history_create();
    BT_ASSERT(history);
    for (uint32_t i = 0; i < needle->seen_count; i++) {
        BT_ASSERT(bt_sampler_history_add_prompt(history, &needle->seen[i].token, 1));
        for (uint32_t n = 0; n < needle->seen[i].outputs; n++)
            BT_ASSERT(bt_sampler_history_add_output(history, needle->seen[i].token));
    }
    if (with_newest && needle->newest != BT_NEWEST_NONE)
        BT_ASSERT(bt_sampler_history_add_output(history, needle->newest == BT_NEWEST_DRAWN
                                                             ? before[needle->newest_token]
                                                             : needle->newest_token));
    return history;
}

static void compare(struct check *check, const struct needle *needle, const struct bt_sample *got,
                    const struct bt_sample *want)
{
    if (got->token != want->token || (needle->winner != ANY && got->token != needle->winner))
        check_fail(check, "%s: token %u, not %u (by hand %u)", needle->what, got->token,
                   want->token, needle->winner);
    if (memcmp(&got->logprob, &want->logprob, sizeof(float)) != 0)
        check_fail(check, "%s: logprob %.9g, not %.9g", needle->what, (double)got->logprob,
                   (double)want->logprob);
    if (got->top_count != want->top_count)
        check_fail(check, "%s: %u best, not %u", needle->what, got->top_count, want->top_count);
    for (uint32_t i = 0; i < want->top_count && i < got->top_count; i++)
        if (memcmp(&got->top[i], &want->top[i], sizeof(got->top[i])) != 0)
            check_fail(check, "%s: best %u is token %u %.9g, not %u %.9g", needle->what, i,
                       got->top[i].token, (double)got->top[i].logprob, want->top[i].token,
                       (double)want->top[i].logprob);
}

/* The draw before, of other logits, leaves `before`; then all needles at once. */
static void check_draw_shape(struct check *check, uint32_t vocab)
{
    static const uint32_t eos[] = {1, 0, 1};
    struct bt_sampler *sampler = bt_sampler_create(vocab, eos, 3);
    struct bt_draws draws;
    struct bt_logit_bias bias[NEEDLES][MOST_BIAS];
    struct bt_sampling sampling[NEEDLES];
    struct bt_sample want[NEEDLES];
    check_begin(check, "vocabulary %u", vocab);
    BT_ASSERT(sampler && bt_draws_init(&draws, NEEDLES));
    float *logits = check_floats(check, NEEDLES * (size_t)vocab);
    uint32_t *before = check_buffer(check, NEEDLES * sizeof(*before));
    uint32_t *tokens = check_buffer(check, NEEDLES * sizeof(*tokens));
    struct bt_logprobs *logprobs = check_buffer(check, NEEDLES * sizeof(*logprobs));
    const struct bt_stream_limits limits = {
        .max_rows = NEEDLES, .vocab_size = vocab, .max_adjusts = NEEDLES * BT_DRAWS_ADJUSTS};
    struct bt_stream *stream = check_stream(&limits);
    for (unsigned round = 0; round < 2; round++) {
        bt_draws_clear(&draws);
        for (unsigned i = 0; i < NEEDLES; i++) {
            const struct needle *needle = &needles[i];
            bool plain = round == 0;
            struct bt_sampler_history *known = history_of(needle, false, NULL), *all;
            fill(needle, logits + i * (size_t)vocab, vocab);
            sampling[i] = sampling_of(needle, bias[i], vocab);
            struct bt_draw_ask ask = {.sampling = &sampling[i],
                                      .history = known,
                                      .position = 3,
                                      .newest = plain ? BT_NEWEST_NONE : needle->newest,
                                      .newest_token = needle->newest_token};
            all = history_of(needle, !plain, before);
            bt_sampler_draw(sampler, logits + i * (size_t)vocab, &sampling[i], all, 3, &want[i]);
            BT_ASSERT(bt_draws_add(&draws, sampler, &ask));
            bt_sampler_history_destroy(known);
            bt_sampler_history_destroy(all);
        }
        check->kernels->draw(stream, logits, NEEDLES, vocab, draws.draws, draws.adjusts, tokens,
                             logprobs);
        memcpy(before, tokens, NEEDLES * sizeof(*before));
    }
    for (unsigned i = 0; i < NEEDLES; i++) {
        struct bt_sample got;
        bt_draw_sample(&sampling[i], tokens[i], &logprobs[i], &got);
        compare(check, &needles[i], &got, &want[i]);
    }
    bt_stream_destroy(stream);
    bt_draws_finish(&draws);
    bt_sampler_destroy(sampler);
    check_end(check);
}

void check_draw(struct check *check)
{
    static const uint32_t vocabs[] = {101, 127, 128, 129, 4097, 102400, 129280, 129279};
    unsigned count = check_on_grid(check) ? 5 : 8;
    for (unsigned i = 0; i < count; i++)
        check_draw_shape(check, vocabs[i]);
}
