/* A server's socket, from its options to the endpoint that others connect to. Internal to this
 * folder. */
#ifndef BATON_COMMON_MESSAGING_BIND_H
#define BATON_COMMON_MESSAGING_BIND_H

#include "common/messaging/curve.h"

#define BT_BOUND_ENDPOINT_SIZE (BT_ENDPOINT_SIZE + BT_KEY_HEX_SIZE)

/* `security` NULL: plain, which on an address of all interfaces is worth a warning. */
enum bt_status bt_bind(const struct bt_security *security, void *socket, const char *address,
                       struct bt_error *error, char ret_endpoint[BT_BOUND_ENDPOINT_SIZE]);

#endif
