/*
 * The KV pages of prompts, in one pool. A prompt begins with the pages that earlier ones left of
 * the same tokens, which nobody writes any more; the KV of the others is computed into pages of its
 * own, and what of it is final stays for later prompts. In a group rank 0's page numbers are those
 * of all ranks, whose pools all hold the same KV. Control thread only.
 */
#ifndef BATON_PREFILL_NODE_PROMPT_PAGES_H
#define BATON_PREFILL_NODE_PROMPT_PAGES_H

#include "common/kvcache/prefix_index.h"
#include "proto/types.pb-c.h"

struct pf_pages {
    struct bt_page_pool *pool;
    struct bt_prefix_index *prefixes; /* NULL: prompts share nothing */
    struct bt_prefix_hash start;
};

/* False: no memory; finish is due all the same. */
bool pf_pages_init(struct pf_pages *pages, uint32_t page_count,
                   const struct bt_fingerprint *fingerprint, bool share_prefixes);
void pf_pages_finish(struct pf_pages *pages); /* zeroed is fine */

/* That some prompt could have now: what is kept for later ones goes when it is wanted. */
uint32_t pf_pages_free(const struct pf_pages *pages);
void pf_pages_load(const struct pf_pages *pages, Baton__V1__RankLoad *ret_load);

struct pf_prompt_pages {
    struct pf_pages *pages;
    struct bt_page_owner owner;
    struct bt_prefix_prompt prompt;
    struct bt_prefix_hash *hashes; /* NULL: it shares nothing */
    uint32_t *list;                /* [count] page numbers, in token order; NULL: none yet */
    uint32_t count;
    uint32_t cached;              /* the first of them, which others left */
    enum bt_page_state own_state; /* of the others */
};

/* `tokens` [token_count] live as long. `share` false: it neither takes nor leaves a prefix. False:
 * no memory. */
bool pf_prompt_pages_init(struct pf_prompt_pages *prompt, struct pf_pages *pages,
                          struct bt_page_owner owner, const uint32_t *tokens, uint32_t token_count,
                          bool share);
/* False: there are not enough now. */
bool pf_prompt_pages_take(struct pf_prompt_pages *prompt);
/* Of the pages that were taken, also after release; < token_count. */
uint32_t pf_prompt_pages_cached_tokens(const struct pf_prompt_pages *prompt);
/* All KV is there: nobody writes the pages any more. */
void pf_prompt_pages_computed(struct pf_prompt_pages *prompt);
/* Nobody reads or writes them for this prompt any more; the KV of the first `computed` tokens is
 * there. Harmless where nothing was taken. */
void pf_prompt_pages_release(struct pf_prompt_pages *prompt, uint32_t computed);
void pf_prompt_pages_finish(struct pf_prompt_pages *prompt); /* after release; zeroed is fine */

#endif
