/*
 * The split rules that DeepSeek's tokenizers are made of, found by looking characters up in a table
 * instead of by a regular expression, and where a text can be cut without changing what they find.
 *
 *   run     `X`, `X+`, `X{1,n}` or `\s?X+`, where X is one \p{..} or one [..]
 *   tail    `\s+$`
 *   words   the last rule of DeepSeek-V3 and later, in its two spellings
 *
 * Any other rule is left to PCRE2. Pure functions but for building.
 */
#ifndef BATON_COMMON_TEXT_SPLIT_SCAN_H
#define BATON_COMMON_TEXT_SPLIT_SCAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/text/code_class.h"

enum bt_split_scan_kind {
    BT_SPLIT_SCAN_NONE, /* left to PCRE2 */
    BT_SPLIT_SCAN_RUN,
    BT_SPLIT_SCAN_TAIL,
    BT_SPLIT_SCAN_WORDS,
};

#define BT_SPLIT_SCAN_WITHOUT_END UINT32_MAX

struct bt_split_scan {
    enum bt_split_scan_kind kind;
    uint32_t longest;   /* run: characters of X in a match at most */
    bool leading_space; /* run: \s? */
    uint16_t members;   /* run: flag of X */
    uint16_t space;     /* flag of \s */
    uint16_t newline;   /* words: flag of [\r\n] */
    uint16_t letters;   /* words: flag of [\p{L}\p{M}] */
    uint16_t symbols;   /* words: flag of [\p{P}\p{S}] */
};

/* Flags given out so far and the patterns they stand for; zero-initialised. */
struct bt_split_flags {
    char *patterns[BT_CODE_CLASS_FLAGS]; /* malloc'd */
    unsigned count;
};
void bt_split_flags_finish(struct bt_split_flags *flags);

/* The scan of one rule; NONE where it has none or the flags are used up. False: no memory. */
bool bt_split_scan_recognise(const char *pattern, struct bt_split_flags *flags,
                             struct bt_split_scan *ret_scan);

/* The leftmost match at or after `from` of a kind that isn't NONE. `text` must be UTF-8. */
bool bt_split_scan_find(const struct bt_split_scan *scan, const struct bt_code_class *classes,
                        const char *text, size_t size, size_t from, size_t *ret_from,
                        size_t *ret_to);

enum bt_split_cut {
    BT_SPLIT_CUT_NO,    /* a match may reach over the place, or differ when the text ends there */
    BT_SPLIT_CUT_BLIND, /* the rule sees no difference: a later one decides */
    BT_SPLIT_CUT_YES,   /* a piece ends there, whatever stands further away on either side */
};

/* What two neighbouring characters tell about the place between them, by their flags. */
enum bt_split_cut bt_split_scan_cut(const struct bt_split_scan *scan, uint16_t before,
                                    uint16_t after);

#endif
