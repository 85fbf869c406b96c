/*
 * Added tokens: found in text before anything else looks at it, leftmost first, longest of those
 * that start there. A byte trie whose edges live in one hash table. Built by the loader, then read
 * by any thread. Caller-owned, zero-initialised.
 */
#ifndef BATON_COMMON_TEXT_ADDED_TOKEN_H
#define BATON_COMMON_TEXT_ADDED_TOKEN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/text/pair_table.h"

struct bt_added_tokens {
    struct bt_pair_table edges; /* (node << 8 | byte) to node; node 0 is the root */
    uint32_t *ids;              /* [node]: the id that ends there + 1, or 0 */
    size_t node_count, node_capacity;
    bool starts[256]; /* bytes that some token starts with */
};

struct bt_added_match {
    size_t offset, size;
    uint32_t id;
};

void bt_added_tokens_finish(struct bt_added_tokens *added);

/* `content` must not be empty. False: no memory. */
bool bt_added_tokens_add(struct bt_added_tokens *added, const char *content, size_t size,
                         uint32_t id);

/* The next match at or after `from`; false: none. Time: bytes passed times the longest token. */
bool bt_added_tokens_next(const struct bt_added_tokens *added, const char *text, size_t size,
                          size_t from, struct bt_added_match *ret_match);

#endif
