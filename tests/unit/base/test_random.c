#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "common/base/random.h"

/* The known answers that are published with Random123 for philox4x32, 10 rounds. */
static void test_known_answers(void **state)
{
    (void)state;
    static const struct {
        uint32_t counter[4], key[2], words[4];
    } known[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        uint32_t words[4];
        bt_random_philox(known[i].counter, known[i].key, words);
        assert_memory_equal(words, known[i].words, sizeof words);
    }
}

/* The place of seed, position and draw in the block is a promise: tokens depend on it. */
static void test_layout(void **state)
{
    (void)state;
    assert_true(bt_random_u64(0, 0, 0) == UINT64_C(0xe169c58d6627e8d5));
    const uint32_t counter[4] = {0x22222222, 0x11111111, 0x33333333, 0};
    const uint32_t key[2] = {0x55555555, 0x44444444};
    uint32_t words[4];
    bt_random_philox(counter, key, words);
    assert_true(bt_random_u64(UINT64_C(0x4444444455555555), UINT64_C(0x1111111122222222),
                              0x33333333) == ((uint64_t)words[1] << 32 | words[0]));
}

static void test_unit(void **state)
{
    (void)state;
    const int count = 100000;
    double sum = 0, squares = 0;
    for (int i = 0; i < count; i++) {
        double value = bt_random_unit(42, (uint64_t)i, 0);
        assert_true(value >= 0 && value < 1);
        sum += value;
        squares += value * value;
    }
    /* Six standard errors of mean 1/2 and second moment 1/3. */
    assert_true(sum / count > 0.5 - 0.0055 && sum / count < 0.5 + 0.0055);
    assert_true(squares / count > 1.0 / 3 - 0.0057 && squares / count < 1.0 / 3 + 0.0057);
    assert_true(bt_random_unit(0, 0, 0) ==
                (double)(UINT64_C(0xe169c58d6627e8d5) >> 11) / 9007199254740992.0);
}

static void test_entropy(void **state)
{
    (void)state;
    uint64_t a = bt_random_entropy(), b = bt_random_entropy();
    assert_true(a != 0 && b != 0 && a != b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_answers),
        cmocka_unit_test(test_layout),
        cmocka_unit_test(test_unit),
        cmocka_unit_test(test_entropy),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
