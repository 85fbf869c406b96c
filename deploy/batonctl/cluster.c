#include "deploy/batonctl/cluster.h"

#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/clock.h"

bool ctl_name_ok(const char *name)
{
    static const char allowed[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.";
    size_t size = strlen(name);
    return size > 0 && size < CTL_NAME_SIZE && name[0] != '.' && strspn(name, allowed) == size;
}

enum bt_status ctl_cluster_make_dir(const char *path, struct bt_error *error)
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
    cluster->lock = -1;
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
    enum bt_status status = ctl_cluster_make_dir(state, error);
    if (status != BT_OK)
        return status;
    snprintf(cluster->dir, sizeof(cluster->dir), "%s/%s", state, name);
    return BT_OK;
}

void ctl_cluster_path(const struct ctl_cluster *cluster, const char *file, const char *suffix,
                      char *ret_path)
{
    snprintf(ret_path, PATH_MAX, "%s/%s%s", cluster->dir, file, suffix);
}

const char *ctl_role_name(enum ctl_role role)
{
    return role == CTL_PREFILL ? "prefill" : "decode";
}

void ctl_worker_of(const char *process, char ret_worker[CTL_NAME_SIZE])
{
    snprintf(ret_worker, CTL_NAME_SIZE, "%.*s", (int)strcspn(process, "."), process);
}

bool ctl_cluster_alive(const struct ctl_cluster *cluster)
{
    for (uint32_t i = 0; i < cluster->process_count; i++)
        if (bt_process_probe(&cluster->processes[i].process) == BT_PROCESS_ALIVE)
            return true;
    return false;
}

bool ctl_cluster_router_dead(const struct ctl_cluster *cluster, const struct ctl_router *router)
{
    for (uint32_t i = 0; i < cluster->process_count; i++)
        if (strcmp(router->id, cluster->processes[i].id) == 0 &&
            bt_process_probe(&cluster->processes[i].process) != BT_PROCESS_DEAD)
            return false;
    return true;
}

const struct ctl_router *ctl_cluster_router(const struct ctl_cluster *cluster)
{
    for (uint32_t i = 0; i < cluster->router_count; i++)
        for (uint32_t k = 0; k < cluster->process_count; k++)
            if (strcmp(cluster->routers[i].id, cluster->processes[k].id) == 0 &&
                bt_process_probe(&cluster->processes[k].process) == BT_PROCESS_ALIVE)
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

/* -1: none. They are closed. */
static void reap(int *fds, uint32_t count, int64_t until_ns)
{
    for (uint32_t i = 0; i < count; i++) {
        if (fds[i] < 0)
            continue;
        if (!wait_gone(fds[i], until_ns)) {
            syscall(SYS_pidfd_send_signal, fds[i], SIGKILL, NULL, 0);
            wait_gone(fds[i], bt_clock_now_ns() + 10 * BT_NS_PER_S);
        }
        close(fds[i]);
    }
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
    reap(fds, cluster->process_count, until_ns);
}

void ctl_cluster_remove_dir(const struct ctl_cluster *cluster)
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
    ctl_cluster_remove_dir(cluster);
    return BT_OK;
}

/* ------------------------------------------------------------------ workers that go */

static bool is_of(const struct ctl_process *process, const char (*workers)[CTL_NAME_SIZE],
                  uint32_t count)
{
    char worker[CTL_NAME_SIZE];
    ctl_worker_of(process->id, worker);
    for (uint32_t i = 0; i < count; i++)
        if (strcmp(worker, workers[i]) == 0)
            return true;
    return false;
}

/* What of its files would be in the way of another of its name. Its log stays, and its key. */
static void remove_files(const struct ctl_cluster *cluster, const char *id)
{
    static const char *const suffixes[] = {".ready", ".sock", ".secret"};
    char path[PATH_MAX];
    for (size_t i = 0; i < sizeof(suffixes) / sizeof(suffixes[0]); i++) {
        ctl_cluster_path(cluster, id, suffixes[i], path);
        unlink(path);
    }
}

/* Those that are dead; the others are left, and told by INTERNAL. */
static enum bt_status forget(struct ctl_cluster *cluster, const char (*workers)[CTL_NAME_SIZE],
                             uint32_t count, struct bt_error *error)
{
    uint32_t left = 0;
    enum bt_status status = BT_OK;
    for (uint32_t i = 0; i < cluster->process_count; i++) {
        const struct ctl_process *process = &cluster->processes[i];
        bool goes = is_of(process, workers, count);
        if (goes && bt_process_probe(&process->process) != BT_PROCESS_DEAD) {
            status = bt_error_set(error, BT_ERR_INTERNAL, "%s does not end", process->id);
            goes = false;
        }
        if (goes) {
            waitpid((pid_t)process->process.pid, NULL, WNOHANG); /* where it is our child */
            remove_files(cluster, process->id);
        }
        if (!goes)
            cluster->processes[left++] = *process;
    }
    cluster->process_count = left;
    return status;
}

enum bt_status ctl_cluster_end(struct ctl_cluster *cluster, const char (*workers)[CTL_NAME_SIZE],
                               uint32_t count, int64_t grace_ns, struct bt_error *error)
{
    int fds[CTL_MAX_PROCESSES];
    struct ctl_process *processes = cluster->processes;
    for (uint32_t i = 0; i < cluster->process_count; i++)
        if (is_of(&processes[i], workers, count))
            processes[i].ending = true;
    /* First, so that another batonctl goes on with it if this one does not come to it. */
    enum bt_status status = ctl_cluster_save(cluster, error);
    if (status != BT_OK)
        return status;
    for (uint32_t i = 0; i < cluster->process_count; i++) {
        fds[i] = is_of(&processes[i], workers, count) ? open_process(&processes[i]) : -1;
        if (fds[i] >= 0)
            syscall(SYS_pidfd_send_signal, fds[i], SIGTERM, NULL, 0);
    }
    reap(fds, cluster->process_count, bt_clock_now_ns() + grace_ns);
    status = forget(cluster, workers, count, error);
    enum bt_status saved = ctl_cluster_save(cluster, status == BT_OK ? error : NULL);
    return status == BT_OK ? saved : status;
}
