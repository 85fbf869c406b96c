/* What workers say of themselves, and what time and failures make of them. */
#include <stdio.h>
#include <string.h>

#include "common/base/clock.h"
#include "router/core_state.h"

/* ---- time */

static void look_at(struct rt_core *core, struct rt_worker *worker, int64_t when_ns)
{
    if (!worker->timer.linked || when_ns < worker->timer.key) {
        rt_order_move(&core->workers.timers, &worker->timer, when_ns, worker->ref);
    }
}

static void heard_of(struct rt_core *core, struct rt_worker *worker)
{
    struct rt_worker_life life = worker->life;
    life.silent = false;
    rt_worker_set_life(&core->workers, worker, life);
    worker->last_heartbeat_ns = core->now_ns;
    look_at(core, worker, core->now_ns + core->options.silent_after_ns);
    core->dispatch_due = true;
}

/* ---- health */

/* At least half of those that live are left if `out` more get nothing. */
static bool can_spare(const struct rt_core *core, enum rt_role role, uint32_t out)
{
    const struct rt_worker_table *workers = &core->workers;
    return workers->willing_count[role] >= out &&
           2 * (workers->willing_count[role] - out) >= workers->live_count[role];
}

static void be_born(struct rt_core *core, struct rt_worker *worker,
                    const struct rt_worker_health *before, int64_t lost_ns)
{
    rt_health_born(&worker->health, before, &core->options, lost_ns,
                   can_spare(core, worker->info.role, 0), core->now_ns);
    if (worker->health.breaker == RT_BREAKER_OPEN) {
        core->counts.kept_out++;
        look_at(core, worker, worker->health.open_until_ns);
    }
}

void rt_core_worker_failed(struct rt_core *core, struct rt_worker *worker)
{
    bool was_open = worker->health.breaker == RT_BREAKER_OPEN;
    rt_health_failed(&worker->health, &core->options,
                     can_spare(core, worker->info.role, worker->willing), core->now_ns);
    if (!was_open && worker->health.breaker == RT_BREAKER_OPEN) {
        core->counts.breakers_opened++;
        look_at(core, worker, worker->health.open_until_ns);
    }
    rt_worker_reindex(&core->workers, worker);
}

void rt_core_worker_succeeded(struct rt_core *core, struct rt_worker *worker)
{
    rt_health_succeeded(&worker->health);
    rt_worker_reindex(&core->workers, worker);
    core->dispatch_due = true;
}

/* ---- coming */

static bool same_member(const struct rt_group_member *a, const struct rt_group_member *b)
{
    return a->incarnation == b->incarnation &&
           (a->incarnation == 0 ||
            (a->rank == b->rank && a->size == b->size && strcmp(a->name, b->name) == 0));
}

static enum bt_status worker_again(struct rt_core *core, struct rt_worker *worker,
                                   const struct rt_worker_info *info, struct bt_error *error)
{
    if (worker->info.role != info->role) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "worker %s: this incarnation registered with another role", info->id);
    }
    enum bt_status status = rt_worker_table_check_group(&core->workers, info, worker, error);
    if (status != BT_OK) {
        return status;
    }
    if (worker->info.local_prefill_tokens != info->local_prefill_tokens) {
        return bt_error_set(error, BT_ERR_MISMATCH,
                            "local_prefill_tokens: worker %s said %u before", info->id,
                            worker->info.local_prefill_tokens);
    }
    if (!same_member(&worker->info.group, &info->group)) {
        return bt_error_set(error, BT_ERR_MISMATCH,
                            "group: worker %s was another rank, or of another group", info->id);
    }
    if (worker->life.lost) {
        struct rt_worker_health before = worker->health;
        be_born(core, worker, worker->blameless ? NULL : &before, worker->lost_ns);
        rt_worker_set_life(&core->workers, worker, (struct rt_worker_life){.lost = false});
        worker->why_lost[0] = '\0';
    }
    worker->info.max_model_len = info->max_model_len;
    rt_worker_relive(&core->workers, worker);
    rt_worker_set_load(&core->workers, worker, &info->load);
    heard_of(core, worker);
    return BT_OK;
}

enum bt_status rt_core_worker_register(struct rt_core *core, const struct rt_worker_info *info,
                                       int64_t now_ns, struct bt_error *error,
                                       rt_worker_ref *ret_worker)
{
    rt_core_hear_time(core, now_ns);
    struct rt_worker *worker = rt_worker_table_find(&core->workers, info->id);
    enum bt_status status;
    if (worker && worker->info.incarnation == info->incarnation) {
        status = worker_again(core, worker, info, error);
        if (status == BT_OK) {
            *ret_worker = worker->ref;
        }
        return status;
    }
    if (worker && !worker->life.lost) {
        return bt_error_set(error, BT_ERR_ALREADY_EXISTS,
                            "worker %s: another process with this id is alive", info->id);
    }
    status = rt_worker_table_check_group(&core->workers, info, NULL, error);
    if (status != BT_OK) {
        return status;
    }
    struct rt_worker_health before = {0};
    int64_t lost_ns = 0;
    bool blamed = worker && !worker->blameless;
    if (worker) {
        before = worker->health;
        lost_ns = worker->lost_ns;
        rt_worker_table_remove(&core->workers, worker);
    }
    status = rt_worker_table_add(&core->workers, info, error, &worker);
    if (status == BT_OK) {
        be_born(core, worker, blamed ? &before : NULL, lost_ns);
        heard_of(core, worker);
        rt_worker_reindex(&core->workers, worker);
        *ret_worker = worker->ref;
    }
    return status;
}

void rt_core_worker_connected(struct rt_core *core, rt_worker_ref ref, int64_t now_ns)
{
    rt_core_hear_time(core, now_ns);
    struct rt_worker *worker = rt_core_worker_get(core, ref);
    if (worker && !worker->life.lost) {
        struct rt_worker_life life = worker->life;
        life.connected = true;
        rt_worker_set_life(&core->workers, worker, life);
        core->dispatch_due = true;
    }
}

enum bt_status rt_core_worker_heartbeat(struct rt_core *core, const char *id, uint64_t incarnation,
                                        const struct rt_load *load, bool draining, int64_t now_ns)
{
    rt_core_hear_time(core, now_ns);
    struct rt_worker *worker = rt_worker_table_find(&core->workers, id);
    if (!worker || worker->life.lost || worker->info.incarnation != incarnation) {
        return BT_ERR_NOT_FOUND;
    }
    struct rt_worker_life life = worker->life;
    life.draining = draining;
    rt_worker_set_life(&core->workers, worker, life);
    rt_worker_set_load(&core->workers, worker, load);
    heard_of(core, worker);
    return BT_OK;
}

void rt_core_worker_load(struct rt_core *core, rt_worker_ref ref, const struct rt_load *load)
{
    struct rt_worker *worker = rt_core_worker_get(core, ref);
    if (worker && !worker->life.lost) {
        rt_worker_set_load(&core->workers, worker, load);
        core->dispatch_due = true;
    }
}

/* ---- workers that are gone */

static void mark_lost(struct rt_core *core, struct rt_worker *worker, const char *why,
                      bool blameless)
{
    snprintf(worker->why_lost, sizeof worker->why_lost, "%s", why);
    rt_worker_set_life(&core->workers, worker, (struct rt_worker_life){.lost = true});
    worker->lost_ns = core->now_ns;
    worker->blameless = blameless;
    rt_order_move(&core->workers.timers, &worker->timer, core->now_ns + RT_LOST_KEPT_NS,
                  worker->ref);
}

/* `worker` is lost already. Those that go with it, into mates[RT_GROUP_SIZE_MAX]. */
static uint32_t mark_mates_lost(struct rt_core *core, const struct rt_worker *worker,
                                struct rt_worker **mates)
{
    const struct rt_group *group = worker->group;
    char why[RT_WHY_LOST_SIZE];
    snprintf(why, sizeof why, "rank %u (%s) of its group is gone: %.70s", worker->info.group.rank,
             worker->info.id, worker->why_lost);
    uint32_t count = 0;
    for (uint32_t i = 0; i < group->size; i++) {
        if (group->ranks[i]) {
            mates[count++] = group->ranks[i];
        }
    }
    for (uint32_t i = 0; i < count; i++) {
        mark_lost(core, mates[i], why, true);
    }
    return count;
}

/* It computed something for the request, which may have killed it. A prompt that was computed once
 * can't. */
static bool computed_for(const struct rt_worker *worker, const struct rt_request *request)
{
    return worker->info.role == RT_ROLE_DECODE
               ? request->state == RT_DECODING
               : request->state == RT_PREFILLING && request->delivered_count == 0;
}

static void find_exposed(const struct rt_worker *worker, struct rt_exposed *ret_exposed)
{
    enum rt_role role = worker->info.role;
    *ret_exposed = (struct rt_exposed){0};
    for (const struct rt_request *request = worker->first; request;
         request = request->on_worker[role].next) {
        if (computed_for(worker, request)) {
            rt_exposed_add(ret_exposed, &request->suspicion, request->delivered_count);
        }
    }
}

/* Each request on it runs elsewhere, or goes on without it. */
static void empty_worker(struct rt_core *core, struct rt_worker *worker, bool died)
{
    struct rt_exposed exposed;
    struct rt_request *request;
    find_exposed(worker, &exposed);
    while ((request = worker->first) != NULL) {
        if (worker->info.role == RT_ROLE_DECODE || request->state == RT_PREFILLING) {
            rt_attempt_lost(core, request, worker,
                            died && computed_for(worker, request) ? &exposed : NULL);
        } else {
            /* RESERVING: another is chosen when pages are there. DECODING: its part is done. */
            rt_worker_leave_prefill(&core->workers, request, core->now_ns);
            request->run_open = false;
        }
    }
}

static void lose(struct rt_core *core, rt_worker_ref ref, const char *why, bool died)
{
    struct rt_worker *worker = rt_core_worker_get(core, ref);
    if (!worker || worker->life.lost) {
        return;
    }
    struct rt_worker *mates[RT_GROUP_SIZE_MAX];
    uint32_t mate_count = 0;
    mark_lost(core, worker, why, !died);
    if (died) {
        rt_deaths_add(&core->deaths, core->now_ns);
    }
    if (worker->group) {
        mate_count = mark_mates_lost(core, worker, mates);
    }
    empty_worker(core, worker, died);
    for (uint32_t i = 0; i < mate_count; i++) {
        empty_worker(core, mates[i], false);
    }
    core->dispatch_due = true;
}

void rt_core_worker_lost(struct rt_core *core, rt_worker_ref ref, const char *why, int64_t now_ns)
{
    rt_core_hear_time(core, now_ns);
    lose(core, ref, why, true);
}

void rt_core_worker_left(struct rt_core *core, rt_worker_ref ref, int64_t now_ns)
{
    rt_core_hear_time(core, now_ns);
    lose(core, ref, "it left", false);
}

/* Time passed at one worker. Returns when it has to be looked at again. */
static int64_t worker_tick(struct rt_core *core, struct rt_worker *worker)
{
    int64_t silence_ns = core->now_ns - worker->last_heartbeat_ns;
    if (!worker->life.lost && silence_ns >= core->options.lost_after_ns) {
        lose(core, worker->ref, "no heartbeat", true);
    }
    if (worker->life.lost) {
        return worker->lost_ns + RT_LOST_KEPT_NS;
    }
    struct rt_worker_life life = worker->life;
    life.silent = silence_ns >= core->options.silent_after_ns;
    rt_worker_set_life(&core->workers, worker, life);
    rt_health_tick(&worker->health, core->now_ns);
    rt_worker_reindex(&core->workers, worker);
    int64_t next_ns = worker->last_heartbeat_ns +
                      (life.silent ? core->options.lost_after_ns : core->options.silent_after_ns);
    bool open = worker->health.breaker == RT_BREAKER_OPEN;
    return open && worker->health.open_until_ns < next_ns ? worker->health.open_until_ns : next_ns;
}

void rt_core_tend_workers(struct rt_core *core)
{
    struct rt_order_tree *timers = &core->workers.timers;
    struct rt_worker *worker;
    while ((worker = RT_ORDER_FIRST(timers, struct rt_worker, timer)) != NULL &&
           worker->timer.key <= core->now_ns) {
        int64_t next_ns = worker_tick(core, worker);
        if (worker->life.lost && next_ns <= core->now_ns) {
            rt_worker_table_remove(&core->workers, worker);
        } else {
            rt_order_move(timers, &worker->timer, next_ns, worker->ref);
        }
        core->dispatch_due = true;
    }
}
