/*
 * All links of a service, found in every way that events ask for them without a look at all of
 * them: by the core's number, by id, by group, by order of appearance, and those that something has
 * to be done about. Zeroed: not initialised. Loop thread only.
 */
#ifndef BATON_ROUTER_WORKER_LINKS_H
#define BATON_ROUTER_WORKER_LINKS_H

#include "common/base/map.h"
#include "router/worker_link.h"

/* In one message to a prefill worker, so that it stays far below BT_RPC_MAX_MESSAGE_BYTES: an
 * endpoint may take some 130 KiB, and mostly takes half of one. The rest follows by the next
 * heartbeats. */
#define RT_ANNOUNCED_AT_ONCE 128
/* In all, where there are more. A prefill worker connects to them beforehand; of the others it
 * hears when it is to write to them. */
#define RT_ANNOUNCED_MAX 512

struct rt_appearance;

struct rt_worker_links {
    struct rt_worker_link *first; /* all */
    struct rt_worker_link *troubled;
    struct bt_map by_ref;
    struct bt_map by_id;               /* hash -> the first of those that have it */
    struct bt_map by_group;            /* incarnation -> the first of its ranks */
    struct rt_appearance *appearances; /* decode ranks, ascending serial */
    size_t appearance_count, appearance_capacity;
    size_t gone;          /* of them, holes */
    uint64_t last_serial; /* of appearances */
};

void rt_worker_links_init(struct rt_worker_links *links);
/* Destroys the links. */
void rt_worker_links_finish(struct rt_worker_links *links);

/* Its ref and id are set, and stay. False: no memory. */
bool rt_worker_links_add(struct rt_worker_links *links, struct rt_worker_link *link);
void rt_worker_links_remove(struct rt_worker_links *links, struct rt_worker_link *link);

/* NULL: none. */
struct rt_worker_link *rt_worker_links_get(const struct rt_worker_links *links, rt_worker_ref ref);
struct rt_worker_link *rt_worker_links_find(const struct rt_worker_links *links, const char *id,
                                            uint64_t incarnation);
/* Those with this id: the first after `after`, or the first of all. */
struct rt_worker_link *rt_worker_links_namesake(const struct rt_worker_links *links, const char *id,
                                                const struct rt_worker_link *after);
/* False: no memory; it is in no group. */
bool rt_worker_links_set_group(struct rt_worker_links *links, struct rt_worker_link *link,
                               uint64_t group);
/* The ranks of a group that is not 0, chained by same_group. */
struct rt_worker_link *rt_worker_links_group(const struct rt_worker_links *links, uint64_t group);

/* Something is to be closed or freed. Until it is well again; in one that is removed, any time. */
void rt_worker_links_trouble(struct rt_worker_links *links, struct rt_worker_link *link);
void rt_worker_links_well(struct rt_worker_links *links, struct rt_worker_link *link);

/* A decode rank that can be connected to: prefill workers are told, once for each call. False: no
 * memory, they are not. */
bool rt_worker_links_appear(struct rt_worker_links *links, struct rt_worker_link *link);
/* What a prefill worker is told now; valid until links change. It is taken as told. */
size_t rt_worker_links_announce(const struct rt_worker_links *links, struct rt_worker_link *prefill,
                                Baton__V1__KvEndpoint *ret_endpoints[RT_ANNOUNCED_AT_ONCE]);

#endif
