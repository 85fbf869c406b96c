/* Looking at what a router knows until it is as wanted. */
#ifndef BATON_DEPLOY_BATONCTL_ROUTER_LOOK_H
#define BATON_DEPLOY_BATONCTL_ROUTER_LOOK_H

#include <stdint.h>

#include "deploy/batonctl/verbs.h"
#include "proto/router.pb-c.h"

typedef enum bt_status ctl_status_look_fn(void *context, const Baton__V1__StatusResponse *status,
                                          struct bt_error *error);

/* Asks the router of --rpc or --name for its Status, again as long as `look` says IN_PROGRESS; what
 * else it says is returned. DEADLINE, and nothing in `error`: at `until_ns` it still does. At least
 * once; 0: only once. CANCELLED by a signal; `interrupt_fd` is of ctl_interrupt_hold, or -1. */
enum bt_status ctl_router_look(const struct ctl_target *target, int64_t until_ns, int interrupt_fd,
                               ctl_status_look_fn *look, void *context, struct bt_error *error);

#endif
