/*
 * baton.v1.Router over ZeroMQ: Generate, Models, Status, Stats, Trace, Tokenize. The methods are a table that the
 * service binds beside Registry on one endpoint. Loop thread only.
 */
#ifndef BATON_ROUTER_RPC_FRONT_H
#define BATON_ROUTER_RPC_FRONT_H

#include "common/messaging/rpc.h"
#include "router/service.h"

/* Handlers get the service as `context`. Ends with a NULL name. */
extern const struct bt_rpc_method rt_rpc_front_methods[];

#endif
