/* The prefix index, rule by rule. A prompt is written as a text: a letter is a block of 64 tokens,
 * '.' at the end one token more. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/kvcache/prefix_index.h"

#define POOL_PAGES 12
#define BLOCKS_MAX 10

static const struct bt_prefix_hash start = {3, 4};

struct rig {
    struct bt_page_pool *pool;
    struct bt_prefix_index *index;
    uint64_t epoch;
};

struct prompt {
    uint32_t tokens[(BLOCKS_MAX + 1) * BT_PAGE_TOKENS];
    struct bt_prefix_hash hashes[BLOCKS_MAX];
    struct bt_prefix_prompt text;
    struct bt_page_owner owner;
    uint32_t pages[BLOCKS_MAX + 1];
    uint32_t page_count;
    uint32_t pinned;
};

static struct rig rig_make(void)
{
    struct rig rig = {.pool = bt_page_pool_create(POOL_PAGES)};
    rig.index = bt_prefix_index_create(rig.pool, 0x123456789);
    assert_non_null(rig.index);
    return rig;
}

static void rig_finish(struct rig *rig)
{
    assert_null(bt_prefix_index_check(rig->index));
    bt_prefix_index_destroy(rig->index);
    bt_page_pool_destroy(rig->pool);
}

static struct prompt *prompt_make(struct rig *rig, const char *text)
{
    struct prompt *prompt = calloc(1, sizeof(*prompt));
    uint32_t count = 0;
    for (; *text && *text != '.'; text++) {
        for (uint32_t i = 0; i < BT_PAGE_TOKENS; i++) {
            prompt->tokens[count++] = (uint32_t)*text * 1000 + i;
        }
    }
    count += *text == '.';
    bt_prefix_hash_prompt(start, prompt->tokens, count, prompt->hashes);
    prompt->text = (struct bt_prefix_prompt){prompt->tokens, count, prompt->hashes};
    prompt->owner = (struct bt_page_owner){1000 + rig->epoch, ++rig->epoch};
    prompt->page_count = bt_kv_pages_for(count);
    return prompt;
}

/* Matches and takes the rest of the pages. */
static bool prompt_admit(struct rig *rig, struct prompt *prompt)
{
    prompt->pinned = bt_prefix_index_match(rig->index, &prompt->text, prompt->pages);
    if (bt_prefix_index_alloc(rig->index, prompt->page_count - prompt->pinned, prompt->owner,
                              &prompt->pages[prompt->pinned])) {
        return true;
    }
    bt_prefix_index_unpin(rig->index, prompt->pages, prompt->pinned);
    return false;
}

static struct prompt *admit(struct rig *rig, const char *text, uint32_t expected_match)
{
    struct prompt *prompt = prompt_make(rig, text);
    assert_true(prompt_admit(rig, prompt));
    assert_int_equal(prompt->pinned, expected_match);
    assert_null(bt_prefix_index_check(rig->index));
    return prompt;
}

/* The KV is final: its full pages are the index's. */
static void insert(struct rig *rig, struct prompt *prompt)
{
    uint32_t own = prompt->page_count - prompt->pinned;
    bt_page_pool_move(rig->pool, &prompt->pages[prompt->pinned], own, prompt->owner,
                      BT_PAGE_RESERVED, BT_PAGE_READY);
    prompt->pinned = bt_prefix_index_insert(rig->index, &prompt->text, prompt->pinned,
                                            prompt->owner, prompt->pages);
    assert_int_equal(prompt->pinned, prompt->text.token_count / BT_PAGE_TOKENS);
    assert_null(bt_prefix_index_check(rig->index));
}

static void let_go(struct rig *rig, struct prompt *prompt)
{
    bt_prefix_index_unpin(rig->index, prompt->pages, prompt->pinned);
    bt_page_pool_move(rig->pool, &prompt->pages[prompt->pinned],
                      prompt->page_count - prompt->pinned, prompt->owner, BT_PAGE_READY,
                      BT_PAGE_FREE);
    assert_null(bt_prefix_index_check(rig->index));
    free(prompt);
}

static void run(struct rig *rig, const char *text, uint32_t expected_match)
{
    struct prompt *prompt = admit(rig, text, expected_match);
    insert(rig, prompt);
    let_go(rig, prompt);
}

/* Blocks of `text` that are here; nothing changes but the age of these. */
static uint32_t look(struct rig *rig, const char *text)
{
    struct prompt *prompt = prompt_make(rig, text);
    uint32_t count = bt_prefix_index_match(rig->index, &prompt->text, prompt->pages);
    bt_prefix_index_unpin(rig->index, prompt->pages, count);
    free(prompt);
    return count;
}

static uint32_t pages_in(const struct rig *rig, enum bt_page_state state)
{
    return bt_page_pool_count(rig->pool, state);
}

static void test_match_gives_the_longest_prefix(void **state)
{
    struct rig rig = rig_make();
    (void)state;
    run(&rig, "abc.", 0);
    assert_int_equal(pages_in(&rig, BT_PAGE_CACHED), 3);
    assert_int_equal(pages_in(&rig, BT_PAGE_FREE), POOL_PAGES - 3);
    assert_int_equal(look(&rig, "abc."), 3);
    assert_int_equal(look(&rig, "abcde."), 3);
    assert_int_equal(look(&rig, "abd."), 2);
    assert_int_equal(look(&rig, "bc."), 0); /* not at the prompt's start */
    assert_int_equal(look(&rig, "ac."), 1);
    assert_int_equal(look(&rig, "."), 0);
    rig_finish(&rig);
}

static void test_last_token_is_never_matched(void **state)
{
    struct rig rig = rig_make();
    (void)state;
    run(&rig, "abc", 0);
    assert_int_equal(pages_in(&rig, BT_PAGE_CACHED), 3);
    assert_int_equal(look(&rig, "abc"), 2);
    assert_int_equal(look(&rig, "a"), 0);
    run(&rig, "abc", 2); /* computes c again, keeps one of the two */
    assert_int_equal(pages_in(&rig, BT_PAGE_CACHED), 3);
    assert_int_equal(pages_in(&rig, BT_PAGE_FREE), POOL_PAGES - 3);
    rig_finish(&rig);
}

static void test_pages_are_shared(void **state)
{
    struct rig rig = rig_make();
    (void)state;
    struct prompt *first = admit(&rig, "abx.", 0);
    insert(&rig, first);
    struct prompt *second = admit(&rig, "aby.", 2);
    struct prompt *third = admit(&rig, "abx.", 3);
    assert_memory_equal(first->pages, second->pages, 2 * sizeof(uint32_t));
    assert_memory_equal(first->pages, third->pages, 3 * sizeof(uint32_t));
    assert_int_not_equal(first->pages[2], second->pages[2]);
    assert_int_equal(bt_prefix_index_evictable(rig.index), 0);
    let_go(&rig, first);
    assert_int_equal(bt_prefix_index_evictable(rig.index), 0);
    insert(&rig, third);
    let_go(&rig, third);
    assert_int_equal(bt_prefix_index_evictable(rig.index), 1); /* x */
    insert(&rig, second);
    let_go(&rig, second);
    assert_int_equal(bt_prefix_index_evictable(rig.index), 4);
    rig_finish(&rig);
}

/* Two compute the same at once: the second's pages are freed, its table has the first's. */
static void test_duplicates_are_freed(void **state)
{
    struct rig rig = rig_make();
    (void)state;
    struct prompt *first = admit(&rig, "abc.", 0);
    struct prompt *second = admit(&rig, "abd.", 0);
    assert_int_equal(pages_in(&rig, BT_PAGE_RESERVED), 8);
    insert(&rig, first);
    insert(&rig, second);
    assert_int_equal(pages_in(&rig, BT_PAGE_CACHED), 4);
    assert_int_equal(pages_in(&rig, BT_PAGE_READY), 2); /* the pages that are not full */
    assert_memory_equal(first->pages, second->pages, 2 * sizeof(uint32_t));
    let_go(&rig, first);
    assert_int_equal(bt_prefix_index_evictable(rig.index), 1); /* c */
    let_go(&rig, second);
    assert_int_equal(bt_prefix_index_evictable(rig.index), 4);
    rig_finish(&rig);
}

static void test_what_was_computed_is_kept(void **state)
{
    struct rig rig = rig_make();
    (void)state;
    struct prompt *prompt = admit(&rig, "abcd.", 0);
    bt_page_pool_move(rig.pool, prompt->pages, 5, prompt->owner, BT_PAGE_RESERVED, BT_PAGE_READY);
    prompt->text.token_count = 2 * BT_PAGE_TOKENS + 63;
    prompt->pinned =
        bt_prefix_index_insert(rig.index, &prompt->text, 0, prompt->owner, prompt->pages);
    assert_int_equal(prompt->pinned, 2);
    let_go(&rig, prompt);
    assert_int_equal(pages_in(&rig, BT_PAGE_FREE), POOL_PAGES - 2);
    assert_int_equal(look(&rig, "abcd."), 2);
    rig_finish(&rig);
}

static void test_least_recently_used_goes_first(void **state)
{
    struct rig rig = rig_make();
    (void)state;
    run(&rig, "abcd", 0);
    run(&rig, "efgh", 0);
    assert_int_equal(look(&rig, "abc."), 3); /* d stays as old as it is */
    run(&rig, "ijklm", 0);                   /* the pool has 12: d goes */
    assert_int_equal(bt_prefix_index_evictions(rig.index), 1);
    assert_int_equal(look(&rig, "abcd."), 3);
    run(&rig, "nop", 0); /* h, g, f */
    assert_int_equal(look(&rig, "efgh."), 1);
    assert_int_equal(look(&rig, "abcd."), 3);
    assert_int_equal(look(&rig, "ijklm."), 5);
    rig_finish(&rig);
}

/* Whatever is left of a prompt is a prefix of it. */
static void test_children_go_before_parents(void **state)
{
    struct rig rig = rig_make();
    struct bt_page_owner owner = {1, 1};
    uint32_t page;
    (void)state;
    run(&rig, "abcdef", 0);
    run(&rig, "abxyz", 2);
    for (uint32_t taken = 0; taken < POOL_PAGES; taken++) {
        assert_true(bt_prefix_index_alloc(rig.index, 1, owner, &page));
        assert_null(bt_prefix_index_check(rig.index));
        uint32_t gone = taken < 3 ? 0 : taken - 2; /* 9 blocks were here, 3 pages free */
        assert_int_equal(pages_in(&rig, BT_PAGE_CACHED), 9 - gone);
    }
    assert_false(bt_prefix_index_alloc(rig.index, 1, owner, &page));
    rig_finish(&rig);
}

static void test_pinned_blocks_stay(void **state)
{
    struct rig rig = rig_make();
    struct bt_page_owner owner = {1, 1};
    uint32_t pages[POOL_PAGES];
    (void)state;
    run(&rig, "abcd", 0);
    struct prompt *prompt = admit(&rig, "abx.", 2); /* 6 pages are free, 2 evictable */
    assert_int_equal(bt_prefix_index_evictable(rig.index), 2);
    assert_false(bt_prefix_index_alloc(rig.index, 9, owner, pages));
    assert_int_equal(pages_in(&rig, BT_PAGE_FREE), 6);
    assert_int_equal(bt_prefix_index_evictable(rig.index), 2);
    assert_true(bt_prefix_index_alloc(rig.index, 8, owner, pages));
    assert_int_equal(pages_in(&rig, BT_PAGE_CACHED), 2);
    insert(&rig, prompt);
    let_go(&rig, prompt);
    assert_int_equal(look(&rig, "abx."), 3);
    rig_finish(&rig);
}

/* A prompt that finds no room lets go of what it matched, and evicts nothing. */
static void test_no_room(void **state)
{
    struct rig rig = rig_make();
    (void)state;
    run(&rig, "abcd", 0);
    struct prompt *running = admit(&rig, "efghijk.", 0);
    struct prompt *waiting = prompt_make(&rig, "abcdxyz.");
    assert_false(prompt_admit(&rig, waiting));
    assert_int_equal(pages_in(&rig, BT_PAGE_CACHED), 4);
    assert_int_equal(bt_prefix_index_evictable(rig.index), 4);
    insert(&rig, running);
    let_go(&rig, running);
    assert_true(prompt_admit(&rig, waiting));
    assert_int_equal(waiting->pinned, 4);
    insert(&rig, waiting);
    let_go(&rig, waiting);
    rig_finish(&rig);
}

/* Equal hashes of other tokens, and of equal tokens behind other ones. */
static void test_collisions_give_no_wrong_pages(void **state)
{
    struct rig rig = rig_make();
    const char *texts[] = {"aab.", "bab.", "bb.", "cab."};
    (void)state;
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < 4; i++) {
            struct prompt *prompt = prompt_make(&rig, texts[i]);
            memset(prompt->hashes, 0, sizeof(prompt->hashes));
            assert_true(prompt_admit(&rig, prompt));
            assert_int_equal(prompt->pinned, round == 1 ? strlen(texts[i]) - 1 : i == 2 ? 1 : 0);
            insert(&rig, prompt);
            let_go(&rig, prompt);
        }
    }
    assert_int_equal(pages_in(&rig, BT_PAGE_CACHED), 10);
    rig_finish(&rig);
}

/* Equal hashes, and one token that is another: in every place of a block. */
static void test_every_token_counts(void **state)
{
    struct rig rig = rig_make();
    (void)state;
    run(&rig, "ab.", 0);
    for (uint32_t i = 0; i < 2 * BT_PAGE_TOKENS; i++) {
        struct prompt *prompt = prompt_make(&rig, "ab.");
        prompt->tokens[i] += 1;
        uint32_t count = bt_prefix_index_match(rig.index, &prompt->text, prompt->pages);
        assert_int_equal(count, i / BT_PAGE_TOKENS);
        bt_prefix_index_unpin(rig.index, prompt->pages, count);
        free(prompt);
    }
    rig_finish(&rig);
}

/* ------------------------------------------------------------------ changes */

static uint64_t id_of(struct rig *rig, const char *text)
{
    struct prompt *prompt = prompt_make(rig, text);
    uint64_t id = bt_prefix_block_id(prompt->hashes[strlen(text) - 1]);
    free(prompt);
    return id;
}

static void test_changes(void **state)
{
    struct rig rig = rig_make();
    struct bt_prefix_change changes[POOL_PAGES];
    uint64_t since, version;
    (void)state;
    assert_int_equal(bt_prefix_index_changes(rig.index, 0, 9, changes, &since, &version), 0);
    assert_int_equal(version, 0);
    run(&rig, "abc.", 0);
    assert_int_equal(bt_prefix_index_changes(rig.index, 0, 2, changes, &since, &version), 2);
    assert_int_equal(since, 0);
    assert_true(changes[0].block == id_of(&rig, "a"));
    assert_int_equal(changes[0].parent, BT_NO_PAGE);
    assert_true(changes[1].block == id_of(&rig, "ab"));
    assert_int_equal(changes[1].parent, changes[0].page);
    uint32_t b_page = changes[1].page;
    assert_int_equal(bt_prefix_index_changes(rig.index, version, 9, changes, &since, &version), 1);
    assert_int_equal(changes[0].parent, b_page);
    assert_true(changes[0].block == id_of(&rig, "abc"));
    uint32_t c_page = changes[0].page;
    uint64_t then = version;
    assert_int_equal(bt_prefix_index_changes(rig.index, then, 9, changes, &since, &version), 0);
    assert_true(since == then && version == then);

    run(&rig, "abc.", 3); /* use is no change */
    assert_int_equal(bt_prefix_index_changes(rig.index, then, 9, changes, &since, &version), 0);
    uint32_t pages[POOL_PAGES];
    assert_true(bt_prefix_index_alloc(rig.index, POOL_PAGES - 2, (struct bt_page_owner){1, 1},
                                      pages)); /* c goes */
    assert_int_equal(bt_prefix_index_changes(rig.index, then, 9, changes, &since, &version), 1);
    assert_int_equal(changes[0].page, c_page);
    assert_true(changes[0].block == 0);
    assert_true(version > then);
    assert_int_equal(bt_prefix_index_changes(rig.index, 0, 9, changes, &since, &version), 2);
    assert_true(version > then);

    /* A version of another life. */
    assert_int_equal(bt_prefix_index_changes(rig.index, version + 1, 9, changes, &since, &version),
                     2);
    assert_int_equal(since, 0);
    rig_finish(&rig);
}

/* A page that changed many times is one change. */
static void test_changes_are_no_more_than_pages(void **state)
{
    struct rig rig = rig_make();
    struct bt_prefix_change changes[2 * POOL_PAGES];
    uint64_t since, version;
    char text[3] = "aa";
    (void)state;
    run(&rig, "xyz", 0);
    bt_prefix_index_changes(rig.index, 0, POOL_PAGES, changes, &since, &version);
    for (int i = 0; i < 100; i++) {
        text[0] = (char)(33 + i);
        text[1] = (char)(200 - i);
        run(&rig, text, 0);
    }
    assert_int_equal(
        bt_prefix_index_changes(rig.index, version, 2 * POOL_PAGES, changes, &since, &version),
        POOL_PAGES);
    rig_finish(&rig);
}

/* ------------------------------------------------------------------ misuse */

static bool survives(void (*misuse)(struct rig *rig, struct prompt *prompt))
{
    struct rig rig = rig_make();
    run(&rig, "abc", 0);
    struct prompt *prompt = admit(&rig, "abd.", 2);
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        fclose(stderr);
        misuse(&rig, prompt);
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    bt_prefix_index_unpin(rig.index, prompt->pages, 2);
    free(prompt);
    rig_finish(&rig);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static void unpin_once(struct rig *rig, struct prompt *prompt)
{
    bt_prefix_index_unpin(rig->index, prompt->pages, 2);
}

static void unpin_twice(struct rig *rig, struct prompt *prompt)
{
    bt_prefix_index_unpin(rig->index, prompt->pages, 2);
    bt_prefix_index_unpin(rig->index, prompt->pages, 2);
}

static void unpin_without_the_start(struct rig *rig, struct prompt *prompt)
{
    bt_prefix_index_unpin(rig->index, &prompt->pages[1], 1);
}

static void unpin_own_pages(struct rig *rig, struct prompt *prompt)
{
    bt_prefix_index_unpin(rig->index, prompt->pages, 3);
}

static void insert_before_the_kv_is_final(struct rig *rig, struct prompt *prompt)
{
    bt_prefix_index_insert(rig->index, &prompt->text, 2, prompt->owner, prompt->pages);
}

static void insert_behind_nothing_pinned(struct rig *rig, struct prompt *prompt)
{
    bt_page_pool_move(rig->pool, &prompt->pages[2], 1, prompt->owner, BT_PAGE_RESERVED,
                      BT_PAGE_READY);
    bt_prefix_index_unpin(rig->index, prompt->pages, 2);
    bt_prefix_index_insert(rig->index, &prompt->text, 2, prompt->owner, prompt->pages);
}

static void test_misuse_is_asserted(void **state)
{
    (void)state;
    assert_true(survives(unpin_once));
    assert_false(survives(unpin_twice));
    assert_false(survives(unpin_without_the_start));
    assert_false(survives(unpin_own_pages));
    assert_false(survives(insert_before_the_kv_is_final));
    assert_false(survives(insert_behind_nothing_pinned));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_match_gives_the_longest_prefix),
        cmocka_unit_test(test_last_token_is_never_matched),
        cmocka_unit_test(test_pages_are_shared),
        cmocka_unit_test(test_duplicates_are_freed),
        cmocka_unit_test(test_what_was_computed_is_kept),
        cmocka_unit_test(test_least_recently_used_goes_first),
        cmocka_unit_test(test_children_go_before_parents),
        cmocka_unit_test(test_pinned_blocks_stay),
        cmocka_unit_test(test_no_room),
        cmocka_unit_test(test_collisions_give_no_wrong_pages),
        cmocka_unit_test(test_every_token_counts),
        cmocka_unit_test(test_changes),
        cmocka_unit_test(test_changes_are_no_more_than_pages),
        cmocka_unit_test(test_misuse_is_asserted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
