/*
 * A KV pool in the memory of a device, which the host can't read: whose it is, and the checksums of
 * its pages, made by the device (checksum.h defines them). Without a device, or with one whose
 * memory is the host's, there is no such pool, and the transport allocates.
 *
 * One thread, the one that created it: the pushing thread of a source, or the target's.
 */
#ifndef BATON_KVTRANSFER_DEVICE_POOL_H
#define BATON_KVTRANSFER_DEVICE_POOL_H

#include <stdbool.h>

#include "common/kernels/device.h"
#include "common/kvcache/layout.h"
#include "kvtransfer/plan.h"

struct kvt_device_pool;

/* Where the pool is to be; NULL: the host. */
enum bt_memory_kind kvt_pool_memory_kind(const struct bt_device *device);

/* `bytes`: of the pool and what is behind it. Zeroed. NO_MEMORY. */
enum bt_status kvt_device_pool_create(struct bt_device *device, const struct bt_kv_layout *layout,
                                      uint32_t pool_pages, size_t bytes, struct bt_error *error,
                                      struct kvt_device_pool **ret_pool);
/* After nobody can write to it any more. NULL is fine. */
void kvt_device_pool_destroy(struct kvt_device_pool *pool);
void *kvt_device_pool_base(const struct kvt_device_pool *pool);

/*
 * Begins the sum of all layers of a sequence's pages, or of its share of them; one at a time.
 * `pages` [pages of tokens] stays until it is over. count 0 of `share`: all.
 */
void kvt_device_sum_begin(struct kvt_device_pool *pool, const uint32_t *pages, uint32_t tokens,
                          struct kvt_share share);
bool kvt_device_sum_busy(const struct kvt_device_pool *pool);
/* IN_PROGRESS: look again. INTERNAL: the device failed. OK, once: *ret_sum. */
enum bt_status kvt_device_sum_poll(struct kvt_device_pool *pool, struct bt_error *error,
                                   uint64_t *ret_sum);

#endif
