/* Other pods for those that are there: by another image, or begun anew. Whole for each role, or
 * taken back. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/base/clock.h"
#include "deploy/batonctl/interrupt.h"
#include "deploy/batonctl/kube_engine.h"

#define RESTARTED_KEY  "kubectl.kubernetes.io/restartedAt" /* as `kubectl rollout restart` does */
#define MAX_IMAGE_SIZE 512

static const char *const templates_of_deployment[] = {"template", NULL};
static const char *const templates_of_groups[] = {"leaderTemplate", "workerTemplate", NULL};

/* One role's. */
struct roll {
    struct ctl_kube_engine *engine;
    const struct ctl_kube_workload *workload;
    enum ctl_role role;
    const char *image; /* NULL: as it is */
    char stamp[40];    /* pods of ours have it, and none else */
    json_t *before;    /* the workload; NULL: not seen yet */
    int64_t generation;
    bool needless;
    int64_t said_new, said_ready;
};

static const char *const *template_keys(const struct roll *act)
{
    return act->workload->groups ? templates_of_groups : templates_of_deployment;
}

/* NULL: it has none of that name. */
static json_t *template_of(const struct roll *act, json_t *object, const char *key)
{
    json_t *spec = json_object_get(object, "spec");
    if (act->workload->groups)
        spec = json_object_get(spec, "leaderWorkerTemplate");
    json_t *found = json_object_get(spec, key);
    return json_is_object(found) ? found : NULL;
}

static json_t *stamp_of(json_t *template)
{
    json_t *metadata = json_object_get(template, "metadata");
    return json_object_get(json_object_get(metadata, "annotations"), RESTARTED_KEY);
}

static bool is_stamped(const struct roll *act, json_t *template)
{
    const char *stamp = json_string_value(stamp_of(template));
    return stamp && strcmp(stamp, act->stamp) == 0;
}

/* By what is there of ours: another's change of the template is not ours to take back. */
static bool is_ours(const struct roll *act, json_t *object)
{
    for (const char *const *key = template_keys(act); *key; key++) {
        json_t *template = template_of(act, object, *key);
        if (template && !is_stamped(act, template))
            return false;
    }
    return true;
}

/* The container that is called as its role; NULL: there is none. */
static json_t *container_in(const struct roll *act, json_t *containers)
{
    json_t *container;
    size_t index;
    json_array_foreach(containers, index, container)
    {
        const char *name = ctl_kube_text(container, "name");
        if (name && strcmp(name, ctl_role_name(act->role)) == 0)
            return container;
    }
    return NULL;
}

static json_t *containers_of(json_t *template)
{
    return json_object_get(json_object_get(template, "spec"), "containers");
}

static const char *image_of(const struct roll *act, json_t *template)
{
    return ctl_kube_text(container_in(act, containers_of(template)), "image");
}

/* ------------------------------------------------------------------ the change */

/* Whether it can be done at all, and `needless`: all is so already. */
static enum bt_status check_object(struct roll *act, json_t *object, struct bt_error *error)
{
    unsigned templates = 0, same = 0;
    for (const char *const *key = template_keys(act); *key; key++) {
        json_t *template = template_of(act, object, *key);
        if (!template)
            continue;
        const char *image = image_of(act, template);
        templates++;
        if (!image)
            return bt_error_set(error, BT_ERR_NOT_FOUND,
                                "the pods of %s have no container '%s' with an image",
                                act->workload->name, ctl_role_name(act->role));
        same += act->image && strcmp(image, act->image) == 0;
    }
    if (templates == 0)
        return bt_error_set(error, BT_ERR_PROTOCOL, "kubernetes: %s has no pod template",
                            act->workload->name);
    if (json_is_true(json_object_get(json_object_get(object, "spec"), "paused")))
        return bt_error_set(error, BT_ERR_UNAVAILABLE, "%s is paused: `kubectl rollout resume` it",
                            act->workload->name);
    act->needless = same == templates && !act->workload->rolling;
    return BT_OK;
}

/* The list of containers whole, since a merge patch replaces lists. */
static json_t *template_patch(const struct roll *act, json_t *template, const char *image,
                              json_t *stamp)
{
    json_t *patch = json_pack("{s:{s:{s:o}}}", "metadata", "annotations", RESTARTED_KEY,
                              stamp && json_is_string(stamp) ? json_incref(stamp) : json_null());
    if (!patch || !image)
        return patch;
    json_t *containers = json_deep_copy(containers_of(template));
    json_t *container = container_in(act, containers);
    if (!container || json_object_set_new(container, "image", json_string(image)) != 0 ||
        json_object_set_new(patch, "spec", json_pack("{s:O}", "containers", containers)) != 0) {
        json_decref(patch);
        patch = NULL;
    }
    json_decref(containers);
    return patch;
}

/* For the workload as it is `now` and no other; `back`: to what it was before. */
static json_t *make_patch(const struct roll *act, json_t *now, bool back)
{
    const char *version = ctl_kube_text(json_object_get(now, "metadata"), "resourceVersion");
    json_t *templates = json_object(), *stamp = json_string(act->stamp), *patch = NULL;
    for (const char *const *key = template_keys(act); *key; key++) {
        json_t *template = template_of(act, now, *key);
        json_t *old = act->before ? template_of(act, act->before, *key) : NULL;
        if (!template)
            continue;
        const char *image = !act->image ? NULL : back ? image_of(act, old) : act->image;
        json_t *part = template_patch(act, template, image, back ? stamp_of(old) : stamp);
        if (!part || json_object_set_new(templates, *key, part) != 0)
            goto out;
    }
    if (act->workload->groups)
        patch = json_pack("{s:{s:s*},s:{s:O}}", "metadata", "resourceVersion", version, "spec",
                          "leaderWorkerTemplate", templates);
    else
        patch =
            json_pack("{s:{s:s*},s:O}", "metadata", "resourceVersion", version, "spec", templates);
out:
    json_decref(templates);
    json_decref(stamp);
    return patch;
}

static enum bt_status fetch(struct roll *act, struct bt_error *error, json_t **ret_object)
{
    char version[CTL_KUBE_VERSION_SIZE];
    json_t *items;
    enum bt_status status = ctl_kube_list(
        act->engine->kube, act->workload->groups ? CTL_KUBE_LIST_GROUPS : CTL_KUBE_LIST_DEPLOYMENTS,
        act->engine->selector, error, &items, version, sizeof(version));
    if (status != BT_OK)
        return status;
    json_t *objects = ctl_kube_by_name(items);
    json_t *object = json_object_get(objects, act->workload->name);
    if (object)
        *ret_object = json_incref(object);
    else
        status =
            bt_error_set(error, BT_ERR_NOT_FOUND, "%s is no longer there", act->workload->name);
    json_decref(objects);
    json_decref(items);
    return status;
}

static enum bt_status send_patch(struct roll *act, json_t *now, bool back, struct bt_error *error)
{
    json_t *patch = make_patch(act, now, back), *answer;
    if (!patch)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "%s can't be patched", act->workload->name);
    enum bt_status status =
        ctl_kube_do(act->engine->kube,
                    act->workload->groups ? CTL_KUBE_PATCH_GROUPS : CTL_KUBE_PATCH_DEPLOYMENT,
                    act->workload->name, NULL, patch, error, &answer);
    json_decref(patch);
    if (status != BT_OK)
        return status;
    act->generation = ctl_kube_number(json_object_get(answer, "metadata"), "generation", 0);
    json_decref(answer);
    return BT_OK;
}

/* Once; STALE: it was changed in between, by whom ever. */
static enum bt_status begin_once(struct roll *act, struct bt_error *error)
{
    json_t *now;
    enum bt_status status = fetch(act, error, &now);
    if (status != BT_OK)
        return status;
    status = check_object(act, now, error);
    if (status == BT_OK && act->before && is_ours(act, now)) { /* the answer was lost */
        act->needless = false;
        act->generation = ctl_kube_number(json_object_get(now, "metadata"), "generation", 0);
    } else if (status == BT_OK && !act->needless) {
        json_decref(act->before);
        act->before = json_incref(now);
        status = send_patch(act, now, false, error);
    }
    json_decref(now);
    return status;
}

static enum bt_status begin(struct roll *act, struct bt_error *error)
{
    enum bt_status status = BT_ERR_STALE;
    ctl_kube_set_deaf(act->engine->kube, true);
    for (unsigned tries = 0; status == BT_ERR_STALE && tries < CTL_KUBE_TRIES; tries++)
        status = begin_once(act, error);
    ctl_kube_set_deaf(act->engine->kube, false);
    return status;
}

/* `ret_changed`: there was something of ours. */
static enum bt_status back_once(struct roll *act, struct bt_error *error, bool *ret_changed)
{
    json_t *now;
    enum bt_status status = fetch(act, error, &now);
    if (status != BT_OK)
        return status;
    *ret_changed = is_ours(act, now);
    if (*ret_changed)
        status = send_patch(act, now, true, error);
    json_decref(now);
    return status;
}

static void take_back(struct roll *act)
{
    struct bt_error error = {0};
    enum bt_status status = BT_ERR_STALE;
    bool changed = false, ever = false;
    if (!act->before)
        return;
    ctl_kube_set_deaf(act->engine->kube, true);
    for (unsigned tries = 0; status == BT_ERR_STALE && tries < CTL_KUBE_TRIES; tries++) {
        status = back_once(act, &error, &changed);
        ever |= changed;
    }
    ctl_kube_set_deaf(act->engine->kube, false);
    const char *image = image_of(
        act, template_of(act, act->before, act->workload->groups ? "workerTemplate" : "template"));
    if (status != BT_OK)
        ctl_kube_say(act->engine, "%s could not be set back to %s: %s", act->workload->name,
                     image ? image : "what it was", error.text);
    else if (ever)
        ctl_kube_say(act->engine, "%s: taken back, to %s", act->workload->name,
                     image ? image : "what it was");
}

/* ------------------------------------------------------------------ until it is done */

static void tell(struct roll *act, int64_t new, int64_t ready, int64_t wanted)
{
    if (new == act->said_new && ready == act->said_ready)
        return;
    act->said_new = new;
    act->said_ready = ready;
    ctl_kube_say(act->engine, "%s: %lld of %lld replaced, %lld ready", act->workload->name,
                 (long long)new, (long long)wanted, (long long)ready);
}

/* A Deployment, by its status; one that is older than ours says nothing. */
static enum bt_status look_deployment(void *context, json_t *objects, struct bt_error *error)
{
    struct roll *act = context;
    json_t *object = json_object_get(objects, act->workload->name);
    json_t *status = json_object_get(object, "status");
    if (!object)
        return bt_error_set(error, BT_ERR_NOT_FOUND, "%s is no longer there", act->workload->name);
    if (ctl_kube_number(json_object_get(object, "metadata"), "generation", 0) < act->generation)
        return BT_IN_PROGRESS;
    if (!is_ours(act, object))
        return bt_error_set(error, BT_ERR_MISMATCH, "somebody else changed %s meanwhile",
                            act->workload->name);
    if (ctl_kube_number(status, "observedGeneration", 0) < act->generation)
        return BT_IN_PROGRESS;
    int64_t wanted = ctl_kube_number(json_object_get(object, "spec"), "replicas", 1);
    int64_t updated = ctl_kube_number(status, "updatedReplicas", 0);
    int64_t ready = ctl_kube_number(status, "readyReplicas", 0);
    tell(act, updated, ready, wanted);
    return updated >= wanted && ctl_kube_number(status, "replicas", 0) <= updated &&
                   ready >= updated
               ? BT_OK
               : BT_IN_PROGRESS;
}

static bool is_new(const struct roll *act, json_t *pods, const struct ctl_kube_worker *worker)
{
    return is_stamped(act, json_object_get(pods, worker->pod.name));
}

/* Groups, by their pods: their set does not tell which form of it its status is of. */
static enum bt_status look_groups(void *context, json_t *pods, struct bt_error *error)
{
    struct roll *act = context;
    uint32_t count = 0;
    int64_t new = 0, ready = 0, done = 0, old = 0;
    struct ctl_kube_worker *workers = ctl_kube_workers(pods, act->role, &count);
    if (!workers)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "out of memory");
    for (uint32_t i = 0; i < count; i++) {
        bool is = is_new(act, pods, &workers[i]);
        if (workers[i].pod.ending)
            continue;
        new += is;
        old += !is;
        ready += workers[i].ready;
        done += is && workers[i].ready;
    }
    free(workers);
    tell(act, new, ready, act->workload->replicas);
    return old == 0 && done >= act->workload->replicas ? BT_OK : BT_IN_PROGRESS;
}

static enum bt_status explain(struct roll *act, struct bt_error *error)
{
    struct ctl_kube_view now = {0};
    char why[256] = "no pod was made yet", name[CTL_KUBE_NAME_SIZE] = "";
    if (ctl_kube_view_load(act->engine, NULL, &now) == BT_OK)
        for (uint32_t i = 0; i < now.count; i++) {
            const struct ctl_kube_worker *worker = &now.workers[i];
            if (worker->pod.role != act->role || worker->ready || !is_new(act, now.pods, worker))
                continue;
            snprintf(name, sizeof(name), "%s: ", worker->pod.name);
            ctl_kube_pod_trouble(json_object_get(now.pods, worker->pod.name), why, sizeof(why));
        }
    ctl_kube_view_finish(&now);
    return bt_error_set(error, BT_ERR_DEADLINE,
                        "%s: the new pods are not ready in time: %.80s%.200s (its log may say why: "
                        "a worker that does not fit the others is refused)",
                        act->workload->name, name, why);
}

static enum bt_status wait_done(struct roll *act, int64_t until_ns, struct bt_error *error)
{
    bool groups = act->workload->groups;
    enum bt_status status = ctl_kube_follow(
        act->engine->kube, groups ? CTL_KUBE_LIST_PODS : CTL_KUBE_LIST_DEPLOYMENTS,
        groups ? CTL_KUBE_WATCH_PODS : CTL_KUBE_WATCH_DEPLOYMENTS, act->engine->selector, until_ns,
        groups ? look_groups : look_deployment, act, error);
    return status == BT_ERR_DEADLINE ? explain(act, error) : status;
}

/* ------------------------------------------------------------------ all of it */

/* Now, finely enough that no two are the same. */
static void make_stamp(char *ret_stamp, size_t size)
{
    struct timespec now;
    struct tm parts;
    char seconds[24];
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &parts);
    strftime(seconds, sizeof(seconds), "%Y-%m-%dT%H:%M:%S", &parts);
    snprintf(ret_stamp, size, "%s.%09ldZ", seconds, now.tv_nsec);
}

static enum bt_status roll_role(struct ctl_kube_engine *engine, const struct ctl_kube_view *view,
                                enum ctl_role role, const struct ctl_rollout *rollout,
                                struct bt_error *error)
{
    struct roll act = {
        .engine = engine,
        .workload = &view->workloads[role],
        .role = role,
        .image = rollout->image,
        .said_new = -1,
    };
    int64_t until_ns = bt_clock_now_ns() + rollout->wait_ns;
    make_stamp(act.stamp, sizeof(act.stamp));
    enum bt_status status = begin(&act, error);
    if (status == BT_OK && act.needless) {
        ctl_kube_say(engine, "%s has this image already", act.workload->name);
    } else if (status == BT_OK) {
        ctl_kube_say(engine, "%s: %s%s", act.workload->name, act.image ? "image " : "new pods",
                     act.image ? act.image : "");
        status = wait_done(&act, until_ns, error);
    }
    if (status != BT_OK)
        take_back(&act);
    json_decref(act.before);
    return status;
}

static enum bt_status check_options(const struct ctl_rollout *rollout, struct bt_error *error)
{
    const struct {
        const char *flag, *value;
    } elsewhere[] = {
        {"--model", rollout->model},
        {"--served-model-name", rollout->served_model_name},
        {"--dtype", rollout->dtype},
        {"--router-args", rollout->router_args},
        {"--prefill-args", rollout->args[CTL_PREFILL]},
        {"--decode-args", rollout->args[CTL_DECODE]},
    };
    for (size_t i = 0; i < sizeof(elsewhere) / sizeof(elsewhere[0]); i++)
        if (elsewhere[i].value)
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                                "%s is not for pods: their options are in the ConfigMap "
                                "baton-config and in the overlay; apply it there, then `batonctl "
                                "rollout` makes pods read it",
                                elsewhere[i].flag);
    size_t size = rollout->image ? strlen(rollout->image) : 1;
    if (size == 0 || size >= MAX_IMAGE_SIZE)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "--image is empty or too long");
    for (const char *c = rollout->image; c && *c; c++)
        if (*c <= ' ' || *c > '~')
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "--image is no name of an image");
    return BT_OK;
}

static enum bt_status roll_all(struct ctl_kube_engine *engine, const struct ctl_kube_view *view,
                               const struct ctl_rollout *rollout, struct bt_error *error)
{
    for (int role = 0; role < CTL_ROLES; role++)
        if (rollout->roles[role] && !view->has[role])
            return bt_error_set(error, BT_ERR_NOT_FOUND,
                                "there is no Deployment or LeaderWorkerSet of %s workers",
                                ctl_role_name((enum ctl_role)role));
    enum bt_status status = BT_OK;
    bool done = false;
    for (int role = CTL_ROLES; role-- > 0 && status == BT_OK;) { /* decode first, as `up` does */
        if (!rollout->roles[role])
            continue;
        status = roll_role(engine, view, (enum ctl_role)role, rollout, error);
        if (status != BT_OK && done)
            ctl_kube_say(engine, "the others stay as they are now: they serve with these");
        done |= status == BT_OK;
    }
    return status;
}

enum bt_status ctl_kube_rollout(struct ctl_engine *base, const struct ctl_rollout *rollout,
                                struct bt_error *error)
{
    struct ctl_kube_engine *engine = (struct ctl_kube_engine *)base;
    struct ctl_kube_view view = {0};
    enum bt_status status = check_options(rollout, error);
    if (status == BT_OK)
        status = ctl_kube_view_load(engine, error, &view);
    if (status == BT_OK)
        status = roll_all(engine, &view, rollout, error);
    ctl_kube_view_finish(&view);
    return status;
}
