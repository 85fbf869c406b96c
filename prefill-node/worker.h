/*
 * A prefill worker: KV pool, compute thread, pushing thread, RPC server, registration, put together
 * on one event loop. Serves baton.v1.Prefill/Run, Worker/Metrics, Worker/Drain and
 * Worker/Preflight.
 */
#ifndef BATON_PREFILL_NODE_WORKER_H
#define BATON_PREFILL_NODE_WORKER_H

#include "common/messaging/loop.h"
#include "common/model/model.h"

struct pf_worker_options {
    const char *worker_id;
    const char *listen;                     /* ZeroMQ endpoint to bind */
    const char *routers;                    /* comma separated; NULL: registers nowhere */
    const char *served_model_name;          /* for messages and metrics */
    const char *transport, *transport_host; /* see kvt_transport_create */
    bool forbid_fallback;
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
};

struct pf_worker;

/* `model` must outlive the worker. */
enum bt_status pf_worker_create(struct bt_loop *loop, const struct bt_model *model,
                                const struct pf_worker_options *options, struct bt_error *error,
                                struct pf_worker **ret_worker);
/* After pf_worker_quiet. NULL is fine. */
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

/* Looking in, for tests. */
uint32_t pf_worker_free_pages(const struct pf_worker *worker);

#endif
