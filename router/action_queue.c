#include "router/action_queue.h"

#include <stdlib.h>
#include <string.h>

#define FIRST_CAPACITY 64

struct rt_queued_action {
    struct rt_action action;
    size_t first_token;
    char *text;
};

static struct rt_queued_action *slot(const struct rt_action_queue *queue, size_t i)
{
    return &queue->actions[(queue->head + i) % queue->capacity];
}

void rt_action_queue_finish(struct rt_action_queue *queue)
{
    for (size_t i = 0; i < queue->count; i++) {
        free(slot(queue, i)->text);
    }
    free(queue->actions);
    free(queue->tokens);
    free(queue->text);
    *queue = (struct rt_action_queue){0};
}

static void grow(struct rt_action_queue *queue)
{
    size_t capacity = queue->capacity ? queue->capacity * 2 : FIRST_CAPACITY;
    struct rt_queued_action *actions = calloc(capacity, sizeof *actions);
    BT_ASSERT(actions);
    for (size_t i = 0; i < queue->count; i++) {
        actions[i] = *slot(queue, i);
    }
    free(queue->actions);
    queue->actions = actions;
    queue->head = 0;
    queue->capacity = capacity;
}

static size_t copy_tokens(struct rt_action_queue *queue, const struct rt_token *tokens,
                          size_t count)
{
    size_t first = queue->token_count;
    if (first + count > queue->token_capacity) {
        size_t capacity = (first + count) * 2;
        queue->tokens = realloc(queue->tokens, capacity * sizeof *queue->tokens);
        BT_ASSERT(queue->tokens);
        queue->token_capacity = capacity;
    }
    if (count > 0) {
        memcpy(queue->tokens + first, tokens, count * sizeof *tokens);
    }
    queue->token_count += count;
    return first;
}

void rt_action_queue_push(struct rt_action_queue *queue, const struct rt_action *action)
{
    if (queue->count == queue->capacity) {
        grow(queue);
    }
    if (queue->count == 0) {
        queue->token_count = 0;
    }
    struct rt_queued_action *queued = slot(queue, queue->count++);
    queued->action = *action;
    queued->first_token = copy_tokens(queue, action->tokens, action->token_count);
    queued->text = NULL;
    if (action->text) {
        queued->text = strdup(action->text);
        BT_ASSERT(queued->text);
    }
}

bool rt_action_queue_pop(struct rt_action_queue *queue, struct rt_action *ret_action)
{
    free(queue->text);
    queue->text = NULL;
    if (queue->count == 0) {
        return false;
    }
    struct rt_queued_action *queued = slot(queue, 0);
    queue->head = (queue->head + 1) % queue->capacity;
    queue->count--;
    *ret_action = queued->action;
    ret_action->tokens =
        queued->action.token_count > 0 ? queue->tokens + queued->first_token : NULL;
    queue->text = queued->text;
    ret_action->text = queue->text;
    return true;
}
