/* Replacing the workers of a local cluster: one by one, or with another model and its routers. */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "deploy/batonctl/engine_local.h"
#include "deploy/batonctl/interrupt.h"

#define LOOK_MS 50

static struct ctl_patience patience_of(const struct local *local, int64_t wait_ns)
{
    return (struct ctl_patience){local->interrupt, bt_clock_now_ns() + wait_ns};
}

static enum bt_status set_text(char *to, size_t size, const char *text, const char *what,
                               struct bt_error *error)
{
    if (!text || snprintf(to, size, "%s", text) < (int)size)
        return BT_OK;
    return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "%s is too long", what);
}

static enum bt_status set_args(struct ctl_cluster *cluster, const struct ctl_rollout *rollout,
                               struct bt_error *error)
{
    enum bt_status status = BT_OK;
    for (int role = 0; role < CTL_ROLES && status == BT_OK; role++)
        status = set_text(cluster->workers[role].args, sizeof(cluster->workers[role].args),
                          rollout->args[role], "--prefill-args or --decode-args", error);
    return status;
}

/* ------------------------------------------------------------------ one by one */

static enum bt_status add_one(struct local *local, enum ctl_role role, int64_t wait_ns,
                              struct bt_error *error)
{
    struct ctl_cluster *cluster = &local->cluster;
    const struct ctl_patience patience = patience_of(local, wait_ns);
    enum bt_status status = ctl_cluster_add(cluster, role, 1, &patience, error);
    if (status == BT_OK)
        ctl_local_say(local, "ready: %s",
                      cluster->processes[cluster->process_count - cluster->workers[role].ranks].id);
    return status;
}

/* The newcomer is ended where the other can't go: as many as before. */
static enum bt_status replace_one(struct local *local, enum ctl_role role, const char *old,
                                  const struct ctl_rollout *rollout, struct bt_error *error)
{
    static struct list one;
    one.count = 0;
    ctl_list_add(&one, old);
    enum bt_status status = add_one(local, role, rollout->wait_ns, error);
    if (status != BT_OK)
        return status;
    const struct ctl_cluster *cluster = &local->cluster;
    char newcomer[CTL_NAME_SIZE];
    snprintf(newcomer, sizeof(newcomer), "%s",
             cluster->processes[cluster->process_count - cluster->workers[role].ranks].id);
    status = ctl_local_dismiss(local, &one, rollout->drain_ns, error);
    if (status == BT_ERR_CANCELLED) {
        one.count = 0;
        ctl_list_add(&one, newcomer);
        if (ctl_cluster_end(&local->cluster, (const char(*)[CTL_NAME_SIZE])one.names, 1,
                            CTL_LOCAL_END_NS, NULL) == BT_OK)
            ctl_local_say(local, "taken back: %s", newcomer);
    }
    return status;
}

static enum bt_status roll_role(struct local *local, enum ctl_role role,
                                const struct ctl_rollout *rollout, uint32_t *done,
                                struct bt_error *error)
{
    static struct list olds;
    enum bt_status status = BT_OK;
    ctl_local_living(&local->cluster, role, &olds);
    for (uint32_t i = 0; i < olds.count && status == BT_OK; i++) {
        ctl_local_say(local, "%s worker %u of %u: replacing %s", ctl_role_name(role), i + 1,
                      olds.count, olds.names[i]);
        status = replace_one(local, role, olds.names[i], rollout, error);
        *done += status == BT_OK;
    }
    return status;
}

/* A first one that does not get ready changes nothing. Later ones leave the cluster mixed, of what
 * works together, and the next rollout replaces all. */
static enum bt_status roll_workers(struct local *local, const struct ctl_rollout *rollout,
                                   struct bt_error *error)
{
    struct ctl_cluster *cluster = &local->cluster;
    static struct ctl_workers before[CTL_ROLES];
    uint32_t done = 0;
    memcpy(before, cluster->workers, sizeof(before));
    enum bt_status status = set_args(cluster, rollout, error);
    for (int role = CTL_ROLES; role-- > 0 && status == BT_OK;) /* decode first, as `up` does */
        if (rollout->roles[role])
            status = roll_role(local, (enum ctl_role)role, rollout, &done, error);
    if (status == BT_OK || done > 0)
        return status;
    memcpy(cluster->workers, before, sizeof(before));
    ctl_cluster_save(cluster, NULL);
    return status;
}

/* ------------------------------------------------------------------ another model */

static enum bt_status set_model(struct ctl_cluster *cluster, const struct ctl_rollout *rollout,
                                struct bt_error *error)
{
    if (!realpath(rollout->model, cluster->model))
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "--model %s: %m", rollout->model);
    cluster->served_model_name[0] = '\0'; /* it was the other model's */
    enum bt_status status = set_text(cluster->served_model_name, sizeof(cluster->served_model_name),
                                     rollout->served_model_name, "--served-model-name", error);
    if (status == BT_OK)
        status = set_text(cluster->dtype, sizeof(cluster->dtype), rollout->dtype, "--dtype", error);
    if (status == BT_OK)
        status = set_text(cluster->router_args, sizeof(cluster->router_args), rollout->router_args,
                          "--router-args", error);
    return status == BT_OK ? set_args(cluster, rollout, error) : status;
}

/* The file is another one once the successor has the port; where the one before was left by a
 * router that is dead, it may have the same inode. */
struct handover_file {
    ino_t inode; /* 0: none */
    struct timespec changed;
};

static struct handover_file handover_file(const struct ctl_cluster *cluster, uint32_t index)
{
    char path[PATH_MAX];
    struct stat file;
    ctl_cluster_handover_path(cluster, index, path);
    return stat(path, &file) == 0 ? (struct handover_file){file.st_ino, file.st_ctim}
                                  : (struct handover_file){0};
}

/* Routers that have the port. */
static uint32_t count_taken_over(const struct ctl_cluster *cluster,
                                 const struct handover_file *before)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < cluster->router_count; i++) {
        struct handover_file now = handover_file(cluster, i);
        count += now.inode != 0 &&
                 (now.inode != before[i].inode || now.changed.tv_sec != before[i].changed.tv_sec ||
                  now.changed.tv_nsec != before[i].changed.tv_nsec);
    }
    return count;
}

/* One of the newcomers is dead: what was waited for does not come. */
static enum bt_status check_newcomers(const struct ctl_cluster *cluster, struct bt_error *error)
{
    for (uint32_t i = cluster->settled->process_count; i < cluster->process_count; i++)
        if (bt_process_probe(&cluster->processes[i].process) == BT_PROCESS_DEAD)
            return bt_error_set(error, BT_ERR_INTERNAL, "%s ended; its log is in %s",
                                cluster->processes[i].id, cluster->dir);
    return BT_OK;
}

/* Where one has the port, the one before it serves no more: there is no way back. */
static enum bt_status wait_taken_over(const struct local *local, const struct handover_file *before,
                                      const struct ctl_patience *patience, struct bt_error *error)
{
    const struct ctl_cluster *cluster = &local->cluster;
    uint32_t taken;
    while ((taken = count_taken_over(cluster, before)) < cluster->router_count) {
        enum bt_status status = ctl_interrupt_check(patience->interrupt, error);
        if (status == BT_OK)
            status = check_newcomers(cluster, error);
        if (status == BT_OK && bt_clock_now_ns() >= patience->until_ns)
            status = bt_error_set(error, BT_ERR_DEADLINE,
                                  "the new routers do not take over the HTTP port; their logs are "
                                  "in %s",
                                  cluster->dir);
        if (status != BT_OK && taken == 0)
            return status;
        if (status != BT_OK) {
            ctl_local_say(local, "%u of %u routers took over: %s", taken, cluster->router_count,
                          error->text);
            return BT_OK;
        }
        poll(NULL, 0, LOOK_MS);
    }
    return BT_OK;
}

/* The first of each role, and routers that have the port. */
static enum bt_status begin_generation(struct local *local, const struct ctl_rollout *rollout,
                                       struct bt_error *error)
{
    struct ctl_cluster *cluster = &local->cluster;
    struct ctl_patience patience = patience_of(local, rollout->wait_ns);
    struct handover_file before[CTL_MAX_ROUTERS];
    for (uint32_t i = 0; i < cluster->router_count; i++)
        before[i] = handover_file(cluster, i);
    ctl_local_say(local, "starting %u router%s for %s", cluster->router_count,
                  cluster->router_count > 1 ? "s" : "", cluster->model);
    enum bt_status status = ctl_cluster_succeed_routers(cluster, &patience, error);
    if (status == BT_OK)
        status = add_one(local, CTL_DECODE, rollout->wait_ns, error);
    if (status == BT_OK && cluster->workers[CTL_PREFILL].wanted > 0)
        status = add_one(local, CTL_PREFILL, rollout->wait_ns, error);
    patience = patience_of(local, rollout->wait_ns);
    return status == BT_OK ? wait_taken_over(local, before, &patience, error) : status;
}

/* Names of the processes from `first` on, of groups the worker's. */
static void names_from(const struct ctl_cluster *cluster, uint32_t first, uint32_t end,
                       struct list *ret_names)
{
    ret_names->count = 0;
    for (uint32_t i = first; i < end; i++) {
        worker_name worker;
        ctl_worker_of(cluster->processes[i].id, worker);
        bool known = false;
        for (uint32_t k = 0; k < ret_names->count && !known; k++)
            known = strcmp(ret_names->names[k], worker) == 0;
        if (!known)
            ctl_list_add(ret_names, worker);
    }
}

/* Nothing has been handed over: the cluster is what it was, and what of the newcomers does not end
 * is remembered. */
static void undo(struct local *local, const struct ctl_cluster *before)
{
    struct ctl_cluster *cluster = &local->cluster;
    static struct list names;
    char text[400];
    names_from(cluster, before->process_count, cluster->process_count, &names);
    if (names.count > 0 && ctl_cluster_end(cluster, (const char(*)[CTL_NAME_SIZE])names.names,
                                           names.count, CTL_LOCAL_END_NS, NULL) == BT_OK)
        ctl_local_say(local, "taken back: %s", ctl_list_text(&names, text));
    static struct ctl_cluster now;
    now = *cluster;
    *cluster = *before;
    cluster->lock = now.lock;
    cluster->process_count = now.process_count;
    memcpy(cluster->processes, now.processes, sizeof(now.processes));
    ctl_cluster_save(cluster, NULL);
}

/* Of those of a role that are on their way out, the first; false: none. */
static bool next_old(const struct ctl_cluster *cluster, enum ctl_role role, uint32_t *ret_count,
                     worker_name ret_worker)
{
    static struct list olds;
    olds.count = 0;
    for (uint32_t i = 0; i < cluster->process_count; i++) {
        worker_name worker;
        ctl_worker_of(cluster->processes[i].id, worker);
        if (cluster->processes[i].ending &&
            strcmp(cluster->processes[i].role, ctl_role_name(role)) == 0 &&
            (olds.count == 0 || strcmp(olds.names[olds.count - 1], worker) != 0))
            ctl_list_add(&olds, worker);
    }
    *ret_count = olds.count;
    if (olds.count > 0)
        snprintf(ret_worker, CTL_NAME_SIZE, "%s", olds.names[0]);
    return olds.count > 0;
}

/* An old one goes where it isn't the last, which the old routers may need; then a new one comes. */
static enum bt_status shift_role(struct local *local, enum ctl_role role,
                                 const struct ctl_rollout *rollout, struct bt_error *error)
{
    static struct list living, one;
    enum bt_status status = BT_OK;
    for (;;) {
        worker_name old;
        uint32_t olds;
        ctl_local_living(&local->cluster, role, &living);
        if (living.count >= local->cluster.workers[role].wanted)
            return BT_OK;
        if (next_old(&local->cluster, role, &olds, old) && olds > 1) {
            one.count = 0;
            ctl_list_add(&one, old);
            status = ctl_local_dismiss(local, &one, rollout->drain_ns, error);
        }
        if (status == BT_OK)
            status = add_one(local, role, rollout->wait_ns, error);
        if (status != BT_OK)
            return status;
    }
}

static bool routers_gone(const struct ctl_cluster *cluster)
{
    for (uint32_t i = 0; i < cluster->process_count; i++)
        if (cluster->processes[i].ending && strcmp(cluster->processes[i].role, "router") == 0 &&
            bt_process_probe(&cluster->processes[i].process) == BT_PROCESS_ALIVE)
            return false;
    return true;
}

/* The old routers end when their clients have left, the workers after them. */
static enum bt_status end_generation(struct local *local, int64_t drain_ns, struct bt_error *error)
{
    struct ctl_cluster *cluster = &local->cluster;
    int64_t until_ns = bt_clock_now_ns() + drain_ns;
    static struct list names;
    char text[400];
    while (!routers_gone(cluster) && bt_clock_now_ns() < until_ns &&
           ctl_interrupt_check(local->interrupt, NULL) == BT_OK)
        poll(NULL, 0, LOOK_MS);
    for (int routers = 1; routers >= 0; routers--) {
        names.count = 0;
        for (uint32_t i = 0; i < cluster->process_count; i++) {
            worker_name worker;
            ctl_worker_of(cluster->processes[i].id, worker);
            bool is_router = strcmp(cluster->processes[i].role, "router") == 0;
            if (cluster->processes[i].ending && is_router == (routers == 1) &&
                (names.count == 0 || strcmp(names.names[names.count - 1], worker) != 0))
                ctl_list_add(&names, worker);
        }
        if (names.count == 0)
            continue;
        enum bt_status status = ctl_cluster_end(cluster, (const char(*)[CTL_NAME_SIZE])names.names,
                                                names.count, CTL_LOCAL_END_NS + drain_ns, error);
        if (status != BT_OK)
            return status;
        ctl_local_say(local, "ended: %s", ctl_list_text(&names, text));
    }
    return BT_OK;
}

static enum bt_status roll_model(struct local *local, const struct ctl_rollout *rollout,
                                 struct bt_error *error)
{
    struct ctl_cluster *cluster = &local->cluster;
    static struct ctl_cluster before;
    before = *cluster;
    cluster->settled = &before;
    enum bt_status status = set_model(cluster, rollout, error);
    if (status == BT_OK)
        status = begin_generation(local, rollout, error);
    if (status != BT_OK) {
        undo(local, &before);
        return status;
    }
    cluster->settled = NULL;
    ctl_local_say(local, "new requests go to %s from now on", cluster->model);
    for (uint32_t i = 0; i < before.process_count; i++)
        cluster->processes[i].ending = true;
    status = ctl_cluster_save(cluster, error);
    for (int role = CTL_ROLES; role-- > 0 && status == BT_OK;)
        status = shift_role(local, (enum ctl_role)role, rollout, error);
    if (status != BT_OK)
        ctl_local_say(local, "the new model serves; `batonctl scale` starts what is missing");
    if (status == BT_ERR_CANCELLED)
        return status; /* what is left of the others is remembered as what has to end */
    enum bt_status ended = end_generation(local, rollout->drain_ns, status == BT_OK ? error : NULL);
    return status == BT_OK ? ended : status;
}

enum bt_status ctl_local_rollout(struct ctl_engine *engine, const struct ctl_rollout *rollout,
                                 struct bt_error *error)
{
    struct local *local = ctl_local_of(engine);
    if (rollout->image)
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "--image is for pods (--engine kubernetes): processes of this machine "
                            "run the programs beside this batonctl");
    enum bt_status status = ctl_local_begin(local, "rollout", error);
    if (status != BT_OK)
        return status;
    struct ctl_patience patience = patience_of(local, rollout->wait_ns);
    status = ctl_local_mend_routers(local, &patience, rollout->drain_ns, error);
    if (status == BT_OK)
        status = ctl_local_bury(local, error);
    if (status == BT_OK)
        status = rollout->model ? roll_model(local, rollout, error)
                                : roll_workers(local, rollout, error);
    ctl_cluster_unlock(&local->cluster);
    return status;
}
