/*
 * Experts that move between the ranks of a worker while it serves: no step's bits show it, the load
 * of the ranks becomes even, and what goes wrong with it on one rank ends it on all.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/base/clock.h"
#include "tests/unit/model-groups/ranks.h"
#include "tests/unit/model/scratch.h"

#define LAYERS     5 /* of experts */
#define EXPERTS    16
#define LOADS_FILE "loads.json"
#define WINDOWS    3
#define INTERVAL   (4 * PATTERNS) /* steps: so that loads are of several of each pattern */
#define SPAN       (PATTERNS * ROWS)
#define PREFERENCE 0.2F /* of the routers for two experts: about 5 times as often */
#define EVEN       1.1  /* largest over mean of a balanced placement */

/* ---- a model whose experts are chosen unevenly ---- */

struct skewed {
    struct scratch scratch;
    char loads[300];
    uint32_t hot[2];
};

/* Two experts of different router groups that a balanced placement without loads puts together. */
static void choose_hot(uint32_t ranks, uint32_t replicas, uint32_t *ret_hot)
{
    const uint64_t loads[LAYERS * EXPERTS] = {0};
    const struct bt_placement_options options = {.kind = BT_PLACEMENT_BALANCED,
                                                 .layers = LAYERS,
                                                 .experts = EXPERTS,
                                                 .ranks = ranks,
                                                 .machines = 1,
                                                 .groups = 1,
                                                 .replicas = replicas,
                                                 .loads = loads};
    struct bt_placement *placement;
    uint32_t here[EXPERTS];
    assert_int_equal(bt_placement_create(&options, NULL, &placement), BT_OK);
    for (uint32_t rank = 0; rank < ranks; rank++) {
        uint32_t count = bt_placement_experts_of(placement, 0, rank, here, EXPERTS);
        for (uint32_t i = 1; i < count; i++) {
            if (here[i] / 4 == here[0] / 4)
                continue;
            ret_hot[0] = here[0];
            ret_hot[1] = here[i];
            bt_placement_destroy(placement);
            return;
        }
    }
    fail_msg("no two experts of different groups are together");
}

static size_t offset_of(const json_t *header, uint32_t layer)
{
    char name[128];
    snprintf(name, sizeof(name), "model.layers.%u.mlp.gate.e_score_correction_bias", layer);
    const json_t *tensor = json_object_get(header, name);
    assert_non_null(tensor);
    return (size_t)json_integer_value(json_array_get(json_object_get(tensor, "data_offsets"), 0));
}

/* The tiny model, whose routers prefer the hot ones. */
static void skewed_open(struct skewed *s, uint32_t ranks, uint32_t replicas, float preference)
{
    size_t bytes;
    uint64_t length;
    choose_hot(ranks, replicas, s->hot);
    scratch_open("tiny", &s->scratch);
    snprintf(s->loads, sizeof(s->loads), "%s/" LOADS_FILE, s->scratch.dir);
    json_t *header = scratch_read_header(&s->scratch, "model.safetensors");
    uint8_t *file = scratch_read(&s->scratch, "model.safetensors", &bytes);
    memcpy(&length, file, sizeof(length));
    for (uint32_t layer = 1; layer <= LAYERS; layer++) {
        for (uint32_t i = 0; i < 2; i++) {
            uint8_t *at = file + 8 + length + offset_of(header, layer) + 4 * s->hot[i];
            float bias;
            memcpy(&bias, at, sizeof(bias));
            bias += preference;
            memcpy(at, &bias, sizeof(bias));
        }
    }
    scratch_write(&s->scratch, "model.safetensors", file, bytes);
    free(file);
    json_decref(header);
}

static void skewed_close(struct skewed *s)
{
    scratch_close(&s->scratch);
}

static struct rank_case case_of(const struct skewed *s, uint32_t ranks)
{
    return (struct rank_case){
        .dir = s->scratch.dir,
        .scratch = s->scratch.dir,
        .dtype = BT_MODEL_BFLOAT16,
        .options = {.size = ranks,
                    .expert_parallel = true,
                    .dispatch = BT_DISPATCH_LATENCY,
                    .placement = BT_PLACEMENT_BALANCED,
                    .expert_loads_file = s->loads,
                    .rebalance_interval_ns = INTERVAL * BT_NS_PER_S,
                    .load_windows = WINDOWS,
                    .load_span = SPAN},
        .victim = NOBODY,
        .poor = NOBODY,
        .other = NOBODY,
    };
}

/* ---- comparisons ---- */

/* The logits of a run in which nothing moves, whose experts are elsewhere. */
static struct rank_outcomes *run_still(struct rank_case c)
{
    c.options.placement = BT_PLACEMENT_CONTIGUOUS;
    c.options.redundant_experts = 0;
    c.options.rebalance_interval_ns = 0;
    c.options.expert_loads_file = NULL;
    c.until = UNTIL_STEPS;
    c.steps = PATTERNS;
    c.victim = c.poor = NOBODY;
    return ranks_run(&c);
}

static void assert_same_bits(const struct rank_case *c, const struct rank_outcomes *got,
                             const struct rank_outcomes *want)
{
    for (uint32_t i = 0; i < c->options.size; i++) {
        const struct rank_outcome *ours = &got->rank[i], *theirs = &want->rank[i];
        if (ours->status != BT_OK)
            fail_msg("rank %u: %s", i, bt_status_name(ours->status));
        assert_true(ours->steps >= PATTERNS && !ours->unsteady);
        assert_int_equal(theirs->status, BT_OK);
        assert_int_equal(theirs->moves, 0);
        assert_memory_equal(ours->logits, theirs->logits, sizeof(ours->logits));
    }
}

static void assert_bits_of_still(const struct rank_case *c, const struct rank_outcomes *got)
{
    struct rank_outcomes *want = run_still(*c);
    assert_same_bits(c, got, want);
    ranks_free(want);
}

static void read_loads(const struct skewed *s, uint64_t *ret_loads)
{
    struct bt_error error = {0};
    if (bt_expert_loads_read(s->loads, LAYERS, EXPERTS, &error, ret_loads) != BT_OK)
        fail_msg("%s", error.text);
}

static double imbalance_of(enum bt_placement_kind kind, uint32_t ranks, const uint64_t *placed_by,
                           const uint64_t *loads)
{
    const struct bt_placement_options options = {.kind = kind,
                                                 .layers = LAYERS,
                                                 .experts = EXPERTS,
                                                 .ranks = ranks,
                                                 .machines = 1,
                                                 .groups = 1,
                                                 .loads = placed_by};
    struct bt_placement *placement;
    assert_int_equal(bt_placement_create(&options, NULL, &placement), BT_OK);
    double value = bt_placement_imbalance(placement, loads);
    bt_placement_destroy(placement);
    return value;
}

/* How often a hot expert was chosen, over the mean of the others. */
static double skew_of(const struct skewed *s, const uint64_t *loads)
{
    double hot = 0, others = 0;
    for (size_t i = 0; i < LAYERS * EXPERTS; i++) {
        bool is_hot = i % EXPERTS == s->hot[0] || i % EXPERTS == s->hot[1];
        *(is_hot ? &hot : &others) += (double)loads[i];
    }
    return hot / 2 / (others / (EXPERTS - 2));
}

static const uint64_t no_loads[LAYERS * EXPERTS];

/* The largest load over the mean was far from even, and is even now. */
static void compare_loads(const struct skewed *s, uint32_t ranks, double now)
{
    uint64_t loads[LAYERS * EXPERTS];
    read_loads(s, loads);
    double start = imbalance_of(BT_PLACEMENT_BALANCED, ranks, no_loads, loads);
    double contiguous = imbalance_of(BT_PLACEMENT_CONTIGUOUS, ranks, NULL, loads);
    double round_robin = imbalance_of(BT_PLACEMENT_ROUND_ROBIN, ranks, NULL, loads);
    print_message("%u ranks: hot experts %.1f times as often; largest over mean: contiguous %.3f, "
                  "round-robin %.3f, balanced %.3f at the start, then %.3f\n",
                  ranks, skew_of(s, loads), contiguous, round_robin, start, now);
    assert_true(skew_of(s, loads) > 3);
    assert_true(start > 1.2 && now <= EVEN);
    assert_true(now < contiguous && now < round_robin);
}

/* ---- moves ---- */

static uint64_t moves_of(const struct rank_outcomes *outcomes)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < MAX_RANKS; i++)
        sum += outcomes->rank[i].moves;
    return sum;
}

static void check_moved(const struct rank_case *c, const struct rank_outcomes *moved)
{
    assert_true(moves_of(moved) > 0);
    for (uint32_t i = 0; i < c->options.size; i++) {
        assert_int_equal(moved->rank[i].rebalances, 1);
        assert_int_equal(moved->rank[i].ended, 0);
        assert_true(moved->rank[i].dispatched > 0);
        assert_true(moved->rank[i].imbalance <= EVEN);
    }
}

/* The next life begins with the loads of the last one in the file, evenly placed. */
static void check_next_life(struct rank_case c, const struct rank_outcomes *still)
{
    c.until = UNTIL_SHOWN;
    c.options.load_windows = 1000; /* never full */
    struct rank_outcomes *again = ranks_run(&c);
    assert_same_bits(&c, again, still);
    assert_int_equal(moves_of(again), 0);
    print_message("the next life begins with %.3f\n", again->rank[0].imbalance);
    assert_true(again->rank[0].loads[1][0] > 0 && again->rank[0].imbalance <= EVEN);
    ranks_free(again);
}

static void move(uint32_t ranks, uint32_t replicas, bool tensor_parallel, enum bt_model_dtype dtype)
{
    struct skewed s;
    skewed_open(&s, ranks, replicas, PREFERENCE);
    struct rank_case c = case_of(&s, ranks);
    c.until = UNTIL_MOVED;
    c.dtype = dtype;
    c.options.tensor_parallel = tensor_parallel;
    c.options.redundant_experts = replicas;
    struct rank_outcomes *moved = ranks_run(&c), *still = run_still(c);
    assert_same_bits(&c, moved, still);
    check_moved(&c, moved);
    if (replicas == 0)
        compare_loads(&s, ranks, moved->rank[0].imbalance);
    check_next_life(c, still);
    ranks_free(moved);
    ranks_free(still);
    skewed_close(&s);
}

static void test_two_ranks(void **state)
{
    (void)state;
    move(2, 0, false, BT_MODEL_BFLOAT16);
}

static void test_four_ranks(void **state)
{
    (void)state;
    move(4, 0, false, BT_MODEL_FLOAT32);
}

static void test_replicas(void **state)
{
    (void)state;
    move(4, 4, false, BT_MODEL_BFLOAT16);
}

static void test_tensor_parallel(void **state)
{
    (void)state;
    move(2, 0, true, BT_MODEL_BFLOAT16);
}

/* Other placements stay as they are. */
static void test_round_robin_stays(void **state)
{
    struct skewed s;
    uint64_t loads[LAYERS * EXPERTS];
    (void)state;
    skewed_open(&s, 2, 0, PREFERENCE);
    struct rank_case c = case_of(&s, 2);
    c.options.placement = BT_PLACEMENT_ROUND_ROBIN;
    c.until = UNTIL_SHOWN;
    struct rank_outcomes *outcomes = ranks_run(&c);
    assert_bits_of_still(&c, outcomes);
    assert_int_equal(moves_of(outcomes), 0);
    assert_int_equal(outcomes->rank[0].rebalances, 0);
    read_loads(&s, loads);
    assert_true(skew_of(&s, loads) > 3);
    ranks_free(outcomes);
    skewed_close(&s);
}

/* ---- a rank that can't ---- */

/* It has room for the experts of one layer, or of none; all stop at the same one. */
static void test_no_memory(void **state)
{
    struct skewed s;
    (void)state;
    skewed_open(&s, 4, 0, PREFERENCE);
    struct rank_case c = case_of(&s, 4);
    c.until = UNTIL_GIVEN_UP;
    c.poor = 1;
    struct rank_outcomes *outcomes = ranks_run(&c);
    assert_bits_of_still(&c, outcomes);
    for (uint32_t i = 0; i < 4; i++) {
        assert_int_equal(outcomes->rank[i].rebalances, 0);
        assert_true(outcomes->rank[i].ended >= 2);
    }
    ranks_free(outcomes);
    skewed_close(&s);
}

/* In the middle of a rebalance. */
static void test_killed(void **state)
{
    struct skewed s;
    (void)state;
    skewed_open(&s, 4, 0, PREFERENCE);
    struct rank_case c = case_of(&s, 4);
    c.until = UNTIL_KILLED;
    c.victim = 2;
    struct rank_outcomes *outcomes = ranks_run(&c);
    assert_true(outcomes->killed_ns > 0);
    assert_int_equal(outcomes->rank[2].rebalances, 0);
    for (uint32_t i = 0; i < 4; i++) {
        if (i == 2)
            continue;
        assert_int_equal(outcomes->rank[i].status, BT_ERR_PEER_LOST); /* long before the timeout */
        assert_true(outcomes->rank[i].steps >= outcomes->rank[2].steps);
    }
    ranks_free(outcomes);
    skewed_close(&s);
}

/* ---- files and options ---- */

/* Alone there is nothing to move; the loads are kept. */
static void test_alone(void **state)
{
    struct skewed s;
    uint64_t loads[LAYERS * EXPERTS], picks = 0;
    (void)state;
    skewed_open(&s, 2, 0, PREFERENCE);
    struct rank_case c = case_of(&s, 1);
    c.until = UNTIL_STEPS;
    c.steps = 2 * PATTERNS; /* less than the window holds */
    c.options.rebalance_interval_ns = 0;
    struct rank_outcomes *first = ranks_run(&c);
    assert_int_equal(first->rank[0].status, BT_OK);
    read_loads(&s, loads);
    for (size_t i = 0; i < LAYERS * EXPERTS; i++)
        picks += loads[i];
    assert_int_equal(picks, c.steps * ROWS * LAYERS * 4);
    assert_int_equal(unlink(s.loads), 0);

    /* The same is counted again while it runs, shown, and written. */
    c.options.rebalance_interval_ns = INTERVAL * BT_NS_PER_S;
    c.until = UNTIL_SHOWN;
    struct rank_outcomes *second = ranks_run(&c);
    assert_memory_equal(second->rank[0].logits, first->rank[0].logits,
                        sizeof(first->rank[0].logits));
    for (uint32_t layer = 1; layer <= LAYERS; layer++)
        for (uint32_t e = 0; e < EXPERTS; e++)
            if (e == s.hot[0] || e == s.hot[1])
                assert_true(second->rank[0].loads[layer][e] > 0);
    read_loads(&s, loads);
    assert_true(skew_of(&s, loads) > 3);
    assert_int_equal(moves_of(second), 0);
    ranks_free(first);
    ranks_free(second);
    skewed_close(&s);
}

/* A life that saw little keeps what the file said in proportion. */
static void test_file_of_an_earlier_life(void **state)
{
    struct skewed s;
    uint64_t loads[LAYERS * EXPERTS], earlier[LAYERS * EXPERTS];
    (void)state;
    skewed_open(&s, 2, 0, PREFERENCE);
    for (size_t i = 0; i < LAYERS * EXPERTS; i++)
        earlier[i] = 1000 * i;
    assert_int_equal(bt_expert_loads_write(s.loads, LAYERS, EXPERTS, earlier, NULL), BT_OK);
    struct rank_case c = case_of(&s, 2);
    c.until = UNTIL_STEPS;
    c.options.rebalance_interval_ns = 0;
    struct rank_outcomes *outcomes = ranks_run(&c);
    read_loads(&s, loads);
    assert_memory_equal(loads, earlier, sizeof(loads));
    ranks_free(outcomes);
    c.steps = (WINDOWS - 1) * SPAN / ROWS / 2; /* half of a window, of rank 0 */
    outcomes = ranks_run(&c);
    read_loads(&s, loads);
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        uint64_t picks = 0, want = 0;
        for (size_t i = layer * EXPERTS; i < (layer + 1) * EXPERTS; i++) {
            picks += loads[i];
            want += earlier[i] / 2;
        }
        assert_int_equal(picks, want + c.steps * ROWS * 4);
    }
    ranks_free(outcomes);
    skewed_close(&s);
}

/* All say whose file or option it is. */
static void assert_refused(const struct rank_case *c, const char *const *words)
{
    struct rank_outcomes *outcomes = ranks_run(c);
    for (uint32_t i = 0; i < c->options.size; i++) {
        assert_int_equal(outcomes->rank[i].status, BT_ERR_INVALID_ARGUMENT);
        for (size_t w = 0; words[w]; w++)
            if (!strstr(outcomes->rank[i].text, words[w]))
                fail_msg("rank %u: no '%s' in '%s'", i, words[w], outcomes->rank[i].text);
    }
    ranks_free(outcomes);
}

static void test_refusals(void **state)
{
    struct skewed s;
    (void)state;
    skewed_open(&s, 2, 0, PREFERENCE);
    struct rank_case c = case_of(&s, 2);
    c.until = UNTIL_STEPS;
    c.other = 1;
    assert_refused(&c,
                   (const char *const[]){"rank 1", "--redundant-experts 2", "rank 0 has 0", NULL});
    c.other = NOBODY;
    scratch_write(&s.scratch, LOADS_FILE, "{\"version\": 1}", 14);
    assert_refused(&c, (const char *const[]){LOADS_FILE, "layers is missing", NULL});
    c.options.size = 1;
    assert_refused(&c, (const char *const[]){LOADS_FILE, "layers is missing", NULL});
    skewed_close(&s);
}

/* With an argument, the test of that name alone. */
int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_two_ranks),
        cmocka_unit_test(test_four_ranks),
        cmocka_unit_test(test_replicas),
        cmocka_unit_test(test_tensor_parallel),
        cmocka_unit_test(test_round_robin_stays),
        cmocka_unit_test(test_no_memory),
        cmocka_unit_test(test_killed),
        cmocka_unit_test(test_alone),
        cmocka_unit_test(test_file_of_an_earlier_life),
        cmocka_unit_test(test_refusals),
    };
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
