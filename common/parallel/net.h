/*
 * Messages between ranks on different machines, by UCX: over InfiniBand or RoCE where there is
 * some, else over TCP. One thread. Messages of one rank to another come in order, whole, in the
 * sender's fragments; nothing is asked for and nothing is written into a peer's memory by its
 * device, so a peer that dies takes nobody along.
 */
#ifndef BATON_COMMON_PARALLEL_NET_H
#define BATON_COMMON_PARALLEL_NET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/status.h"

#define BT_NET_ADDRESS_MAX    4096
#define BT_NET_FRAGMENT_BYTES ((size_t)128 << 10)

enum bt_net_type {
    BT_NET_PARCEL, /* a piece of one */
    BT_NET_OVER,   /* the sender is out of the group: offset is why, its last number is `number` */
};

/* Ahead of every message, in the byte order of both ends. */
struct bt_net_head {
    uint64_t token; /* of the group: random, known to its ranks only */
    uint32_t source, number;
    uint16_t type, channel;
    uint32_t unused;
    uint64_t offset, total; /* of the piece in the parcel, and of the parcel; bytes */
};

struct bt_net;

/* A message whose token is right. Called by bt_net_progress. `data` is valid during the call. */
typedef void bt_net_fn(void *context, const struct bt_net_head *head, const void *data,
                       size_t bytes);

struct bt_net_options {
    uint32_t rank;
    uint64_t token;
    const char *host; /* address of this machine; NULL: loopback */
    bt_net_fn *fn;
    void *context;
};

/* UNSUPPORTED: this build has no UCX. UNAVAILABLE: no such device. */
enum bt_status bt_net_open(const struct bt_net_options *options, struct bt_error *error,
                           struct bt_net **ret_net);
/* Takes nothing more; what was sent gets away if it can within grace_ns. NULL is fine. */
void bt_net_close(struct bt_net *net, int64_t grace_ns);

/* What others need to reach this rank; at most BT_NET_ADDRESS_MAX bytes. */
enum bt_status bt_net_address(struct bt_net *net, struct bt_error *error, void *ret_address,
                              size_t *ret_bytes);
enum bt_status bt_net_connect(struct bt_net *net, uint32_t rank, const void *address,
                              struct bt_error *error);

/* The rank must be connected. `data` stays as it is while bt_net_unsent(net) > 0. A message to a
 * rank that is lost is dropped. */
void bt_net_send(struct bt_net *net, uint32_t rank, const struct bt_net_head *head,
                 const void *data, size_t bytes);
uint32_t bt_net_unsent(const struct bt_net *net);
/* Since when a rank is known to be lost; 0: it is not. */
int64_t bt_net_lost_ns(const struct bt_net *net, uint32_t rank);

/* Whether anything happened. */
bool bt_net_progress(struct bt_net *net);
/* Sleeps until something may have happened, for timeout_ns at most. */
void bt_net_wait(struct bt_net *net, int64_t timeout_ns);

#endif
