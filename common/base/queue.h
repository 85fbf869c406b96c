/*
 * Bounded multi-producer single-consumer queue of fixed-size items between threads, with an
 * eventfd that is readable while items wait, so that an event loop or poll can sleep on it.
 * Items are copied in and out; a pointer inside an item changes owner with it.
 */
#ifndef BATON_COMMON_BASE_QUEUE_H
#define BATON_COMMON_BASE_QUEUE_H

#include <stdbool.h>
#include <stddef.h>

struct bt_queue;

/* `capacity` items of `item_bytes`, allocated here. NULL: no memory. */
struct bt_queue *bt_queue_create(size_t capacity, size_t item_bytes);
void bt_queue_destroy(struct bt_queue *queue);

/* False when full. Never blocks. */
bool bt_queue_try_push(struct bt_queue *queue, const void *item);

/* Blocks while full; false when the queue was closed (the item was not taken). */
bool bt_queue_push(struct bt_queue *queue, const void *item);

/* False when empty. Never blocks. Consumer thread only, like the two below. */
bool bt_queue_try_pop(struct bt_queue *queue, void *ret_item);

/* Blocks while empty; false when closed and empty. */
bool bt_queue_pop(struct bt_queue *queue, void *ret_item);

/* Readable while the queue has items or is closed; for poll only, never read it. */
int bt_queue_fd(const struct bt_queue *queue);

size_t bt_queue_size(const struct bt_queue *queue);

/* No more pushes; what is inside can still be popped. Any thread, any number of times. */
void bt_queue_close(struct bt_queue *queue);

#endif
