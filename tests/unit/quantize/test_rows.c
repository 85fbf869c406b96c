/* Rows to integers: what comes back is near, and what can't be rounded is told. Divergences too. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/random.h"
#include "common/model/divergence.h"
#include "common/model/quantize.h"

#define COLS   384
#define GROUPS (COLS / BT_QUANTIZE_GROUP)

static void fill(float *row, float size)
{
    for (uint32_t i = 0; i < COLS; i++)
        row[i] = i ? size * (((float)(bt_random_u64(7, i, 0) % 2001) - 1000) / 1000) : size;
}

/* Half a step, and what f32 loses. */
static void test_near(void **state)
{
    (void)state;
    static const float sizes[] = {1, 1e-6f, 1e-28f, 1e30f, 3e38f};
    float row[COLS];
    int8_t values[COLS];
    uint8_t groups[GROUPS];
    for (size_t s = 0; s < sizeof(sizes) / sizeof(sizes[0]); s++) {
        fill(row, sizes[s]);
        double step = (double)bt_quantize_row_i8(row, COLS, values);
        assert_true(fabs(step * 127 / (double)sizes[s] - 1) < 1e-6);
        for (int i = 0; i < COLS; i++)
            assert_true(fabs(values[i] * step - (double)row[i]) <= step * 0.5001);
        for (int search = 0; search < 2; search++) {
            double scale = (double)bt_quantize_row_i4(row, COLS, NULL, search, values, groups);
            for (int i = 0; i < COLS; i++) {
                int group = groups[i / BT_QUANTIZE_GROUP];
                assert_in_range(group, 1, BT_QUANTIZE_MAX_GROUP_SCALE);
                assert_in_range(values[i] + 7, 0, 14);
                /* a search may clip down to 0.7 of the range */
                double off = fabs(values[i] * group * scale - (double)row[i]);
                double limit = search ? 0.35 * (double)sizes[s] : 0.6 * group * scale;
                assert_true(off <= limit);
            }
        }
    }
}

static void test_not_finite(void **state)
{
    (void)state;
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    float row[COLS];
    int8_t values[COLS];
    uint8_t groups[GROUPS];
    for (int b = 0; b < 3; b++) {
        for (int at = 0; at < COLS; at += COLS - 1) {
            fill(row, 1);
            row[at] = bad[b];
            assert_true(isnan(bt_quantize_row_i8(row, COLS, values)));
            assert_true(isnan(bt_quantize_row_i4(row, COLS, NULL, false, values, groups)));
            assert_true(isnan(bt_quantize_row_i4(row, COLS, NULL, true, values, groups)));
        }
    }
}

/* Denormal steps would make 0 / 0 of zeros. */
static void test_next_to_nothing(void **state)
{
    (void)state;
    static const float sizes[] = {0, 1e-45f, 1e-38f, 1e-31f};
    float row[COLS];
    int8_t values[COLS], zeros[COLS] = {0};
    uint8_t groups[GROUPS];
    for (size_t s = 0; s < sizeof(sizes) / sizeof(sizes[0]); s++) {
        fill(row, sizes[s]);
        assert_true(bt_quantize_row_i8(row, COLS, values) == 1);
        assert_memory_equal(values, zeros, COLS);
        for (int search = 0; search < 2; search++) {
            assert_true(isnormal(bt_quantize_row_i4(row, COLS, NULL, search, values, groups)));
            assert_memory_equal(values, zeros, COLS);
        }
    }
    /* one group of nothing beside others */
    fill(row, 1);
    for (int i = 0; i < BT_QUANTIZE_GROUP; i++)
        row[i] = 1e-42f;
    assert_true(isnormal(bt_quantize_row_i4(row, COLS, NULL, true, values, groups)));
    assert_memory_equal(values, zeros, BT_QUANTIZE_GROUP);
}

/* Distributions 1/2, 1/4, 1/4 and 1/4, 1/2, 1/4: KL = (ln 2) / 4. */
static void test_divergence(void **state)
{
    (void)state;
    static const float exact[] = {2, 1, 1}, other[] = {-7, -6, -7};
    float exact_logits[3], other_logits[3];
    struct bt_divergence d = {0};
    assert_true(bt_divergence_mean(&d) == 0 && bt_divergence_agreement(&d) == 1);
    for (int i = 0; i < 3; i++) {
        exact_logits[i] = exact[i] * logf(2);
        other_logits[i] = other[i] * logf(2);
    }
    bt_divergence_add(&d, exact_logits, other_logits, 3);
    assert_true(fabs(bt_divergence_mean(&d) - log(2) / 4) < 1e-6);
    assert_true(bt_divergence_agreement(&d) == 0);
    bt_divergence_add(&d, exact_logits, exact_logits, 3);
    assert_true(fabs(bt_divergence_mean(&d) - log(2) / 8) < 1e-6);
    assert_true(bt_divergence_agreement(&d) == 0.5);
    /* large logits: nothing overflows */
    bt_divergence_add(&d, (float[]){1000, 0, 0}, (float[]){1000, 0, 0}, 3);
    assert_true(fabs(bt_divergence_mean(&d) - log(2) / 12) < 1e-6);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_near),
        cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_next_to_nothing),
        cmocka_unit_test(test_divergence),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
