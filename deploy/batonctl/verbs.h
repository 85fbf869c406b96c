/*
 * The verbs of batonctl. Each gets argv with argv[0] the verb itself and returns the exit code:
 *
 *   0 done   1 failed   2 wrong usage   3 no such cluster, or it can not be reached
 */
#ifndef BATON_DEPLOY_BATONCTL_VERBS_H
#define BATON_DEPLOY_BATONCTL_VERBS_H

#include <jansson.h>

#include "common/base/option.h"
#include "common/base/status.h"
#include "common/messaging/security.h"
#include "deploy/batonctl/cluster.h"
#include "deploy/batonctl/keys.h"

enum ctl_exit { CTL_EXIT_OK = 0, CTL_EXIT_FAILED = 1, CTL_EXIT_USAGE = 2, CTL_EXIT_NO_CLUSTER = 3 };

/* Under which heading `batonctl --help` has a verb. */
enum ctl_group {
    CTL_GROUP_LIFE,    /* start and stop */
    CTL_GROUP_LOOK,    /* what is there, and what happens */
    CTL_GROUP_ASK,     /* the model */
    CTL_GROUP_SCALE,   /* more, fewer and other workers */
    CTL_GROUP_MEASURE, /* plan, bench, check */
    CTL_GROUP_SETUP,   /* keys, checkpoints, the shell */
    CTL_GROUPS
};

struct ctl_verb {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *help; /* without a dot */
    enum ctl_group group;
    /* What its words after the options can be, for the shell's completion: one part a word, the
     * last for all that follow, of alternatives, "workers|requests @worker"; @worker, @process,
     * @request, @cluster and @file stand for what there is. Flags may come behind them. NULL: none, or they are text. */
    const char *words;
    bool hidden; /* for programs: in no list, and without a page */
};
extern const struct ctl_verb ctl_verbs[]; /* ends with a NULL name */

int ctl_verb_up(int argc, char **argv);
int ctl_verb_down(int argc, char **argv);
int ctl_verb_autoscale(int argc, char **argv);
int ctl_verb_get(int argc, char **argv);
int ctl_verb_status(int argc, char **argv);
int ctl_verb_chat(int argc, char **argv);
int ctl_verb_trace(int argc, char **argv);
int ctl_verb_generate(int argc, char **argv);
int ctl_verb_hints(int argc, char **argv);
int ctl_verb_keygen(int argc, char **argv);
int ctl_verb_doctor(int argc, char **argv); /* its own exit codes: see doctor --help */
int ctl_verb_quantize(int argc, char **argv);
int ctl_verb_plan(int argc, char **argv);
int ctl_verb_bench(int argc, char **argv);
int ctl_verb_probe(int argc, char **argv);
int ctl_verb_scale(int argc, char **argv);
int ctl_verb_ratio(int argc, char **argv);
int ctl_verb_rollout(int argc, char **argv);
int ctl_verb_switch_role(int argc, char **argv);
int ctl_verb_drain(int argc, char **argv);
int ctl_verb_resume(int argc, char **argv);
int ctl_verb_completion(int argc, char **argv);
int ctl_verb_complete(int argc, char **argv); /* __complete: what the shells' scripts call */
int ctl_verb_man(int argc, char **argv);
int ctl_verb_describe(int argc, char **argv);
int ctl_verb_top(int argc, char **argv);
int ctl_verb_logs(int argc, char **argv);
int ctl_verb_events(int argc, char **argv);
int ctl_verb_tokenize(int argc, char **argv);

/* What every verb has: how it prints. Errors go to stderr in words, whatever is chosen. */
enum ctl_output { CTL_OUTPUT_TABLE, CTL_OUTPUT_JSON };
extern const char *const ctl_output_names[];
#define CTL_OUTPUT_OPTION(output)                                                                  \
    {                                                                                              \
        "output", BT_OPTION_CHOICE, &(output), "table", 0, 0, ctl_output_names, NULL,              \
            "table for people, json for programs", .letter = 'o'                                   \
    }
/* To stdout, indented; takes the reference. NULL and what can't be written: CTL_EXIT_FAILED. */
int ctl_print_json(json_t *json);

/* What every verb that speaks to a cluster has: which one. */
struct ctl_target {
    const char *name;
    const char *state_dir;
    const char *endpoint;               /* --rpc: instead of a cluster started by `up` here */
    struct bt_security_values security; /* as flags say; of neither: those of the cluster */
    int64_t timeout_ns;
};

#define CTL_TARGET_OPTIONS(target)                                                                 \
    {"name", BT_OPTION_STRING,           &(target).name, "default", 0, 0, NULL,                    \
     "NAME", "the local cluster's name", false},                                                   \
    {                                                                                              \
        "state-dir", BT_OPTION_STRING, &(target).state_dir, NULL, 0, 0, NULL, "DIR",               \
            "where local clusters are remembered", false                                           \
    }

#define CTL_ENDPOINT_OPTIONS(target)                                                               \
    {"rpc",                                                                                        \
     BT_OPTION_STRING,                                                                             \
     &(target).endpoint,                                                                           \
     NULL,                                                                                         \
     0,                                                                                            \
     0,                                                                                            \
     NULL,                                                                                         \
     "ENDPOINT",                                                                                   \
     "a router's RPC endpoint, tcp://HOST:PORT, of a secured one with #KEY, instead of --name",    \
     false},                                                                                       \
        BT_SECURITY_OPTIONS((target).security),                                                    \
    {                                                                                              \
        "timeout", BT_OPTION_DURATION, &(target).timeout_ns, "10s", 0.001, 86400, NULL, NULL,      \
            "how long to wait for an answer", false                                                \
    }

/* Parses; -1: go on, otherwise the exit code (help was printed, or the error was). It is the first
 * that a verb does, as ctl_describe runs verbs this far. */
int ctl_parse(const struct bt_option *options, const char *usage, int argc, char **argv,
              int *ret_argc_used);

/* Gives the table and the text on top that `verb` parses with, valid until `told` returns, and does
 * nothing else of it. */
void ctl_describe(const struct ctl_verb *verb,
                  void (*told)(void *context, const struct ctl_verb *verb,
                               const struct bt_option *options, const char *usage),
                  void *context);

/* The page of `batonctl VERB` to `out`. */
void ctl_man_verb(const struct ctl_verb *verb, const struct bt_option *options, const char *usage,
                  FILE *out);

/* Control characters (also those of two bytes) and what is not UTF-8 become '?', in place. The
 * empty text is not written to. */
void ctl_text_flatten(char *text);
/* The same but for line ends and tabs, which stay. */
void ctl_text_clean(char *text);

/* Prints "batonctl VERB: text", flat, and gives the exit code. */
int ctl_fail(const char *verb, const struct bt_error *error);

/* Where a router is, and with which keys it is spoken to. */
struct ctl_address {
    struct ctl_cluster cluster; /* filled in where it is one of `up` here */
    struct ctl_keys keys;       /* of the operator, of a secured one */
    const char *endpoint;
    struct bt_security_values security;
};

/* The router of --rpc or of the named cluster; points into `target` and itself. */
enum bt_status ctl_target_find(const struct ctl_target *target, struct bt_error *error,
                               struct ctl_address *ret_address);

#endif
