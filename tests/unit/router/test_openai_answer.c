/* The states of an answer, step by step, without HTTP. */
#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/base/clock.h"
#include "router/openai_answer.h"
#include "tests/unit/router/fake_service.h"

#define HELLO "\"messages\":[{\"role\":\"user\",\"content\":\"hello\"}]"

struct fixture {
    struct bt_loop *loop;
    struct rt_service *service;
    struct rt_openai_answer *answer;
    size_t changes;
};

static int set_up(void **state)
{
    static struct fixture fixture;
    struct bt_error error = {0};
    fixture = (struct fixture){.loop = bt_loop_create(&error)};
    assert_non_null(fixture.loop);
    fixture.service = fake_service_create(fixture.loop);
    fixture.service->automatic = false;
    *state = &fixture;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *fixture = *state;
    rt_openai_answer_destroy(fixture->answer);
    assert_int_equal(fixture->service->live, 0);
    fake_service_destroy(fixture->service);
    bt_loop_destroy(fixture->loop);
    return 0;
}

static void on_change(void *context)
{
    struct fixture *fixture = context;
    fixture->changes++;
}

static void start(struct fixture *fixture, const char *body)
{
    struct rt_openai_error error = {0};
    struct rt_openai_request request;
    if (rt_openai_request_parse(RT_OPENAI_CHAT, body, strlen(body), &error, &request) != BT_OK ||
        rt_openai_answer_create(fixture->service, &request, on_change, fixture, &error,
                                &fixture->answer) != BT_OK)
        fail_msg("%s", error.text);
    int64_t until_ns = bt_clock_now_ns() + 60 * BT_NS_PER_S;
    while (fixture->service->live == 0 && bt_clock_now_ns() < until_ns)
        bt_loop_run_once(fixture->loop, until_ns, NULL);
    assert_true(fixture->service->live > 0);
    assert_int_equal(fixture->changes, 0);
}

static void expect_state(const struct fixture *fixture, enum rt_openai_answer_state state)
{
    assert_int_equal(rt_openai_answer_state(fixture->answer), state);
}

static void step(struct fixture *fixture, size_t request)
{
    fake_step(fixture->service, &fixture->service->requests[request]);
}

static void end(struct fixture *fixture, size_t request, enum rt_finish finish,
                enum bt_status status)
{
    fake_end(fixture->service, &fixture->service->requests[request], finish, status, "why");
}

static size_t unread(const struct fixture *fixture)
{
    size_t size;
    rt_openai_json_unread(rt_openai_answer_output(fixture->answer), &size);
    return size;
}

static void test_stream_states(void **state)
{
    struct fixture *f = *state;
    start(f, "{" HELLO ",\"stream\":true,\"max_tokens\":2}");
    expect_state(f, RT_ANSWER_WAITING);
    assert_int_equal(unread(f), 0);
    step(f, 0);
    expect_state(f, RT_ANSWER_STREAMING);
    assert_int_equal(f->changes, 1);
    assert_true(unread(f) > 0);
    step(f, 0);
    expect_state(f, RT_ANSWER_DONE);
    rt_openai_answer_settle(f->answer);
    assert_int_equal(f->service->abandoned, 0);
}

/* What is collected of all choices together is bounded. */
static void test_whole_response_is_bounded(void **state)
{
    struct fixture *f = *state;
    start(f, "{" HELLO ",\"n\":2}");
    static char text[1 << 20];
    memset(text, 'x', sizeof text);
    for (size_t i = 0; i < 64; i++) {
        const struct rt_sink *sink = &f->service->requests[i % 2].sink;
        sink->on_output(sink->context, text, sizeof text, NULL, 0);
    }
    expect_state(f, RT_ANSWER_WAITING);
    step(f, 0);
    expect_state(f, RT_ANSWER_FAILED);
    assert_int_equal(f->changes, 1);
    assert_int_equal(rt_openai_answer_error(f->answer)->http_status, 400);
    assert_string_equal(rt_openai_answer_error(f->answer)->code, "response_too_large");
    rt_openai_answer_settle(f->answer);
    assert_int_equal(f->service->live, 0);
}

/* One of several fails: what still runs is for nobody. */
static void test_broken_abandons_the_others(void **state)
{
    struct fixture *f = *state;
    start(f, "{" HELLO ",\"stream\":true,\"n\":3}");
    step(f, 1);
    rt_openai_answer_settle(f->answer);
    assert_int_equal(f->service->live, 3);
    end(f, 2, RT_FINISH_ERROR, BT_ERR_CORRUPT);
    expect_state(f, RT_ANSWER_BROKEN);
    assert_int_equal(f->service->live, 2); /* not inside the service's callback */
    size_t size = unread(f);
    step(f, 0); /* comes too late: nothing after the error */
    assert_int_equal(unread(f), size);
    rt_openai_answer_settle(f->answer);
    assert_int_equal(f->service->live, 0);
    assert_int_equal(f->service->abandoned, 2);
}

static void test_failed_before_output(void **state)
{
    struct fixture *f = *state;
    start(f, "{" HELLO ",\"n\":2}");
    step(f, 0); /* a whole response: nothing is out yet */
    end(f, 0, RT_FINISH_ERROR, BT_ERR_PEER_LOST);
    expect_state(f, RT_ANSWER_FAILED);
    assert_int_equal(rt_openai_answer_error(f->answer)->http_status, 503);
    assert_string_equal(rt_openai_answer_error(f->answer)->text, "why");
    assert_int_equal(unread(f), 0);
    rt_openai_answer_settle(f->answer);
    assert_int_equal(f->service->abandoned, 1);
}

static void test_overflow(void **state)
{
    struct fixture *f = *state;
    f->service->context = 1 << 30;
    start(f, "{" HELLO ",\"stream\":true,\"n\":2,\"max_tokens\":1000000}");
    for (uint32_t i = 0; i < 100000 && rt_openai_answer_state(f->answer) != RT_ANSWER_OVERFLOWN;
         i++) {
        assert_true(unread(f) <= RT_OPENAI_STREAM_LIMIT);
        step(f, i % 2); /* in turns, so that no chunk takes in the next one */
    }
    expect_state(f, RT_ANSWER_OVERFLOWN);
    size_t size = unread(f);
    step(f, 1);
    assert_int_equal(unread(f), size);
    rt_openai_answer_settle(f->answer);
    assert_int_equal(f->service->abandoned, 2);
}

/* Choices stand in the order of their index, whichever ends first. */
static void test_order_of_choices(void **state)
{
    struct fixture *f = *state;
    start(f, "{" HELLO ",\"n\":3,\"max_tokens\":9}");
    step(f, 2);
    end(f, 2, RT_FINISH_STOP, BT_OK);
    end(f, 0, RT_FINISH_LENGTH, BT_OK);
    expect_state(f, RT_ANSWER_WAITING);
    end(f, 1, RT_FINISH_STOP, BT_OK);
    expect_state(f, RT_ANSWER_DONE);
    size_t size;
    const char *text = rt_openai_json_unread(rt_openai_answer_output(f->answer), &size);
    json_t *json = json_loadb(text, size, 0, NULL);
    for (size_t i = 0; i < 3; i++) {
        json_t *choice = json_array_get(json_object_get(json, "choices"), i);
        const char *content =
            json_string_value(json_object_get(json_object_get(choice, "message"), "content"));
        assert_int_equal(json_integer_value(json_object_get(choice, "index")), i);
        assert_string_equal(content, i == 2 ? "Once" : "");
        assert_string_equal(json_string_value(json_object_get(choice, "finish_reason")),
                            i == 0 ? "length" : "stop");
    }
    assert_int_equal(
        json_integer_value(json_object_get(json_object_get(json, "usage"), "completion_tokens")),
        1);
    json_decref(json);
}

static void test_abandon(void **state)
{
    struct fixture *f = *state;
    start(f, "{" HELLO ",\"stream\":true,\"n\":4}");
    step(f, 0);
    end(f, 1, RT_FINISH_STOP, BT_OK);
    rt_openai_answer_abandon(f->answer);
    rt_openai_answer_abandon(f->answer);
    assert_int_equal(f->service->abandoned, 3);
    expect_state(f, RT_ANSWER_STREAMING);
}

/* All choices or none: one that is begun for a request that is then refused costs for nothing. */
static void test_price_of_all_choices(void **state)
{
    static const char body[] = "{" HELLO ",\"n\":3,\"max_tokens\":9}";
    struct fixture *f = *state;
    struct rt_openai_error error = {0};
    struct rt_openai_request request;
    start(f, body);
    uint64_t all = f->service->asked_tokens;
    assert_int_equal(all, 3 * (f->service->requests[0].prompt_tokens + 9));
    assert_int_equal(f->service->request_count, 3);
    rt_openai_answer_destroy(f->answer);
    f->answer = NULL;
    f->service->tokens_left = all - 1;
    assert_int_equal(rt_openai_request_parse(RT_OPENAI_CHAT, body, strlen(body), &error, &request),
                     BT_OK);
    assert_int_equal(
        rt_openai_answer_create(f->service, &request, on_change, f, &error, &f->answer),
        BT_OK); /* it is told when its prompt is tokenized */
    int64_t until_ns = bt_clock_now_ns() + 60 * BT_NS_PER_S;
    while (rt_openai_answer_state(f->answer) == RT_ANSWER_WAITING && bt_clock_now_ns() < until_ns)
        bt_loop_run_once(f->loop, until_ns, NULL);
    expect_state(f, RT_ANSWER_FAILED);
    assert_int_equal(f->service->request_count, 3);
    assert_int_equal(f->service->live, 0);
}

/* The usual 16 tokens of a completion are cut to the tenant's limit; those that are named are not.
 */
static void test_usual_length(void **state)
{
    struct fixture *f = *state;
    static const char *const bodies[] = {"{\"prompt\":[5,6]}",
                                         "{\"prompt\":[5,6],\"max_tokens\":9}"};
    static const uint32_t expected[] = {3, 9};
    static const char keys[] = "{\"tenants\":[{\"name\":\"a\",\"keys\":[\"key-of-a-tenant\"],"
                               "\"max_output_tokens\":3}]}";
    char path[] = "/tmp/test-openai-answer-XXXXXX";
    int fd = mkstemp(path);
    assert_int_equal(write(fd, keys, sizeof keys - 1), sizeof keys - 1);
    close(fd);
    struct bt_error reason;
    const struct rt_access_options options = {.keys_file = path};
    enum bt_status status = rt_access_create(f->loop, &options, NULL, &reason, &f->service->access);
    unlink(path);
    assert_int_equal(status, BT_OK);
    for (size_t i = 0; i < 2; i++) {
        struct rt_openai_error error = {0};
        struct rt_openai_request request;
        status = rt_openai_request_parse(RT_OPENAI_COMPLETION, bodies[i], strlen(bodies[i]), &error,
                                         &request);
        assert_int_equal(status, BT_OK);
        assert_true(
            rt_access_identify(f->service->access, "key-of-a-tenant", 15, &request.caller.tenant));
        status = rt_openai_answer_create(f->service, &request, on_change, f, &error, &f->answer);
        assert_int_equal(status, BT_OK);
        assert_int_equal(f->service->requests[i].max_tokens, expected[i]);
        rt_openai_answer_destroy(f->answer);
        f->answer = NULL;
    }
    rt_access_destroy(f->service->access);
    f->service->access = NULL;
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_stream_states),
        TEST(test_whole_response_is_bounded),
        TEST(test_broken_abandons_the_others),
        TEST(test_failed_before_output),
        TEST(test_overflow),
        TEST(test_order_of_choices),
        TEST(test_abandon),
        TEST(test_price_of_all_choices),
        TEST(test_usual_length),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
