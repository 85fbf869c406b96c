/*
 * Where the time of requests went: of the last ones that ended, what the router and the workers
 * measured. The times of the router are those of its clock, and those of a worker of the worker's
 * wall clock: exact on one machine, elsewhere as good as NTP. Loop thread only.
 *
 * Memory: so many records as the store keeps, and of sampled requests details, whose sum is
 * bounded: the oldest go first.
 */
#ifndef BATON_ROUTER_TRACE_H
#define BATON_ROUTER_TRACE_H

#include "proto/router.pb-c.h"
#include "proto/worker.pb-c.h"
#include "router/core.h"
#include "router/trace_context.h"

#define RT_TRACE_CLIENT_ID_SIZE 129
#define RT_TRACE_OUTPUTS_MAX    512 /* arrivals of output that are kept */
#define RT_TRACE_DETAIL_BYTES   (64u << 20)
#define RT_TRACE_RECENT         256
#define RT_TRACE_ANSWER_MAX     1000 /* requests in one answer */

/* What only sampled requests have. */
struct rt_trace_detail {
    uint32_t output_count; /* <= RT_TRACE_OUTPUTS_MAX */
    struct rt_trace_output {
        int64_t when_ns;
        uint32_t tokens;
    } outputs[RT_TRACE_OUTPUTS_MAX];
    uint32_t layer_count;
    struct rt_trace_layer {
        uint32_t chunk, layer;
        uint64_t compute_begin_ns, compute_end_ns, push_begin_ns, push_end_ns, bytes;
    } * layers;
};

struct rt_trace_detail *rt_trace_detail_create(void);         /* NULL: no memory */
void rt_trace_detail_destroy(struct rt_trace_detail *detail); /* NULL is fine */
void rt_trace_detail_output(struct rt_trace_detail *detail, int64_t now_ns, uint32_t tokens);
/* Of the last prefill that was reported. */
void rt_trace_detail_layers(struct rt_trace_detail *detail, const Baton__V1__PrefillDone *done);

/* Times of bt_clock_now_ns; 0: it did not happen. Durations of workers in ns, and when they began
 * by their own wall clock. */
struct rt_trace_record {
    struct rt_trace_context context;
    uint64_t request;
    char client_id[RT_TRACE_CLIENT_ID_SIZE]; /* that its client knows it by */
    char prefill_worker[RT_WORKER_ID_SIZE], decode_worker[RT_WORKER_ID_SIZE];
    uint32_t prompt_tokens, completion_tokens, cached_tokens, attempts;
    uint32_t token_attempt; /* that gave token 0 */
    const char *outcome;    /* static; "running" while it does */
    int64_t arrival_ns, submitted_ns;
    int64_t first_reserve_ns, reserve_ns; /* sent: of the first, of the last attempt */
    int64_t prefill_ns;                   /* Run sent */
    int64_t first_token_ns, last_token_ns, end_ns;
    int64_t prefill_begin_unix_ns; /* 0: no PrefillDone came */
    uint64_t prefill_queue_ns, prefill_compute_ns, visible_transfer_ns;
    uint64_t kv_bytes, hidden_bytes;
    int64_t step_begin_unix_ns; /* 0: no step was told of */
    uint64_t step_wait_ns, step_ns;
    struct rt_trace_detail *detail; /* NULL: not sampled */
};

struct rt_trace_store;

struct rt_trace_store *rt_trace_store_create(uint32_t keep); /* NULL: no memory; 0: keeps nothing */
void rt_trace_store_destroy(struct rt_trace_store *store);   /* NULL is fine */

/* Copied; its detail is the store's from now on. */
void rt_trace_store_add(struct rt_trace_store *store, const struct rt_trace_record *record);
uint32_t rt_trace_store_count(const struct rt_trace_store *store);
/* The last one that was added is number 0. NULL: there are not so many. */
const struct rt_trace_record *rt_trace_store_get(const struct rt_trace_store *store, uint32_t age);

/* Of the last RT_TRACE_RECENT that were added, for what comes after a request's end. NULL: none. */
struct rt_trace_record *rt_trace_store_recent(struct rt_trace_store *store, uint64_t request);
/* What came late of one of the store's. */
void rt_trace_store_layers(struct rt_trace_store *store, struct rt_trace_record *record,
                           const Baton__V1__PrefillDone *done);

/* Whether `name` is the client's id, the router's number in hex or the trace id. */
bool rt_trace_record_is(const struct rt_trace_record *record, const char *name);

/* ---- trace_message.c */

/* malloc'd, with spans by begin; NULL: no memory. `unix_offset_ns`: wall clock minus the clock of
 * the router's times. */
Baton__V1__RequestTrace *rt_trace_message_create(const struct rt_trace_record *record,
                                                 int64_t unix_offset_ns);

#endif
