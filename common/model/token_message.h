/* A generated token between the sampler's form and the wire's. */
#ifndef BATON_COMMON_MODEL_TOKEN_MESSAGE_H
#define BATON_COMMON_MODEL_TOKEN_MESSAGE_H

#include "common/model/sampler.h"
#include "proto/types.pb-c.h"

/* A message with the memory that it points to: not to be copied or moved once filled. */
struct bt_token_message {
    Baton__V1__Token token;
    Baton__V1__TokenLogprob top[BT_SAMPLER_MAX_LOGPROBS];
    Baton__V1__TokenLogprob *top_list[BT_SAMPLER_MAX_LOGPROBS];
};

/* `index` counts generated tokens from 0; `with_logprobs`: the request asked for them. */
void bt_token_message_fill(struct bt_token_message *message, uint32_t index,
                           const struct bt_sample *sample, bool with_logprobs);

/* INVALID_ARGUMENT, naming the field: no message, an id that is not in the vocabulary, more than
 * BT_SAMPLER_MAX_LOGPROBS alternatives, a logprob that is not a number. */
enum bt_status bt_token_message_read(const Baton__V1__Token *message, uint32_t vocab_size,
                                     struct bt_error *error, struct bt_sample *ret_sample);

#endif
