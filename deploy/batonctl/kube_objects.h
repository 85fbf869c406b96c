/*
 * What the objects of a Kubernetes API say, as far as the engine wants to know. They come from
 * outside: whatever is missing or of another kind counts as not said.
 */
#ifndef BATON_DEPLOY_BATONCTL_KUBE_OBJECTS_H
#define BATON_DEPLOY_BATONCTL_KUBE_OBJECTS_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "deploy/batonctl/engine.h"

#define CTL_KUBE_NAME_SIZE    254
#define CTL_KUBE_DELETION_KEY "controller.kubernetes.io/pod-deletion-cost"
#define CTL_KUBE_GOES_FIRST   "-2147483648" /* the least there is */

/* Points into its object. */
struct ctl_kube_pod {
    const char *name, *uid;
    const char *created;       /* RFC 3339: compares as text */
    const char *deletion_cost; /* NULL: not annotated */
    enum ctl_role role;        /* CTL_ROLES: none of ours */
    bool scheduled, running, ready, ending;
    bool over;          /* has ended, and counts no more */
    int64_t group;      /* index of its group; -1: it is alone */
    int64_t rank, size; /* in its group */
};
/* False: this is no pod. */
bool ctl_kube_pod_read(json_t *object, struct ctl_kube_pod *ret_pod);
/* Why it is not ready, in words: "ImagePullBackOff: …". */
void ctl_kube_pod_trouble(json_t *object, char *ret_text, size_t size);
/* Whose log is meant where nobody says: NULL, there is none. */
const char *ctl_kube_pod_container(json_t *object);

/* A worker: a pod, or a group of them whose first speaks for all. */
struct ctl_kube_worker {
    struct ctl_kube_pod pod; /* the first */
    uint32_t pods, ready_pods;
    bool ready; /* all pods that there should be */
};
/* Of one role, or of CTL_ROLES: all; in order of their names. NULL: no memory. Points into
 * `objects`. */
struct ctl_kube_worker *ctl_kube_workers(json_t *objects, enum ctl_role role, uint32_t *ret_count);

struct ctl_kube_workload {
    char name[CTL_KUBE_NAME_SIZE];
    bool groups;      /* a LeaderWorkerSet, else a Deployment */
    int64_t replicas; /* that there shall be */
    bool rolling;     /* its pods are being replaced by newer ones */
};
/* False: it has no name. */
bool ctl_kube_workload_read(json_t *object, bool groups, struct ctl_kube_workload *ret_workload);
enum ctl_role ctl_kube_role(json_t *object); /* by its label; CTL_ROLES: none */

/* A whole number that is there; otherwise `fallback`. */
int64_t ctl_kube_number(json_t *object, const char *key, int64_t fallback);
const char *ctl_kube_text(json_t *object, const char *key); /* NULL: none */

#endif
