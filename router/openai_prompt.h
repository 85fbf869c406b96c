/*
 * Prompts to token ids, with the checks that need the model: its name, vocabulary and context.
 * Shared by HTTP and RPC. Buffers are the caller's, as bt_token_buffer says.
 */
#ifndef BATON_ROUTER_OPENAI_PROMPT_H
#define BATON_ROUTER_OPENAI_PROMPT_H

#include "router/openai_error.h"
#include "router/service.h"

/* NULL or "" is the served model. NOT_FOUND with code model_not_found. */
enum bt_status rt_openai_prompt_check_model(const struct rt_service *service, const char *model,
                                            struct rt_openai_error *error);

/* BOS goes first where the tokenizer wants it and the text does not begin with it. */
enum bt_status rt_openai_prompt_encode_text(const struct rt_service *service, const char *text,
                                            size_t size, bool add_special_tokens, const char *param,
                                            struct rt_openai_error *error,
                                            struct bt_token_buffer *ret_ids);

enum bt_status rt_openai_prompt_encode_messages(const struct rt_service *service,
                                                const struct bt_chat_message *messages,
                                                size_t message_count, struct rt_openai_error *error,
                                                struct bt_token_buffer *ret_ids);

/* Not empty, every id in the vocabulary, and with `max_tokens` (0: at least 1) in the context. */
enum bt_status rt_openai_prompt_check_ids(const struct rt_service *service, const uint32_t *ids,
                                          size_t count, uint32_t max_tokens, const char *param,
                                          struct rt_openai_error *error);

#endif
