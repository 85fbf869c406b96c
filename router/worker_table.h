/*
 * The workers as the core sees them: liveness, load, and what the core itself has placed on them.
 * Internal to the core.
 *
 * A request must count once, in the worker's report or in the core's own books:
 *
 * Decode. Load reports say what is in use (pages_total - pages_free). A request placed on a rank is
 * `unseen`, its pages added to the report, from the RESERVE on until the first report that arrives
 * after the Reserve's answer: reports of steps come over the connection that carried the answer, so
 * such a report was made with the pages already taken. A heartbeat comes over another connection:
 * one that was under way when the Reserve was served hides the request until the next report. One
 * that overtakes the answer counts it twice for as long. Both heal with the next report, and the
 * rank itself has the last word on admission.
 *
 * Prefill. The core counts a prompt from the RESERVE on until its first token is known or its run
 * is over; it knows this earlier than any report does. A report adds only what is not the core's:
 * foreign = max(0, waiting_tokens - what the core counted when the report came in).
 */
#ifndef BATON_ROUTER_WORKER_TABLE_H
#define BATON_ROUTER_WORKER_TABLE_H

#include "common/base/map.h"
#include "router/request.h"

/* A lost worker stays visible to operators for so long. */
#define RT_LOST_KEPT_NS (INT64_C(60) * 1000000000)

#define RT_WHY_LOST_SIZE 192

/* The ranks of one incarnation of a group, counted as their lives change: neither a heartbeat nor
 * a decision looks at more than one worker and this. */
struct rt_group {
    uint64_t incarnation;
    char name[RT_WORKER_ID_SIZE];
    enum rt_role role;
    uint32_t size;
    uint32_t members;                           /* workers of the table, lost ones too */
    uint32_t connected, silent, draining;       /* of the ranks that are not lost */
    struct rt_worker *ranks[RT_GROUP_SIZE_MAX]; /* [size], those that are not lost, or NULL */
};

struct rt_worker_life {
    bool connected, draining, silent;
    bool lost; /* then none of the others */
};

struct rt_worker {
    struct rt_worker_info info;
    rt_worker_ref ref;
    struct rt_group *group;     /* NULL: of one rank */
    struct rt_worker_life life; /* changed by rt_worker_set_life */
    int64_t last_heartbeat_ns;
    int64_t lost_ns;
    char why_lost[RT_WHY_LOST_SIZE];
    uint64_t load_serial; /* counts reports */

    uint64_t unseen_pages; /* decode */
    struct rt_request *unseen;
    uint64_t backlog_tokens; /* prefill: of this core's requests */
    uint64_t foreign_tokens; /* prefill: of others */
};

struct rt_worker_table {
    struct rt_worker **workers; /* [count], ascending ref */
    uint32_t count, capacity;
    struct bt_map groups;   /* incarnation -> struct rt_group, while it has members */
    rt_worker_ref next_ref; /* refs are never used again */
    bool known[2];          /* [role] one has registered at some time */
};

void rt_worker_table_finish(struct rt_worker_table *table); /* a zeroed table is ready for use */

struct rt_worker *rt_worker_table_get(const struct rt_worker_table *table, rt_worker_ref ref);
struct rt_worker *rt_worker_table_find(const struct rt_worker_table *table, const char *id);
/* Whether `info` may be a rank of the group it names: the errors of rt_core_worker_register.
 * `worker`: the one that says so, if the table has it. */
enum bt_status rt_worker_table_check_group(const struct rt_worker_table *table,
                                           const struct rt_worker_info *info,
                                           const struct rt_worker *worker, struct bt_error *error);
/* After that check. EXHAUSTED: RT_MAX_WORKERS, none of them lost. NO_MEMORY. `info` is copied. */
enum bt_status rt_worker_table_add(struct rt_worker_table *table, const struct rt_worker_info *info,
                                   struct bt_error *error, struct rt_worker **ret_worker);
/* Its ref names nothing from now on. No request may be counted on it. */
void rt_worker_table_remove(struct rt_worker_table *table, struct rt_worker *worker);

enum rt_worker_state rt_worker_state(const struct rt_worker *worker);
/* One that was lost may come back only where rt_worker_table_check_group allows it. */
void rt_worker_set_life(struct rt_worker *worker, struct rt_worker_life life);
void rt_worker_set_load(struct rt_worker *worker, const struct rt_load *load);
uint64_t rt_worker_projected_pages(const struct rt_worker *worker);
uint64_t rt_worker_backlog(const struct rt_worker *worker);

/* The books; undone by the functions below, any number of times. `worker` may be NULL there. */
void rt_worker_count_decode(struct rt_worker *worker, struct rt_request *request, uint32_t pages);
void rt_worker_uncount_decode(struct rt_worker *worker, struct rt_request *request);
void rt_worker_count_prefill(struct rt_worker *worker, struct rt_request *request);
void rt_worker_uncount_prefill(struct rt_worker *worker, struct rt_request *request);

#endif
