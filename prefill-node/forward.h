/* Calls that another process answers. Loop thread only. */
#ifndef BATON_PREFILL_NODE_FORWARD_H
#define BATON_PREFILL_NODE_FORWARD_H

#include "common/messaging/rpc.h"

/*
 * Takes the call: it goes to `client` as it is, with its deadline, and ends as it ends there; its
 * cancel goes along. `response`: of what it ends with. The client is destroyed before the call's
 * server.
 */
void pf_forward_call(struct bt_rpc_client *client, const char *method,
                     const ProtobufCMessageDescriptor *response, struct bt_rpc_call *call,
                     const ProtobufCMessage *request);

#endif
