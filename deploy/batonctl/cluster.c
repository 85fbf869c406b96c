#include "deploy/batonctl/cluster.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/base/random.h"
#include "deploy/batonctl/cores.h"
#include "deploy/batonctl/interrupt.h"
#include "deploy/batonctl/keys.h"
#include "deploy/batonctl/launch.h"
#include "deploy/batonctl/ready.h"

bool ctl_name_ok(const char *name)
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
    if (!ctl_name_ok(name))
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

static void id_path(const struct ctl_cluster *cluster, const char *id, const char *suffix,
                    char ret_path[PATH_MAX])
{
    char file[CTL_NAME_SIZE + 16];
    snprintf(file, sizeof(file), "%s%s", id, suffix);
    file_path(cluster, file, ret_path);
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
    json_t *routers = json_array();
    for (uint32_t i = 0; i < cluster->router_count; i++)
        json_array_append_new(routers, json_pack("{s:s, s:s}", "http", cluster->routers[i].http,
                                                 "rpc", cluster->routers[i].rpc));
    json_t *root =
        json_pack("{s:s, s:s, s:s, s:s, s:b, s:o, s:o}", "name", cluster->name, "model",
                  cluster->model, "http", cluster->routers[0].http, "rpc", cluster->routers[0].rpc,
                  "curve", cluster->curve, "routers", routers, "processes", processes);
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

static enum bt_status load_router(json_t *json, struct ctl_router *ret_router)
{
    const char *http, *rpc;
    if (json_unpack(json, "{s:s, s:s}", "http", &http, "rpc", &rpc) != 0)
        return BT_ERR_INVALID_ARGUMENT;
    snprintf(ret_router->http, sizeof(ret_router->http), "%s", http);
    snprintf(ret_router->rpc, sizeof(ret_router->rpc), "%s", rpc);
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
    const char *model;
    json_t *routers, *processes;
    int curve = 0;
    enum bt_status status = BT_OK;
    if (!root || json_unpack(root, "{s:s, s?b, s:o, s:o}", "model", &model, "curve", &curve,
                             "routers", &routers, "processes", &processes) != 0)
        status = BT_ERR_INVALID_ARGUMENT;
    if (status == BT_OK) {
        snprintf(cluster->model, sizeof(cluster->model), "%s", model);
        cluster->curve = curve;
        size_t index;
        json_t *value;
        json_array_foreach(routers, index, value)
        {
            if (index >= CTL_MAX_ROUTERS || status != BT_OK)
                break;
            status = load_router(value, &cluster->routers[index]);
            cluster->router_count = (uint32_t)index + 1;
        }
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

const struct ctl_router *ctl_cluster_router(const struct ctl_cluster *cluster)
{
    /* They are the first processes. */
    for (uint32_t i = 0; i < cluster->router_count && i < cluster->process_count; i++)
        if (bt_process_probe(&cluster->processes[i].process) == BT_PROCESS_ALIVE)
            return &cluster->routers[i];
    return &cluster->routers[0];
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

static bool is_router(const struct ctl_process *process)
{
    return strcmp(process->role, "router") == 0;
}

/* Those that are routers, or those that are not. */
static void terminate(const struct ctl_cluster *cluster, const int *fds, bool routers)
{
    for (uint32_t i = cluster->process_count; i-- > 0;)
        if (fds[i] >= 0 && is_router(&cluster->processes[i]) == routers)
            syscall(SYS_pidfd_send_signal, fds[i], SIGTERM, NULL, 0);
}

static bool wait_routers(const struct ctl_cluster *cluster, const int *fds, int64_t until_ns)
{
    bool gone = true;
    for (uint32_t i = 0; i < cluster->process_count; i++)
        if (fds[i] >= 0 && is_router(&cluster->processes[i]))
            gone = wait_gone(fds[i], until_ns) && gone;
    return gone;
}

static void stop_processes(const struct ctl_cluster *cluster, int64_t grace_ns)
{
    int fds[CTL_MAX_PROCESSES];
    for (uint32_t i = 0; i < cluster->process_count; i++)
        fds[i] = open_process(&cluster->processes[i]);
    int64_t until_ns = bt_clock_now_ns() + grace_ns;
    /* What routers have begun needs workers to end. A second signal has no patience with it. */
    terminate(cluster, fds, true);
    if (!wait_routers(cluster, fds, until_ns - grace_ns / 2))
        terminate(cluster, fds, true);
    terminate(cluster, fds, false);
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

/* A start under way. */
struct start {
    struct ctl_cluster *cluster;
    const struct ctl_up_options *options;
    int64_t until_ns;
    int interrupt;
};

/* One process more, not waited for. */
static enum bt_status start_process(struct start *start, const char *id, const char *role,
                                    struct ctl_command *command, struct bt_error *error)
{
    struct ctl_cluster *cluster = start->cluster;
    enum bt_status status = ctl_interrupt_check(start->interrupt, error);
    if (status != BT_OK)
        return status;
    BT_ASSERT(cluster->process_count < CTL_MAX_PROCESSES);
    char log[PATH_MAX], ready[PATH_MAX];
    id_path(cluster, id, ".log", log);
    id_path(cluster, id, ".ready", ready);
    ctl_command_add_all(command, (const char *[]){"--ready-file", ready, NULL});
    if (cluster->curve) {
        struct ctl_keys keys;
        ctl_keys_init(&keys, cluster->dir, id);
        ctl_command_add_all(command, (const char *[]){"--curve-secret-file", keys.secret_file,
                                                      "--curve-allow-file", keys.allow_file, NULL});
    }

    struct ctl_process *process = &cluster->processes[cluster->process_count];
    snprintf(process->id, sizeof(process->id), "%s", id);
    snprintf(process->role, sizeof(process->role), "%s", role);
    status = ctl_command_start(command, log, error, &process->process);
    if (status != BT_OK)
        return status;
    cluster->process_count++;
    return save(cluster, error); /* so that `down` finds it, whatever happens to us */
}

static void router_id(int64_t index, char ret_id[CTL_NAME_SIZE])
{
    if (index == 0)
        snprintf(ret_id, CTL_NAME_SIZE, "router");
    else
        snprintf(ret_id, CTL_NAME_SIZE, "router-%d", (int)index);
}

static enum bt_status start_router(struct start *start, int64_t index, struct bt_error *error)
{
    struct ctl_cluster *cluster = start->cluster;
    const struct ctl_up_options *options = start->options;
    struct ctl_command command;
    char id[CTL_NAME_SIZE], port[16];
    router_id(index, id);
    snprintf(port, sizeof(port), "%d", (int)(options->port > 0 ? options->port + index : 0));
    ctl_command_init(&command, "router/baton-router");
    ctl_command_add_all(&command, (const char *[]){"--model", cluster->model, "--host",
                                                   options->host, "--port", port,
                                                   "--worker-endpoint", "tcp://127.0.0.1:*", NULL});
    if (options->served_model_name)
        ctl_command_add_all(
            &command, (const char *[]){"--served-model-name", options->served_model_name, NULL});
    const char *local = options->local_prefill;
    if (!local && options->prefill == 0)
        local = "always"; /* nobody else is there */
    if (local)
        ctl_command_add_all(&command, (const char *[]){"--local-prefill", local, NULL});
    ctl_command_add_words(&command, options->router_args);
    struct ctl_ready ready;
    uint32_t process = cluster->process_count;
    enum bt_status status = start_process(start, id, "router", &command, error);
    if (status == BT_OK)
        status = ctl_ready_wait(cluster, process, start->interrupt, start->until_ns, error, &ready);
    if (status != BT_OK)
        return status;
    struct ctl_router *router = &cluster->routers[cluster->router_count++];
    snprintf(router->http, sizeof(router->http), "%s", ready.http);
    snprintf(router->rpc, sizeof(router->rpc), "%s", ready.rpc);
    return save(cluster, error);
}

static enum bt_status start_routers(struct start *start, struct bt_error *error)
{
    enum bt_status status = BT_OK;
    for (int64_t i = 0; i < start->options->routers && status == BT_OK; i++)
        status = start_router(start, i, error);
    return status;
}

/* As workers are told: "ENDPOINT,ENDPOINT". */
static void routers_list(const struct ctl_cluster *cluster,
                         char ret_list[CTL_MAX_ROUTERS * CTL_ENDPOINT_SIZE])
{
    size_t size = 0;
    for (uint32_t i = 0; i < cluster->router_count; i++)
        size += (size_t)snprintf(ret_list + size, CTL_MAX_ROUTERS * CTL_ENDPOINT_SIZE - size,
                                 "%s%s", i > 0 ? "," : "", cluster->routers[i].rpc);
}

/* The workers of a role. */
struct workers {
    const char *role;
    const char *program;
    const char *args;
    const char *cpus; /* NULL or "": not bound */
    int64_t count;
    int64_t ranks;         /* of each */
    const char *size_flag; /* what the program calls that */
};

static void worker_id(const struct workers *workers, int64_t worker, int64_t rank,
                      char ret_id[CTL_NAME_SIZE])
{
    if (rank == 0)
        snprintf(ret_id, CTL_NAME_SIZE, "%s-%d", workers->role, (int)worker);
    else
        snprintf(ret_id, CTL_NAME_SIZE, "%s-%d.%d", workers->role, (int)worker, (int)rank);
}

static enum bt_status add_cpus(struct ctl_command *command, const struct workers *workers,
                               int64_t worker, int64_t rank, struct bt_error *error)
{
    char list[CTL_CORES_SIZE];
    if (!workers->cpus || !workers->cpus[0])
        return BT_OK;
    enum bt_status status =
        ctl_cores_share(workers->cpus, (uint32_t)(workers->count * workers->ranks),
                        (uint32_t)(worker * workers->ranks + rank), error, list);
    if (status == BT_OK)
        ctl_command_add_all(command, (const char *[]){"--cpus", list, NULL});
    return status;
}

/* What the ranks of a worker know each other by. */
static enum bt_status write_secret(const char *path, struct bt_error *error)
{
    char secret[4 * 16 + 1];
    for (int i = 0; i < 4; i++)
        snprintf(secret + i * 16, 17, "%016" PRIx64, bt_random_entropy());
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    bool written = fd >= 0 && write(fd, secret, sizeof(secret) - 1) == (ssize_t)sizeof(secret) - 1;
    int reason = errno;
    if (fd >= 0)
        close(fd);
    return written ? BT_OK
                   : bt_error_set(error, BT_ERR_IO, "can not write %s: %s", path, strerror(reason));
}

static enum bt_status add_group(struct ctl_command *command, const struct ctl_cluster *cluster,
                                const struct workers *workers, int64_t worker, int64_t rank,
                                struct bt_error *error)
{
    if (workers->ranks == 1)
        return BT_OK;
    char id[CTL_NAME_SIZE], socket[PATH_MAX], endpoint[PATH_MAX + 8], secret[PATH_MAX];
    char size_text[16], rank_text[16];
    worker_id(workers, worker, 0, id);
    id_path(cluster, id, ".sock", socket);
    id_path(cluster, id, ".secret", secret);
    snprintf(endpoint, sizeof(endpoint), "ipc://%s", socket);
    snprintf(size_text, sizeof(size_text), "%d", (int)workers->ranks);
    snprintf(rank_text, sizeof(rank_text), "%d", (int)rank);
    ctl_command_add_all(command, (const char *[]){workers->size_flag, size_text, "--rank",
                                                  rank_text, "--group-endpoint", endpoint,
                                                  "--group-secret-file", secret, NULL});
    return rank == 0 ? write_secret(secret, error) : BT_OK;
}

static enum bt_status start_rank(struct start *start, const struct workers *workers, int64_t worker,
                                 int64_t rank, struct bt_error *error)
{
    const struct ctl_up_options *options = start->options;
    struct ctl_command command;
    char id[CTL_NAME_SIZE], routers[CTL_MAX_ROUTERS * CTL_ENDPOINT_SIZE] = "";
    worker_id(workers, worker, rank, id);
    routers_list(start->cluster, routers);
    ctl_command_init(&command, workers->program);
    ctl_command_add_all(&command, (const char *[]){"--model", start->cluster->model, "--router",
                                                   routers, "--worker-id", id, NULL});
    if (options->served_model_name)
        ctl_command_add_all(
            &command, (const char *[]){"--served-model-name", options->served_model_name, NULL});
    if (options->dtype)
        ctl_command_add_all(&command, (const char *[]){"--dtype", options->dtype, NULL});
    enum bt_status status = add_cpus(&command, workers, worker, rank, error);
    if (status == BT_OK)
        status = add_group(&command, start->cluster, workers, worker, rank, error);
    if (status != BT_OK)
        return status;
    ctl_command_add_words(&command, workers->args);
    return start_process(start, id, workers->role, &command, error);
}

/* All, before any is waited for: the ranks of a group wait for each other. */
static enum bt_status start_workers(struct start *start, const struct workers *workers,
                                    struct bt_error *error)
{
    uint32_t first = start->cluster->process_count;
    enum bt_status status = BT_OK;
    for (int64_t i = 0; i < workers->count * workers->ranks && status == BT_OK; i++)
        status = start_rank(start, workers, i / workers->ranks, i % workers->ranks, error);
    if (status == BT_OK)
        status =
            ctl_ready_wait(start->cluster, first, start->interrupt, start->until_ns, error, NULL);
    return status;
}

/* Groups meet at sockets in the cluster's directory. */
static enum bt_status check_sockets(const struct ctl_cluster *cluster,
                                    const struct workers *workers, struct bt_error *error)
{
    char id[CTL_NAME_SIZE], path[PATH_MAX];
    const size_t most = sizeof(((struct sockaddr_un *)NULL)->sun_path) - 1;
    worker_id(workers, workers->count - 1, 0, id);
    id_path(cluster, id, ".sock", path);
    if (workers->ranks > 1 && strlen(path) > most)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "--state-dir: the ranks of a group meet at a socket, whose path can "
                            "have %zu bytes, and this one has %zu: %s",
                            most, strlen(path), path);
    return BT_OK;
}

static enum bt_status make_worker_keys(const struct ctl_cluster *cluster,
                                       const struct workers *workers, struct bt_error *error)
{
    char id[CTL_NAME_SIZE];
    enum bt_status status = BT_OK;
    for (int64_t i = 0; i < workers->count * workers->ranks && status == BT_OK; i++) {
        worker_id(workers, i / workers->ranks, i % workers->ranks, id);
        status = ctl_keys_add(cluster->dir, id, error);
    }
    return status;
}

/* Before anybody reads the list. */
static enum bt_status make_keys(const struct ctl_cluster *cluster, int64_t routers,
                                const struct workers *prefill, const struct workers *decode,
                                struct bt_error *error)
{
    char id[CTL_NAME_SIZE];
    enum bt_status status = ctl_keys_begin(cluster->dir, error);
    if (status == BT_OK)
        status = ctl_keys_add(cluster->dir, CTL_KEYS_OPERATOR, error);
    for (int64_t i = 0; i < routers && status == BT_OK; i++) {
        router_id(i, id);
        status = ctl_keys_add(cluster->dir, id, error);
    }
    if (status == BT_OK)
        status = make_worker_keys(cluster, decode, error);
    if (status == BT_OK)
        status = make_worker_keys(cluster, prefill, error);
    return status;
}

static enum bt_status prepare(struct ctl_cluster *cluster, const struct ctl_up_options *options,
                              struct bt_error *error)
{
    static struct ctl_cluster old;
    old = *cluster;
    if (ctl_cluster_load(&old, NULL) == BT_OK && ctl_cluster_alive(&old))
        return bt_error_set(error, BT_ERR_ALREADY_EXISTS,
                            "cluster '%s' is running; stop it with: batonctl down --name %s",
                            cluster->name, cluster->name);
    if (!realpath(options->model, cluster->model))
        return bt_error_set(error, BT_ERR_IO, "--model %s: %s", options->model, strerror(errno));
    remove_dir(cluster);
    cluster->curve = options->curve;
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

/* Decode ranks first, so that prefill workers find them and warm their links. */
static enum bt_status start_all(struct start *start, const struct workers *prefill,
                                const struct workers *decode, struct bt_error *error)
{
    enum bt_status status =
        start->cluster->curve
            ? make_keys(start->cluster, start->options->routers, prefill, decode, error)
            : BT_OK;
    if (status == BT_OK)
        status = start_routers(start, error);
    if (status == BT_OK)
        status = start_workers(start, decode, error);
    if (status == BT_OK)
        status = start_workers(start, prefill, error);
    if (status == BT_OK)
        status = ctl_interrupt_check(start->interrupt, error);
    return status;
}

enum bt_status ctl_cluster_up(struct ctl_cluster *cluster, const struct ctl_up_options *options,
                              struct bt_error *error)
{
    char prefill_cpus[CTL_CORES_SIZE] = "", decode_cpus[CTL_CORES_SIZE] = "";
    struct workers prefill = {"prefill",
                              "prefill-node/baton-prefill",
                              options->prefill_args,
                              options->prefill_cpus,
                              options->prefill,
                              options->prefill_tp,
                              "--tensor-parallel-size"};
    struct workers decode = {
        "decode",        "decode-node/baton-decode", options->decode_args,  options->decode_cpus,
        options->decode, options->decode_dp,         "--data-parallel-size"};
    if (!cores_are_given(options) &&
        ctl_cores_divide((uint32_t)(prefill.count * prefill.ranks),
                         (uint32_t)(decode.count * decode.ranks), prefill_cpus, decode_cpus)) {
        prefill.cpus = prefill_cpus;
        decode.cpus = decode_cpus;
    }
    struct start start = {cluster, options, bt_clock_now_ns() + options->wait_ns, -1};
    enum bt_status status = check_sockets(cluster, &prefill, error);
    if (status == BT_OK)
        status = check_sockets(cluster, &decode, error);
    if (status == BT_OK)
        status = prepare(cluster, options, error);
    if (status == BT_OK)
        status = ctl_interrupt_hold(error, &start.interrupt);
    if (status != BT_OK)
        return status;
    status = start_all(&start, &prefill, &decode, error);
    if (status != BT_OK)
        ctl_cluster_down(cluster, BT_NS_PER_S, NULL);
    close(start.interrupt);
    return status;
}
