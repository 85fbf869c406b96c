/*
 * A decode rank: KV pool that prefill workers write into, step thread, RPC server, registration,
 * put together on one event loop. Serves baton.v1.Decode, Group/Wake, Worker/Metrics, Worker/Drain,
 * Worker/Resume and Worker/Preflight.
 *
 * A decode worker is one rank, or a group of them, a process each: attention of a request is its
 * rank's own, experts are shared out over all (DP + EP). Each rank registers by itself, with the
 * group that it is of, has its own pool, and gets requests of its own; but they live as one: all
 * drain when one is told to, all stop in order when one is, and none outlives another that is lost.
 */
#ifndef BATON_DECODE_NODE_WORKER_H
#define BATON_DECODE_NODE_WORKER_H

#include "common/messaging/loop.h"
#include "common/model/model.h"
#include "common/model/rank.h"

struct dc_worker_options {
    const char *worker_id;
    const char *listen;                     /* ZeroMQ endpoint to bind */
    const char *advertise_host;             /* that others reach it by; NULL: as bound */
    const char *routers;                    /* comma separated; NULL: registers nowhere */
    const char *served_model_name;          /* for messages and metrics */
    const char *transport, *transport_host; /* see kvt_transport_create */
    bool forbid_fallback;
    const char *transport_devices; /* NULL: all that fit */
    bool kv_staging;        /* through memory of the host, where the model's device has its own */
    const char *ready_file; /* NULL: none */
    const char *engine_labels; /* for metrics: what computes; NULL: not said */
    enum bt_dtype kv_dtype;
    uint32_t kv_pages;
    uint32_t max_num_seqs; /* in one step */
    uint32_t max_reserved; /* requests at once, the running ones included */
    uint32_t expected_output_tokens;
    uint32_t max_model_len;        /* 0: the model's */
    uint32_t local_prefill_tokens; /* of a prompt that it computes itself, at most; 0: none */
    uint32_t local_prefill_chunk;  /* rows of these between two steps */
    uint32_t lease_ms;
    int64_t router_grace_ns; /* how long requests wait for another router; 0: not at all */
    bool checksum;           /* take no handoff without one */
    /* Outlives the worker. Its max_rows is dc_engine_max_rows. NULL: alone, and nothing is counted.
     */
    struct bt_rank *rank;
    int64_t heartbeat_ns; /* of a group that sleeps, see stepper.h; 0: DC_HEARTBEAT_NS */
};

struct dc_worker;

/* `model` must outlive the worker. In a group waits for the other ranks, and fails, as
 * bt_rank_start does. */
enum bt_status dc_worker_create(struct bt_loop *loop, struct bt_model *model,
                                const struct dc_worker_options *options, struct bt_error *error,
                                struct dc_worker **ret_worker);
void dc_worker_destroy(struct dc_worker *worker); /* NULL is fine */

const char *dc_worker_endpoint(const struct dc_worker *worker);

/* Deregisters, takes nothing new, gives back what is here; in a group, once all ranks have stopped
 * stepping. What was running comes back PREEMPTED, after the goodbye where routers answer that:
 * they run it elsewhere. */
void dc_worker_stop(struct dc_worker *worker);
/* No request is left, the routers answered goodbye. */
bool dc_worker_quiet(const struct dc_worker *worker);

/* The group is over, as *error says; the loop was stopped. What is left to do is dc_worker_stop,
 * until quiet: requests do not end here any more. */
bool dc_worker_failed(const struct dc_worker *worker, struct bt_error *error);

/* A router refused this worker for good; the loop was stopped. */
bool dc_worker_refused(const struct dc_worker *worker);

/* Looking in, for tests. */
uint32_t dc_worker_free_pages(const struct dc_worker *worker);
uint32_t dc_worker_requests(const struct dc_worker *worker);
uint32_t dc_worker_orphans(const struct dc_worker *worker); /* that can be adopted */

#endif
