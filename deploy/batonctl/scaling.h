/* What the verbs that change how many workers there are have in common. */
#ifndef BATON_DEPLOY_BATONCTL_SCALING_H
#define BATON_DEPLOY_BATONCTL_SCALING_H

#include "deploy/batonctl/engine.h"

struct ctl_scaling {
    const char *verb;
    struct ctl_target target;
    struct ctl_engine_values values;
    int64_t drain_ns, wait_ns;
    bool dry_run;
    int output;
};

#define CTL_SCALING_OPTIONS(scaling)                                                               \
    CTL_TARGET_OPTIONS((scaling).target), CTL_ENDPOINT_OPTIONS((scaling).target),                  \
        CTL_ENGINE_OPTIONS((scaling).values), CTL_OUTPUT_OPTION((scaling).output),                 \
        {"drain-deadline",                                                                         \
         BT_OPTION_DURATION,                                                                       \
         &(scaling).drain_ns,                                                                      \
         "60s",                                                                                    \
         0,                                                                                        \
         86400,                                                                                    \
         NULL,                                                                                     \
         NULL,                                                                                     \
         "how long what runs on workers that go may take to end there; the rest goes on "          \
         "elsewhere, "                                                                             \
         "with the same tokens",                                                                   \
         false},                                                                                   \
        {"wait",                                                                                   \
         BT_OPTION_DURATION,                                                                       \
         &(scaling).wait_ns,                                                                       \
         "5m",                                                                                     \
         1,                                                                                        \
         86400,                                                                                    \
         NULL,                                                                                     \
         NULL,                                                                                     \
         "how long new workers may take to get ready",                                             \
         false},                                                                                   \
    {                                                                                              \
        "dry-run", BT_OPTION_BOOL, &(scaling).dry_run, "false", 0, 0, NULL, NULL,                  \
            "say what would be done, and do nothing", false                                        \
    }

/* All these give the exit code, and have said why. */

/* With progress as lines on stderr. 0: `ret_engine` is open. */
int ctl_scaling_open(const struct ctl_scaling *scaling, struct ctl_engine **ret_engine);
/* 0: `ret_fleet` is filled, and the caller finishes it. */
int ctl_scaling_look(const struct ctl_scaling *scaling, struct ctl_engine *engine,
                     struct ctl_fleet *ret_fleet);
/* Workers of a role that there shall be, -1 as it is; prints what came of it, or with dry_run what
 * would. */
int ctl_scaling_run(const struct ctl_scaling *scaling, struct ctl_engine *engine,
                    const int64_t wanted[CTL_ROLES]);
/* How many there are after an act, and were before. */
int ctl_scaling_print(const struct ctl_scaling *scaling, struct ctl_engine *engine,
                      const struct ctl_fleet *before);

/* "prefill" or "decode"; false: neither. */
bool ctl_role_parse(const char *text, size_t size, enum ctl_role *ret_role);

#endif
