#include "common/base/man_page.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

/* A line that begins with '.' or ''' would be a request. */
void bt_man_text_print(const char *text, size_t size, FILE *out)
{
    for (size_t i = 0; i < size; i++) {
        bool first = i == 0 || text[i - 1] == '\n';
        if (first && (text[i] == '.' || text[i] == '\''))
            fputs("\\&", out);
        if (text[i] == '\\')
            fputs("\\e", out);
        else if (text[i] == '-')
            fputs("\\-", out);
        else if (text[i] == '\'')
            fputs("\\(aq", out);
        else
            fputc(text[i], out);
        if (text[i] == '|') /* a list of choices may be longer than a line */
            fputs("\\:", out);
    }
}

static void print_text(const char *text, FILE *out)
{
    bt_man_text_print(text, strlen(text), out);
}

static size_t line_size(const char *line)
{
    return strcspn(line, "\n");
}

/* Where the next line begins, or the end. */
static const char *next_line(const char *line)
{
    line += line_size(line);
    return *line == '\n' ? line + 1 : line;
}

static bool is_example(const char *line)
{
    return line[0] == ' ';
}

static bool has_lines(const char *text, bool examples)
{
    for (; *text; text = next_line(text))
        if (line_size(text) > 0 && is_example(text) == examples)
            return true;
    return false;
}

static void print_description(const char *text, FILE *out)
{
    bool gap = false, any = false;
    for (; *text; text = next_line(text)) {
        gap = gap || line_size(text) == 0 || is_example(text);
        if (line_size(text) == 0 || is_example(text))
            continue;
        if (gap && any)
            fputs(".PP\n", out);
        bt_man_text_print(text, line_size(text), out);
        fputs("\n", out);
        gap = false;
        any = true;
    }
}

static void print_examples(const char *text, FILE *out)
{
    fputs(".nf\n", out);
    for (; *text; text = next_line(text)) {
        if (!is_example(text))
            continue;
        size_t indent = strspn(text, " ");
        indent = indent < 2 ? indent : 2;
        if (line_size(text) == indent)
            continue;
        bt_man_text_print(text + indent, line_size(text) - indent, out);
        fputs("\n", out);
    }
    fputs(".fi\n", out);
}

/* "usage: baton-router --model DIR" and "batonctl up [OPTIONS]" alike. */
static void print_synopsis(const struct bt_man_page *page, FILE *out)
{
    const char *line = page->usage;
    if (strncmp(line, "usage: ", 7) == 0)
        line += 7;
    fputs(".SH SYNOPSIS\n.nf\n", out);
    bt_man_text_print(line, line_size(line), out);
    fputs("\n.fi\n", out);
}

/* The first sentence, as it goes after a name: small, and without its end. */
static void print_first_sentence(const char *text, FILE *out)
{
    while (*text && (line_size(text) == 0 || is_example(text)))
        text = next_line(text);
    for (size_t i = 0; text[i] && text[i] != '.'; i++) {
        char c = text[i] == '\n' ? ' ' : i == 0 ? (char)tolower((unsigned char)text[i]) : text[i];
        bt_man_text_print(&c, 1, out);
    }
}

static void print_head(const struct bt_man_page *page, const char *body, FILE *out)
{
    fputs(".TH \"", out);
    for (const char *c = page->name; *c; c++)
        fputc(toupper((unsigned char)*c), out);
    fputs("\" \"1\" \"\" \"Baton\" \"Baton\"\n.ad l\n.nh\n.SH NAME\n", out);
    print_text(page->name, out);
    fputs(" \\- ", out);
    if (page->summary)
        print_text(page->summary, out);
    else
        print_first_sentence(body, out);
    fputs("\n", out);
}

static void print_option(const struct bt_option *option, FILE *out)
{
    const char *metavar = bt_option_metavar(option);
    char *values = NULL;
    size_t size = 0;
    FILE *stream = open_memstream(&values, &size);
    if (!stream)
        return;
    bt_option_print_values(option, stream);
    fclose(stream);
    fputs(".TP\n", out);
    if (option->letter)
        fprintf(out, "\\fB\\-%c\\fP, ", option->letter);
    fputs("\\fB\\-\\-", out);
    print_text(option->name, out);
    fputs("\\fP", out);
    if (metavar) {
        fputs(" \\fI", out);
        print_text(metavar, out);
        fputs("\\fP", out);
    }
    fputs("\n", out);
    if (option->help && option->help[0]) {
        print_text(option->help, out);
        fputs("\n.br\n", out);
    }
    fputs("(", out);
    print_text(values, out);
    fputs(")\n", out);
    free(values);
}

void bt_man_page_print(const struct bt_man_page *page, FILE *out)
{
    const char *body = next_line(page->usage);
    print_head(page, body, out);
    print_synopsis(page, out);
    if (has_lines(body, false)) {
        fputs(".SH DESCRIPTION\n", out);
        print_description(body, out);
    }
    if (page->options[0].name) {
        fputs(".SH OPTIONS\nA flag goes before its environment variable, and that before the "
              "default.\n",
              out);
        for (size_t i = 0; page->options[i].name; i++)
            print_option(&page->options[i], out);
    }
    if (has_lines(body, true)) {
        fputs(".SH EXAMPLES\n", out);
        print_examples(body, out);
    }
    fputs(".SH EXIT STATUS\n.nf\n", out);
    print_text(page->exit_status ? page->exit_status : "0  done\n1  failed\n2  wrong usage", out);
    fputs("\n.fi\n.SH SEE ALSO\n", out);
    print_text(page->see_also ? page->see_also : "batonctl(1)", out);
    fputs("\n", out);
}
