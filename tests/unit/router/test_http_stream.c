/*
 * Streams that are written past the HTTP library: sockets that take a few bytes or none, readers
 * that stop, and connections that go on afterwards.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include <cmocka.h>

#include "common/base/clock.h"
#include "common/base/random.h"
#include "common/text/utf8.h"
#include "router/http_connection.h"
#include "router/http_front.h"
#include "tests/unit/router/fake_service.h"
#include "tests/unit/router/http_client.h"

#define CHAT        "/v1/chat/completions"
#define HELLO       "\"messages\":[{\"role\":\"user\",\"content\":\"hello\"}]"
#define PATIENCE_NS (60 * BT_NS_PER_S)

/* ------------------------------------------------------------------ the socket and the clock */

static enum { SOCKET_AS_IT_IS, SOCKET_GRUDGING, SOCKET_FULL } socket_way;
static uint64_t seed = 11, writes, refused;
static int64_t later_ns;

ssize_t __real_sendmsg(int fd, const struct msghdr *message, int flags);
ssize_t __wrap_sendmsg(int fd, const struct msghdr *message, int flags);
int64_t __real_bt_clock_now_ns(void);
int64_t __wrap_bt_clock_now_ns(void);

int64_t __wrap_bt_clock_now_ns(void)
{
    return __real_bt_clock_now_ns() + later_ns;
}

/* At most `limit` bytes of the message. */
static ssize_t send_some(int fd, const struct msghdr *message, size_t limit, int flags)
{
    char bytes[64];
    size_t size = 0;
    for (size_t i = 0; i < message->msg_iovlen; i++)
        for (size_t at = 0; at < message->msg_iov[i].iov_len && size < limit; at++)
            bytes[size++] = ((const char *)message->msg_iov[i].iov_base)[at];
    return send(fd, bytes, size, flags);
}

ssize_t __wrap_sendmsg(int fd, const struct msghdr *message, int flags)
{
    uint64_t dice = bt_random_u64(seed, writes++, 0);
    if (socket_way == SOCKET_AS_IT_IS)
        return __real_sendmsg(fd, message, flags);
    if (socket_way == SOCKET_FULL || dice % 3 == 0) {
        refused++;
        errno = EAGAIN;
        return -1;
    }
    return send_some(fd, message, 1 + (size_t)(dice >> 8) % 40, flags);
}

/* ------------------------------------------------------------------ a front */

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
    socket_way = SOCKET_AS_IT_IS;
    later_ns = 0;
    writes = refused = 0;
    fixture.loop = bt_loop_create(&error);
    assert_non_null(fixture.loop);
    fixture.service = fake_service_create(fixture.loop);
    const struct rt_http_front_options options = {
        .host = "127.0.0.1", .max_connections = 8, .max_body_bytes = 1 << 16};
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

static void ask(struct fixture *f, const char *extra, const char *body)
{
    http_client_request(&f->client, "POST", CHAT, extra, body, strlen(body));
}

static void pump_until(struct fixture *f, const size_t *value, size_t wanted)
{
    int64_t until = __real_bt_clock_now_ns() + PATIENCE_NS;
    while (*value != wanted) {
        http_client_pump(&f->client);
        if (__real_bt_clock_now_ns() > until)
            fail_msg("%zu, expected %zu", *value, wanted);
    }
}

/* The text of a whole stream, which must end as it should. */
static char *take_text(struct fixture *f)
{
    struct http_response response;
    http_client_response(&f->client, false, &response);
    assert_int_equal(response.status, 200);
    assert_true(response.complete);
    json_t *events = http_response_events(&response);
    size_t count = json_array_size(events), size = 0;
    char *text = calloc(1, response.body_size + 1);
    assert_string_equal(json_string_value(json_array_get(events, count - 1)), "[DONE]");
    for (size_t i = 0; i + 1 < count; i++) {
        json_t *choice = json_array_get(json_object_get(json_array_get(events, i), "choices"), 0);
        json_t *piece = json_object_get(json_object_get(choice, "delta"), "content");
        memcpy(text + size, json_string_value(piece) ? json_string_value(piece) : "",
               json_string_length(piece));
        size += json_string_length(piece);
    }
    json_decref(events);
    http_response_finish(&response);
    return text;
}

/* What the fake says in so many tokens. */
static void expect_text(struct fixture *f, uint32_t tokens)
{
    char *text = take_text(f), *expected = calloc(1, (size_t)tokens * 64 + 1);
    size_t used = 0;
    for (uint32_t i = 0; i < tokens; i++) {
        size_t size;
        const char *bytes =
            bt_tokenizer_bytes(f->service->tokenizer, fake_token(f->service, i), &size);
        memcpy(expected + used, bytes, size);
        used += size;
    }
    size_t whole = bt_utf8_valid_size(expected, used);
    assert_memory_equal(text, expected, whole);
    free(text);
    free(expected);
}

/* ------------------------------------------------------------------ tests */

/* Chunks are cut anywhere: in the line of their size, in their bytes, in the end of their line. */
static void test_few_bytes_at_a_time(void **state)
{
    struct fixture *f = *state;
    printf("seed %lu\n", seed);
    socket_way = SOCKET_GRUDGING;
    ask(f, "", "{" HELLO ",\"stream\":true,\"max_tokens\":400}");
    expect_text(f, 400);
    assert_true(refused > 100);
    f->service->burst = 20;
    ask(f, "", "{" HELLO ",\"stream\":true,\"max_tokens\":900}");
    expect_text(f, 900);
    assert_int_equal(f->service->abandoned, 0);
}

/* What comes while the socket is full waits for it. */
static void test_full_for_a_while(void **state)
{
    struct fixture *f = *state;
    socket_way = SOCKET_FULL;
    ask(f, "", "{" HELLO ",\"stream\":true,\"max_tokens\":200}");
    pump_until(f, &f->service->ended, 1);
    assert_true(refused > 0);
    socket_way = SOCKET_AS_IT_IS;
    expect_text(f, 200);
}

/* The first bytes of a stream are the library's. */
static void step_until_refused(struct fixture *f)
{
    uint64_t before = refused;
    int64_t until = __real_bt_clock_now_ns() + PATIENCE_NS;
    while (refused == before) {
        assert_true(__real_bt_clock_now_ns() < until);
        fake_step(f->service, &f->service->requests[0]);
        http_client_pump(&f->client);
    }
}

static void test_reader_that_stops(void **state)
{
    struct fixture *f = *state;
    socket_way = SOCKET_FULL;
    f->service->automatic = false;
    ask(f, "", "{" HELLO ",\"stream\":true,\"max_tokens\":2000}");
    pump_until(f, &f->service->live, 1);
    step_until_refused(f);
    later_ns = (RT_HTTP_RESPONSE_TIMEOUT_S - 10) * BT_NS_PER_S;
    for (int i = 0; i < 20; i++)
        http_client_pump(&f->client);
    assert_int_equal(f->service->live, 1);
    assert_false(f->client.closed);
    later_ns = (RT_HTTP_RESPONSE_TIMEOUT_S + 30) * BT_NS_PER_S;
    pump_until(f, &f->service->live, 0);
    assert_int_equal(f->service->abandoned, 1);
}

/* A reader that takes something now and then is not cut off, however long all of it takes. */
static void test_reader_that_is_slow(void **state)
{
    struct fixture *f = *state;
    f->service->automatic = false;
    ask(f, "", "{" HELLO ",\"stream\":true,\"max_tokens\":2000}");
    pump_until(f, &f->service->live, 1);
    for (int i = 0; i < 10; i++) {
        socket_way = SOCKET_FULL;
        step_until_refused(f);
        later_ns += (RT_HTTP_RESPONSE_TIMEOUT_S - 40) * BT_NS_PER_S;
        for (int j = 0; j < 5; j++)
            http_client_pump(&f->client);
        socket_way = SOCKET_AS_IT_IS;
        for (int j = 0; j < 5; j++)
            http_client_pump(&f->client);
    }
    while (f->service->live > 0)
        fake_step(f->service, &f->service->requests[0]);
    expect_text(f, 2000);
    assert_int_equal(f->service->abandoned, 0);
}

static void test_next_request(void **state)
{
    struct fixture *f = *state;
    for (uint32_t i = 1; i < 6; i++) {
        char body[256];
        struct http_response response;
        snprintf(body, sizeof body, "{" HELLO ",\"stream\":true,\"max_tokens\":%u}", 7 * i);
        ask(f, "", body);
        expect_text(f, 7 * i);
        http_client_request(&f->client, "GET", "/health", "", NULL, 0);
        http_client_response(&f->client, false, &response);
        assert_int_equal(response.status, 200);
        http_response_finish(&response);
    }
    assert_true(writes > 0); /* they went past the library */
}

/* The second request is there in the midst of the first one's stream. */
static void test_next_comes_early(void **state)
{
    struct fixture *f = *state;
    f->service->automatic = false;
    ask(f, "", "{" HELLO ",\"stream\":true,\"max_tokens\":6}");
    pump_until(f, &f->service->live, 1);
    for (int i = 0; i < 6; i++) {
        fake_step(f->service, &f->service->requests[0]);
        if (i == 2)
            ask(f, "", "{" HELLO ",\"stream\":true,\"max_tokens\":3}");
        for (int j = 0; j < 5; j++)
            http_client_pump(&f->client);
        assert_int_equal(f->service->request_count, i < 5 ? 1 : f->service->request_count);
    }
    expect_text(f, 6);
    pump_until(f, &f->service->request_count, 2);
    for (int i = 0; i < 3; i++)
        fake_step(f->service, &f->service->requests[1]);
    expect_text(f, 3);
    assert_int_equal(f->service->abandoned, 0);
}

static void test_connection_close(void **state)
{
    struct fixture *f = *state;
    ask(f, "Connection: close\r\n", "{" HELLO ",\"stream\":true,\"max_tokens\":30}");
    expect_text(f, 30);
    int64_t until = __real_bt_clock_now_ns() + PATIENCE_NS;
    while (!f->client.closed && __real_bt_clock_now_ns() < until)
        http_client_pump(&f->client);
    assert_true(f->client.closed);
    assert_int_equal(f->client.size, 0);
}

/* In the midst of a chunk. */
static void test_gone_while_full(void **state)
{
    struct fixture *f = *state;
    socket_way = SOCKET_GRUDGING;
    f->service->automatic = false;
    ask(f, "", "{" HELLO ",\"stream\":true,\"max_tokens\":500}");
    pump_until(f, &f->service->live, 1);
    step_until_refused(f);
    socket_way = SOCKET_FULL;
    assert_int_equal(shutdown(f->client.fd, SHUT_WR), 0);
    pump_until(f, &f->service->live, 0);
    assert_int_equal(f->service->abandoned, 1);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_few_bytes_at_a_time), TEST(test_full_for_a_while), TEST(test_reader_that_stops),
        TEST(test_reader_that_is_slow), TEST(test_next_request),     TEST(test_next_comes_early),
        TEST(test_connection_close),    TEST(test_gone_while_full),
    };
    return cmocka_run_group_tests_name("router/http_stream", tests, NULL, NULL);
}
