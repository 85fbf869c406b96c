#include "common/text/text_cache.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/map.h"
#include "common/base/random.h"
#include "common/text/bpe.h"

#define MAX_SHARDS      16
#define MIN_SHARD_BYTES (1u << 20)
#define ENTRY_OVERHEAD  64 /* of malloc and the map */

struct entry {
    struct entry *newer, *older;
    uint64_t key;
    uint32_t size, count;
    uint32_t ids[]; /* [count], then the text */
};

struct shard {
    pthread_mutex_t mutex;
    struct bt_map entries;
    struct entry *newest, *oldest;
    struct bt_tokenizer_cache_stats stats;
} __attribute__((aligned(64)));

struct bt_text_cache {
    uint64_t seeds[2];
    size_t shard_count, shard_bytes;
    struct shard shards[MAX_SHARDS];
};

struct bt_text_cache *bt_text_cache_create(size_t capacity_bytes)
{
    struct bt_text_cache *cache = aligned_alloc(64, sizeof *cache);
    if (!cache)
        return NULL;
    memset(cache, 0, sizeof *cache);
    cache->seeds[0] = bt_random_entropy();
    cache->seeds[1] = bt_random_entropy();
    cache->shard_count = capacity_bytes / MIN_SHARD_BYTES;
    if (cache->shard_count > MAX_SHARDS)
        cache->shard_count = MAX_SHARDS;
    if (cache->shard_count == 0)
        cache->shard_count = 1;
    cache->shard_bytes = capacity_bytes / cache->shard_count;
    for (size_t i = 0; i < cache->shard_count; i++) {
        pthread_mutex_init(&cache->shards[i].mutex, NULL);
        bt_map_init(&cache->shards[i].entries);
    }
    return cache;
}

void bt_text_cache_destroy(struct bt_text_cache *cache)
{
    if (!cache)
        return;
    for (size_t i = 0; i < cache->shard_count; i++) {
        struct shard *shard = &cache->shards[i];
        for (struct entry *entry = shard->newest, *older; entry; entry = older) {
            older = entry->older;
            free(entry);
        }
        bt_map_finish(&shard->entries);
        pthread_mutex_destroy(&shard->mutex);
    }
    free(cache);
}

static uint64_t fold(uint64_t a, uint64_t b)
{
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* Sixteen bytes a step, multiplied into each other under secret seeds. */
uint64_t bt_text_cache_key(const struct bt_text_cache *cache, const char *text, size_t size)
{
    uint64_t h = cache->seeds[0], end = size ^ UINT64_C(0x9E3779B97F4A7C15), words[2];
    for (; size >= sizeof words; text += sizeof words, size -= sizeof words) {
        memcpy(words, text, sizeof words);
        h = fold(words[0] ^ h, words[1] ^ cache->seeds[1]);
    }
    memset(words, 0, sizeof words);
    memcpy(words, text, size);
    h = fold(words[0] ^ h, words[1] ^ cache->seeds[1]);
    return fold(h ^ cache->seeds[0], end);
}

static size_t entry_bytes(size_t size, size_t count)
{
    return sizeof(struct entry) + ENTRY_OVERHEAD + count * sizeof(uint32_t) + size;
}

static char *entry_text(struct entry *entry)
{
    return (char *)&entry->ids[entry->count];
}

static struct shard *shard_of(struct bt_text_cache *cache, uint64_t key)
{
    return &cache->shards[(key >> 32) % cache->shard_count];
}

static void unlink_entry(struct shard *shard, struct entry *entry)
{
    *(entry->newer ? &entry->newer->older : &shard->newest) = entry->older;
    *(entry->older ? &entry->older->newer : &shard->oldest) = entry->newer;
}

static void link_newest(struct shard *shard, struct entry *entry)
{
    entry->newer = NULL;
    entry->older = shard->newest;
    *(shard->newest ? &shard->newest->newer : &shard->oldest) = entry;
    shard->newest = entry;
}

static void forget(struct shard *shard, struct entry *entry)
{
    bt_map_remove(&shard->entries, entry->key);
    unlink_entry(shard, entry);
    shard->stats.bytes -= entry_bytes(entry->size, entry->count);
    shard->stats.entries--;
    free(entry);
}

enum bt_status bt_text_cache_get(struct bt_text_cache *cache, uint64_t key, const char *text,
                                 size_t size, struct bt_token_buffer *ret_ids)
{
    struct shard *shard = shard_of(cache, key);
    enum bt_status status = BT_ERR_NOT_FOUND;
    pthread_mutex_lock(&shard->mutex);
    shard->stats.queries++;
    struct entry *entry = bt_map_get(&shard->entries, key);
    if (entry && entry->size == size && memcmp(entry_text(entry), text, size) == 0) {
        unlink_entry(shard, entry);
        link_newest(shard, entry);
        shard->stats.hits++;
        shard->stats.query_tokens += entry->count;
        shard->stats.hit_tokens += entry->count;
        bool done = bt_token_buffer_append_all(ret_ids, entry->ids, entry->count);
        status = done ? BT_OK : BT_ERR_NO_MEMORY;
    }
    pthread_mutex_unlock(&shard->mutex);
    return status;
}

static struct entry *entry_create(uint64_t key, const char *text, size_t size, const uint32_t *ids,
                                  size_t count)
{
    struct entry *entry = malloc(sizeof *entry + count * sizeof *ids + size);
    if (!entry)
        return NULL;
    entry->key = key;
    entry->size = (uint32_t)size;
    entry->count = (uint32_t)count;
    memcpy(entry->ids, ids, count * sizeof *ids);
    memcpy(entry_text(entry), text, size);
    return entry;
}

void bt_text_cache_put(struct bt_text_cache *cache, uint64_t key, const char *text, size_t size,
                       const uint32_t *ids, size_t count)
{
    struct shard *shard = shard_of(cache, key);
    size_t bytes = entry_bytes(size, count);
    struct entry *entry = NULL;
    if (size <= BT_TEXT_CACHE_MAX_TEXT_BYTES && bytes <= cache->shard_bytes)
        entry = entry_create(key, text, size, ids, count);
    pthread_mutex_lock(&shard->mutex);
    shard->stats.query_tokens += count;
    struct entry *same = entry ? bt_map_get(&shard->entries, key) : NULL;
    if (same)
        forget(shard, same);
    while (entry && shard->stats.bytes + bytes > cache->shard_bytes) {
        forget(shard, shard->oldest);
        shard->stats.evictions++;
    }
    if (entry && bt_map_put(&shard->entries, key, entry)) {
        link_newest(shard, entry);
        shard->stats.bytes += bytes;
        shard->stats.entries++;
        entry = NULL;
    }
    pthread_mutex_unlock(&shard->mutex);
    free(entry);
}

void bt_text_cache_read(struct bt_text_cache *cache, struct bt_tokenizer_cache_stats *ret_stats)
{
    struct bt_tokenizer_cache_stats sum = {0};
    for (size_t i = 0; i < cache->shard_count; i++) {
        struct shard *shard = &cache->shards[i];
        pthread_mutex_lock(&shard->mutex);
        sum.queries += shard->stats.queries;
        sum.hits += shard->stats.hits;
        sum.query_tokens += shard->stats.query_tokens;
        sum.hit_tokens += shard->stats.hit_tokens;
        sum.evictions += shard->stats.evictions;
        sum.bytes += shard->stats.bytes;
        sum.entries += shard->stats.entries;
        pthread_mutex_unlock(&shard->mutex);
    }
    *ret_stats = sum;
}
