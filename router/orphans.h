/*
 * What decode ranks go on with though the router that sent it is gone, as they say in every
 * Register and Heartbeat: where a request that comes again can be taken over. Bounded; loop thread
 * only.
 */
#ifndef BATON_ROUTER_ORPHANS_H
#define BATON_ROUTER_ORPHANS_H

#include "proto/registry.pb-c.h"
#include "router/core.h"
#include "router/digest.h"

#define RT_ORPHANS_A_WORKER 4096  /* of one report */
#define RT_ORPHANS_MAX      65536 /* of all; what is beyond is not known here */

struct rt_orphan {
    uint64_t request, epoch;
    rt_worker_ref worker;
    struct rt_digest key;
    struct rt_orphan *same_next, *same_prev; /* of the same request, elsewhere */
};

struct rt_orphans;

struct rt_orphans *rt_orphans_create(void); /* NULL: no memory */
void rt_orphans_destroy(struct rt_orphans *orphans);

/* All that there are at this worker now; in place of what was heard of it before. What is not whole
 * is left out, and all where there is no memory. */
void rt_orphans_hear(struct rt_orphans *orphans, rt_worker_ref worker,
                     Baton__V1__Orphan *const *list, size_t count);
void rt_orphans_forget(struct rt_orphans *orphans, rt_worker_ref worker);

/* The first of those with this id, NULL: there is none; follow same_next. Valid until the next call
 * that changes something. */
const struct rt_orphan *rt_orphans_find(const struct rt_orphans *orphans, uint64_t request);
/* It is nobody's orphan any more; the worker's next report has the last word. */
void rt_orphans_remove(struct rt_orphans *orphans, const struct rt_orphan *orphan);
size_t rt_orphans_count(const struct rt_orphans *orphans);

#endif
