/*
 * The man page of a program, made of its option table and of what --help says on top: the first
 * line of that is the synopsis, lines that are indented are examples, all else is the description.
 */
#ifndef BATON_COMMON_BASE_MAN_PAGE_H
#define BATON_COMMON_BASE_MAN_PAGE_H

#include <stdio.h>

#include "common/base/option.h"

struct bt_man_page {
    const char *name;    /* "baton-router" */
    const char *summary; /* NULL: the description's first sentence */
    const char *usage;
    const struct bt_option *options;
    const char *exit_status; /* a paragraph of lines "0  done"; NULL: 0, 1 and 2 */
    const char *see_also;    /* "batonctl(1), baton-router(1)"; NULL: batonctl(1) */
};

void bt_man_page_print(const struct bt_man_page *page, FILE *out);

/* Text as it is read, also where troff would take it for a request, in lines as they are. */
void bt_man_text_print(const char *text, size_t size, FILE *out);

#endif
