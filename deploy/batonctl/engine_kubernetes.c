#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "deploy/batonctl/interrupt.h"
#include "deploy/batonctl/kube_engine.h"
#include "deploy/batonctl/router_look.h"
#include "deploy/batonctl/worker_calls.h"

#define DEFAULT_NAME     "default" /* of --name */
#define DEFAULT_INSTANCE "baton"   /* what it is called in deploy/kubernetes */
#define MAX_LABEL        63
#define TIMEOUT_NS       (10 * BT_NS_PER_S) /* of verbs that have no --timeout */

static struct ctl_kube_engine *of(struct ctl_engine *engine)
{
    return (struct ctl_kube_engine *)engine;
}

static int64_t timeout_of(const struct ctl_target *target)
{
    return target->timeout_ns > 0 ? target->timeout_ns : TIMEOUT_NS;
}

bool ctl_kube_is_routed(const struct ctl_kube_engine *engine)
{
    return engine->engine.target->endpoint != NULL;
}

void ctl_kube_say(struct ctl_kube_engine *engine, const char *format, ...)
{
    char text[1024];
    va_list args;
    if (!engine->engine.progress.step)
        return;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    ctl_text_flatten(text);
    engine->engine.progress.step(engine->engine.progress.context, text);
}

/* ------------------------------------------------------------------ what is there */

/* The one workload of each role that has one. */
static enum bt_status take_workloads(struct ctl_kube_view *view, json_t *items, bool groups,
                                     struct bt_error *error)
{
    json_t *item;
    size_t index;
    json_array_foreach(items, index, item)
    {
        enum ctl_role role = ctl_kube_role(item);
        struct ctl_kube_workload workload;
        if (role == CTL_ROLES || !ctl_kube_workload_read(item, groups, &workload))
            continue;
        if (view->has[role])
            return bt_error_set(error, BT_ERR_PROTOCOL,
                                "two workloads are labelled as %s workers: %s and %s",
                                ctl_role_name(role), view->workloads[role].name, workload.name);
        view->has[role] = true;
        view->workloads[role] = workload;
    }
    return BT_OK;
}

static enum bt_status list_workloads(struct ctl_kube_engine *engine, enum ctl_kube_call call,
                                     bool groups, struct bt_error *error,
                                     struct ctl_kube_view *view)
{
    char version[CTL_KUBE_VERSION_SIZE];
    json_t *items;
    enum bt_status status = ctl_kube_list(engine->kube, call, engine->selector, error, &items,
                                          version, sizeof(version));
    if (status != BT_OK)
        return status;
    status = take_workloads(view, items, groups, error);
    json_decref(items);
    return status;
}

static enum bt_status load_workloads(struct ctl_kube_engine *engine, struct bt_error *error,
                                     struct ctl_kube_view *view)
{
    enum bt_status status = list_workloads(engine, CTL_KUBE_LIST_DEPLOYMENTS, false, error, view);
    if (status != BT_OK || (view->has[CTL_PREFILL] && view->has[CTL_DECODE]))
        return status;
    bool some = view->has[CTL_PREFILL] || view->has[CTL_DECODE];
    status = list_workloads(engine, CTL_KUBE_LIST_GROUPS, true, error, view);
    if (status == BT_ERR_NOT_FOUND || (status == BT_ERR_UNAUTHORISED && some))
        status = BT_OK; /* the cluster has no such kind, or we nothing to do with it */
    if (status == BT_OK && !view->has[CTL_PREFILL] && !view->has[CTL_DECODE])
        status = bt_error_set(error, BT_ERR_NOT_FOUND,
                              "namespace %s has no workers of Baton (%s): see --namespace, --name",
                              ctl_kube_namespace(engine->kube), engine->selector);
    return status;
}

enum bt_status ctl_kube_view_load(struct ctl_kube_engine *engine, struct bt_error *error,
                                  struct ctl_kube_view *ret_view)
{
    char version[CTL_KUBE_VERSION_SIZE];
    json_t *items = NULL;
    enum bt_status status = load_workloads(engine, error, ret_view);
    if (status == BT_OK)
        status = ctl_kube_list(engine->kube, CTL_KUBE_LIST_PODS, engine->selector, error, &items,
                               version, sizeof(version));
    if (status != BT_OK)
        return status;
    ret_view->pods = ctl_kube_by_name(items);
    json_decref(items);
    if (ret_view->pods)
        ret_view->workers = ctl_kube_workers(ret_view->pods, CTL_ROLES, &ret_view->count);
    return ret_view->workers ? BT_OK : bt_error_set(error, BT_ERR_NO_MEMORY, "out of memory");
}

void ctl_kube_view_finish(struct ctl_kube_view *view)
{
    json_decref(view->pods);
    free(view->workers);
    memset(view, 0, sizeof(*view));
}

const struct ctl_kube_worker *ctl_kube_view_find(const struct ctl_kube_view *view, const char *name)
{
    for (uint32_t i = 0; i < view->count; i++)
        if (strcmp(view->workers[i].pod.name, name) == 0)
            return &view->workers[i];
    return NULL;
}

/* ------------------------------------------------------------------ observe */

/* Of members that the router knows, only those that it sends work to serve. */
static enum bt_status ask_router(void *context, const Baton__V1__StatusResponse *status,
                                 struct bt_error *error)
{
    struct ctl_fleet *fleet = context;
    (void)error;
    for (uint32_t i = 0; i < fleet->count; i++) {
        bool serves = false;
        for (size_t k = 0; k < status->n_workers; k++)
            if (strcmp(status->workers[k]->worker_id, fleet->members[i].name) == 0 &&
                strcmp(status->workers[k]->state, "ready") == 0)
                serves = true;
        fleet->members[i].ready &= serves;
    }
    return BT_OK;
}

static enum bt_status make_fleet(const struct ctl_kube_view *view, struct bt_error *error,
                                 struct ctl_fleet *ret_fleet)
{
    memset(ret_fleet, 0, sizeof(*ret_fleet));
    ret_fleet->members = calloc(view->count + 1, sizeof(*ret_fleet->members));
    if (!ret_fleet->members)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "out of memory");
    for (int role = 0; role < CTL_ROLES; role++)
        if (view->has[role] && view->workloads[role].replicas > 0)
            ret_fleet->wanted[role] = (uint32_t)view->workloads[role].replicas;
    for (uint32_t i = 0; i < view->count; i++) {
        const struct ctl_kube_worker *worker = &view->workers[i];
        struct ctl_member *member = &ret_fleet->members[ret_fleet->count++];
        snprintf(member->name, sizeof(member->name), "%s", worker->pod.name);
        member->role = worker->pod.role;
        member->ranks = worker->pods;
        member->ready = worker->ready;
        member->ending = worker->pod.ending;
    }
    return BT_OK;
}

static enum bt_status observe(struct ctl_engine *base, struct bt_error *error,
                              struct ctl_fleet *ret_fleet)
{
    struct ctl_kube_engine *engine = of(base);
    struct ctl_kube_view view = {0};
    struct ctl_fleet fleet = {0};
    enum bt_status status = ctl_kube_view_load(engine, error, &view);
    if (status == BT_OK)
        status = make_fleet(&view, error, &fleet);
    if (status == BT_OK && ctl_kube_is_routed(engine))
        status = ctl_router_look(base->target, 0, engine->interrupt_fd, ask_router, &fleet, error);
    ctl_kube_view_finish(&view);
    if (status == BT_OK)
        *ret_fleet = fleet;
    else
        ctl_fleet_finish(&fleet);
    return status;
}

/* ------------------------------------------------------------------ replicas */

static enum bt_status put_replicas(struct ctl_kube_engine *engine,
                                   const struct ctl_kube_workload *workload, json_t *object,
                                   int64_t to, struct bt_error *error)
{
    json_t *spec = json_object_get(object, "spec"), *answer;
    if (json_object_set_new(spec, "replicas", json_integer(to)) != 0)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "out of memory");
    json_object_del(object, "status");
    enum bt_status status = ctl_kube_do(
        engine->kube, workload->groups ? CTL_KUBE_SCALE_GROUPS : CTL_KUBE_SCALE_DEPLOYMENT,
        workload->name, NULL, object, error, &answer);
    if (status == BT_OK)
        json_decref(answer);
    return status;
}

enum bt_status ctl_kube_set_replicas(struct ctl_kube_engine *engine,
                                     const struct ctl_kube_workload *workload, int64_t from,
                                     int64_t to, struct bt_error *error)
{
    enum bt_status status = BT_ERR_STALE;
    for (unsigned tries = 0; status == BT_ERR_STALE && tries < CTL_KUBE_TRIES; tries++) {
        json_t *object;
        status = ctl_kube_do(engine->kube,
                             workload->groups ? CTL_KUBE_GET_GROUPS : CTL_KUBE_GET_DEPLOYMENT,
                             workload->name, NULL, NULL, error, &object);
        if (status != BT_OK)
            return status;
        json_t *spec = json_object_get(object, "spec");
        int64_t now = ctl_kube_number(spec, "replicas", 0); /* which is left out where it is 0 */
        if (!json_is_object(spec))
            status =
                bt_error_set(error, BT_ERR_PROTOCOL, "kubernetes: %s has no scale", workload->name);
        else if (now != from && now != to)
            status = bt_error_set(error, BT_ERR_MISMATCH,
                                  "somebody else set %s to %lld replicas meanwhile", workload->name,
                                  (long long)now);
        else if (now != to)
            status = put_replicas(engine, workload, object, to, error);
        json_decref(object);
    }
    return status;
}

static enum bt_status scale(struct ctl_engine *base, const struct ctl_scale *scale_,
                            struct bt_error *error)
{
    return ctl_kube_rescale(of(base), scale_, NULL, error);
}

static enum bt_status switch_role(struct ctl_engine *base, const char *worker, enum ctl_role role,
                                  const struct ctl_scale *scale_, struct bt_error *error)
{
    struct ctl_kube_view view = {0};
    struct ctl_scale wanted = *scale_;
    enum bt_status status = ctl_kube_view_load(of(base), error, &view);
    const struct ctl_kube_worker *found =
        status == BT_OK ? ctl_kube_view_find(&view, worker) : NULL;
    if (status == BT_OK && !found)
        status = bt_error_set(error, BT_ERR_NOT_FOUND, "there is no worker '%.100s'", worker);
    if (status == BT_OK && found->pod.role == role)
        status = bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "'%.100s' is a %s worker already",
                              worker, ctl_role_name(role));
    for (int i = 0; status == BT_OK && i < CTL_ROLES; i++) {
        if (!view.has[i])
            status = bt_error_set(error, BT_ERR_NOT_FOUND, "there is no workload of %s workers",
                                  ctl_role_name((enum ctl_role)i));
        wanted.wanted[i] = view.workloads[i].replicas + (i == (int)role ? 1 : -1);
    }
    ctl_kube_view_finish(&view);
    return status == BT_OK ? ctl_kube_rescale(of(base), &wanted, worker, error) : status;
}

/* ------------------------------------------------------------------ drain and resume */

struct whereabouts {
    const char *worker;
    char endpoint[640];
};

static enum bt_status locate(void *context, const Baton__V1__StatusResponse *status,
                             struct bt_error *error)
{
    struct whereabouts *found = context;
    for (size_t i = 0; i < status->n_workers; i++)
        if (strcmp(status->workers[i]->worker_id, found->worker) == 0) {
            snprintf(found->endpoint, sizeof(found->endpoint), "%s",
                     status->workers[i]->control_endpoint);
            return BT_OK;
        }
    return bt_error_set(error, BT_ERR_NOT_FOUND, "the router knows no worker '%.100s'",
                        found->worker);
}

static enum bt_status find_worker(struct ctl_kube_engine *engine, struct whereabouts *found,
                                  struct bt_error *error)
{
    if (!ctl_kube_is_routed(engine))
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "--rpc is needed: the router knows where the worker is");
    return ctl_router_look(engine->engine.target, 0, engine->interrupt_fd, locate, found, error);
}

/* One call to one worker, wherever the router says that it is. */
static enum bt_status call_worker(struct ctl_kube_engine *engine, enum ctl_worker_verb verb,
                                  const char *worker, int64_t within_ns, struct bt_error *error)
{
    struct whereabouts found = {.worker = worker};
    enum bt_status status = find_worker(engine, &found, error);
    if (status != BT_OK)
        return status;
    struct ctl_worker_call call = {.name = worker, .endpoint = found.endpoint};
    struct ctl_worker_calls calls = {
        .verb = verb,
        .security = engine->engine.target->security,
        .until_ns = bt_clock_now_ns() + within_ns,
        .interrupt = engine->interrupt_fd,
        .calls = &call,
        .count = 1,
    };
    status = ctl_worker_calls_wait(&calls, error);
    if (status == BT_OK && call.error.status != BT_OK) {
        *error = call.error;
        bt_error_prefix(error, "%.100s", worker);
        status = error->status;
    }
    return status;
}

static enum bt_status drain(struct ctl_engine *base, const char *worker, int64_t drain_ns,
                            struct bt_error *error)
{
    enum bt_status status = call_worker(of(base), CTL_WORKER_DRAIN, worker, drain_ns, error);
    if (status == BT_ERR_DEADLINE)
        return bt_error_set(error, status,
                            "%.100s still has requests; it takes nothing new: drain it again to "
                            "wait on, or resume it",
                            worker);
    return status;
}

static enum bt_status resume(struct ctl_engine *base, const char *worker, struct bt_error *error)
{
    return call_worker(of(base), CTL_WORKER_RESUME, worker, timeout_of(base->target), error);
}

/* ------------------------------------------------------------------ logs */

struct log_out {
    bool flat; /* a terminal reads it */
    struct ctl_kube_lines lines;
};

static enum bt_status write_out(const char *bytes, size_t size, struct bt_error *error)
{
    if (fwrite(bytes, 1, size, stdout) != size || fflush(stdout) != 0)
        return bt_error_set(error, BT_ERR_IO, "the log can't be written to the standard output");
    return BT_OK;
}

static enum bt_status on_log_line(void *context, char *line, size_t size, struct bt_error *error)
{
    (void)context;
    for (size_t i = 0; i < size; i++) /* a NUL would hide what is behind it */
        if (line[i] == '\0')
            line[i] = '?';
    ctl_text_flatten(line);
    enum bt_status status = write_out(line, size, error);
    return status == BT_OK ? write_out("\n", 1, error) : status;
}

static enum bt_status on_log(void *context, const char *bytes, size_t size, struct bt_error *error)
{
    struct log_out *out = context;
    if (!out->flat)
        return write_out(bytes, size, error);
    return ctl_kube_lines_feed(&out->lines, bytes, size, on_log_line, out, error);
}

/* The pod's container whose log is meant. */
static enum bt_status find_container(struct ctl_kube_engine *engine, const char *pod,
                                     struct bt_error *error, char ret_name[CTL_KUBE_NAME_SIZE])
{
    char selector[CTL_KUBE_NAME_SIZE + 64], version[CTL_KUBE_VERSION_SIZE];
    json_t *items;
    if (!ctl_kube_is_name(pod))
        return bt_error_set(error, BT_ERR_NOT_FOUND, "'%.100s' is no name of a pod", pod);
    snprintf(selector, sizeof(selector), "fieldSelector=metadata.name%%3D%s", pod);
    enum bt_status status = ctl_kube_list(engine->kube, CTL_KUBE_LIST_PODS, selector, error, &items,
                                          version, sizeof(version));
    if (status != BT_OK)
        return status;
    const char *container = ctl_kube_pod_container(json_array_get(items, 0));
    if (json_array_size(items) == 0)
        status = bt_error_set(error, BT_ERR_NOT_FOUND, "there is no pod '%s' in namespace %s", pod,
                              ctl_kube_namespace(engine->kube));
    else if (!container)
        status = bt_error_set(error, BT_ERR_PROTOCOL, "pod '%s' has no container", pod);
    else
        snprintf(ret_name, CTL_KUBE_NAME_SIZE, "%s", container);
    json_decref(items);
    return status;
}

static enum bt_status logs(struct ctl_engine *base, const char *process, int64_t tail, bool follow,
                           struct bt_error *error)
{
    struct ctl_kube_engine *engine = of(base);
    struct log_out out = {.flat = isatty(STDOUT_FILENO)};
    char container[CTL_KUBE_NAME_SIZE], query[CTL_KUBE_NAME_SIZE + 128], last[48] = "";
    enum bt_status status = find_container(engine, process, error, container);
    if (status != BT_OK)
        return status;
    if (tail >= 0)
        snprintf(last, sizeof(last), "&tailLines=%lld", (long long)tail);
    snprintf(query, sizeof(query), "container=%s%s%s", container, last,
             follow ? "&follow=true" : "");
    status = ctl_kube_stream(engine->kube, CTL_KUBE_GET_POD_LOG, process, query, BT_NEVER_NS,
                             on_log, &out, error);
    if (status == BT_OK && out.lines.used > 0) { /* its last line has no end */
        out.lines.bytes[out.lines.used] = '\0';
        status = on_log_line(&out, out.lines.bytes, out.lines.used, error);
    }
    ctl_kube_lines_finish(&out.lines);
    return status;
}

/* ------------------------------------------------------------------ life */

static void destroy(struct ctl_engine *base)
{
    ctl_kube_destroy(of(base)->kube);
    if (of(base)->interrupt_fd >= 0)
        close(of(base)->interrupt_fd);
    free(base);
}

static const struct ctl_engine_ops ops = {
    .name = "kubernetes",
    .observe = observe,
    .scale = scale,
    .drain = drain,
    .resume = resume,
    .switch_role = switch_role,
    .rollout = ctl_kube_rollout,
    .logs = logs,
    .destroy = destroy,
};

static enum bt_status make_selector(struct ctl_kube_engine *engine, const char *name,
                                    struct bt_error *error)
{
    const char *instance = strcmp(name, DEFAULT_NAME) == 0 ? DEFAULT_INSTANCE : name;
    char plain[CTL_KUBE_SELECTOR_SIZE / 3], escaped[CTL_KUBE_SELECTOR_SIZE - 32];
    if (!ctl_name_ok(instance) || strlen(instance) > MAX_LABEL)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "'%.100s' is no name of a cluster",
                            name);
    snprintf(plain, sizeof(plain), "app.kubernetes.io/name=baton,app.kubernetes.io/instance=%s",
             instance);
    enum bt_status status = ctl_kube_escape(plain, error, escaped, sizeof(escaped));
    if (status == BT_OK)
        snprintf(engine->selector, sizeof(engine->selector), "labelSelector=%s", escaped);
    return status;
}

enum bt_status ctl_engine_kubernetes(const struct ctl_target *target,
                                     const struct ctl_engine_values *values, struct bt_error *error,
                                     struct ctl_engine **ret_engine)
{
    struct ctl_kube_surroundings surroundings;
    struct ctl_kube_config config;
    struct ctl_kube_engine *engine = calloc(1, sizeof(*engine));
    if (!engine)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "out of memory");
    engine->engine.ops = &ops;
    engine->engine.target = target;
    engine->interrupt_fd = -1;
    ctl_kube_surroundings(&surroundings);
    enum bt_status status = make_selector(engine, target->name, error);
    if (status == BT_OK)
        status = ctl_interrupt_hold(error, &engine->interrupt_fd);
    if (status == BT_OK)
        status = ctl_kube_config_load(values, &surroundings, error, &config);
    if (status == BT_OK)
        status = ctl_kube_create(&config, engine->interrupt_fd, timeout_of(target), error,
                                 &engine->kube);
    if (status != BT_OK) {
        destroy(&engine->engine);
        return status;
    }
    *ret_engine = &engine->engine;
    return BT_OK;
}
