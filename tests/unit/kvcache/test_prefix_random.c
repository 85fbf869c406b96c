/*
 * Random prompts through the prefix index, next to a model that knows blocks by all their text,
 * and a reader that hears of changes in pieces, some of them lost. With good hashes, and with
 * hashes that hardly tell anything apart.
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
#include "common/kvcache/prefix_index.h"

#define POOL_PAGES  21
#define BLOCKS_MAX  7
#define PROMPTS     7
#define TEXT_SIZE   (BLOCKS_MAX + 1)
#define STEPS       4000
#define SETTLE_EACH 37

struct known {
    char text[TEXT_SIZE]; /* a letter a block, from the prompt's start */
    uint32_t pins;
    uint64_t idle_since;
    bool here;
};

struct prompt {
    bool admitted, final;
    char text[TEXT_SIZE];
    uint32_t tokens[(BLOCKS_MAX + 1) * BT_PAGE_TOKENS];
    struct bt_prefix_hash hashes[BLOCKS_MAX];
    struct bt_prefix_prompt view;
    struct bt_page_owner owner;
    uint32_t pages[BLOCKS_MAX + 1];
    uint32_t page_count, pinned;
};

struct reader {
    struct bt_prefix_change pages[POOL_PAGES]; /* block 0: nothing */
    uint64_t version;
};

struct world {
    uint64_t seed, step;
    uint32_t draw;
    uint64_t hash_mask;
    struct bt_page_pool *pool;
    struct bt_prefix_index *index;
    struct known model[POOL_PAGES]; /* by page */
    char kv[POOL_PAGES][TEXT_SIZE]; /* what was computed into the page */
    struct prompt prompts[PROMPTS];
    struct reader reader;
    uint64_t hits, evictions, duplicates, no_room; /* so that the test means something */
};

static uint64_t any(struct world *world, uint64_t below)
{
    return bt_random_u64(world->seed, world->step, world->draw++) % below;
}

/* ------------------------------------------------------------------ model */

static uint32_t model_find(const struct world *world, const char *text, uint32_t blocks)
{
    for (uint32_t page = 0; page < POOL_PAGES; page++) {
        const struct known *known = &world->model[page];
        if (known->here && strlen(known->text) == blocks &&
            strncmp(known->text, text, blocks) == 0) {
            return page;
        }
    }
    return BT_NO_PAGE;
}

static bool model_has_child(const struct world *world, const char *text)
{
    size_t length = strlen(text);
    for (uint32_t page = 0; page < POOL_PAGES; page++) {
        const struct known *known = &world->model[page];
        if (known->here && strlen(known->text) == length + 1 &&
            strncmp(known->text, text, length) == 0) {
            return true;
        }
    }
    return false;
}

static void model_evict(struct world *world)
{
    struct known *oldest = NULL;
    for (uint32_t page = 0; page < POOL_PAGES; page++) {
        struct known *known = &world->model[page];
        if (known->here && known->pins == 0 && !model_has_child(world, known->text) &&
            (!oldest || known->idle_since < oldest->idle_since)) {
            oldest = known;
        }
    }
    assert_non_null(oldest);
    oldest->here = false;
    world->evictions++;
}

static uint32_t model_idle(const struct world *world)
{
    uint32_t count = 0;
    for (uint32_t page = 0; page < POOL_PAGES; page++) {
        count += world->model[page].here && world->model[page].pins == 0;
    }
    return count;
}

static void model_unpin(struct world *world, const uint32_t *pages, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        struct known *known = &world->model[pages[i]];
        assert_true(known->here && known->pins > 0);
        if (--known->pins == 0) {
            known->idle_since = world->step;
        }
    }
}

/* ------------------------------------------------------------------ prompts */

static void prompt_write(struct world *world, struct prompt *prompt)
{
    uint32_t blocks = (uint32_t)any(world, BLOCKS_MAX + 1), count = 0;
    *prompt = (struct prompt){.owner = {world->step + 1, world->step + 1}};
    for (; count < blocks; count++) {
        prompt->text[count] = (char)('a' + (any(world, 3) ? 0 : any(world, 3)));
    }
    for (uint32_t i = 0; i < count * BT_PAGE_TOKENS; i++) {
        prompt->tokens[i] = (uint32_t)prompt->text[i / BT_PAGE_TOKENS] + i % BT_PAGE_TOKENS;
    }
    uint32_t token_count = count * BT_PAGE_TOKENS + (uint32_t)any(world, 2);
    if (token_count == 0) {
        token_count = 1;
    }
    bt_prefix_hash_prompt((struct bt_prefix_hash){1, 2}, prompt->tokens, token_count,
                          prompt->hashes);
    for (uint32_t i = 0; i < count; i++) {
        prompt->hashes[i].low &= world->hash_mask;
        prompt->hashes[i].high &= world->hash_mask;
    }
    prompt->view = (struct bt_prefix_prompt){prompt->tokens, token_count, prompt->hashes};
    prompt->page_count = bt_kv_pages_for(token_count);
}

/* The pages are the model's, and hold the KV of the prompt's own start. */
static void prompt_match(struct world *world, struct prompt *prompt)
{
    uint32_t limit = (prompt->view.token_count - 1) / BT_PAGE_TOKENS, expected = 0;
    prompt->pinned = bt_prefix_index_match(world->index, &prompt->view, prompt->pages);
    for (; expected < limit; expected++) {
        uint32_t page = model_find(world, prompt->text, expected + 1);
        if (page == BT_NO_PAGE) {
            break;
        }
        assert_true(expected < prompt->pinned);
        assert_int_equal(prompt->pages[expected], page);
        assert_int_equal(strlen(world->kv[page]), expected + 1);
        assert_memory_equal(world->kv[page], prompt->text, expected + 1);
        world->model[page].pins++;
        world->hits++;
    }
    assert_int_equal(prompt->pinned, expected);
}

static void prompt_admit(struct world *world, struct prompt *prompt)
{
    prompt_write(world, prompt);
    prompt_match(world, prompt);
    uint32_t wanted = prompt->page_count - prompt->pinned;
    uint32_t free_count = bt_page_pool_count(world->pool, BT_PAGE_FREE);
    bool room = wanted <= free_count + model_idle(world);
    assert_int_equal(
        bt_prefix_index_alloc(world->index, wanted, prompt->owner, &prompt->pages[prompt->pinned]),
        room);
    if (!room) {
        bt_prefix_index_unpin(world->index, prompt->pages, prompt->pinned);
        model_unpin(world, prompt->pages, prompt->pinned);
        world->no_room++;
        return;
    }
    for (; free_count < wanted; free_count++) {
        model_evict(world);
    }
    for (uint32_t i = prompt->pinned; i < prompt->page_count; i++) {
        assert_false(world->model[prompt->pages[i]].here);
        memset(world->kv[prompt->pages[i]], 0, TEXT_SIZE);
    }
    prompt->admitted = true;
}

/* Maybe only a part of it was computed. */
static void prompt_insert(struct world *world, struct prompt *prompt)
{
    uint32_t own = prompt->page_count - prompt->pinned, pinned = prompt->pinned;
    uint32_t pages[BLOCKS_MAX + 1];
    if (any(world, 4) == 0) {
        uint32_t from = prompt->pinned * BT_PAGE_TOKENS;
        prompt->view.token_count = from + (uint32_t)any(world, prompt->view.token_count - from);
    }
    for (uint32_t i = prompt->pinned; i < prompt->page_count; i++) {
        memcpy(world->kv[prompt->pages[i]], prompt->text, i + 1);
    }
    memcpy(pages, prompt->pages, sizeof(pages));
    bt_page_pool_move(world->pool, &prompt->pages[pinned], own, prompt->owner, BT_PAGE_RESERVED,
                      BT_PAGE_READY);
    prompt->pinned =
        bt_prefix_index_insert(world->index, &prompt->view, pinned, prompt->owner, prompt->pages);
    assert_int_equal(prompt->pinned, prompt->view.token_count / BT_PAGE_TOKENS);
    for (uint32_t i = pinned; i < prompt->pinned; i++) {
        uint32_t page = model_find(world, prompt->text, i + 1);
        if (page == BT_NO_PAGE) {
            page = pages[i];
            world->model[page] = (struct known){.here = true};
            memcpy(world->model[page].text, prompt->text, i + 1);
        } else {
            world->duplicates++;
            assert_int_equal(bt_page_pool_state(world->pool, pages[i], NULL), BT_PAGE_FREE);
        }
        assert_int_equal(prompt->pages[i], page);
        world->model[page].pins++;
    }
    prompt->final = true;
}

static void prompt_end(struct world *world, struct prompt *prompt)
{
    for (uint32_t i = 0; i < prompt->pinned; i++) {
        assert_memory_equal(world->kv[prompt->pages[i]], prompt->text, i + 1);
    }
    bt_prefix_index_unpin(world->index, prompt->pages, prompt->pinned);
    model_unpin(world, prompt->pages, prompt->pinned);
    bt_page_pool_move(world->pool, &prompt->pages[prompt->pinned],
                      prompt->page_count - prompt->pinned, prompt->owner, BT_PAGE_READY,
                      BT_PAGE_FREE);
    prompt->admitted = false;
}

/* ------------------------------------------------------------------ reader */

/* True: it is up to date. */
static bool reader_hear(struct world *world, uint32_t max, bool lost)
{
    struct reader *reader = &world->reader;
    struct bt_prefix_change changes[POOL_PAGES];
    uint64_t since, version;
    uint32_t count =
        bt_prefix_index_changes(world->index, reader->version, max, changes, &since, &version);
    assert_true(count <= max);
    assert_true(since == 0 || since == reader->version);
    if (lost) {
        return false;
    }
    if (since == 0) {
        memset(reader->pages, 0, sizeof(reader->pages));
    }
    for (uint32_t i = 0; i < count; i++) {
        assert_true(changes[i].page < POOL_PAGES);
        reader->pages[changes[i].page] = changes[i];
    }
    reader->version = version;
    return count < max;
}

static void reader_settle(struct world *world)
{
    while (!reader_hear(world, 3, false)) {
    }
    for (uint32_t page = 0; page < POOL_PAGES; page++) {
        const struct known *known = &world->model[page];
        const struct bt_prefix_change *heard = &world->reader.pages[page];
        if (!known->here) {
            assert_true(heard->block == 0);
            continue;
        }
        uint32_t blocks = (uint32_t)strlen(known->text);
        uint32_t tokens[BLOCKS_MAX * BT_PAGE_TOKENS];
        struct bt_prefix_hash hashes[BLOCKS_MAX];
        for (uint32_t i = 0; i < blocks * BT_PAGE_TOKENS; i++) {
            tokens[i] = (uint32_t)known->text[i / BT_PAGE_TOKENS] + i % BT_PAGE_TOKENS;
        }
        bt_prefix_hash_prompt((struct bt_prefix_hash){1, 2}, tokens, blocks * BT_PAGE_TOKENS,
                              hashes);
        hashes[blocks - 1].low &= world->hash_mask;
        assert_true(heard->block == bt_prefix_block_id(hashes[blocks - 1]));
        assert_int_equal(heard->parent,
                         blocks > 1 ? model_find(world, known->text, blocks - 1) : BT_NO_PAGE);
    }
}

/* ------------------------------------------------------------------ all together */

static void world_check(const struct world *world)
{
    const char *wrong = bt_prefix_index_check(world->index);
    if (wrong) {
        fail_msg("step %llu: it does not hold that %s", (unsigned long long)world->step, wrong);
    }
    uint32_t here = 0;
    for (uint32_t page = 0; page < POOL_PAGES; page++) {
        here += world->model[page].here;
        assert_int_equal(bt_page_pool_state(world->pool, page, NULL) == BT_PAGE_CACHED,
                         world->model[page].here);
    }
    assert_int_equal(bt_prefix_index_evictable(world->index), model_idle(world));
    assert_true(bt_prefix_index_evictions(world->index) == world->evictions);
    assert_int_equal(bt_page_pool_count(world->pool, BT_PAGE_CACHED), here);
}

static void world_step(struct world *world)
{
    struct prompt *prompt = &world->prompts[any(world, PROMPTS)];
    if (!prompt->admitted) {
        prompt_admit(world, prompt);
    } else if (!prompt->final) {
        prompt_insert(world, prompt);
    } else {
        prompt_end(world, prompt);
    }
    world_check(world);
    if (any(world, 3) == 0) {
        reader_hear(world, 1 + (uint32_t)any(world, 4), any(world, 3) == 0);
    }
    if (any(world, 200) == 0) {
        world->reader.version = 0; /* it started again */
    }
    if (world->step % SETTLE_EACH == 0) {
        reader_settle(world);
    }
}

static void run(uint64_t seed, uint64_t hash_mask)
{
    struct world *world = calloc(1, sizeof(*world));
    world->seed = seed;
    world->hash_mask = hash_mask;
    world->pool = bt_page_pool_create(POOL_PAGES);
    world->index = bt_prefix_index_create(world->pool, seed * 77);
    print_message("seed %llu, hashes & %llx\n", (unsigned long long)seed,
                  (unsigned long long)hash_mask);
    for (world->step = 0; world->step < STEPS; world->step++) {
        world->draw = 0;
        world_step(world);
    }
    for (int i = 0; i < PROMPTS; i++) {
        struct prompt *prompt = &world->prompts[i];
        if (prompt->admitted && !prompt->final) {
            prompt_insert(world, prompt);
        }
        if (prompt->admitted) {
            prompt_end(world, prompt);
        }
    }
    world_check(world);
    uint32_t cached = bt_page_pool_count(world->pool, BT_PAGE_CACHED);
    assert_int_equal(bt_prefix_index_evictable(world->index), cached);
    assert_int_equal(bt_page_pool_count(world->pool, BT_PAGE_FREE) + cached, POOL_PAGES);
    print_message("hits %llu, evictions %llu, duplicates %llu, no room %llu\n",
                  (unsigned long long)world->hits, (unsigned long long)world->evictions,
                  (unsigned long long)world->duplicates, (unsigned long long)world->no_room);
    assert_true(world->hits > 100 && world->evictions > 100);
    assert_true(world->duplicates > 20 && world->no_room > 20);
    bt_prefix_index_destroy(world->index);
    bt_page_pool_destroy(world->pool);
    free(world);
}

static void test_good_hashes(void **state)
{
    (void)state;
    run(20260301, UINT64_MAX);
    run(20260302, UINT64_MAX);
}

static void test_hashes_of_two_bits(void **state)
{
    (void)state;
    run(20260303, 1);
}

static void test_hashes_that_are_all_equal(void **state)
{
    (void)state;
    run(20260304, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good_hashes),
        cmocka_unit_test(test_hashes_of_two_bits),
        cmocka_unit_test(test_hashes_that_are_all_equal),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
