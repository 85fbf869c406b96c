/* Requests whose text is being tokenized: the tokenizer is held by the test, and nobody else waits;
 * clients that leave, deadlines, bounds and stops find them there. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/clock.h"
#include "proto/generate.pb-c.h"
#include "router/http_front.h"
#include "router/openai_answer.h"
#include "router/rpc_front.h"
#include "tests/unit/router/fake_service.h"
#include "tests/unit/router/http_client.h"

#define COMPL     "/v1/completions"
#define CHAT      "/v1/chat/completions"
#define BIG_BYTES ((size_t)15 << 20)

/* ------------------------------------------------------------------ the gate */

static struct {
    pthread_mutex_t mutex;
    pthread_cond_t opened;
    bool closed;
    size_t held;  /* texts at the gate, so far */
    bool on_loop; /* a text was encoded on the loop's thread */
    bool watched;
    pthread_t loop_thread;
} gate = {.mutex = PTHREAD_MUTEX_INITIALIZER, .opened = PTHREAD_COND_INITIALIZER};

enum bt_status __real_bt_tokenizer_encode(const struct bt_tokenizer *tokenizer, const char *text,
                                          size_t size, bool special, struct bt_error *error,
                                          struct bt_token_buffer *ret_ids);
enum bt_status __wrap_bt_tokenizer_encode(const struct bt_tokenizer *tokenizer, const char *text,
                                          size_t size, bool special, struct bt_error *error,
                                          struct bt_token_buffer *ret_ids);

/* A big text stands for long work, and need not be work. */
enum bt_status __wrap_bt_tokenizer_encode(const struct bt_tokenizer *tokenizer, const char *text,
                                          size_t size, bool special, struct bt_error *error,
                                          struct bt_token_buffer *ret_ids)
{
    pthread_mutex_lock(&gate.mutex);
    bool on_loop = pthread_equal(pthread_self(), gate.loop_thread);
    gate.on_loop |= on_loop && gate.watched;
    if (gate.closed && !on_loop) {
        gate.held++;
        while (gate.closed)
            pthread_cond_wait(&gate.opened, &gate.mutex);
    }
    pthread_mutex_unlock(&gate.mutex);
    return __real_bt_tokenizer_encode(tokenizer, text, size < BIG_BYTES ? size : 5, special, error,
                                      ret_ids);
}

static void gate_set(bool closed)
{
    pthread_mutex_lock(&gate.mutex);
    gate.closed = closed;
    gate.held = closed ? 0 : gate.held;
    pthread_cond_broadcast(&gate.opened);
    pthread_mutex_unlock(&gate.mutex);
}

static size_t gate_held(void)
{
    pthread_mutex_lock(&gate.mutex);
    size_t held = gate.held;
    pthread_mutex_unlock(&gate.mutex);
    return held;
}

/* ------------------------------------------------------------------ fixture */

struct fixture {
    struct bt_loop *loop;
    struct rt_service *service;
    struct rt_http_front *front;
    struct bt_rpc_server *server;
    struct bt_rpc_client *rpc;
    struct bt_metrics *metrics;
};

static int set_up(void **state)
{
    static struct fixture f;
    struct bt_error error = {0};
    gate_set(false);
    gate.loop_thread = pthread_self();
    gate.on_loop = gate.watched = false;
    f = (struct fixture){.loop = bt_loop_create(&error), .metrics = bt_metrics_create()};
    assert_non_null(f.loop);
    f.service = fake_service_create(f.loop);
    f.service->context = 1 << 30;
    const struct rt_http_front_options options = {.host = "127.0.0.1",
                                                  .max_connections = 64,
                                                  .max_body_bytes = 16 << 20,
                                                  .metrics = f.metrics};
    if (rt_http_front_create(f.loop, f.service, &options, &error, &f.front) != BT_OK ||
        bt_rpc_server_create(f.loop, "tcp://127.0.0.1:*", rt_rpc_front_methods, f.service, &error,
                             &f.server) != BT_OK ||
        bt_rpc_client_create(f.loop, bt_rpc_server_endpoint(f.server), &error, &f.rpc) != BT_OK)
        fail_msg("%s", error.text);
    gate.watched = true;
    *state = &f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    rt_http_front_destroy(f->front);
    bt_rpc_client_destroy(f->rpc);
    bt_rpc_server_destroy(f->server);
    assert_int_equal(f->service->live, 0);
    assert_int_equal(rt_tokenization_open(f->service->tokenization), 0);
    gate_set(false);
    fake_service_destroy(f->service);
    bt_metrics_destroy(f->metrics);
    bt_loop_destroy(f->loop);
    assert_false(gate.on_loop);
    return 0;
}

#define RUN_UNTIL(condition)                                                                       \
    do {                                                                                           \
        int64_t until_ns_ = bt_clock_now_ns() + 60 * BT_NS_PER_S;                                  \
        while (!(condition) && bt_clock_now_ns() < until_ns_)                                      \
            bt_loop_run_once(f->loop, bt_clock_now_ns() + BT_NS_PER_MS, NULL);                     \
        assert_true(condition);                                                                    \
    } while (0)

static size_t open_jobs(struct fixture *f)
{
    return rt_tokenization_open(f->service->tokenization);
}

static bool pool_is_empty(struct fixture *f)
{
    struct bt_tokenize_pool_stats stats;
    rt_tokenization_read(f->service->tokenization, &stats);
    return stats.waiting + stats.running + stats.done + stats.bytes == 0;
}

static void post(struct fixture *f, struct http_client *client, const char *path, const char *body)
{
    http_client_open(client, f->loop, rt_http_front_port(f->front));
    http_client_request(client, "POST", path, "", body, strlen(body));
}

/* The response's status; with `word` somewhere in it. */
static void expect_response(struct http_client *client, int status, const char *word)
{
    struct http_response response;
    http_client_response(client, false, &response);
    if (response.status != status || strstr(response.body, word) == NULL)
        fail_msg("no %d with '%s' but %d: %s", status, word, response.status, response.body);
    assert_true((status == 429 || status == 503) ==
                (http_response_header(&response, "Retry-After") != NULL));
    http_response_finish(&response);
    http_client_close(client);
}

struct ended {
    bool over;
    enum bt_status status;
    char text[256];
    size_t ids;
};

static void on_end(void *context, enum bt_status status, const char *text,
                   const ProtobufCMessage *response)
{
    struct ended *ended = context;
    assert_false(ended->over);
    *ended = (struct ended){.over = true, .status = status};
    snprintf(ended->text, sizeof ended->text, "%s", text != NULL ? text : "");
    if (response != NULL && response->descriptor == &baton__v1__tokenize_response__descriptor)
        ended->ids = ((const Baton__V1__TokenizeResponse *)response)->n_ids;
}

static void on_event(void *context, const ProtobufCMessage *message)
{
    (void)context;
    (void)message;
}

static struct bt_rpc_pending *generate(struct fixture *f, const char *text, int64_t deadline_ns,
                                       struct ended *ended)
{
    struct bt_rpc_pending *pending;
    Baton__V1__GenerateRequest request = BATON__V1__GENERATE_REQUEST__INIT;
    char *stop[] = {(char *)" time"};
    uint32_t token = 5;
    float value = 12.5F;
    request.prompt = (char *)text;
    request.stop = stop;
    request.n_stop = 1;
    request.logit_bias_token = &token;
    request.logit_bias_value = &value;
    request.n_logit_bias_token = request.n_logit_bias_value = 1;
    const struct bt_rpc_call_spec spec = {.method = "baton.v1.Router/Generate",
                                          .request = &request.base,
                                          .data = &baton__v1__generate_event__descriptor,
                                          .deadline_ns = deadline_ns,
                                          .on_data = on_event,
                                          .on_end = on_end,
                                          .context = ended};
    *ended = (struct ended){0};
    assert_int_equal(bt_rpc_client_call(f->rpc, &spec, NULL, &pending), BT_OK);
    return pending;
}

static struct bt_rpc_pending *tokenize(struct fixture *f, const char *text, int64_t deadline_ns,
                                       struct ended *ended)
{
    struct bt_rpc_pending *pending;
    Baton__V1__TokenizeRequest request = BATON__V1__TOKENIZE_REQUEST__INIT;
    request.text = (char *)text;
    const struct bt_rpc_call_spec spec = {.method = "baton.v1.Router/Tokenize",
                                          .request = &request.base,
                                          .response = &baton__v1__tokenize_response__descriptor,
                                          .deadline_ns = deadline_ns,
                                          .on_end = on_end,
                                          .context = ended};
    *ended = (struct ended){0};
    assert_int_equal(bt_rpc_client_call(f->rpc, &spec, NULL, &pending), BT_OK);
    return pending;
}

/* ------------------------------------------------------------------ nobody waits */

static char *big_body(const char *before)
{
    size_t size = strlen(before);
    char *body = malloc(BIG_BYTES + 256);
    if (body == NULL)
        abort();
    memcpy(body, before, size);
    memset(body + size, 'x', BIG_BYTES);
    strcpy(body + size + BIG_BYTES, "\",\"max_tokens\":1}");
    return body;
}

/* There is one thread to tokenize, and it is held for as long as everything else takes. */
static void test_long_text_delays_nobody(void **state)
{
    struct fixture *f = *state;
    struct http_client stream, big, other;
    f->service->automatic = false;
    post(f, &stream, COMPL, "{\"prompt\":[5,6],\"stream\":true,\"max_tokens\":3}");
    RUN_UNTIL(f->service->live == 1);
    gate_set(true);
    char *body = big_body("{\"prompt\":\"");
    post(f, &big, COMPL, body);
    free(body);
    RUN_UNTIL(gate_held() == 1);
    for (int i = 0; i < 3; i++) {
        size_t before = stream.size;
        fake_step(f->service, &f->service->requests[0]);
        while (stream.size == before)
            http_client_pump(&stream);
    }
    expect_response(&stream, 200, "[DONE]");
    http_client_open(&other, f->loop, rt_http_front_port(f->front));
    http_client_request(&other, "GET", "/health", "", NULL, 0);
    expect_response(&other, 200, "ok");
    f->service->automatic = true;
    post(f, &other, COMPL, "{\"prompt\":[7],\"max_tokens\":2}");
    expect_response(&other, 200, "length");
    assert_int_equal(f->service->request_count, 2);
    assert_int_equal(open_jobs(f), 1);
    gate_set(false);
    expect_response(&big, 200, "length");
    assert_int_equal(f->service->request_count, 3);
    assert_true(pool_is_empty(f));
}

/* The same for what only tokenizes. */
static void test_tokenize_waits_alone(void **state)
{
    struct fixture *f = *state;
    struct http_client client, other;
    struct ended ended;
    gate_set(true);
    post(f, &client, "/tokenize", "{\"prompt\":\"Once upon a time\"}");
    tokenize(f, "Once upon a time", BT_NEVER_NS, &ended);
    RUN_UNTIL(open_jobs(f) == 2);
    post(f, &other, COMPL, "{\"prompt\":[7],\"max_tokens\":2}");
    expect_response(&other, 200, "length");
    gate_set(false);
    expect_response(&client, 200, "\"count\":5"); /* BOS and four words */
    RUN_UNTIL(ended.over);
    assert_int_equal(ended.status, BT_OK);
    assert_int_equal(ended.ids, 5);
}

/* What a call asked for is the same after its text was tokenized. */
static void test_parameters_are_kept(void **state)
{
    struct fixture *f = *state;
    struct ended ended;
    gate_set(true);
    generate(f, "Once", bt_clock_now_ns() + 1000 * BT_NS_PER_S, &ended);
    RUN_UNTIL(gate_held() == 1);
    int64_t before_ns = bt_clock_now_ns();
    gate_set(false);
    RUN_UNTIL(ended.over);
    const struct fake_request *request = &f->service->requests[0];
    assert_int_equal(ended.status, BT_OK);
    assert_int_equal(request->prompt_tokens, 2);
    assert_int_equal(request->bias_count, 1);
    assert_true(request->bias_sum == 17.5); /* the token, and its value */
    assert_int_equal(request->stop_count, 1);
    assert_true(request->arrival_ns > 0 && request->arrival_ns < before_ns);
    assert_true(request->deadline_ns == request->arrival_ns + f->service->timeout_ns);
}

/* ------------------------------------------------------------------ ends on the way */

/* The first is held, the others wait. */
static void test_clients_leave(void **state)
{
    struct fixture *f = *state;
    struct http_client held, waiting, tokens;
    struct ended generation, list;
    gate_set(true);
    post(f, &held, COMPL, "{\"prompt\":\"one\",\"stream\":true}");
    RUN_UNTIL(gate_held() == 1);
    post(f, &waiting, COMPL, "{\"prompt\":[\"two\",\"three\"]}");
    RUN_UNTIL(open_jobs(f) == 3);
    post(f, &tokens, "/tokenize", "{\"prompt\":\"four\"}");
    RUN_UNTIL(open_jobs(f) == 4);
    http_client_close(&waiting);
    RUN_UNTIL(open_jobs(f) == 2);
    http_client_close(&held);
    http_client_close(&tokens);
    RUN_UNTIL(open_jobs(f) == 0);
    struct bt_rpc_pending *first = generate(f, "five", BT_NEVER_NS, &generation);
    struct bt_rpc_pending *second = tokenize(f, "six", BT_NEVER_NS, &list);
    RUN_UNTIL(open_jobs(f) == 2);
    bt_rpc_pending_cancel(first);
    bt_rpc_pending_cancel(second);
    RUN_UNTIL(generation.over && list.over);
    assert_int_equal(generation.status, BT_ERR_CANCELLED);
    assert_int_equal(list.status, BT_ERR_CANCELLED);
    assert_int_equal(open_jobs(f), 0);
    gate_set(false);
    RUN_UNTIL(pool_is_empty(f));
    assert_int_equal(gate_held(), 1); /* those that waited were never begun */
    assert_int_equal(f->service->request_count, 0);
    assert_int_equal(
        bt_counter_value(bt_metrics_counter(f->metrics, "baton_http_clients_gone_total", NULL, "")),
        3);
}

static void test_deadlines(void **state)
{
    struct fixture *f = *state;
    struct http_client client;
    struct ended ended;
    int64_t soon_ns = 50 * BT_NS_PER_MS;
    gate_set(true);
    f->service->timeout_ns = soon_ns;
    post(f, &client, COMPL, "{\"prompt\":\"one\",\"stream\":true}");
    expect_response(&client, 504, "timeout");
    post(f, &client, "/tokenize", "{\"prompt\":\"one\"}");
    expect_response(&client, 504, "timeout");
    generate(f, "one", BT_NEVER_NS, &ended); /* by the limit of the service */
    RUN_UNTIL(ended.over);
    assert_int_equal(ended.status, BT_ERR_DEADLINE);
    f->service->timeout_ns = 600 * BT_NS_PER_S;
    generate(f, "one", bt_clock_now_ns() + soon_ns, &ended); /* by its own */
    RUN_UNTIL(ended.over);
    assert_int_equal(ended.status, BT_ERR_DEADLINE);
    RUN_UNTIL(open_jobs(f) == 0);
    tokenize(f, "one", bt_clock_now_ns() + soon_ns, &ended);
    RUN_UNTIL(ended.over);
    assert_int_equal(ended.status, BT_ERR_DEADLINE);
    gate_set(false);
    RUN_UNTIL(pool_is_empty(f));
    assert_int_equal(f->service->request_count, 0);
}

static void test_too_many(void **state)
{
    struct fixture *f = *state;
    struct http_client held, refused;
    struct ended ended;
    gate_set(true);
    post(f, &held, COMPL, "{\"prompt\":[\"a\",\"b\",\"c\"],\"max_tokens\":1}");
    RUN_UNTIL(gate_held() == 1);
    post(f, &refused, COMPL, "{\"prompt\":[\"d\",\"e\"]}"); /* the first of them has room */
    expect_response(&refused, 429, "\"param\":null,\"code\":\"queue_full\"");
    assert_int_equal(open_jobs(f), 3);
    post(f, &refused, CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"f\"}]}");
    RUN_UNTIL(open_jobs(f) == FAKE_MAX_JOBS);
    struct http_client last;
    post(f, &last, "/tokenize", "{\"prompt\":\"g\"}");
    expect_response(&last, 429, "\"param\":null,\"code\":\"queue_full\"");
    generate(f, "h", BT_NEVER_NS, &ended);
    RUN_UNTIL(ended.over);
    assert_int_equal(ended.status, BT_ERR_EXHAUSTED);
    tokenize(f, "h", BT_NEVER_NS, &ended);
    RUN_UNTIL(ended.over);
    assert_int_equal(ended.status, BT_ERR_EXHAUSTED);
    post(f, &last, COMPL, "{\"prompt\":[1,2],\"max_tokens\":1}"); /* ids need no room */
    expect_response(&last, 200, "length");
    gate_set(false);
    expect_response(&held, 200, "length");
    expect_response(&refused, 200, "length");
}

/* Of several prompts one is too long: it is named, and none runs. */
static void test_one_of_several_fails(void **state)
{
    struct fixture *f = *state;
    struct http_client client;
    f->service->context = 6;
    post(f, &client, COMPL,
         "{\"prompt\":[\"one\",\"The quick brown fox jumps over the lazy dog\",\"two\"],"
         "\"max_tokens\":1}");
    expect_response(&client, 400, "prompt[1]");
    assert_int_equal(f->service->request_count, 0);
    RUN_UNTIL(pool_is_empty(f));
    post(f, &client, COMPL, "{\"prompt\":\"one\",\"max_tokens\":5}");
    expect_response(&client, 400, "max_tokens is 5");
    f->service->refuse = BT_ERR_UNAVAILABLE;
    f->service->refuse_after = 1;
    post(f, &client, COMPL, "{\"prompt\":[\"one\",\"two\"],\"max_tokens\":1}");
    expect_response(&client, 503, "the fake refuses");
    assert_int_equal(f->service->live, 0);
    assert_int_equal(f->service->abandoned, 1);
}

static void test_stop(void **state)
{
    struct fixture *f = *state;
    struct http_client both, tokens, late;
    struct ended generation, list;
    gate_set(true);
    post(f, &both, COMPL, "{\"prompt\":[\"one\",\"two\"],\"stream\":true}");
    RUN_UNTIL(open_jobs(f) == 2);
    generate(f, "three", BT_NEVER_NS, &generation);
    tokenize(f, "four", BT_NEVER_NS, &list);
    RUN_UNTIL(open_jobs(f) == 4);
    rt_tokenization_close(f->service->tokenization);
    post(f, &late, COMPL, "{\"prompt\":\"five\"}");
    expect_response(&late, 503, "takes no new requests");
    assert_int_equal(open_jobs(f), 4);
    assert_true(rt_http_front_busy(f->front));
    rt_tokenization_stop(f->service->tokenization);
    assert_int_equal(open_jobs(f), 0);
    expect_response(&both, 503, "the router is stopping");
    RUN_UNTIL(generation.over && list.over);
    assert_int_equal(generation.status, BT_ERR_UNAVAILABLE);
    assert_int_equal(list.status, BT_ERR_UNAVAILABLE);
    post(f, &tokens, "/tokenize", "{\"prompt\":\"six\"}");
    expect_response(&tokens, 503, "takes no new requests");
    RUN_UNTIL(!rt_http_front_busy(f->front));
}

/* tear_down ends fronts and calls in the midst of it. */
static void test_open_at_the_end(void **state)
{
    struct fixture *f = *state;
    static struct http_client generation, tokens;
    static struct ended ended[2];
    gate_set(true);
    post(f, &generation, COMPL, "{\"prompt\":\"one\"}");
    post(f, &tokens, "/tokenize", "{\"prompt\":\"one\"}");
    generate(f, "one", BT_NEVER_NS, &ended[0]);
    tokenize(f, "one", BT_NEVER_NS, &ended[1]);
    RUN_UNTIL(open_jobs(f) == 4);
    http_client_close(&generation);
    http_client_close(&tokens);
}

/* ------------------------------------------------------------------ while draining */

static void test_draining_is_told(void **state)
{
    struct fixture *f = *state;
    struct http_client client;
    struct http_response response;
    http_client_open(&client, f->loop, rt_http_front_port(f->front));
    http_client_request(&client, "GET", "/health", "", NULL, 0);
    http_client_response(&client, false, &response);
    assert_null(http_response_header(&response, "Connection"));
    http_response_finish(&response);
    f->service->draining = true;
    http_client_request(&client, "GET", "/health", "", NULL, 0);
    http_client_response(&client, false, &response);
    assert_int_equal(response.status, 200);
    assert_string_equal(response.body, "{\"status\":\"draining\"}");
    assert_string_equal(http_response_header(&response, "Connection"), "close");
    http_response_finish(&response);
    http_client_close(&client);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_long_text_delays_nobody),
        TEST(test_tokenize_waits_alone),
        TEST(test_parameters_are_kept),
        TEST(test_clients_leave),
        TEST(test_deadlines),
        TEST(test_too_many),
        TEST(test_one_of_several_fails),
        TEST(test_stop),
        TEST(test_open_at_the_end),
        TEST(test_draining_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
