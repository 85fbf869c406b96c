/* batonctl logs: of a process of the cluster, wherever it runs. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "deploy/batonctl/engine.h"
#include "deploy/batonctl/verbs.h"

/* The engine prints lines; as JSON they are caught on their way. */
static enum bt_status catch (struct ctl_engine *engine, const char *process, int64_t tail,
                             struct bt_error *error, json_t *lines) {
    FILE *file = tmpfile(); fflush(stdout); int kept = dup(STDOUT_FILENO);
    if (!file || kept < 0 ||
        dup2(fileno(file), STDOUT_FILENO) < 0) return bt_error_set(error, BT_ERR_IO,
                                                                   "a temporary file: %m");
    enum bt_status status = engine->ops->logs(engine, process, tail, false, error); fflush(stdout);
    dup2(kept, STDOUT_FILENO); close(kept); rewind(file); char *line = NULL; size_t capacity = 0;
    ssize_t size; while (status == BT_OK && (size = getline(&line, &capacity, file)) > 0){
        if (line[size - 1] == '\n') line[size - 1] = '\0';
        json_array_append_new(lines, json_string(line));}
free(line);
fclose(file);
return status;
}

static int print_logs(struct ctl_engine *engine, const char *process, int64_t tail, bool follow,
                      bool json)
{
    struct bt_error error;
    json_t *lines = json ? json_array() : NULL;
    enum bt_status status = json ? catch (engine, process, tail, &error, lines)
                                 : engine->ops->logs(engine, process, tail, follow, &error);
    if (status != BT_OK && !(follow && status == BT_ERR_CANCELLED)) {
        json_decref(lines);
        return ctl_fail("logs", &error);
    }
    return json ? ctl_print_json(json_pack("{s:s,s:o}", "process", process, "lines", lines))
                : CTL_EXIT_OK;
}

int ctl_verb_logs(int argc, char **argv)
{
    struct ctl_target target = {0};
    struct ctl_engine_values values;
    int64_t tail;
    bool follow;
    int output, used;
    const struct bt_option options[] = {
        CTL_TARGET_OPTIONS(target),
        CTL_ENGINE_OPTIONS(values),
        {"follow", BT_OPTION_BOOL, &follow, "false", .letter = 'f',
         .help = "go on with what comes, until the process ends"},
        {"tail", BT_OPTION_INT, &tail, "-1", .min = -1, .max = 1 << 30,
         .help = "so many lines from the end to begin with; -1: all"},
        CTL_OUTPUT_OPTION(output),
        {0},
    };
    static const char usage[] = "batonctl logs [OPTIONS] PROCESS\n\n"
                                "  batonctl logs --tail 20 router\n"
                                "  batonctl logs -f decode-0\n\n"
                                "PROCESS is a worker, a rank of one (decode-0.1), a router, or a "
                                "pod.";
    int code = ctl_parse(options, usage, argc, argv, &used);
    if (code >= 0)
        return code;
    bool json = output == CTL_OUTPUT_JSON;
    if (used + 1 != argc || (json && follow)) {
        fprintf(stderr, used + 1 != argc
                            ? "batonctl logs: name one process, after the options\n"
                            : "batonctl logs: --follow has no end, and JSON is one object\n");
        return CTL_EXIT_USAGE;
    }
    struct ctl_engine *engine;
    struct bt_error error;
    const struct ctl_progress progress = {0};
    target.timeout_ns = 10 * INT64_C(1000000000);
    if (ctl_engine_open(&target, &values, &progress, &error, &engine) != BT_OK)
        return ctl_fail("logs", &error);
    code = print_logs(engine, argv[used], tail, follow, json);
    engine->ops->destroy(engine);
    return code;
}
