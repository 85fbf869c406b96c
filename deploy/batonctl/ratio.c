/* The verb that divides workers between the roles. */
#include <inttypes.h>
#include <stdio.h>

#include "deploy/batonctl/scaling.h"

#define MOST 100000 /* of either side, and in all */

/* "2:3"; 0:N and N:0 are for the engine to judge. */
static bool parse_ratio(const char *text, uint32_t *ret_prefill, uint32_t *ret_decode)
{
    char end;
    return sscanf(text, "%6u:%6u%c", ret_prefill, ret_decode, &end) == 2 && text[0] != '-' &&
           text[0] != '+' && *ret_prefill <= MOST && *ret_decode <= MOST &&
           *ret_prefill + *ret_decode > 0;
}

/* The nearest whole numbers that make up the total; a side that has a part has one at least. */
static void divide(uint32_t prefill, uint32_t decode, int64_t total, int64_t ret_wanted[CTL_ROLES])
{
    int64_t sum = (int64_t)prefill + decode;
    int64_t first = (2 * total * prefill + sum) / (2 * sum);
    if (first == 0 && prefill > 0)
        first = 1;
    if (first == total && decode > 0)
        first = total - 1;
    ret_wanted[CTL_PREFILL] = first;
    ret_wanted[CTL_DECODE] = total - first;
}

static int run(const struct ctl_scaling *scaling, struct ctl_engine *engine, uint32_t prefill,
               uint32_t decode, int64_t total)
{
    int64_t wanted[CTL_ROLES];
    if (total == 0) {
        struct ctl_fleet fleet;
        int code = ctl_scaling_look(scaling, engine, &fleet);
        if (code != CTL_EXIT_OK)
            return code;
        total = (int64_t)fleet.wanted[CTL_PREFILL] + fleet.wanted[CTL_DECODE];
        ctl_fleet_finish(&fleet);
    }
    if (prefill > 0 && decode > 0 && total < 2) {
        fprintf(stderr, "batonctl ratio: one worker can not be divided\n");
        return CTL_EXIT_USAGE;
    }
    divide(prefill, decode, total, wanted);
    if (wanted[CTL_PREFILL] * decode != wanted[CTL_DECODE] * prefill)
        fprintf(
            stderr,
            "%u:%u of %" PRId64 " workers is %.2f:%.2f; the nearest is %" PRId64 ":%" PRId64 "\n",
            prefill, decode, total, (double)total * prefill / (prefill + decode),
            (double)total * decode / (prefill + decode), wanted[CTL_PREFILL], wanted[CTL_DECODE]);
    return ctl_scaling_run(scaling, engine, wanted);
}

int ctl_verb_ratio(int argc, char **argv)
{
    struct ctl_scaling scaling = {.verb = "ratio"};
    struct ctl_engine *engine;
    int64_t total;
    uint32_t prefill, decode;
    int used;
    const struct bt_option options[] = {
        CTL_SCALING_OPTIONS(scaling),
        {"total", BT_OPTION_INT, &total, "0", 0, MOST, NULL, NULL,
         "workers of both roles together; 0: as many as there are", false},
        {0},
    };
    int code = ctl_parse(options,
                         "batonctl ratio PREFILL:DECODE [OPTIONS]\n\n"
                         "  batonctl ratio 2:3 --total 10\n"
                         "  batonctl ratio --dry-run 1:3",
                         argc, argv, &used);
    if (code >= 0)
        return code;
    if (used + 1 != argc || !parse_ratio(argv[used], &prefill, &decode)) {
        fprintf(stderr, "batonctl ratio: expected one ratio, as 2:3\n");
        return CTL_EXIT_USAGE;
    }
    code = ctl_scaling_open(&scaling, &engine);
    if (code != CTL_EXIT_OK)
        return code;
    code = run(&scaling, engine, prefill, decode, total);
    ctl_engine_close(engine);
    return code;
}
