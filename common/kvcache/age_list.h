/*
 * Lists by age over things that have a number, linked through one array: a thing is in at most one
 * of the lists of an array.
 */
#ifndef BATON_COMMON_KVCACHE_AGE_LIST_H
#define BATON_COMMON_KVCACHE_AGE_LIST_H

#include <stdint.h>

#define BT_AGE_NONE UINT32_MAX

struct bt_age_link {
    uint32_t older, newer;
};

struct bt_age_list {
    uint32_t oldest, newest; /* BT_AGE_NONE: empty */
};

#define BT_AGE_LIST_EMPTY ((struct bt_age_list){BT_AGE_NONE, BT_AGE_NONE})

/* As the newest. */
static inline void bt_age_list_append(struct bt_age_list *list, struct bt_age_link *links,
                                      uint32_t item)
{
    links[item] = (struct bt_age_link){.older = list->newest, .newer = BT_AGE_NONE};
    if (list->newest == BT_AGE_NONE) {
        list->oldest = item;
    } else {
        links[list->newest].newer = item;
    }
    list->newest = item;
}

/* As the oldest. */
static inline void bt_age_list_prepend(struct bt_age_list *list, struct bt_age_link *links,
                                       uint32_t item)
{
    links[item] = (struct bt_age_link){.older = BT_AGE_NONE, .newer = list->oldest};
    if (list->oldest == BT_AGE_NONE) {
        list->newest = item;
    } else {
        links[list->oldest].older = item;
    }
    list->oldest = item;
}

static inline void bt_age_list_remove(struct bt_age_list *list, struct bt_age_link *links,
                                      uint32_t item)
{
    const struct bt_age_link link = links[item];
    if (link.older == BT_AGE_NONE) {
        list->oldest = link.newer;
    } else {
        links[link.older].newer = link.newer;
    }
    if (link.newer == BT_AGE_NONE) {
        list->newest = link.older;
    } else {
        links[link.newer].older = link.older;
    }
}

#endif
