#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>
#include <sys/eventfd.h>
#include <zmq.h>

#include "common/base/clock.h"
#include "common/base/random.h"
#include "common/messaging/loop.h"
#include "tests/seed.h"

#define TIMERS 300

struct fired {
    struct bt_loop *loop;
    int64_t when_ns;
    int order;
    int *next_order;
    struct bt_loop_source *source;
};

static void on_timer(void *context)
{
    struct fired *fired = context;
    assert_true(bt_clock_now_ns() >= fired->when_ns);
    fired->order = ++*fired->next_order;
    if (*fired->next_order == TIMERS / 3 * 2) {
        bt_loop_stop(fired->loop);
    }
}

/* Random times, a third removed before they fire, a third set anew: the rest fires in order. */
static void test_timers_fire_in_order(void **state)
{
    (void)state;
    uint64_t seed = test_seed();
    struct bt_loop *loop = bt_loop_create(NULL);
    static struct fired fired[TIMERS];
    int next_order = 0;
    int64_t now_ns = bt_clock_now_ns();
    for (int i = 0; i < TIMERS; i++) {
        int64_t when_ns = now_ns + (int64_t)(bt_random_u64(seed, i, 0) % 40000) * 1000;
        fired[i] = (struct fired){.loop = loop, .when_ns = when_ns, .next_order = &next_order};
        fired[i].source = bt_loop_add_timer(loop, when_ns, on_timer, &fired[i]);
    }
    for (int i = 0; i < TIMERS; i++) {
        if (i % 3 == 0) {
            bt_loop_remove(fired[i].source);
        } else if (i % 3 == 1) {
            fired[i].when_ns = now_ns + (int64_t)(bt_random_u64(seed, i, 1) % 40000) * 1000;
            bt_loop_timer_set(fired[i].source, fired[i].when_ns);
        }
    }
    assert_int_equal(bt_loop_run(loop, NULL), BT_OK);
    for (int i = 0; i < TIMERS; i++) {
        assert_true((fired[i].order == 0) == (i % 3 == 0));
        for (int j = 0; j < i; j++) {
            if (i % 3 && j % 3 && fired[i].when_ns < fired[j].when_ns) {
                assert_true(fired[i].order < fired[j].order);
            }
        }
    }
    bt_loop_destroy(loop);
}

struct timer_case {
    struct bt_loop *loop;
    struct bt_loop_source *timer;
    int fired;
    int read;
};

static void on_bring_forward(void *context)
{
    ((struct timer_case *)context)->fired++;
}

static void test_bring_forward(void **state)
{
    (void)state;
    struct timer_case test = {.loop = bt_loop_create(NULL)};
    test.timer = bt_loop_add_timer(test.loop, BT_NEVER_NS, on_bring_forward, &test);
    bt_loop_run_once(test.loop, 0, NULL);
    assert_int_equal(test.fired, 0);
    bt_loop_timer_bring_forward(test.timer, 1);
    bt_loop_timer_bring_forward(test.timer, bt_clock_now_ns() + BT_NS_PER_S * 100);
    bt_loop_run_once(test.loop, 0, NULL);
    assert_int_equal(test.fired, 1);
    bt_loop_run_once(test.loop, 0, NULL); /* once */
    assert_int_equal(test.fired, 1);
    bt_loop_destroy(test.loop);
}

static void timer_hogs(void *context)
{
    struct timer_case *test = context;
    test->fired++;
    bt_loop_timer_set(test->timer, 0);
}

static void fd_stops(void *context)
{
    struct timer_case *test = context;
    test->read++;
    bt_loop_stop(test->loop);
}

/* A timer that is always due and a descriptor that is always readable both get their turn. */
static void test_no_starvation(void **state)
{
    (void)state;
    int fd = eventfd(1, 0);
    struct timer_case test = {.loop = bt_loop_create(NULL)};
    test.timer = bt_loop_add_timer(test.loop, 0, timer_hogs, &test);
    assert_non_null(bt_loop_add_fd(test.loop, fd, fd_stops, &test));
    assert_int_equal(bt_loop_run(test.loop, NULL), BT_OK);
    assert_int_equal(test.read, 1);
    assert_int_equal(test.fired, 1);
    bt_loop_destroy(test.loop);
    close(fd);
}

/* ------------------------------------------------------------------ changes inside callbacks */

#define SOURCES 8

struct churn {
    struct bt_loop *loop;
    struct bt_loop_source *sources[SOURCES];
    int fds[SOURCES];
    int calls;
    int late_calls;
    int afters;
};

static void on_late(void *context)
{
    ((struct churn *)context)->late_calls++;
}

/* The first to run removes everybody, itself included, and adds as many others. */
static void on_churn(void *context)
{
    struct churn *churn = context;
    churn->calls++;
    for (int i = 0; i < SOURCES; i++) {
        bt_loop_remove(churn->sources[i]);
    }
    for (int i = 0; i < SOURCES; i++) {
        churn->sources[i] = bt_loop_add_fd(churn->loop, churn->fds[i], on_late, churn);
        assert_non_null(bt_loop_add_timer(churn->loop, BT_NEVER_NS, on_late, churn));
        assert_non_null(bt_loop_add_fd(churn->loop, churn->fds[i], on_late, churn));
    }
}

static void on_after(void *context)
{
    ((struct churn *)context)->afters++;
}

static void test_churn_in_callbacks(void **state)
{
    (void)state;
    struct churn churn = {.loop = bt_loop_create(NULL)};
    bt_loop_set_after(churn.loop, on_after, &churn);
    for (int i = 0; i < SOURCES; i++) {
        churn.fds[i] = eventfd(1, 0);
        churn.sources[i] = bt_loop_add_fd(churn.loop, churn.fds[i], on_churn, &churn);
    }
    bt_loop_run_once(churn.loop, BT_NEVER_NS, NULL);
    assert_int_equal(churn.calls, 1);
    assert_int_equal(churn.late_calls, 0);
    assert_int_equal(churn.afters, 1);
    bt_loop_run_once(churn.loop, BT_NEVER_NS, NULL);
    assert_int_equal(churn.late_calls, 2 * SOURCES);
    assert_int_equal(churn.afters, 2);
    bt_loop_destroy(churn.loop);
    for (int i = 0; i < SOURCES; i++) {
        close(churn.fds[i]);
    }
}

struct pair {
    struct bt_loop *loop;
    void *receiver;
    int received;
};

static void on_socket(void *context)
{
    struct pair *pair = context;
    char byte;
    assert_int_equal(zmq_recv(pair->receiver, &byte, 1, ZMQ_DONTWAIT), 1);
    if (++pair->received == 3) {
        bt_loop_stop(pair->loop);
    }
}

/* One message a callback: the rest is still seen, though the socket's own signal is an edge. */
static void test_socket_is_level(void **state)
{
    (void)state;
    struct pair pair = {.loop = bt_loop_create(NULL)};
    void *sender = zmq_socket(bt_loop_zmq(pair.loop), ZMQ_PAIR);
    pair.receiver = zmq_socket(bt_loop_zmq(pair.loop), ZMQ_PAIR);
    assert_int_equal(zmq_bind(pair.receiver, "inproc://pair"), 0);
    assert_int_equal(zmq_connect(sender, "inproc://pair"), 0);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(zmq_send(sender, "x", 1, 0), 1);
    }
    struct bt_loop_source *source = bt_loop_add_socket(pair.loop, pair.receiver, on_socket, &pair);
    assert_int_equal(bt_loop_run(pair.loop, NULL), BT_OK);
    assert_int_equal(pair.received, 3);
    bt_loop_remove(source);
    zmq_close(sender);
    zmq_close(pair.receiver);
    bt_loop_destroy(pair.loop);
}

/* ------------------------------------------------------------------ stop and signals */

static void *stop_from_thread(void *context)
{
    bt_loop_stop(context);
    return NULL;
}

static void test_stop(void **state)
{
    (void)state;
    struct bt_loop *loop = bt_loop_create(NULL);
    bt_loop_stop(loop); /* counts, although nothing runs yet */
    assert_true(bt_loop_stopping(loop));
    assert_int_equal(bt_loop_run(loop, NULL), BT_OK);
    assert_false(bt_loop_stopping(loop));
    pthread_t thread;
    pthread_create(&thread, NULL, stop_from_thread, loop);
    assert_int_equal(bt_loop_run(loop, NULL), BT_OK);
    pthread_join(thread, NULL);
    bt_loop_destroy(loop);
}

static void test_run_once_until(void **state)
{
    (void)state;
    struct bt_loop *loop = bt_loop_create(NULL);
    int64_t until_ns = bt_clock_now_ns() + 5 * BT_NS_PER_MS;
    assert_int_equal(bt_loop_run_once(loop, until_ns, NULL), BT_OK);
    assert_true(bt_clock_now_ns() >= until_ns);
    bt_loop_destroy(loop);
}

static void raise_signal(void *context)
{
    kill(getpid(), *(int *)context);
}

static void test_signals_stop(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        int number = i ? SIGINT : SIGTERM;
        struct bt_loop *loop = bt_loop_create(NULL);
        signal(number, SIG_DFL); /* who was started in the background may ignore it */
        assert_int_equal(bt_loop_stop_on_signals(loop, NULL), BT_OK);
        bt_loop_add_timer(loop, 0, raise_signal, &number);
        assert_int_equal(bt_loop_run(loop, NULL), BT_OK);
        bt_loop_destroy(loop);
    }
    sigset_t blocked;
    pthread_sigmask(SIG_SETMASK, NULL, &blocked);
    assert_false(sigismember(&blocked, SIGTERM)); /* as it was before */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_timers_fire_in_order), cmocka_unit_test(test_bring_forward),
        cmocka_unit_test(test_no_starvation),        cmocka_unit_test(test_churn_in_callbacks),
        cmocka_unit_test(test_socket_is_level),      cmocka_unit_test(test_stop),
        cmocka_unit_test(test_run_once_until),       cmocka_unit_test(test_signals_stop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
