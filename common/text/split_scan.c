#include "common/text/split_scan.h"

#include <stdlib.h>
#include <string.h>

#define MAX_INTERVAL 9

static const char *const words_patterns[] = {
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|"
    "[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|"
    "\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|"
    "[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|"
    "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
};

void bt_split_flags_finish(struct bt_split_flags *flags)
{
    for (unsigned i = 0; i < flags->count; i++)
        free(flags->patterns[i]);
    *flags = (struct bt_split_flags){0};
}

/* The flag of a class, a new one for a new class; 0: they are used up. False: no memory. */
static bool flag_of(struct bt_split_flags *flags, const char *pattern, size_t size,
                    uint16_t *ret_flag)
{
    *ret_flag = 0;
    for (unsigned i = 0; i < flags->count; i++) {
        if (strlen(flags->patterns[i]) == size && memcmp(flags->patterns[i], pattern, size) == 0) {
            *ret_flag = (uint16_t)(1u << i);
            return true;
        }
    }
    if (flags->count == BT_CODE_CLASS_FLAGS)
        return true;
    flags->patterns[flags->count] = strndup(pattern, size);
    if (!flags->patterns[flags->count])
        return false;
    *ret_flag = (uint16_t)(1u << flags->count++);
    return true;
}

static bool flag_of_text(struct bt_split_flags *flags, const char *pattern, uint16_t *ret_flag)
{
    return flag_of(flags, pattern, strlen(pattern), ret_flag);
}

/* Bytes of the \p{..} or [..] at `pattern`; 0: neither. The rule is known to compile. */
static size_t class_size(const char *pattern)
{
    if (strncmp(pattern, "\\p{", 3) == 0) {
        const char *end = strchr(pattern, '}');
        return end ? (size_t)(end + 1 - pattern) : 0;
    }
    if (pattern[0] != '[')
        return 0;
    for (const char *p = pattern + 1; *p; p++) {
        if (*p == ']')
            return (size_t)(p + 1 - pattern);
        if (*p == '\\' && !*++p)
            break;
    }
    return 0;
}

/* What follows the class; 0: nothing that is known here. */
static uint32_t longest_run(const char *quantifier)
{
    if (!quantifier[0])
        return 1;
    if (strcmp(quantifier, "+") == 0)
        return BT_SPLIT_SCAN_WITHOUT_END;
    if (strncmp(quantifier, "{1,", 3) == 0 && quantifier[3] >= '1' &&
        quantifier[3] <= '0' + MAX_INTERVAL && strcmp(quantifier + 4, "}") == 0)
        return (uint32_t)(quantifier[3] - '0');
    return 0;
}

static bool recognise_run(const char *pattern, struct bt_split_flags *flags,
                          struct bt_split_scan *scan)
{
    bool leading_space = strncmp(pattern, "\\s?", 3) == 0;
    const char *class = pattern + (leading_space ? 3 : 0);
    size_t size = class_size(class);
    uint32_t longest = size ? longest_run(class + size) : 0;
    if (longest == 0 || (leading_space && longest != BT_SPLIT_SCAN_WITHOUT_END))
        return true;
    if (!flag_of(flags, class, size, &scan->members) ||
        (leading_space && !flag_of_text(flags, "\\s", &scan->space)))
        return false;
    if (!scan->members || (leading_space && !scan->space))
        return true;
    scan->kind = BT_SPLIT_SCAN_RUN;
    scan->longest = longest;
    scan->leading_space = leading_space;
    return true;
}

static bool recognise_tail(struct bt_split_flags *flags, struct bt_split_scan *scan)
{
    if (!flag_of_text(flags, "\\s", &scan->space))
        return false;
    scan->kind = scan->space ? BT_SPLIT_SCAN_TAIL : BT_SPLIT_SCAN_NONE;
    return true;
}

static bool recognise_words(struct bt_split_flags *flags, struct bt_split_scan *scan)
{
    if (!flag_of_text(flags, "\\s", &scan->space) ||
        !flag_of_text(flags, "[\r\n]", &scan->newline) ||
        !flag_of_text(flags, "[\\p{L}\\p{M}]", &scan->letters) ||
        !flag_of_text(flags, "[\\p{P}\\p{S}]", &scan->symbols))
        return false;
    bool all = scan->space && scan->newline && scan->letters && scan->symbols;
    scan->kind = all ? BT_SPLIT_SCAN_WORDS : BT_SPLIT_SCAN_NONE;
    return true;
}

bool bt_split_scan_recognise(const char *pattern, struct bt_split_flags *flags,
                             struct bt_split_scan *ret_scan)
{
    *ret_scan = (struct bt_split_scan){.kind = BT_SPLIT_SCAN_NONE};
    if (strcmp(pattern, "\\s+$") == 0)
        return recognise_tail(flags, ret_scan);
    for (size_t i = 0; i < sizeof words_patterns / sizeof *words_patterns; i++)
        if (strcmp(pattern, words_patterns[i]) == 0)
            return recognise_words(flags, ret_scan);
    return recognise_run(pattern, flags, ret_scan);
}

/* The end of the characters from `at` on that have one of the flags. */
static inline size_t skip(const struct bt_code_class *classes, const char *text, size_t size,
                          size_t at, uint16_t flags)
{
    size_t length;
    while (at < size && (bt_code_class_get(classes, text + at, &length) & flags))
        at += length;
    return at;
}

static bool find_run(const struct bt_split_scan *scan, const struct bt_code_class *classes,
                     const char *text, size_t size, size_t from, size_t *ret_from, size_t *ret_to)
{
    size_t at = from, length = 0;
    uint16_t flags = 0, before = 0;
    size_t before_length = 0;
    for (; at < size; at += length) {
        flags = bt_code_class_get(classes, text + at, &length);
        if (flags & scan->members)
            break;
        before = flags;
        before_length = length;
    }
    if (at >= size)
        return false;
    *ret_from = scan->leading_space && (before & scan->space) ? at - before_length : at;
    if (scan->longest == BT_SPLIT_SCAN_WITHOUT_END) {
        *ret_to = skip(classes, text, size, at + length, scan->members);
        return true;
    }
    at += length;
    for (uint32_t taken = 1; taken < scan->longest && at < size; taken++, at += length) {
        if (!(bt_code_class_get(classes, text + at, &length) & scan->members))
            break;
    }
    *ret_to = at;
    return true;
}

/* The start of the character that ends at `at`. */
static size_t step_back(const char *text, size_t at)
{
    do
        at--;
    while (((unsigned char)text[at] & 0xC0) == 0x80);
    return at;
}

/*
 * `$` is the end of the text or the place before a line feed, so a run of spaces is taken whole at
 * the end and up to its last line feed elsewhere. No later start in a run gives a match where the
 * first gives none.
 */
static bool find_tail(const struct bt_split_scan *scan, const struct bt_code_class *classes,
                      const char *text, size_t size, size_t from, size_t *ret_from, size_t *ret_to)
{
    size_t at = from, length;
    while (at < size) {
        if (!(bt_code_class_get(classes, text + at, &length) & scan->space)) {
            at += length;
            continue;
        }
        size_t end = skip(classes, text, size, at, scan->space), stop = end;
        if (end < size)
            while (stop > at && text[stop - 1] != '\n')
                stop--;
        /* Now `stop` is past the line feed, whose own place is where the match ends. */
        size_t to = end == size ? end : stop > at ? stop - 1 : at;
        if (to > at) {
            *ret_from = at;
            *ret_to = to;
            return true;
        }
        at = end;
    }
    return false;
}

static inline bool is_ascii_letter(char c)
{
    return (unsigned char)((c | 0x20) - 'a') < 26;
}

/* A space at `at`, with `end` the end of the run of spaces that it starts: `\s*[\r\n]+`, then
 * `\s+(?!\S)`, then `\s+`. */
static size_t match_space(const char *text, size_t size, size_t at, size_t end)
{
    for (size_t stop = end; stop > at; stop--)
        if (text[stop - 1] == '\n' || text[stop - 1] == '\r')
            return stop;
    if (end == size)
        return end;
    size_t last = step_back(text, end);
    return last > at ? last : end;
}

/* The end of the match that starts at `at`, or 0: none does. The alternatives in their order. */
static inline size_t match_words(const struct bt_split_scan *scan,
                                 const struct bt_code_class *classes, const char *text, size_t size,
                                 size_t at)
{
    size_t length, next_length = 0;
    uint16_t flags = bt_code_class_get(classes, text + at, &length);
    size_t next = at + length;
    if (flags & scan->letters)
        return skip(classes, text, size, next, scan->letters);
    uint16_t after = next < size ? bt_code_class_get(classes, text + next, &next_length) : 0;
    if (flags & scan->symbols) {
        if (length == 1 && next < size && is_ascii_letter(text[next])) {
            while (next < size && is_ascii_letter(text[next]))
                next++;
            return next;
        }
        next = skip(classes, text, size, next, scan->symbols);
        return skip(classes, text, size, next, scan->newline);
    }
    if (!(flags & scan->newline) && (after & scan->letters))
        return skip(classes, text, size, next + next_length, scan->letters);
    if (text[at] == ' ' && (after & scan->symbols)) {
        next = skip(classes, text, size, next + next_length, scan->symbols);
        return skip(classes, text, size, next, scan->newline);
    }
    if (flags & scan->space)
        return match_space(text, size, at, skip(classes, text, size, next, scan->space));
    return 0;
}

static inline bool find_words(const struct bt_split_scan *scan, const struct bt_code_class *classes,
                              const char *text, size_t size, size_t from, size_t *ret_from,
                              size_t *ret_to)
{
    for (size_t at = from; at < size;) {
        size_t end = match_words(scan, classes, text, size, at), length;
        if (end) {
            *ret_from = at;
            *ret_to = end;
            return true;
        }
        bt_code_class_get(classes, text + at, &length);
        at += length;
    }
    return false;
}

bool bt_split_scan_find(const struct bt_split_scan *scan, const struct bt_code_class *classes,
                        const char *text, size_t size, size_t from, size_t *ret_from,
                        size_t *ret_to)
{
    switch (scan->kind) {
    case BT_SPLIT_SCAN_RUN:
        return find_run(scan, classes, text, size, from, ret_from, ret_to);
    case BT_SPLIT_SCAN_TAIL:
        return find_tail(scan, classes, text, size, from, ret_from, ret_to);
    case BT_SPLIT_SCAN_WORDS:
        return find_words(scan, classes, text, size, from, ret_from, ret_to);
    case BT_SPLIT_SCAN_NONE:
        break;
    }
    BT_ASSERT(!"a rule of PCRE2");
}

static enum bt_split_cut cut_run(const struct bt_split_scan *scan, uint16_t before, uint16_t after)
{
    bool from_member = before & scan->members, to_member = after & scan->members;
    if (!from_member && !to_member)
        return BT_SPLIT_CUT_BLIND;
    if (from_member && !to_member)
        return BT_SPLIT_CUT_YES;
    if (from_member)
        return scan->longest == 1 ? BT_SPLIT_CUT_YES : BT_SPLIT_CUT_NO;
    return scan->leading_space && (before & scan->space) ? BT_SPLIT_CUT_NO : BT_SPLIT_CUT_YES;
}

static enum bt_split_cut cut_words(const struct bt_split_scan *scan, uint16_t before,
                                   uint16_t after)
{
    if (before & scan->letters)
        return after & scan->letters ? BT_SPLIT_CUT_NO : BT_SPLIT_CUT_YES;
    bool line_ended = (before & scan->newline) && !(after & scan->space);
    return line_ended ? BT_SPLIT_CUT_YES : BT_SPLIT_CUT_NO;
}

enum bt_split_cut bt_split_scan_cut(const struct bt_split_scan *scan, uint16_t before,
                                    uint16_t after)
{
    switch (scan->kind) {
    case BT_SPLIT_SCAN_RUN:
        return cut_run(scan, before, after);
    case BT_SPLIT_SCAN_TAIL:
        return before & scan->space ? BT_SPLIT_CUT_NO : BT_SPLIT_CUT_BLIND;
    case BT_SPLIT_SCAN_WORDS:
        return cut_words(scan, before, after);
    case BT_SPLIT_SCAN_NONE:
        break;
    }
    return BT_SPLIT_CUT_NO;
}
