/*
 * A decode rank: KV pool that prefill workers write into, step thread, RPC server, registration,
 * put together on one event loop. Serves baton.v1.Decode, Worker/Metrics, Worker/Drain and
 * Worker/Preflight.
 */
#ifndef BATON_DECODE_NODE_WORKER_H
#define BATON_DECODE_NODE_WORKER_H

#include "common/messaging/loop.h"
#include "common/model/model.h"

struct dc_worker_options {
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
    uint32_t max_num_seqs; /* in one step */
    uint32_t max_reserved; /* requests at once, the running ones included */
    uint32_t expected_output_tokens;
    uint32_t max_model_len; /* 0: the model's */
    uint32_t lease_ms;
    bool checksum; /* take no handoff without one */
};

struct dc_worker;

/* `model` must outlive the worker. */
enum bt_status dc_worker_create(struct bt_loop *loop, const struct bt_model *model,
                                const struct dc_worker_options *options, struct bt_error *error,
                                struct dc_worker **ret_worker);
void dc_worker_destroy(struct dc_worker *worker); /* NULL is fine */

const char *dc_worker_endpoint(const struct dc_worker *worker);

/* Deregisters, takes nothing new, cancels what is here. */
void dc_worker_stop(struct dc_worker *worker);
/* No request is left, the routers answered goodbye. */
bool dc_worker_quiet(const struct dc_worker *worker);

/* A router refused this worker for good; the loop was stopped. */
bool dc_worker_refused(const struct dc_worker *worker);

/* Looking in, for tests. */
uint32_t dc_worker_free_pages(const struct dc_worker *worker);
uint32_t dc_worker_requests(const struct dc_worker *worker);

#endif
