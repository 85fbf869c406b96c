#include "deploy/batonctl/connection.h"

#include <stdio.h>
#include <string.h>

#include "common/base/clock.h"

enum bt_status ctl_connection_init(struct ctl_connection *connection,
                                   const struct ctl_target *target, struct bt_error *error)
{
    static struct ctl_address address;
    memset(connection, 0, sizeof(*connection));
    connection->timeout_ns = target->timeout_ns;
    enum bt_status status = ctl_target_find(target, error, &address);
    if (status != BT_OK)
        return status;
    connection->loop = bt_loop_create(error);
    if (!connection->loop)
        return BT_ERR_NO_MEMORY;
    status = bt_loop_secure(connection->loop, &address.security, error);
    if (status == BT_OK)
        status =
            bt_rpc_client_create(connection->loop, address.endpoint, error, &connection->client);
    if (status != BT_OK)
        ctl_connection_finish(connection);
    return status;
}

void ctl_connection_finish(struct ctl_connection *connection)
{
    bt_rpc_client_destroy(connection->client);
    if (connection->loop)
        bt_loop_destroy(connection->loop);
    memset(connection, 0, sizeof(*connection));
}

enum bt_status ctl_worker_endpoint(const struct bt_loop *loop, const char *endpoint,
                                   struct bt_error *error,
                                   char ret_endpoint[CTL_WORKER_ENDPOINT_SIZE])
{
    const char *own = strchr(endpoint, '#') ? NULL : bt_loop_public_key(loop);
    int length = snprintf(ret_endpoint, CTL_WORKER_ENDPOINT_SIZE, "%s%s%s", endpoint,
                          own ? "#" : "", own ? own : "");
    return length < CTL_WORKER_ENDPOINT_SIZE
               ? BT_OK
               : bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%.100s…: too long", endpoint);
}

enum bt_status ctl_connection_status(struct ctl_connection *connection, struct bt_error *error,
                                     Baton__V1__StatusResponse **ret_status)
{
    Baton__V1__StatusRequest request = BATON__V1__STATUS_REQUEST__INIT;
    struct bt_rpc_call_spec spec = {
        .method = "baton.v1.Router/Status",
        .request = &request.base,
        .response = &baton__v1__status_response__descriptor,
        .deadline_ns = bt_clock_now_ns() + connection->timeout_ns,
    };
    ProtobufCMessage *response = NULL;
    enum bt_status status = bt_rpc_client_call_wait(connection->client, &spec, error, &response);
    if (status == BT_OK) {
        ctl_message_flatten(response);
        *ret_status = (Baton__V1__StatusResponse *)response;
    }
    return status;
}

static void flatten_field(void *value, const ProtobufCFieldDescriptor *field)
{
    if (field->type == PROTOBUF_C_TYPE_STRING)
        ctl_text_flatten(*(char **)value);
    else if (field->type == PROTOBUF_C_TYPE_MESSAGE && *(ProtobufCMessage **)value)
        ctl_message_flatten(*(ProtobufCMessage **)value);
}

/* The messages that come here have no oneof, and are as deep as their definition. */
void ctl_message_flatten(ProtobufCMessage *message)
{
    for (unsigned i = 0; i < message->descriptor->n_fields; i++) {
        const ProtobufCFieldDescriptor *field = &message->descriptor->fields[i];
        bool pointers =
            field->type == PROTOBUF_C_TYPE_STRING || field->type == PROTOBUF_C_TYPE_MESSAGE;
        char *at = (char *)message + field->offset;
        if (!pointers)
            continue;
        if (field->label != PROTOBUF_C_LABEL_REPEATED) {
            flatten_field(at, field);
            continue;
        }
        size_t count = *(size_t *)((char *)message + field->quantifier_offset);
        void **list = *(void ***)at;
        for (size_t k = 0; k < count; k++)
            flatten_field(&list[k], field);
    }
}
