/* What a router saw lately, asked of it. */
#ifndef BATON_DEPLOY_BATONCTL_STATS_H
#define BATON_DEPLOY_BATONCTL_STATS_H

#include "deploy/batonctl/connection.h"

/* Over the last `window_s` seconds, 0: a minute. Free with
 * baton__v1__stats_response__free_unpacked. Its texts are flat, and so are its numbers: none is NaN
 * or infinite, those that may not be negative are not; parts that are missing are zeros, never
 * NULL. */
enum bt_status ctl_connection_stats(struct ctl_connection *connection, uint32_t window_s,
                                    struct bt_error *error, Baton__V1__StatsResponse **ret_stats);

#endif
