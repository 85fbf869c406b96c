/* Steps of the decode engine allocate nothing, whatever a request's sampling asks for. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "decode-node/engine.h"
#include "decode-node/reservation.h"

#define MAX_TOKENS 100
#define PAGES      4

/* The linker sends every allocation of this program's own objects here. */
static atomic_uint allocations;

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *block, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
int __real_posix_memalign(void **ret_block, size_t alignment, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *block, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);
int __wrap_posix_memalign(void **ret_block, size_t alignment, size_t size);

void *__wrap_malloc(size_t size)
{
    atomic_fetch_add(&allocations, 1);
    return __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
    atomic_fetch_add(&allocations, 1);
    return __real_calloc(count, size);
}

void *__wrap_realloc(void *block, size_t size)
{
    atomic_fetch_add(&allocations, 1);
    return __real_realloc(block, size);
}

void *__wrap_aligned_alloc(size_t alignment, size_t size)
{
    atomic_fetch_add(&allocations, 1);
    return __real_aligned_alloc(alignment, size);
}

int __wrap_posix_memalign(void **ret_block, size_t alignment, size_t size)
{
    atomic_fetch_add(&allocations, 1);
    return __real_posix_memalign(ret_block, alignment, size);
}

/* Hot enough that hardly a token comes twice: every one is new to the penalties' history. */
static void reserve(const struct bt_model *model, struct dc_reservation *ret_reservation)
{
    uint32_t prompt[] = {5, 6, 7};
    struct bt_error error;
    Baton__V1__SamplingParams sampling = BATON__V1__SAMPLING_PARAMS__INIT;
    Baton__V1__ReserveRequest message = BATON__V1__RESERVE_REQUEST__INIT;
    const struct dc_reservation_limits limits = {.vocab_size = model->config.vocab_size,
                                                 .max_model_len = PAGES * BT_PAGE_TOKENS,
                                                 .expected_output_tokens = MAX_TOKENS};
    sampling.seed = 3;
    sampling.temperature = 2;
    sampling.top_p = 1;
    sampling.repetition_penalty = 1.5f;
    sampling.presence_penalty = 1;
    sampling.frequency_penalty = 2;
    sampling.logprobs = 20;
    sampling.ignore_eos = true;
    sampling.max_tokens = MAX_TOKENS;
    message.request_id = message.router_incarnation = 1;
    message.prompt = prompt;
    message.n_prompt = message.prompt_tokens = 3;
    message.sampling = &sampling;
    if (dc_reservation_init(ret_reservation, &message, &limits, &error) != BT_OK)
        fail_msg("%s", error.text);
    assert_non_null(ret_reservation->history);
}

static uint32_t distinct(const uint32_t *tokens, uint32_t count)
{
    uint32_t found = 0;
    for (uint32_t i = 0; i < count; i++) {
        bool again = false;
        for (uint32_t j = 0; j < i; j++)
            again |= tokens[j] == tokens[i];
        found += !again;
    }
    return found;
}

static void test_steps_with_penalties(void **state)
{
    (void)state;
    struct bt_error error;
    struct bt_model *model;
    struct dc_engine *engine;
    struct dc_step step;
    struct dc_reservation reservation;
    uint32_t pages[PAGES] = {0, 1, 2, 3}, tokens[MAX_TOKENS], count = 0;
    const struct bt_model_options load = {.dir = TINY_MODEL};
    assert_int_equal(bt_model_load(&load, &error, &model), BT_OK);
    struct bt_kv_layout layout = bt_model_kv_layout(model, BT_F32);
    void *pool = calloc(1, bt_kv_pool_bytes(&layout, PAGES)); /* as if the prompt had no KV */
    const struct dc_engine_options options = {.model = model,
                                              .layout = layout,
                                              .kv_pool = pool,
                                              .pool_pages = PAGES,
                                              .max_num_seqs = 1,
                                              .max_sequences = 1,
                                              .max_model_len = PAGES * BT_PAGE_TOKENS};
    assert_int_equal(dc_engine_create(&options, &error, &engine), BT_OK);
    assert_true(dc_step_init(&step, 1));
    reserve(model, &reservation);
    struct dc_sequence sequence = {.request = 1,
                                   .epoch = 1,
                                   .prompt_tokens = 3,
                                   .pages = pages,
                                   .page_count = PAGES,
                                   .page_capacity = PAGES,
                                   .sampling = &reservation.sampling,
                                   .history = reservation.history,
                                   .last = {.token = 9}};
    dc_engine_add(engine, &sequence);
    assert_true(atomic_load(&allocations) > 0); /* they are counted */
    uint32_t before = atomic_load(&allocations);
    enum dc_finish finish = DC_RUNNING;
    while (finish == DC_RUNNING) {
        dc_engine_step(engine, &step);
        for (uint32_t i = 0; i < step.entry_count; i++) {
            if (step.entries[i].has_token && count < MAX_TOKENS)
                tokens[count++] = step.entries[i].sample.token;
            finish = step.entries[i].finish;
        }
    }
    assert_int_equal(atomic_load(&allocations), before);
    assert_int_equal(finish, DC_FINISH_LENGTH);
    assert_int_equal(count, MAX_TOKENS);
    assert_true(distinct(tokens, count) > MAX_TOKENS / 2);
    dc_reservation_finish(&reservation);
    dc_step_finish(&step);
    dc_engine_destroy(engine);
    bt_model_destroy(model);
    free(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_steps_with_penalties),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
