#include "router/worker_table.h"

#include <stdlib.h>
#include <string.h>

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
    *table = (struct rt_worker_table){0};
}

static int compare_ref(const void *key, const void *element)
{
    rt_worker_ref ref = *(const rt_worker_ref *)key;
    const struct rt_worker *worker = *(struct rt_worker *const *)element;
    return (ref > worker->ref) - (ref < worker->ref);
}

struct rt_worker *rt_worker_table_get(const struct rt_worker_table *table, rt_worker_ref ref)
{
    if (table->count == 0) {
        return NULL;
    }
    struct rt_worker **found =
        bsearch(&ref, table->workers, table->count, sizeof(struct rt_worker *), compare_ref);
    return found ? *found : NULL;
}

struct rt_worker *rt_worker_table_find(const struct rt_worker_table *table, const char *id)
{
    for (uint32_t i = 0; i < table->count; i++) {
        if (strcmp(table->workers[i]->info.id, id) == 0) {
            return table->workers[i];
        }
    }
    return NULL;
}

/* ---- groups */

enum bt_status rt_worker_table_check_group(const struct rt_worker_table *table,
                                           const struct rt_worker_info *info,
                                           const struct rt_worker *worker, struct bt_error *error)
{
    const struct rt_group_member *member = &info->group;
    const struct rt_group *group = bt_map_get(&table->groups, member->incarnation);
    if (member->incarnation == 0 || !group) {
        return BT_OK;
    }
    if (group->size != member->size) {
        return bt_error_set(error, BT_ERR_MISMATCH, "group.size: %u, and group %s has %u ranks",
                            member->size, group->name, group->size);
    }
    if (strcmp(group->name, member->name) != 0) {
        return bt_error_set(error, BT_ERR_MISMATCH, "group.name: %s, and the group is %s",
                            member->name, group->name);
    }
    if (group->role != info->role) {
        return bt_error_set(error, BT_ERR_MISMATCH, "role: group %s has another", group->name);
    }
    const struct rt_worker *holder = group->ranks[member->rank];
    if (holder && holder != worker) {
        return bt_error_set(error, BT_ERR_ALREADY_EXISTS,
                            "group.rank: rank %u of group %s is %s, which is alive", member->rank,
                            group->name, holder->info.id);
    }
    return BT_OK;
}

/* The worker is live. False: no memory. */
static bool group_join(struct rt_worker_table *table, struct rt_worker *worker)
{
    const struct rt_group_member *member = &worker->info.group;
    if (member->incarnation == 0) {
        return true;
    }
    BT_ASSERT(member->size <= RT_GROUP_SIZE_MAX && member->rank < member->size);
    struct rt_group *group = bt_map_get(&table->groups, member->incarnation);
    if (!group) {
        group = calloc(1, sizeof *group);
        if (!group || !bt_map_put(&table->groups, member->incarnation, group)) {
            free(group);
            return false;
        }
        group->incarnation = member->incarnation;
        memcpy(group->name, member->name, sizeof group->name);
        group->role = worker->info.role;
        group->size = member->size;
    }
    BT_ASSERT(!group->ranks[member->rank]);
    group->members++;
    group->ranks[member->rank] = worker;
    worker->group = group;
    return true;
}

static void group_part(struct rt_worker_table *table, struct rt_worker *worker)
{
    struct rt_group *group = worker->group;
    if (!group) {
        return;
    }
    rt_worker_set_life(worker, (struct rt_worker_life){.lost = true});
    worker->group = NULL;
    if (--group->members == 0) {
        bt_map_remove(&table->groups, group->incarnation);
        free(group);
    }
}

/* Only rank 0 of a prefill group registers: it speaks for the others. */
static bool group_up(const struct rt_group *group)
{
    return group->connected == (group->role == RT_ROLE_PREFILL ? 1 : group->size);
}

/* ---- the table */

/* The one lost for longest makes room. */
static bool evict_lost(struct rt_worker_table *table)
{
    struct rt_worker *oldest = NULL;
    for (uint32_t i = 0; i < table->count; i++) {
        struct rt_worker *worker = table->workers[i];
        if (worker->life.lost && (!oldest || worker->lost_ns < oldest->lost_ns)) {
            oldest = worker;
        }
    }
    if (oldest) {
        rt_worker_table_remove(table, oldest);
    }
    return oldest != NULL;
}

static bool reserve_slot(struct rt_worker_table *table)
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

enum bt_status rt_worker_table_add(struct rt_worker_table *table, const struct rt_worker_info *info,
                                   struct bt_error *error, struct rt_worker **ret_worker)
{
    if (table->count == RT_MAX_WORKERS && !evict_lost(table)) {
        return bt_error_set(error, BT_ERR_EXHAUSTED, "the router has its limit of %d workers",
                            RT_MAX_WORKERS);
    }
    struct rt_worker *worker = reserve_slot(table) ? calloc(1, sizeof *worker) : NULL;
    if (!worker) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for worker %s", info->id);
    }
    worker->info = *info;
    if (!group_join(table, worker)) {
        free(worker);
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for worker %s", info->id);
    }
    worker->ref = table->next_ref++;
    table->known[info->role] = true;
    table->workers[table->count++] = worker;
    *ret_worker = worker;
    return BT_OK;
}

void rt_worker_table_remove(struct rt_worker_table *table, struct rt_worker *worker)
{
    BT_ASSERT(!worker->unseen && worker->backlog_tokens == 0);
    uint32_t i = 0;
    while (table->workers[i] != worker) {
        i++;
    }
    group_part(table, worker);
    table->count--;
    memmove(&table->workers[i], &table->workers[i + 1],
            (table->count - i) * sizeof(struct rt_worker *));
    free(worker);
}

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
    return (group ? group_up(group) : worker->life.connected) ? RT_WORKER_READY
                                                              : RT_WORKER_CONNECTING;
}

void rt_worker_set_life(struct rt_worker *worker, struct rt_worker_life life)
{
    struct rt_worker_life before = worker->life;
    struct rt_group *group = worker->group;
    BT_ASSERT(!life.lost || !(life.connected || life.draining || life.silent));
    worker->life = life;
    if (!group) {
        return;
    }
    group->connected += (uint32_t)life.connected - (uint32_t)before.connected;
    group->silent += (uint32_t)life.silent - (uint32_t)before.silent;
    group->draining += (uint32_t)life.draining - (uint32_t)before.draining;
    if (life.lost != before.lost) {
        struct rt_worker **place = &group->ranks[worker->info.group.rank];
        BT_ASSERT(*place == (life.lost ? worker : NULL));
        *place = life.lost ? NULL : worker;
    }
}

void rt_worker_set_load(struct rt_worker *worker, const struct rt_load *load)
{
    worker->info.load = *load;
    worker->load_serial++;
    worker->foreign_tokens = load->waiting_tokens > worker->backlog_tokens
                                 ? load->waiting_tokens - worker->backlog_tokens
                                 : 0;
    for (struct rt_request *request = worker->unseen, *next; request; request = next) {
        next = request->unseen_next;
        if (request->epoch != 0) {
            rt_worker_uncount_decode(worker, request);
        }
    }
}

uint64_t rt_worker_projected_pages(const struct rt_worker *worker)
{
    const struct rt_load *load = &worker->info.load;
    uint32_t free_pages =
        load->pages_free < load->pages_total ? load->pages_free : load->pages_total;
    return load->pages_total - free_pages + worker->unseen_pages;
}

uint64_t rt_worker_backlog(const struct rt_worker *worker)
{
    return worker->backlog_tokens + worker->foreign_tokens;
}

void rt_worker_count_decode(struct rt_worker *worker, struct rt_request *request, uint32_t pages)
{
    BT_ASSERT(request->unseen_pages == 0 && pages > 0);
    request->unseen_pages = pages;
    request->unseen_prev = NULL;
    request->unseen_next = worker->unseen;
    if (worker->unseen) {
        worker->unseen->unseen_prev = request;
    }
    worker->unseen = request;
    worker->unseen_pages += pages;
}

void rt_worker_uncount_decode(struct rt_worker *worker, struct rt_request *request)
{
    if (!worker || request->unseen_pages == 0) {
        return;
    }
    worker->unseen_pages -= request->unseen_pages;
    request->unseen_pages = 0;
    if (request->unseen_prev) {
        request->unseen_prev->unseen_next = request->unseen_next;
    } else {
        worker->unseen = request->unseen_next;
    }
    if (request->unseen_next) {
        request->unseen_next->unseen_prev = request->unseen_prev;
    }
    request->unseen_prev = request->unseen_next = NULL;
}

void rt_worker_count_prefill(struct rt_worker *worker, struct rt_request *request)
{
    BT_ASSERT(request->backlog_tokens == 0);
    request->backlog_tokens = request->spec.prompt_tokens;
    worker->backlog_tokens += request->backlog_tokens;
}

void rt_worker_uncount_prefill(struct rt_worker *worker, struct rt_request *request)
{
    if (worker) {
        worker->backlog_tokens -= request->backlog_tokens;
        request->backlog_tokens = 0;
    }
}
