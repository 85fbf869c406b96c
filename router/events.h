/*
 * What happened to the cluster: the last RT_EVENTS_KEPT events, numbered from 1, and the streams
 * that follow them. Loop thread only.
 *
 * A follower has nothing of its own but the number it has come to. One that reads slowly is gone on
 * with when there is room; what is not kept by then it misses, and sees by the numbers.
 */
#ifndef BATON_ROUTER_EVENTS_H
#define BATON_ROUTER_EVENTS_H

#include <stdint.h>

#include "common/base/status.h"
#include "common/messaging/loop.h"
#include "common/messaging/rpc.h"

#define RT_EVENTS_KEPT         1024
#define RT_EVENT_FOLLOWERS_MAX 64
#define RT_EVENT_TEXT_SIZE     256

struct rt_events;

struct rt_events *rt_events_create(struct bt_loop *loop); /* NULL: no memory */
/* After the server whose calls follow them. NULL is fine. */
void rt_events_destroy(struct rt_events *events);

/* `kind` is a literal, "worker-ready"; `worker_id` "" of none. One that repeats what was told last
 * is not kept. Cut where it is too long, and '?' for what is not text. */
void rt_events_add(struct rt_events *events, const char *kind, const char *worker_id,
                   const char *format, ...) __attribute__((format(printf, 4, 5)));

/* Sends those after number `since`, and then ends the call, or with `follow` goes on with those to
 * come. A number that is not reached yet is of another router's life: all that are kept. Ends the
 * call with EXHAUSTED where too many follow. */
void rt_events_serve(struct rt_events *events, struct bt_rpc_call *call, uint64_t since,
                     bool follow);

#endif
