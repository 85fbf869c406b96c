/* The JSON writer: what it writes must read back as what went in. */
#include <jansson.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/random.h"
#include "router/openai_json.h"
#include "tests/seed.h"

static json_t *read_back(struct rt_openai_json *json)
{
    size_t size;
    json_error_t error;
    const char *text = rt_openai_json_unread(json, &size);
    json_t *value = json_loadb(text, size, JSON_DECODE_ANY | JSON_ALLOW_NUL, &error);
    if (value == NULL)
        fail_msg("%s: %.*s", error.text, (int)size, text);
    rt_openai_json_finish(json);
    return value;
}

static void check_string(const char *text, size_t size, const char *expected, size_t expected_size)
{
    struct rt_openai_json json = {0};
    rt_openai_json_string(&json, text, size);
    json_t *value = read_back(&json);
    assert_int_equal(json_string_length(value), expected_size);
    assert_memory_equal(json_string_value(value), expected, expected_size);
    json_decref(value);
}

static void test_strings(void **state)
{
    (void)state;
    char all[128];
    for (int i = 0; i < 128; i++)
        all[i] = (char)i;
    check_string(all, sizeof all, all, sizeof all);
    check_string("", 0, "", 0);
    check_string("\xE6\x97\xA5\xF0\x9F\xA6\x8A", 7, "\xE6\x97\xA5\xF0\x9F\xA6\x8A", 7);
    /* one U+FFFD for each maximal ill-formed part (Unicode 15, table 3-8) */
    check_string("a\xF1\x80\x80\xE1\x80\xC2"
                 "b\x80"
                 "c",
                 10,
                 "a\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD"
                 "b\xEF\xBF\xBD"
                 "c",
                 15);
    check_string("x\xE6\x97", 3, "x\xEF\xBF\xBD", 4);
    struct rt_openai_json json = {0};
    rt_openai_json_cstring(&json, NULL);
    json_t *value = read_back(&json);
    assert_true(json_is_null(value));
    json_decref(value);
}

static float float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static void test_floats(void **state)
{
    (void)state;
    uint64_t seed = test_seed();
    for (uint64_t i = 0; i < 20000; i++) {
        float expected = float_of((uint32_t)bt_random_u64(seed, i, 0));
        if (i < 4)
            expected = (const float[]){INFINITY, -INFINITY, NAN, -0.0f}[i];
        struct rt_openai_json json = {0};
        rt_openai_json_float(&json, expected);
        json_t *value = read_back(&json);
        assert_true(json_is_number(value));
        float got = (float)json_number_value(value);
        assert_true(got == (isfinite(expected) ? expected : -9999.0f));
        json_decref(value);
    }
}

static void test_integers(void **state)
{
    (void)state;
    const int64_t numbers[] = {0, -1, INT64_MAX, INT64_MIN};
    for (size_t i = 0; i < 4; i++) {
        struct rt_openai_json json = {0};
        rt_openai_json_int(&json, numbers[i]);
        json_t *value = read_back(&json);
        assert_true(json_integer_value(value) == numbers[i]);
        json_decref(value);
    }
}

/* A reader that takes pieces: nothing lost, memory bounded by what waits. */
static void test_take(void **state)
{
    (void)state;
    struct rt_openai_json json = {.limit = 5000};
    char next_in = 0, next_out = 0;
    for (uint32_t round = 0; round < 2000; round++) {
        char block[700];
        for (size_t i = 0; i < sizeof block; i++)
            block[i] = next_in++;
        rt_openai_json_raw(&json, block, sizeof block);
        size_t size;
        const char *data = rt_openai_json_unread(&json, &size);
        size_t take = round % 5 == 4 ? size : size < 650 ? size : 650;
        for (size_t i = 0; i < take; i++)
            assert_true(data[i] == next_out++);
        rt_openai_json_take(&json, take);
    }
    assert_false(json.failed);
    assert_true(json.capacity <= 8192);
    rt_openai_json_finish(&json);
}

static void test_limit(void **state)
{
    (void)state;
    struct rt_openai_json json = {.limit = 10};
    rt_openai_json_raw(&json, "0123456789", 10);
    assert_false(json.failed);
    rt_openai_json_take(&json, 4);
    rt_openai_json_raw(&json, "abcd", 4);
    assert_false(json.failed);
    rt_openai_json_raw(&json, "e", 1);
    assert_true(json.failed);
    rt_openai_json_take(&json, 5);
    rt_openai_json_raw(&json, "f", 1); /* stays failed, takes nothing */
    size_t size;
    const char *data = rt_openai_json_unread(&json, &size);
    assert_int_equal(size, 5);
    assert_memory_equal(data, "9abcd", 5);
    rt_openai_json_finish(&json);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_strings),  cmocka_unit_test(test_floats),
        cmocka_unit_test(test_integers), cmocka_unit_test(test_take),
        cmocka_unit_test(test_limit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
