/*
 * Requests that wait for a prefill worker, and whose turn it is. Internal to the core; requests are
 * not owned.
 *
 * Three rules, one inside the other:
 *
 * Priority. Level 0 goes before level 1 and so on, strictly; whatever has waited for
 * options->promote_after_ns on one level goes up to the next (0: never).
 *
 * Fair shares. Within a level the tenant goes first that was served least: its virtual time, the
 * tokens (uncached prompt and expected output) of what was taken from its queue over its weight. A
 * tenant that had nothing waiting begins at the level's virtual time: nobody saves up. Tenants with
 * work waiting are served in proportion to their weights, but for one request each. One that has
 * its max_running requests running is passed over.
 *
 * Short prompts first, with ageing, within a tenant. Prompts are put in buckets of length, powers
 * of two of what is not cached. A request is due at
 *
 *     submitted + options->patience * (expected time of its bucket),
 *
 * and the one due first goes first; ties and equal buckets in order of submission. Whatever is
 * submitted after the due time of a request goes behind it for ever: let W be the prefill time of
 * all that waits when it is submitted or is submitted until then; the request is taken when W has
 * been taken at the latest. With patience 0 the order is that of submission.
 *
 * A request that comes back (its attempt failed, its pages were preempted) is due at once, before
 * all of its tenant's that were never taken.
 */
#ifndef BATON_ROUTER_REQUEST_QUEUE_H
#define BATON_ROUTER_REQUEST_QUEUE_H

#include "router/prefill_line.h"
#include "router/request.h"

#define RT_QUEUE_BUCKETS 26 /* the last holds all prompts beyond 2^30 tokens */

struct rt_tenant;

/* What waits of one tenant on one level. */
struct rt_flow {
    struct rt_order_tree waiting; /* by due time */
    struct rt_order_node turn;    /* among the level's flows, by virtual time */
    int64_t virtual_time;
    struct rt_tenant *tenant;
    uint32_t level;
};

struct rt_tenant {
    uint32_t index;
    struct rt_tenant_limits limits;
    uint32_t waiting, running;
    int64_t work_ns; /* of what waits */
    struct rt_flow flows[RT_PRIORITIES];
};

struct rt_level {
    struct rt_order_tree flows; /* that may go */
    struct rt_order_tree ages;  /* requests, by the time when they go up */
    int64_t virtual_time;
    int64_t work_ns[RT_QUEUE_BUCKETS]; /* of what waits */
};

struct rt_request_queue {
    const struct rt_core_options *options;
    struct rt_tenant **tenants; /* [RT_MAX_TENANTS], NULL where nothing was heard of one */
    struct rt_level levels[RT_PRIORITIES];
    struct rt_order_tree resting; /* by the end of their hold */
    struct rt_order_tree aside;   /* by order of submission */
    uint32_t count;               /* with those that rest or are aside */
    uint64_t busy_weight;         /* of the tenants that have something waiting */
};

void rt_request_queue_init(struct rt_request_queue *queue, const struct rt_core_options *options);
void rt_request_queue_finish(struct rt_request_queue *queue);

/* NULL: no memory. index < RT_MAX_TENANTS. */
struct rt_tenant *rt_request_queue_tenant(struct rt_request_queue *queue, uint32_t index);
/* NULL: never heard of. */
const struct rt_tenant *rt_request_queue_find_tenant(const struct rt_request_queue *queue,
                                                     uint32_t index);
void rt_request_queue_set_limits(struct rt_request_queue *queue, struct rt_tenant *tenant,
                                 const struct rt_tenant_limits *limits);

/* A new request, of a tenant that the queue knows. `line`: what prefill takes here. */
void rt_request_queue_submit(struct rt_request_queue *queue, struct rt_request *request,
                             struct rt_line line, int64_t now_ns);
/* One that runs already, and was never here; of a tenant that the queue knows. */
void rt_request_queue_adopt(struct rt_request_queue *queue, struct rt_request *request,
                            struct rt_line line);
/* One that was taken comes back; until `rest_until_ns` it gets no turn (0: at once). */
void rt_request_queue_return(struct rt_request_queue *queue, struct rt_request *request,
                             int64_t rest_until_ns);
/* One whose turn it is gives it to those behind it, until recalled. It is no work before others. */
void rt_request_queue_set_aside(struct rt_request_queue *queue, struct rt_request *request);
/* All that are aside have their old places again. */
void rt_request_queue_recall(struct rt_request_queue *queue);
/* Out of the queue: it runs from now on, and its tenant has had `output_tokens` and its prompt. */
void rt_request_queue_take(struct rt_request_queue *queue, struct rt_request *request,
                           uint32_t output_tokens);
/* It is over, wherever it is. */
void rt_request_queue_forget(struct rt_request_queue *queue, struct rt_request *request);

/* Whose turn it is; NULL: nobody's. Ends holds and promotes what is old. */
struct rt_request *rt_request_queue_next(struct rt_request_queue *queue, int64_t now_ns);
/* When a hold ends; BT_NEVER_NS: none. */
int64_t rt_request_queue_wakes_ns(const struct rt_request_queue *queue);

uint32_t rt_request_bucket(uint32_t tokens);
/* Prefill time of what would go before such a request if it were submitted now. */
int64_t rt_request_queue_work_before(const struct rt_request_queue *queue, uint32_t tenant,
                                     uint32_t level, uint32_t bucket);

/* ---- deadlines of all requests, waiting or running */

void rt_deadlines_insert(struct rt_order_tree *deadlines, struct rt_request *request);
struct rt_request *rt_deadlines_first(const struct rt_order_tree *deadlines); /* NULL: none */

#endif
