/*
 * Ranks whose steps are begun before the last one is over, agreed on while that runs: on a device
 * that does its work as late as it may, and on emulated GPUs. Tokens are those of one rank that
 * takes one step after the other.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/clock.h"
#include "tests/unit/decode/group_steps.h"

/* Tokens up to wherever it ended. */
static void same_subject(const struct steps_subject *got, const struct steps_subject *alone)
{
    assert_true(got->finish == alone->finish || got->finish == DC_FINISH_CANCELLED);
    if (got->finish == alone->finish)
        assert_int_equal(got->token_count, alone->token_count);
    assert_true(got->token_count <= alone->token_count);
    assert_memory_equal(got->tokens, alone->tokens, got->token_count * sizeof(uint32_t));
}

static struct steps_report *run_alone(struct steps_scene scene, uint32_t of)
{
    scene.size = 1;
    scene.of = of;
    scene.where = scene.where == ON_GPU ? ON_GPU : ON_CPU;
    if (scene.fault != CANCELLED)
        scene.fault = NO_FAULT;
    scene.victim = NOBODY;
    return steps_run(&scene);
}

static struct steps_report *run_and_compare(const struct steps_scene *scene)
{
    struct steps_report *got = steps_run(scene);
    for (uint32_t r = 0; r < scene->size; r++) {
        struct steps_report *alone = run_alone(*scene, r);
        assert_true(got[r].left && !got[r].failed && !got[r].spoilt);
        for (uint32_t i = 0; i < scene->subjects; i++)
            same_subject(&got[r].subjects[i], &alone->subjects[i]);
        steps_free(alone);
        print_message("rank %u: %u steps behind another, %u without a row, %u others\n", r,
                      got[r].behind, got[r].empty, got[r].steps);
        assert_int_equal(got[r].behind, got[0].behind);
        assert_int_equal(got[r].steps, got[0].steps);
    }
    return got;
}

static uint32_t count_ends(const struct steps_report *reports, const struct steps_scene *scene,
                           enum dc_finish finish)
{
    uint32_t count = 0;
    for (uint32_t r = 0; r < scene->size; r++)
        for (uint32_t i = 0; i < scene->subjects; i++)
            count += reports[r].subjects[i].finish == finish;
    return count;
}

/* All draw one token after the other, on the device: all steps are begun so. */
static void plain(uint32_t size, enum where where, uint32_t subjects, uint32_t max_output)
{
    const struct steps_scene scene = {
        .size = size, .where = where, .seed = 1, .subjects = subjects, .max_output = max_output};
    struct steps_report *got = run_and_compare(&scene);
    assert_true(got[0].behind > 3 * got[0].steps);
    assert_true(got[1].empty >= 5);
    for (uint32_t r = 0; r < size && where == ON_GPU; r++)
        assert_int_equal(got[r].most_waits, 1);
    steps_free(got);
}

static void test_late_of_two(void **state)
{
    (void)state;
    plain(2, ON_LATE_DEVICE, MAX_SUBJECTS, MAX_OUTPUT);
}

static void test_late_of_four(void **state)
{
    (void)state;
    plain(4, ON_LATE_DEVICE, MAX_SUBJECTS, MAX_OUTPUT);
}

static void test_gpus_of_two(void **state)
{
    (void)state;
    plain(2, ON_GPU, 4, 20);
}

static void test_gpus_of_four(void **state)
{
    (void)state;
    plain(4, ON_GPU, 3, 20);
}

/* Some ranks at some times can't. */
static void mixed(uint32_t size)
{
    uint32_t cancelled = 0, others = 0;
    for (uint64_t seed = 2; seed <= 3; seed++) {
        const struct steps_scene scene = {.size = size,
                                          .where = ON_LATE_DEVICE,
                                          .seed = seed,
                                          .subjects = MAX_SUBJECTS,
                                          .max_output = MAX_OUTPUT,
                                          .mixed = true};
        struct steps_report *got = run_and_compare(&scene);
        cancelled += count_ends(got, &scene, DC_FINISH_CANCELLED);
        others += got[0].steps;
        assert_true(got[0].behind > 10);
        steps_free(got);
    }
    assert_true(cancelled > 0 && others > 2); /* one is the last of all */
}

static void test_mixed_of_two(void **state)
{
    (void)state;
    mixed(2);
}

static void test_mixed_of_four(void **state)
{
    (void)state;
    mixed(4);
}

/* Tokens that are drawn in the midst of outputs end them from now on. */
static void stop_tokens(struct steps_scene scene)
{
    struct steps_report *alone = run_alone(scene, 0);
    scene.eos[0] = alone->subjects[1].tokens[scene.max_output / 4];
    scene.eos[1] = alone->subjects[2].tokens[scene.max_output / 4 + 1];
    scene.eos_count = 2;
    steps_free(alone);
    struct steps_report *got = run_and_compare(&scene);
    assert_true(count_ends(got, &scene, DC_FINISH_STOP) >= 2);
    assert_true(got[0].behind > 5);
    steps_free(got);
}

static void test_stop_tokens(void **state)
{
    (void)state;
    stop_tokens((struct steps_scene){.size = 2,
                                     .where = ON_LATE_DEVICE,
                                     .seed = 4,
                                     .subjects = MAX_SUBJECTS,
                                     .max_output = MAX_OUTPUT});
}

static void test_stop_tokens_on_gpus(void **state)
{
    (void)state;
    stop_tokens((struct steps_scene){
        .size = 2, .where = ON_GPU, .seed = 4, .subjects = 4, .max_output = 20});
}

static void test_pages_that_come_late(void **state)
{
    const struct steps_scene scene = {.size = 2,
                                      .where = ON_LATE_DEVICE,
                                      .seed = 5,
                                      .subjects = MAX_SUBJECTS,
                                      .max_output = MAX_OUTPUT,
                                      .starves = true};
    struct steps_report *got = run_and_compare(&scene);
    uint32_t stalled = 0;
    (void)state;
    for (uint32_t i = 0; i < scene.subjects; i++)
        stalled += got[0].subjects[i].stalled + got[1].subjects[i].stalled;
    assert_true(stalled >= 4 && got[0].behind > 10);
    steps_free(got);
}

/* Between two steps, of which the second is not begun before the first is over. */
static void test_experts_move_on_gpus(void **state)
{
    const struct steps_scene scene = {
        .size = 2, .where = ON_GPU, .seed = 6, .subjects = 4, .max_output = 24, .moves = true};
    struct steps_report *got = run_and_compare(&scene);
    (void)state;
    print_message("%u experts moved\n", (unsigned)(got[0].moves + got[1].moves));
    assert_true(got[0].moves + got[1].moves > 0);
    steps_free(got);
}

/* It was said when two steps with a row of it were under way: these come, and none after them. */
static void test_cancelled(void **state)
{
    const struct steps_scene scene = {.size = 2,
                                      .where = ON_LATE_DEVICE,
                                      .seed = 7,
                                      .subjects = 3,
                                      .max_output = MAX_OUTPUT,
                                      .fault = CANCELLED,
                                      .victim = 1};
    struct steps_report *got = run_and_compare(&scene);
    (void)state;
    assert_int_equal(count_ends(got, &scene, DC_FINISH_CANCELLED), 1);
    assert_int_equal(got[1].subjects[0].finish, DC_FINISH_CANCELLED);
    assert_int_equal(got[1].subjects[0].token_count, got[1].cancelled_at + 2);
    steps_free(got);
}

static void fault(uint32_t size, enum where where, enum fault fault, int64_t timeout_ns,
                  const char *words)
{
    const struct steps_scene scene = {.size = size,
                                      .where = where,
                                      .seed = 8,
                                      .subjects = 3,
                                      .max_output = MAX_OUTPUT,
                                      .fault = fault,
                                      .victim = 1,
                                      .timeout_ns = timeout_ns};
    struct steps_report *got = steps_run(&scene);
    for (uint32_t r = 0; r < size; r++) {
        if (r == scene.victim && fault != BREAKS)
            continue;
        print_message("rank %u: %s\n", r, got[r].error);
        assert_true(got[r].failed && !got[r].left);
        assert_non_null(strstr(got[r].error, r == scene.victim ? "the device broke" : words));
    }
    steps_free(got);
}

static void test_one_is_killed(void **state)
{
    (void)state;
    fault(4, ON_LATE_DEVICE, KILLED, 0, "rank 1");
}

static void test_one_is_killed_on_gpus(void **state)
{
    (void)state;
    fault(4, ON_GPU, KILLED, 0, "nccl: "); /* who finds it first may not know who it was */
}

static void test_one_hangs(void **state)
{
    (void)state;
    fault(2, ON_LATE_DEVICE, HANGS, 10 * BT_NS_PER_S, "rank 1");
}

static void test_one_hangs_on_gpus(void **state)
{
    (void)state;
    fault(2, ON_GPU, HANGS, 20 * BT_NS_PER_S, "said nothing");
}

static void test_a_device_breaks(void **state)
{
    (void)state;
    fault(2, ON_LATE_DEVICE, BREAKS, 0, "rank 1");
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_late_of_two),
        cmocka_unit_test(test_late_of_four),
        cmocka_unit_test(test_mixed_of_two),
        cmocka_unit_test(test_mixed_of_four),
        cmocka_unit_test(test_stop_tokens),
        cmocka_unit_test(test_pages_that_come_late),
        cmocka_unit_test(test_cancelled),
        cmocka_unit_test(test_one_is_killed),
        cmocka_unit_test(test_one_hangs),
        cmocka_unit_test(test_a_device_breaks),
        cmocka_unit_test(test_gpus_of_two),
        cmocka_unit_test(test_gpus_of_four),
        cmocka_unit_test(test_stop_tokens_on_gpus),
        cmocka_unit_test(test_experts_move_on_gpus),
        cmocka_unit_test(test_one_is_killed_on_gpus),
        cmocka_unit_test(test_one_hangs_on_gpus),
    };
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
