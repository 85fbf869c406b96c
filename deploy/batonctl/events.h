/* What happened to a cluster, asked of a router. */
#ifndef BATON_DEPLOY_BATONCTL_EVENTS_H
#define BATON_DEPLOY_BATONCTL_EVENTS_H

#include "deploy/batonctl/connection.h"

/* Good during the call, flat. */
typedef void ctl_event_fn(void *context, const Baton__V1__ClusterEvent *event);

/* Those after `since`, until the last one; with `follow` until the connection's loop is stopped
 * (CANCELLED) or the router is gone. A deadline is for the first answer: none with `follow`. */
enum bt_status ctl_connection_events(struct ctl_connection *connection, uint64_t since, bool follow,
                                     ctl_event_fn *told, void *context, struct bt_error *error);

/* "2026-01-31T12:00:00.123Z" */
#define CTL_TIME_SIZE 32
void ctl_time_text(int64_t unix_ns, char ret_text[CTL_TIME_SIZE]);

void ctl_event_print(const Baton__V1__ClusterEvent *event);
json_t *ctl_event_json(const Baton__V1__ClusterEvent *event);

#endif
