/*
 * batonctl top on a pseudo-terminal, against a router that the test plays: it draws, follows the
 * size, and gives the terminal back whatever ends it.
 * usage: test-batonctl-top PATH-OF-BATONCTL
 */
#include <errno.h>
#include <fcntl.h>
#include <pty.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>
#include <utmp.h>

#include <cmocka.h>

#include "common/base/clock.h"
#include "common/messaging/rpc.h"
#include "proto/router.pb-c.h"

#define PATIENCE_NS (120 * BT_NS_PER_S)
#define WORKERS     10
#define ENTER       "\x1b[?1049h"
#define LEAVE       "\x1b[?1049l"

static const char *batonctl;
static struct bt_loop *loop;
static struct bt_rpc_server *server;
static pid_t pid;
static int terminal;
static struct termios before;
static char screen[1 << 20]; /* all that was written to it */
static size_t size;

static void answer_status(void *context, struct bt_rpc_call *call, const ProtobufCMessage *request)
{
    (void)context;
    (void)request;
    static Baton__V1__WorkerStatus workers[WORKERS], *list[WORKERS];
    static char names[WORKERS][16], state[] = "ready", transport[] = "shm", model[] = "tiny";
    Baton__V1__RankLoad load = BATON__V1__RANK_LOAD__INIT;
    load.pages_total = 100;
    load.pages_free = 75;
    for (int i = 0; i < WORKERS; i++) {
        baton__v1__worker_status__init(&workers[i]);
        snprintf(names[i], sizeof names[i], "decode-%d", i);
        workers[i].worker_id = names[i];
        workers[i].role = BATON__V1__WORKER_ROLE__ROLE_DECODE;
        workers[i].state = state;
        workers[i].transport = transport;
        workers[i].load = &load;
        list[i] = &workers[i];
    }
    Baton__V1__StatusResponse status = BATON__V1__STATUS_RESPONSE__INIT;
    status.model = model;
    status.workers = list;
    status.n_workers = WORKERS;
    bt_rpc_call_end(call, BT_OK, NULL, &status.base);
}

static void answer_stats(void *context, struct bt_rpc_call *call, const ProtobufCMessage *request)
{
    (void)context;
    (void)request;
    Baton__V1__StatsResponse stats = BATON__V1__STATS_RESPONSE__INIT;
    Baton__V1__Quantiles ttft = BATON__V1__QUANTILES__INIT;
    ttft.count = 3;
    ttft.p50_s = 0.0125;
    stats.ttft = &ttft;
    stats.kv_bytes_s = 2.5e9;
    bt_rpc_call_end(call, BT_OK, NULL, &stats.base);
}

static const struct bt_rpc_method methods[] = {
    {"baton.v1.Router/Status", &baton__v1__status_request__descriptor, answer_status},
    {"baton.v1.Router/Stats", &baton__v1__stats_request__descriptor, answer_stats},
    {NULL, NULL, NULL},
};

static int set_up(void **state)
{
    (void)state;
    struct winsize window = {.ws_row = 24, .ws_col = 100};
    loop = bt_loop_create(NULL);
    assert_int_equal(bt_rpc_server_create(loop, "tcp://127.0.0.1:*", methods, NULL, NULL, &server),
                     BT_OK);
    size = 0;
    screen[0] = '\0';
    int slave;
    assert_int_equal(openpty(&terminal, &slave, NULL, NULL, &window), 0);
    assert_int_equal(tcgetattr(terminal, &before), 0);
    fcntl(terminal, F_SETFL, O_NONBLOCK);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        close(terminal);
        login_tty(slave);
        signal(SIGINT, SIG_DFL); /* who was started in the background may ignore it */
        execl(batonctl, batonctl, "top", "--rpc", bt_rpc_server_endpoint(server), "--timeout",
              "60s", "--interval", "50ms", NULL);
        _exit(127);
    }
    return close(slave);
}

static int tear_down(void **state)
{
    (void)state;
    if (pid > 0) {
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
    }
    close(terminal);
    bt_rpc_server_destroy(server);
    bt_loop_destroy(loop);
    return 0;
}

static void read_screen(void)
{
    ssize_t got;
    while ((got = read(terminal, screen + size, sizeof screen - 1 - size)) > 0)
        size += (size_t)got;
    screen[size] = '\0';
}

/* From `from` on. */
static void wait_for(const char *text, size_t from)
{
    int64_t until_ns = bt_clock_now_ns() + PATIENCE_NS;
    for (;;) {
        bool late = bt_clock_now_ns() > until_ns;
        read_screen();
        if (strstr(screen + from, text))
            return;
        if (late)
            fail_msg("'%s' does not come: %s", text, screen + from);
        bt_loop_run_once(loop, bt_clock_now_ns() + 5 * BT_NS_PER_MS, NULL);
    }
}

/* What waitpid says. */
static int wait_end(void)
{
    int64_t until_ns = bt_clock_now_ns() + PATIENCE_NS;
    int state = 0;
    while (waitpid(pid, &state, WNOHANG) == 0) {
        if (bt_clock_now_ns() > until_ns)
            fail_msg("it does not end: %s", screen);
        read_screen();
        bt_loop_run_once(loop, bt_clock_now_ns() + 5 * BT_NS_PER_MS, NULL);
    }
    pid = 0;
    read_screen();
    return state;
}

static void expect_restored(void)
{
    struct termios now;
    assert_non_null(strstr(screen, LEAVE));
    assert_non_null(strstr(strstr(screen, ENTER), "\x1b[?25h")); /* the cursor */
    assert_int_equal(tcgetattr(terminal, &now), 0);
    assert_int_equal(now.c_lflag, before.c_lflag);
    assert_int_equal(now.c_iflag, before.c_iflag);
    assert_int_equal(now.c_oflag, before.c_oflag);
}

static void expect_raw(void)
{
    struct termios now;
    assert_int_equal(tcgetattr(terminal, &now), 0);
    assert_int_equal(now.c_lflag & (ICANON | ECHO), 0);
    assert_null(strstr(screen, LEAVE));
}

static void test_draws_and_follows_the_size(void **state)
{
    (void)state;
    wait_for("decode-9", 0);
    expect_raw();
    assert_non_null(strstr(screen, ENTER));
    assert_non_null(strstr(screen, "TTFT p50 12.5"));
    assert_non_null(strstr(screen, "transfer 2.500 GB/s"));
    assert_non_null(strstr(screen, "[|||||               ]   25%"));
    const struct winsize small = {.ws_row = 8, .ws_col = 20};
    assert_int_equal(ioctl(terminal, TIOCSWINSZ, &small), 0);
    /* 16 lines, and in 8 rows the last says what is missing */
    wait_for("... and 9 lines more", 0);
    size_t at = (size_t)(strstr(screen, "... and 9 lines more") - screen);
    wait_for("\x1b[H", at); /* a whole picture of that size follows */
    wait_for("... and 9 lines more", at + 1);
    const char *line = strstr(screen + at, "\x1b[H");
    assert_null(strstr(line, "TRANSPORT")); /* past the 20th column */
    assert_non_null(write(terminal, "q", 1) == 1 ? screen : NULL);
    int ended = wait_end();
    assert_true(WIFEXITED(ended) && WEXITSTATUS(ended) == 0);
    expect_restored();
}

static void end_by(int number)
{
    wait_for("decode-9", 0);
    expect_raw();
    kill(pid, number);
}

static void expect_orderly(int number)
{
    end_by(number);
    int ended = wait_end();
    assert_true(WIFEXITED(ended) && WEXITSTATUS(ended) == 0);
    expect_restored();
}

static void test_sigint(void **state)
{
    (void)state;
    expect_orderly(SIGINT);
}

static void test_sigterm(void **state)
{
    (void)state;
    expect_orderly(SIGTERM);
}

static void test_sighup(void **state)
{
    (void)state;
    expect_orderly(SIGHUP);
}

static void test_abort(void **state)
{
    (void)state;
    end_by(SIGABRT);
    assert_false(WIFEXITED(wait_end()));
    expect_restored();
}

static void test_suspended(void **state)
{
    (void)state;
    end_by(SIGTSTP);
    wait_for(LEAVE, 0);
    int64_t until_ns = bt_clock_now_ns() + PATIENCE_NS;
    int ended = 0;
    while (waitpid(pid, &ended, WNOHANG | WUNTRACED) == 0 && bt_clock_now_ns() < until_ns)
        bt_loop_run_once(loop, bt_clock_now_ns() + 5 * BT_NS_PER_MS, NULL);
    assert_true(WIFSTOPPED(ended));
    expect_restored();
    size_t from = size;
    kill(pid, SIGCONT);
    wait_for(ENTER, from);
    wait_for("decode-9", from);
    assert_int_equal(write(terminal, "q", 1), 1);
    ended = wait_end();
    assert_true(WIFEXITED(ended) && WEXITSTATUS(ended) == 0);
    expect_restored();
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: %s PATH-OF-BATONCTL\n", argv[0]);
        return 2;
    }
    batonctl = argv[1];
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_draws_and_follows_the_size),
        TEST(test_sigint),
        TEST(test_sigterm),
        TEST(test_sighup),
        TEST(test_abort),
        TEST(test_suspended),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
