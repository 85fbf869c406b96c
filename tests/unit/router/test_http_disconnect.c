/* Clients that go away, read slowly, or say nothing; fronts that end while streams run. */
#include <dirent.h>
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
#include "router/http_front.h"
#include "tests/seed.h"
#include "tests/unit/router/fake_service.h"
#include "tests/unit/router/http_client.h"

#define HELLO       "\"messages\":[{\"role\":\"user\",\"content\":\"hello\"}]"
#define PATIENCE_NS (60 * BT_NS_PER_S)

struct fixture {
    struct bt_loop *loop;
    struct rt_service *service;
    struct rt_http_front *front;
    struct bt_metrics *metrics;
};

static int set_up(void **state)
{
    static struct fixture fixture;
    struct bt_error error = {0};
    fixture.loop = bt_loop_create(&error);
    assert_non_null(fixture.loop);
    fixture.service = fake_service_create(fixture.loop);
    fixture.metrics = bt_metrics_create();
    const struct rt_http_front_options options = {.host = "127.0.0.1",
                                                  .max_connections = 64,
                                                  .max_body_bytes = 1 << 20,
                                                  .metrics = fixture.metrics};
    if (rt_http_front_create(fixture.loop, fixture.service, &options, &error, &fixture.front) !=
        BT_OK)
        fail_msg("%s", error.text);
    *state = &fixture;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *fixture = *state;
    rt_http_front_destroy(fixture->front);
    assert_int_equal(fixture->service->live, 0);
    fake_service_destroy(fixture->service);
    bt_metrics_destroy(fixture->metrics);
    bt_loop_destroy(fixture->loop);
    return 0;
}

static void post(struct fixture *fixture, struct http_client *client, const char *body)
{
    http_client_open(client, fixture->loop, rt_http_front_port(fixture->front));
    http_client_request(client, "POST", "/v1/chat/completions", "", body, strlen(body));
}

static void run_round(struct fixture *fixture, int64_t ns)
{
    struct bt_error error = {0};
    assert_true(bt_loop_run_once(fixture->loop, bt_clock_now_ns() + ns, &error) >= BT_OK);
}

/* Until `*value` is `wanted`. */
static void wait_for(struct fixture *fixture, const size_t *value, size_t wanted)
{
    int64_t until = bt_clock_now_ns() + PATIENCE_NS;
    while (*value != wanted) {
        run_round(fixture, BT_NS_PER_MS);
        if (bt_clock_now_ns() > until)
            fail_msg("%zu, expected %zu", *value, wanted);
    }
}

static size_t open_fds(void)
{
    size_t count = 0;
    DIR *directory = opendir("/proc/self/fd");
    assert_non_null(directory);
    while (readdir(directory) != NULL)
        count++;
    closedir(directory);
    return count;
}

static uint64_t counter(struct fixture *fixture, const char *name)
{
    return bt_counter_value(bt_metrics_counter(fixture->metrics, name, NULL, ""));
}

/* ------------------------------------------------------------------ gone */

/* Nothing is being sent, so that only the watch can notice. */
static void test_gone_while_waiting(void **state)
{
    struct fixture *f = *state;
    const char *bodies[] = {"{" HELLO "}", "{" HELLO ",\"stream\":true}",
                            "{" HELLO ",\"stream\":true,\"n\":5}"};
    f->service->automatic = false;
    for (size_t i = 0; i < 3; i++) {
        struct http_client client;
        post(f, &client, bodies[i]);
        wait_for(f, &f->service->live, i == 2 ? 5 : 1);
        http_client_close(&client);
        wait_for(f, &f->service->live, 0);
        fake_reset(f->service);
        f->service->automatic = false;
    }
    assert_int_equal(counter(f, "baton_http_clients_gone_total"), 3);
}

static void test_gone_in_stream(void **state)
{
    struct fixture *f = *state;
    struct http_client client;
    f->service->automatic = false;
    post(f, &client, "{" HELLO ",\"stream\":true}");
    wait_for(f, &f->service->live, 1);
    fake_step(f->service, &f->service->requests[0]);
    while (client.size == 0)
        http_client_pump(&client);
    /* the stream is suspended again */
    run_round(f, BT_NS_PER_MS);
    http_client_close(&client);
    wait_for(f, &f->service->abandoned, 1);
}

static void test_half_close_is_gone(void **state)
{
    struct fixture *f = *state;
    struct http_client client;
    f->service->automatic = false;
    post(f, &client, "{" HELLO "}");
    wait_for(f, &f->service->live, 1);
    shutdown(client.fd, SHUT_WR);
    wait_for(f, &f->service->live, 0);
    http_client_close(&client);
}

/* The other stream of the same front goes on, bit by bit as before. */
static void test_others_untouched(void **state)
{
    struct fixture *f = *state;
    struct http_client stays, leaves;
    struct http_response response;
    f->service->automatic = false;
    post(f, &stays, "{" HELLO ",\"stream\":true,\"max_tokens\":3}");
    wait_for(f, &f->service->live, 1);
    post(f, &leaves, "{" HELLO ",\"stream\":true,\"max_tokens\":3}");
    wait_for(f, &f->service->live, 2);
    fake_step(f->service, &f->service->requests[0]);
    http_client_close(&leaves);
    wait_for(f, &f->service->live, 1);
    fake_step(f->service, &f->service->requests[0]);
    fake_step(f->service, &f->service->requests[0]);
    http_client_response(&stays, false, &response);
    assert_true(response.complete);
    assert_non_null(strstr(response.body, "[DONE]"));
    http_response_finish(&response);
    http_client_close(&stays);
}

static void test_random_disconnects(void **state)
{
    struct fixture *f = *state;
    uint64_t seed = test_seed();
    struct http_client warm;
    post(f, &warm, "{" HELLO "}");
    while (warm.size == 0)
        http_client_pump(&warm);
    http_client_close(&warm);
    run_round(f, BT_NS_PER_MS);
    run_round(f, BT_NS_PER_MS);
    size_t fds = open_fds();
    for (uint64_t i = 0; i < 200; i++) {
        uint64_t r = bt_random_u64(seed, i, 0);
        char body[256], request[1024];
        snprintf(body, sizeof body, "{" HELLO ",\"stream\":%s,\"n\":%u,\"max_tokens\":%u}",
                 r & 1 ? "true" : "false", (unsigned)(1 + (r >> 1) % 3),
                 (unsigned)(1 + (r >> 8) % 30));
        int size = snprintf(request, sizeof request,
                            "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
                            "Content-Length: %zu\r\n\r\n%s",
                            strlen(body), body);
        struct http_client client;
        http_client_open(&client, f->loop, rt_http_front_port(f->front));
        /* some leave before the request is whole */
        size_t part = (r >> 16) % 4 == 0 ? (r >> 20) % (unsigned)size : (unsigned)size;
        http_client_send(&client, request, part);
        for (uint64_t rounds = (r >> 32) % 40; rounds > 0 && !client.closed; rounds--)
            http_client_pump(&client);
        if ((r >> 48) % 3 == 0) { /* reset instead of an orderly end */
            struct linger linger = {.l_onoff = 1, .l_linger = 0};
            setsockopt(client.fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
        }
        http_client_close(&client);
        if (i % 50 == 49) {
            wait_for(f, &f->service->live, 0);
            fake_reset(f->service);
        }
    }
    int64_t until = bt_clock_now_ns() + PATIENCE_NS;
    while (open_fds() > fds && bt_clock_now_ns() < until)
        run_round(f, BT_NS_PER_MS);
    assert_int_equal(f->service->live, 0);
    assert_int_equal(open_fds(), fds);
}

/* ------------------------------------------------------------------ slow, silent, many */

static void test_slow_reader(void **state)
{
    struct fixture *f = *state;
    struct http_client client;
    int small = 4096;
    http_client_open(&client, f->loop, rt_http_front_port(f->front));
    setsockopt(client.fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    const char *body = "{" HELLO ",\"stream\":true,\"max_tokens\":2000000,\"logprobs\":true}";
    f->service->context = 4000000;
    f->service->burst = 500;
    http_client_request(&client, "POST", "/v1/chat/completions", "", body, strlen(body));
    wait_for(f, &f->service->live, 1);
    wait_for(f, &f->service->live, 0); /* without ever reading */
    assert_int_equal(f->service->abandoned, 1);
    assert_true(f->service->requests[0].produced < 200000);
    assert_int_equal(counter(f, "baton_http_slow_readers_total"), 1);
    int64_t until = bt_clock_now_ns() + PATIENCE_NS;
    while (!client.closed && bt_clock_now_ns() < until)
        http_client_pump(&client);
    assert_true(client.closed);
    http_client_close(&client);
}

/* A reader that is slow but reads gets everything. */
static void test_patient_reader(void **state)
{
    struct fixture *f = *state;
    struct http_client client;
    struct http_response response;
    f->service->burst = 50;
    post(f, &client, "{" HELLO ",\"stream\":true,\"max_tokens\":1500,\"n\":2}");
    wait_for(f, &f->service->ended, 2);
    http_client_response(&client, false, &response);
    assert_true(response.complete);
    assert_non_null(strstr(response.body, "data: [DONE]\n\n"));
    http_response_finish(&response);
    http_client_close(&client);
}

/* Suspended streams must not keep the loop awake. */
static void test_no_busy_wait(void **state)
{
    struct fixture *f = *state;
    struct http_client client;
    f->service->automatic = false;
    post(f, &client, "{" HELLO ",\"stream\":true}");
    wait_for(f, &f->service->live, 1);
    fake_step(f->service, &f->service->requests[0]);
    for (int i = 0; i < 20; i++)
        run_round(f, BT_NS_PER_MS);
    int64_t until_ns = bt_clock_now_ns() + 300 * BT_NS_PER_MS;
    int rounds = 0;
    for (; bt_clock_now_ns() < until_ns; rounds++)
        run_round(f, 100 * BT_NS_PER_MS);
    assert_true(rounds <= 20);
    http_client_close(&client);
}

static void test_connection_limit(void **state)
{
    struct fixture *f = *state;
    static struct http_client clients[64];
    struct http_client over;
    struct http_response response;
    for (size_t i = 0; i < 64; i++) {
        http_client_open(&clients[i], f->loop, rt_http_front_port(f->front));
        http_client_request(&clients[i], "GET", "/health", "", NULL, 0);
        http_client_response(&clients[i], false, &response);
        http_response_finish(&response);
    }
    http_client_open(&over, f->loop, rt_http_front_port(f->front));
    http_client_request(&over, "GET", "/health", "", NULL, 0);
    for (int i = 0; i < 20; i++)
        http_client_pump(&over);
    assert_int_equal(over.size, 0);
    http_client_close(&clients[7]); /* room for one */
    if (over.closed) {
        http_client_close(&over);
        for (int i = 0; i < 20; i++)
            run_round(f, BT_NS_PER_MS);
        http_client_open(&over, f->loop, rt_http_front_port(f->front));
        http_client_request(&over, "GET", "/health", "", NULL, 0);
    }
    http_client_response(&over, false, &response);
    assert_int_equal(response.status, 200);
    http_response_finish(&response);
    http_client_close(&over);
    for (size_t i = 0; i < 64; i++)
        http_client_close(&clients[i]);
}

/* Half a request, then silence; and one that brings a byte now and then for ever. */
static void test_slow_requests(void **state)
{
    struct fixture *f = *state;
    struct http_client silent, trickling, streaming;
    struct bt_error error = {0};
    const struct rt_http_front_options options = {.host = "127.0.0.1",
                                                  .max_connections = 8,
                                                  .max_body_bytes = 1 << 20,
                                                  .request_timeout_s = 1};
    rt_http_front_destroy(f->front);
    assert_int_equal(rt_http_front_create(f->loop, f->service, &options, &error, &f->front), BT_OK);
    f->service->automatic = false;
    int64_t start = bt_clock_now_ns(), silent_ns = 0, sent_ns = start, longest_ns = 0;
    post(f, &streaming, "{" HELLO ",\"stream\":true}"); /* whole: may wait as long as it takes */
    http_client_open(&silent, f->loop, rt_http_front_port(f->front));
    http_client_send(&silent, "POST /v1/chat", 13);
    http_client_open(&trickling, f->loop, rt_http_front_port(f->front));
    const char *head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n";
    http_client_send(&trickling, head, strlen(head));
    while (!trickling.closed && bt_clock_now_ns() < start + PATIENCE_NS) {
        int64_t since_ns = bt_clock_now_ns() - sent_ns;
        if (since_ns > BT_NS_PER_S / 4) {
            sent_ns += since_ns;
            longest_ns = since_ns > longest_ns ? since_ns : longest_ns;
            http_client_send(&trickling, " ", 1);
        }
        http_client_pump(&trickling);
        http_client_pump(&silent);
        if (silent.closed && silent_ns == 0)
            silent_ns = bt_clock_now_ns() - start;
    }
    assert_true(trickling.closed);
    int64_t last_ns = bt_clock_now_ns() - sent_ns;
    longest_ns = last_ns > longest_ns ? last_ns : longest_ns;
    if (longest_ns < BT_NS_PER_S / 2) { /* else the machine was too slow to trickle */
        assert_true(bt_clock_now_ns() - start >= 4 * BT_NS_PER_S);
        assert_true(silent_ns >= BT_NS_PER_S / 2 && silent_ns < 4 * BT_NS_PER_S);
    }
    http_client_pump(&streaming);
    assert_false(streaming.closed);
    assert_int_equal(f->service->live, 1);
    http_client_close(&silent);
    http_client_close(&trickling);
    http_client_close(&streaming);
}

/* ------------------------------------------------------------------ the end */

/* tear_down destroys the front while these are open: streaming, waiting, half sent. */
static void test_destroy_with_open_streams(void **state)
{
    struct fixture *f = *state;
    static struct http_client clients[4];
    f->service->automatic = false;
    post(f, &clients[0], "{" HELLO ",\"stream\":true}");
    wait_for(f, &f->service->live, 1);
    fake_step(f->service, &f->service->requests[0]);
    while (clients[0].size == 0)
        http_client_pump(&clients[0]);
    post(f, &clients[1], "{" HELLO ",\"n\":3}");
    wait_for(f, &f->service->live, 4);
    http_client_open(&clients[2], f->loop, rt_http_front_port(f->front));
    http_client_send(&clients[2], "POST /v1/chat", 13);
    post(f, &clients[3], "{" HELLO ",\"stream\":true}");
    wait_for(f, &f->service->live, 5);
    rt_http_front_destroy(f->front);
    f->front = NULL;
    assert_int_equal(f->service->abandoned, 5);
    for (size_t i = 0; i < 4; i++)
        http_client_close(&clients[i]);
}

/* The service ends all streams before the front is destroyed. */
static void test_service_ends_first(void **state)
{
    struct fixture *f = *state;
    struct http_client client, other;
    struct http_response response;
    f->service->automatic = false;
    post(f, &client, "{" HELLO ",\"n\":2}");
    wait_for(f, &f->service->live, 2);
    post(f, &other, "{" HELLO ",\"stream\":true,\"n\":2}");
    wait_for(f, &f->service->live, 4);
    for (size_t i = 0; i < 4; i++)
        fake_end(f->service, &f->service->requests[i], RT_FINISH_ERROR, BT_ERR_UNAVAILABLE,
                 "the router is stopping");
    http_client_response(&client, false, &response);
    assert_int_equal(response.status, 503);
    http_response_finish(&response);
    http_client_close(&client);
    rt_http_front_destroy(f->front); /* before `other` was answered */
    f->front = NULL;
    http_client_close(&other);
    assert_int_equal(f->service->abandoned, 0);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_gone_while_waiting),
        TEST(test_gone_in_stream),
        TEST(test_half_close_is_gone),
        TEST(test_others_untouched),
        TEST(test_random_disconnects),
        TEST(test_slow_reader),
        TEST(test_patient_reader),
        TEST(test_no_busy_wait),
        TEST(test_connection_limit),
        TEST(test_slow_requests),
        TEST(test_destroy_with_open_streams),
        TEST(test_service_ends_first),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
