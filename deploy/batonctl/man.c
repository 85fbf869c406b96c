/* batonctl man: the page of batonctl, and one a verb. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/man_page.h"
#include "deploy/batonctl/verbs.h"

static const char exit_status[] =
    "0  done\n1  failed\n2  wrong usage\n3  no such cluster, or it can not be reached";

void ctl_man_verb(const struct ctl_verb *verb, const struct bt_option *options, const char *usage,
                  FILE *out)
{
    char name[CTL_NAME_SIZE + 16];
    snprintf(name, sizeof(name), "batonctl-%s", verb->name);
    const struct bt_man_page page = {
        .name = name,
        .summary = verb->help,
        .usage = usage,
        .options = options,
        .exit_status = verb->run == ctl_verb_doctor
                           ? "0  fine\n1  degraded: it works, slower than it could\n2  broken\n"
                             "3  the question could not be asked"
                           : exit_status,
        .see_also = "batonctl(1), baton-router(1), baton-prefill(1), baton-decode(1)",
    };
    bt_man_page_print(&page, out);
}

/* What batonctl itself has in place of a usage: the verbs. */
static void print_overview(FILE *out)
{
    static const struct bt_option none[] = {{0}};
    static const char head[] =
        "batonctl VERB [OPTIONS] [WORDS]\n\n"
        "Starts clusters of Baton, looks at them, asks their models, scales and measures them.\n"
        "Every verb has a page of its own, batonctl-VERB(1), and --help.\n\n"
        "  batonctl up --model tests/models/tiny --prefill 1 --decode 2\n"
        "  batonctl chat 'Who are you?'\n"
        "  batonctl down";
    const struct bt_man_page page = {
        .name = "batonctl",
        .summary = "operate a Baton cluster",
        .usage = head,
        .options = none,
        .exit_status = exit_status,
        .see_also = "baton-router(1), baton-prefill(1), baton-decode(1)",
    };
    bt_man_page_print(&page, out);
    fputs(".SH VERBS\n", out);
    for (const struct ctl_verb *verb = ctl_verbs; verb->name; verb++) {
        if (verb->hidden)
            continue;
        fputs(".TP\n\\fBbatonctl\\-", out);
        bt_man_text_print(verb->name, strlen(verb->name), out);
        fputs("\\fP(1)\n", out);
        bt_man_text_print(verb->help, strlen(verb->help), out);
        fputs("\n", out);
    }
}

/* Into files of a directory; what went wrong first is kept. */
struct pages {
    const char *dir;
    json_t *files;
    enum bt_status status;
    struct bt_error *error;
};

static FILE *page_open(struct pages *pages, const char *name, char path[PATH_MAX])
{
    int size = snprintf(path, PATH_MAX, "%s/%s.1", pages->dir, name);
    FILE *file = size < PATH_MAX ? fopen(path, "we") : NULL;
    if (!file)
        pages->status =
            bt_error_set(pages->error, BT_ERR_IO, "%s/%s.1: %s", pages->dir, name, strerror(errno));
    return file;
}

static void page_close(struct pages *pages, FILE *file, const char *path)
{
    bool failed = ferror(file);
    if (fclose(file) != 0 || failed)
        pages->status = bt_error_set(pages->error, BT_ERR_IO, "%s: %s", path, strerror(errno));
    json_array_append_new(pages->files, json_string(path));
}

static void write_verb(void *context, const struct ctl_verb *verb, const struct bt_option *options,
                       const char *usage)
{
    struct pages *pages = context;
    char name[CTL_NAME_SIZE + 16], path[PATH_MAX];
    snprintf(name, sizeof(name), "batonctl-%s", verb->name);
    FILE *file = page_open(pages, name, path);
    if (!file)
        return;
    ctl_man_verb(verb, options, usage, file);
    page_close(pages, file, path);
}

static void write_pages(struct pages *pages)
{
    char path[PATH_MAX];
    FILE *file = page_open(pages, "batonctl", path);
    if (!file)
        return;
    print_overview(file);
    page_close(pages, file, path);
    for (const struct ctl_verb *verb = ctl_verbs; verb->name && pages->status == BT_OK; verb++)
        if (!verb->hidden)
            ctl_describe(verb, write_verb, pages);
}

static int print_files(json_t *files, int output)
{
    size_t i;
    json_t *file;
    if (output == CTL_OUTPUT_JSON)
        return ctl_print_json(json_pack("{s:O}", "files", files));
    json_array_foreach(files, i, file) printf("%s\n", json_string_value(file));
    return CTL_EXIT_OK;
}

static int print_overview_as(int output)
{
    if (output != CTL_OUTPUT_JSON) {
        print_overview(stdout);
        return CTL_EXIT_OK;
    }
    char *text = NULL;
    size_t size = 0;
    FILE *file = open_memstream(&text, &size);
    if (!file)
        return CTL_EXIT_FAILED;
    print_overview(file);
    fclose(file);
    int code = ctl_print_json(json_pack("{s:s}", "page", text));
    free(text);
    return code;
}

int ctl_verb_man(int argc, char **argv)
{
    const char *dir;
    int output;
    const struct bt_option options[] = {
        {"dir", BT_OPTION_STRING, &dir, NULL, .metavar = "DIR",
         .help = "write batonctl.1 and one page a verb there, instead of printing the first"},
        CTL_OUTPUT_OPTION(output),
        {0},
    };
    static const char usage[] =
        "batonctl man [--dir DIR]\n\n"
        "  batonctl man --dir ~/.local/share/man/man1\n"
        "  batonctl up --help=man | man -l -\n\n"
        "Pages are made of the same tables as --help. Of a single verb, and of baton-router,\n"
        "baton-prefill and baton-decode, --help=man prints the page.";
    int code = ctl_parse(options, usage, argc, argv, NULL);
    if (code >= 0)
        return code;
    if (!dir)
        return print_overview_as(output);
    struct bt_error error;
    struct pages pages = {dir, json_array(), BT_OK, &error};
    write_pages(&pages);
    code = pages.status == BT_OK ? print_files(pages.files, output) : ctl_fail("man", &error);
    json_decref(pages.files);
    return code;
}
