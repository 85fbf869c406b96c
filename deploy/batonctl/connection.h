/*
 * One conversation with a router: a loop and an RPC client that live as long as one verb runs.
 */
#ifndef BATON_DEPLOY_BATONCTL_CONNECTION_H
#define BATON_DEPLOY_BATONCTL_CONNECTION_H

#include <stdint.h>

#include "common/base/status.h"
#include "common/messaging/loop.h"
#include "common/messaging/rpc.h"
#include "deploy/batonctl/verbs.h"
#include "proto/router.pb-c.h"

#define CTL_WORKER_ENDPOINT_SIZE (BT_ENDPOINT_SIZE + BT_KEY_HEX_SIZE)

struct ctl_connection {
    struct bt_loop *loop;
    struct bt_rpc_client *client;
    int64_t timeout_ns; /* of unary calls */
};

/* To the router that --rpc or --name stand for. Returns before the connection is up. */
enum bt_status ctl_connection_init(struct ctl_connection *connection,
                                   const struct ctl_target *target, struct bt_error *error);
void ctl_connection_finish(struct ctl_connection *connection);

/* A worker's endpoint; where it lacks the #KEY that a secured loop needs, with our own: beside a
 * worker, in its container, batonctl has the worker's keys. */
enum bt_status ctl_worker_endpoint(const struct bt_loop *loop, const char *endpoint,
                                   struct bt_error *error,
                                   char ret_endpoint[CTL_WORKER_ENDPOINT_SIZE]);

/* What a router says may come from anybody, and goes to a terminal: in all texts of the message, of
 * its messages too, control characters and what is not UTF-8 become '?'. */
void ctl_message_flatten(ProtobufCMessage *message);

/* Free with baton__v1__status_response__free_unpacked. Its texts are flat. */
enum bt_status ctl_connection_status(struct ctl_connection *connection, struct bt_error *error,
                                     Baton__V1__StatusResponse **ret_status);

#endif
