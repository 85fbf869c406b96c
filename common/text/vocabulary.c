#include "common/text/vocabulary.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/random.h"
#include "common/base/status.h"
#include "common/text/byte_level.h"

/* FNV-1a with a seed, and a finisher as open addressing needs good low bits. */
static uint64_t hash(const struct bt_vocabulary *vocabulary, const char *content, size_t size)
{
    uint64_t h = vocabulary->seed;
    for (size_t i = 0; i < size; i++)
        h = (h ^ (unsigned char)content[i]) * UINT64_C(0x100000001B3);
    h = (h ^ h >> 32) * UINT64_C(0x9E3779B97F4A7C15);
    return h ^ h >> 29;
}

static uint32_t *find_slot(const struct bt_vocabulary *vocabulary, const char *content, size_t size)
{
    size_t at = hash(vocabulary, content, size) & (vocabulary->slot_count - 1);
    for (;; at = (at + 1) & (vocabulary->slot_count - 1)) {
        uint32_t *slot = &vocabulary->slots[at];
        if (*slot == 0)
            return slot;
        const struct bt_vocabulary_token *token = &vocabulary->tokens[*slot - 1];
        if (token->content_size == size && memcmp(token->content, content, size) == 0)
            return slot;
    }
}

bool bt_vocabulary_init(struct bt_vocabulary *vocabulary, uint32_t size, size_t token_count,
                        size_t content_bytes)
{
    *vocabulary = (struct bt_vocabulary){.size = size, .seed = bt_random_entropy()};
    vocabulary->slot_count = 16;
    while (vocabulary->slot_count < 2 * token_count)
        vocabulary->slot_count *= 2;
    /* Content with its NUL, and the bytes it stands for, which are never more. */
    vocabulary->arena_size = 2 * content_bytes + token_count + 1;
    vocabulary->tokens = calloc(size ? size : 1, sizeof *vocabulary->tokens);
    vocabulary->slots = calloc(vocabulary->slot_count, sizeof *vocabulary->slots);
    vocabulary->arena = malloc(vocabulary->arena_size);
    if (vocabulary->tokens && vocabulary->slots && vocabulary->arena)
        return true;
    bt_vocabulary_finish(vocabulary);
    return false;
}

void bt_vocabulary_finish(struct bt_vocabulary *vocabulary)
{
    free(vocabulary->tokens);
    free(vocabulary->slots);
    free(vocabulary->arena);
    *vocabulary = (struct bt_vocabulary){0};
}

void bt_vocabulary_add(struct bt_vocabulary *vocabulary, uint32_t id, const char *content,
                       size_t content_size)
{
    BT_ASSERT(id < vocabulary->size && !vocabulary->tokens[id].content);
    BT_ASSERT(vocabulary->arena_used + 2 * content_size + 1 <= vocabulary->arena_size);
    uint32_t *slot = find_slot(vocabulary, content, content_size);
    BT_ASSERT(*slot == 0);

    char *copy = vocabulary->arena + vocabulary->arena_used;
    memcpy(copy, content, content_size);
    copy[content_size] = '\0';
    vocabulary->arena_used += content_size + 1;

    struct bt_vocabulary_token *token = &vocabulary->tokens[id];
    *token = (struct bt_vocabulary_token){.content = copy,
                                          .content_size = (uint32_t)content_size,
                                          .bytes = copy,
                                          .byte_size = (uint32_t)content_size};
    char *bytes = vocabulary->arena + vocabulary->arena_used;
    size_t byte_size;
    if (bt_byte_level_to_bytes(content, content_size, bytes, &byte_size)) {
        token->bytes = bytes;
        token->byte_size = (uint32_t)byte_size;
        vocabulary->arena_used += byte_size;
    }
    if (token->byte_size > vocabulary->longest_bytes)
        vocabulary->longest_bytes = token->byte_size;
    *slot = id + 1;
}

int64_t bt_vocabulary_find(const struct bt_vocabulary *vocabulary, const char *content,
                           size_t content_size)
{
    if (!vocabulary->slot_count)
        return -1;
    return (int64_t)*find_slot(vocabulary, content, content_size) - 1;
}
