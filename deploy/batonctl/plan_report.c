#include "deploy/batonctl/plan_report.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define SPLITS 12 /* of the curve's cards at least, where the answer has fewer */

struct ctl_plan_name ctl_plan_layout_name(const struct bt_plan_layout *layout)
{
    struct ctl_plan_name name;
    snprintf(name.text, sizeof(name.text), "TP%u DP%u EP%u", layout->tp, layout->dp, layout->ep);
    return name;
}

static enum bt_status survey(struct ctl_plan_report *report, struct bt_error *error)
{
    report->prefill.choices = report->choices[0];
    report->decode.choices = report->choices[1];
    report->prefill.capacity = report->decode.capacity = BT_PLAN_LAYOUTS_MAX;
    enum bt_status status =
        bt_plan_survey(&report->question, BT_PLAN_PREFILL, error, &report->prefill);
    return status == BT_OK
               ? bt_plan_survey(&report->question, BT_PLAN_DECODE, error, &report->decode)
               : status;
}

static void say_what_fails(const struct bt_plan_question *question,
                           const struct bt_plan_outcome *outcome, char *text, size_t size)
{
    if (!outcome->fits)
        snprintf(text, size, "%s: the model does not fit into %.0f%% of memory",
                 outcome->prefill.memory.fits ? "decode" : "prefill",
                 100 * question->calibration.memory_limit);
    else if (!isfinite(outcome->decode.batch))
        snprintf(text, size, "decode does not keep up: at most %u sequences a group within limits",
                 outcome->decode.max_batch);
    else if (!outcome->stable)
        snprintf(text, size, "too busy: prefill %.0f%%, decode %.0f%%, of at most %.0f%%",
                 100 * outcome->prefill.utilisation, 100 * outcome->decode.utilisation,
                 100 * question->policy.max_utilisation);
    else if (!outcome->meets_ttft)
        snprintf(text, size, "TTFT is %.4g s, over %.4g s", outcome->ttft_s, question->slo.ttft_s);
    else if (!outcome->meets_tpot)
        snprintf(text, size, "TPOT is %.4g s, over %.4g s", outcome->tpot_s, question->slo.tpot_s);
    else
        snprintf(text, size, "the longest gap is %.4g s, over %.4g s", outcome->worst_gap_s,
                 question->slo.gap_s);
}

/* The deployment that was named, and the best aggregated one beside it. */
static enum bt_status judge(struct ctl_plan_report *report, struct bt_error *error)
{
    struct bt_plan_answer *answer = &report->answer;
    struct bt_plan_outcome outcome;
    enum bt_status status = bt_plan_evaluate(&report->question, &report->prefill_pool,
                                             &report->decode_pool, error, &outcome);
    if (status == BT_OK)
        status = bt_plan_solve(&report->question, error, answer);
    if (status != BT_OK)
        return status;
    answer->best = outcome;
    answer->found = outcome.good;
    answer->ttft_cost_s = outcome.handoff.visible_s;
    answer->disaggregate =
        answer->found && (!answer->aggregated_found ||
                          outcome.cost_per_hour <= answer->aggregated.cost_per_hour * (1 + 1e-9));
    answer->saving = answer->found && answer->aggregated_found
                         ? 1 - outcome.cost_per_hour / answer->aggregated.cost_per_hour
                         : 0;
    answer->why_not[0] = '\0';
    if (!outcome.good)
        say_what_fails(&report->question, &outcome, answer->why_not, sizeof(answer->why_not));
    snprintf(answer->verdict, sizeof(answer->verdict),
             "as named it costs %.4g an hour and %s the limits; the handoff adds %.3g ms to TTFT",
             outcome.cost_per_hour, outcome.good ? "meets" : "does not meet",
             1e3 * outcome.handoff.visible_s);
    return BT_OK;
}

/* Of those that fit, the one with the most requests a card; if latency allows none, the fastest. */
static const struct bt_plan_choice *best_choice(const struct bt_plan_survey *survey)
{
    const struct bt_plan_choice *best = NULL;
    for (size_t i = 0; i < survey->count; i++) {
        const struct bt_plan_choice *one = &survey->choices[i];
        if (!one->memory.fits)
            continue;
        double rate = one->requests_per_s / one->cards;
        double most = best ? best->requests_per_s / best->cards : -1;
        if (rate > most || (rate == most && one->cost.seconds < best->cost.seconds))
            best = one;
    }
    return best;
}

static void choose_pair(struct ctl_plan_report *report)
{
    const struct bt_plan_choice *prefill = best_choice(&report->prefill);
    const struct bt_plan_choice *decode = best_choice(&report->decode);
    if (report->given || report->answer.found) {
        report->prefill_pool = report->answer.best.prefill.pool;
        report->decode_pool = report->answer.best.decode.pool;
    } else if (prefill && decode) {
        report->prefill_pool = prefill->pool;
        report->decode_pool = decode->pool;
    } else {
        return;
    }
    report->has_pair = true;
}

static void fill_steps(struct ctl_plan_report *report, const struct bt_plan_instance *decode,
                       struct ctl_plan_length *length)
{
    const struct bt_plan_question *question = &report->question;
    for (size_t i = 0; i < report->batch_count; i++) {
        struct bt_plan_decoding decoding = {
            .batch = report->batches[i],
            .context = length->tokens,
            .reserved = length->tokens,
            .drafts = question->policy.drafts,
            .acceptance = question->policy.acceptance,
        };
        if (!bt_plan_decode_memory(decode, &decoding).fits)
            continue;
        struct bt_plan_cost cost = bt_plan_decode_cost(decode, &decoding);
        length->tpot_s[i] = cost.seconds / bt_plan_tokens_of_step(&decoding);
        length->decode_bound[i] = bt_plan_bound_of(&cost);
        length->intensity[i] =
            cost.operations / (cost.weight_bytes + cost.kv_bytes + cost.activation_bytes);
        length->achieved[i] = cost.operations / cost.seconds;
    }
}

static void fill_lengths(struct ctl_plan_report *report)
{
    static const double lengths[CTL_PLAN_LENGTHS] = {128,  512,   1024,  2048,  4096,
                                                     8192, 16384, 32768, 65536, 131072};
    const struct bt_plan_question *question = &report->question;
    struct bt_plan_instance prefill = bt_plan_instance_of(
        question, BT_PLAN_PREFILL, &question->prefill_hardware, &report->prefill_pool);
    struct bt_plan_instance decode = bt_plan_instance_of(
        question, BT_PLAN_DECODE, &question->decode_hardware, &report->decode_pool);
    for (uint32_t batch = 1; batch <= question->limits.max_batch; batch *= 2)
        if (report->batch_count < CTL_PLAN_BATCHES)
            report->batches[report->batch_count++] = batch;
    for (size_t i = 0; i < CTL_PLAN_LENGTHS; i++) {
        struct ctl_plan_length *length = &report->lengths[report->length_count++];
        struct bt_plan_prompt prompt = {1, lengths[i], 0, question->policy.chunk_tokens};
        length->tokens = lengths[i];
        length->prefill = bt_plan_prefill_cost(&prefill, &prompt);
        length->bound = bt_plan_bound_of(&length->prefill);
        length->handoff =
            bt_plan_handoff_cost(&prefill, &decode, lengths[i], length->prefill.seconds,
                                 lengths[i] >= question->policy.layerwise_from_tokens);
        length->ttft_s = length->prefill.seconds + length->handoff.visible_s +
                         question->calibration.request_overhead_s;
        fill_steps(report, &decode, length);
    }
}

static enum bt_status fill_curve(struct ctl_plan_report *report, struct bt_error *error)
{
    uint32_t prefill = bt_plan_layout_cards(&report->prefill_pool.layout);
    uint32_t decode = bt_plan_layout_cards(&report->decode_pool.layout);
    uint32_t cards = report->curve_cards;
    if (!cards) {
        uint32_t least = SPLITS * (prefill > decode ? prefill : decode);
        cards = report->answer.found ? report->answer.best.cards : least;
        cards *= cards < least ? (least + cards - 1) / cards : 1;
    }
    report->curve_cards = cards;
    report->curve.points = report->points;
    report->curve.capacity = CTL_PLAN_POINTS;
    return bt_plan_goodput(&report->question, &report->prefill_pool, &report->decode_pool, cards,
                           error, &report->curve);
}

static void fill_variants(struct ctl_plan_report *report)
{
    for (int i = 0; i < BT_PLAN_VARIANTS; i++) {
        struct ctl_plan_variant *variant = &report->variants[i];
        struct bt_plan_question question;
        struct bt_plan_answer answer;
        struct bt_error error;
        variant->variant = (enum bt_plan_variant)i;
        if (bt_plan_variant_apply(&report->question, variant->variant, &error, &question) !=
                BT_OK ||
            bt_plan_solve(&question, &error, &answer) != BT_OK) {
            snprintf(variant->why_not, sizeof(variant->why_not), "%s", error.text);
            continue;
        }
        variant->applies = true;
        variant->found = answer.found;
        variant->outcome = answer.best;
        if (!answer.found)
            snprintf(variant->why_not, sizeof(variant->why_not), "%s", answer.why_not);
    }
}

enum bt_status ctl_plan_compute(struct ctl_plan_report *report, bool explain,
                                struct bt_error *error)
{
    enum bt_status status = survey(report, error);
    if (status == BT_OK)
        status = report->given ? judge(report, error)
                               : bt_plan_solve(&report->question, error, &report->answer);
    if (status != BT_OK)
        return status;
    choose_pair(report);
    fill_variants(report);
    if (report->has_pair) {
        fill_lengths(report);
        status = fill_curve(report, error);
    }
    report->explained = explain && status == BT_OK;
    if (report->explained && (report->given || report->answer.found))
        bt_plan_explain(&report->question, &report->answer.best, &report->lines);
    else if (report->explained && report->answer.aggregated_found)
        bt_plan_explain(&report->question, &report->answer.aggregated, &report->lines);
    return status;
}
