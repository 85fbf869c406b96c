#include "router/openai_messages.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "router/openai_body.h"

/* ------------------------------------------------------------------ messages */

static enum bt_status no_memory(struct rt_openai_error *error)
{
    return rt_openai_error_set(error, BT_ERR_NO_MEMORY, NULL, NULL, "no memory for the request");
}

static enum bt_status message_error(struct rt_openai_error *error, size_t message,
                                    const char *member, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

static enum bt_status message_error(struct rt_openai_error *error, size_t message,
                                    const char *member, const char *format, ...)
{
    char param[RT_OPENAI_PARAM_SIZE], text[256];
    snprintf(param, sizeof param, "messages[%zu]%s", message, member);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    return rt_openai_error_field(error, param, "%s", text);
}

static enum bt_status parse_role(const json_t *message, size_t index, struct rt_openai_error *error,
                                 const char **ret_role)
{
    const json_t *role = rt_openai_body_get(message, "role");
    if (role == NULL)
        return message_error(error, index, ".role", "is missing");
    if (!json_is_string(role))
        return message_error(error, index, ".role", "must be a string, not %s",
                             rt_openai_body_type(role));
    const char *name = json_string_value(role);
    if (strcmp(name, "developer") == 0)
        name = "system";
    if (strcmp(name, "system") != 0 && strcmp(name, "user") != 0 && strcmp(name, "assistant") != 0)
        return message_error(
            error, index, ".role",
            "must be \"system\", \"developer\", \"user\" or \"assistant\", not \"%.40s\"", name);
    *ret_role = name;
    return BT_OK;
}

/* Checks one {"type":"text","text":…}. */
static enum bt_status part_text(const json_t *part, size_t index, size_t part_index,
                                struct rt_openai_error *error, const json_t **ret_text)
{
    char member[48];
    snprintf(member, sizeof member, ".content[%zu]", part_index);
    if (!json_is_object(part))
        return message_error(error, index, member, "must be an object, not %s",
                             rt_openai_body_type(part));
    const json_t *type = json_object_get(part, "type");
    if (!json_is_string(type))
        return message_error(error, index, member, "needs a string \"type\"");
    if (strcmp(json_string_value(type), "text") != 0) {
        message_error(error, index, member,
                      "of type \"%.40s\" is not supported: only \"text\" parts are",
                      json_string_value(type));
        error->code = "unsupported";
        return error->status;
    }
    const json_t *text = json_object_get(part, "text");
    if (!json_is_string(text))
        return message_error(error, index, member, "needs a string \"text\"");
    *ret_text = text;
    return BT_OK;
}

/* Text parts are joined with line feeds. */
static enum bt_status join_parts(const json_t *parts, size_t index, struct rt_openai_error *error,
                                 char **ret_joined, size_t *ret_size)
{
    size_t count = json_array_size(parts), size = 0;
    const json_t *text = NULL;
    if (count == 0)
        return message_error(error, index, ".content", "must not be an empty array");
    for (size_t i = 0; i < count; i++) {
        enum bt_status status = part_text(json_array_get(parts, i), index, i, error, &text);
        if (status != BT_OK)
            return status;
        size += json_string_length(text) + 1;
    }
    char *joined = malloc(size);
    if (joined == NULL)
        return no_memory(error);
    size_t used = 0;
    for (size_t i = 0; i < count; i++) {
        text = json_object_get(json_array_get(parts, i), "text");
        memcpy(joined + used, json_string_value(text), json_string_length(text));
        used += json_string_length(text);
        joined[used++] = '\n';
    }
    joined[used - 1] = '\0';
    *ret_joined = joined;
    *ret_size = used - 1;
    return BT_OK;
}

static enum bt_status parse_content(const json_t *message, size_t index,
                                    struct rt_openai_error *error, char **ret_joined,
                                    struct bt_chat_message *ret_message)
{
    const json_t *content = rt_openai_body_get(message, "content");
    if (content == NULL)
        return message_error(error, index, ".content", "is missing");
    if (json_is_string(content)) {
        ret_message->content = json_string_value(content);
        ret_message->content_size = json_string_length(content);
        return BT_OK;
    }
    if (!json_is_array(content))
        return message_error(error, index, ".content",
                             "must be a string or an array of text parts, not %s",
                             rt_openai_body_type(content));
    enum bt_status status =
        join_parts(content, index, error, ret_joined, &ret_message->content_size);
    ret_message->content = *ret_joined;
    return status;
}

static enum bt_status parse_message(const json_t *message, size_t index,
                                    struct rt_openai_error *error, char **ret_joined,
                                    struct bt_chat_message *ret_message)
{
    if (!json_is_object(message))
        return message_error(error, index, "", "must be an object, not %s",
                             rt_openai_body_type(message));
    const json_t *calls = rt_openai_body_get(message, "tool_calls");
    if (calls != NULL && json_array_size(calls) > 0)
        return message_error(error, index, ".tool_calls",
                             "is not supported: this server calls no tools");
    enum bt_status status = parse_role(message, index, error, &ret_message->role);
    if (status == BT_OK)
        status = parse_content(message, index, error, ret_joined, ret_message);
    return status;
}

enum bt_status rt_openai_messages_parse(const json_t *messages, struct rt_openai_error *error,
                                        struct rt_openai_request *request)
{
    if (messages == NULL)
        return rt_openai_error_field(error, "messages", "is missing");
    size_t count = json_array_size(messages);
    if (!json_is_array(messages) || count == 0)
        return rt_openai_error_field(error, "messages", "must be a non-empty array, not %s",
                                     rt_openai_body_type(messages));
    request->messages = calloc(count, sizeof *request->messages);
    request->joined = calloc(count, sizeof *request->joined);
    if (request->messages == NULL || request->joined == NULL)
        return no_memory(error);
    request->message_count = count;
    for (size_t i = 0; i < count; i++) {
        enum bt_status status = parse_message(json_array_get(messages, i), i, error,
                                              &request->joined[i], &request->messages[i]);
        if (status != BT_OK)
            return status;
    }
    return BT_OK;
}

/* ------------------------------------------------------------------ prompts */

/* `param` is "prompt" or "prompt[3]". */
static enum bt_status parse_ids(const struct rt_openai_request *request, const json_t *array,
                                const char *param, struct rt_openai_error *error,
                                struct rt_openai_prompt *prompt)
{
    size_t count = json_array_size(array);
    const uint32_t *cut = rt_openai_cut_ids(request->cut, array, &count);
    prompt->ids = malloc((count > 0 ? count : 1) * sizeof *prompt->ids);
    if (prompt->ids == NULL)
        return no_memory(error);
    prompt->count = count;
    if (cut != NULL) {
        memcpy(prompt->ids, cut, count * sizeof *cut);
        return BT_OK;
    }
    for (size_t i = 0; i < count; i++) {
        const json_t *value = json_array_get(array, i);
        char element[RT_OPENAI_PARAM_SIZE];
        snprintf(element, sizeof element, "%.60s[%zu]", param, i);
        if (!json_is_integer(value))
            return rt_openai_error_field(error, element, "must be an integer token id, not %s",
                                         rt_openai_body_type(value));
        json_int_t id = json_integer_value(value);
        if (id < 0 || id > UINT32_MAX)
            return rt_openai_error_field(error, element, "is not a token id: %" PRId64,
                                         (int64_t)id);
        prompt->ids[i] = (uint32_t)id;
    }
    return BT_OK;
}

static enum bt_status set_text(const json_t *string, bool may_be_empty, const char *param,
                               struct rt_openai_error *error, struct rt_openai_prompt *prompt)
{
    prompt->text = json_string_value(string);
    prompt->size = json_string_length(string);
    return prompt->size > 0 || may_be_empty
               ? BT_OK
               : rt_openai_error_field(error, param, "must not be empty");
}

static enum bt_status parse_prompt_list(const json_t *array, const char *name,
                                        struct rt_openai_error *error,
                                        struct rt_openai_request *request)
{
    bool texts = json_is_string(json_array_get(array, 0));
    for (size_t i = 0; i < request->prompt_count; i++) {
        const json_t *value = json_array_get(array, i);
        char element[RT_OPENAI_PARAM_SIZE];
        snprintf(element, sizeof element, "%s[%zu]", name, i);
        if (texts ? !json_is_string(value) : !json_is_array(value))
            return rt_openai_error_field(error, element, "must be %s like the first, not %s",
                                         texts ? "a string" : "an array of token ids",
                                         rt_openai_body_type(value));
        struct rt_openai_prompt *prompt = &request->prompts[i];
        enum bt_status status = texts ? set_text(value, false, element, error, prompt)
                                      : parse_ids(request, value, element, error, prompt);
        if (status != BT_OK)
            return status;
    }
    return BT_OK;
}

enum bt_status rt_openai_prompts_parse(const json_t *prompt, const char *name,
                                       struct rt_openai_error *error,
                                       struct rt_openai_request *request)
{
    if (prompt == NULL)
        return rt_openai_error_field(error, name, "is missing");
    size_t size = json_array_size(prompt);
    const json_t *first = json_array_get(prompt, 0);
    bool list = json_is_string(first) || json_is_array(first);
    if (!json_is_string(prompt) && !list && !json_is_number(first))
        return rt_openai_error_field(
            error, name, "must be a string, an array of strings, or token ids, not %s%s",
            size > 0 ? "an array that begins with " : "",
            rt_openai_body_type(size > 0 ? first : prompt));
    if (list && size > RT_OPENAI_MAX_PROMPTS)
        return rt_openai_error_field(error, name, "holds %zu prompts, more than %d", size,
                                     RT_OPENAI_MAX_PROMPTS);
    request->prompt_count = list ? size : 1;
    request->prompts = calloc(request->prompt_count, sizeof *request->prompts);
    if (request->prompts == NULL)
        return no_memory(error);
    if (list)
        return parse_prompt_list(prompt, name, error, request);
    if (json_is_array(prompt))
        return parse_ids(request, prompt, name, error, &request->prompts[0]);
    return set_text(prompt, request->kind == RT_OPENAI_TOKENIZE, name, error, &request->prompts[0]);
}
