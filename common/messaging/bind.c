#include "common/messaging/bind.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/base/log.h"
#include "common/messaging/wire.h"

/* "tcp://127.0.0.1:5", "tcp://10.0.0.1:*" */
static bool names_ipv4(const char *endpoint)
{
    static const char scheme[] = "tcp://";
    char host[INET_ADDRSTRLEN];
    struct in_addr address;
    if (strncmp(endpoint, scheme, sizeof scheme - 1) != 0) {
        return false;
    }
    const char *name = endpoint + sizeof scheme - 1;
    size_t size = strcspn(name, ":");
    if (size >= sizeof host) {
        return false;
    }
    memcpy(host, name, size);
    host[size] = '\0';
    return inet_pton(AF_INET, host, &address) == 1;
}

static bool is_every_interface(const char *address)
{
    static const char *const hosts[] = {"*:", "0.0.0.0:", "[::]:", "[::ffff:0.0.0.0]:"};
    for (size_t i = 0; i < sizeof hosts / sizeof hosts[0]; i++) {
        if (strncmp(address, "tcp://", 6) == 0 &&
            strncmp(address + 6, hosts[i], strlen(hosts[i])) == 0) {
            return true;
        }
    }
    return false;
}

static enum bt_status socket_setup(const struct bt_security *security, void *socket,
                                   const char *address, struct bt_error *error)
{
    int mandatory = 1;
    int ipv6 = !names_ipv4(address); /* else the endpoint is reported as tcp://[::ffff:…] */
    enum bt_status status = bt_wire_socket_setup(socket, error);
    if (status == BT_OK &&
        (zmq_setsockopt(socket, ZMQ_ROUTER_MANDATORY, &mandatory, sizeof mandatory) < 0 ||
         zmq_setsockopt(socket, ZMQ_IPV6, &ipv6, sizeof ipv6) < 0)) {
        status = bt_error_set(error, BT_ERR_INTERNAL, "zmq_setsockopt: %s", zmq_strerror(errno));
    }
    return status == BT_OK ? bt_curve_server_setup(security, socket, error) : status;
}

/* The address as the library reports it, and our key. */
static enum bt_status endpoint_take(const struct bt_security *security, void *socket,
                                    const char *address, struct bt_error *error,
                                    char ret_endpoint[BT_BOUND_ENDPOINT_SIZE])
{
    size_t size = BT_ENDPOINT_SIZE;
    if (zmq_getsockopt(socket, ZMQ_LAST_ENDPOINT, ret_endpoint, &size) < 0) {
        return bt_error_set(error, BT_ERR_INTERNAL, "endpoint of %s: %s", address,
                            zmq_strerror(errno));
    }
    if (security) {
        size = strlen(ret_endpoint);
        snprintf(ret_endpoint + size, BT_BOUND_ENDPOINT_SIZE - size, "#%s", security->public_hex);
    } else if (is_every_interface(address)) {
        bt_log_warn(0, "%s: listens on all interfaces without CURVE: whoever reaches it is obeyed",
                    ret_endpoint);
    }
    return BT_OK;
}

enum bt_status bt_bind(const struct bt_security *security, void *socket, const char *address,
                       struct bt_error *error, char ret_endpoint[BT_BOUND_ENDPOINT_SIZE])
{
    enum bt_status status = socket_setup(security, socket, address, error);
    if (status != BT_OK) {
        return status;
    }
    if (zmq_bind(socket, address) < 0) {
        bool bad = errno == EINVAL || errno == EPROTONOSUPPORT || errno == ENOCOMPATPROTO;
        return bt_error_set(error, bad ? BT_ERR_INVALID_ARGUMENT : BT_ERR_IO, "bind %s: %s",
                            address, zmq_strerror(errno));
    }
    return endpoint_take(security, socket, address, error, ret_endpoint);
}
