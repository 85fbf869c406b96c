/* A program begins when it is remembered, and never where whoever starts it dies or fails before.
 */
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "deploy/batonctl/launch.h"

static char dir[] = "/tmp/baton-launch-XXXXXX";
static char mark[64], logged[64];

enum way { REMEMBERS, FAILS, DIES };

struct memory {
    enum way way;
    struct bt_process_id process;
};

static enum bt_status remember(void *context, const struct bt_process_id *process,
                               struct bt_error *error)
{
    struct memory *memory = context;
    memory->process = *process;
    assert_int_equal(bt_process_probe(process), BT_PROCESS_ALIVE);
    assert_int_not_equal(access(mark, F_OK), 0);
    if (memory->way == DIES)
        raise(SIGKILL);
    return memory->way == FAILS ? bt_error_set(error, BT_ERR_IO, "the disk is full") : BT_OK;
}

static enum bt_status start(struct memory *memory, const char *program, struct bt_error *error)
{
    static struct ctl_command command;
    ctl_command_init(&command, program);
    ctl_command_add(&command, mark);
    return ctl_command_start(&command, logged, remember, memory, error);
}

static void test_runs_when_remembered(void **state)
{
    (void)state;
    struct memory memory = {.way = REMEMBERS};
    struct bt_error error;
    assert_int_equal(start(&memory, "x/touch", &error), BT_OK);
    assert_int_equal(waitpid((pid_t)memory.process.pid, NULL, 0), memory.process.pid);
    assert_int_equal(access(mark, F_OK), 0);
    unlink(mark);
}

static void test_not_remembered_never_runs(void **state)
{
    (void)state;
    struct memory memory = {.way = FAILS};
    struct bt_error error;
    assert_int_equal(start(&memory, "x/touch", &error), BT_ERR_IO);
    assert_string_equal(error.text, "the disk is full");
    assert_int_equal(bt_process_probe(&memory.process), BT_PROCESS_DEAD);
    assert_int_not_equal(access(mark, F_OK), 0);
}

static void test_failed_exec_is_told(void **state)
{
    (void)state;
    struct memory memory = {.way = REMEMBERS};
    struct bt_error error;
    assert_int_equal(start(&memory, "x/no-such-program-at-all", &error), BT_ERR_IO);
    assert_non_null(strstr(error.text, "no-such-program-at-all"));
    assert_int_equal(bt_process_probe(&memory.process), BT_PROCESS_DEAD);
}

/* The orphan becomes ours, so that its end can be waited for. */
static void test_dead_starter_leaves_nobody(void **state)
{
    (void)state;
    assert_int_equal(prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
    pid_t starter = fork();
    if (starter == 0) {
        struct memory memory = {.way = DIES};
        struct bt_error error;
        start(&memory, "x/touch", &error);
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(starter, &status, 0), starter);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    assert_true(waitpid(-1, &status, 0) > 0);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 127);
    assert_int_not_equal(access(mark, F_OK), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_runs_when_remembered),
        cmocka_unit_test(test_not_remembered_never_runs),
        cmocka_unit_test(test_failed_exec_is_told),
        cmocka_unit_test(test_dead_starter_leaves_nobody),
    };
    if (!mkdtemp(dir))
        return 1;
    snprintf(mark, sizeof(mark), "%s/ran", dir);
    snprintf(logged, sizeof(logged), "%s/log", dir);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(mark);
    unlink(logged);
    rmdir(dir);
    return failed;
}
