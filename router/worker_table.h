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
 * A rank is projected to need that, or all that the requests on it are expected to need when they
 * are done, whichever is more: the core's own (`placed`), which it knows earlier than any report
 * does, and those of other routers. A report says what all of them are expected to need
 * (pages_expected, where each Reserve told its share), so that it adds what is not the core's:
 * foreign = max(0, pages_expected - what the core had placed, and the report had seen, when it came
 * in). What outgrew its expectation is foreign, too, until the next report. A report that comes
 * with the ends of requests has them no more: the ends count before the report.
 *
 * Prefill. The core counts a prompt, in predicted time, from the RESERVE on until its first token
 * is known or its run is over; it knows this earlier than any report does. A report adds only what
 * is not the core's: foreign = max(0, waiting_tokens - what the core counted when the report came
 * in). The work ahead of a new prompt shrinks as time goes, down to what can't have been begun: all
 * but the oldest prompt.
 *
 * Whatever changes a worker here also moves it in the index that placement searches.
 */
#ifndef BATON_ROUTER_WORKER_TABLE_H
#define BATON_ROUTER_WORKER_TABLE_H

#include "common/base/map.h"
#include "router/prefill_line.h"
#include "router/request.h"
#include "router/worker_health.h"
#include "router/worker_index.h"

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
    uint32_t place;              /* in the table's array */
    uint32_t slot, live_slot;    /* in the indices of its role */
    struct rt_worker *same_hash; /* the next whose id has the same hash */
    struct rt_worker *lost_prev, *lost_next;
    struct rt_order_node timer;

    struct rt_group *group;     /* NULL: of one rank */
    struct rt_worker_life life; /* changed by rt_worker_set_life */
    struct rt_worker_health health;
    bool told;                       /* of: on_change */
    enum rt_worker_state told_state; /* good if told */
    bool told_open;
    int64_t last_heartbeat_ns;
    int64_t lost_ns;
    bool blameless; /* lost through no doing of its own */
    bool willing;   /* in the index of those that may get requests */
    char why_lost[RT_WHY_LOST_SIZE];
    uint64_t load_serial; /* counts reports */

    struct rt_request *first, *last; /* the requests that are on it, oldest first */
    uint32_t request_count;
    uint32_t isolating; /* of them, those that nothing else may join */

    uint64_t unseen_pages, unseen_tokens; /* decode */
    uint64_t unseen_prompts;              /* the same of prompts that it computes itself; tokens */
    uint32_t unseen_count;
    struct rt_request *unseen;
    uint64_t placed_pages;
    uint64_t foreign_pages; /* decode: that others' requests are expected to need in the end */

    struct rt_prefill_line line;  /* decode: of prompts that it computes itself */
    int64_t backlog_ns;           /* prefill: of this core's requests */
    uint64_t backlog_tokens;      /* the same in tokens */
    uint64_t foreign_tokens;      /* prefill: of others */
    int64_t done_ns;              /* when all of it is expected to be done */
    struct rt_request *computing; /* the oldest of the backlog */
};

struct rt_worker_table {
    const struct rt_core_options *options;
    struct rt_worker **workers; /* [count], ascending ref; NULL where one was removed */
    uint32_t count, capacity;
    uint32_t present;                  /* without the holes */
    struct bt_map by_ref, by_id;       /* by_id: hash of the id -> the first that has it */
    struct bt_map groups;              /* incarnation -> struct rt_group, while it has members */
    struct rt_worker_index willing[2]; /* [role] that may get requests, by what placement asks */
    struct rt_worker_index live[2];    /* [role] that are not lost, by what they can hold */
    uint32_t live_count[2], willing_count[2];
    struct rt_worker *lost_first, *lost_last; /* by time of loss */
    struct rt_order_tree timers;              /* when to look at a worker again */
    rt_worker_ref next_ref;                   /* refs are never used again */
    uint64_t liveness;                        /* changes of `live`, and removals */
    bool known[2];                            /* [role] one has registered at some time */
    struct rt_prefill_line line;              /* of all prefill workers */
    struct rt_prefill_line local_line;        /* of all decode ranks */
    uint32_t wide_prefills;                   /* prefill workers of several ranks, not lost */
    uint32_t local_ranks;                     /* decode ranks that compute prompts, not lost */
    uint32_t willing_local;                   /* the same that may get requests */
    bool known_local;                         /* one has registered at some time */
    int64_t backlog_ns;                       /* of all prefill workers */
    double mean_pages;                        /* sliding, of what requests were placed with */
};

void rt_worker_table_init(struct rt_worker_table *table, const struct rt_core_options *options);
void rt_worker_table_finish(struct rt_worker_table *table);

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
/* Its ref names nothing from now on. No request may be on it. */
void rt_worker_table_remove(struct rt_worker_table *table, struct rt_worker *worker);

enum rt_worker_state rt_worker_state(const struct rt_worker *worker);
/* One that was lost may come back only where rt_worker_table_check_group allows it. */
void rt_worker_set_life(struct rt_worker_table *table, struct rt_worker *worker,
                        struct rt_worker_life life);
void rt_worker_set_load(struct rt_worker_table *table, struct rt_worker *worker,
                        const struct rt_load *load);
/* After a change of its health or line. */
void rt_worker_reindex(struct rt_worker_table *table, struct rt_worker *worker);
/* After a change of what it can hold, or of lost. */
void rt_worker_relive(struct rt_worker_table *table, struct rt_worker *worker);

/* ---- worker_group.c */

/* The worker is live. False: no memory. */
bool rt_group_join(struct rt_worker_table *table, struct rt_worker *worker);
/* The worker is lost. */
void rt_group_part(struct rt_worker_table *table, struct rt_worker *worker);
bool rt_group_up(const struct rt_group *group);
/* The counts follow the life of one of its ranks. */
void rt_group_follow(struct rt_worker *worker, struct rt_worker_life before);

/* ---- worker_books.c */

uint64_t rt_worker_used_pages(const struct rt_worker *worker);      /* reported, and in transit */
uint64_t rt_worker_projected_pages(const struct rt_worker *worker); /* and expected to grow to */
uint32_t rt_worker_rows(const struct rt_worker *worker);            /* sequences, and in transit */
uint64_t rt_worker_kv_tokens(const struct rt_worker *worker);

/* From RESERVE on, until rt_worker_leave: the request is on both, and counts. */
void rt_worker_place_prefill(struct rt_worker_table *table, struct rt_worker *worker,
                             struct rt_request *request, int64_t now_ns);
void rt_worker_place_decode(struct rt_worker_table *table, struct rt_worker *worker,
                            struct rt_request *request, uint32_t pages);
/* Takes it off, with whatever it counts there; its refs are cleared. None there is fine. */
void rt_worker_leave_prefill(struct rt_worker_table *table, struct rt_request *request,
                             int64_t now_ns);
void rt_worker_leave_decode(struct rt_worker_table *table, struct rt_request *request);
/* Its prompt is computed, though its run may go on. Any number of times. */
void rt_worker_prompt_done(struct rt_worker_table *table, struct rt_request *request,
                           int64_t now_ns);
/* What it reports of a prefill; a decode rank, of one of its own. */
void rt_worker_learn_line(struct rt_worker_table *table, struct rt_worker *worker, uint32_t tokens,
                          int64_t compute_ns);
/* Others may join it on its workers again. Any number of times. */
void rt_worker_end_isolation(struct rt_worker_table *table, struct rt_request *request);
/* The rank has taken so many pages for it, if that is more than was thought. */
void rt_worker_resize(struct rt_worker_table *table, struct rt_request *request, uint32_t pages);
/* The rank's report has its pages now. */
void rt_worker_seen(struct rt_worker *worker, struct rt_request *request);
/* The rank's last report has them already, as those of another router's request. */
void rt_worker_adopted(struct rt_worker *worker, struct rt_request *request);

#endif
