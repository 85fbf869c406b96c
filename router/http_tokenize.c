#include "router/http_tokenize.h"

#include <stdlib.h>

#include "common/base/clock.h"
#include "router/http_response.h"
#include "router/openai_prompt.h"

static void write_tokens(const struct rt_service *service, const struct bt_token_buffer *ids,
                         struct rt_openai_json *json)
{
    rt_openai_json_literal(json, "{\"tokens\":[");
    for (size_t i = 0; i < ids->count; i++) {
        if (i > 0)
            rt_openai_json_literal(json, ",");
        rt_openai_json_int(json, ids->ids[i]);
    }
    rt_openai_json_literal(json, "],\"count\":");
    rt_openai_json_int(json, (int64_t)ids->count);
    rt_openai_json_literal(json, ",\"max_model_len\":");
    rt_openai_json_int(json, rt_service_max_model_len(service));
    rt_openai_json_literal(json, "}");
}

static void on_tokenized(void *context, enum bt_status status, const char *text,
                         struct bt_token_buffer *ids)
{
    struct rt_http_exchange *exchange = context;
    struct rt_http_tokens *tokens = &exchange->tokens;
    tokens->job = NULL;
    tokens->ids = *ids;
    rt_openai_prompt_result(status, tokens->param, text, &tokens->error);
    rt_http_exchange_resume(exchange);
}

static enum bt_status start(struct rt_http_exchange *exchange,
                            const struct rt_openai_request *request, struct rt_openai_error *error)
{
    struct rt_service *service = exchange->all->service;
    struct rt_http_tokens *tokens = &exchange->tokens;
    const struct rt_openai_prompt_sink sink = {
        .deadline_ns = rt_service_deadline_ns(service, bt_clock_now_ns(), BT_NEVER_NS),
        .fn = on_tokenized,
        .context = exchange,
    };
    enum bt_status status = rt_openai_prompt_check_model(service, request->model, error);
    if (status != BT_OK)
        return status;
    tokens->param = request->message_count > 0 ? "messages" : "prompt";
    if (request->message_count > 0)
        return rt_openai_prompt_encode_messages(service, request->messages, request->message_count,
                                                &sink, error, &tokens->job);
    return rt_openai_prompt_encode_text(service, request->prompts[0].text, request->prompts[0].size,
                                        request->add_special_tokens, tokens->param, &sink, error,
                                        &tokens->job);
}

enum MHD_Result rt_http_tokenize(struct rt_http_exchange *exchange)
{
    struct rt_openai_error error = {0};
    struct rt_openai_request request;
    if (exchange->connection->gone)
        return MHD_NO;
    enum bt_status status = rt_openai_request_parse(RT_OPENAI_TOKENIZE, exchange->body,
                                                    exchange->body_size, &error, &request);
    rt_http_exchange_drop_body(exchange);
    if (status != BT_OK)
        return rt_http_respond_error(exchange, &error);
    status = start(exchange, &request, &error);
    rt_openai_request_finish(&request);
    if (status != BT_OK)
        return rt_http_respond_error(exchange, &error);
    rt_http_exchange_suspend(exchange);
    return MHD_YES;
}

enum MHD_Result rt_http_tokenize_respond(struct rt_http_exchange *exchange)
{
    struct rt_http_tokens *tokens = &exchange->tokens;
    struct rt_openai_json json = {0};
    if (tokens->error.status != BT_OK)
        return rt_http_respond_error(exchange, &tokens->error);
    write_tokens(exchange->all->service, &tokens->ids, &json);
    free(tokens->ids.ids);
    tokens->ids = (struct bt_token_buffer){0};
    return rt_http_respond_json(exchange, MHD_HTTP_OK, &json);
}

void rt_http_tokenize_cancel(struct rt_http_exchange *exchange)
{
    if (exchange->tokens.job != NULL)
        rt_tokenization_cancel(exchange->tokens.job);
    exchange->tokens.job = NULL;
}
