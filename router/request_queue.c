#include "router/request_queue.h"

#include <stdlib.h>

#include "common/base/clock.h"

void rt_request_queue_insert(struct rt_request_queue *queue, struct rt_request *request)
{
    struct rt_request *next = NULL;
    if (queue->tail && queue->tail->serial > request->serial) {
        next = queue->head;
        while (next->serial < request->serial) {
            next = next->queue_next;
        }
    }
    struct rt_request *prev = next ? next->queue_prev : queue->tail;
    request->queue_next = next;
    request->queue_prev = prev;
    *(prev ? &prev->queue_next : &queue->head) = request;
    *(next ? &next->queue_prev : &queue->tail) = request;
    queue->count++;
}

void rt_request_queue_remove(struct rt_request_queue *queue, struct rt_request *request)
{
    struct rt_request *prev = request->queue_prev;
    struct rt_request *next = request->queue_next;
    *(prev ? &prev->queue_next : &queue->head) = next;
    *(next ? &next->queue_prev : &queue->tail) = prev;
    request->queue_prev = request->queue_next = NULL;
    queue->count--;
}

void rt_deadline_heap_finish(struct rt_deadline_heap *heap)
{
    free(heap->requests);
    *heap = (struct rt_deadline_heap){0};
}

static void place(struct rt_deadline_heap *heap, size_t i, struct rt_request *request)
{
    heap->requests[i] = request;
    request->heap_index = i;
}

static bool earlier(const struct rt_request *a, const struct rt_request *b)
{
    return a->spec.deadline_ns < b->spec.deadline_ns;
}

static void sift_up(struct rt_deadline_heap *heap, size_t i)
{
    struct rt_request *request = heap->requests[i];
    while (i > 0 && earlier(request, heap->requests[(i - 1) / 2])) {
        place(heap, i, heap->requests[(i - 1) / 2]);
        i = (i - 1) / 2;
    }
    place(heap, i, request);
}

static void sift_down(struct rt_deadline_heap *heap, size_t i)
{
    struct rt_request *request = heap->requests[i];
    for (size_t child; (child = 2 * i + 1) < heap->count; i = child) {
        if (child + 1 < heap->count && earlier(heap->requests[child + 1], heap->requests[child])) {
            child++;
        }
        if (!earlier(heap->requests[child], request)) {
            break;
        }
        place(heap, i, heap->requests[child]);
    }
    place(heap, i, request);
}

bool rt_deadline_heap_insert(struct rt_deadline_heap *heap, struct rt_request *request)
{
    request->heap_index = SIZE_MAX;
    if (request->spec.deadline_ns == BT_NEVER_NS) {
        return true;
    }
    if (heap->count == heap->capacity) {
        size_t capacity = heap->capacity ? heap->capacity * 2 : 64;
        struct rt_request **grown = realloc(heap->requests, capacity * sizeof(struct rt_request *));
        if (!grown) {
            return false;
        }
        heap->requests = grown;
        heap->capacity = capacity;
    }
    place(heap, heap->count, request);
    sift_up(heap, heap->count++);
    return true;
}

void rt_deadline_heap_remove(struct rt_deadline_heap *heap, struct rt_request *request)
{
    size_t i = request->heap_index;
    if (i == SIZE_MAX) {
        return;
    }
    request->heap_index = SIZE_MAX;
    struct rt_request *last = heap->requests[--heap->count];
    if (last != request) {
        place(heap, i, last);
        sift_up(heap, i);
        sift_down(heap, last->heap_index);
    }
}

struct rt_request *rt_deadline_heap_first(const struct rt_deadline_heap *heap)
{
    return heap->count > 0 ? heap->requests[0] : NULL;
}
