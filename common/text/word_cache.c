#include "common/text/word_cache.h"

#include <stdlib.h>

#include "common/base/random.h"

struct bt_word_cache {
    struct bt_word_entry entries[BT_WORD_CACHE_ENTRIES];
    uint64_t seed;
};

struct bt_word_cache *bt_word_cache_create(void)
{
    struct bt_word_cache *cache;
    size_t size = (sizeof *cache + 63) / 64 * 64;
    cache = aligned_alloc(64, size);
    if (!cache)
        return NULL;
    memset(cache, 0, size);
    cache->seed = bt_random_entropy();
    return cache;
}

struct bt_word_entry *bt_word_cache_at(struct bt_word_cache *cache, const struct bt_word_key *key)
{
    const uint64_t *w = key->words;
    uint64_t h = (w[0] ^ cache->seed) * UINT64_C(0x9E3779B97F4A7C15);
    h = ((h ^ h >> 32) + w[1]) * UINT64_C(0xBF58476D1CE4E5B9);
    h += w[2] * UINT64_C(0xD6E8FEB86659FD93) + w[3] * UINT64_C(0x94D049BB133111EB);
    h = (h ^ h >> 29) * UINT64_C(0x9E3779B97F4A7C15);
    return &cache->entries[h >> 32 & (BT_WORD_CACHE_ENTRIES - 1)];
}
