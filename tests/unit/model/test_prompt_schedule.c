/* The scheduler alone: order, budget, and the bound on waiting that its header states. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/clock.h"
#include "common/base/random.h"
#include "common/model/prompt_schedule.h"

#define MAX_JOBS 4096

static void test_shortest_goes_first_and_budget_is_cut(void **state)
{
    (void)state;
    const struct bt_prompt_job jobs[] = {{1000, 0, 0}, {10, 0, 0}, {300, 100, 0}};
    const struct bt_prompt_limits limits = {512, 16, BT_PROMPT_AGEING_TOKENS_PER_S};
    struct bt_prompt_chunk chunks[16];
    assert_int_equal(bt_prompt_schedule(jobs, 3, &limits, chunks), 3);
    const struct bt_prompt_chunk expected[] = {{1, 0, 10}, {2, 100, 300}, {0, 0, 302}};
    assert_memory_equal(chunks, expected, sizeof(expected));
}

static void test_at_most_max_jobs_share_an_iteration(void **state)
{
    (void)state;
    const struct bt_prompt_job jobs[] = {{3, 0, 0}, {2, 0, 0}, {1, 0, 0}};
    const struct bt_prompt_limits limits = {512, 2, 0};
    struct bt_prompt_chunk chunks[2];
    assert_int_equal(bt_prompt_schedule(jobs, 3, &limits, chunks), 2);
    assert_int_equal(chunks[0].job, 2);
    assert_int_equal(chunks[1].job, 1);
    assert_int_equal(bt_prompt_schedule(jobs, 0, &limits, chunks), 0);
}

static void test_ties_go_to_the_earlier_then_the_lower(void **state)
{
    (void)state;
    const struct bt_prompt_job jobs[] = {{5, 0, 30}, {5, 0, 20}, {5, 0, 20}};
    const struct bt_prompt_limits limits = {64, 3, 0};
    struct bt_prompt_chunk chunks[3];
    assert_int_equal(bt_prompt_schedule(jobs, 3, &limits, chunks), 3);
    assert_int_equal(chunks[0].job, 1);
    assert_int_equal(chunks[1].job, 2);
    assert_int_equal(chunks[2].job, 0);
}

static void test_age_overtakes_length(void **state)
{
    (void)state;
    /* 1000 tokens more are worth half a second at 2000 tokens/s. */
    struct bt_prompt_job jobs[] = {{1100, 0, 0}, {100, 0, BT_NS_PER_S / 2 - BT_NS_PER_MS}};
    const struct bt_prompt_limits limits = {64, 1, 2000};
    struct bt_prompt_chunk chunk;
    bt_prompt_schedule(jobs, 2, &limits, &chunk);
    assert_int_equal(chunk.job, 1);
    jobs[1].arrival_ns = BT_NS_PER_S / 2 + BT_NS_PER_MS;
    bt_prompt_schedule(jobs, 2, &limits, &chunk);
    assert_int_equal(chunk.job, 0);
}

static void test_clock_of_a_machine_that_runs_for_years(void **state)
{
    (void)state;
    const int64_t start = INT64_MAX - 3600 * BT_NS_PER_S;
    const struct bt_prompt_job jobs[] = {{16384, 0, start}, {1, 0, start + 3599 * BT_NS_PER_S}};
    const struct bt_prompt_limits limits = {64, 1, BT_PROMPT_MAX_AGEING_TOKENS_PER_S};
    struct bt_prompt_chunk chunk;
    bt_prompt_schedule(jobs, 2, &limits, &chunk);
    assert_int_equal(chunk.job, 0);
}

/* A worker of constant speed under random arrivals. */
struct world {
    struct bt_prompt_job jobs[MAX_JOBS];
    uint64_t finished_iteration[MAX_JOBS]; /* 0: not yet */
    uint64_t arrived_iteration[MAX_JOBS];
    uint32_t live[MAX_JOBS]; /* indices of unfinished jobs, in order of arrival */
    uint32_t job_count, live_count;
    uint64_t iteration;
    uint64_t trace; /* hash of all decisions */
};

#define ITERATION_NS (50 * BT_NS_PER_MS)

static void world_arrive(struct world *world, uint32_t tokens)
{
    uint32_t job = world->job_count++;
    assert_true(job < MAX_JOBS);
    world->jobs[job] = (struct bt_prompt_job){tokens, 0, (int64_t)world->iteration * ITERATION_NS};
    world->arrived_iteration[job] = world->iteration;
    world->live[world->live_count++] = job;
}

static void world_step(struct world *world, const struct bt_prompt_limits *limits)
{
    struct bt_prompt_job live[MAX_JOBS];
    struct bt_prompt_chunk chunks[64];
    for (uint32_t i = 0; i < world->live_count; i++) {
        live[i] = world->jobs[world->live[i]];
    }
    uint32_t count = bt_prompt_schedule(live, world->live_count, limits, chunks);
    uint32_t used = 0;
    world->iteration++;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t job = world->live[chunks[i].job];
        assert_int_equal(chunks[i].begin, world->jobs[job].computed);
        assert_true(chunks[i].end > chunks[i].begin && chunks[i].end <= world->jobs[job].tokens);
        world->jobs[job].computed = chunks[i].end;
        used += chunks[i].end - chunks[i].begin;
        world->trace = world->trace * 0x9E3779B97F4A7C15u + job * 65537u + chunks[i].end;
        if (world->jobs[job].computed == world->jobs[job].tokens) {
            world->finished_iteration[job] = world->iteration;
        }
    }
    assert_true(used <= limits->budget_tokens);
    uint32_t kept = 0;
    for (uint32_t i = 0; i < world->live_count; i++) {
        if (world->finished_iteration[world->live[i]] == 0) {
            world->live[kept++] = world->live[i];
        }
    }
    world->live_count = kept;
}

/* The bound of prompt_schedule.h for one job, counted from its own arrival. */
static uint64_t bound_of(const struct world *world, uint32_t job,
                         const struct bt_prompt_limits *limits)
{
    const struct bt_prompt_job *subject = &world->jobs[job];
    int64_t until_ns =
        subject->arrival_ns + (int64_t)subject->tokens * BT_NS_PER_S / limits->ageing_tokens_per_s;
    uint64_t tokens = 0, jobs = 0;
    for (uint32_t i = 0; i < world->job_count; i++) {
        bool over = world->finished_iteration[i] != 0 &&
                    world->finished_iteration[i] <= world->arrived_iteration[job];
        if (!over && world->jobs[i].arrival_ns <= until_ns) {
            tokens += world->jobs[i].tokens;
            jobs++;
        }
    }
    return (tokens + limits->budget_tokens - 1) / limits->budget_tokens +
           (jobs + limits->max_jobs - 1) / limits->max_jobs;
}

static void check_bounds(const struct world *world, const struct bt_prompt_limits *limits)
{
    for (uint32_t i = 0; i < world->job_count; i++) {
        if (world->finished_iteration[i] != 0) {
            uint64_t took = world->finished_iteration[i] - world->arrived_iteration[i];
            assert_true(took <= bound_of(world, i, limits));
        }
    }
}

static uint64_t run_random(struct world *world, uint64_t seed)
{
    memset(world, 0, sizeof(*world));
    const struct bt_prompt_limits limits = {64 + (uint32_t)(bt_random_u64(seed, 0, 0) % 512),
                                            1 + (uint32_t)(bt_random_u64(seed, 0, 1) % 16),
                                            500 + (uint32_t)(bt_random_u64(seed, 0, 2) % 8000)};
    for (uint32_t i = 0; i < 300; i++) {
        uint64_t draw = bt_random_u64(seed, i + 1, 0);
        for (uint32_t arrivals = draw % 4; arrivals > 0; arrivals--) {
            uint64_t size = bt_random_u64(seed, i + 1, arrivals);
            world_arrive(world, 1 + (uint32_t)(size % (size >> 32 & 7 ? 60 : 6000)));
        }
        world_step(world, &limits);
    }
    while (world->live_count > 0) {
        world_step(world, &limits);
    }
    check_bounds(world, &limits);
    return world->trace;
}

static void test_bound_holds_and_decisions_repeat(void **state)
{
    (void)state;
    static struct world world;
    for (uint64_t seed = 1; seed <= 12; seed++) {
        printf("seed %d\n", (int)seed);
        uint64_t trace = run_random(&world, seed);
        assert_true(run_random(&world, seed) == trace);
    }
}

/* Short prompts that arrive faster than they can be computed, for ever: the long one still ends. */
static void test_stream_of_short_prompts_starves_nobody(void **state)
{
    (void)state;
    static struct world world;
    memset(&world, 0, sizeof(world));
    const struct bt_prompt_limits limits = {128, 4, 2000};
    world_arrive(&world, 4000);
    for (uint32_t i = 0; i < 1000 && world.finished_iteration[0] == 0; i++) {
        world_arrive(&world, 50);
        world_arrive(&world, 50);
        world_arrive(&world, 50);
        world_step(&world, &limits);
    }
    assert_true(world.finished_iteration[0] != 0);
    assert_true(world.finished_iteration[0] <= bound_of(&world, 0, &limits));
    /* And short ones were not simply served last. */
    assert_true(world.finished_iteration[1] == 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shortest_goes_first_and_budget_is_cut),
        cmocka_unit_test(test_at_most_max_jobs_share_an_iteration),
        cmocka_unit_test(test_ties_go_to_the_earlier_then_the_lower),
        cmocka_unit_test(test_age_overtakes_length),
        cmocka_unit_test(test_clock_of_a_machine_that_runs_for_years),
        cmocka_unit_test(test_bound_holds_and_decisions_repeat),
        cmocka_unit_test(test_stream_of_short_prompts_starves_nobody),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
