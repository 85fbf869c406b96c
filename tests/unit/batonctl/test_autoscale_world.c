/* The autoscaler in clusters that are not there: it meets the targets, comes down, and does not
 * flap. Bounds come from queueing theory and from the policy's own delays. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "common/base/clock.h"
#include "tests/unit/batonctl/autoscale_world.h"

static uint64_t seed;

/* 0.4 s of prefill; 20 ms a step and 1 ms a sequence; 100 tokens; 40 places. A decode worker holds
 * the 50 ms up to 30 sequences, which is 30 / (99 * 0.05) = 6 requests/s. */
static struct world_spec usual(double (*rate)(double))
{
    struct world_spec spec = {.seed = seed,
                              .rate = rate,
                              .prefill_s = 0.4,
                              .prefill_spread = 0.3,
                              .fixed_s = 0.02,
                              .sequence_s = 0.001,
                              .places = 40,
                              .output = 100,
                              .cold_s = 30,
                              .warm_s = 30,
                              .slow = 3,
                              .workers = {1, 1}};
    ctl_autoscale_policy_init(&spec.policy);
    spec.policy.ttft_s = 1.5;
    spec.policy.tpot_s = 0.05;
    spec.policy.most[0] = spec.policy.most[1] = 24;
    return spec;
}

static void assert_met(const struct world *world, const char *when)
{
    double ttft = (double)world->ttft_missed / (double)world->arrived;
    double tpot = (double)world->tpot_missed / (double)world->finished;
    if (ttft > 0.1 || tpot > 0.1) {
        fail_msg("%s: %.1f%% and %.1f%% missed with %u:%u (seed %llu)", when, ttft * 100,
                 tpot * 100, world->counts[0], world->counts[1], (unsigned long long)seed);
    }
}

static void assert_between(const struct world *world, int role, uint32_t least, uint32_t most)
{
    if (world->counts[role] < least || world->counts[role] > most) {
        fail_msg("role %d has %u workers at %.0f s, not %u to %u (seed %llu)", role,
                 world->counts[role], world->time_s, least, most, (unsigned long long)seed);
    }
}

static void assert_changes(const struct world *world, double since_s, uint32_t most)
{
    uint32_t count = world_changes_since(world, since_s);
    if (count > most) {
        for (uint32_t i = 0; i < world->change_count; i++) {
            fprintf(stderr, "%.0f s: %u:%u\n", world->changes[i].time_s,
                    world->changes[i].workers[0], world->changes[i].workers[1]);
        }
        fail_msg("%u changes since %.0f s, not %u at most (seed %llu)", count, since_s, most,
                 (unsigned long long)seed);
    }
}

static double rate_12(double time_s)
{
    (void)time_s;
    return 12;
}

/* 12 requests/s are 4.8 prefill workers without a pause, and 2 decode workers at the edge. */
static void test_steady(void **state)
{
    (void)state;
    struct world_spec spec = usual(rate_12);
    struct world world;
    world_create(&world, &spec);
    world_run(&world, 2400);
    assert_changes(&world, 0, 14);
    world_run(&world, 6000);
    assert_met(&world, "when it has settled");
    assert_between(&world, 0, 5, 9);
    assert_between(&world, 1, 2, 4);
    assert_changes(&world, 2400, 3);
    world_destroy(&world);
}

static double rate_step(double time_s)
{
    return time_s < 1200 || time_s > 4200 ? 2 : 12;
}

static void test_step_up_and_down(void **state)
{
    (void)state;
    struct world_spec spec = usual(rate_step);
    struct world world;
    world_create(&world, &spec);
    world_run(&world, 1200);
    assert_between(&world, 0, 1, 3);
    assert_between(&world, 1, 1, 1);
    world_run(&world, 2400);
    world_run(&world, 4200);
    assert_met(&world, "up");
    world_run(&world, 9000);
    assert_between(&world, 0, 1, 3);
    assert_between(&world, 1, 1, 1);
    assert_changes(&world, 0, 30);
    world_run(&world, 10000);
    assert_met(&world, "down");
    world_destroy(&world);
}

static double rate_ramp(double time_s)
{
    return time_s < 5400 ? 1 + 14 * time_s / 5400 : fmax(1, 15 - 14 * (time_s - 5400) / 5400);
}

static void test_ramp(void **state)
{
    (void)state;
    struct world_spec spec = usual(rate_ramp);
    struct world world;
    world_create(&world, &spec);
    world_run(&world, 600);
    world_run(&world, 12600);
    assert_met(&world, "on the ramp");
    assert_between(&world, 0, 1, 3);
    assert_between(&world, 1, 1, 1);
    assert_changes(&world, 0, 40); /* 8 workers up and down, one at a time, and a few more */
    world_destroy(&world);
}

static double rate_day(double time_s)
{
    return 7 - 5.5 * cos(2 * M_PI * time_s / 7200);
}

static void test_days(void **state)
{
    (void)state;
    struct world_spec spec = usual(rate_day);
    struct world world;
    world_create(&world, &spec);
    world_run(&world, 1200);
    world_run(&world, 21600);
    assert_met(&world, "in three days");
    assert_changes(&world, 0, 90);
    /* Cheaper than the fleet of the busiest hour all day long: 12.5/s need 6:3 at least. */
    assert_true(world.worker_s / (21600 - 1200) < 9);
    world_destroy(&world);
}

static double rate_noise(double time_s)
{
    double level = (double)((uint64_t)(time_s / 20) * 2654435761u % 1000) / 1000;
    return 9 * (0.85 + 0.3 * level);
}

static void test_noise(void **state)
{
    (void)state;
    struct world_spec spec = usual(rate_noise);
    struct world world;
    world_create(&world, &spec);
    world_run(&world, 3000);
    world_run(&world, 12000);
    assert_met(&world, "in noise");
    assert_changes(&world, 3000, 5);
    world_destroy(&world);
}

static double rate_bursts(double time_s)
{
    return fmod(time_s, 600) < 90 ? 12 : 3;
}

/* A burst is over before workers have come and gone; what comes after the first ones is rare. */
static void test_bursts(void **state)
{
    (void)state;
    struct world_spec spec = usual(rate_bursts);
    struct world world;
    world_create(&world, &spec);
    world_run(&world, 14400);
    assert_changes(&world, 0, 36);
    assert_changes(&world, 7200, 12);
    world_destroy(&world);
}

static double rate_short(double time_s)
{
    return time_s < 3000 ? 5 : 0;
}

static void test_silence(void **state)
{
    (void)state;
    struct world_spec spec = usual(rate_short);
    struct world world;
    spec.workers[0] = 10;
    spec.workers[1] = 8;
    world_create(&world, &spec);
    world_run(&world, 3000);
    assert_met(&world, "with too many");
    world_run(&world, 10800);
    assert_between(&world, 0, 1, 1);
    assert_between(&world, 1, 1, 1);
    assert_int_equal(world.arrived, 0);
    world_destroy(&world);
}

static double rate_2(double time_s)
{
    (void)time_s;
    return 2;
}

/* A step takes nearly as long as the target however few sequences there are: more workers don't
 * help, and they are not kept. */
static void test_floor_near_the_target(void **state)
{
    (void)state;
    struct world_spec spec = usual(rate_2);
    struct world world;
    spec.fixed_s = 0.042;
    spec.sequence_s = 0.00005;
    spec.workers[1] = 6;
    world_create(&world, &spec);
    world_run(&world, 5400);
    assert_between(&world, 1, 1, 2);
    world_run(&world, 9000);
    assert_met(&world, "near the floor");
    assert_changes(&world, 5400, 2);
    world_destroy(&world);
}

static double rate_4(double time_s)
{
    (void)time_s;
    return 4;
}

/* Places, not time: 4/s * 99 * ~35 ms = 14 sequences, of which a worker has places for 4. TTFT
 * misses since prompts wait for places: it is decode that grows. */
static void test_waits_for_places(void **state)
{
    (void)state;
    struct world_spec spec = usual(rate_4);
    struct world world;
    spec.places = 4;
    spec.workers[0] = 4;
    world_create(&world, &spec);
    world_run(&world, 3000);
    assert_between(&world, 0, 2, 4);
    assert_between(&world, 1, 3, 7);
    world_run(&world, 6000);
    assert_met(&world, "with places enough");
    world_destroy(&world);
}

/* Six in all, 1:5 at first: prefill needs more, decode has too many. */
static void test_total(void **state)
{
    (void)state;
    struct world_spec spec = usual(rate_4);
    struct world world;
    spec.prefill_s = 0.8; /* 3.2 workers without a pause */
    spec.policy.ttft_s = 3;
    spec.policy.total = 6;
    spec.policy.least[1] = 2;
    spec.workers[1] = 5;
    world_create(&world, &spec);
    world_run(&world, 3000);
    assert_between(&world, 0, 4, 4);
    assert_between(&world, 1, 2, 2);
    for (uint32_t i = 0; i < world.change_count; i++) {
        assert_true(world.changes[i].workers[0] + world.changes[i].workers[1] <= 6);
    }
    world_run(&world, 6000);
    assert_met(&world, "in the right ratio");
    assert_changes(&world, 3000, 0);
    world_destroy(&world);
}

/* No count meets it: all that the limits allow, and then peace. */
static void test_impossible(void **state)
{
    (void)state;
    struct world_spec spec = usual(rate_4);
    struct world world;
    spec.policy.ttft_s = 0.001;
    spec.policy.tpot_s = 0.0001;
    spec.policy.most[0] = 5;
    spec.policy.most[1] = 4;
    world_create(&world, &spec);
    world_run(&world, 3000);
    assert_between(&world, 0, 5, 5);
    assert_between(&world, 1, 4, 4);
    world_run(&world, 6000);
    assert_changes(&world, 3000, 0);
    world_destroy(&world);
}

/* The same over other seeds: not one lucky run. */
static void test_seeds(void **state)
{
    const char *many = getenv("BATON_TEST_SEEDS");
    int count = many ? atoi(many) : 1;
    for (int i = 0; i < count; i++) {
        seed = 100 + (uint64_t)i;
        test_steady(state);
        test_noise(state);
        test_bursts(state);
        test_total(state);
        test_floor_near_the_target(state);
        test_waits_for_places(state);
    }
}

int main(void)
{
    seed = 7;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_steady),
        cmocka_unit_test(test_step_up_and_down),
        cmocka_unit_test(test_ramp),
        cmocka_unit_test(test_days),
        cmocka_unit_test(test_noise),
        cmocka_unit_test(test_bursts),
        cmocka_unit_test(test_silence),
        cmocka_unit_test(test_floor_near_the_target),
        cmocka_unit_test(test_waits_for_places),
        cmocka_unit_test(test_total),
        cmocka_unit_test(test_impossible),
        cmocka_unit_test(test_seeds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
