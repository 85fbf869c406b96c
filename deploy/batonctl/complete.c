/*
 * batonctl __complete: what can stand where the cursor is. A line a candidate, with a tab and what
 * it is; ":files" and ":dirs" leave it to the shell. Nothing that goes wrong is said.
 */
#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "deploy/batonctl/connection.h"
#include "deploy/batonctl/verbs.h"

#define FLAGS_MAX 64
#define PART_SIZE 512

struct line {
    char **words; /* [count], of a command line after "batonctl"; the last is being typed */
    int count;
    const char *typed;
    int64_t timeout_ns; /* of questions to a cluster */
    const struct bt_option *options;
};

static bool begins(const char *text, const char *beginning)
{
    return strncmp(text, beginning, strlen(beginning)) == 0;
}

static void offer(const struct line *line, const char *prefix, const char *value, const char *help)
{
    char flat[PART_SIZE];
    snprintf(flat, sizeof(flat), "%s%s", prefix, value);
    ctl_text_flatten(flat);
    if (begins(flat, line->typed))
        printf("%s\t%s\n", flat, help ? help : "");
}

/* NULL: it is no flag of the verb. `ret_value`: what is after its '=', or NULL. */
static const struct bt_option *find_flag(const struct line *line, const char *word,
                                         const char **ret_value)
{
    *ret_value = NULL;
    for (const struct bt_option *option = line->options; option->name; option++)
        if (word[0] == '-' && option->letter && word[1] == option->letter && !word[2])
            return option;
    if (!begins(word, "--"))
        return NULL;
    size_t size = strcspn(word + 2, "=");
    for (const struct bt_option *option = line->options; option->name; option++) {
        if (strlen(option->name) != size || strncmp(option->name, word + 2, size) != 0)
            continue;
        *ret_value = word[2 + size] == '=' ? word + 2 + size + 1 : NULL;
        return option;
    }
    return NULL;
}

static bool is_given(const struct line *line, const struct bt_option *option)
{
    const char *value;
    for (int i = 1; i + 1 < line->count; i++)
        if (find_flag(line, line->words[i], &value) == option)
            return true;
    return false;
}

/* ------------------------------------------------------------------ what there is */

/* Which cluster the line speaks of. */
static bool find_target(const struct line *line, struct ctl_target *ret_target)
{
    const struct bt_option options[] = {
        CTL_TARGET_OPTIONS(*ret_target), CTL_ENDPOINT_OPTIONS(*ret_target), {0}};
    const struct line all = {.options = options};
    char *argv[FLAGS_MAX + 2] = {(char *)"__complete"};
    int argc = 1;
    const char *value;
    for (int i = 1; i + 1 < line->count && argc < FLAGS_MAX; i++) {
        if (!find_flag(&all, line->words[i], &value) || (!value && i + 2 >= line->count))
            continue; /* that of the value that is typed says nothing yet */
        argv[argc++] = line->words[i];
        if (!value)
            argv[argc++] = line->words[++i];
    }
    struct bt_error error;
    if (bt_option_parse(options, "", argc, argv, &error, NULL) != BT_OK)
        return false;
    ret_target->timeout_ns = line->timeout_ns;
    return true;
}

static Baton__V1__StatusResponse *ask(const struct line *line)
{
    struct ctl_target target;
    struct ctl_connection connection;
    struct bt_error error;
    Baton__V1__StatusResponse *status = NULL;
    if (!find_target(line, &target) || ctl_connection_init(&connection, &target, &error) != BT_OK)
        return NULL;
    if (ctl_connection_status(&connection, &error, &status) != BT_OK)
        status = NULL;
    ctl_connection_finish(&connection);
    return status;
}

static void offer_workers(const struct line *line, const char *prefix)
{
    Baton__V1__StatusResponse *status = ask(line);
    for (size_t i = 0; status && i < status->n_workers; i++)
        offer(line, prefix, status->workers[i]->worker_id, status->workers[i]->state);
    if (status)
        baton__v1__status_response__free_unpacked(status, NULL);
}

static void offer_requests(const struct line *line, const char *prefix)
{
    Baton__V1__StatusResponse *status = ask(line);
    for (size_t i = 0; status && i < status->n_requests; i++) {
        char id[20];
        snprintf(id, sizeof(id), "%016" PRIx64, status->requests[i]->request_id);
        offer(line, prefix, id, status->requests[i]->state);
    }
    if (status)
        baton__v1__status_response__free_unpacked(status, NULL);
}

static bool load_cluster(const struct line *line, struct ctl_cluster *ret_cluster)
{
    struct ctl_target target;
    return find_target(line, &target) &&
           ctl_cluster_init(ret_cluster, target.state_dir, target.name, NULL) == BT_OK;
}

static void offer_processes(const struct line *line, const char *prefix)
{
    static struct ctl_cluster cluster;
    if (!load_cluster(line, &cluster) || ctl_cluster_load(&cluster, NULL) != BT_OK)
        return;
    for (uint32_t i = 0; i < cluster.process_count; i++)
        offer(line, prefix, cluster.processes[i].id, cluster.processes[i].role);
}

/* Directories with a cluster.json beside the one that --name would be. */
static void offer_clusters(const struct line *line, const char *prefix)
{
    static struct ctl_cluster cluster;
    char path[PATH_MAX];
    struct stat found;
    if (!load_cluster(line, &cluster))
        return;
    *strrchr(cluster.dir, '/') = '\0';
    DIR *dir = opendir(cluster.dir);
    for (struct dirent *entry; dir && (entry = readdir(dir));) {
        int size = snprintf(path, sizeof(path), "%s/%s/cluster.json", cluster.dir, entry->d_name);
        if (size < (int)sizeof(path) && ctl_name_ok(entry->d_name) && stat(path, &found) == 0)
            offer(line, prefix, entry->d_name, "cluster");
    }
    if (dir)
        closedir(dir);
}

/* ------------------------------------------------------------------ the place */

/* "workers|requests", "@worker" */
static void offer_part(const struct line *line, const char *prefix, const char *part, size_t size)
{
    static const struct {
        const char *name;
        void (*offer)(const struct line *line, const char *prefix);
    } kinds[] = {{"@worker", offer_workers},
                 {"@request", offer_requests},
                 {"@process", offer_processes},
                 {"@cluster", offer_clusters}};
    while (size > 0) {
        size_t length = 0;
        while (length < size && part[length] != '|')
            length++;
        char word[PART_SIZE];
        snprintf(word, sizeof(word), "%.*s", (int)length, part);
        bool known = false;
        for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
            if (strcmp(word, kinds[i].name) != 0)
                continue;
            kinds[i].offer(line, prefix);
            known = true;
        }
        if (strcmp(word, "@file") == 0)
            printf(":files\n");
        else if (!known)
            offer(line, prefix, word, NULL);
        part += length + (length < size);
        size -= length + (length < size);
    }
}

static bool is_called(const char *metavar, const char *name)
{
    return metavar && strcmp(metavar, name) == 0;
}

static void offer_value(const struct line *line, const char *prefix, const struct bt_option *option)
{
    const char *metavar = bt_option_metavar(option);
    if (option->type == BT_OPTION_CHOICE) {
        for (int i = 0; option->choices[i]; i++)
            offer(line, prefix, option->choices[i], NULL);
    } else if (option->type == BT_OPTION_BOOL) {
        offer(line, prefix, "true", NULL);
        offer(line, prefix, "false", NULL);
    } else if (is_called(metavar, "FILE") || is_called(metavar, "PATH")) {
        printf(":files\n");
    } else if (is_called(metavar, "DIR")) {
        printf(":dirs\n");
    } else if (is_called(metavar, "WORKER")) {
        offer_workers(line, prefix);
    } else if (strcmp(option->name, "name") == 0) {
        offer_clusters(line, prefix);
    }
}

static void offer_flags(const struct line *line)
{
    for (const struct bt_option *option = line->options; option->name; option++)
        if (!is_given(line, option))
            offer(line, "--", option->name, option->help);
    offer(line, "--", "help", "print the options and exit");
}

/* Words that are no flags, before the one that is typed; -1: that one is the value of a flag. */
static int words_before(const struct line *line, const struct bt_option **ret_flag)
{
    int words = 0;
    for (int i = 1; i + 1 < line->count; i++) {
        const char *value = NULL;
        const struct bt_option *option =
            words == 0 ? find_flag(line, line->words[i], &value) : NULL;
        if (!option) {
            words += !begins(line->words[i], "-");
        } else if (!value && option->type != BT_OPTION_BOOL) {
            *ret_flag = option;
            if (++i + 1 >= line->count)
                return -1;
        }
    }
    return words;
}

static void offer_word(const struct line *line, const char *parts, int index)
{
    while (parts) {
        size_t size = strcspn(parts, " ");
        if (index-- == 0 || !parts[size]) {
            offer_part(line, "", parts, size);
            return;
        }
        parts += size + 1;
    }
}

static void complete_verb(void *context, const struct ctl_verb *verb,
                          const struct bt_option *options, const char *usage)
{
    (void)usage;
    struct line *line = context;
    const struct bt_option *flag = NULL;
    const char *value = NULL;
    line->options = options;
    int words = words_before(line, &flag);
    if (words < 0) {
        offer_value(line, "", flag);
        return;
    }
    flag = find_flag(line, line->typed, &value);
    if (flag && value) {
        char prefix[PART_SIZE];
        snprintf(prefix, sizeof(prefix), "--%s=", flag->name);
        offer_value(line, prefix, flag);
    } else if (line->typed[0] == '-' || !verb->words) {
        offer_flags(line);
    } else {
        offer_word(line, verb->words, words);
    }
}

static void complete(struct line *line)
{
    for (const struct ctl_verb *verb = ctl_verbs; verb->name; verb++) {
        if (verb->hidden)
            continue;
        if (line->count == 1)
            offer(line, "", verb->name, verb->help);
        else if (strcmp(line->words[0], verb->name) == 0)
            ctl_describe(verb, complete_verb, line);
    }
    if (line->count == 1)
        offer(line, "", "--help", "the verbs");
}

int ctl_verb_complete(int argc, char **argv)
{
    int64_t timeout_ns;
    int used;
    const struct bt_option options[] = {
        {"complete-timeout", BT_OPTION_DURATION, &timeout_ns, "500ms", 0.001, 60,
         .help = "how long a cluster may take to say what there is"},
        {0},
    };
    int code = ctl_parse(options, "batonctl __complete -- VERB [WORD ...]", argc, argv, &used);
    if (code >= 0)
        return code;
    if (used == argc)
        return CTL_EXIT_OK;
    struct line line = {.words = argv + used,
                        .count = argc - used,
                        .typed = argv[argc - 1],
                        .timeout_ns = timeout_ns};
    complete(&line);
    return CTL_EXIT_OK;
}
