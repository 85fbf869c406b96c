/*
 * The `messages` and `prompt` fields of a body. Used by openai_request.c only.
 */
#ifndef BATON_ROUTER_OPENAI_MESSAGES_H
#define BATON_ROUTER_OPENAI_MESSAGES_H

#include "router/openai_request.h"

/* Both fill `request`, which rt_openai_request_finish cleans after failures, too. */
enum bt_status rt_openai_messages_parse(const json_t *messages, struct rt_openai_error *error,
                                        struct rt_openai_request *request);
enum bt_status rt_openai_prompts_parse(const json_t *prompt, const char *name,
                                       struct rt_openai_error *error,
                                       struct rt_openai_request *request);

#endif
