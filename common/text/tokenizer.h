/*
 * Byte-level BPE tokenizer as DeepSeek publishes it (tokenizer.json of a checkpoint).
 *
 * Its answers never change after loading: any thread may use it, several at once (what it keeps to
 * be fast, warm encoders and the cache of texts, has its own locks). Added tokens are found first
 * (leftmost, longest match), the text between them goes through the Split rules of the
 * pre_tokenizer (PCRE2, UTF + UCP; "Isolated") and ByteLevel, then BPE by merge rank.
 */
#ifndef BATON_COMMON_TEXT_TOKENIZER_H
#define BATON_COMMON_TEXT_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

struct bt_tokenizer;

#define BT_TOKENIZER_MAX_VOCAB       (1u << 20)
#define BT_TOKENIZER_MAX_TOKEN_BYTES 4096
#define BT_TOKENIZER_MAX_TEXT_BYTES  (16u << 20) /* of one encode */

struct bt_token_buffer { /* caller-owned; init with {0}, grows; free(ids) at the end */
    uint32_t *ids;
    size_t count;
    size_t capacity;
};

/*
 * Reads `model_dir`/tokenizer.json and tokenizer_config.json. Every kind of normalizer,
 * pre-tokenizer, model or decoder that is not the family's is refused with a message that names
 * it. Errors: IO (file named), INVALID_ARGUMENT (what in which file), NO_MEMORY.
 */
enum bt_status bt_tokenizer_load(const char *model_dir, struct bt_error *error,
                                 struct bt_tokenizer **ret_tokenizer);
void bt_tokenizer_destroy(struct bt_tokenizer *tokenizer);

/*
 * Keeps the ids of parts of texts from now on, up to `capacity_bytes` of memory, least recently
 * used out first: a text that shares a prefix with earlier ones, or any part of some KiB, has only
 * the rest encoded. Ids are the same with and without. Call it once, before other threads use the
 * tokenizer. Errors: NO_MEMORY.
 */
enum bt_status bt_tokenizer_cache_enable(struct bt_tokenizer *tokenizer, size_t capacity_bytes,
                                         struct bt_error *error);

struct bt_tokenizer_cache_stats {
    uint64_t queries, hits;            /* parts of texts looked for, and found */
    uint64_t query_tokens, hit_tokens; /* the same in tokens */
    uint64_t evictions;
    size_t entries, bytes; /* now */
};

/* All zero without a cache. Any thread. */
void bt_tokenizer_cache_read(const struct bt_tokenizer *tokenizer,
                             struct bt_tokenizer_cache_stats *ret_stats);

uint32_t bt_tokenizer_vocab_size(const struct bt_tokenizer *tokenizer); /* highest id + 1 */

/* Special ids from tokenizer_config.json / added tokens; -1 where there is none. */
int64_t bt_tokenizer_bos(const struct bt_tokenizer *tokenizer);
int64_t bt_tokenizer_eos(const struct bt_tokenizer *tokenizer);
bool bt_tokenizer_add_bos(const struct bt_tokenizer *tokenizer);

/*
 * Appends the ids of `text` (`size` bytes, may hold NUL) to `ret_ids`. Adds no BOS by itself.
 * `special`: whether added tokens in the text are recognised (true for chat forms and prompts).
 * Text that is too long or not UTF-8 is INVALID_ARGUMENT, the latter with the offset of the first
 * bad byte; EXHAUSTED: a split rule of a strange checkpoint backtracks without end. Nothing is
 * appended then. Time is O(n log n) for any text.
 */
enum bt_status bt_tokenizer_encode(const struct bt_tokenizer *tokenizer, const char *text,
                                   size_t size, bool special, struct bt_error *error,
                                   struct bt_token_buffer *ret_ids);

/* The id of an added or ordinary token by its exact content, or -1. */
int64_t bt_tokenizer_find(const struct bt_tokenizer *tokenizer, const char *content);

/* The bytes one id stands for; not NUL-terminated; valid as long as the tokenizer. NULL and size 0
 * for an id outside the vocabulary or a hole in it. */
const char *bt_tokenizer_bytes(const struct bt_tokenizer *tokenizer, uint32_t id, size_t *ret_size);

/* Bytes of the longest token: what one id can add to a text. */
size_t bt_tokenizer_longest_token(const struct bt_tokenizer *tokenizer);

/* True for added tokens flagged special (BOS, EOS, pad): left out of text by the detokenizer. */
bool bt_tokenizer_is_special(const struct bt_tokenizer *tokenizer, uint32_t id);

#endif
