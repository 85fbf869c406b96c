/*
 * Where the time of forward passes goes, by kind of operation. For benchmarks: off, it costs
 * nothing; on, two clock readings an operation.
 */
#ifndef BATON_COMMON_MODEL_PROFILE_H
#define BATON_COMMON_MODEL_PROFILE_H

#include "common/kernels/device.h"

enum bt_profile_kind {
    BT_PROFILE_EMBED,
    BT_PROFILE_NORM,
    BT_PROFILE_LINEAR, /* projections of attention */
    BT_PROFILE_HEAD,   /* logits */
    BT_PROFILE_ROPE,
    BT_PROFILE_KV_WRITE,
    BT_PROFILE_MLA_PREFILL,
    BT_PROFILE_MLA_DECODE,
    BT_PROFILE_MLP, /* dense layers and shared experts */
    BT_PROFILE_ROUTE,
    BT_PROFILE_EXPERTS,
    BT_PROFILE_DRAW,  /* tokens, by a device */
    BT_PROFILE_GROUP, /* waiting for and sending to other ranks */
    BT_PROFILE_OTHER, /* additions, copies of rows */
    BT_PROFILE_KINDS,
};

struct bt_profile {
    int64_t ns[BT_PROFILE_KINDS];
    uint64_t calls[BT_PROFILE_KINDS];
};

/* "embed", "norm", … */
const char *bt_profile_kind_name(enum bt_profile_kind kind);

/*
 * A table that calls that of `device` and adds what it takes to `profile`, until the thread says
 * otherwise. Where the device queues, each operation is waited for: its time is that of the
 * operation alone, with its launch, and a run takes longer than its operations do when they follow
 * each other. `head`: the weights whose product is HEAD. It works for the calling thread alone, on
 * this stream.
 */
const struct bt_kernels *bt_profile_kernels(struct bt_device *device, struct bt_stream *stream,
                                            const struct bt_matrix *head,
                                            struct bt_profile *profile);

#endif
