/*
 * Prompts on their way to token ids, with the checks that need the model: its name, vocabulary and
 * context. Shared by HTTP and RPC.
 */
#ifndef BATON_ROUTER_OPENAI_PROMPT_H
#define BATON_ROUTER_OPENAI_PROMPT_H

#include "router/openai_error.h"
#include "router/service.h"

/* NULL or "" is the served model. NOT_FOUND with code model_not_found. */
enum bt_status rt_openai_prompt_check_model(const struct rt_service *service, const char *model,
                                            struct rt_openai_error *error);

/* Who gets the ids, and until when. */
struct rt_openai_prompt_sink {
    int64_t deadline_ns;
    rt_tokenized_fn *fn;
    void *context;
};

/* Both begin to tokenize, unless the input is longer than the model's context can be. With
 * `add_bos`, BOS goes first where the tokenizer wants it and the text does not begin with it. */
enum bt_status rt_openai_prompt_encode_text(struct rt_service *service, const char *text,
                                            size_t size, bool add_bos, const char *param,
                                            const struct rt_openai_prompt_sink *sink,
                                            struct rt_openai_error *error,
                                            struct rt_tokenization_job **ret_job);
enum bt_status rt_openai_prompt_encode_messages(struct rt_service *service,
                                                const struct bt_chat_message *messages,
                                                size_t message_count,
                                                const struct rt_openai_prompt_sink *sink,
                                                struct rt_openai_error *error,
                                                struct rt_tokenization_job **ret_job);

/* What an rt_tokenized_fn was told, for the client. BT_OK stays BT_OK. */
enum bt_status rt_openai_prompt_result(enum bt_status status, const char *param, const char *text,
                                       struct rt_openai_error *error);

/* Not empty, every id in the vocabulary, and with `max_tokens` (0: at least 1) in the context. */
enum bt_status rt_openai_prompt_check_ids(const struct rt_service *service, const uint32_t *ids,
                                          size_t count, uint32_t max_tokens, const char *param,
                                          struct rt_openai_error *error);

#endif
