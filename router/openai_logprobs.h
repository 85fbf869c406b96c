/*
 * The logprobs objects of both APIs. Tokens are added to a choice, then written out and forgotten.
 */
#ifndef BATON_ROUTER_OPENAI_LOGPROBS_H
#define BATON_ROUTER_OPENAI_LOGPROBS_H

#include "router/openai_response.h"

/* Does nothing where logprobs were not asked for. */
void rt_openai_logprobs_add(const struct rt_openai_form *form, struct rt_openai_choice *choice,
                            const Baton__V1__Token *tokens, size_t token_count);

/* As if they had been added and written. */
void rt_openai_logprobs_pass(const struct rt_openai_form *form, struct rt_openai_choice *choice,
                             const Baton__V1__Token *tokens, size_t token_count);

/* The object, or null where logprobs were not asked for. */
void rt_openai_logprobs_write(const struct rt_openai_form *form, struct rt_openai_choice *choice,
                              struct rt_openai_json *out);

#endif
