/* What is cut out of bodies, against the JSON parser on the whole: random bodies, and broken ones.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/random.h"
#include "router/openai_request.h"
#include "tests/unit/router/cut_check.h"

#define BODIES    1200
#define MUTATIONS 8
#define CAPACITY  (1u << 20)

static char body[CAPACITY];
static size_t used;
static uint64_t seed = 20, drawn;

static uint32_t draw(uint32_t below)
{
    return (uint32_t)(bt_random_u64(seed, drawn++, 0) % below);
}

static void put(const char *text)
{
    size_t size = strlen(text);
    assert_true(used + size < CAPACITY);
    memcpy(body + used, text, size);
    used += size;
}

static void put_space(void)
{
    static const char *const spaces[] = {"", "", "", "", "", " ", "\n", "\t", "\r", " \n "};
    put(spaces[draw(10)]);
}

static void put_number(void)
{
    static const char *const odd[] = {
        "-1", "-0", "1.0",  "1e2", "4294967295", "4294967296", "null", "99999999999999999999",
        "01", "0",  "true", "[]",  "[7]",        "[-1]"};
    char text[24];
    snprintf(text, sizeof text, "%u", draw(10) == 0 ? 0 : draw(1u << (1 + draw(30))));
    put(draw(3000) == 0 ? odd[draw(14)] : text);
}

static void put_list(void)
{
    uint32_t count = draw(4) == 0 ? draw(5) : RT_OPENAI_CUT_IDS - 2 + draw(80);
    put("[");
    for (uint32_t i = 0; i < count; i++) {
        put_space();
        put_number();
        put_space();
        put(i + 1 < count ? "," : "");
    }
    put("]");
}

static void put_string(void)
{
    static const char *const parts[] = {"plain text of a prompt ",
                                        "\\n",
                                        "\\\"",
                                        "\\\\",
                                        "\\/",
                                        "\\u00e9",
                                        "\xE6\x97\xA5",
                                        "\xF0\x9F\xA6\x8A",
                                        "\\ud83e\\udd8a",
                                        "[1,2]",
                                        "\\b\\f\\r\\t",
                                        "\x7F",
                                        "{\\\"a\\\":"};
    static const char *const odd[] = {"\\u0000",        "\\ud800", "\\udc00", "\x01", "\xC0\x80",
                                      "\xED\xA0\x80",   "\\x",     "\xFF",    "\n",   "\\u12",
                                      "\\ud83e\\u0041", "\\u00G0"};
    uint32_t count = draw(3) == 0 ? draw(20) : 300 + draw(600);
    put("\"");
    put(draw(200) == 0 ? "\\u00011" : "");
    for (uint32_t i = 0; i < count; i++)
        put(draw(20000) == 0 ? odd[draw(12)] : parts[draw(3) == 0 ? draw(13) : 0]);
    put("\"");
}

static void put_long_key(void)
{
    put("\"");
    for (uint32_t i = 0; i < RT_OPENAI_CUT_BYTES / 8; i++)
        put("long key");
    put(draw(2) ? "\"" : "s\"");
}

static void put_value(uint32_t depth);

static void put_object(uint32_t depth)
{
    static const char *const names[] = {"prompt", "messages", "a", "\\u0061", "content", "tokens"};
    uint32_t count = draw(4);
    put("{");
    for (uint32_t i = 0; i < count; i++) {
        if (draw(20) == 0) {
            put_long_key();
        } else {
            put("\"");
            put(names[(i + draw(20) / 19) % 6]);
            put("\"");
        }
        put_space();
        put(":");
        put_space();
        put_value(depth);
        put_space();
        put(i + 1 < count ? "," : "");
    }
    put("}");
}

static void put_value(uint32_t depth)
{
    uint32_t kind = draw(depth < 4 ? 6 : 3);
    if (kind == 0)
        put_number();
    else if (kind == 1)
        put_list();
    else if (kind == 2)
        put_string();
    else if (kind < 5)
        put_object(depth + 1);
    else {
        put("[");
        put_value(depth + 1);
        put(",");
        put_value(depth + 1);
        put("]");
    }
}

static void check(size_t *pieces)
{
    size_t some;
    char *copy = malloc(used + 1); /* of its exact size, for the sanitizer */
    memcpy(copy, body, used);
    const char *wrong = cut_check(copy, used, &some);
    if (wrong != NULL)
        fail_msg("seed %lu, draw %lu: %s: %.*s", seed, drawn, wrong, (int)used, body);
    free(copy);
    *pieces += some;
}

static void mutate(void)
{
    static const char bytes[] = "[]{},:\"\\ 0-9.eE\n\t\x01\x80u1";
    size_t at = draw((uint32_t)used);
    uint32_t kind = draw(3);
    if (kind == 0) {
        body[at] = bytes[draw(sizeof bytes)];
    } else if (kind == 1) {
        memmove(body + at, body + at + 1, used - at - 1);
        used--;
    } else {
        used = draw(4) == 0 ? at : used;
    }
}

static void test_random_bodies(void **state)
{
    (void)state;
    size_t whole = 0, broken = 0;
    printf("seed %lu\n", seed);
    for (uint32_t i = 0; i < BODIES; i++) {
        used = 0;
        put_object(0);
        check(&whole);
        for (uint32_t j = 0; j < MUTATIONS && used > 1; j++) {
            mutate();
            check(&broken);
        }
    }
    assert_true(whole > BODIES / 2);
    assert_true(broken > BODIES);
}

static size_t pieces_of(const char *text)
{
    struct rt_openai_cut cut = {0};
    size_t pieces = 0;
    if (rt_openai_cut(text, strlen(text), &cut))
        pieces = cut.lists.count + cut.strings.count;
    rt_openai_cut_finish(&cut);
    return pieces;
}

static void put_ids(uint32_t count, const char *last)
{
    put("[");
    for (uint32_t i = 0; i < count; i++)
        put(i % 2 == 0 ? "7," : "4294967295,");
    put(last);
    put("]");
}

/* A list or string that is cut, and after it what is looked for. */
static void begin_body(const char *key, const char *last)
{
    used = 0;
    put("{\"");
    put(key);
    put("\":");
    put_ids(200, last);
}

static void test_what_is_cut(void **state)
{
    (void)state;
    begin_body("prompt", "0");
    put("}");
    body[used] = '\0';
    assert_int_equal(pieces_of(body), 1);
    static const char *const left[] = {"-1",         "-0", "00",    "1.0", "1e1",
                                       "4294967296", "",   "\"1\"", "null"};
    for (size_t i = 0; i < sizeof left / sizeof *left; i++) {
        begin_body("prompt", left[i]);
        put("}");
        body[used] = '\0';
        assert_int_equal(pieces_of(body), 0);
    }
    begin_body("prompt", "0"); /* what looks like a place of a list */
    put(",\"x\":[ -1 ]}");
    body[used] = '\0';
    assert_int_equal(pieces_of(body), 0);
    begin_body("prompt", "0");
    put(",\"x\":\"\\u00011\"}");
    body[used] = '\0';
    assert_int_equal(pieces_of(body), 0);
}

static enum bt_status parse(struct rt_openai_error *error, struct rt_openai_request *request)
{
    *error = (struct rt_openai_error){0};
    return rt_openai_request_parse(RT_OPENAI_COMPLETION, body, used, error, request);
}

static void test_ids_arrive(void **state)
{
    (void)state;
    struct rt_openai_error error;
    struct rt_openai_request request;
    begin_body("prompt", "5");
    put(",\"stop\":[\"a\"]}");
    assert_int_equal(parse(&error, &request), BT_OK);
    assert_int_equal(request.prompt_count, 1);
    assert_int_equal(request.prompts[0].count, 201);
    for (uint32_t i = 0; i < 200; i++)
        assert_true(request.prompts[0].ids[i] == (i % 2 == 0 ? 7 : UINT32_MAX));
    assert_int_equal(request.prompts[0].ids[200], 5);
    rt_openai_request_finish(&request);
    used = 0;
    put("{\"pr\\u006fmpt\":[");
    put_ids(100, "1");
    put(",[9],");
    put_ids(300, "2");
    put("]}");
    assert_int_equal(parse(&error, &request), BT_OK);
    assert_int_equal(request.prompt_count, 3);
    assert_int_equal(request.prompts[0].count, 101);
    assert_int_equal(request.prompts[1].count, 1);
    assert_int_equal(request.prompts[1].ids[0], 9);
    assert_int_equal(request.prompts[2].count, 301);
    assert_int_equal(request.prompts[2].ids[300], 2);
    rt_openai_request_finish(&request);
}

static void test_long_strings(void **state)
{
    (void)state;
    struct rt_openai_error error;
    struct rt_openai_request request;
    used = 0;
    put("{\"prompt\":[\"a\",\"");
    for (uint32_t i = 0; i < 5000; i++)
        put("x\\n\\ud83e\\udd8a");
    put("\"]}");
    assert_int_equal(parse(&error, &request), BT_OK);
    assert_int_equal(request.prompt_count, 2);
    assert_int_equal(request.prompts[1].size, 5000 * 6);
    for (uint32_t i = 0; i < 5000; i++)
        assert_memory_equal(request.prompts[1].text + (size_t)6 * i, "x\n\xF0\x9F\xA6\x8A", 6);
    rt_openai_request_finish(&request);
}

/* Errors speak of the body that the client sent. */
static void test_errors_of_the_whole(void **state)
{
    (void)state;
    static const char *const ends[] = {",\"n\" 1}", ",\"n\":1,\"n\":2}", "} x",
                                       ",\n\n\"prompt\":[]}", ""};
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        struct rt_openai_error error;
        struct rt_openai_request request;
        json_error_t expected;
        char text[BT_ERROR_TEXT_SIZE];
        begin_body("prompt", "5");
        put(ends[i]);
        assert_null(json_loadb(body, used, CUT_CHECK_FLAGS, &expected));
        assert_int_equal(parse(&error, &request), BT_ERR_INVALID_ARGUMENT);
        snprintf(text, sizeof text, "the body is not valid JSON: %s, line %d column %d",
                 expected.text, expected.line, expected.column);
        assert_string_equal(error.text, text);
    }
    struct rt_openai_error error;
    struct rt_openai_request request;
    begin_body("prompt", "5");
    put(",\"x\":");
    size_t deep = used + RT_OPENAI_MAX_DEPTH - 1;
    for (int i = 0; i < RT_OPENAI_MAX_DEPTH; i++)
        put("[");
    char place[32];
    snprintf(place, sizeof place, "at byte %zu", deep);
    assert_int_equal(parse(&error, &request), BT_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, place));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_bodies),       cmocka_unit_test(test_what_is_cut),
        cmocka_unit_test(test_ids_arrive),          cmocka_unit_test(test_long_strings),
        cmocka_unit_test(test_errors_of_the_whole),
    };
    return cmocka_run_group_tests_name("router/openai_cut", tests, NULL, NULL);
}
