/* Rows on their way, against the conversions of one element; and the keyed hash of the meeting. */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/random.h"
#include "common/parallel/rows.h"
#include "common/parallel/siphash.h"

enum { MOST = 5000 };

static float from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

/* All exponents and signs, NaN and infinities among them. */
static void fill_wild(float *x, size_t n, uint64_t stream)
{
    for (size_t i = 0; i < n; i++)
        x[i] = from_bits((uint32_t)bt_random_u64(stream, i, 0));
    x[0] = INFINITY;
    x[n / 2] = NAN;
}

static void fill_tame(float *x, size_t n, uint64_t stream)
{
    for (size_t i = 0; i < n; i++)
        x[i] = (float)ldexp(bt_random_unit(stream, i, 0) - 0.5,
                            (int)(bt_random_u64(stream, i, 1) % 24) - 12);
}

static void test_bf16(void **state)
{
    static float x[MOST], back[MOST];
    static uint16_t out[MOST];
    (void)state;
    fill_wild(x, MOST, 1);
    for (const struct bt_row_ops *const *ops = bt_row_ops_available(); *ops; ops++) {
        (*ops)->to_bf16(x, MOST, out);
        (*ops)->from_bf16(out, MOST, back);
        for (size_t i = 0; i < MOST; i++) {
            float wanted = bt_bf16_to_f32(out[i]);
            assert_int_equal(out[i], bt_f32_to_bf16(x[i]));
            assert_memory_equal(&back[i], &wanted, sizeof(wanted));
        }
    }
}

static void check_f8(const struct bt_row_ops *ops, const float *x, size_t n)
{
    static uint8_t out[MOST];
    static float scales[MOST], back[MOST];
    ops->to_f8(x, n, out, scales);
    ops->from_f8(out, scales, n, back);
    for (size_t first = 0; first < n; first += 128) {
        size_t end = n - first < 128 ? n : first + 128;
        float max = 0;
        for (size_t i = first; i < end; i++)
            max = fmaxf(max, fabsf(x[i]));
        float scale = max > 0 ? fmaxf(max / 448.0f, FLT_MIN) : 1.0f;
        assert_true(scales[first / 128] == scale);
        for (size_t i = first; i < end; i++) {
            float wanted = bt_f8_e4m3_to_f32(out[i]) * scale;
            assert_int_equal(out[i], bt_f32_to_f8_e4m3(x[i] / scale));
            assert_true(isnan(wanted) ? isnan(back[i])
                                      : memcmp(&back[i], &wanted, sizeof(wanted)) == 0);
        }
    }
}

static void test_f8(void **state)
{
    static float x[MOST];
    const size_t lengths[] = {1, 7, 127, 128, 129, 1000, MOST};
    (void)state;
    for (const struct bt_row_ops *const *ops = bt_row_ops_available(); *ops; ops++) {
        for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
            fill_tame(x, lengths[i], i);
            check_f8(*ops, x, lengths[i]);
            memset(x, 0, sizeof(x));
            check_f8(*ops, x, lengths[i]);
            x[0] = NAN;
            x[lengths[i] - 1] = 1e-42f;
            check_f8(*ops, x, lengths[i]);
        }
    }
}

static void test_add_and_sum(void **state)
{
    static float x[9][MOST], out[MOST], y[MOST];
    static uint16_t half[MOST];
    const float *rows[9];
    (void)state;
    for (uint32_t r = 0; r < 9; r++) {
        fill_tame(x[r], MOST, 20 + r);
        rows[r] = x[r];
    }
    for (size_t i = 0; i < MOST; i++)
        half[i] = bt_f32_to_bf16(x[1][i]);
    for (const struct bt_row_ops *const *ops = bt_row_ops_available(); *ops; ops++) {
        memcpy(y, x[0], sizeof(y));
        (*ops)->add_f32(x[1], 0.3f, MOST, y);
        (*ops)->add_bf16(half, -1.7f, MOST, y);
        for (size_t i = 0; i < MOST; i++) {
            float wanted = fmaf(-1.7f, bt_bf16_to_f32(half[i]), fmaf(0.3f, x[1][i], x[0][i]));
            assert_memory_equal(&y[i], &wanted, sizeof(wanted));
        }
        for (uint32_t count = 1; count <= 9; count++) {
            (*ops)->sum(rows, count, MOST, out);
            for (size_t i = 0; i < MOST; i++) {
                volatile float wanted = x[0][i];
                for (uint32_t r = 1; r < count; r++)
                    wanted = wanted + x[r][i];
                assert_true(out[i] == wanted);
            }
        }
    }
}

/* The example of the paper, appendix A; and the shortest message. */
static void test_siphash(void **state)
{
    const struct bt_siphash_key key = {
        {UINT64_C(0x0706050403020100), UINT64_C(0x0f0e0d0c0b0a0908)}};
    unsigned char message[15];
    (void)state;
    for (unsigned char i = 0; i < sizeof(message); i++)
        message[i] = i;
    assert_true(bt_siphash(&key, message, sizeof(message)) == UINT64_C(0xa129ca6149be45e5));
    assert_true(bt_siphash(&key, message, 0) == UINT64_C(0x726fdb47dd0e0e31));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_f8),
        cmocka_unit_test(test_add_and_sum),
        cmocka_unit_test(test_siphash),
    };
    return cmocka_run_group_tests_name("rows", tests, NULL, NULL);
}
