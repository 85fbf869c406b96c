#include <stdio.h>
#include <string.h>

#include "common/base/log.h"
#include "common/base/nearest.h"
#include "deploy/batonctl/verbs.h"

const struct ctl_verb ctl_verbs[] = {
    {"up", ctl_verb_up, "start a local cluster: --prefill N --decode M --model DIR",
     CTL_GROUP_LIFE},
    {"down", ctl_verb_down, "stop it", CTL_GROUP_LIFE},
    {"hints", ctl_verb_hints, "lines worth trying against a running cluster", CTL_GROUP_LIFE},
    {"get", ctl_verb_get, "list workers, requests or routers", CTL_GROUP_LOOK,
     "workers|requests|routers"},
    {"describe", ctl_verb_describe, "everything known of a worker, a request or the cluster",
     CTL_GROUP_LOOK, "worker|request|cluster @worker|@request"},
    {"top", ctl_verb_top, "workers, queue, times and rates, as they change", CTL_GROUP_LOOK},
    {"logs", ctl_verb_logs, "what a process logged", CTL_GROUP_LOOK, "@process"},
    {"events", ctl_verb_events, "what happened to the cluster", CTL_GROUP_LOOK},
    {"status", ctl_verb_status, "one look at everything", CTL_GROUP_LOOK},
    {"trace", ctl_verb_trace, "where the time of a request went, as a Chrome trace", CTL_GROUP_LOOK,
     "@request"},
    {"chat", ctl_verb_chat, "talk to the model, or ask one question", CTL_GROUP_ASK},
    {"generate", ctl_verb_generate, "continue a text", CTL_GROUP_ASK},
    {"tokenize", ctl_verb_tokenize, "the tokens of a text or of a chat", CTL_GROUP_ASK},
    {"autoscale", ctl_verb_autoscale, "as many workers as keep TTFT and TPOT within targets",
     CTL_GROUP_SCALE},
    {"bench", ctl_verb_bench, "put a load on a cluster: latencies, throughput, goodput",
     CTL_GROUP_MEASURE},
    {"scale", ctl_verb_scale, "how many workers there shall be: prefill=N decode=M",
     CTL_GROUP_SCALE, "prefill=|decode="},
    {"ratio", ctl_verb_ratio, "divide workers between the roles: 2:3", CTL_GROUP_SCALE,
     "1:1|1:2|1:3|2:1|3:1"},
    {"rollout", ctl_verb_rollout, "replace workers one by one, by others or of another model",
     CTL_GROUP_SCALE, "prefill|decode"},
    {"switch-role", ctl_verb_switch_role, "have a worker serve in the other role", CTL_GROUP_SCALE,
     "@worker prefill|decode"},
    {"drain", ctl_verb_drain, "a worker takes nothing new; wait until nothing is left on it",
     CTL_GROUP_SCALE, "@worker"},
    {"resume", ctl_verb_resume, "it takes requests again", CTL_GROUP_SCALE, "@worker"},
    {"doctor", ctl_verb_doctor, "check this machine, or the way between two workers",
     CTL_GROUP_MEASURE, "@worker"},
    {"probe", ctl_verb_probe, "ask one process how it is, for health checks", CTL_GROUP_MEASURE,
     "startup|ready|live"},
    {"plan", ctl_verb_plan, "which cards, layouts and how many workers a load takes",
     CTL_GROUP_MEASURE},
    {"keygen", ctl_verb_keygen, "make a key for encrypted RPC", CTL_GROUP_SETUP},
    {"quantize", ctl_verb_quantize, "round a checkpoint's weights to int8 or int4",
     CTL_GROUP_SETUP},
    {"completion", ctl_verb_completion, "the shell's completion: a script for it to read",
     CTL_GROUP_SETUP, "bash|zsh|fish"},
    {"man", ctl_verb_man, "man pages of batonctl and its verbs", CTL_GROUP_SETUP},
    {"__complete", ctl_verb_complete, "what the shells' scripts call", CTL_GROUP_SETUP,
     .hidden = true},
    {0},
};

static const char *const group_titles[CTL_GROUPS] = {
    [CTL_GROUP_LIFE] = "start and stop",      [CTL_GROUP_LOOK] = "look",
    [CTL_GROUP_ASK] = "ask the model",        [CTL_GROUP_SCALE] = "scale and replace",
    [CTL_GROUP_MEASURE] = "plan and measure", [CTL_GROUP_SETUP] = "set up",
};

static void print_group(enum ctl_group group, FILE *out)
{
    bool any = false;
    for (const struct ctl_verb *verb = ctl_verbs; verb->name; verb++) {
        if (verb->group != group || verb->hidden)
            continue;
        if (!any)
            fprintf(out, "\n%s:\n", group_titles[group]);
        any = true;
        fprintf(out, "  %-11s %s\n", verb->name, verb->help);
    }
}

static void print_help(FILE *out)
{
    fprintf(out, "batonctl: operate a Baton cluster\n\n  batonctl VERB [OPTIONS]\n");
    for (int group = 0; group < CTL_GROUPS; group++)
        print_group((enum ctl_group)group, out);
    fprintf(out, "\n"
                 "  batonctl VERB --help shows the options of one, with an example.\n"
                 "exit codes: 0 done, 1 failed, 2 wrong usage, 3 no such cluster or not reachable\n"
                 "            (of doctor: 1 degraded, 2 broken, 3 not asked)\n");
}

static int refuse(const char *word)
{
    struct bt_nearest nearest = {.word = word};
    char shown[CTL_NAME_SIZE];
    for (const struct ctl_verb *verb = ctl_verbs; verb->name; verb++)
        if (!verb->hidden)
            bt_nearest_offer(&nearest, verb->name);
    snprintf(shown, sizeof(shown), "%s", word);
    ctl_text_flatten(shown);
    if (nearest.best)
        fprintf(stderr, "batonctl: there is no verb '%s'; did you mean '%s'?\n", shown,
                nearest.best);
    else
        fprintf(stderr, "batonctl: there is no verb '%s'; see batonctl --help\n", shown);
    return CTL_EXIT_USAGE;
}

int main(int argc, char **argv)
{
    bt_log_init("batonctl", BT_LOG_WARN);
    if (argc < 2) {
        print_help(stderr);
        return CTL_EXIT_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
        strcmp(argv[1], "help") == 0) {
        print_help(stdout);
        return CTL_EXIT_OK;
    }
    for (const struct ctl_verb *verb = ctl_verbs; verb->name; verb++)
        if (strcmp(argv[1], verb->name) == 0)
            return verb->run(argc - 1, argv + 1);
    return refuse(argv[1]);
}
