/*
 * The best worker for a request among tens of thousands, without looking at all of them. Internal
 * to the core.
 *
 * Each worker has a slot with a key: a few numbers, of each of which less is better. A complete
 * binary tree over the slots keeps the least of each number below every node. The score of a
 * request on a worker never falls when a number of its key rises, so the score of a node's numbers
 * is a bound for all workers below it, and a search leaves out whatever can't be better than what
 * it has. Among workers that are alike this looks at two nodes a level.
 *
 * Where workers differ so much that the bounds say little, a search that has found one stops after
 * RT_INDEX_VISITS nodes, with a good worker that need not be the best.
 */
#ifndef BATON_ROUTER_WORKER_INDEX_H
#define BATON_ROUTER_WORKER_INDEX_H

#include <stdbool.h>
#include <stdint.h>

#define RT_INDEX_FIELDS 5
#define RT_INDEX_VISITS 64
#define RT_NO_SLOT      UINT32_MAX

struct rt_index_key {
    double field[RT_INDEX_FIELDS];
};

/* What a search asks; `score` and `accept` must be functions of their arguments alone. */
struct rt_index_query {
    /* INFINITY: impossible. */
    double (*score)(const struct rt_index_key *key, const void *request);
    bool (*accept)(void *worker, const void *request); /* NULL: all */
    const void *request;
};

/* A zeroed one is ready for use. */
struct rt_worker_index {
    struct rt_index_key *nodes; /* [2 * capacity], 1 is the root, leaves from `capacity` on */
    void **workers;             /* [capacity], by slot */
    uint32_t *free_slots;       /* stack; above it, slots were never used */
    uint32_t capacity;          /* power of two, or 0 */
    uint32_t used, free_count;
};

void rt_worker_index_finish(struct rt_worker_index *index);

/* A slot for `worker`, without a key: no search finds it yet. False: no memory. */
bool rt_worker_index_add(struct rt_worker_index *index, void *worker, uint32_t *ret_slot);
void rt_worker_index_drop(struct rt_worker_index *index, uint32_t slot);

void rt_worker_index_set(struct rt_worker_index *index, uint32_t slot,
                         const struct rt_index_key *key);
/* No search finds it until it has a key again. */
void rt_worker_index_clear(struct rt_worker_index *index, uint32_t slot);

/* The score that no worker is better than; INFINITY: surely none is possible. */
double rt_worker_index_bound(const struct rt_worker_index *index,
                             const struct rt_index_query *query);
/* The worker with the least score, of equal ones in general that in the first slot; NULL: none. */
void *rt_worker_index_best(const struct rt_worker_index *index, const struct rt_index_query *query,
                           double *ret_score);
/* The first possible one from slot `from` on, and around the end; NULL: none. */
void *rt_worker_index_next(const struct rt_worker_index *index, const struct rt_index_query *query,
                           uint32_t from);

#endif
