/* The step thread under a control thread that adds, stops and grows at random: every sequence
 * comes back once, with the tokens it has alone. */
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/random.h"
#include "decode-node/stepper.h"
#include "tests/late-device/late_device.h"

#define SEQUENCES  24
#define POOL_PAGES (SEQUENCES * 3)
#define MAX_TOKENS 150

struct subject {
    uint32_t pages[3];
    struct bt_sampling sampling;
    struct dc_sequence sequence;
    uint32_t tokens[MAX_TOKENS];
    uint32_t token_count;
    uint32_t granted; /* pages */
    bool stopped;
    enum dc_finish finish;
};

struct bench {
    struct bt_model *model, view;
    struct bt_device *late; /* NULL: the CPU */
    void *pool;
    struct dc_engine *engine;
    struct subject subjects[SEQUENCES];
    uint32_t back;
};

static void bench_open(struct bench *bench, bool late)
{
    struct bt_error error = {0};
    memset(bench, 0, sizeof(*bench));
    const struct bt_model_options load = {.dir = TINY_MODEL};
    if (bt_model_load(&load, &error, &bench->model) != BT_OK) {
        fail_msg("%s", error.text);
    }
    bench->view = *bench->model;
    if (late) {
        bench->view.device = bench->late = late_device_create(bench->model->kernels);
        bench->view.kernels = bench->late->kernels;
    }
    struct bt_kv_layout layout = bt_model_kv_layout(bench->model, BT_F32);
    bench->pool = calloc(1, bt_kv_pool_bytes(&layout, POOL_PAGES));
    const struct dc_engine_options options = {
        .model = &bench->view,
        .layout = layout,
        .kv_pool = bench->pool,
        .pool_pages = POOL_PAGES,
        .max_num_seqs = 6,
        .max_sequences = SEQUENCES,
        .max_model_len = 192,
    };
    assert_int_equal(dc_engine_create(&options, &error, &bench->engine), BT_OK);
}

static void bench_close(struct bench *bench)
{
    dc_engine_destroy(bench->engine);
    late_device_destroy(bench->late);
    bt_model_destroy(bench->model);
    free(bench->pool);
}

/* A prompt of one token whose KV is all zero; all sequences are the same but for their length. */
static struct dc_sequence *subject_init(struct subject *subject, uint32_t index)
{
    subject->pages[0] = index;
    subject->sampling = (struct bt_sampling){.seed = 1,
                                             .top_p = 1,
                                             .repetition_penalty = 1,
                                             .logprobs = -1,
                                             .ignore_eos = true,
                                             .max_tokens = 10 + index * 6};
    subject->sequence = (struct dc_sequence){
        .request = index + 1,
        .epoch = index + 100,
        .prompt_tokens = 1,
        .pages = subject->pages,
        .page_count = 1,
        .page_capacity = 3,
        .sampling = &subject->sampling,
        .last = {.token = 17},
        .user = subject,
    };
    return &subject->sequence;
}

static void take_entries(struct bench *bench, const struct dc_step *step)
{
    for (uint32_t i = 0; i < step->entry_count; i++) {
        const struct dc_entry *entry = &step->entries[i];
        struct subject *subject = entry->user;
        assert_int_equal(subject->finish, DC_RUNNING);
        if (entry->has_token) {
            assert_int_equal(entry->index, subject->token_count);
            subject->tokens[subject->token_count++] = entry->sample.token;
        }
        subject->finish = entry->finish;
        bench->back += entry->finish != DC_RUNNING;
    }
}

static struct dc_step *wait_step(struct dc_stepper *stepper)
{
    struct dc_step *step;
    struct pollfd poller = {.fd = bt_queue_fd(dc_stepper_steps(stepper)), .events = POLLIN};
    assert_int_equal(poll(&poller, 1, 60000), 1);
    assert_true(bt_queue_try_pop(dc_stepper_steps(stepper), &step));
    return step;
}

static enum bt_status stepper_open(const struct bench *bench, struct bt_error *error,
                                   struct dc_stepper **ret_stepper)
{
    const struct dc_stepper_options options = {.engine = bench->engine, .max_sequences = SEQUENCES};
    return dc_stepper_create(&options, error, ret_stepper);
}

static void random_commands(bool late)
{
    static struct bench bench;
    struct dc_stepper *stepper;
    struct bt_error error;
    bench_open(&bench, late);
    assert_int_equal(stepper_open(&bench, &error, &stepper), BT_OK);
    uint32_t next = 1;
    dc_stepper_add(stepper, subject_init(&bench.subjects[0], 0));
    for (uint64_t turn = 0; bench.back < SEQUENCES; turn++) {
        struct dc_step *step = wait_step(stepper);
        take_entries(&bench, step);
        for (uint32_t i = 0; i < step->wish_count; i++) {
            struct subject *subject = &bench.subjects[step->wishes[i].request - 1];
            /* A wish and a stall of one page come apart: only the first is granted. */
            if (!step->wishes[i].stalled && subject->finish == DC_RUNNING) {
                uint32_t page =
                    ++subject->granted * SEQUENCES + (uint32_t)step->wishes[i].request - 1;
                assert_true(subject->granted < 3);
                dc_stepper_grow(stepper, step->wishes[i].request, step->wishes[i].epoch, page);
            }
        }
        for (uint64_t adds = bt_random_u64(3, turn, 0) % 3; adds > 0 && next < SEQUENCES; adds--) {
            dc_stepper_add(stepper, subject_init(&bench.subjects[next], next));
            next++;
        }
        uint32_t victim = (uint32_t)(bt_random_u64(3, turn, 1) % SEQUENCES);
        if (turn % 16 == 5 && victim < next && !bench.subjects[victim].stopped) {
            bench.subjects[victim].stopped = true;
            dc_stepper_stop(stepper, victim + 1, victim + 100, DC_FINISH_CANCELLED);
        }
        dc_stepper_return(stepper, step);
        if (next < SEQUENCES && bench.back == next) {
            dc_stepper_add(stepper, subject_init(&bench.subjects[next], next));
            next++;
        }
    }
    const struct subject *longest = &bench.subjects[SEQUENCES - 1];
    for (uint32_t i = 0; i < SEQUENCES; i++) {
        const struct subject *subject = &bench.subjects[i];
        assert_true(subject->finish == DC_FINISH_LENGTH || subject->stopped);
        if (subject->finish == DC_FINISH_LENGTH) {
            assert_int_equal(subject->token_count, subject->sampling.max_tokens);
        }
        uint32_t common = subject->token_count < longest->token_count ? subject->token_count
                                                                      : longest->token_count;
        assert_memory_equal(subject->tokens, longest->tokens, common * sizeof(uint32_t));
    }
    dc_stepper_destroy(stepper);
    bench_close(&bench);
}

static void test_random_commands(void **state)
{
    (void)state;
    random_commands(false);
}

/* Steps are begun before the last one is over. */
static void test_random_commands_on_a_device(void **state)
{
    (void)state;
    random_commands(true);
}

/* The step thread says why, and ends. */
static void test_a_device_breaks(void **state)
{
    (void)state;
    static struct bench bench;
    struct dc_stepper *stepper;
    struct bt_error error;
    bench_open(&bench, true);
    late_device_break(bench.late);
    assert_int_equal(stepper_open(&bench, &error, &stepper), BT_OK);
    dc_stepper_add(stepper, subject_init(&bench.subjects[0], 0));
    struct pollfd poller = {.fd = dc_stepper_notice_fd(stepper), .events = POLLIN};
    assert_int_equal(poll(&poller, 1, 60000), 1);
    assert_true(dc_stepper_take_notices(stepper) & DC_NOTICE_FAILED);
    assert_non_null(strstr(dc_stepper_error(stepper), "the device broke"));
    dc_stepper_destroy(stepper);
    bench_close(&bench);
}

/* A control thread that takes nothing stops the step thread, and can still end it. */
static void test_backpressure(void **state)
{
    (void)state;
    static struct bench bench;
    struct dc_stepper *stepper;
    struct bt_error error;
    bench_open(&bench, false);
    assert_int_equal(stepper_open(&bench, &error, &stepper), BT_OK);
    struct dc_sequence *sequence = subject_init(&bench.subjects[0], 0);
    bench.subjects[0].sampling.max_tokens = 60;
    dc_stepper_add(stepper, sequence);
    struct dc_step *held[4];
    for (int i = 0; i < 4; i++) {
        held[i] = wait_step(stepper);
        take_entries(&bench, held[i]);
    }
    struct pollfd poller = {.fd = bt_queue_fd(dc_stepper_steps(stepper)), .events = POLLIN};
    assert_int_equal(poll(&poller, 1, 50), 0);
    uint32_t tokens = bench.subjects[0].token_count;
    dc_stepper_return(stepper, held[0]);
    take_entries(&bench, wait_step(stepper));
    assert_int_equal(bench.subjects[0].token_count, tokens + 1);
    /* A sequence that runs is stopped with the next step. */
    dc_stepper_stop(stepper, 1, 100, DC_FINISH_CANCELLED);
    dc_stepper_return(stepper, held[1]);
    take_entries(&bench, wait_step(stepper));
    assert_int_equal(bench.subjects[0].finish, DC_FINISH_CANCELLED);
    assert_int_equal(bench.subjects[0].token_count, tokens + 1);
    dc_stepper_destroy(stepper);
    bench_close(&bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_commands),
        cmocka_unit_test(test_random_commands_on_a_device),
        cmocka_unit_test(test_a_device_breaks),
        cmocka_unit_test(test_backpressure),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
