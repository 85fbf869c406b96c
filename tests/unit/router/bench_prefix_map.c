/*
 * What the prefix map and index cost: 1,000 workers, prompts of 100,000 tokens (1,562 blocks).
 * Prints `figure NAME VALUE UNIT LIMIT RATIO`; where there is no limit, LIMIT is 0 and RATIO
 * repeats the value.
 *
 *     shared    all workers hold one prompt
 *     own       each holds a prompt of its own behind 32 blocks that all share
 *     dialogue  turns of 16 blocks: each of 1,000 dialogues is held by 6 workers as far as it was
 *               when they had a turn of it
 *
 * LIMIT of a lookup is the time of one read from memory that is in no cache: less than one a prompt
 * can't be.
 */
#include <stdio.h>
#include <stdlib.h>

#include "common/base/clock.h"
#include "common/base/random.h"
#include "common/kvcache/prefix_index.h"
#include "router/prefix_map.h"

#define WORKERS     1000
#define TOKENS      100000
#define BLOCKS      ((TOKENS - 1) / BT_PAGE_TOKENS)
#define SYSTEM      32
#define TURN        16
#define DIALOGUES   1000
#define HOLDERS     6
#define MESSAGE     2048
#define LOOKUPS     20000
#define POOL_PAGES  8192
#define READS       (1 << 20)
#define HITS        8
#define MAX_BLOCKS  (8u << 20)
#define MEMORY_BITS 25

static struct rt_prefix_map *map;
static uint32_t next_page[WORKERS];

static void figure(const char *name, double value, const char *unit, double limit)
{
    printf("figure %-28s %12.3f %-14s %10.3f %.3f\n", name, value, unit, limit,
           limit > 0 ? limit / value : value);
}

/* ns of a read that depends on the one before it, over 256 MiB */
static double measure_read(void)
{
    size_t count = (size_t)1 << MEMORY_BITS;
    uint64_t *memory = malloc(count * sizeof(*memory));
    for (size_t i = 0; i < count; i++) {
        memory[i] = (i * 0x9e3779b1u + 12345) & (count - 1);
    }
    int64_t begin_ns = bt_clock_now_ns();
    uint64_t at = 0;
    for (uint32_t i = 0; i < READS; i++) {
        at = memory[(at * 2654435761u + i) & (count - 1)];
    }
    volatile uint64_t sink = at;
    (void)sink;
    int64_t taken_ns = bt_clock_now_ns() - begin_ns;
    free(memory);
    return (double)taken_ns / READS;
}

/* Block `i` of prompt `prompt`; the first ones are the same in all. */
static uint64_t id_of(uint64_t prompt, uint32_t i)
{
    return bt_random_u64(i < SYSTEM ? 0 : prompt, i, 1) | 1;
}

static void prompt_ids(uint64_t prompt, uint64_t *ret_ids)
{
    for (uint32_t i = 0; i < BLOCKS; i++) {
        ret_ids[i] = id_of(prompt, i);
    }
}

/* The worker holds the first `count` blocks; returns the ns that the map took. */
static int64_t tell(uint32_t worker, const uint64_t *ids, uint32_t count)
{
    struct bt_prefix_change changes[BLOCKS];
    int64_t taken_ns = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t page = next_page[worker] + i;
        changes[i] = (struct bt_prefix_change){page, i > 0 ? page - 1 : BT_NO_PAGE, ids[i]};
    }
    next_page[worker] += count;
    for (uint32_t sent = 0; sent < count; sent += MESSAGE) {
        uint32_t piece = count - sent < MESSAGE ? count - sent : MESSAGE;
        uint64_t version = rt_prefix_map_version(map, worker);
        const struct rt_prefix_summary summary = {version, version + piece, &changes[sent], piece};
        struct bt_error error;
        int64_t begin_ns = bt_clock_now_ns();
        if (rt_prefix_map_apply(map, worker, &summary, &error) != BT_OK) {
            printf("apply: %s\n", error.text);
            exit(1);
        }
        taken_ns += bt_clock_now_ns() - begin_ns;
    }
    return taken_ns;
}

static int compare_ns(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static void measure_lookups(const char *world, uint32_t prompts, double read_ns)
{
    static int64_t taken_ns[LOOKUPS];
    uint64_t *ids = malloc((size_t)prompts * BLOCKS * sizeof(*ids));
    struct rt_cached hits[HITS];
    char name[64];
    uint64_t total_ns = 0, found = 0;
    for (uint32_t i = 0; i < prompts; i++) {
        prompt_ids(i + 1, &ids[(size_t)i * BLOCKS]);
    }
    for (uint32_t i = 0; i < LOOKUPS; i++) {
        uint32_t prompt = (uint32_t)(bt_random_u64(9, i, 0) % prompts);
        int64_t begin_ns = bt_clock_now_ns();
        found += rt_prefix_map_lookup(map, &ids[(size_t)prompt * BLOCKS], BLOCKS, i, HITS, hits);
        taken_ns[i] = bt_clock_now_ns() - begin_ns;
        total_ns += (uint64_t)taken_ns[i];
    }
    qsort(taken_ns, LOOKUPS, sizeof(taken_ns[0]), compare_ns);
    snprintf(name, sizeof(name), "%s_lookups_per_s", world);
    figure(name, LOOKUPS / ((double)total_ns * 1e-9), "1/s", 0);
    snprintf(name, sizeof(name), "%s_lookup_p50", world);
    figure(name, (double)taken_ns[LOOKUPS / 2] * 1e-3, "us", read_ns * 1e-3);
    snprintf(name, sizeof(name), "%s_lookup_p99", world);
    figure(name, (double)taken_ns[LOOKUPS * 99 / 100] * 1e-3, "us", read_ns * 1e-3);
    if (found == 0) {
        printf("nothing was found\n");
        exit(1);
    }
    free(ids);
}

static void world_begin(void)
{
    const struct rt_prefix_map_options options = {RT_PREFIX_MAX_WORKERS, MAX_BLOCKS, MAX_BLOCKS,
                                                  0x9e3779b97f4a7c15};
    map = rt_prefix_map_create(&options);
    for (uint32_t i = 0; i < WORKERS; i++) {
        next_page[i] = 0;
    }
}

static void world_end(const char *world, int64_t apply_ns)
{
    struct rt_prefix_map_view view;
    char name[64];
    rt_prefix_map_look(map, &view);
    snprintf(name, sizeof(name), "%s_changes_per_s", world);
    figure(name, view.blocks / ((double)apply_ns * 1e-9), "1/s", 0);
    /* the table of a map of this size is there in any case */
    uint64_t fixed = (uint64_t)MAX_BLOCKS * sizeof(uint32_t);
    snprintf(name, sizeof(name), "%s_bytes_per_block", world);
    figure(name, (double)(view.bytes - fixed) / view.blocks, "bytes", 0);
    printf("# %s: %u blocks of workers, %u differ, %.1f MiB\n", world, view.blocks, view.distinct,
           (double)view.bytes / (1 << 20));
    int64_t begin_ns = bt_clock_now_ns();
    for (uint32_t i = 0; i < WORKERS; i++) {
        rt_prefix_map_forget(map, i);
    }
    snprintf(name, sizeof(name), "%s_forget", world);
    figure(name, (double)(bt_clock_now_ns() - begin_ns) / view.blocks, "ns/block", 0);
    rt_prefix_map_destroy(map);
}

static void measure_map(double read_ns)
{
    static uint64_t ids[BLOCKS];
    int64_t apply_ns = 0;
    world_begin();
    prompt_ids(1, ids);
    for (uint32_t i = 0; i < WORKERS; i++) {
        apply_ns += tell(i, ids, BLOCKS);
    }
    measure_lookups("shared", 1, read_ns);
    world_end("shared", apply_ns);

    world_begin();
    apply_ns = 0;
    for (uint32_t i = 0; i < WORKERS; i++) {
        prompt_ids(i + 1, ids);
        apply_ns += tell(i, ids, BLOCKS);
    }
    measure_lookups("own", WORKERS, read_ns);
    world_end("own", apply_ns);

    world_begin();
    apply_ns = 0;
    for (uint32_t i = 0; i < DIALOGUES * HOLDERS; i++) {
        uint32_t turns = (uint32_t)(bt_random_u64(5, i, 0) % (BLOCKS / TURN)) + 1;
        uint32_t worker = (uint32_t)(bt_random_u64(5, i, 1) % WORKERS);
        prompt_ids(i / HOLDERS + 1, ids);
        apply_ns += tell(worker, ids, turns * TURN);
    }
    measure_lookups("dialogue", DIALOGUES, read_ns);
    world_end("dialogue", apply_ns);
}

/* A worker's side: hashing, and a prompt through the index, all new and all here. */
static void measure_index(void)
{
    static uint32_t tokens[TOKENS], pages[TOKENS / BT_PAGE_TOKENS + 1];
    static struct bt_prefix_hash hashes[TOKENS / BT_PAGE_TOKENS];
    enum { ROUNDS = 200, PAGES = TOKENS / BT_PAGE_TOKENS + 1 };
    int64_t hash_ns = 0, new_ns = 0, here_ns = 0;
    struct bt_page_pool *pool = bt_page_pool_create(POOL_PAGES);
    struct bt_prefix_index *index = bt_prefix_index_create(pool, 77);
    for (uint32_t round = 0; round < ROUNDS; round++) {
        for (uint32_t i = 0; i < TOKENS; i++) {
            tokens[i] = round * 31 + i;
        }
        int64_t at_ns = bt_clock_now_ns();
        bt_prefix_hash_prompt((struct bt_prefix_hash){1, 2}, tokens, TOKENS, hashes);
        int64_t now_ns = bt_clock_now_ns();
        hash_ns += now_ns - at_ns;
        const struct bt_prefix_prompt prompt = {tokens, TOKENS, hashes};
        const struct bt_page_owner owner = {round + 1, round + 1};
        for (int again = 0; again < 2; again++) {
            at_ns = bt_clock_now_ns();
            uint32_t matched = bt_prefix_index_match(index, &prompt, pages);
            if (!bt_prefix_index_alloc(index, PAGES - matched, owner, &pages[matched])) {
                exit(1);
            }
            bt_page_pool_move(pool, &pages[matched], PAGES - matched, owner, BT_PAGE_RESERVED,
                              BT_PAGE_READY);
            uint32_t pinned = bt_prefix_index_insert(index, &prompt, matched, owner, pages);
            bt_prefix_index_unpin(index, pages, pinned);
            bt_page_pool_move(pool, &pages[pinned], PAGES - pinned, owner, BT_PAGE_READY,
                              BT_PAGE_FREE);
            *(again ? &here_ns : &new_ns) += bt_clock_now_ns() - at_ns;
        }
    }
    figure("hash_100k_tokens", (double)hash_ns / ROUNDS * 1e-3, "us", 0);
    figure("index_100k_tokens_new", (double)new_ns / ROUNDS * 1e-3, "us", 0);
    figure("index_100k_tokens_here", (double)here_ns / ROUNDS * 1e-3, "us", 0);
    bt_prefix_index_destroy(index);
    bt_page_pool_destroy(pool);
}

int main(void)
{
    double read_ns = measure_read();
    figure("memory_read", read_ns, "ns", 0);
    measure_index();
    measure_map(read_ns);
    return 0;
}
