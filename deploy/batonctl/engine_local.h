/* What the parts of the local engine share. */
#ifndef BATON_DEPLOY_BATONCTL_ENGINE_LOCAL_H
#define BATON_DEPLOY_BATONCTL_ENGINE_LOCAL_H

#include "common/base/clock.h"
#include "deploy/batonctl/engine.h"

#define CTL_LOCAL_END_NS (30 * BT_NS_PER_S) /* after SIGTERM, before SIGKILL */

struct local {
    struct ctl_engine base;
    struct ctl_cluster cluster;
    struct ctl_keys keys; /* of the operator */
    int interrupt;        /* -1: no act has begun yet, and signals end the process */
};

typedef char worker_name[CTL_NAME_SIZE];

/* Workers of the cluster by what is to be done with them. */
struct list {
    worker_name names[CTL_MAX_PROCESSES];
    uint32_t count;
};

struct local *ctl_local_of(struct ctl_engine *engine);

/* To the engine's progress. */
void ctl_local_say(const struct local *local, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

void ctl_list_add(struct list *list, const char *name);
const char *ctl_list_text(const struct list *list, char ret_text[400]); /* "decode-0, decode-2" */

/* Alone with the cluster, as it is now; ended by ctl_cluster_unlock. */
enum bt_status ctl_local_begin(struct local *local, const char *verb, struct bt_error *error);

/* Routers that were told to end do, and others come in place of those that are dead. */
enum bt_status ctl_local_mend_routers(struct local *local, const struct ctl_patience *patience,
                                      int64_t drain_ns, struct bt_error *error);
/* Workers that ended by themselves, or that a batonctl before this one had told to end. */
enum bt_status ctl_local_bury(struct local *local, struct bt_error *error);

/* Those of a role that serve or will, in place of what was in the list. */
void ctl_local_living(const struct ctl_cluster *cluster, enum ctl_role role, struct list *list);

/* What runs on them is finished first, for at most drain_ns, and they end. CANCELLED: they take
 * requests again, and stay. */
enum bt_status ctl_local_dismiss(struct local *local, const struct list *workers, int64_t drain_ns,
                                 struct bt_error *error);

enum bt_status ctl_local_rollout(struct ctl_engine *engine, const struct ctl_rollout *rollout,
                                 struct bt_error *error);

#endif
