/*
 * Requests that wait, in order of submission, and the deadlines of all requests.
 *
 * Requests leave the queue from its head only, so one that comes back (its attempt failed, its
 * pages were preempted) is older than every request that was never taken: sorted by serial it is at
 * the head again without further rules. Internal to the core; requests are not owned.
 */
#ifndef BATON_ROUTER_REQUEST_QUEUE_H
#define BATON_ROUTER_REQUEST_QUEUE_H

#include "router/request.h"

struct rt_request_queue {
    struct rt_request *head, *tail;
    uint32_t count;
};

void rt_request_queue_insert(struct rt_request_queue *queue, struct rt_request *request);
void rt_request_queue_remove(struct rt_request_queue *queue, struct rt_request *request);

/* Binary min-heap; a zeroed one is ready for use. */
struct rt_deadline_heap {
    struct rt_request **requests;
    size_t count, capacity;
};

void rt_deadline_heap_finish(struct rt_deadline_heap *heap);
/* Requests without a deadline stay outside. False: no memory. */
bool rt_deadline_heap_insert(struct rt_deadline_heap *heap, struct rt_request *request);
void rt_deadline_heap_remove(struct rt_deadline_heap *heap, struct rt_request *request);
struct rt_request *rt_deadline_heap_first(const struct rt_deadline_heap *heap); /* NULL: empty */

#endif
