/* cluster.json: what a local cluster consists of, and how its workers are started. */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "deploy/batonctl/cluster.h"

/* ------------------------------------------------------------------ writing */

static json_t *process_json(const struct ctl_process *process)
{
    return json_pack("{s:s, s:s, s:s, s:I, s:I, s:i, s:b}", "id", process->id, "role",
                     process->role, "host", process->process.host, "pid",
                     (json_int_t)process->process.pid, "start_ticks",
                     (json_int_t)process->process.start_ticks, "part", (int)process->part, "ending",
                     process->ending);
}

static json_t *workers_json(const struct ctl_workers *workers)
{
    return json_pack("{s:s, s:s, s:I, s:I, s:I}", "args", workers->args, "cpus", workers->cpus,
                     "parts", (json_int_t)workers->parts, "ranks", (json_int_t)workers->ranks,
                     "wanted", (json_int_t)workers->wanted);
}

static json_t *cluster_json(const struct ctl_cluster *cluster)
{
    json_t *processes = json_array(), *routers = json_array(), *workers = json_object();
    for (uint32_t i = 0; i < cluster->process_count; i++)
        json_array_append_new(processes, process_json(&cluster->processes[i]));
    for (uint32_t i = 0; i < cluster->router_count; i++)
        json_array_append_new(routers,
                              json_pack("{s:s, s:s, s:s}", "id", cluster->routers[i].id, "http",
                                        cluster->routers[i].http, "rpc", cluster->routers[i].rpc));
    for (int role = 0; role < CTL_ROLES; role++)
        json_object_set_new(workers, ctl_role_name((enum ctl_role)role),
                            workers_json(&cluster->workers[role]));
    return json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:b, s:b, s:o, s:o, s:o}",
                     "name", cluster->name, "host", cluster->host, "router_args",
                     cluster->router_args, "local_prefill_mode", cluster->local_prefill_mode,
                     "model", cluster->model, "served_model_name", cluster->served_model_name,
                     "dtype", cluster->dtype, "device", cluster->device, "http",
                     cluster->routers[0].http, "rpc", cluster->routers[0].rpc, "curve",
                     cluster->curve, "local_prefill", cluster->local_prefill, "workers", workers,
                     "routers", routers, "processes", processes);
}

static const struct ctl_cluster *remembered(const struct ctl_cluster *cluster)
{
    static struct ctl_cluster settled;
    if (!cluster->settled)
        return cluster;
    settled = *cluster->settled;
    settled.process_count = cluster->process_count;
    memcpy(settled.processes, cluster->processes, sizeof(settled.processes));
    for (uint32_t i = cluster->settled->process_count; i < settled.process_count; i++)
        settled.processes[i].ending = true;
    return &settled;
}

enum bt_status ctl_cluster_save(const struct ctl_cluster *cluster, struct bt_error *error)
{
    char path[PATH_MAX], next[PATH_MAX];
    ctl_cluster_path(cluster, "cluster", ".json", path);
    ctl_cluster_path(cluster, "cluster", ".json.next", next);
    json_t *root = cluster_json(remembered(cluster));
    int failed = root ? json_dump_file(root, next, JSON_INDENT(2)) : -1;
    json_decref(root);
    if (failed || rename(next, path) != 0)
        return bt_error_set(error, BT_ERR_IO, "can not write %s: %s", path, strerror(errno));
    return BT_OK;
}

/* ------------------------------------------------------------------ reading */

static bool load_process(json_t *json, struct ctl_process *ret_process)
{
    const char *id, *role, *host;
    json_int_t pid, ticks;
    int part, ending;
    if (json_unpack(json, "{s:s, s:s, s:s, s:I, s:I, s:i, s:b}", "id", &id, "role", &role, "host",
                    &host, "pid", &pid, "start_ticks", &ticks, "part", &part, "ending",
                    &ending) != 0)
        return false;
    snprintf(ret_process->id, sizeof(ret_process->id), "%s", id);
    snprintf(ret_process->role, sizeof(ret_process->role), "%s", role);
    snprintf(ret_process->process.host, sizeof(ret_process->process.host), "%s", host);
    ret_process->process.pid = pid;
    ret_process->process.start_ticks = (uint64_t)ticks;
    ret_process->part = part;
    ret_process->ending = ending;
    return true;
}

static bool load_router(json_t *json, struct ctl_router *ret_router)
{
    const char *id, *http, *rpc;
    if (json_unpack(json, "{s:s, s:s, s:s}", "id", &id, "http", &http, "rpc", &rpc) != 0)
        return false;
    snprintf(ret_router->id, sizeof(ret_router->id), "%s", id);
    snprintf(ret_router->http, sizeof(ret_router->http), "%s", http);
    snprintf(ret_router->rpc, sizeof(ret_router->rpc), "%s", rpc);
    return true;
}

static bool load_workers(json_t *json, struct ctl_workers *ret_workers)
{
    const char *args, *cpus;
    json_int_t parts, ranks, wanted;
    if (json_unpack(json, "{s:s, s:s, s:I, s:I, s:I}", "args", &args, "cpus", &cpus, "parts",
                    &parts, "ranks", &ranks, "wanted", &wanted) != 0 ||
        strlen(args) >= sizeof(ret_workers->args) || strlen(cpus) >= sizeof(ret_workers->cpus) ||
        parts < 0 || parts > CTL_MAX_WORKERS || ranks < 1 || ranks > CTL_MAX_RANKS || wanted < 0 ||
        wanted > CTL_MAX_WORKERS)
        return false;
    snprintf(ret_workers->args, sizeof(ret_workers->args), "%s", args);
    snprintf(ret_workers->cpus, sizeof(ret_workers->cpus), "%s", cpus);
    ret_workers->parts = (uint32_t)parts;
    ret_workers->ranks = (uint32_t)ranks;
    ret_workers->wanted = (uint32_t)wanted;
    return true;
}

static bool load_cluster(json_t *root, struct ctl_cluster *cluster)
{
    const char *model, *served_model_name, *dtype, *device = "", *host, *router_args, *mode;
    json_t *routers, *processes, *workers, *value;
    int curve, local_prefill;
    size_t index;
    if (json_unpack(root, "{s:s, s:s, s:s, s:s, s:s, s:s, s?:s, s:b, s:b, s:o, s:o, s:o}", "host",
                    &host, "router_args", &router_args, "local_prefill_mode", &mode, "model",
                    &model, "served_model_name", &served_model_name, "dtype", &dtype, "device",
                    &device, "curve", &curve, "local_prefill", &local_prefill, "workers", &workers,
                    "routers", &routers, "processes", &processes) != 0 ||
        json_array_size(routers) > CTL_MAX_ROUTERS ||
        json_array_size(processes) > CTL_MAX_PROCESSES)
        return false;
    snprintf(cluster->model, sizeof(cluster->model), "%s", model);
    snprintf(cluster->served_model_name, sizeof(cluster->served_model_name), "%s",
             served_model_name);
    snprintf(cluster->host, sizeof(cluster->host), "%s", host);
    snprintf(cluster->router_args, sizeof(cluster->router_args), "%s", router_args);
    snprintf(cluster->local_prefill_mode, sizeof(cluster->local_prefill_mode), "%s", mode);
    snprintf(cluster->dtype, sizeof(cluster->dtype), "%s", dtype);
    snprintf(cluster->device, sizeof(cluster->device), "%s", device);
    cluster->curve = curve;
    cluster->local_prefill = local_prefill;
    cluster->router_count = cluster->process_count = 0;
    for (int role = 0; role < CTL_ROLES; role++)
        if (!load_workers(json_object_get(workers, ctl_role_name((enum ctl_role)role)),
                          &cluster->workers[role]))
            return false;
    json_array_foreach(routers, index, value)
    {
        if (!load_router(value, &cluster->routers[cluster->router_count++]))
            return false;
    }
    json_array_foreach(processes, index, value)
    {
        if (!load_process(value, &cluster->processes[cluster->process_count++]))
            return false;
    }
    return true;
}

enum bt_status ctl_cluster_load(struct ctl_cluster *cluster, struct bt_error *error)
{
    char path[PATH_MAX];
    ctl_cluster_path(cluster, "cluster", ".json", path);
    if (access(path, F_OK) != 0)
        return bt_error_set(error, BT_ERR_NOT_FOUND,
                            "no cluster named '%s' here; start one with: batonctl up --model DIR",
                            cluster->name);
    json_error_t where;
    json_t *root = json_load_file(path, JSON_REJECT_DUPLICATES, &where);
    bool good = root && load_cluster(root, cluster);
    json_decref(root);
    return good ? BT_OK
                : bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                               "%s is not a cluster file of this version", path);
}
