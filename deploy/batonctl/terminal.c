#include "deploy/batonctl/terminal.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

static const char enter_text[] = "\x1b[?1049h\x1b[?25l\x1b[2J";
static const char leave_text[] = "\x1b[?25h\x1b[?1049l";

static struct termios before;
static volatile sig_atomic_t entered;

static void write_all(const char *text)
{
    size_t size = strlen(text);
    while (size > 0) {
        ssize_t written = write(STDOUT_FILENO, text, size);
        if (written < 0 && errno != EINTR)
            return;
        text += written > 0 ? written : 0;
        size -= written > 0 ? (size_t)written : 0;
    }
}

/* Also in a signal's handler: calls nothing that may not be called there. */
void ctl_terminal_leave(void)
{
    if (!entered)
        return;
    entered = 0;
    write_all(leave_text);
    tcsetattr(STDIN_FILENO, TCSADRAIN, &before);
}

static void on_fatal(int number)
{
    ctl_terminal_leave();
    raise(number); /* the handler is gone: SA_RESETHAND */
}

static void guard_exits(void)
{
    static const int fatal[] = {SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV};
    static bool guarded;
    if (guarded)
        return;
    guarded = true;
    struct sigaction action = {.sa_handler = on_fatal, .sa_flags = (int)SA_RESETHAND};
    for (size_t i = 0; i < sizeof(fatal) / sizeof(fatal[0]); i++)
        sigaction(fatal[i], &action, NULL);
    atexit(ctl_terminal_leave);
}

bool ctl_terminal_is_there(void)
{
    return isatty(STDIN_FILENO) && isatty(STDOUT_FILENO);
}

enum bt_status ctl_terminal_enter(struct bt_error *error)
{
    if (entered)
        return BT_OK;
    if (tcgetattr(STDIN_FILENO, &before) != 0)
        return bt_error_set(error, BT_ERR_IO, "the terminal: %s", strerror(errno));
    guard_exits();
    struct termios raw = before;
    raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
    raw.c_cc[VMIN] = 1;
    raw.c_cc[VTIME] = 0;
    if (tcsetattr(STDIN_FILENO, TCSADRAIN, &raw) != 0)
        return bt_error_set(error, BT_ERR_IO, "the terminal: %s", strerror(errno));
    entered = 1;
    write_all(enter_text);
    return BT_OK;
}

void ctl_terminal_size(int *ret_rows, int *ret_columns)
{
    struct winsize size = {0};
    bool known = ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_row > 0 && size.ws_col > 0;
    *ret_rows = known ? size.ws_row : 24;
    *ret_columns = known ? size.ws_col : 80;
}
