/*
 * The prefix map: rule by rule, then with real prefix indexes as workers whose news come in pieces,
 * late or never. A prompt is a text, each letter a block.
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
#include "router/prefix_map.h"

#define BLOCKS_MAX 24

static long fails_from = -1, allocations;

void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *memory, size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *memory, size_t size);

static bool fails(void)
{
    return fails_from >= 0 && allocations++ == fails_from;
}

void *__wrap_calloc(size_t count, size_t size)
{
    return fails() ? NULL : __real_calloc(count, size);
}

void *__wrap_realloc(void *memory, size_t size)
{
    return fails() ? NULL : __real_realloc(memory, size);
}

/* ------------------------------------------------------------------ texts */

/* Any two texts' ids differ: the text itself, 5 bits a letter, up to 12 letters. */
static uint64_t id_of(const char *text, uint32_t blocks)
{
    uint64_t id = 0;
    for (uint32_t i = 0; i < blocks; i++) {
        id = id << 5 | (uint64_t)(text[i] - 'a' + 1);
    }
    return id;
}

static struct bt_prefix_change holds(uint32_t page, uint32_t parent, const char *text)
{
    return (struct bt_prefix_change){
        .page = page, .parent = parent, .block = id_of(text, (uint32_t)strlen(text))};
}

static struct bt_prefix_change empty(uint32_t page)
{
    return (struct bt_prefix_change){.page = page, .parent = BT_NO_PAGE};
}

/* ------------------------------------------------------------------ a map and its news */

static struct rt_prefix_map *map;

/* With this salt the ids of all texts here meet in one bucket. */
static void map_make(uint32_t max_workers, uint32_t max_blocks, uint32_t max_worker_blocks)
{
    const struct rt_prefix_map_options options = {max_workers, max_blocks, max_worker_blocks, 0};
    map = rt_prefix_map_create(&options);
    assert_non_null(map);
}

static void map_finish(void)
{
    assert_null(rt_prefix_map_check(map));
    rt_prefix_map_destroy(map);
}

/* `count` changes, which are the next versions. */
static enum bt_status tell(rt_worker_ref worker, uint32_t count,
                           const struct bt_prefix_change *changes)
{
    uint64_t version = rt_prefix_map_version(map, worker);
    const struct rt_prefix_summary summary = {version, version + count, changes, count};
    struct bt_error error;
    enum bt_status status = rt_prefix_map_apply(map, worker, &summary, &error);
    assert_null(rt_prefix_map_check(map));
    return status;
}

/* The worker holds `text` in pages from `first` on. */
static void tell_text(rt_worker_ref worker, uint32_t first, const char *text)
{
    struct bt_prefix_change changes[BLOCKS_MAX];
    uint32_t count = (uint32_t)strlen(text);
    for (uint32_t i = 0; i < count; i++) {
        changes[i] = (struct bt_prefix_change){.page = first + i,
                                               .parent = i > 0 ? first + i - 1 : BT_NO_PAGE,
                                               .block = id_of(text, i + 1)};
    }
    assert_int_equal(tell(worker, count, changes), BT_OK);
}

static uint32_t look(const char *text, uint32_t max, struct rt_cached *ret_hits)
{
    uint64_t ids[BLOCKS_MAX];
    uint32_t count = (uint32_t)strlen(text);
    for (uint32_t i = 0; i < count; i++) {
        ids[i] = id_of(text, i + 1);
    }
    return rt_prefix_map_lookup(map, ids, count, 0, max, ret_hits);
}

/* Blocks of `text` that the worker is thought to have. */
static uint32_t depth(rt_worker_ref worker, const char *text)
{
    assert_int_equal(look(text, 0, NULL), 0);
    return rt_prefix_map_tokens(map, worker) / BT_PAGE_TOKENS;
}

static void assert_hit(struct rt_cached hit, rt_worker_ref worker, uint32_t blocks)
{
    assert_int_equal(hit.worker, worker);
    assert_int_equal(hit.tokens, blocks * 64);
}

static struct rt_prefix_map_view view(void)
{
    struct rt_prefix_map_view view;
    rt_prefix_map_look(map, &view);
    return view;
}

/* ------------------------------------------------------------------ rules */

static void test_longest_first(void **state)
{
    struct rt_cached hits[8];
    (void)state;
    map_make(100, 1000, 1000);
    assert_int_equal(look("abc", 8, hits), 0);
    tell_text(700, 0, "abcde");
    tell_text(3, 5, "abx");
    tell_text(99, 0, "abcdef");
    tell_text(12, 0, "xbc");
    tell_text(50, 40, "abx");
    assert_int_equal(look("abcdefgh", 8, hits), 4);
    assert_hit(hits[0], 99, 6);
    assert_hit(hits[1], 700, 5);
    assert_int_equal(hits[2].worker + hits[3].worker, 3 + 50);
    assert_true(hits[2].tokens == 128 && hits[3].tokens == 128);
    assert_int_equal(look("abcdefgh", 2, hits), 2);
    assert_hit(hits[1], 700, 5);
    assert_int_equal(rt_prefix_map_tokens(map, 50), 128); /* also of those that did not fit */
    assert_int_equal(rt_prefix_map_tokens(map, 12), 0);
    assert_int_equal(rt_prefix_map_tokens(map, 1), 0);
    assert_int_equal(look("abcd", 1, hits), 1);
    assert_hit(hits[0], 99, 4); /* the prompt's own length is the most */
    assert_int_equal(look("b", 8, hits), 0);
    assert_int_equal(look("", 8, hits), 0);
    assert_int_equal(rt_prefix_map_tokens(map, 99), 0);
    map_finish();
}

/* More holders than stand in a block itself, and fewer again. */
static void test_many_workers_share_blocks(void **state)
{
    struct rt_cached hits[200];
    (void)state;
    map_make(200, 10000, 1000);
    for (uint32_t i = 0; i < 200; i++) {
        tell_text(i, i, i % 2 ? "abcd" : "abce");
        assert_int_equal(look("abcd", 200, hits), i + 1);
    }
    for (uint32_t i = 0, sum = 0; i < 200; i++) {
        assert_int_equal(hits[i].worker % 2, i < 100);
        assert_int_equal(hits[i].tokens, i < 100 ? 256 : 192);
        sum += hits[i].worker;
        assert_true(i < 199 || sum == 199 * 100);
    }
    assert_int_equal(view().blocks, 800);
    assert_int_equal(view().distinct, 5);
    for (uint32_t i = 0; i < 197; i++) {
        rt_prefix_map_forget(map, i);
        assert_null(rt_prefix_map_check(map));
        assert_int_equal(look("abcd", 200, hits), 199 - i);
    }
    assert_int_equal(hits[0].worker + hits[1].worker, 197 + 199);
    assert_hit(hits[2], 198, 3);
    map_finish();
}

/* Of equals each comes first as often as any other, as `spread` says. */
static void test_equals_take_turns(void **state)
{
    enum { EQUALS = 100, ROUNDS = 2500, SHOWN = 8 };
    const uint64_t ids[] = {id_of("a", 1)};
    struct rt_cached hits[SHOWN], again[SHOWN];
    uint32_t shown[EQUALS] = {0}, before = 0, companions = 0;
    bool with_first[EQUALS] = {false};
    (void)state;
    map_make(200, 1000, 1000);
    for (uint32_t i = 0; i < EQUALS; i++) {
        tell_text(5000 + i, 0, "a");
    }
    for (uint64_t round = 0; round < ROUNDS; round++) {
        uint32_t spread = (uint32_t)bt_random_u64(4, round, 0);
        assert_int_equal(rt_prefix_map_lookup(map, ids, 1, spread, SHOWN, hits), SHOWN);
        assert_int_equal(rt_prefix_map_lookup(map, ids, 1, spread, SHOWN, again), SHOWN);
        assert_memory_equal(hits, again, sizeof(hits));
        for (uint32_t i = 0; i < SHOWN; i++) {
            shown[hits[i].worker - 5000]++;
        }
        for (uint32_t i = 0; i < SHOWN; i++) {
            with_first[hits[i].worker - 5000] |= shown[0] > before;
        }
        before = shown[0];
    }
    for (uint32_t i = 0; i < EQUALS; i++) {
        /* 200 on average */
        assert_in_range(shown[i], 120, 300);
        companions += with_first[i];
    }
    assert_true(companions > EQUALS / 2);
    map_finish();
}

static void test_forget(void **state)
{
    (void)state;
    map_make(2, 1000, 1000);
    tell_text(1, 0, "abc");
    tell_text(2, 0, "abd");
    assert_int_equal(tell(3, 0, NULL), BT_ERR_EXHAUSTED);
    rt_prefix_map_forget(map, 1);
    rt_prefix_map_forget(map, 1);
    assert_int_equal(rt_prefix_map_version(map, 1), 0);
    assert_int_equal(depth(1, "abc"), 0);
    assert_int_equal(depth(2, "abc"), 2);
    tell_text(3, 0, "abc");
    assert_int_equal(depth(3, "abc"), 3);
    assert_int_equal(view().workers, 2);
    assert_int_equal(view().blocks, 6);
    assert_int_equal(view().distinct, 4);
    rt_prefix_map_forget(map, 2);
    rt_prefix_map_forget(map, 3);
    assert_int_equal(view().blocks, 0);
    assert_int_equal(view().distinct, 0);
    map_finish();
}

/* Workers that come and go leave nothing, neither memory nor what the last lookup said of them. */
static void test_workers_come_and_go(void **state)
{
    (void)state;
    map_make(2, 10, 10);
    uint64_t bytes = 0;
    for (rt_worker_ref worker = 1; worker < 100; worker++) {
        tell_text(worker, 0, "ab");
        assert_int_equal(depth(worker, "ab"), 2);
        rt_prefix_map_forget(map, worker);
        assert_int_equal(view().blocks, 0);
        assert_true(bytes == 0 || view().bytes == bytes);
        bytes = view().bytes;
        tell_text(worker + 1, 0, "ab");
        assert_int_equal(rt_prefix_map_tokens(map, worker + 1), 0); /* until the next lookup */
        rt_prefix_map_forget(map, worker + 1);
    }
    map_finish();
}

static void test_versions(void **state)
{
    struct bt_prefix_change change = holds(0, BT_NO_PAGE, "a");
    struct bt_error error;
    (void)state;
    map_make(2, 1000, 1000);
    tell_text(1, 0, "ab");
    assert_true(rt_prefix_map_version(map, 1) == 2);
    /* what was sent twice, what misses something, what another worker said */
    const uint64_t wrong[] = {1, 3, UINT64_MAX - 1};
    for (int i = 0; i < 3; i++) {
        const struct rt_prefix_summary summary = {wrong[i], wrong[i] + 1, &change, 1};
        assert_int_equal(rt_prefix_map_apply(map, 1, &summary, &error), BT_ERR_STALE);
        assert_int_equal(rt_prefix_map_apply(map, 7, &summary, &error), BT_ERR_STALE);
    }
    assert_int_equal(depth(1, "ab"), 2);
    assert_int_equal(view().workers, 1);
    /* from the start */
    const struct rt_prefix_summary again = {0, 40, &change, 1};
    assert_int_equal(rt_prefix_map_apply(map, 1, &again, &error), BT_OK);
    assert_true(rt_prefix_map_version(map, 1) == 40);
    assert_int_equal(depth(1, "ab"), 1);
    assert_int_equal(view().blocks, 1);
    map_finish();
}

static void test_nonsense_is_refused(void **state)
{
    const struct bt_prefix_change changes[] = {
        {0, BT_NO_PAGE, 1}, {RT_PREFIX_MAX_PAGES, BT_NO_PAGE, 1}, {1, RT_PREFIX_MAX_PAGES, 1},
        {2, 2, 1},          {BT_NO_PAGE, BT_NO_PAGE, 1},
    };
    struct bt_error error;
    (void)state;
    map_make(2, 1000, 1000);
    for (uint32_t i = 1; i < 5; i++) {
        const struct bt_prefix_change pair[] = {changes[0], changes[i]};
        assert_int_equal(tell(1, 2, pair), BT_ERR_INVALID_ARGUMENT);
    }
    const struct rt_prefix_summary backwards = {0, 0, changes, 1};
    assert_int_equal(rt_prefix_map_apply(map, 1, &backwards, &error), BT_ERR_INVALID_ARGUMENT);
    const struct rt_prefix_summary further_back = {9, 8, changes, 0};
    assert_int_equal(rt_prefix_map_apply(map, 1, &further_back, &error), BT_ERR_INVALID_ARGUMENT);
    assert_int_equal(view().workers, 0);
    map_finish();
}

/* A page deep in the pool must not cost memory for all before it, beyond what the map may take. */
static void test_large_page_numbers(void **state)
{
    const struct bt_prefix_change far = {RT_PREFIX_MAX_PAGES - 1, BT_NO_PAGE, 5};
    (void)state;
    map_make(2, 1000, 1000);
    assert_int_equal(tell(1, 1, &far), BT_OK);
    assert_int_equal(view().ignored, 1);
    assert_int_equal(view().blocks, 0);
    assert_true(view().bytes < 200000);
    const struct bt_prefix_change near = holds(2000, BT_NO_PAGE, "a");
    assert_int_equal(tell(1, 1, &near), BT_OK);
    assert_int_equal(depth(1, "a"), 1);
    map_finish();
}

static void test_pages_change(void **state)
{
    (void)state;
    map_make(2, 1000, 1000);
    tell_text(1, 0, "abcd");
    const struct bt_prefix_change changes[] = {empty(3), holds(2, 1, "abx")};
    assert_int_equal(tell(1, 2, changes), BT_OK);
    assert_int_equal(depth(1, "abcd"), 2);
    assert_int_equal(depth(1, "abx"), 3);
    assert_int_equal(view().distinct, 3);
    map_finish();
}

/* The parent's end is heard of before its child's. */
static void test_parent_goes_first(void **state)
{
    (void)state;
    map_make(2, 5, 5);
    tell_text(1, 0, "abcd");
    const struct bt_prefix_change parents[] = {empty(0), empty(2), empty(1)};
    assert_int_equal(tell(1, 3, parents), BT_OK);
    assert_int_equal(depth(1, "abcd"), 0);
    assert_int_equal(view().distinct, 1);
    const struct bt_prefix_change child = empty(3);
    assert_int_equal(tell(1, 1, &child), BT_OK);
    assert_int_equal(view().blocks, 0); /* those that stayed for it are gone, too */
    tell_text(1, 0, "efghi");
    assert_int_equal(depth(1, "efghi"), 5);
    map_finish();
}

/* A block goes to another page, and the news of its old one comes later. */
static void test_block_moves(void **state)
{
    (void)state;
    map_make(2, 1000, 1000);
    tell_text(1, 0, "ab");
    struct bt_prefix_change change = holds(5, 0, "ab");
    assert_int_equal(tell(1, 1, &change), BT_OK);
    change = empty(1);
    assert_int_equal(tell(1, 1, &change), BT_OK);
    assert_int_equal(depth(1, "ab"), 2);
    change = holds(6, 0, "ab");
    assert_int_equal(tell(1, 1, &change), BT_OK);
    change = empty(6);
    assert_int_equal(tell(1, 1, &change), BT_OK);
    assert_int_equal(depth(1, "ab"), 2);
    change = empty(5);
    assert_int_equal(tell(1, 1, &change), BT_OK);
    assert_int_equal(depth(1, "ab"), 1);
    /* in one message the old page does not come between */
    const struct bt_prefix_change both[] = {holds(9, BT_NO_PAGE, "a"), empty(0)};
    assert_int_equal(tell(1, 2, both), BT_OK);
    assert_int_equal(depth(1, "ab"), 1);
    assert_int_equal(view().blocks, 1);
    map_finish();
}

/* As many times as it likes: nothing but itself is harmed. */
static void test_one_block_in_all_pages(void **state)
{
    struct bt_prefix_change change;
    (void)state;
    map_make(2, 1000, 1000);
    tell_text(2, 0, "ab");
    for (uint32_t page = 0; page < 500; page++) {
        change = holds(page, BT_NO_PAGE, "a");
        assert_int_equal(tell(1, 1, &change), BT_OK);
    }
    assert_true(view().ignored > 0);
    for (uint32_t page = 0; page < 500; page++) {
        change = empty(page);
        assert_int_equal(tell(1, 1, &change), BT_OK);
    }
    assert_int_equal(depth(1, "ab"), 0);
    assert_int_equal(depth(2, "ab"), 2);
    assert_int_equal(view().blocks, 2);
    map_finish();
}

static void test_unknown_parent(void **state)
{
    const struct bt_prefix_change child = holds(1, 0, "ab");
    (void)state;
    map_make(2, 1000, 1000);
    assert_int_equal(tell(1, 1, &child), BT_OK);
    assert_int_equal(view().blocks, 0);
    assert_int_equal(view().ignored, 1);
    map_finish();
}

/* ------------------------------------------------------------------ limits */

/* The oldest prompt goes block by block from its end; what others stand on stays. */
static void test_limit_of_a_worker(void **state)
{
    (void)state;
    map_make(4, 1000, 8);
    tell_text(1, 0, "abcd");
    const struct bt_prefix_change branch[] = {holds(10, 1, "abx"), holds(11, 10, "abxy")};
    assert_int_equal(tell(1, 2, branch), BT_OK);
    tell_text(1, 20, "fgh"); /* 9 */
    assert_int_equal(view().blocks, 8);
    assert_int_equal(depth(1, "abcd"), 3);
    tell_text(1, 30, "ij");
    assert_int_equal(depth(1, "abcd"), 2);
    assert_int_equal(depth(1, "abxy"), 3);
    tell_text(1, 40, "kl");
    assert_int_equal(depth(1, "ab"), 1);
    assert_int_equal(depth(1, "fgh"), 3);
    assert_int_equal(view().blocks, 8);
    assert_int_equal(view().forgotten, 5);
    tell_text(2, 0, "abcd"); /* others have room of their own */
    assert_int_equal(depth(2, "abcd"), 4);
    assert_int_equal(view().blocks, 12);
    map_finish();
}

/* One prompt longer than the limit: its start is what is known. */
static void test_prompt_over_the_limit(void **state)
{
    (void)state;
    map_make(4, 1000, 5);
    tell_text(1, 0, "abcdefgh");
    assert_int_equal(depth(1, "abcdefgh"), 5);
    assert_int_equal(view().ignored, 3);
    assert_int_equal(view().forgotten, 0);
    map_finish();
}

static void test_limit_of_all(void **state)
{
    (void)state;
    map_make(4, 12, 100);
    tell_text(1, 0, "ab");
    tell_text(2, 0, "cdefghij");
    tell_text(3, 0, "kl");
    tell_text(3, 5, "mn");
    assert_int_equal(view().blocks, 12);
    assert_int_equal(view().forgotten, 2);
    assert_int_equal(depth(1, "ab"), 2);
    assert_int_equal(depth(2, "cdefghij"), 6);
    assert_int_equal(depth(3, "kl"), 2);
    assert_int_equal(depth(3, "mn"), 2);
    map_finish();
}

/* ------------------------------------------------------------------ no memory */

static void test_no_memory_to_create(void **state)
{
    const struct rt_prefix_map_options options = {8, 100, 100, 1};
    (void)state;
    for (fails_from = 0;; fails_from++) {
        allocations = 0;
        map = rt_prefix_map_create(&options);
        if (map) {
            break;
        }
    }
    assert_true(fails_from >= 7);
    fails_from = -1;
    map_finish();
}

/* One allocation of the news fails: whatever is not known for it is not here in part. */
static void test_no_memory_for_news(void **state)
{
    long reached = 0;
    (void)state;
    for (long at = 0; at == reached; at++) {
        map_make(8, 1000, 1000);
        allocations = 0;
        for (uint32_t worker = 0; worker < 7; worker++) {
            struct bt_prefix_change changes[] = {holds(0, BT_NO_PAGE, "a"), holds(100, 0, "ab")};
            const struct rt_prefix_summary summary = {0, 2, changes, 2};
            struct bt_error error;
            fails_from = at;
            enum bt_status status = rt_prefix_map_apply(map, worker, &summary, &error);
            fails_from = -1;
            assert_null(rt_prefix_map_check(map));
            assert_true(status == BT_OK || status == BT_ERR_NO_MEMORY);
            assert_true((allocations > at) >= (status != BT_OK || depth(worker, "ab") < 2));
        }
        reached += allocations > at;
        for (uint32_t worker = 0; worker < 7; worker++) {
            rt_prefix_map_forget(map, worker);
            assert_null(rt_prefix_map_check(map));
        }
        assert_int_equal(view().blocks, 0);
        assert_int_equal(view().distinct, 0);
        map_finish();
    }
    assert_true(reached > 14);
}

/* ------------------------------------------------------------------ whole worlds */

#define WORKERS     9
#define WORLD_PAGES 40
#define WORLD_STEPS 6000

struct world {
    uint64_t seed, step;
    uint32_t draw;
    struct bt_page_pool *pools[WORKERS];
    struct bt_prefix_index *indexes[WORKERS];
    rt_worker_ref refs[WORKERS], next_ref;
    struct rt_prefix_map *maps[3]; /* two that differ in their salts, one too small */
    uint64_t hits, forgotten;
};

static uint32_t any(struct world *world, uint32_t below)
{
    return (uint32_t)(bt_random_u64(world->seed, world->step, world->draw++) % below);
}

struct text {
    uint32_t tokens[BLOCKS_MAX * BT_PAGE_TOKENS + 1];
    struct bt_prefix_hash hashes[BLOCKS_MAX];
    uint64_t ids[BLOCKS_MAX];
    uint32_t blocks;
    struct bt_prefix_prompt prompt; /* one token more than the blocks */
};

static void text_write(struct world *world, struct text *text)
{
    text->blocks = any(world, BLOCKS_MAX / 2) + (any(world, 3) ? 0 : any(world, BLOCKS_MAX / 2));
    uint32_t same = any(world, text->blocks + 1); /* so many blocks all texts share */
    for (uint32_t i = 0; i < text->blocks * BT_PAGE_TOKENS + 1; i++) {
        uint32_t block = i / BT_PAGE_TOKENS;
        text->tokens[i] = block < same ? block : 100 + (uint32_t)(world->step % 7);
    }
    uint32_t count = text->blocks * BT_PAGE_TOKENS + 1;
    bt_prefix_hash_prompt((struct bt_prefix_hash){7, 8}, text->tokens, count, text->hashes);
    for (uint32_t i = 0; i < text->blocks; i++) {
        text->ids[i] = bt_prefix_block_id(text->hashes[i]);
    }
    text->prompt = (struct bt_prefix_prompt){text->tokens, count, text->hashes};
}

static void worker_start(struct world *world, uint32_t i)
{
    world->pools[i] = bt_page_pool_create(WORLD_PAGES);
    world->indexes[i] = bt_prefix_index_create(world->pools[i], world->step);
    world->refs[i] = world->next_ref++;
}

static void worker_stop(struct world *world, uint32_t i)
{
    for (int m = 0; m < 3; m++) {
        rt_prefix_map_forget(world->maps[m], world->refs[i]);
    }
    bt_prefix_index_destroy(world->indexes[i]);
    bt_page_pool_destroy(world->pools[i]);
}

static void worker_run(struct world *world, uint32_t i, const struct text *text)
{
    struct bt_page_owner owner = {world->step + 1, world->step + 1};
    uint32_t pages[BLOCKS_MAX + 1], count = text->blocks + 1;
    uint32_t matched = bt_prefix_index_match(world->indexes[i], &text->prompt, pages);
    assert_true(bt_prefix_index_alloc(world->indexes[i], count - matched, owner, &pages[matched]));
    bt_page_pool_move(world->pools[i], &pages[matched], count - matched, owner, BT_PAGE_RESERVED,
                      BT_PAGE_READY);
    uint32_t pinned =
        bt_prefix_index_insert(world->indexes[i], &text->prompt, matched, owner, pages);
    bt_prefix_index_unpin(world->indexes[i], pages, pinned);
    bt_page_pool_move(world->pools[i], &pages[pinned], count - pinned, owner, BT_PAGE_READY,
                      BT_PAGE_FREE);
}

/* True: there is nothing more to tell. */
static bool worker_tell(struct world *world, uint32_t i, int m, uint32_t max)
{
    struct bt_prefix_change changes[WORLD_PAGES];
    struct rt_prefix_summary summary = {.changes = changes};
    struct bt_error error;
    uint64_t since = rt_prefix_map_version(world->maps[m], world->refs[i]);
    if (any(world, 60) == 0) {
        since = since > 3 ? since - 3 : since + 3; /* of a message that was lost, or came late */
    }
    summary.count = bt_prefix_index_changes(world->indexes[i], since, max, changes, &summary.since,
                                            &summary.version);
    bool stale = summary.since != 0 &&
                 summary.since != rt_prefix_map_version(world->maps[m], world->refs[i]);
    assert_int_equal(rt_prefix_map_apply(world->maps[m], world->refs[i], &summary, &error),
                     stale ? BT_ERR_STALE : BT_OK);
    return !stale && summary.count < max;
}

static void world_settle(struct world *world)
{
    for (uint32_t i = 0; i < WORKERS; i++) {
        for (int m = 0; m < 3; m++) {
            while (!worker_tell(world, i, m, 7)) {
            }
        }
    }
}

/* What the workers themselves say is the truth. */
static void world_compare(struct world *world)
{
    struct rt_cached hits[2][WORKERS], small[WORKERS];
    uint32_t pages[BLOCKS_MAX], depths[WORKERS], holders = 0;
    struct text text;
    text_write(world, &text);
    uint32_t counts[2];
    for (int m = 0; m < 2; m++) {
        counts[m] = rt_prefix_map_lookup(world->maps[m], text.ids, text.blocks,
                                         (uint32_t)world->step, WORKERS, hits[m]);
    }
    rt_prefix_map_lookup(world->maps[2], text.ids, text.blocks, (uint32_t)world->step, WORKERS,
                         small);
    for (uint32_t i = 0; i < WORKERS; i++) {
        depths[i] = bt_prefix_index_match(world->indexes[i], &text.prompt, pages);
        bt_prefix_index_unpin(world->indexes[i], pages, depths[i]);
        holders += depths[i] > 0;
        assert_int_equal(rt_prefix_map_tokens(world->maps[0], world->refs[i]), depths[i] * 64);
        assert_true(rt_prefix_map_tokens(world->maps[2], world->refs[i]) <= depths[i] * 64);
    }
    assert_int_equal(counts[0], holders);
    assert_int_equal(counts[1], holders);
    assert_memory_equal(hits[0], hits[1], holders * sizeof(hits[0][0]));
    for (uint32_t i = 0; i < holders; i++) {
        assert_int_equal(hits[0][i].tokens,
                         rt_prefix_map_tokens(world->maps[0], hits[0][i].worker));
    }
    for (uint32_t i = 1; i < holders; i++) {
        assert_true(hits[0][i - 1].tokens >= hits[0][i].tokens);
    }
    world->hits += holders;
}

static void world_step(struct world *world)
{
    struct text text;
    uint32_t i = any(world, WORKERS);
    text_write(world, &text);
    worker_run(world, i, &text);
    for (int m = 0; m < 3; m++) {
        worker_tell(world, any(world, WORKERS), m, 1 + any(world, 9));
        const char *wrong = rt_prefix_map_check(world->maps[m]);
        if (wrong) {
            fail_msg("step %u, map %d: it does not hold that %s", (uint32_t)world->step, m, wrong);
        }
    }
    if (any(world, 300) == 0) {
        worker_stop(world, i);
        worker_start(world, i);
    }
    if (any(world, 30) == 0) {
        world_settle(world);
        world_compare(world);
        world_compare(world);
    }
}

static void test_random_worlds(void **state)
{
    struct world world = {.seed = 20260311};
    const struct rt_prefix_map_options options[] = {
        {WORKERS, WORKERS * WORLD_PAGES * 2, 2 * WORLD_PAGES, 1},
        {WORKERS + 70, 10000, 10000, 0x123456789abcdef},
        {WORKERS, WORKERS * WORLD_PAGES / 2, WORLD_PAGES - 10, 5},
    };
    (void)state;
    print_message("seed %u\n", (uint32_t)world.seed);
    for (int m = 0; m < 3; m++) {
        world.maps[m] = rt_prefix_map_create(&options[m]);
    }
    for (uint32_t i = 0; i < WORKERS; i++) {
        worker_start(&world, i);
    }
    for (world.step = 0; world.step < WORLD_STEPS; world.step++) {
        world.draw = 0;
        world_step(&world);
    }
    for (uint32_t i = 0; i < WORKERS; i++) {
        worker_stop(&world, i);
    }
    for (int m = 0; m < 3; m++) {
        map = world.maps[m];
        assert_int_equal(view().blocks, 0);
        assert_int_equal(view().distinct, 0);
        assert_true((view().forgotten > 100) == (m == 2));
        map_finish();
    }
    assert_true(world.hits > 500);
}

/* Whatever workers say. */
static void test_random_nonsense(void **state)
{
    struct world world = {.seed = 20260312};
    struct bt_prefix_change changes[16];
    struct rt_cached hits[4];
    (void)state;
    print_message("seed %u\n", (uint32_t)world.seed);
    map_make(4, 40, 25);
    for (world.step = 0; world.step < 20000; world.step++) {
        world.draw = 0;
        uint32_t count = any(&world, 16);
        for (uint32_t i = 0; i < count; i++) {
            uint32_t page = any(&world, 20), parent = any(&world, 22);
            changes[i] = (struct bt_prefix_change){
                page, parent >= 20 || parent == page ? BT_NO_PAGE : parent, any(&world, 12)};
        }
        assert_int_equal(tell(any(&world, 4), count, changes), BT_OK);
        assert_true(view().blocks <= 40);
        uint64_t ids[8];
        for (int i = 0; i < 8; i++) {
            ids[i] = any(&world, 12);
        }
        assert_true(rt_prefix_map_lookup(map, ids, any(&world, 9), 0, 4, hits) <= 4);
        if (any(&world, 50) == 0) {
            rt_prefix_map_forget(map, any(&world, 4));
        }
    }
    for (rt_worker_ref worker = 0; worker < 4; worker++) {
        rt_prefix_map_forget(map, worker);
    }
    assert_int_equal(view().blocks, 0);
    assert_int_equal(view().distinct, 0);
    map_finish();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_longest_first),
        cmocka_unit_test(test_many_workers_share_blocks),
        cmocka_unit_test(test_equals_take_turns),
        cmocka_unit_test(test_forget),
        cmocka_unit_test(test_workers_come_and_go),
        cmocka_unit_test(test_versions),
        cmocka_unit_test(test_nonsense_is_refused),
        cmocka_unit_test(test_large_page_numbers),
        cmocka_unit_test(test_pages_change),
        cmocka_unit_test(test_parent_goes_first),
        cmocka_unit_test(test_block_moves),
        cmocka_unit_test(test_one_block_in_all_pages),
        cmocka_unit_test(test_unknown_parent),
        cmocka_unit_test(test_limit_of_a_worker),
        cmocka_unit_test(test_prompt_over_the_limit),
        cmocka_unit_test(test_limit_of_all),
        cmocka_unit_test(test_no_memory_to_create),
        cmocka_unit_test(test_no_memory_for_news),
        cmocka_unit_test(test_random_worlds),
        cmocka_unit_test(test_random_nonsense),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
