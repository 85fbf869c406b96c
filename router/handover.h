/*
 * A router's HTTP port goes to its successor without being closed: the successor, started with the
 * same --handover PATH, gets the listening socket itself (SCM_RIGHTS), so that connections that
 * wait to be accepted are its. No connection is refused or reset on the way.
 *
 * PATH is a Unix socket, mode 0600; processes of the same user are answered, others are not.
 */
#ifndef BATON_ROUTER_HANDOVER_H
#define BATON_ROUTER_HANDOVER_H

#include <stdint.h>

#include "common/messaging/loop.h"

/* ---- the successor: blocking, before its loop runs */

struct rt_handover_claim {
    int listener; /* -1: nobody offers one at PATH, and one listens for oneself */
    int peer;     /* to its owner */
};

/* UNAVAILABLE: somebody is there, and does not hand over within `timeout_ns`. */
enum bt_status rt_handover_claim(const char *path, int64_t timeout_ns, struct bt_error *error,
                                 struct rt_handover_claim *ret_claim);
uint16_t rt_handover_port(const struct rt_handover_claim *claim); /* 0: no listener */
/* The owner accepts no more from now on. Harmless where it has ended meanwhile. */
void rt_handover_take(struct rt_handover_claim *claim);
/* Without having taken it the owner goes on; a listener that is still here is closed. */
void rt_handover_drop(struct rt_handover_claim *claim);

/* ---- the owner */

struct rt_handover;

/* Offers `listener` (borrowed) at PATH, in place of what is there. `taken` is called once. */
enum bt_status rt_handover_offer(struct bt_loop *loop, const char *path, int listener,
                                 void (*taken)(void *context), void *context,
                                 struct bt_error *error, struct rt_handover **ret_handover);
void rt_handover_destroy(struct rt_handover *handover); /* NULL is fine */

#endif
