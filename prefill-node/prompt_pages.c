#include "prefill-node/prompt_pages.h"

#include <stdlib.h>

#include "common/base/random.h"

/* ---- the pool ---- */

bool pf_pages_init(struct pf_pages *pages, uint32_t page_count,
                   const struct bt_fingerprint *fingerprint, bool share_prefixes)
{
    *pages = (struct pf_pages){.pool = bt_page_pool_create(page_count)};
    if (pages->pool && share_prefixes) {
        pages->start = bt_prefix_hash_start(fingerprint);
        pages->prefixes = bt_prefix_index_create(pages->pool, bt_random_entropy());
    }
    return pages->pool && (pages->prefixes || !share_prefixes);
}

void pf_pages_finish(struct pf_pages *pages)
{
    bt_prefix_index_destroy(pages->prefixes);
    bt_page_pool_destroy(pages->pool);
    *pages = (struct pf_pages){0};
}

static uint32_t evictable(const struct pf_pages *pages)
{
    return pages->prefixes ? bt_prefix_index_evictable(pages->prefixes) : 0;
}

uint32_t pf_pages_free(const struct pf_pages *pages)
{
    return bt_page_pool_count(pages->pool, BT_PAGE_FREE) + evictable(pages);
}

void pf_pages_load(const struct pf_pages *pages, Baton__V1__RankLoad *ret_load)
{
    const struct bt_page_pool *pool = pages->pool;
    ret_load->pages_total = bt_page_pool_total(pool);
    ret_load->pages_free = pf_pages_free(pages);
    ret_load->pages_reserved =
        bt_page_pool_count(pool, BT_PAGE_RESERVED) + bt_page_pool_count(pool, BT_PAGE_LANDING);
    ret_load->pages_ready = bt_page_pool_count(pool, BT_PAGE_READY) +
                            bt_page_pool_count(pool, BT_PAGE_CACHED) - evictable(pages);
    ret_load->pages_quarantined = bt_page_pool_count(pool, BT_PAGE_QUARANTINED);
}

/* ---- a prompt ---- */

bool pf_prompt_pages_init(struct pf_prompt_pages *prompt, struct pf_pages *pages,
                          struct bt_page_owner owner, const uint32_t *tokens, uint32_t token_count,
                          bool share)
{
    *prompt = (struct pf_prompt_pages){
        .pages = pages,
        .owner = owner,
        .prompt = {.tokens = tokens, .token_count = token_count},
        .count = bt_kv_pages_for(token_count),
    };
    if (!share || !pages->prefixes) {
        return true;
    }
    prompt->hashes = calloc(prompt->count, sizeof(*prompt->hashes));
    if (!prompt->hashes) {
        return false;
    }
    bt_prefix_hash_prompt(pages->start, tokens, token_count, prompt->hashes);
    prompt->prompt.hashes = prompt->hashes;
    return true;
}

/* `list` [count] */
static bool take(const struct pf_prompt_pages *prompt, uint32_t *list, uint32_t *ret_cached)
{
    const struct pf_pages *pages = prompt->pages;
    uint32_t cached = 0;
    if (!pages->prefixes) {
        return bt_page_pool_alloc(pages->pool, prompt->count, prompt->owner, list);
    }
    if (prompt->hashes) {
        cached = bt_prefix_index_match(pages->prefixes, &prompt->prompt, list);
    }
    if (!bt_prefix_index_alloc(pages->prefixes, prompt->count - cached, prompt->owner,
                               &list[cached])) {
        bt_prefix_index_unpin(pages->prefixes, list, cached);
        return false;
    }
    *ret_cached = cached;
    return true;
}

bool pf_prompt_pages_take(struct pf_prompt_pages *prompt)
{
    uint32_t *list = calloc(prompt->count, sizeof(*list));
    if (!list || !take(prompt, list, &prompt->cached)) {
        free(list);
        return false;
    }
    prompt->list = list;
    prompt->own_state = BT_PAGE_RESERVED;
    return true;
}

uint32_t pf_prompt_pages_cached_tokens(const struct pf_prompt_pages *prompt)
{
    return prompt->cached * BT_PAGE_TOKENS;
}

static void move_own(const struct pf_prompt_pages *prompt, uint32_t from, uint32_t to,
                     enum bt_page_state state)
{
    bt_page_pool_move(prompt->pages->pool, &prompt->list[from], to - from, prompt->owner,
                      prompt->own_state, state);
}

void pf_prompt_pages_computed(struct pf_prompt_pages *prompt)
{
    move_own(prompt, prompt->cached, prompt->count, BT_PAGE_READY);
    prompt->own_state = BT_PAGE_READY;
}

/* The full pages of what was computed become the prefixes'. Returns how many of the list are. */
static uint32_t leave(struct pf_prompt_pages *prompt, uint32_t computed)
{
    struct bt_prefix_prompt left = prompt->prompt;
    uint32_t full = computed / BT_PAGE_TOKENS;
    left.token_count = computed;
    if (full <= prompt->cached) {
        return prompt->cached;
    }
    if (prompt->own_state != BT_PAGE_READY) {
        move_own(prompt, prompt->cached, full, BT_PAGE_READY);
    }
    return bt_prefix_index_insert(prompt->pages->prefixes, &left, prompt->cached, prompt->owner,
                                  prompt->list);
}

void pf_prompt_pages_release(struct pf_prompt_pages *prompt, uint32_t computed)
{
    if (!prompt->list) {
        return;
    }
    BT_ASSERT(computed <= prompt->prompt.token_count);
    uint32_t pinned = 0;
    if (prompt->hashes) {
        pinned = leave(prompt, computed);
        bt_prefix_index_unpin(prompt->pages->prefixes, prompt->list, pinned);
    }
    move_own(prompt, pinned, prompt->count, BT_PAGE_FREE);
    free(prompt->list);
    prompt->list = NULL;
}

void pf_prompt_pages_finish(struct pf_prompt_pages *prompt)
{
    BT_ASSERT(!prompt->list);
    free(prompt->hashes);
    *prompt = (struct pf_prompt_pages){0};
}
