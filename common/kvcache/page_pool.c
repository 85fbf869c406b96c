#include "common/kvcache/page_pool.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/status.h"

struct page {
    struct bt_page_owner owner; /* {0, 0} while FREE or CACHED */
    enum bt_page_state state;
};

struct bt_page_pool {
    uint32_t page_count;
    uint32_t counts[BT_PAGE_STATE_COUNT];
    struct page *pages;  /* [page_count] */
    uint64_t *free_bits; /* [word_count], 1: FREE; bits past page_count are 0 */
    uint32_t word_count;
    struct bt_page_run *runs; /* scratch of alloc, [page_count / 2 + 1] */
};

static const bool allowed[BT_PAGE_STATE_COUNT][BT_PAGE_STATE_COUNT] = {
    [BT_PAGE_RESERVED] = {[BT_PAGE_LANDING] = true, [BT_PAGE_FREE] = true, [BT_PAGE_READY] = true},
    [BT_PAGE_LANDING] =
        {[BT_PAGE_READY] = true, [BT_PAGE_QUARANTINED] = true, [BT_PAGE_FREE] = true},
    [BT_PAGE_READY] = {[BT_PAGE_FREE] = true, [BT_PAGE_CACHED] = true},
    [BT_PAGE_QUARANTINED] = {[BT_PAGE_FREE] = true},
    [BT_PAGE_CACHED] = {[BT_PAGE_FREE] = true},
};

struct bt_page_pool *bt_page_pool_create(uint32_t page_count)
{
    struct bt_page_pool *pool = calloc(1, sizeof(*pool));

    if (pool == NULL)
        return NULL;
    pool->page_count = page_count;
    pool->word_count = page_count / 64 + (page_count % 64 != 0);
    pool->pages = calloc((size_t)page_count + 1, sizeof(*pool->pages));
    pool->free_bits = calloc((size_t)pool->word_count + 1, sizeof(*pool->free_bits));
    pool->runs = calloc((size_t)page_count / 2 + 1, sizeof(*pool->runs));
    if (pool->pages == NULL || pool->free_bits == NULL || pool->runs == NULL) {
        bt_page_pool_destroy(pool);
        return NULL;
    }
    for (uint32_t page = 0; page < page_count; page++)
        pool->free_bits[page / 64] |= UINT64_C(1) << page % 64;
    pool->counts[BT_PAGE_FREE] = page_count;
    return pool;
}

void bt_page_pool_destroy(struct bt_page_pool *pool)
{
    if (pool == NULL)
        return;
    free(pool->pages);
    free(pool->free_bits);
    free(pool->runs);
    free(pool);
}

/* The first page >= `page` whose free bit is `wanted`; page_count when there is none. */
static uint32_t find_bit(const struct bt_page_pool *pool, uint32_t page, bool wanted)
{
    uint32_t word = page / 64;
    uint64_t mask = UINT64_MAX << page % 64;

    for (; word < pool->word_count; word++, mask = UINT64_MAX) {
        uint64_t bits = (wanted ? pool->free_bits[word] : ~pool->free_bits[word]) & mask;
        if (bits != 0) {
            uint32_t found = word * 64 + (uint32_t)__builtin_ctzll(bits);
            return found < pool->page_count ? found : pool->page_count;
        }
    }
    return pool->page_count;
}

static uint32_t find_free_runs(struct bt_page_pool *pool)
{
    uint32_t count = 0;
    uint32_t page = find_bit(pool, 0, true);

    while (page < pool->page_count) {
        uint32_t end = find_bit(pool, page, false);
        pool->runs[count++] = (struct bt_page_run){.first = page, .count = end - page};
        page = end < pool->page_count ? find_bit(pool, end, true) : end;
    }
    return count;
}

static int compare_larger_first(const void *a, const void *b)
{
    const struct bt_page_run *x = a, *y = b;

    if (x->count != y->count)
        return x->count > y->count ? -1 : 1;
    return x->first < y->first ? -1 : x->first > y->first;
}

/* The smallest run that holds `count` comes first, else the runs are sorted, the largest first. */
static void order_runs(struct bt_page_run *runs, uint32_t run_count, uint32_t count)
{
    const struct bt_page_run *best = NULL;

    for (uint32_t i = 0; i < run_count; i++)
        if (runs[i].count >= count && (best == NULL || runs[i].count < best->count))
            best = &runs[i];
    if (best != NULL)
        runs[0] = *best;
    else
        qsort(runs, run_count, sizeof(*runs), compare_larger_first);
}

static void take(struct bt_page_pool *pool, uint32_t page, struct bt_page_owner owner)
{
    BT_ASSERT(pool->pages[page].state == BT_PAGE_FREE);
    pool->pages[page] = (struct page){.owner = owner, .state = BT_PAGE_RESERVED};
    pool->free_bits[page / 64] &= ~(UINT64_C(1) << page % 64);
}

bool bt_page_pool_alloc(struct bt_page_pool *pool, uint32_t count, struct bt_page_owner owner,
                        uint32_t *ret_pages)
{
    uint32_t taken = 0;

    if (count > pool->counts[BT_PAGE_FREE])
        return false;
    if (count == 0)
        return true;
    order_runs(pool->runs, find_free_runs(pool), count);
    for (const struct bt_page_run *run = pool->runs; taken < count; run++) {
        for (uint32_t i = 0; i < run->count && taken < count; i++) {
            take(pool, run->first + i, owner);
            ret_pages[taken++] = run->first + i;
        }
    }
    pool->counts[BT_PAGE_FREE] -= count;
    pool->counts[BT_PAGE_RESERVED] += count;
    return true;
}

void bt_page_pool_move(struct bt_page_pool *pool, const uint32_t *pages, uint32_t count,
                       struct bt_page_owner owner, enum bt_page_state from, enum bt_page_state to)
{
    BT_ASSERT((unsigned)from < BT_PAGE_STATE_COUNT && (unsigned)to < BT_PAGE_STATE_COUNT);
    BT_ASSERT(allowed[from][to]);
    for (uint32_t i = 0; i < count; i++) {
        BT_ASSERT(pages[i] < pool->page_count);
        struct page *page = &pool->pages[pages[i]];
        BT_ASSERT(page->state == from);
        BT_ASSERT(page->owner.request == owner.request && page->owner.epoch == owner.epoch);
        page->state = to;
        if (to == BT_PAGE_FREE || to == BT_PAGE_CACHED)
            page->owner = (struct bt_page_owner){0};
        if (to == BT_PAGE_FREE)
            pool->free_bits[pages[i] / 64] |= UINT64_C(1) << pages[i] % 64;
    }
    pool->counts[from] -= count;
    pool->counts[to] += count;
}

uint32_t bt_page_pool_total(const struct bt_page_pool *pool)
{
    return pool->page_count;
}

uint32_t bt_page_pool_count(const struct bt_page_pool *pool, enum bt_page_state state)
{
    BT_ASSERT((unsigned)state < BT_PAGE_STATE_COUNT);
    return pool->counts[state];
}

enum bt_page_state bt_page_pool_state(const struct bt_page_pool *pool, uint32_t page,
                                      struct bt_page_owner *ret_owner)
{
    BT_ASSERT(page < pool->page_count);
    if (ret_owner != NULL)
        *ret_owner = pool->pages[page].owner;
    return pool->pages[page].state;
}

uint32_t bt_page_runs(const uint32_t *pages, uint32_t count, struct bt_page_run *ret_runs)
{
    uint32_t run_count = 0;

    for (uint32_t i = 0; i < count; i++) {
        struct bt_page_run *last = run_count > 0 ? &ret_runs[run_count - 1] : NULL;
        if (last != NULL && (uint64_t)last->first + last->count == pages[i])
            last->count++;
        else
            ret_runs[run_count++] = (struct bt_page_run){.first = pages[i], .count = 1};
    }
    return run_count;
}
