#include "router/worker_table.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "router/placement.h"

/* The array keeps at most as many holes as workers, and these. */
#define HOLES_MIN 64

void rt_worker_table_init(struct rt_worker_table *table, const struct rt_core_options *options)
{
    *table = (struct rt_worker_table){.options = options};
    rt_prefill_line_init(&table->line, (struct rt_line){(double)options->prefill_base_ns,
                                                        (double)options->prefill_token_ns});
    rt_prefill_line_init(&table->local_line, table->line.line);
}

/* What is believed of a worker that has reported nothing; of decode ranks that of prefill workers,
 * until one has. */
static struct rt_line prior(const struct rt_worker_table *table, enum rt_role role)
{
    return role == RT_ROLE_DECODE && table->local_line.samples > 0 ? table->local_line.line
                                                                   : table->line.line;
}

void rt_worker_table_finish(struct rt_worker_table *table)
{
    for (uint32_t i = 0; i < table->count; i++) {
        free(table->workers[i]);
    }
    free(table->workers);
    size_t cursor = 0;
    uint64_t incarnation;
    void *group;
    while (bt_map_next(&table->groups, &cursor, &incarnation, &group)) {
        free(group);
    }
    bt_map_finish(&table->groups);
    bt_map_finish(&table->by_ref);
    bt_map_finish(&table->by_id);
    for (int role = 0; role < 2; role++) {
        rt_worker_index_finish(&table->willing[role]);
        rt_worker_index_finish(&table->live[role]);
    }
    *table = (struct rt_worker_table){0};
}

/* ---- by ref and by id */

static uint64_t hash_id(const char *id)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325); /* FNV-1a */
    for (; *id; id++) {
        hash = (hash ^ (unsigned char)*id) * UINT64_C(0x100000001b3);
    }
    return hash;
}

struct rt_worker *rt_worker_table_get(const struct rt_worker_table *table, rt_worker_ref ref)
{
    return bt_map_get(&table->by_ref, ref);
}

struct rt_worker *rt_worker_table_find(const struct rt_worker_table *table, const char *id)
{
    struct rt_worker *worker = bt_map_get(&table->by_id, hash_id(id));
    while (worker && strcmp(worker->info.id, id) != 0) {
        worker = worker->same_hash;
    }
    return worker;
}

static bool enter_maps(struct rt_worker_table *table, struct rt_worker *worker)
{
    uint64_t hash = hash_id(worker->info.id);
    worker->same_hash = bt_map_get(&table->by_id, hash);
    if (!bt_map_put(&table->by_ref, worker->ref, worker)) {
        return false;
    }
    if (!bt_map_put(&table->by_id, hash, worker)) {
        bt_map_remove(&table->by_ref, worker->ref);
        return false;
    }
    return true;
}

static void leave_maps(struct rt_worker_table *table, struct rt_worker *worker)
{
    uint64_t hash = hash_id(worker->info.id);
    struct rt_worker *first = bt_map_get(&table->by_id, hash);
    if (first == worker && !worker->same_hash) {
        bt_map_remove(&table->by_id, hash);
    } else if (first == worker) {
        bt_map_put(&table->by_id, hash, worker->same_hash); /* replaces: needs no memory */
    } else {
        while (first->same_hash != worker) {
            first = first->same_hash;
        }
        first->same_hash = worker->same_hash;
    }
    bt_map_remove(&table->by_ref, worker->ref);
}

/* ---- the array */

static void close_holes(struct rt_worker_table *table)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < table->count; i++) {
        if (table->workers[i]) {
            table->workers[i]->place = kept;
            table->workers[kept++] = table->workers[i];
        }
    }
    table->count = kept;
}

static bool reserve_place(struct rt_worker_table *table)
{
    if (table->count < table->capacity) {
        return true;
    }
    uint32_t capacity = table->capacity ? table->capacity * 2 : 16;
    struct rt_worker **grown = realloc(table->workers, capacity * sizeof(struct rt_worker *));
    if (!grown) {
        return false;
    }
    table->workers = grown;
    table->capacity = capacity;
    return true;
}

/* The one lost for longest makes room. */
static bool evict_lost(struct rt_worker_table *table)
{
    if (!table->lost_first) {
        return false;
    }
    rt_worker_table_remove(table, table->lost_first);
    return true;
}

/* Its slots in both indices. */
static bool take_slots(struct rt_worker_table *table, struct rt_worker *worker)
{
    enum rt_role role = worker->info.role;
    if (!rt_worker_index_add(&table->willing[role], worker, &worker->slot)) {
        return false;
    }
    if (!rt_worker_index_add(&table->live[role], worker, &worker->live_slot)) {
        rt_worker_index_drop(&table->willing[role], worker->slot);
        return false;
    }
    return true;
}

static void give_slots(struct rt_worker_table *table, struct rt_worker *worker)
{
    rt_worker_index_drop(&table->willing[worker->info.role], worker->slot);
    rt_worker_index_drop(&table->live[worker->info.role], worker->live_slot);
}

static bool computes_prompts(const struct rt_worker *worker)
{
    return worker->info.role == RT_ROLE_DECODE && worker->info.local_prefill_tokens > 0;
}

/* It is not lost any more (1), or is (-1). */
static void count_live(struct rt_worker_table *table, const struct rt_worker *worker, int change)
{
    enum rt_role role = worker->info.role;
    bool wide = role == RT_ROLE_PREFILL && worker->info.group.size > 1;
    table->live_count[role] += (uint32_t)change;
    table->wide_prefills += wide ? (uint32_t)change : 0;
    table->local_ranks += computes_prompts(worker) ? (uint32_t)change : 0;
}

/* Everything that may fail. */
static bool enter(struct rt_worker_table *table, struct rt_worker *worker)
{
    if (!take_slots(table, worker)) {
        return false;
    }
    if (!enter_maps(table, worker)) {
        goto err_slots;
    }
    if (!rt_group_join(table, worker)) {
        goto err_maps;
    }
    return true;

err_maps:
    leave_maps(table, worker);
err_slots:
    give_slots(table, worker);
    return false;
}

enum bt_status rt_worker_table_add(struct rt_worker_table *table, const struct rt_worker_info *info,
                                   struct bt_error *error, struct rt_worker **ret_worker)
{
    if (table->present == RT_MAX_WORKERS && !evict_lost(table)) {
        return bt_error_set(error, BT_ERR_EXHAUSTED, "the router has its limit of %d workers",
                            RT_MAX_WORKERS);
    }
    struct rt_worker *worker = reserve_place(table) ? calloc(1, sizeof *worker) : NULL;
    if (!worker) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for worker %s", info->id);
    }
    worker->info = *info;
    worker->ref = table->next_ref;
    rt_prefill_line_init(&worker->line, prior(table, info->role));
    if (!enter(table, worker)) {
        free(worker);
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for worker %s", info->id);
    }
    table->next_ref++;
    table->known[info->role] = true;
    table->known_local |= computes_prompts(worker);
    count_live(table, worker, 1);
    worker->place = table->count;
    table->workers[table->count++] = worker;
    table->present++;
    rt_worker_relive(table, worker);
    *ret_worker = worker;
    return BT_OK;
}

void rt_worker_table_remove(struct rt_worker_table *table, struct rt_worker *worker)
{
    BT_ASSERT(worker->life.lost && !worker->first && !worker->unseen);
    table->liveness++;
    rt_group_part(table, worker);
    *(worker->lost_prev ? &worker->lost_prev->lost_next : &table->lost_first) = worker->lost_next;
    *(worker->lost_next ? &worker->lost_next->lost_prev : &table->lost_last) = worker->lost_prev;
    rt_order_remove(&table->timers, &worker->timer);
    leave_maps(table, worker);
    give_slots(table, worker);
    table->workers[worker->place] = NULL;
    table->present--;
    free(worker);
    if (table->count > 2 * table->present + HOLES_MIN) {
        close_holes(table);
    }
}

/* ---- life and load */

enum rt_worker_state rt_worker_state(const struct rt_worker *worker)
{
    const struct rt_group *group = worker->group;
    if (worker->life.lost) {
        return RT_WORKER_LOST;
    }
    if (group ? group->silent > 0 : worker->life.silent) {
        return RT_WORKER_SILENT;
    }
    if (group ? group->draining > 0 : worker->life.draining) {
        return RT_WORKER_DRAINING;
    }
    return (group ? rt_group_up(group) : worker->life.connected) ? RT_WORKER_READY
                                                                 : RT_WORKER_CONNECTING;
}

/* A rank whose group is not whole for a moment has not begun to connect. */
static bool is_news(const struct rt_worker *worker, enum rt_worker_state state)
{
    return !worker->told ||
           (state != worker->told_state &&
            (state != RT_WORKER_CONNECTING || worker->told_state == RT_WORKER_LOST));
}

static void tell_changes(const struct rt_worker_table *table, struct rt_worker *worker)
{
    const struct rt_core_options *options = table->options;
    struct rt_change change = {.worker_id = worker->info.id,
                               .role = worker->info.role,
                               .state = rt_worker_state(worker),
                               .before = worker->told ? worker->told_state : RT_WORKER_LOST,
                               .why = worker->why_lost,
                               .open = worker->health.breaker == RT_BREAKER_OPEN};
    bool open_news = change.open ? !worker->told_open
                                 : worker->told_open && worker->health.breaker == RT_BREAKER_CLOSED;
    if (is_news(worker, change.state)) {
        worker->told = true;
        worker->told_state = change.state;
        options->on_change(options->change_context, &change);
    }
    if (open_news) {
        worker->told_open = change.open;
        change.kind = RT_CHANGE_BREAKER;
        options->on_change(options->change_context, &change);
    }
}

void rt_worker_reindex(struct rt_worker_table *table, struct rt_worker *worker)
{
    if (table->options->on_change) {
        tell_changes(table, worker);
    }
    enum rt_role role = worker->info.role;
    struct rt_index_key key;
    bool willing = rt_worker_state(worker) == RT_WORKER_READY &&
                   rt_health_willing(&worker->health) && worker->isolating == 0;
    table->willing_count[role] += (uint32_t)willing - (uint32_t)worker->willing;
    if (computes_prompts(worker)) {
        table->willing_local += (uint32_t)willing - (uint32_t)worker->willing;
    }
    worker->willing = willing;
    if (!willing) {
        rt_worker_index_clear(&table->willing[role], worker->slot);
        return;
    }
    if (role == RT_ROLE_PREFILL) {
        rt_placement_prefill_key(worker, &key);
    } else {
        rt_placement_decode_key(table, worker, &key);
    }
    rt_worker_index_set(&table->willing[role], worker->slot, &key);
}

void rt_worker_relive(struct rt_worker_table *table, struct rt_worker *worker)
{
    struct rt_worker_index *live = &table->live[worker->info.role];
    struct rt_index_key key;
    table->liveness++;
    if (worker->life.lost) {
        rt_worker_index_clear(live, worker->live_slot);
    } else {
        rt_placement_size_key(worker, &key);
        rt_worker_index_set(live, worker->live_slot, &key);
    }
}

/* It is lost, or was. */
static void turn_lost(struct rt_worker_table *table, struct rt_worker *worker)
{
    if (worker->life.lost) {
        count_live(table, worker, -1);
        worker->lost_prev = table->lost_last;
        worker->lost_next = NULL;
        *(table->lost_last ? &table->lost_last->lost_next : &table->lost_first) = worker;
        table->lost_last = worker;
    } else {
        count_live(table, worker, 1);
        *(worker->lost_prev ? &worker->lost_prev->lost_next : &table->lost_first) =
            worker->lost_next;
        *(worker->lost_next ? &worker->lost_next->lost_prev : &table->lost_last) =
            worker->lost_prev;
        worker->lost_prev = worker->lost_next = NULL;
    }
    rt_worker_relive(table, worker);
}

/* Where the state of a group turns, all its ranks turn with it. */
static void reindex_group(struct rt_worker_table *table, const struct rt_group *group)
{
    for (uint32_t i = 0; i < group->size; i++) {
        if (group->ranks[i]) {
            rt_worker_reindex(table, group->ranks[i]);
        }
    }
}

void rt_worker_set_life(struct rt_worker_table *table, struct rt_worker *worker,
                        struct rt_worker_life life)
{
    struct rt_worker_life before = worker->life;
    enum rt_worker_state state = rt_worker_state(worker);
    BT_ASSERT(!life.lost || !(life.connected || life.draining || life.silent));
    worker->life = life;
    if (worker->group) {
        rt_group_follow(worker, before);
    }
    if (life.lost != before.lost) {
        turn_lost(table, worker);
    }
    if (rt_worker_state(worker) != state) {
        rt_worker_reindex(table, worker);
        if (worker->group) {
            reindex_group(table, worker->group);
        }
    }
}

void rt_worker_set_load(struct rt_worker_table *table, struct rt_worker *worker,
                        const struct rt_load *load)
{
    bool resized = worker->info.load.pages_total != load->pages_total;
    worker->info.load = *load;
    worker->load_serial++;
    worker->foreign_tokens = load->waiting_tokens > worker->backlog_tokens
                                 ? load->waiting_tokens - worker->backlog_tokens
                                 : 0;
    for (struct rt_request *request = worker->unseen, *next; request; request = next) {
        next = request->unseen.next;
        if (request->epoch != 0) {
            rt_worker_seen(worker, request);
        }
    }
    uint64_t seen_pages = worker->placed_pages - worker->unseen_pages;
    worker->foreign_pages =
        load->pages_expected > seen_pages ? load->pages_expected - seen_pages : 0;
    rt_prefill_line_follow(&worker->line, prior(table, worker->info.role));
    if (resized) {
        rt_worker_relive(table, worker);
    }
    rt_worker_reindex(table, worker);
}
