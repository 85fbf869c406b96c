/*
 * How far a push has come, told to the target in its own memory: behind the pool there is a slot a
 * page, and the slots of a landing's first pages are the landing's: the i-th for the share i of its
 * pages. The source writes it after the pages it speaks of, so the target can sum them while later
 * layers are computed.
 *
 * A hint and no more: a landing whose early sum does not fit is summed again from the beginning.
 */
#ifndef BATON_KVTRANSFER_PROGRESS_H
#define BATON_KVTRANSFER_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

#include "common/kvcache/layout.h"

#define KVT_PROGRESS_SLOT_BYTES 64
#define KVT_SHARES_MAX          64

struct kvt_progress {
    uint64_t epoch;
    uint32_t layers; /* the first so many layers have tokens_ahead, the others tokens_behind */
    uint32_t tokens_ahead;
    uint32_t tokens_behind;
    uint32_t shares; /* that the pages are pushed in; 1: all by one source */
    uint64_t seal;   /* of the above: a slot that is half written is none */
};

/* The pool and the slots behind it. */
uint64_t kvt_progress_memory_bytes(const struct bt_kv_layout *layout, uint32_t pool_pages);
/* Of the slot of this page, from the pool's base. */
uint64_t kvt_progress_offset(const struct bt_kv_layout *layout, uint32_t pool_pages, uint32_t page);

void kvt_progress_seal(struct kvt_progress *progress);
/* False: half written, of another epoch, or beyond `layers`, `tokens` and KVT_SHARES_MAX. */
bool kvt_progress_read(const void *slot, uint64_t epoch, uint32_t layers, uint32_t tokens,
                       struct kvt_progress *ret_progress);

#endif
