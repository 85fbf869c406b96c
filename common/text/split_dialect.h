/*
 * Split rules are written for Oniguruma (Ruby syntax, UTF-8); here they run on PCRE2. What both
 * read alike passes, what they read differently is rewritten (\s, \S, \p{..}), everything else is
 * refused by name. Pure function.
 */
#ifndef BATON_COMMON_TEXT_SPLIT_DIALECT_H
#define BATON_COMMON_TEXT_SPLIT_DIALECT_H

#include <stddef.h>

#define BT_SPLIT_MAX_PATTERN_BYTES 16384

/*
 * The same rule for PCRE2 with UTF, UCP and MULTILINE, newline LF; malloc'd. NULL: `ret_reason` is
 * a short text, or an empty one when there is no memory.
 */
char *bt_split_dialect_translate(const char *pattern, char ret_reason[static 80]);

#endif
