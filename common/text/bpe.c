#include "common/text/bpe.h"

#include <stdlib.h>
#include <string.h>

#include "common/text/byte_level.h"

/* Pieces of up to so many bytes are merged in one small array, longer ones by list and heap. */
#define SHORT_BITS  6
#define SHORT_BYTES (1 << SHORT_BITS)
#define SHORT_LANES 8
#define NO_KEY      INT32_MAX
_Static_assert(BT_BPE_MAX_MERGES <= (NO_KEY >> SHORT_BITS), "a rank and a place make a key");

bool bt_token_buffer_append_all(struct bt_token_buffer *buffer, const uint32_t *ids, size_t count)
{
    if (buffer->capacity - buffer->count < count) {
        size_t capacity = buffer->capacity ? 2 * buffer->capacity : 64;
        while (capacity - buffer->count < count)
            capacity *= 2;
        uint32_t *grown = realloc(buffer->ids, capacity * sizeof *grown);
        if (!grown)
            return false;
        buffer->ids = grown;
        buffer->capacity = capacity;
    }
    if (count > 0)
        memcpy(buffer->ids + buffer->count, ids, count * sizeof *ids);
    buffer->count += count;
    return true;
}

bool bt_token_buffer_append(struct bt_token_buffer *buffer, uint32_t id)
{
    return bt_token_buffer_append_all(buffer, &id, 1);
}

bool bt_bpe_prepare(struct bt_bpe *bpe)
{
    bpe->byte_merges = malloc(65536 * sizeof *bpe->byte_merges);
    if (!bpe->byte_merges)
        return false;
    for (uint32_t left = 0; left < 256; left++)
        for (uint32_t right = 0; right < 256; right++)
            bpe->byte_merges[left << 8 | right] = bt_pair_table_get(
                &bpe->merges, (uint64_t)bpe->byte_ids[left] << 32 | bpe->byte_ids[right]);
    return true;
}

void bt_bpe_finish(struct bt_bpe *bpe)
{
    bt_pair_table_finish(&bpe->merges);
    free(bpe->byte_merges);
    *bpe = (struct bt_bpe){0};
}

void bt_bpe_scratch_finish(struct bt_bpe_scratch *scratch)
{
    free(scratch->symbols);
    free(scratch->heap);
    *scratch = (struct bt_bpe_scratch){0};
}

size_t bt_bpe_scratch_bytes(const struct bt_bpe_scratch *scratch)
{
    return scratch->symbol_capacity * sizeof *scratch->symbols +
           scratch->heap_capacity * sizeof *scratch->heap;
}

static bool heap_push(struct bt_bpe_scratch *scratch, uint64_t entry)
{
    if (scratch->heap_count == scratch->heap_capacity) {
        size_t capacity = scratch->heap_capacity ? 2 * scratch->heap_capacity : 64;
        uint64_t *heap = realloc(scratch->heap, capacity * sizeof *heap);
        if (!heap)
            return false;
        scratch->heap = heap;
        scratch->heap_capacity = capacity;
    }
    size_t at = scratch->heap_count++;
    while (at > 0 && scratch->heap[(at - 1) / 2] > entry) {
        scratch->heap[at] = scratch->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    scratch->heap[at] = entry;
    return true;
}

static uint64_t heap_pop(struct bt_bpe_scratch *scratch)
{
    uint64_t *heap = scratch->heap;
    uint64_t least = heap[0], last = heap[--scratch->heap_count];
    size_t at = 0;
    for (;;) {
        size_t child = 2 * at + 1;
        if (child >= scratch->heap_count)
            break;
        if (child + 1 < scratch->heap_count && heap[child + 1] < heap[child])
            child++;
        if (heap[child] >= last)
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = last;
    return least;
}

/* Looks up the pair that starts at `index` and queues it if it has a merge. */
static bool note_pair(const struct bt_bpe *bpe, struct bt_bpe_scratch *scratch, uint32_t index)
{
    struct bt_bpe_symbol *symbol = &scratch->symbols[index];
    symbol->rank = BT_BPE_NONE;
    if (symbol->next == BT_BPE_NONE)
        return true;
    uint64_t pair = (uint64_t)symbol->id << 32 | scratch->symbols[symbol->next].id;
    uint64_t merge = bt_pair_table_get(&bpe->merges, pair);
    if (merge == BT_PAIR_TABLE_NONE)
        return true;
    symbol->rank = (uint32_t)(merge >> 32);
    symbol->merged = (uint32_t)merge;
    return heap_push(scratch, (uint64_t)symbol->rank << 32 | index);
}

static bool start(const struct bt_bpe *bpe, struct bt_bpe_scratch *scratch, const char *piece,
                  size_t size)
{
    if (scratch->symbol_capacity < size) {
        free(scratch->symbols);
        scratch->symbol_capacity = 0;
        scratch->symbols = malloc((size + size / 2) * sizeof *scratch->symbols);
        if (!scratch->symbols)
            return false;
        scratch->symbol_capacity = size + size / 2;
    }
    for (uint32_t i = 0; i < size; i++) {
        scratch->symbols[i] = (struct bt_bpe_symbol){
            .id = bpe->byte_ids[(unsigned char)piece[i]],
            .previous = i == 0 ? BT_BPE_NONE : i - 1,
            .next = i + 1 == size ? BT_BPE_NONE : i + 1,
        };
    }
    scratch->heap_count = 0;
    for (uint32_t i = 0; i < size; i++) {
        if (!note_pair(bpe, scratch, i))
            return false;
    }
    return true;
}

/* Joins the symbol at `index` with the one after it. */
static bool merge_pair(const struct bt_bpe *bpe, struct bt_bpe_scratch *scratch, uint32_t index)
{
    struct bt_bpe_symbol *left = &scratch->symbols[index];
    struct bt_bpe_symbol *right = &scratch->symbols[left->next];
    left->id = left->merged;
    left->next = right->next;
    right->rank = BT_BPE_NONE; /* what the heap still holds of it is stale */
    if (left->next != BT_BPE_NONE)
        scratch->symbols[left->next].previous = index;
    if (left->previous != BT_BPE_NONE && !note_pair(bpe, scratch, left->previous))
        return false;
    return note_pair(bpe, scratch, index);
}

/* True and the id when the vocabulary has the piece as a whole. */
static bool find_whole(const struct bt_vocabulary *vocabulary, const char *piece, size_t size,
                       uint32_t *ret_id)
{
    char content[2 * BT_TOKENIZER_MAX_TOKEN_BYTES];
    if (size > BT_TOKENIZER_MAX_TOKEN_BYTES)
        return false;
    size_t content_size = bt_byte_level_from_bytes(piece, size, content);
    int64_t id = bt_vocabulary_find(vocabulary, content, content_size);
    if (id < 0 || !vocabulary->tokens[id].in_model)
        return false;
    *ret_id = (uint32_t)id;
    return true;
}

/* By list and heap. */
static bool encode_long(const struct bt_bpe *bpe, struct bt_bpe_scratch *scratch, const char *piece,
                        size_t size, struct bt_token_buffer *ret_ids)
{
    if (!start(bpe, scratch, piece, size))
        return false;
    while (scratch->heap_count > 0) {
        uint64_t entry = heap_pop(scratch);
        uint32_t index = (uint32_t)entry;
        /* A rank belongs to one pair, so a symbol of another rank is of another pair by now. */
        if (scratch->symbols[index].rank != (uint32_t)(entry >> 32))
            continue;
        if (!merge_pair(bpe, scratch, index))
            return false;
    }
    for (uint32_t i = 0; i != BT_BPE_NONE; i = scratch->symbols[i].next) {
        if (!bt_token_buffer_append(ret_ids, scratch->symbols[i].id))
            return false;
    }
    return true;
}

/* A short piece: a list of symbols at the places of their first bytes. */
struct short_piece {
    int32_t keys[SHORT_BYTES];    /* rank << SHORT_BITS | place; NO_KEY: no merge, or no symbol */
    uint32_t merged[SHORT_BYTES]; /* what the symbol and the next become */
    uint32_t ids[SHORT_BYTES];
    uint8_t next[SHORT_BYTES + 1]; /* the end: the size of the piece */
    uint8_t previous[SHORT_BYTES + 1];
};

static void set_merge(struct short_piece *p, size_t at, uint64_t merge)
{
    p->merged[at] = (uint32_t)merge;
    p->keys[at] = merge == BT_PAIR_TABLE_NONE
                      ? NO_KEY
                      : (int32_t)((uint32_t)(merge >> 32) << SHORT_BITS | (uint32_t)at);
}

static void look_up(const struct bt_bpe *bpe, struct short_piece *p, size_t at)
{
    set_merge(p, at,
              bt_pair_table_get(&bpe->merges, (uint64_t)p->ids[at] << 32 | p->ids[p->next[at]]));
}

static void start_short(const struct bt_bpe *bpe, struct short_piece *p, const unsigned char *bytes,
                        size_t size)
{
    for (size_t i = 0; i < size; i++) {
        p->ids[i] = bpe->byte_ids[bytes[i]];
        p->next[i] = (uint8_t)(i + 1);
        p->previous[i + 1] = (uint8_t)i;
    }
    for (size_t i = 0; i + 1 < size; i++)
        set_merge(p, i, bpe->byte_merges[bytes[i] << 8 | bytes[i + 1]]);
    for (size_t i = size - 1; i < SHORT_BYTES && (i == size - 1 || i % SHORT_LANES != 0); i++)
        p->keys[i] = NO_KEY;
}

/* The rank decides, then the place. Whole lanes, for the compiler to do side by side. */
static int32_t least_key(const struct short_piece *p, size_t size)
{
    int32_t least = NO_KEY;
    for (size_t i = 0; i < size; i += SHORT_LANES)
        for (size_t k = i; k < i + SHORT_LANES; k++)
            least = p->keys[k] < least ? p->keys[k] : least;
    return least;
}

/* `ids` has room for `size`; returns how many there are. */
static size_t encode_short(const struct bt_bpe *bpe, const char *piece, size_t size, uint32_t *ids)
{
    struct short_piece p;
    int32_t key;
    size_t count = 0;
    start_short(bpe, &p, (const unsigned char *)piece, size);
    while ((key = least_key(&p, size)) != NO_KEY) {
        size_t at = (size_t)key % SHORT_BYTES, gone = p.next[at], next = p.next[gone];
        p.ids[at] = p.merged[at];
        p.next[at] = (uint8_t)next;
        p.keys[gone] = NO_KEY;
        p.keys[at] = NO_KEY;
        if (next < size) {
            p.previous[next] = (uint8_t)at;
            look_up(bpe, &p, at);
        }
        if (at > 0)
            look_up(bpe, &p, p.previous[at]);
    }
    for (size_t at = 0; at < size; at = p.next[at])
        ids[count++] = p.ids[at];
    return count;
}

static void keep_word(struct bt_word_entry *entry, const struct bt_word_key *key, size_t size,
                      const uint32_t *ids, size_t count)
{
    if (count > BT_WORD_CACHE_MAX_IDS)
        return;
    entry->key = *key;
    entry->size = (uint8_t)size;
    entry->count = (uint8_t)count;
    memcpy(entry->ids, ids, count * sizeof *ids);
}

bool bt_bpe_encode(const struct bt_bpe *bpe, const struct bt_vocabulary *vocabulary,
                   struct bt_bpe_scratch *scratch, struct bt_word_cache *words, const char *piece,
                   size_t size, size_t readable, struct bt_token_buffer *ret_ids)
{
    struct bt_word_key key;
    struct bt_word_entry *entry = NULL;
    uint32_t ids[SHORT_BYTES];
    size_t count = 1;
    if (size <= BT_WORD_CACHE_MAX_BYTES) {
        key = bt_word_key_of(piece, size, readable);
        entry = bt_word_cache_at(words, &key);
        if (bt_word_entry_holds(entry, &key, size))
            return bt_token_buffer_append_all(ret_ids, entry->ids, entry->count);
    }
    if (!bpe->ignore_merges || !find_whole(vocabulary, piece, size, ids)) {
        if (size > SHORT_BYTES)
            return encode_long(bpe, scratch, piece, size, ret_ids);
        count = encode_short(bpe, piece, size, ids);
    }
    if (entry)
        keep_word(entry, &key, size, ids, count);
    return bt_token_buffer_append_all(ret_ids, ids, count);
}
