/* tokenizer.json: what is not the family's is refused by name, what is missing is said. */
#include <stdlib.h>
#include <string.h>

#include "common/text/byte_level.h"
#include "common/text/json_file.h"
#include "common/text/tokenizer.h"
#include "common/text/tokenizer_data.h"
#include "common/text/utf8.h"

struct loader {
    struct bt_json_file file;
    struct bt_tokenizer *tokenizer;
    struct bt_error *error;
    json_t *vocab, *merges, *added; /* borrowed from the file */
    uint32_t size;                  /* highest id + 1 */
    size_t token_count, content_bytes;
    uint64_t next_added; /* the id that the next new added token must have */
};

static enum bt_status no_memory(struct loader *l)
{
    return bt_error_set(l->error, BT_ERR_NO_MEMORY, "%s: no memory", l->file.path);
}

/* The "type" of a part of the file, which must be there. */
static enum bt_status part_type(struct loader *l, const json_t *part, const char *where,
                                const char **ret_type)
{
    enum bt_status status = bt_json_file_string(&l->file, part, where, "type", l->error, ret_type);
    if (status == BT_OK && !*ret_type)
        return bt_json_file_error(&l->file, l->error, "%s.type is missing", where);
    return status;
}

static enum bt_status unsupported(struct loader *l, const char *where, const char *what,
                                  const char *value)
{
    char shown[64];
    return bt_json_file_error(&l->file, l->error, "%s: %s \"%s\" is not supported", where, what,
                              bt_json_file_show(value, shown));
}

/* `key` must be false or absent. */
static enum bt_status must_be_false(struct loader *l, const json_t *part, const char *where,
                                    const char *key)
{
    bool value;
    enum bt_status status = bt_json_file_bool(&l->file, part, where, key, false, l->error, &value);
    if (status == BT_OK && value)
        return bt_json_file_error(&l->file, l->error, "%s.%s: true is not supported", where, key);
    return status;
}

static enum bt_status check_normalizer(struct loader *l)
{
    json_t *part, *list;
    enum bt_status status =
        bt_json_file_object(&l->file, l->file.root, "", "normalizer", l->error, &part);
    if (status != BT_OK || !part)
        return status;
    const char *type;
    if ((status = part_type(l, part, "normalizer", &type)) != BT_OK)
        return status;
    if (strcmp(type, "Sequence") != 0)
        return unsupported(l, "normalizer", "type", type);
    status = bt_json_file_array(&l->file, part, "normalizer", "normalizers", l->error, &list);
    if (status != BT_OK || json_array_size(list) == 0)
        return status;
    if ((status = part_type(l, json_array_get(list, 0), "normalizer.normalizers[0]", &type)))
        return status;
    return unsupported(l, "normalizer.normalizers[0]", "type", type);
}

static enum bt_status check_decoder(struct loader *l)
{
    json_t *part;
    const char *type;
    enum bt_status status =
        bt_json_file_object(&l->file, l->file.root, "", "decoder", l->error, &part);
    if (status != BT_OK)
        return status;
    if (!part)
        return bt_json_file_error(&l->file, l->error, "decoder is missing");
    if ((status = part_type(l, part, "decoder", &type)) != BT_OK)
        return status;
    return strcmp(type, "ByteLevel") == 0 ? BT_OK : unsupported(l, "decoder", "type", type);
}

static enum bt_status add_rule(struct loader *l, const char *where, const char *pattern)
{
    enum bt_status status = bt_splitter_add(&l->tokenizer->splitter, pattern, l->error);
    if (status != BT_OK)
        bt_error_prefix(l->error, "%s: %s", l->file.path, where);
    return status;
}

static enum bt_status load_split(struct loader *l, const json_t *part, const char *where)
{
    json_t *pattern;
    const char *behavior, *regex = NULL;
    enum bt_status status;
    if ((status = bt_json_file_string(&l->file, part, where, "behavior", l->error, &behavior)) ||
        (status = must_be_false(l, part, where, "invert")) ||
        (status = bt_json_file_object(&l->file, part, where, "pattern", l->error, &pattern)))
        return status;
    if (!behavior || strcmp(behavior, "Isolated") != 0)
        return unsupported(l, where, "behavior", behavior ? behavior : "");
    status = bt_json_file_string(&l->file, pattern, where, "Regex", l->error, &regex);
    if (status == BT_OK && !regex)
        return bt_json_file_error(&l->file, l->error, "%s.pattern: only Regex is supported", where);
    return status == BT_OK ? add_rule(l, where, regex) : status;
}

static enum bt_status load_digits(struct loader *l, const json_t *part, const char *where)
{
    bool individual;
    enum bt_status status =
        bt_json_file_bool(&l->file, part, where, "individual_digits", false, l->error, &individual);
    return status == BT_OK ? add_rule(l, where, individual ? "\\p{N}" : "\\p{N}+") : status;
}

static enum bt_status check_byte_level(struct loader *l, const json_t *part, const char *where)
{
    bool prefix, regex;
    enum bt_status status;
    if ((status = bt_json_file_bool(&l->file, part, where, "add_prefix_space", true, l->error,
                                    &prefix)) ||
        (status = bt_json_file_bool(&l->file, part, where, "use_regex", true, l->error, &regex)))
        return status;
    if (prefix || regex)
        return bt_json_file_error(&l->file, l->error, "%s: %s must be false", where,
                                  prefix ? "add_prefix_space" : "use_regex");
    return BT_OK;
}

/* One step; ByteLevel turns text into bytes, so it stands at the end and only there. */
static enum bt_status load_step(struct loader *l, const json_t *part, const char *where, bool last)
{
    static const struct {
        const char *type;
        enum bt_status (*load)(struct loader *, const json_t *, const char *);
        bool last;
    } kinds[] = {
        {"Split", load_split, false},
        {"Digits", load_digits, false},
        {"ByteLevel", check_byte_level, true},
    };
    const char *type;
    if (!json_is_object(part))
        return bt_json_file_error(&l->file, l->error, "%s must be an object", where);
    enum bt_status status = part_type(l, part, where, &type);
    if (status != BT_OK)
        return status;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (strcmp(type, kinds[i].type) != 0)
            continue;
        if (kinds[i].last != last)
            return bt_json_file_error(&l->file, l->error, "%s: ByteLevel must be the last step%s",
                                      where, last ? ", and is missing" : "");
        return kinds[i].load(l, part, where);
    }
    return unsupported(l, where, "type", type);
}

static enum bt_status load_pre_tokenizer(struct loader *l)
{
    json_t *part, *list;
    const char *type;
    enum bt_status status =
        bt_json_file_object(&l->file, l->file.root, "", "pre_tokenizer", l->error, &part);
    if (status != BT_OK)
        return status;
    if (!part)
        return bt_json_file_error(&l->file, l->error, "pre_tokenizer is missing");
    if ((status = part_type(l, part, "pre_tokenizer", &type)) != BT_OK)
        return status;
    if (strcmp(type, "Sequence") != 0)
        return load_step(l, part, "pre_tokenizer", true);
    status = bt_json_file_array(&l->file, part, "pre_tokenizer", "pretokenizers", l->error, &list);
    if (status != BT_OK)
        return status;
    size_t count = json_array_size(list);
    if (count == 0 || count > BT_SPLIT_MAX_RULES + 1)
        return bt_json_file_error(&l->file, l->error,
                                  "pre_tokenizer.pretokenizers must have 1 to %d entries",
                                  BT_SPLIT_MAX_RULES + 1);
    for (size_t i = 0; i < count && status == BT_OK; i++) {
        char where[64];
        snprintf(where, sizeof where, "pre_tokenizer.pretokenizers[%zu]", i);
        status = load_step(l, json_array_get(list, i), where, i + 1 == count);
    }
    return status;
}

/* Options of BPE that change what is merged, other than ignore_merges. */
static enum bt_status check_model_options(struct loader *l, const json_t *model)
{
    static const char *const texts[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    enum bt_status status;
    for (size_t i = 0; i < 2; i++) {
        const char *value;
        if ((status = bt_json_file_string(&l->file, model, "model", texts[i], l->error, &value)))
            return status;
        if (value && *value)
            return unsupported(l, "model", texts[i], value);
    }
    const json_t *dropout = json_object_get(model, "dropout");
    if (dropout && !json_is_null(dropout) && json_number_value(dropout) != 0)
        return bt_json_file_error(&l->file, l->error, "model.dropout is not supported");
    if ((status = must_be_false(l, model, "model", "byte_fallback")))
        return status;
    return bt_json_file_bool(&l->file, model, "model", "ignore_merges", false, l->error,
                             &l->tokenizer->bpe.ignore_merges);
}

static enum bt_status find_model(struct loader *l)
{
    json_t *model;
    const char *type;
    enum bt_status status =
        bt_json_file_object(&l->file, l->file.root, "", "model", l->error, &model);
    if (status != BT_OK)
        return status;
    if (!model)
        return bt_json_file_error(&l->file, l->error, "model is missing");
    /* Files of the first versions of the format name no type. */
    if ((status = bt_json_file_string(&l->file, model, "model", "type", l->error, &type)))
        return status;
    if (type && strcmp(type, "BPE") != 0)
        return unsupported(l, "model", "type", type);
    if ((status = check_model_options(l, model)) ||
        (status = bt_json_file_object(&l->file, model, "model", "vocab", l->error, &l->vocab)) ||
        (status = bt_json_file_array(&l->file, model, "model", "merges", l->error, &l->merges)))
        return status;
    if (!l->vocab || !l->merges)
        return bt_json_file_error(&l->file, l->error, "model.%s is missing",
                                  l->vocab ? "merges" : "vocab");
    return bt_json_file_array(&l->file, l->file.root, "", "added_tokens", l->error, &l->added);
}

/* Checks one token and counts it. `where` names it in messages. */
static enum bt_status measure(struct loader *l, const char *where, const json_t *id,
                              size_t content_size)
{
    if (!json_is_integer(id) || json_integer_value(id) < 0 ||
        json_integer_value(id) >= (json_int_t)BT_TOKENIZER_MAX_VOCAB)
        return bt_json_file_error(&l->file, l->error, "%s: the id must be an integer from 0 to %u",
                                  where, BT_TOKENIZER_MAX_VOCAB - 1);
    if (content_size == 0 || content_size > BT_TOKENIZER_MAX_TOKEN_BYTES)
        return bt_json_file_error(&l->file, l->error, "%s: the token must have 1 to %d bytes",
                                  where, BT_TOKENIZER_MAX_TOKEN_BYTES);
    if (json_integer_value(id) >= (json_int_t)l->size)
        l->size = (uint32_t)json_integer_value(id) + 1;
    l->token_count++;
    l->content_bytes += content_size;
    return BT_OK;
}

static const char *vocab_where(const char *content, char ret_where[static 96])
{
    char shown[64];
    snprintf(ret_where, 96, "model.vocab[\"%s\"]", bt_json_file_show(content, shown));
    return ret_where;
}

static enum bt_status measure_tokens(struct loader *l)
{
    const char *content;
    json_t *id, *added;
    char where[96];
    size_t i;
    json_object_foreach(l->vocab, content, id)
    {
        enum bt_status status = measure(l, vocab_where(content, where), id, strlen(content));
        if (status != BT_OK)
            return status;
    }
    json_array_foreach(l->added, i, added)
    {
        snprintf(where, sizeof where, "added_tokens[%zu]", i);
        if (!json_is_object(added))
            return bt_json_file_error(&l->file, l->error, "%s must be an object", where);
        enum bt_status status =
            bt_json_file_string(&l->file, added, where, "content", l->error, &content);
        if (status == BT_OK)
            status = measure(l, where, json_object_get(added, "id"), content ? strlen(content) : 0);
        if (status != BT_OK)
            return status;
    }
    return BT_OK;
}

static enum bt_status load_vocab(struct loader *l)
{
    struct bt_vocabulary *vocabulary = &l->tokenizer->vocabulary;
    const char *content;
    json_t *value;
    char where[96];
    if (!bt_vocabulary_init(vocabulary, l->size, l->token_count, l->content_bytes))
        return no_memory(l);
    json_object_foreach(l->vocab, content, value)
    {
        uint32_t id = (uint32_t)json_integer_value(value);
        if (vocabulary->tokens[id].content)
            return bt_json_file_error(&l->file, l->error, "%s: id %u is given twice",
                                      vocab_where(content, where), (unsigned)id);
        bt_vocabulary_add(vocabulary, id, content, strlen(content));
        vocabulary->tokens[id].in_model = true;
    }
    return BT_OK;
}

static enum bt_status load_added_token(struct loader *l, const json_t *added, const char *where)
{
    struct bt_vocabulary *vocabulary = &l->tokenizer->vocabulary;
    const char *content = json_string_value(json_object_get(added, "content"));
    uint32_t id = (uint32_t)json_integer_value(json_object_get(added, "id"));
    bool normalized, special;
    enum bt_status status;
    if ((status = must_be_false(l, added, where, "lstrip")) ||
        (status = must_be_false(l, added, where, "rstrip")) ||
        (status = must_be_false(l, added, where, "single_word")) ||
        (status =
             bt_json_file_bool(&l->file, added, where, "special", false, l->error, &special)) ||
        (status = bt_json_file_bool(&l->file, added, where, "normalized", !special, l->error,
                                    &normalized)))
        return status;
    int64_t known = bt_vocabulary_find(vocabulary, content, strlen(content));
    if ((known < 0 && vocabulary->tokens[id].content) || (known >= 0 && known != (int64_t)id))
        return bt_json_file_error(&l->file, l->error,
                                  "%s: id %u and content belong to different tokens", where,
                                  (unsigned)id);
    /* The reference numbers them itself, whatever the file says. */
    if (known < 0 && id != l->next_added)
        return bt_json_file_error(&l->file, l->error, "%s: the id must be %llu, the next free one",
                                  where, (unsigned long long)l->next_added);
    if (known < 0)
        bt_vocabulary_add(vocabulary, id, content, strlen(content));
    if (id >= l->next_added)
        l->next_added = (uint64_t)id + 1;
    vocabulary->tokens[id].special |= special;
    struct bt_added_tokens *set =
        normalized ? &l->tokenizer->added_normalized : &l->tokenizer->added;
    return bt_added_tokens_add(set, content, strlen(content), id) ? BT_OK : no_memory(l);
}

static enum bt_status load_added(struct loader *l)
{
    const json_t *added;
    size_t i;
    l->next_added = json_object_size(l->vocab);
    json_array_foreach(l->added, i, added)
    {
        char where[64];
        snprintf(where, sizeof where, "added_tokens[%zu]", i);
        enum bt_status status = load_added_token(l, added, where);
        if (status != BT_OK)
            return status;
    }
    return BT_OK;
}

/* Bytes C0, C1 and F5 to FF stand in no UTF-8 text, and vocabularies may lack them. */
static enum bt_status load_bytes(struct loader *l)
{
    for (unsigned byte = 0; byte < 256; byte++) {
        char raw = (char)byte, content[2];
        size_t size = bt_byte_level_from_bytes(&raw, 1, content);
        int64_t id = bt_vocabulary_find(&l->tokenizer->vocabulary, content, size);
        bool in_text = byte != 0xC0 && byte != 0xC1 && byte < 0xF5;
        if (in_text && (id < 0 || !l->tokenizer->vocabulary.tokens[id].in_model))
            return bt_json_file_error(&l->file, l->error,
                                      "model.vocab has no token for the byte 0x%02X", byte);
        l->tokenizer->bpe.byte_ids[byte] = id < 0 ? 0 : (uint32_t)id;
    }
    return BT_OK;
}

/* A merge is "left right" in older files, ["left", "right"] in newer ones. */
static bool split_merge(const json_t *merge, const char **ret_left, size_t *ret_left_size,
                        const char **ret_right)
{
    if (json_is_string(merge)) {
        const char *space = strchr(json_string_value(merge), ' ');
        if (!space || strchr(space + 1, ' '))
            return false;
        *ret_left = json_string_value(merge);
        *ret_left_size = (size_t)(space - *ret_left);
        *ret_right = space + 1;
        return true;
    }
    const json_t *left = json_array_get(merge, 0), *right = json_array_get(merge, 1);
    if (json_array_size(merge) != 2 || !json_is_string(left) || !json_is_string(right))
        return false;
    *ret_left = json_string_value(left);
    *ret_left_size = strlen(*ret_left);
    *ret_right = json_string_value(right);
    return true;
}

static enum bt_status load_merge(struct loader *l, size_t rank, const json_t *merge)
{
    const struct bt_vocabulary *vocabulary = &l->tokenizer->vocabulary;
    const char *left, *right;
    size_t left_size;
    if (!split_merge(merge, &left, &left_size, &right))
        return bt_json_file_error(&l->file, l->error, "model.merges[%zu] must be two tokens", rank);
    size_t right_size = strlen(right);
    char joined[2 * BT_TOKENIZER_MAX_TOKEN_BYTES];
    int64_t left_id = bt_vocabulary_find(vocabulary, left, left_size);
    int64_t right_id = bt_vocabulary_find(vocabulary, right, right_size);
    if (left_id < 0 || right_id < 0)
        return bt_json_file_error(&l->file, l->error,
                                  "model.merges[%zu]: the %s token is not in the vocabulary", rank,
                                  left_id < 0 ? "left" : "right");
    memcpy(joined, left, left_size);
    memcpy(joined + left_size, right, right_size);
    int64_t id = bt_vocabulary_find(vocabulary, joined, left_size + right_size);
    if (id < 0)
        return bt_json_file_error(&l->file, l->error,
                                  "model.merges[%zu]: the merged token is not in the vocabulary",
                                  rank);
    uint64_t pair = (uint64_t)left_id << 32 | (uint64_t)right_id;
    uint64_t value = (uint64_t)rank << 32 | (uint64_t)id;
    return bt_pair_table_put(&l->tokenizer->bpe.merges, pair, value) ? BT_OK : no_memory(l);
}

static enum bt_status load_merges(struct loader *l)
{
    const json_t *merge;
    size_t rank;
    if (json_array_size(l->merges) > BT_BPE_MAX_MERGES)
        return bt_json_file_error(&l->file, l->error, "model.merges has more than %u entries",
                                  BT_BPE_MAX_MERGES);
    if (!bt_pair_table_reserve(&l->tokenizer->bpe.merges, json_array_size(l->merges)))
        return no_memory(l);
    json_array_foreach(l->merges, rank, merge)
    {
        enum bt_status status = load_merge(l, rank, merge);
        if (status != BT_OK)
            return status;
    }
    return bt_bpe_prepare(&l->tokenizer->bpe) ? BT_OK : no_memory(l);
}

static enum bt_status specialise(struct loader *l)
{
    return bt_splitter_specialise(&l->tokenizer->splitter, l->error);
}

enum bt_status bt_tokenizer_file_load(const char *model_dir, struct bt_error *error,
                                      struct bt_tokenizer *tokenizer)
{
    struct loader l = {.tokenizer = tokenizer, .error = error};
    enum bt_status status = bt_json_file_load(model_dir, "tokenizer.json", error, &l.file);
    if (status != BT_OK)
        return status;
    enum bt_status (*const steps[])(struct loader *) = {
        check_normalizer, check_decoder, load_pre_tokenizer, find_model, measure_tokens,
        load_vocab,       load_bytes,    load_merges,        load_added, specialise,
    };
    for (size_t i = 0; i < sizeof steps / sizeof *steps && status == BT_OK; i++)
        status = steps[i](&l);
    bt_json_file_finish(&l.file);
    return status;
}
