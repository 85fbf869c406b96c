#include "router/openai_prompt.h"

#include <inttypes.h>
#include <string.h>

enum bt_status rt_openai_prompt_check_model(const struct rt_service *service, const char *model,
                                            struct rt_openai_error *error)
{
    const char *served = rt_service_model_name(service);
    if (model == NULL || model[0] == '\0' || strcmp(model, served) == 0)
        return BT_OK;
    return rt_openai_error_set(error, BT_ERR_NOT_FOUND, "model", "model_not_found",
                               "model \"%.100s\" does not exist, this server has \"%.100s\"", model,
                               served);
}

/* A text that can't fit the context is refused before it is tokenized, which takes a while. */
static enum bt_status check_bytes(const struct rt_service *service, size_t bytes, const char *param,
                                  struct rt_openai_error *error)
{
    size_t context = rt_service_max_model_len(service);
    size_t longest = bt_tokenizer_longest_token(rt_service_tokenizer(service));
    if (longest == 0 || bytes / longest < context)
        return BT_OK;
    return rt_openai_error_set(error, BT_ERR_INVALID_ARGUMENT, param, "context_length_exceeded",
                               "%s: %zu bytes are more than the model's context of %zu tokens can "
                               "hold",
                               param, bytes, context);
}

static enum bt_status start(struct rt_service *service, const struct bt_tokenize_input *input,
                            const char *param, const struct rt_openai_prompt_sink *sink,
                            struct rt_openai_error *error, struct rt_tokenization_job **ret_job)
{
    struct bt_error reason = {0};
    enum bt_status status =
        rt_tokenization_start(rt_service_tokenization(service), input, sink->deadline_ns, sink->fn,
                              sink->context, &reason, ret_job);
    return rt_openai_prompt_result(status, param, reason.text, error);
}

enum bt_status rt_openai_prompt_encode_text(struct rt_service *service, const char *text,
                                            size_t size, bool add_bos, const char *param,
                                            const struct rt_openai_prompt_sink *sink,
                                            struct rt_openai_error *error,
                                            struct rt_tokenization_job **ret_job)
{
    const struct bt_tokenize_input input = {
        .text = text, .size = size, .special = true, .add_bos = add_bos};
    enum bt_status status = check_bytes(service, size, param, error);
    return status == BT_OK ? start(service, &input, param, sink, error, ret_job) : status;
}

enum bt_status rt_openai_prompt_encode_messages(struct rt_service *service,
                                                const struct bt_chat_message *messages,
                                                size_t message_count,
                                                const struct rt_openai_prompt_sink *sink,
                                                struct rt_openai_error *error,
                                                struct rt_tokenization_job **ret_job)
{
    const struct bt_tokenize_input input = {.messages = messages, .message_count = message_count};
    size_t bytes = 0;
    for (size_t i = 0; i < message_count; i++)
        bytes += messages[i].content_size;
    enum bt_status status = check_bytes(service, bytes, "messages", error);
    return status == BT_OK ? start(service, &input, "messages", sink, error, ret_job) : status;
}

/* What a chat is refused for names its message already. */
enum bt_status rt_openai_prompt_result(enum bt_status status, const char *param, const char *text,
                                       struct rt_openai_error *error)
{
    if (status == BT_OK)
        return BT_OK;
    if (status != BT_ERR_INVALID_ARGUMENT && status != BT_ERR_UNSUPPORTED)
        return rt_openai_error_from(error, status, NULL, text);
    if (strcmp(param, "messages") == 0)
        return rt_openai_error_from(error, status, param, text);
    return rt_openai_error_set(error, status, param, NULL, "%s: %s", param, text);
}

static enum bt_status check_context(const struct rt_service *service, size_t count,
                                    uint32_t max_tokens, const char *param,
                                    struct rt_openai_error *error)
{
    uint32_t context = rt_service_max_model_len(service);
    if (count >= context)
        return rt_openai_error_set(
            error, BT_ERR_INVALID_ARGUMENT, param, "context_length_exceeded",
            "%s has %zu tokens, which leaves no room in the model's context of %" PRIu32 " tokens",
            param, count, context);
    if (max_tokens > context - count)
        return rt_openai_error_set(
            error, BT_ERR_INVALID_ARGUMENT, "max_tokens", "context_length_exceeded",
            "max_tokens is %" PRIu32 ", but %zu prompt tokens leave room for %zu in the model's "
            "context of %" PRIu32 " tokens",
            max_tokens, count, (size_t)context - count, context);
    return BT_OK;
}

enum bt_status rt_openai_prompt_check_ids(const struct rt_service *service, const uint32_t *ids,
                                          size_t count, uint32_t max_tokens, const char *param,
                                          struct rt_openai_error *error)
{
    if (count == 0)
        return rt_openai_error_field(error, param, "is empty: at least one token is needed");
    uint32_t vocab_size = bt_tokenizer_vocab_size(rt_service_tokenizer(service));
    for (size_t i = 0; i < count; i++)
        if (ids[i] >= vocab_size)
            return rt_openai_error_field(
                error, param, "[%zu] is token %" PRIu32 ", but the vocabulary has %" PRIu32, i,
                ids[i], vocab_size);
    return check_context(service, count, max_tokens, param, error);
}
