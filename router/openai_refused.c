#include "router/openai_refused.h"

#include <string.h>

#include "router/openai_body.h"

/* Off values: null, false, "", [] and {}. */
static const char *const refused_fields[] = {
    "tools",
    "functions",
    "audio",
    "prediction",
    "suffix",
    "echo",
    "use_beam_search",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "guided_whitespace_pattern",
    "structured_outputs",
    "logits_processors",
    "prompt_logprobs",
    "truncate_prompt_tokens",
    "continue_final_message",
    "chat_template",
    "chat_template_kwargs",
    "documents",
    "stop_token_ids",
    "include_stop_str_in_output",
    "bad_words",
    "allowed_token_ids",
    "reasoning_effort",
    "web_search_options",
    "kv_transfer_params",
    "prompt_embeds",
    "regex",
    "json_schema",
    "ebnf",
    "structural_tag",
    "stop_regex",
    "no_stop_trim",
    "lora_path",
    "custom_logit_processor",
    "vllm_xargs",
    "session_params",
    "cache_salt",
    "extra_key",
    "return_hidden_states",
    "return_routed_experts",
    "return_tokens_as_token_ids",
};

static bool is_off(const json_t *value)
{
    switch (json_typeof(value)) {
    case JSON_NULL:
    case JSON_FALSE:
        return true;
    case JSON_STRING:
        return json_string_length(value) == 0;
    case JSON_ARRAY:
        return json_array_size(value) == 0;
    case JSON_OBJECT:
        return json_object_size(value) == 0;
    default:
        return false;
    }
}

static bool is_string(const json_t *value, const char *text)
{
    return json_is_string(value) && strcmp(json_string_value(value), text) == 0;
}

static enum bt_status check_response_format(const json_t *root, struct rt_openai_error *error)
{
    const json_t *format = rt_openai_body_get(root, "response_format");
    if (format == NULL)
        return BT_OK;
    const json_t *type = json_object_get(format, "type");
    if (!json_is_string(type))
        return rt_openai_error_field(error, "response_format",
                                     "must be an object with a string \"type\"");
    if (!is_string(type, "text"))
        return rt_openai_error_unsupported(error, "response_format",
                                           "of type \"%.40s\" is not supported: only \"text\" is",
                                           json_string_value(type));
    return BT_OK;
}

static enum bt_status check_modalities(const json_t *root, struct rt_openai_error *error)
{
    const json_t *modalities = rt_openai_body_get(root, "modalities");
    if (modalities == NULL)
        return BT_OK;
    if (json_array_size(modalities) == 1 && is_string(json_array_get(modalities, 0), "text"))
        return BT_OK;
    return rt_openai_error_unsupported(error, "modalities",
                                       "other than [\"text\"] are not supported");
}

/* "auto" and "none" mean nothing without tools. */
static enum bt_status check_choice(const json_t *root, const char *name,
                                   struct rt_openai_error *error)
{
    const json_t *choice = rt_openai_body_get(root, name);
    if (choice == NULL || is_string(choice, "none") || is_string(choice, "auto"))
        return BT_OK;
    return rt_openai_error_unsupported(error, name, "is not supported: this server calls no tools");
}

static enum bt_status check_special_values(const json_t *root, struct rt_openai_error *error)
{
    const json_t *penalty = rt_openai_body_get(root, "length_penalty");
    if (penalty != NULL && !(json_is_number(penalty) && json_number_value(penalty) == 1.0))
        return rt_openai_error_unsupported(error, "length_penalty",
                                           "is not supported: there is no beam search");
    const json_t *generation = rt_openai_body_get(root, "add_generation_prompt");
    if (generation != NULL && !json_is_true(generation))
        return rt_openai_error_unsupported(error, "add_generation_prompt",
                                           "other than true is not supported");
    return BT_OK;
}

enum bt_status rt_openai_refused_check(const json_t *root, struct rt_openai_error *error)
{
    for (size_t i = 0; i < sizeof refused_fields / sizeof *refused_fields; i++) {
        const json_t *value = json_object_get(root, refused_fields[i]);
        if (value != NULL && !is_off(value))
            return rt_openai_error_unsupported(error, refused_fields[i],
                                               "is not supported by this server");
    }
    enum bt_status status = check_response_format(root, error);
    if (status == BT_OK)
        status = check_modalities(root, error);
    if (status == BT_OK)
        status = check_choice(root, "tool_choice", error);
    if (status == BT_OK)
        status = check_choice(root, "function_call", error);
    if (status == BT_OK)
        status = check_special_values(root, error);
    return status;
}
