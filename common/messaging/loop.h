/*
 * The event loop of a process role: ZeroMQ sockets, file descriptors and timers on one thread.
 *
 * Everything here is called on the loop's thread, except bt_loop_stop(), which is safe from any
 * thread and from a signal handler. Callbacks may add and remove anything, themselves included.
 */
#ifndef BATON_COMMON_MESSAGING_LOOP_H
#define BATON_COMMON_MESSAGING_LOOP_H

#include <stdint.h>

#include "common/base/status.h"

struct bt_arena;
struct bt_loop;
struct bt_loop_source; /* a socket, a descriptor or a timer; freed by bt_loop_remove */

typedef void bt_loop_fn(void *context);

struct bt_loop *bt_loop_create(struct bt_error *error);
/* Frees the sources that are left. All ZeroMQ sockets of its context must be closed by now. NULL is
 * fine. */
void bt_loop_destroy(struct bt_loop *loop);

/* The process's ZeroMQ context (one a loop; ZMQ_LINGER 0, ZMQ_IPV6 on). */
void *bt_loop_zmq(struct bt_loop *loop);

/* For what a callback needs until it returns. */
struct bt_arena *bt_loop_arena(struct bt_loop *loop);

/* `fn` runs while the socket / descriptor is readable. NULL: no memory. */
struct bt_loop_source *bt_loop_add_socket(struct bt_loop *loop, void *zmq_socket, bt_loop_fn *fn,
                                          void *context);
struct bt_loop_source *bt_loop_add_fd(struct bt_loop *loop, int fd, bt_loop_fn *fn, void *context);

/* Fires once at `when_ns` (bt_clock_now_ns time base); re-arm with bt_loop_timer_set. BT_NEVER_NS:
 * disarmed. */
struct bt_loop_source *bt_loop_add_timer(struct bt_loop *loop, int64_t when_ns, bt_loop_fn *fn,
                                         void *context);
void bt_loop_timer_set(struct bt_loop_source *timer, int64_t when_ns);
/* The same, unless it fires earlier already. */
void bt_loop_timer_bring_forward(struct bt_loop_source *timer, int64_t when_ns);

void bt_loop_remove(struct bt_loop_source *source); /* NULL is fine */

/* Runs after every round of callbacks, before the loop sleeps. One per loop. */
void bt_loop_set_after(struct bt_loop *loop, bt_loop_fn *fn, void *context);

/* Until bt_loop_stop; a stop that came before counts. Rounds do not nest: no callback runs the
 * loop. */
enum bt_status bt_loop_run(struct bt_loop *loop, struct bt_error *error);
/* One round; sleeps at most until `until_ns`. For tests and clients that wait for one answer. */
enum bt_status bt_loop_run_once(struct bt_loop *loop, int64_t until_ns, struct bt_error *error);
void bt_loop_stop(struct bt_loop *loop);
/* From bt_loop_stop until bt_loop_run returned: for those who wait with bt_loop_run_once. */
bool bt_loop_stopping(const struct bt_loop *loop);

/* SIGTERM and SIGINT stop this loop (signalfd; call before threads start). SIGPIPE is ignored. */
enum bt_status bt_loop_stop_on_signals(struct bt_loop *loop, struct bt_error *error);

#endif
