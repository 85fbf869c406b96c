#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/base/process.h"

/* A child that tells its identity and then does `act`. */
static pid_t child_start(void (*act)(void), struct bt_process_id *ret_id)
{
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        struct bt_process_id id;
        if (bt_process_self(NULL, &id) != BT_OK ||
            write(ends[1], &id, sizeof id) != (ssize_t)sizeof id) {
            _exit(1);
        }
        act();
        _exit(0);
    }
    close(ends[1]);
    ssize_t got = read(ends[0], ret_id, sizeof *ret_id);
    close(ends[0]);
    if (got != (ssize_t)sizeof *ret_id) {
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
        fail_msg("the child did not tell its identity");
    }
    return child;
}

static void act_wait(void)
{
    for (;;) {
        pause();
    }
}

static void test_self(void **state)
{
    (void)state;
    struct bt_process_id a, b;
    struct bt_error error = {0};
    assert_int_equal(bt_process_self(&error, &a), BT_OK);
    assert_int_equal(bt_process_self(&error, &b), BT_OK);
    assert_int_equal(a.pid, getpid());
    assert_string_equal(a.host, b.host);
    assert_true(a.start_ticks == b.start_ticks && a.start_ticks > 0);
    assert_true(bt_process_same_host(&a, &b));
    assert_int_equal(bt_process_probe(&a), BT_PROCESS_ALIVE);
    a.start_ticks++; /* somebody else had this pid */
    assert_int_equal(bt_process_probe(&a), BT_PROCESS_DEAD);
}

/* Alive, stopped, a zombie, reaped: stopped is alive, and a zombie can't run any more. */
static void test_child(void **state)
{
    (void)state;
    struct bt_process_id id;
    siginfo_t info;
    pid_t child = child_start(act_wait, &id);
    enum bt_process_state alive = bt_process_probe(&id);
    kill(child, SIGSTOP);
    waitid(P_PID, (id_t)child, &info, WSTOPPED);
    enum bt_process_state stopped = bt_process_probe(&id);
    kill(child, SIGKILL);
    waitid(P_PID, (id_t)child, &info, WEXITED | WNOWAIT);
    enum bt_process_state zombie = bt_process_probe(&id);
    waitpid(child, NULL, 0);
    enum bt_process_state reaped = bt_process_probe(&id);
    assert_int_equal(id.pid, child);
    assert_int_equal(alive, BT_PROCESS_ALIVE);
    assert_int_equal(stopped, BT_PROCESS_ALIVE);
    assert_int_equal(zombie, BT_PROCESS_DEAD);
    assert_int_equal(reaped, BT_PROCESS_DEAD);
}

static pthread_t main_thread;

static bool is_zombie(void)
{
    char line[512] = "";
    FILE *file = fopen("/proc/self/stat", "r");
    if (file) {
        if (!fgets(line, sizeof line, file)) {
            line[0] = '\0';
        }
        fclose(file);
    }
    return strstr(line, ") Z ") != NULL;
}

/* Speaks up when the main thread is gone and /proc shows the process as a zombie. */
static void *thread_wait(void *context)
{
    pthread_join(main_thread, NULL);
    while (!is_zombie()) {
        sched_yield();
    }
    if (write(*(int *)context, "z", 1) != 1) {
        _exit(1);
    }
    act_wait();
    return NULL;
}

static int leader_pipe[2];

static void act_leave_main_thread(void)
{
    pthread_t thread;
    main_thread = pthread_self();
    pthread_create(&thread, NULL, thread_wait, &leader_pipe[1]);
    pthread_exit(NULL);
}

/* Its first thread ended, others still run and could write: not dead. */
static void test_zombie_leader_with_threads(void **state)
{
    (void)state;
#ifdef __SANITIZE_THREAD__
    skip(); /* the thread sanitizer does not let a main thread leave */
#endif
    assert_int_equal(pipe(leader_pipe), 0);
    struct bt_process_id id;
    char byte;
    pid_t child = child_start(act_leave_main_thread, &id);
    ssize_t got = read(leader_pipe[0], &byte, 1);
    enum bt_process_state running = bt_process_probe(&id);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    close(leader_pipe[0]);
    close(leader_pipe[1]);
    assert_int_equal(got, 1);
    assert_int_equal(running, BT_PROCESS_ALIVE);
    assert_int_equal(bt_process_probe(&id), BT_PROCESS_DEAD);
}

static void test_elsewhere(void **state)
{
    (void)state;
    struct bt_process_id self, other;
    assert_int_equal(bt_process_self(NULL, &self), BT_OK);
    other = self;
    other.host[0] = other.host[0] == '0' ? '1' : '0';
    assert_false(bt_process_same_host(&self, &other));
    other.pid = 0x7ffffff0;
    assert_int_equal(bt_process_probe(&other), BT_PROCESS_UNKNOWN);
    other = (struct bt_process_id){.pid = 1};
    assert_int_equal(bt_process_probe(&other), BT_PROCESS_UNKNOWN);
    assert_false(bt_process_same_host(&other, &other)); /* nothing stated, nothing proven */
    const int64_t bad[] = {0, -1, INT64_MIN, INT64_MAX};
    for (size_t i = 0; i < 4; i++) {
        other = self;
        other.pid = bad[i];
        assert_int_equal(bt_process_probe(&other), BT_PROCESS_UNKNOWN);
    }
    memset(other.host, 'x', sizeof other.host); /* not terminated */
    assert_int_equal(bt_process_probe(&other), BT_PROCESS_UNKNOWN);
}

static int orphan_pipe[2];

static void act_parent(void)
{
    if (fork() == 0) {
        char answer = bt_process_die_with_parent() == BT_OK ? 'y' : 'n';
        if (write(orphan_pipe[1], &answer, 1) != 1) {
            _exit(1);
        }
        act_wait();
    }
    act_wait();
}

/* The grandchild holds the pipe open until it dies with its parent. */
static void test_die_with_parent(void **state)
{
    (void)state;
    assert_int_equal(pipe(orphan_pipe), 0);
    struct bt_process_id id;
    pid_t child = child_start(act_parent, &id);
    close(orphan_pipe[1]);
    char answer = 0;
    ssize_t first = read(orphan_pipe[0], &answer, 1);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    char end;
    ssize_t second = read(orphan_pipe[0], &end, 1);
    close(orphan_pipe[0]);
    assert_int_equal(first, 1);
    assert_int_equal(answer, 'y');
    assert_int_equal(second, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_self),
        cmocka_unit_test(test_child),
        cmocka_unit_test(test_zombie_leader_with_threads),
        cmocka_unit_test(test_elsewhere),
        cmocka_unit_test(test_die_with_parent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
