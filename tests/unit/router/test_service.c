/* Generations by the service, between a client's sink and workers. */
#include <math.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zmq.h>

#include "router/generation_limits.h"
#include "router/stream.h"
#include "tests/unit/router/service_driver.h"

/* ---- generations */

static void check_whole(const struct seen *seen)
{
    assert_true(seen->ended);
    assert_int_equal(seen->result.finish, RT_FINISH_LENGTH);
    assert_int_equal(seen->result.status, BT_OK);
    assert_int_equal(seen->size, strlen(script_text));
    assert_memory_equal(seen->text, script_text, seen->size);
    assert_int_equal(seen->token_count, script.count);
    assert_int_equal(seen->result.completion_tokens, script.count);
    assert_int_equal(seen->result.prompt_tokens, 5);
}

static void test_generation(void **state)
{
    (void)state;
    static struct seen seen;
    uint32_t count = (uint32_t)script.count;
    join(&p0, "p0", false);
    join(&d0, "d0", true);
    const char *why = NULL;
    assert_true(rt_service_ready(service, &why));
    assert_int_equal(rt_service_model_hash(service), 77);
    submit(&seen, count);
    RUN_UNTIL(p0.run);
    assert_int_equal(p0.run_request, seen.request);
    assert_int_equal(p0.run_epoch, d0.held[0].epoch);
    assert_string_equal(p0.run_rank, "d0");
    assert_int_equal(p0.run_prompt_tokens, 5);
    assert_int_equal(p0.run_seed, 42);
    assert_int_equal(d0.held[0].prompt_tokens, 5);
    assert_int_equal(d0.held[0].penalty_prompt_tokens, 0);
    fake_prefill_first_token(&p0);
    RUN_UNTIL(seen.token_count == 1);
    fake_prefill_done(&p0);
    fake_decode_step(&d0, 0, 3, 0);
    RUN_UNTIL(seen.token_count == 3);
    fake_decode_step(&d0, 3, count - 3, BATON__V1__FINISH_REASON__FINISH_LENGTH);
    RUN_UNTIL(seen.ended);
    check_whole(&seen);
    assert_int_equal(seen.timing.kv_bytes, 4096);
    assert_int_equal(seen.timing.kv_bytes_hidden, 1024);
    assert_int_equal(seen.timing.kv_writes, 3);
    assert_true(seen.timing.prefill_compute_ms == 5.0);
    assert_true(seen.timing.visible_transfer_ms == 2.0);
    assert_true(seen.timing.ttft_ms > 0 && seen.timing.e2e_ms >= seen.timing.ttft_ms);
    assert_true(seen.timing.tpot_ms > 0 && seen.timing.queue_ms > 0);
    assert_string_equal(seen.prefill_worker, "p0");
    assert_string_equal(seen.decode_worker, "d0");
    assert_string_equal(seen.transport, "shm");
    SETTLE();
    assert_int_equal(d0.cancel_count, 0);
}

/* The rank dies after some tokens: the client sees one text, and nothing of it. */
static void test_decode_worker_dies_in_mid_stream(void **state)
{
    (void)state;
    static struct seen seen;
    uint32_t count = (uint32_t)script.count;
    join(&p0, "p0", false);
    join(&d0, "d0", true);
    submit(&seen, count);
    RUN_UNTIL(p0.run);
    join(&d1, "d1", true);
    fake_prefill_first_token(&p0);
    fake_prefill_done(&p0);
    fake_decode_step(&d0, 0, 5, 0);
    RUN_UNTIL(seen.token_count == 5);
    fake_worker_close(&d0);
    RUN_UNTIL(p0.run);
    assert_true(worker_is("d0", "lost"));
    assert_string_equal(p0.run_rank, "d1");
    assert_int_equal(p0.run_request, seen.request);
    fake_prefill_first_token(&p0);
    fake_prefill_done(&p0);
    fake_decode_step(&d1, 0, 4, 0);
    fake_decode_step(&d1, 4, count - 4, BATON__V1__FINISH_REASON__FINISH_LENGTH);
    RUN_UNTIL(seen.ended);
    check_whole(&seen);
    assert_string_equal(seen.decode_worker, "d1");
}

static void test_prefill_worker_dies_during_the_run(void **state)
{
    (void)state;
    static struct seen seen;
    uint32_t count = (uint32_t)script.count;
    join(&p0, "p0", false);
    join(&d0, "d0", true);
    submit(&seen, count);
    RUN_UNTIL(p0.run);
    uint64_t first_epoch = p0.run_epoch;
    join(&p1, "p1", false);
    fake_worker_close(&p0);
    RUN_UNTIL(p1.run);
    assert_true(d0.held[0].cancelled); /* the cancel went before the new Reserve */
    assert_int_equal(d0.cancels[0].epoch, first_epoch);
    assert_int_not_equal(p1.run_epoch, first_epoch);
    fake_prefill_done(&p1);
    fake_decode_step(&d0, 0, count, BATON__V1__FINISH_REASON__FINISH_LENGTH);
    RUN_UNTIL(seen.ended);
    check_whole(&seen);
    assert_string_equal(seen.prefill_worker, "p1");
}

/* ---- what the prefill worker says of the prompt */

static void check_prefix_counted(uint64_t queries, uint64_t hits)
{
    assert_int_equal(bt_counter_value(service->metrics.prefix_queries), queries);
    assert_int_equal(bt_counter_value(service->metrics.prefix_hits), hits);
}

static void check_prefill_told(const struct seen *seen, uint32_t cached_tokens)
{
    assert_int_equal(seen->result.cached_tokens, cached_tokens);
    assert_int_equal(seen->timing.kv_bytes, 4096);
    assert_int_equal(seen->timing.kv_bytes_hidden, 1024);
    assert_int_equal(seen->timing.kv_writes, 3);
    assert_true(seen->timing.layerwise);
    assert_true(seen->timing.prefill_compute_ms == 5.0);
    assert_true(seen->timing.visible_transfer_ms == 2.0);
    assert_string_equal(seen->transport, "shm");
}

/* The rank's connection is read before the prefill worker's: all there is to tell came with it, and
 * is counted once. */
static void test_the_rank_ends_it_before_prefill_is_heard(void **state)
{
    (void)state;
    static struct seen seen;
    join(&p0, "p0", false);
    join(&d0, "d0", true);
    p0.cached_tokens = 3;
    for (uint32_t tokens = 1; tokens <= 2; tokens++) {
        submit(&seen, tokens);
        RUN_UNTIL(p0.run);
        d0.passes_on = 3 + 1;
        fake_decode_step(&d0, 0, tokens, BATON__V1__FINISH_REASON__FINISH_LENGTH);
        RUN_UNTIL(seen.ended);
        assert_int_equal(seen.token_count, tokens);
        check_prefill_told(&seen, 3);
        assert_string_equal(seen.prefill_worker, "p0");
        fake_prefill_first_token(&p0);
        fake_prefill_done(&p0);
        SETTLE();
        check_prefix_counted(5 * tokens, 3 * tokens);
    }
}

/* Of a prompt that is computed once more, what was told before is not said again. */
static void test_what_is_told_is_of_the_last_attempt(void **state)
{
    (void)state;
    static struct seen seen;
    uint32_t count = (uint32_t)script.count;
    join(&p0, "p0", false);
    join(&d0, "d0", true);
    submit(&seen, count);
    RUN_UNTIL(p0.run);
    join(&d1, "d1", true);
    p0.cached_tokens = 2;
    fake_prefill_first_token(&p0);
    fake_prefill_done(&p0);
    SETTLE();
    fake_worker_close(&d0);
    RUN_UNTIL(p0.run);
    assert_string_equal(p0.run_rank, "d1");
    fake_decode_step(&d1, 0, count, BATON__V1__FINISH_REASON__FINISH_LENGTH);
    RUN_UNTIL(seen.ended);
    check_whole(&seen);
    assert_int_equal(seen.result.cached_tokens, 0);
    assert_int_equal(seen.timing.kv_bytes, 0);
    assert_string_equal(seen.transport, "");
}

/* In between, too: what comes second changes nothing. */
static void test_prefill_is_heard_after_some_tokens(void **state)
{
    (void)state;
    static struct seen seen;
    uint32_t count = (uint32_t)script.count;
    join(&p0, "p0", false);
    join(&d0, "d0", true);
    submit(&seen, count);
    RUN_UNTIL(p0.run);
    d0.passes_on = 2 + 1;
    fake_decode_step(&d0, 0, 2, 0);
    RUN_UNTIL(seen.token_count == 2);
    p0.cached_tokens = 2;
    fake_prefill_first_token(&p0);
    fake_prefill_done(&p0);
    SETTLE();
    fake_decode_step(&d0, 2, count - 2, BATON__V1__FINISH_REASON__FINISH_LENGTH);
    RUN_UNTIL(seen.ended);
    check_whole(&seen);
    check_prefill_told(&seen, 2);
    check_prefix_counted(5, 2);
}

/* A stop string may be complete before all is pushed. */
static void test_the_first_token_ends_it(void **state)
{
    (void)state;
    static struct seen seen;
    static const char *const stops[] = {"the"};
    struct rt_generation g = generation(10);
    g.stop = stops;
    g.stop_count = 1;
    join(&p0, "p0", false);
    join(&d0, "d0", true);
    assert_int_equal(submit_to(&seen, &g, NULL), BT_OK);
    RUN_UNTIL(p0.run);
    p0.cached_tokens = 4;
    uint32_t sent = 0;
    while (!seen.ended && sent < script.count) {
        sent == 0 ? fake_prefill_first_token(&p0) : fake_decode_step(&d0, sent, 1, 0);
        sent++;
        SETTLE();
    }
    assert_true(seen.ended);
    assert_int_equal(seen.result.finish, RT_FINISH_STOP);
    assert_int_equal(seen.result.cached_tokens, 4);
}

/* The attempt that the client gets its tokens of is told of, on whichever way that was heard. */
static void run_again_elsewhere(bool rank_first, bool tokens_before)
{
    static struct seen seen;
    uint32_t count = (uint32_t)script.count;
    join(&p0, "p0", false);
    join(&d0, "d0", true);
    submit(&seen, count);
    RUN_UNTIL(p0.run);
    uint64_t old_epoch = p0.run_epoch;
    p0.cached_tokens = 1;
    if (tokens_before) {
        d0.passes_on = 1 + 1;
        fake_decode_step(&d0, 0, 2, 0);
        RUN_UNTIL(seen.token_count == 2);
    }
    join(&p1, "p1", false);
    fake_prefill_fail(&p0, BT_ERR_CORRUPT);
    if (tokens_before) {
        fake_decode_step(&d0, 2, 0, BATON__V1__FINISH_REASON__FINISH_PREEMPTED);
    }
    RUN_UNTIL(p1.run || p0.run);
    struct fake_worker *now = p1.run ? &p1 : &p0;
    assert_int_not_equal(now->run_epoch, old_epoch);
    now->cached_tokens = 4;
    struct fake_held fresh = d0.held[d0.held_count - 1];
    d0.held[d0.held_count - 1].epoch = old_epoch; /* a late step of the attempt before */
    d0.passes_on = 2 + 1;
    fake_decode_step(&d0, 0, 1, 0);
    d0.held[d0.held_count - 1] = fresh;
    if (rank_first) {
        d0.passes_on = 4 + 1;
    } else {
        fake_prefill_first_token(now);
        fake_prefill_done(now);
        SETTLE();
    }
    fake_decode_step(&d0, 0, count, BATON__V1__FINISH_REASON__FINISH_LENGTH);
    RUN_UNTIL(seen.ended);
    check_whole(&seen);
    check_prefill_told(&seen, 4);
    assert_string_equal(seen.prefill_worker, now->id);
}

static void test_another_attempt_ends_at_the_rank_first(void **state)
{
    (void)state;
    run_again_elsewhere(true, false);
}

static void test_another_attempt_is_heard_first(void **state)
{
    (void)state;
    run_again_elsewhere(false, false);
}

static void test_another_attempt_after_tokens(void **state)
{
    (void)state;
    run_again_elsewhere(true, true);
}

/* No more is in the cache than the prompt has, whoever says so. */
static void test_more_cached_than_there_is(void **state)
{
    (void)state;
    static struct seen seen;
    static const uint32_t said[] = {5, UINT32_MAX - 1};
    join(&p0, "p0", false);
    join(&d0, "d0", true);
    for (int i = 0; i < 2; i++) {
        submit(&seen, 1);
        RUN_UNTIL(p0.run);
        d0.passes_on = said[i] + 1;
        fake_decode_step(&d0, 0, 1, BATON__V1__FINISH_REASON__FINISH_LENGTH);
        RUN_UNTIL(seen.ended);
        check_prefill_told(&seen, 0);
        fake_prefill_done(&p0);
        SETTLE();
    }
}

static void test_failures_of_a_worker_are_tried_again_then_told(void **state)
{
    (void)state;
    static struct seen seen;
    join(&p0, "p0", false);
    join(&d0, "d0", true);
    submit(&seen, 10);
    for (int i = 0; i < 3; i++) {
        RUN_UNTIL(p0.run);
        fake_prefill_fail(&p0, BT_ERR_CORRUPT);
    }
    RUN_UNTIL(seen.ended);
    assert_int_equal(seen.result.finish, RT_FINISH_ERROR);
    assert_int_equal(seen.result.status, BT_ERR_CORRUPT);
    assert_non_null(strstr(seen.error, "told to fail"));
    assert_int_equal(p0.run_count, 3);
    RUN_UNTIL(d0.cancel_count == 3);
}

static void test_stop_string_ends_text_and_work(void **state)
{
    (void)state;
    static struct seen seen;
    const char *stop[] = {"jumps"};
    join(&p0, "p0", false);
    join(&d0, "d0", true);
    struct rt_generation g = generation(0); /* up to the context */
    g.stop = stop;
    g.stop_count = 1;
    assert_int_equal(submit_to(&seen, &g, NULL), BT_OK);
    RUN_UNTIL(p0.run);
    fake_prefill_done(&p0);
    uint32_t count = (uint32_t)script.count;
    fake_decode_step(&d0, 0, count, 0);
    RUN_UNTIL(seen.ended);
    assert_int_equal(seen.result.finish, RT_FINISH_STOP);
    assert_int_equal(seen.size, strlen("the quick brown fox "));
    assert_memory_equal(seen.text, script_text, seen.size);
    /* Tokens up to the one that completes the stop string, by the tokenizer's own bytes. */
    size_t bytes = 0, size;
    uint32_t tokens = 0;
    while (bytes < strlen("the quick brown fox jumps")) {
        bt_tokenizer_bytes(rt_service_tokenizer(service), script.ids[tokens++], &size);
        bytes += size;
    }
    assert_int_equal(seen.result.completion_tokens, tokens);
    assert_int_equal(seen.token_count, tokens);
    RUN_UNTIL(d0.cancel_count == 1);
    assert_int_equal(d0.cancels[0].request_id, seen.request);
    assert_int_equal(d0.cancels[0].epoch, d0.held[0].epoch);
}

static void test_eos_gives_no_text_but_counts(void **state)
{
    (void)state;
    static struct seen seen;
    join(&p0, "p0", false);
    join(&d0, "d0", true);
    struct rt_generation g = generation(10);
    g.keep_special = true; /* nor then: it ended the text, and is no part of it */
    assert_int_equal(submit_to(&seen, &g, NULL), BT_OK);
    RUN_UNTIL(p0.run);
    fake_prefill_done(&p0);
    script.ids[2] = (uint32_t)bt_tokenizer_eos(rt_service_tokenizer(service));
    fake_decode_step(&d0, 0, 3, BATON__V1__FINISH_REASON__FINISH_STOP);
    RUN_UNTIL(seen.ended);
    size_t first, second;
    bt_tokenizer_bytes(rt_service_tokenizer(service), script.ids[0], &first);
    bt_tokenizer_bytes(rt_service_tokenizer(service), script.ids[1], &second);
    assert_int_equal(seen.result.finish, RT_FINISH_STOP);
    assert_int_equal(seen.size, first + second);
    assert_int_equal(seen.result.completion_tokens, 3);
}

/* "dog" could become "dogma", until the end comes. */
static void test_text_held_back_for_a_stop_string_comes_at_the_end(void **state)
{
    (void)state;
    static struct seen seen;
    const char *stop[] = {"dogma"};
    uint32_t count = (uint32_t)script.count;
    join(&p0, "p0", false);
    join(&d0, "d0", true);
    struct rt_generation g = generation(count);
    g.stop = stop;
    g.stop_count = 1;
    assert_int_equal(submit_to(&seen, &g, NULL), BT_OK);
    RUN_UNTIL(p0.run);
    fake_prefill_done(&p0);
    fake_decode_step(&d0, 0, count - 1, 0);
    fake_decode_step(&d0, count - 1, 1, BATON__V1__FINISH_REASON__FINISH_LENGTH);
    RUN_UNTIL(seen.ended);
    check_whole(&seen);
}

static void test_abandoned_request_is_cancelled_everywhere(void **state)
{
    (void)state;
    static struct seen seen;
    join(&p0, "p0", false);
    join(&d0, "d0", true);
    submit(&seen, 10);
    RUN_UNTIL(p0.run);
    fake_prefill_first_token(&p0);
    RUN_UNTIL(seen.token_count == 1);
    rt_service_abandon(service, seen.request);
    RUN_UNTIL(p0.run_cancels == 1 && d0.cancel_count == 1);
    assert_int_equal(d0.cancels[0].epoch, d0.held[0].epoch);
    rt_service_abandon(service, seen.request);
    SETTLE();
    assert_false(seen.ended);
    Baton__V1__StatusResponse *status = rt_service_status(service);
    assert_int_equal(status->n_requests, 0);
    baton__v1__status_response__free_unpacked(status, NULL);
}

static _Atomic int64_t ahead_ns; /* that the clock is ahead */

int64_t __real_bt_clock_now_ns(void);
int64_t __wrap_bt_clock_now_ns(void);
int64_t __wrap_bt_clock_now_ns(void)
{
    return __real_bt_clock_now_ns() + ahead_ns;
}

static void test_deadline(void **state)
{
    (void)state;
    static struct seen seen;
    join(&p0, "p0", false);
    join(&d0, "d0", true);
    struct rt_generation g = generation(10);
    g.deadline_ns = bt_clock_now_ns() + 50 * BT_NS_PER_S; /* no worker is silent for too long yet */
    assert_int_equal(submit_to(&seen, &g, NULL), BT_OK);
    RUN_UNTIL(d0.held_count == 1);
    assert_false(seen.ended);
    ahead_ns += 50 * BT_NS_PER_S;
    RUN_UNTIL(seen.ended);
    assert_int_equal(seen.result.finish, RT_FINISH_DEADLINE);
    RUN_UNTIL(d0.cancel_count == 1);
}

static void test_refused_reserve_waits_for_pages(void **state)
{
    (void)state;
    static struct seen seen;
    join(&p0, "p0", false);
    join(&d0, "d0", true);
    d0.refuse = BT_ERR_EXHAUSTED;
    submit(&seen, 10);
    RUN_UNTIL(worker_is("d0", "ready") && rt_service_ready(service, NULL));
    SETTLE();
    d0.refuse = BT_OK;
    RUN_UNTIL(p0.run);
    assert_int_equal(d0.cancel_count, 0);
}

/* A cancel that has to be repeated names no epoch, as none was answered. */
static void test_repeated_cancel_spares_the_next_reservation(void **state)
{
    (void)state;
    static struct seen seen;
    join(&p0, "p0", false);
    join(&d0, "d0", true);
    d0.refuse = BT_ERR_INTERNAL;
    d0.refuse_cancel = BT_ERR_UNAVAILABLE;
    submit(&seen, 10);
    RUN_UNTIL(d0.cancel_count == 1);
    d0.refuse = BT_OK;
    RUN_UNTIL(p0.run);
    int64_t later_ns = bt_clock_now_ns() + 1200 * BT_NS_PER_MS; /* cancels are repeated after 1 s */
    while (bt_clock_now_ns() < later_ns) {
        assert_int_equal(bt_loop_run_once(loop, later_ns, NULL), BT_OK);
    }
    assert_int_equal(d0.cancel_count, 1);
    assert_false(d0.held[0].cancelled);
}

static void test_preempted_reserves_in_full(void **state)
{
    (void)state;
    static struct seen seen;
    uint32_t count = (uint32_t)script.count;
    join(&p0, "p0", false);
    join(&d0, "d0", true);
    submit(&seen, count);
    RUN_UNTIL(p0.run);
    assert_false(d0.held[0].full);
    fake_prefill_done(&p0);
    fake_decode_step(&d0, 0, 2, 0);
    fake_decode_step(&d0, 2, 0, BATON__V1__FINISH_REASON__FINISH_PREEMPTED);
    RUN_UNTIL(p0.run);
    assert_true(d0.held[1].full);
    fake_prefill_done(&p0);
    fake_decode_step(&d0, 0, count, BATON__V1__FINISH_REASON__FINISH_LENGTH);
    RUN_UNTIL(seen.ended);
    check_whole(&seen);
}

static void test_steps_with_nonsense_leave_other_requests_alone(void **state)
{
    (void)state;
    static struct seen seen;
    uint32_t count = (uint32_t)script.count;
    join(&p0, "p0", false);
    join(&d0, "d0", true);
    submit(&seen, count);
    RUN_UNTIL(p0.run);
    fake_prefill_done(&p0);
    struct fake_held real = d0.held[0];
    d0.held[0].request = 12345; /* never heard of */
    fake_decode_step(&d0, 0, 2, 0);
    d0.held[0] = real;
    d0.held[0].epoch = 1; /* an old epoch */
    fake_decode_step(&d0, 7, 2, BATON__V1__FINISH_REASON__FINISH_ERROR);
    d0.held[0] = real;
    fake_decode_step(&d0, 0, count, BATON__V1__FINISH_REASON__FINISH_LENGTH);
    RUN_UNTIL(seen.ended);
    check_whole(&seen);
    RUN_UNTIL(d0.cancel_count == 1);
    assert_int_equal(d0.cancels[0].request_id, 12345);
}

/* Of the prefill worker, then of the decode rank: none reaches the client, and it goes on. */
static void test_tokens_outside_the_vocabulary(void **state)
{
    (void)state;
    static const uint32_t strange[64] = {UINT32_MAX, 2048};
    static struct seen seen;
    uint32_t count = (uint32_t)script.count;
    join(&p0, "p0", false);
    join(&d0, "d0", true);
    submit(&seen, count);
    RUN_UNTIL(p0.run);
    fake_script = strange;
    fake_prefill_first_token(&p0);
    RUN_UNTIL(p0.run_count == 2 && p0.run);
    assert_int_equal(p0.run_cancels, 1);
    assert_int_equal(seen.token_count, 0);
    fake_script = script.ids;
    fake_prefill_first_token(&p0);
    fake_prefill_done(&p0);
    fake_decode_step(&d0, 0, 2, 0);
    RUN_UNTIL(seen.token_count == 2);
    fake_script = strange;
    uint32_t cancels = d0.cancel_count;
    fake_decode_step(&d0, 1, 1, 0);
    RUN_UNTIL(p0.run_count == 3 && p0.run && d0.cancel_count > cancels);
    assert_int_equal(seen.token_count, 2);
    fake_script = script.ids;
    fake_prefill_done(&p0);
    fake_decode_step(&d0, 0, count, BATON__V1__FINISH_REASON__FINISH_LENGTH);
    RUN_UNTIL(seen.ended);
    check_whole(&seen);
}

/* ---- limits */

static void expect_invalid(const struct rt_generation *g, const char *part)
{
    static struct seen seen;
    struct bt_error error = {0};
    assert_int_equal(submit_to(&seen, g, &error), BT_ERR_INVALID_ARGUMENT);
    if (!strstr(error.text, part)) {
        fail_msg("'%s' is not in '%s'", part, error.text);
    }
}

static void test_limits_of_a_generation(void **state)
{
    (void)state;
    static struct seen seen;
    struct rt_generation g = generation(10);
    struct bt_error error;
    assert_int_equal(rt_service_max_model_len(service), 16384); /* config.json */
    assert_int_equal(submit_to(&seen, &g, &error), BT_ERR_UNAVAILABLE);
    join(&p0, "p0", false);
    assert_int_equal(rt_service_max_model_len(service), 4096); /* the worker's */
    fake_worker_open(&d0, loop, "d0", true);
    d0.pages_total = 2;
    assert_int_equal(register_with(fake_worker_registration(&d0)), BT_OK);
    assert_int_equal(rt_service_max_model_len(service), 128); /* the pool's */
    g.sampling.max_tokens = 124;
    expect_invalid(&g, "max_tokens: 124");
    g = generation(10);
    g.prompt_tokens = 0;
    expect_invalid(&g, "prompt");
    uint32_t outside[] = {3, 2048}; /* vocab_size of config.json */
    g = generation(10);
    g.prompt = outside;
    g.prompt_tokens = 2;
    expect_invalid(&g, "token 2048");
    static uint32_t longest[128];
    g.prompt = longest;
    g.prompt_tokens = 128;
    expect_invalid(&g, "prompt: 128");
    g = generation(10);
    g.sampling.min_tokens = 11;
    expect_invalid(&g, "min_tokens: 11");
}

static void test_limits_of_sampling(void **state)
{
    (void)state;
    join(&p0, "p0", false);
    join(&d0, "d0", true);
#define EXPECT_INVALID(field, value)                                                               \
    do {                                                                                           \
        struct rt_generation g_ = generation(10);                                                  \
        g_.sampling.field = value;                                                                 \
        expect_invalid(&g_, #field ":");                                                           \
    } while (0)
    EXPECT_INVALID(temperature, -0.1F);
    EXPECT_INVALID(temperature, (float)NAN);
    EXPECT_INVALID(top_p, 0);
    EXPECT_INVALID(top_p, 1.01F);
    EXPECT_INVALID(top_k, -2);
    EXPECT_INVALID(min_p, 1.5F);
    EXPECT_INVALID(repetition_penalty, 0);
    EXPECT_INVALID(repetition_penalty, (float)INFINITY);
    EXPECT_INVALID(presence_penalty, 2.5F);
    EXPECT_INVALID(frequency_penalty, -2.5F);
    EXPECT_INVALID(logprobs, 21);
    struct rt_generation g = generation(10);
    uint32_t token = 2048;
    float value = 1;
    g.sampling.logit_bias_token = &token;
    g.sampling.n_logit_bias_token = 1;
    expect_invalid(&g, "logit_bias: 1 tokens and 0 values");
    g.sampling.logit_bias_value = &value;
    g.sampling.n_logit_bias_value = 1;
    expect_invalid(&g, "logit_bias: token 2048");
    token = 5;
    value = 101;
    expect_invalid(&g, "logit_bias: 101");
    g = generation(10);
    const char *stop[] = {""};
    g.stop = stop;
    g.stop_count = 1;
    expect_invalid(&g, "");
}

static void test_penalty_sends_the_prompt_to_the_rank(void **state)
{
    (void)state;
    static struct seen seen;
    join(&p0, "p0", false);
    join(&d0, "d0", true);
    struct rt_generation g = generation(10);
    g.sampling.repetition_penalty = 1.2F;
    assert_int_equal(submit_to(&seen, &g, NULL), BT_OK);
    RUN_UNTIL(p0.run);
    assert_int_equal(d0.held[0].penalty_prompt_tokens, 5);
}

static void test_queue_is_bounded(void **state)
{
    (void)state;
    static struct seen seen[5];
    struct bt_error error;
    join(&p0, "p0", false);
    join(&d0, "d0", true);
    struct rt_generation g = generation(10);
    assert_int_equal(rt_service_price(service, &g), g.prompt_tokens + 10);
    assert_int_equal(rt_service_check_several(service, 0, 4, 1000, &error), BT_OK);
    assert_int_equal(rt_service_check_several(service, 0, 5, 1000, &error),
                     BT_ERR_INVALID_ARGUMENT); /* never, however long it waits */
    for (int i = 0; i < 4; i++) {
        submit(&seen[i], 10);
    }
    assert_int_equal(submit_to(&seen[4], &g, NULL), BT_ERR_EXHAUSTED);
    rt_service_drain(service);
    assert_int_equal(submit_to(&seen[4], &g, NULL), BT_ERR_UNAVAILABLE);
    const char *why = NULL;
    assert_false(rt_service_ready(service, &why));
    assert_string_equal(why, "draining");
}

static void test_stop_ends_streams_with_an_error(void **state)
{
    (void)state;
    static struct seen seen;
    join(&p0, "p0", false);
    join(&d0, "d0", true);
    submit(&seen, 10);
    RUN_UNTIL(p0.run);
    rt_service_stop(service);
    assert_true(seen.ended);
    assert_int_equal(seen.result.finish, RT_FINISH_ERROR);
    assert_int_equal(seen.result.status, BT_ERR_UNAVAILABLE);
    RUN_UNTIL(p0.run_cancels == 1 && d0.cancel_count == 1);
}

/* ---- draining */

struct tokenized {
    bool over;
    enum bt_status status;
    size_t count;
};

static void on_tokenized(void *context, enum bt_status status, const char *text,
                         struct bt_token_buffer *ids)
{
    (void)text;
    struct tokenized *tokenized = context;
    assert_false(tokenized->over);
    *tokenized = (struct tokenized){true, status, ids->count};
    free(ids->ids);
}

static enum bt_status tokenize(const char *text, struct tokenized *tokenized)
{
    struct rt_tokenization_job *job;
    struct bt_tokenize_input input = {.text = text, .size = strlen(text), .special = true};
    *tokenized = (struct tokenized){0};
    return rt_tokenization_start(rt_service_tokenization(service), &input, BT_NEVER_NS,
                                 on_tokenized, tokenized, NULL, &job);
}

/* What came before goes on: streams, texts being tokenized, and the requests these belong to. */
static void test_drain_ends_what_came_before(void **state)
{
    (void)state;
    static struct seen running, begun, late;
    struct tokenized text, late_text;
    uint32_t count = (uint32_t)script.count;
    join(&p0, "p0", false);
    join(&d0, "d0", true);
    struct rt_generation before = generation(count);
    before.arrival_ns = bt_clock_now_ns();
    submit(&running, count);
    RUN_UNTIL(p0.run);
    assert_int_equal(tokenize(script_text, &text), BT_OK);
    assert_false(rt_service_draining(service));
    rt_service_drain(service);
    assert_true(rt_service_draining(service));
    assert_false(rt_service_drained(service));
    assert_int_equal(tokenize(script_text, &late_text), BT_ERR_UNAVAILABLE);
    struct rt_generation after = generation(count);
    assert_int_equal(submit_to(&late, &after, NULL), BT_ERR_UNAVAILABLE);
    after.arrival_ns = bt_clock_now_ns();
    assert_int_equal(submit_to(&late, &after, NULL), BT_ERR_UNAVAILABLE);
    RUN_UNTIL(text.over);
    assert_int_equal(text.status, BT_OK);
    assert_int_equal(text.count, script.count);
    rt_service_drain(service); /* again: what came too late did not come before it */
    assert_int_equal(submit_to(&late, &after, NULL), BT_ERR_UNAVAILABLE);
    assert_int_equal(submit_to(&begun, &before, NULL), BT_OK);
    fake_prefill_done(&p0);
    fake_decode_step(&d0, 0, count, BATON__V1__FINISH_REASON__FINISH_LENGTH);
    RUN_UNTIL(running.ended);
    check_whole(&running);
    assert_false(rt_service_drained(service));
    RUN_UNTIL(p0.run && p0.run_request == begun.request);
    fake_prefill_done(&p0);
    fake_decode_step(&d0, 0, count, BATON__V1__FINISH_REASON__FINISH_LENGTH);
    RUN_UNTIL(begun.ended);
    check_whole(&begun);
    RUN_UNTIL(rt_service_drained(service));
}

/* Texts count, too; and the deadline runs from the arrival at the front. */
static void test_texts_and_deadlines(void **state)
{
    (void)state;
    static struct seen seen;
    struct tokenized text;
    join(&p0, "p0", false);
    join(&d0, "d0", true);
    assert_true(rt_service_drained(service));
    assert_int_equal(tokenize(script_text, &text), BT_OK);
    assert_false(rt_service_drained(service));
    RUN_UNTIL(text.over);
    assert_true(rt_service_drained(service));
    int64_t now_ns = bt_clock_now_ns();
    assert_true(rt_service_deadline_ns(service, now_ns, BT_NEVER_NS) == now_ns + 60 * BT_NS_PER_S);
    assert_true(rt_service_deadline_ns(service, now_ns, now_ns + 5) == now_ns + 5);
    struct rt_generation g = generation(10);
    g.arrival_ns = now_ns - 61 * BT_NS_PER_S; /* it was tokenized for long */
    assert_int_equal(submit_to(&seen, &g, NULL), BT_OK);
    RUN_UNTIL(seen.ended);
    assert_int_equal(seen.result.finish, RT_FINISH_DEADLINE);
    assert_int_equal(tokenize(script_text, &text), BT_OK);
    rt_service_stop(service);
    assert_true(text.over);
    assert_int_equal(text.status, BT_ERR_UNAVAILABLE);
}

static void test_drain_does_not_wait_without_workers(void **state)
{
    (void)state;
    static struct seen seen;
    join(&p0, "p0", false);
    join(&d0, "d0", true);
    submit(&seen, 10);
    RUN_UNTIL(p0.run);
    rt_service_drain(service);
    fake_worker_close(&p0);
    fake_worker_close(&d0);
    RUN_UNTIL(worker_is("p0", "lost") && worker_is("d0", "lost"));
    assert_true(rt_service_drained(service));
}

/* ---- the text of a stream */

static bool realloc_fails;
void *__real_realloc(void *memory, size_t size);
void *__wrap_realloc(void *memory, size_t size);

void *__wrap_realloc(void *memory, size_t size)
{
    return realloc_fails ? NULL : __real_realloc(memory, size);
}

static struct rt_stream *stream_open(struct seen *seen)
{
    struct rt_stream *stream;
    struct rt_generation g = generation(10);
    struct rt_sink sink = {.context = seen, .on_output = on_output, .on_end = on_end};
    *seen = (struct seen){0};
    assert_int_equal(rt_stream_create(rt_service_tokenizer(service), &g, 10, &sink, NULL, &stream),
                     BT_OK);
    return stream;
}

static void test_stream_without_memory_fails(void **state)
{
    (void)state;
    static struct seen seen;
    struct rt_stream *stream = stream_open(&seen);
    struct rt_output_buffer buffer = {0};
    struct rt_service_metrics none = {0};
    struct rt_token token = {.index = 0, .token = script.ids[0]};
    bool stopped;
    realloc_fails = true;
    assert_int_equal(rt_stream_output(stream, &token, 1, 1, &buffer, &none, &stopped),
                     BT_ERR_NO_MEMORY);
    realloc_fails = false;
    assert_int_equal(seen.token_count, 0);
    rt_output_buffer_finish(&buffer);
    rt_stream_destroy(stream);
}

static void on_many(void *context, const char *text, size_t size, const Baton__V1__Token *tokens,
                    size_t token_count)
{
    (void)text;
    (void)size;
    assert_int_equal(token_count, 1);
    *(size_t *)context = tokens[0].n_top;
}

/* Fronts compare them in pairs. */
static void test_candidates_of_a_token_are_bounded(void **state)
{
    (void)state;
    static struct seen seen;
    size_t shown = 0;
    struct rt_service_metrics known = {0};
    rt_service_metrics_init(&known, metrics, "tiny");
    struct rt_stream *stream = stream_open(&seen);
    stream->sink = (struct rt_sink){.context = &shown, .on_output = on_many};
    static Baton__V1__TokenLogprob one;
    static Baton__V1__TokenLogprob *top[1000];
    for (size_t i = 0; i < 1000; i++) {
        top[i] = &one;
    }
    baton__v1__token_logprob__init(&one);
    Baton__V1__Token message = BATON__V1__TOKEN__INIT;
    message.token = script.ids[0];
    message.n_top = 1000;
    message.top = top;
    struct rt_output_buffer buffer = {0};
    struct rt_token token = {.index = 0, .token = script.ids[0], .payload = &message};
    bool stopped;
    assert_int_equal(rt_stream_output(stream, &token, 1, 1, &buffer, &known, &stopped), BT_OK);
    assert_int_equal(shown, RT_MAX_LOGPROBS);
    assert_int_equal(message.n_top, 1000); /* its owner frees them */
    rt_output_buffer_finish(&buffer);
    rt_stream_destroy(stream);
}

/* ---- looking in */

static double value_of(const char *text, const char *name)
{
    const char *line = strstr(text, name);
    assert_non_null(line);
    return strtod(line + strlen(name), NULL);
}

static void test_metrics_and_status(void **state)
{
    (void)state;
    static struct seen seen;
    join(&p0, "p0", false);
    join(&d0, "d0", true);
    Baton__V1__StepsRequest unknown = BATON__V1__STEPS_REQUEST__INIT;
    assert_int_equal(call("no/Such", &unknown.base, NULL), BT_ERR_NOT_FOUND);
    void *raw = zmq_socket(bt_loop_zmq(loop), ZMQ_DEALER);
    assert_int_equal(zmq_connect(raw, rt_service_rpc_endpoint(service)), 0);
    assert_int_equal(zmq_send(raw, "one part", 8, 0), 8);
    /* Parts of some KiB are kept. */
    static char text_twice[1 << 16];
    struct tokenized tokenized;
    for (size_t i = 0; i + 1 < sizeof text_twice; i++) {
        text_twice[i] = i % 7 == 6 ? ' ' : (char)('a' + i % 23);
    }
    for (int i = 0; i < 2; i++) {
        assert_int_equal(tokenize(text_twice, &tokenized), BT_OK);
        RUN_UNTIL(tokenized.over);
    }
    submit(&seen, 3);
    RUN_UNTIL(p0.run);
    fake_prefill_done(&p0);
    fake_decode_step(&d0, 0, 2, 0);
    RUN_UNTIL(seen.token_count == 2);
    Baton__V1__StatusResponse *status = rt_service_status(service);
    assert_int_equal(status->n_workers, 2);
    assert_int_equal(status->n_requests, 1);
    assert_string_equal(status->requests[0]->state, "decoding");
    assert_int_equal(status->requests[0]->generated_tokens, 2);
    assert_string_equal(status->requests[0]->decode_worker, "d0");
    assert_string_equal(status->model, "tiny");
    assert_int_equal(status->workers[0]->pid, getpid());
    baton__v1__status_response__free_unpacked(status, NULL);
    d0.pages_used = 25;
    fake_decode_step(&d0, 2, 1, BATON__V1__FINISH_REASON__FINISH_LENGTH);
    RUN_UNTIL(seen.ended);
    size_t size;
    RUN_UNTIL(bt_rpc_server_dropped(service->server) == 1);
    zmq_close(raw);
    char *text = rt_service_metrics(service, &size);
    assert_int_equal(size, strlen(text));
    const char *lines[] = {
        "vllm:prompt_tokens_total{model_name=\"tiny\"} 5\n",
        "vllm:generation_tokens_total{model_name=\"tiny\"} 3\n",
        "vllm:request_success_total{model_name=\"tiny\",finished_reason=\"length\"} 1\n",
        "vllm:time_to_first_token_seconds_count{model_name=\"tiny\"} 1\n",
        "vllm:inter_token_latency_seconds_count{model_name=\"tiny\"} 2\n",
        "vllm:num_requests_running{model_name=\"tiny\"} 0\n",
        "vllm:kv_cache_usage_perc{model_name=\"tiny\"} 0.25\n",
        "baton_rpc_dropped_messages_total{model_name=\"tiny\"} 1\n",
        "baton_tokenize_seconds_count{model_name=\"tiny\"} 2\n",
        "baton_tokenize_waiting{model_name=\"tiny\"} 0\n",
        "baton_tokenize_bytes{model_name=\"tiny\"} 0\n",
        "baton_kv_pushed_bytes_total{model_name=\"tiny\"} 4096\n",
        "baton_kv_hidden_bytes_total{model_name=\"tiny\"} 1024\n",
        "baton_worker_up{worker=\"d0\",role=\"decode\"} 1\n",
        "baton_rank_kv_utilisation{worker=\"d0\",role=\"decode\"} 0.25\n",
    };
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        if (!strstr(text, lines[i])) {
            fail_msg("no line '%s' in:\n%s", lines[i], text);
        }
    }
    assert_true(value_of(text, "baton_tokenize_cache_hits_total{model_name=\"tiny\"} ") > 0);
    assert_true(value_of(text, "baton_tokenize_cache_queries_total{model_name=\"tiny\"} ") >
                value_of(text, "baton_tokenize_cache_hits_total{model_name=\"tiny\"} "));
    assert_true(value_of(text, "baton_tokenize_cache_bytes{model_name=\"tiny\"} ") >=
                sizeof text_twice - 1); /* the text itself is kept */
    free(text);
}

int main(void)
{
    bt_log_init("test-router-service", BT_LOG_ERROR); /* losses and refusals are what it is about */
    const struct CMUnitTest tests[] = {
        TEST(test_generation),
        TEST(test_decode_worker_dies_in_mid_stream),
        TEST(test_prefill_worker_dies_during_the_run),
        TEST(test_the_rank_ends_it_before_prefill_is_heard),
        TEST(test_what_is_told_is_of_the_last_attempt),
        TEST(test_prefill_is_heard_after_some_tokens),
        TEST(test_the_first_token_ends_it),
        TEST(test_another_attempt_ends_at_the_rank_first),
        TEST(test_another_attempt_is_heard_first),
        TEST(test_another_attempt_after_tokens),
        TEST(test_more_cached_than_there_is),
        TEST(test_failures_of_a_worker_are_tried_again_then_told),
        TEST(test_stop_string_ends_text_and_work),
        TEST(test_eos_gives_no_text_but_counts),
        TEST(test_text_held_back_for_a_stop_string_comes_at_the_end),
        TEST(test_abandoned_request_is_cancelled_everywhere),
        TEST(test_deadline),
        TEST(test_refused_reserve_waits_for_pages),
        TEST(test_repeated_cancel_spares_the_next_reservation),
        TEST(test_preempted_reserves_in_full),
        TEST(test_steps_with_nonsense_leave_other_requests_alone),
        TEST(test_tokens_outside_the_vocabulary),
        TEST(test_limits_of_a_generation),
        TEST(test_limits_of_sampling),
        TEST(test_penalty_sends_the_prompt_to_the_rank),
        TEST(test_queue_is_bounded),
        TEST(test_stop_ends_streams_with_an_error),
        TEST(test_drain_ends_what_came_before),
        TEST(test_texts_and_deadlines),
        TEST(test_drain_does_not_wait_without_workers),
        TEST(test_stream_without_memory_fails),
        TEST(test_candidates_of_a_token_are_bounded),
        TEST(test_metrics_and_status),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
