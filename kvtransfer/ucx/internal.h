/* Shared by the files of kvtransfer/ucx/: one worker, its endpoints, both roles. */
#ifndef BATON_KVTRANSFER_UCX_INTERNAL_H
#define BATON_KVTRANSFER_UCX_INTERNAL_H

#include <netinet/in.h>
#include <ucp/api/ucp.h>

#include "common/base/process.h"
#include "kvtransfer/transport.h"
#include "kvtransfer/ucx/blob.h"

#define KVT_UCX_OPS         2048 /* writes and flushes out at once */
#define KVT_UCX_SOURCES_MAX 1024 /* accepted endpoints at once */
#define KVT_UCX_DESTROY_MS  500  /* longest wait for endpoints to close at the end */

#define KVT_UCX_CHUNKS      512 /* of writes by message, out at once */
#define KVT_UCX_CHUNK_BYTES 65536

enum kvt_ucx_message {
    KVT_UCX_AM_HELLO = 1,
    KVT_UCX_AM_ACK,
    KVT_UCX_AM_WRITE,
    KVT_UCX_AM_FLUSH,
    KVT_UCX_AM_FLUSHED,
};

enum kvt_ucx_mode { KVT_UCX_AUTO, KVT_UCX_SHM, KVT_UCX_TCP, KVT_UCX_RDMA };

/* Header of all messages but WRITE. */
struct kvt_ucx_hello {
    uint64_t magic;  /* the message's number */
    uint64_t cookie; /* of the source's peer, sent back by ACK and FLUSHED */
    uint64_t value;  /* HELLO: the source's incarnation; FLUSH: how many WRITEs were sent before */
};

struct kvt_ucx_chunk {
    uint64_t remote_address; /* header of WRITE */
    struct kvt_ucx_op *op;
    struct kvt_ucx_chunk *next;
};

/*
 * An endpoint, of either role. It outlives its owner: UCX may report its failure until it is
 * closed, and a failed endpoint without peer error handling can't be closed before the worker ends.
 */
struct kvt_ucx_endpoint {
    struct kvt_ucx *ucx;
    ucp_ep_h ep;
    ucp_rkey_h rkey; /* NULL: none; goes after everything that may use it */
    bool local;      /* processes of one host: UCP_ERR_HANDLING_MODE_NONE, so that UCX takes shm */
    bool failed;
    bool *ret_closed; /* set when the close is over; NULL: nobody asks */
    void (*on_failed)(void *owner, ucs_status_t status);
    void *owner;
    struct kvt_ucx_endpoint *next; /* of ucx->abandoned */
};

struct kvt_ucx_op {
    struct kvt_ucx *ucx;
    struct kvt_peer *peer; /* NULL: its peer was closed, nobody is told */
    kvt_completion_fn *done;
    void *context;
    struct kvt_ucx_op *next, *previous; /* of the peer, or next of the free list */

    /* By message only: */
    struct kvt_ucx_op *queue_next; /* of the peer's queue, in the order of posting */
    const char *source;            /* NULL: a flush */
    size_t bytes, sent_bytes;
    uint64_t remote_address;
    uint32_t chunks_out;
    bool flush_sent;
};

struct kvt_peer {
    struct kvt_ucx *ucx;
    struct kvt_ucx_endpoint *endpoint;
    enum kvt_peer_state state;
    bool reopen; /* shared memory did not come about: connect once more, as to another host */
    const char *transport;
    bool by_message; /* this connection has no puts of its own, see message.c */
    uint64_t chunks_sent;
    struct kvt_ucx_op *queue; /* not sent completely, or a flush that waits for its answer */
    struct kvt_ucx_address address;
    struct kvt_ucx_key range;
    uint64_t incarnation;
    uint64_t cookie;
    char why[128]; /* it failed */
    struct kvt_ucx_op *ops;
    struct kvt_peer *next;
    size_t key_size;
    unsigned char key[];
};

/* Target side: somebody who connected. */
struct kvt_ucx_source {
    struct kvt_ucx_endpoint *endpoint; /* NULL once it is closing */
    bool failed;
    bool closed;
    bool named; /* its hello came */
    uint64_t incarnation;
    uint64_t chunks_applied;
    bool flush_waits; /* for chunks_applied to reach flush_count */
    struct kvt_ucx_hello flush;
    struct kvt_ucx_source *next;
};

struct kvt_ucx_cut {
    uint64_t incarnation;
    kvt_completion_fn *done;
    void *context;
    struct kvt_ucx_cut *next;
};

struct kvt_ucx_listener {
    struct kvt_ucx *ucx;
    ucp_listener_h listener;
    bool local;
};

struct kvt_memory {
    ucp_mem_h handle;
    void *base;
    size_t bytes;
    bool mapped; /* by us; else allocated by UCX */
    struct kvt_memory *next;
};

struct kvt_ucx {
    struct kvt_transport base;
    enum kvt_ucx_mode mode;
    struct sockaddr_storage bind;
    struct bt_process_id self;
    ucp_context_h context;
    ucp_worker_h worker;
    int worker_fd; /* -1: the worker can't wake anybody */
    int wake_fd;
    struct kvt_memory *memories;
    unsigned closing;
    struct kvt_ucx_endpoint *abandoned;
    struct kvt_ucx_op *ops;
    struct kvt_ucx_op *free_ops;
    struct kvt_ucx_chunk *chunks;
    struct kvt_ucx_chunk *free_chunks;
    struct kvt_peer *peers;
    uint64_t next_cookie;
    struct kvt_ucx_listener listen_local, listen_all;
    struct kvt_ucx_source *sources;
    unsigned source_count;
    struct kvt_ucx_cut *cuts;
};

enum bt_status kvt_ucx_status(ucs_status_t status);

/* endpoint.c */
/* `params` holds what to connect to; error handling is added here. */
enum bt_status kvt_ucx_endpoint_open(struct kvt_ucx *ucx, ucp_ep_params_t *params, bool local,
                                     void (*on_failed)(void *owner, ucs_status_t status),
                                     void *owner, struct bt_error *error,
                                     struct kvt_ucx_endpoint **ret_endpoint);
/* Forgets the owner. *ret_closed (may be NULL) turns true, perhaps before this returns. */
void kvt_ucx_endpoint_close(struct kvt_ucx_endpoint *endpoint, bool *ret_closed);
/* "shm", "rdma", "tcp", "unknown", and whether it writes to remote memory by itself. */
const char *kvt_ucx_endpoint_transport(const struct kvt_ucx_endpoint *endpoint, bool *ret_puts);
/* Fire and forget. */
void kvt_ucx_endpoint_send(ucp_ep_h ep, unsigned id, const struct kvt_ucx_hello *hello);

/* peer.c */
enum bt_status kvt_ucx_connect(struct kvt_transport *transport, const void *address,
                               size_t address_size, const void *key, size_t key_size,
                               uint64_t incarnation, struct bt_error *error,
                               struct kvt_peer **ret_peer);
enum kvt_peer_state kvt_ucx_peer_state(const struct kvt_peer *peer);
const char *kvt_ucx_peer_transport(const struct kvt_peer *peer);
uint32_t kvt_ucx_peer_rails(const struct kvt_peer *peer, struct kvt_rail_info *ret_rails,
                            uint32_t max);
const char *kvt_ucx_peer_error(const struct kvt_peer *peer);
enum bt_status kvt_ucx_write(struct kvt_peer *peer, const void *source, size_t bytes,
                             uint64_t remote_address, kvt_completion_fn *done, void *context);
enum bt_status kvt_ucx_flush(struct kvt_peer *peer, kvt_completion_fn *done, void *context);
void kvt_ucx_peer_close(struct kvt_peer *peer);
ucs_status_t kvt_ucx_on_ack(void *arg, const void *header, size_t header_size, void *data,
                            size_t size, const ucp_am_recv_param_t *param);
void kvt_ucx_peers_step(struct kvt_ucx *ucx);
void kvt_ucx_peer_fail(struct kvt_peer *peer, const char *why);
struct kvt_peer *kvt_ucx_find_peer(const struct kvt_ucx *ucx, uint64_t cookie);
/* Takes it off its peer and gives it back. */
void kvt_ucx_op_release(struct kvt_ucx_op *op);

/* message.c */
/* BT_OK: over; else IN_PROGRESS. */
enum bt_status kvt_ucx_message_post(struct kvt_ucx_op *op);
void kvt_ucx_message_pump(struct kvt_peer *peer);
ucs_status_t kvt_ucx_on_write(void *arg, const void *header, size_t header_size, void *data,
                              size_t size, const ucp_am_recv_param_t *param);
ucs_status_t kvt_ucx_on_flush(void *arg, const void *header, size_t header_size, void *data,
                              size_t size, const ucp_am_recv_param_t *param);
ucs_status_t kvt_ucx_on_flushed(void *arg, const void *header, size_t header_size, void *data,
                                size_t size, const ucp_am_recv_param_t *param);

/* acceptor.c */
enum bt_status kvt_ucx_address(struct kvt_transport *transport, struct bt_error *error,
                               void **ret_address, size_t *ret_size);
void kvt_ucx_disconnect(struct kvt_transport *transport, uint64_t incarnation,
                        kvt_completion_fn *done, void *context);
ucs_status_t kvt_ucx_on_hello(void *arg, const void *header, size_t header_size, void *data,
                              size_t size, const ucp_am_recv_param_t *param);
/* NULL: unknown, or cut off. */
struct kvt_ucx_source *kvt_ucx_find_source(const struct kvt_ucx *ucx,
                                           const ucp_am_recv_param_t *param);
bool kvt_ucx_sources_step(struct kvt_ucx *ucx);
void kvt_ucx_sources_close(struct kvt_ucx *ucx);

/* memory.c */
enum bt_status kvt_ucx_memory_alloc(struct kvt_transport *transport, size_t bytes,
                                    struct bt_error *error, struct kvt_memory **ret_memory);
enum bt_status kvt_ucx_memory_register(struct kvt_transport *transport, void *base, size_t bytes,
                                       struct bt_error *error, struct kvt_memory **ret_memory);
void kvt_ucx_memory_free(struct kvt_transport *transport, struct kvt_memory *memory);
/* Whether [address, address + bytes) is inside of one memory of ours. */
bool kvt_ucx_memory_has(const struct kvt_ucx *ucx, uint64_t address, uint64_t bytes);
void *kvt_ucx_memory_base(const struct kvt_memory *memory);
enum bt_status kvt_ucx_memory_pack_key(struct kvt_transport *transport,
                                       const struct kvt_memory *memory, struct bt_error *error,
                                       void **ret_key, size_t *ret_size);

#endif
