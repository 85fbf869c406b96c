/*
 * A set of flags for every code point: what the split rules ask of a character, in one look-up.
 * Which characters a class has is asked of PCRE2 itself, over all of Unicode, so the table can't
 * differ from the rule it stands for. Built by one thread, then read by any. Caller-owned,
 * zero-initialised.
 */
#ifndef BATON_COMMON_TEXT_CODE_CLASS_H
#define BATON_COMMON_TEXT_CODE_CLASS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

#define BT_CODE_CLASS_FLAGS     16
#define BT_CODE_CLASS_PAGE_SIZE 256 /* code points */
#define BT_CODE_CLASS_PAGES     (0x110000 / BT_CODE_CLASS_PAGE_SIZE)

struct bt_code_class {
    uint16_t (*pages)[BT_CODE_CLASS_PAGE_SIZE]; /* the different ones; the first is ASCII's */
    uint16_t page_of[BT_CODE_CLASS_PAGES];      /* code point / 256 to index of `pages` */
};

/* While it is built: flags by code point, and a text of all of them. */
struct bt_code_class_draft;

struct bt_code_class_draft *bt_code_class_draft_create(void); /* NULL: no memory */
void bt_code_class_draft_destroy(struct bt_code_class_draft *draft);

/*
 * Gives `flag` to each code point that `pattern` matches as a whole text; `pattern` is a split rule
 * of one character without a quantifier. Errors: those of bt_split_rule_init() and _find().
 */
enum bt_status bt_code_class_draft_mark(struct bt_code_class_draft *draft, const char *pattern,
                                        uint16_t flag, struct bt_error *error);

/* False: no memory. */
bool bt_code_class_init(struct bt_code_class *classes, const struct bt_code_class_draft *draft);
void bt_code_class_finish(struct bt_code_class *classes);

/* The flags of the character at `text`, which must be UTF-8, and its size in bytes. */
static inline uint16_t bt_code_class_get(const struct bt_code_class *classes, const char *text,
                                         size_t *ret_size)
{
    const unsigned char *b = (const unsigned char *)text;
    if (b[0] < 0x80) {
        *ret_size = 1;
        return classes->pages[0][b[0]];
    }
    uint32_t code;
    if (b[0] < 0xE0) {
        *ret_size = 2;
        code = (b[0] & 0x1Fu) << 6 | (b[1] & 0x3Fu);
    } else if (b[0] < 0xF0) {
        *ret_size = 3;
        code = (b[0] & 0x0Fu) << 12 | (b[1] & 0x3Fu) << 6 | (b[2] & 0x3Fu);
    } else {
        *ret_size = 4;
        code = (b[0] & 0x07u) << 18 | (b[1] & 0x3Fu) << 12 | (b[2] & 0x3Fu) << 6 | (b[3] & 0x3Fu);
    }
    return classes
        ->pages[classes->page_of[code / BT_CODE_CLASS_PAGE_SIZE]][code % BT_CODE_CLASS_PAGE_SIZE];
}

#endif
