#include "common/text/pair_table.h"

#include <stdlib.h>

#include "common/base/random.h"

#define MIN_CAPACITY 64

/* The finisher of SplitMix64: every input bit moves every output bit. */
static uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    x = (x ^ x >> 27) * UINT64_C(0x94D049BB133111EB);
    return x ^ x >> 31;
}

static struct bt_pair_slot *find(const struct bt_pair_table *table, uint64_t key, uint64_t hash)
{
    size_t at = hash & (table->capacity - 1);
    while (table->slots[at].key != key && table->slots[at].key != BT_PAIR_TABLE_NONE)
        at = (at + 1) & (table->capacity - 1);
    return &table->slots[at];
}

/* From other bits of the hash than the slot. */
static uint64_t *filter_word(const struct bt_pair_table *table, uint64_t hash, uint64_t *ret_bit)
{
    *ret_bit = UINT64_C(1) << (hash >> 58);
    return &table->filter[hash >> 24 & (table->capacity / 8 - 1)];
}

static struct bt_pair_slot *insert(struct bt_pair_table *table, uint64_t key)
{
    uint64_t bit, hash = mix(key ^ table->seed);
    struct bt_pair_slot *slot = find(table, key, hash);
    *filter_word(table, hash, &bit) |= bit;
    table->count += slot->key == BT_PAIR_TABLE_NONE;
    slot->key = key;
    return slot;
}

static bool resize(struct bt_pair_table *table, size_t capacity)
{
    struct bt_pair_table bigger = {.capacity = capacity, .seed = table->seed};
    if (!table->capacity)
        bigger.seed = bt_random_entropy();
    bigger.slots = malloc(capacity * sizeof *bigger.slots);
    bigger.filter = calloc(capacity / 8, sizeof *bigger.filter);
    if (!bigger.slots || !bigger.filter) {
        bt_pair_table_finish(&bigger);
        return false;
    }
    for (size_t i = 0; i < capacity; i++)
        bigger.slots[i].key = BT_PAIR_TABLE_NONE;
    for (size_t i = 0; i < table->capacity; i++) {
        if (table->slots[i].key != BT_PAIR_TABLE_NONE)
            insert(&bigger, table->slots[i].key)->value = table->slots[i].value;
    }
    bt_pair_table_finish(table);
    *table = bigger;
    return true;
}

void bt_pair_table_finish(struct bt_pair_table *table)
{
    free(table->slots);
    free(table->filter);
    *table = (struct bt_pair_table){0};
}

bool bt_pair_table_reserve(struct bt_pair_table *table, size_t count)
{
    size_t capacity = table->capacity ? table->capacity : MIN_CAPACITY;
    while (capacity < 2 * count)
        capacity *= 2;
    return capacity == table->capacity || resize(table, capacity);
}

bool bt_pair_table_put(struct bt_pair_table *table, uint64_t key, uint64_t value)
{
    if (!bt_pair_table_reserve(table, table->count + 1))
        return false;
    insert(table, key)->value = value;
    return true;
}

uint64_t bt_pair_table_get(const struct bt_pair_table *table, uint64_t key)
{
    if (!table->capacity)
        return BT_PAIR_TABLE_NONE;
    uint64_t bit, hash = mix(key ^ table->seed);
    if (!(*filter_word(table, hash, &bit) & bit))
        return BT_PAIR_TABLE_NONE;
    const struct bt_pair_slot *slot = find(table, key, hash);
    return slot->key == BT_PAIR_TABLE_NONE ? BT_PAIR_TABLE_NONE : slot->value;
}
