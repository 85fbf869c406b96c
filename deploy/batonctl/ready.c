#include "deploy/batonctl/ready.h"

#include <errno.h>
#include <jansson.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "deploy/batonctl/interrupt.h"

#define READY_POLL_MS  20
#define LOG_TAIL_BYTES 380

static void file_of(const struct ctl_cluster *cluster, uint32_t index, const char *suffix,
                    char ret_path[PATH_MAX])
{
    snprintf(ret_path, PATH_MAX, "%s/%s%s", cluster->dir, cluster->processes[index].id, suffix);
}

static void log_tail(const struct ctl_cluster *cluster, uint32_t index, char *ret_text, size_t size)
{
    char log[PATH_MAX];
    file_of(cluster, index, ".log", log);
    ret_text[0] = '\0';
    FILE *file = fopen(log, "r");
    if (!file)
        return;
    if (fseek(file, -(long)(size - 1), SEEK_END) != 0)
        rewind(file);
    size_t got = fread(ret_text, 1, size - 1, file);
    fclose(file);
    while (got > 0 && ret_text[got - 1] == '\n')
        got--;
    ret_text[got] = '\0';
}

enum bt_status ctl_ready_read(const struct ctl_cluster *cluster, const char *id,
                              struct bt_error *error, struct ctl_ready *ret_ready)
{
    char path[PATH_MAX];
    ctl_cluster_path(cluster, id, ".ready", path);
    json_error_t where;
    json_t *root = json_load_file(path, 0, &where);
    if (!root)
        return bt_error_set(error, BT_ERR_IO, "%s: %s", path, where.text);
    const char *http = json_string_value(json_object_get(root, "http"));
    const char *rpc = json_string_value(json_object_get(root, "rpc"));
    snprintf(ret_ready->http, sizeof(ret_ready->http), "%s", http ? http : "");
    snprintf(ret_ready->rpc, sizeof(ret_ready->rpc), "%s", rpc ? rpc : "");
    json_decref(root);
    return BT_OK;
}

static bool is_ready(const struct ctl_cluster *cluster, uint32_t index)
{
    char path[PATH_MAX];
    file_of(cluster, index, ".ready", path);
    return access(path, R_OK) == 0;
}

static enum bt_status fail(const struct ctl_cluster *cluster, uint32_t index, enum bt_status status,
                           const char *what, struct bt_error *error)
{
    char tail[LOG_TAIL_BYTES];
    log_tail(cluster, index, tail, sizeof(tail));
    return bt_error_set(error, status, "%s %s:\n%s", cluster->processes[index].id, what, tail);
}

/* Who is in the list waits: a descriptor a process, -1 when it is ready, and that of signals behind
 * them. A process that is ready and then ends is not looked at: those that need it tell. */
static enum bt_status wait_list(const struct ctl_cluster *cluster, uint32_t first,
                                struct pollfd *list, int64_t until_ns, struct bt_error *error)
{
    uint32_t count = cluster->process_count - first, left = count;
    while (left > 0) {
        /* Wakes at once when a process ends; the files are looked for every few milliseconds. */
        if (poll(list, count + 1, READY_POLL_MS) < 0 && errno != EINTR)
            return bt_error_set(error, BT_ERR_IO, "poll: %s", strerror(errno));
        enum bt_status status = ctl_interrupt_check(list[count].fd, error);
        if (status != BT_OK)
            return status;
        bool late = bt_clock_now_ns() >= until_ns;
        for (uint32_t i = 0; i < count; i++) {
            if (list[i].fd < 0)
                continue;
            if (is_ready(cluster, first + i)) {
                close(list[i].fd);
                list[i].fd = -1;
                left--;
            } else if (list[i].revents) {
                return fail(cluster, first + i, BT_ERR_UNAVAILABLE, "ended while starting", error);
            } else if (late) {
                return fail(cluster, first + i, BT_ERR_DEADLINE, "is not ready in time", error);
            }
        }
    }
    return BT_OK;
}

enum bt_status ctl_ready_wait(const struct ctl_cluster *cluster, uint32_t first, int interrupt,
                              int64_t until_ns, struct bt_error *error, struct ctl_ready *ret_ready)
{
    struct pollfd list[CTL_MAX_PROCESSES + 1];
    uint32_t count = cluster->process_count - first, opened = 0;
    enum bt_status status = BT_OK;
    for (; opened < count; opened++) {
        pid_t pid = (pid_t)cluster->processes[first + opened].process.pid;
        int fd = (int)syscall(SYS_pidfd_open, pid, 0);
        if (fd < 0) {
            status = bt_error_set(error, BT_ERR_IO, "pidfd_open: %s", strerror(errno));
            break;
        }
        list[opened] = (struct pollfd){.fd = fd, .events = POLLIN};
    }
    list[count] = (struct pollfd){.fd = interrupt, .events = POLLIN};
    if (status == BT_OK)
        status = wait_list(cluster, first, list, until_ns, error);
    for (uint32_t i = 0; i < opened; i++)
        if (list[i].fd >= 0)
            close(list[i].fd);
    if (status == BT_OK && ret_ready)
        status = ctl_ready_read(cluster, cluster->processes[first].id, error, ret_ready);
    return status;
}
