#include "common/text/detokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "common/text/stop_matcher.h"
#include "common/text/utf8.h"

#define UNFINISHED_MAX 3 /* bytes of a character that lacks its last one */

struct bt_detokenizer {
    const struct bt_tokenizer *tokenizer;
    struct bt_stop_matcher stops;
    bool skip_special;
    bool stopped;
    char unfinished[UNFINISHED_MAX];
    size_t unfinished_size;
    /* What was shown last, then what is held back. Never grows: see create. */
    char *text;
    size_t text_size, shown_size;
    char *bytes; /* unfinished bytes and those of one token */
};

static enum bt_status add_stop(struct bt_detokenizer *d, size_t index, const char *stop,
                               struct bt_error *error)
{
    size_t size = strlen(stop);
    if (size == 0 || size > BT_STOP_MAX_BYTES)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "stop[%zu] must have 1 to %d bytes",
                            index, BT_STOP_MAX_BYTES);
    if (bt_utf8_valid_size(stop, size) != size)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "stop[%zu] is not UTF-8", index);
    if (bt_stop_matcher_add(&d->stops, stop, size) != 0)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for stop strings");
    return BT_OK;
}

enum bt_status bt_detokenizer_create(const struct bt_tokenizer *tokenizer, const char *const *stop,
                                     size_t stop_count, bool skip_special, struct bt_error *error,
                                     struct bt_detokenizer **ret_detokenizer)
{
    if (stop_count > BT_STOP_MAX_STRINGS)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "stop has more than %d strings",
                            BT_STOP_MAX_STRINGS);
    struct bt_detokenizer *d = calloc(1, sizeof *d);
    if (!d)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a detokenizer");
    d->tokenizer = tokenizer;
    d->skip_special = skip_special;
    /* A broken byte becomes the three of U+FFFD; held back is less than a stop string. */
    size_t byte_capacity = UNFINISHED_MAX + bt_tokenizer_longest_token(tokenizer);
    enum bt_status status = BT_OK;
    d->bytes = malloc(byte_capacity);
    d->text = malloc((stop_count ? BT_STOP_MAX_BYTES : 0) + 3 * byte_capacity);
    if (!d->bytes || !d->text)
        status = bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for a detokenizer");
    for (size_t i = 0; i < stop_count && status == BT_OK; i++)
        status = add_stop(d, i, stop[i], error);
    if (status != BT_OK) {
        bt_detokenizer_destroy(d);
        return status;
    }
    *ret_detokenizer = d;
    return BT_OK;
}

void bt_detokenizer_destroy(struct bt_detokenizer *detokenizer)
{
    if (!detokenizer)
        return;
    bt_stop_matcher_finish(&detokenizer->stops);
    free(detokenizer->bytes);
    free(detokenizer->text);
    free(detokenizer);
}

/* Appends decoded text; true when a stop string is complete, and the text then ends before it. */
static bool append(struct bt_detokenizer *d, const char *text, size_t size)
{
    if (d->stops.count == 0) {
        memcpy(d->text + d->text_size, text, size);
        d->text_size += size;
        return false;
    }
    for (size_t i = 0; i < size; i++) {
        d->text[d->text_size++] = text[i];
        size_t stop_size = bt_stop_matcher_push(&d->stops, text[i]);
        if (stop_size) {
            d->text_size -= stop_size;
            return true;
        }
    }
    return false;
}

/* Decodes d->bytes[0..size); the start of a character at the end waits for the next token. */
static bool decode(struct bt_detokenizer *d, size_t size)
{
    d->unfinished_size = 0;
    for (size_t at = 0; at < size;) {
        size_t length;
        bool stop = false;
        switch (bt_utf8_next(d->bytes + at, size - at, &length)) {
        case BT_UTF8_CHARACTER:
            stop = append(d, d->bytes + at, length);
            break;
        case BT_UTF8_BROKEN:
            stop = append(d, BT_UTF8_REPLACEMENT, 3);
            break;
        case BT_UTF8_UNFINISHED:
            memcpy(d->unfinished, d->bytes + at, length);
            d->unfinished_size = length;
            break;
        }
        if (stop)
            return true;
        at += length;
    }
    return false;
}

/* Drops what was shown by the last call, so that only what is held back is left. */
static void forget_shown(struct bt_detokenizer *d)
{
    d->text_size -= d->shown_size;
    memmove(d->text, d->text + d->shown_size, d->text_size);
    d->shown_size = 0;
}

static void show(struct bt_detokenizer *d, size_t held, const char **ret_text, size_t *ret_size)
{
    d->shown_size = d->text_size - held;
    *ret_text = d->text;
    *ret_size = d->shown_size;
}

bool bt_detokenizer_push(struct bt_detokenizer *detokenizer, uint32_t token, const char **ret_text,
                         size_t *ret_size)
{
    struct bt_detokenizer *d = detokenizer;
    forget_shown(d);
    size_t size = 0;
    const char *bytes = bt_tokenizer_bytes(d->tokenizer, token, &size);
    if (d->skip_special && bt_tokenizer_is_special(d->tokenizer, token))
        size = 0;
    if (size && !d->stopped) {
        memcpy(d->bytes, d->unfinished, d->unfinished_size);
        memcpy(d->bytes + d->unfinished_size, bytes, size);
        d->stopped = decode(d, d->unfinished_size + size);
    }
    show(d, d->stopped ? 0 : bt_stop_matcher_held(&d->stops), ret_text, ret_size);
    return d->stopped;
}

void bt_detokenizer_finish(struct bt_detokenizer *detokenizer, const char **ret_text,
                           size_t *ret_size)
{
    struct bt_detokenizer *d = detokenizer;
    forget_shown(d);
    if (d->unfinished_size && !d->stopped)
        d->stopped = append(d, BT_UTF8_REPLACEMENT, 3);
    d->unfinished_size = 0;
    show(d, 0, ret_text, ret_size);
}
