/*
 * The core when memory runs out: allocation number `fails_from` and all after it fail, for every
 * number that a scenario reaches. Whatever is refused is refused with a status, and what was
 * accepted ends exactly once.
 */
#include "tests/unit/router/core_driver.h"

#define REQUESTS 200 /* more than the action queue begins with */

static long allocations, fails_from = -1;

static bool fails(void)
{
    return fails_from >= 0 && allocations++ >= fails_from;
}

void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *memory, size_t size);
char *__real_strdup(const char *text);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *memory, size_t size);
char *__wrap_strdup(const char *text);

void *__wrap_calloc(size_t count, size_t size)
{
    return fails() ? NULL : __real_calloc(count, size);
}

void *__wrap_realloc(void *memory, size_t size)
{
    return fails() ? NULL : __real_realloc(memory, size);
}

char *__wrap_strdup(const char *text)
{
    return fails() ? NULL : __real_strdup(text);
}

static bool accepted[REQUESTS + 1], ended[REQUESTS + 1];
static uint32_t no_memory_ends;

/* Grants reservations, fails every third run, decodes the others. */
static void act(const struct rt_action *action)
{
    uint64_t id = action->request;
    assert_true(id >= 1 && id <= REQUESTS && !ended[id]);
    switch (action->kind) {
    case RT_ACTION_RESERVE:
        rt_core_reserved(core, id, action->attempt, action->decode, BT_OK, NULL,
                         id * 100 + action->attempt, now);
        break;
    case RT_ACTION_PREFILL:
        first_token(action, 100);
        run_ended(action, id % 3 == 0 ? BT_ERR_INTERNAL : BT_OK);
        decoded(action, 0, 5, false);
        decoded(action, 5, 5, true);
        break;
    case RT_ACTION_END:
        ended[id] = true;
        assert_true(accepted[id]);
        if (action->finish == RT_FINISH_ERROR) {
            assert_non_null(action->text);
            no_memory_ends += action->status == BT_ERR_NO_MEMORY;
        }
        break;
    default:
        break;
    }
}

static void act_all(void)
{
    struct rt_action action;
    while (rt_core_next_action(core, &action)) {
        act(&action);
    }
}

/* Returns how many requests were refused for want of memory. */
static uint32_t scenario(long from)
{
    struct rt_core_options options = default_options;
    options.queue_capacity = REQUESTS;
    options.max_attempts = 2;
    core_open(&options);
    worker_add("p0", RT_ROLE_PREFILL, 0);
    rt_worker_ref d = worker_add("d0", RT_ROLE_DECODE, 300);
    allocations = 0;
    fails_from = from;
    uint32_t refused = 0;
    for (uint64_t id = 1; id <= REQUESTS; id++) {
        struct rt_request_spec spec = {.id = id,
                                       .prompt_tokens = 60,
                                       .max_tokens = 10,
                                       .arrival_ns = now,
                                       .deadline_ns = now + 1000 * MS};
        struct bt_error error;
        enum bt_status status = rt_core_submit(core, &spec, now, &error, NULL);
        accepted[id] = status == BT_OK;
        ended[id] = false;
        assert_true(status == BT_OK || status == BT_ERR_NO_MEMORY);
        refused += status != BT_OK;
        if (id % 50 == 0) {
            struct rt_load load = {.pages_total = 300, .pages_free = 300};
            act_all();
            rt_core_worker_load(core, d, &load);
        }
    }
    for (int i = 0; i < 100 && rt_core_queued(core) > 0; i++) {
        now += 60 * MS;
        rt_core_tick(core, now);
        act_all();
    }
    rt_core_worker_lost(core, d, "killed", now);
    now += 2000 * MS;
    rt_core_tick(core, now);
    act_all();
    fails_from = -1;
    for (uint64_t id = 1; id <= REQUESTS; id++) {
        assert_int_equal(ended[id], accepted[id]);
    }
    core_close(NULL);
    return refused;
}

static void test_every_allocation_may_fail(void **state)
{
    (void)state;
    assert_int_equal(scenario(1000000), 0);
    long count = allocations;
    uint32_t refused = 0;
    no_memory_ends = 0;
    for (long from = 0; from < count; from++) {
        refused += scenario(from) > 0;
    }
    assert_true(count > 200);
    assert_true(refused > 0);
    assert_true(no_memory_ends > 0);
}

/* Nothing is left to be allocated for the ends of what was accepted. */
static void end_all_without_memory(uint32_t tokens_before)
{
    struct rt_core_options options = default_options;
    options.queue_capacity = REQUESTS;
    options.prefill_depth_ns = BT_NEVER_NS;
    core_open(&options);
    worker_add("p0", RT_ROLE_PREFILL, 0);
    rt_worker_ref d = worker_add("d0", RT_ROLE_DECODE, 1000);
    for (uint64_t id = 1; id <= REQUESTS; id++) {
        submit(id, 60, 10);
        accepted[id] = true;
        ended[id] = false;
    }
    struct rt_action action;
    uint32_t running = 0;
    while (rt_core_next_action(core, &action)) {
        running += action.kind == RT_ACTION_PREFILL;
        if (action.kind == RT_ACTION_RESERVE) {
            rt_core_reserved(core, action.request, action.attempt, d, BT_OK, NULL, action.request,
                             now);
        }
    }
    assert_int_equal(running, REQUESTS);
    for (uint64_t id = 1; id <= REQUESTS; id++) { /* tokens do not take the room of the ends */
        for (uint32_t i = 0; i < tokens_before; i++) {
            struct rt_token token = {.index = i, .token = 100 + i};
            rt_core_decoded(core, d, id, id, &token, 1, false, RT_FINISH_ERROR, BT_OK, NULL, now);
        }
    }
    allocations = 0;
    fails_from = 0;
    for (uint64_t id = 1; id <= REQUESTS; id++) {
        rt_core_finish(core, id, RT_FINISH_CANCELLED, now);
    }
    uint32_t cancels = 0;
    while (rt_core_next_action(core, &action)) {
        cancels += action.kind == RT_ACTION_CANCEL_DECODE;
        ended[action.request] |= action.kind == RT_ACTION_END;
    }
    fails_from = -1;
    assert_int_equal(cancels, running);
    for (uint64_t id = 1; id <= REQUESTS; id++) {
        assert_true(ended[id]);
    }
    core_close(NULL);
}

static void test_the_end_of_an_accepted_request_needs_no_memory(void **state)
{
    (void)state;
    end_all_without_memory(0);
    end_all_without_memory(5);
}

#define TEST(name) cmocka_unit_test_teardown(name, core_close)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_every_allocation_may_fail),
        TEST(test_the_end_of_an_accepted_request_needs_no_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
