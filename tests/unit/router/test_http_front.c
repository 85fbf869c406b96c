/* The HTTP API over real sockets and a scripted service: every endpoint, streams, errors. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/clock.h"
#include "router/http_front.h"
#include "tests/unit/router/fake_service.h"
#include "tests/unit/router/http_client.h"

#define CHAT     "/v1/chat/completions"
#define COMPL    "/v1/completions"
#define HELLO    "\"messages\":[{\"role\":\"user\",\"content\":\"hello\"}]"
#define MAX_BODY (64u << 10)

struct fixture {
    struct bt_loop *loop;
    struct rt_service *service;
    struct rt_http_front *front;
    struct http_client client;
};

static int set_up(void **state)
{
    static struct fixture fixture;
    struct bt_error error = {0};
    fixture.loop = bt_loop_create(&error);
    assert_non_null(fixture.loop);
    fixture.service = fake_service_create(fixture.loop);
    const struct rt_http_front_options options = {
        .host = "127.0.0.1", .port = 0, .max_connections = 64, .max_body_bytes = MAX_BODY};
    if (rt_http_front_create(fixture.loop, fixture.service, &options, &error, &fixture.front) !=
        BT_OK)
        fail_msg("%s", error.text);
    http_client_open(&fixture.client, fixture.loop, rt_http_front_port(fixture.front));
    *state = &fixture;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *fixture = *state;
    rt_http_front_destroy(fixture->front);
    assert_int_equal(fixture->service->live, 0);
    http_client_close(&fixture->client);
    fake_service_destroy(fixture->service);
    bt_loop_destroy(fixture->loop);
    return 0;
}

static struct http_response call(struct fixture *fixture, const char *method, const char *path,
                                 const char *extra, const char *body)
{
    struct http_response response;
    http_client_request(&fixture->client, method, path, extra, body,
                        body != NULL ? strlen(body) : 0);
    http_client_response(&fixture->client, strcmp(method, "HEAD") == 0, &response);
    return response;
}

/* The JSON of a 200 response. */
static json_t *ask(struct fixture *fixture, const char *path, const char *body)
{
    struct http_response response = call(fixture, body != NULL ? "POST" : "GET", path, "", body);
    if (response.status != 200)
        fail_msg("%d: %s", response.status, response.body);
    json_t *json = http_response_json(&response);
    assert_string_equal(http_response_header(&response, "Content-Type"), "application/json");
    http_response_finish(&response);
    return json;
}

static json_t *ask_stream(struct fixture *fixture, const char *path, const char *body)
{
    struct http_response response = call(fixture, "POST", path, "", body);
    if (response.status != 200)
        fail_msg("%d: %s", response.status, response.body);
    assert_true(response.complete);
    assert_int_equal(
        strncmp(http_response_header(&response, "Content-Type"), "text/event-stream", 17), 0);
    json_t *events = http_response_events(&response);
    http_response_finish(&response);
    return events;
}

/* A refusal: status, param ("" for null), code (NULL: not looked at). */
static void expect_error(struct fixture *fixture, const char *method, const char *path,
                         const char *extra, const char *body, int status, const char *param,
                         const char *code)
{
    struct http_response response = call(fixture, method, path, extra, body);
    if (response.status != status)
        fail_msg("%s: %d: %s", body, response.status, response.body);
    json_t *json = http_response_json(&response);
    json_t *error = json_object_get(json, "error");
    assert_true(json_string_length(json_object_get(error, "message")) > 0);
    assert_true(json_is_string(json_object_get(error, "type")));
    assert_int_equal(json_object_size(error), 4);
    const char *got = json_string_value(json_object_get(error, "param"));
    if (strcmp(got != NULL ? got : "", param) != 0)
        fail_msg("%s: param %s: %s", body, got, response.body);
    if (code != NULL)
        assert_string_equal(json_string_value(json_object_get(error, "code")), code);
    if (status == 429 || status == 503)
        assert_non_null(http_response_header(&response, "Retry-After"));
    json_decref(json);
    http_response_finish(&response);
}

static const char *string_at(json_t *object, const char *name)
{
    const char *value = json_string_value(json_object_get(object, name));
    if (value == NULL)
        fail_msg("no string %s", name);
    return value;
}

static int64_t int_at(json_t *object, const char *name)
{
    assert_true(json_is_integer(json_object_get(object, name)));
    return json_integer_value(json_object_get(object, name));
}

static json_t *choice_at(json_t *response, size_t index)
{
    json_t *choice = json_array_get(json_object_get(response, "choices"), index);
    assert_non_null(choice);
    return choice;
}

/* The first `count` tokens of the fake as text; specials and broken characters never occur. */
static char *fake_text(struct fixture *fixture, uint32_t count)
{
    static char text[8192];
    size_t used = 0;
    for (uint32_t i = 0; i < count; i++) {
        size_t size;
        const char *bytes =
            bt_tokenizer_bytes(fixture->service->tokenizer, fake_token(fixture->service, i), &size);
        assert_true(used + size < sizeof text);
        memcpy(text + used, bytes, size);
        used += size;
    }
    text[used] = '\0';
    return text;
}

/* ------------------------------------------------------------------ small endpoints */

static void test_state_endpoints(void **state)
{
    struct fixture *f = *state;
    json_t *json = ask(f, "/health", NULL);
    assert_string_equal(string_at(json, "status"), "ok");
    json_decref(json);
    json = ask(f, "/ready", NULL);
    assert_string_equal(string_at(json, "status"), "ready");
    json_decref(json);
    f->service->ready = false;
    struct http_response response = call(f, "GET", "/ready", "", NULL);
    assert_int_equal(response.status, 503);
    json = http_response_json(&response);
    assert_string_equal(string_at(json, "reason"), "no decode worker is ready");
    json_decref(json);
    http_response_finish(&response);
    response = call(f, "GET", "/health", "", NULL);
    assert_int_equal(response.status, 200);
    http_response_finish(&response);
    response = call(f, "GET", "/metrics", "", NULL);
    assert_string_equal(response.body, "# TYPE fake counter\nfake 1\n");
    assert_int_equal(
        strncmp(http_response_header(&response, "Content-Type"), "text/plain; version=0.0.4", 25),
        0);
    http_response_finish(&response);
    response = call(f, "HEAD", "/health", "", NULL);
    assert_int_equal(response.status, 200);
    http_response_finish(&response);
    assert_int_equal(f->client.size, 0);
}

static void assert_body(struct fixture *f, const char *path, int status, const char *body)
{
    struct http_response response = call(f, "GET", path, "", NULL);
    assert_int_equal(response.status, status);
    if (body != NULL)
        assert_string_equal(response.body, body);
    http_response_finish(&response);
}

static void test_status(void **state)
{
    struct fixture *f = *state;
    assert_body(f, "/status", 200, "[0,false,0]");
    assert_body(f, "/status?after=17", 200, "[17,false,0]");
    assert_body(f, "/status?offset=0", 200, "[0,true,0]");
    assert_body(f, "/status?offset=512&after=3", 200, "[3,true,512]");
    assert_body(f, "/status?after=-1", 400, NULL);
    assert_body(f, "/status?after=", 400, NULL);
    assert_body(f, "/status?offset=1x", 400, NULL);
    assert_body(f, "/status?offset=99999999999999999999", 400, NULL);
}

static void test_dashboard(void **state)
{
    struct fixture *f = *state;
    struct http_response page = call(f, "GET", "/", "", NULL);
    assert_int_equal(page.status, 200);
    assert_string_equal(http_response_header(&page, "Content-Type"), "text/html; charset=utf-8");
    assert_string_equal(http_response_header(&page, "X-Content-Type-Options"), "nosniff");
    assert_string_equal(http_response_header(&page, "Referrer-Policy"), "no-referrer");
    const char *policy = http_response_header(&page, "Content-Security-Policy");
    assert_ptr_equal(strstr(policy, "default-src 'none'; "), policy);
    assert_null(strstr(policy, "unsafe"));
    char headers[128];
    snprintf(headers, sizeof headers, "If-None-Match: %s\r\n",
             http_response_header(&page, "ETag"));
    struct http_response again = call(f, "GET", "/", headers, NULL);
    assert_int_equal(again.status, 304);
    http_response_finish(&again);
    again = call(f, "GET", "/", "If-None-Match: \"another\"\r\n", NULL);
    assert_int_equal(again.status, 200);
    assert_string_equal(again.body, page.body);
    http_response_finish(&again);
    http_response_finish(&page);
    assert_body(f, "/index.html", 404, NULL);
}

static void test_models(void **state)
{
    struct fixture *f = *state;
    json_t *json = ask(f, "/v1/models", NULL);
    assert_string_equal(string_at(json, "object"), "list");
    json_t *model = json_array_get(json_object_get(json, "data"), 0);
    assert_string_equal(string_at(model, "id"), FAKE_MODEL);
    assert_string_equal(string_at(model, "object"), "model");
    assert_int_equal(int_at(model, "created"), 1700000000);
    json_decref(json);
    json = ask(f, "/v1/models/" FAKE_MODEL, NULL);
    assert_string_equal(string_at(json, "id"), FAKE_MODEL);
    json_decref(json);
    expect_error(f, "GET", "/v1/models/none", "", NULL, 404, "model", "model_not_found");
}

static void test_tokenize(void **state)
{
    struct fixture *f = *state;
    json_t *json = ask(f, "/tokenize", "{\"prompt\":\"Once upon a time\"}");
    json_t *tokens = json_object_get(json, "tokens");
    assert_int_equal(json_integer_value(json_array_get(tokens, 0)),
                     bt_tokenizer_bos(f->service->tokenizer));
    assert_int_equal(int_at(json, "count"), json_array_size(tokens));
    assert_int_equal(int_at(json, "max_model_len"), 4096);
    size_t count = json_array_size(tokens);
    json_decref(json);
    json = ask(f, "/tokenize", "{\"prompt\":\"Once upon a time\",\"add_special_tokens\":false}");
    assert_int_equal(int_at(json, "count"), count - 1);
    char body[512], *list = json_dumps(json_object_get(json, "tokens"), 0);
    snprintf(body, sizeof body, "{\"tokens\":%s}", list);
    free(list);
    json_decref(json);
    json = ask(f, "/detokenize", body);
    assert_string_equal(string_at(json, "prompt"), "Once upon a time");
    json_decref(json);
    json = ask(f, "/tokenize", "{" HELLO "}");
    assert_true(int_at(json, "count") > 1);
    json_decref(json);
    expect_error(f, "POST", "/detokenize", "", "{\"tokens\":[999999]}", 400, "tokens", NULL);
}

static void test_unknown(void **state)
{
    struct fixture *f = *state;
    expect_error(f, "GET", "/nothing", "", NULL, 404, "", NULL);
    expect_error(f, "POST", "/v1/embeddings", "", "{}", 404, "", NULL);
    expect_error(f, "GET", "/v1/chat/completions/", "", NULL, 404, "", NULL);
    expect_error(f, "GET", "/%ff%00", "", NULL, 404, "", NULL);
    struct http_response response = call(f, "GET", CHAT, "", NULL);
    assert_int_equal(response.status, 405);
    assert_string_equal(http_response_header(&response, "Allow"), "POST");
    http_response_finish(&response);
    response = call(f, "DELETE", "/v1/models", "", NULL);
    assert_int_equal(response.status, 405);
    assert_string_equal(http_response_header(&response, "Allow"), "GET, HEAD");
    http_response_finish(&response);
    expect_error(f, "POST", CHAT, "Content-Type: text/plain\r\n", "{" HELLO "}", 415, "", NULL);
    json_t *json = ask(f, CHAT, "{" HELLO "}");
    json_decref(json);
    response =
        call(f, "POST", CHAT, "Content-Type: Application/JSON; charset=utf-8\r\n", "{" HELLO "}");
    assert_int_equal(response.status, 200);
    http_response_finish(&response);
}

/* ------------------------------------------------------------------ chat */

static void test_chat(void **state)
{
    struct fixture *f = *state;
    struct http_response response =
        call(f, "POST", CHAT, "", "{" HELLO ",\"model\":\"tiny\",\"max_tokens\":30,\"seed\":-2}");
    assert_int_equal(response.status, 200);
    json_t *json = http_response_json(&response);
    const char *id = string_at(json, "id");
    assert_string_equal(id, "chatcmpl-00000000000003e8");
    const char *name = http_response_header(&response, "X-Request-Id");
    assert_int_equal(strlen(name), 32);
    assert_int_equal(strspn(name, "0123456789abcdef"), 32);
    assert_string_equal(f->service->requests[0].name, name);
    assert_false(f->service->requests[0].named);
    assert_string_equal(string_at(json, "object"), "chat.completion");
    assert_string_equal(string_at(json, "model"), FAKE_MODEL);
    assert_string_equal(string_at(json, "system_fingerprint"), "fp_0000000000abcdef");
    assert_true(llabs(int_at(json, "created") - bt_clock_unix_ns() / BT_NS_PER_S) < 60);
    json_t *choice = choice_at(json, 0), *message = json_object_get(choice, "message");
    assert_int_equal(int_at(choice, "index"), 0);
    assert_string_equal(string_at(message, "role"), "assistant");
    assert_string_equal(string_at(message, "content"), fake_text(f, 30));
    assert_string_equal(string_at(choice, "finish_reason"), "length");
    assert_true(json_is_null(json_object_get(choice, "logprobs")));
    assert_null(json_object_get(choice, "token_ids"));
    assert_null(json_object_get(json, "baton"));
    json_t *usage = json_object_get(json, "usage");
    struct fake_request *request = &f->service->requests[0];
    assert_int_equal(int_at(usage, "prompt_tokens"), request->prompt_tokens);
    assert_int_equal(int_at(usage, "completion_tokens"), 30);
    assert_int_equal(int_at(usage, "total_tokens"), request->prompt_tokens + 30);
    assert_true(request->seed == (uint64_t)-2);
    assert_int_equal(request->prompt[0], bt_tokenizer_bos(f->service->tokenizer));
    json_decref(json);
    http_response_finish(&response);
}

static void test_chat_stream(void **state)
{
    struct fixture *f = *state;
    json_t *events = ask_stream(f, CHAT,
                                "{" HELLO ",\"stream\":true,\"max_tokens\":25,"
                                "\"stream_options\":{\"include_usage\":true}}");
    size_t count = json_array_size(events);
    char text[4096] = "";
    const char *id = string_at(json_array_get(events, 0), "id");
    assert_string_equal(json_string_value(json_array_get(events, count - 1)), "[DONE]");
    for (size_t i = 0; i < count - 2; i++) {
        json_t *event = json_array_get(events, i), *choice = choice_at(event, 0);
        json_t *delta = json_object_get(choice, "delta");
        assert_string_equal(string_at(event, "id"), id);
        assert_string_equal(string_at(event, "object"), "chat.completion.chunk");
        assert_true(json_is_null(json_object_get(event, "usage")));
        assert_true((i == 0) == (json_object_get(delta, "role") != NULL));
        assert_true(json_is_null(json_object_get(choice, "finish_reason")) == (i < count - 3));
        if (i < count - 3)
            strcat(text, string_at(delta, "content"));
        else
            assert_string_equal(string_at(choice, "finish_reason"), "length");
    }
    assert_string_equal(text, fake_text(f, 25));
    json_t *last = json_array_get(events, count - 2);
    assert_int_equal(json_array_size(json_object_get(last, "choices")), 0);
    assert_int_equal(int_at(json_object_get(last, "usage"), "completion_tokens"), 25);
    json_decref(events);
    /* the connection lives on */
    events = ask_stream(f, CHAT, "{" HELLO ",\"stream\":true}");
    assert_null(json_object_get(json_array_get(events, 0), "usage"));
    json_decref(events);
    assert_int_equal(f->service->abandoned, 0);
}

/* Every chunk counts the tokens whose text came with it and before it. */
static void test_continuous_usage(void **state)
{
    struct fixture *f = *state;
    json_t *events = ask_stream(f, COMPL,
                                "{\"prompt\":\"hello\",\"stream\":true,\"max_tokens\":25,\"n\":2,"
                                "\"stream_options\":{\"include_usage\":true,"
                                "\"continuous_usage_stats\":true}}");
    size_t count = json_array_size(events);
    char texts[2][4096] = {"", ""};
    int64_t before = 0;
    json_t *last = json_object_get(json_array_get(events, count - 2), "usage");
    for (size_t i = 0; i < count - 2; i++) {
        json_t *event = json_array_get(events, i), *usage = json_object_get(event, "usage");
        json_t *choice = json_array_get(json_object_get(event, "choices"), 0);
        int64_t tokens = int_at(usage, "completion_tokens");
        strcat(texts[int_at(choice, "index")], string_at(choice, "text"));
        size_t shown = strlen(texts[0]) + strlen(texts[1]);
        assert_true(tokens >= before && tokens <= 50);
        assert_true(shown <= 2 * strlen(fake_text(f, (uint32_t)(tokens + 1) / 2)));
        assert_int_equal(int_at(usage, "prompt_tokens"), int_at(last, "prompt_tokens"));
        assert_int_equal(int_at(usage, "total_tokens"), int_at(usage, "prompt_tokens") + tokens);
        assert_null(json_object_get(usage, "prompt_tokens_details")); /* not known yet */
        before = tokens;
    }
    assert_int_equal(before, 50);
    assert_int_equal(int_at(last, "completion_tokens"), 50);
    assert_non_null(json_object_get(last, "prompt_tokens_details"));
    json_decref(events);
    events = ask_stream(f, CHAT,
                        "{" HELLO ",\"stream\":true,\"max_tokens\":5,"
                        "\"stream_options\":{\"continuous_usage_stats\":true}}");
    assert_null(json_object_get(json_array_get(events, 0), "usage"));
    json_decref(events);
}

static void test_stop(void **state)
{
    struct fixture *f = *state;
    json_t *json = ask(f, CHAT, "{" HELLO ",\"max_tokens\":500,\"stop\":[\" time\",\"zebra\"]}");
    json_t *choice = choice_at(json, 0);
    assert_string_equal(string_at(json_object_get(choice, "message"), "content"), "Once upon a");
    assert_string_equal(string_at(choice, "finish_reason"), "stop");
    json_decref(json);
}

static void test_timing(void **state)
{
    struct fixture *f = *state;
    json_t *json = ask(f, CHAT, "{" HELLO ",\"baton_timing\":true}");
    json_t *timing = json_object_get(json, "baton");
    assert_true(json_real_value(json_object_get(timing, "ttft_ms")) == 12.5);
    assert_int_equal(int_at(timing, "kv_bytes"), 4711);
    assert_true(json_is_true(json_object_get(timing, "layerwise")));
    assert_string_equal(string_at(timing, "transport"), "shm");
    json_decref(json);
    struct http_response response =
        call(f, "POST", CHAT, "X-Baton-Timing: 1\r\n", "{" HELLO ",\"stream\":true,\"n\":2}");
    json_t *events = http_response_events(&response), *event;
    size_t index, timings = 0;
    json_array_foreach(events, index, event)
    {
        if (!json_is_object(event) || json_object_get(event, "baton") == NULL)
            continue;
        timings++;
        assert_true(json_is_string(json_object_get(choice_at(event, 0), "finish_reason")));
    }
    assert_int_equal(timings, 2);
    json_decref(events);
    http_response_finish(&response);
    json = ask(f, CHAT, "{" HELLO ",\"baton_timing\":true,\"n\":2}");
    assert_int_equal(json_array_size(json_object_get(json, "baton")), 2);
    json_decref(json);
}

/* ------------------------------------------------------------------ completions */

static void test_completions(void **state)
{
    struct fixture *f = *state;
    json_t *json = ask(f, COMPL,
                       "{\"prompt\":[\"Once upon\",\"The code\"],\"n\":2,\"seed\":5,"
                       "\"return_token_ids\":true}");
    assert_int_equal(strncmp(string_at(json, "id"), "cmpl-", 5), 0);
    assert_string_equal(string_at(json, "object"), "text_completion");
    uint64_t prompts = 0;
    for (size_t i = 0; i < 4; i++) {
        json_t *choice = choice_at(json, i);
        assert_int_equal(int_at(choice, "index"), i);
        assert_string_equal(string_at(choice, "text"), fake_text(f, 16));
        assert_int_equal(f->service->requests[i].seed, 5 + i % 2);
        json_t *ids = json_object_get(choice, "token_ids");
        assert_int_equal(json_array_size(ids), 16);
        for (uint32_t t = 0; t < 16; t++)
            assert_int_equal(json_integer_value(json_array_get(ids, t)), fake_token(f->service, t));
        prompts += i % 2 == 0 ? f->service->requests[i].prompt_tokens : 0;
    }
    json_t *usage = json_object_get(json, "usage");
    assert_int_equal(int_at(usage, "prompt_tokens"), prompts);
    assert_int_equal(int_at(usage, "completion_tokens"), 64);
    json_decref(json);
}

static void test_token_prompts(void **state)
{
    struct fixture *f = *state;
    json_t *json = ask(f, COMPL, "{\"prompt\":[[7,500],[600]],\"max_tokens\":1}");
    assert_int_equal(json_array_size(json_object_get(json, "choices")), 2);
    assert_int_equal(f->service->requests[0].prompt_tokens, 2); /* no BOS is added to ids */
    assert_int_equal(f->service->requests[0].prompt[1], 500);
    assert_int_equal(f->service->requests[1].prompt[0], 600);
    json_decref(json);
    fake_reset(f->service);
    /* text that begins with BOS gets no second one */
    size_t size;
    uint32_t bos = (uint32_t)bt_tokenizer_bos(f->service->tokenizer);
    const char *bytes = bt_tokenizer_bytes(f->service->tokenizer, bos, &size);
    char body[256];
    snprintf(body, sizeof body, "{\"prompt\":[\"%.*s hello\",\" hello\"],\"max_tokens\":1}",
             (int)size, bytes);
    json_decref(ask(f, COMPL, body));
    assert_int_equal(f->service->requests[0].prompt_tokens, f->service->requests[1].prompt_tokens);
    assert_int_equal(f->service->requests[0].prompt[0], bos);
    assert_int_not_equal(f->service->requests[0].prompt[1], bos);
}

static void test_completion_stream(void **state)
{
    struct fixture *f = *state;
    json_t *events = ask_stream(f, COMPL,
                                "{\"prompt\":\"x\",\"stream\":true,\"n\":3,\"max_tokens\":40,"
                                "\"return_token_ids\":true}");
    char texts[3][4096] = {"", "", ""};
    uint32_t tokens[3] = {0};
    int finished[3] = {0};
    size_t index, id_index;
    json_t *event, *id;
    json_array_foreach(events, index, event)
    {
        if (!json_is_object(event))
            continue;
        json_t *choice = choice_at(event, 0);
        int64_t i = int_at(choice, "index");
        assert_true(i >= 0 && i < 3 && !finished[i]);
        strcat(texts[i], string_at(choice, "text"));
        finished[i] = json_is_string(json_object_get(choice, "finish_reason"));
        json_array_foreach(json_object_get(choice, "token_ids"), id_index, id)
            assert_int_equal(json_integer_value(id), fake_token(f->service, tokens[i]++));
    }
    for (int i = 0; i < 3; i++) {
        assert_string_equal(texts[i], fake_text(f, 40));
        assert_int_equal(tokens[i], 40);
        assert_true(finished[i]);
    }
    json_decref(events);
}

/* ------------------------------------------------------------------ logprobs */

static void check_float(json_t *value, float expected)
{
    assert_true(json_is_number(value));
    assert_true((float)json_number_value(value) == expected);
}

static void check_chat_token(struct fixture *f, json_t *entry, uint32_t token, float logprob)
{
    size_t size;
    const char *bytes = bt_tokenizer_bytes(f->service->tokenizer, token, &size);
    json_t *list = json_object_get(entry, "bytes");
    assert_int_equal(json_array_size(list), size);
    for (size_t i = 0; i < size; i++)
        assert_int_equal(json_integer_value(json_array_get(list, i)), (unsigned char)bytes[i]);
    assert_true(json_is_string(json_object_get(entry, "token")));
    check_float(json_object_get(entry, "logprob"), logprob);
}

static void test_chat_logprobs(void **state)
{
    struct fixture *f = *state;
    json_t *json =
        ask(f, CHAT, "{" HELLO ",\"logprobs\":true,\"top_logprobs\":3,\"max_tokens\":20}");
    json_t *content = json_object_get(json_object_get(choice_at(json, 0), "logprobs"), "content");
    assert_int_equal(json_array_size(content), 20);
    for (uint32_t i = 0; i < 20; i++) {
        json_t *entry = json_array_get(content, i), *top = json_object_get(entry, "top_logprobs");
        check_chat_token(f, entry, fake_token(f->service, i), fake_logprob(i));
        assert_int_equal(json_array_size(top), 3);
        check_chat_token(f, json_array_get(top, 0), fake_token(f->service, i), fake_logprob(i));
        check_chat_token(f, json_array_get(top, 2), 302, fake_logprob(i) - 2.0f);
    }
    json_decref(json);
    /* streamed: the same entries, in chunks */
    json_t *events =
        ask_stream(f, CHAT, "{" HELLO ",\"logprobs\":true,\"stream\":true,\"max_tokens\":20}");
    uint32_t tokens = 0;
    size_t index, entry_index;
    json_t *event, *entry;
    json_array_foreach(events, index, event)
    {
        if (!json_is_object(event))
            continue;
        json_t *logprobs = json_object_get(choice_at(event, 0), "logprobs");
        json_array_foreach(json_object_get(logprobs, "content"), entry_index, entry)
        {
            check_chat_token(f, entry, fake_token(f->service, tokens), fake_logprob(tokens));
            assert_int_equal(json_array_size(json_object_get(entry, "top_logprobs")), 0);
            tokens++;
        }
    }
    assert_int_equal(tokens, 20);
    json_decref(events);
}

static void test_completion_logprobs(void **state)
{
    struct fixture *f = *state;
    json_t *json = ask(f, COMPL, "{\"prompt\":\"x\",\"logprobs\":2,\"max_tokens\":20}");
    json_t *logprobs = json_object_get(choice_at(json, 0), "logprobs");
    json_t *tokens = json_object_get(logprobs, "tokens");
    json_t *offsets = json_object_get(logprobs, "text_offset");
    assert_int_equal(json_array_size(tokens), 20);
    assert_int_equal(json_array_size(offsets), 20);
    size_t characters = 0;
    for (uint32_t i = 0; i < 20; i++) {
        json_t *top = json_array_get(json_object_get(logprobs, "top_logprobs"), i);
        const char *name = json_string_value(json_array_get(tokens, i));
        check_float(json_array_get(json_object_get(logprobs, "token_logprobs"), i),
                    fake_logprob(i));
        check_float(json_object_get(top, name), fake_logprob(i));
        assert_int_equal(json_object_size(top), 2);
        size_t size;
        const char *bytes =
            bt_tokenizer_bytes(f->service->tokenizer, fake_token(f->service, i), &size);
        bool inside = ((unsigned char)bytes[0] & 0xC0) == 0x80;
        assert_int_equal(json_integer_value(json_array_get(offsets, i)), characters - inside);
        for (size_t b = 0; b < size; b++)
            characters += ((unsigned char)bytes[b] & 0xC0) != 0x80;
    }
    json_decref(json);
    json = ask(f, COMPL, "{\"prompt\":\"x\",\"logprobs\":0,\"max_tokens\":1}");
    logprobs = json_object_get(choice_at(json, 0), "logprobs");
    assert_int_equal(json_object_size(json_array_get(json_object_get(logprobs, "top_logprobs"), 0)),
                     1);
    json_decref(json);
}

/* ------------------------------------------------------------------ errors */

static void test_refusals(void **state)
{
    struct fixture *f = *state;
    expect_error(f, "POST", CHAT, "", "{", 400, "", "invalid_json");
    expect_error(f, "POST", CHAT, "", NULL, 400, "", "invalid_json");
    expect_error(f, "POST", CHAT, "", "{" HELLO ",\"model\":\"gpt\"}", 404, "model",
                 "model_not_found");
    expect_error(f, "POST", CHAT, "", "{" HELLO ",\"n\":0}", 400, "n", NULL);
    expect_error(f, "POST", CHAT, "", "{" HELLO ",\"max_tokens\":4096}", 400, "max_tokens",
                 "context_length_exceeded");
    expect_error(f, "POST", COMPL, "", "{\"prompt\":[4000000000]}", 400, "prompt", NULL);
    expect_error(f, "POST", COMPL, "", "{\"prompt\":[[1],[4000000000]]}", 400, "prompt[1]", NULL);
    expect_error(f, "POST", COMPL, "", "{\"prompt\":\"x\",\"logit_bias\":{\"99999\":1}}", 400,
                 "logit_bias", NULL);
    f->service->context = 4;
    expect_error(f, "POST", COMPL, "", "{\"prompt\":[1,2,3,4]}", 400, "prompt",
                 "context_length_exceeded");
    expect_error(f, "POST", CHAT, "", "{" HELLO "}", 400, "messages", "context_length_exceeded");
    json_decref(ask(f, COMPL, "{\"prompt\":[1,2,3],\"max_tokens\":1}"));
    assert_int_equal(f->service->request_count, 1);
}

static void test_submit_fails(void **state)
{
    struct fixture *f = *state;
    f->service->refuse = BT_ERR_EXHAUSTED;
    expect_error(f, "POST", CHAT, "", "{" HELLO "}", 429, "", "queue_full");
    f->service->refuse = BT_ERR_UNAVAILABLE;
    expect_error(f, "POST", CHAT, "", "{" HELLO ",\"stream\":true}", 503, "", "unavailable");
    f->service->refuse = BT_ERR_INVALID_ARGUMENT;
    expect_error(f, "POST", CHAT, "", "{" HELLO "}", 400, "", NULL);
    f->service->refuse = BT_ERR_NO_MEMORY;
    expect_error(f, "POST", CHAT, "", "{" HELLO "}", 500, "", NULL);
    /* the third of four is refused: the first two must not stay */
    f->service->refuse = BT_ERR_EXHAUSTED;
    f->service->refuse_after = 2;
    expect_error(f, "POST", CHAT, "", "{" HELLO ",\"n\":4}", 429, "", "queue_full");
    assert_int_equal(f->service->live, 0);
    assert_int_equal(f->service->abandoned, 2);
}

static void test_generation_fails(void **state)
{
    struct fixture *f = *state;
    f->service->fail_at = 0;
    expect_error(f, "POST", CHAT, "", "{" HELLO ",\"stream\":true}", 503, "", "unavailable");
    f->service->fail_at = 3;
    expect_error(f, "POST", CHAT, "", "{" HELLO "}", 503, "", "unavailable");
    f->service->fail_status = BT_ERR_CORRUPT;
    expect_error(f, "POST", CHAT, "", "{" HELLO "}", 500, "", NULL);
    f->service->fail_finish = RT_FINISH_DEADLINE;
    expect_error(f, "POST", CHAT, "", "{" HELLO "}", 504, "", "timeout");
    f->service->fail_finish = RT_FINISH_CANCELLED;
    expect_error(f, "POST", CHAT, "", "{" HELLO "}", 503, "", "cancelled");
}

static void test_stream_breaks(void **state)
{
    struct fixture *f = *state;
    f->service->fail_at = 5;
    struct http_response response =
        call(f, "POST", CHAT, "", "{" HELLO ",\"stream\":true,\"n\":2,\"max_tokens\":40}");
    assert_int_equal(response.status, 200);
    assert_false(response.complete); /* the connection ended before the body did */
    assert_true(f->client.closed);
    assert_non_null(strstr(response.head, "chunked"));
    assert_non_null(strstr(response.body, "data: {\"error\":{\"message\":\"worker is gone\""));
    assert_null(strstr(response.body, "[DONE]"));
    http_response_finish(&response);
    assert_int_equal(f->service->live, 0);
}

/* ------------------------------------------------------------------ bodies and connections */

static void test_large_bodies(void **state)
{
    struct fixture *f = *state;
    size_t size = MAX_BODY + 1;
    char *body = malloc(size + 1);
    memset(body, ' ', size);
    body[size] = '\0';
    memcpy(body, "{" HELLO "}", strlen("{" HELLO "}"));
    expect_error(f, "POST", CHAT, "", body, 413, "", "body_too_large");
    body[MAX_BODY] = '\0';
    json_decref(ask(f, CHAT, body)); /* exactly the limit; the connection lived on */
    free(body);
}

/* 8 KiB of headers, in one or in many, are fine for every kind of response; 64 KiB are not. */
static void test_long_headers(void **state)
{
    struct fixture *f = *state;
    static char one[9000], many[9000], much[70000];
    size_t used = 0;
    snprintf(one, sizeof one, "X-Long: %08192d\r\n", 0);
    for (int i = 0; i < 64; i++)
        used += (size_t)snprintf(many + used, sizeof many - used, "X-%02d: %0120d\r\n", i, i);
    snprintf(much, sizeof much, "X-Long: %065536d\r\n", 0);
    const char *const bodies[] = {"{" HELLO "}", "{" HELLO ",\"stream\":true,\"max_tokens\":50}"};
    for (size_t i = 0; i < 4; i++) {
        struct http_response response = call(f, "POST", CHAT, i < 2 ? one : many, bodies[i % 2]);
        assert_int_equal(response.status, 200);
        assert_true(response.complete);
        http_response_finish(&response);
    }
    struct http_response response = call(f, "GET", "/health", much, NULL);
    assert_int_equal(response.status, 431);
    http_response_finish(&response);
}

static void test_expect_continue(void **state)
{
    struct fixture *f = *state;
    struct http_response response;
    char head[256];
    snprintf(head, sizeof head,
             "POST " CHAT " HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %zu\r\n"
             "\r\n",
             strlen("{" HELLO "}"));
    http_client_send(&f->client, head, strlen(head));
    http_client_response(&f->client, false, &response);
    assert_int_equal(response.status, 100);
    http_response_finish(&response);
    http_client_send(&f->client, "{" HELLO "}", strlen("{" HELLO "}"));
    http_client_response(&f->client, false, &response);
    assert_int_equal(response.status, 200);
    http_response_finish(&response);
    /* refused before the body is sent */
    snprintf(head, sizeof head,
             "POST " CHAT
             " HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %u\r\n\r\n",
             MAX_BODY + 1);
    http_client_send(&f->client, head, strlen(head));
    http_client_response(&f->client, false, &response);
    assert_int_equal(response.status, 413);
    http_response_finish(&response);
}

static void test_chunked_upload(void **state)
{
    struct fixture *f = *state;
    struct http_response response;
    const char *body = "{" HELLO "}";
    http_client_request(&f->client, "POST", CHAT, "Transfer-Encoding: chunked\r\n", NULL, 0);
    for (const char *at = body; *at != '\0'; at++) {
        char chunk[16];
        http_client_send(&f->client, chunk,
                         (size_t)snprintf(chunk, sizeof chunk, "1\r\n%c\r\n", *at));
        http_client_pump(&f->client);
    }
    http_client_send(&f->client, "0\r\n\r\n", 5);
    http_client_response(&f->client, false, &response);
    assert_int_equal(response.status, 200);
    http_response_finish(&response);
}

#define HEAD(text)   "POST " CHAT " HTTP/1.1\r\nHost: x\r\n" text "\r\n"
#define HEALTH       "GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
#define LENGTH_OF_IT "Content-Length: 33\r\n" /* of HEALTH, as of a body */
#define NO_LENGTH    "Content-Length: 0\r\n"

/* Where the request ends depends on who reads: it is refused, and what follows is nobody's request.
 */
static void test_framing(void **state)
{
    struct fixture *f = *state;
    const struct {
        const char *request, *word;
        int status;
    } rows[] = {
        {HEAD(NO_LENGTH LENGTH_OF_IT) HEALTH, "Content-Length", 400},
        {"GET /health HTTP/1.1\r\nHost: x\r\n" NO_LENGTH LENGTH_OF_IT "\r\n" HEALTH,
         "Content-Length", 400},
        {HEAD(LENGTH_OF_IT NO_LENGTH) HEALTH, "Content-Length", 400},
        {HEAD(LENGTH_OF_IT "Transfer-Encoding: chunked\r\n") "0\r\n\r\n" HEALTH, "33", 400},
        {HEAD("Transfer-Encoding: gzip, chunked\r\n") "0\r\n\r\n" HEALTH, "gzip", 501},
        {HEAD("Transfer-Encoding: identity\r\n") "0\r\n\r\n" HEALTH, "identity", 501},
        {HEAD("Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n") "0\r\n\r\n" HEALTH,
         "Transfer-Encoding", 501},
        {HEAD("Transfer-Encoding : chunked\r\n" NO_LENGTH) "0\r\n\r\n" HEALTH, "space", 400},
        {HEAD("Content-Length : 33\r\n") HEALTH, "space", 400},
        {"POST " CHAT " HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n"
         "0\r\n\r\n" HEALTH,
         "HTTP/1.0", 400},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct http_client other;
        struct http_response response;
        http_client_open(&other, f->loop, rt_http_front_port(f->front));
        http_client_send(&other, rows[i].request, strlen(rows[i].request));
        http_client_response(&other, false, &response);
        if (response.status != rows[i].status || strstr(response.body, rows[i].word) == NULL)
            fail_msg("row %zu: %d: %s", i, response.status, response.body);
        json_t *json = http_response_json(&response);
        assert_true(json_is_object(json_object_get(json, "error")));
        json_decref(json);
        assert_string_equal(http_response_header(&response, "Connection"), "close");
        http_response_finish(&response);
        int64_t until_ns = bt_clock_now_ns() + 20 * BT_NS_PER_S;
        while (!other.closed) {
            http_client_pump(&other);
            assert_true(bt_clock_now_ns() < until_ns);
        }
        assert_int_equal(other.size, 0);
        http_client_close(&other);
    }
    assert_int_equal(f->service->request_count, 0);
    /* Twice the same is one, and any case will do. */
    struct http_response response = call(
        f, "POST", CHAT, "CONTENT-LENGTH: 48\r\nContent-Encoding: identity\r\n", "{" HELLO "}");
    assert_int_equal(response.status, 200);
    http_response_finish(&response);
    http_client_request(&f->client, "POST", CHAT, "Transfer-Encoding: Chunked\r\n", NULL, 0);
    http_client_send(&f->client, "30\r\n{" HELLO "}\r\n0\r\n\r\n", 4 + 48 + 7);
    http_client_response(&f->client, false, &response);
    assert_int_equal(response.status, 200);
    http_response_finish(&response);
    expect_error(f, "POST", CHAT, "Content-Encoding: gzip\r\n", "{" HELLO "}", 415, "",
                 "unsupported_content_encoding");
}

/* As to a proxy. */
static void test_whole_urls(void **state)
{
    struct fixture *f = *state;
    json_decref(ask(f, "http://any.host:80/health", NULL));
    json_decref(ask(f, "HTTPS://any.host/v1/models/tiny?x=1", NULL));
    json_decref(ask(f, "http://any.host" CHAT, "{" HELLO "}"));
    expect_error(f, "POST", "http://any.host", "", "{}", 405, "", "method_not_allowed");
    expect_error(f, "GET", "http:/health", "", NULL, 404, "", "unknown_url");
    expect_error(f, "GET", "ftp://any.host/health", "", NULL, 404, "", "unknown_url");
}

static void test_pipelining(void **state)
{
    struct fixture *f = *state;
    char requests[4096] = "";
    const char *bodies[] = {"{" HELLO ",\"max_tokens\":9}",
                            "{" HELLO ",\"max_tokens\":2,\"stream\":true}", "{}", "{" HELLO "}"};
    for (size_t i = 0; i < 4; i++)
        sprintf(requests + strlen(requests),
                "POST " CHAT " HTTP/1.1\r\nHost: x\r\nContent-Length: %zu\r\n\r\n%s",
                strlen(bodies[i]), bodies[i]);
    strcat(requests, "GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
    http_client_send(&f->client, requests, strlen(requests));
    const int statuses[] = {200, 200, 400, 200, 200};
    for (size_t i = 0; i < 5; i++) {
        struct http_response response;
        http_client_response(&f->client, false, &response);
        assert_int_equal(response.status, statuses[i]);
        assert_true(response.complete);
        http_response_finish(&response);
    }
    assert_int_equal(f->service->request_count, 3);
    assert_int_equal(f->service->abandoned, 0);
}

static void test_http_1_0(void **state)
{
    struct fixture *f = *state;
    const char *request = "POST " CHAT " HTTP/1.0\r\nContent-Length: 66\r\n\r\n";
    char body[67];
    snprintf(body, sizeof body, "%-66s", "{" HELLO ",\"stream\":true}");
    http_client_send(&f->client, request, strlen(request));
    http_client_send(&f->client, body, 66);
    int64_t until = bt_clock_now_ns() + 60 * BT_NS_PER_S;
    while (!f->client.closed && bt_clock_now_ns() < until)
        http_client_pump(&f->client);
    assert_true(f->client.closed);
    assert_non_null(strstr(f->client.data, "data: [DONE]\n\n"));
    assert_null(strstr(f->client.data, "chunked"));
}

#define RAW(data)                                                                                  \
    {                                                                                              \
        data, sizeof data - 1                                                                      \
    }

/* Bytes that are no HTTP at all must not disturb anybody. */
static void test_raw_bytes(void **state)
{
    struct fixture *f = *state;
    static char many[100000];
    memset(many, 'A', sizeof many);
    const struct {
        const char *data;
        size_t size;
    } raw[] = {
        RAW("\0\0\0\0\0\0\0\0"),
        RAW("GET\r\n\r\n"),
        RAW("GET / HTTP/9.9\r\n\r\n"),
        RAW("POST " CHAT " HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n"),
        RAW("POST " CHAT " HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999\r\n\r\n{"),
        RAW("POST " CHAT " HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n"),
        RAW(many),
    };
    for (size_t i = 0; i < sizeof raw / sizeof *raw; i++) {
        struct http_client other;
        http_client_open(&other, f->loop, rt_http_front_port(f->front));
        http_client_send(&other, raw[i].data, raw[i].size);
        for (int round = 0; round < 5; round++)
            http_client_pump(&other);
        http_client_close(&other);
        json_decref(ask(f, "/health", NULL));
    }
}

static void test_addresses(void **state)
{
    struct fixture *f = *state;
    struct bt_error error = {0};
    struct rt_http_front *front;
    struct rt_http_front_options options = {
        .host = "localhost", .max_connections = 4, .max_body_bytes = 100};
    assert_int_equal(rt_http_front_create(f->loop, f->service, &options, &error, &front),
                     BT_ERR_INVALID_ARGUMENT);
    options.host = "127.0.0.1";
    options.port = rt_http_front_port(f->front);
    assert_int_equal(rt_http_front_create(f->loop, f->service, &options, &error, &front),
                     BT_ERR_IO);
    assert_non_null(strstr(error.text, "in use"));
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_state_endpoints),
        TEST(test_models),
        TEST(test_status),
        TEST(test_dashboard),
        TEST(test_tokenize),
        TEST(test_unknown),
        TEST(test_chat),
        TEST(test_chat_stream),
        TEST(test_continuous_usage),
        TEST(test_stop),
        TEST(test_timing),
        TEST(test_completions),
        TEST(test_token_prompts),
        TEST(test_completion_stream),
        TEST(test_chat_logprobs),
        TEST(test_completion_logprobs),
        TEST(test_refusals),
        TEST(test_submit_fails),
        TEST(test_generation_fails),
        TEST(test_stream_breaks),
        TEST(test_large_bodies),
        TEST(test_long_headers),
        TEST(test_expect_continue),
        TEST(test_chunked_upload),
        TEST(test_framing),
        TEST(test_whole_urls),
        TEST(test_pipelining),
        TEST(test_http_1_0),
        TEST(test_raw_bytes),
        TEST(test_addresses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
