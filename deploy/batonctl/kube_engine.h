/* The kubernetes engine inside: what its parts have in common. */
#ifndef BATON_DEPLOY_BATONCTL_KUBE_ENGINE_H
#define BATON_DEPLOY_BATONCTL_KUBE_ENGINE_H

#include "deploy/batonctl/engine.h"
#include "deploy/batonctl/kube_objects.h"
#include "deploy/batonctl/kube_watch.h"

#define CTL_KUBE_SELECTOR_SIZE 512

struct ctl_kube_engine {
    struct ctl_engine engine; /* first: is the engine */
    struct ctl_kube *kube;
    int interrupt_fd;
    char selector[CTL_KUBE_SELECTOR_SIZE]; /* all workers and workloads of the cluster */
};

/* The cluster as it is now. Zero it, and finish it whatever happens. */
struct ctl_kube_view {
    bool has[CTL_ROLES];
    struct ctl_kube_workload workloads[CTL_ROLES];
    json_t *pods;                    /* by name */
    struct ctl_kube_worker *workers; /* of both roles; points into `pods` */
    uint32_t count;
};
enum bt_status ctl_kube_view_load(struct ctl_kube_engine *engine, struct bt_error *error,
                                  struct ctl_kube_view *ret_view);
void ctl_kube_view_finish(struct ctl_kube_view *view);
const struct ctl_kube_worker *ctl_kube_view_find(const struct ctl_kube_view *view,
                                                 const char *name);

/* A router is given, that knows the workers. */
bool ctl_kube_is_routed(const struct ctl_kube_engine *engine);

/* A line for people; control characters in it are replaced. */
void ctl_kube_say(struct ctl_kube_engine *engine, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* spec.replicas of a role's workload, from what it was seen to be. STALE: somebody else set it to
 * something else meanwhile. */
enum bt_status ctl_kube_set_replicas(struct ctl_kube_engine *engine,
                                     const struct ctl_kube_workload *workload, int64_t from,
                                     int64_t to, struct bt_error *error);

/* Ops of the engine. `forced`, where not NULL, is the worker that goes. */
enum bt_status ctl_kube_rescale(struct ctl_kube_engine *engine, const struct ctl_scale *scale,
                                const char *forced, struct bt_error *error);
enum bt_status ctl_kube_rollout(struct ctl_engine *base, const struct ctl_rollout *rollout,
                                struct bt_error *error);

/* Pods chosen to go. */
struct ctl_kube_victim {
    enum ctl_role role;
    char name[CTL_KUBE_NAME_SIZE], uid[64];
    char cost[32];      /* its annotation before; "": none */
    char endpoint[640]; /* of its RPC, "": none is known */
    bool marked;        /* it has our annotation */
    bool ready;
    bool served;  /* took requests, before */
    bool drained; /* by us: resumed where it stays after all */
};
struct ctl_kube_victims {
    struct ctl_kube_victim *list;
    uint32_t count;
};

/*
 * `count` workers of the role, put behind those that are there: what a controller takes anyway
 * (pods that are not ready; of groups, the highest ones), then those that drain already, then the
 * least loaded. UNSUPPORTED and UNAVAILABLE: `forced` is not one that would go.
 */
enum bt_status ctl_kube_choose(struct ctl_kube_engine *engine, const struct ctl_kube_view *view,
                               enum ctl_role role, uint32_t count, const char *forced,
                               struct bt_error *error, struct ctl_kube_victims *victims);

/* Sets (the annotation, so that these go) or takes back. */
enum bt_status ctl_kube_mark(struct ctl_kube_engine *engine, struct ctl_kube_victim *victim,
                             bool goes, struct bt_error *error);

#endif
