/*
 * Every call that the kubernetes engine makes, and so the rights that the role of the batonctl in a
 * cluster needs: no more, no less. A line is a right of RBAC in the cluster's namespace; programs
 * read them too, so each stays on a line of its own. `optional`: without the right the engine does
 * less, and says so.
 */
#ifndef BATON_DEPLOY_BATONCTL_KUBE_CALLS_H
#define BATON_DEPLOY_BATONCTL_KUBE_CALLS_H

#include <stdbool.h>

#define CTL_KUBE_ROLE "baton-operator" /* the Role, and the ServiceAccount that it is given to */

/* clang-format off */
/*  name                 verb      group                        version  resource                    subresource  optional */
#define CTL_KUBE_CALLS(X) \
    X(LIST_PODS,         "list",   "",                          "v1",    "pods",                     "",          false) \
    X(WATCH_PODS,        "watch",  "",                          "v1",    "pods",                     "",          false) \
    X(PATCH_POD,         "patch",  "",                          "v1",    "pods",                     "",          false) \
    X(GET_POD_LOG,       "get",    "",                          "v1",    "pods",                     "log",       false) \
    X(LIST_DEPLOYMENTS,  "list",   "apps",                      "v1",    "deployments",              "",          false) \
    X(WATCH_DEPLOYMENTS, "watch",  "apps",                      "v1",    "deployments",              "",          false) \
    X(PATCH_DEPLOYMENT,  "patch",  "apps",                      "v1",    "deployments",              "",          false) \
    X(GET_DEPLOYMENT,    "get",    "apps",                      "v1",    "deployments",              "scale",     false) \
    X(SCALE_DEPLOYMENT,  "update", "apps",                      "v1",    "deployments",              "scale",     false) \
    X(LIST_GROUPS,       "list",   "leaderworkerset.x-k8s.io",  "v1",    "leaderworkersets",         "",          false) \
    X(PATCH_GROUPS,      "patch",  "leaderworkerset.x-k8s.io",  "v1",    "leaderworkersets",         "",          false) \
    X(GET_GROUPS,        "get",    "leaderworkerset.x-k8s.io",  "v1",    "leaderworkersets",         "scale",     false) \
    X(SCALE_GROUPS,      "update", "leaderworkerset.x-k8s.io",  "v1",    "leaderworkersets",         "scale",     false) \
    X(LIST_AUTOSCALERS,  "list",   "autoscaling",               "v2",    "horizontalpodautoscalers", "",          true)
/* clang-format on */

#define CTL_KUBE_CALL_NAME(name, verb, group, version, resource, subresource, optional)            \
    CTL_KUBE_##name,
enum ctl_kube_call { CTL_KUBE_CALLS(CTL_KUBE_CALL_NAME) CTL_KUBE_CALL_COUNT };

struct ctl_kube_call_info {
    const char *verb; /* of RBAC */
    const char *group, *version, *resource, *subresource;
    bool optional;
};
extern const struct ctl_kube_call_info ctl_kube_calls[CTL_KUBE_CALL_COUNT];

#endif
