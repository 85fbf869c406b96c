#include "common/model/draws.h"

#include <stdlib.h>

#include "common/model/history.h"

bool bt_draws_init(struct bt_draws *draws, uint32_t capacity)
{
    size_t adjusts = (size_t)capacity * BT_DRAWS_ADJUSTS;
    *draws = (struct bt_draws){
        .draws = calloc((size_t)capacity + 1, sizeof(*draws->draws)),
        .adjusts = calloc(adjusts + 1, sizeof(*draws->adjusts)),
        .capacity = capacity,
        .adjust_capacity = (uint32_t)adjusts,
        .all_here = true,
    };
    if (draws->draws && draws->adjusts)
        return true;
    bt_draws_finish(draws);
    return false;
}

void bt_draws_finish(struct bt_draws *draws)
{
    free(draws->draws);
    free(draws->adjusts);
    *draws = (struct bt_draws){0};
}

void bt_draws_clear(struct bt_draws *draws)
{
    draws->count = draws->adjust_count = 0;
    draws->all_here = true;
}

/* Room for `count` more; NULL: there is none. */
static struct bt_adjust *take(struct bt_draws *draws, uint32_t count)
{
    struct bt_adjust *adjusts = draws->adjusts + draws->adjust_count;
    if (count > draws->adjust_capacity - draws->adjust_count)
        return NULL;
    draws->adjust_count += count;
    return adjusts;
}

static bool add_bias(struct bt_draws *draws, const struct bt_sampling *sampling,
                     struct bt_draw *draw)
{
    struct bt_adjust *adjusts = take(draws, sampling->bias_count);
    if (!adjusts)
        return false;
    for (uint32_t i = 0; i < sampling->bias_count; i++)
        adjusts[i] =
            (struct bt_adjust){.token = sampling->bias[i].token, .bias = sampling->bias[i].value};
    draw->bias_count = sampling->bias_count;
    return true;
}

static bool add_masked(struct bt_draws *draws, const struct bt_sampler *sampler,
                       const struct bt_draw_ask *ask, struct bt_draw *draw)
{
    const uint32_t *masked;
    uint32_t count = bt_sampler_masked(sampler, ask->sampling, ask->position, &masked);
    struct bt_adjust *adjusts = take(draws, count);
    if (!adjusts)
        return false;
    for (uint32_t i = 0; i < count; i++)
        adjusts[i] = (struct bt_adjust){.token = masked[i]};
    draw->masked_count = count;
    return true;
}

static bool add_seen(struct bt_draws *draws, const struct bt_sampler *sampler,
                     const struct bt_draw_ask *ask, struct bt_draw *draw)
{
    const struct bt_sampling *sampling = ask->sampling;
    if (!ask->history || !bt_sampling_needs_history(sampling))
        return true;
    uint32_t room = draws->adjust_capacity - draws->adjust_count;
    if (!bt_sampler_history_list(ask->history, sampling, bt_sampler_vocab_size(sampler),
                                 draws->adjusts + draws->adjust_count, room, &draw->seen_count))
        return false;
    draws->adjust_count += draw->seen_count;
    draw->repetition = sampling->repetition_penalty;
    draw->presence = sampling->presence_penalty;
    draw->frequency = sampling->frequency_penalty;
    draw->newest = ask->newest;
    draw->newest_token = ask->newest == BT_NEWEST_NONE ? 0 : ask->newest_token;
    return true;
}

bool bt_draws_add(struct bt_draws *draws, const struct bt_sampler *sampler,
                  const struct bt_draw_ask *ask)
{
    const struct bt_sampling *sampling = ask->sampling;
    uint32_t begin = draws->adjust_count;
    BT_ASSERT(draws->count < draws->capacity);
    struct bt_draw draw = {
        .seed = sampling->seed,
        .position = ask->position,
        .temperature = sampling->temperature,
        .top_p = sampling->top_p,
        .min_p = sampling->min_p,
        .top_k = sampling->top_k,
        .logprobs = sampling->logprobs < 0 ? 0 : (uint32_t)sampling->logprobs + 1,
        .adjust_begin = begin,
    };
    bool is_here = add_bias(draws, sampling, &draw) && add_masked(draws, sampler, ask, &draw) &&
                   add_seen(draws, sampler, ask, &draw);
    if (!is_here) {
        draw = (struct bt_draw){0};
        draws->adjust_count = begin;
        draws->all_here = false;
    }
    draws->draws[draws->count++] = draw;
    return is_here;
}

void bt_draw_sample(const struct bt_sampling *sampling, uint32_t token,
                    const struct bt_logprobs *logprobs, struct bt_sample *ret_sample)
{
    ret_sample->token = token;
    ret_sample->logprob = 0;
    ret_sample->top_count = 0;
    if (sampling->logprobs >= 0)
        bt_sample_logprobs(logprobs, ret_sample);
}
