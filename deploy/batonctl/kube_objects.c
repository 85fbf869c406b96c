#include "deploy/batonctl/kube_objects.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "deploy/batonctl/kube_config.h"

#define COMPONENT_LABEL   "app.kubernetes.io/component"
#define GROUP_LABEL       "leaderworkerset.sigs.k8s.io/group-index"
#define RANK_LABEL        "leaderworkerset.sigs.k8s.io/worker-index"
#define SIZE_ANNOTATION   "leaderworkerset.sigs.k8s.io/size"
#define DEFAULT_CONTAINER "kubectl.kubernetes.io/default-container"

const char *ctl_kube_text(json_t *object, const char *key)
{
    return json_string_value(json_object_get(object, key));
}

int64_t ctl_kube_number(json_t *object, const char *key, int64_t fallback)
{
    json_t *value = json_object_get(object, key);
    return json_is_integer(value) ? json_integer_value(value) : fallback;
}

/* A label's or annotation's number; -1: none. */
static int64_t number_of(json_t *texts, const char *key)
{
    const char *text = ctl_kube_text(texts, key);
    char *end;
    if (!text || !*text)
        return -1;
    errno = 0;
    long value = strtol(text, &end, 10);
    return errno || *end || value < 0 || value > INT32_MAX ? -1 : value;
}

enum ctl_role ctl_kube_role(json_t *object)
{
    json_t *labels = json_object_get(json_object_get(object, "metadata"), "labels");
    const char *text = ctl_kube_text(labels, COMPONENT_LABEL);
    for (int role = 0; text && role < CTL_ROLES; role++)
        if (strcmp(text, ctl_role_name((enum ctl_role)role)) == 0)
            return (enum ctl_role)role;
    return CTL_ROLES;
}

static json_t *condition_of(json_t *status, const char *type)
{
    json_t *condition;
    size_t index;
    json_array_foreach(json_object_get(status, "conditions"), index, condition)
    {
        const char *text = ctl_kube_text(condition, "type");
        if (text && strcmp(text, type) == 0)
            return condition;
    }
    return NULL;
}

static bool is_true(json_t *condition)
{
    const char *text = ctl_kube_text(condition, "status");
    return text && strcmp(text, "True") == 0;
}

bool ctl_kube_pod_read(json_t *object, struct ctl_kube_pod *ret_pod)
{
    json_t *metadata = json_object_get(object, "metadata");
    json_t *annotations = json_object_get(metadata, "annotations");
    json_t *labels = json_object_get(metadata, "labels");
    json_t *status = json_object_get(object, "status");
    const char *name = ctl_kube_text(metadata, "name"), *phase = ctl_kube_text(status, "phase");
    if (!name || !ctl_kube_is_name(name))
        return false;
    phase = phase ? phase : "";
    const char *created = ctl_kube_text(metadata, "creationTimestamp");
    json_t *ending = json_object_get(metadata, "deletionTimestamp");
    *ret_pod = (struct ctl_kube_pod){
        .name = name,
        .uid = ctl_kube_text(metadata, "uid"),
        .created = created ? created : "",
        .deletion_cost = ctl_kube_text(annotations, CTL_KUBE_DELETION_KEY),
        .role = ctl_kube_role(object),
        .scheduled = ctl_kube_text(json_object_get(object, "spec"), "nodeName") != NULL,
        .running = strcmp(phase, "Running") == 0,
        .ready = is_true(condition_of(status, "Ready")),
        .ending = ending && !json_is_null(ending),
        .over = strcmp(phase, "Succeeded") == 0 || strcmp(phase, "Failed") == 0,
        .group = number_of(labels, GROUP_LABEL),
        .rank = number_of(labels, RANK_LABEL),
        .size = number_of(annotations, SIZE_ANNOTATION),
    };
    return true;
}

/* "REASON: MESSAGE", of those that are there. */
static bool say(json_t *from, char *ret_text, size_t size)
{
    const char *reason = ctl_kube_text(from, "reason"), *message = ctl_kube_text(from, "message");
    if (!reason && !message)
        return false;
    snprintf(ret_text, size, "%s%s%s", reason ? reason : "", reason && message ? ": " : "",
             message ? message : "");
    ctl_text_flatten(ret_text);
    return true;
}

void ctl_kube_pod_trouble(json_t *object, char *ret_text, size_t size)
{
    json_t *status = json_object_get(object, "status"), *container;
    size_t index;
    json_array_foreach(json_object_get(status, "containerStatuses"), index, container)
    {
        json_t *state = json_object_get(container, "state");
        if (say(json_object_get(state, "waiting"), ret_text, size) ||
            say(json_object_get(state, "terminated"), ret_text, size))
            return;
    }
    json_t *scheduled = condition_of(status, "PodScheduled");
    if (scheduled && !is_true(scheduled) && say(scheduled, ret_text, size))
        return;
    if (!say(condition_of(status, "Ready"), ret_text, size) && !say(status, ret_text, size))
        snprintf(ret_text, size, "no reason is given");
}

const char *ctl_kube_pod_container(json_t *object)
{
    json_t *annotations = json_object_get(json_object_get(object, "metadata"), "annotations");
    json_t *containers = json_object_get(json_object_get(object, "spec"), "containers");
    const char *name = ctl_kube_text(annotations, DEFAULT_CONTAINER);
    if (!name)
        name = ctl_kube_text(json_array_get(containers, 0), "name");
    return name && ctl_kube_is_name(name) ? name : NULL;
}

/* ------------------------------------------------------------------ workers */

static int by_name(const void *a, const void *b)
{
    const struct ctl_kube_worker *one = a, *other = b;
    return strverscmp(one->pod.name, other->pod.name);
}

/* Counts the pod to its group's worker, if that is there. */
static void join(struct ctl_kube_worker *workers, uint32_t count, const struct ctl_kube_pod *pod)
{
    for (uint32_t i = 0; i < count; i++)
        if (workers[i].pod.role == pod->role && workers[i].pod.group == pod->group) {
            workers[i].pods++;
            workers[i].ready_pods += pod->ready && !pod->ending;
            return;
        }
}

/* Pods that speak for their worker, or (`followers`) those that do not, counted to theirs. */
static uint32_t gather(json_t *objects, enum ctl_role role, bool followers,
                       struct ctl_kube_worker *workers, uint32_t count)
{
    const char *name;
    json_t *object;
    json_object_foreach(objects, name, object)
    {
        struct ctl_kube_pod pod;
        if (!ctl_kube_pod_read(object, &pod) || pod.role == CTL_ROLES || pod.over ||
            (role != CTL_ROLES && pod.role != role) ||
            (pod.group >= 0 && pod.rank > 0) != followers)
            continue;
        if (followers)
            join(workers, count, &pod);
        else
            workers[count++] = (struct ctl_kube_worker){pod, 1, pod.ready && !pod.ending, false};
    }
    return count;
}

struct ctl_kube_worker *ctl_kube_workers(json_t *objects, enum ctl_role role, uint32_t *ret_count)
{
    struct ctl_kube_worker *workers = calloc(json_object_size(objects) + 1, sizeof(*workers));
    if (!workers)
        return NULL;
    uint32_t count = gather(objects, role, false, workers, 0);
    gather(objects, role, true, workers, count);
    for (uint32_t i = 0; i < count; i++) {
        int64_t size = workers[i].pod.group >= 0 && workers[i].pod.size > 0 ? workers[i].pod.size
                                                                            : workers[i].pods;
        workers[i].ready = !workers[i].pod.ending && workers[i].ready_pods >= size;
    }
    qsort(workers, count, sizeof(*workers), by_name);
    *ret_count = count;
    return workers;
}

/* ------------------------------------------------------------------ workloads */

/* A Deployment: its controller has not seen the newest form of it, or pods of an older one are
 * left. A set of groups tells by a condition. */
static bool is_rolling(json_t *object, bool groups)
{
    json_t *status = json_object_get(object, "status");
    int64_t generation = ctl_kube_number(json_object_get(object, "metadata"), "generation", 0);
    int64_t now = ctl_kube_number(status, "replicas", 0);
    int64_t updated = ctl_kube_number(status, "updatedReplicas", 0);
    if (groups)
        return is_true(condition_of(status, "UpdateInProgress"));
    return ctl_kube_number(status, "observedGeneration", generation) < generation || updated < now;
}

bool ctl_kube_workload_read(json_t *object, bool groups, struct ctl_kube_workload *ret_workload)
{
    const char *name = ctl_kube_text(json_object_get(object, "metadata"), "name");
    if (!name || !ctl_kube_is_name(name))
        return false;
    ret_workload->groups = groups;
    ret_workload->replicas = ctl_kube_number(json_object_get(object, "spec"), "replicas", 1);
    ret_workload->rolling = is_rolling(object, groups);
    snprintf(ret_workload->name, sizeof(ret_workload->name), "%s", name);
    return true;
}
