/*
 * Byte-pair merging by rank: of all neighbouring pairs that have a merge, the one of lowest rank
 * (leftmost among equals) is merged, until none is left. O(n log n) in the bytes of the piece.
 *
 * struct bt_bpe is filled by the loader, then read by any thread; the scratch and the words belong
 * to one call chain and keep their memory from piece to piece.
 */
#ifndef BATON_COMMON_TEXT_BPE_H
#define BATON_COMMON_TEXT_BPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/text/pair_table.h"
#include "common/text/tokenizer.h"
#include "common/text/vocabulary.h"
#include "common/text/word_cache.h"

#define BT_BPE_MAX_MERGES (1u << 24)

struct bt_bpe {
    struct bt_pair_table merges; /* (left id << 32 | right id) to (rank << 32 | merged id) */
    uint64_t
        *byte_merges; /* [byte << 8 | byte]: what `merges` has for the two, where text starts */
    uint32_t byte_ids[256]; /* the token of each single byte */
    bool ignore_merges;     /* a piece that is a token as a whole is taken as that token */
};

/* After the last merge, and when byte_ids are known. False: no memory. */
bool bt_bpe_prepare(struct bt_bpe *bpe);
void bt_bpe_finish(struct bt_bpe *bpe);

struct bt_bpe_symbol {
    uint32_t id;
    uint32_t previous, next; /* indexes; BT_BPE_NONE at the ends */
    uint32_t rank, merged;   /* of the pair (this, next); BT_BPE_NONE: they have no merge */
};

#define BT_BPE_NONE UINT32_MAX

struct bt_bpe_scratch { /* zero-initialised */
    struct bt_bpe_symbol *symbols;
    size_t symbol_capacity;
    uint64_t *heap; /* rank << 32 | index of the pair's left symbol, least first */
    size_t heap_count, heap_capacity;
};

void bt_bpe_scratch_finish(struct bt_bpe_scratch *scratch);
size_t bt_bpe_scratch_bytes(const struct bt_bpe_scratch *scratch);

/*
 * Appends the ids of one piece of 1 to UINT32_MAX - 1 bytes, of which `words` may know them or
 * will; `readable` bytes can be read from `piece` on, at least `size`. False: no memory.
 */
bool bt_bpe_encode(const struct bt_bpe *bpe, const struct bt_vocabulary *vocabulary,
                   struct bt_bpe_scratch *scratch, struct bt_word_cache *words, const char *piece,
                   size_t size, size_t readable, struct bt_token_buffer *ret_ids);

/* Append one id, or several. False: no memory. */
bool bt_token_buffer_append(struct bt_token_buffer *buffer, uint32_t id);
bool bt_token_buffer_append_all(struct bt_token_buffer *buffer, const uint32_t *ids, size_t count);

#endif
