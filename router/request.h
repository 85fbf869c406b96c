/*
 * One request inside the core, and what its parts (queue, worker table, placement) keep in it.
 * Internal to the core.
 */
#ifndef BATON_ROUTER_REQUEST_H
#define BATON_ROUTER_REQUEST_H

#include "router/core.h"

/* A worker that refused or failed this request. It is passed over until its load changes or the
 * request's hold ends. */
struct rt_refusal {
    rt_worker_ref worker;
    uint64_t load_serial;
};

struct rt_request {
    struct rt_request_spec spec;
    uint64_t serial; /* order of submission; the queue's order */
    enum rt_request_state state;

    uint32_t attempt;  /* a new one with every RESERVE */
    uint32_t failures; /* attempts that count against max_attempts */
    bool full;         /* preempted once: reserves for max_tokens from now on */

    /* Of the current attempt. From RESERVING on both workers are chosen; `prefill` may become
     * RT_NO_WORKER until the Reserve is answered. */
    rt_worker_ref prefill, decode;
    uint64_t epoch; /* 0 until the Reserve is answered */
    bool run_open;  /* the Run call is not known to have ended */
    int64_t dispatched_ns;

    /* Accounting at the workers: worker_table.h. */
    uint32_t backlog_tokens;
    uint32_t unseen_pages;
    struct rt_request *unseen_prev, *unseen_next;

    struct rt_request *queue_prev, *queue_next;
    size_t heap_index; /* in the deadline heap; SIZE_MAX: not in it */

    struct rt_refusal *refusals;
    uint32_t refusal_count, refusal_capacity;
    int64_t hold_until_ns; /* refusals count until then */

    uint32_t *delivered; /* [delivered_count], the tokens the client has */
    uint32_t delivered_count, delivered_capacity;
};

/* Pages the request is expected to need on a decode rank, or all it can ever need. */
uint32_t rt_request_pages(const struct rt_request *request, uint32_t expected_output_tokens);
uint32_t rt_request_full_pages(const struct rt_request_spec *spec);

#endif
