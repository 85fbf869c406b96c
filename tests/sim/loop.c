/* The event loop and the queues between threads, in the world's time. */
#include <stdlib.h>
#include <string.h>

#include "common/base/queue.h"
#include "common/messaging/security.h"
#include "tests/sim/seams.h"

#define MAX_SOURCES 256
#define MAX_QUEUES  64
#define FIRST_FD    1000

enum source_kind { SOURCE_FREE, SOURCE_TIMER, SOURCE_QUEUE };

struct bt_loop_source {
    enum source_kind kind;
    struct node *node;
    uint64_t generation;
    int64_t when_ns;
    bt_loop_fn *fn;
    void *context;
    struct bt_queue *queue;
    bool posted; /* a look at the queue is due */
};

struct bt_loop {
    struct node *node;
    bt_loop_fn *after;
    void *after_context;
};

struct bt_queue {
    size_t capacity, item_bytes, first, size;
    struct bt_loop_source *source;
    int fd;
    char *items;
};

static struct bt_loop_source sources[MAX_SOURCES];
static struct bt_queue *queues[MAX_QUEUES];
static struct node *queue_nodes[MAX_QUEUES];

/* ---- loop */

struct bt_loop *loop_create(struct node *node)
{
    struct bt_loop *loop = calloc(1, sizeof(*loop));
    loop->node = node;
    return loop;
}

void loop_round_end(struct node *node)
{
    if (node->loop && node->loop->after) {
        node->loop->after(node->loop->after_context);
    }
}

void bt_loop_set_after(struct bt_loop *loop, bt_loop_fn *fn, void *context)
{
    loop->after = fn;
    loop->after_context = context;
}

const char *bt_loop_public_key(const struct bt_loop *loop)
{
    (void)loop;
    return NULL; /* nothing is encrypted in the world */
}

void bt_loop_stop(struct bt_loop *loop)
{
    fail("%s stopped by itself", loop->node->id);
}

static struct bt_loop_source *source_take(struct bt_loop *loop, enum source_kind kind,
                                          bt_loop_fn *fn, void *context)
{
    for (uint32_t i = 0; i < MAX_SOURCES; i++) {
        if (sources[i].kind == SOURCE_FREE) {
            sources[i] = (struct bt_loop_source){.kind = kind,
                                                 .node = loop->node,
                                                 .generation = sources[i].generation + 1,
                                                 .when_ns = BT_NEVER_NS,
                                                 .fn = fn,
                                                 .context = context};
            return &sources[i];
        }
    }
    BT_ASSERT(false);
}

static void timer_fire(void *object, uint64_t generation)
{
    struct bt_loop_source *source = object;
    if (source->kind == SOURCE_TIMER && source->generation == generation) {
        source->when_ns = BT_NEVER_NS;
        source->fn(source->context);
    }
}

void bt_loop_timer_set(struct bt_loop_source *timer, int64_t when_ns)
{
    if (timer->when_ns == when_ns) {
        return;
    }
    timer->generation++;
    timer->when_ns = when_ns;
    if (when_ns != BT_NEVER_NS) {
        event_at(when_ns, timer->node, timer_fire, timer, timer->generation);
    }
}

void bt_loop_timer_bring_forward(struct bt_loop_source *timer, int64_t when_ns)
{
    if (when_ns < timer->when_ns) {
        bt_loop_timer_set(timer, when_ns);
    }
}

struct bt_loop_source *bt_loop_add_timer(struct bt_loop *loop, int64_t when_ns, bt_loop_fn *fn,
                                         void *context)
{
    struct bt_loop_source *source = source_take(loop, SOURCE_TIMER, fn, context);
    bt_loop_timer_set(source, when_ns);
    return source;
}

void bt_loop_remove(struct bt_loop_source *source)
{
    if (source == NULL) {
        return;
    }
    if (source->queue) {
        source->queue->source = NULL;
    }
    source->kind = SOURCE_FREE;
    source->generation++;
}

static void queue_look(void *object, uint64_t generation)
{
    struct bt_loop_source *source = object;
    if (source->kind != SOURCE_QUEUE || source->generation != generation) {
        return;
    }
    source->posted = false;
    source->fn(source->context);
}

static void queue_post(struct bt_queue *queue)
{
    struct bt_loop_source *source = queue->source;
    if (source && !source->posted && queue->size > 0) {
        source->posted = true;
        event_at(world.now_ns + draw_ns(0, 10 * SIM_US), source->node, queue_look, source,
                 source->generation);
    }
}

struct bt_loop_source *bt_loop_add_fd(struct bt_loop *loop, int fd, bt_loop_fn *fn, void *context)
{
    struct bt_loop_source *source = source_take(loop, SOURCE_QUEUE, fn, context);
    source->queue = queues[fd - FIRST_FD];
    source->queue->source = source;
    queue_post(source->queue);
    return source;
}

/* ---- queues */

struct bt_queue *bt_queue_create(size_t capacity, size_t item_bytes)
{
    struct bt_queue *queue = calloc(1, sizeof(*queue));
    queue->capacity = capacity;
    queue->item_bytes = item_bytes;
    queue->items = malloc(capacity * item_bytes);
    while (queues[queue->fd]) {
        queue->fd++;
        BT_ASSERT(queue->fd < MAX_QUEUES);
    }
    queues[queue->fd] = queue;
    queue_nodes[queue->fd] = world.current;
    return queue;
}

void bt_queue_destroy(struct bt_queue *queue)
{
    if (queue) {
        queues[queue->fd] = NULL;
        free(queue->items);
        free(queue);
    }
}

bool bt_queue_try_push(struct bt_queue *queue, const void *item)
{
    if (queue->size == queue->capacity) {
        return false;
    }
    size_t at = (queue->first + queue->size++) % queue->capacity;
    memcpy(queue->items + at * queue->item_bytes, item, queue->item_bytes);
    queue_post(queue);
    return true;
}

bool bt_queue_try_pop(struct bt_queue *queue, void *ret_item)
{
    if (queue->size == 0) {
        return false;
    }
    memcpy(ret_item, queue->items + queue->first * queue->item_bytes, queue->item_bytes);
    queue->first = (queue->first + 1) % queue->capacity;
    queue->size--;
    return true;
}

int bt_queue_fd(const struct bt_queue *queue)
{
    return FIRST_FD + queue->fd;
}

size_t bt_queue_size(const struct bt_queue *queue)
{
    return queue->size;
}

/* ---- the process died */

void loop_forget(struct node *node)
{
    for (uint32_t i = 0; i < MAX_SOURCES; i++) {
        if (sources[i].kind != SOURCE_FREE && sources[i].node == node) {
            sources[i].kind = SOURCE_FREE;
            sources[i].generation++;
        }
    }
    for (uint32_t i = 0; i < MAX_QUEUES; i++) {
        if (queue_nodes[i] == node) {
            queues[i] = NULL;
            queue_nodes[i] = NULL;
        }
    }
}

/* Nobody is refused here. */
void bt_loop_export_refused(struct bt_loop *loop, struct bt_metrics *metrics)
{
    (void)loop;
    (void)metrics;
}
