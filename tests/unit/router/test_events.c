/* The ring of events and those that follow it, over calls that the test plays. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/clock.h"
#include "proto/router.pb-c.h"
#include "router/events.h"

#define PATIENCE_NS (60 * BT_NS_PER_S)

struct bt_rpc_call {
    uint64_t numbers[2 * RT_EVENTS_KEPT];
    size_t count, room; /* events that went out, and how many more do */
    Baton__V1__ClusterEvent *last;
    enum bt_status broken; /* of sending; BT_OK: room counts */
    bool ended;
    enum bt_status status;
    int64_t deadline_ns;
    bt_rpc_cancel_fn *cancel;
    void *cancel_context;
};

static struct bt_loop *loop;
static struct rt_events *events;
static struct bt_rpc_call one, two;

enum bt_status __wrap_bt_rpc_call_send(struct bt_rpc_call *call, const ProtobufCMessage *message);
void __wrap_bt_rpc_call_end(struct bt_rpc_call *call, enum bt_status status, const char *text,
                            const ProtobufCMessage *response);
void __wrap_bt_rpc_call_on_cancel(struct bt_rpc_call *call, bt_rpc_cancel_fn *fn, void *context);
int64_t __wrap_bt_rpc_call_deadline_ns(const struct bt_rpc_call *call);

enum bt_status __wrap_bt_rpc_call_send(struct bt_rpc_call *call, const ProtobufCMessage *message)
{
    assert_false(call->ended);
    if (call->broken != BT_OK)
        return call->broken;
    if (call->room == 0)
        return BT_ERR_EXHAUSTED;
    call->room--;
    uint8_t bytes[1024];
    size_t size = protobuf_c_message_get_packed_size(message);
    assert_true(size <= sizeof(bytes));
    protobuf_c_message_pack(message, bytes);
    if (call->last)
        baton__v1__cluster_event__free_unpacked(call->last, NULL);
    call->last = baton__v1__cluster_event__unpack(NULL, size, bytes); /* NULL: not UTF-8 */
    assert_non_null(call->last);
    assert_true(call->count < 2 * RT_EVENTS_KEPT);
    call->numbers[call->count++] = call->last->number;
    return BT_OK;
}

void __wrap_bt_rpc_call_end(struct bt_rpc_call *call, enum bt_status status, const char *text,
                            const ProtobufCMessage *response)
{
    (void)text;
    (void)response;
    assert_false(call->ended);
    call->ended = true;
    call->status = status;
}

void __wrap_bt_rpc_call_on_cancel(struct bt_rpc_call *call, bt_rpc_cancel_fn *fn, void *context)
{
    call->cancel = fn;
    call->cancel_context = context;
}

int64_t __wrap_bt_rpc_call_deadline_ns(const struct bt_rpc_call *call)
{
    return call->deadline_ns;
}

static void call_open(struct bt_rpc_call *call)
{
    if (call->last)
        baton__v1__cluster_event__free_unpacked(call->last, NULL);
    *call = (struct bt_rpc_call){.room = SIZE_MAX, .deadline_ns = BT_NEVER_NS};
}

static void call_cancel(struct bt_rpc_call *call, enum bt_status expected)
{
    call->cancel(call->cancel_context, call);
    assert_true(call->ended);
    assert_int_equal(call->status, expected);
}

static void add(uint64_t count)
{
    static uint64_t made; /* no two are alike */
    for (uint64_t i = 0; i < count; i++)
        rt_events_add(events, "made", "w", "%llu", (unsigned long long)made++);
}

/* Numbers first..last, each once, in order. */
static void expect_numbers(const struct bt_rpc_call *call, size_t from, uint64_t first,
                           uint64_t last)
{
    assert_int_equal(call->count - from, last - first + 1);
    for (size_t i = from; i < call->count; i++)
        assert_int_equal(call->numbers[i], first + i - from);
}

static void run_until_count(const struct bt_rpc_call *call, size_t count)
{
    int64_t until_ns = bt_clock_now_ns() + PATIENCE_NS;
    while (call->count < count && bt_clock_now_ns() < until_ns)
        assert_int_equal(bt_loop_run_once(loop, until_ns, NULL), BT_OK);
    assert_int_equal(call->count, count);
}

static int set_up(void **state)
{
    (void)state;
    struct bt_error error;
    loop = bt_loop_create(&error);
    events = rt_events_create(loop);
    call_open(&one);
    call_open(&two);
    return loop && events ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    call_open(&one);
    call_open(&two);
    rt_events_destroy(events);
    bt_loop_destroy(loop);
    return 0;
}

static void serve_once(uint64_t since)
{
    call_open(&one);
    rt_events_serve(events, &one, since, false);
    assert_true(one.ended);
    assert_int_equal(one.status, BT_OK);
}

static void test_since(void **state)
{
    (void)state;
    serve_once(0);
    assert_int_equal(one.count, 0);
    add(5);
    serve_once(0);
    expect_numbers(&one, 0, 1, 5);
    serve_once(3);
    expect_numbers(&one, 0, 4, 5);
    serve_once(5);
    assert_int_equal(one.count, 0);
    serve_once(6); /* of another life */
    expect_numbers(&one, 0, 1, 5);
    serve_once(UINT64_MAX);
    expect_numbers(&one, 0, 1, 5);
}

static void test_ring_wraps(void **state)
{
    (void)state;
    add(RT_EVENTS_KEPT);
    serve_once(0);
    expect_numbers(&one, 0, 1, RT_EVENTS_KEPT);
    add(1);
    serve_once(0);
    expect_numbers(&one, 0, 2, RT_EVENTS_KEPT + 1);
    add(2 * RT_EVENTS_KEPT);
    serve_once(1);
    expect_numbers(&one, 0, 2 * RT_EVENTS_KEPT + 2, 3 * RT_EVENTS_KEPT + 1);
    serve_once(3 * RT_EVENTS_KEPT);
    expect_numbers(&one, 0, 3 * RT_EVENTS_KEPT + 1, 3 * RT_EVENTS_KEPT + 1);
}

static void test_followers_hear_what_comes(void **state)
{
    (void)state;
    add(2);
    rt_events_serve(events, &one, 1, true);
    rt_events_serve(events, &two, 2, true);
    expect_numbers(&one, 0, 2, 2);
    assert_int_equal(two.count, 0);
    add(3);
    run_until_count(&one, 4);
    run_until_count(&two, 3);
    expect_numbers(&one, 0, 2, 5);
    expect_numbers(&two, 0, 3, 5);
    assert_false(one.ended || two.ended);
    call_cancel(&one, BT_ERR_CANCELLED);
    add(1);
    run_until_count(&two, 4);
    two.deadline_ns = bt_clock_now_ns();
    call_cancel(&two, BT_ERR_DEADLINE);
    assert_int_equal(one.count, 4);
}

/* It misses what is not kept any more, sees that by the numbers, and holds up nobody. */
static void test_slow_follower_sees_a_gap(void **state)
{
    (void)state;
    one.room = 3;
    rt_events_serve(events, &one, 0, true);
    rt_events_serve(events, &two, 0, true);
    add(10);
    run_until_count(&two, 10);
    expect_numbers(&one, 0, 1, 3);
    add(RT_EVENTS_KEPT);
    run_until_count(&two, RT_EVENTS_KEPT + 10);
    expect_numbers(&two, 0, 1, RT_EVENTS_KEPT + 10);
    assert_int_equal(one.count, 3);
    one.room = SIZE_MAX; /* and nothing new happens: it goes on by itself */
    run_until_count(&one, 3 + RT_EVENTS_KEPT);
    expect_numbers(&one, 3, 11, RT_EVENTS_KEPT + 10);
    call_cancel(&one, BT_ERR_CANCELLED);
    call_cancel(&two, BT_ERR_CANCELLED);
}

/* One that does not follow ends only when it has all, however slowly it reads. */
static void test_slow_reader_ends_with_all(void **state)
{
    (void)state;
    add(6);
    one.room = 2;
    rt_events_serve(events, &one, 0, false);
    assert_false(one.ended);
    one.room = SIZE_MAX;
    run_until_count(&one, 6);
    expect_numbers(&one, 0, 1, 6);
    assert_true(one.ended);
    assert_int_equal(one.status, BT_OK);
}

static void test_broken_follower_ends(void **state)
{
    (void)state;
    rt_events_serve(events, &one, 0, true);
    rt_events_serve(events, &two, 0, true);
    two.broken = BT_ERR_NO_MEMORY;
    add(1);
    run_until_count(&one, 1);
    int64_t until_ns = bt_clock_now_ns() + PATIENCE_NS;
    while (!two.ended && bt_clock_now_ns() < until_ns)
        assert_int_equal(bt_loop_run_once(loop, until_ns, NULL), BT_OK);
    assert_int_equal(two.status, BT_ERR_NO_MEMORY);
    call_cancel(&one, BT_ERR_CANCELLED);
}

static void test_limit_of_followers(void **state)
{
    (void)state;
    static struct bt_rpc_call calls[RT_EVENT_FOLLOWERS_MAX];
    for (size_t i = 0; i < RT_EVENT_FOLLOWERS_MAX; i++) {
        call_open(&calls[i]);
        rt_events_serve(events, &calls[i], 0, true);
        assert_false(calls[i].ended);
    }
    rt_events_serve(events, &one, 0, true);
    assert_true(one.ended);
    assert_int_equal(one.status, BT_ERR_EXHAUSTED);
    call_cancel(&calls[17], BT_ERR_CANCELLED);
    call_open(&one);
    rt_events_serve(events, &one, 0, true);
    assert_false(one.ended);
    call_cancel(&one, BT_ERR_CANCELLED);
    for (size_t i = 0; i < RT_EVENT_FOLLOWERS_MAX; i++)
        if (i != 17)
            call_cancel(&calls[i], BT_ERR_CANCELLED);
}

static void test_repeated_are_told_once(void **state)
{
    (void)state;
    rt_events_add(events, "a", "w", "x");
    rt_events_add(events, "a", "w", "x");
    rt_events_add(events, "a", "v", "x");
    rt_events_add(events, "a", "v", "y");
    rt_events_add(events, "a", "w", "x"); /* not what was told last */
    serve_once(0);
    expect_numbers(&one, 0, 1, 4);
}

static void expect_text(const char *text, const char *expected)
{
    rt_events_add(events, "a", "", "%s", text);
    serve_once(0);
    assert_string_equal(one.last->text, expected);
}

static void test_text_is_text(void **state)
{
    (void)state;
    expect_text("caf\xc3\xa9 100%", "caf\xc3\xa9 100%");
    expect_text("\x1b[2J\n\x7f", "?[2J??");
    expect_text("\xc2\x9b!", "?\?!"); /* a control character of two bytes */
    expect_text("a\xff\xc3", "a??");
    rt_events_add(events, "a", "\x1b\xff", "z");
    serve_once(0);
    assert_string_equal(one.last->worker_id, "??");
    assert_string_equal(one.last->kind, "a");
    assert_true((int64_t)one.last->unix_ns > 1500000000 * (int64_t)BT_NS_PER_S);
    char longer[2 * RT_EVENT_TEXT_SIZE], cut[RT_EVENT_TEXT_SIZE];
    memset(longer, 'l', sizeof(longer));
    memcpy(longer + RT_EVENT_TEXT_SIZE - 2, "\xc3\xa9", 3); /* its second byte has no room */
    memset(cut, 'l', sizeof(cut));
    memcpy(cut + RT_EVENT_TEXT_SIZE - 2, "?", 2);
    expect_text(longer, cut);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_since),
        TEST(test_ring_wraps),
        TEST(test_followers_hear_what_comes),
        TEST(test_slow_follower_sees_a_gap),
        TEST(test_slow_reader_ends_with_all),
        TEST(test_broken_follower_ends),
        TEST(test_limit_of_followers),
        TEST(test_repeated_are_told_once),
        TEST(test_text_is_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
