#include "router/openai_prompt.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
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

static enum bt_status append(struct bt_token_buffer *buffer, uint32_t id,
                             struct rt_openai_error *error)
{
    if (buffer->count == buffer->capacity) {
        size_t capacity = buffer->capacity > 0 ? buffer->capacity * 2 : 64;
        uint32_t *ids = realloc(buffer->ids, capacity * sizeof *ids);
        if (ids == NULL)
            return rt_openai_error_set(error, BT_ERR_NO_MEMORY, NULL, NULL,
                                       "no memory for a prompt");
        buffer->ids = ids;
        buffer->capacity = capacity;
    }
    buffer->ids[buffer->count++] = id;
    return BT_OK;
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

enum bt_status rt_openai_prompt_encode_text(const struct rt_service *service, const char *text,
                                            size_t size, bool add_special_tokens, const char *param,
                                            struct rt_openai_error *error,
                                            struct bt_token_buffer *ret_ids)
{
    const struct bt_tokenizer *tokenizer = rt_service_tokenizer(service);
    int64_t bos = bt_tokenizer_bos(tokenizer);
    size_t first = ret_ids->count;
    bool add_bos = add_special_tokens && bos >= 0 && bt_tokenizer_add_bos(tokenizer);
    enum bt_status status = check_bytes(service, size, param, error);
    if (status == BT_OK && add_bos)
        status = append(ret_ids, (uint32_t)bos, error);
    if (status != BT_OK)
        return status;
    struct bt_error reason = {0};
    status = bt_tokenizer_encode(tokenizer, text, size, true, &reason, ret_ids);
    if (status != BT_OK)
        return rt_openai_error_set(error, status, param, NULL, "%s: %s", param, reason.text);
    size_t count = ret_ids->count - first;
    if (add_bos && count > 1 && ret_ids->ids[first + 1] == (uint32_t)bos) {
        memmove(ret_ids->ids + first, ret_ids->ids + first + 1, (count - 1) * sizeof *ret_ids->ids);
        ret_ids->count--;
    }
    return BT_OK;
}

enum bt_status rt_openai_prompt_encode_messages(const struct rt_service *service,
                                                const struct bt_chat_message *messages,
                                                size_t message_count, struct rt_openai_error *error,
                                                struct bt_token_buffer *ret_ids)
{
    size_t bytes = 0;
    for (size_t i = 0; i < message_count; i++)
        bytes += messages[i].content_size;
    enum bt_status status = check_bytes(service, bytes, "messages", error);
    if (status != BT_OK)
        return status;
    struct bt_error reason = {0};
    status = bt_chat_form_encode(rt_service_chat_form(service), messages, message_count, &reason,
                                 ret_ids);
    return status == BT_OK ? BT_OK : rt_openai_error_from(error, status, "messages", reason.text);
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
