#include "router/worker_links.h"

#include <stdlib.h>
#include <string.h>

struct rt_appearance {
    uint64_t serial;
    struct rt_worker_link *link; /* NULL: it is gone, or appeared again later */
};

void rt_worker_links_init(struct rt_worker_links *links)
{
    *links = (struct rt_worker_links){0};
    bt_map_init(&links->by_ref);
    bt_map_init(&links->by_id);
    bt_map_init(&links->by_group);
}

void rt_worker_links_finish(struct rt_worker_links *links)
{
    while (links->first) {
        struct rt_worker_link *link = links->first;
        rt_worker_link_close(link);
        rt_worker_links_remove(links, link);
        rt_worker_link_destroy(link);
    }
    bt_map_finish(&links->by_ref);
    bt_map_finish(&links->by_id);
    bt_map_finish(&links->by_group);
    free(links->appearances);
}

/* ---- by name and number */

static uint64_t id_hash(const char *id)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (; *id; id++) {
        hash = (hash ^ (unsigned char)*id) * UINT64_C(0x100000001b3);
    }
    return hash;
}

bool rt_worker_links_add(struct rt_worker_links *links, struct rt_worker_link *link)
{
    uint64_t hash = id_hash(link->id);
    struct rt_worker_link *same = bt_map_get(&links->by_id, hash);
    if (!bt_map_reserve(&links->by_ref, 1) || !bt_map_put(&links->by_id, hash, link)) {
        return false;
    }
    bool ok = bt_map_put(&links->by_ref, link->ref, link);
    BT_ASSERT(ok); /* there is room */
    link->same_hash = same;
    link->next = links->first;
    if (link->next) {
        link->next->previous = link;
    }
    links->first = link;
    return true;
}

static void leave_id(struct rt_worker_links *links, struct rt_worker_link *link)
{
    uint64_t hash = id_hash(link->id);
    struct rt_worker_link *at = bt_map_get(&links->by_id, hash);
    if (at == link && link->same_hash) {
        bool ok = bt_map_put(&links->by_id, hash, link->same_hash);
        BT_ASSERT(ok); /* replaces */
    } else if (at == link) {
        bt_map_remove(&links->by_id, hash);
    } else {
        while (at->same_hash != link) {
            at = at->same_hash;
        }
        at->same_hash = link->same_hash;
    }
}

struct rt_worker_link *rt_worker_links_get(const struct rt_worker_links *links, rt_worker_ref ref)
{
    return bt_map_get(&links->by_ref, ref);
}

struct rt_worker_link *rt_worker_links_namesake(const struct rt_worker_links *links, const char *id,
                                                const struct rt_worker_link *after)
{
    struct rt_worker_link *link = after ? after->same_hash : bt_map_get(&links->by_id, id_hash(id));
    while (link && strcmp(link->id, id) != 0) {
        link = link->same_hash;
    }
    return link;
}

struct rt_worker_link *rt_worker_links_find(const struct rt_worker_links *links, const char *id,
                                            uint64_t incarnation)
{
    struct rt_worker_link *link = rt_worker_links_namesake(links, id, NULL);
    while (link && link->incarnation != incarnation) {
        link = rt_worker_links_namesake(links, id, link);
    }
    return link;
}

/* ---- groups */

static void leave_group(struct rt_worker_links *links, struct rt_worker_link *link)
{
    struct rt_worker_link *at = link->group ? bt_map_get(&links->by_group, link->group) : NULL;
    if (!at) {
        return;
    }
    if (at == link && link->same_group) {
        bool ok = bt_map_put(&links->by_group, link->group, link->same_group);
        BT_ASSERT(ok); /* replaces */
    } else if (at == link) {
        bt_map_remove(&links->by_group, link->group);
    } else {
        while (at->same_group != link) {
            at = at->same_group;
        }
        at->same_group = link->same_group;
    }
    link->group = 0;
    link->same_group = NULL;
}

bool rt_worker_links_set_group(struct rt_worker_links *links, struct rt_worker_link *link,
                               uint64_t group)
{
    if (link->group == group) {
        return true;
    }
    leave_group(links, link);
    if (group == 0) {
        return true;
    }
    struct rt_worker_link *same = bt_map_get(&links->by_group, group);
    if (!bt_map_put(&links->by_group, group, link)) {
        return false;
    }
    link->group = group;
    link->same_group = same;
    return true;
}

struct rt_worker_link *rt_worker_links_group(const struct rt_worker_links *links, uint64_t group)
{
    return bt_map_get(&links->by_group, group);
}

/* ---- trouble */

void rt_worker_links_trouble(struct rt_worker_links *links, struct rt_worker_link *link)
{
    if (link->troubled) {
        return;
    }
    link->troubled = true;
    link->previous_troubled = NULL;
    link->next_troubled = links->troubled;
    if (links->troubled) {
        links->troubled->previous_troubled = link;
    }
    links->troubled = link;
}

void rt_worker_links_well(struct rt_worker_links *links, struct rt_worker_link *link)
{
    if (!link->troubled) {
        return;
    }
    link->troubled = false;
    if (link->previous_troubled) {
        link->previous_troubled->next_troubled = link->next_troubled;
    } else {
        links->troubled = link->next_troubled;
    }
    if (link->next_troubled) {
        link->next_troubled->previous_troubled = link->previous_troubled;
    }
}

/* ---- appearances */

/* The first that appeared after `serial`; the count where there is none. */
static size_t appeared_after(const struct rt_worker_links *links, uint64_t serial)
{
    size_t low = 0, high = links->appearance_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (links->appearances[middle].serial > serial) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

static void disappear(struct rt_worker_links *links, struct rt_worker_link *link)
{
    if (link->appeared > 0) {
        links->appearances[appeared_after(links, link->appeared - 1)].link = NULL;
        links->gone++;
        link->appeared = 0;
    }
}

/* Takes out the holes where they are the most. */
static void appearances_compact(struct rt_worker_links *links)
{
    size_t count = 0;
    for (size_t i = 0; i < links->appearance_count; i++) {
        if (links->appearances[i].link) {
            links->appearances[count++] = links->appearances[i];
        }
    }
    links->appearance_count = count;
    links->gone = 0;
}

bool rt_worker_links_appear(struct rt_worker_links *links, struct rt_worker_link *link)
{
    disappear(links, link);
    if (2 * links->gone > links->appearance_count) {
        appearances_compact(links);
    }
    if (links->appearance_count == links->appearance_capacity) {
        size_t capacity = links->appearance_capacity ? 2 * links->appearance_capacity : 16;
        void *grown = realloc(links->appearances, capacity * sizeof(struct rt_appearance));
        if (!grown) {
            return false;
        }
        links->appearances = grown;
        links->appearance_capacity = capacity;
    }
    link->appeared = ++links->last_serial;
    links->appearances[links->appearance_count++] =
        (struct rt_appearance){.serial = link->appeared, .link = link};
    return true;
}

size_t rt_worker_links_announce(const struct rt_worker_links *links, struct rt_worker_link *prefill,
                                Baton__V1__KvEndpoint *ret_endpoints[RT_ANNOUNCED_AT_ONCE])
{
    size_t count = 0;
    size_t at = appeared_after(links, prefill->told);
    bool large = links->appearance_count - links->gone > RT_ANNOUNCED_MAX;
    while (at < links->appearance_count && count < RT_ANNOUNCED_AT_ONCE &&
           (!large || prefill->told_count < RT_ANNOUNCED_MAX)) {
        const struct rt_appearance *appearance = &links->appearances[at++];
        const struct rt_worker_link *rank = appearance->link;
        prefill->told = appearance->serial;
        if (rank && rank->client && !rank->broken) {
            ret_endpoints[count++] = rank->kv;
            prefill->told_count++;
        }
    }
    return count;
}

/* ---- the end of one */

void rt_worker_links_remove(struct rt_worker_links *links, struct rt_worker_link *link)
{
    bt_map_remove(&links->by_ref, link->ref);
    leave_id(links, link);
    leave_group(links, link);
    rt_worker_links_well(links, link);
    disappear(links, link);
    if (link->previous) {
        link->previous->next = link->next;
    } else {
        links->first = link->next;
    }
    if (link->next) {
        link->next->previous = link->previous;
    }
}
