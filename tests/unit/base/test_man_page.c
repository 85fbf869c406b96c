/* Pages as troff reads them: what of them would be a request, an escape or a quotation is text. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/man_page.h"

static char *text;
static size_t text_size;

static void expect_text(const char *given, const char *expected)
{
    FILE *out = open_memstream(&text, &text_size);
    bt_man_text_print(given, strlen(given), out);
    fclose(out);
    assert_string_equal(text, expected);
    free(text);
}

static void test_text(void **state)
{
    (void)state;
    expect_text("", "");
    expect_text("plain words.", "plain words.");
    expect_text(".SH X", "\\&.SH X");
    expect_text("a\n.SH X\n'br", "a\n\\&.SH X\n\\&\\(aqbr");
    expect_text("a \\fB b", "a \\efB b");
    expect_text("--flag", "\\-\\-flag");
    expect_text("it's", "it\\(aqs");
    expect_text("a|b", "a|\\:b");
    expect_text("\n\n.x", "\n\n\\&.x");
}

static char *print(const struct bt_man_page *page)
{
    FILE *out = open_memstream(&text, &text_size);
    bt_man_page_print(page, out);
    fclose(out);
    return text;
}

static void expect_part(const char *part)
{
    if (!strstr(text, part))
        fail_msg("no '%s' in\n%s", part, text);
}

static void expect_none(const char *part)
{
    if (strstr(text, part))
        fail_msg("'%s' in\n%s", part, text);
}

static const char *name;
static int64_t count;
static bool fast;

static void test_page(void **state)
{
    (void)state;
    const struct bt_option options[] = {
        {"name", BT_OPTION_STRING, &name, .metavar = "WHO", .help = "Whose it's.", .letter = 'n'},
        {"chunk-count", BT_OPTION_INT, &count, "4k", 1, 1 << 20, .help = ".dots come first"},
        {"fast", BT_OPTION_BOOL, &fast, "false"},
        {0},
    };
    print(&(struct bt_man_page){
        .name = "baton-thing",
        .usage = "usage: baton-thing --name WHO\n\nServes a Thing. And more.\n.odd line\n\n"
                 "Another part.\n\n  baton-thing --name me\n      deeper\n",
        .options = options});
    assert_memory_equal(text, ".TH \"BATON-THING\" \"1\"", 20);
    expect_part(".SH NAME\nbaton\\-thing \\- serves a Thing\n");
    expect_part(".SH SYNOPSIS\n.nf\nbaton\\-thing \\-\\-name WHO\n.fi\n");
    expect_part(".SH DESCRIPTION\nServes a Thing. And more.\n\\&.odd line\n.PP\nAnother part.\n");
    expect_part(".TP\n\\fB\\-n\\fP, \\fB\\-\\-name\\fP \\fIWHO\\fP\nWhose it\\(aqs.\n.br\n(");
    expect_part(".TP\n\\fB\\-\\-chunk\\-count\\fP \\fI");
    expect_part("\\fP\n\\&.dots come first\n.br\n(");
    expect_part("BATON_CHUNK_COUNT");
    expect_part(".TP\n\\fB\\-\\-fast\\fP\n("); /* no value, and no help */
    expect_part(".SH EXAMPLES\n.nf\nbaton\\-thing \\-\\-name me\n    deeper\n.fi\n");
    expect_part(".SH EXIT STATUS\n.nf\n0  done\n1  failed\n2  wrong usage\n.fi\n");
    expect_part(".SH SEE ALSO\nbatonctl(1)\n");
    free(text);
}

static void test_own_words_and_empty_parts(void **state)
{
    (void)state;
    const struct bt_option none[] = {{0}};
    print(&(struct bt_man_page){.name = "x",
                                .summary = "does-it",
                                .usage = "x [OPTIONS]",
                                .options = none,
                                .exit_status = "0  fine",
                                .see_also = "y(1)"});
    expect_part(".SH NAME\nx \\- does\\-it\n.SH SYNOPSIS\n.nf\nx [OPTIONS]\n.fi\n.SH EXIT STATUS\n"
                ".nf\n0  fine\n.fi\n.SH SEE ALSO\ny(1)\n");
    expect_none("DESCRIPTION");
    expect_none("EXAMPLES");
    expect_none(".SH OPTIONS");
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text),
        cmocka_unit_test(test_page),
        cmocka_unit_test(test_own_words_and_empty_parts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
