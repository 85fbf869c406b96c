/*
 * The ids of pieces of text encoded lately, by their content: what prompts share (a system prompt,
 * earlier turns, a document) is encoded once. Any thread, several at once. Bounded in bytes, least
 * recently used goes first. An entry holds the text itself and is compared with it, so that no two
 * texts are taken for one another.
 */
#ifndef BATON_COMMON_TEXT_TEXT_CACHE_H
#define BATON_COMMON_TEXT_TEXT_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/text/tokenizer.h"

/* Of one text; longer ones are not kept. An entry takes about 5 bytes a byte of text at most. */
#define BT_TEXT_CACHE_MAX_TEXT_BYTES (64u << 10)

struct bt_text_cache;

/* `capacity_bytes`: texts, ids and what it takes to keep them. NULL: no memory. */
struct bt_text_cache *bt_text_cache_create(size_t capacity_bytes);
void bt_text_cache_destroy(struct bt_text_cache *cache);

/* What a text is found by, within one cache. */
uint64_t bt_text_cache_key(const struct bt_text_cache *cache, const char *text, size_t size);

/* Appends the ids of `text` if they are known. NOT_FOUND: they aren't. NO_MEMORY. */
enum bt_status bt_text_cache_get(struct bt_text_cache *cache, uint64_t key, const char *text,
                                 size_t size, struct bt_token_buffer *ret_ids);

/* Keeps copies of both, where there is room and memory. Counts the ids as asked for in vain. */
void bt_text_cache_put(struct bt_text_cache *cache, uint64_t key, const char *text, size_t size,
                       const uint32_t *ids, size_t count);

void bt_text_cache_read(struct bt_text_cache *cache, struct bt_tokenizer_cache_stats *ret_stats);

#endif
