/* Merging against its definition, on pieces of every length about the limits of the fast ways. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/text/byte_level.h"
#include "common/text/word_cache.h"
#include "tests/seed.h"
#include "tests/unit/text/fixture.h"

#define MAX_BYTES 200

struct naive {
    json_t *vocab;
    json_t *ranks; /* "left right" to rank */
};

static void naive_load(struct naive *naive)
{
    json_t *root = fixture_model_json("tokenizer.json"), *merge;
    json_t *model = json_object_get(root, "model");
    size_t rank;
    naive->vocab = json_incref(json_object_get(model, "vocab"));
    naive->ranks = json_object();
    json_array_foreach(json_object_get(model, "merges"), rank, merge)
    {
        char key[512];
        if (json_is_string(merge))
            snprintf(key, sizeof key, "%s", json_string_value(merge));
        else
            snprintf(key, sizeof key, "%s %s", json_string_value(json_array_get(merge, 0)),
                     json_string_value(json_array_get(merge, 1)));
        json_object_set_new(naive->ranks, key, json_integer((json_int_t)rank));
    }
    json_decref(root);
}

/* The leftmost pair of lowest rank; false: none has a merge. */
static bool naive_best(const struct naive *naive, char (*parts)[MAX_BYTES * 2 + 1], size_t count,
                       size_t *ret_at)
{
    json_int_t best = -1;
    for (size_t i = 0; i + 1 < count; i++) {
        char key[4 * MAX_BYTES + 8];
        snprintf(key, sizeof key, "%s %s", parts[i], parts[i + 1]);
        const json_t *rank = json_object_get(naive->ranks, key);
        if (rank && (best < 0 || json_integer_value(rank) < best)) {
            best = json_integer_value(rank);
            *ret_at = i;
        }
    }
    return best >= 0;
}

static size_t naive_encode(const struct naive *naive, const char *piece, size_t size,
                           uint32_t *ret_ids)
{
    static char parts[MAX_BYTES][MAX_BYTES * 2 + 1];
    size_t count = size, at;
    for (size_t i = 0; i < size; i++)
        parts[i][bt_byte_level_from_bytes(piece + i, 1, parts[i])] = '\0';
    while (naive_best(naive, parts, count, &at)) {
        size_t left = strlen(parts[at]);
        memcpy(parts[at] + left, parts[at + 1], sizeof parts[at] - left);
        memmove(parts[at + 1], parts[at + 2], (count - at - 2) * sizeof *parts);
        count--;
    }
    for (size_t i = 0; i < count; i++)
        ret_ids[i] = (uint32_t)json_integer_value(json_object_get(naive->vocab, parts[i]));
    return count;
}

static void check_piece(const struct naive *naive, const struct bt_tokenizer *tokenizer,
                        const char *piece, size_t size)
{
    uint32_t expected[MAX_BYTES];
    struct bt_token_buffer ids = {0};
    size_t count = naive_encode(naive, piece, size, expected);
    assert_int_equal(bt_tokenizer_encode(tokenizer, piece, size, false, NULL, &ids), BT_OK);
    if (ids.count != count ||
        (count > 0 && memcmp(ids.ids, expected, count * sizeof *expected) != 0))
        fail_msg("wrong ids for \"%.*s\"", (int)size, piece);
    free(ids.ids);
}

/* Letters, so that each text is one piece; few of them, so that there is much to merge. */
static void test_letters(void **state)
{
    static const char *const units[] = {"t", "h", "e", "a", "n",  "d",
                                        "i", "g", "é", "о", "aa", "ing"};
    uint64_t seed = test_seed();
    struct naive naive;
    struct bt_tokenizer *tokenizer = fixture_load(fixture_tiny_dir());
    char piece[MAX_BYTES];
    naive_load(&naive);
    for (size_t limit = 1; limit <= MAX_BYTES; limit += limit < 70 ? 1 : 13) {
        for (int round = 0; round < 4; round++) {
            size_t size = 0, kinds = 1 + fixture_random(&seed, sizeof units / sizeof *units);
            for (;;) {
                const char *unit = units[fixture_random(&seed, (uint32_t)kinds)];
                if (size + strlen(unit) > limit)
                    break;
                memcpy(piece + size, unit, strlen(unit));
                size += strlen(unit);
            }
            check_piece(&naive, tokenizer, piece, size);
            check_piece(&naive, tokenizer, piece, size); /* now known */
        }
    }
    bt_tokenizer_destroy(tokenizer);
    json_decref(naive.vocab);
    json_decref(naive.ranks);
    (void)state;
}

/* Eight letters somewhere in a word of `size` same ones; the ids must give the word back. */
static void check_word(const struct bt_tokenizer *tokenizer, uint32_t number, size_t at,
                       size_t size, struct bt_token_buffer *ids)
{
    char word[40], back[40] = "";
    size_t used = 0;
    memset(word, 'x', sizeof word);
    for (uint32_t rest = number * 7919u, k = 0; k < 8; k++, rest /= 7)
        word[at + k] = "etaoins"[rest % 7];
    ids->count = 0;
    assert_int_equal(bt_tokenizer_encode(tokenizer, word, size, false, NULL, ids), BT_OK);
    for (size_t k = 0; k < ids->count; k++) {
        size_t bytes;
        const char *token = bt_tokenizer_bytes(tokenizer, ids->ids[k], &bytes);
        assert_true(used + bytes <= size);
        memcpy(back + used, token, bytes);
        used += bytes;
    }
    assert_int_equal(used, size);
    assert_memory_equal(back, word, size);
}

/* More words than are kept, so that they meet in the table; each must come back with its own ids.
 */
static void test_words_that_meet(void **state)
{
    enum { WORDS = 20000 };
    struct bt_tokenizer *tokenizer = fixture_load(fixture_tiny_dir());
    struct bt_token_buffer ids = {0};
    for (size_t at = 0; at <= 24; at += 8)
        for (uint32_t i = 0; i < WORDS; i++)
            check_word(tokenizer, i, at, at + 8, &ids);
    for (size_t size = 8; size <= 33; size++) /* a word and the same with more after it */
        check_word(tokenizer, 1, 0, size, &ids);
    free(ids.ids);
    bt_tokenizer_destroy(tokenizer);
    (void)state;
}

/* A word is known by its size and every byte. */
static void test_word_entry(void **state)
{
    char piece[BT_WORD_CACHE_MAX_BYTES] = {0};
    for (size_t size = 1; size <= sizeof piece; size++) {
        struct bt_word_entry entry = {.size = (uint8_t)size};
        struct bt_word_key key = bt_word_key_of(piece, size, sizeof piece);
        entry.key = key;
        assert_true(bt_word_entry_holds(&entry, &key, size));
        assert_false(bt_word_entry_holds(&entry, &key, size - 1));
        for (size_t at = 0; at < sizeof piece; at++) {
            piece[at] = 1;
            key = bt_word_key_of(piece, size, sizeof piece);
            assert_int_equal(bt_word_entry_holds(&entry, &key, size), at >= size);
            piece[at] = 0;
        }
    }
    (void)state;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_letters),
        cmocka_unit_test(test_words_that_meet),
        cmocka_unit_test(test_word_entry),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
