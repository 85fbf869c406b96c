#include "deploy/batonctl/interrupt.h"

#include <errno.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

static const int signals[] = {SIGINT, SIGTERM};

void ctl_interrupt_signals(sigset_t *ret_signals)
{
    sigemptyset(ret_signals);
    for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
        sigaddset(ret_signals, signals[i]);
}

enum bt_status ctl_interrupt_hold(struct bt_error *error, int *ret_fd)
{
    sigset_t held;
    ctl_interrupt_signals(&held);
    for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++) {
        struct sigaction now;
        if (sigaction(signals[i], NULL, &now) == 0 && now.sa_handler == SIG_IGN)
            sigdelset(&held, signals[i]);
    }
    int fd = signalfd(-1, &held, SFD_CLOEXEC | SFD_NONBLOCK);
    if (fd < 0 || sigprocmask(SIG_BLOCK, &held, NULL) != 0)
        return bt_error_set(error, BT_ERR_IO, "signalfd: %s", strerror(errno));
    *ret_fd = fd;
    return BT_OK;
}

enum bt_status ctl_interrupt_check(int fd, struct bt_error *error)
{
    struct signalfd_siginfo info;
    if (read(fd, &info, sizeof(info)) != (ssize_t)sizeof(info))
        return BT_OK;
    return bt_error_set(error, BT_ERR_CANCELLED, "ended by SIG%s",
                        sigabbrev_np((int)info.ssi_signo));
}
