/* The pool of threads that tokenize: the ids of the tokenizer, once each, within its bounds. */
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/text/tokenize_pool.h"
#include "tests/seed.h"
#include "tests/unit/text/fixture.h"

#define JOBS 200

struct fixture {
    struct bt_tokenizer *tokenizer;
    struct bt_chat_form *form;
    struct bt_tokenize_pool *pool;
};

static void setup(struct fixture *f, unsigned threads, size_t max_jobs, size_t max_bytes)
{
    f->tokenizer = fixture_load(fixture_tiny_dir());
    assert_int_equal(bt_chat_form_load(fixture_tiny_dir(), f->tokenizer, NULL, &f->form), BT_OK);
    struct bt_tokenize_pool_options options = {f->tokenizer, f->form, threads, max_jobs, max_bytes};
    assert_int_equal(bt_tokenize_pool_create(&options, NULL, &f->pool), BT_OK);
}

static void teardown(struct fixture *f)
{
    bt_tokenize_pool_destroy(f->pool);
    bt_chat_form_destroy(f->form);
    bt_tokenizer_destroy(f->tokenizer);
}

static struct bt_tokenize_input text_input(const char *text, void *context)
{
    return (struct bt_tokenize_input){
        .text = text, .size = strlen(text), .special = true, .context = context};
}

static void take(struct fixture *f, struct bt_tokenize_result *ret_result)
{
    struct pollfd wait = {.fd = bt_tokenize_pool_fd(f->pool), .events = POLLIN};
    while (!bt_tokenize_pool_take(f->pool, ret_result))
        assert_true(poll(&wait, 1, -1) > 0);
}

static void make_text(size_t number, char ret_text[static 2000])
{
    size_t size = (size_t)snprintf(ret_text, 2000, "text %zu", number), words = number % 150;
    for (size_t i = 0; i < words; i++)
        size += (size_t)snprintf(ret_text + size, 2000 - size, " word%zu", i * number % 100);
}

/* The input is overwritten at once: the pool must have its own. */
static void test_ids(void **state)
{
    struct fixture f;
    char text[2000];
    bool seen[JOBS] = {false};
    size_t numbers[JOBS];
    setup(&f, 3, JOBS, 16u << 20);
    for (size_t i = 0; i < JOBS; i++) {
        struct bt_tokenize_job *job;
        numbers[i] = i;
        make_text(i, text);
        struct bt_tokenize_input input = text_input(text, &numbers[i]);
        assert_int_equal(bt_tokenize_pool_submit(f.pool, &input, NULL, &job), BT_OK);
        memset(text, '!', sizeof text);
    }
    for (size_t i = 0; i < JOBS; i++) {
        struct bt_tokenize_result result;
        struct bt_token_buffer expected = {0};
        take(&f, &result);
        assert_int_equal(result.status, BT_OK);
        size_t number = *(size_t *)result.context;
        assert_false(seen[number]);
        seen[number] = true;
        make_text(number, text);
        assert_int_equal(
            bt_tokenizer_encode(f.tokenizer, text, strlen(text), true, NULL, &expected), BT_OK);
        assert_int_equal(result.ids.count, expected.count);
        assert_memory_equal(result.ids.ids, expected.ids, expected.count * sizeof *expected.ids);
        free(result.ids.ids);
        free(expected.ids);
    }
    struct bt_tokenize_result none;
    struct bt_tokenize_pool_stats stats;
    assert_false(bt_tokenize_pool_take(f.pool, &none));
    bt_tokenize_pool_read(f.pool, &stats);
    assert_int_equal(stats.waiting + stats.running + stats.done + stats.bytes, 0);
    teardown(&f);
    (void)state;
}

static void run(struct fixture *f, const struct bt_tokenize_input *input,
                struct bt_tokenize_result *ret_result)
{
    struct bt_tokenize_job *job;
    assert_int_equal(bt_tokenize_pool_submit(f->pool, input, NULL, &job), BT_OK);
    take(f, ret_result);
    assert_ptr_equal(ret_result->job, job);
    assert_ptr_equal(ret_result->context, input->context);
}

static void test_chat(void **state)
{
    struct fixture f;
    struct bt_chat_message messages[] = {
        {"system", "be brief", 8}, {"user", "", 0}, {"assistant", "ok", 2}, {"user", "a\0b", 3}};
    struct bt_tokenize_input input = {.messages = messages, .message_count = 4};
    struct bt_tokenize_result result;
    struct bt_token_buffer expected = {0};
    setup(&f, 1, 1, 1 << 20);
    run(&f, &input, &result);
    assert_int_equal(result.status, BT_OK);
    assert_int_equal(bt_chat_form_encode(f.form, messages, 4, NULL, &expected), BT_OK);
    assert_int_equal(result.ids.count, expected.count);
    assert_memory_equal(result.ids.ids, expected.ids, expected.count * sizeof *expected.ids);
    free(result.ids.ids);
    free(expected.ids);

    messages[1].role = NULL;
    run(&f, &input, &result);
    assert_int_equal(result.status, BT_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(result.error.text, "messages[1].role"));
    assert_null(result.ids.ids);
    input.message_count = 0;
    run(&f, &input, &result);
    assert_int_equal(result.status, BT_ERR_INVALID_ARGUMENT);
    teardown(&f);
    (void)state;
}

static void test_bos(void **state)
{
    struct fixture f;
    struct bt_tokenize_result result;
    struct bt_tokenize_input input = text_input("hi", NULL);
    setup(&f, 1, 1, 1 << 20);
    uint32_t bos = (uint32_t)bt_tokenizer_bos(f.tokenizer);
    run(&f, &input, &result);
    uint32_t first = result.ids.ids[0];
    assert_true(first != bos);
    free(result.ids.ids);
    input.add_bos = true;
    run(&f, &input, &result);
    assert_true(result.ids.ids[0] == bos && result.ids.ids[1] == first);
    free(result.ids.ids);
    input = text_input("<｜begin▁of▁sentence｜>hi", NULL);
    input.add_bos = true;
    run(&f, &input, &result);
    assert_true(result.ids.ids[0] == bos && result.ids.ids[1] == first);
    free(result.ids.ids);
    input.special = false;
    run(&f, &input, &result);
    assert_true(result.ids.ids[0] == bos && result.ids.ids[1] != bos && result.ids.count > 5);
    free(result.ids.ids);
    teardown(&f);
    (void)state;
}

static void test_errors(void **state)
{
    struct fixture f;
    struct bt_tokenize_result result;
    struct bt_chat_message message = {"user", "x", 1};
    struct bt_tokenize_input input = text_input("abc\xff", NULL);
    setup(&f, 1, 1, 1 << 20);
    run(&f, &input, &result);
    assert_int_equal(result.status, BT_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(result.error.text, "byte 3"));
    assert_int_equal(result.ids.count, 0);
    assert_null(result.ids.ids);
    bt_tokenize_pool_destroy(f.pool);

    struct bt_tokenize_pool_options options = {f.tokenizer, NULL, 1, 1, 1 << 20};
    assert_int_equal(bt_tokenize_pool_create(&options, NULL, &f.pool), BT_OK);
    input = (struct bt_tokenize_input){.messages = &message, .message_count = 1};
    run(&f, &input, &result);
    assert_int_equal(result.status, BT_ERR_UNSUPPORTED);
    bt_tokenize_pool_destroy(f.pool);

    f.pool = NULL;
    options.max_jobs = 0;
    assert_int_equal(bt_tokenize_pool_create(&options, NULL, &f.pool), BT_ERR_INVALID_ARGUMENT);
    options.max_jobs = 1;
    options.thread_count = 0;
    assert_int_equal(bt_tokenize_pool_create(&options, NULL, &f.pool), BT_ERR_INVALID_ARGUMENT);
    options.thread_count = BT_TOKENIZE_POOL_MAX_THREADS + 1;
    assert_int_equal(bt_tokenize_pool_create(&options, NULL, &f.pool), BT_ERR_INVALID_ARGUMENT);
    teardown(&f);
    (void)state;
}

/* Results that nobody took count, so the bounds are reached whatever the threads do. */
static void test_bounds(void **state)
{
    struct fixture f;
    struct bt_tokenize_job *job;
    struct bt_tokenize_result result;
    struct bt_error error;
    struct bt_tokenize_pool_stats stats;
    char *text = malloc(40001);
    memset(text, 'x', 40000);
    text[40000] = '\0';
    struct bt_tokenize_input small = text_input("x", NULL), large = text_input(text, NULL);
    setup(&f, 2, 3, 100000);
    for (int i = 0; i < 3; i++)
        assert_int_equal(bt_tokenize_pool_submit(f.pool, &small, NULL, &job), BT_OK);
    assert_int_equal(bt_tokenize_pool_submit(f.pool, &small, &error, &job), BT_ERR_EXHAUSTED);
    take(&f, &result);
    free(result.ids.ids);
    assert_int_equal(bt_tokenize_pool_submit(f.pool, &small, NULL, &job), BT_OK);
    for (int i = 0; i < 3; i++) {
        take(&f, &result);
        free(result.ids.ids);
    }
    assert_int_equal(bt_tokenize_pool_submit(f.pool, &large, NULL, &job), BT_OK);
    assert_int_equal(bt_tokenize_pool_submit(f.pool, &large, NULL, &job), BT_OK);
    assert_int_equal(bt_tokenize_pool_submit(f.pool, &large, &error, &job), BT_ERR_EXHAUSTED);
    bt_tokenize_pool_read(f.pool, &stats);
    assert_true(stats.bytes >= 80000 && stats.bytes <= 100000);
    assert_int_equal(stats.waiting + stats.running + stats.done, 2);
    bt_tokenize_pool_cancel(f.pool, job);
    take(&f, &result);
    free(result.ids.ids);
    teardown(&f);

    setup(&f, 1, 1, 30000);
    assert_int_equal(bt_tokenize_pool_submit(f.pool, &large, &error, &job),
                     BT_ERR_INVALID_ARGUMENT);
    bt_tokenize_pool_read(f.pool, &stats);
    assert_int_equal(stats.bytes, 0);
    teardown(&f);
    free(text);
    (void)state;
}

/* Waiting, in work or done: what is cancelled is never taken, and its room comes back. */
static void test_cancel(void **state)
{
    struct fixture f;
    struct bt_tokenize_job *jobs[JOBS];
    size_t numbers[JOBS], left = 0;
    uint64_t seed = test_seed();
    char text[2000];
    bool cancelled[JOBS] = {false};
    setup(&f, 2, JOBS, 16u << 20);
    for (size_t i = 0; i < JOBS; i++) {
        numbers[i] = i;
        make_text(149, text);
        struct bt_tokenize_input input = text_input(text, &numbers[i]);
        assert_int_equal(bt_tokenize_pool_submit(f.pool, &input, NULL, &jobs[i]), BT_OK);
        size_t victim = fixture_random(&seed, (uint32_t)i + 1);
        if (i % 2 && !cancelled[victim]) {
            bt_tokenize_pool_cancel(f.pool, jobs[victim]);
            cancelled[victim] = true;
        }
    }
    for (size_t i = 0; i < JOBS; i++)
        left += !cancelled[i];
    for (size_t i = 0; i < left; i++) {
        struct bt_tokenize_result result;
        take(&f, &result);
        assert_false(cancelled[*(size_t *)result.context]);
        cancelled[*(size_t *)result.context] = true;
        free(result.ids.ids);
    }
    /* All that is left can be in work for a moment, and then waits to be dropped. */
    struct bt_tokenize_input input = text_input("last", &numbers[0]);
    struct bt_tokenize_result result;
    struct bt_tokenize_pool_stats stats;
    do {
        run(&f, &input, &result);
        free(result.ids.ids);
        bt_tokenize_pool_read(f.pool, &stats);
    } while (stats.bytes > 0);
    assert_int_equal(stats.waiting + stats.running + stats.done, 0);
    teardown(&f);
    (void)state;
}

/* Cancelled when it was seen to be done, or in work: that of the next job comes instead. */
static void test_cancel_late(void **state)
{
    struct fixture f;
    struct bt_tokenize_job *job;
    struct bt_tokenize_result result;
    struct bt_tokenize_pool_stats stats;
    int first, second;
    setup(&f, 1, 3, 4u << 20);
    struct bt_tokenize_input input = text_input("first", &first), next = text_input("2", &second);
    struct pollfd wait = {.fd = bt_tokenize_pool_fd(f.pool), .events = POLLIN};
    assert_int_equal(bt_tokenize_pool_submit(f.pool, &input, NULL, &job), BT_OK);
    assert_int_equal(poll(&wait, 1, -1), 1);
    bt_tokenize_pool_cancel(f.pool, job);
    assert_false(bt_tokenize_pool_take(f.pool, &result));
    bt_tokenize_pool_read(f.pool, &stats);
    assert_int_equal(stats.waiting + stats.running + stats.done + stats.bytes, 0);

    char *text = malloc(2u << 20);
    memset(text, 'x', 2u << 20);
    input.text = text;
    input.size = 2u << 20;
    assert_int_equal(bt_tokenize_pool_submit(f.pool, &input, NULL, &job), BT_OK);
    do
        bt_tokenize_pool_read(f.pool, &stats);
    while (stats.waiting > 0);
    bt_tokenize_pool_cancel(f.pool, job);
    run(&f, &next, &result);
    free(result.ids.ids);
    bt_tokenize_pool_read(f.pool, &stats);
    assert_int_equal(stats.waiting + stats.running + stats.done + stats.bytes, 0);
    free(text);
    teardown(&f);
    (void)state;
}

/* Waiting jobs, running ones and results that nobody takes: nothing leaks, nothing hangs. */
static void test_destroy_with_jobs(void **state)
{
    struct fixture f;
    struct bt_tokenize_job *job;
    char text[2000];
    make_text(149, text);
    setup(&f, 2, JOBS, 16u << 20);
    for (size_t i = 0; i < JOBS; i++) {
        struct bt_tokenize_input input = text_input(text, NULL);
        assert_int_equal(bt_tokenize_pool_submit(f.pool, &input, NULL, &job), BT_OK);
    }
    bt_tokenize_pool_cancel(f.pool, job);
    teardown(&f);
    bt_tokenize_pool_destroy(NULL);
    (void)state;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ids),         cmocka_unit_test(test_chat),
        cmocka_unit_test(test_bos),         cmocka_unit_test(test_errors),
        cmocka_unit_test(test_bounds),      cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_cancel_late), cmocka_unit_test(test_destroy_with_jobs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
