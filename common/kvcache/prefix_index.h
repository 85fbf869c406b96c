/*
 * Which pages of a pool hold the KV of which prompt prefix, so that a prompt computes only what
 * follows the prefix it shares with earlier ones. One thread, that of the page pool.
 *
 * A block is a full page of 64 tokens; it is known by its tokens and the block before it, all of
 * which are compared: whatever the hashes are, nobody gets KV of other tokens. Its page is CACHED
 * in the pool, read-only, and may be in the page tables of any number of prompts (and be pushed
 * from by them) at once. Each of these pins it; a block that is pinned, or whose children are here,
 * stays. All others may have to go when pages are wanted: those first that were let go of longest
 * ago, children before parents.
 *
 *     a prompt comes    match:  pins what is there; the rest of its pages come from alloc
 *     its KV is final   (own pages RESERVED -> READY)
 *     its push is over  insert: own pages become CACHED, or FREE where another prompt was first
 *                       unpin:  all that match and insert pinned
 *
 * Pages that somebody may have: FREE ones of the pool and bt_prefix_index_evictable. In RankLoad
 * these are pages_free; READY pages and all other CACHED ones are pages_ready.
 *
 * No function but create allocates; each costs as much as the blocks it is given or evicts.
 */
#ifndef BATON_COMMON_KVCACHE_PREFIX_INDEX_H
#define BATON_COMMON_KVCACHE_PREFIX_INDEX_H

#include <stdbool.h>
#include <stdint.h>

#include "common/kvcache/page_pool.h"
#include "common/kvcache/prefix_hash.h"

#define BT_NO_PAGE UINT32_MAX

struct bt_prefix_index;

/* NULL: no memory. About 330 bytes a page. `salt`: random, and not known to those who choose
 * prompts. The pool is borrowed; what is CACHED in it when the index goes stays so. */
struct bt_prefix_index *bt_prefix_index_create(struct bt_page_pool *pool, uint64_t salt);
void bt_prefix_index_destroy(struct bt_prefix_index *index); /* NULL is fine */

struct bt_prefix_prompt {
    const uint32_t *tokens; /* [token_count] */
    uint32_t token_count;
    const struct bt_prefix_hash *hashes; /* [token_count / 64], of bt_prefix_hash_prompt */
};

/*
 * The longest prefix that is here, but never the prompt's last token: somebody wants its logits.
 * Writes its pages to ret_pages [token_count / 64], pins them, returns how many.
 */
uint32_t bt_prefix_index_match(struct bt_prefix_index *index, const struct bt_prefix_prompt *prompt,
                               uint32_t *ret_pages);

/* bt_page_pool_alloc, evicting what it takes. False: FREE and evictable pages are too few, nothing
 * changed. */
bool bt_prefix_index_alloc(struct bt_prefix_index *index, uint32_t count,
                           struct bt_page_owner owner, uint32_t *ret_pages);

/*
 * The KV of the first prompt->token_count tokens (of a prompt that was given up: as many as were
 * computed) is in `pages`, the first `pinned` of which match gave; the other full ones are READY
 * and `owner`'s, nobody writes or pushes from them. They are the index's from now on, and pinned;
 * where a block was here already, `pages` has its page instead, and the owner's is FREE. Returns
 * how many are pinned now, of which unpin is due: all full pages. One that is not full stays the
 * owner's.
 */
uint32_t bt_prefix_index_insert(struct bt_prefix_index *index,
                                const struct bt_prefix_prompt *prompt, uint32_t pinned,
                                struct bt_page_owner owner, uint32_t *pages);

/* Exactly the pages that match, or match and insert, pinned for one prompt. */
void bt_prefix_index_unpin(struct bt_prefix_index *index, const uint32_t *pages, uint32_t count);

uint32_t bt_prefix_index_evictable(const struct bt_prefix_index *index);
uint64_t bt_prefix_index_evictions(const struct bt_prefix_index *index); /* ever */

/*
 * What the pages hold, for others. Each change of a page gets the next version; only a page's last
 * change is known, so whoever has all changes up to some version, and applies those since in the
 * order given here, has the truth, and there is never more to send than there are pages. Since 0
 * means everything.
 */
struct bt_prefix_change {
    uint32_t page;
    uint32_t parent; /* the page that holds the block before it; BT_NO_PAGE: the first of prompts */
    uint64_t block;  /* bt_prefix_block_id; 0: the page holds nothing now */
};

/*
 * The oldest `max` changes since `since`, oldest first; a parent comes before its children. After
 * them the reader is at *ret_version: it asks for what is since then, now if `max` were given,
 * else later. *ret_since is `since`, or 0 where such a version has never been: the reader has to
 * forget what it knows. Costs as much as there are changes since.
 */
uint32_t bt_prefix_index_changes(const struct bt_prefix_index *index, uint64_t since, uint32_t max,
                                 struct bt_prefix_change *ret_changes, uint64_t *ret_since,
                                 uint64_t *ret_version);

/* For tests: the first rule that does not hold; NULL: all do. */
const char *bt_prefix_index_check(const struct bt_prefix_index *index);

#endif
