/*
 * Shared by rdma.c (the transport, its endpoints), rdma_peer.c (source side) and rdma_source.c
 * (target side).
 *
 * A source opens an endpoint to the target's worker address and says hello with its own address and
 * the target's token. The target opens an endpoint back, which is the other end of the same
 * connection, and answers: so it can cut the source off by closing it. No other messages exist;
 * writes are puts by the device.
 */
#ifndef BATON_KVTRANSFER_UCX_RDMA_H
#define BATON_KVTRANSFER_UCX_RDMA_H

#include "kvtransfer/ucx/context.h"

#define KVT_RDMA_OPS         2048 /* writes and flushes out at once */
#define KVT_RDMA_SOURCES_MAX 1024
#define KVT_RDMA_DESTROY_MS  500 /* longest wait for endpoints to close at the end */
#define KVT_RDMA_TOKEN_BYTES 16
#define KVT_RDMA_HELLO_MAX   4096 /* of a source's worker address */

enum kvt_rdma_message { KVT_RDMA_HELLO = 1, KVT_RDMA_ACK };

/* Header of both; the hello's payload is a KVT_BLOB_RDMA_HELLO. */
struct kvt_rdma_hello {
    uint64_t magic;             /* the message's number */
    uint64_t cookie;            /* of the source's peer, sent back */
    uint64_t incarnation, link; /* of kvt_origin */
    uint32_t line, zero;
    unsigned char token[KVT_RDMA_TOKEN_BYTES];
};

/* Outlives its owner: UCX may report its failure until it is closed. */
struct kvt_rdma_endpoint {
    struct kvt_rdma *rdma;
    ucp_ep_h ep;
    ucp_rkey_h rkey;  /* NULL: none; goes after everything that may use it */
    bool *ret_closed; /* set when the close is over; NULL: nobody asks */
    void (*on_failed)(void *owner, ucs_status_t status);
    void *owner;
};

struct kvt_rdma_op {
    struct kvt_rdma *rdma;
    struct kvt_peer *peer; /* NULL: its peer was closed, nobody is told */
    kvt_completion_fn *done;
    void *context;
    struct kvt_rdma_op *next, *previous; /* of the peer, or next of the free list */
};

struct kvt_peer {
    struct kvt_rdma *rdma;
    struct kvt_rdma_endpoint *endpoint;
    enum kvt_peer_state state;
    struct bt_error error;
    struct bt_process_id process;
    struct kvt_key_range range;
    uint64_t cookie;
    char device[KVT_DEVICE_NAME_SIZE];
    struct kvt_rdma_op *ops;
    struct kvt_peer *next;
};

/* Target side: somebody who said hello. */
struct kvt_rdma_source {
    struct kvt_rdma_endpoint *endpoint; /* NULL once it is closing */
    struct kvt_origin origin;
    bool failed, closed;
    struct kvt_rdma_source *next;
};

struct kvt_rdma_cut {
    struct kvt_cut cut;
    kvt_completion_fn *done;
    void *context;
    struct kvt_rdma_cut *next;
};

struct kvt_rdma {
    struct kvt_ucx ucx;
    int worker_fd; /* -1: the worker can't wake anybody */
    unsigned char token[KVT_RDMA_TOKEN_BYTES];
    unsigned closing;
    struct kvt_rdma_op *ops, *free_ops;
    struct kvt_peer *peers;
    uint64_t next_cookie;
    struct kvt_rdma_source *sources;
    unsigned source_count;
    struct kvt_rdma_cut *cuts;
};

/* rdma.c */
enum bt_status kvt_rdma_endpoint_open(struct kvt_rdma *rdma, const void *worker_address,
                                      void (*on_failed)(void *owner, ucs_status_t status),
                                      void *owner, struct bt_error *error,
                                      struct kvt_rdma_endpoint **ret_endpoint);
/* Forgets the owner. *ret_closed (may be NULL) turns true, perhaps before this returns. */
void kvt_rdma_endpoint_close(struct kvt_rdma_endpoint *endpoint, bool *ret_closed);
/* Fire and forget; both are copied. */
void kvt_rdma_send(ucp_ep_h ep, unsigned id, const struct kvt_rdma_hello *hello,
                   const void *payload, size_t payload_size);

/* rdma_peer.c: see kvt_transport_ops */
enum bt_status kvt_rdma_connect(struct kvt_transport *base, const void *address,
                                size_t address_size, const void *key, size_t key_size,
                                const struct kvt_origin *origin, struct bt_error *error,
                                struct kvt_peer **ret_peer);
enum kvt_peer_state kvt_rdma_peer_state(const struct kvt_peer *peer);
const char *kvt_rdma_peer_transport(const struct kvt_peer *peer);
uint32_t kvt_rdma_peer_rails(const struct kvt_peer *peer, struct kvt_rail_info *ret_rails,
                             uint32_t max);
const char *kvt_rdma_peer_error(const struct kvt_peer *peer);
void *kvt_rdma_map(struct kvt_peer *peer, uint64_t remote_address, size_t bytes);
enum bt_status kvt_rdma_write(struct kvt_peer *peer, const void *source, size_t bytes,
                              uint64_t remote_address, kvt_completion_fn *done, void *context);
enum bt_status kvt_rdma_flush(struct kvt_peer *peer, kvt_completion_fn *done, void *context);
void kvt_rdma_peer_close(struct kvt_peer *peer);
ucs_status_t kvt_rdma_on_ack(void *arg, const void *header, size_t header_size, void *data,
                             size_t size, const ucp_am_recv_param_t *param);

/* rdma_source.c */
enum bt_status kvt_rdma_address(struct kvt_transport *base, struct bt_error *error,
                                void **ret_address, size_t *ret_size);
void kvt_rdma_disconnect(struct kvt_transport *base, const struct kvt_cut *cut,
                         kvt_completion_fn *done, void *context);
ucs_status_t kvt_rdma_on_hello(void *arg, const void *header, size_t header_size, void *data,
                               size_t size, const ucp_am_recv_param_t *param);
bool kvt_rdma_sources_step(struct kvt_rdma *rdma);
void kvt_rdma_sources_close(struct kvt_rdma *rdma);

#endif
