/*
 * Insert-only hash table from uint64_t to uint64_t: merge pairs, trie edges. Built by one thread,
 * then read by any. Caller-owned, zero-initialised. The hash is seeded for each table, so that a
 * file can't be made to collide.
 */
#ifndef BATON_COMMON_TEXT_PAIR_TABLE_H
#define BATON_COMMON_TEXT_PAIR_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BT_PAIR_TABLE_NONE UINT64_MAX /* never a key, never a value */

struct bt_pair_slot {
    uint64_t key, value;
};

struct bt_pair_table {
    struct bt_pair_slot *slots;
    size_t capacity; /* a power of two, at least twice `count`; 0 before the first put */
    size_t count;
    uint64_t *filter; /* 8 bits a slot: clear where no key is, which is told without the slots */
    uint64_t seed;
};

void bt_pair_table_finish(struct bt_pair_table *table);

/* Room for `count` entries at once. False: no memory. */
bool bt_pair_table_reserve(struct bt_pair_table *table, size_t count);

/* Replaces. False: no memory, nothing changed. */
bool bt_pair_table_put(struct bt_pair_table *table, uint64_t key, uint64_t value);

/* BT_PAIR_TABLE_NONE: not there. */
uint64_t bt_pair_table_get(const struct bt_pair_table *table, uint64_t key);

#endif
