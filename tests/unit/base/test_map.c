#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "common/base/map.h"
#include "common/base/random.h"
#include "tests/seed.h"

#define KEYS  64
#define STEPS 20000

/* Against a plain array, under random puts, removals and whole walks. */
static void test_against_model(void **state)
{
    (void)state;
    uint64_t seed = test_seed();
    struct bt_map map;
    bt_map_init(&map);
    static char things[KEYS];
    void *model[KEYS] = {0};
    size_t model_size = 0;
    uint64_t stride = bt_random_u64(seed, 0, 9) | 1; /* keys from all over the range, 0 included */
    for (uint64_t step = 0; step < STEPS; step++) {
        uint64_t dice = bt_random_u64(seed, step, 0);
        size_t k = dice % KEYS;
        uint64_t key = k * stride;
        assert_ptr_equal(bt_map_get(&map, key), model[k]);
        if (dice >> 32 & 1) {
            void *value = &things[(dice >> 40) % KEYS];
            assert_true(bt_map_put(&map, key, value));
            model_size += !model[k];
            model[k] = value;
        } else {
            assert_ptr_equal(bt_map_remove(&map, key), model[k]);
            model_size -= model[k] != NULL;
            model[k] = NULL;
        }
        assert_int_equal(map.size, model_size);
        assert_true(map.used <= map.capacity && map.capacity <= KEYS * 4);
    }
    size_t cursor = 0, seen = 0;
    uint64_t key;
    void *value;
    while (bt_map_next(&map, &cursor, &key, &value)) {
        size_t k = 0;
        while (k * stride != key) {
            assert_true(++k < KEYS);
        }
        assert_ptr_equal(value, model[k]);
        seen++;
        assert_ptr_equal(bt_map_remove(&map, key), value); /* allowed while walking */
    }
    assert_int_equal(seen, model_size);
    assert_int_equal(map.size, 0);
    bt_map_finish(&map);
}

static void test_empty(void **state)
{
    (void)state;
    struct bt_map map;
    bt_map_init(&map);
    size_t cursor = 0;
    uint64_t key;
    void *value;
    assert_null(bt_map_get(&map, 0));
    assert_null(bt_map_remove(&map, 0));
    assert_false(bt_map_next(&map, &cursor, &key, &value));
    bt_map_finish(&map);
}

static void test_many(void **state)
{
    (void)state;
    struct bt_map map;
    bt_map_init(&map);
    for (uintptr_t i = 1; i <= 100000; i++) {
        assert_true(bt_map_put(&map, i << 20, (void *)i));
    }
    for (uintptr_t i = 1; i <= 100000; i++) {
        assert_true(bt_map_get(&map, i << 20) == (void *)i);
    }
    assert_int_equal(map.size, 100000);
    bt_map_finish(&map);
}

/* The table stays where it is. */
static void test_reserved(void **state)
{
    (void)state;
    for (uintptr_t count = 0; count < 200; count++) {
        struct bt_map map;
        bt_map_init(&map);
        for (uintptr_t i = 1; i <= count % 7; i++)
            assert_true(bt_map_put(&map, i, &map));
        assert_true(bt_map_reserve(&map, count));
        const struct bt_map_slot *slots = map.slots;
        for (uintptr_t i = 1; i <= count; i++)
            assert_true(bt_map_put(&map, i << 20, (void *)i));
        assert_ptr_equal(map.slots, slots);
        for (uintptr_t i = 1; i <= count; i++)
            assert_true(bt_map_get(&map, i << 20) == (void *)i);
        bt_map_finish(&map);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_model),
        cmocka_unit_test(test_empty),
        cmocka_unit_test(test_many),
        cmocka_unit_test(test_reserved),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
