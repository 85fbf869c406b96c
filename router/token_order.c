/* Tokens reach the client in order and once, from whatever attempt they come. */
#include <stdlib.h>

#include "router/core_state.h"

static bool grow_delivered(struct rt_request *request, uint32_t count)
{
    if (count <= request->delivered_capacity) {
        return true;
    }
    uint64_t capacity = (uint64_t)count * 2;
    if (capacity > request->spec.max_tokens) {
        capacity = request->spec.max_tokens;
    }
    uint32_t *grown = realloc(request->delivered, capacity * sizeof *grown);
    if (!grown) {
        return false;
    }
    request->delivered = grown;
    request->delivered_capacity = (uint32_t)capacity;
    return true;
}

/*
 * One token of any attempt: new, or a repeat that has to be the same. Anything but BT_OK breaks a
 * promise: INTERNAL that a token depends on its sequence alone, PROTOCOL that tokens come in order.
 */
static enum bt_status accept_token(struct rt_request *request, const struct rt_token *token,
                                   struct bt_error *error)
{
    if (token->index < request->delivered_count) {
        uint32_t before = request->delivered[token->index];
        return before == token->token
                   ? BT_OK
                   : bt_error_set(error, BT_ERR_INTERNAL,
                                  "not deterministic: token %u was %u and is now %u", token->index,
                                  before, token->token);
    }
    if (token->index > request->delivered_count || token->index >= request->spec.max_tokens) {
        return bt_error_set(error, BT_ERR_PROTOCOL, "token %u after %u tokens of at most %u",
                            token->index, request->delivered_count, request->spec.max_tokens);
    }
    if (!grow_delivered(request, request->delivered_count + 1)) {
        return bt_error_set(error, BT_ERR_NO_MEMORY, "no memory for tokens");
    }
    request->delivered[request->delivered_count++] = token->token;
    return BT_OK;
}

bool rt_core_deliver(struct rt_core *core, struct rt_request *request, rt_worker_ref source,
                     enum rt_rest rest, const struct rt_token *tokens, uint32_t count)
{
    struct bt_error error = {.status = BT_OK};
    uint32_t delivered_before = request->delivered_count;
    uint32_t accepted = 0;
    uint32_t first_new = 0;
    while (accepted < count && accept_token(request, &tokens[accepted], &error) == BT_OK) {
        accepted++;
        if (request->delivered_count == delivered_before) {
            first_new = accepted;
        }
    }
    if (request->isolated && request->delivered_count > delivered_before) {
        core->dispatch_due = true;
        rt_worker_end_isolation(&core->workers, request);
    }
    /* Repeats come before new ones, or between them only if a peer repeats itself in one message.
     */
    for (uint32_t i = first_new, expected = delivered_before; i < accepted;) {
        uint32_t run = 0;
        while (i + run < accepted && tokens[i + run].index == expected) {
            run++;
            expected++;
        }
        if (run > 0 && !rt_core_emit_tokens(core, request, &tokens[i], run)) {
            rt_request_fail(core, request, rest, BT_ERR_NO_MEMORY, "no memory for tokens");
            return false;
        }
        i += run > 0 ? run : 1;
    }
    if (accepted == count) {
        return true;
    }
    if (error.status == BT_ERR_PROTOCOL) {
        rt_attempt_failed(core, request, source, rest, error.status, error.text);
    } else {
        rt_request_fail(core, request, rest, error.status, "%s: %s",
                        rt_core_worker_name(core, source), error.text);
    }
    return false;
}
