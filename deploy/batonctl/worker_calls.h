/*
 * Drain and Resume of workers, called at their own endpoints, all at once. Which batonctl speaks
 * from and with which keys the caller says.
 */
#ifndef BATON_DEPLOY_BATONCTL_WORKER_CALLS_H
#define BATON_DEPLOY_BATONCTL_WORKER_CALLS_H

#include <stdint.h>

#include "common/base/status.h"
#include "common/messaging/security.h"

#define CTL_WORKER_CALLS_MAX 64

enum ctl_worker_verb {
    CTL_WORKER_DRAIN,  /* over when nothing is left on it, and it stays drained */
    CTL_WORKER_RESUME, /* takes requests again */
};

struct ctl_worker_call {
    const char *name;      /* for who reads `over` */
    const char *endpoint;  /* "tcp://127.0.0.1:5001", secured with #KEY */
    struct bt_error error; /* how it ended; of BT_OK the text is empty */
};

struct ctl_worker_calls {
    enum ctl_worker_verb verb;
    struct bt_security_values security;
    int64_t until_ns; /* calls that are not over by then end with DEADLINE */
    int interrupt;    /* of ctl_interrupt_hold; -1: none */
    struct ctl_worker_call *calls;
    uint32_t count; /* at most CTL_WORKER_CALLS_MAX */
    void (*over)(void *context, const struct ctl_worker_call *call); /* NULL: nobody asks */
    void *context;
};

/* Until all calls are over, each with its own status. CANCELLED: ctl_interrupt_check; calls that
 * were not over have that status, too, and drains go on. */
enum bt_status ctl_worker_calls_wait(struct ctl_worker_calls *calls, struct bt_error *error);

#endif
