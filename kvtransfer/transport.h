/*
 * Moves bytes, decides nothing: the interface between the engines of source.c / target.c and what
 * carries the writes (a folder each: ucx/, sim/). One thread owns a transport and calls everything
 * but `wake`. No function blocks but `wait`.
 */
#ifndef BATON_KVTRANSFER_TRANSPORT_H
#define BATON_KVTRANSFER_TRANSPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

struct kvt_transport;
struct kvt_memory; /* allocated by the transport and known to it */
struct kvt_peer;   /* a target that this side writes to */

enum kvt_peer_state { KVT_PEER_CONNECTING, KVT_PEER_READY, KVT_PEER_FAILED };

/* Completion of a write or flush: BT_OK or BT_ERR_PEER_LOST. Runs inside progress(). */
typedef void kvt_completion_fn(void *context, enum bt_status status);

struct kvt_transport_ops {
    /* Closes what is open, then frees what memory is left: until then late writes may arrive. */
    void (*destroy)(struct kvt_transport *transport);

    /* Page-aligned, zeroed, remotely writable memory. */
    enum bt_status (*memory_alloc)(struct kvt_transport *transport, size_t bytes,
                                   struct bt_error *error, struct kvt_memory **ret_memory);
    /* Only when nothing can be under way to or from it. */
    void (*memory_free)(struct kvt_transport *transport, struct kvt_memory *memory);
    void *(*memory_base)(const struct kvt_memory *memory);
    /* What a peer needs to write here; malloc'd, caller frees. */
    enum bt_status (*memory_pack_key)(struct kvt_transport *transport,
                                      const struct kvt_memory *memory, struct bt_error *error,
                                      void **ret_key, size_t *ret_size);

    /* Target side. Where peers connect to; malloc'd. */
    enum bt_status (*address)(struct kvt_transport *transport, struct bt_error *error,
                              void **ret_address, size_t *ret_size);
    /*
     * Cuts the source with this incarnation off: after `done` nothing it wrote or writes arrives
     * any more. Fine when it never connected.
     */
    void (*disconnect)(struct kvt_transport *transport, uint64_t incarnation,
                       kvt_completion_fn *done, void *context);

    /* Source side. Starts to connect; address and key come from the peer and are not trusted
     * beyond what the transport's library checks. `incarnation` is ours, told to the target. */
    enum bt_status (*connect)(struct kvt_transport *transport, const void *address,
                              size_t address_size, const void *key, size_t key_size,
                              uint64_t incarnation, struct bt_error *error,
                              struct kvt_peer **ret_peer);
    enum kvt_peer_state (*peer_state)(const struct kvt_peer *peer);
    const char *(*peer_transport)(const struct kvt_peer *peer); /* "shm", "tcp", "rdma", "sim" */
    /* Posts a one-sided write of local memory to remote_address. BT_OK: done already, `done` does
     * not run. IN_PROGRESS: source memory belongs to the transport until `done`. EXHAUSTED:
     * progress first, completions are due. PEER_LOST. INVALID_ARGUMENT: outside of the memory that
     * the key names. */
    enum bt_status (*write)(struct kvt_peer *peer, const void *source, size_t bytes,
                            uint64_t remote_address, kvt_completion_fn *done, void *context);
    /* All writes posted before are in the target's memory when it completes. Results as write. */
    enum bt_status (*flush)(struct kvt_peer *peer, kvt_completion_fn *done, void *context);
    /* Closes for good and frees; outstanding completions run first, with PEER_LOST. */
    void (*peer_close)(struct kvt_peer *peer);

    /* Returns whether anything happened. */
    bool (*progress)(struct kvt_transport *transport);
    /* Sleeps until something may have happened, `wake`, or `timeout_ms` (-1: none). */
    void (*wait)(struct kvt_transport *transport, int timeout_ms);
    void (*wake)(struct kvt_transport *transport); /* any thread */
};

/* Every implementation starts with this. */
struct kvt_transport {
    const struct kvt_transport_ops *ops;
};

/*
 * `name`: "auto" (UCX chooses), "shm", "tcp", "rdma" (UCX restricted to it; UNAVAILABLE when this
 * machine lacks it). `bind_host`: address on which peers of other machines reach this process;
 * NULL: loopback.
 */
enum bt_status kvt_transport_create(const char *name, const char *bind_host, struct bt_error *error,
                                    struct kvt_transport **ret_transport);

#endif
