/* What both transports over UCX have: a context with its memory, one worker, a way to be woken. */
#ifndef BATON_KVTRANSFER_UCX_CONTEXT_H
#define BATON_KVTRANSFER_UCX_CONTEXT_H

#include <ucp/api/ucp.h>

#include "common/base/process.h"
#include "kvtransfer/blob.h"
#include "kvtransfer/transport.h"

struct kvt_memory {
    ucp_mem_h handle;
    void *base;
    size_t bytes;
    bool mapped; /* by us; else allocated by UCX, or somebody else's */
    struct kvt_memory *next;
};

struct kvt_ucx {
    struct kvt_transport base;
    struct bt_process_id self;
    ucp_context_h context;
    ucp_worker_h worker;
    int wake_fd; /* eventfd, non-blocking */
    enum bt_memory_kind memory_kind;
    struct kvt_memory *memories;
};

struct kvt_ucx_config {
    const char *tls;
    const char *devices;        /* NULL: all */
    const char *gid_index;      /* of the device; NULL: UCX chooses */
    enum bt_memory_kind memory; /* that is registered */
    uint64_t features;
};

/* On failure call kvt_ucx_close all the same. UNAVAILABLE: no such device or transport here. */
enum bt_status kvt_ucx_open(struct kvt_ucx *ucx, const struct kvt_ucx_config *config,
                            struct bt_error *error);
/* Frees all memory; endpoints must be closed or be given up. */
void kvt_ucx_close(struct kvt_ucx *ucx);

/* Whether that version's protocols for GPUs' memory are the ones it uses by default: before,
 * dma-buf or the end of a peer were not in all of them. */
bool kvt_ucx_knows_gpus(unsigned major, unsigned minor);

enum bt_status kvt_ucx_status(ucs_status_t status);
void kvt_ucx_wake(struct kvt_transport *transport);
/* Takes what `wake` left. */
void kvt_ucx_drain_wake(struct kvt_ucx *ucx);

/* memory.c */
/* By UCX, in memory that other processes can map; UNAVAILABLE: the kernel has none for it. */
enum bt_status kvt_ucx_memory_alloc_shared(struct kvt_transport *transport, size_t bytes,
                                           struct bt_error *error, struct kvt_memory **ret_memory);
enum bt_status kvt_ucx_memory_alloc(struct kvt_transport *transport, size_t bytes,
                                    struct bt_error *error, struct kvt_memory **ret_memory);
enum bt_status kvt_ucx_memory_register(struct kvt_transport *transport, void *base, size_t bytes,
                                       struct bt_error *error, struct kvt_memory **ret_memory);
void kvt_ucx_memory_free(struct kvt_transport *transport, struct kvt_memory *memory);
enum bt_status kvt_ucx_key_pack(struct kvt_ucx *ucx, enum kvt_blob_kind kind,
                                const struct kvt_memory *memory, struct bt_error *error,
                                void **ret_key, size_t *ret_size);
/* The worker's address behind our process. */
enum bt_status kvt_ucx_worker_address(struct kvt_ucx *ucx, enum kvt_blob_kind kind,
                                      struct bt_error *error, void **ret_blob, size_t *ret_size);
void *kvt_ucx_memory_base(const struct kvt_memory *memory);
/* Whether [base, base + bytes) lies in one mapping of this process that is shared with others. */
bool kvt_ucx_is_shared(const void *base, size_t bytes);

#endif
