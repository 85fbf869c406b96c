#include "deploy/batonctl/launch.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <libgen.h>
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

#define READY_POLL_MS  20
#define LOG_TAIL_BYTES 380

void ctl_command_add(struct ctl_command *command, const char *arg)
{
    size_t size = strlen(arg) + 1;
    if (command->arg_count >= CTL_COMMAND_MAX_ARGS ||
        size > sizeof(command->text) - command->text_size) {
        command->overflow = true;
        return;
    }
    char *copy = command->text + command->text_size;
    memcpy(copy, arg, size);
    command->text_size += (uint32_t)size;
    command->args[command->arg_count++] = copy;
    command->args[command->arg_count] = NULL;
}

void ctl_command_add_all(struct ctl_command *command, const char *const *args)
{
    for (; *args; args++)
        ctl_command_add(command, *args);
}

void ctl_command_add_words(struct ctl_command *command, const char *words)
{
    while (words && *(words += strspn(words, " "))) {
        char word[CTL_COMMAND_MAX_BYTES];
        size_t size = strcspn(words, " ");
        if (size >= sizeof(word)) {
            command->overflow = true;
            return;
        }
        memcpy(word, words, size);
        word[size] = '\0';
        ctl_command_add(command, word);
        words += size;
    }
}

/* Where this batonctl lies: BUILD/deploy/batonctl in a build tree, a bin directory when installed.
 */
static bool own_dir(char ret_dir[PATH_MAX])
{
    ssize_t size = readlink("/proc/self/exe", ret_dir, PATH_MAX - 1);
    if (size <= 0)
        return false;
    ret_dir[size] = '\0';
    char *slash = strrchr(ret_dir, '/');
    if (slash)
        *slash = '\0';
    return slash != NULL;
}

void ctl_command_init(struct ctl_command *command, const char *program)
{
    memset(command, 0, sizeof(*command));
    const char *name = strrchr(program, '/') + 1;
    char dir[PATH_MAX], path[PATH_MAX * 2];
    if (own_dir(dir)) {
        snprintf(path, sizeof(path), "%s/../../%s", dir, program);
        if (access(path, X_OK) != 0)
            snprintf(path, sizeof(path), "%s/%s", dir, name);
        if (access(path, X_OK) == 0) {
            ctl_command_add(command, path);
            return;
        }
    }
    ctl_command_add(command, name);
}

/* In the child: never returns. A failed exec is told through `report`. */
_Noreturn static void become(struct ctl_command *command, int log, int report)
{
    setsid();
    int null = open("/dev/null", O_RDONLY);
    dup2(null, STDIN_FILENO);
    dup2(log, STDOUT_FILENO);
    dup2(log, STDERR_FILENO);
    execvp(command->args[0], command->args);
    int reason = errno;
    ssize_t ignored = write(report, &reason, sizeof(reason));
    (void)ignored;
    _exit(127);
}

enum bt_status ctl_command_start(struct ctl_command *command, const char *log,
                                 struct bt_error *error, struct bt_process_id *ret_process)
{
    if (command->overflow)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "the arguments for %s are too long",
                            command->args[0]);
    int report[2];
    int out = open(log, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (out < 0)
        return bt_error_set(error, BT_ERR_IO, "can not write %s: %s", log, strerror(errno));
    if (pipe2(report, O_CLOEXEC) != 0) {
        close(out);
        return bt_error_set(error, BT_ERR_IO, "pipe: %s", strerror(errno));
    }
    pid_t pid = fork();
    if (pid == 0)
        become(command, out, report[1]);
    int fork_errno = errno;
    close(out);
    close(report[1]);
    int reason = 0;
    ssize_t got = pid > 0 ? read(report[0], &reason, sizeof(reason)) : 0;
    close(report[0]);
    if (pid < 0)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "fork: %s", strerror(fork_errno));
    if (got == (ssize_t)sizeof(reason)) {
        waitpid(pid, NULL, 0);
        return bt_error_set(error, BT_ERR_IO, "can not run %s: %s", command->args[0],
                            strerror(reason));
    }
    return bt_process_of(pid, error, ret_process);
}

static void log_tail(const char *log, char *ret_text, size_t size)
{
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

static enum bt_status read_ready(const char *path, struct bt_error *error,
                                 struct ctl_ready *ret_ready)
{
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

enum bt_status ctl_ready_wait(const char *id, const struct bt_process_id *process,
                              const char *ready_file, const char *log, int64_t until_ns,
                              struct bt_error *error, struct ctl_ready *ret_ready)
{
    int fd = (int)syscall(SYS_pidfd_open, (pid_t)process->pid, 0);
    enum bt_status status = BT_IN_PROGRESS;
    while (status == BT_IN_PROGRESS) {
        /* Wakes at once when the process ends; the file is looked for every few milliseconds. */
        struct pollfd item = {.fd = fd, .events = POLLIN};
        bool ended = fd < 0 || poll(&item, 1, READY_POLL_MS) > 0;
        char tail[LOG_TAIL_BYTES];
        if (access(ready_file, R_OK) == 0) {
            status = read_ready(ready_file, error, ret_ready);
        } else if (ended) {
            log_tail(log, tail, sizeof(tail));
            status =
                bt_error_set(error, BT_ERR_UNAVAILABLE, "%s ended while starting:\n%s", id, tail);
        } else if (bt_clock_now_ns() >= until_ns) {
            log_tail(log, tail, sizeof(tail));
            status = bt_error_set(error, BT_ERR_DEADLINE, "%s is not ready in time:\n%s", id, tail);
        }
    }
    if (fd >= 0)
        close(fd);
    return status;
}
