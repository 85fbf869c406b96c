#include "common/base/process.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/types.h>
#include <unistd.h>

/* What of /proc/PID/stat counts here (proc(5): fields 3, 20 and 22). */
struct stat_line {
    char state;
    long thread_count;
    uint64_t start_ticks;
};

static ssize_t read_file(const char *path, char *buffer, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return -1;
    }
    ssize_t got = read(fd, buffer, size - 1);
    int saved_errno = errno;
    close(fd);
    errno = saved_errno;
    if (got >= 0) {
        buffer[got] = '\0';
    }
    return got;
}

/* The command name in field 2 may hold spaces and parentheses: fields count from its last ')'. */
static bool stat_parse(const char *text, struct stat_line *ret_line)
{
    const char *end = strrchr(text, ')');
    if (!end) {
        return false;
    }
    return sscanf(end + 1,
                  " %c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %ld %*d "
                  "%" SCNu64,
                  &ret_line->state, &ret_line->thread_count, &ret_line->start_ticks) == 3;
}

/* False with errno: ENOENT or ESRCH when there is no such process to be seen. */
static bool stat_read(int64_t pid, struct stat_line *ret_line)
{
    char path[64];
    char text[1024];
    snprintf(path, sizeof path, "/proc/%" PRId64 "/stat", pid);
    if (read_file(path, text, sizeof text) < 0) {
        return false;
    }
    errno = EPROTO;
    return stat_parse(text, ret_line);
}

static enum bt_status host_read(struct bt_error *error, char ret_host[BT_HOST_ID_SIZE])
{
    char boot[40];
    char space[40];
    const char *boot_path = "/proc/sys/kernel/random/boot_id";
    const char *space_path = "/proc/self/ns/pid"; /* a link to "pid:[INODE]" */
    if (read_file(boot_path, boot, sizeof boot) < 36) {
        return bt_error_set(error, BT_ERR_IO, "%s: %s", boot_path, strerror(errno));
    }
    boot[36] = '\0';
    ssize_t length = readlink(space_path, space, sizeof space - 1);
    if (length < 0) {
        return bt_error_set(error, BT_ERR_IO, "%s: %s", space_path, strerror(errno));
    }
    space[length] = '\0';
    unsigned long long inode;
    if (sscanf(space, "pid:[%llu]", &inode) != 1) {
        return bt_error_set(error, BT_ERR_IO, "%s: unexpected target '%s'", space_path, space);
    }
    snprintf(ret_host, BT_HOST_ID_SIZE, "%s/%llu", boot, inode);
    return BT_OK;
}

enum bt_status bt_process_of(int64_t pid, struct bt_error *error, struct bt_process_id *ret_id)
{
    struct bt_process_id id = {.pid = pid};
    enum bt_status status = host_read(error, id.host);
    if (status != BT_OK) {
        return status;
    }
    struct stat_line line;
    if (!stat_read(id.pid, &line)) {
        return bt_error_set(error, BT_ERR_IO, "/proc/%" PRId64 "/stat: %s", id.pid,
                            strerror(errno));
    }
    id.start_ticks = line.start_ticks;
    *ret_id = id;
    return BT_OK;
}

enum bt_status bt_process_self(struct bt_error *error, struct bt_process_id *ret_id)
{
    return bt_process_of(getpid(), error, ret_id);
}

/* A process that can't be seen in /proc may be hidden (hidepid=): only ESRCH of kill is proof. */
static enum bt_process_state probe_unseen(int64_t pid)
{
    if (kill((pid_t)pid, 0) < 0 && errno == ESRCH) {
        return BT_PROCESS_DEAD;
    }
    return BT_PROCESS_UNKNOWN;
}

enum bt_process_state bt_process_probe(const struct bt_process_id *id)
{
    struct bt_process_id self = {0};
    if (host_read(NULL, self.host) != BT_OK || !bt_process_same_host(&self, id) || id->pid <= 0 ||
        id->pid > INT32_MAX) {
        return BT_PROCESS_UNKNOWN;
    }
    struct stat_line line;
    if (!stat_read(id->pid, &line)) {
        return errno == ENOENT || errno == ESRCH ? probe_unseen(id->pid) : BT_PROCESS_UNKNOWN;
    }
    if (line.start_ticks != id->start_ticks) {
        return BT_PROCESS_DEAD;
    }
    /* The main thread may be a zombie while other threads still run, and write. */
    bool zombie = line.state == 'Z' || line.state == 'X';
    return zombie && line.thread_count <= 1 ? BT_PROCESS_DEAD : BT_PROCESS_ALIVE;
}

bool bt_process_same_host(const struct bt_process_id *a, const struct bt_process_id *b)
{
    return a->host[0] != '\0' && strncmp(a->host, b->host, BT_HOST_ID_SIZE) == 0;
}

/*
 * An orphan is given to init or a subreaper, and so is recognised in two ways: its parent changed
 * during the call, or it is a child of process 1 and yet not of its session, as a real child of a
 * container's first process would be.
 */
enum bt_status bt_process_die_with_parent(void)
{
    pid_t before = getppid();
    if (prctl(PR_SET_PDEATHSIG, SIGTERM) < 0) {
        return BT_ERR_INTERNAL;
    }
    pid_t after = getppid();
    bool orphan = after == 1 && getsid(0) != getsid(1);
    return after != before || orphan ? BT_ERR_PEER_LOST : BT_OK;
}

/* A process starts once; both calls are of one thread. */
static struct {
    bool begun;
    pthread_t thread;
    sem_t end;
} start;

/* The one thread that a signal can reach. */
static void *start_main(void *argument)
{
    sigset_t signals;
    (void)argument;
    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    pthread_sigmask(SIG_UNBLOCK, &signals, NULL);
    while (sem_wait(&start.end) != 0) {
    }
    return NULL;
}

enum bt_status bt_process_start_begin(struct bt_error *error)
{
    sem_init(&start.end, 0, 0);
    if (pthread_create(&start.thread, NULL, start_main, NULL) != 0) {
        sem_destroy(&start.end);
        return bt_error_set(error, BT_ERR_NO_MEMORY, "start: no memory for a thread");
    }
    start.begun = true;
    return BT_OK;
}

void bt_process_start_end(void)
{
    if (!start.begun) {
        return;
    }
    sem_post(&start.end);
    pthread_join(start.thread, NULL);
    sem_destroy(&start.end);
    start.begun = false;
}

void bt_process_raise_file_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &limit); /* what was before does for fewer peers */
    }
}
