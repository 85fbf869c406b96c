#include "common/base/queue.h"

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/base/status.h"

struct bt_queue {
    pthread_mutex_t mutex;
    pthread_cond_t not_full;
    pthread_cond_t not_empty;
    int fd; /* its count is 1 while there are items or the queue is closed */
    bool signalled;
    bool closed;
    size_t capacity;
    size_t item_bytes;
    size_t head;
    size_t size;
    unsigned char items[];
};

struct bt_queue *bt_queue_create(size_t capacity, size_t item_bytes)
{
    BT_ASSERT(capacity > 0 && item_bytes > 0);
    size_t bytes;
    if (__builtin_mul_overflow(capacity, item_bytes, &bytes) ||
        __builtin_add_overflow(bytes, sizeof(struct bt_queue), &bytes)) {
        return NULL;
    }
    struct bt_queue *queue = calloc(1, bytes);
    if (!queue) {
        return NULL;
    }
    queue->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (queue->fd < 0) {
        free(queue);
        return NULL;
    }
    pthread_mutex_init(&queue->mutex, NULL);
    pthread_cond_init(&queue->not_full, NULL);
    pthread_cond_init(&queue->not_empty, NULL);
    queue->capacity = capacity;
    queue->item_bytes = item_bytes;
    return queue;
}

void bt_queue_destroy(struct bt_queue *queue)
{
    if (!queue) {
        return;
    }
    close(queue->fd);
    pthread_cond_destroy(&queue->not_empty);
    pthread_cond_destroy(&queue->not_full);
    pthread_mutex_destroy(&queue->mutex);
    free(queue);
}

/* Brings the eventfd in line with the state. Mutex held. */
static void signal_update(struct bt_queue *queue)
{
    bool wanted = queue->size > 0 || queue->closed;
    if (wanted == queue->signalled) {
        return;
    }
    uint64_t count = 1;
    ssize_t done =
        wanted ? write(queue->fd, &count, sizeof count) : read(queue->fd, &count, sizeof count);
    BT_ASSERT(done == (ssize_t)sizeof count);
    queue->signalled = wanted;
}

/* Mutex held. */
static void put(struct bt_queue *queue, const void *item)
{
    size_t slot = (queue->head + queue->size) % queue->capacity;
    memcpy(queue->items + slot * queue->item_bytes, item, queue->item_bytes);
    queue->size++;
    signal_update(queue);
    pthread_cond_signal(&queue->not_empty);
}

/* Mutex held. */
static void take(struct bt_queue *queue, void *ret_item)
{
    memcpy(ret_item, queue->items + queue->head * queue->item_bytes, queue->item_bytes);
    queue->head = (queue->head + 1) % queue->capacity;
    queue->size--;
    signal_update(queue);
    pthread_cond_signal(&queue->not_full);
}

bool bt_queue_try_push(struct bt_queue *queue, const void *item)
{
    pthread_mutex_lock(&queue->mutex);
    bool ok = !queue->closed && queue->size < queue->capacity;
    if (ok) {
        put(queue, item);
    }
    pthread_mutex_unlock(&queue->mutex);
    return ok;
}

bool bt_queue_push(struct bt_queue *queue, const void *item)
{
    pthread_mutex_lock(&queue->mutex);
    while (!queue->closed && queue->size == queue->capacity) {
        pthread_cond_wait(&queue->not_full, &queue->mutex);
    }
    bool ok = !queue->closed;
    if (ok) {
        put(queue, item);
    }
    pthread_mutex_unlock(&queue->mutex);
    return ok;
}

bool bt_queue_try_pop(struct bt_queue *queue, void *ret_item)
{
    pthread_mutex_lock(&queue->mutex);
    bool ok = queue->size > 0;
    if (ok) {
        take(queue, ret_item);
    }
    pthread_mutex_unlock(&queue->mutex);
    return ok;
}

bool bt_queue_pop(struct bt_queue *queue, void *ret_item)
{
    pthread_mutex_lock(&queue->mutex);
    while (!queue->closed && queue->size == 0) {
        pthread_cond_wait(&queue->not_empty, &queue->mutex);
    }
    bool ok = queue->size > 0;
    if (ok) {
        take(queue, ret_item);
    }
    pthread_mutex_unlock(&queue->mutex);
    return ok;
}

int bt_queue_fd(const struct bt_queue *queue)
{
    return queue->fd;
}

size_t bt_queue_size(const struct bt_queue *queue)
{
    struct bt_queue *locked = (struct bt_queue *)queue;
    pthread_mutex_lock(&locked->mutex);
    size_t size = locked->size;
    pthread_mutex_unlock(&locked->mutex);
    return size;
}

void bt_queue_close(struct bt_queue *queue)
{
    pthread_mutex_lock(&queue->mutex);
    queue->closed = true;
    signal_update(queue);
    pthread_cond_broadcast(&queue->not_full);
    pthread_cond_broadcast(&queue->not_empty);
    pthread_mutex_unlock(&queue->mutex);
}
