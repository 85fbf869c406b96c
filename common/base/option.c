#include "common/base/option.h"

#include <ctype.h>
#include <errno.h>
#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/man_page.h"
#include "common/base/nearest.h"

#define ENV_NAME_SIZE 128

static const char *const type_names[] = {
    [BT_OPTION_STRING] = "string", [BT_OPTION_INT] = "int",           [BT_OPTION_DOUBLE] = "number",
    [BT_OPTION_BOOL] = "bool",     [BT_OPTION_DURATION] = "duration", [BT_OPTION_CHOICE] = "choice",
};

static const char *const default_metavars[] = {
    [BT_OPTION_STRING] = "TEXT", [BT_OPTION_INT] = "N",         [BT_OPTION_DOUBLE] = "X",
    [BT_OPTION_BOOL] = NULL,     [BT_OPTION_DURATION] = "TIME", [BT_OPTION_CHOICE] = "NAME",
};

const char *bt_option_metavar(const struct bt_option *option)
{
    return option->metavar ? option->metavar : default_metavars[option->type];
}

static void env_name(const struct bt_option *option, char ret_name[ENV_NAME_SIZE])
{
    int length = snprintf(ret_name, ENV_NAME_SIZE, "BATON_%s", option->name);
    BT_ASSERT(length > 0 && length < ENV_NAME_SIZE);
    for (char *c = ret_name; *c; c++) {
        *c = *c == '-' ? '_' : (char)toupper((unsigned char)*c);
    }
}

/* ------------------------------------------------------------------ values */

/* Where a value came from, for messages: "--name", "BATON_NAME" or "default of --name". */
struct origin {
    const char *what;
    const char *text;
};

static enum bt_status bad_value(struct bt_error *error, const struct origin *origin,
                                const char *wanted)
{
    return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s: '%s' is not %s", origin->what,
                        origin->text, wanted);
}

static bool has_bounds(const struct bt_option *option)
{
    return option->min != 0 || option->max != 0;
}

static enum bt_status check_range(const struct bt_option *option, double value,
                                  struct bt_error *error, const struct origin *origin)
{
    if (!has_bounds(option) || (value >= option->min && value <= option->max)) {
        return BT_OK;
    }
    const char *unit = option->type == BT_OPTION_DURATION ? "s" : "";
    return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s: '%s' is out of range %.15g%s..%.15g%s",
                        origin->what, origin->text, option->min, unit, option->max, unit);
}

static bool int_parse(const char *text, int64_t *ret_value)
{
    if (!isdigit((unsigned char)*text) && *text != '-' && *text != '+') {
        return false;
    }
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (errno || end == text) {
        return false;
    }
    int64_t factor = 1;
    switch (*end) {
    case 'k':
    case 'K':
        factor = INT64_C(1) << 10;
        end++;
        break;
    case 'm':
    case 'M':
        factor = INT64_C(1) << 20;
        end++;
        break;
    case 'g':
    case 'G':
        factor = INT64_C(1) << 30;
        end++;
        break;
    default:
        break;
    }
    return *end == '\0' && !__builtin_mul_overflow((int64_t)value, factor, ret_value);
}

/* Plain decimal numbers alone: no hexadecimal, no infinity, no leading space. */
static bool double_parse(const char *text, char **ret_end, double *ret_value)
{
    size_t span = strspn(text, "0123456789+-.eE");
    if (span == 0) {
        return false;
    }
    *ret_value = strtod(text, ret_end);
    return *ret_end != text && *ret_end <= text + span && isfinite(*ret_value);
}

static bool duration_parse(const char *text, int64_t *ret_ns)
{
    static const struct {
        const char *name;
        double seconds;
    } units[] = {{"", 1}, {"s", 1}, {"ms", 1e-3}, {"us", 1e-6}, {"m", 60}, {"h", 3600}};
    char *end;
    double value;
    if (!double_parse(text, &end, &value) || value < 0) {
        return false;
    }
    for (size_t i = 0; i < sizeof units / sizeof units[0]; i++) {
        if (strcmp(end, units[i].name) == 0) {
            double ns = round(value * units[i].seconds * 1e9);
            if (ns >= 0x1p62) {
                return false;
            }
            *ret_ns = (int64_t)ns;
            return true;
        }
    }
    return false;
}

static bool bool_parse(const char *text, bool *ret_value)
{
    bool yes = strcmp(text, "true") == 0 || strcmp(text, "1") == 0;
    bool no = strcmp(text, "false") == 0 || strcmp(text, "0") == 0;
    *ret_value = yes;
    return yes || no;
}

static void choices_join(const char *const *choices, const char *between, char *ret_text,
                         size_t size)
{
    size_t length = 0;
    ret_text[0] = '\0';
    for (size_t i = 0; choices[i] && length < size; i++) {
        length += (size_t)snprintf(ret_text + length, size - length, "%s%s", i ? between : "",
                                   choices[i]);
    }
}

static enum bt_status choice_set(const struct bt_option *option, struct bt_error *error,
                                 const struct origin *origin)
{
    for (int i = 0; option->choices[i]; i++) {
        if (strcmp(option->choices[i], origin->text) == 0) {
            *(int *)option->value = i;
            return BT_OK;
        }
    }
    char all[256];
    choices_join(option->choices, ", ", all, sizeof all);
    return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s: '%s' is none of %s", origin->what,
                        origin->text, all);
}

static enum bt_status int_set(const struct bt_option *option, struct bt_error *error,
                              const struct origin *origin)
{
    int64_t value;
    if (!int_parse(origin->text, &value)) {
        return bad_value(error, origin, "a whole number (with k, m or g at most)");
    }
    enum bt_status status = check_range(option, (double)value, error, origin);
    if (status == BT_OK) {
        *(int64_t *)option->value = value;
    }
    return status;
}

static enum bt_status double_set(const struct bt_option *option, struct bt_error *error,
                                 const struct origin *origin)
{
    double value;
    char *end;
    if (!double_parse(origin->text, &end, &value) || *end) {
        return bad_value(error, origin, "a number");
    }
    enum bt_status status = check_range(option, value, error, origin);
    if (status == BT_OK) {
        *(double *)option->value = value;
    }
    return status;
}

static enum bt_status duration_set(const struct bt_option *option, struct bt_error *error,
                                   const struct origin *origin)
{
    int64_t value_ns;
    if (!duration_parse(origin->text, &value_ns)) {
        return bad_value(error, origin, "a time like 500ms, 30s or 5m");
    }
    enum bt_status status = check_range(option, (double)value_ns / 1e9, error, origin);
    if (status == BT_OK) {
        *(int64_t *)option->value = value_ns;
    }
    return status;
}

static enum bt_status value_set(const struct bt_option *option, struct bt_error *error,
                                const struct origin *origin)
{
    switch (option->type) {
    case BT_OPTION_STRING:
        *(const char **)option->value = origin->text;
        return BT_OK;
    case BT_OPTION_INT:
        return int_set(option, error, origin);
    case BT_OPTION_DOUBLE:
        return double_set(option, error, origin);
    case BT_OPTION_BOOL:
        return bool_parse(origin->text, option->value) ? BT_OK
                                                       : bad_value(error, origin, "true or false");
    case BT_OPTION_DURATION:
        return duration_set(option, error, origin);
    case BT_OPTION_CHOICE:
        return choice_set(option, error, origin);
    }
    BT_ASSERT(!"option type");
    return BT_ERR_INTERNAL;
}

/* ------------------------------------------------------------------ parsing */

static size_t option_count(const struct bt_option *options)
{
    size_t count = 0;
    while (options[count].name) {
        count++;
    }
    return count;
}

/* `name` ends at its '=' or NUL. The count where there is none. */
static size_t option_find(const struct bt_option *options, size_t count, const char *name,
                          size_t length)
{
    size_t i = 0;
    while (i < count && (strncmp(options[i].name, name, length) != 0 || options[i].name[length])) {
        i++;
    }
    return i;
}

struct arguments {
    int argc;
    char **argv;
    int next;
};

/* Of "-o" alone. The count where there is none. */
static size_t letter_find(const struct bt_option *options, size_t count, const char *argument)
{
    size_t i = argument[1] && !argument[2] ? 0 : count;
    while (i < count && options[i].letter != argument[1]) {
        i++;
    }
    return i;
}

static enum bt_status unknown(const struct bt_option *options, const char *argument,
                              size_t name_length, struct bt_error *error)
{
    char name[ENV_NAME_SIZE] = "";
    struct bt_nearest nearest = {.word = name};
    if (name_length > 0 && name_length < sizeof name) {
        memcpy(name, argument + 2, name_length);
    }
    for (size_t i = 0; options[i].name; i++) {
        bt_nearest_offer(&nearest, options[i].name);
    }
    if (!nearest.best) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "unknown option '%s'", argument);
    }
    return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "unknown option '%s'; did you mean --%s?",
                        argument, nearest.best);
}

/* One flag and its value. `seen[i]` tells that a flag came already. */
static enum bt_status flag_parse(const struct bt_option *options, size_t count, bool *seen,
                                 struct arguments *arguments, struct bt_error *error)
{
    const char *argument = arguments->argv[arguments->next++];
    size_t name_length = strncmp(argument, "--", 2) == 0 ? strcspn(argument + 2, "=") : 0;
    size_t i = name_length ? option_find(options, count, argument + 2, name_length)
                           : letter_find(options, count, argument);
    if (i == count) {
        return unknown(options, argument, name_length, error);
    }
    char what[ENV_NAME_SIZE];
    snprintf(what, sizeof what, "--%s", options[i].name);
    if (seen[i]) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s: given twice", what);
    }
    seen[i] = true;
    struct origin origin = {.what = what};
    if (name_length && argument[2 + name_length] == '=') {
        origin.text = argument + 2 + name_length + 1;
    } else if (options[i].type == BT_OPTION_BOOL) {
        origin.text = "true";
    } else if (arguments->next < arguments->argc) {
        origin.text = arguments->argv[arguments->next++];
    } else {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s: needs a value", what);
    }
    return value_set(&options[i], error, &origin);
}

static enum bt_status flags_parse(const struct bt_option *options, const char *usage, bool *seen,
                                  struct arguments *arguments, struct bt_error *error)
{
    size_t count = option_count(options);
    while (arguments->next < arguments->argc) {
        const char *argument = arguments->argv[arguments->next];
        if (argument[0] != '-' || argument[1] == '\0') {
            return BT_OK;
        }
        if (strcmp(argument, "--") == 0) {
            arguments->next++;
            return BT_OK;
        }
        if (strcmp(argument, "--help") == 0 || strcmp(argument, "-h") == 0) {
            bt_option_print_help(options, usage, stdout);
            return bt_error_set(error, BT_ERR_CANCELLED, "help was asked for");
        }
        if (strcmp(argument, "--help=man") == 0) {
            const char *slash = strrchr(arguments->argv[0], '/');
            const struct bt_man_page page = {
                .name = slash ? slash + 1 : arguments->argv[0], .usage = usage, .options = options};
            bt_man_page_print(&page, stdout);
            return bt_error_set(error, BT_ERR_CANCELLED, "the man page was asked for");
        }
        enum bt_status status = flag_parse(options, count, seen, arguments, error);
        if (status != BT_OK) {
            return status;
        }
    }
    return BT_OK;
}

/* From the environment, else the default. */
static enum bt_status unseen_set(const struct bt_option *option, struct bt_error *error)
{
    char name[ENV_NAME_SIZE];
    env_name(option, name);
    struct origin origin = {.what = name, .text = getenv(name)};
    if (origin.text) {
        return value_set(option, error, &origin);
    }
    if (option->required) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "--%s: is required (or set %s)",
                            option->name, name);
    }
    if (!option->default_value) {
        BT_ASSERT(option->type == BT_OPTION_STRING);
        *(const char **)option->value = NULL;
        return BT_OK;
    }
    origin = (struct origin){.what = "default", .text = option->default_value};
    enum bt_status status = value_set(option, error, &origin);
    BT_ASSERT(status == BT_OK);
    return status;
}

enum bt_status bt_option_parse(const struct bt_option *options, const char *usage, int argc,
                               char **argv, struct bt_error *error, int *ret_argc_used)
{
    size_t count = option_count(options);
    bool *seen = calloc(count + 1, sizeof *seen);
    if (!seen) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for options");
    }
    struct arguments arguments = {.argc = argc, .argv = argv, .next = argc > 0 ? 1 : 0};
    enum bt_status status = flags_parse(options, usage, seen, &arguments, error);
    if (status == BT_OK && !ret_argc_used && arguments.next < argc) {
        status = bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "unexpected argument '%s'",
                              argv[arguments.next]);
    }
    for (size_t i = 0; i < count && status == BT_OK; i++) {
        if (!seen[i]) {
            status = unseen_set(&options[i], error);
        }
    }
    free(seen);
    if (status == BT_OK && ret_argc_used) {
        *ret_argc_used = arguments.next;
    }
    return status;
}

/* ------------------------------------------------------------------ help */

void bt_option_print_values(const struct bt_option *option, FILE *out)
{
    char name[ENV_NAME_SIZE];
    env_name(option, name);
    if (option->type == BT_OPTION_CHOICE) {
        char all[256];
        choices_join(option->choices, "|", all, sizeof all);
        fprintf(out, "%s", all);
    } else {
        fputs(type_names[option->type], out);
    }
    if (option->required) {
        fputs(", required", out);
    } else if (option->default_value) {
        fprintf(out, ", default %s", option->default_value[0] ? option->default_value : "\"\"");
    }
    if (has_bounds(option)) {
        const char *unit = option->type == BT_OPTION_DURATION ? "s" : "";
        fprintf(out, ", range %.15g%s..%.15g%s", option->min, unit, option->max, unit);
    }
    fprintf(out, ", env %s", name);
}

static void option_print(const struct bt_option *option, FILE *out)
{
    const char *metavar = bt_option_metavar(option);
    if (option->letter) {
        fprintf(out, "  -%c, ", option->letter);
    } else {
        fputs("  ", out);
    }
    fprintf(out, "--%s%s%s\n        %s\n        (", option->name, metavar ? " " : "",
            metavar ? metavar : "", option->help ? option->help : "");
    bt_option_print_values(option, out);
    fputs(")\n", out);
}

void bt_option_print_help(const struct bt_option *options, const char *usage, FILE *out)
{
    fprintf(out, "%s\n\noptions:\n", usage);
    for (size_t i = 0; options[i].name; i++) {
        option_print(&options[i], out);
    }
    fputs("  --help\n        Print this and exit.\n", out);
}
