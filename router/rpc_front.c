#include "router/rpc_front.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "proto/generate.pb-c.h"
#include "router/openai_admit.h"
#include "router/openai_prompt.h"
#include "router/openai_sampling.h"
#include "router/request_id.h"

/* One Generate call, from its acceptance to the end of the call. */
struct stream {
    struct rt_service *service;
    struct bt_rpc_call *call;
    struct rt_tokenization_job *job; /* until the prompt's ids are there */
    const char *prompt_field;        /* what is tokenized */
    struct rt_generation generation; /* then; of pointers, what `kept` has, until submitted */
    Baton__V1__GenerateRequest *kept;
    uint64_t request; /* 0: not submitted */
    char name[RT_REQUEST_ID_MAX + 1];
    bool introduced;                 /* an event has told the name */
    uint32_t delivered;              /* tokens that the client has */
    bool token_events;               /* events carry tokens */
    struct rt_openai_json text;      /* scratch: text as a C string */
    const Baton__V1__Token **tokens; /* scratch: pointers, as protobuf-c wants them */
    size_t token_capacity;
};

/* Ends the call. The service must have ended or forgotten the generation. */
static void stream_end(struct stream *stream, enum bt_status status, const char *text)
{
    bt_rpc_call_end(stream->call, status, text, NULL);
    rt_openai_json_finish(&stream->text);
    if (stream->kept != NULL)
        baton__v1__generate_request__free_unpacked(stream->kept, NULL);
    free(stream->tokens);
    free(stream);
}

static void stream_drop(struct stream *stream, enum bt_status status, const char *text)
{
    if (stream->job != NULL)
        rt_tokenization_cancel(stream->job);
    else
        rt_service_abandon(stream->service, stream->request);
    stream_end(stream, status, text);
}

/* ------------------------------------------------------------------ events */

/* A protobuf-c string ends at its first NUL, so that NULs become U+FFFD. NULL: no memory. */
static char *text_string(struct stream *stream, const char *text, size_t size)
{
    struct rt_openai_json *out = &stream->text;
    out->start = out->end = 0;
    for (size_t at = 0; at < size;) {
        const char *nul = memchr(text + at, '\0', size - at);
        size_t run = nul != NULL ? (size_t)(nul - (text + at)) : size - at;
        rt_openai_json_raw(out, text + at, run);
        if (nul != NULL)
            rt_openai_json_literal(out, "\xEF\xBF\xBD");
        at += run + (nul != NULL);
    }
    rt_openai_json_raw(out, "", 1);
    return out->failed ? NULL : out->data;
}

/* False: no memory. */
static bool point_to_tokens(struct stream *stream, const Baton__V1__Token *tokens, size_t count)
{
    if (count > stream->token_capacity) {
        const Baton__V1__Token **grown = realloc(stream->tokens, count * sizeof *grown);
        if (grown == NULL)
            return false;
        stream->tokens = grown;
        stream->token_capacity = count;
    }
    for (size_t i = 0; i < count; i++)
        stream->tokens[i] = &tokens[i];
    return true;
}

/* Tokens that the client has are passed over; of the rest it is noted how far it gets. Returns how
 * many are passed over. */
static size_t progress(struct stream *stream, const Baton__V1__Token *tokens, size_t token_count)
{
    size_t passed = 0;
    while (passed < token_count && tokens[passed].index < stream->generation.resume_tokens)
        passed++;
    if (token_count > passed)
        stream->delivered = tokens[token_count - 1].index + 1;
    else if (token_count == 0)
        stream->delivered++; /* what was held back until the end */
    return passed;
}

static void introduce(struct stream *stream, Baton__V1__GenerateEvent *event)
{
    event->delivered_tokens = stream->delivered;
    if (!stream->introduced)
        event->request_id = stream->name;
    stream->introduced = true;
}

static void on_output(void *context, const char *text, size_t size, const Baton__V1__Token *tokens,
                      size_t token_count)
{
    struct stream *stream = context;
    size_t passed = progress(stream, tokens, token_count);
    tokens += passed;
    token_count -= passed;
    size_t shown = stream->token_events ? token_count : 0;
    if (size == 0 && shown == 0)
        return;
    Baton__V1__GenerateEvent event = BATON__V1__GENERATE_EVENT__INIT;
    event.text = text_string(stream, text, size);
    if (event.text == NULL || !point_to_tokens(stream, tokens, shown)) {
        stream_drop(stream, BT_ERR_NO_MEMORY, "no memory for an event");
        return;
    }
    event.tokens = (Baton__V1__Token **)stream->tokens;
    event.n_tokens = shown;
    introduce(stream, &event);
    enum bt_status status = bt_rpc_call_send(stream->call, &event.base);
    rt_openai_json_finish(&stream->text); /* most streams have nothing to say, most of the time */
    if (status != BT_OK)
        stream_drop(stream, BT_ERR_EXHAUSTED, "the client reads too slowly");
}

static void finish_well(struct stream *stream, const struct rt_result *result)
{
    Baton__V1__Usage usage = BATON__V1__USAGE__INIT;
    usage.prompt_tokens = result->prompt_tokens;
    usage.completion_tokens = result->completion_tokens;
    usage.cached_tokens = result->cached_tokens;
    Baton__V1__GenerateEvent event = BATON__V1__GENERATE_EVENT__INIT;
    event.finish_reason = (char *)(result->finish == RT_FINISH_LENGTH ? "length" : "stop");
    event.usage = &usage;
    event.timing = (Baton__V1__Timing *)result->timing;
    introduce(stream, &event);
    if (bt_rpc_call_send(stream->call, &event.base) == BT_OK)
        stream_end(stream, BT_OK, NULL);
    else
        stream_end(stream, BT_ERR_EXHAUSTED, "the client reads too slowly");
}

static void on_end(void *context, const struct rt_result *result)
{
    struct stream *stream = context;
    switch (result->finish) {
    case RT_FINISH_STOP:
    case RT_FINISH_LENGTH:
        finish_well(stream, result);
        break;
    case RT_FINISH_CANCELLED:
        stream_end(stream, BT_ERR_CANCELLED, "the request was cancelled");
        break;
    case RT_FINISH_DEADLINE:
        stream_end(stream, BT_ERR_DEADLINE, "the request took longer than its deadline allows");
        break;
    default:
        stream_end(stream, result->status < BT_OK ? result->status : BT_ERR_INTERNAL, result->text);
        break;
    }
}

/* Why a call was cancelled: by the client, or by its deadline. */
static enum bt_status cancel_reason(const struct bt_rpc_call *call, const char **ret_text)
{
    bool late = bt_rpc_call_deadline_ns(call) <= bt_clock_now_ns();
    *ret_text = late ? "the call's deadline passed" : "cancelled by the client";
    return late ? BT_ERR_DEADLINE : BT_ERR_CANCELLED;
}

/* The client cancelled or went away, or its deadline passed. */
static void on_cancel(void *context, struct bt_rpc_call *call)
{
    const char *text;
    enum bt_status status = cancel_reason(call, &text);
    stream_drop(context, status, text);
}

/* ------------------------------------------------------------------ Generate: the request */

struct number {
    const char *name;
    bool set;
    double real;
    int64_t integer;
};

/* -1 is how SamplingParams says that they are not wanted. */
static bool asks_logprobs(const Baton__V1__GenerateRequest *request)
{
    return request->has_logprobs && request->logprobs != -1;
}

static enum bt_status read_numbers(const Baton__V1__GenerateRequest *request,
                                   struct rt_openai_error *error,
                                   Baton__V1__SamplingParams *sampling)
{
    const struct number numbers[] = {
        {"temperature", request->has_temperature, request->temperature, 0},
        {"top_p", request->has_top_p, request->top_p, 0},
        {"top_k", request->has_top_k, 0, request->top_k},
        {"min_p", request->has_min_p, request->min_p, 0},
        {"repetition_penalty", request->has_repetition_penalty, request->repetition_penalty, 0},
        {"presence_penalty", request->has_presence_penalty, request->presence_penalty, 0},
        {"frequency_penalty", request->has_frequency_penalty, request->frequency_penalty, 0},
        {"max_tokens", request->has_max_tokens, 0, request->max_tokens},
        {"min_tokens", request->has_min_tokens, 0, request->min_tokens},
        {"logprobs", asks_logprobs(request), 0, request->logprobs},
    };
    enum bt_status status = BT_OK;
    for (size_t i = 0; status == BT_OK && i < sizeof numbers / sizeof *numbers; i++) {
        if (!numbers[i].set)
            continue;
        const struct rt_sampling_field *field = rt_sampling_field_find(numbers[i].name);
        status = field->type == RT_SAMPLING_REAL
                     ? rt_sampling_set_real(sampling, field, numbers[i].real, error)
                     : rt_sampling_set_integer(sampling, field, numbers[i].integer, error);
    }
    return status == BT_OK ? rt_sampling_check(sampling, error) : status;
}

static enum bt_status read_bias(const struct rt_service *service,
                                const Baton__V1__GenerateRequest *request,
                                struct rt_openai_error *error, Baton__V1__SamplingParams *sampling)
{
    size_t count = request->n_logit_bias_token;
    if (count != request->n_logit_bias_value)
        return rt_openai_error_field(error, "logit_bias", "has %zu tokens and %zu values", count,
                                     request->n_logit_bias_value);
    if (count > RT_MAX_LOGIT_BIAS)
        return rt_openai_error_field(error, "logit_bias", "has %zu entries, more than %d", count,
                                     RT_MAX_LOGIT_BIAS);
    uint32_t vocab_size = bt_tokenizer_vocab_size(rt_service_tokenizer(service));
    for (size_t i = 0; i < count; i++) {
        enum bt_status status = rt_sampling_check_bias(
            request->logit_bias_token[i], request->logit_bias_value[i], vocab_size, error);
        if (status != BT_OK)
            return status;
    }
    sampling->n_logit_bias_token = sampling->n_logit_bias_value = count;
    sampling->logit_bias_token = request->logit_bias_token;
    sampling->logit_bias_value = request->logit_bias_value;
    return BT_OK;
}

static enum bt_status read_sampling(const struct rt_service *service,
                                    const Baton__V1__GenerateRequest *request,
                                    struct rt_openai_error *error,
                                    Baton__V1__SamplingParams *sampling)
{
    rt_sampling_init(sampling);
    enum bt_status status = read_numbers(request, error, sampling);
    if (status == BT_OK)
        status = read_bias(service, request, error, sampling);
    for (size_t i = 0; status == BT_OK && i < request->n_stop; i++)
        status = rt_sampling_check_stop(strlen(request->stop[i]), i + 1, error);
    sampling->ignore_eos = request->ignore_eos;
    sampling->seed = request->seed;
    return status;
}

static enum bt_status read_identity(struct stream *stream,
                                    const Baton__V1__GenerateRequest *request,
                                    struct rt_openai_error *error)
{
    bool named = request->request_id[0] != '\0';
    if (named && !rt_request_id_valid(request->request_id))
        return rt_openai_error_field(error, "request_id",
                                     "must be 1 to %d visible ASCII characters", RT_REQUEST_ID_MAX);
    if (named)
        snprintf(stream->name, sizeof stream->name, "%s", request->request_id);
    else
        rt_request_id_make(stream->name);
    struct rt_generation *generation = &stream->generation;
    generation->request_id = stream->name;
    generation->named = named;
    generation->has_seed = request->has_seed;
    generation->resume_tokens = stream->delivered = request->resume_tokens;
    return BT_OK;
}

static enum bt_status encode_messages(struct rt_service *service,
                                      Baton__V1__ChatMessage *const *given, size_t count,
                                      const struct rt_openai_prompt_sink *sink,
                                      struct rt_openai_error *error,
                                      struct rt_tokenization_job **ret_job)
{
    struct bt_chat_message *messages = calloc(count, sizeof *messages);
    if (messages == NULL)
        return rt_openai_error_set(error, BT_ERR_NO_MEMORY, NULL, NULL, "no memory for messages");
    for (size_t i = 0; i < count; i++) {
        messages[i].role = given[i]->role;
        messages[i].content = given[i]->content;
        messages[i].content_size = strlen(given[i]->content);
    }
    enum bt_status status =
        rt_openai_prompt_encode_messages(service, messages, count, sink, error, ret_job);
    free(messages);
    return status;
}

/* The name of the field that has the prompt. */
static enum bt_status find_prompt(const Baton__V1__GenerateRequest *request,
                                  struct rt_openai_error *error, const char **ret_field)
{
    bool text = request->prompt != NULL;
    if (text + (request->n_prompt_ids > 0) + (request->n_messages > 0) != 1)
        return rt_openai_error_field(error, "prompt",
                                     "or prompt_ids or messages must be given, and only one");
    if (text && request->prompt[0] == '\0')
        return rt_openai_error_field(error, "prompt", "must not be empty");
    *ret_field = text ? "prompt" : request->n_messages > 0 ? "messages" : "prompt_ids";
    return BT_OK;
}

static enum bt_status submit(struct stream *stream, const uint32_t *ids, size_t count,
                             struct rt_openai_error *error)
{
    const struct rt_sink sink = {.context = stream, .on_output = on_output, .on_end = on_end};
    struct rt_generation *generation = &stream->generation;
    enum bt_status status = rt_openai_prompt_check_ids(
        stream->service, ids, count, generation->sampling.max_tokens, stream->prompt_field, error);
    if (status != BT_OK)
        return status;
    generation->prompt = ids;
    generation->prompt_tokens = (uint32_t)count;
    struct bt_error reason = {0};
    status = rt_service_submit(stream->service, generation, &sink, &reason, &stream->request);
    return status == BT_OK ? BT_OK : rt_openai_refused(stream->service, status, reason.text, error);
}

static void on_tokenized(void *context, enum bt_status status, const char *text,
                         struct bt_token_buffer *ids)
{
    struct stream *stream = context;
    struct rt_openai_error error = {0};
    Baton__V1__GenerateRequest *kept = stream->kept;
    stream->job = NULL;
    stream->kept = NULL;
    status = rt_openai_prompt_result(status, stream->prompt_field, text, &error);
    if (status == BT_OK)
        status = submit(stream, ids->ids, ids->count, &error);
    free(ids->ids);
    baton__v1__generate_request__free_unpacked(kept, NULL);
    if (status != BT_OK)
        stream_end(stream, status, error.text);
}

/* Keeps what of the request is needed when its ids are there: all but what is being tokenized. */
static bool keep(struct stream *stream, const Baton__V1__GenerateRequest *request)
{
    Baton__V1__GenerateRequest rest = *request;
    rest.prompt = NULL;
    rest.n_messages = 0;
    rest.base.n_unknown_fields = 0;
    size_t size = baton__v1__generate_request__get_packed_size(&rest);
    uint8_t *packed = malloc(size + 1);
    if (packed == NULL)
        return false;
    baton__v1__generate_request__pack(&rest, packed);
    stream->kept = baton__v1__generate_request__unpack(NULL, size, packed);
    free(packed);
    if (stream->kept == NULL)
        return false;
    stream->generation.sampling.logit_bias_token = stream->kept->logit_bias_token;
    stream->generation.sampling.logit_bias_value = stream->kept->logit_bias_value;
    stream->generation.stop = (const char *const *)stream->kept->stop;
    return true;
}

static enum bt_status encode(struct stream *stream, const Baton__V1__GenerateRequest *request,
                             struct rt_openai_error *error)
{
    const struct rt_openai_prompt_sink sink = {
        .deadline_ns = stream->generation.deadline_ns, .fn = on_tokenized, .context = stream};
    if (!keep(stream, request))
        return rt_openai_error_set(error, BT_ERR_NO_MEMORY, NULL, NULL, "no memory for a request");
    if (request->n_messages > 0)
        return encode_messages(stream->service, request->messages, request->n_messages, &sink,
                               error, &stream->job);
    return rt_openai_prompt_encode_text(stream->service, request->prompt, strlen(request->prompt),
                                        true, stream->prompt_field, &sink, error, &stream->job);
}

static enum bt_status identify(struct rt_service *service, const char *key,
                               struct rt_openai_error *error, uint32_t *ret_tenant)
{
    bool given = key[0] != '\0';
    if (rt_access_identify(rt_service_access(service), given ? key : NULL, strlen(key), ret_tenant))
        return BT_OK;
    return rt_openai_error_set(error, BT_ERR_UNAUTHORISED, "api_key", NULL, "api_key is %s",
                               given ? "not valid" : "missing");
}

/* What is refused anyway costs no tokenizing. */
static enum bt_status admit(struct stream *stream, const Baton__V1__GenerateRequest *request,
                            struct rt_openai_error *error)
{
    uint32_t tenant = 0;
    enum bt_status status = identify(stream->service, request->api_key, error, &tenant);
    if (status == BT_OK)
        status = rt_openai_admit(stream->service, tenant, error);
    if (status != BT_OK)
        return status;
    struct rt_generation *generation = &stream->generation;
    generation->caller =
        rt_openai_caller(stream->service, tenant, request->priority, request->n_messages > 0);
    generation->tenant_name = generation->caller.tenant_name;
    return BT_OK;
}

static enum bt_status start(struct stream *stream, const Baton__V1__GenerateRequest *request,
                            struct rt_openai_error *error)
{
    struct rt_generation *generation = &stream->generation;
    int64_t now_ns = bt_clock_now_ns();
    *generation = (struct rt_generation){
        .stop = (const char *const *)request->stop,
        .stop_count = request->n_stop,
        .arrival_ns = now_ns,
        .deadline_ns =
            rt_service_deadline_ns(stream->service, now_ns, bt_rpc_call_deadline_ns(stream->call)),
    };
    rt_service_trace_begin(stream->service, request->traceparent, &generation->trace);
    enum bt_status status = admit(stream, request, error);
    if (status == BT_OK)
        status = rt_openai_prompt_check_model(stream->service, request->model, error);
    if (status == BT_OK)
        status = read_sampling(stream->service, request, error, &generation->sampling);
    if (status == BT_OK)
        status = read_identity(stream, request, error);
    if (status == BT_OK)
        status = find_prompt(request, error, &stream->prompt_field);
    if (status != BT_OK)
        return status;
    if (request->n_prompt_ids > 0)
        return submit(stream, request->prompt_ids, request->n_prompt_ids, error);
    return encode(stream, request, error);
}

static void handle_generate(void *context, struct bt_rpc_call *call,
                            const ProtobufCMessage *message)
{
    const Baton__V1__GenerateRequest *request = (const Baton__V1__GenerateRequest *)message;
    struct stream *stream = calloc(1, sizeof *stream);
    if (stream == NULL) {
        bt_rpc_call_end(call, BT_ERR_NO_MEMORY, "no memory for a stream", NULL);
        return;
    }
    stream->service = context;
    stream->call = call;
    stream->token_events = request->token_ids || asks_logprobs(request);
    struct rt_openai_error error = {0};
    enum bt_status status = start(stream, request, &error);
    if (status != BT_OK)
        stream_end(stream, status, error.text);
    else
        bt_rpc_call_on_cancel(call, on_cancel, stream);
}

/* ------------------------------------------------------------------ unary calls */

static void handle_models(void *context, struct bt_rpc_call *call, const ProtobufCMessage *message)
{
    (void)message;
    const struct rt_service *service = context;
    Baton__V1__ModelInfo info = BATON__V1__MODEL_INFO__INIT;
    Baton__V1__ModelInfo *infos[] = {&info};
    Baton__V1__ModelsResponse response = BATON__V1__MODELS_RESPONSE__INIT;
    info.id = (char *)rt_service_model_name(service);
    info.max_model_len = rt_service_max_model_len(service);
    info.model_hash = rt_service_model_hash(service);
    response.models = infos;
    response.n_models = 1;
    bt_rpc_call_end(call, BT_OK, NULL, &response.base);
}

static void handle_status(void *context, struct bt_rpc_call *call, const ProtobufCMessage *message)
{
    (void)message;
    Baton__V1__StatusResponse *response = rt_service_status(context);
    if (response == NULL) {
        bt_rpc_call_end(call, BT_ERR_NO_MEMORY, "no memory for the status", NULL);
        return;
    }
    bt_rpc_call_end(call, BT_OK, NULL, &response->base);
    baton__v1__status_response__free_unpacked(response, NULL);
}

static void handle_stats(void *context, struct bt_rpc_call *call, const ProtobufCMessage *message)
{
    Baton__V1__StatsResponse *response =
        rt_service_stats(context, (const Baton__V1__StatsRequest *)message);
    if (response == NULL) {
        bt_rpc_call_end(call, BT_ERR_NO_MEMORY, "no memory for the stats", NULL);
        return;
    }
    bt_rpc_call_end(call, BT_OK, NULL, &response->base);
    baton__v1__stats_response__free_unpacked(response, NULL);
}

static void handle_trace(void *context, struct bt_rpc_call *call, const ProtobufCMessage *message)
{
    Baton__V1__TraceResponse *response =
        rt_service_trace(context, (const Baton__V1__TraceRequest *)message);
    if (response == NULL) {
        bt_rpc_call_end(call, BT_ERR_NO_MEMORY, "no memory for traces", NULL);
        return;
    }
    bt_rpc_call_end(call, BT_OK, NULL, &response->base);
    baton__v1__trace_response__free_unpacked(response, NULL);
}

/* ------------------------------------------------------------------ Tokenize */

/* One call, until its ids are there. */
struct tokens {
    const struct rt_service *service;
    struct bt_rpc_call *call;
    bool pieces; /* are wanted */
    const char *field;
    struct rt_tokenization_job *job;
};

/* False: no memory. They are the tokenizer's. */
static bool find_pieces(const struct tokens *tokens, Baton__V1__TokenizeResponse *response)
{
    const struct bt_tokenizer *tokenizer = rt_service_tokenizer(tokens->service);
    response->pieces = calloc(response->n_ids + 1, sizeof *response->pieces);
    if (response->pieces == NULL)
        return false;
    response->n_pieces = response->n_ids;
    for (size_t i = 0; i < response->n_ids; i++)
        response->pieces[i].data =
            (uint8_t *)bt_tokenizer_bytes(tokenizer, response->ids[i], &response->pieces[i].len);
    return true;
}

static void on_tokens(void *context, enum bt_status status, const char *text,
                      struct bt_token_buffer *ids)
{
    struct tokens *tokens = context;
    struct rt_openai_error error = {0};
    Baton__V1__TokenizeResponse response = BATON__V1__TOKENIZE_RESPONSE__INIT;
    response.ids = ids->ids;
    response.n_ids = ids->count;
    status = rt_openai_prompt_result(status, tokens->field, text, &error);
    if (status == BT_OK && tokens->pieces && !find_pieces(tokens, &response))
        status = rt_openai_error_set(&error, BT_ERR_NO_MEMORY, NULL, NULL, "no memory for pieces");
    bt_rpc_call_end(tokens->call, status, status == BT_OK ? NULL : error.text,
                    status == BT_OK ? &response.base : NULL);
    free(response.pieces);
    free(ids->ids);
    free(tokens);
}

static void on_tokens_cancel(void *context, struct bt_rpc_call *call)
{
    struct tokens *tokens = context;
    const char *text;
    enum bt_status status = cancel_reason(call, &text);
    rt_tokenization_cancel(tokens->job);
    bt_rpc_call_end(call, status, text, NULL);
    free(tokens);
}

static enum bt_status tokenize(struct rt_service *service, struct tokens *tokens,
                               const Baton__V1__TokenizeRequest *request,
                               struct rt_openai_error *error)
{
    const struct rt_openai_prompt_sink sink = {
        .deadline_ns = rt_service_deadline_ns(service, bt_clock_now_ns(),
                                              bt_rpc_call_deadline_ns(tokens->call)),
        .fn = on_tokens,
        .context = tokens,
    };
    uint32_t tenant;
    if (identify(service, request->api_key, error, &tenant) != BT_OK)
        return error->status;
    if (request->n_messages > 0 && request->text[0] != '\0')
        return rt_openai_error_field(error, "text", "or messages must be given, and only one");
    tokens->field = request->n_messages > 0 ? "messages" : "text";
    if (request->n_messages > 0)
        return encode_messages(service, request->messages, request->n_messages, &sink, error,
                               &tokens->job);
    return rt_openai_prompt_encode_text(service, request->text, strlen(request->text), true, "text",
                                        &sink, error, &tokens->job);
}

static void handle_tokenize(void *context, struct bt_rpc_call *call,
                            const ProtobufCMessage *message)
{
    struct rt_openai_error error = {0};
    struct tokens *tokens = calloc(1, sizeof *tokens);
    if (tokens == NULL) {
        bt_rpc_call_end(call, BT_ERR_NO_MEMORY, "no memory for a call", NULL);
        return;
    }
    tokens->service = context;
    tokens->call = call;
    tokens->pieces = ((const Baton__V1__TokenizeRequest *)message)->pieces;
    enum bt_status status =
        tokenize(context, tokens, (const Baton__V1__TokenizeRequest *)message, &error);
    if (status == BT_OK) {
        bt_rpc_call_on_cancel(call, on_tokens_cancel, tokens);
        return;
    }
    bt_rpc_call_end(call, status, error.text, NULL);
    free(tokens);
}

const struct bt_rpc_method rt_rpc_front_methods[] = {
    {"baton.v1.Router/Generate", &baton__v1__generate_request__descriptor, handle_generate},
    {"baton.v1.Router/Models", &baton__v1__models_request__descriptor, handle_models},
    {"baton.v1.Router/Status", &baton__v1__status_request__descriptor, handle_status},
    {"baton.v1.Router/Stats", &baton__v1__stats_request__descriptor, handle_stats},
    {"baton.v1.Router/Trace", &baton__v1__trace_request__descriptor, handle_trace},
    {"baton.v1.Router/Tokenize", &baton__v1__tokenize_request__descriptor, handle_tokenize},
    {NULL, NULL, NULL},
};
