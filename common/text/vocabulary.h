/*
 * The tokens of a tokenizer: id to content and bytes, content to id. Filled by the loader in one
 * thread, then read by any. Caller-owned, zero-initialised; owns all text it points to.
 */
#ifndef BATON_COMMON_TEXT_VOCABULARY_H
#define BATON_COMMON_TEXT_VOCABULARY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct bt_vocabulary_token {
    const char *content; /* as tokenizer.json writes it, UTF-8; NULL: no token has this id */
    const char *bytes;   /* what it stands for in text */
    uint32_t content_size, byte_size;
    bool special;
    bool in_model; /* of model.vocab, where ignore_merges looks */
};

struct bt_vocabulary {
    struct bt_vocabulary_token *tokens;
    uint32_t size; /* highest id + 1 */
    uint32_t longest_bytes;
    uint32_t *slots; /* open addressing: id + 1, or 0 */
    size_t slot_count;
    uint64_t seed;
    char *arena;
    size_t arena_size, arena_used;
};

/*
 * Room for ids below `size`, `token_count` tokens, and contents of `content_bytes` in all.
 * False: no memory.
 */
bool bt_vocabulary_init(struct bt_vocabulary *vocabulary, uint32_t size, size_t token_count,
                        size_t content_bytes);
void bt_vocabulary_finish(struct bt_vocabulary *vocabulary);

/* Copies `content`. Neither the id nor the content may be there yet; within what init reserved. */
void bt_vocabulary_add(struct bt_vocabulary *vocabulary, uint32_t id, const char *content,
                       size_t content_size);

/* -1: not there. */
int64_t bt_vocabulary_find(const struct bt_vocabulary *vocabulary, const char *content,
                           size_t content_size);

#endif
