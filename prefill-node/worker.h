/*
 * A prefill worker: KV pool, compute thread, pushing thread, RPC server, registration, put together
 * on one event loop. Serves baton.v1.Prefill/Run, Worker/Metrics, Worker/Drain, Worker/Resume and
 * Worker/Preflight. What prompts leave in the pool stays for later ones that begin alike.
 *
 * In a group it is rank 0: it schedules and allocates pages for all ranks, draws the first tokens,
 * and speaks with router and decode ranks; the others (follower.h) compute what it plans, each its
 * heads and experts, and push their share of the pages (logical page mod size) from pools of their
 * own. All start, drain, stop and are lost as one worker.
 */
#ifndef BATON_PREFILL_NODE_WORKER_H
#define BATON_PREFILL_NODE_WORKER_H

#include "common/messaging/loop.h"
#include "common/model/rank.h"

struct pf_worker_options {
    const char *worker_id;
    const char *listen;                     /* ZeroMQ endpoint to bind */
    const char *advertise_host;             /* that others reach it by; NULL: as bound */
    const char *routers;                    /* comma separated; NULL: registers nowhere */
    const char *served_model_name;          /* for messages and metrics */
    const char *transport, *transport_host; /* see kvt_transport_create */
    bool forbid_fallback;
    bool kv_staging; /* through memory of the host, where the model's device has its own */
    const char *transport_devices; /* NULL: all that fit */
    const char *ready_file;        /* NULL: none */
    const char *engine_labels;     /* for metrics: what computes; NULL: not said */
    enum bt_dtype kv_dtype;
    uint32_t kv_pages;
    uint32_t chunked_prefill_size;
    uint32_t max_num_seqs;
    uint32_t max_queued;    /* Run calls at once, the computing ones included */
    uint32_t max_model_len; /* 0: the model's */
    uint32_t layerwise_threshold;
    bool checksum;
    bool prefix_caching;      /* prompts begin with the KV of earlier ones; rank 0 decides */
    struct bt_rank *rank;     /* that joined; outlives the worker. NULL: alone */
    int64_t group_timeout_ns; /* its wait_timeout_ns */
};

struct pf_worker;

/* `model` must outlive the worker. In a group it meets the other ranks: the errors of
 * pf_node_meet. */
enum bt_status pf_worker_create(struct bt_loop *loop, const struct bt_model *model,
                                const struct pf_worker_options *options, struct bt_error *error,
                                struct pf_worker **ret_worker);
/* After pf_worker_quiet; all ranks of the group end then. NULL is fine. */
void pf_worker_destroy(struct pf_worker *worker);

const char *pf_worker_endpoint(const struct pf_worker *worker);

/* Deregisters, takes nothing new, ends what is here. */
void pf_worker_stop(struct pf_worker *worker);
/* No run is left, every rank knows that its epochs are over, the routers answered goodbye. */
bool pf_worker_quiet(const struct pf_worker *worker);
/* No run is left: no write is under way, destroying is safe. */
bool pf_worker_idle(const struct pf_worker *worker);

/* A router refused this worker for good; the loop was stopped. */
bool pf_worker_refused(const struct pf_worker *worker);

/* A rank of the group is lost (*ret_error, may be NULL, says how); the loop was stopped. */
bool pf_worker_lost(const struct pf_worker *worker, struct bt_error *ret_error);

/* Looking in, for tests: those that some prompt could have. */
uint32_t pf_worker_free_pages(const struct pf_worker *worker);

#endif
