#include "common/text/code_class.h"

#include <stdlib.h>
#include <string.h>

#include "common/text/split_rule.h"
#include "common/text/utf8.h"

#define CODE_POINTS 0x110000u

struct bt_code_class_draft {
    uint16_t *flags; /* [code point] */
    char *text;      /* every code point but the surrogates, in order */
    size_t size;
};

static size_t put_utf8(uint32_t code, char *out)
{
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    size_t size = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    static const unsigned char lead[] = {0, 0, 0xC0, 0xE0, 0xF0};
    for (size_t i = size; i-- > 1; code >>= 6)
        out[i] = (char)(0x80 | (code & 0x3F));
    out[0] = (char)(lead[size] | code);
    return size;
}

struct bt_code_class_draft *bt_code_class_draft_create(void)
{
    struct bt_code_class_draft *draft = calloc(1, sizeof *draft);
    if (!draft)
        return NULL;
    draft->flags = calloc(CODE_POINTS, sizeof *draft->flags);
    draft->text = malloc(4 * (size_t)CODE_POINTS);
    if (!draft->flags || !draft->text) {
        bt_code_class_draft_destroy(draft);
        return NULL;
    }
    for (uint32_t code = 0; code < CODE_POINTS; code++)
        if (code < 0xD800 || code > 0xDFFF)
            draft->size += put_utf8(code, draft->text + draft->size);
    return draft;
}

void bt_code_class_draft_destroy(struct bt_code_class_draft *draft)
{
    if (!draft)
        return;
    free(draft->flags);
    free(draft->text);
    free(draft);
}

static void mark_run(struct bt_code_class_draft *draft, size_t from, size_t to, uint16_t flag)
{
    while (from < to) {
        size_t size;
        bt_utf8_next(draft->text + from, to - from, &size);
        draft->flags[bt_utf8_code_point(draft->text + from, size)] |= flag;
        from += size;
    }
}

enum bt_status bt_code_class_draft_mark(struct bt_code_class_draft *draft, const char *pattern,
                                        uint16_t flag, struct bt_error *error)
{
    struct bt_split_rule rule = {0};
    struct bt_split_scratch *scratch = bt_split_scratch_create();
    size_t length = strlen(pattern), from = 0, to = 0;
    char *run = malloc(length + 2);
    enum bt_status status = BT_ERR_NO_MEMORY;
    if (!scratch || !run)
        goto done;
    memcpy(run, pattern, length);
    memcpy(run + length, "+", 2);
    if ((status = bt_split_rule_init(&rule, run, error)) != BT_OK)
        goto done;
    bt_split_scratch_limit(scratch, draft->size);
    while ((status = bt_split_rule_find(&rule, scratch, draft->text, draft->size, to, error, &from,
                                        &to)) == BT_OK)
        mark_run(draft, from, to, flag);
    if (status == BT_ERR_NOT_FOUND)
        status = BT_OK;
done:
    if (status == BT_ERR_NO_MEMORY)
        bt_error_set(error, status, "no memory for a split rule");
    free(run);
    bt_split_rule_finish(&rule);
    bt_split_scratch_destroy(scratch);
    return status;
}

/* The index of a page like this one, which is put at the end when it is new. */
static uint16_t find_page(struct bt_code_class *classes, size_t *count, const uint16_t *page)
{
    size_t i = 0;
    while (i < *count && memcmp(classes->pages[i], page, sizeof *classes->pages) != 0)
        i++;
    if (i == *count)
        memcpy(classes->pages[(*count)++], page, sizeof *classes->pages);
    return (uint16_t)i;
}

bool bt_code_class_init(struct bt_code_class *classes, const struct bt_code_class_draft *draft)
{
    size_t count = 0;
    classes->pages = malloc(BT_CODE_CLASS_PAGES * sizeof *classes->pages);
    if (!classes->pages)
        return false;
    for (size_t i = 0; i < BT_CODE_CLASS_PAGES; i++)
        classes->page_of[i] =
            find_page(classes, &count, draft->flags + i * BT_CODE_CLASS_PAGE_SIZE);
    void *fitting = realloc(classes->pages, count * sizeof *classes->pages);
    if (fitting)
        classes->pages = fitting;
    return true;
}

void bt_code_class_finish(struct bt_code_class *classes)
{
    free(classes->pages);
    *classes = (struct bt_code_class){0};
}
