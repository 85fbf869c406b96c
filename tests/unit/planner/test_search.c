/* Answers against brute force, against queueing and Little's law, and in the direction they move.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/planner/planner.h"
#include "common/planner/queueing.h"
#include "tests/unit/planner/arithmetic.h"
#include "tests/unit/planner/published.h"

/* V3 by its own parameters, attention's projections too, on H20. */
static struct bt_plan_question v3_question(void)
{
    struct bt_plan_question question;
    bt_plan_question_init(&question);
    question.model = published_model;
    question.model.active_parameters = 25.2e9;
    question.model.attention_parameters = 11.4e9;
    question.model.head_parameters = 0.93e9;
    question.model.mtp_parameters = 11.5e9;
    question.dtypes = published_w4a8;
    question.prefill_hardware = question.decode_hardware = published_h20();
    question.load =
        (struct bt_plan_load){.requests_per_s = 8, .input_tokens = 3260, .output_tokens = 550};
    question.slo = (struct bt_plan_slo){.ttft_s = 2, .tpot_s = 0.05};
    return question;
}

/* A model so small that every deployment of a few cards can be tried: 4 heads, 4 experts. */
static struct bt_plan_question small_question(void)
{
    struct bt_plan_question question = v3_question();
    question.model = (struct bt_plan_model){.layers = 4,
                                            .moe_layers = 3,
                                            .heads = 4,
                                            .nope_dim = 32,
                                            .rope_dim = 16,
                                            .value_dim = 32,
                                            .kv_rank = 64,
                                            .q_rank = 0,
                                            .hidden = 256,
                                            .moe_intermediate = 128,
                                            .routed_experts = 4,
                                            .shared_experts = 1,
                                            .experts_per_token = 2,
                                            .active_parameters = 1e9,
                                            .attention_parameters = 5e8,
                                            .dense_parameters = 8e8,
                                            .moe_parameters = 4e9,
                                            .streams = 1};
    question.prefill_hardware.figure[BT_PLAN_RESERVE] = 0;
    question.prefill_hardware.figure[BT_PLAN_PEAK + BT_PLAN_FP8] = 20e12;
    question.prefill_hardware.figure[BT_PLAN_MEMORY] = 4e9;
    question.prefill_hardware.figure[BT_PLAN_MEMORY_BANDWIDTH] = 100e9;
    question.prefill_hardware.figure[BT_PLAN_NODE_CARDS] = 2;
    question.decode_hardware = question.prefill_hardware;
    question.decode_hardware.figure[BT_PLAN_PRICE] = 0.7;
    question.load =
        (struct bt_plan_load){.requests_per_s = 4, .input_tokens = 200, .output_tokens = 100};
    question.slo = (struct bt_plan_slo){.ttft_s = 0.5, .tpot_s = 0.1};
    question.limits.max_cards = 7;
    question.limits.max_instance_cards = 4;
    question.limits.max_batch = 64;
    return question;
}

/* ---- brute force */

/* Layouts of 1, 2 and 4 cards for 4 heads and 4 experts: EP is all cards. */
static const struct bt_plan_layout small_layouts[] = {{1, 1, 1}, {1, 2, 2}, {2, 1, 2},
                                                      {1, 4, 4}, {2, 2, 4}, {4, 1, 4}};
#define SMALL_LAYOUTS (sizeof(small_layouts) / sizeof(small_layouts[0]))

static double evaluated_cost(const struct bt_plan_question *question, size_t i, uint32_t prefills,
                             size_t j, uint32_t decodes)
{
    struct bt_plan_pool prefill = {small_layouts[i], 0, prefills};
    struct bt_plan_pool decode = {small_layouts[j], 0, decodes};
    struct bt_plan_outcome outcome;
    assert_int_equal(bt_plan_evaluate(question, &prefill, &decode, NULL, &outcome), BT_OK);
    return outcome.good && outcome.cards <= question->limits.max_cards ? outcome.cost_per_hour
                                                                       : INFINITY;
}

static double least_cost(const struct bt_plan_question *question)
{
    double least = INFINITY;
    for (size_t i = 0; i < SMALL_LAYOUTS; i++)
        for (size_t j = 0; j < SMALL_LAYOUTS; j++)
            for (uint32_t p = 1; p < question->limits.max_cards; p++)
                for (uint32_t d = 1; d < question->limits.max_cards; d++)
                    least = fmin(least, evaluated_cost(question, i, p, j, d));
    return least;
}

static double least_aggregated_cost(const struct bt_plan_question *question)
{
    double least = INFINITY;
    for (size_t i = 0; i < SMALL_LAYOUTS; i++)
        for (uint32_t n = 1; n <= question->limits.max_cards; n++)
            for (int k = 0; k < 2; k++) {
                struct bt_plan_pool pool = {small_layouts[i], 0, n};
                struct bt_plan_outcome outcome;
                assert_int_equal(bt_plan_evaluate_aggregated(question,
                                                             k ? &question->prefill_hardware
                                                               : &question->decode_hardware,
                                                             &pool, NULL, &outcome),
                                 BT_OK);
                if (outcome.good && outcome.cards <= question->limits.max_cards)
                    least = fmin(least, outcome.cost_per_hour);
            }
    return least;
}

static void search_finds_what_brute_force_finds(void **state)
{
    (void)state;
    static const double rates[] = {0.5, 8, 20, 60}, ttfts[] = {0.02, 0.06, 1},
                        tpots[] = {0.02, 0.1};
    int found = 0, not_found = 0;
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 3; j++)
            for (int k = 0; k < 2; k++) {
                struct bt_plan_question question = small_question();
                question.load.requests_per_s = rates[i];
                question.slo.ttft_s = ttfts[j];
                question.slo.tpot_s = tpots[k];
                struct bt_plan_answer answer;
                assert_int_equal(bt_plan_solve(&question, NULL, &answer), BT_OK);
                double apart = least_cost(&question), together = least_aggregated_cost(&question);
                assert_int_equal(answer.found, isfinite(apart));
                assert_int_equal(answer.aggregated_found, isfinite(together));
                if (answer.found)
                    assert_near("apart", answer.best.cost_per_hour, apart, 1e-9);
                else
                    assert_true(*answer.why_not);
                if (answer.aggregated_found)
                    assert_near("together", answer.aggregated.cost_per_hour, together, 1e-9);
                found += answer.found;
                not_found += !answer.found;
            }
    assert_true(found >= 5 && not_found >= 3); /* both sides of the limits were tried */
}

/* ---- the answer holds by other laws */

static void check_laws(const struct bt_plan_question *question, const struct bt_plan_outcome *out)
{
    const struct bt_plan_layout *prefill = &out->prefill.pool.layout;
    const struct bt_plan_layout *decode = &out->decode.pool.layout;
    double groups = (double)out->decode.pool.instances * decode->dp;
    double rate = question->load.requests_per_s;
    assert_true(out->good);
    assert_true(out->ttft_s <= question->slo.ttft_s && out->tpot_s <= question->slo.tpot_s);
    assert_near("Little", out->decode.batch,
                rate / groups * (question->load.output_tokens - 1) * out->tpot_s,
                1e-6 * out->decode.batch);
    assert_true(out->decode.batch <= out->decode.max_batch);
    double seen = out->aggregated ? 0 : out->handoff.visible_s;
    assert_true(out->aggregated || seen > 0);
    assert_near("TTFT", out->ttft_s,
                out->prefill.wait_s + out->prefill.service_s + seen +
                    question->calibration.request_overhead_s,
                1e-12);
    uint32_t servers = out->prefill.pool.instances * prefill->dp;
    assert_near("wait", out->prefill.wait_s,
                bt_plan_wait_s(servers, out->prefill.service_s, rate, 0, 0), 1e-12);
    assert_near("utilisation", out->prefill.utilisation,
                rate * out->prefill.service_s / out->prefill.pool.instances / prefill->dp, 1e-9);
    assert_true(out->prefill.utilisation <= question->policy.max_utilisation);
    assert_true(out->decode.memory.share <= question->calibration.memory_limit);
    uint32_t cards = out->decode.pool.instances * bt_plan_layout_cards(decode);
    if (!out->aggregated)
        cards += out->prefill.pool.instances * bt_plan_layout_cards(prefill);
    assert_int_equal(cards, out->cards);
}

static void answers_meet_their_limits(void **state)
{
    (void)state;
    for (double rate = 1; rate < 100; rate *= 3) {
        struct bt_plan_question question = v3_question();
        question.load.requests_per_s = rate;
        struct bt_plan_answer answer;
        assert_int_equal(bt_plan_solve(&question, NULL, &answer), BT_OK);
        assert_true(answer.found && answer.aggregated_found);
        check_laws(&question, &answer.best);
        check_laws(&question, &answer.aggregated);
        assert_int_equal(answer.disaggregate,
                         answer.best.cost_per_hour <= answer.aggregated.cost_per_hour);
        assert_near("saving", answer.saving,
                    1 - answer.best.cost_per_hour / answer.aggregated.cost_per_hour, 1e-12);
        assert_near("cost of TTFT", answer.ttft_cost_s, answer.best.handoff.visible_s, 0);
    }
}

/* One instance less of either side breaks a limit. */
static void answers_have_nothing_to_spare(void **state)
{
    (void)state;
    struct bt_plan_question question = v3_question();
    question.load.requests_per_s = 40;
    struct bt_plan_answer answer;
    assert_int_equal(bt_plan_solve(&question, NULL, &answer), BT_OK);
    assert_true(answer.found);
    struct bt_plan_pool prefill = answer.best.prefill.pool, decode = answer.best.decode.pool;
    assert_true(prefill.instances > 1 && decode.instances > 1);
    struct bt_plan_outcome outcome;
    prefill.instances--;
    assert_int_equal(bt_plan_evaluate(&question, &prefill, &decode, NULL, &outcome), BT_OK);
    assert_false(outcome.good);
    prefill.instances++;
    decode.instances--;
    assert_int_equal(bt_plan_evaluate(&question, &prefill, &decode, NULL, &outcome), BT_OK);
    assert_false(outcome.good);
}

/* ---- directions */

static void more_prefill_never_raises_ttft(void **state)
{
    (void)state;
    struct bt_plan_question question = v3_question();
    double last = INFINITY;
    for (uint32_t instances = 1; instances < 30; instances++) {
        struct bt_plan_pool prefill = {{8, 1, 8}, 0, instances}, decode = {{1, 8, 8}, 0, 4};
        struct bt_plan_outcome outcome;
        assert_int_equal(bt_plan_evaluate(&question, &prefill, &decode, NULL, &outcome), BT_OK);
        assert_true(outcome.ttft_s <= last);
        last = outcome.ttft_s;
    }
    assert_true(isfinite(last));
}

static void more_decode_never_raises_tpot(void **state)
{
    (void)state;
    struct bt_plan_question question = v3_question();
    double last = INFINITY;
    bool kept_up = false;
    for (uint32_t instances = 1; instances < 30; instances++) {
        struct bt_plan_pool prefill = {{8, 1, 8}, 0, 30}, decode = {{1, 8, 8}, 0, instances};
        struct bt_plan_outcome outcome;
        assert_int_equal(bt_plan_evaluate(&question, &prefill, &decode, NULL, &outcome), BT_OK);
        if (!isfinite(outcome.decode.batch)) {
            assert_false(kept_up || outcome.good);
            continue;
        }
        kept_up = true;
        assert_true(outcome.tpot_s <= last);
        last = outcome.tpot_s;
    }
    assert_true(kept_up);
}

static double cost_of(const struct bt_plan_question *question)
{
    struct bt_plan_answer answer;
    assert_int_equal(bt_plan_solve(question, NULL, &answer), BT_OK);
    return answer.found ? answer.best.cost_per_hour : INFINITY;
}

static void cost_rises_with_load_and_falls_with_patience(void **state)
{
    (void)state;
    double last = 0;
    for (double rate = 1; rate < 200; rate *= 2) {
        struct bt_plan_question question = v3_question();
        question.load.requests_per_s = rate;
        double cost = cost_of(&question);
        assert_true(isfinite(cost) && cost >= last);
        last = cost;
        question.slo.ttft_s *= 2;
        question.slo.tpot_s *= 2;
        assert_true(cost_of(&question) <= cost);
    }
}

/* ---- goodput */

static void the_curve_is_what_deployments_bear(void **state)
{
    (void)state;
    struct bt_plan_question question = v3_question();
    struct bt_plan_pool prefill = {{8, 1, 8}, 0, 1}, decode = {{1, 8, 8}, 0, 1};
    struct bt_plan_point points[16];
    struct bt_plan_curve curve = {.points = points, .capacity = 16};
    assert_int_equal(bt_plan_goodput(&question, &prefill, &decode, 80, NULL, &curve), BT_OK);
    assert_int_equal(curve.count, 9); /* 1:9 … 9:1 */
    for (size_t i = 0; i < curve.count; i++) {
        assert_int_equal(points[i].prefill_instances, i + 1);
        assert_int_equal(points[i].decode_instances, 9 - i);
        assert_true(points[i].goodput <= points[curve.best].goodput);
        assert_near("least", points[i].goodput,
                    fmin(points[i].prefill_limit, points[i].decode_limit), 0);
        assert_true(i == 0 || (points[i].prefill_limit > points[i - 1].prefill_limit &&
                               points[i].decode_limit < points[i - 1].decode_limit));
        prefill.instances = points[i].prefill_instances;
        decode.instances = points[i].decode_instances;
        struct bt_plan_outcome below, above;
        question.load.requests_per_s = points[i].goodput * 0.999;
        assert_int_equal(bt_plan_evaluate(&question, &prefill, &decode, NULL, &below), BT_OK);
        question.load.requests_per_s = points[i].goodput * 1.001;
        assert_int_equal(bt_plan_evaluate(&question, &prefill, &decode, NULL, &above), BT_OK);
        assert_true(below.good);
        assert_false(above.good);
    }
    assert_true(curve.best > 0 && curve.best < curve.count - 1);
    decode.instances = 10;
    struct bt_plan_outcome together;
    question.load.requests_per_s = curve.aggregated * 0.999;
    bt_plan_evaluate_aggregated(&question, &question.decode_hardware, &decode, NULL, &together);
    assert_true(together.good);
    question.load.requests_per_s = curve.aggregated * 1.001;
    bt_plan_evaluate_aggregated(&question, &question.decode_hardware, &decode, NULL, &together);
    assert_false(together.good);
}

static void a_curve_keeps_to_its_room(void **state)
{
    (void)state;
    struct bt_plan_question question = v3_question();
    struct bt_plan_pool prefill = {{8, 1, 8}, 0, 1}, decode = {{1, 8, 8}, 0, 1};
    struct bt_plan_point points[5];
    struct bt_plan_curve curve = {.points = points, .capacity = 4};
    memset(&points[4], 0x5a, sizeof(points[4]));
    assert_int_equal(bt_plan_goodput(&question, &prefill, &decode, 800, NULL, &curve), BT_OK);
    assert_int_equal(curve.count, 4);
    assert_int_equal(points[4].prefill_cards, 0x5a5a5a5a);
    assert_int_equal(bt_plan_goodput(&question, &prefill, &decode, 15, NULL, &curve), BT_OK);
    assert_int_equal(curve.count, 0);
}

/* ---- overheads */

/* A request's is in TTFT and in no utilisation; a sequence's makes batches larger, by Little's law.
 */
static void overheads_delay_requests_and_widen_batches(void **state)
{
    (void)state;
    struct bt_plan_question question = v3_question();
    struct bt_plan_pool prefill = {{8, 1, 8}, 0, 6}, decode = {{1, 8, 8}, 0, 6};
    struct bt_plan_outcome before, after, together[2];
    assert_int_equal(bt_plan_evaluate(&question, &prefill, &decode, NULL, &before), BT_OK);
    assert_int_equal(bt_plan_evaluate_aggregated(&question, &question.decode_hardware, &decode,
                                                 NULL, &together[0]),
                     BT_OK);
    question.calibration.request_overhead_s = 0.25;
    question.slo.ttft_s = before.ttft_s + 0.2499;
    assert_int_equal(bt_plan_evaluate(&question, &prefill, &decode, NULL, &after), BT_OK);
    assert_int_equal(bt_plan_evaluate_aggregated(&question, &question.decode_hardware, &decode,
                                                 NULL, &together[1]),
                     BT_OK);
    assert_near("apart", after.ttft_s - before.ttft_s, 0.25, 1e-12);
    assert_near("together", together[1].ttft_s - together[0].ttft_s, 0.25, 1e-12);
    assert_near("cards", after.prefill.utilisation, before.prefill.utilisation, 0);
    assert_near("TPOT", after.tpot_s, before.tpot_s, 0);
    assert_false(after.meets_ttft);
    question.slo.ttft_s += 0.0002;
    assert_int_equal(bt_plan_evaluate(&question, &prefill, &decode, NULL, &after), BT_OK);
    assert_true(after.meets_ttft);
    question.calibration.sequence_overhead_s = 1e-4;
    assert_int_equal(bt_plan_evaluate(&question, &prefill, &decode, NULL, &after), BT_OK);
    assert_true(after.decode.batch > before.decode.batch);
    assert_near("in a step", after.decode.cost.overhead_s, 1e-4 * fmax(after.decode.batch, 1),
                1e-12);
}

/* Answers keep to TTFT with a request's overhead in it, or say how much is over. */
static void answers_count_overheads(void **state)
{
    (void)state;
    struct bt_plan_question question = v3_question();
    struct bt_plan_answer answer;
    question.calibration.step_overhead_s = 1e-3;
    question.calibration.sequence_overhead_s = 1e-5;
    question.calibration.request_overhead_s = question.slo.ttft_s / 4;
    assert_int_equal(bt_plan_solve(&question, NULL, &answer), BT_OK);
    assert_true(answer.found);
    check_laws(&question, &answer.best);
    question.calibration.request_overhead_s = question.slo.ttft_s;
    assert_int_equal(bt_plan_solve(&question, NULL, &answer), BT_OK);
    assert_false(answer.found || answer.aggregated_found);
    assert_non_null(strstr(answer.why_not, "of TTFT"));
}

/* ---- aggregated serving */

/* Prefill takes `share` of a group's time, and decode gets the rest. */
static void prefill_among_decode_inflates_tpot(void **state)
{
    (void)state;
    struct bt_plan_question question = v3_question();
    question.policy.chunk_tokens = 1000;
    struct bt_plan_pool pool = {{1, 8, 8}, 0, 6};
    struct bt_plan_outcome outcome;
    for (double rate = 0.5; rate < 8; rate += 2) {
        question.load.requests_per_s = rate;
        assert_int_equal(bt_plan_evaluate_aggregated(&question, &question.decode_hardware, &pool,
                                                     NULL, &outcome),
                         BT_OK);
        assert_true(isfinite(outcome.decode.batch));
        double share = rate / 48 * outcome.prefill.cost.seconds;
        assert_near("TPOT", outcome.tpot_s, outcome.decode.cost.seconds / (1 - share), 1e-9);
        assert_near("prompt", outcome.prefill.service_s,
                    outcome.prefill.cost.seconds + 4 * outcome.decode.cost.seconds, 1e-9);
        assert_near("gap", outcome.worst_gap_s,
                    outcome.prefill.cost.seconds / 4 + outcome.decode.cost.seconds, 1e-9);
    }
}

/* Where gaps between tokens must be short, aggregated serving has to cut its chunks. */
static void short_gaps_ask_for_short_chunks(void **state)
{
    (void)state;
    struct bt_plan_question question = v3_question();
    struct bt_plan_answer free_gaps, short_gaps;
    assert_int_equal(bt_plan_solve(&question, NULL, &free_gaps), BT_OK);
    question.slo.gap_s = 0.4;
    assert_int_equal(bt_plan_solve(&question, NULL, &short_gaps), BT_OK);
    assert_true(free_gaps.aggregated_found && short_gaps.aggregated_found);
    assert_true(free_gaps.aggregated.worst_gap_s > 0.4);
    assert_true(short_gaps.aggregated.worst_gap_s <= 0.4);
    assert_true(short_gaps.aggregated.chunk_tokens < 3260);
    assert_true(short_gaps.aggregated.cost_per_hour >= free_gaps.aggregated.cost_per_hour);
    assert_near("apart", short_gaps.best.cost_per_hour, free_gaps.best.cost_per_hour, 1e-9);
}

/* ---- what stands in the way */

static void failures_say_what_stands_in_the_way(void **state)
{
    (void)state;
    struct bt_plan_answer answer;
    struct bt_plan_question question = v3_question();
    question.limits.max_instance_cards = 4;
    assert_int_equal(bt_plan_solve(&question, NULL, &answer), BT_OK);
    assert_false(answer.found);
    assert_non_null(strstr(answer.why_not, "memory"));
    question = v3_question();
    question.prefill_hardware.figure[BT_PLAN_MEMORY] = 11e9;
    assert_int_equal(bt_plan_solve(&question, NULL, &answer), BT_OK);
    assert_non_null(strstr(answer.why_not, "prefill: no layout"));
    question = v3_question();
    question.slo.tpot_s = 0.0001;
    assert_int_equal(bt_plan_solve(&question, NULL, &answer), BT_OK);
    assert_non_null(strstr(answer.why_not, "TPOT"));
    question = v3_question();
    question.slo.ttft_s = 0.001;
    assert_int_equal(bt_plan_solve(&question, NULL, &answer), BT_OK);
    assert_non_null(strstr(answer.why_not, "TTFT"));
    question = v3_question();
    question.load.requests_per_s = 1000;
    question.limits.max_cards = 32;
    assert_int_equal(bt_plan_solve(&question, NULL, &answer), BT_OK);
    assert_non_null(strstr(answer.why_not, "32"));
    assert_false(answer.aggregated_found);
}

static void questions_are_checked(void **state)
{
    (void)state;
    struct bt_plan_answer answer;
    struct bt_error error = {0};
    struct bt_plan_question question = v3_question();
    question.load.requests_per_s = NAN;
    assert_int_equal(bt_plan_solve(&question, &error, &answer), BT_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "load.requests_per_s"));
    question = v3_question();
    question.policy.chunk_tokens = 0.01;
    assert_int_equal(bt_plan_solve(&question, &error, &answer), BT_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "policy.chunk_tokens"));
    question = v3_question();
    question.decode_hardware.figure[BT_PLAN_BETWEEN] = 0;
    assert_int_equal(bt_plan_solve(&question, &error, &answer), BT_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "decode_hardware.between_gb_s"));
    question = v3_question();
    question.policy.drafts = 1;
    question.model.mtp_parameters = 0;
    assert_int_equal(bt_plan_solve(&question, &error, &answer), BT_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "MTP"));
    question = v3_question();
    struct bt_plan_outcome outcome;
    struct bt_plan_pool none = {{8, 1, 8}, 0, 0}, odd = {{3, 1, 3}, 0, 1}, good = {{8, 1, 8}, 0, 1};
    assert_int_equal(bt_plan_evaluate(&question, &none, &good, &error, &outcome),
                     BT_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "prefill: instances"));
    assert_int_equal(bt_plan_evaluate(&question, &good, &odd, &error, &outcome),
                     BT_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "decode: layout"));
}

/* Baton's own: a prefill instance is one attention group, a decode group one card. */
static void layouts_keep_to_their_limits(void **state)
{
    (void)state;
    struct bt_plan_question question = v3_question();
    question.limits.prefill_dp = question.limits.decode_tp = 1;
    struct bt_plan_answer answer;
    assert_int_equal(bt_plan_solve(&question, NULL, &answer), BT_OK);
    assert_true(answer.found);
    assert_int_equal(answer.best.prefill.pool.layout.dp, 1);
    assert_int_equal(answer.best.decode.pool.layout.tp, 1);
}

/* Half of the experts' 2 GB and 0.8 GB do not fit; a third of the experts and two copies, 0.93 GB,
 * do: a node of three cards is one of the instances that are tried. */
static void instances_of_whole_nodes_are_tried(void **state)
{
    (void)state;
    struct bt_plan_question question = small_question();
    question.limits.max_instance_cards = 3;
    question.limits.decode_tp = 1;
    question.prefill_hardware.figure[BT_PLAN_NODE_CARDS] = 3;
    question.prefill_hardware.figure[BT_PLAN_MEMORY] = 1.78e9 / 0.85;
    question.decode_hardware = question.prefill_hardware;
    struct bt_plan_answer answer;
    assert_int_equal(bt_plan_solve(&question, NULL, &answer), BT_OK);
    assert_true(answer.found);
    assert_int_equal(answer.best.decode.pool.layout.ep, 3);
    assert_int_equal(answer.best.decode.pool.redundant, 2);
}

/* Of two kinds of cards, aggregated serving takes the cheaper one. */
static void aggregated_serving_takes_the_cheaper_cards(void **state)
{
    (void)state;
    struct bt_plan_question question = v3_question();
    struct bt_plan_answer same, mixed;
    assert_int_equal(bt_plan_solve(&question, NULL, &same), BT_OK);
    question.decode_hardware.figure[BT_PLAN_PRICE] = 3;
    assert_int_equal(bt_plan_solve(&question, NULL, &mixed), BT_OK);
    assert_near("cost", mixed.aggregated.cost_per_hour, same.aggregated.cost_per_hour, 1e-9);
    question.prefill_hardware.figure[BT_PLAN_PRICE] = 3;
    question.decode_hardware.figure[BT_PLAN_PRICE] = 1;
    assert_int_equal(bt_plan_solve(&question, NULL, &mixed), BT_OK);
    assert_near("cost", mixed.aggregated.cost_per_hour, same.aggregated.cost_per_hour, 1e-9);
}

/* ---- variants */

static struct bt_plan_outcome evaluated(const struct bt_plan_question *question)
{
    struct bt_plan_pool prefill = {{8, 1, 8}, 0, 6}, decode = {{1, 8, 8}, 0, 6};
    struct bt_plan_outcome outcome;
    assert_int_equal(bt_plan_evaluate(question, &prefill, &decode, NULL, &outcome), BT_OK);
    return outcome;
}

static struct bt_plan_outcome varied(const struct bt_plan_question *question,
                                     enum bt_plan_variant variant)
{
    struct bt_plan_question changed;
    struct bt_error error = {0};
    if (bt_plan_variant_apply(question, variant, &error, &changed) != BT_OK)
        fail_msg("%s", error.text);
    return evaluated(&changed);
}

static void variants_change_what_they_are_for(void **state)
{
    (void)state;
    struct bt_plan_question question = v3_question();
    question.dtypes = published_fp8;
    question.dtypes.kv_latent_bytes = question.dtypes.kv_rope_bytes = 2;
    question.prefill_hardware.figure[BT_PLAN_MEMORY] = 200e9;
    question.decode_hardware.figure[BT_PLAN_MEMORY] = 200e9;
    question.load.input_tokens = 30000;
    question.load.requests_per_s = 0.5;
    struct bt_plan_outcome base = evaluated(&question);
    struct bt_plan_outcome w4a8 = varied(&question, BT_PLAN_WITH_W4A8);
    assert_near("half of the experts",
                base.decode.memory.weight_bytes - w4a8.decode.memory.weight_bytes, 657e9 / 2 / 8,
                1);
    struct bt_plan_outcome kv = varied(&question, BT_PLAN_WITH_FP8_KV);
    assert_near("KV", kv.handoff.bytes / base.handoff.bytes, 656.0 / 1152, 1e-9);
    struct bt_plan_outcome mtp = varied(&question, BT_PLAN_WITH_MTP);
    assert_near("tokens", mtp.decode.tokens_of_step, 1 + question.policy.acceptance, 1e-12);
    struct bt_plan_outcome dsa = varied(&question, BT_PLAN_WITH_DSA);
    assert_true(dsa.tpot_s < base.tpot_s);
    struct bt_plan_outcome mhc = varied(&question, BT_PLAN_WITH_MHC);
    assert_true(mhc.prefill.service_s > base.prefill.service_s);
    assert_near("as asked", varied(&question, BT_PLAN_AS_ASKED).ttft_s, base.ttft_s, 0);
}

static void variants_that_can_not_be_are_refused(void **state)
{
    (void)state;
    struct bt_plan_question question = v3_question(), changed;
    assert_int_equal(bt_plan_variant_apply(&question, BT_PLAN_WITH_W4A8, NULL, &changed),
                     BT_ERR_ALREADY_EXISTS);
    assert_int_equal(bt_plan_variant_apply(&question, BT_PLAN_WITH_FP8_KV, NULL, &changed),
                     BT_ERR_ALREADY_EXISTS);
    question.model.mtp_parameters = 0;
    assert_int_equal(bt_plan_variant_apply(&question, BT_PLAN_WITH_MTP, NULL, &changed),
                     BT_ERR_UNSUPPORTED);
    question.model.sparse_tokens = 2048;
    assert_int_equal(bt_plan_variant_apply(&question, BT_PLAN_WITH_DSA, NULL, &changed),
                     BT_ERR_ALREADY_EXISTS);
}

/* ---- explanation */

/* "name = formula = numbers = value unit": the numbers give the value. */
static double check_line(const char *line)
{
    char text[BT_PLAN_LINE_SIZE];
    snprintf(text, sizeof(text), "%s", line);
    char *parts[4], *at = text;
    for (int i = 0; i < 4; i++) {
        parts[i] = at;
        at = i < 3 ? strstr(at, " = ") : NULL;
        if (i < 3 && !at)
            fail_msg("not four parts: %s", line);
        if (at) {
            *at = '\0';
            at += 3;
        }
    }
    double value = strtod(parts[3], NULL);
    assert_near(line, arithmetic_value(parts[2]), value, 1e-4 * fabs(value));
    return value;
}

static double line_value(const struct bt_plan_lines *lines, const char *name)
{
    for (size_t i = 0; i < lines->count; i++)
        if (!strncmp(lines->line[i], name, strlen(name)) && lines->line[i][strlen(name)] == ' ')
            return check_line(lines->line[i]);
    fail_msg("no line %s", name);
    return 0;
}

static void check_explanation(const struct bt_plan_question *question,
                              const struct bt_plan_outcome *outcome)
{
    static struct bt_plan_lines lines;
    bt_plan_explain(question, outcome, &lines);
    assert_true(lines.count > 25 && lines.count < BT_PLAN_LINES_MAX);
    for (size_t i = 0; i < lines.count; i++)
        check_line(lines.line[i]);
    assert_near("ttft", line_value(&lines, "ttft"), outcome->ttft_s, 1e-4 * outcome->ttft_s);
    assert_near("tpot", line_value(&lines, "tpot"), outcome->tpot_s, 1e-4 * outcome->tpot_s);
    assert_near("cost", line_value(&lines, "cost"), outcome->cost_per_hour, 1e-3);
    assert_near("batch", line_value(&lines, "decode.batch"), outcome->decode.batch,
                1e-4 * outcome->decode.batch);
    assert_near("prefill", line_value(&lines, "prefill.seconds"), outcome->prefill.cost.seconds,
                1e-4 * outcome->prefill.cost.seconds);
}

static void every_figure_follows_from_its_line(void **state)
{
    (void)state;
    for (int variant = 0; variant < BT_PLAN_VARIANTS; variant++) {
        struct bt_plan_question question = v3_question(), changed;
        question.load.input_tokens = 20001;
        question.load.cached_share = 0.2;
        question.slo.ttft_s = 20;
        question.dtypes.kv_latent_bytes = question.dtypes.kv_rope_bytes = 2;
        question.calibration.step_overhead_s = variant * 1e-4;
        question.calibration.sequence_overhead_s = variant * 1e-5;
        question.calibration.request_overhead_s = variant * 0.1;
        if (bt_plan_variant_apply(&question, (enum bt_plan_variant)variant, NULL, &changed) !=
            BT_OK)
            continue;
        struct bt_plan_answer answer;
        assert_int_equal(bt_plan_solve(&changed, NULL, &answer), BT_OK);
        assert_true(answer.found && answer.aggregated_found);
        check_explanation(&changed, &answer.best);
        check_explanation(&changed, &answer.aggregated);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(search_finds_what_brute_force_finds),
        cmocka_unit_test(answers_meet_their_limits),
        cmocka_unit_test(answers_have_nothing_to_spare),
        cmocka_unit_test(more_prefill_never_raises_ttft),
        cmocka_unit_test(more_decode_never_raises_tpot),
        cmocka_unit_test(cost_rises_with_load_and_falls_with_patience),
        cmocka_unit_test(the_curve_is_what_deployments_bear),
        cmocka_unit_test(a_curve_keeps_to_its_room),
        cmocka_unit_test(overheads_delay_requests_and_widen_batches),
        cmocka_unit_test(answers_count_overheads),
        cmocka_unit_test(prefill_among_decode_inflates_tpot),
        cmocka_unit_test(short_gaps_ask_for_short_chunks),
        cmocka_unit_test(failures_say_what_stands_in_the_way),
        cmocka_unit_test(questions_are_checked),
        cmocka_unit_test(layouts_keep_to_their_limits),
        cmocka_unit_test(instances_of_whole_nodes_are_tried),
        cmocka_unit_test(aggregated_serving_takes_the_cheaper_cards),
        cmocka_unit_test(variants_change_what_they_are_for),
        cmocka_unit_test(variants_that_can_not_be_are_refused),
        cmocka_unit_test(every_figure_follows_from_its_line),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
