/*
 * Moves bytes, decides nothing: the interface between the engines of source.c / target.c and what
 * carries the writes (a folder each: ucx/, tcp/, choice/, rails/, sim/). One thread owns a
 * transport and calls everything but `wake`. No function blocks but `wait`.
 *
 * A transport may be made of others (choice: the best that both ends have; rails: several at once).
 * Those share one piece of memory: one child allocates it, the others register it.
 */
#ifndef BATON_KVTRANSFER_TRANSPORT_H
#define BATON_KVTRANSFER_TRANSPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"
#include "common/kernels/device.h"
#include "kvtransfer/cut.h"

#define KVT_RAILS_MAX        16 /* of one peer */
#define KVT_DEVICE_NAME_SIZE 64

struct kvt_transport;
struct kvt_memory; /* allocated or registered by the transport */
struct kvt_peer;   /* a target that this side writes to */

enum kvt_peer_state { KVT_PEER_CONNECTING, KVT_PEER_READY, KVT_PEER_FAILED };

/* What the writes to a peer really go over: one entry a rail. */
struct kvt_rail_info {
    const char *transport;             /* "shm", "cuda_ipc", "rdma", "tcp", "sim"; a constant */
    char device[KVT_DEVICE_NAME_SIZE]; /* "mlx5_0:1", "eth0", "lo"; "": memory */
    bool failed;                       /* taken out, the others go on */
    bool ordered;                      /* what is written later arrives later */
};

/* What one rail of this side has done since its transport was made. */
struct kvt_rail_stats {
    char device[KVT_DEVICE_NAME_SIZE];
    const char *transport; /* "" before it was ever up */
    uint32_t rate_mbps;
    uint32_t lines; /* connections that are up */
    uint64_t bytes, writes;
    uint64_t repeats;  /* writes given to other rails when it failed */
    uint64_t failures; /* connections that broke or never came up */
};

#define KVT_OFFERS_SIZE 64

/* Of a transport made of others. */
struct kvt_choice_info {
    char offers[KVT_OFFERS_SIZE]; /* names, the best first: "shm,tcp" */
    uint64_t fallbacks;           /* peers that the best transport of both ends did not reach */
};

/* Completion of a write or flush: BT_OK or BT_ERR_PEER_LOST. Runs inside progress(). */
typedef void kvt_completion_fn(void *context, enum bt_status status);

struct kvt_transport_ops {
    /* Closes what is open, then frees what memory is left: until then late writes may arrive. */
    void (*destroy)(struct kvt_transport *transport);

    /* Page-aligned, zeroed, remotely writable memory. */
    enum bt_status (*memory_alloc)(struct kvt_transport *transport, size_t bytes,
                                   struct bt_error *error, struct kvt_memory **ret_memory);
    /* Makes memory known that another transport allocated (page-aligned, and it lives longer than
     * the registration). UNSUPPORTED: only memory of its own. */
    enum bt_status (*memory_register)(struct kvt_transport *transport, void *base, size_t bytes,
                                      struct bt_error *error, struct kvt_memory **ret_memory);
    /* Frees what was allocated, forgets what was registered. Only when nothing can be under way to
     * or from it. */
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
     * Closes the connections that are covered: after `done` nothing arrives any more that was
     * written to one of them, or will be. Fine when there is none.
     */
    void (*disconnect)(struct kvt_transport *transport, const struct kvt_cut *cut,
                       kvt_completion_fn *done, void *context);

    /* Source side. Starts to connect; address and key come from the peer and are not trusted
     * beyond what the transport's library checks. `origin` is told to the target. No write is
     * posted before the target has answered, so whoever writes is known there by its origin. */
    enum bt_status (*connect)(struct kvt_transport *transport, const void *address,
                              size_t address_size, const void *key, size_t key_size,
                              const struct kvt_origin *origin, struct bt_error *error,
                              struct kvt_peer **ret_peer);
    enum kvt_peer_state (*peer_state)(const struct kvt_peer *peer);
    const char *(*peer_transport)(const struct kvt_peer *peer); /* "shm", "tcp", "rdma", "sim" */
    /* Returns how many rails it has; fills the first `max`. Before READY: 0. */
    uint32_t (*peer_rails)(const struct kvt_peer *peer, struct kvt_rail_info *ret_rails,
                           uint32_t max);
    /* Why it is FAILED; "" while it is not. Valid as long as the peer. */
    const char *(*peer_error)(const struct kvt_peer *peer);
    /* Lines of the link (bit i: line i) that failed with writes of ours under way: these may still
     * arrive, so the target has to disconnect them before the pages of any push that wrote to this
     * peer are READY or FREE. Only grows: a number is never used again. NULL: there is one line. */
    uint64_t (*peer_cuts)(const struct kvt_peer *peer);
    /* Where the peer's memory from remote_address on is mapped into this process, so that a write
     * is a store of the caller's own (which is over when it returns, fences apart); NULL: it is
     * not, or the key does not cover it. Valid while the peer is READY and not closed. */
    void *(*map)(struct kvt_peer *peer, uint64_t remote_address, size_t bytes);
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
    /*
     * For a transport made of others, which waits for all of them at once: a descriptor that turns
     * readable when `progress` is due, if `arm` said true after the last progress. False: progress
     * again first. *ret_timeout_ms (-1: none) gets less when it wants to be looked at sooner though
     * nothing happens; event_fd -1: always.
     */
    int (*event_fd)(const struct kvt_transport *transport);
    bool (*arm)(struct kvt_transport *transport, int *ret_timeout_ms);
    /* Returns how many rails there are; fills the first `max`. Any thread. NULL: there are none. */
    uint32_t (*rail_stats)(const struct kvt_transport *transport, struct kvt_rail_stats *ret_stats,
                           uint32_t max);
    /* Any thread, once memory is allocated. NULL: it is one of its own. */
    void (*choice_info)(const struct kvt_transport *transport, struct kvt_choice_info *ret_info);
};

/* Every implementation starts with this. */
struct kvt_transport {
    const struct kvt_transport_ops *ops;
};

struct kvt_transport_options {
    /* "auto": the best that both ends have; "shm", "cuda_ipc", "rdma", "tcp": only that one,
     * UNAVAILABLE when this machine lacks it. Two ends pair where they have one in common. */
    const char *name;
    /* Address on which peers of other machines reach this process; NULL: loopback. */
    const char *bind_host;
    /* "mlx5_0:1" (rdma), "eth0" (tcp); NULL: all that fit. */
    const char *device;
    /* Whose memory the pool is in; NULL, or the CPU: the host's. Else the pool is registered, never
     * allocated here, and what can't reach memory of GPUs is UNAVAILABLE. */
    struct bt_device *pool_device;
    /* A peer that can only be reached by something slower than the best that both ends have is an
     * error that names both, instead of a warning. */
    bool forbid_fallback;
};

enum bt_status kvt_transport_create(const struct kvt_transport_options *options,
                                    struct bt_error *error, struct kvt_transport **ret_transport);

#endif
