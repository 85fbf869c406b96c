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

bool rt_action_queue_reserve(struct rt_action_queue *queue, size_t count)
{
    size_t needed = queue->count + count;
    if (needed <= queue->capacity) {
        return true;
    }
    size_t capacity = queue->capacity ? queue->capacity : FIRST_CAPACITY;
    while (capacity < needed) {
        capacity *= 2;
    }
    struct rt_queued_action *actions = calloc(capacity, sizeof *actions);
    if (!actions) {
        return false;
    }
    for (size_t i = 0; i < queue->count; i++) {
        actions[i] = *slot(queue, i);
    }
    free(queue->actions);
    queue->actions = actions;
    queue->head = 0;
    queue->capacity = capacity;
    return true;
}

static bool copy_tokens(struct rt_action_queue *queue, const struct rt_token *tokens, size_t count)
{
    size_t first = queue->count > 0 ? queue->token_count : 0;
    if (first + count > queue->token_capacity) {
        size_t capacity = (first + count) * 2;
        struct rt_token *grown = realloc(queue->tokens, capacity * sizeof *grown);
        if (!grown) {
            return false;
        }
        queue->tokens = grown;
        queue->token_capacity = capacity;
    }
    memcpy(queue->tokens + first, tokens, count * sizeof *tokens);
    queue->token_count = first + count;
    return true;
}

static struct rt_queued_action *append(struct rt_action_queue *queue,
                                       const struct rt_action *action)
{
    BT_ASSERT(queue->count < queue->capacity);
    struct rt_queued_action *queued = slot(queue, queue->count++);
    *queued = (struct rt_queued_action){.action = *action};
    return queued;
}

void rt_action_queue_push(struct rt_action_queue *queue, const struct rt_action *action)
{
    BT_ASSERT(action->token_count == 0);
    struct rt_queued_action *queued = append(queue, action);
    if (action->text) {
        queued->text = strdup(action->text);
        queued->action.text = queued->text ? queued->text : "no memory for the reason";
    }
}

bool rt_action_queue_push_tokens(struct rt_action_queue *queue, const struct rt_action *action)
{
    BT_ASSERT(action->token_count > 0 && !action->text);
    if (!copy_tokens(queue, action->tokens, action->token_count)) {
        return false;
    }
    struct rt_queued_action *queued = append(queue, action);
    queued->first_token = queue->token_count - action->token_count;
    return true;
}

bool rt_action_queue_pop(struct rt_action_queue *queue, struct rt_action *ret_action)
{
    free(queue->text);
    queue->text = NULL;
    if (queue->count == 0) {
        return false;
    }
    struct rt_queued_action *queued = slot(queue, 0);
    queue->count--;
    /* room for all that could come is there, but only what comes at a time is touched */
    queue->head = queue->count > 0 ? (queue->head + 1) % queue->capacity : 0;
    *ret_action = queued->action;
    ret_action->tokens =
        queued->action.token_count > 0 ? queue->tokens + queued->first_token : NULL;
    queue->text = queued->text;
    return true;
}
