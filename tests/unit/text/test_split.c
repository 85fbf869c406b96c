/* Split rules against Hugging Face tokenizers, and the search for added tokens against its
 * definition. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/text/added_token.h"
#include "common/text/split.h"
#include "tests/seed.h"
#include "tests/unit/text/fixture.h"

#define ROUNDS 2000

struct pieces {
    const json_t *sizes;
    size_t count, wrong;
};

static enum bt_status take_piece(void *context, const char *piece, size_t size,
                                 struct bt_error *error)
{
    struct pieces *pieces = context;
    const json_t *expected = json_array_get(pieces->sizes, pieces->count++);
    pieces->wrong += json_integer_value(expected) != (json_int_t)size;
    (void)piece;
    (void)error;
    return BT_OK;
}

static void check_rules(const json_t *golden, const char *name)
{
    const json_t *cases = json_object_get(golden, name), *value;
    struct bt_splitter splitter = {0};
    struct bt_split_scratch *scratch = bt_split_scratch_create();
    struct bt_error error = {0};
    size_t i;
    json_array_foreach(json_object_get(json_array_get(cases, 0), "rules"), i, value)
        assert_int_equal(bt_splitter_add(&splitter, json_string_value(value), &error), BT_OK);
    assert_true(json_array_size(cases) > 50);
    for (i = 1; i < json_array_size(cases); i++) {
        const json_t *entry = json_array_get(cases, i);
        size_t size;
        char *text = fixture_hex(entry, "text_hex", &size);
        struct pieces pieces = {.sizes = json_object_get(entry, "sizes")};
        assert_int_equal(
            bt_splitter_run(&splitter, scratch, text, size, take_piece, &pieces, &error), BT_OK);
        if (pieces.wrong || pieces.count != json_array_size(pieces.sizes))
            fail_msg("%s: wrong pieces for \"%s\"", name, text);
        free(text);
    }
    bt_split_scratch_destroy(scratch);
    bt_splitter_finish(&splitter);
}

static void test_rules(void **state)
{
    json_t *golden = fixture_json(fixture_path("hf_golden.json"));
    check_rules(golden, "split-v3");
    check_rules(golden, "split-v2");
    check_rules(golden, "split-odd");
    json_decref(golden);
    (void)state;
}

static enum bt_status refuse_second(void *context, const char *piece, size_t size,
                                    struct bt_error *error)
{
    size_t *calls = context;
    (void)piece;
    (void)size;
    return ++*calls == 2 ? bt_error_set(error, BT_ERR_EXHAUSTED, "full") : BT_OK;
}

static void test_emit_ends_the_split(void **state)
{
    struct bt_splitter splitter = {0};
    struct bt_split_scratch *scratch = bt_split_scratch_create();
    size_t calls = 0;
    assert_int_equal(bt_splitter_add(&splitter, "b", NULL), BT_OK);
    assert_int_equal(bt_splitter_run(&splitter, scratch, "abab", 4, refuse_second, &calls, NULL),
                     BT_ERR_EXHAUSTED);
    assert_int_equal(calls, 2);
    bt_split_scratch_destroy(scratch);
    bt_splitter_finish(&splitter);
    (void)state;
}

static void test_rule_limit(void **state)
{
    struct bt_splitter splitter = {0};
    for (int i = 0; i < BT_SPLIT_MAX_RULES; i++)
        assert_int_equal(bt_splitter_add(&splitter, "a", NULL), BT_OK);
    assert_int_equal(bt_splitter_add(&splitter, "a", NULL), BT_ERR_INVALID_ARGUMENT);
    bt_splitter_finish(&splitter);
    (void)state;
}

static size_t random_text(uint64_t *state, char *ret_text, size_t most)
{
    size_t size = 1 + fixture_random(state, (uint32_t)most);
    for (size_t i = 0; i < size; i++)
        ret_text[i] = "ab<"[fixture_random(state, 3)];
    ret_text[size] = '\0';
    return size;
}

/* By the definition: of all places the first, of all tokens there the longest. */
static bool naive_next(char tokens[][8], size_t count, const char *text, size_t from,
                       struct bt_added_match *ret_match)
{
    for (size_t at = from; text[at]; at++) {
        ret_match->size = 0;
        for (size_t i = 0; i < count; i++) {
            size_t size = strlen(tokens[i]);
            if (size > ret_match->size && strncmp(text + at, tokens[i], size) == 0)
                *ret_match = (struct bt_added_match){at, size, (uint32_t)i};
        }
        if (ret_match->size)
            return true;
    }
    return false;
}

static void check_added_round(uint64_t *state)
{
    char tokens[5][8], text[64];
    struct bt_added_tokens added = {0};
    size_t count = 1 + fixture_random(state, 5);
    for (size_t i = 0; i < count; i++) {
        size_t size = random_text(state, tokens[i], 5);
        for (size_t k = 0; k < i; k++) {
            if (strcmp(tokens[i], tokens[k]) == 0)
                goto done; /* a vocabulary has no token twice */
        }
        assert_true(bt_added_tokens_add(&added, tokens[i], size, (uint32_t)i));
    }
    size_t size = random_text(state, text, 40), from = 0;
    struct bt_added_match match, expected;
    for (;;) {
        bool found = bt_added_tokens_next(&added, text, size, from, &match);
        assert_int_equal(found, naive_next(tokens, count, text, from, &expected));
        if (!found)
            break;
        assert_int_equal(match.offset, expected.offset);
        assert_int_equal(match.size, expected.size);
        assert_int_equal(match.id, expected.id);
        from = match.offset + match.size;
    }
done:
    bt_added_tokens_finish(&added);
}

static void test_added_tokens(void **state)
{
    uint64_t seed = test_seed();
    for (int round = 0; round < ROUNDS; round++)
        check_added_round(&seed);
    (void)state;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rules),
        cmocka_unit_test(test_emit_ends_the_split),
        cmocka_unit_test(test_rule_limit),
        cmocka_unit_test(test_added_tokens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
