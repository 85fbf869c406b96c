#include "common/model/token_message.h"

#include <inttypes.h>
#include <math.h>

void bt_token_message_fill(struct bt_token_message *message, uint32_t index,
                           const struct bt_sample *sample, bool with_logprobs)
{
    baton__v1__token__init(&message->token);
    message->token.index = index;
    message->token.token = sample->token;
    if (!with_logprobs) {
        return;
    }
    message->token.has_logprob = true;
    message->token.logprob = sample->logprob;
    message->token.n_top = sample->top_count;
    message->token.top = message->top_list;
    for (uint32_t i = 0; i < sample->top_count; i++) {
        baton__v1__token_logprob__init(&message->top[i]);
        message->top[i].token = sample->top[i].token;
        message->top[i].logprob = sample->top[i].logprob;
        message->top_list[i] = &message->top[i];
    }
}

static enum bt_status read_top(const Baton__V1__Token *message, uint32_t vocab_size,
                               struct bt_error *error, struct bt_sample *sample)
{
    if (message->n_top > BT_SAMPLER_MAX_LOGPROBS) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "token.top: %zu entries, at most %d",
                            message->n_top, BT_SAMPLER_MAX_LOGPROBS);
    }
    for (size_t i = 0; i < message->n_top; i++) {
        const Baton__V1__TokenLogprob *top = message->top[i];
        if (!top || top->token >= vocab_size || isnan(top->logprob)) {
            return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                                "token.top[%zu] is not a token with its logprob", i);
        }
        sample->top[i].token = top->token;
        sample->top[i].logprob = top->logprob;
    }
    sample->top_count = (uint32_t)message->n_top;
    return BT_OK;
}

enum bt_status bt_token_message_read(const Baton__V1__Token *message, uint32_t vocab_size,
                                     struct bt_error *error, struct bt_sample *ret_sample)
{
    if (!message) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "token is missing");
    }
    if (message->token >= vocab_size) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                            "token.token %" PRIu32 " is not in the vocabulary of %" PRIu32,
                            message->token, vocab_size);
    }
    if (message->has_logprob && isnan(message->logprob)) {
        return bt_error_set(error, BT_ERR_INVALID_ARGUMENT, "token.logprob is not a number");
    }
    struct bt_sample sample = {.token = message->token, .logprob = message->logprob};
    enum bt_status status = read_top(message, vocab_size, error, &sample);
    if (status == BT_OK) {
        *ret_sample = sample;
    }
    return status;
}
