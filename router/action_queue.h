/*
 * What the core wants done, in order. Copies tokens and texts, so that an event's memory need not
 * outlive the event. Internal to the core.
 */
#ifndef BATON_ROUTER_ACTION_QUEUE_H
#define BATON_ROUTER_ACTION_QUEUE_H

#include "router/core.h"

struct rt_action_queue {
    struct rt_queued_action *actions; /* ring */
    size_t head, count, capacity;
    struct rt_token *tokens; /* of all queued TOKENS; starts over when the queue is empty */
    size_t token_count, token_capacity;
    char *text; /* of the action given out last */
};

void rt_action_queue_finish(struct rt_action_queue *queue); /* a zeroed queue is ready for use */

/* Never fails: without memory there is no sound way on, as a promise of the core (one END, every
 * page given back) would be broken. */
void rt_action_queue_push(struct rt_action_queue *queue, const struct rt_action *action);

/* What `ret_action` points to is valid until the next call on the queue. */
bool rt_action_queue_pop(struct rt_action_queue *queue, struct rt_action *ret_action);

#endif
