/*
 * All workers and requests of the core, counted in passes of bounded length: no event of a router
 * with tens of thousands of ranks waits for a look at all of them. Pure. One thread.
 *
 * A result has the sums by role and by state, and tiles: what a map of the cluster shows. A group
 * of ranks is one tile, as is a worker of one rank; beyond RT_SURVEY_TILES of a role the others
 * share one.
 */
#ifndef BATON_ROUTER_SURVEY_H
#define BATON_ROUTER_SURVEY_H

#include "router/core.h"

#define RT_SURVEY_TILES  1024 /* of a role */
#define RT_SURVEY_STATES 5

struct rt_survey_sum {
    char name[RT_WORKER_ID_SIZE]; /* of the group or the worker; "": all others */
    uint32_t ranks;
    uint32_t states[RT_SURVEY_STATES]; /* [enum rt_worker_state] */
    uint32_t breakers_open;
    uint64_t pages_total, pages_free, pages_reserved, pages_ready, pages_quarantined;
    uint64_t pages_projected;
    uint64_t running, waiting, waiting_tokens, requests;
    uint32_t kv_ranks;     /* those that have pages and are not lost */
    double kv_sum, kv_max; /* share of their pages in use: the sum over kv_ranks, the fullest */
    int64_t ahead_ns;      /* the longest */
    int64_t heartbeat_ns;  /* the oldest of ranks that are not lost; BT_NEVER_NS: none */
};

struct rt_survey_result {
    struct rt_survey_sum roles[2];      /* [enum rt_role] */
    struct rt_survey_sum *tiles[2];     /* [tile_counts], in order of registration */
    uint32_t tile_counts[2];            /* <= RT_SURVEY_TILES + 1 */
    uint32_t requests[RT_DECODING + 1]; /* [enum rt_request_state] */
};

struct rt_survey;

struct rt_survey *rt_survey_create(void); /* NULL: no memory */
void rt_survey_destroy(struct rt_survey *survey);

/* Looks at `most` more workers and requests. True: the pass is over and its result is the last; the
 * next call begins a new one. */
bool rt_survey_go_on(struct rt_survey *survey, const struct rt_core *core, uint32_t most);
/* Of the last pass that is over; valid until the next is. Without memory for tiles they are
 * missing, the sums are not. */
const struct rt_survey_result *rt_survey_last(const struct rt_survey *survey);

/* Adds one rank. */
void rt_survey_add(struct rt_survey_sum *sum, const struct rt_worker_view *view);

#endif
