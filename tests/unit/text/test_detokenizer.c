/* Streaming against whole decoding, Python's replacement of broken UTF-8, and naive stop strings.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/text/detokenizer.h"
#include "tests/seed.h"
#include "tests/unit/text/fixture.h"

#define ROUNDS 3000

struct stream {
    struct bt_detokenizer *detokenizer;
    char text[8192];
    size_t size;
    bool stopped;
};

static void stream_open(struct stream *stream, const struct bt_tokenizer *tokenizer,
                        const char *const *stop, size_t stop_count, bool skip_special)
{
    struct bt_error error = {0};
    *stream = (struct stream){0};
    if (bt_detokenizer_create(tokenizer, stop, stop_count, skip_special, &error,
                              &stream->detokenizer) != BT_OK)
        fail_msg("%s", error.text);
}

static void stream_take(struct stream *stream, const char *text, size_t size)
{
    assert_true(stream->size + size < sizeof stream->text);
    memcpy(stream->text + stream->size, text, size);
    stream->size += size;
}

static void stream_push(struct stream *stream, uint32_t id)
{
    const char *text;
    size_t size;
    bool stopped = bt_detokenizer_push(stream->detokenizer, id, &text, &size);
    stream_take(stream, text, size);
    if (stream->stopped)
        assert_true(stopped && size == 0);
    stream->stopped = stopped;
}

static void stream_close(struct stream *stream)
{
    const char *text;
    size_t size;
    bt_detokenizer_finish(stream->detokenizer, &text, &size);
    stream_take(stream, text, size);
    bt_detokenizer_destroy(stream->detokenizer);
    stream->text[stream->size] = '\0';
}

/* The token that is exactly this byte. */
static uint32_t byte_token(const struct bt_tokenizer *tokenizer, char byte)
{
    for (uint32_t id = 0; id < bt_tokenizer_vocab_size(tokenizer); id++) {
        size_t size;
        const char *bytes = bt_tokenizer_bytes(tokenizer, id, &size);
        if (size == 1 && bytes[0] == byte)
            return id;
    }
    fail_msg("no token for byte %d", byte);
    return 0;
}

static void check_decoded(const struct bt_tokenizer *tokenizer, const json_t *ids,
                          const char *expected, size_t expected_size)
{
    struct stream stream;
    stream_open(&stream, tokenizer, NULL, 0, false);
    for (size_t i = 0; i < json_array_size(ids); i++)
        stream_push(&stream, (uint32_t)json_integer_value(json_array_get(ids, i)));
    stream_close(&stream);
    assert_int_equal(stream.size, expected_size);
    assert_memory_equal(stream.text, expected, expected_size);
}

static void test_goldens(void **state)
{
    struct bt_tokenizer *tokenizer = fixture_load(fixture_tiny_dir());
    json_t *golden = fixture_model_json("golden/tokenizer.json");
    const json_t *entry;
    size_t i;
    json_array_foreach(json_object_get(golden, "cases"), i, entry)
    {
        const json_t *decoded = json_object_get(entry, "decoded");
        check_decoded(tokenizer, json_object_get(entry, "ids"), json_string_value(decoded),
                      json_string_length(decoded));
    }
    json_decref(golden);
    bt_tokenizer_destroy(tokenizer);
    (void)state;
}

static void test_hf_goldens(void **state)
{
    json_t *golden = fixture_json(fixture_path("hf_golden.json"));
    static const char *const names[] = {"tiny", "v2-style"};
    for (size_t k = 0; k < 2; k++) {
        struct bt_tokenizer *tokenizer =
            fixture_load(k == 0 ? fixture_tiny_dir() : fixture_path(names[k]));
        const json_t *entry;
        size_t i;
        json_array_foreach(json_object_get(golden, names[k]), i, entry)
        {
            size_t size;
            char *expected = fixture_hex(entry, "decoded_hex", &size);
            check_decoded(tokenizer, json_object_get(entry, "ids"), expected, size);
            free(expected);
        }
        bt_tokenizer_destroy(tokenizer);
    }
    json_decref(golden);
    (void)state;
}

static void test_broken_utf8(void **state)
{
    struct bt_tokenizer *tokenizer = fixture_load(fixture_tiny_dir());
    json_t *cases = fixture_json(fixture_path("broken_utf8.json"));
    const json_t *entry;
    size_t i;
    assert_true(json_array_size(cases) >= 400);
    json_array_foreach(cases, i, entry)
    {
        size_t size, expected_size;
        char *bytes = fixture_hex(entry, "bytes_hex", &size);
        char *expected = fixture_hex(entry, "text_hex", &expected_size);
        struct stream stream;
        stream_open(&stream, tokenizer, NULL, 0, false);
        for (size_t b = 0; b < size; b++)
            stream_push(&stream, byte_token(tokenizer, bytes[b]));
        stream_close(&stream);
        assert_int_equal(stream.size, expected_size);
        assert_memory_equal(stream.text, expected, expected_size);
        free(bytes);
        free(expected);
    }
    json_decref(cases);
    bt_tokenizer_destroy(tokenizer);
    (void)state;
}

/* Text comes as soon as it can't change: nothing is held back without need. */
static void test_promptness(void **state)
{
    static const char *const stop[] = {"abab", "xyz"};
    static const struct {
        char byte;
        const char *shown;
    } steps[] = {
        {'q', "q"},  {'a', ""},    {'b', ""},
        {'a', ""},   {'a', "aba"}, {'b', ""},
        {'x', "ab"}, {'\xc3', ""}, {'\xa9', "x\xc3\xa9"},
        {'z', "z"},  {'\xe2', ""}, {'(', "\xef\xbf\xbd("},
    };
    struct bt_tokenizer *tokenizer = fixture_load(fixture_tiny_dir());
    struct stream stream;
    stream_open(&stream, tokenizer, stop, 2, false);
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        stream.size = 0;
        stream_push(&stream, byte_token(tokenizer, steps[i].byte));
        stream.text[stream.size] = '\0';
        assert_string_equal(stream.text, steps[i].shown);
    }
    stream_close(&stream);
    bt_tokenizer_destroy(tokenizer);
    (void)state;
}

static void test_special(void **state)
{
    struct bt_tokenizer *tokenizer = fixture_load(fixture_tiny_dir());
    uint32_t ids[] = {
        0, byte_token(tokenizer, '\xc3'), 1, byte_token(tokenizer, '\xa9'), 2046, UINT32_MAX};
    for (int skip = 0; skip < 2; skip++) {
        struct stream stream;
        stream_open(&stream, tokenizer, NULL, 0, skip);
        for (size_t i = 0; i < sizeof ids / sizeof *ids; i++)
            stream_push(&stream, ids[i]);
        stream_close(&stream);
        assert_string_equal(stream.text,
                            skip ? "é<｜User｜>"
                                 : "<｜begin▁of▁sentence｜>\xef\xbf\xbd<｜end▁of▁sentence｜>"
                                   "\xef\xbf\xbd<｜User｜>");
    }
    bt_tokenizer_destroy(tokenizer);
    (void)state;
}

/* Where the text ends by the definition: the earliest end of a stop string, the longest there. */
static bool naive_stop(const char *text, size_t size, const char *const *stop, size_t stop_count,
                       size_t *ret_size)
{
    for (size_t end = 1; end <= size; end++) {
        size_t longest = 0;
        for (size_t i = 0; i < stop_count; i++) {
            size_t length = strlen(stop[i]);
            if (length <= end && length > longest &&
                memcmp(text + end - length, stop[i], length) == 0)
                longest = length;
        }
        if (longest) {
            *ret_size = end - longest;
            return true;
        }
    }
    *ret_size = size;
    return false;
}

/* Few letters, so that stop strings overlap themselves and one another all the time. */
static size_t random_text(uint64_t *state, char *ret_text, uint32_t letters)
{
    static const char *const alphabet[] = {"a", "b", "ab", "é", "中", " "};
    size_t size = 0;
    for (uint32_t i = 0; i < letters; i++) {
        const char *letter = alphabet[fixture_random(state, 6)];
        memcpy(ret_text + size, letter, strlen(letter));
        size += strlen(letter);
    }
    ret_text[size] = '\0';
    return size;
}

static void check_stop_round(const struct bt_tokenizer *tokenizer, const uint32_t *by_byte,
                             uint64_t *state)
{
    char stops[4][64], text[256];
    const char *stop[4];
    size_t stop_count = 1 + fixture_random(state, 4), expected_size;
    for (size_t i = 0; i < stop_count; i++) {
        random_text(state, stops[i], 1 + fixture_random(state, 6));
        stop[i] = stops[i];
    }
    size_t size = random_text(state, text, fixture_random(state, 40));
    bool expected = naive_stop(text, size, stop, stop_count, &expected_size);

    /* Either real tokens, which may span the ends of stop strings, or one token a byte. */
    struct bt_token_buffer ids = {0};
    struct stream stream;
    stream_open(&stream, tokenizer, stop, stop_count, true);
    bool by_bytes = fixture_random(state, 2);
    if (!by_bytes)
        assert_int_equal(bt_tokenizer_encode(tokenizer, text, size, false, NULL, &ids), BT_OK);
    for (size_t i = 0; i < (by_bytes ? size : ids.count); i++)
        stream_push(&stream, by_bytes ? by_byte[(unsigned char)text[i]] : ids.ids[i]);
    stream_close(&stream);
    assert_int_equal(stream.stopped, expected);
    assert_int_equal(stream.size, expected_size);
    assert_memory_equal(stream.text, text, expected_size);
    free(ids.ids);
}

static void test_stop_strings(void **state)
{
    struct bt_tokenizer *tokenizer = fixture_load(fixture_tiny_dir());
    uint64_t seed = test_seed();
    uint32_t by_byte[256] = {0};
    for (uint32_t id = 0; id < bt_tokenizer_vocab_size(tokenizer); id++) {
        size_t size;
        const char *bytes = bt_tokenizer_bytes(tokenizer, id, &size);
        if (size == 1)
            by_byte[(unsigned char)bytes[0]] = id;
    }
    for (int round = 0; round < ROUNDS; round++)
        check_stop_round(tokenizer, by_byte, &seed);
    bt_tokenizer_destroy(tokenizer);
    (void)state;
}

static void test_replacement_can_stop(void **state)
{
    static const char *const stop[] = {"\xef\xbf\xbd"};
    struct bt_tokenizer *tokenizer = fixture_load(fixture_tiny_dir());
    struct stream stream;
    stream_open(&stream, tokenizer, stop, 1, true);
    stream_push(&stream, byte_token(tokenizer, 'a'));
    stream_push(&stream, byte_token(tokenizer, '\xe4'));
    stream_close(&stream);
    assert_string_equal(stream.text, "a");
    bt_tokenizer_destroy(tokenizer);
    (void)state;
}

static void test_stop_limits(void **state)
{
    struct bt_tokenizer *tokenizer = fixture_load(fixture_tiny_dir());
    char longest[BT_STOP_MAX_BYTES + 2];
    memset(longest, 'a', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    const char *many[BT_STOP_MAX_STRINGS + 1];
    for (size_t i = 0; i < BT_STOP_MAX_STRINGS + 1; i++)
        many[i] = longest + 1;
    const struct {
        const char *const *stop;
        size_t count;
        enum bt_status status;
    } cases[] = {
        {many, BT_STOP_MAX_STRINGS, BT_OK},
        {many, BT_STOP_MAX_STRINGS + 1, BT_ERR_INVALID_ARGUMENT},
        {(const char *const[]){longest}, 1, BT_ERR_INVALID_ARGUMENT},
        {(const char *const[]){"a", ""}, 2, BT_ERR_INVALID_ARGUMENT},
        {(const char *const[]){"\xff"}, 1, BT_ERR_INVALID_ARGUMENT},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct bt_detokenizer *detokenizer = NULL;
        assert_int_equal(bt_detokenizer_create(tokenizer, cases[i].stop, cases[i].count, true, NULL,
                                               &detokenizer),
                         cases[i].status);
        /* Almost a stop string, then long tokens: what is held back must have room. */
        const char *text;
        size_t size, total = 0;
        for (size_t b = 0; detokenizer && b < BT_STOP_MAX_BYTES - 1; b++) {
            assert_false(
                bt_detokenizer_push(detokenizer, byte_token(tokenizer, 'a'), &text, &size));
            total += size;
        }
        for (size_t b = 0; detokenizer && b < 3; b++) {
            bt_detokenizer_push(detokenizer, 2047, &text, &size);
            total += size;
        }
        if (detokenizer)
            assert_int_equal(total, BT_STOP_MAX_BYTES - 1 + 3 * strlen("<｜Assistant｜>"));
        bt_detokenizer_destroy(detokenizer);
    }
    bt_tokenizer_destroy(tokenizer);
    (void)state;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_goldens),     cmocka_unit_test(test_hf_goldens),
        cmocka_unit_test(test_broken_utf8), cmocka_unit_test(test_promptness),
        cmocka_unit_test(test_special),     cmocka_unit_test(test_stop_strings),
        cmocka_unit_test(test_stop_limits), cmocka_unit_test(test_replacement_can_stop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
