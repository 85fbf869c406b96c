/*
 * Whether a generation is within what the model and the API allow. Pure.
 */
#ifndef BATON_ROUTER_GENERATION_LIMITS_H
#define BATON_ROUTER_GENERATION_LIMITS_H

#include "router/service.h"

#define RT_MAX_LOGPROBS   20
#define RT_MAX_LOGIT_BIAS 1024

/*
 * INVALID_ARGUMENT naming the field as the API does. `ret_max_tokens`: what the request may
 * generate, with the default filled in.
 */
enum bt_status rt_generation_check(const struct rt_generation *generation, uint32_t max_model_len,
                                   uint32_t vocab_size, struct bt_error *error,
                                   uint32_t *ret_max_tokens);

#endif
