#include "common/model/sampler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/random.h"
#include "common/model/history.h"

/* Log probabilities stay finite, so that they can be printed as JSON. */
#define MIN_LOGPROB -9999.0f

struct candidate {
    float logit;
    uint32_t token;
    double weight; /* exp((logit - best) / temperature) */
};

struct bt_sampler {
    uint32_t vocab_size;
    uint32_t eos_count;
    uint32_t *eos;
    float *logits;                /* [vocab_size] after bias, masks and penalties */
    struct candidate *candidates; /* [vocab_size] */
};

struct bt_sampler *bt_sampler_create(uint32_t vocab_size, const uint32_t *eos, uint32_t eos_count)
{
    BT_ASSERT(vocab_size > 0);
    struct bt_sampler *sampler = calloc(1, sizeof(*sampler));
    if (!sampler)
        return NULL;
    sampler->vocab_size = vocab_size;
    sampler->eos = calloc((size_t)eos_count + 1, sizeof(*sampler->eos));
    sampler->logits = calloc(vocab_size, sizeof(*sampler->logits));
    sampler->candidates = calloc(vocab_size, sizeof(*sampler->candidates));
    if (!sampler->eos || !sampler->logits || !sampler->candidates) {
        bt_sampler_destroy(sampler);
        return NULL;
    }
    for (uint32_t i = 0; i < eos_count; i++)
        if (eos[i] < vocab_size)
            sampler->eos[sampler->eos_count++] = eos[i];
    return sampler;
}

void bt_sampler_destroy(struct bt_sampler *sampler)
{
    if (!sampler)
        return;
    free(sampler->eos);
    free(sampler->logits);
    free(sampler->candidates);
    free(sampler);
}

static bool masks_eos(const struct bt_sampling *sampling, uint32_t position)
{
    return position < sampling->min_tokens;
}

static bool is_eos(const struct bt_sampler *sampler, uint32_t token)
{
    for (uint32_t i = 0; i < sampler->eos_count; i++)
        if (sampler->eos[i] == token)
            return true;
    return false;
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

/* The best logit, the lower id among equals; vocab_size where all are NaN or -inf. */
static uint32_t find_best(const float *logits, uint32_t vocab_size)
{
    uint32_t best = vocab_size;
    float best_logit = -INFINITY;
    for (uint32_t i = 0; i < vocab_size; i++) {
        if (logits[i] > best_logit) {
            best_logit = logits[i];
            best = i;
        }
    }
    return best;
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

/* A total order: better first, the lower id among equals. */
static bool is_before(const struct candidate *a, const struct candidate *b)
{
    return a->logit != b->logit ? a->logit > b->logit : a->token < b->token;
}

static void swap(struct candidate *a, struct candidate *b)
{
    struct candidate held = *a;
    *a = *b;
    *b = held;
}

/* Puts the median of three where it splits [0, count) into better ones, itself, and the rest. */
static uint32_t partition(struct candidate *list, uint32_t count)
{
    struct candidate *first = list, *middle = list + count / 2, *last = list + count - 1;
    if (is_before(middle, first))
        swap(middle, first);
    if (is_before(last, middle))
        swap(last, middle);
    if (is_before(middle, first))
        swap(middle, first);
    swap(middle, last);
    uint32_t split = 0;
    for (uint32_t i = 0; i + 1 < count; i++)
        if (is_before(&list[i], last))
            swap(&list[i], &list[split++]);
    swap(&list[split], last);
    return split;
}

static int compare_candidates(const void *left, const void *right)
{
    return is_before(left, right) ? -1 : 1;
}

/* Rounds of partition before the list is sorted instead: no input makes it quadratic. */
#define SELECT_ROUNDS 64

/* Brings the best `wanted` to the front, in any order. */
static void select_count(struct candidate *list, uint32_t count, uint32_t wanted)
{
    for (int round = 0; count > 1 && wanted > 0 && wanted < count; round++) {
        if (round == SELECT_ROUNDS) {
            qsort(list, count, sizeof(*list), compare_candidates);
            return;
        }
        uint32_t split = partition(list, count);
        if (wanted <= split) {
            count = split;
        } else {
            list += split + 1;
            count -= split + 1;
            wanted -= split + 1;
        }
    }
}

static double sum_weights(const struct candidate *list, uint32_t count)
{
    double sum = 0;
    for (uint32_t i = 0; i < count; i++)
        sum += list[i].weight;
    return sum;
}

/* Best first, until their sum reaches `mass`; how many that takes (all, if it never does). */
static uint32_t count_in_order(const struct candidate *list, uint32_t count, double mass)
{
    for (uint32_t i = 0; i < count; i++) {
        mass -= list[i].weight;
        if (mass <= 0)
            return i + 1;
    }
    return count;
}

/* Brings the smallest set of best ones whose weights reach `mass` to the front; its size. */
static uint32_t select_mass(struct candidate *list, uint32_t count, double mass)
{
    uint32_t kept = 0;
    for (int round = 0; count > 8 && round < SELECT_ROUNDS; round++) {
        uint32_t split = partition(list, count);
        double better = sum_weights(list, split);
        if (better >= mass) {
            count = split;
            continue;
        }
        mass -= better + list[split].weight;
        kept += split + 1;
        if (mass <= 0)
            return kept;
        list += split + 1;
        count -= split + 1;
    }
    qsort(list, count, sizeof(*list), compare_candidates);
    return kept + count_in_order(list, count, mass);
}

/* Tokens that min-p leaves, with their weights. A +inf logit leaves only its equals. */
static uint32_t collect(struct bt_sampler *sampler, const float *logits, float best,
                        const struct bt_sampling *sampling)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < sampler->vocab_size; i++) {
        double weight = 1;
        if (logits[i] != best)
            weight = exp(((double)logits[i] - best) / sampling->temperature);
        if (!(weight > 0) || weight < sampling->min_p)
            continue;
        sampler->candidates[count++] = (struct candidate){logits[i], i, weight};
    }
    return count;
}

static int compare_tokens(const void *left, const void *right)
{
    const struct candidate *a = left, *b = right;
    return (a->token > b->token) - (a->token < b->token);
}

/*
 * Walks the cumulative weights in token order, whatever order the selection left, so that the
 * token is a function of the set and the number.
 */
static uint32_t pick(struct candidate *list, uint32_t count, bool in_token_order, double unit)
{
    if (!in_token_order)
        qsort(list, count, sizeof(*list), compare_tokens);
    double left = unit * sum_weights(list, count);
    for (uint32_t i = 0; i + 1 < count; i++) {
        left -= list[i].weight;
        if (left < 0)
            return list[i].token;
    }
    return list[count - 1].token;
}

static uint32_t draw(struct bt_sampler *sampler, const float *logits, uint32_t best,
                     const struct bt_sampling *sampling, uint32_t position)
{
    struct candidate *list = sampler->candidates;
    uint32_t count = collect(sampler, logits, logits[best], sampling);
    bool in_token_order = true;
    if (sampling->top_k > 0 && (uint32_t)sampling->top_k < count) {
        select_count(list, count, (uint32_t)sampling->top_k);
        count = (uint32_t)sampling->top_k;
        in_token_order = false;
    }
    if (sampling->top_p < 1) {
        count = select_mass(list, count, sampling->top_p * sum_weights(list, count));
        in_token_order = false;
    }
    return pick(list, count, in_token_order, bt_random_unit(sampling->seed, position, 0));
}

/* log(sum(exp)) of the raw logits; `best` is finite or +inf. */
static double log_sum(const float *logits, uint32_t vocab_size, float best)
{
    double sum = 0;
    for (uint32_t i = 0; i < vocab_size; i++) {
        if (logits[i] == best)
            sum += 1;
        else if (!isnan(logits[i]))
            sum += exp((double)logits[i] - best);
    }
    return log(sum);
}

static float logprob_of(float logit, float best, double sum)
{
    double difference = logit == best ? 0 : (double)logit - best;
    double logprob = difference - sum;
    return logprob > (double)MIN_LOGPROB ? (float)logprob : MIN_LOGPROB;
}

/* The `wanted` best of the raw logits by insertion: one pass, almost always one comparison. */
static void fill_top(const float *logits, uint32_t vocab_size, uint32_t wanted,
                     struct bt_sample *sample)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < vocab_size && wanted > 0; i++) {
        float logit = isnan(logits[i]) ? -INFINITY : logits[i];
        if (count == wanted && !(logit > sample->top[count - 1].logprob))
            continue;
        uint32_t at = count < wanted ? count++ : count - 1;
        for (; at > 0 && logit > sample->top[at - 1].logprob; at--)
            sample->top[at] = sample->top[at - 1];
        sample->top[at].token = i;
        sample->top[at].logprob = logit;
    }
    sample->top_count = count;
}

static void fill_logprobs(const float *logits, uint32_t vocab_size, uint32_t wanted,
                          struct bt_sample *sample)
{
    uint32_t best = find_best(logits, vocab_size);
    float best_logit = best < vocab_size ? logits[best] : 0;
    double sum = best < vocab_size ? log_sum(logits, vocab_size, best_logit) : 0;
    sample->logprob = logprob_of(logits[sample->token], best_logit, sum);
    fill_top(logits, vocab_size, wanted, sample);
    for (uint32_t i = 0; i < sample->top_count; i++)
        sample->top[i].logprob = logprob_of(sample->top[i].logprob, best_logit, sum);
}

void bt_sampler_draw(struct bt_sampler *sampler, const float *logits,
                     const struct bt_sampling *sampling, const struct bt_sampler_history *history,
                     uint32_t position, struct bt_sample *ret_sample)
{
    bool greedy = sampling->temperature == 0;
    const float *adjusted = greedy && is_plain(sampling, position)
                                ? logits
                                : adjust(sampler, logits, sampling, history, position);
    uint32_t best = find_best(adjusted, sampler->vocab_size);
    ret_sample->logprob = 0;
    ret_sample->top_count = 0;
    if (best == sampler->vocab_size)
        ret_sample->token = first_allowed(sampler, sampling, position);
    else if (greedy)
        ret_sample->token = best;
    else
        ret_sample->token = draw(sampler, adjusted, best, sampling, position);
    if (sampling->logprobs >= 0)
        fill_logprobs(logits, sampler->vocab_size, (uint32_t)sampling->logprobs, ret_sample);
}
