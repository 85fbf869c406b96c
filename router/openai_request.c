#include "router/openai_request.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "router/openai_body.h"
#include "router/openai_messages.h"
#include "router/openai_refused.h"
#include "router/openai_sampling.h"

/* What max_tokens of /v1/completions is when nobody says; chat goes up to the context. */
#define COMPLETION_MAX_TOKENS 16

typedef enum bt_status parse_fn(const json_t *root, struct rt_openai_error *error,
                                struct rt_openai_request *request);

/* ------------------------------------------------------------------ sampling */

static enum bt_status parse_number(const json_t *root, const struct rt_sampling_field *field,
                                   struct rt_openai_error *error, struct rt_openai_request *request)
{
    const json_t *value = rt_openai_body_get(root, field->name);
    if (value == NULL)
        return BT_OK;
    bool real = field->type == RT_SAMPLING_REAL;
    if (real ? !json_is_number(value) : !json_is_integer(value))
        return rt_openai_error_field(error, field->name, "must be %s, not %s",
                                     real ? "a number" : "an integer", rt_openai_body_type(value));
    if (real)
        return rt_sampling_set_real(&request->sampling, field, json_number_value(value), error);
    return rt_sampling_set_integer(&request->sampling, field, json_integer_value(value), error);
}

static enum bt_status parse_sampling(const json_t *root, struct rt_openai_error *error,
                                     struct rt_openai_request *request)
{
    for (const struct rt_sampling_field *field = rt_sampling_fields; field->name != NULL; field++) {
        enum bt_status status = field->json ? parse_number(root, field, error, request) : BT_OK;
        if (status != BT_OK)
            return status;
    }
    bool ignore_eos = false;
    enum bt_status status = rt_openai_body_bool(root, "ignore_eos", error, &ignore_eos);
    request->sampling.ignore_eos = ignore_eos;
    return status;
}

static enum bt_status parse_max_tokens(const json_t *root, struct rt_openai_error *error,
                                       struct rt_openai_request *request)
{
    bool chat = request->kind == RT_OPENAI_CHAT;
    const char *name = "max_tokens";
    if (chat && rt_openai_body_get(root, "max_completion_tokens") != NULL) {
        if (rt_openai_body_get(root, name) != NULL)
            return rt_openai_error_field(error, "max_completion_tokens",
                                         "and max_tokens are the same limit: give only one");
        name = "max_completion_tokens";
    }
    request->sampling.max_tokens = chat ? 0 : COMPLETION_MAX_TOKENS;
    request->usual_length = rt_openai_body_get(root, name) == NULL;
    enum bt_status status = parse_number(root, rt_sampling_field_find(name), error, request);
    return status == BT_OK ? rt_sampling_check(&request->sampling, error) : status;
}

static enum bt_status parse_seed(const json_t *root, struct rt_openai_error *error,
                                 struct rt_openai_request *request)
{
    int64_t seed = 0;
    enum bt_status status = rt_openai_body_integer(root, "seed", error, &seed, &request->has_seed);
    request->sampling.seed = (uint64_t)seed;
    return status;
}

static enum bt_status parse_logprobs(const json_t *root, struct rt_openai_error *error,
                                     struct rt_openai_request *request)
{
    if (request->kind == RT_OPENAI_COMPLETION)
        return parse_number(root, rt_sampling_field_find("logprobs"), error, request);
    bool logprobs = false;
    enum bt_status status = rt_openai_body_bool(root, "logprobs", error, &logprobs);
    if (status == BT_OK)
        status = parse_number(root, rt_sampling_field_find("top_logprobs"), error, request);
    if (status != BT_OK)
        return status;
    if (!logprobs && request->sampling.logprobs > 0)
        return rt_openai_error_field(error, "top_logprobs", "needs logprobs to be true");
    if (!logprobs)
        request->sampling.logprobs = -1;
    else if (request->sampling.logprobs < 0)
        request->sampling.logprobs = 0;
    return BT_OK;
}

/* A key of logit_bias. -1: not a decimal number of a token. */
static int64_t bias_token(const char *key)
{
    size_t length = strspn(key, "0123456789");
    if (length == 0 || length > 10 || key[length] != '\0')
        return -1;
    return strtoll(key, NULL, 10);
}

static enum bt_status fill_bias(const json_t *bias, struct rt_openai_error *error,
                                Baton__V1__SamplingParams *sampling)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)bias, key, value)
    {
        int64_t token = bias_token(key);
        if (token < 0)
            return rt_openai_error_field(error, "logit_bias",
                                         "has the key \"%.40s\", which is not a token id", key);
        if (!json_is_number(value))
            return rt_openai_error_field(error, "logit_bias",
                                         "of token %" PRId64 " must be a number, not %s", token,
                                         rt_openai_body_type(value));
        double amount = json_number_value(value);
        enum bt_status status = rt_sampling_check_bias(token, amount, 0, error);
        if (status != BT_OK)
            return status;
        sampling->logit_bias_token[sampling->n_logit_bias_token++] = (uint32_t)token;
        sampling->logit_bias_value[sampling->n_logit_bias_value++] = (float)amount;
    }
    return BT_OK;
}

static enum bt_status parse_bias(const json_t *root, struct rt_openai_error *error,
                                 struct rt_openai_request *request)
{
    const json_t *bias = rt_openai_body_get(root, "logit_bias");
    if (bias == NULL)
        return BT_OK;
    if (!json_is_object(bias))
        return rt_openai_error_field(error, "logit_bias", "must be an object, not %s",
                                     rt_openai_body_type(bias));
    size_t count = json_object_size(bias);
    if (count > RT_MAX_LOGIT_BIAS)
        return rt_openai_error_field(error, "logit_bias", "has %zu entries, more than %d", count,
                                     RT_MAX_LOGIT_BIAS);
    if (count == 0)
        return BT_OK;
    request->sampling.logit_bias_token = calloc(count, sizeof(uint32_t));
    request->sampling.logit_bias_value = calloc(count, sizeof(float));
    if (request->sampling.logit_bias_token == NULL || request->sampling.logit_bias_value == NULL)
        return rt_openai_error_set(error, BT_ERR_NO_MEMORY, NULL, NULL, "no memory for logit_bias");
    return fill_bias(bias, error, &request->sampling);
}

/* ------------------------------------------------------------------ the rest */

/* One of `count`. */
static enum bt_status add_stop(const json_t *value, size_t count, struct rt_openai_error *error,
                               struct rt_openai_request *request)
{
    if (!json_is_string(value))
        return rt_openai_error_field(error, "stop",
                                     "must be a string or an array of strings, not %s",
                                     rt_openai_body_type(value));
    enum bt_status status = rt_sampling_check_stop(json_string_length(value), count, error);
    if (status != BT_OK)
        return status;
    request->stop[request->stop_count++] = json_string_value(value);
    return BT_OK;
}

static enum bt_status parse_stop(const json_t *root, struct rt_openai_error *error,
                                 struct rt_openai_request *request)
{
    const json_t *stop = rt_openai_body_get(root, "stop");
    if (stop == NULL)
        return BT_OK;
    size_t count = json_is_array(stop) ? json_array_size(stop) : 1;
    request->stop = calloc(count + 1, sizeof *request->stop);
    if (request->stop == NULL)
        return rt_openai_error_set(error, BT_ERR_NO_MEMORY, NULL, NULL, "no memory for stop");
    if (!json_is_array(stop))
        return add_stop(stop, 1, error, request);
    for (size_t i = 0; i < count; i++) {
        enum bt_status status = add_stop(json_array_get(stop, i), count, error, request);
        if (status != BT_OK)
            return status;
    }
    return BT_OK;
}

static enum bt_status parse_n(const json_t *root, struct rt_openai_error *error,
                              struct rt_openai_request *request)
{
    int64_t n = 1;
    enum bt_status status = rt_openai_body_integer(root, "n", error, &n, NULL);
    if (status != BT_OK)
        return status;
    if (n < 1 || n > RT_OPENAI_MAX_N)
        return rt_openai_error_field(error, "n", "must be between 1 and %d, not %" PRId64,
                                     RT_OPENAI_MAX_N, n);
    int64_t best_of = n;
    status = rt_openai_body_integer(root, "best_of", error, &best_of, NULL);
    if (status != BT_OK)
        return status;
    if (best_of > n)
        return rt_openai_error_unsupported(error, "best_of",
                                           "above n is not supported by this server");
    if (best_of < n)
        return rt_openai_error_field(error, "best_of", "must not be below n");
    request->n = (uint32_t)n;
    return BT_OK;
}

static enum bt_status parse_option(const json_t *options, const char *name, const char *param,
                                   struct rt_openai_error *error, bool *ret_value)
{
    const json_t *value = rt_openai_body_get(options, name);
    if (value != NULL && !json_is_boolean(value))
        return rt_openai_error_field(error, param, "must be a boolean, not %s",
                                     rt_openai_body_type(value));
    *ret_value = json_is_true(value);
    return BT_OK;
}

static enum bt_status parse_stream(const json_t *root, struct rt_openai_error *error,
                                   struct rt_openai_request *request)
{
    enum bt_status status = rt_openai_body_bool(root, "stream", error, &request->stream);
    const json_t *options = rt_openai_body_get(root, "stream_options");
    if (status != BT_OK || options == NULL)
        return status;
    if (!json_is_object(options))
        return rt_openai_error_field(error, "stream_options", "must be an object, not %s",
                                     rt_openai_body_type(options));
    if (!request->stream)
        return rt_openai_error_field(error, "stream_options", "needs stream to be true");
    status = parse_option(options, "include_usage", "stream_options.include_usage", error,
                          &request->include_usage);
    if (status == BT_OK)
        status =
            parse_option(options, "continuous_usage_stats", "stream_options.continuous_usage_stats",
                         error, &request->continuous_usage);
    return status;
}

static enum bt_status parse_switches(const json_t *root, struct rt_openai_error *error,
                                     struct rt_openai_request *request)
{
    bool skip_special = true;
    enum bt_status status = rt_openai_body_bool(root, "skip_special_tokens", error, &skip_special);
    request->keep_special = !skip_special;
    if (status == BT_OK)
        status = rt_openai_body_integer(root, "priority", error, &request->priority, NULL);
    if (status == BT_OK)
        status = rt_openai_body_bool(root, "return_token_ids", error, &request->return_token_ids);
    if (status == BT_OK)
        status = rt_openai_body_bool(root, "baton_timing", error, &request->timing);
    return status;
}

static enum bt_status parse_model(const json_t *root, struct rt_openai_error *error,
                                  struct rt_openai_request *request)
{
    return rt_openai_body_string(root, "model", error, &request->model);
}

static enum bt_status parse_input(const json_t *root, struct rt_openai_error *error,
                                  struct rt_openai_request *request)
{
    request->add_special_tokens = true;
    enum bt_status status =
        rt_openai_body_bool(root, "add_special_tokens", error, &request->add_special_tokens);
    if (status != BT_OK)
        return status;
    json_t *messages = rt_openai_body_get(root, "messages");
    const json_t *prompt = rt_openai_body_get(root, "prompt");
    if (request->kind == RT_OPENAI_DETOKENIZE)
        return rt_openai_prompts_parse(rt_openai_body_get(root, "tokens"), "tokens", error,
                                       request);
    if (request->kind == RT_OPENAI_TOKENIZE && (messages == NULL) == (prompt == NULL))
        return rt_openai_error_field(error, "prompt", "or messages must be given, and only one");
    if (request->kind == RT_OPENAI_CHAT ||
        (request->kind == RT_OPENAI_TOKENIZE && messages != NULL))
        return rt_openai_messages_parse(messages, error, request);
    return rt_openai_prompts_parse(prompt, "prompt", error, request);
}

/* A single prompt of one form, where lists make no sense. */
static enum bt_status check_single(struct rt_openai_error *error,
                                   const struct rt_openai_request *request)
{
    bool text = request->kind == RT_OPENAI_TOKENIZE;
    if (request->message_count > 0)
        return BT_OK;
    if (text && (request->prompt_count != 1 || request->prompts[0].text == NULL))
        return rt_openai_error_field(error, "prompt", "must be a string");
    if (!text && (request->prompt_count != 1 || request->prompts[0].text != NULL))
        return rt_openai_error_field(error, "tokens", "must be an array of token ids");
    return BT_OK;
}

/* The first that fails gives the error. */
static parse_fn *const generation_steps[] = {
    parse_model, parse_input, parse_sampling, parse_max_tokens, parse_seed,     parse_logprobs,
    parse_bias,  parse_stop,  parse_n,        parse_stream,     parse_switches,
};

static enum bt_status parse_all(const json_t *root, struct rt_openai_error *error,
                                struct rt_openai_request *request)
{
    enum bt_status status = BT_OK;
    if (request->kind == RT_OPENAI_TOKENIZE || request->kind == RT_OPENAI_DETOKENIZE) {
        status = parse_model(root, error, request);
        if (status == BT_OK)
            status = parse_input(root, error, request);
        return status == BT_OK ? check_single(error, request) : status;
    }
    status = rt_openai_refused_check(root, error);
    for (size_t i = 0; status == BT_OK && i < sizeof generation_steps / sizeof *generation_steps;
         i++)
        status = generation_steps[i](root, error, request);
    return status;
}

enum bt_status rt_openai_request_parse(enum rt_openai_kind kind, const char *body, size_t size,
                                       struct rt_openai_error *error,
                                       struct rt_openai_request *ret_request)
{
    struct rt_openai_cut cut = {0};
    struct rt_openai_request request = {.kind = kind, .n = 1, .cut = &cut};
    rt_sampling_init(&request.sampling);
    enum bt_status status =
        rt_openai_body_parse(body, size, RT_OPENAI_MAX_DEPTH, error, &cut, &request.root);
    if (status == BT_OK)
        status = parse_all(request.root, error, &request);
    request.cut = NULL;
    rt_openai_cut_finish(&cut);
    if (status != BT_OK) {
        rt_openai_request_finish(&request);
        return status;
    }
    *ret_request = request;
    return BT_OK;
}

void rt_openai_request_drop_input(struct rt_openai_request *request)
{
    for (size_t i = 0; request->joined != NULL && i < request->message_count; i++)
        free(request->joined[i]);
    for (size_t i = 0; request->prompts != NULL && i < request->prompt_count; i++)
        free(request->prompts[i].ids);
    free(request->messages);
    free(request->joined);
    free(request->prompts);
    request->messages = NULL;
    request->joined = NULL;
    request->prompts = NULL;
    request->message_count = request->prompt_count = 0;
    json_object_del(request->root, "messages");
    json_object_del(request->root, "prompt");
}

void rt_openai_request_finish(struct rt_openai_request *request)
{
    rt_openai_request_drop_input(request);
    free(request->stop);
    free(request->sampling.logit_bias_token);
    free(request->sampling.logit_bias_value);
    json_decref(request->root);
    *request = (struct rt_openai_request){0};
}
