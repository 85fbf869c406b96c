/* Groups of ranks in the worker table. */
#include <stdlib.h>
#include <string.h>

#include "router/worker_table.h"

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

bool rt_group_join(struct rt_worker_table *table, struct rt_worker *worker)
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

void rt_group_part(struct rt_worker_table *table, struct rt_worker *worker)
{
    struct rt_group *group = worker->group;
    if (!group) {
        return;
    }
    BT_ASSERT(worker->life.lost);
    worker->group = NULL;
    if (--group->members == 0) {
        bt_map_remove(&table->groups, group->incarnation);
        free(group);
    }
}

/* Only rank 0 of a prefill group registers: it speaks for the others. */
bool rt_group_up(const struct rt_group *group)
{
    return group->connected == (group->role == RT_ROLE_PREFILL ? 1 : group->size);
}

void rt_group_follow(struct rt_worker *worker, struct rt_worker_life before)
{
    struct rt_group *group = worker->group;
    struct rt_worker_life life = worker->life;
    group->connected += (uint32_t)life.connected - (uint32_t)before.connected;
    group->silent += (uint32_t)life.silent - (uint32_t)before.silent;
    group->draining += (uint32_t)life.draining - (uint32_t)before.draining;
    if (life.lost != before.lost) {
        struct rt_worker **place = &group->ranks[worker->info.group.rank];
        BT_ASSERT(*place == (life.lost ? worker : NULL));
        *place = life.lost ? NULL : worker;
    }
}
