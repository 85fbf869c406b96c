/* Ids and bytes against goldens of an independent implementation and of Hugging Face tokenizers. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/text/byte_level.h"
#include "tests/unit/text/fixture.h"

static void check_encode(const struct bt_tokenizer *tokenizer, const char *text, size_t size,
                         const json_t *expected)
{
    struct bt_error error = {0};
    struct bt_token_buffer ids = {0};
    if (bt_tokenizer_encode(tokenizer, text, size, true, &error, &ids) != BT_OK)
        fail_msg("%s", error.text);
    fixture_assert_ids(&ids, expected);
    free(ids.ids);
}

static void test_goldens(void **state)
{
    struct bt_tokenizer *tokenizer = fixture_load(fixture_tiny_dir());
    json_t *golden = fixture_model_json("golden/tokenizer.json");
    json_t *cases = json_object_get(golden, "cases");
    const json_t *entry;
    size_t i;
    assert_true(json_array_size(cases) >= 200);
    json_array_foreach(cases, i, entry)
    {
        const json_t *text = json_object_get(entry, "text");
        check_encode(tokenizer, json_string_value(text), json_string_length(text),
                     json_object_get(entry, "ids"));
    }
    json_decref(golden);
    bt_tokenizer_destroy(tokenizer);
    (void)state;
}

static void test_single_tokens(void **state)
{
    struct bt_tokenizer *tokenizer = fixture_load(fixture_tiny_dir());
    json_t *golden = fixture_model_json("golden/tokenizer.json");
    json_t *tokens = json_object_get(golden, "tokens");
    const json_t *entry;
    size_t i;
    assert_true(json_array_size(tokens) > 0);
    json_array_foreach(tokens, i, entry)
    {
        const json_t *id = json_array_get(json_object_get(entry, "ids"), 0);
        const json_t *expected = json_object_get(entry, "bytes");
        size_t size;
        const char *bytes = bt_tokenizer_bytes(tokenizer, (uint32_t)json_integer_value(id), &size);
        assert_int_equal(size, json_array_size(expected));
        for (size_t b = 0; b < size; b++)
            assert_int_equal((unsigned char)bytes[b],
                             json_integer_value(json_array_get(expected, b)));
    }
    json_decref(golden);
    bt_tokenizer_destroy(tokenizer);
    (void)state;
}

static void check_hf_cases(const char *model_dir, const json_t *cases)
{
    struct bt_tokenizer *tokenizer = fixture_load(model_dir);
    const json_t *entry;
    size_t i;
    assert_true(json_array_size(cases) >= 30);
    json_array_foreach(cases, i, entry)
    {
        size_t size;
        char *text = fixture_hex(entry, "text_hex", &size);
        check_encode(tokenizer, text, size, json_object_get(entry, "ids"));
        free(text);
    }
    bt_tokenizer_destroy(tokenizer);
}

static void test_hf_goldens(void **state)
{
    json_t *golden = fixture_json(fixture_path("hf_golden.json"));
    check_hf_cases(fixture_tiny_dir(), json_object_get(golden, "tiny"));
    check_hf_cases(fixture_path("v2-style"), json_object_get(golden, "v2-style"));
    json_decref(golden);
    (void)state;
}

static void test_special_tokens(void **state)
{
    struct bt_tokenizer *tokenizer = fixture_load(fixture_tiny_dir());
    size_t size = 1;
    assert_int_equal(bt_tokenizer_vocab_size(tokenizer), 2048);
    assert_int_equal(bt_tokenizer_bos(tokenizer), 0);
    assert_int_equal(bt_tokenizer_eos(tokenizer), 1);
    assert_true(bt_tokenizer_add_bos(tokenizer));
    assert_true(bt_tokenizer_is_special(tokenizer, 0));
    assert_true(bt_tokenizer_is_special(tokenizer, 2));
    assert_false(bt_tokenizer_is_special(tokenizer, 2046));
    assert_false(bt_tokenizer_is_special(tokenizer, UINT32_MAX));
    assert_int_equal(bt_tokenizer_find(tokenizer, "<｜User｜>"), 2046);
    assert_int_equal(bt_tokenizer_find(tokenizer, "he"), 259);
    assert_int_equal(bt_tokenizer_find(tokenizer, "no such token"), -1);
    assert_int_equal(bt_tokenizer_find(tokenizer, ""), -1);
    assert_null(bt_tokenizer_bytes(tokenizer, 2048, &size));
    assert_int_equal(size, 0);
    assert_null(bt_tokenizer_bytes(tokenizer, UINT32_MAX, &size));
    bt_tokenizer_destroy(tokenizer);
    (void)state;
}

/* Without added tokens their text is ordinary: it comes back byte for byte, and no id is theirs. */
static void test_added_tokens_off(void **state)
{
    static const char text[] = "<｜User｜>hi<｜end▁of▁sentence｜>";
    struct bt_tokenizer *tokenizer = fixture_load(fixture_tiny_dir());
    struct bt_token_buffer ids = {0};
    char back[sizeof text] = "";
    size_t used = 0;
    assert_int_equal(bt_tokenizer_encode(tokenizer, text, sizeof text - 1, false, NULL, &ids),
                     BT_OK);
    for (size_t i = 0; i < ids.count; i++) {
        size_t size;
        const char *bytes = bt_tokenizer_bytes(tokenizer, ids.ids[i], &size);
        assert_true(ids.ids[i] > 2 && ids.ids[i] < 2046);
        assert_true(used + size < sizeof back);
        memcpy(back + used, bytes, size);
        used += size;
    }
    assert_string_equal(back, text);
    free(ids.ids);
    bt_tokenizer_destroy(tokenizer);
    (void)state;
}

static void test_bad_text(void **state)
{
    static const struct {
        const char *text;
        size_t size;
        const char *where;
    } cases[] = {
        {"abc\xff", 4, "byte 3"},
        {"\xc3", 1, "byte 0"},
        {"0123456789\xed\xa0\x80", 13, "byte 10"},
        {"a\0\xc0\x80", 4, "byte 2"},
    };
    struct bt_tokenizer *tokenizer = fixture_load(fixture_tiny_dir());
    struct bt_token_buffer ids = {0};
    assert_int_equal(bt_tokenizer_encode(tokenizer, "x", 1, true, NULL, &ids), BT_OK);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct bt_error error = {0};
        assert_int_equal(
            bt_tokenizer_encode(tokenizer, cases[i].text, cases[i].size, true, &error, &ids),
            BT_ERR_INVALID_ARGUMENT);
        assert_non_null(strstr(error.text, cases[i].where));
        assert_int_equal(ids.count, 1);
    }
    struct bt_error error = {0};
    char *huge = calloc(1, BT_TOKENIZER_MAX_TEXT_BYTES + 1);
    assert_int_equal(
        bt_tokenizer_encode(tokenizer, huge, BT_TOKENIZER_MAX_TEXT_BYTES + 1, true, &error, &ids),
        BT_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(error.text, "bytes"));
    free(huge);
    free(ids.ids);
    bt_tokenizer_destroy(tokenizer);
    (void)state;
}

/* One piece of 300 kB: quadratic merging or matching would run into the test's time limit. */
static void test_long_pieces(void **state)
{
    static const char *const units[] = {"x", " ", "the", "!", "\n", "中", " \n", "\xcc\x81"};
    struct bt_tokenizer *tokenizer = fixture_load(fixture_tiny_dir());
    for (size_t u = 0; u < sizeof units / sizeof *units; u++) {
        size_t unit = strlen(units[u]), size = 0;
        char *text = malloc(300000 + 8);
        while (size < 300000) {
            memcpy(text + size, units[u], unit);
            size += unit;
        }
        struct bt_token_buffer ids = {0};
        assert_int_equal(bt_tokenizer_encode(tokenizer, text, size, true, NULL, &ids), BT_OK);
        size_t total = 0;
        for (size_t i = 0; i < ids.count; i++) {
            size_t bytes;
            bt_tokenizer_bytes(tokenizer, ids.ids[i], &bytes);
            total += bytes;
        }
        assert_int_equal(total, size);
        free(ids.ids);
        free(text);
    }
    bt_tokenizer_destroy(tokenizer);
    (void)state;
}

/* Without merges every piece falls into bytes, but for those that model.vocab has as a whole. */
static void test_ignore_merges(void **state)
{
    struct fixture_dir dir;
    struct bt_token_buffer ids = {0};
    json_t *root = fixture_model_json("tokenizer.json");
    json_t *config = fixture_model_json("tokenizer_config.json");
    json_t *model = json_object_get(root, "model");
    json_object_set_new(model, "merges", json_array());
    json_object_set_new(model, "ignore_merges", json_true());
    /* An added token whose content reads as the bytes of " qzq" is none of model.vocab. */
    json_array_append_new(json_object_get(root, "added_tokens"),
                          json_pack("{s:s,s:i}", "content", "Ġqzq", "id", 2048));
    fixture_dir_make(&dir);
    fixture_dir_write_json(&dir, "tokenizer.json", root);
    fixture_dir_write_json(&dir, "tokenizer_config.json", config);
    struct bt_tokenizer *tokenizer = fixture_load(dir.path);
    assert_int_equal(bt_tokenizer_encode(tokenizer, "he the qzq", 10, true, NULL, &ids), BT_OK);
    assert_int_equal(ids.count, 2 + 4);
    assert_int_equal(ids.ids[0], bt_tokenizer_find(tokenizer, "he"));
    assert_int_equal(ids.ids[1], bt_tokenizer_find(tokenizer, "Ġthe"));
    assert_int_equal(ids.ids[2], bt_tokenizer_find(tokenizer, "Ġ"));
    assert_int_equal(ids.ids[4], bt_tokenizer_find(tokenizer, "z"));
    free(ids.ids);
    bt_tokenizer_destroy(tokenizer);
    fixture_dir_remove(&dir);
    json_decref(root);
    json_decref(config);
    (void)state;
}

#define THREADS 4

struct worker {
    pthread_t thread;
    const struct bt_tokenizer *tokenizer;
    const json_t *cases; /* read only */
    size_t wrong;
};

static void *encode_all(void *context)
{
    struct worker *worker = context;
    const json_t *entry;
    size_t i;
    json_array_foreach(worker->cases, i, entry)
    {
        const json_t *text = json_object_get(entry, "text");
        const json_t *expected = json_object_get(entry, "ids");
        struct bt_token_buffer ids = {0};
        if (bt_tokenizer_encode(worker->tokenizer, json_string_value(text),
                                json_string_length(text), true, NULL, &ids) != BT_OK ||
            ids.count != json_array_size(expected))
            worker->wrong++;
        for (size_t k = 0; k < ids.count; k++)
            worker->wrong += ids.ids[k] != json_integer_value(json_array_get(expected, k));
        free(ids.ids);
    }
    return NULL;
}

static void test_threads(void **state)
{
    struct bt_tokenizer *tokenizer = fixture_load(fixture_tiny_dir());
    json_t *golden = fixture_model_json("golden/tokenizer.json");
    struct worker workers[THREADS];
    for (size_t i = 0; i < THREADS; i++) {
        workers[i] =
            (struct worker){.tokenizer = tokenizer, .cases = json_object_get(golden, "cases")};
        assert_int_equal(pthread_create(&workers[i].thread, NULL, encode_all, &workers[i]), 0);
    }
    for (size_t i = 0; i < THREADS; i++) {
        pthread_join(workers[i].thread, NULL);
        assert_int_equal(workers[i].wrong, 0);
    }
    json_decref(golden);
    bt_tokenizer_destroy(tokenizer);
    (void)state;
}

static void test_byte_level_alphabet(void **state)
{
    for (unsigned byte = 0; byte < 256; byte++) {
        char raw = (char)byte, content[2], back[2];
        size_t size = bt_byte_level_from_bytes(&raw, 1, content), back_size = 0;
        assert_true(bt_byte_level_to_bytes(content, size, back, &back_size));
        assert_int_equal(back_size, 1);
        assert_int_equal((unsigned char)back[0], byte);
    }
    assert_int_equal(bt_byte_level_code_point(0), 0x100);
    assert_int_equal(bt_byte_level_code_point(' '), 0x120);
    assert_int_equal(bt_byte_level_code_point(0x7F), 0x121);
    assert_int_equal(bt_byte_level_code_point(0xAD), 0x143);
    assert_int_equal(bt_byte_level_code_point('A'), 'A');
    char bytes[8];
    size_t size;
    assert_false(bt_byte_level_to_bytes(" ", 1, bytes, &size));
    assert_false(bt_byte_level_to_bytes("\xc5\x84", 2, bytes, &size)); /* U+0144 */
    (void)state;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_goldens),          cmocka_unit_test(test_single_tokens),
        cmocka_unit_test(test_hf_goldens),       cmocka_unit_test(test_special_tokens),
        cmocka_unit_test(test_added_tokens_off), cmocka_unit_test(test_bad_text),
        cmocka_unit_test(test_long_pieces),      cmocka_unit_test(test_byte_level_alphabet),
        cmocka_unit_test(test_ignore_merges),    cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
