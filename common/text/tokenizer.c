#include "common/text/tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "common/text/tokenizer_data.h"
#include "common/text/utf8.h"

/* Texts shorter than this are encoded about as fast as they are looked for. */
#define MIN_CACHED_BYTES 64
/* A part of a text ends at the first cut after so many bytes. */
#define BLOCK_BYTES 1024

enum bt_status bt_tokenizer_load(const char *model_dir, struct bt_error *error,
                                 struct bt_tokenizer **ret_tokenizer)
{
    struct bt_tokenizer *tokenizer = calloc(1, sizeof *tokenizer);
    if (!tokenizer)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a tokenizer");
    tokenizer->encoders = bt_encoder_shelf_create();
    enum bt_status status =
        tokenizer->encoders ? bt_tokenizer_file_load(model_dir, error, tokenizer)
                            : bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a tokenizer");
    if (status == BT_OK)
        status = bt_tokenizer_config_load(model_dir, error, tokenizer);
    if (status != BT_OK) {
        bt_tokenizer_destroy(tokenizer);
        return status;
    }
    *ret_tokenizer = tokenizer;
    return BT_OK;
}

void bt_tokenizer_destroy(struct bt_tokenizer *tokenizer)
{
    if (!tokenizer)
        return;
    bt_vocabulary_finish(&tokenizer->vocabulary);
    bt_bpe_finish(&tokenizer->bpe);
    bt_splitter_finish(&tokenizer->splitter);
    bt_added_tokens_finish(&tokenizer->added);
    bt_added_tokens_finish(&tokenizer->added_normalized);
    bt_encoder_shelf_destroy(tokenizer->encoders);
    bt_text_cache_destroy(tokenizer->cache);
    free(tokenizer);
}

enum bt_status bt_tokenizer_cache_enable(struct bt_tokenizer *tokenizer, size_t capacity_bytes,
                                         struct bt_error *error)
{
    BT_ASSERT(!tokenizer->cache);
    tokenizer->cache = bt_text_cache_create(capacity_bytes);
    return tokenizer->cache ? BT_OK
                            : bt_error_set(error, BT_ERR_NO_MEMORY, "no memory to cache texts");
}

void bt_tokenizer_cache_read(const struct bt_tokenizer *tokenizer,
                             struct bt_tokenizer_cache_stats *ret_stats)
{
    *ret_stats = (struct bt_tokenizer_cache_stats){0};
    if (tokenizer->cache)
        bt_text_cache_read(tokenizer->cache, ret_stats);
}

uint32_t bt_tokenizer_vocab_size(const struct bt_tokenizer *tokenizer)
{
    return tokenizer->vocabulary.size;
}

int64_t bt_tokenizer_bos(const struct bt_tokenizer *tokenizer)
{
    return tokenizer->bos;
}

int64_t bt_tokenizer_eos(const struct bt_tokenizer *tokenizer)
{
    return tokenizer->eos;
}

bool bt_tokenizer_add_bos(const struct bt_tokenizer *tokenizer)
{
    return tokenizer->add_bos;
}

int64_t bt_tokenizer_find(const struct bt_tokenizer *tokenizer, const char *content)
{
    return bt_vocabulary_find(&tokenizer->vocabulary, content, strlen(content));
}

const char *bt_tokenizer_bytes(const struct bt_tokenizer *tokenizer, uint32_t id, size_t *ret_size)
{
    *ret_size = 0;
    if (id >= tokenizer->vocabulary.size || !tokenizer->vocabulary.tokens[id].content)
        return NULL;
    *ret_size = tokenizer->vocabulary.tokens[id].byte_size;
    return tokenizer->vocabulary.tokens[id].bytes;
}

bool bt_tokenizer_is_special(const struct bt_tokenizer *tokenizer, uint32_t id)
{
    return id < tokenizer->vocabulary.size && tokenizer->vocabulary.tokens[id].special;
}

size_t bt_tokenizer_longest_token(const struct bt_tokenizer *tokenizer)
{
    return tokenizer->vocabulary.longest_bytes;
}

struct encoding {
    const struct bt_tokenizer *tokenizer;
    struct bt_encoder *encoder;
    const char *end; /* of the whole text */
    struct bt_token_buffer *ids;
    struct bt_error *error;
};

static enum bt_status no_memory(struct bt_error *error)
{
    return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory to encode a text");
}

static enum bt_status encode_piece(void *context, const char *piece, size_t size,
                                   struct bt_error *error)
{
    struct encoding *e = context;
    bool done = bt_bpe_encode(&e->tokenizer->bpe, &e->tokenizer->vocabulary, &e->encoder->bpe,
                              e->encoder->words, piece, size, (size_t)(e->end - piece), e->ids);
    return done ? BT_OK : no_memory(error);
}

typedef enum bt_status encode_text(struct encoding *e, const char *text, size_t size);

static enum bt_status encode_split(struct encoding *e, const char *text, size_t size)
{
    return bt_splitter_run(&e->tokenizer->splitter, e->encoder->split, text, size, encode_piece, e,
                           e->error);
}

/* A text whose ids are those of its parts' one after another. */
static enum bt_status encode_block(struct encoding *e, const char *text, size_t size)
{
    struct bt_text_cache *cache = e->tokenizer->cache;
    uint64_t key = bt_text_cache_key(cache, text, size);
    size_t first = e->ids->count;
    enum bt_status status = bt_text_cache_get(cache, key, text, size, e->ids);
    if (status == BT_ERR_NO_MEMORY)
        return no_memory(e->error);
    if (status == BT_OK)
        return BT_OK;
    status = encode_split(e, text, size);
    if (status == BT_OK)
        bt_text_cache_put(cache, key, text, size, e->ids->ids + first, e->ids->count - first);
    return status;
}

/*
 * Where a text is cut depends on what was before it, from the last cut on, and on the two
 * characters at the place: texts with the same start have the same parts.
 */
static enum bt_status encode_ordinary(struct encoding *e, const char *text, size_t size)
{
    enum bt_status status = BT_OK;
    if (!e->tokenizer->cache || size < MIN_CACHED_BYTES)
        return encode_split(e, text, size);
    for (size_t done = 0; done < size && status == BT_OK;) {
        size_t cut = size;
        if (size - done > BLOCK_BYTES)
            cut = bt_splitter_cut(&e->tokenizer->splitter, text, size, done + BLOCK_BYTES);
        status = cut - done > BT_TEXT_CACHE_MAX_TEXT_BYTES
                     ? encode_split(e, text + done, cut - done)
                     : encode_block(e, text + done, cut - done);
        done = cut;
    }
    return status;
}

/* Ids of the added tokens in the text; what lies between them goes on to `between`. */
static enum bt_status encode_around(struct encoding *e, const struct bt_added_tokens *added,
                                    const char *text, size_t size, encode_text *between)
{
    struct bt_added_match match;
    size_t done = 0;
    while (bt_added_tokens_next(added, text, size, done, &match)) {
        enum bt_status status = between(e, text + done, match.offset - done);
        if (status != BT_OK)
            return status;
        if (!bt_token_buffer_append(e->ids, match.id))
            return no_memory(e->error);
        done = match.offset + match.size;
    }
    return between(e, text + done, size - done);
}

/* "normalized" added tokens are looked for in what the others leave, though nothing is normalized.
 */
static enum bt_status encode_rest(struct encoding *e, const char *text, size_t size)
{
    return encode_around(e, &e->tokenizer->added_normalized, text, size, encode_ordinary);
}

enum bt_status bt_tokenizer_encode(const struct bt_tokenizer *tokenizer, const char *text,
                                   size_t size, bool special, struct bt_error *error,
                                   struct bt_token_buffer *ret_ids)
{
    if (size > BT_TOKENIZER_MAX_TEXT_BYTES)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "the text has more than %u bytes",
                            BT_TOKENIZER_MAX_TEXT_BYTES);
    size_t valid = bt_utf8_valid_size(text, size);
    if (valid != size)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "not UTF-8 at byte %zu", valid);
    struct encoding e = {.tokenizer = tokenizer,
                         .encoder = bt_encoder_take(tokenizer->encoders),
                         .end = text + size,
                         .ids = ret_ids,
                         .error = error};
    if (!e.encoder)
        return no_memory(error);
    size_t count_before = ret_ids->count;
    enum bt_status status = special ? encode_around(&e, &tokenizer->added, text, size, encode_rest)
                                    : encode_ordinary(&e, text, size);
    if (status != BT_OK)
        ret_ids->count = count_before;
    bt_encoder_give(tokenizer->encoders, e.encoder);
    return status;
}
