#include "deploy/batonctl/launch.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "deploy/batonctl/interrupt.h"

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

/* In the child: never returns. Waits for a byte from `go`; a failed exec is told by `report`. */
_Noreturn static void become(struct ctl_command *command, int log, int go, int report)
{
    sigset_t held;
    char byte;
    if (read(go, &byte, 1) != 1)
        _exit(127);
    ctl_interrupt_signals(&held);
    sigprocmask(SIG_UNBLOCK, &held, NULL);
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

/* Both ends of two, or none. */
static bool make_pipes(int go[2], int report[2])
{
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, go) != 0)
        return false;
    if (pipe2(report, O_CLOEXEC) == 0)
        return true;
    int reason = errno;
    close(go[0]);
    close(go[1]);
    errno = reason;
    return false;
}

/* Lets it run; what exec says. */
static enum bt_status let_run(const struct ctl_command *command, int go, int report,
                              struct bt_error *error)
{
    int reason = 0;
    bool told = send(go, "", 1, MSG_NOSIGNAL) == 1;
    ssize_t got = read(report, &reason, sizeof(reason));
    if (told && got != (ssize_t)sizeof(reason))
        return BT_OK;
    return bt_error_set(error, BT_ERR_IO, "can not run %s: %s", command->args[0],
                        strerror(told ? reason : ECHILD));
}

enum bt_status ctl_command_start(struct ctl_command *command, const char *log,
                                 enum bt_status (*remember)(void *context,
                                                            const struct bt_process_id *process,
                                                            struct bt_error *error),
                                 void *context, struct bt_error *error)
{
    if (command->overflow)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "the arguments for %s are too long",
                            command->args[0]);
    int go[2], report[2];
    int out = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (out < 0)
        return bt_error_set(error, BT_ERR_IO, "can not write %s: %s", log, strerror(errno));
    if (!make_pipes(go, report)) {
        close(out);
        return bt_error_set(error, BT_ERR_IO, "pipe: %s", strerror(errno));
    }
    pid_t pid = fork();
    if (pid == 0) {
        close(go[1]);
        become(command, out, go[0], report[1]);
    }
    enum bt_status status =
        pid > 0 ? BT_OK : bt_error_set(error, BT_ERR_NO_MEMORY, "fork: %s", strerror(errno));
    close(out);
    close(go[0]);
    close(report[1]);
    struct bt_process_id process;
    if (status == BT_OK)
        status = bt_process_of(pid, error, &process);
    if (status == BT_OK)
        status = remember(context, &process, error);
    if (status == BT_OK)
        status = let_run(command, go[1], report[0], error);
    close(go[1]); /* whoever waits still ends by it */
    close(report[0]);
    if (status != BT_OK && pid > 0)
        waitpid(pid, NULL, 0);
    return status;
}
