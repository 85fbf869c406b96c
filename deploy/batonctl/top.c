/* batonctl top: the cluster as it changes, on a terminal or in lines. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "deploy/batonctl/stats.h"
#include "deploy/batonctl/terminal.h"
#include "deploy/batonctl/top_view.h"
#include "deploy/batonctl/verbs.h"

struct top {
    struct ctl_target target;
    struct ctl_connection connection;
    int64_t interval_ns;
    bool once, live; /* live: on a terminal */
    int output;
    int signals; /* signalfd */
    bool quit;
    Baton__V1__StatusResponse *status;
    Baton__V1__StatsResponse *stats;
    char trouble[BT_ERROR_TEXT_SIZE]; /* "": the router answers */
};

static struct ctl_top_view view_of(const struct top *top)
{
    return (struct ctl_top_view){top->status, top->stats, top->trouble};
}

static void draw(const struct top *top)
{
    struct ctl_top_view view = view_of(top);
    int rows, columns;
    ctl_terminal_size(&rows, &columns);
    ctl_top_draw(&view, rows, columns, stdout);
    fflush(stdout);
}

/* ------------------------------------------------------------------ keys and signals */

static void quit(struct top *top)
{
    top->quit = true;
    bt_loop_stop(top->connection.loop);
}

static void on_key(void *context)
{
    struct top *top = context;
    char keys[64];
    ssize_t count = read(STDIN_FILENO, keys, sizeof(keys));
    if (count == 0 || (count < 0 && errno != EINTR && errno != EAGAIN))
        quit(top); /* the terminal is gone */
    for (ssize_t i = 0; i < count; i++)
        if (keys[i] == 'q' || keys[i] == 'Q')
            quit(top);
}

/* Away from the terminal until somebody says to go on. */
static void suspend(struct top *top)
{
    struct bt_error error;
    ctl_terminal_leave();
    kill(getpid(), SIGSTOP);
    if (ctl_terminal_enter(&error) != BT_OK)
        quit(top);
    else
        draw(top);
}

static void on_signal(void *context)
{
    struct top *top = context;
    struct signalfd_siginfo info;
    while (read(top->signals, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
        if (info.ssi_signo == SIGWINCH)
            draw(top);
        else if (info.ssi_signo == SIGTSTP)
            suspend(top);
        else
            quit(top);
    }
}

static enum bt_status listen_to(struct top *top, struct bt_error *error)
{
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGWINCH, SIGTSTP};
    sigset_t set;
    sigemptyset(&set);
    for (size_t i = 0; i < (top->live ? 6 : 4); i++)
        sigaddset(&set, numbers[i]);
    top->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (top->signals < 0 || sigprocmask(SIG_BLOCK, &set, NULL) != 0)
        return bt_error_set(error, BT_ERR_IO, "signalfd: %s", strerror(errno));
    bool added = bt_loop_add_fd(top->connection.loop, top->signals, on_signal, top) != NULL;
    if (top->live)
        added = added && bt_loop_add_fd(top->connection.loop, STDIN_FILENO, on_key, top) != NULL;
    return added ? BT_OK : bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for events");
}

/* ------------------------------------------------------------------ figures */

static void forget(struct top *top)
{
    if (top->status)
        baton__v1__status_response__free_unpacked(top->status, NULL);
    if (top->stats)
        baton__v1__stats_response__free_unpacked(top->stats, NULL);
    top->status = NULL;
    top->stats = NULL;
}

/* What was known stays where the router does not answer, with the trouble. */
static enum bt_status refresh(struct top *top, struct bt_error *error)
{
    Baton__V1__StatusResponse *fresh = NULL;
    Baton__V1__StatsResponse *stats = NULL;
    enum bt_status status = ctl_connection_status(&top->connection, error, &fresh);
    if (status == BT_ERR_DEADLINE)
        status = error->status = BT_ERR_UNAVAILABLE;
    if (status != BT_OK) {
        snprintf(top->trouble, sizeof(top->trouble), "(%.200s)", error->text);
        ctl_text_flatten(top->trouble);
        return status;
    }
    struct bt_error without;
    if (!top->quit && ctl_connection_stats(&top->connection, 0, &without, &stats) != BT_OK)
        stats = NULL;
    forget(top);
    top->status = fresh;
    top->stats = stats;
    top->trouble[0] = '\0';
    return BT_OK;
}

static void wait_interval(struct top *top)
{
    int64_t until_ns = bt_clock_now_ns() + top->interval_ns;
    while (!top->quit && bt_clock_now_ns() < until_ns)
        if (bt_loop_run_once(top->connection.loop, until_ns, NULL) != BT_OK)
            top->quit = true;
}

static enum bt_status show(struct top *top, struct bt_error *error)
{
    struct ctl_top_view view = view_of(top);
    if (top->live)
        draw(top);
    else if (top->output == CTL_OUTPUT_TABLE)
        ctl_top_print(&view, stdout);
    if (!top->live && !top->once && top->output == CTL_OUTPUT_TABLE)
        printf("\n");
    return fflush(stdout) == 0 ? BT_OK
                               : bt_error_set(error, BT_ERR_IO, "output: %s", strerror(errno));
}

static enum bt_status run(struct top *top, struct bt_error *error)
{
    enum bt_status status = BT_OK;
    bool first = true;
    while (status == BT_OK && !top->quit) {
        struct bt_error trouble;
        enum bt_status asked = refresh(top, &trouble);
        if (top->quit)
            break;
        if (asked != BT_OK && (first || top->once)) {
            *error = trouble;
            return asked;
        }
        first = false;
        status = show(top, error);
        if (top->once)
            break;
        if (status == BT_OK)
            wait_interval(top);
    }
    return status;
}

static enum bt_status start(struct top *top, struct bt_error *error)
{
    enum bt_status status = ctl_connection_init(&top->connection, &top->target, error);
    if (status != BT_OK)
        return status;
    status = listen_to(top, error);
    if (status == BT_OK && top->live)
        status = ctl_terminal_enter(error);
    if (status == BT_OK)
        status = run(top, error);
    ctl_terminal_leave();
    ctl_connection_finish(&top->connection);
    return status;
}

int ctl_verb_top(int argc, char **argv)
{
    static struct top top;
    const struct bt_option options[] = {
        CTL_TARGET_OPTIONS(top.target),
        CTL_ENDPOINT_OPTIONS(top.target),
        {"interval", BT_OPTION_DURATION, &top.interval_ns, "1s", 0.05, 3600,
         .help = "how often it looks"},
        {"once", BT_OPTION_BOOL, &top.once, "false", .help = "one look, in lines"},
        CTL_OUTPUT_OPTION(top.output),
        {0},
    };
    static const char usage[] =
        "batonctl top [OPTIONS]\n\n"
        "  batonctl top\n"
        "  batonctl top --once\n\n"
        "On a terminal a view that q ends; else lines, again and again. JSON is one look.";
    int code = ctl_parse(options, usage, argc, argv, NULL);
    if (code >= 0)
        return code;
    top.once = top.once || top.output == CTL_OUTPUT_JSON;
    top.live = !top.once && ctl_terminal_is_there();
    struct bt_error error;
    enum bt_status status = start(&top, &error);
    if (status != BT_OK) {
        code = ctl_fail("top", &error);
    } else {
        struct ctl_top_view view = view_of(&top);
        code = top.output == CTL_OUTPUT_JSON && top.status ? ctl_print_json(ctl_top_json(&view))
                                                           : CTL_EXIT_OK;
    }
    forget(&top);
    return code;
}
