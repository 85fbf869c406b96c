#include "deploy/batonctl/connection.h"

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
    if (status == BT_OK)
        *ret_status = (Baton__V1__StatusResponse *)response;
    return status;
}
