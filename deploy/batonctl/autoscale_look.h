/*
 * What the autoscaler decides on: what all routers of a cluster saw lately, in one sum, and the
 * workers that an engine has, with how long each has been serving.
 */
#ifndef BATON_DEPLOY_BATONCTL_AUTOSCALE_LOOK_H
#define BATON_DEPLOY_BATONCTL_AUTOSCALE_LOOK_H

#include "deploy/batonctl/autoscale_decide.h"
#include "deploy/batonctl/connection.h"
#include "deploy/batonctl/engine.h"
#include "proto/router.pb-c.h"

#define CTL_AUTOSCALE_ROUTERS_MAX 16

/* The sum of what `count` routers said; `window_s` is the shortest, quantiles are means weighed by
 * their counts. `status` (NULL: none) is of one of them, which knows all workers: how full those of
 * decode are. */
void ctl_autoscale_sum(Baton__V1__StatsResponse *const *stats, size_t count,
                       const Baton__V1__StatusResponse *status, struct ctl_autoscale_seen *seen);

/* When a worker was seen to serve first. */
struct ctl_autoscale_known {
    char name[CTL_MEMBER_NAME_SIZE];
    int64_t since_ns; /* INT64_MIN: since before anybody looked */
    bool seen;
};

struct ctl_autoscale_looker {
    struct bt_loop *loop;
    struct ctl_address address;
    char endpoints[CTL_AUTOSCALE_ROUTERS_MAX][CTL_ENDPOINT_SIZE];
    struct ctl_connection connections[CTL_AUTOSCALE_ROUTERS_MAX]; /* of the same loop */
    uint32_t router_count;
    const char *service; /* whose name all routers have; NULL: they were listed */
    int64_t timeout_ns;
    struct ctl_autoscale_known *known;
    uint32_t known_count;
    bool begun;
    struct ctl_autoscale_worker *workers;
    uint32_t ranks[CTL_ROLES];        /* of each worker */
    char trouble[BT_ERROR_TEXT_SIZE]; /* of the router that did not answer; "": all did */
};

/* All routers of --name's cluster, or those of --rpc: several with commas between them, or
 * all behind a name that is asked again at every look: dns+tcp://HOST:PORT. `target` outlives it. */
enum bt_status ctl_autoscale_looker_init(struct ctl_autoscale_looker *looker,
                                         const struct ctl_target *target, struct bt_error *error);
void ctl_autoscale_looker_finish(struct ctl_autoscale_looker *looker);

/* `seen` points into the looker until the next look. Routers that do not answer make it partial;
 * errors are the engine's, and CANCELLED when the loop was stopped. */
enum bt_status ctl_autoscale_look(struct ctl_autoscale_looker *looker, struct ctl_engine *engine,
                                  uint32_t window_s, struct bt_error *error,
                                  struct ctl_autoscale_seen *ret_seen);

#endif
