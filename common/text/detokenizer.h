/*
 * Incremental detokenizer with stop strings: tokens in, text out that is safe to show.
 *
 * Caller-owned, one per stream. Text is released as soon as it can no longer change: bytes of an
 * unfinished UTF-8 character are held back until it is complete (or proven broken: then U+FFFD per
 * maximal ill-formed part, as the Unicode standard recommends), and text that could be the start
 * of a stop string is held back until it can't be one. Memory is bounded by the longest stop
 * string plus one token.
 */
#ifndef BATON_COMMON_TEXT_DETOKENIZER_H
#define BATON_COMMON_TEXT_DETOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"
#include "common/text/tokenizer.h"

#define BT_STOP_MAX_STRINGS 16
#define BT_STOP_MAX_BYTES   1024 /* of one string */

struct bt_detokenizer;

/*
 * `stop`: NUL-terminated UTF-8 strings, copied; empty ones, too many or too long ones are
 * INVALID_ARGUMENT. `skip_special`: special tokens give no text.
 */
enum bt_status bt_detokenizer_create(const struct bt_tokenizer *tokenizer, const char *const *stop,
                                     size_t stop_count, bool skip_special, struct bt_error *error,
                                     struct bt_detokenizer **ret_detokenizer);
void bt_detokenizer_destroy(struct bt_detokenizer *detokenizer);

/*
 * Adds one token. `ret_text`/`ret_size`: new text to show (may be empty), valid until the next
 * call. Returns true when a stop string is complete: the text ends before it, nothing comes after.
 */
bool bt_detokenizer_push(struct bt_detokenizer *detokenizer, uint32_t token, const char **ret_text,
                         size_t *ret_size);

/* The end of the stream without a stop string: what was held back. */
void bt_detokenizer_finish(struct bt_detokenizer *detokenizer, const char **ret_text,
                           size_t *ret_size);

#endif
