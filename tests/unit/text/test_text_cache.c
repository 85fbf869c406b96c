/* The cache of texts: what it holds and forgets; and prompts with shared parts, with it and
 * without. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/text/chat.h"
#include "common/text/text_cache.h"
#include "tests/seed.h"
#include "tests/unit/text/fixture.h"

#define CONVERSATIONS 60
#define MAX_MESSAGES  8

static void put(struct bt_text_cache *cache, const char *text, uint32_t id)
{
    bt_text_cache_put(cache, bt_text_cache_key(cache, text, strlen(text)), text, strlen(text), &id,
                      1);
}

/* The one id of the text; -1: not known. */
static int64_t get(struct bt_text_cache *cache, const char *text)
{
    struct bt_token_buffer ids = {0};
    int64_t id = -1;
    if (bt_text_cache_get(cache, bt_text_cache_key(cache, text, strlen(text)), text, strlen(text),
                          &ids) == BT_OK) {
        assert_int_equal(ids.count, 1);
        id = ids.ids[0];
    }
    free(ids.ids);
    return id;
}

static void test_least_recently_used_goes(void **state)
{
    struct bt_tokenizer_cache_stats stats;
    struct bt_text_cache *cache = bt_text_cache_create(1000); /* some entries of a text of 4 */
    char text[8];
    put(cache, "kept", 1);
    put(cache, "gone", 2);
    bt_text_cache_read(cache, &stats);
    assert_int_equal(stats.entries, 2);
    size_t entry_bytes = stats.bytes / 2, most = 1000 / entry_bytes;
    assert_true(most >= 3);
    for (size_t i = 2; i <= most; i++) { /* one more than there is room for */
        assert_int_equal(get(cache, "kept"), 1);
        snprintf(text, sizeof text, "t%03zu", i);
        put(cache, text, (uint32_t)i);
    }
    assert_int_equal(get(cache, "gone"), -1);
    assert_int_equal(get(cache, "kept"), 1);
    assert_int_equal(get(cache, "t002"), 2);
    bt_text_cache_read(cache, &stats);
    assert_int_equal(stats.entries, most);
    assert_int_equal(stats.evictions, 1);
    assert_true(stats.bytes <= 1000);
    bt_text_cache_destroy(cache);
    (void)state;
}

static void test_same_key_other_text(void **state)
{
    struct bt_text_cache *cache = bt_text_cache_create(1 << 20);
    struct bt_token_buffer ids = {0};
    uint32_t id = 5;
    bt_text_cache_put(cache, 77, "one", 3, &id, 1);
    assert_int_equal(bt_text_cache_get(cache, 77, "two", 3, &ids), BT_ERR_NOT_FOUND);
    assert_int_equal(bt_text_cache_get(cache, 77, "on", 2, &ids), BT_ERR_NOT_FOUND);
    assert_int_equal(bt_text_cache_get(cache, 77, "one", 3, &ids), BT_OK);
    id = 6;
    bt_text_cache_put(cache, 77, "two", 3, &id, 1);
    assert_int_equal(bt_text_cache_get(cache, 77, "one", 3, &ids), BT_ERR_NOT_FOUND);
    assert_int_equal(bt_text_cache_get(cache, 77, "two", 3, &ids), BT_OK);
    assert_int_equal(ids.count, 2);
    assert_int_equal(ids.ids[0], 5);
    assert_int_equal(ids.ids[1], 6);
    free(ids.ids);
    bt_text_cache_destroy(cache);
    (void)state;
}

static void test_too_large_is_not_kept(void **state)
{
    struct bt_tokenizer_cache_stats stats;
    struct bt_text_cache *cache = bt_text_cache_create(4000);
    uint32_t *ids = calloc(BT_TEXT_CACHE_MAX_TEXT_BYTES, sizeof *ids);
    char *text = calloc(1, BT_TEXT_CACHE_MAX_TEXT_BYTES + 1);
    bt_text_cache_put(cache, 1, text, 10, ids, 1000);
    bt_text_cache_put(cache, 2, text, 4000, ids, 1);
    bt_text_cache_put(cache, 3, text, BT_TEXT_CACHE_MAX_TEXT_BYTES + 1, ids, 1);
    bt_text_cache_put(cache, 4, text, 10, ids, 10);
    bt_text_cache_read(cache, &stats);
    assert_int_equal(stats.entries, 1);
    free(ids);
    free(text);
    bt_text_cache_destroy(cache);
    (void)state;
}

/* Texts that differ in one byte, at any place, or in length, have other keys. */
static void test_keys(void **state)
{
    struct bt_text_cache *cache = bt_text_cache_create(1 << 20);
    char text[40] = {0};
    uint64_t keys[2 * sizeof text + 1];
    size_t count = 0;
    for (size_t size = 0; size < sizeof text; size++)
        keys[count++] = bt_text_cache_key(cache, text, size);
    for (size_t at = 0; at < sizeof text - 1; at++) {
        text[at] = 1;
        keys[count++] = bt_text_cache_key(cache, text, sizeof text - 1);
        text[at] = 0;
    }
    for (size_t i = 0; i < count; i++)
        for (size_t k = 0; k < i; k++)
            if (keys[i] == keys[k])
                fail_msg("texts %zu and %zu have the same key", i, k);
    bt_text_cache_destroy(cache);
    (void)state;
}

static const char *const words[] = {"hello", " world", " the", "\n", "\n\n", " 123", "中文", "，也",
                                    "。",    ".",      "!?",   "  ", "\t",   "é",    " x=1", "…"};
/* Rare, so that there are long texts between them. */
static const char *const marks[] = {"<｜User｜>", "<｜end▁of▁sentence｜>"};

static char *random_content(uint64_t *state, size_t most, size_t *ret_size)
{
    size_t wanted = fixture_random(state, (uint32_t)most), size = 0;
    char *text = malloc(wanted + 64);
    assert_non_null(text);
    while (size < wanted) {
        const char *word = fixture_random(state, 500)
                               ? words[fixture_random(state, sizeof words / sizeof *words)]
                               : marks[fixture_random(state, 2)];
        memcpy(text + size, word, strlen(word));
        size += strlen(word);
    }
    *ret_size = size;
    return text;
}

struct conversation {
    struct bt_chat_message messages[MAX_MESSAGES];
    size_t count;
};

static void conversation_finish(struct conversation *c)
{
    for (size_t i = 0; i < c->count; i++)
        free((char *)c->messages[i].content);
    c->count = 0;
}

/* A turn of its own, or a message that starts as the one before and goes on otherwise. */
static void grow(struct conversation *c, uint64_t *state)
{
    static const char *const roles[] = {"user", "assistant"};
    struct bt_chat_message *last = &c->messages[c->count - 1];
    size_t size, more;
    char *content;
    if (c->count == MAX_MESSAGES || fixture_random(state, 3) == 0) {
        content = random_content(state, 3000, &more);
        size = fixture_random(state, (uint32_t)last->content_size + 1);
        while (size > 0 && size < last->content_size &&
               ((unsigned char)last->content[size] & 0xC0) == 0x80)
            size--;
        content = realloc(content, size + more + 1);
        memmove(content + size, content, more);
        memcpy(content, last->content, size);
        free((char *)last->content);
        last->content = content;
        last->content_size = size + more;
        return;
    }
    content = random_content(state, 6000, &size);
    c->messages[c->count] = (struct bt_chat_message){roles[c->count % 2], content, size};
    c->count++;
}

struct both {
    struct bt_tokenizer *plain, *cached;
    struct bt_chat_form *plain_form, *cached_form;
};

static void both_load(struct both *both, const char *model_dir, size_t capacity_bytes)
{
    both->plain = fixture_load(model_dir);
    both->cached = fixture_load(model_dir);
    assert_int_equal(bt_tokenizer_cache_enable(both->cached, capacity_bytes, NULL), BT_OK);
    assert_int_equal(bt_chat_form_load(model_dir, both->plain, NULL, &both->plain_form), BT_OK);
    assert_int_equal(bt_chat_form_load(model_dir, both->cached, NULL, &both->cached_form), BT_OK);
}

static void both_finish(struct both *both)
{
    bt_chat_form_destroy(both->plain_form);
    bt_chat_form_destroy(both->cached_form);
    bt_tokenizer_destroy(both->plain);
    bt_tokenizer_destroy(both->cached);
}

/* Counts what differs: cmocka's assertions belong to the main thread. */
static size_t compare(const struct both *both, const struct conversation *c)
{
    struct bt_token_buffer plain = {0}, cached = {0};
    size_t wrong = 0;
    wrong += bt_chat_form_encode(both->plain_form, c->messages, c->count, NULL, &plain) != BT_OK;
    wrong += bt_chat_form_encode(both->cached_form, c->messages, c->count, NULL, &cached) != BT_OK;
    wrong += plain.count != cached.count ||
             memcmp(plain.ids, cached.ids, plain.count * sizeof *plain.ids) != 0;
    free(plain.ids);
    free(cached.ids);
    return wrong;
}

static size_t compare_conversations(const struct both *both, uint64_t seed, int count)
{
    struct conversation c = {.count = 0};
    size_t wrong = 0;
    for (int i = 0; i < count; i++) {
        if (i % 12 == 0) {
            conversation_finish(&c);
            c.messages[0] = (struct bt_chat_message){.role = "system"};
            c.messages[0].content = random_content(&seed, 6000, &c.messages[0].content_size);
            c.count = 1;
        }
        wrong += compare(both, &c);
        grow(&c, &seed);
    }
    conversation_finish(&c);
    return wrong;
}

static void check_conversations(const char *model_dir, uint64_t seed)
{
    static const size_t capacities[] = {8u << 20, 64u << 10};
    for (size_t i = 0; i < 2; i++) {
        struct both both;
        struct bt_tokenizer_cache_stats stats;
        both_load(&both, model_dir, capacities[i]);
        assert_int_equal(compare_conversations(&both, seed, CONVERSATIONS), 0);
        bt_tokenizer_cache_read(both.plain, &stats);
        assert_int_equal(stats.queries, 0);
        bt_tokenizer_cache_read(both.cached, &stats);
        assert_true(stats.bytes <= capacities[i]);
        assert_true(stats.hits < stats.queries && stats.hit_tokens < stats.query_tokens);
        assert_true(stats.entries > 0);
        if (i == 0) /* nothing had to go, and most of each prompt is of the one before */
            assert_true(stats.evictions == 0 && stats.hit_tokens > stats.query_tokens / 4);
        else
            assert_true(stats.evictions > 0);
        both_finish(&both);
    }
}

static void test_conversations(void **state)
{
    uint64_t seed = test_seed();
    check_conversations(fixture_tiny_dir(), seed);
    check_conversations(fixture_path("v2-style"), seed);
    (void)state;
}

/* The same prompt again is all hits, but for ids of added tokens and crumbs between them. */
static void test_the_same_again(void **state)
{
    struct bt_tokenizer *tokenizer = fixture_load(fixture_tiny_dir());
    struct bt_tokenizer_cache_stats before, after;
    struct bt_token_buffer ids = {0};
    char text[20000];
    for (size_t i = 0; i < sizeof text; i++)
        text[i] = i % 7 == 6 ? ' ' : (char)('a' + i * i / 7 % 23);
    assert_int_equal(bt_tokenizer_cache_enable(tokenizer, 1 << 20, NULL), BT_OK);
    assert_int_equal(bt_tokenizer_encode(tokenizer, text, sizeof text, true, NULL, &ids), BT_OK);
    bt_tokenizer_cache_read(tokenizer, &before);
    assert_int_equal(before.hits, 0);
    assert_int_equal(before.query_tokens, ids.count);
    assert_true(before.entries > 10);
    size_t count = ids.count;
    assert_int_equal(bt_tokenizer_encode(tokenizer, text, sizeof text, true, NULL, &ids), BT_OK);
    bt_tokenizer_cache_read(tokenizer, &after);
    assert_int_equal(after.hits, before.queries);
    assert_int_equal(after.hit_tokens, count);
    assert_memory_equal(ids.ids, ids.ids + count, count * sizeof *ids.ids);
    free(ids.ids);
    bt_tokenizer_destroy(tokenizer);
    (void)state;
}

#define THREADS 3

struct worker {
    pthread_t thread;
    const struct both *both;
    uint64_t seed;
    size_t wrong;
};

static void *converse(void *context)
{
    struct worker *worker = context;
    worker->wrong = compare_conversations(worker->both, worker->seed, CONVERSATIONS / 2);
    return NULL;
}

static void test_threads(void **state)
{
    struct worker workers[THREADS];
    struct both both;
    uint64_t seed = test_seed();
    both_load(&both, fixture_tiny_dir(), 256u << 10);
    for (int i = 0; i < THREADS; i++) { /* two of them the same conversations */
        workers[i] = (struct worker){.both = &both, .seed = seed + (uint64_t)(i / 2)};
        assert_int_equal(pthread_create(&workers[i].thread, NULL, converse, &workers[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(workers[i].thread, NULL);
        assert_int_equal(workers[i].wrong, 0);
    }
    both_finish(&both);
    (void)state;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_least_recently_used_goes),
        cmocka_unit_test(test_same_key_other_text),
        cmocka_unit_test(test_too_large_is_not_kept),
        cmocka_unit_test(test_keys),
        cmocka_unit_test(test_conversations),
        cmocka_unit_test(test_the_same_again),
        cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
