/*
 * One request inside the core, and what its parts (queue, worker table, placement) keep in it.
 * Internal to the core.
 */
#ifndef BATON_ROUTER_REQUEST_H
#define BATON_ROUTER_REQUEST_H

#include "router/core.h"
#include "router/order_tree.h"
#include "router/poison.h"

/* So many workers that refused are remembered; after the last one the request rests until its hold
 * ends. */
#define RT_REFUSALS_MAX 16

/* A worker that refused or failed this request. It is passed over until its load changes or the
 * request's hold ends. */
struct rt_refusal {
    rt_worker_ref worker;
    uint64_t load_serial;
};

/* Failed attempts whose workers are remembered; those beyond count whatever becomes of them. */
#define RT_FAILURES_KEPT 8

/* Where an attempt failed. */
struct rt_failure {
    rt_worker_ref prefill, decode;
};

/* Of the tokens that a client has. */
enum rt_bits {
    RT_BITS_NONE, /* it has none */
    RT_BITS_ONE,  /* a rank alone computed the prompt: a prefill worker of one, or a decode rank */
    RT_BITS_WIDE, /* a prefill worker of several */
};

struct rt_request_link {
    struct rt_request *prev, *next;
};

struct rt_request {
    struct rt_request_spec spec; /* its list of cached prefixes is the one below */
    struct rt_cached cached[RT_CACHED_MAX];
    uint64_t serial; /* order of submission */
    enum rt_request_state state;

    uint32_t attempt;                           /* a new one with every RESERVE */
    uint32_t failures;                          /* attempts that count against max_attempts */
    struct rt_failure failed[RT_FAILURES_KEPT]; /* the first of them */
    struct rt_suspicion suspicion;
    bool isolated; /* its workers get nothing else */
    bool full;     /* preempted once: reserves for max_tokens from now on */
    bool budgeted; /* its next attempt is paid out of the retry budget */

    /* Of the current attempt. From RESERVING on both workers are chosen; `prefill` may become
     * RT_NO_WORKER until the Reserve is answered. */
    rt_worker_ref prefill, decode;
    bool local;     /* the decode rank computes the prompt; `prefill` is RT_NO_WORKER */
    bool prompting; /* local: the first of its tokens is not here yet */
    enum rt_bits bits;
    uint64_t epoch; /* 0 until the Reserve is answered */
    bool run_open;  /* the Run call is not known to have ended */
    int64_t taken_ns, dispatched_ns;
    int64_t predicted_ns;     /* from taking to the first token, as predicted when it was taken */
    uint32_t uncached_tokens; /* on the prefill worker, as far as the core knows */

    /* Accounting at the workers: worker_table.h. */
    struct rt_request_link on_worker[2]; /* [role], among the requests of that worker */
    int64_t ahead_ns;                    /* prefill: its share of the backlog */
    uint32_t backlog_tokens;             /* prefill: the same in tokens */
    uint32_t unseen_pages, placed_pages; /* decode */
    struct rt_request_link unseen;

    /* In the queue: request_queue.h. */
    struct rt_order_node turn, age;
    uint32_t level, bucket;
    int64_t due_ns;
    int64_t cost_ns; /* of its bucket, as counted in the queue */
    bool resting, aside, charged, holds_share;

    struct rt_order_node deadline;

    struct rt_refusal refusals[RT_REFUSALS_MAX];
    uint32_t refusal_count;
    int64_t hold_until_ns; /* refusals count until then */

    uint32_t *delivered; /* [delivered_count], the tokens the client has */
    uint32_t delivered_count, delivered_capacity;
};

/* Pages for the prompt and `output_tokens`, or all that it can ever need where `full`. */
uint32_t rt_request_pages(const struct rt_request *request, uint32_t output_tokens);
uint32_t rt_request_full_pages(const struct rt_request_spec *spec);
/* Tokens of the prompt that `worker` has to compute. */
uint32_t rt_request_uncached(const struct rt_request *request, rt_worker_ref worker);
/* The same where most is cached. */
uint32_t rt_request_least_uncached(const struct rt_request_spec *spec);

#endif
