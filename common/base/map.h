/*
 * Hash map from uint64_t to void*: request ids, call ids. Caller-owned, one thread. Values are not
 * owned. Iteration order is unspecified; entries may be removed while iterating, not added.
 */
#ifndef BATON_COMMON_BASE_MAP_H
#define BATON_COMMON_BASE_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct bt_map_slot;

struct bt_map {
    struct bt_map_slot *slots;
    size_t capacity; /* power of two, or 0 before the first put */
    size_t size;
    size_t used; /* with tombstones */
};

void bt_map_init(struct bt_map *map);
void bt_map_finish(struct bt_map *map);

void *bt_map_get(const struct bt_map *map, uint64_t key); /* NULL: not there */
/* Replaces. False: no memory, nothing changed. `value` must not be NULL. */
bool bt_map_put(struct bt_map *map, uint64_t key, void *value);
/* Room for `more` new keys: putting them allocates nothing, unless keys are removed meanwhile. */
bool bt_map_reserve(struct bt_map *map, size_t more);
void *bt_map_remove(struct bt_map *map, uint64_t key); /* what was there, or NULL */

/* Start with *cursor = 0; false at the end. */
bool bt_map_next(const struct bt_map *map, size_t *cursor, uint64_t *ret_key, void **ret_value);

#endif
