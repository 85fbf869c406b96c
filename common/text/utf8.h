/*
 * UTF-8 as the Unicode standard defines it: no surrogates, no overlong forms, nothing past
 * U+10FFFF. Pure functions.
 */
#ifndef BATON_COMMON_TEXT_UTF8_H
#define BATON_COMMON_TEXT_UTF8_H

#include <stddef.h>
#include <stdint.h>

enum bt_utf8_kind {
    BT_UTF8_CHARACTER,  /* one whole character */
    BT_UTF8_BROKEN,     /* one maximal ill-formed part: to be shown as one U+FFFD */
    BT_UTF8_UNFINISHED, /* all that is left is the start of a character */
};

#define BT_UTF8_REPLACEMENT "\xEF\xBF\xBD" /* U+FFFD */

/* What stands at the start of `bytes` (`size` > 0) and how many bytes it takes (1 to 4). */
enum bt_utf8_kind bt_utf8_next(const char *bytes, size_t size, size_t *ret_size);

/* Length of the longest well-formed start of `bytes`: `size` when all of it is UTF-8. */
size_t bt_utf8_valid_size(const char *bytes, size_t size);

/* The code point of a whole character, as bt_utf8_next() delimits it. */
uint32_t bt_utf8_code_point(const char *character, size_t size);

#endif
