/* Packing items whose copies are given: also such that largest-first alone would not get them in.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/random.h"
#include "common/parallel/packing.h"

#define SEED  UINT64_C(20240609)
#define ITEMS 16
#define BINS  8

struct rig {
    struct bt_packing packing;
    double whole[ITEMS], weight[ITEMS], load[BINS];
    uint32_t copies[ITEMS], order[ITEMS], filled[BINS], slot[BINS * ITEMS];
    uint8_t holds[ITEMS * BINS];
};

static struct bt_packing *rig_packing(struct rig *rig, uint32_t items, uint32_t bins, uint32_t room)
{
    rig->packing = (struct bt_packing){
        .items = items,
        .bins = bins,
        .room = room,
        .whole = rig->whole,
        .copies = rig->copies,
        .slot = rig->slot,
        .weight = rig->weight,
        .order = rig->order,
        .load = rig->load,
        .filled = rig->filled,
        .holds = rig->holds,
    };
    return &rig->packing;
}

/* Full bins, each item in as many as it has copies, never twice in one; loads are what they hold.
 */
static void check(const struct bt_packing *p)
{
    uint32_t copies[ITEMS] = {0};
    double largest = 0;
    for (uint32_t bin = 0; bin < p->bins; bin++) {
        uint8_t here[ITEMS] = {0};
        double load = 0;
        for (uint32_t i = 0; i < p->room; i++) {
            uint32_t item = p->slot[bin * p->room + i];
            assert_true(item < p->items);
            assert_int_equal(here[item]++, 0);
            copies[item]++;
            load += p->whole[item] / p->copies[item];
        }
        largest = load > largest ? load : largest;
    }
    assert_memory_equal(copies, p->copies, p->items * sizeof(*copies));
    double found = bt_packing_largest(p);
    assert_true(found > largest - 1e-6 && found < largest + 1e-6);
}

/* The light ones fill bin 1 before the last item comes, which has a copy for it. */
static void test_room_is_made(void **state)
{
    (void)state;
    struct rig rig = {.whole = {10, 1, 1, 1, 0.2}, .copies = {1, 1, 1, 1, 2}};
    struct bt_packing *p = rig_packing(&rig, 5, 2, 3);
    bt_packing_solve(p);
    check(p);
    assert_true(bt_packing_largest(p) < 11.1 + 1e-9); /* the heavy one, a light one, 0.1 */
}

static void test_any_copies(void **state)
{
    (void)state;
    print_message("seed %llu\n", (unsigned long long)SEED);
    for (uint32_t round = 0; round < 5000; round++) {
        struct rig rig = {0};
        uint32_t draw = 0, total = 0;
        uint32_t items = 1 + (uint32_t)(bt_random_u64(SEED, round, draw++) % ITEMS);
        uint32_t bins = 1 + (uint32_t)(bt_random_u64(SEED, round, draw++) % BINS);
        for (uint32_t i = 0; i < items; i++) {
            double unit = bt_random_unit(SEED, round, draw++);
            rig.copies[i] = 1 + (uint32_t)(bt_random_u64(SEED, round, draw++) % bins);
            rig.whole[i] = round % 3 == 0 ? unit : round % 3 == 1 ? 1 / (unit + 0.01) : unit < 0.2;
            total += rig.copies[i];
        }
        for (uint32_t i = 0; total % bins; i = (i + 1) % items) { /* to whole rows of bins */
            uint32_t more = rig.copies[i] < bins;
            rig.copies[i] += more;
            total += more;
        }
        struct bt_packing *p = rig_packing(&rig, items, bins, total / bins);
        bt_packing_solve(p);
        check(p);
        double before = bt_packing_largest(p);
        bt_packing_improve(p, 0);
        check(p);
        assert_true(bt_packing_largest(p) <= before * (1 + 1e-9));
    }
}

/* 6 12 6 1 into eight places: 3 4 3 1 each; one copy for each, and all of them, by hand too. */
static void test_replicate(void **state)
{
    (void)state;
    struct rig rig = {.whole = {6, 12, 6, 1}};
    struct bt_packing *p = rig_packing(&rig, 4, 4, 2);
    bt_packing_replicate(p);
    assert_memory_equal(p->copies, ((const uint32_t[]){2, 3, 2, 1}), 4 * sizeof(uint32_t));
    p = rig_packing(&rig, 4, 4, 4);
    bt_packing_replicate(p);
    assert_memory_equal(p->copies, ((const uint32_t[]){4, 4, 4, 4}), 4 * sizeof(uint32_t));
    p = rig_packing(&rig, 4, 2, 2);
    bt_packing_replicate(p);
    assert_memory_equal(p->copies, ((const uint32_t[]){1, 1, 1, 1}), 4 * sizeof(uint32_t));
}

/* What is good enough stays as it is; what is not changes. */
static void test_enough(void **state)
{
    (void)state;
    struct rig rig = {.whole = {3, 2, 2, 1}, .slot = {0, 1, 2, 3}};
    struct bt_packing *p = rig_packing(&rig, 4, 2, 2);
    bt_packing_improve(p, 5);
    assert_memory_equal(p->slot, ((const uint32_t[]){0, 1, 2, 3}), 4 * sizeof(uint32_t));
    assert_true(bt_packing_largest(p) == 5);
    bt_packing_improve(p, 4.5);
    check(p);
    assert_true(bt_packing_largest(p) == 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_room_is_made),
        cmocka_unit_test(test_any_copies),
        cmocka_unit_test(test_replicate),
        cmocka_unit_test(test_enough),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
