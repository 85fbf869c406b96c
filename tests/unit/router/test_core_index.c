/* What decisions stand on: the index against a scan of all, the ordered tree against sorting, and
 * the fitted line. Random, from seeds that are printed. */
#include <math.h>

#include "common/base/random.h"
#include "router/order_tree.h"
#include "router/output_mean.h"
#include "router/prefill_line.h"
#include "router/worker_index.h"
#include "tests/seed.h"
#include "tests/unit/router/core_driver.h"

static uint64_t seed, draws;

static uint64_t draw(uint64_t below)
{
    return bt_random_u64(seed, draws++, 0) % below;
}

static void begin(void)
{
    seed = test_seed();
    draws = 0;
}

/* ---- the index */

#define SLOTS 700

struct entry {
    bool there, keyed, refused;
    double load, room;
};
static struct entry entries[SLOTS];

/* Fields: load, -room. */
static double score(const struct rt_index_key *key, const void *request)
{
    double pages = *(const double *)request;
    return pages > -key->field[1] ? INFINITY : key->field[0] + pages;
}

static bool accept(void *worker, const void *request)
{
    (void)request;
    return !((struct entry *)worker)->refused;
}

static double scan(double pages)
{
    double best = INFINITY;
    for (int i = 0; i < SLOTS; i++) {
        const struct entry *entry = &entries[i];
        if (entry->there && entry->keyed && !entry->refused && pages <= entry->room &&
            entry->load + pages < best) {
            best = entry->load + pages;
        }
    }
    return best;
}

static const struct entry *scan_from(double pages, uint32_t from, struct entry **by_slot)
{
    for (uint32_t i = 0; i < SLOTS; i++) {
        const struct entry *entry = by_slot[(from + i) % SLOTS];
        if (entry && entry->keyed && !entry->refused && pages <= entry->room) {
            return entry;
        }
    }
    return NULL;
}

static void change(struct rt_worker_index *index, uint32_t *slots, struct entry **by_slot)
{
    uint32_t i = (uint32_t)draw(SLOTS);
    struct entry *entry = &entries[i];
    if (!entry->there) {
        assert_true(rt_worker_index_add(index, entry, &slots[i]));
        *entry = (struct entry){.there = true, .refused = i % 233 == 0};
        by_slot[slots[i]] = entry;
    } else if (draw(8) == 0) {
        rt_worker_index_drop(index, slots[i]);
        by_slot[slots[i]] = NULL;
        entry->there = false;
    } else if (draw(8) == 0) {
        rt_worker_index_clear(index, slots[i]);
        entry->keyed = false;
    } else {
        entry->keyed = true;
        entry->load = (double)draw(1000);
        /* Those alike: less load is more room. */
        entry->room = 1000 - entry->load;
        struct rt_index_key key = {{entry->load, -entry->room}};
        rt_worker_index_set(index, slots[i], &key);
    }
}

static void test_index_finds_what_a_scan_finds(void **state)
{
    (void)state;
    begin();
    struct rt_worker_index index = {0};
    uint32_t slots[SLOTS];
    struct entry *by_slot[SLOTS] = {NULL};
    memset(entries, 0, sizeof entries);
    for (int i = 0; i < 20000; i++) {
        change(&index, slots, by_slot);
        double pages = (double)draw(1200), found = INFINITY;
        struct rt_index_query query = {score, accept, &pages};
        struct entry *best = rt_worker_index_best(&index, &query, &found);
        double expected = scan(pages);
        assert_true(best ? found == expected && best->load + pages == expected
                         : expected == INFINITY);
        assert_true(rt_worker_index_bound(&index, &query) <= expected);
        uint32_t from = (uint32_t)draw(SLOTS);
        assert_ptr_equal(rt_worker_index_next(&index, &query, from),
                         scan_from(pages, from, by_slot));
    }
    rt_worker_index_finish(&index);
}

/* Where load and room have nothing to do with each other it may miss the best, never the last. */
static void test_index_finds_the_only_one_that_is_possible(void **state)
{
    (void)state;
    begin();
    struct rt_worker_index index = {0};
    memset(entries, 0, sizeof entries);
    uint32_t slot;
    for (uint32_t i = 0; i < SLOTS; i++) {
        entries[i].refused = i != 444;
        assert_true(rt_worker_index_add(&index, &entries[i], &slot));
        struct rt_index_key key = {{(double)draw(100), -(double)draw(100)}};
        rt_worker_index_set(&index, slot, &key);
    }
    double pages = 0, found;
    struct rt_index_query query = {score, accept, &pages};
    assert_ptr_equal(rt_worker_index_best(&index, &query, &found), &entries[444]);
    rt_worker_index_finish(&index);
}

/* ---- the ordered tree */

static void test_tree_keeps_order(void **state)
{
    (void)state;
    begin();
    static struct rt_order_node nodes[500];
    memset(nodes, 0, sizeof nodes);
    struct rt_order_tree tree = {0};
    for (int i = 0; i < 20000; i++) {
        uint32_t at = (uint32_t)draw(500);
        if (nodes[at].linked && draw(2) == 0) {
            rt_order_remove(&tree, &nodes[at]);
            rt_order_remove(&tree, &nodes[at]);
        } else {
            rt_order_move(&tree, &nodes[at], (int64_t)draw(50) - 25, at);
        }
        const struct rt_order_node *least = NULL;
        uint32_t count = 0;
        for (uint32_t k = 0; k < 500; k++) {
            count += nodes[k].linked;
            if (nodes[k].linked && (!least || nodes[k].key < least->key)) {
                least = &nodes[k];
            }
        }
        assert_ptr_equal(tree.first, least);
        assert_int_equal(tree.count, count);
    }
    int64_t last = INT64_MIN;
    while (tree.first) {
        assert_true(tree.first->key >= last);
        last = tree.first->key;
        rt_order_remove(&tree, tree.first);
    }
    assert_null(tree.root);
}

static uint32_t depth(const struct rt_order_node *node)
{
    uint32_t left = node->left ? depth(node->left) : 0;
    uint32_t right = node->right ? depth(node->right) : 0;
    return 1 + (left > right ? left : right);
}

/* Ascending keys, as of times, are its daily bread. 2^14 nodes: 14 levels at best, and about
 * 2 ln n * 1.5 for a random tree; 60 is out of reach of one. */
static void test_tree_stays_shallow(void **state)
{
    (void)state;
    static struct rt_order_node nodes[1 << 14];
    struct rt_order_tree tree = {0};
    for (uint32_t i = 0; i < 1 << 14; i++) {
        rt_order_insert(&tree, &nodes[i], i * 1000, i);
    }
    assert_in_range(depth(tree.root), 14, 60);
}

/* ---- the line of a prefill worker */

static const struct rt_line prior = {1e6, 1e5};

static double off(const struct rt_prefill_line *fit, double base_ns, double token_ns,
                  uint32_t tokens)
{
    double expected = base_ns + token_ns * tokens;
    return fabs(rt_line_at(fit->line, tokens) - expected) / expected;
}

static void test_line_is_the_prior_at_first_and_learns(void **state)
{
    (void)state;
    begin();
    struct rt_prefill_line fit;
    rt_prefill_line_init(&fit, prior);
    assert_true(rt_line_at(fit.line, 100) == 1e6 + 1e7);
    for (int i = 0; i < 200; i++) { /* 10 times as fast as thought, and 5 % of noise */
        uint32_t tokens = 10 + (uint32_t)draw(4000);
        double noise = 0.95 + 0.1 * (double)draw(1000) / 1000;
        rt_prefill_line_learn(&fit, prior, tokens, (int64_t)((4e6 + 1e4 * tokens) * noise));
    }
    assert_true(off(&fit, 4e6, 1e4, 4000) < 0.1);
    assert_true(off(&fit, 4e6, 1e4, 1000) < 0.1);
}

static void test_line_with_prompts_of_one_length(void **state)
{
    (void)state;
    struct rt_prefill_line fit;
    rt_prefill_line_init(&fit, prior);
    for (int i = 0; i < 500; i++) {
        rt_prefill_line_learn(&fit, prior, 2000, 20000000);
    }
    assert_true(off(&fit, 20000000, 0, 2000) < 0.1);
    assert_true(fit.line.base_ns >= 0 && fit.line.token_ns >= 0);
    assert_true(rt_line_at(fit.line, 4000) > rt_line_at(fit.line, 2000));
}

static void test_line_is_not_moved_by_an_outlier_but_by_a_change(void **state)
{
    (void)state;
    struct rt_prefill_line fit;
    rt_prefill_line_init(&fit, prior);
    for (uint32_t i = 0; i < 100; i++) {
        uint32_t tokens = 100 + 40 * (i % 50);
        rt_prefill_line_learn(&fit, prior, tokens, 1000000 + 10000 * (int64_t)tokens);
    }
    double before = rt_line_at(fit.line, 1000);
    rt_prefill_line_learn(&fit, prior, 1000, 3600 * BT_NS_PER_S); /* an hour, once */
    assert_true(fabs(rt_line_at(fit.line, 1000) / before - 1) < 0.2);
    for (uint32_t i = 0; i < 150; i++) { /* three times as slow from now on */
        uint32_t tokens = 100 + 40 * (i % 50);
        rt_prefill_line_learn(&fit, prior, tokens, 3 * (1000000 + 10000 * (int64_t)tokens));
    }
    assert_true(off(&fit, 3e6, 3e4, 1000) < 0.2);
}

/* What a peer reports may be anything. */
static void test_line_of_nonsense_stays_a_line(void **state)
{
    (void)state;
    begin();
    struct rt_prefill_line fit;
    rt_prefill_line_init(&fit, prior);
    rt_prefill_line_learn(&fit, prior, 0, 1);
    rt_prefill_line_learn(&fit, prior, 5, 0);
    rt_prefill_line_learn(&fit, prior, 5, INT64_MIN);
    rt_prefill_line_learn(&fit, prior, 5, INT64_MAX);
    assert_int_equal(fit.samples, 0);
    for (int i = 0; i < 5000; i++) {
        rt_prefill_line_learn(&fit, prior, (uint32_t)draw(UINT32_MAX),
                              (int64_t)(draw(2) ? draw(100) : draw(UINT64_C(1) << 46)));
        assert_true(isfinite(fit.line.base_ns) && isfinite(fit.line.token_ns));
        assert_true(fit.line.base_ns >= 0 && fit.line.token_ns >= 0);
    }
}

/* ---- what requests generate */

static void test_mean_of_outputs(void **state)
{
    (void)state;
    static struct rt_output_mean outputs;
    rt_output_mean_init(&outputs, 500);
    assert_int_equal(rt_output_mean_expect(&outputs, 1, 0, 10000), 500);
    assert_int_equal(rt_output_mean_expect(&outputs, 1, 0, 20), 20);
    for (int i = 0; i < 400; i++) {
        rt_output_mean_learn(&outputs, 1, 0, 90 + (uint32_t)(i % 21));
    }
    assert_in_range(rt_output_mean_expect(&outputs, 1, 0, 10000), 95, 105);
    assert_int_equal(rt_output_mean_expect(&outputs, 2, 0, 10000), 500);
    assert_int_equal(rt_output_mean_expect(&outputs, 1, 7, 10000), 500);
    for (int i = 0; i < 400; i++) {
        rt_output_mean_learn(&outputs, 1, 0, 0);
    }
    assert_int_equal(rt_output_mean_expect(&outputs, 1, 0, 10000), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_index_finds_what_a_scan_finds),
        cmocka_unit_test(test_index_finds_the_only_one_that_is_possible),
        cmocka_unit_test(test_tree_keeps_order),
        cmocka_unit_test(test_tree_stays_shallow),
        cmocka_unit_test(test_line_is_the_prior_at_first_and_learns),
        cmocka_unit_test(test_line_with_prompts_of_one_length),
        cmocka_unit_test(test_line_is_not_moved_by_an_outlier_but_by_a_change),
        cmocka_unit_test(test_line_of_nonsense_stays_a_line),
        cmocka_unit_test(test_mean_of_outputs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
