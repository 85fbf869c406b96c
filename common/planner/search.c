#include "common/planner/search.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/planner/sides.h"

#define LEAST_CHUNK 256 /* of aggregated serving; what policy asks for may be less */

/* 0: any. */
static bool within(uint32_t value, uint32_t limit)
{
    return limit == 0 || value <= limit;
}

struct bt_plan_layout bt_plan_layout_given(const struct bt_plan_question *question,
                                           enum bt_plan_phase phase)
{
    return phase == BT_PLAN_PREFILL ? question->limits.prefill_layout
                                    : question->limits.decode_layout;
}

uint32_t bt_plan_layout_copies(const struct bt_plan_question *question,
                               const struct bt_plan_layout *layout)
{
    uint32_t experts = question->model.routed_experts, ep = layout->ep;
    return experts && ep ? (ep - experts % ep) % ep : 0;
}

static void add_layouts(const struct bt_plan_question *question, enum bt_plan_phase phase,
                        uint32_t cards, struct bt_plan_layouts *layouts)
{
    const struct bt_plan_limits *limits = &question->limits;
    uint32_t heads = question->model.heads, experts = question->model.routed_experts;
    if (experts && cards > experts)
        return;
    for (uint32_t tp = 1; tp <= cards; tp *= 2) {
        uint32_t dp = cards / tp;
        if (cards % tp || heads % tp || (!experts && dp > 1))
            continue;
        if (phase == BT_PLAN_PREFILL ? !within(dp, limits->prefill_dp)
                                     : !within(tp, limits->decode_tp))
            continue;
        if (layouts->count == BT_PLAN_LAYOUTS_MAX)
            return;
        layouts->pools[layouts->count++] = (struct bt_plan_pool){
            .layout = {.tp = tp, .dp = dp, .ep = experts ? cards : 1},
        };
        struct bt_plan_pool *pool = &layouts->pools[layouts->count - 1];
        pool->redundant = bt_plan_layout_copies(question, &pool->layout);
    }
}

void bt_plan_layouts_list(const struct bt_plan_question *question,
                          const struct bt_plan_hardware *hardware, enum bt_plan_phase phase,
                          struct bt_plan_layouts *ret_layouts)
{
    uint32_t node = (uint32_t)hardware->figure[BT_PLAN_NODE_CARDS];
    uint32_t most = question->limits.max_instance_cards;
    struct bt_plan_layout given = bt_plan_layout_given(question, phase);
    if (given.tp) {
        ret_layouts->pools[0] =
            (struct bt_plan_pool){given, .redundant = bt_plan_layout_copies(question, &given)};
        ret_layouts->count = 1;
        return;
    }
    if (most > question->limits.max_cards)
        most = question->limits.max_cards;
    ret_layouts->count = 0;
    for (uint32_t cards = 1; cards <= most; cards++)
        if ((cards & (cards - 1)) == 0 || cards % node == 0)
            add_layouts(question, phase, cards, ret_layouts);
}

/* The least count in 1 … most for which `good` holds, which stays true from there on; 0: none. */
struct predicate {
    bool (*good)(const struct predicate *predicate, uint32_t count);
    const struct bt_plan_question *question;
    const struct bt_plan_prefiller *prefiller;
    const struct bt_plan_decoder *decoder;
    struct bt_plan_handoff handoff;
};

static uint32_t least_count(const struct predicate *predicate, uint32_t most)
{
    uint32_t bad = 0, good = 1;
    if (most == 0)
        return 0;
    while (!predicate->good(predicate, good)) {
        if (good == most)
            return 0;
        bad = good;
        good = good > most / 2 ? most : good * 2;
    }
    while (good - bad > 1) {
        uint32_t middle = bad + (good - bad) / 2;
        if (predicate->good(predicate, middle))
            good = middle;
        else
            bad = middle;
    }
    return good;
}

static bool prefill_bears(const struct predicate *predicate, uint32_t count)
{
    return bt_plan_prefiller_bears(predicate->question, predicate->prefiller, &predicate->handoff,
                                   count, predicate->question->load.requests_per_s);
}

static bool aggregated_bears(const struct predicate *predicate, uint32_t count)
{
    return bt_plan_aggregated_of(predicate->question, predicate->prefiller, predicate->decoder,
                                 count, predicate->question->load.requests_per_s)
        .good;
}

static uint32_t decode_count(const struct bt_plan_question *question,
                             const struct bt_plan_decoder *decoder, uint32_t most)
{
    double rate = bt_plan_decoder_rate(question, decoder);
    double count = rate > 0 ? ceil(question->load.requests_per_s / rate * (1 - 1e-12)) : INFINITY;
    return count > most ? 0 : (uint32_t)fmax(count, 1);
}

/* What stood in the way so far; the furthest reached is told. */
struct obstacles {
    bool prefill_fits, decode_fits, decode_keeps_tpot, prefill_keeps_ttft;
    double least_tpot_s, least_ttft_s;
    uint32_t least_cards; /* of a pair within latency, whatever the limit; 0: none */
};

static bool better(const struct bt_plan_outcome *a, const struct bt_plan_outcome *b)
{
    if (fabs(a->cost_per_hour - b->cost_per_hour) > 1e-9 * b->cost_per_hour)
        return a->cost_per_hour < b->cost_per_hour;
    if (a->ttft_s != b->ttft_s)
        return a->ttft_s < b->ttft_s;
    return a->cards < b->cards;
}

static void try_pair(const struct bt_plan_question *question,
                     const struct bt_plan_prefiller *prefiller,
                     const struct bt_plan_decoder *decoder, struct obstacles *obstacles,
                     struct bt_plan_answer *answer)
{
    uint32_t most = question->limits.max_cards;
    uint32_t prefill_cards = bt_plan_layout_cards(&prefiller->instance.layout);
    uint32_t decode_cards = bt_plan_layout_cards(&decoder->instance.layout);
    struct predicate predicate = {
        .good = prefill_bears,
        .question = question,
        .prefiller = prefiller,
        .handoff = bt_plan_handoff_of(question, prefiller, decoder),
    };
    double ttft = bt_plan_prefiller_ttft(question, prefiller, &predicate.handoff);
    obstacles->least_ttft_s = fmin(obstacles->least_ttft_s, ttft);
    if (ttft > question->slo.ttft_s)
        return;
    obstacles->prefill_keeps_ttft = true;
    answer->pairs_tried++;
    uint32_t prefills = least_count(&predicate, most / prefill_cards);
    uint32_t decodes = decode_count(question, decoder, most / decode_cards);
    if (!prefills || !decodes)
        return;
    uint32_t cards = prefills * prefill_cards + decodes * decode_cards;
    if (!obstacles->least_cards || cards < obstacles->least_cards)
        obstacles->least_cards = cards;
    if (cards > most)
        return;
    struct bt_plan_outcome outcome =
        bt_plan_outcome_of(question, prefiller, decoder, prefills, decodes);
    if (!outcome.good || (answer->found && !better(&outcome, &answer->best)))
        return;
    answer->found = true;
    answer->best = outcome;
}

static void try_aggregated(const struct bt_plan_question *question,
                           const struct bt_plan_hardware *hardware, const struct bt_plan_pool *pool,
                           struct bt_plan_answer *answer)
{
    struct bt_plan_prefiller prefiller = bt_plan_prefiller_of(question, hardware, pool);
    struct bt_plan_decoder decoder =
        bt_plan_decoder_of(question, hardware, pool, prefiller.memory.activation_bytes);
    struct predicate predicate = {.good = aggregated_bears,
                                  .question = question,
                                  .prefiller = &prefiller,
                                  .decoder = &decoder};
    uint32_t most = question->limits.max_cards / bt_plan_layout_cards(&pool->layout);
    uint32_t count = decoder.max_batch ? least_count(&predicate, most) : 0;
    if (!count)
        return;
    struct bt_plan_outcome outcome =
        bt_plan_aggregated_of(question, &prefiller, &decoder, count, question->load.requests_per_s);
    if (answer->aggregated_found && !better(&outcome, &answer->aggregated))
        return;
    answer->aggregated_found = true;
    answer->aggregated = outcome;
}

static void all_aggregated(const struct bt_plan_question *question,
                           const struct bt_plan_hardware *hardware, struct bt_plan_layouts *layouts,
                           struct bt_plan_answer *answer)
{
    struct bt_plan_question chunked = *question;
    chunked.limits.decode_layout = (struct bt_plan_layout){0}; /* of serving apart */
    bt_plan_layouts_list(&chunked, hardware, BT_PLAN_DECODE, layouts);
    double asked = question->policy.chunk_tokens, input = question->load.input_tokens;
    double most = asked > 0 && asked < input ? asked : input;
    for (double chunk = LEAST_CHUNK; chunk < most; chunk *= 2) {
        chunked.policy.chunk_tokens = chunk;
        for (size_t i = 0; i < layouts->count; i++)
            try_aggregated(&chunked, hardware, &layouts->pools[i], answer);
    }
    for (size_t i = 0; i < layouts->count; i++)
        try_aggregated(question, hardware, &layouts->pools[i], answer);
}

/* Decoders that hold a sequence within TPOT. */
static size_t list_decoders(const struct bt_plan_question *question,
                            const struct bt_plan_layouts *layouts, struct obstacles *obstacles,
                            struct bt_plan_decoder *ret_decoders)
{
    size_t count = 0;
    for (size_t i = 0; i < layouts->count; i++) {
        struct bt_plan_decoder decoder =
            bt_plan_decoder_of(question, &question->decode_hardware, &layouts->pools[i], 0);
        obstacles->decode_fits |= decoder.fits;
        if (decoder.fits)
            obstacles->least_tpot_s = fmin(obstacles->least_tpot_s, decoder.least_tpot_s);
        if (decoder.max_batch)
            ret_decoders[count++] = decoder;
    }
    obstacles->decode_keeps_tpot = count > 0;
    return count;
}

static void explain_failure(const struct bt_plan_question *question,
                            const struct obstacles *obstacles, struct bt_plan_answer *answer)
{
    char *text = answer->why_not;
    size_t size = sizeof(answer->why_not);
    if (!obstacles->prefill_fits || !obstacles->decode_fits)
        snprintf(text, size, "%s: no layout of up to %u cards holds the model in %.0f%% of memory",
                 obstacles->prefill_fits ? "decode" : "prefill",
                 question->limits.max_instance_cards, 100 * question->calibration.memory_limit);
    else if (!obstacles->decode_keeps_tpot)
        snprintf(text, size, "a single sequence takes %.4g s a token at best, over %.4g s of TPOT",
                 obstacles->least_tpot_s, question->slo.tpot_s);
    else if (!obstacles->prefill_keeps_ttft)
        snprintf(text, size, "a prompt takes %.4g s without any queue at best, over %.4g s of TTFT",
                 obstacles->least_ttft_s, question->slo.ttft_s);
    else if (obstacles->least_cards)
        snprintf(text, size, "the load takes %u cards at least, over the limit of %u",
                 obstacles->least_cards, question->limits.max_cards);
    else
        snprintf(text, size, "one side alone takes more than the limit of %u cards",
                 question->limits.max_cards);
}

static void weigh(struct bt_plan_answer *answer)
{
    const struct bt_plan_outcome *best = &answer->best, *same = &answer->aggregated;
    static const char *const words[] = {"do not disaggregate", "disaggregate",
                                        "disaggregate for latency alone"};
    char *text = answer->verdict;
    size_t size = sizeof(answer->verdict);
    if (answer->found)
        answer->ttft_cost_s = best->handoff.visible_s;
    answer->disaggregate =
        answer->found &&
        (!answer->aggregated_found || best->cost_per_hour <= same->cost_per_hour * (1 + 1e-9));
    if (answer->found && answer->aggregated_found) {
        answer->saving = 1 - best->cost_per_hour / same->cost_per_hour;
        snprintf(
            text, size,
            "%s: %u cards at %.4g an hour apart, %u at %.4g together; the handoff adds %.3g ms "
            "to TTFT (%.4g s apart, %.4g s together); the longest gap between tokens is %.3g "
            "ms apart, %.3g ms together",
            words[answer->disaggregate + (answer->disaggregate && answer->saving < 1e-9)],
            best->cards, best->cost_per_hour, same->cards, same->cost_per_hour,
            1e3 * answer->ttft_cost_s, best->ttft_s, same->ttft_s, 1e3 * best->worst_gap_s,
            1e3 * same->worst_gap_s);
    } else if (answer->found)
        snprintf(text, size,
                 "disaggregate: only so are the limits met, by %u cards at %.4g an hour; the "
                 "handoff adds %.3g ms to TTFT",
                 best->cards, best->cost_per_hour, 1e3 * answer->ttft_cost_s);
    else if (answer->aggregated_found)
        snprintf(text, size, "do not disaggregate: only together are the limits met, by %u cards",
                 same->cards);
    else
        snprintf(text, size, "neither apart nor together are the limits met");
}

static void all_pairs(const struct bt_plan_question *question, struct bt_plan_layouts *layouts,
                      struct bt_plan_decoder *decoders, struct bt_plan_answer *answer)
{
    struct obstacles obstacles = {.least_tpot_s = INFINITY, .least_ttft_s = INFINITY};
    bt_plan_layouts_list(question, &question->decode_hardware, BT_PLAN_DECODE, layouts);
    size_t count = list_decoders(question, layouts, &obstacles, decoders);
    bt_plan_layouts_list(question, &question->prefill_hardware, BT_PLAN_PREFILL, layouts);
    for (size_t i = 0; i < layouts->count; i++) {
        struct bt_plan_prefiller prefiller =
            bt_plan_prefiller_of(question, &question->prefill_hardware, &layouts->pools[i]);
        if (!prefiller.memory.fits)
            continue;
        obstacles.prefill_fits = true;
        for (size_t j = 0; j < count; j++)
            try_pair(question, &prefiller, &decoders[j], &obstacles, answer);
    }
    if (!answer->found)
        explain_failure(question, &obstacles, answer);
}

enum bt_status bt_plan_solve(const struct bt_plan_question *question, struct bt_error *error,
                             struct bt_plan_answer *ret_answer)
{
    enum bt_status status = bt_plan_question_check(question, error);
    if (status != BT_OK)
        return status;
    struct bt_plan_decoder *decoders = calloc(BT_PLAN_LAYOUTS_MAX, sizeof(*decoders));
    struct bt_plan_layouts *layouts = calloc(1, sizeof(*layouts));
    struct bt_plan_answer *answer = calloc(1, sizeof(*answer));
    if (!decoders || !layouts || !answer) {
        status = bt_error_set(error, BT_ERR_NO_MEMORY, "plan: no memory");
        goto err_free;
    }
    const struct bt_plan_hardware *first = &question->prefill_hardware;
    const struct bt_plan_hardware *second = &question->decode_hardware;
    all_pairs(question, layouts, decoders, answer);
    all_aggregated(question, second, layouts, answer);
    if (memcmp(first, second, sizeof(*first)))
        all_aggregated(question, first, layouts, answer);
    weigh(answer);
    *ret_answer = *answer;
err_free:
    free(answer);
    free(layouts);
    free(decoders);
    return status;
}
