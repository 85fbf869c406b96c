/* Which pods go when there shall be fewer, and telling Kubernetes so. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "deploy/batonctl/kube_engine.h"
#include "deploy/batonctl/router_look.h"

struct candidate {
    const struct ctl_kube_worker *worker;
    bool groups; /* the highest goes, whatever else */
    unsigned
        stage;  /* 0 no node yet, 1 not started, 2 not ready, 3 serves: the controller's order */
    bool known; /* to the router */
    bool draining;
    uint64_t requests, kv_tokens;
    char endpoint[640];
};

struct candidates {
    struct candidate *list;
    uint32_t count;
};

static int compare(uint64_t a, uint64_t b)
{
    return a < b ? -1 : a > b;
}

/* Who goes first stands first. */
static int by_turn(const void *a, const void *b)
{
    const struct candidate *one = a, *other = b;
    const struct ctl_kube_pod *pod = &one->worker->pod, *other_pod = &other->worker->pod;
    int order = 0;
    if (one->groups)
        return compare((uint64_t)other_pod->group, (uint64_t)pod->group);
    if (!order)
        order = compare(one->stage, other->stage);
    if (!order)
        order = compare(!one->draining, !other->draining);
    if (!order)
        order = compare(one->requests, other->requests);
    if (!order)
        order = compare(one->kv_tokens, other->kv_tokens);
    if (!order)
        order = strcmp(other_pod->created, pod->created);
    return order ? order : strverscmp(other_pod->name, pod->name);
}

/* Of a group its first has the endpoint, and the load is that of all. */
static enum bt_status take_loads(void *context, const Baton__V1__StatusResponse *status,
                                 struct bt_error *error)
{
    struct candidates *candidates = context;
    (void)error;
    for (uint32_t i = 0; i < candidates->count; i++) {
        struct candidate *one = &candidates->list[i];
        for (size_t k = 0; k < status->n_workers; k++) {
            const Baton__V1__WorkerStatus *worker = status->workers[k];
            const char *name = one->worker->pod.name;
            bool first = strcmp(worker->worker_id, name) == 0;
            if (!first && !(worker->group && strcmp(worker->group->name, name) == 0))
                continue;
            if (worker->load) {
                one->requests += (uint64_t)worker->load->running + worker->load->waiting;
                one->kv_tokens += worker->load->kv_tokens;
            }
            if (!first || strcmp(worker->state, "lost") == 0)
                continue;
            one->known = true;
            one->draining = strcmp(worker->state, "draining") == 0;
            snprintf(one->endpoint, sizeof(one->endpoint), "%s", worker->control_endpoint);
        }
    }
    return BT_OK;
}

static void gather(const struct ctl_kube_view *view, enum ctl_role role,
                   struct candidates *candidates)
{
    for (uint32_t i = 0; i < view->count; i++) {
        const struct ctl_kube_worker *worker = &view->workers[i];
        if (worker->pod.role != role || worker->pod.ending)
            continue;
        candidates->list[candidates->count++] = (struct candidate){
            .worker = worker,
            .groups = view->workloads[role].groups,
            .stage = !worker->pod.scheduled ? 0
                     : !worker->pod.running ? 1
                     : !worker->pod.ready   ? 2
                                            : 3,
        };
    }
}

/* The one that has to go is brought to the front, where that is possible. */
static enum bt_status force(struct candidates *candidates, uint32_t count, const char *name,
                            struct bt_error *error)
{
    uint32_t at = 0;
    while (at < candidates->count && strcmp(candidates->list[at].worker->pod.name, name) != 0)
        at++;
    if (at == candidates->count)
        return bt_error_set(error, BT_ERR_NOT_FOUND, "worker '%.100s' is going already", name);
    struct candidate chosen = candidates->list[at];
    const struct candidate *first = &candidates->list[0];
    if (chosen.groups && at >= count)
        return bt_error_set(error, BT_ERR_UNSUPPORTED,
                            "of groups the one with the highest index goes, %s: '%.100s' can't go "
                            "before it",
                            first->worker->pod.name, name);
    if (count == 0 || (at > 0 && first->stage < chosen.stage))
        return bt_error_set(error, BT_ERR_UNAVAILABLE,
                            "pods of its kind are missing or not ready (%s), and would go instead "
                            "of '%.100s': wait for them, or scale",
                            count == 0 ? "not made yet" : first->worker->pod.name, name);
    memmove(&candidates->list[1], &candidates->list[0], at * sizeof(chosen));
    candidates->list[0] = chosen;
    return BT_OK;
}

static enum bt_status take(const struct candidates *candidates, uint32_t count,
                           struct bt_error *error, struct ctl_kube_victims *victims)
{
    struct ctl_kube_victim *longer =
        realloc(victims->list, (victims->count + count + 1) * sizeof(*longer));
    if (!longer)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "out of memory");
    victims->list = longer;
    for (uint32_t i = 0; i < count && i < candidates->count; i++) {
        const struct candidate *one = &candidates->list[i];
        const struct ctl_kube_pod *pod = &one->worker->pod;
        struct ctl_kube_victim *victim = &victims->list[victims->count++];
        memset(victim, 0, sizeof(*victim));
        victim->role = pod->role;
        victim->ready = pod->ready;
        victim->served = one->known && !one->draining;
        snprintf(victim->name, sizeof(victim->name), "%s", pod->name);
        snprintf(victim->uid, sizeof(victim->uid), "%s", pod->uid ? pod->uid : "");
        snprintf(victim->cost, sizeof(victim->cost), "%s",
                 pod->deletion_cost ? pod->deletion_cost : "");
        snprintf(victim->endpoint, sizeof(victim->endpoint), "%s", one->endpoint);
    }
    return BT_OK;
}

/* What an earlier batonctl left behind when it was killed would make others go. */
static enum bt_status clear_others(struct ctl_kube_engine *engine,
                                   const struct candidates *candidates, uint32_t count,
                                   struct bt_error *error)
{
    enum bt_status status = BT_OK;
    for (uint32_t i = count; status == BT_OK && i < candidates->count; i++) {
        const struct ctl_kube_pod *pod = &candidates->list[i].worker->pod;
        struct ctl_kube_victim left = {.marked = true};
        if (!pod->deletion_cost || strcmp(pod->deletion_cost, CTL_KUBE_GOES_FIRST) != 0)
            continue;
        snprintf(left.name, sizeof(left.name), "%s", pod->name);
        snprintf(left.uid, sizeof(left.uid), "%s", pod->uid ? pod->uid : "");
        ctl_kube_say(engine, "%s was marked to go first by an earlier act: not any more",
                     left.name);
        status = ctl_kube_mark(engine, &left, false, error);
    }
    return status;
}

enum bt_status ctl_kube_choose(struct ctl_kube_engine *engine, const struct ctl_kube_view *view,
                               enum ctl_role role, uint32_t count, const char *forced,
                               struct bt_error *error, struct ctl_kube_victims *victims)
{
    struct candidates candidates = {.list = calloc(view->count + 1, sizeof(struct candidate))};
    enum bt_status status = BT_OK;
    if (!candidates.list)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "out of memory");
    gather(view, role, &candidates);
    if (ctl_kube_is_routed(engine))
        status = ctl_router_look(engine->engine.target, 0, engine->interrupt_fd, take_loads,
                                 &candidates, error);
    if (status == BT_OK) {
        qsort(candidates.list, candidates.count, sizeof(struct candidate), by_turn);
        if (forced)
            status = force(&candidates, count, forced, error);
    }
    if (status == BT_OK && !view->workloads[role].groups)
        status = clear_others(engine, &candidates, count, error);
    if (status == BT_OK)
        status = take(&candidates, count, error, victims);
    free(candidates.list);
    return status;
}

enum bt_status ctl_kube_mark(struct ctl_kube_engine *engine, struct ctl_kube_victim *victim,
                             bool goes, struct bt_error *error)
{
    const char *cost = goes ? CTL_KUBE_GOES_FIRST : *victim->cost ? victim->cost : NULL;
    json_t *value = cost ? json_string(cost) : json_null(), *answer;
    /* The uid: of that pod only, not of another that has its name by now. */
    json_t *patch =
        json_pack("{s:{s:s*,s:{s:o}}}", "metadata", "uid", *victim->uid ? victim->uid : NULL,
                  "annotations", CTL_KUBE_DELETION_KEY, value);
    if (!patch)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "out of memory");
    enum bt_status status =
        ctl_kube_do(engine->kube, CTL_KUBE_PATCH_POD, victim->name, NULL, patch, error, &answer);
    json_decref(patch);
    if (status != BT_OK)
        return status;
    json_decref(answer);
    victim->marked = goes;
    return BT_OK;
}
