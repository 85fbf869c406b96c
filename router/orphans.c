#include "router/orphans.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/map.h"

/* Of one worker. Those that were removed have request 0. */
struct report {
    size_t count;
    struct rt_orphan orphans[];
};

struct rt_orphans {
    struct bt_map reports; /* worker -> struct report */
    struct bt_map first;   /* request -> struct rt_orphan */
    size_t count;
};

struct rt_orphans *rt_orphans_create(void)
{
    struct rt_orphans *orphans = calloc(1, sizeof *orphans);
    if (orphans) {
        bt_map_init(&orphans->reports);
        bt_map_init(&orphans->first);
    }
    return orphans;
}

void rt_orphans_destroy(struct rt_orphans *orphans)
{
    if (!orphans) {
        return;
    }
    size_t cursor = 0;
    uint64_t worker;
    void *report;
    while (bt_map_next(&orphans->reports, &cursor, &worker, &report)) {
        free(report);
    }
    bt_map_finish(&orphans->reports);
    bt_map_finish(&orphans->first);
    free(orphans);
}

static bool link_orphan(struct rt_orphans *orphans, struct rt_orphan *orphan)
{
    struct rt_orphan *first = bt_map_get(&orphans->first, orphan->request);
    if (!bt_map_put(&orphans->first, orphan->request, orphan)) {
        return false;
    }
    orphan->same_next = first;
    orphan->same_prev = NULL;
    if (first) {
        first->same_prev = orphan;
    }
    orphans->count++;
    return true;
}

static void unlink_orphan(struct rt_orphans *orphans, struct rt_orphan *orphan)
{
    if (orphan->same_next) {
        orphan->same_next->same_prev = orphan->same_prev;
    }
    if (orphan->same_prev) {
        orphan->same_prev->same_next = orphan->same_next;
    } else if (orphan->same_next) {
        bt_map_put(&orphans->first, orphan->request, orphan->same_next); /* replaces: has room */
    } else {
        bt_map_remove(&orphans->first, orphan->request);
    }
    orphan->request = 0;
    orphans->count--;
}

void rt_orphans_forget(struct rt_orphans *orphans, rt_worker_ref worker)
{
    struct report *report = bt_map_remove(&orphans->reports, worker);
    for (size_t i = 0; report && i < report->count; i++) {
        if (report->orphans[i].request != 0) {
            unlink_orphan(orphans, &report->orphans[i]);
        }
    }
    free(report);
}

static bool whole(const Baton__V1__Orphan *orphan)
{
    return orphan->request_id != 0 && orphan->epoch != 0 &&
           orphan->resume_key.len == RT_DIGEST_BYTES;
}

void rt_orphans_hear(struct rt_orphans *orphans, rt_worker_ref worker,
                     Baton__V1__Orphan *const *list, size_t count)
{
    rt_orphans_forget(orphans, worker);
    size_t room = RT_ORPHANS_MAX - orphans->count;
    count = count < RT_ORPHANS_A_WORKER ? count : RT_ORPHANS_A_WORKER;
    count = count < room ? count : room;
    if (count == 0) {
        return;
    }
    struct report *report = calloc(1, sizeof *report + count * sizeof *report->orphans);
    if (!report || !bt_map_put(&orphans->reports, worker, report)) {
        free(report);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        struct rt_orphan *orphan = &report->orphans[report->count];
        if (!whole(list[i])) {
            continue;
        }
        *orphan = (struct rt_orphan){
            .request = list[i]->request_id, .epoch = list[i]->epoch, .worker = worker};
        memcpy(orphan->key.bytes, list[i]->resume_key.data, RT_DIGEST_BYTES);
        report->count += link_orphan(orphans, orphan);
    }
}

const struct rt_orphan *rt_orphans_find(const struct rt_orphans *orphans, uint64_t request)
{
    return bt_map_get(&orphans->first, request);
}

void rt_orphans_remove(struct rt_orphans *orphans, const struct rt_orphan *orphan)
{
    unlink_orphan(orphans, (struct rt_orphan *)orphan);
}

size_t rt_orphans_count(const struct rt_orphans *orphans)
{
    return orphans->count;
}
