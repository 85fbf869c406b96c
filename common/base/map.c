#include "common/base/map.h"

#include <stdlib.h>

#include "common/base/status.h"

#define MIN_CAPACITY 16

/* An empty slot has a NULL value, a removed one the address of `tombstone`. */
struct bt_map_slot {
    uint64_t key;
    void *value;
};

static char tombstone;
#define TOMBSTONE ((void *)&tombstone)

static size_t hash(uint64_t key)
{
    key ^= key >> 30;
    key *= UINT64_C(0xbf58476d1ce4e5b9);
    key ^= key >> 27;
    key *= UINT64_C(0x94d049bb133111eb);
    return (size_t)(key ^ key >> 31);
}

void bt_map_init(struct bt_map *map)
{
    *map = (struct bt_map){0};
}

void bt_map_finish(struct bt_map *map)
{
    free(map->slots);
    *map = (struct bt_map){0};
}

static struct bt_map_slot *find(const struct bt_map *map, uint64_t key)
{
    if (map->capacity == 0) {
        return NULL;
    }
    size_t mask = map->capacity - 1;
    for (size_t i = hash(key) & mask; map->slots[i].value; i = (i + 1) & mask) {
        if (map->slots[i].key == key && map->slots[i].value != TOMBSTONE) {
            return &map->slots[i];
        }
    }
    return NULL;
}

void *bt_map_get(const struct bt_map *map, uint64_t key)
{
    struct bt_map_slot *slot = find(map, key);
    return slot ? slot->value : NULL;
}

/* The key must not be there; a slot must be free. */
static void insert(struct bt_map *map, uint64_t key, void *value)
{
    size_t mask = map->capacity - 1;
    size_t i = hash(key) & mask;
    while (map->slots[i].value && map->slots[i].value != TOMBSTONE) {
        i = (i + 1) & mask;
    }
    map->used += map->slots[i].value == NULL;
    map->slots[i] = (struct bt_map_slot){key, value};
    map->size++;
}

static bool rehash(struct bt_map *map, size_t more)
{
    size_t capacity = MIN_CAPACITY;
    while (capacity < (map->size + more) * 2) {
        capacity *= 2;
    }
    struct bt_map fresh = {.capacity = capacity};
    fresh.slots = calloc(capacity, sizeof *fresh.slots);
    if (!fresh.slots) {
        return false;
    }
    size_t cursor = 0;
    uint64_t key;
    void *value;
    while (bt_map_next(map, &cursor, &key, &value)) {
        insert(&fresh, key, value);
    }
    free(map->slots);
    *map = fresh;
    return true;
}

bool bt_map_put(struct bt_map *map, uint64_t key, void *value)
{
    BT_ASSERT(value);
    struct bt_map_slot *slot = find(map, key);
    if (slot) {
        slot->value = value;
        return true;
    }
    if ((map->used + 1) * 4 > map->capacity * 3 && !rehash(map, 1)) {
        return false;
    }
    insert(map, key, value);
    return true;
}

bool bt_map_reserve(struct bt_map *map, size_t more)
{
    return (map->used + more) * 4 <= map->capacity * 3 || rehash(map, more);
}

void *bt_map_remove(struct bt_map *map, uint64_t key)
{
    struct bt_map_slot *slot = find(map, key);
    if (!slot) {
        return NULL;
    }
    void *value = slot->value;
    slot->value = TOMBSTONE;
    map->size--;
    return value;
}

bool bt_map_next(const struct bt_map *map, size_t *cursor, uint64_t *ret_key, void **ret_value)
{
    while (*cursor < map->capacity) {
        const struct bt_map_slot *slot = &map->slots[(*cursor)++];
        if (slot->value && slot->value != TOMBSTONE) {
            *ret_key = slot->key;
            *ret_value = slot->value;
            return true;
        }
    }
    return false;
}
