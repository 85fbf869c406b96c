/* The engine of a cluster that `up` started on this machine: workers are processes. */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "deploy/batonctl/connection.h"
#include "deploy/batonctl/engine_local.h"
#include "deploy/batonctl/interrupt.h"
#include "deploy/batonctl/local_load.h"
#include "deploy/batonctl/log_follow.h"
#include "deploy/batonctl/ready.h"
#include "deploy/batonctl/worker_calls.h"

#define RESUME_NS (10 * BT_NS_PER_S) /* for the answer to a call */

struct local *ctl_local_of(struct ctl_engine *engine)
{
    return (struct local *)engine;
}

void ctl_local_say(const struct local *local, const char *format, ...)
{
    char text[512];
    va_list args;
    if (!local->base.progress.step)
        return;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    local->base.progress.step(local->base.progress.context, text);
}

void ctl_list_add(struct list *list, const char *name)
{
    BT_ASSERT(list->count < CTL_MAX_PROCESSES);
    snprintf(list->names[list->count++], CTL_NAME_SIZE, "%s", name);
}

/* "decode-0, decode-2". */
const char *ctl_list_text(const struct list *list, char ret_text[400])
{
    size_t size = 0;
    ret_text[0] = '\0';
    for (uint32_t i = 0; i < list->count && size < 300; i++)
        size += (size_t)snprintf(ret_text + size, 400 - size, "%s%s", i > 0 ? ", " : "",
                                 list->names[i]);
    if (size >= 300)
        snprintf(ret_text + size, 400 - size, ", ...");
    return ret_text;
}

/* ------------------------------------------------------------------ what is there */

enum worker_state { WORKER_SERVES, WORKER_STARTS, WORKER_ENDS, WORKER_GONE };

static bool is_ready(const struct ctl_cluster *cluster, const char *id)
{
    char path[PATH_MAX];
    ctl_cluster_path(cluster, id, ".ready", path);
    return access(path, R_OK) == 0;
}

/* Of the worker that has its first rank at `index`: one that lost a rank is gone. */
static enum worker_state worker_state(const struct ctl_cluster *cluster, uint32_t index,
                                      uint32_t ranks)
{
    worker_name worker, other;
    uint32_t alive = 0, ready = 0;
    bool ending = false;
    ctl_worker_of(cluster->processes[index].id, worker);
    for (uint32_t i = index; i < cluster->process_count; i++) {
        const struct ctl_process *process = &cluster->processes[i];
        ctl_worker_of(process->id, other);
        if (strcmp(worker, other) != 0)
            continue;
        alive += bt_process_probe(&process->process) == BT_PROCESS_ALIVE;
        ready += is_ready(cluster, process->id);
        ending |= process->ending;
    }
    if (ending)
        return WORKER_ENDS;
    if (alive < ranks)
        return WORKER_GONE;
    return ready < ranks ? WORKER_STARTS : WORKER_SERVES;
}

/* Each worker once, at its first process; false: that is none. */
static bool is_first(const struct ctl_cluster *cluster, uint32_t index, enum ctl_role *ret_role)
{
    const struct ctl_process *process = &cluster->processes[index];
    worker_name worker, other;
    if (strcmp(process->role, "router") == 0)
        return false;
    ctl_worker_of(process->id, worker);
    for (uint32_t i = 0; i < index; i++) {
        ctl_worker_of(cluster->processes[i].id, other);
        if (strcmp(worker, other) == 0)
            return false;
    }
    *ret_role = strcmp(process->role, ctl_role_name(CTL_PREFILL)) == 0 ? CTL_PREFILL : CTL_DECODE;
    return true;
}

static void list_fill(const struct ctl_cluster *cluster, enum ctl_role role,
                      enum worker_state state, struct list *list)
{
    enum ctl_role its;
    for (uint32_t i = 0; i < cluster->process_count; i++) {
        worker_name worker;
        if (!is_first(cluster, i, &its) || its != role ||
            worker_state(cluster, i, cluster->workers[role].ranks) != state)
            continue;
        ctl_worker_of(cluster->processes[i].id, worker);
        ctl_list_add(list, worker);
    }
}

/* Those that count: they serve, or will. One that starts is of a batonctl that was killed. */
void ctl_local_living(const struct ctl_cluster *cluster, enum ctl_role role, struct list *list)
{
    list->count = 0;
    list_fill(cluster, role, WORKER_SERVES, list);
    list_fill(cluster, role, WORKER_STARTS, list);
}

static enum bt_status local_observe(struct ctl_engine *engine, struct bt_error *error,
                                    struct ctl_fleet *ret_fleet)
{
    struct ctl_cluster *cluster = &ctl_local_of(engine)->cluster;
    enum bt_status status = ctl_cluster_load(cluster, error);
    if (status != BT_OK)
        return status;
    struct ctl_fleet fleet = {.members = calloc(CTL_MAX_PROCESSES, sizeof(*fleet.members))};
    if (!fleet.members)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for the list of workers");
    for (uint32_t i = 0; i < cluster->process_count; i++) {
        enum ctl_role role;
        worker_name worker;
        if (!is_first(cluster, i, &role))
            continue;
        struct ctl_member *member = &fleet.members[fleet.count++];
        enum worker_state state = worker_state(cluster, i, cluster->workers[role].ranks);
        ctl_worker_of(cluster->processes[i].id, worker);
        snprintf(member->name, sizeof(member->name), "%s", worker);
        member->role = role;
        member->ranks = cluster->workers[role].ranks;
        member->ready = state == WORKER_SERVES;
        member->ending = state == WORKER_ENDS;
        member->gone = state == WORKER_GONE;
    }
    for (int role = 0; role < CTL_ROLES; role++)
        fleet.wanted[role] = cluster->workers[role].wanted;
    *ret_fleet = fleet;
    return BT_OK;
}

/* ------------------------------------------------------------------ acts */

static enum bt_status hold(struct local *local, struct bt_error *error)
{
    return local->interrupt >= 0 ? BT_OK : ctl_interrupt_hold(error, &local->interrupt);
}

/* Alone with the cluster, as it is now. */
enum bt_status ctl_local_begin(struct local *local, const char *verb, struct bt_error *error)
{
    struct ctl_cluster *cluster = &local->cluster;
    enum bt_status status = hold(local, error);
    if (status == BT_OK)
        status = ctl_cluster_lock(cluster, verb, error);
    if (status != BT_OK)
        return status;
    status = ctl_cluster_load(cluster, error);
    if (status == BT_OK && !ctl_cluster_alive(cluster))
        status = bt_error_set(error, BT_ERR_UNAVAILABLE, "cluster '%s' is not running any more",
                              cluster->name);
    if (status != BT_OK)
        ctl_cluster_unlock(cluster);
    return status;
}

/* Which worker a name means; of a group any rank's will do. */
static enum bt_status find(const struct ctl_cluster *cluster, const char *name,
                           struct bt_error *error, worker_name ret_worker, enum ctl_role *ret_role)
{
    struct list living = {0};
    char known[400];
    for (uint32_t i = 0; i < cluster->process_count; i++) {
        enum ctl_role role;
        worker_name worker;
        ctl_worker_of(cluster->processes[i].id, worker);
        if (!is_first(cluster, i, &role))
            continue;
        enum worker_state state = worker_state(cluster, i, cluster->workers[role].ranks);
        bool serves = state == WORKER_SERVES || state == WORKER_STARTS;
        size_t size = strlen(worker);
        if (serves && strncmp(name, worker, size) == 0 &&
            (name[size] == '\0' || name[size] == '.')) {
            snprintf(ret_worker, CTL_NAME_SIZE, "%s", worker);
            *ret_role = role;
            return BT_OK;
        }
        if (serves)
            ctl_list_add(&living, worker);
    }
    return bt_error_set(error, BT_ERR_NOT_FOUND, "no worker '%.64s' in cluster '%s'; there are: %s",
                        name, cluster->name, ctl_list_text(&living, known));
}

static void tell_over(void *context, const struct ctl_worker_call *call)
{
    const struct local *local = context;
    switch (call->error.status) {
    case BT_OK:
        ctl_local_say(local, "%s has nothing left", call->name);
        break;
    case BT_ERR_CANCELLED:
        break;
    case BT_ERR_DEADLINE:
        ctl_local_say(local, "%s still has requests at the deadline", call->name);
        break;
    default:
        ctl_local_say(local, "%s: %s", call->name, call->error.text);
    }
}

/* Each worker's own status into `ret_calls`, which points into `endpoints`. */
static enum bt_status call_workers(struct local *local, enum ctl_worker_verb verb,
                                   const struct list *workers, int64_t within_ns, int interrupt,
                                   struct bt_error *error, struct ctl_worker_call *ret_calls)
{
    static struct ctl_ready ready[CTL_WORKER_CALLS_MAX];
    struct ctl_worker_calls calls = {
        .verb = verb,
        .until_ns = bt_clock_now_ns() + within_ns,
        .interrupt = interrupt,
        .calls = ret_calls,
        .count = workers->count,
        .over = verb == CTL_WORKER_DRAIN ? tell_over : NULL,
        .context = local,
    };
    BT_ASSERT(workers->count <= CTL_WORKER_CALLS_MAX);
    if (local->cluster.curve) {
        ctl_keys_init(&local->keys, local->cluster.dir, CTL_KEYS_OPERATOR);
        calls.security = local->keys.values;
    }
    for (uint32_t i = 0; i < workers->count; i++) {
        enum bt_status status =
            ctl_ready_read(&local->cluster, workers->names[i], error, &ready[i]);
        if (status != BT_OK)
            return status;
        ret_calls[i] = (struct ctl_worker_call){workers->names[i], ready[i].rpc, {0}};
    }
    return ctl_worker_calls_wait(&calls, error);
}

/* Whatever they were told before; one that does not answer is said. */
static void resume_all(struct local *local, const struct list *workers)
{
    struct ctl_worker_call calls[CTL_WORKER_CALLS_MAX];
    struct bt_error error;
    if (call_workers(local, CTL_WORKER_RESUME, workers, RESUME_NS, -1, &error, calls) != BT_OK) {
        ctl_local_say(local, "resuming: %s", error.text);
        return;
    }
    for (uint32_t i = 0; i < workers->count; i++)
        if (calls[i].error.status == BT_OK)
            ctl_local_say(local, "%s takes requests again", calls[i].name);
        else
            ctl_local_say(local, "%s stays drained: %s", calls[i].name, calls[i].error.text);
}

/* ------------------------------------------------------------------ growing and shrinking */

static enum bt_status check_counts(const struct ctl_cluster *cluster, const int64_t *wanted,
                                   struct bt_error *error)
{
    for (int role = 0; role < CTL_ROLES; role++)
        if (wanted[role] > CTL_MAX_WORKERS)
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                                "%" PRId64 " %s workers: at most %d on one machine", wanted[role],
                                ctl_role_name((enum ctl_role)role), CTL_MAX_WORKERS);
    if (wanted[CTL_DECODE] < 1)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "one decode worker has to be left: without one nothing is served");
    if (wanted[CTL_PREFILL] < 1 && !cluster->local_prefill)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "one prefill worker has to be left: decode workers of this cluster "
                            "compute no prompts (see up --local-prefill)");
    return BT_OK;
}

static void fill_wanted(const struct ctl_cluster *cluster, const struct ctl_scale *scale,
                        int64_t ret_wanted[CTL_ROLES])
{
    for (int role = 0; role < CTL_ROLES; role++)
        ret_wanted[role] =
            scale->wanted[role] >= 0 ? scale->wanted[role] : cluster->workers[role].wanted;
}

enum bt_status ctl_local_mend_routers(struct local *local, const struct ctl_patience *patience,
                                      int64_t drain_ns, struct bt_error *error)
{
    struct ctl_cluster *cluster = &local->cluster;
    static struct list ending, dead;
    enum bt_status status = BT_OK;
    char text[400];
    ending.count = dead.count = 0;
    for (uint32_t i = 0; i < cluster->process_count; i++)
        if (strcmp(cluster->processes[i].role, "router") == 0 && cluster->processes[i].ending)
            ctl_list_add(&ending, cluster->processes[i].id);
    if (ending.count > 0)
        status = ctl_cluster_end(cluster, (const char(*)[CTL_NAME_SIZE])ending.names, ending.count,
                                 CTL_LOCAL_END_NS + drain_ns, error);
    if (status != BT_OK)
        return status;
    for (uint32_t i = 0; i < cluster->router_count; i++)
        if (ctl_cluster_router_dead(cluster, &cluster->routers[i]))
            ctl_list_add(&dead, cluster->routers[i].id);
    if (dead.count == 0)
        return BT_OK;
    ctl_local_say(local, "ended by %s: %s; starting again",
                  dead.count > 1 ? "themselves" : "itself", ctl_list_text(&dead, text));
    status = ctl_cluster_revive_routers(cluster, patience, error);
    if (status == BT_OK)
        ctl_local_say(local, "%s: workers register with %s now", ctl_list_text(&dead, text),
                      dead.count > 1 ? "them" : "it");
    return status;
}

enum bt_status ctl_local_bury(struct local *local, struct bt_error *error)
{
    static struct list gone;
    gone.count = 0;
    for (int role = 0; role < CTL_ROLES; role++) {
        list_fill(&local->cluster, (enum ctl_role)role, WORKER_GONE, &gone);
        list_fill(&local->cluster, (enum ctl_role)role, WORKER_ENDS, &gone);
    }
    return gone.count > 0
               ? ctl_cluster_end(&local->cluster, (const char(*)[CTL_NAME_SIZE])gone.names,
                                 gone.count, CTL_LOCAL_END_NS, error)
               : BT_OK;
}

static void tell_gone(const struct local *local)
{
    for (int role = 0; role < CTL_ROLES; role++) {
        static struct list gone;
        char text[400];
        gone.count = 0;
        list_fill(&local->cluster, (enum ctl_role)role, WORKER_GONE, &gone);
        if (gone.count > 0)
            ctl_local_say(local, "ended by %s: %s", gone.count > 1 ? "themselves" : "itself",
                          ctl_list_text(&gone, text));
    }
}

static enum bt_status grow(struct local *local, enum ctl_role role, int64_t wanted,
                           const struct ctl_patience *patience, struct bt_error *error)
{
    struct ctl_cluster *cluster = &local->cluster;
    static struct list living, now;
    char text[400];
    ctl_local_living(cluster, role, &living);
    if (living.count >= wanted)
        return BT_OK;
    uint32_t count = (uint32_t)(wanted - living.count), first = cluster->process_count;
    ctl_local_say(local, "starting %u %s worker%s", count, ctl_role_name(role),
                  count > 1 ? "s" : "");
    enum bt_status status = ctl_cluster_add(cluster, role, count, patience, error);
    if (status != BT_OK)
        return status;
    now.count = 0;
    for (uint32_t i = first; i < cluster->process_count; i += cluster->workers[role].ranks)
        ctl_list_add(&now, cluster->processes[i].id);
    ctl_local_say(local, "ready: %s", ctl_list_text(&now, text));
    if (cluster->workers[role].cpus[0] && wanted > cluster->workers[role].parts)
        ctl_local_say(local, "%s workers share the cpus of those that `up` started",
                      ctl_role_name(role));
    cluster->workers[role].wanted = (uint32_t)wanted;
    return ctl_cluster_save(cluster, error);
}

/* What runs on them is finished first, for at most drain_ns; CANCELLED: they take requests again,
 * and stay. */
enum bt_status ctl_local_dismiss(struct local *local, const struct list *workers, int64_t drain_ns,
                                 struct bt_error *error)
{
    struct ctl_worker_call calls[CTL_WORKER_CALLS_MAX];
    char text[400];
    ctl_local_say(local, "draining %s", ctl_list_text(workers, text));
    enum bt_status status =
        call_workers(local, CTL_WORKER_DRAIN, workers, drain_ns, local->interrupt, error, calls);
    if (status == BT_ERR_CANCELLED)
        resume_all(local, workers);
    if (status != BT_OK)
        return status;
    for (uint32_t i = 0; i < workers->count; i++)
        if (calls[i].error.status == BT_ERR_DEADLINE)
            ctl_local_say(local, "what %s has goes on elsewhere", calls[i].name);
    status = ctl_cluster_end(&local->cluster, (const char(*)[CTL_NAME_SIZE])workers->names,
                             workers->count, CTL_LOCAL_END_NS, error);
    if (status == BT_OK)
        ctl_local_say(local, "ended: %s", ctl_list_text(workers, text));
    return status;
}

/* The least loaded of each role that has too many. */
static enum bt_status choose(struct local *local, const int64_t *wanted, struct bt_error *error,
                             struct list *ret_leavers)
{
    static struct list living;
    ret_leavers->count = 0;
    for (int role = 0; role < CTL_ROLES; role++) {
        ctl_local_living(&local->cluster, (enum ctl_role)role, &living);
        if (living.count <= wanted[role])
            continue;
        enum bt_status status = ctl_local_load_sort(local->base.target, &local->cluster,
                                                    living.names, living.count, error);
        if (status != BT_OK)
            return status;
        for (uint32_t i = 0; i < living.count - wanted[role]; i++)
            ctl_list_add(ret_leavers, living.names[i]);
    }
    return BT_OK;
}

static enum bt_status shrink(struct local *local, const int64_t *wanted, int64_t drain_ns,
                             struct bt_error *error)
{
    struct ctl_cluster *cluster = &local->cluster;
    static struct list leavers;
    uint32_t before[CTL_ROLES];
    enum bt_status status = choose(local, wanted, error, &leavers);
    if (status != BT_OK)
        return status;
    for (int role = 0; role < CTL_ROLES; role++) {
        before[role] = cluster->workers[role].wanted;
        cluster->workers[role].wanted = (uint32_t)wanted[role];
    }
    if (leavers.count == 0)
        return ctl_cluster_save(cluster, error);
    status = ctl_local_dismiss(local, &leavers, drain_ns, error);
    if (status == BT_ERR_CANCELLED)
        for (int role = 0; role < CTL_ROLES; role++)
            cluster->workers[role].wanted = before[role];
    return status;
}

static enum bt_status scale_locked(struct local *local, const struct ctl_scale *scale,
                                   struct bt_error *error)
{
    const struct ctl_patience patience = {local->interrupt, bt_clock_now_ns() + scale->wait_ns};
    int64_t wanted[CTL_ROLES];
    fill_wanted(&local->cluster, scale, wanted);
    enum bt_status status = check_counts(&local->cluster, wanted, error);
    if (status != BT_OK)
        return status;
    tell_gone(local);
    status = ctl_local_mend_routers(local, &patience, scale->drain_ns, error);
    if (status == BT_OK)
        status = grow(local, CTL_DECODE, wanted[CTL_DECODE], &patience, error);
    if (status == BT_OK)
        status = grow(local, CTL_PREFILL, wanted[CTL_PREFILL], &patience, error);
    if (status == BT_OK)
        status = ctl_local_bury(local, error);
    if (status == BT_OK)
        status = shrink(local, wanted, scale->drain_ns, error);
    return status;
}

static enum bt_status local_scale(struct ctl_engine *engine, const struct ctl_scale *scale,
                                  struct bt_error *error)
{
    struct local *local = ctl_local_of(engine);
    enum bt_status status = ctl_local_begin(local, "scale", error);
    if (status != BT_OK)
        return status;
    status = scale_locked(local, scale, error);
    ctl_cluster_unlock(&local->cluster);
    return status;
}

static enum bt_status local_check(struct ctl_engine *engine, const struct ctl_scale *scale,
                                  struct bt_error *error)
{
    struct local *local = ctl_local_of(engine);
    int64_t wanted[CTL_ROLES];
    enum bt_status status = ctl_cluster_load(&local->cluster, error);
    if (status != BT_OK)
        return status;
    fill_wanted(&local->cluster, scale, wanted);
    return check_counts(&local->cluster, wanted, error);
}

/* ------------------------------------------------------------------ another role */

/* The newcomer is there, and the other could not go: as before. */
static void take_back(struct local *local, enum ctl_role role, const char *newcomer)
{
    static struct list list;
    struct bt_error error;
    list.count = 0;
    ctl_list_add(&list, newcomer);
    local->cluster.workers[role].wanted--;
    if (ctl_cluster_end(&local->cluster, (const char(*)[CTL_NAME_SIZE])list.names, 1,
                        CTL_LOCAL_END_NS, &error) == BT_OK)
        ctl_local_say(local, "taken back: %s", newcomer);
    else
        ctl_local_say(local, "%s", error.text);
}

static enum bt_status switch_locked(struct local *local, const char *name, enum ctl_role role,
                                    const struct ctl_scale *scale, struct bt_error *error)
{
    struct ctl_cluster *cluster = &local->cluster;
    const struct ctl_patience patience = {local->interrupt, bt_clock_now_ns() + scale->wait_ns};
    static struct list living, leaver;
    worker_name worker;
    enum ctl_role before;
    enum bt_status status = find(cluster, name, error, worker, &before);
    if (status != BT_OK)
        return status;
    if (before == role)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s is a %s worker already", worker,
                            ctl_role_name(role));
    int64_t counts[CTL_ROLES];
    for (int r = 0; r < CTL_ROLES; r++) {
        ctl_local_living(cluster, (enum ctl_role)r, &living);
        counts[r] = living.count;
    }
    counts[before]--;
    counts[role]++;
    status = check_counts(cluster, counts, error);
    if (status == BT_OK)
        status = grow(local, role, counts[role], &patience, error);
    if (status != BT_OK)
        return status;
    worker_name newcomer;
    uint32_t ranks = cluster->workers[role].ranks;
    snprintf(newcomer, sizeof(newcomer), "%s",
             cluster->processes[cluster->process_count - ranks].id);
    leaver.count = 0;
    ctl_list_add(&leaver, worker);
    cluster->workers[before].wanted = (uint32_t)counts[before];
    status = ctl_local_dismiss(local, &leaver, scale->drain_ns, error);
    if (status == BT_ERR_CANCELLED) {
        cluster->workers[before].wanted++;
        take_back(local, role, newcomer);
    }
    return status;
}

static enum bt_status local_switch_role(struct ctl_engine *engine, const char *worker,
                                        enum ctl_role role, const struct ctl_scale *scale,
                                        struct bt_error *error)
{
    struct local *local = ctl_local_of(engine);
    enum bt_status status = ctl_local_begin(local, "switch-role", error);
    if (status != BT_OK)
        return status;
    status = switch_locked(local, worker, role, scale, error);
    ctl_cluster_unlock(&local->cluster);
    return status;
}

/* ------------------------------------------------------------------ one worker */

static enum bt_status call_one(struct local *local, enum ctl_worker_verb verb, const char *name,
                               int64_t within_ns, struct bt_error *error)
{
    static struct list one;
    struct ctl_worker_call call;
    worker_name worker;
    enum ctl_role role;
    enum bt_status status = hold(local, error);
    if (status == BT_OK)
        status = ctl_cluster_load(&local->cluster, error);
    if (status == BT_OK)
        status = find(&local->cluster, name, error, worker, &role);
    if (status != BT_OK)
        return status;
    one.count = 0;
    ctl_list_add(&one, worker);
    status = call_workers(local, verb, &one, within_ns, local->interrupt, error, &call);
    if (status == BT_ERR_CANCELLED && verb == CTL_WORKER_DRAIN)
        resume_all(local, &one);
    if (status != BT_OK || call.error.status == BT_OK)
        return status;
    if (call.error.status == BT_ERR_DEADLINE && verb == CTL_WORKER_DRAIN)
        return bt_error_set(error, BT_ERR_DEADLINE,
                            "%s still has requests; it takes nothing new, and goes on with these",
                            worker);
    return bt_error_set(error, call.error.status, "%s: %s", worker, call.error.text);
}

static enum bt_status local_drain(struct ctl_engine *engine, const char *worker, int64_t drain_ns,
                                  struct bt_error *error)
{
    return call_one(ctl_local_of(engine), CTL_WORKER_DRAIN, worker, drain_ns, error);
}

static enum bt_status local_resume(struct ctl_engine *engine, const char *worker,
                                   struct bt_error *error)
{
    return call_one(ctl_local_of(engine), CTL_WORKER_RESUME, worker, RESUME_NS, error);
}

static bool is_alive(void *context)
{
    const struct ctl_process *process = context;
    return bt_process_probe(&process->process) == BT_PROCESS_ALIVE;
}

static enum bt_status local_logs(struct ctl_engine *engine, const char *process, int64_t tail,
                                 bool follow, struct bt_error *error)
{
    struct local *local = ctl_local_of(engine);
    struct ctl_cluster *cluster = &local->cluster;
    enum bt_status status = ctl_cluster_load(cluster, error);
    if (status == BT_OK)
        status = hold(local, error);
    if (status != BT_OK)
        return status;
    for (uint32_t i = 0; i < cluster->process_count; i++) {
        char path[PATH_MAX];
        if (strcmp(cluster->processes[i].id, process) != 0)
            continue;
        ctl_cluster_path(cluster, process, ".log", path);
        const struct ctl_log_follow log = {
            path, tail, follow, is_alive, &cluster->processes[i], local->interrupt};
        return ctl_log_follow(&log, error);
    }
    return bt_error_set(error, BT_ERR_NOT_FOUND, "no process '%.64s' in cluster '%s'", process,
                        cluster->name);
}

static void local_destroy(struct ctl_engine *engine)
{
    struct local *local = ctl_local_of(engine);
    ctl_cluster_unlock(&local->cluster);
    if (local->interrupt >= 0)
        close(local->interrupt);
    free(local);
}

static const struct ctl_engine_ops local_ops = {
    .name = "local",
    .observe = local_observe,
    .check = local_check,
    .scale = local_scale,
    .drain = local_drain,
    .resume = local_resume,
    .switch_role = local_switch_role,
    .rollout = ctl_local_rollout,
    .logs = local_logs,
    .destroy = local_destroy,
};

enum bt_status ctl_engine_local(const struct ctl_target *target, struct bt_error *error,
                                struct ctl_engine **ret_engine)
{
    struct local *local = calloc(1, sizeof(*local));
    if (!local)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for the engine");
    local->base.ops = &local_ops;
    local->base.target = target;
    local->interrupt = -1;
    enum bt_status status =
        ctl_cluster_init(&local->cluster, target->state_dir, target->name, error);
    if (status == BT_OK)
        status = ctl_cluster_load(&local->cluster, error);
    if (status != BT_OK) {
        local_destroy(&local->base);
        return status;
    }
    *ret_engine = &local->base;
    return BT_OK;
}
