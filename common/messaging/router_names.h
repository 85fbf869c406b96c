/*
 * Who is behind a name: the routers' addresses as the resolver tells them, asked again and again by
 * a thread of its own, since asking may take seconds. Answers come on the loop's thread. Internal
 * to this folder.
 */
#ifndef BATON_COMMON_MESSAGING_ROUTER_NAMES_H
#define BATON_COMMON_MESSAGING_ROUTER_NAMES_H

#include <stdbool.h>
#include <stddef.h>

#include "common/base/status.h"
#include "common/messaging/loop.h"

#define BT_ROUTER_NAME_SCHEME    "dns+tcp://"
#define BT_ROUTER_ADDRESSES_MAX  64 /* of one answer; more are not looked at */
#define BT_ROUTER_ADDRESS_SIZE   64 /* "10.0.0.7", "[fd00::7]", "[fe80::1%eth0]" */
#define BT_ROUTER_HOST_NAME_SIZE 256

struct bt_router_names;

struct bt_router_answer {
    /* All of one family, IPv4 where there are both, as a router would be met twice otherwise; each
     * once. None: the name could not be resolved now, which says nothing about the routers. */
    char addresses[BT_ROUTER_ADDRESSES_MAX][BT_ROUTER_ADDRESS_SIZE];
    size_t count;
    char problem[BT_ERROR_TEXT_SIZE]; /* with a count of 0 */
};

typedef void bt_router_names_fn(void *context, const struct bt_router_answer *answer);

/*
 * Asks at once, then every `interval_ns`; after an answer without addresses sooner. `on_answer` is
 * not called in here, and may destroy what this returns.
 */
enum bt_status bt_router_names_create(struct bt_loop *loop, const char *host, int64_t interval_ns,
                                      bt_router_names_fn *on_answer, void *context,
                                      struct bt_error *error, struct bt_router_names **ret_names);
/* Never waits for the resolver. NULL is fine. */
void bt_router_names_destroy(struct bt_router_names *names);

#endif
