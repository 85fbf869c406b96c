#include "common/kvcache/prefix_index.h"

#include <stdlib.h>
#include <string.h>

#include "common/kvcache/age_list.h"

/* What a page holds. */
struct block {
    struct bt_prefix_hash hash;
    uint64_t version; /* of the page's last change; 0: never */
    uint32_t parent;  /* page; BT_NO_PAGE: none */
    uint32_t children;
    uint32_t pins;
    uint32_t next; /* page in the same bucket */
    bool here;
};

struct bt_prefix_index {
    struct bt_page_pool *pool;
    uint32_t page_count;
    struct block *blocks; /* [page_count] */
    uint32_t *tokens;     /* [page_count][BT_PAGE_TOKENS] */
    uint32_t *buckets;    /* [1 << bucket_bits] pages */
    uint32_t bucket_bits;
    uint64_t multiplier; /* odd */

    /* Not pinned, by the time they were let go of; of one prompt children before parents. A parent
     * is let go of with its children or later, so the oldest of all has no child here. */
    struct bt_age_list idle;
    struct bt_age_link *idle_links; /* [page_count] */
    uint32_t idle_count;
    uint64_t evictions;

    /* By version. */
    struct bt_age_list changed;
    struct bt_age_link *changed_links; /* [page_count] */
    uint64_t version;
};

static bool index_alloc(struct bt_prefix_index *index)
{
    size_t count = (size_t)index->page_count + 1;
    size_t bucket_count = (size_t)1 << index->bucket_bits;
    index->blocks = calloc(count, sizeof(*index->blocks));
    index->tokens = calloc(count, BT_PAGE_TOKENS * sizeof(*index->tokens));
    index->buckets = malloc(bucket_count * sizeof(*index->buckets));
    index->idle_links = calloc(count, sizeof(*index->idle_links));
    index->changed_links = calloc(count, sizeof(*index->changed_links));
    if (!index->blocks || !index->tokens || !index->buckets || !index->idle_links ||
        !index->changed_links) {
        return false;
    }
    memset(index->buckets, 0xff, bucket_count * sizeof(*index->buckets));
    return true;
}

struct bt_prefix_index *bt_prefix_index_create(struct bt_page_pool *pool, uint64_t salt)
{
    struct bt_prefix_index *index = calloc(1, sizeof(*index));
    if (!index) {
        return NULL;
    }
    index->pool = pool;
    index->page_count = bt_page_pool_total(pool);
    index->multiplier = salt | 1;
    index->bucket_bits = 1;
    while (index->bucket_bits < 31 && UINT32_C(1) << index->bucket_bits < index->page_count) {
        index->bucket_bits++;
    }
    index->idle = index->changed = BT_AGE_LIST_EMPTY;
    if (!index_alloc(index)) {
        bt_prefix_index_destroy(index);
        return NULL;
    }
    return index;
}

void bt_prefix_index_destroy(struct bt_prefix_index *index)
{
    if (!index) {
        return;
    }
    free(index->blocks);
    free(index->tokens);
    free(index->buckets);
    free(index->idle_links);
    free(index->changed_links);
    free(index);
}

/* ------------------------------------------------------------------ blocks */

/* With a multiplier that nobody knows two hashes meet with a chance of 2 / buckets, whoever chose
 * them (Dietzfelbinger et al., 1997). */
static uint32_t *bucket_of(const struct bt_prefix_index *index, struct bt_prefix_hash hash)
{
    return &index->buckets[hash.low * index->multiplier >> (64 - index->bucket_bits)];
}

static uint32_t *tokens_of(const struct bt_prefix_index *index, uint32_t page)
{
    return &index->tokens[(size_t)page * BT_PAGE_TOKENS];
}

/* Block `i` of the prompt behind `parent`; BT_NO_PAGE: it is not here. */
static uint32_t find(const struct bt_prefix_index *index, uint32_t parent,
                     const struct bt_prefix_prompt *prompt, uint32_t i)
{
    struct bt_prefix_hash hash = prompt->hashes[i];
    const uint32_t *tokens = &prompt->tokens[(size_t)i * BT_PAGE_TOKENS];
    uint32_t page = *bucket_of(index, hash);
    for (; page != BT_NO_PAGE; page = index->blocks[page].next) {
        const struct block *block = &index->blocks[page];
        if (block->hash.low == hash.low && block->hash.high == hash.high &&
            block->parent == parent &&
            memcmp(tokens_of(index, page), tokens, BT_PAGE_TOKENS * sizeof(*tokens)) == 0) {
            return page;
        }
    }
    return BT_NO_PAGE;
}

static void note_change(struct bt_prefix_index *index, uint32_t page)
{
    struct block *block = &index->blocks[page];
    if (block->version != 0) {
        bt_age_list_remove(&index->changed, index->changed_links, page);
    }
    bt_age_list_append(&index->changed, index->changed_links, page);
    block->version = ++index->version;
}

static void pin(struct bt_prefix_index *index, uint32_t page)
{
    if (index->blocks[page].pins++ == 0) {
        bt_age_list_remove(&index->idle, index->idle_links, page);
        index->idle_count--;
    }
}

/* The page's owner gave it away. It is pinned once. */
static void add(struct bt_prefix_index *index, uint32_t page, uint32_t parent,
                const struct bt_prefix_prompt *prompt, uint32_t i)
{
    struct block *block = &index->blocks[page];
    uint32_t *bucket = bucket_of(index, prompt->hashes[i]);
    block->hash = prompt->hashes[i];
    block->parent = parent;
    block->children = 0;
    block->pins = 1;
    block->here = true;
    block->next = *bucket;
    *bucket = page;
    memcpy(tokens_of(index, page), &prompt->tokens[(size_t)i * BT_PAGE_TOKENS],
           BT_PAGE_TOKENS * sizeof(uint32_t));
    if (parent != BT_NO_PAGE) {
        index->blocks[parent].children++;
    }
    note_change(index, page);
}

static void evict(struct bt_prefix_index *index, uint32_t page)
{
    struct block *block = &index->blocks[page];
    BT_ASSERT(block->here && block->children == 0 && block->pins == 0);
    uint32_t *link = bucket_of(index, block->hash);
    while (*link != page) {
        link = &index->blocks[*link].next;
    }
    *link = block->next;
    if (block->parent != BT_NO_PAGE) {
        index->blocks[block->parent].children--;
    }
    bt_age_list_remove(&index->idle, index->idle_links, page);
    index->idle_count--;
    index->evictions++;
    block->here = false;
    bt_page_pool_move(index->pool, &page, 1, (struct bt_page_owner){0}, BT_PAGE_CACHED,
                      BT_PAGE_FREE);
    note_change(index, page);
}

/* ------------------------------------------------------------------ prompts */

uint32_t bt_prefix_index_match(struct bt_prefix_index *index, const struct bt_prefix_prompt *prompt,
                               uint32_t *ret_pages)
{
    BT_ASSERT(prompt->token_count > 0);
    uint32_t limit = (prompt->token_count - 1) / BT_PAGE_TOKENS;
    uint32_t parent = BT_NO_PAGE, count = 0;
    while (count < limit) {
        uint32_t page = find(index, parent, prompt, count);
        if (page == BT_NO_PAGE) {
            break;
        }
        pin(index, page);
        ret_pages[count++] = parent = page;
    }
    return count;
}

bool bt_prefix_index_alloc(struct bt_prefix_index *index, uint32_t count,
                           struct bt_page_owner owner, uint32_t *ret_pages)
{
    uint32_t free_count = bt_page_pool_count(index->pool, BT_PAGE_FREE);
    if (count > free_count && count - free_count > index->idle_count) {
        return false;
    }
    for (; free_count < count; free_count++) {
        evict(index, index->idle.oldest);
    }
    return bt_page_pool_alloc(index->pool, count, owner, ret_pages);
}

uint32_t bt_prefix_index_insert(struct bt_prefix_index *index,
                                const struct bt_prefix_prompt *prompt, uint32_t pinned,
                                struct bt_page_owner owner, uint32_t *pages)
{
    uint32_t count = prompt->token_count / BT_PAGE_TOKENS;
    BT_ASSERT(pinned <= count);
    BT_ASSERT(pinned == 0 || index->blocks[pages[pinned - 1]].pins > 0);
    uint32_t parent = pinned > 0 ? pages[pinned - 1] : BT_NO_PAGE;
    for (uint32_t i = pinned; i < count; i++) {
        uint32_t page = find(index, parent, prompt, i);
        bool is_new = page == BT_NO_PAGE;
        bt_page_pool_move(index->pool, &pages[i], 1, owner, BT_PAGE_READY,
                          is_new ? BT_PAGE_CACHED : BT_PAGE_FREE);
        if (is_new) {
            add(index, pages[i], parent, prompt, i);
        } else {
            pin(index, page);
            pages[i] = page;
        }
        parent = pages[i];
    }
    return count;
}

void bt_prefix_index_unpin(struct bt_prefix_index *index, const uint32_t *pages, uint32_t count)
{
    for (uint32_t i = count; i-- > 0;) {
        BT_ASSERT(pages[i] < index->page_count);
        struct block *block = &index->blocks[pages[i]];
        BT_ASSERT(block->here && block->pins > 0);
        BT_ASSERT(block->parent == (i > 0 ? pages[i - 1] : BT_NO_PAGE));
        if (--block->pins == 0) {
            bt_age_list_append(&index->idle, index->idle_links, pages[i]);
            index->idle_count++;
        }
    }
}

uint32_t bt_prefix_index_evictable(const struct bt_prefix_index *index)
{
    return index->idle_count;
}

uint64_t bt_prefix_index_evictions(const struct bt_prefix_index *index)
{
    return index->evictions;
}

/* ------------------------------------------------------------------ changes */

/* The oldest page that changed since. */
static uint32_t first_since(const struct bt_prefix_index *index, uint64_t since)
{
    if (since == 0) {
        return index->changed.oldest;
    }
    uint32_t first = BT_AGE_NONE;
    for (uint32_t page = index->changed.newest;
         page != BT_AGE_NONE && index->blocks[page].version > since;
         page = index->changed_links[page].older) {
        first = page;
    }
    return first;
}

uint32_t bt_prefix_index_changes(const struct bt_prefix_index *index, uint64_t since, uint32_t max,
                                 struct bt_prefix_change *ret_changes, uint64_t *ret_since,
                                 uint64_t *ret_version)
{
    uint32_t count = 0;
    since = since > index->version ? 0 : since;
    *ret_since = *ret_version = since;
    uint32_t page = first_since(index, since);
    for (; page != BT_AGE_NONE && count < max; page = index->changed_links[page].newer) {
        const struct block *block = &index->blocks[page];
        *ret_version = block->version;
        if (block->here) {
            ret_changes[count++] = (struct bt_prefix_change){
                .page = page, .parent = block->parent, .block = bt_prefix_block_id(block->hash)};
        } else if (since != 0) {
            ret_changes[count++] = (struct bt_prefix_change){.page = page, .parent = BT_NO_PAGE};
        }
    }
    return count;
}

/* ------------------------------------------------------------------ rules */

static const char *check_blocks(const struct bt_prefix_index *index)
{
    uint32_t here = 0, idle = 0;
    for (uint32_t page = 0; page < index->page_count; page++) {
        const struct block *block = &index->blocks[page];
        bool cached = bt_page_pool_state(index->pool, page, NULL) == BT_PAGE_CACHED;
        if (block->here != cached) {
            return "a block is here where its page is CACHED";
        }
        if (!block->here) {
            continue;
        }
        here++;
        idle += block->pins == 0;
        const struct bt_prefix_prompt prompt = {tokens_of(index, page), BT_PAGE_TOKENS,
                                                &block->hash};
        if (find(index, block->parent, &prompt, 0) != page) {
            return "a block is found by its parent and tokens, and is the only such";
        }
        if (block->parent != BT_NO_PAGE && !index->blocks[block->parent].here) {
            return "a block's parent is here";
        }
    }
    if (here != bt_page_pool_count(index->pool, BT_PAGE_CACHED) || idle != index->idle_count) {
        return "counts are right";
    }
    return NULL;
}

/* sums: [page_count][2], zeroed */
static const char *check_children(const struct bt_prefix_index *index, uint32_t (*sums)[2])
{
    for (uint32_t page = 0; page < index->page_count; page++) {
        const struct block *block = &index->blocks[page];
        if (block->here && block->parent != BT_NO_PAGE) {
            sums[block->parent][0]++;
            sums[block->parent][1] += block->pins;
        }
    }
    for (uint32_t page = 0; page < index->page_count; page++) {
        const struct block *block = &index->blocks[page];
        if (block->here && block->children != sums[page][0]) {
            return "children are counted";
        }
        if (block->here && block->pins < sums[page][1]) {
            return "who pins a block pins its parent";
        }
    }
    return NULL;
}

/* seen: [page_count], zeroed */
static const char *check_idle(const struct bt_prefix_index *index, bool *seen)
{
    uint32_t count = 0;
    for (uint32_t page = index->idle.oldest; page != BT_AGE_NONE;
         page = index->idle_links[page].newer) {
        const struct block *block = &index->blocks[page];
        if (seen[page] || !block->here || block->pins != 0) {
            return "a block that nobody pins is idle, once";
        }
        if (block->parent != BT_NO_PAGE && seen[block->parent]) {
            return "children are idle longer than their parents";
        }
        seen[page] = true;
        count++;
    }
    return count == index->idle_count ? NULL : "all blocks that nobody pins are idle";
}

static const char *check_changed(const struct bt_prefix_index *index)
{
    uint64_t version = 0;
    uint32_t count = 0, changed = 0;
    for (uint32_t page = index->changed.oldest; page != BT_AGE_NONE;
         page = index->changed_links[page].newer) {
        if (index->blocks[page].version <= version) {
            return "pages are listed by version";
        }
        version = index->blocks[page].version;
        count++;
    }
    for (uint32_t page = 0; page < index->page_count; page++) {
        changed += index->blocks[page].version != 0;
        const struct block *block = &index->blocks[page];
        if (block->here && block->parent != BT_NO_PAGE &&
            index->blocks[block->parent].version >= block->version) {
            return "a block's parent was here before it";
        }
    }
    return version <= index->version && count == changed ? NULL : "pages that changed are listed";
}

const char *bt_prefix_index_check(const struct bt_prefix_index *index)
{
    uint32_t(*sums)[2] = calloc((size_t)index->page_count + 1, sizeof(*sums));
    bool *seen = calloc((size_t)index->page_count + 1, sizeof(*seen));
    const char *wrong = sums && seen ? check_blocks(index) : "there is memory for the check";
    wrong = wrong ? wrong : check_children(index, sums);
    wrong = wrong ? wrong : check_idle(index, seen);
    wrong = wrong ? wrong : check_changed(index);
    free(sums);
    free(seen);
    return wrong;
}
