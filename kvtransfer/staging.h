/*
 * KV on its way between a pool in the memory of a device and the pool of the same pages in memory
 * of the host that transports write to and from: for machines whose NICs don't reach the device
 * (--kv-staging host). Twice the copies, and the host's memory once more; never chosen by itself.
 *
 * One thread at a time.
 */
#ifndef BATON_KVTRANSFER_STAGING_H
#define BATON_KVTRANSFER_STAGING_H

#include "common/kernels/device.h"
#include "common/kvcache/layout.h"

struct kvt_staging;

struct kvt_staging_options {
    struct bt_device *device;
    struct bt_kv_layout layout;
    uint32_t pool_pages;
    void *host_pool; /* [layer][page][token][dim], page-aligned; outlives the staging */
};

/* Allocates the device's pool, pins the host's. NO_MEMORY. */
enum bt_status kvt_staging_create(const struct kvt_staging_options *options, struct bt_error *error,
                                  struct kvt_staging **ret_staging);
void kvt_staging_destroy(struct kvt_staging *staging);     /* NULL is fine */
void *kvt_staging_pool(const struct kvt_staging *staging); /* the device's */

/*
 * Queues the copy of a layer's tokens [begin, end) of a sequence to the host's pool; the device has
 * computed them. `pages`: the sequence's, from token 0 on.
 */
void kvt_staging_out(struct kvt_staging *staging, uint32_t layer, const uint32_t *pages,
                     uint32_t begin, uint32_t end);
/* Until all that was queued by `out` is in the host's pool. INTERNAL: the device failed. */
enum bt_status kvt_staging_wait(struct kvt_staging *staging, struct bt_error *error);

/* Queues on `stream` the copy of all layers of tokens [0, tokens) to the device's pool, before what
 * is queued there later. The host's pages stay as they are until the stream has come past it, or
 * until the next copy of the same pages is queued on it. */
void kvt_staging_in(struct kvt_staging *staging, struct bt_stream *stream, const uint32_t *pages,
                    uint32_t tokens);

/* Bytes that went each way. Any thread. */
void kvt_staging_bytes(const struct kvt_staging *staging, uint64_t *ret_out, uint64_t *ret_in);

#endif
