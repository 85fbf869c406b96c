/* Routers behind one name, as of a headless Service. */
#ifndef BATON_DEPLOY_BATONCTL_SERVICE_NAME_H
#define BATON_DEPLOY_BATONCTL_SERVICE_NAME_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/status.h"
#include "common/messaging/security.h"
#include "deploy/batonctl/verbs.h"

#define CTL_SERVICE_SCHEME "dns+tcp://"

bool ctl_service_is(const char *endpoint);

/* Of dns+tcp://HOST:PORT[#KEY], tcp://ADDRESS:PORT[#KEY] of each address that HOST has now: of one
 * family, IPv4 where there are both, each once, `max` at most. Waits for the resolver. UNAVAILABLE:
 * there is none. */
enum bt_status ctl_service_resolve(const char *endpoint, uint32_t max, struct bt_error *error,
                                   char (*ret_endpoints)[CTL_ENDPOINT_SIZE], uint32_t *ret_count);

#endif
