/*
 * The lock of a local cluster: STATE/.NAME.lock, beside its directory, which comes and goes. It
 * holds who has it, as one line; the kernel gives it back with the process.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "deploy/batonctl/cluster.h"

#define LOCK_POLL_MS 20

struct holder {
    char verb[CTL_NAME_SIZE]; /* "": not known */
    struct bt_process_id process;
};

static void lock_path(const struct ctl_cluster *cluster, char ret_path[PATH_MAX])
{
    int state = (int)(strlen(cluster->dir) - strlen(cluster->name));
    snprintf(ret_path, PATH_MAX, "%.*s.%s.lock", state, cluster->dir, cluster->name);
}

static void write_holder(int fd, const char *verb)
{
    struct bt_process_id self;
    char line[512];
    if (bt_process_self(NULL, &self) != BT_OK)
        return;
    int size = snprintf(line, sizeof(line), "%s %" PRId64 " %" PRIu64 " %s\n", verb, self.pid,
                        self.start_ticks, self.host);
    if (ftruncate(fd, 0) == 0 && pwrite(fd, line, (size_t)size, 0) != size)
        (void)!ftruncate(fd, 0);
}

static struct holder read_holder(int fd)
{
    struct holder holder = {0};
    char line[512];
    ssize_t size = pread(fd, line, sizeof(line) - 1, 0);
    line[size > 0 ? size : 0] = '\0';
    if (sscanf(line, "%63s %" SCNd64 " %" SCNu64 " %79s", holder.verb, &holder.process.pid,
               &holder.process.start_ticks, holder.process.host) != 4)
        holder = (struct holder){0};
    return holder;
}

/* The file that is there under the name, also when another is removing it just now. */
static bool is_current(int fd, const char *path)
{
    struct stat ours, theirs;
    return fstat(fd, &ours) == 0 && stat(path, &theirs) == 0 && ours.st_ino == theirs.st_ino &&
           ours.st_dev == theirs.st_dev;
}

/* IN_PROGRESS: it is held, by `ret_holder`. */
static enum bt_status try_lock(struct ctl_cluster *cluster, const char *verb,
                               struct bt_error *error, struct holder *ret_holder)
{
    char path[PATH_MAX];
    lock_path(cluster, path);
    for (;;) {
        int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (fd < 0)
            return bt_error_set(error, BT_ERR_IO, "can not open %s: %s", path, strerror(errno));
        bool got = flock(fd, LOCK_EX | LOCK_NB) == 0;
        if (got && is_current(fd, path)) {
            write_holder(fd, verb);
            cluster->lock = fd;
            return BT_OK;
        }
        *ret_holder = read_holder(fd);
        close(fd);
        if (!got)
            return BT_IN_PROGRESS;
    }
}

enum bt_status ctl_cluster_lock(struct ctl_cluster *cluster, const char *verb,
                                struct bt_error *error)
{
    struct holder holder;
    enum bt_status status = try_lock(cluster, verb, error, &holder);
    if (status != BT_IN_PROGRESS)
        return status;
    return bt_error_set(error, BT_ERR_ALREADY_EXISTS,
                        "cluster '%s' is being changed by another batonctl (%s, pid %" PRId64
                        "); try again when it is done",
                        cluster->name, holder.verb[0] ? holder.verb : "?", holder.process.pid);
}

/* It undoes or ends what it has begun. */
static void tell_to_end(const struct holder *holder)
{
    if (holder->process.pid <= 0)
        return;
    int fd = (int)syscall(SYS_pidfd_open, (pid_t)holder->process.pid, 0);
    if (fd >= 0 && bt_process_probe(&holder->process) == BT_PROCESS_ALIVE)
        syscall(SYS_pidfd_send_signal, fd, SIGTERM, NULL, 0);
    if (fd >= 0)
        close(fd);
}

enum bt_status ctl_cluster_take(struct ctl_cluster *cluster, const char *verb, int64_t until_ns,
                                struct bt_error *error)
{
    struct holder holder;
    int64_t told = 0;
    enum bt_status status;
    while ((status = try_lock(cluster, verb, error, &holder)) == BT_IN_PROGRESS) {
        if (bt_clock_now_ns() >= until_ns)
            return bt_error_set(error, BT_ERR_DEADLINE,
                                "another batonctl (%s, pid %" PRId64
                                ") changes cluster '%s' and does not end",
                                holder.verb, holder.process.pid, cluster->name);
        if (holder.process.pid != told)
            tell_to_end(&holder);
        told = holder.process.pid;
        poll(NULL, 0, LOCK_POLL_MS);
    }
    return status;
}

void ctl_cluster_unlock(struct ctl_cluster *cluster)
{
    char path[PATH_MAX];
    if (cluster->lock < 0)
        return;
    lock_path(cluster, path);
    unlink(path); /* while it is held, so that it is ours */
    close(cluster->lock);
    cluster->lock = -1;
}
