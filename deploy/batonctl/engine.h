/*
 * How a cluster grows and shrinks: the same acts for processes of this machine (`local`, a cluster
 * of `up`) and for pods (`kubernetes`). What runs on a worker that goes is finished first, for at
 * most the drain deadline; what is left then goes on elsewhere, with the same tokens.
 */
#ifndef BATON_DEPLOY_BATONCTL_ENGINE_H
#define BATON_DEPLOY_BATONCTL_ENGINE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/option.h"
#include "common/base/status.h"
#include "deploy/batonctl/verbs.h"

#define CTL_MEMBER_NAME_SIZE 256

/* A worker: a process or pod, or a group of them that serves as one. */
struct ctl_member {
    char name[CTL_MEMBER_NAME_SIZE]; /* its worker id; a pod's name */
    enum ctl_role role;
    uint32_t ranks;
    bool ready; /* serves, as far as the engine knows */
    bool ending;
    bool gone; /* it ended by itself; the next `scale` replaces it */
};

struct ctl_fleet {
    struct ctl_member *members; /* ended by ctl_fleet_finish */
    uint32_t count;
    uint32_t wanted[CTL_ROLES]; /* workers that there shall be */
};
void ctl_fleet_finish(struct ctl_fleet *fleet);

/* Told of each step of what takes long; `text` is a line without its end. */
struct ctl_progress {
    void (*step)(void *context, const char *text);
    void *context;
};

struct ctl_scale {
    int64_t wanted[CTL_ROLES]; /* workers; -1: as many as there shall be now */
    int64_t drain_ns;          /* deadline of what runs on workers that go */
    int64_t wait_ns;           /* until new workers are ready */
};

/* What workers are replaced by. NULL: as it is. */
struct ctl_rollout {
    bool roles[CTL_ROLES];         /* whose workers */
    const char *model;             /* DIR: then routers and the workers of both roles */
    const char *served_model_name; /* with model */
    const char *dtype;             /* with model */
    const char *args[CTL_ROLES];   /* more options of workers */
    const char *router_args;       /* with model */
    const char *image;             /* of pods; kubernetes takes this alone */
    int64_t drain_ns, wait_ns;     /* of each; as in ctl_scale */
};

struct ctl_engine;

/* All block until it is done, and return CANCELLED on SIGINT or SIGTERM: what was begun by then is
 * whole or taken back, and said by `progress`. NOT_FOUND names a worker that is not there. */
struct ctl_engine_ops {
    const char *name; /* "local", "kubernetes" */
    enum bt_status (*observe)(struct ctl_engine *engine, struct bt_error *error,
                              struct ctl_fleet *ret_fleet);
    /* Whether `scale` would refuse it: INVALID_ARGUMENT. NULL: not known before. */
    enum bt_status (*check)(struct ctl_engine *engine, const struct ctl_scale *scale,
                            struct bt_error *error);
    /* Brings the cluster to what is wanted, also where workers ended by themselves.
     * INVALID_ARGUMENT: nothing would be served. ALREADY_EXISTS: another changes it just now.
     * New workers first, so that the load has where to go; then the least loaded go. */
    enum bt_status (*scale)(struct ctl_engine *engine, const struct ctl_scale *scale,
                            struct bt_error *error);
    /* Takes nothing new from now on; back when nothing is left on it. DEADLINE: something is, and
     * it stays drained. */
    enum bt_status (*drain)(struct ctl_engine *engine, const char *worker, int64_t drain_ns,
                            struct bt_error *error);
    enum bt_status (*resume)(struct ctl_engine *engine, const char *worker, struct bt_error *error);
    /* One worker less of its role, that one, and one more of the other. */
    enum bt_status (*switch_role)(struct ctl_engine *engine, const char *worker, enum ctl_role role,
                                  const struct ctl_scale *scale, struct bt_error *error);
    /* One by one: a new one, and when it is ready an old one goes. Those of another model, or that
     * compute otherwise, get routers of their own, that take over the HTTP ports from those before:
     * what can't work together never meets. INVALID_ARGUMENT: not by this engine. Pods go as
     * their workload says, role by role; a role whose new ones don't get ready is taken back. */
    enum bt_status (*rollout)(struct ctl_engine *engine, const struct ctl_rollout *rollout,
                              struct bt_error *error);
    /* Lines of a process's log to stdout, the last `tail` (-1: all); `follow`: until it ends. */
    enum bt_status (*logs)(struct ctl_engine *engine, const char *process, int64_t tail,
                           bool follow, struct bt_error *error);
    void (*destroy)(struct ctl_engine *engine);
};

struct ctl_engine {
    const struct ctl_engine_ops *ops;
    const struct ctl_target *target;
    struct ctl_progress progress;
};

/* Which engine, and how the kubernetes one finds its API; beside CTL_TARGET_OPTIONS. */
struct ctl_engine_values {
    int kind;                /* index into ctl_engine_kinds */
    const char *kube_server; /* NULL: kubeconfig, or the pod's service account */
    const char *kubeconfig;
    const char *kube_context;
    const char *namespace_;
    const char *kube_token_file;
    const char *kube_ca_file;
};
extern const char *const ctl_engine_kinds[]; /* "auto", "local", "kubernetes" */

#define CTL_ENGINE_OPTIONS(values)                                                                 \
    {"engine",                                                                                     \
     BT_OPTION_CHOICE,                                                                             \
     &(values).kind,                                                                               \
     "auto",                                                                                       \
     0,                                                                                            \
     0,                                                                                            \
     ctl_engine_kinds,                                                                             \
     NULL,                                                                                         \
     "local: processes of `up`; kubernetes: pods; auto: kubernetes inside a pod or with one of "   \
     "the flags for it, else local",                                                               \
     false},                                                                                       \
        {"kube-server",                                                                            \
         BT_OPTION_STRING,                                                                         \
         &(values).kube_server,                                                                    \
         NULL,                                                                                     \
         0,                                                                                        \
         0,                                                                                        \
         NULL,                                                                                     \
         "URL",                                                                                    \
         "the Kubernetes API server, as http://127.0.0.1:8001 of `kubectl proxy`",                 \
         false},                                                                                   \
        {"kubeconfig",                                                                             \
         BT_OPTION_STRING,                                                                         \
         &(values).kubeconfig,                                                                     \
         NULL,                                                                                     \
         0,                                                                                        \
         0,                                                                                        \
         NULL,                                                                                     \
         "FILE",                                                                                   \
         "default: $KUBECONFIG, ~/.kube/config",                                                   \
         false},                                                                                   \
        {"kube-context",                                                                           \
         BT_OPTION_STRING,                                                                         \
         &(values).kube_context,                                                                   \
         NULL,                                                                                     \
         0,                                                                                        \
         0,                                                                                        \
         NULL,                                                                                     \
         "NAME",                                                                                   \
         "default: the file's current one",                                                        \
         false},                                                                                   \
        {"namespace",                                                                              \
         BT_OPTION_STRING,                                                                         \
         &(values).namespace_,                                                                     \
         NULL,                                                                                     \
         0,                                                                                        \
         0,                                                                                        \
         NULL,                                                                                     \
         "NAME",                                                                                   \
         "default: the context's, the pod's own, or default",                                      \
         false},                                                                                   \
        {"kube-token-file",                                                                        \
         BT_OPTION_STRING,                                                                         \
         &(values).kube_token_file,                                                                \
         NULL,                                                                                     \
         0,                                                                                        \
         0,                                                                                        \
         NULL,                                                                                     \
         "FILE",                                                                                   \
         "bearer token for --kube-server",                                                         \
         false},                                                                                   \
    {                                                                                              \
        "kube-ca-file", BT_OPTION_STRING, &(values).kube_ca_file, NULL, 0, 0, NULL, "FILE",        \
            "certificate authority of --kube-server", false                                        \
    }

enum bt_status ctl_engine_open(const struct ctl_target *target,
                               const struct ctl_engine_values *values,
                               const struct ctl_progress *progress, struct bt_error *error,
                               struct ctl_engine **ret_engine);
void ctl_engine_close(struct ctl_engine *engine); /* NULL is fine */
/* What ctl_engine_open chooses from. */
enum bt_status ctl_engine_local(const struct ctl_target *target, struct bt_error *error,
                                struct ctl_engine **ret_engine);
enum bt_status ctl_engine_kubernetes(const struct ctl_target *target,
                                     const struct ctl_engine_values *values, struct bt_error *error,
                                     struct ctl_engine **ret_engine);

#endif
