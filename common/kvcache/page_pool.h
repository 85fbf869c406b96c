/*
 * Accounting of the pages of one pool: who owns each, in which state. No memory of the pool itself
 * is touched. One thread (the control thread of a worker). All transitions go through here and are
 * asserted, so a page can't be in two hands:
 *
 *     FREE -> RESERVED -> LANDING -> READY -> FREE
 *             RESERVED -> FREE       LANDING -> QUARANTINED -> FREE
 *             RESERVED -> READY      (pages that nobody writes remotely: growth, local prefill)
 *             LANDING -> FREE        (only after Quiesced)
 *             READY -> CACHED -> FREE (the prefix index's: then the page has no owner)
 */
#ifndef BATON_COMMON_KVCACHE_PAGE_POOL_H
#define BATON_COMMON_KVCACHE_PAGE_POOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum bt_page_state {
    BT_PAGE_FREE,
    BT_PAGE_RESERVED,
    BT_PAGE_LANDING,
    BT_PAGE_READY,
    BT_PAGE_QUARANTINED,
    BT_PAGE_CACHED, /* read-only: the KV of a block of some prompts, see prefix_index.h */
    BT_PAGE_STATE_COUNT,
};

/* {0, 0} of FREE and CACHED pages. */
struct bt_page_owner {
    uint64_t request;
    uint64_t epoch;
};

struct bt_page_run {
    uint32_t first;
    uint32_t count;
};

struct bt_page_pool;

struct bt_page_pool *bt_page_pool_create(uint32_t page_count); /* NULL: no memory */
void bt_page_pool_destroy(struct bt_page_pool *pool);

/*
 * `count` pages to RESERVED, written to ret_pages in token order; neighbours where the pool can
 * (the smallest free run that holds all; else the largest runs first). False when fewer than
 * `count` are free: nothing changed.
 */
bool bt_page_pool_alloc(struct bt_page_pool *pool, uint32_t count, struct bt_page_owner owner,
                        uint32_t *ret_pages);

/* All of them from one state to another. Asserts owner, old state and that the step is allowed. */
void bt_page_pool_move(struct bt_page_pool *pool, const uint32_t *pages, uint32_t count,
                       struct bt_page_owner owner, enum bt_page_state from, enum bt_page_state to);

uint32_t bt_page_pool_total(const struct bt_page_pool *pool);
uint32_t bt_page_pool_count(const struct bt_page_pool *pool, enum bt_page_state state);
enum bt_page_state bt_page_pool_state(const struct bt_page_pool *pool, uint32_t page,
                                      struct bt_page_owner *ret_owner);

/* Page numbers to runs of neighbours; ret_runs holds `count`. Returns how many. */
uint32_t bt_page_runs(const uint32_t *pages, uint32_t count, struct bt_page_run *ret_runs);

#endif
