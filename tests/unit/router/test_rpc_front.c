/* baton.v1.Router over ZeroMQ and a scripted service. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

#include <cmocka.h>

#include "common/base/clock.h"
#include "proto/generate.pb-c.h"
#include "proto/rpc.pb-c.h"
#include "router/rpc_front.h"
#include "tests/unit/router/fake_service.h"

#define PATIENCE_NS (60 * BT_NS_PER_S)

struct fixture {
    struct bt_loop *loop;
    struct rt_service *service;
    struct bt_rpc_server *server;
    struct bt_rpc_client *client;
};

static int set_up(void **state)
{
    static struct fixture fixture;
    struct bt_error error = {0};
    fixture.loop = bt_loop_create(&error);
    assert_non_null(fixture.loop);
    fixture.service = fake_service_create(fixture.loop);
    if (bt_rpc_server_create(fixture.loop, "tcp://127.0.0.1:*", rt_rpc_front_methods,
                             fixture.service, &error, &fixture.server) != BT_OK ||
        bt_rpc_client_create(fixture.loop, bt_rpc_server_endpoint(fixture.server), &error,
                             &fixture.client) != BT_OK)
        fail_msg("%s", error.text);
    *state = &fixture;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *fixture = *state;
    bt_rpc_client_destroy(fixture->client);
    bt_rpc_server_destroy(fixture->server);
    assert_int_equal(fixture->service->live, 0);
    fake_service_destroy(fixture->service);
    bt_loop_destroy(fixture->loop);
    return 0;
}

/* What a Generate call gave. */
struct got {
    char text[1 << 16];
    uint32_t tokens[4096];
    float logprobs[4096];
    size_t token_count, top_count, events;
    char finish[16];
    uint32_t prompt_tokens, completion_tokens;
    double ttft_ms;
    size_t ended;
    enum bt_status status;
    char message[512];
};

static void on_data(void *context, const ProtobufCMessage *message)
{
    struct got *got = context;
    const Baton__V1__GenerateEvent *event = (const Baton__V1__GenerateEvent *)message;
    got->events++;
    assert_true(strlen(got->text) + strlen(event->text) < sizeof got->text);
    strcat(got->text, event->text);
    for (size_t i = 0; i < event->n_tokens; i++) {
        got->tokens[got->token_count] = event->tokens[i]->token;
        got->logprobs[got->token_count++] = event->tokens[i]->logprob;
        got->top_count += event->tokens[i]->n_top;
    }
    if (event->finish_reason[0] == '\0')
        return;
    assert_int_equal(got->finish[0], '\0');
    strcpy(got->finish, event->finish_reason);
    assert_non_null(event->usage);
    got->prompt_tokens = event->usage->prompt_tokens;
    got->completion_tokens = event->usage->completion_tokens;
    got->ttft_ms = event->timing->ttft_ms;
}

static void on_end(void *context, enum bt_status status, const char *text,
                   const ProtobufCMessage *response)
{
    (void)response;
    struct got *got = context;
    got->ended++;
    got->status = status;
    strncpy(got->message, text != NULL ? text : "", sizeof got->message - 1);
}

static void run_round(struct fixture *fixture)
{
    struct bt_error error = {0};
    assert_true(bt_loop_run_once(fixture->loop, bt_clock_now_ns() + BT_NS_PER_MS, &error) >= BT_OK);
}

static void wait_for(struct fixture *fixture, const size_t *value, size_t wanted)
{
    int64_t until = bt_clock_now_ns() + PATIENCE_NS;
    while (*value != wanted) {
        run_round(fixture);
        if (bt_clock_now_ns() > until)
            fail_msg("%zu, expected %zu", *value, wanted);
    }
}

static struct bt_rpc_pending *start(struct fixture *fixture,
                                    const Baton__V1__GenerateRequest *request, int64_t deadline_ns,
                                    struct got *got)
{
    struct bt_error error = {0};
    struct bt_rpc_pending *pending;
    const struct bt_rpc_call_spec spec = {.method = "baton.v1.Router/Generate",
                                          .request = &request->base,
                                          .data = &baton__v1__generate_event__descriptor,
                                          .deadline_ns = deadline_ns,
                                          .on_data = on_data,
                                          .on_end = on_end,
                                          .context = got};
    memset(got, 0, sizeof *got);
    if (bt_rpc_client_call(fixture->client, &spec, &error, &pending) != BT_OK)
        fail_msg("%s", error.text);
    return pending;
}

static void generate(struct fixture *fixture, const Baton__V1__GenerateRequest *request,
                     struct got *got)
{
    start(fixture, request, BT_NEVER_NS, got);
    wait_for(fixture, &got->ended, 1);
}

static Baton__V1__GenerateRequest text_request(void)
{
    Baton__V1__GenerateRequest request = BATON__V1__GENERATE_REQUEST__INIT;
    request.prompt = (char *)"hello";
    return request;
}

static char *fake_text(const struct fixture *fixture, uint32_t count)
{
    static char text[1 << 16];
    size_t used = 0;
    for (uint32_t i = 0; i < count; i++) {
        size_t size;
        const char *bytes =
            bt_tokenizer_bytes(fixture->service->tokenizer, fake_token(fixture->service, i), &size);
        memcpy(text + used, bytes, size);
        used += size;
    }
    text[used] = '\0';
    return text;
}

/* ------------------------------------------------------------------ Generate */

static void test_generate(void **state)
{
    struct fixture *f = *state;
    static struct got got;
    Baton__V1__GenerateRequest request = text_request();
    request.has_max_tokens = request.has_seed = request.has_temperature = true;
    request.max_tokens = 40;
    request.seed = UINT64_MAX;
    request.temperature = 0;
    generate(f, &request, &got);
    assert_int_equal(got.status, BT_OK);
    assert_string_equal(got.text, fake_text(f, 40));
    assert_string_equal(got.finish, "length");
    assert_int_equal(got.token_count, 0);
    assert_int_equal(got.completion_tokens, 40);
    assert_int_equal(got.prompt_tokens, f->service->requests[0].prompt_tokens);
    assert_true(got.ttft_ms == 12.5);
    assert_true(f->service->requests[0].seed == UINT64_MAX);
    assert_true(f->service->requests[0].temperature == 0);
    assert_int_equal(f->service->requests[0].logprobs, -1);
    assert_int_equal(f->service->requests[0].prompt[0], bt_tokenizer_bos(f->service->tokenizer));
    /* zero that was given differs from nothing given */
    request = text_request();
    generate(f, &request, &got);
    assert_true(f->service->requests[1].temperature == 1);
}

static void test_tokens_and_logprobs(void **state)
{
    struct fixture *f = *state;
    static struct got got;
    Baton__V1__GenerateRequest request = text_request();
    uint32_t ids[] = {5, 6, 7};
    request.prompt = NULL;
    request.prompt_ids = ids;
    request.n_prompt_ids = 3;
    request.has_max_tokens = request.has_logprobs = true;
    request.max_tokens = 20;
    request.logprobs = 3;
    generate(f, &request, &got);
    assert_int_equal(f->service->requests[0].prompt_tokens, 3);
    assert_int_equal(got.token_count, 20);
    assert_int_equal(got.top_count, 60);
    for (uint32_t i = 0; i < 20; i++) {
        assert_int_equal(got.tokens[i], fake_token(f->service, i));
        assert_true(got.logprobs[i] == fake_logprob(i));
    }
    request.logprobs = -1;
    request.has_token_ids = request.token_ids = true;
    generate(f, &request, &got);
    assert_int_equal(got.token_count, 20);
    assert_int_equal(f->service->requests[1].logprobs, -1);
}

static void test_messages_and_stop(void **state)
{
    struct fixture *f = *state;
    static struct got got;
    Baton__V1__GenerateRequest request = text_request();
    Baton__V1__ChatMessage message = BATON__V1__CHAT_MESSAGE__INIT;
    Baton__V1__ChatMessage *messages[] = {&message};
    char *stop[] = {(char *)" time"};
    message.role = (char *)"user";
    message.content = (char *)"hello";
    request.prompt = NULL;
    request.messages = messages;
    request.n_messages = 1;
    request.stop = stop;
    request.n_stop = 1;
    generate(f, &request, &got);
    assert_int_equal(got.status, BT_OK);
    assert_string_equal(got.text, "Once upon a");
    assert_string_equal(got.finish, "stop");
}

static void expect_refused(struct fixture *f, const Baton__V1__GenerateRequest *request,
                           enum bt_status status, const char *word)
{
    static struct got got;
    generate(f, request, &got);
    if (got.status != status || strstr(got.message, word) == NULL)
        fail_msg("expected %s with \"%s\", got %s: %s", bt_status_name(status), word,
                 bt_status_name(got.status), got.message);
}

static void test_refused(void **state)
{
    struct fixture *f = *state;
    const Baton__V1__GenerateRequest nothing = BATON__V1__GENERATE_REQUEST__INIT;
    Baton__V1__GenerateRequest r = nothing;
    uint32_t id = 1000000;
    float value = 101;
    char *stop[] = {(char *)""};
    expect_refused(f, &r, BT_ERR_INVALID_ARGUMENT, "prompt");
    r = text_request();
    r.prompt = (char *)"";
    expect_refused(f, &r, BT_ERR_INVALID_ARGUMENT, "prompt must not be empty");
    r = text_request();
    r.prompt_ids = &id;
    r.n_prompt_ids = 1;
    expect_refused(f, &r, BT_ERR_INVALID_ARGUMENT, "only one");
    r.prompt = NULL;
    expect_refused(f, &r, BT_ERR_INVALID_ARGUMENT, "1000000");
    r = text_request();
    r.model = (char *)"gpt";
    expect_refused(f, &r, BT_ERR_NOT_FOUND, "gpt");
    r = text_request();
    r.has_temperature = true;
    r.temperature = NAN;
    expect_refused(f, &r, BT_ERR_INVALID_ARGUMENT, "temperature must be between 0 and 2, not nan");
    r.temperature = -INFINITY;
    expect_refused(f, &r, BT_ERR_INVALID_ARGUMENT, "temperature");
    r = text_request();
    r.has_max_tokens = true;
    expect_refused(f, &r, BT_ERR_INVALID_ARGUMENT, "max_tokens must be between 1");
    r.max_tokens = UINT32_MAX;
    expect_refused(f, &r, BT_ERR_INVALID_ARGUMENT, "4294967295");
    r.max_tokens = 4096;
    expect_refused(f, &r, BT_ERR_INVALID_ARGUMENT, "context");
    r = text_request();
    r.has_logprobs = true;
    r.logprobs = 21;
    expect_refused(f, &r, BT_ERR_INVALID_ARGUMENT, "logprobs");
    r = text_request();
    r.stop = stop;
    r.n_stop = 1;
    expect_refused(f, &r, BT_ERR_INVALID_ARGUMENT, "stop");
    r = text_request();
    r.logit_bias_token = &id;
    r.n_logit_bias_token = 1;
    expect_refused(f, &r, BT_ERR_INVALID_ARGUMENT, "logit_bias has 1 tokens and 0 values");
    r.logit_bias_value = &value;
    r.n_logit_bias_value = 1;
    expect_refused(f, &r, BT_ERR_INVALID_ARGUMENT, "1000000");
    id = 5;
    expect_refused(f, &r, BT_ERR_INVALID_ARGUMENT, "101");
    assert_int_equal(f->service->request_count, 0);
    f->service->refuse = BT_ERR_EXHAUSTED;
    r = text_request();
    expect_refused(f, &r, BT_ERR_EXHAUSTED, "the fake refuses");
}

static void test_generation_fails(void **state)
{
    struct fixture *f = *state;
    Baton__V1__GenerateRequest request = text_request();
    f->service->fail_at = 2;
    expect_refused(f, &request, BT_ERR_PEER_LOST, "worker is gone");
    f->service->fail_finish = RT_FINISH_DEADLINE;
    expect_refused(f, &request, BT_ERR_DEADLINE, "deadline");
}

static void test_cancel(void **state)
{
    struct fixture *f = *state;
    static struct got got;
    Baton__V1__GenerateRequest request = text_request();
    f->service->automatic = false;
    struct bt_rpc_pending *pending = start(f, &request, BT_NEVER_NS, &got);
    wait_for(f, &f->service->live, 1);
    fake_step(f->service, &f->service->requests[0]);
    wait_for(f, &got.events, 1);
    bt_rpc_pending_cancel(pending);
    wait_for(f, &got.ended, 1);
    assert_int_equal(got.status, BT_ERR_CANCELLED);
    assert_int_equal(f->service->abandoned, 1);
}

static _Atomic int64_t later_ns; /* that the clock is ahead */

int64_t __real_bt_clock_now_ns(void);
int64_t __wrap_bt_clock_now_ns(void);
int64_t __wrap_bt_clock_now_ns(void)
{
    return __real_bt_clock_now_ns() + later_ns;
}

static void test_deadline(void **state)
{
    struct fixture *f = *state;
    static struct got got;
    Baton__V1__GenerateRequest request = text_request();
    f->service->automatic = false;
    start(f, &request, bt_clock_now_ns() + 300 * BT_NS_PER_S, &got);
    wait_for(f, &f->service->live, 1);
    assert_true(f->service->requests[0].deadline_ns < bt_clock_now_ns() + 301 * BT_NS_PER_S);
    assert_int_equal(f->service->abandoned, 0);
    later_ns += 300 * BT_NS_PER_S;
    wait_for(f, &f->service->abandoned, 1);
    wait_for(f, &got.ended, 1);
    assert_int_equal(got.status, BT_ERR_DEADLINE);
}

static void test_client_gone(void **state)
{
    struct fixture *f = *state;
    static struct got got;
    Baton__V1__GenerateRequest request = text_request();
    f->service->automatic = false;
    start(f, &request, BT_NEVER_NS, &got);
    wait_for(f, &f->service->live, 1);
    bt_rpc_client_destroy(f->client);
    f->client = NULL;
    wait_for(f, &f->service->live, 0);
    assert_int_equal(f->service->abandoned, 1);
}

/* A peer that asks and never reads. */
static void *silent_peer(struct fixture *f, const Baton__V1__GenerateRequest *request)
{
    void *dealer = zmq_socket(bt_loop_zmq(f->loop), ZMQ_DEALER);
    int one = 1, small = 4096;
    zmq_setsockopt(dealer, ZMQ_RCVHWM, &one, sizeof one);
    zmq_setsockopt(dealer, ZMQ_RCVBUF, &small, sizeof small);
    assert_int_equal(zmq_connect(dealer, bt_rpc_server_endpoint(f->server)), 0);
    Baton__V1__Frame frame = BATON__V1__FRAME__INIT;
    frame.kind = BATON__V1__FRAME__KIND__CALL;
    frame.call_id = 7;
    frame.method = (char *)"baton.v1.Router/Generate";
    frame.version = 1;
    uint8_t head[256], body[256];
    size_t head_size = baton__v1__frame__pack(&frame, head);
    size_t body_size = baton__v1__generate_request__pack(request, body);
    assert_true(zmq_send(dealer, head, head_size, ZMQ_SNDMORE) >= 0);
    assert_true(zmq_send(dealer, body, body_size, 0) >= 0);
    return dealer;
}

static void test_slow_reader(void **state)
{
    struct fixture *f = *state;
    Baton__V1__GenerateRequest request = text_request();
    request.has_max_tokens = request.has_logprobs = true;
    request.max_tokens = 10000000;
    request.logprobs = 20;
    f->service->context = UINT32_MAX;
    f->service->burst = 500;
    void *dealer = silent_peer(f, &request);
    wait_for(f, &f->service->live, 1);
    wait_for(f, &f->service->live, 0);
    assert_int_equal(f->service->abandoned, 1);
    assert_in_range(f->service->requests[0].produced, 100, 1000000);
    zmq_close(dealer);
}

/* tear_down destroys client and server while the stream is open. */
static void test_open_at_the_end(void **state)
{
    struct fixture *f = *state;
    static struct got got;
    Baton__V1__GenerateRequest request = text_request();
    f->service->automatic = false;
    start(f, &request, BT_NEVER_NS, &got);
    wait_for(f, &f->service->live, 1);
    bt_rpc_server_destroy(f->server);
    f->server = NULL;
    assert_int_equal(f->service->abandoned, 1);
}

/* ------------------------------------------------------------------ unary */

static ProtobufCMessage *call(struct fixture *fixture, const char *method,
                              const ProtobufCMessage *request,
                              const ProtobufCMessageDescriptor *descriptor)
{
    struct bt_error error = {0};
    ProtobufCMessage *response = NULL;
    const struct bt_rpc_call_spec spec = {.method = method,
                                          .request = request,
                                          .response = descriptor,
                                          .deadline_ns = bt_clock_now_ns() + PATIENCE_NS};
    if (bt_rpc_client_call_wait(fixture->client, &spec, &error, &response) != BT_OK)
        fail_msg("%s: %s", method, error.text);
    return response;
}

static void test_unary(void **state)
{
    struct fixture *f = *state;
    Baton__V1__ModelsRequest models = BATON__V1__MODELS_REQUEST__INIT;
    ProtobufCMessage *response =
        call(f, "baton.v1.Router/Models", &models.base, &baton__v1__models_response__descriptor);
    const Baton__V1__ModelsResponse *list = (const Baton__V1__ModelsResponse *)response;
    assert_int_equal(list->n_models, 1);
    assert_string_equal(list->models[0]->id, FAKE_MODEL);
    assert_int_equal(list->models[0]->max_model_len, 4096);
    assert_true(list->models[0]->model_hash == 0xABCDEF);
    protobuf_c_message_free_unpacked(response, NULL);
    Baton__V1__StatusRequest status = BATON__V1__STATUS_REQUEST__INIT;
    response =
        call(f, "baton.v1.Router/Status", &status.base, &baton__v1__status_response__descriptor);
    assert_int_equal(((const Baton__V1__StatusResponse *)response)->queued, 0);
    protobuf_c_message_free_unpacked(response, NULL);
    Baton__V1__StatsRequest stats = BATON__V1__STATS_REQUEST__INIT;
    stats.window_s = 17;
    response = call(f, "baton.v1.Router/Stats", &stats.base, &baton__v1__stats_response__descriptor);
    assert_true(((const Baton__V1__StatsResponse *)response)->window_s == 17);
    protobuf_c_message_free_unpacked(response, NULL);
    Baton__V1__TokenizeRequest tokenize = BATON__V1__TOKENIZE_REQUEST__INIT;
    tokenize.text = (char *)FAKE_TEXT;
    response = call(f, "baton.v1.Router/Tokenize", &tokenize.base,
                    &baton__v1__tokenize_response__descriptor);
    const Baton__V1__TokenizeResponse *tokens = (const Baton__V1__TokenizeResponse *)response;
    assert_int_equal(tokens->n_ids, f->service->says.count + 1);
    assert_int_equal(tokens->ids[0], bt_tokenizer_bos(f->service->tokenizer));
    assert_memory_equal(tokens->ids + 1, f->service->says.ids,
                        f->service->says.count * sizeof(uint32_t));
    protobuf_c_message_free_unpacked(response, NULL);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_generate),
        TEST(test_tokens_and_logprobs),
        TEST(test_messages_and_stop),
        TEST(test_refused),
        TEST(test_generation_fails),
        TEST(test_cancel),
        TEST(test_deadline),
        TEST(test_client_gone),
        TEST(test_slow_reader),
        TEST(test_open_at_the_end),
        TEST(test_unary),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
