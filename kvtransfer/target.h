/*
 * The decode side's memory and thread: the KV pool that peers write into, progress of the
 * transport, checksums of what landed. Who may write where is decided in landing.c.
 */
#ifndef BATON_KVTRANSFER_TARGET_H
#define BATON_KVTRANSFER_TARGET_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/queue.h"
#include "common/base/status.h"
#include "common/kernels/device.h"
#include "common/kvcache/layout.h"
#include "kvtransfer/cut.h"

#define KVT_EXPECTED_MAX 256

struct kvt_target;

struct kvt_transport;

struct kvt_target_options {
    const char *transport; /* these four: see struct kvt_transport_options */
    const char *bind_host;
    const char *device;
    bool forbid_fallback;
    struct kvt_transport *given; /* used, and destroyed, instead of the above, unless NULL */
    /* Whose memory the pool is in; NULL: the host's. */
    struct bt_device *pool_device;
    struct bt_kv_layout layout;
    uint32_t pool_pages;
    uint32_t max_jobs; /* verifications and disconnects at once; bounds the queues */
};

enum bt_status kvt_target_create(const struct kvt_target_options *options, struct bt_error *error,
                                 struct kvt_target **ret_target);
void kvt_target_destroy(struct kvt_target *target); /* NULL is fine */

void *kvt_target_pool(const struct kvt_target *target); /* [layer][page][token][dim] */

/* For KvEndpoint; valid as long as the target. */
void kvt_target_address(const struct kvt_target *target, const void **ret_address,
                        size_t *ret_size);
void kvt_target_key(const struct kvt_target *target, const void **ret_key, size_t *ret_size);

/* The transports that peers may choose from, the best first: "shm,tcp". "" for a given transport.
 */
const char *kvt_target_offers(const struct kvt_target *target);

enum kvt_target_event_kind { KVT_TARGET_CHECKSUM, KVT_TARGET_DISCONNECTED };

struct kvt_target_event {
    enum kvt_target_event_kind kind;
    uint64_t request, epoch; /* CHECKSUM */
    uint64_t checksum;
    uint64_t early_bytes; /* CHECKSUM: that were summed before it was asked for */
    bool early;           /* CHECKSUM: of a landing that was expected. Where it does not fit, ask
                           * once more: that sums it from the beginning. */
    uint64_t incarnation, link; /* DISCONNECTED: as it was asked for */
};

/* Items are struct kvt_target_event; one consumer, the control thread. */
struct bt_queue *kvt_target_events(const struct kvt_target *target);

/* Computes kvt_checksum_sequence on the target's thread; ends the expectation of that epoch.
 * `pages` is copied. EXHAUSTED: max_jobs. */
enum bt_status kvt_target_checksum(struct kvt_target *target, uint64_t request, uint64_t epoch,
                                   const uint32_t *pages, uint32_t tokens);

/*
 * A landing that is being written now: what its source reports as written is summed while the rest
 * is computed, so that the checksum has little left to do. `pages` is copied. Only ever a hint, and
 * dropped silently where KVT_EXPECTED_MAX is reached (the oldest goes), and where the pool is in
 * the memory of a device, which sums as fast as it reads.
 */
void kvt_target_expect(struct kvt_target *target, uint64_t epoch, const uint32_t *pages,
                       uint32_t tokens);
void kvt_target_forget(struct kvt_target *target, uint64_t epoch); /* it ended otherwise */

/* Cuts connections of a source off; the event says when nothing of them can arrive any more. */
enum bt_status kvt_target_cut(struct kvt_target *target, const struct kvt_cut *cut);
/* All that it has. */
enum bt_status kvt_target_disconnect(struct kvt_target *target, uint64_t incarnation);

#endif
