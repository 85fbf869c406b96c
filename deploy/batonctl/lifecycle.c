/* The verbs that start and stop a local cluster. */
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "deploy/batonctl/verbs.h"

#define TAKE_NS (60 * BT_NS_PER_S) /* until another batonctl, told to end, has */

static void workers_text(int64_t count, const char *role, int64_t ranks, char ret_text[48])
{
    if (ranks == 1)
        snprintf(ret_text, 48, "%d %s", (int)count, role);
    else
        snprintf(ret_text, 48, "%d %s (%d ranks%s)", (int)count, role, (int)ranks,
                 count > 1 ? " each" : "");
}

static json_t *cluster_json(const struct ctl_cluster *cluster)
{
    json_t *routers = json_array(), *processes = json_array();
    for (uint32_t i = 0; i < cluster->router_count; i++)
        json_array_append_new(routers, json_pack("{s:s,s:s}", "http", cluster->routers[i].http,
                                                 "rpc", cluster->routers[i].rpc));
    for (uint32_t i = 0; i < cluster->process_count; i++)
        json_array_append_new(processes, json_pack("{s:s,s:s,s:I}", "id", cluster->processes[i].id,
                                                   "role", cluster->processes[i].role, "pid",
                                                   (json_int_t)cluster->processes[i].process.pid));
    return json_pack("{s:s,s:s,s:s,s:b,s:o,s:o}", "cluster", cluster->name, "logs", cluster->dir,
                     "model", cluster->model, "curve", cluster->curve, "routers", routers,
                     "processes", processes);
}

int ctl_verb_up(int argc, char **argv)
{
    struct ctl_target target;
    int output;
    struct ctl_up_options up;
    const struct bt_option options[] = {
        CTL_TARGET_OPTIONS(target),
        {"model", BT_OPTION_STRING, &up.model, NULL, 0, 0, NULL, "DIR",
         "checkpoint directory (config.json, safetensors, tokenizer.json)", true},
        {"served-model-name", BT_OPTION_STRING, &up.served_model_name, NULL, 0, 0, NULL, "NAME",
         "what clients call the model; the directory's name where not given", false},
        {"prefill", BT_OPTION_INT, &up.prefill, "1", 0, CTL_MAX_WORKERS, NULL, NULL,
         "prefill workers; 0: decode workers compute the prompts, too", false},
        {"decode", BT_OPTION_INT, &up.decode, "1", 1, CTL_MAX_WORKERS, NULL, NULL, "decode workers",
         false},
        {"prefill-tp", BT_OPTION_INT, &up.prefill_tp, "1", 1, CTL_MAX_RANKS, NULL, NULL,
         "ranks of each prefill worker, a process each: they share out heads and experts", false},
        {"decode-dp", BT_OPTION_INT, &up.decode_dp, "1", 1, CTL_MAX_RANKS, NULL, NULL,
         "ranks of each decode worker, a process each: they share out requests and experts", false},
        {"local-prefill", BT_OPTION_STRING, &up.local_prefill, NULL, 0, 0, NULL, "MODE",
         "whether decode workers compute prompts themselves: auto, never, always; default: the "
         "router's, but always with --prefill 0",
         false},
        {"routers", BT_OPTION_INT, &up.routers, "1", 1, CTL_MAX_ROUTERS, NULL, NULL,
         "routers, any of which serves with all workers", false},
        {"host", BT_OPTION_STRING, &up.host, "127.0.0.1", 0, 0, NULL, "ADDRESS",
         "address of the HTTP API", false},
        {"port", BT_OPTION_INT, &up.port, "8000", 0, 65535, NULL, NULL,
         "port of the HTTP API, of more routers the first; 0: any free ones", false},
        {"curve", BT_OPTION_BOOL, &up.curve, "false", 0, 0, NULL, NULL,
         "RPC encrypted, each process with a key of its own, made here; without it RPC is plain, "
         "and as HTTP is on this machine's loopback alone",
         false},
        {"dtype", BT_OPTION_STRING, &up.dtype, NULL, 0, 0, NULL, "NAME",
         "arithmetic of all workers: auto, float32, bfloat16", false},
        {"device", BT_OPTION_STRING, &up.device, NULL, 0, 0, NULL, "DEVICE",
         "where all workers run their model: auto, cpu, cuda, cuda:N; with cuda each rank of a "
         "worker has a GPU, and workers share them unless --prefill-args and --decode-args name "
         "others",
         false},
        {"prefill-cpus", BT_OPTION_STRING, &up.prefill_cpus, NULL, 0, 0, NULL, "LIST",
         "cpus that prefill workers share out, as 0-3,8; default: with --decode-cpus not given "
         "either, cores of its own for each worker where there are enough",
         false},
        {"decode-cpus", BT_OPTION_STRING, &up.decode_cpus, NULL, 0, 0, NULL, "LIST",
         "cpus that decode workers share out", false},
        {"router-args", BT_OPTION_STRING, &up.router_args, NULL, 0, 0, NULL, "ARGS",
         "more options for the router, one string", false},
        {"prefill-args", BT_OPTION_STRING, &up.prefill_args, NULL, 0, 0, NULL, "ARGS",
         "more options for each prefill worker", false},
        {"decode-args", BT_OPTION_STRING, &up.decode_args, NULL, 0, 0, NULL, "ARGS",
         "more options for each decode worker", false},
        {"wait", BT_OPTION_DURATION, &up.wait_ns, "5m", 1, 86400, NULL, NULL,
         "how long the start may take", false},
        CTL_OUTPUT_OPTION(output),
        {0},
    };
    int code = ctl_parse(options,
                         "batonctl up --model DIR [--prefill N] [--decode M]\n\n"
                         "  batonctl up --model tests/models/tiny --prefill 1 --decode 2\n"
                         "  batonctl up --model tests/models/tiny --prefill 1 --prefill-tp 2 "
                         "--decode 1 --decode-dp 4",
                         argc, argv, NULL);
    if (code >= 0)
        return code;
    static struct ctl_cluster cluster;
    struct bt_error error;
    enum bt_status status = ctl_cluster_init(&cluster, target.state_dir, target.name, &error);
    if (status == BT_OK)
        status = ctl_cluster_up(&cluster, &up, &error);
    if (status != BT_OK)
        return ctl_fail("up", &error);
    if (output == CTL_OUTPUT_JSON)
        return ctl_print_json(cluster_json(&cluster));
    char prefill[48], decode[48];
    workers_text(up.prefill, "prefill", up.prefill_tp, prefill);
    workers_text(up.decode, "decode", up.decode_dp, decode);
    char routers[48] = "router";
    if (up.routers > 1)
        snprintf(routers, sizeof routers, "%d routers", (int)up.routers);
    printf("cluster %s: %s, %s, %s\n", cluster.name, routers, prefill, decode);
    for (uint32_t i = 0; i < cluster.router_count; i++)
        printf("  http  %s/v1\n  rpc   %s\n", cluster.routers[i].http, cluster.routers[i].rpc);
    printf("  logs  %s\n", cluster.dir);
    if (cluster.curve)
        printf("  keys  %s/*.key, list %s/allow\n", cluster.dir, cluster.dir);
    return CTL_EXIT_OK;
}

int ctl_verb_down(int argc, char **argv)
{
    struct ctl_target target;
    int64_t grace_ns;
    int output;
    const struct bt_option options[] = {
        CTL_TARGET_OPTIONS(target),
        {"grace", BT_OPTION_DURATION, &grace_ns, "10s", 0, 3600, NULL, NULL,
         "how long processes may take to end by themselves", false},
        CTL_OUTPUT_OPTION(output),
        {0},
    };
    int code = ctl_parse(options, "batonctl down [--name NAME]\n\n  batonctl down --grace 30s",
                         argc, argv, NULL);
    if (code >= 0)
        return code;
    static struct ctl_cluster cluster;
    struct bt_error error;
    enum bt_status status = ctl_cluster_init(&cluster, target.state_dir, target.name, &error);
    if (status == BT_OK)
        status = ctl_cluster_load(&cluster, &error);
    if (status == BT_OK)
        status = ctl_cluster_take(&cluster, "down", bt_clock_now_ns() + TAKE_NS, &error);
    if (status != BT_OK)
        return ctl_fail("down", &error);
    /* Again, now that nobody else changes it: an `up` that was told to end leaves nothing. */
    status = ctl_cluster_load(&cluster, &error);
    if (status == BT_OK)
        status = ctl_cluster_down(&cluster, grace_ns, &error);
    ctl_cluster_unlock(&cluster);
    if (status != BT_OK && status != BT_ERR_NOT_FOUND)
        return ctl_fail("down", &error);
    if (output == CTL_OUTPUT_JSON)
        return ctl_print_json(json_pack("{s:s,s:b}", "cluster", cluster.name, "down", true));
    printf("cluster %s is down\n", cluster.name);
    return CTL_EXIT_OK;
}

int ctl_verb_hints(int argc, char **argv)
{
    struct ctl_target target;
    int output;
    const struct bt_option options[] = {CTL_TARGET_OPTIONS(target), CTL_OUTPUT_OPTION(output), {0}};
    int code = ctl_parse(options, "batonctl hints [--name NAME]\n\n  batonctl hints --name demo",
                         argc, argv, NULL);
    if (code >= 0)
        return code;
    static struct ctl_address address;
    const struct ctl_cluster *cluster = &address.cluster;
    struct bt_error error;
    target.endpoint = NULL;
    if (ctl_target_find(&target, &error, &address) != BT_OK)
        return ctl_fail("hints", &error);
    char own[PATH_MAX] = "batonctl";
    ssize_t own_size = readlink("/proc/self/exe", own, sizeof(own) - 1);
    if (own_size > 0)
        own[own_size] = '\0';
    char name[CTL_NAME_SIZE + 16] = "";
    if (strcmp(cluster->name, "default") != 0)
        snprintf(name, sizeof(name), " --name %s", cluster->name);
    char lines[7][PATH_MAX + CTL_ENDPOINT_SIZE + 256];
    snprintf(lines[0], sizeof(lines[0]),
             "curl -N %s/v1/chat/completions -H 'Content-Type: application/json' \\\n"
             "    -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Who are you?\"}], "
             "\"stream\": true}'\n",
             cluster->routers[0].http);
    snprintf(lines[1], sizeof(lines[1]), "alias batonctl='%s'", own);
    static const char *const rest[] = {"chat", "generate", "status", "get workers", "down"};
    for (int i = 0; i < 5; i++)
        snprintf(lines[i + 2], sizeof(lines[i + 2]), "batonctl %s%s%s", rest[i], name,
                 i == 1 ? " 'Once upon a time'" : "");
    if (output == CTL_OUTPUT_JSON)
        return ctl_print_json(json_pack("{s:[s,s,s,s,s,s,s]}", "lines", lines[0], lines[1],
                                        lines[2], lines[3], lines[4], lines[5], lines[6]));
    printf("\nThe cluster stays up. Try:\n\n");
    for (int i = 0; i < 7; i++)
        printf("  %s\n", lines[i]);
    return CTL_EXIT_OK;
}
