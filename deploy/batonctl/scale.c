/* The verb that says how many workers there shall be. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "deploy/batonctl/scaling.h"

#define MOST 100000 /* workers that are worth asking an engine for */

/* "prefill=4"; false: it is none, or of a role that was said before. */
static bool parse_word(const char *word, int64_t wanted[CTL_ROLES])
{
    const char *sign = strchr(word, '=');
    enum ctl_role role;
    char *end;
    if (!sign || !ctl_role_parse(word, (size_t)(sign - word), &role) || wanted[role] >= 0 ||
        sign[1] < '0' || sign[1] > '9')
        return false;
    long long count = strtoll(sign + 1, &end, 10);
    if (*end || count > MOST)
        return false;
    wanted[role] = count;
    return true;
}

int ctl_verb_scale(int argc, char **argv)
{
    struct ctl_scaling scaling = {.verb = "scale"};
    struct ctl_engine *engine;
    int64_t wanted[CTL_ROLES] = {-1, -1};
    int used;
    const struct bt_option options[] = {CTL_SCALING_OPTIONS(scaling), {0}};
    int code = ctl_parse(options,
                         "batonctl scale [prefill=N] [decode=M] [OPTIONS]\n\n"
                         "New workers start first; when they are ready the least loaded of those "
                         "that are too\nmany are drained and end. Workers and "
                         "routers that ended by themselves are replaced.\n\n"
                         "  batonctl scale prefill=4 decode=6\n"
                         "  batonctl scale --dry-run decode=2",
                         argc, argv, &used);
    if (code >= 0)
        return code;
    for (int i = used; i < argc; i++) {
        if (parse_word(argv[i], wanted))
            continue;
        fprintf(stderr, "batonctl scale: expected prefill=N or decode=M, each once, got '%s'\n",
                argv[i]);
        return CTL_EXIT_USAGE;
    }
    if (used >= argc) {
        fprintf(stderr, "batonctl scale: how many? as in: batonctl scale prefill=4 decode=6\n");
        return CTL_EXIT_USAGE;
    }
    code = ctl_scaling_open(&scaling, &engine);
    if (code != CTL_EXIT_OK)
        return code;
    code = ctl_scaling_run(&scaling, engine, wanted);
    ctl_engine_close(engine);
    return code;
}
