#include <stdio.h>
#include <string.h>

#include "deploy/batonctl/service_name.h"
#include "deploy/batonctl/verbs.h"

const char *const ctl_output_names[] = {"table", "json", NULL};

int ctl_print_json(json_t *json)
{
    int failed = json ? json_dumpf(json, stdout, JSON_INDENT(2)) : -1;
    json_decref(json);
    if (printf("\n") < 0 || fflush(stdout) != 0)
        failed = -1;
    return failed ? CTL_EXIT_FAILED : CTL_EXIT_OK;
}

/* While a verb is described. */
static struct {
    const struct ctl_verb *verb;
    void (*told)(void *context, const struct ctl_verb *verb, const struct bt_option *options,
                 const char *usage);
    void *context;
} description;

void ctl_describe(const struct ctl_verb *verb,
                  void (*told)(void *context, const struct ctl_verb *verb,
                               const struct bt_option *options, const char *usage),
                  void *context)
{
    char name[CTL_NAME_SIZE];
    char *argv[] = {name, NULL};
    snprintf(name, sizeof(name), "%s", verb->name);
    description.verb = verb;
    description.told = told;
    description.context = context;
    verb->run(1, argv);
    description.verb = NULL;
}

static const struct ctl_verb *find_verb(const char *name)
{
    const struct ctl_verb *verb = ctl_verbs;
    while (verb->name && strcmp(verb->name, name) != 0)
        verb++;
    return verb->name ? verb : NULL;
}

static bool takes_next(const struct bt_option *options, const char *word)
{
    for (; options->name; options++) {
        bool named = strncmp(word, "--", 2) == 0 && strcmp(word + 2, options->name) == 0;
        bool lettered = options->letter && word[1] == options->letter && !word[2];
        if (named || lettered)
            return options->type != BT_OPTION_BOOL;
    }
    return false;
}

/* Flags before words, each in the order it had; what is after "--" stays behind. */
static void put_flags_first(const struct bt_option *options, int argc, char **argv)
{
    int flags = 1;
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
        if (argv[i][0] != '-' || !argv[i][1])
            continue;
        int count = 1 + (takes_next(options, argv[i]) && i + 1 < argc);
        for (int k = 0; k < count; k++, i++, flags++) {
            char *word = argv[i];
            memmove(&argv[flags + 1], &argv[flags], (size_t)(i - flags) * sizeof(*argv));
            argv[flags] = word;
        }
        i--;
    }
}

int ctl_parse(const struct bt_option *options, const char *usage, int argc, char **argv,
              int *ret_argc_used)
{
    const struct ctl_verb *verb = description.verb ? description.verb : find_verb(argv[0]);
    if (description.verb) {
        description.told(description.context, verb, options, usage);
        return CTL_EXIT_OK;
    }
    if (argc > 1 && verb && strcmp(argv[1], "--help=man") == 0) {
        ctl_man_verb(verb, options, usage, stdout);
        return CTL_EXIT_OK;
    }
    if (verb && verb->words)
        put_flags_first(options, argc, argv);
    struct bt_error error;
    enum bt_status status = bt_option_parse(options, usage, argc, argv, &error, ret_argc_used);
    if (status == BT_OK)
        return -1;
    if (status == BT_ERR_CANCELLED)
        return CTL_EXIT_OK;
    ctl_fail(argv[0], &error);
    return CTL_EXIT_USAGE;
}

/* Bytes of the character, 0: it is none of UTF-8, or of control. */
static size_t character(const unsigned char *text)
{
    unsigned first = text[0];
    if (first < 0x80)
        return first >= 0x20 && first != 0x7f;
    size_t size = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
    unsigned value = first & (0x7fu >> size);
    if (first < 0xc2 || first > 0xf4)
        return 0;
    for (size_t i = 1; i < size; i++) {
        if ((text[i] & 0xc0) != 0x80)
            return 0;
        value = value << 6 | (text[i] & 0x3f);
    }
    bool shortest = value >= (size == 4 ? 0x10000u : size == 3 ? 0x800u : 0xa0u);
    return shortest && value <= 0x10ffff && (value < 0xd800 || value > 0xdfff) ? size : 0;
}

/* Those of `kept` are left. */
static void flatten(char *text, const char *kept)
{
    for (size_t size; *text; text += size) {
        size = character((const unsigned char *)text);
        if (size > 0)
            continue;
        size = 1;
        if (!strchr(kept, *text))
            *text = '?';
    }
}

void ctl_text_flatten(char *text)
{
    flatten(text, "");
}

void ctl_text_clean(char *text)
{
    flatten(text, "\n\t");
}

int ctl_fail(const char *verb, const struct bt_error *error)
{
    char text[BT_ERROR_TEXT_SIZE];
    snprintf(text, sizeof text, "%s", error->text);
    ctl_text_flatten(text);
    fprintf(stderr, "batonctl %s: %s\n", verb, text);
    switch (error->status) {
    case BT_ERR_NOT_FOUND:
    case BT_ERR_UNAVAILABLE:
    case BT_ERR_PEER_LOST:
        return CTL_EXIT_NO_CLUSTER;
    case BT_ERR_INVALID_ARGUMENT:
        return CTL_EXIT_USAGE;
    default:
        return CTL_EXIT_FAILED;
    }
}

static bool are_given(const struct bt_security_values *security)
{
    return security->secret_file || security->allow_file;
}

enum bt_status ctl_target_find(const struct ctl_target *target, struct bt_error *error,
                               struct ctl_address *ret_address)
{
    struct ctl_cluster *cluster = &ret_address->cluster;
    ret_address->security = target->security;
    ret_address->endpoint = target->endpoint;
    if (target->endpoint && ctl_service_is(target->endpoint)) /* any router of it */
        ret_address->endpoint += strlen(CTL_SERVICE_SCHEME) - strlen("tcp://");
    if (target->endpoint)
        return BT_OK;
    enum bt_status status = ctl_cluster_init(cluster, target->state_dir, target->name, error);
    if (status == BT_OK)
        status = ctl_cluster_load(cluster, error);
    if (status != BT_OK)
        return status;
    if (!ctl_cluster_alive(cluster))
        return bt_error_set(error, BT_ERR_UNAVAILABLE,
                            "cluster '%s' is not running any more; its logs are in %s",
                            cluster->name, cluster->dir);
    ret_address->endpoint = ctl_cluster_router(cluster)->rpc;
    if (cluster->curve && !are_given(&target->security)) {
        ctl_keys_init(&ret_address->keys, cluster->dir, CTL_KEYS_OPERATOR);
        ret_address->security = ret_address->keys.values;
    }
    return BT_OK;
}
