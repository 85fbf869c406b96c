#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "common/base/queue.h"

#define PRODUCERS 3
#define ITEMS     5000

static bool readable(const struct bt_queue *queue)
{
    struct pollfd item = {.fd = bt_queue_fd(queue), .events = POLLIN};
    return poll(&item, 1, 0) == 1;
}

static void test_bounds_and_order(void **state)
{
    (void)state;
    struct bt_queue *queue = bt_queue_create(3, sizeof(int));
    int value = 0, next = 0;
    assert_false(bt_queue_try_pop(queue, &value));
    assert_false(readable(queue));
    for (int round = 0; round < 5; round++) { /* goes around the ring */
        int pushed = round * 10;
        while (bt_queue_try_push(queue, &pushed)) {
            pushed++;
        }
        assert_int_equal(pushed, round * 10 + 3);
        assert_int_equal(bt_queue_size(queue), 3);
        assert_true(readable(queue));
        for (next = round * 10; bt_queue_try_pop(queue, &value); next++) {
            assert_int_equal(value, next);
        }
        assert_int_equal(next, round * 10 + 3);
        assert_false(readable(queue));
    }
    bt_queue_destroy(queue);
}

static void test_close(void **state)
{
    (void)state;
    struct bt_queue *queue = bt_queue_create(2, sizeof(int));
    int value = 7;
    assert_true(bt_queue_push(queue, &value));
    bt_queue_close(queue);
    bt_queue_close(queue);
    assert_false(bt_queue_push(queue, &value));
    assert_false(bt_queue_try_push(queue, &value));
    assert_true(bt_queue_pop(queue, &value));
    assert_int_equal(value, 7);
    assert_false(bt_queue_pop(queue, &value));
    assert_true(readable(queue)); /* so that a loop learns of the end */
    bt_queue_destroy(queue);
    bt_queue_destroy(NULL);
}

struct item {
    int producer;
    int number;
};

struct producer {
    pthread_t thread;
    struct bt_queue *queue;
    int index;
};

static void *produce(void *context)
{
    struct producer *producer = context;
    for (int i = 0; i < ITEMS; i++) {
        struct item item = {producer->index, i};
        if (!bt_queue_push(producer->queue, &item)) {
            return context;
        }
    }
    return NULL;
}

/* Every item arrives once and each producer's in its order, through blocking on both ends. */
static void test_threads(void **state)
{
    (void)state;
    struct bt_queue *queue = bt_queue_create(7, sizeof(struct item));
    struct producer producers[PRODUCERS];
    int next[PRODUCERS] = {0};
    for (int i = 0; i < PRODUCERS; i++) {
        producers[i] = (struct producer){.queue = queue, .index = i};
        assert_int_equal(pthread_create(&producers[i].thread, NULL, produce, &producers[i]), 0);
    }
    for (int i = 0; i < PRODUCERS * ITEMS; i++) {
        struct item item;
        assert_true(bt_queue_pop(queue, &item));
        assert_int_equal(item.number, next[item.producer]++);
    }
    for (int i = 0; i < PRODUCERS; i++) {
        void *failed;
        pthread_join(producers[i].thread, &failed);
        assert_null(failed);
        assert_int_equal(next[i], ITEMS);
    }
    assert_false(readable(queue));
    bt_queue_destroy(queue);
}

/* The same, asleep in poll as an event loop is. */
static void test_poll_wakes(void **state)
{
    (void)state;
    struct bt_queue *queue = bt_queue_create(4, sizeof(struct item));
    struct producer producer = {.queue = queue};
    assert_int_equal(pthread_create(&producer.thread, NULL, produce, &producer), 0);
    struct pollfd item_fd = {.fd = bt_queue_fd(queue), .events = POLLIN};
    int taken = 0;
    while (taken < ITEMS) {
        assert_int_equal(poll(&item_fd, 1, 20000), 1);
        struct item item;
        while (bt_queue_try_pop(queue, &item)) {
            assert_int_equal(item.number, taken++);
        }
    }
    pthread_join(producer.thread, NULL);
    bt_queue_destroy(queue);
}

static void test_close_wakes_producer(void **state)
{
    (void)state;
    struct bt_queue *queue = bt_queue_create(1, sizeof(struct item));
    struct producer producer = {.queue = queue};
    assert_int_equal(pthread_create(&producer.thread, NULL, produce, &producer), 0);
    struct item item;
    assert_true(bt_queue_pop(queue, &item)); /* it runs; nobody takes the rest */
    bt_queue_close(queue);
    void *refused;
    pthread_join(producer.thread, &refused);
    assert_ptr_equal(refused, &producer);
    bt_queue_destroy(queue);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bounds_and_order),
        cmocka_unit_test(test_close),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_poll_wakes),
        cmocka_unit_test(test_close_wakes_producer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
