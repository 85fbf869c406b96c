/* Placements by index, what can't be made, and what is said of placements: written out by hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/parallel/placement.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static void expect_near(double value, double expected)
{
    if (!(value > expected - 1e-12 && value < expected + 1e-12))
        fail_msg("%.17g, not %.17g", value, expected);
}

static struct bt_placement *make(const struct bt_placement_options *options)
{
    struct bt_placement *placement = NULL;
    struct bt_error error = {0};
    if (bt_placement_create(options, &error, &placement) != BT_OK)
        fail_msg("%s", error.text);
    return placement;
}

static struct bt_placement *make_by_index(enum bt_placement_kind kind, uint32_t experts,
                                          uint32_t ranks)
{
    return make(&(struct bt_placement_options){
        .kind = kind, .layers = 2, .experts = experts, .ranks = ranks, .machines = 1});
}

static void test_kind(void **state)
{
    (void)state;
    static const char *const names[] = {"contiguous", "round-robin", "balanced"};
    enum bt_placement_kind kind = BT_PLACEMENT_BALANCED;
    struct bt_error error = {0};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(bt_placement_kind_parse(names[i], NULL, &kind), BT_OK);
        assert_int_equal(kind, i);
    }
    assert_int_equal(bt_placement_kind_parse("roundrobin", &error, &kind), BT_ERR_INVALID_ARGUMENT);
    for (int i = 0; i < 3; i++)
        assert_non_null(strstr(error.text, names[i]));
    assert_int_equal(bt_placement_kind_parse("", &error, &kind), BT_ERR_INVALID_ARGUMENT);
}

static void expect_single(const struct bt_placement *placement, const uint32_t *ranks)
{
    for (uint32_t layer = 0; layer < placement->layers; layer++) {
        for (uint32_t expert = 0; expert < placement->experts; expert++) {
            assert_int_equal(placement->layer[layer].begin[expert], expert);
            assert_int_equal(placement->layer[layer].ranks[expert], ranks[expert]);
        }
        assert_int_equal(placement->layer[layer].begin[placement->experts], placement->experts);
    }
}

static void test_by_index(void **state)
{
    (void)state;
    struct bt_placement *placement = make_by_index(BT_PLACEMENT_CONTIGUOUS, 6, 3);
    expect_single(placement, (const uint32_t[]){0, 0, 1, 1, 2, 2});
    assert_int_equal(placement->ranks, 3);
    assert_int_equal(placement->machines, 1);
    bt_placement_destroy(placement);
    placement = make_by_index(BT_PLACEMENT_ROUND_ROBIN, 6, 3);
    expect_single(placement, (const uint32_t[]){0, 1, 2, 0, 1, 2});
    bt_placement_destroy(placement);
    placement = make_by_index(BT_PLACEMENT_ROUND_ROBIN, 5, 3);
    expect_single(placement, (const uint32_t[]){0, 1, 2, 0, 1});
    bt_placement_destroy(placement);
    placement = make_by_index(BT_PLACEMENT_ROUND_ROBIN, 2, 3); /* a rank without experts */
    expect_single(placement, (const uint32_t[]){0, 1});
    assert_int_equal(bt_placement_experts_of(placement, 1, 2, NULL, 0), 0);
    bt_placement_destroy(placement);
    bt_placement_destroy(NULL);
}

static void test_experts_of(void **state)
{
    (void)state;
    struct bt_placement *placement = make_by_index(BT_PLACEMENT_ROUND_ROBIN, 8, 3);
    uint32_t experts[4] = {9, 9, 9, 9};
    assert_int_equal(bt_placement_experts_of(placement, 1, 1, experts, 4), 3);
    assert_memory_equal(experts, ((const uint32_t[]){1, 4, 7, 9}), sizeof(experts));
    experts[2] = 9;
    assert_int_equal(bt_placement_experts_of(placement, 0, 1, experts, 2), 3);
    assert_memory_equal(experts, ((const uint32_t[]){1, 4, 9, 9}), sizeof(experts));
    bt_placement_destroy(placement);
}

/* Each of these, and the word that its message must have. */
static void test_refused(void **state)
{
    (void)state;
    static const uint64_t loads[8] = {1, 1, 1, 1, 1, 1, 1, 1};
    static const uint64_t huge[8] = {1, 1, BT_EXPERT_LOAD_MAX + 1, 1, 1, 1, 1, 1};
    struct bt_placement *other = make_by_index(BT_PLACEMENT_CONTIGUOUS, 8, 2);
#define BALANCED .kind = BT_PLACEMENT_BALANCED, .layers = 1, .experts = 8, .loads = loads
    const struct {
        struct bt_placement_options options;
        const char *word;
    } cases[] = {
        {{.experts = 8, .ranks = 2, .machines = 1}, "layers is 0"},
        {{.layers = BT_PLACEMENT_LAYERS_MAX + 1, .experts = 8, .ranks = 2, .machines = 1},
         "layers"},
        {{.layers = 1, .ranks = 2, .machines = 1}, "experts is 0"},
        {{.layers = 1, .experts = UINT32_MAX, .ranks = 1, .machines = 1}, "experts"},
        {{.layers = 1, .experts = 8, .machines = 1}, "ranks is 0"},
        {{.layers = 1, .experts = 8, .ranks = UINT32_MAX, .machines = 1}, "ranks"},
        {{.layers = 1, .experts = 8, .ranks = 2}, "machines is 0"},
        {{.layers = 1, .experts = 8, .ranks = 2, .machines = 4}, "machines is 4"},
        {{.layers = 1, .experts = 8, .ranks = 4, .machines = 3}, "3 machines"},
        {{.layers = 1, .experts = 8, .ranks = 3, .machines = 1}, "3 ranks"},
        {{.kind = BT_PLACEMENT_ROUND_ROBIN,
          .layers = 1,
          .experts = 8,
          .ranks = 4,
          .machines = 1,
          .replicas = 4},
         "replicas"},
        {{BALANCED, .ranks = 4, .machines = 1}, "0 groups"},
        {{BALANCED, .ranks = 4, .machines = 1, .groups = 3}, "3 groups"},
        {{BALANCED, .ranks = 4, .machines = 1, .groups = 1, .replicas = 2}, "2 replicas"},
        {{BALANCED, .ranks = 3, .machines = 1, .groups = 1}, "3 ranks"},
        {{BALANCED, .ranks = 2, .machines = 1, .groups = 1, .replicas = 10}, "too many"},
        {{BALANCED, .ranks = 8, .machines = 1, .groups = 1, .replicas = UINT32_MAX - 7},
         "too many"},
        {{.kind = BT_PLACEMENT_BALANCED,
          .layers = 1,
          .experts = BT_PLACEMENT_EXPERTS_MAX,
          .ranks = 8,
          .machines = 1,
          .groups = 1,
          .replicas = BT_PLACEMENT_SLOTS_MAX},
         "too many"},
        {{.kind = BT_PLACEMENT_BALANCED,
          .layers = 1,
          .experts = 8,
          .ranks = 4,
          .machines = 1,
          .groups = 1},
         "needs loads"},
        {{.kind = BT_PLACEMENT_BALANCED,
          .layers = 1,
          .experts = 8,
          .ranks = 4,
          .machines = 1,
          .groups = 1,
          .loads = huge},
         "layer 0, expert 2"},
        {{BALANCED, .ranks = 2, .machines = 1, .groups = 1, .previous = other}, "previous"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct bt_error error = {0};
        struct bt_placement *placement = other;
        assert_int_equal(bt_placement_create(&cases[i].options, &error, &placement),
                         BT_ERR_INVALID_ARGUMENT);
        assert_ptr_equal(placement, other);
        if (!strstr(error.text, cases[i].word))
            fail_msg("case %zu: '%s' lacks '%s'", i, error.text, cases[i].word);
    }
    bt_placement_destroy(other);
}

/* Ranks 0 … 2; expert 0 on all, 1 on 0 and 2, 2 on 1. */
static const uint32_t drawn_begin[] = {0, 3, 5, 6}, drawn_ranks[] = {0, 1, 2, 0, 2, 1};
/* Expert 0 on 1, 1 on 0, 2 on 1 and 2. */
static const uint32_t moved_begin[] = {0, 1, 2, 4}, moved_ranks[] = {1, 0, 1, 2};
static struct bt_placement_layer drawn_layers[] = {{drawn_begin, drawn_ranks},
                                                   {moved_begin, moved_ranks}};
static struct bt_placement_layer moved_layers[] = {{moved_begin, moved_ranks},
                                                   {moved_begin, moved_ranks}};
static const struct bt_placement drawn = {2, 3, 3, 1, drawn_layers, NULL};
static const struct bt_placement moved = {2, 3, 3, 1, moved_layers, NULL};

static void test_max_over_mean(void **state)
{
    (void)state;
    /* ranks carry 1 + 5 = 6, 1 + 1 = 2, 1 + 5 = 6; mean 14 / 3 */
    static const uint64_t loads[3] = {3, 10, 1}, none[3] = {0}, most[3] = {BT_EXPERT_LOAD_MAX};
    expect_near(bt_placement_max_over_mean(&drawn, 0, loads), 18.0 / 14);
    /* 10, 3 + 0.5, 0.5 */
    expect_near(bt_placement_max_over_mean(&drawn, 1, loads), 30.0 / 14);
    expect_near(bt_placement_max_over_mean(&drawn, 0, none), 1);
    expect_near(bt_placement_max_over_mean(&drawn, 0, most), 1);
    expect_near(bt_placement_max_over_mean(&drawn, 1, most), 3);
}

static void test_pays(void **state)
{
    (void)state;
    /* layer 0: largest 6 of 14; layer 1 (both as `moved`): largest 10, of 11 */
    static const uint64_t loads[6] = {3, 10, 1, 1, 10, 0}, none[6] = {0};
    expect_near(bt_placement_imbalance(&drawn, loads), (6.0 + 10) * 3 / 25);
    expect_near(bt_placement_imbalance(&moved, loads), (10.0 + 10) * 3 / 25);
    expect_near(bt_placement_imbalance(&moved, none), 1);
    /* gains 0.48 */
    assert_true(bt_placement_pays(&moved, &drawn, loads, 0.47));
    assert_false(bt_placement_pays(&moved, &drawn, loads, 0.49));
    assert_false(bt_placement_pays(&drawn, &moved, loads, 0));
    assert_false(bt_placement_pays(&drawn, &drawn, loads, 0));
    assert_false(bt_placement_pays(&moved, &drawn, none, 0));
}

static void expect_changes(const struct bt_placement *from, const struct bt_placement *to,
                           uint32_t layer, uint32_t rank, const char *loads, const char *drops)
{
    uint32_t load[3], drop[3], load_count = 9, drop_count = 9;
    char text[4] = "";
    bt_placement_changes(from, to, layer, rank, load, &load_count, drop, &drop_count);
    assert_true(load_count <= 3 && drop_count <= 3);
    for (uint32_t i = 0; i < load_count; i++)
        text[i] = (char)('0' + load[i]);
    text[load_count] = '\0';
    assert_string_equal(text, loads);
    for (uint32_t i = 0; i < drop_count; i++)
        text[i] = (char)('0' + drop[i]);
    text[drop_count] = '\0';
    assert_string_equal(text, drops);
}

static void test_changes(void **state)
{
    (void)state;
    expect_changes(&drawn, &moved, 0, 0, "", "0");
    expect_changes(&drawn, &moved, 0, 1, "", "");
    expect_changes(&drawn, &moved, 0, 2, "2", "01");
    expect_changes(&moved, &drawn, 0, 0, "0", "");
    expect_changes(&moved, &drawn, 0, 2, "01", "2");
    for (uint32_t rank = 0; rank < 3; rank++)
        expect_changes(&drawn, &moved, 1, rank, "", "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kind),          cmocka_unit_test(test_by_index),
        cmocka_unit_test(test_experts_of),    cmocka_unit_test(test_refused),
        cmocka_unit_test(test_max_over_mean), cmocka_unit_test(test_pays),
        cmocka_unit_test(test_changes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
