/*
 * The forward pass over groups of real processes: the bits of any ep group are those of none, those
 * of a tp group are within the goldens' tolerance and the same for every ep size, and the loss of a
 * rank ends the runs of the others.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "common/model/safetensors.h"
#include "tests/unit/model-groups/layouts.h"
#include "tests/unit/model/quantised.h"

#define TINY   TESTS_MODELS "/tiny"
#define MARGIN 4 /* times the reference's own distance from fp64: tests/golden/test_tiny.c */
/* Of the root of the mean square, in bfloat16 arithmetic: tests/golden/test_bfloat16.c */
#define BFLOAT16_TOLERANCE 0.3

static const char *const names[MAX_RANKS] = {"recall-150", "story",   "unicode", "chat-addition",
                                             "short",      "unicode", "story",   "recall-150"};

struct goldens {
    struct bt_safetensors *files[MAX_RANKS];
    struct prompt prompts[MAX_RANKS];
    const float *logits[MAX_RANKS]; /* [positions][vocab] */
    double tolerances[MAX_RANKS];
};

static const struct bt_tensor *tensor_of(const struct goldens *g, uint32_t i, const char *name)
{
    const struct bt_tensor *tensor = bt_safetensors_find(g->files[i], name);
    assert_non_null(tensor);
    return tensor;
}

static void open_golden(struct goldens *g, uint32_t i, const char *path, const char *name)
{
    assert_int_equal(bt_safetensors_open_file(path, NULL, &g->files[i]), BT_OK);
    g->logits[i] = tensor_of(g, i, "logits")->data;
    g->prompts[i] = (struct prompt){
        .name = name,
        .tokens = tensor_of(g, i, "ids")->data,
        .count = (uint32_t)tensor_of(g, i, "ids")->dims[0],
        .positions = tensor_of(g, i, "positions")->data,
        .position_count = (uint32_t)tensor_of(g, i, "positions")->dims[0],
        .next = tensor_of(g, i, "greedy")->data,
    };
    assert_true(g->prompts[i].position_count + STEPS <= MAX_LOGITS);
    assert_true(g->prompts[i].count <= MAX_CHUNK);
    assert_true(tensor_of(g, i, "greedy")->dims[0] >= STEPS);
}

static int open_goldens(void **state)
{
    struct goldens *g = calloc(1, sizeof(*g));
    json_t *index = json_load_file(TINY "/golden/index.json", 0, NULL);
    for (uint32_t i = 0; i < MAX_RANKS; i++) {
        char path[512];
        double distance;
        snprintf(path, sizeof(path), "%s/golden/%s.safetensors", TINY, names[i]);
        open_golden(g, i, path, names[i]);
        assert_int_equal(
            json_unpack(index, "{s:{s:{s:F}}}", "prompts", names[i], "fp32_minus_fp64", &distance),
            0);
        g->tolerances[i] = MARGIN * distance;
    }
    json_decref(index);
    *state = g;
    return 0;
}

static int close_goldens(void **state)
{
    struct goldens *g = *state;
    for (uint32_t i = 0; i < MAX_RANKS; i++)
        bt_safetensors_close(g->files[i]);
    free(g);
    return 0;
}

/* ---- comparisons ---- */

static void assert_same(const struct layout *layout, uint32_t rank, const char *what, const void *a,
                        const void *b, size_t bytes)
{
    const unsigned char *left = a, *right = b;
    for (size_t i = 0; i < bytes; i++)
        if (left[i] != right[i])
            fail_msg("%s: rank %u: %s: byte %zu of %zu differs", layout_name(layout), rank, what, i,
                     bytes);
}

static uint32_t tp_group(const struct layout *layout, uint32_t rank)
{
    return rank / layout->tp;
}

/* Logits of each prompt, and its KV, are those of `want`, run by tp groups of the same size. */
static void compare(const struct layout *layout, const struct results *got,
                    const struct results *want, uint32_t want_tp)
{
    for (uint32_t i = 0; i < got->ranks; i++) {
        const struct rank_result *ours = &got->rank[i];
        const struct rank_result *theirs = &want->rank[tp_group(layout, i) * want_tp];
        assert_int_equal(ours->status, BT_OK);
        if (i % layout->tp == 0) {
            assert_int_equal(ours->logit_count, theirs->logit_count);
            assert_same(layout, i, "logits", ours->logits, theirs->logits,
                        (size_t)ours->logit_count * got->vocab * sizeof(float));
        }
        assert_int_equal(ours->pool_bytes, theirs->pool_bytes);
        assert_same(layout, i, "kv", ours->pool, theirs->pool, ours->pool_bytes);
    }
}

static void run_and_compare(const struct layout *layout, const struct goldens *g,
                            const struct results *want, uint32_t want_tp)
{
    struct results got;
    layout_run(layout, g->prompts, &got);
    compare(layout, &got, want, want_tp);
    results_free(&got);
}

/* Each prompt alone. */
static void run_alone(struct layout layout, const struct goldens *g, struct results *ret)
{
    layout.tp = 1;
    layout.ep = 0;
    layout.chunk = 50;
    layout.ranks = MAX_RANKS;
    layout_run(&layout, g->prompts, ret);
    for (uint32_t i = 0; i < MAX_RANKS; i++) {
        assert_int_equal(ret->rank[i].status, BT_OK);
        assert_int_equal(ret->rank[i].logit_count, g->prompts[i].position_count + STEPS);
    }
}

/* ---- ep ---- */

static void same_for_ep(const struct goldens *g, struct layout layout, const struct results *alone)
{
    static const uint32_t sizes[] = {1, 2, 4, 8};
    layout.tp = 1;
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        layout.ep = sizes[i];
        layout.chunk = 40 + 10 * (uint32_t)i;
        layout.replicas = NO_REPLICAS;
        layout.placement = i % 2 ? BT_PLACEMENT_ROUND_ROBIN : BT_PLACEMENT_CONTIGUOUS;
        run_and_compare(&layout, g, alone, 1);
        layout.placement = i % 2 ? BT_PLACEMENT_CONTIGUOUS : BT_PLACEMENT_ROUND_ROBIN;
        layout.replicas = i % 2 ? WITH_REPLICAS : NO_REPLICAS;
        run_and_compare(&layout, g, alone, 1);
    }
}

static void test_ep_leaves_the_bits(void **state)
{
    const struct goldens *g = *state;
    struct results alone;
    const struct layout layout = {.dir = TINY};
    run_alone(layout, g, &alone);
    same_for_ep(g, layout, &alone);
    results_free(&alone);
}

static void test_ep_leaves_the_bits_of_bfloat16(void **state)
{
    const struct goldens *g = *state;
    struct results alone;
    const struct layout layout = {.dir = TINY, .dtype = BT_MODEL_BFLOAT16, .kv_dtype = BT_BF16};
    run_alone(layout, g, &alone);
    same_for_ep(g, layout, &alone);
    results_free(&alone);
}

/* Rounded rows change the bits, but for every size alike. */
static void test_fp8_rows(void **state)
{
    const struct goldens *g = *state;
    struct results one, alone;
    struct layout layout = {.dir = TINY, .tp = 1, .ep = 1, .chunk = 64, .payload = BT_PAYLOAD_FP8};
    run_alone(layout, g, &alone);
    layout_run(&layout, g->prompts, &one);
    assert_int_equal(one.rank[0].logit_count, alone.rank[0].logit_count);
    assert_true(memcmp(one.rank[0].logits, alone.rank[0].logits,
                       one.rank[0].logit_count * one.vocab * sizeof(float)) != 0);
    layout.ep = 4;
    layout.replicas = WITH_REPLICAS;
    struct results four;
    layout_run(&layout, g->prompts, &four);
    assert_same(&layout, 0, "logits", four.rank[0].logits, one.rank[0].logits,
                (size_t)one.rank[0].logit_count * one.vocab * sizeof(float));
    results_free(&four);
    results_free(&one);
    results_free(&alone);
}

static void test_placement_moves_between_steps(void **state)
{
    const struct goldens *g = *state;
    struct results alone;
    struct layout layout = {.dir = TINY, .dtype = BT_MODEL_BFLOAT16, .kv_dtype = BT_BF16};
    run_alone(layout, g, &alone);
    layout.tp = 1;
    layout.ep = 4;
    layout.chunk = 20;
    layout.moves = true;
    layout.placement = BT_PLACEMENT_ROUND_ROBIN;
    run_and_compare(&layout, g, &alone, 1);
    layout.replicas = WITH_REPLICAS;
    run_and_compare(&layout, g, &alone, 1);
    results_free(&alone);
}

/* ---- tp ---- */

static double rms_difference(const float *a, const float *b, size_t count)
{
    double sum = 0;
    for (size_t i = 0; i < count; i++)
        sum += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
    return sqrt(sum / (double)count);
}

static double largest_difference(const float *a, const float *b, size_t count)
{
    double largest = 0;
    for (size_t i = 0; i < count; i++) {
        double difference = fabs((double)a[i] - b[i]);
        if (!(difference <= largest))
            largest = isnan(difference) ? INFINITY : difference;
    }
    return largest;
}

static void compare_golden(const struct layout *layout, const struct goldens *g,
                           const struct results *got)
{
    for (uint32_t i = 0; i < got->ranks; i += layout->tp) {
        uint32_t group = tp_group(layout, i);
        size_t count = (size_t)g->prompts[group].position_count * got->vocab;
        bool exact = layout->dtype != BT_MODEL_BFLOAT16;
        double tolerance = exact ? g->tolerances[group] : BFLOAT16_TOLERANCE;
        double difference = (exact ? largest_difference : rms_difference)(got->rank[i].logits,
                                                                          g->logits[group], count);
        if (!(difference <= tolerance))
            fail_msg("%s: %s: logits differ by %g, tolerance %g", layout_name(layout),
                     g->prompts[group].name, difference, tolerance);
    }
}

/* A tp group of one size, with other chunks, and as part of ep groups. */
static void same_for_tp(const struct goldens *g, struct layout layout, uint32_t tp)
{
    struct results first;
    layout.tp = tp;
    layout.ep = 0;
    layout.chunk = 64;
    layout_run(&layout, g->prompts, &first);
    compare(&layout, &first, &first, tp); /* all ranks have the same KV */
    assert_int_equal(first.rank[0].logit_count, g->prompts[0].position_count + STEPS);
    if (g->tolerances[0] > 0)
        compare_golden(&layout, g, &first);
    layout.chunk = 37;
    run_and_compare(&layout, g, &first, tp);
    layout.probes = true;
    run_and_compare(&layout, g, &first, tp);
    layout.probes = false;
    layout.ep = tp;
    layout.placement = BT_PLACEMENT_ROUND_ROBIN;
    run_and_compare(&layout, g, &first, tp);
    results_free(&first);
}

/* Two tp groups in one ep group, with a prompt each. */
static void two_tp_groups(const struct goldens *g, struct layout layout)
{
    struct results got, first, second;
    struct goldens other = *g;
    layout.tp = 2;
    layout.ep = 4;
    layout.chunk = 30;
    layout_run(&layout, g->prompts, &got);
    layout.ep = 0;
    layout_run(&layout, g->prompts, &first);
    other.prompts[0] = g->prompts[1];
    layout_run(&layout, other.prompts, &second);
    for (uint32_t i = 0; i < 4; i++) {
        const struct rank_result *want = i < 2 ? &first.rank[i] : &second.rank[i - 2];
        assert_int_equal(got.rank[i].status, BT_OK);
        assert_same(&layout, i, "kv", got.rank[i].pool, want->pool, want->pool_bytes);
        assert_int_equal(got.rank[i].logit_count, want->logit_count);
        assert_same(&layout, i, "logits", got.rank[i].logits, want->logits,
                    (size_t)want->logit_count * got.vocab * sizeof(float));
    }
    results_free(&got);
    results_free(&first);
    results_free(&second);
}

static void test_tp(void **state)
{
    const struct goldens *g = *state;
    const struct layout layout = {.dir = TINY};
    same_for_tp(g, layout, 2);
    same_for_tp(g, layout, 4);
    two_tp_groups(g, layout);
}

static void test_tp_of_bfloat16(void **state)
{
    const struct goldens *g = *state;
    const struct layout layout = {.dir = TINY, .dtype = BT_MODEL_BFLOAT16, .kv_dtype = BT_BF16};
    same_for_tp(g, layout, 2);
    same_for_tp(g, layout, 4);
}

/* A group works on buffers of which nothing is queued any more; layers are told all the same. */
static void test_on_a_device_that_queues(void **state)
{
    const struct goldens *g = *state;
    struct results alone, first;
    struct layout layout = {.dir = TINY};
    run_alone(layout, g, &alone);
    layout = (struct layout){.dir = TINY, .tp = 2, .chunk = 64};
    layout_run(&layout, g->prompts, &first);
    layout.late = true;
    layout.chunk = 37;
    run_and_compare(&layout, g, &first, 2);
    results_free(&first);
    layout = (struct layout){.dir = TINY, .tp = 1, .ep = 2, .chunk = 30, .late = true};
    run_and_compare(&layout, g, &alone, 1);
    results_free(&alone);
}

/* ---- what is sent ---- */

#define HIDDEN     256
#define LAYERS     6
#define MOE_LAYERS 5
#define PER_TOKEN  4

static uint64_t share_of(uint64_t rows, uint32_t rank, uint32_t size)
{
    return rows / size + (rank < rows % size);
}

/*
 * Floats that one tp rank sends in a run. Layers reduce what attention gives, and gather what the
 * next one reads, of all rows; the last one does so for the rows with logits alone, which are
 * shared out anew before.
 */
static uint64_t tp_floats(uint64_t rows, uint64_t wanted, uint32_t rank, uint32_t size)
{
    uint64_t own = share_of(rows, rank, size), own_wanted = share_of(wanted, rank, size);
    uint64_t reduced = (LAYERS - 1) * (rows - own) + 2 * (wanted - own_wanted);
    uint64_t gathered = ((LAYERS - 1) * own + own_wanted) * (size - 1);
    return (reduced + gathered) * HIDDEN;
}

static uint64_t tp_floats_of_prompt(const struct prompt *prompt, uint32_t chunk, uint32_t rank,
                                    uint32_t size)
{
    uint64_t sum = STEPS * tp_floats(1, 1, rank, size);
    for (uint32_t at = 0, next = 0; at < prompt->count; at += chunk) {
        uint32_t rows = prompt->count - at < chunk ? prompt->count - at : chunk, first = next;
        while (next < prompt->position_count && prompt->positions[next] < at + rows)
            next++;
        sum += tp_floats(rows, next - first, rank, size);
    }
    return sum;
}

static void test_bytes_of_tp(void **state)
{
    const struct goldens *g = *state;
    for (uint32_t tp = 2; tp <= 4; tp *= 2) {
        const struct layout layout = {.dir = TINY, .tp = tp, .chunk = 51};
        struct results got;
        layout_run(&layout, g->prompts, &got);
        for (uint32_t i = 0; i < tp; i++)
            assert_int_equal(got.rank[i].tp_traffic.reduce,
                             4 * tp_floats_of_prompt(&g->prompts[0], layout.chunk, i, tp));
        results_free(&got);
    }
}

/* Rows of each rank: all in the first MoE layers, those with logits in the last. */
static uint64_t picks_of(const struct prompt *prompt)
{
    uint64_t all = prompt->count + STEPS, wanted = prompt->position_count + STEPS;
    return ((MOE_LAYERS - 1) * all + wanted) * PER_TOKEN;
}

/*
 * Each pick of a remote expert travels back once; a row goes to a rank once, however many of its
 * experts are there.
 */
static void bytes_of_ep(const struct goldens *g, enum bt_model_dtype dtype, uint32_t ep)
{
    const struct layout layout = {.dir = TINY,
                                  .dtype = dtype,
                                  .tp = 1,
                                  .ep = ep,
                                  .chunk = 64,
                                  .placement = BT_PLACEMENT_ROUND_ROBIN};
    struct results got;
    uint64_t dispatched = 0, combined = 0, remote = 0;
    uint64_t row = HIDDEN * (dtype == BT_MODEL_BFLOAT16 ? 2u : 4u);
    layout_run(&layout, g->prompts, &got);
    for (uint32_t i = 0; i < ep; i++) {
        assert_int_equal(got.rank[i].picks, picks_of(&g->prompts[i]));
        dispatched += got.rank[i].ep_traffic.dispatch;
        combined += got.rank[i].ep_traffic.combine;
        remote += got.rank[i].remote_picks;
    }
    assert_true(remote > 0);
    assert_int_equal(combined, remote * row);
    assert_true(dispatched < remote * row && dispatched >= remote * row / PER_TOKEN);
    results_free(&got);
}

static void test_bytes_of_ep(void **state)
{
    bytes_of_ep(*state, BT_MODEL_FLOAT32, 4);
    bytes_of_ep(*state, BT_MODEL_BFLOAT16, 2);
}

/* ---- quantised weights ---- */

/* Sums in another order, and with int8 rows of a scale for each rank's heads. */
static void near_alone(const struct goldens *g, struct layout layout, const struct results *alone)
{
    struct results got;
    layout.tp = 2;
    layout.ep = 0;
    layout_run(&layout, g->prompts, &got);
    double difference = rms_difference(got.rank[0].logits, alone->rank[0].logits,
                                       (size_t)got.rank[0].logit_count * got.vocab);
    print_message("%s: logits differ by %g (rms) from tp 1\n", layout_name(&layout), difference);
    assert_true(difference <= BFLOAT16_TOLERANCE);
    results_free(&got);
}

/* The model's weights are not those of the goldens. */
static struct goldens without_tolerances(const struct goldens *g)
{
    struct goldens others = *g;
    memset(others.tolerances, 0, sizeof(others.tolerances));
    return others;
}

static void test_quantised(void **state)
{
    const struct goldens other = without_tolerances(*state), *g = &other;
    for (int kind = QUANTISED_FP8; kind <= QUANTISED_INT4; kind++) {
        struct scratch scratch;
        struct results alone;
        quantised_open((enum quantised_kind)kind, &scratch);
        struct layout layout = {
            .dir = scratch.dir, .dtype = BT_MODEL_BFLOAT16, .kv_dtype = BT_F8_E4M3};
        run_alone(layout, g, &alone);
        layout.tp = 1;
        layout.ep = 4;
        layout.chunk = 45;
        layout.placement = BT_PLACEMENT_ROUND_ROBIN;
        run_and_compare(&layout, g, &alone, 1);
        same_for_tp(g, layout, 2);
        near_alone(g, layout, &alone);
        if (kind == QUANTISED_INT8)
            same_for_tp(g, layout, 4);
        results_free(&alone);
        scratch_close(&scratch);
    }
}

/* ---- other configurations: no q_lora_rank, no shared experts, a tied head, a dense first layer
 * ---- */

static void run_variant(const char *variant)
{
    char dir[512], path[600];
    struct goldens g;
    struct results alone;
    snprintf(dir, sizeof(dir), "%s/%s", TESTS_MODELS, variant);
    snprintf(path, sizeof(path), "%s/golden.safetensors", dir);
    for (uint32_t i = 0; i < MAX_RANKS; i++) {
        open_golden(&g, i, path, variant);
        g.tolerances[i] =
            MARGIN * (double)*(const float *)tensor_of(&g, i, "fp32_minus_fp64")->data;
    }
    struct layout layout = {.dir = dir};
    run_alone(layout, &g, &alone);
    layout.tp = 1;
    layout.ep = 4;
    layout.chunk = 17;
    layout.placement = BT_PLACEMENT_ROUND_ROBIN;
    run_and_compare(&layout, &g, &alone, 1);
    same_for_tp(&g, layout, 2);
    results_free(&alone);
    for (uint32_t i = 0; i < MAX_RANKS; i++)
        bt_safetensors_close(g.files[i]);
}

static void test_variants(void **state)
{
    (void)state;
    run_variant("v2-lite");
    run_variant("v2-groups");
    run_variant("v3-f32");
    run_variant("v3-tied");
}

/* ---- the loss of a rank ---- */

static void test_loss_of_a_rank(void **state)
{
    const struct goldens *g = *state;
    static const struct layout layouts[] = {
        {.dir = TINY, .tp = 1, .ep = 4, .chunk = 20, .kill_rank = 2},
        {.dir = TINY, .tp = 2, .ep = 0, .chunk = 20, .kill_rank = 1},
        {.dir = TINY, .tp = 2, .ep = 2, .chunk = 20, .kill_rank = 1},
    };
    for (size_t i = 0; i < sizeof(layouts) / sizeof(layouts[0]); i++) {
        struct results results;
        layout_run(&layouts[i], g->prompts, &results);
        for (uint32_t r = 0; r < results.ranks; r++) {
            enum bt_status status = results.rank[r].status;
            if (r == layouts[i].kill_rank)
                continue;
            assert_int_equal(status, BT_ERR_PEER_LOST); /* long before the deadline */
        }
        results_free(&results);
    }
}

static void test_another_placement(void **state)
{
    const struct goldens *g = *state;
    const struct layout layout = {.dir = TINY,
                                  .tp = 1,
                                  .ep = 4,
                                  .chunk = 40,
                                  .placement = BT_PLACEMENT_ROUND_ROBIN,
                                  .confused_rank = 1};
    struct results results;
    uint32_t mismatches = 0;
    layout_run(&layout, g->prompts, &results);
    for (uint32_t i = 0; i < results.ranks; i++) {
        enum bt_status status = results.rank[i].status;
        assert_true(status == BT_ERR_MISMATCH || status == BT_ERR_PEER_LOST ||
                    status == BT_ERR_DEADLINE);
        mismatches += status == BT_ERR_MISMATCH;
    }
    assert_true(mismatches > 0);
    results_free(&results);
}

/* With an argument, the test of that name alone. */
int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ep_leaves_the_bits),
        cmocka_unit_test(test_ep_leaves_the_bits_of_bfloat16),
        cmocka_unit_test(test_fp8_rows),
        cmocka_unit_test(test_placement_moves_between_steps),
        cmocka_unit_test(test_tp),
        cmocka_unit_test(test_tp_of_bfloat16),
        cmocka_unit_test(test_on_a_device_that_queues),
        cmocka_unit_test(test_bytes_of_tp),
        cmocka_unit_test(test_bytes_of_ep),
        cmocka_unit_test(test_quantised),
        cmocka_unit_test(test_variants),
        cmocka_unit_test(test_loss_of_a_rank),
        cmocka_unit_test(test_another_placement),
    };
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, open_goldens, close_goldens);
}
