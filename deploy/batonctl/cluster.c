#include "deploy/batonctl/cluster.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "deploy/batonctl/cores.h"
#include "deploy/batonctl/launch.h"

static bool name_ok(const char *name)
{
    static const char allowed[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.";
    size_t size = strlen(name);
    return size > 0 && size < CTL_NAME_SIZE && name[0] != '.' && strspn(name, allowed) == size;
}

static enum bt_status make_dir(const char *path, struct bt_error *error)
{
    if (mkdir(path, 0700) != 0 && errno != EEXIST)
        return bt_error_set(error, BT_ERR_IO, "can not make directory %s: %s", path,
                            strerror(errno));
    struct stat info;
    if (lstat(path, &info) != 0 || !S_ISDIR(info.st_mode) || info.st_uid != getuid())
        return bt_error_set(error, BT_ERR_IO, "%s is not a directory of this user", path);
    return BT_OK;
}

enum bt_status ctl_cluster_init(struct ctl_cluster *cluster, const char *state_dir,
                                const char *name, struct bt_error *error)
{
    memset(cluster, 0, sizeof(*cluster));
    if (!name_ok(name))
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "--name '%s': letters, digits, '-', '_' and '.' only, up to %d", name,
                            CTL_NAME_SIZE - 1);
    snprintf(cluster->name, sizeof(cluster->name), "%s", name);
    char state[PATH_MAX - 512];
    const char *runtime = getenv("XDG_RUNTIME_DIR");
    int size;
    if (state_dir)
        size = snprintf(state, sizeof(state), "%s", state_dir);
    else if (runtime && runtime[0] == '/')
        size = snprintf(state, sizeof(state), "%s/baton", runtime);
    else
        size = snprintf(state, sizeof(state), "/tmp/baton-%u", (unsigned)getuid());
    if (size < 0 || (size_t)size >= sizeof(state))
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "the state directory's name is too long");
    enum bt_status status = make_dir(state, error);
    if (status != BT_OK)
        return status;
    snprintf(cluster->dir, sizeof(cluster->dir), "%s/%s", state, name);
    return BT_OK;
}

static void file_path(const struct ctl_cluster *cluster, const char *file, char ret_path[PATH_MAX])
{
    snprintf(ret_path, PATH_MAX, "%s/%s", cluster->dir, file);
}

static enum bt_status save(const struct ctl_cluster *cluster, struct bt_error *error)
{
    char path[PATH_MAX];
    file_path(cluster, "cluster.json", path);
    json_t *processes = json_array();
    for (uint32_t i = 0; i < cluster->process_count; i++) {
        const struct ctl_process *p = &cluster->processes[i];
        json_array_append_new(processes,
                              json_pack("{s:s, s:s, s:s, s:I, s:I}", "id", p->id, "role", p->role,
                                        "host", p->process.host, "pid", (json_int_t)p->process.pid,
                                        "start_ticks", (json_int_t)p->process.start_ticks));
    }
    json_t *root =
        json_pack("{s:s, s:s, s:s, s:s, s:o}", "name", cluster->name, "model", cluster->model,
                  "http", cluster->http, "rpc", cluster->rpc, "processes", processes);
    int failed = root ? json_dump_file(root, path, JSON_INDENT(2)) : -1;
    json_decref(root);
    if (failed)
        return bt_error_set(error, BT_ERR_IO, "can not write %s: %s", path, strerror(errno));
    return BT_OK;
}

static enum bt_status load_process(json_t *json, struct ctl_process *ret_process)
{
    const char *id, *role, *host;
    json_int_t pid, ticks;
    if (json_unpack(json, "{s:s, s:s, s:s, s:I, s:I}", "id", &id, "role", &role, "host", &host,
                    "pid", &pid, "start_ticks", &ticks) != 0)
        return BT_ERR_INVALID_ARGUMENT;
    snprintf(ret_process->id, sizeof(ret_process->id), "%s", id);
    snprintf(ret_process->role, sizeof(ret_process->role), "%s", role);
    snprintf(ret_process->process.host, sizeof(ret_process->process.host), "%s", host);
    ret_process->process.pid = pid;
    ret_process->process.start_ticks = (uint64_t)ticks;
    return BT_OK;
}

enum bt_status ctl_cluster_load(struct ctl_cluster *cluster, struct bt_error *error)
{
    char path[PATH_MAX];
    file_path(cluster, "cluster.json", path);
    if (access(path, F_OK) != 0)
        return bt_error_set(error, BT_ERR_NOT_FOUND,
                            "no cluster named '%s' here; start one with: batonctl up --model DIR",
                            cluster->name);
    json_error_t where;
    json_t *root = json_load_file(path, JSON_REJECT_DUPLICATES, &where);
    const char *model, *http, *rpc;
    json_t *processes;
    enum bt_status status = BT_OK;
    if (!root || json_unpack(root, "{s:s, s:s, s:s, s:o}", "model", &model, "http", &http, "rpc",
                             &rpc, "processes", &processes) != 0)
        status = BT_ERR_INVALID_ARGUMENT;
    if (status == BT_OK) {
        snprintf(cluster->model, sizeof(cluster->model), "%s", model);
        snprintf(cluster->http, sizeof(cluster->http), "%s", http);
        snprintf(cluster->rpc, sizeof(cluster->rpc), "%s", rpc);
        size_t index;
        json_t *value;
        json_array_foreach(processes, index, value)
        {
            if (index >= CTL_MAX_PROCESSES || status != BT_OK)
                break;
            status = load_process(value, &cluster->processes[index]);
            cluster->process_count = (uint32_t)index + 1;
        }
    }
    json_decref(root);
    if (status != BT_OK)
        return bt_error_set(error, status, "%s is not a cluster file of this version", path);
    return BT_OK;
}

bool ctl_cluster_alive(const struct ctl_cluster *cluster)
{
    for (uint32_t i = 0; i < cluster->process_count; i++)
        if (bt_process_probe(&cluster->processes[i].process) == BT_PROCESS_ALIVE)
            return true;
    return false;
}

/* ------------------------------------------------------------------ down */

/* A file descriptor of the process, or -1 when it is gone. The start time was checked after the
 * descriptor was opened, so that it can not be a later process with the same pid. */
static int open_process(const struct ctl_process *process)
{
    int fd = (int)syscall(SYS_pidfd_open, (pid_t)process->process.pid, 0);
    if (fd >= 0 && bt_process_probe(&process->process) != BT_PROCESS_ALIVE) {
        close(fd);
        return -1;
    }
    return fd;
}

static bool wait_gone(int fd, int64_t until_ns)
{
    for (;;) {
        int64_t left_ms = (until_ns - bt_clock_now_ns()) / BT_NS_PER_MS;
        struct pollfd item = {.fd = fd, .events = POLLIN};
        int ready = poll(&item, 1, left_ms > 0 ? (int)left_ms : 0);
        if (ready > 0)
            return true;
        if (ready == 0 || errno != EINTR)
            return false;
    }
}

static void stop_processes(const struct ctl_cluster *cluster, int64_t grace_ns)
{
    int fds[CTL_MAX_PROCESSES];
    /* Workers first: the router stays to see them leave in order. */
    for (uint32_t i = cluster->process_count; i-- > 0;) {
        fds[i] = open_process(&cluster->processes[i]);
        if (fds[i] >= 0)
            syscall(SYS_pidfd_send_signal, fds[i], SIGTERM, NULL, 0);
    }
    int64_t until_ns = bt_clock_now_ns() + grace_ns;
    for (uint32_t i = 0; i < cluster->process_count; i++) {
        if (fds[i] < 0)
            continue;
        if (!wait_gone(fds[i], until_ns)) {
            syscall(SYS_pidfd_send_signal, fds[i], SIGKILL, NULL, 0);
            wait_gone(fds[i], bt_clock_now_ns() + 10 * BT_NS_PER_S);
        }
        close(fds[i]);
    }
}

static void remove_dir(const struct ctl_cluster *cluster)
{
    DIR *dir = opendir(cluster->dir);
    if (!dir)
        return;
    struct dirent *entry;
    while ((entry = readdir(dir)))
        if (entry->d_name[0] != '.')
            unlinkat(dirfd(dir), entry->d_name, 0);
    closedir(dir);
    rmdir(cluster->dir);
}

enum bt_status ctl_cluster_down(struct ctl_cluster *cluster, int64_t grace_ns,
                                struct bt_error *error)
{
    stop_processes(cluster, grace_ns);
    if (ctl_cluster_alive(cluster))
        return bt_error_set(error, BT_ERR_INTERNAL, "a process of '%s' does not end",
                            cluster->name);
    remove_dir(cluster);
    return BT_OK;
}

/* ------------------------------------------------------------------ up */

/* One process of the cluster that is being started. */
static enum bt_status start(struct ctl_cluster *cluster, const char *id, const char *role,
                            struct ctl_command *command, int64_t until_ns, struct bt_error *error,
                            struct ctl_ready *ret_ready)
{
    if (cluster->process_count >= CTL_MAX_PROCESSES)
        return bt_error_set(error, BT_ERR_EXHAUSTED, "at most %d processes in a local cluster",
                            CTL_MAX_PROCESSES);
    char log[PATH_MAX], ready[PATH_MAX], file[CTL_NAME_SIZE + 16];
    snprintf(file, sizeof(file), "%s.log", id);
    file_path(cluster, file, log);
    snprintf(file, sizeof(file), "%s.ready", id);
    file_path(cluster, file, ready);
    ctl_command_add(command, "--ready-file");
    ctl_command_add(command, ready);

    struct ctl_process *process = &cluster->processes[cluster->process_count];
    snprintf(process->id, sizeof(process->id), "%s", id);
    snprintf(process->role, sizeof(process->role), "%s", role);
    enum bt_status status = ctl_command_start(command, log, error, &process->process);
    if (status != BT_OK)
        return status;
    cluster->process_count++;
    status = save(cluster, error); /* so that `down` finds it, whatever happens to us */
    if (status != BT_OK)
        return status;
    return ctl_ready_wait(id, &process->process, ready, log, until_ns, error, ret_ready);
}

static enum bt_status start_router(struct ctl_cluster *cluster,
                                   const struct ctl_up_options *options, int64_t until_ns,
                                   struct bt_error *error)
{
    struct ctl_command command;
    char port[16];
    snprintf(port, sizeof(port), "%d", (int)options->port);
    ctl_command_init(&command, "router/baton-router");
    ctl_command_add_all(&command, (const char *[]){"--model", cluster->model, "--host",
                                                   options->host, "--port", port,
                                                   "--worker-endpoint", "tcp://127.0.0.1:*", NULL});
    if (options->served_model_name)
        ctl_command_add_all(
            &command, (const char *[]){"--served-model-name", options->served_model_name, NULL});
    ctl_command_add_words(&command, options->router_args);
    struct ctl_ready ready;
    enum bt_status status = start(cluster, "router", "router", &command, until_ns, error, &ready);
    if (status != BT_OK)
        return status;
    snprintf(cluster->http, sizeof(cluster->http), "%s", ready.http);
    snprintf(cluster->rpc, sizeof(cluster->rpc), "%s", ready.rpc);
    return save(cluster, error);
}

/* The workers of a role. */
struct workers {
    const char *role;
    const char *program;
    const char *args;
    const char *cpus; /* NULL or "": not bound */
    int64_t count;
};

static enum bt_status add_cpus(struct ctl_command *command, const struct workers *workers,
                               int64_t index, struct bt_error *error)
{
    char list[CTL_CORES_SIZE];
    if (!workers->cpus || !workers->cpus[0])
        return BT_OK;
    enum bt_status status =
        ctl_cores_share(workers->cpus, (uint32_t)workers->count, (uint32_t)index, error, list);
    if (status == BT_OK)
        ctl_command_add_all(command, (const char *[]){"--cpus", list, NULL});
    return status;
}

static enum bt_status start_workers(struct ctl_cluster *cluster, const struct workers *workers,
                                    const struct ctl_up_options *options, int64_t until_ns,
                                    struct bt_error *error)
{
    const char *role = workers->role, *served_model_name = options->served_model_name;
    for (int64_t i = 0; i < workers->count; i++) {
        struct ctl_command command;
        char id[CTL_NAME_SIZE];
        snprintf(id, sizeof(id), "%s-%d", role, (int)i);
        ctl_command_init(&command, workers->program);
        ctl_command_add_all(&command, (const char *[]){"--model", cluster->model, "--router",
                                                       cluster->rpc, "--worker-id", id, NULL});
        if (served_model_name)
            ctl_command_add_all(&command,
                                (const char *[]){"--served-model-name", served_model_name, NULL});
        if (options->dtype)
            ctl_command_add_all(&command, (const char *[]){"--dtype", options->dtype, NULL});
        enum bt_status status = add_cpus(&command, workers, i, error);
        if (status != BT_OK)
            return status;
        ctl_command_add_words(&command, workers->args);
        struct ctl_ready ready;
        status = start(cluster, id, role, &command, until_ns, error, &ready);
        if (status != BT_OK)
            return status;
    }
    return BT_OK;
}

static enum bt_status prepare(struct ctl_cluster *cluster, const struct ctl_up_options *options,
                              struct bt_error *error)
{
    struct ctl_cluster old = *cluster;
    if (ctl_cluster_load(&old, NULL) == BT_OK && ctl_cluster_alive(&old))
        return bt_error_set(error, BT_ERR_ALREADY_EXISTS,
                            "cluster '%s' is running; stop it with: batonctl down --name %s",
                            cluster->name, cluster->name);
    if (!realpath(options->model, cluster->model))
        return bt_error_set(error, BT_ERR_IO, "--model %s: %s", options->model, strerror(errno));
    remove_dir(cluster);
    return make_dir(cluster->dir, error);
}

/* Whoever gives cpus or threads in any way has decided. */
static bool cores_are_given(const struct ctl_up_options *options)
{
    const char *const args[] = {options->prefill_args, options->decode_args};
    bool given = options->prefill_cpus || options->decode_cpus || getenv("BATON_CPUS") ||
                 getenv("BATON_THREADS");
    for (int i = 0; i < 2; i++)
        given = given || (args[i] && (strstr(args[i], "--cpus") || strstr(args[i], "--threads")));
    return given;
}

enum bt_status ctl_cluster_up(struct ctl_cluster *cluster, const struct ctl_up_options *options,
                              struct bt_error *error)
{
    char prefill_cpus[CTL_CORES_SIZE] = "", decode_cpus[CTL_CORES_SIZE] = "";
    struct workers prefill = {"prefill", "prefill-node/baton-prefill", options->prefill_args,
                              options->prefill_cpus, options->prefill};
    struct workers decode = {"decode", "decode-node/baton-decode", options->decode_args,
                             options->decode_cpus, options->decode};
    if (!cores_are_given(options) &&
        ctl_cores_divide((uint32_t)prefill.count, (uint32_t)decode.count, prefill_cpus,
                         decode_cpus)) {
        prefill.cpus = prefill_cpus;
        decode.cpus = decode_cpus;
    }
    int64_t until_ns = bt_clock_now_ns() + options->wait_ns;
    enum bt_status status = prepare(cluster, options, error);
    if (status != BT_OK)
        return status;
    status = start_router(cluster, options, until_ns, error);
    /* Decode ranks first, so that prefill workers find them and warm their links. */
    if (status == BT_OK)
        status = start_workers(cluster, &decode, options, until_ns, error);
    if (status == BT_OK)
        status = start_workers(cluster, &prefill, options, until_ns, error);
    if (status != BT_OK)
        ctl_cluster_down(cluster, BT_NS_PER_S, NULL);
    return status;
}
