#include "common/model/sampler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/random.h"
#include "common/model/history.h"
#include "common/model/logits.h"

/* Log probabilities stay finite, so that they can be printed as JSON. */
#define MIN_LOGPROB -9999.0f

#define BLOCK BT_LOGITS_BLOCK

struct bt_sampler {
    uint32_t vocab_size, blocks;
    uint32_t eos_count;
    uint32_t *eos; /* each once */
    const struct bt_logits_passes *passes;
    float *logits; /* [vocab_size] after bias, masks and penalties */
    float *maxima; /* [blocks] of the logits that are looked at */
    double *sums;  /* [blocks] of weights */
    /* Tokens that may be drawn, by ascending id: [vocab_size] each. */
    uint32_t *tokens;
    uint32_t *keys; /* their logits, in order as unsigned integers */
    float *weights; /* e^((logit - best) / temperature) */
};

static bool is_eos(const struct bt_sampler *sampler, uint32_t token)
{
    for (uint32_t i = 0; i < sampler->eos_count; i++)
        if (sampler->eos[i] == token)
            return true;
    return false;
}

struct bt_sampler *bt_sampler_create(uint32_t vocab_size, const uint32_t *eos, uint32_t eos_count)
{
    BT_ASSERT(vocab_size > 0);
    struct bt_sampler *sampler = calloc(1, sizeof(*sampler));
    if (!sampler)
        return NULL;
    sampler->vocab_size = vocab_size;
    sampler->blocks = (vocab_size + BLOCK - 1) / BLOCK;
    sampler->passes = bt_logits_passes();
    sampler->eos = calloc((size_t)eos_count + 1, sizeof(*sampler->eos));
    sampler->logits = calloc(vocab_size, sizeof(*sampler->logits));
    sampler->maxima = calloc(sampler->blocks, sizeof(*sampler->maxima));
    sampler->sums = calloc(sampler->blocks, sizeof(*sampler->sums));
    sampler->tokens = calloc(vocab_size, sizeof(*sampler->tokens));
    sampler->keys = calloc(vocab_size, sizeof(*sampler->keys));
    sampler->weights = calloc(vocab_size, sizeof(*sampler->weights));
    if (!sampler->eos || !sampler->logits || !sampler->maxima || !sampler->sums ||
        !sampler->tokens || !sampler->keys || !sampler->weights) {
        bt_sampler_destroy(sampler);
        return NULL;
    }
    for (uint32_t i = 0; i < eos_count; i++)
        if (eos[i] < vocab_size && !is_eos(sampler, eos[i]))
            sampler->eos[sampler->eos_count++] = eos[i];
    return sampler;
}

void bt_sampler_destroy(struct bt_sampler *sampler)
{
    if (!sampler)
        return;
    free(sampler->eos);
    free(sampler->logits);
    free(sampler->maxima);
    free(sampler->sums);
    free(sampler->tokens);
    free(sampler->keys);
    free(sampler->weights);
    free(sampler);
}

static bool masks_eos(const struct bt_sampling *sampling, uint32_t position)
{
    return position < sampling->min_tokens;
}

uint32_t bt_sampler_masked(const struct bt_sampler *sampler, const struct bt_sampling *sampling,
                           uint32_t position, const uint32_t **ret_tokens)
{
    *ret_tokens = sampler->eos;
    return masks_eos(sampling, position) ? sampler->eos_count : 0;
}

uint32_t bt_sampler_vocab_size(const struct bt_sampler *sampler)
{
    return sampler->vocab_size;
}

/* Copies the logits and applies bias, mask and penalties. A NaN stays one: no comparison that
 * chooses a token is true for it. */
static const float *adjust(struct bt_sampler *sampler, const float *logits,
                           const struct bt_sampling *sampling,
                           const struct bt_sampler_history *history, uint32_t position)
{
    float *out = sampler->logits;
    memcpy(out, logits, sampler->vocab_size * sizeof(*out));
    for (uint32_t i = 0; i < sampling->bias_count; i++)
        out[sampling->bias[i].token] += sampling->bias[i].value;
    if (masks_eos(sampling, position))
        for (uint32_t i = 0; i < sampler->eos_count; i++)
            out[sampler->eos[i]] = -INFINITY;
    if (history && bt_sampling_needs_history(sampling))
        bt_sampler_history_apply(history, sampling, out, sampler->vocab_size);
    return out;
}

static bool is_plain(const struct bt_sampling *sampling, uint32_t position)
{
    return sampling->bias_count == 0 && !masks_eos(sampling, position) &&
           !bt_sampling_needs_history(sampling);
}

/* ---- passes ---- */

/* A block of logits; the last one filled up with -inf in `tail`. */
static const float *block_at(const struct bt_sampler *sampler, const float *logits, uint32_t block,
                             float *tail)
{
    uint32_t first = block * BLOCK, count = sampler->vocab_size - first;
    if (count >= BLOCK)
        return logits + first;
    memcpy(tail, logits + first, count * sizeof(*tail));
    for (uint32_t i = count; i < BLOCK; i++)
        tail[i] = -INFINITY;
    return tail;
}

/* Fills the maxima. The best logit's token, the lower id among equals; vocab_size where all are NaN
 * or -inf. */
static uint32_t find_best(struct bt_sampler *sampler, const float *logits)
{
    float tail[BLOCK], best = -INFINITY;
    uint32_t block = 0, token;
    for (uint32_t b = 0; b < sampler->blocks; b++) {
        sampler->maxima[b] = sampler->passes->max(block_at(sampler, logits, b, tail));
        if (sampler->maxima[b] > best) {
            best = sampler->maxima[b];
            block = b;
        }
    }
    if (best == -INFINITY)
        return sampler->vocab_size;
    for (token = block * BLOCK; logits[token] != best; token++)
        ;
    return token;
}

/* What is drawn from: the logits of which the maxima are, and how they become weights. */
struct draw {
    const float *logits;
    float best, inverse; /* of the temperature */
    float least;         /* min-p */
};

static double weigh(const struct bt_sampler *sampler, const struct draw *draw, uint32_t block,
                    float *weights)
{
    float tail[BLOCK];
    return sampler->passes->weigh(block_at(sampler, draw->logits, block, tail), draw->best,
                                  draw->inverse, draw->least, weights);
}

/* Fills the sums of the blocks; their sum. */
static double weigh_all(struct bt_sampler *sampler, const struct draw *draw)
{
    float weights[BLOCK];
    double sum = 0;
    for (uint32_t b = 0; b < sampler->blocks; b++)
        sum += sampler->sums[b] = weigh(sampler, draw, b, weights);
    return sum;
}

/* Where no logit can win: the lowest id that is not masked. */
static uint32_t first_allowed(const struct bt_sampler *sampler, const struct bt_sampling *sampling,
                              uint32_t position)
{
    for (uint32_t i = 0; i < sampler->vocab_size; i++)
        if (!masks_eos(sampling, position) || !is_eos(sampler, i))
            return i;
    return 0;
}

/* ---- selection ---- */

/* Keys of logits have their order; both zeros have one key. */
static uint32_t key_of(float logit)
{
    uint32_t bits;
    logit += 0.0f;
    memcpy(&bits, &logit, sizeof(bits));
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

static float logit_of(uint32_t key)
{
    uint32_t bits = key >> 31 ? key & 0x7fffffffu : ~key;
    float logit;
    memcpy(&logit, &bits, sizeof(logit));
    return logit;
}

#define DIGITS 3
#define BINS   2048
static const uint32_t digit_shift[DIGITS] = {21, 10, 0}, digit_mask[DIGITS] = {2047, 2047, 1023};

/*
 * The best keys whose weights together reach `mass`, the smallest set of them: all that are larger
 * than a key, and some that equal it. weights NULL: each weighs 1.
 */
struct cut {
    uint32_t key;
    double left; /* of the mass, to be reached by keys that equal it */
};

static struct cut find_cut(const uint32_t *keys, const float *weights, uint32_t count, double mass)
{
    struct cut cut = {0, mass};
    uint32_t known = 0; /* bits of the key that are */
    for (int digit = 0; digit < DIGITS; digit++) {
        double bins[BINS] = {0};
        bool used[BINS] = {false};
        for (uint32_t i = 0; i < count; i++) {
            uint32_t bin = keys[i] >> digit_shift[digit] & digit_mask[digit];
            if ((keys[i] & known) != cut.key)
                continue;
            bins[bin] += weights ? (double)weights[i] : 1;
            used[bin] = true;
        }
        uint32_t bin = digit_mask[digit], lowest = 0;
        while (!used[lowest] && lowest < bin)
            lowest++;
        for (; bin > lowest && !(cut.left <= bins[bin]); bin--)
            cut.left -= bins[bin];
        cut.key |= bin << digit_shift[digit];
        known |= digit_mask[digit] << digit_shift[digit];
    }
    return cut;
}

/* Keeps what the cut leaves, by ascending id; of equals the lower ids. */
static uint32_t keep(struct bt_sampler *sampler, uint32_t count, struct cut cut, bool weighted)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (sampler->keys[i] < cut.key)
            continue;
        if (sampler->keys[i] == cut.key) {
            if (!(cut.left > 0))
                continue;
            cut.left -= weighted ? (double)sampler->weights[i] : 1;
        }
        sampler->tokens[kept] = sampler->tokens[i];
        sampler->keys[kept] = sampler->keys[i];
        sampler->weights[kept++] = sampler->weights[i];
    }
    return kept;
}

/* Tokens of a weight, whose logit is at least `logit`. */
static uint32_t collect(struct bt_sampler *sampler, const struct draw *draw, float logit)
{
    uint32_t count = 0;
    float weights[BLOCK];
    for (uint32_t b = 0; b < sampler->blocks; b++) {
        uint32_t first = b * BLOCK;
        uint32_t end = sampler->vocab_size - first < BLOCK ? sampler->vocab_size : first + BLOCK;
        if (!(sampler->maxima[b] >= logit))
            continue;
        weigh(sampler, draw, b, weights);
        for (uint32_t i = first; i < end; i++) {
            sampler->tokens[count] = i;
            sampler->keys[count] = key_of(draw->logits[i]);
            sampler->weights[count] = weights[i - first];
            count += weights[i - first] > 0 && draw->logits[i] >= logit;
        }
    }
    return count;
}

/* A logit that at least `wanted` tokens reach, and not many more: that many blocks do. */
static float reached_by(struct bt_sampler *sampler, uint32_t wanted)
{
    if (wanted > sampler->blocks)
        return -INFINITY;
    for (uint32_t b = 0; b < sampler->blocks; b++)
        sampler->keys[b] = key_of(sampler->maxima[b]);
    return logit_of(find_cut(sampler->keys, NULL, sampler->blocks, wanted).key);
}

static double sum_weights(const struct bt_sampler *sampler, uint32_t count)
{
    double sum = 0;
    for (uint32_t i = 0; i < count; i++)
        sum += (double)sampler->weights[i];
    return sum;
}

/* The smallest set of best ones that weighs `mass`. */
static uint32_t keep_mass(struct bt_sampler *sampler, uint32_t count, double mass)
{
    return keep(sampler, count, find_cut(sampler->keys, sampler->weights, count, mass), true);
}

/*
 * Where some that reach the logit have no weight, those below have none either, but for the
 * weights' last bits: a logit that is less by as much as that could have one is looked at as well.
 */
static uint32_t select_top_k(struct bt_sampler *sampler, const struct draw *draw, uint32_t wanted)
{
    float margin = 1e-5f / draw->inverse;
    uint32_t count = collect(sampler, draw, reached_by(sampler, wanted) - margin);
    if (count <= wanted)
        return count;
    return keep(sampler, count, find_cut(sampler->keys, NULL, count, wanted), false);
}

/*
 * Tokens below an even share of what may be left out can all be left out: together they are no
 * more. What stays, of a distribution with a peak, is little.
 */
static uint32_t select_top_p(struct bt_sampler *sampler, struct draw draw, double top_p)
{
    double total = weigh_all(sampler, &draw);
    float share = (float)((1 - top_p) * total / sampler->vocab_size * 0.999);
    draw.least = share > draw.least ? share : draw.least;
    for (uint32_t b = 0; b < sampler->blocks; b++)
        if (sampler->sums[b] < (double)draw.least - 0x1p-35) /* weights are rounded */
            sampler->maxima[b] = NAN;                        /* nothing to collect */
    return keep_mass(sampler, collect(sampler, &draw, -INFINITY), top_p * total);
}

/* ---- the draw ---- */

/* The token at which the cumulative weights, in token order, pass `left`. */
static uint32_t pick(const struct bt_sampler *sampler, uint32_t count, double unit)
{
    double left = unit * sum_weights(sampler, count);
    for (uint32_t i = 0; i + 1 < count; i++) {
        left -= (double)sampler->weights[i];
        if (left < 0)
            return sampler->tokens[i];
    }
    return sampler->tokens[count - 1];
}

/* The same over all tokens, by their blocks. */
static uint32_t pick_of_all(struct bt_sampler *sampler, const struct draw *draw, double unit)
{
    float weights[BLOCK];
    double left = unit * weigh_all(sampler, draw);
    uint32_t block = 0, last = 0;
    for (uint32_t b = 0; b < sampler->blocks; b++) {
        if (!(sampler->sums[b] > 0))
            continue;
        block = b;
        if (left < sampler->sums[b])
            break;
        left -= sampler->sums[b];
    }
    weigh(sampler, draw, block, weights);
    for (uint32_t i = 0; i < BLOCK; i++) {
        if (!(weights[i] > 0))
            continue;
        last = i;
        left -= (double)weights[i];
        if (left < 0)
            break;
    }
    return block * BLOCK + last;
}

static uint32_t draw_token(struct bt_sampler *sampler, const float *logits, uint32_t best,
                           const struct bt_sampling *sampling, uint32_t position)
{
    struct draw draw = {logits, logits[best], 1 / sampling->temperature, sampling->min_p};
    double unit = bt_random_unit(sampling->seed, position, 0), top_p = (double)sampling->top_p;
    uint32_t count;
    if (sampling->top_k > 0 && (uint32_t)sampling->top_k < sampler->vocab_size) {
        count = select_top_k(sampler, &draw, (uint32_t)sampling->top_k);
        if (top_p < 1)
            count = keep_mass(sampler, count, top_p * sum_weights(sampler, count));
    } else if (top_p < 1) {
        count = select_top_p(sampler, draw, top_p);
    } else {
        return pick_of_all(sampler, &draw, unit);
    }
    return pick(sampler, count, unit);
}

/* ---- logprobs ---- */

static float logprob_of(float logit, float best, double sum)
{
    double difference = logit == best ? 0 : (double)logit - best;
    double logprob = difference - sum;
    return logprob > (double)MIN_LOGPROB ? (float)logprob : MIN_LOGPROB;
}

/* Offers one token to the `wanted` best; they come in ascending order. */
static void offer_top(struct bt_logprobs *of, uint32_t wanted, uint32_t token, float logit)
{
    uint32_t count = of->top_count;
    if (count == wanted && !(logit > of->top[count - 1].logit))
        return;
    uint32_t at = count < wanted ? count : count - 1;
    of->top_count = at + 1 > count ? at + 1 : count;
    for (; at > 0 && logit > of->top[at - 1].logit; at--)
        of->top[at] = of->top[at - 1];
    of->top[at].token = token;
    of->top[at].logit = logit;
}

/* The `wanted` best of the raw logits, whose maxima are there. */
static void fill_top(struct bt_sampler *sampler, const float *logits, uint32_t wanted,
                     struct bt_logprobs *of)
{
    of->top_count = 0;
    if (wanted == 0)
        return;
    float reached = reached_by(sampler, wanted);
    for (uint32_t b = 0; b < sampler->blocks; b++) {
        uint32_t first = b * BLOCK;
        uint32_t end = sampler->vocab_size - first < BLOCK ? sampler->vocab_size : first + BLOCK;
        if (sampler->maxima[b] < reached)
            continue;
        for (uint32_t i = first; i < end; i++)
            offer_top(of, wanted, i, isnan(logits[i]) ? -INFINITY : logits[i]);
    }
}

void bt_sampler_logprobs(struct bt_sampler *sampler, const float *logits, uint32_t token,
                         uint32_t wanted, struct bt_logprobs *ret_logprobs)
{
    uint32_t best = find_best(sampler, logits);
    struct draw raw = {logits, -INFINITY, 1, 0};
    ret_logprobs->sum = 0;
    if (best < sampler->vocab_size) {
        raw.best = logits[best];
        ret_logprobs->sum = (uint64_t)(weigh_all(sampler, &raw) * 0x1p35);
    }
    ret_logprobs->best = raw.best;
    ret_logprobs->logit = logits[token];
    fill_top(sampler, logits, wanted, ret_logprobs);
}

void bt_sample_logprobs(const struct bt_logprobs *logprobs, struct bt_sample *sample)
{
    bool some = logprobs->sum > 0;
    double sum = some ? log((double)logprobs->sum * 0x1p-35) : 0;
    float best = some ? logprobs->best : 0;
    sample->logprob = logprob_of(logprobs->logit, best, sum);
    sample->top_count = logprobs->top_count;
    for (uint32_t i = 0; i < sample->top_count; i++) {
        sample->top[i].token = logprobs->top[i].token;
        sample->top[i].logprob = logprob_of(logprobs->top[i].logit, best, sum);
    }
}

void bt_sampler_draw(struct bt_sampler *sampler, const float *logits,
                     const struct bt_sampling *sampling, const struct bt_sampler_history *history,
                     uint32_t position, struct bt_sample *ret_sample)
{
    const float *adjusted = is_plain(sampling, position)
                                ? logits
                                : adjust(sampler, logits, sampling, history, position);
    uint32_t best = find_best(sampler, adjusted);
    ret_sample->logprob = 0;
    ret_sample->top_count = 0;
    if (best == sampler->vocab_size)
        ret_sample->token = first_allowed(sampler, sampling, position);
    else if (sampling->temperature == 0)
        ret_sample->token = best;
    else
        ret_sample->token = draw_token(sampler, adjusted, best, sampling, position);
    if (sampling->logprobs >= 0) {
        struct bt_logprobs logprobs;
        bt_sampler_logprobs(sampler, logits, ret_sample->token, (uint32_t)sampling->logprobs,
                            &logprobs);
        bt_sample_logprobs(&logprobs, ret_sample);
    }
}
