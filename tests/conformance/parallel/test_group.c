/*
 * What every transport of groups must do, run as
 *
 *     test_group self|ucx|nccl calls|threads|misuse|faults|queued
 *
 * calls: all of them, ranks being processes, in groups of several sizes and machines; threads: the
 * same with ranks that are threads; misuse: creation that must fail, and calls that do not belong
 * together; faults: ranks that die, stop or leave; queued: what goes wrong where calls are queued
 * (nccl). BATON_TEST_SEED repeats a run.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/conformance/parallel/cases.h"
#include "tests/seed.h"

struct layout {
    const char *name;
    uint32_t size, ranks_per_machine, hidden, k, experts, rows;
};

static const struct layout layouts[] = {
    {"1 rank", 1, 0, 200, 4, 16, 150},
    {"2 ranks", 2, 0, 128, 8, 32, 150},
    {"3 ranks", 3, 0, 7, 3, 11, 150},
    {"4 ranks", 4, 0, 264, 4, 16, 90},
    {"8 ranks", 8, 0, 136, 6, 40, 80},
    {"2 ranks on 2 machines", 2, 1, 200, 4, 16, 150},
    {"4 ranks on 2 machines", 4, 2, 136, 4, 16, 150},
    {"8 ranks on 2 machines", 8, 4, 33, 6, 40, 80},
    {"8 ranks on 4 machines", 8, 2, 136, 8, 32, 80},
    {"5 ranks on 2 machines", 5, 3, 9, 5, 23, 80},
};

/* On a stream of the caller's, as on none. */
static void call_queued(struct bt_group *group, const struct bt_group_limits *limits,
                        uint32_t per_machine)
{
    if (strcmp(transport, "nccl") != 0 || ranks_are_threads) {
        CHECK(!bt_group_use_stream(group, NULL));
        return;
    }
    queue_calls(group);
    check_all_reduce(group, limits);
    check_agreement(group);
    check_scatter_and_gather(group, limits);
    check_experts(group, limits, per_machine);
    check_broadcast(group, limits);
    check_barrier(group);
    stop_queueing(group);
    check_all_reduce(group, limits);
}

static void call_everything(const struct bt_group_options *options, const void *context)
{
    const struct layout *layout = context;
    uint32_t per_machine = layout->ranks_per_machine ? layout->ranks_per_machine : layout->size;
    struct bt_group *group = join(options);

    CHECK(bt_group_machines(group) == (layout->size + per_machine - 1) / per_machine);
    check_barrier(group);
    check_broadcast(group, &options->limits);
    check_agreement(group);
    check_all_reduce(group, &options->limits);
    check_scatter_and_gather(group, &options->limits);
    check_experts(group, &options->limits, per_machine);
    call_queued(group, &options->limits, per_machine);
    check_barrier(group);
    bt_group_destroy(group);
}

static void test_calls(void **state)
{
    const struct layout *layout = *state;
    run_ranks(&(struct rig_case){
        .size = layout->size,
        .ranks_per_machine = layout->ranks_per_machine,
        .limits = {.floats = 300000,
                   .broadcast_bytes = 4000,
                   .rows = layout->rows,
                   .hidden = layout->hidden,
                   .experts = layout->experts,
                   .experts_per_token = layout->k},
        .fn = call_everything,
        .context = layout,
        .victim = layout->size,
    });
}

static int run_calls(bool threads)
{
    struct CMUnitTest tests[sizeof(layouts) / sizeof(layouts[0])];
    size_t count = 0;
    ranks_are_threads = threads;
    for (size_t i = 0; i < sizeof(layouts) / sizeof(layouts[0]); i++) {
        bool one = layouts[i].size == 1, machines = layouts[i].ranks_per_machine != 0;
        if (one != (strcmp(transport, "self") == 0) || (machines && strcmp(transport, "nccl") == 0))
            continue;
        tests[count++] = (struct CMUnitTest){
            .name = layouts[i].name, .test_func = test_calls, .initial_state = (void *)&layouts[i]};
    }
    return _cmocka_run_group_tests(transport, tests, count, NULL, NULL);
}

/* A group of one rank, in a process of its own: why there is none here. */
static int skip_unless_nccl(void)
{
    const struct bt_group_options options = {.transport = "nccl", .size = 1};
    struct bt_error error = {0};
    struct bt_group *group;
    if (bt_group_create(&options, &error, &group) == BT_OK)
        return 0;
    printf("skipped: %s\n", error.text);
    return 77;
}

/* CUDA does not survive a fork. */
static int skip_in_child(void)
{
    int status = 0;
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0)
        exit(skip_unless_nccl());
    return waitpid(pid, &status, 0) == pid && WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

static const struct CMUnitTest misuse_tests[] = {
    cmocka_unit_test(test_bad_options),        cmocka_unit_test(test_limits_differ),
    cmocka_unit_test(test_size_differs),       cmocka_unit_test(test_secret_differs),
    cmocka_unit_test(test_missing_ranks),      cmocka_unit_test(test_strangers),
    cmocka_unit_test(test_other_call),         cmocka_unit_test(test_socket_file),
    cmocka_unit_test(test_socket_file_in_use), cmocka_unit_test(test_socket_path_too_long),
};

static const struct CMUnitTest fault_tests[] = {
    cmocka_unit_test(test_killed),
    cmocka_unit_test(test_left),
    cmocka_unit_test(test_stopped),
    cmocka_unit_test(test_late),
    cmocka_unit_test(test_nothing_left_behind),
};

static const struct CMUnitTest queued_tests[] = {
    cmocka_unit_test(test_killed_while_queued),
    cmocka_unit_test(test_silent_while_queued),
    cmocka_unit_test(test_killed_with_a_graph),
    cmocka_unit_test(test_what_was_sent_arrives),
    cmocka_unit_test(test_other_placement_while_queued),
};

int main(int argc, char **argv)
{
    const char *what = argc == 3 ? argv[2] : "";
    if (argc != 3) {
        fprintf(stderr, "usage: test_group self|ucx|nccl calls|threads|misuse|faults|queued\n");
        return 2;
    }
    transport = argv[1];
    seed = test_seed();
    if (strcmp(transport, "nccl") == 0 && skip_in_child() != 0)
        return 77;
    if (strcmp(what, "misuse") == 0)
        return cmocka_run_group_tests_name("misuse", misuse_tests, NULL, NULL);
    if (strcmp(what, "faults") == 0)
        return cmocka_run_group_tests_name("faults", fault_tests, NULL, NULL);
    if (strcmp(what, "queued") == 0)
        return cmocka_run_group_tests_name("queued", queued_tests, NULL, NULL);
    if (strcmp(what, "calls") == 0 || strcmp(what, "threads") == 0)
        return run_calls(strcmp(what, "threads") == 0);
    return 2;
}
