/*
 * What every rank of a prefill worker has: who it is, KV pool and pushing thread, the decode ranks
 * it writes to, metrics, an RPC server. Control thread only.
 */
#ifndef BATON_PREFILL_NODE_NODE_H
#define BATON_PREFILL_NODE_NODE_H

#include "common/messaging/rpc.h"
#include "common/model/rank.h"
#include "kvtransfer/staging.h"
#include "prefill-node/group.h"
#include "prefill-node/metrics.h"
#include "prefill-node/peer.h"
#include "prefill-node/worker.h"
#include "proto/registry.pb-c.h"

struct pf_node {
    struct bt_loop *loop;
    const struct bt_model *model;
    struct pf_worker_options options; /* max_model_len: what really fits */
    uint32_t rank, size;
    struct bt_kv_layout layout;
    uint64_t incarnation; /* of all ranks */
    struct bt_process_id process;
    struct bt_fingerprint fingerprint;
    struct pf_metrics metrics;
    struct kvt_source *source;
    struct kvt_staging *staging; /* NULL: what is computed is where it is pushed from */
    struct pf_peers *peers;
    struct bt_rpc_server *server;

    Baton__V1__RegisterRequest identity;
    Baton__V1__LayoutFingerprint identity_fingerprint;
    Baton__V1__ProcessId identity_process;
    Baton__V1__GroupMember identity_group;
};

/* All but the server; `changed` as in struct pf_peers_options. */
enum bt_status pf_node_init(struct pf_node *node, struct bt_loop *loop,
                            const struct bt_model *model, const struct pf_worker_options *options,
                            void (*changed)(void *context), void *context, struct bt_error *error);
/* Between ranks: who is silent for the group's timeout is lost, and not before, as the ranks'
 * agreements have it, too. */
int64_t pf_node_keepalive_ms(const struct pf_node *node);
enum bt_status pf_node_serve(struct pf_node *node, const struct bt_rpc_method *methods,
                             void *context, struct bt_error *error);
/* After serve, before anything is computed: ret_endpoints [size] of all ranks' servers. MISMATCH
 * names the flag that is not the same on all ranks. */
enum bt_status pf_node_meet(struct pf_node *node, char (*ret_endpoints)[PF_ENDPOINT_SIZE],
                            struct bt_error *error);
/* Ends the calls that are open; in the end there may be no push. */
void pf_node_close(struct pf_node *node);
void pf_node_finish(struct pf_node *node); /* after close; zeroed is fine */

/* [layer][page][token][dim], that the model computes in. */
void *pf_node_pool(const struct pf_node *node);
const char *pf_node_endpoint(const struct pf_node *node);
void pf_node_write_ready_file(const struct pf_node *node);

/* Worker/Metrics and Worker/Preflight. */
void pf_node_answer_metrics(struct pf_node *node, struct bt_rpc_call *call);
void pf_node_answer_preflight(const struct pf_node *node, struct bt_rpc_call *call,
                              const Baton__V1__PreflightRequest *request, const char *not_ready);

#endif
