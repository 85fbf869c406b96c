/*
 * Byte-pair merging by rank: of all neighbouring pairs that have a merge, the one of lowest rank
 * (leftmost among equals) is merged, until none is left. O(n log n) in the bytes of the piece.
 *
 * struct bt_bpe is filled by the loader, then read by any thread; the scratch belongs to one call
 * chain and keeps its memory from piece to piece.
 */
#ifndef BATON_COMMON_TEXT_BPE_H
#define BATON_COMMON_TEXT_BPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/text/pair_table.h"
#include "common/text/tokenizer.h"
#include "common/text/vocabulary.h"

struct bt_bpe {
    struct bt_pair_table merges; /* (left id << 32 | right id) to (rank << 32 | merged id) */
    uint32_t byte_ids[256];      /* the token of each single byte */
    bool ignore_merges;          /* a piece that is a token as a whole is taken as that token */
};

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

/* Appends the ids of one piece of at most UINT32_MAX - 1 bytes. False: no memory. */
bool bt_bpe_encode(const struct bt_bpe *bpe, const struct bt_vocabulary *vocabulary,
                   struct bt_bpe_scratch *scratch, const char *piece, size_t size,
                   struct bt_token_buffer *ret_ids);

/* Appends one id. False: no memory. */
bool bt_token_buffer_append(struct bt_token_buffer *buffer, uint32_t id);

#endif
