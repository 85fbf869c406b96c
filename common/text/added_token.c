#include "common/text/added_token.h"

#include <stdlib.h>

static bool add_node(struct bt_added_tokens *added)
{
    if (added->node_count == added->node_capacity) {
        size_t capacity = added->node_capacity ? 2 * added->node_capacity : 64;
        uint32_t *ids = realloc(added->ids, capacity * sizeof *ids);
        if (!ids)
            return false;
        added->ids = ids;
        added->node_capacity = capacity;
    }
    added->ids[added->node_count++] = 0;
    return true;
}

void bt_added_tokens_finish(struct bt_added_tokens *added)
{
    bt_pair_table_finish(&added->edges);
    free(added->ids);
    *added = (struct bt_added_tokens){0};
}

bool bt_added_tokens_add(struct bt_added_tokens *added, const char *content, size_t size,
                         uint32_t id)
{
    if (added->node_count == 0 && !add_node(added))
        return false;
    uint64_t node = 0;
    for (size_t i = 0; i < size; i++) {
        uint64_t edge = node << 8 | (unsigned char)content[i];
        uint64_t next = bt_pair_table_get(&added->edges, edge);
        if (next == BT_PAIR_TABLE_NONE) {
            next = added->node_count;
            if (!add_node(added) || !bt_pair_table_put(&added->edges, edge, next))
                return false;
        }
        node = next;
    }
    added->ids[node] = id + 1;
    added->starts[(unsigned char)content[0]] = true;
    return true;
}

/* The longest token that starts at text[0]; size 0: none. */
static size_t match_here(const struct bt_added_tokens *added, const char *text, size_t size,
                         uint32_t *ret_id)
{
    uint64_t node = 0;
    size_t longest = 0;
    for (size_t i = 0; i < size; i++) {
        node = bt_pair_table_get(&added->edges, node << 8 | (unsigned char)text[i]);
        if (node == BT_PAIR_TABLE_NONE)
            break;
        if (added->ids[node]) {
            longest = i + 1;
            *ret_id = added->ids[node] - 1;
        }
    }
    return longest;
}

bool bt_added_tokens_next(const struct bt_added_tokens *added, const char *text, size_t size,
                          size_t from, struct bt_added_match *ret_match)
{
    for (size_t at = from; at < size; at++) {
        if (!added->starts[(unsigned char)text[at]])
            continue;
        uint32_t id = 0;
        size_t length = match_here(added, text + at, size - at, &id);
        if (length) {
            *ret_match = (struct bt_added_match){.offset = at, .size = length, .id = id};
            return true;
        }
    }
    return false;
}
