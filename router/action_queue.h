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

/* Room for `count` more. False: no memory. */
bool rt_action_queue_reserve(struct rt_action_queue *queue, size_t count);

/* Never fails, as promises of the core hang on it (one END, every page given back): the room must
 * be there. A text that there is no memory for is replaced by one that says so. Not for tokens. */
void rt_action_queue_push(struct rt_action_queue *queue, const struct rt_action *action);
/* The same with tokens. False: no memory to copy them, and nothing was queued. */
bool rt_action_queue_push_tokens(struct rt_action_queue *queue, const struct rt_action *action);

/* What `ret_action` points to is valid until the next call on the queue. */
bool rt_action_queue_pop(struct rt_action_queue *queue, struct rt_action *ret_action);

#endif
