/*
 * One table of options per process: it parses flags and environment, validates, prints --help.
 *
 * Precedence: flag, then environment, then default. `--chunked-prefill-size 512` and
 * `--chunked-prefill-size=512` both work; the environment name is BATON_CHUNKED_PREFILL_SIZE.
 * Unknown flags, repeated flags, values out of range and unparsable values are errors that name
 * the option and the value.
 */
#ifndef BATON_COMMON_BASE_OPTION_H
#define BATON_COMMON_BASE_OPTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "common/base/status.h"

#define BT_EXIT_USAGE 2 /* of a program: its flags or environment could not have been meant so */

enum bt_option_type {
    BT_OPTION_STRING,   /* const char ** : points into argv, the environment or the table */
    BT_OPTION_INT,      /* int64_t *     : min..max; accepts k/m/g (1024-based) suffixes */
    BT_OPTION_DOUBLE,   /* double *      : min..max */
    BT_OPTION_BOOL,     /* bool *        : --flag, --flag=true|false */
    BT_OPTION_DURATION, /* int64_t *     : nanoseconds; "500ms", "30s", "5m"; bare number = seconds
                         */
    BT_OPTION_CHOICE,   /* int *         : index into choices */
};

struct bt_option {
    const char *name; /* without dashes; NULL ends the table */
    enum bt_option_type type;
    void *value;                /* where the result goes */
    const char *default_value;  /* as a user would type it; NULL for a string: stays NULL; "" ok */
    double min, max;            /* for int, double; both 0: no bounds. durations: seconds */
    const char *const *choices; /* for choice; NULL ends */
    const char *metavar;        /* "DIR", "N"; NULL: from the type */
    const char *help;           /* one sentence */
    bool required;
    char letter; /* "-o" for "--output"; 0: none */
};

/*
 * Fills every value. Parsing stops at the first non-option; `ret_argc_used` (may be NULL, then a
 * non-option is an error) gets its index. `--help` gives BT_ERR_CANCELLED after printing to
 * stdout with `usage` on top: the caller exits 0. So does `--help=man`, with a man page. An option
 * that is not known is answered with the nearest that is.
 */
enum bt_status bt_option_parse(const struct bt_option *options, const char *usage, int argc,
                               char **argv, struct bt_error *error, int *ret_argc_used);

void bt_option_print_help(const struct bt_option *options, const char *usage, FILE *out);

/* "int, default 4k, range 1..1048576, env BATON_CHUNK_COUNT". */
void bt_option_print_values(const struct bt_option *option, FILE *out);
/* What its value is called; NULL: of a bool, which has none. */
const char *bt_option_metavar(const struct bt_option *option);

#endif
