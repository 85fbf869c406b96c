/*
 * The ids of short pieces seen lately: a direct-mapped table, one cache line an entry, of a fixed
 * size. Belongs to one call chain. What collides is forgotten, so a text made to collide costs the
 * merging of its pieces and no more.
 */
#ifndef BATON_COMMON_TEXT_WORD_CACHE_H
#define BATON_COMMON_TEXT_WORD_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define BT_WORD_CACHE_ENTRIES   (1u << 13)
#define BT_WORD_CACHE_MAX_BYTES 32 /* of a piece */
#define BT_WORD_CACHE_MAX_IDS   7

struct bt_word_key {
    uint64_t words[BT_WORD_CACHE_MAX_BYTES / 8]; /* the piece, padded with zeros */
};

struct bt_word_entry {
    struct bt_word_key key;
    uint32_t ids[BT_WORD_CACHE_MAX_IDS];
    uint8_t size, count; /* bytes of the piece, 0: free; ids */
    uint16_t unused;
};
_Static_assert(sizeof(struct bt_word_entry) == 64, "a cache line");

struct bt_word_cache; /* free() it */

struct bt_word_cache *bt_word_cache_create(void); /* NULL: no memory */

/*
 * The key of a piece of 1 to BT_WORD_CACHE_MAX_BYTES bytes; `readable` bytes can be read from
 * there, which may be more.
 */
static inline struct bt_word_key bt_word_key_of(const char *piece, size_t size, size_t readable)
{
    struct bt_word_key key = {{0}};
    if (readable < sizeof key) {
        memcpy(&key, piece, size);
        return key;
    }
    memcpy(&key, piece, sizeof key);
    for (size_t i = 0; i < sizeof key.words / sizeof *key.words; i++) {
        size_t kept = size <= 8 * i ? 0 : size - 8 * i;
        if (kept < 8)
            key.words[i] &= (UINT64_C(1) << 8 * kept) - 1;
    }
    return key;
}

/*
 * The entry where this piece belongs; it holds the piece when its size and key are the same,
 * otherwise it may be overwritten.
 */
struct bt_word_entry *bt_word_cache_at(struct bt_word_cache *cache, const struct bt_word_key *key);

static inline bool bt_word_entry_holds(const struct bt_word_entry *entry,
                                       const struct bt_word_key *key, size_t size)
{
    uint64_t difference = entry->size ^ size;
    for (size_t i = 0; i < sizeof key->words / sizeof *key->words; i++)
        difference |= entry->key.words[i] ^ key->words[i];
    return difference == 0;
}

#endif
