#include <stdio.h>
#include <string.h>

#include "common/base/log.h"
#include "deploy/batonctl/verbs.h"

static const struct verb {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *help;
} verbs[] = {
    {"up", ctl_verb_up, "start a local cluster: --prefill N --decode M --model DIR"},
    {"down", ctl_verb_down, "stop it"},
    {"get", ctl_verb_get, "list workers or requests"},
    {"status", ctl_verb_status, "one look at everything"},
    {"chat", ctl_verb_chat, "talk to the model, or ask one question"},
    {"generate", ctl_verb_generate, "continue a text"},
    {"trace", ctl_verb_trace, "where the time of a request went, as a Chrome trace"},
    {"doctor", ctl_verb_doctor, "check this machine, or the way between two workers"},
    {"keygen", ctl_verb_keygen, "make a key for encrypted RPC"},
    {"hints", ctl_verb_hints, "lines worth trying against a running cluster"},
    {"quantize", ctl_verb_quantize, "round a checkpoint's weights to int8 or int4"},
};

static void print_help(FILE *out)
{
    fprintf(out, "batonctl: operate a Baton cluster\n\n  batonctl VERB [OPTIONS]\n\nverbs:\n");
    for (size_t i = 0; i < sizeof(verbs) / sizeof(verbs[0]); i++)
        fprintf(out, "  %-10s %s\n", verbs[i].name, verbs[i].help);
    fprintf(out,
            "\n  batonctl VERB --help shows the options of one.\n"
            "exit codes: 0 done, 1 failed, 2 wrong usage, 3 no such cluster or not reachable\n");
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
    for (size_t i = 0; i < sizeof(verbs) / sizeof(verbs[0]); i++)
        if (strcmp(argv[1], verbs[i].name) == 0)
            return verbs[i].run(argc - 1, argv + 1);
    fprintf(stderr, "batonctl: there is no verb '%s'; see batonctl --help\n", argv[1]);
    return CTL_EXIT_USAGE;
}
