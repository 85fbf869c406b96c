/* More and fewer workers: new ones first, then those that go. Whole, or taken back. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "deploy/batonctl/interrupt.h"
#include "deploy/batonctl/kube_engine.h"
#include "deploy/batonctl/router_look.h"
#include "deploy/batonctl/worker_calls.h"

#define RESUME_NS (5 * BT_NS_PER_S)

struct rescale {
    struct ctl_kube_engine *engine;
    const struct ctl_scale *scale;
    const char *forced;
    struct ctl_kube_view view; /* before */
    int64_t wanted[CTL_ROLES];
    bool grown[CTL_ROLES], lowered[CTL_ROLES];
    char trouble[300]; /* of a new pod that is not ready */
    struct ctl_kube_victims victims;
};

static bool grows(const struct rescale *act, int role)
{
    return act->wanted[role] > act->view.workloads[role].replicas;
}

static bool shrinks(const struct rescale *act, int role)
{
    return act->wanted[role] < act->view.workloads[role].replicas;
}

static bool is_new(const struct rescale *act, const struct ctl_kube_worker *worker)
{
    const struct ctl_kube_worker *before = ctl_kube_view_find(&act->view, worker->pod.name);
    return !before || !before->pod.uid || !worker->pod.uid ||
           strcmp(before->pod.uid, worker->pod.uid) != 0;
}

/* ------------------------------------------------------------------ before anything is done */

/* Nothing is done about an autoscaler of the workload, which will undo ours: it is said. */
static enum bt_status warn_of_autoscalers(struct rescale *act, struct bt_error *error)
{
    char version[CTL_KUBE_VERSION_SIZE];
    json_t *items, *item;
    size_t index;
    enum bt_status status = ctl_kube_list(act->engine->kube, CTL_KUBE_LIST_AUTOSCALERS, "", error,
                                          &items, version, sizeof(version));
    if (status == BT_ERR_UNAUTHORISED || status == BT_ERR_NOT_FOUND)
        return BT_OK; /* it is not ours to see */
    if (status != BT_OK)
        return status;
    json_array_foreach(items, index, item)
    {
        json_t *target = json_object_get(json_object_get(item, "spec"), "scaleTargetRef");
        const char *name = ctl_kube_text(target, "name");
        const char *kind = ctl_kube_text(target, "kind");
        const char *own = ctl_kube_text(json_object_get(item, "metadata"), "name");
        for (int role = 0; role < CTL_ROLES; role++) {
            const struct ctl_kube_workload *workload = &act->view.workloads[role];
            const char *expected = workload->groups ? "LeaderWorkerSet" : "Deployment";
            if (act->view.has[role] && (grows(act, role) || shrinks(act, role)) && name && kind &&
                strcmp(name, workload->name) == 0 && strcmp(kind, expected) == 0)
                ctl_kube_say(act->engine,
                             "warning: HorizontalPodAutoscaler %s sets the replicas of %s too, and "
                             "may undo this: delete one of the two",
                             own ? own : "?", name);
        }
    }
    json_decref(items);
    return BT_OK;
}

static enum bt_status check(struct rescale *act, struct bt_error *error)
{
    for (int role = 0; role < CTL_ROLES; role++) {
        const struct ctl_kube_workload *workload = &act->view.workloads[role];
        const char *name = ctl_role_name((enum ctl_role)role);
        int64_t wanted = act->scale->wanted[role];
        if (wanted < 0 || (!act->view.has[role] && wanted == 0)) {
            act->wanted[role] = workload->replicas;
            continue;
        }
        if (!act->view.has[role])
            return bt_error_set(error, BT_ERR_NOT_FOUND,
                                "there is no Deployment or LeaderWorkerSet of %s workers", name);
        if (wanted > INT32_MAX)
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%lld %s workers are too many",
                                (long long)wanted, name);
        act->wanted[role] = wanted;
        if (shrinks(act, role) && workload->rolling)
            return bt_error_set(error, BT_ERR_UNAVAILABLE,
                                "pods of %s are being replaced: which ones would go is not ours to "
                                "choose until that is done",
                                workload->name);
    }
    return BT_OK;
}

/* ------------------------------------------------------------------ more */

/* New workers that are ready, of those that there should be. */
static uint32_t count_new(struct rescale *act, int role, json_t *pods,
                          const struct ctl_kube_worker *workers, uint32_t count, int64_t *ret_due)
{
    uint32_t ready = 0;
    *ret_due = act->wanted[role];
    for (uint32_t i = 0; i < count; i++) {
        const struct ctl_kube_worker *worker = &workers[i];
        if ((int)worker->pod.role != role || worker->pod.ending)
            continue;
        if (!is_new(act, worker)) {
            --*ret_due;
        } else if (worker->ready) {
            ready++;
        } else {
            char why[256];
            ctl_kube_pod_trouble(json_object_get(pods, worker->pod.name), why, sizeof(why));
            snprintf(act->trouble, sizeof(act->trouble), "%.80s: %.200s", worker->pod.name, why);
        }
    }
    return ready;
}

static enum bt_status look_for_new(void *context, json_t *pods, struct bt_error *error)
{
    struct rescale *act = context;
    uint32_t count = 0;
    struct ctl_kube_worker *workers = ctl_kube_workers(pods, CTL_ROLES, &count);
    if (!workers)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "out of memory");
    enum bt_status status = BT_OK;
    snprintf(act->trouble, sizeof(act->trouble), "no pod was made yet");
    for (int role = 0; role < CTL_ROLES; role++) {
        int64_t due;
        if (act->grown[role] && count_new(act, role, pods, workers, count, &due) < due)
            status = BT_IN_PROGRESS;
    }
    free(workers);
    return status;
}

struct newcomers {
    const struct rescale *act;
    const struct ctl_kube_view *view; /* now */
    const char *missing;
};

/* All new workers that are ready have to be where requests go. */
static enum bt_status look_registered(void *context, const Baton__V1__StatusResponse *status,
                                      struct bt_error *error)
{
    struct newcomers *new = context;
    (void)error;
    new->missing = NULL;
    for (uint32_t i = 0; i < new->view->count && !new->missing; i++) {
        const struct ctl_kube_worker *worker = &new->view->workers[i];
        if (!new->act->grown[worker->pod.role] || worker->pod.ending || !is_new(new->act, worker))
            continue;
        new->missing = worker->pod.name;
        for (size_t k = 0; k < status->n_workers; k++)
            if (strcmp(status->workers[k]->worker_id, worker->pod.name) == 0 &&
                strcmp(status->workers[k]->state, "ready") == 0)
                new->missing = NULL;
    }
    return new->missing ? BT_IN_PROGRESS : BT_OK;
}

static enum bt_status wait_registered(struct rescale *act, int64_t until_ns, struct bt_error *error)
{
    struct ctl_kube_view now = {0};
    struct newcomers new = {.act = act, .view = &now};
    enum bt_status status = ctl_kube_view_load(act->engine, error, &now);
    if (status == BT_OK)
        status = ctl_router_look(act->engine->engine.target, until_ns, act->engine->interrupt_fd,
                                 look_registered, &new, error);
    if (status == BT_ERR_DEADLINE)
        bt_error_set(error, status, "%s is ready, and the router does not know it in time",
                     new.missing ? new.missing : "a pod");
    ctl_kube_view_finish(&now);
    return status;
}

/* Of what was set, each at once; nobody hears signals in between. */
static enum bt_status raise_replicas(struct rescale *act, struct bt_error *error)
{
    enum bt_status status = BT_OK;
    ctl_kube_set_deaf(act->engine->kube, true);
    for (int role = 0; status == BT_OK && role < CTL_ROLES; role++) {
        const struct ctl_kube_workload *workload = &act->view.workloads[role];
        if (!grows(act, role))
            continue;
        ctl_kube_say(act->engine, "%s: %lld -> %lld", workload->name, (long long)workload->replicas,
                     (long long)act->wanted[role]);
        act->grown[role] = true; /* maybe, also when it fails */
        status = ctl_kube_set_replicas(act->engine, workload, workload->replicas, act->wanted[role],
                                       error);
        if (status == BT_ERR_MISMATCH || status == BT_ERR_UNAUTHORISED)
            act->grown[role] = false;
    }
    ctl_kube_set_deaf(act->engine->kube, false);
    return status;
}

static enum bt_status grow(struct rescale *act, struct bt_error *error)
{
    int64_t until_ns = bt_clock_now_ns() + act->scale->wait_ns;
    enum bt_status status = raise_replicas(act, error);
    if (status != BT_OK || (!act->grown[CTL_PREFILL] && !act->grown[CTL_DECODE]))
        return status;
    status = ctl_kube_follow(act->engine->kube, CTL_KUBE_LIST_PODS, CTL_KUBE_WATCH_PODS,
                             act->engine->selector, until_ns, look_for_new, act, error);
    if (status == BT_ERR_DEADLINE)
        return bt_error_set(error, status, "the new pods are not ready in time: %s", act->trouble);
    if (status == BT_OK && ctl_kube_is_routed(act->engine))
        status = wait_registered(act, until_ns, error);
    if (status == BT_OK)
        ctl_kube_say(act->engine, "the new workers are ready");
    return status;
}

/* The new ones go again, and none else. */
static void mark_new(struct rescale *act)
{
    struct ctl_kube_view now = {0};
    if (ctl_kube_view_load(act->engine, NULL, &now) == BT_OK)
        for (uint32_t i = 0; i < now.count; i++) {
            const struct ctl_kube_worker *worker = &now.workers[i];
            struct ctl_kube_victim victim = {0};
            if (!act->grown[worker->pod.role] || act->view.workloads[worker->pod.role].groups ||
                worker->pod.ending || !is_new(act, worker))
                continue;
            snprintf(victim.name, sizeof(victim.name), "%s", worker->pod.name);
            snprintf(victim.uid, sizeof(victim.uid), "%s", worker->pod.uid ? worker->pod.uid : "");
            (void)ctl_kube_mark(act->engine, &victim, true, NULL); /* else another goes */
        }
    ctl_kube_view_finish(&now);
}

static void take_back_growth(struct rescale *act)
{
    struct bt_error error;
    mark_new(act);
    for (int role = 0; role < CTL_ROLES; role++) {
        const struct ctl_kube_workload *workload = &act->view.workloads[role];
        if (!act->grown[role])
            continue;
        if (ctl_kube_set_replicas(act->engine, workload, act->wanted[role], workload->replicas,
                                  &error) == BT_OK)
            ctl_kube_say(act->engine, "%s: back to %lld", workload->name,
                         (long long)workload->replicas);
        else
            ctl_kube_say(act->engine, "%s could not be set back to %lld: %s", workload->name,
                         (long long)workload->replicas, error.text);
    }
}

/* ------------------------------------------------------------------ fewer */

static enum bt_status choose(struct rescale *act, struct bt_error *error)
{
    struct ctl_kube_view now = {0};
    enum bt_status status = ctl_kube_view_load(act->engine, error, &now);
    for (int role = 0; status == BT_OK && role < CTL_ROLES; role++) {
        int64_t there = 0;
        if (!shrinks(act, role))
            continue;
        for (uint32_t i = 0; i < now.count; i++)
            there += (int)now.workers[i].pod.role == role && !now.workers[i].pod.ending;
        int64_t count = there - act->wanted[role];
        status =
            ctl_kube_choose(act->engine, &now, (enum ctl_role)role, count > 0 ? (uint32_t)count : 0,
                            act->forced, error, &act->victims);
    }
    ctl_kube_view_finish(&now);
    return status;
}

static enum bt_status mark(struct rescale *act, struct bt_error *error)
{
    for (uint32_t i = 0; i < act->victims.count; i++) {
        struct ctl_kube_victim *victim = &act->victims.list[i];
        if (act->view.workloads[victim->role].groups)
            continue;
        victim->marked = true; /* maybe, also when it fails */
        enum bt_status status = ctl_kube_mark(act->engine, victim, true, error);
        if (status != BT_OK)
            return status;
    }
    return BT_OK;
}

/* What became of one; not OK: it can't go like this. */
static enum bt_status judge(struct rescale *act, const struct ctl_kube_victim *victim,
                            const struct ctl_worker_call *call, struct bt_error *error)
{
    switch (call->error.status) {
    case BT_OK:
        ctl_kube_say(act->engine, "%s is drained", victim->name);
        return BT_OK;
    case BT_ERR_DEADLINE:
        ctl_kube_say(act->engine, "%s is not empty at the deadline: what is left goes on elsewhere",
                     victim->name);
        return BT_OK;
    case BT_ERR_PEER_LOST:
        ctl_kube_say(act->engine, "%s has ended", victim->name);
        return BT_OK;
    default:
        if (!victim->ready)
            return BT_OK;
        return bt_error_set(error, call->error.status,
                            "%s at %.100s can't be drained: %.150s (pods are reached from within "
                            "the cluster: run batonctl there)",
                            victim->name, call->endpoint, call->error.text);
    }
}

/* A call to some of them, each of which has an endpoint. */
static enum bt_status call_some(struct rescale *act, enum ctl_worker_verb verb,
                                struct ctl_kube_victim *const *victims, uint32_t count,
                                int64_t within_ns, int interrupt_fd, struct bt_error *error,
                                struct ctl_worker_call *ret_calls)
{
    struct ctl_worker_calls calls = {
        .verb = verb,
        .security = act->engine->engine.target->security,
        .until_ns = bt_clock_now_ns() + within_ns,
        .interrupt = interrupt_fd,
        .calls = ret_calls,
        .count = count,
    };
    for (uint32_t i = 0; i < count; i++)
        ret_calls[i] =
            (struct ctl_worker_call){.name = victims[i]->name, .endpoint = victims[i]->endpoint};
    return ctl_worker_calls_wait(&calls, error);
}

static enum bt_status drain_some(struct rescale *act, struct ctl_kube_victim *const *victims,
                                 uint32_t count, struct bt_error *error)
{
    struct ctl_worker_call calls[CTL_WORKER_CALLS_MAX];
    enum bt_status status = call_some(act, CTL_WORKER_DRAIN, victims, count, act->scale->drain_ns,
                                      act->engine->interrupt_fd, error, calls);
    for (uint32_t i = 0; status == BT_OK && i < count; i++)
        status = judge(act, victims[i], &calls[i], error);
    return status;
}

/* All that have to go, as many at a time as one wait takes; each has the whole deadline. */
static enum bt_status drain(struct rescale *act, struct bt_error *error)
{
    struct ctl_kube_victim *some[CTL_WORKER_CALLS_MAX];
    enum bt_status status = BT_OK;
    uint32_t count = 0;
    for (uint32_t i = 0; status == BT_OK && i < act->victims.count; i++) {
        struct ctl_kube_victim *victim = &act->victims.list[i];
        if (*victim->endpoint) {
            ctl_kube_say(act->engine, "%s goes: draining", victim->name);
            victim->drained = true;
            some[count++] = victim;
        } else {
            ctl_kube_say(act->engine, "%s goes: %s", victim->name,
                         ctl_kube_is_routed(act->engine)
                             ? "the router has nothing on it"
                             : "without --rpc it drains by its preStop hook");
        }
        if (count == CTL_WORKER_CALLS_MAX || (count > 0 && i + 1 == act->victims.count)) {
            status = drain_some(act, some, count, error);
            count = 0;
        }
    }
    return status;
}

static enum bt_status lower(struct rescale *act, struct bt_error *error)
{
    enum bt_status status = BT_OK;
    ctl_kube_set_deaf(act->engine->kube, true);
    for (int role = 0; status == BT_OK && role < CTL_ROLES; role++) {
        const struct ctl_kube_workload *workload = &act->view.workloads[role];
        if (!shrinks(act, role))
            continue;
        ctl_kube_say(act->engine, "%s: %lld -> %lld", workload->name, (long long)workload->replicas,
                     (long long)act->wanted[role]);
        status = ctl_kube_set_replicas(act->engine, workload, workload->replicas, act->wanted[role],
                                       error);
        act->lowered[role] = status == BT_OK;
    }
    ctl_kube_set_deaf(act->engine->kube, false);
    return status;
}

/* Whether all that were chosen are going. */
static enum bt_status look_for_gone(void *context, json_t *pods, struct bt_error *error)
{
    struct rescale *act = context;
    (void)error;
    for (uint32_t i = 0; i < act->victims.count; i++) {
        const struct ctl_kube_victim *victim = &act->victims.list[i];
        struct ctl_kube_pod pod;
        json_t *object = json_object_get(pods, victim->name);
        if (object && ctl_kube_pod_read(object, &pod) && !pod.ending && !pod.over && pod.uid &&
            strcmp(pod.uid, victim->uid) == 0) {
            snprintf(act->trouble, sizeof(act->trouble), "%s", victim->name);
            return BT_IN_PROGRESS;
        }
    }
    return BT_OK;
}

static enum bt_status wait_gone(struct rescale *act, struct bt_error *error)
{
    int64_t until_ns = bt_clock_now_ns() + act->scale->wait_ns;
    enum bt_status status =
        ctl_kube_follow(act->engine->kube, CTL_KUBE_LIST_PODS, CTL_KUBE_WATCH_PODS,
                        act->engine->selector, until_ns, look_for_gone, act, error);
    if (status == BT_ERR_DEADLINE)
        return bt_error_set(error, status,
                            "%s was to go and did not in time: its controller is late, or took "
                            "another",
                            act->trouble);
    return status;
}

static void resume_one(struct rescale *act, struct ctl_kube_victim *victim)
{
    struct ctl_worker_call call;
    struct bt_error error;
    enum bt_status status =
        call_some(act, CTL_WORKER_RESUME, &victim, 1, RESUME_NS, -1, &error, &call);
    if (status == BT_OK && call.error.status == BT_OK)
        ctl_kube_say(act->engine, "%s stays, and serves again", victim->name);
    else
        ctl_kube_say(act->engine, "%s stays, and could not be resumed: %s", victim->name,
                     status == BT_OK ? call.error.text : error.text);
}

/* A request that failed may have been done all the same. */
static bool was_lowered(struct rescale *act, enum ctl_role role)
{
    struct ctl_kube_view now = {0};
    bool lowered = act->lowered[role];
    if (!lowered && ctl_kube_view_load(act->engine, NULL, &now) == BT_OK)
        lowered = now.workloads[role].replicas <= act->wanted[role];
    ctl_kube_view_finish(&now);
    act->lowered[role] = lowered;
    return lowered;
}

/* What was not lowered stays as it was. */
static void take_back_victims(struct rescale *act)
{
    for (int role = 0; role < CTL_ROLES; role++) {
        if (!shrinks(act, role) || was_lowered(act, (enum ctl_role)role))
            continue;
        for (uint32_t i = 0; i < act->victims.count; i++) {
            struct ctl_kube_victim *victim = &act->victims.list[i];
            struct bt_error error;
            if ((int)victim->role != role)
                continue;
            if (victim->marked && ctl_kube_mark(act->engine, victim, false, &error) != BT_OK)
                ctl_kube_say(act->engine, "%s is still marked to go first: %s", victim->name,
                             error.text);
            if (victim->drained && victim->served)
                resume_one(act, victim);
        }
    }
}

static enum bt_status shrink(struct rescale *act, struct bt_error *error)
{
    if (!shrinks(act, CTL_PREFILL) && !shrinks(act, CTL_DECODE))
        return BT_OK;
    enum bt_status status = choose(act, error);
    if (status != BT_OK)
        return status;
    status = mark(act, error);
    if (status == BT_OK)
        status = drain(act, error);
    if (status == BT_OK)
        status = ctl_interrupt_check(act->engine->interrupt_fd, error);
    if (status == BT_OK)
        status = lower(act, error);
    if (status == BT_OK)
        return wait_gone(act, error);
    ctl_kube_set_deaf(act->engine->kube, true);
    take_back_victims(act);
    ctl_kube_set_deaf(act->engine->kube, false);
    return status;
}

/* That the one that has to go can: asked before anything is done. */
static enum bt_status check_forced(struct rescale *act, struct bt_error *error)
{
    enum bt_status status = act->forced ? choose(act, error) : BT_OK;
    act->victims.count = 0;
    return status;
}

static enum bt_status run(struct rescale *act, struct bt_error *error)
{
    enum bt_status status = grow(act, error);
    bool grown = status == BT_OK;
    if (grown)
        status = shrink(act, error);
    bool lowered = act->lowered[CTL_PREFILL] || act->lowered[CTL_DECODE];
    if (status != BT_OK && (!grown || (act->forced && !lowered))) {
        ctl_kube_set_deaf(act->engine->kube, true);
        take_back_growth(act);
        ctl_kube_set_deaf(act->engine->kube, false);
    }
    return status;
}

enum bt_status ctl_kube_rescale(struct ctl_kube_engine *engine, const struct ctl_scale *scale,
                                const char *forced, struct bt_error *error)
{
    struct rescale act = {.engine = engine, .scale = scale, .forced = forced};
    enum bt_status status = ctl_kube_view_load(engine, error, &act.view);
    if (status == BT_OK)
        status = check(&act, error);
    if (status == BT_OK)
        status = check_forced(&act, error);
    if (status == BT_OK)
        status = warn_of_autoscalers(&act, error);
    if (status == BT_OK)
        status = run(&act, error);
    free(act.victims.list);
    ctl_kube_view_finish(&act.view);
    return status;
}
