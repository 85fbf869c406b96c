/*
 * What every transport must do, run as `test_transfer sim|shm|cuda_ipc|tcp|rdma`; `sim-device`,
 * `sim-device-source` and `sim-device-target` are sim with pools of a device. Each case is a
 * process of its own, forked before UCX is touched; with UCX the target is yet another one. Both
 * end with their parent, and with an alarm.
 */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/base/process.h"
#include "tests/conformance/cases.h"
#include "tests/conformance/rig.h"

#define CASE_SECONDS 300 /* an emulated machine is slow */

static void run_case(void (*body)(void))
{
    int status;
    pid_t child;

    fflush(NULL);
    child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        alarm(CASE_SECONDS);
        if (bt_process_die_with_parent() != BT_OK)
            _exit(1);
        body();
        exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    if (!WIFEXITED(status))
        fail_msg("ended by signal %d", WTERMSIG(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

static const char *missing; /* why this transport can't be tested here */

static void probe_in_child(int fd)
{
    const struct kvt_transport_options options = {.name = transport,
                                                  .pool_device = target_device()};
    struct kvt_transport *created;
    struct bt_error error = {0};

    if (kvt_transport_create(&options, &error, &created) == BT_OK)
        created->ops->destroy(created);
    CHECK(write(fd, &error, sizeof(error)) == sizeof(error));
    _exit(0);
}

/* UNAVAILABLE only: any other failure is one of the tests. */
static bool is_available(void)
{
    static struct bt_error error;
    int fds[2], status;
    pid_t child;

    if (is_sim())
        return true;
    CHECK(pipe(fds) == 0);
    child = fork();
    CHECK(child >= 0);
    if (child == 0)
        probe_in_child(fds[1]);
    CHECK(read(fds[0], &error, sizeof(error)) == sizeof(error));
    CHECK(waitpid(child, &status, 0) == child);
    close(fds[0]);
    close(fds[1]);
    missing = error.text;
    return error.status != BT_ERR_UNAVAILABLE;
}

static const struct {
    const char *name;
    void (*body)(void);
    enum {
        EVERYWHERE,
        SIM_ONLY,
        EARLY_SUMS,
        EARLY_PROCESSES,
        MAPPED,
        PROCESSES_ONLY,
        TCP_ONLY
    } where;
} cases[] = {
    {"layerwise and whole", case_layerwise_and_whole, EVERYWHERE},
    {"neighbours are one write", case_neighbours_are_one_write, EVERYWHERE},
    {"many at once", case_many_at_once, EVERYWHERE},
    {"layers go before finish", case_layers_go_before_finish, EVERYWHERE},
    {"cancel", case_cancel, EVERYWHERE},
    {"lease", case_lease, EVERYWHERE},
    {"huge", case_huge, EVERYWHERE},
    {"garbage remote", case_garbage_remote, EVERYWHERE},
    {"wrong base", case_wrong_base, EVERYWHERE},
    {"a key that says too much", case_a_key_that_says_too_much, MAPPED},
    {"bad pushes are refused", case_bad_pushes_are_refused, EVERYWHERE},
    {"links are shared", case_links_are_shared, EVERYWHERE},
    {"target jobs are bounded", case_target_jobs_are_bounded, EVERYWHERE},
    {"cancel at each state", case_cancel_at_each_state, EVERYWHERE},
    {"source dies at each state", case_source_dies_at_each_state, PROCESSES_ONLY},
    {"target dies at each state", case_target_dies_at_each_state, PROCESSES_ONLY},
    {"fallback", case_fallback, SIM_ONLY},
    {"nothing in common", case_nothing_in_common, SIM_ONLY},
    {"early sums", case_early_sums, EARLY_PROCESSES},
    {"shares", case_shares, EVERYWHERE},
    {"ports that listen", case_ports_that_listen, PROCESSES_ONLY},
    {"target dies and comes back", case_target_dies_and_comes_back, PROCESSES_ONLY},
    {"source dies", case_source_dies, PROCESSES_ONLY},
    {"pool beyond memory", case_pool_beyond_memory, PROCESSES_ONLY},
    {"strays arrive until disconnect", case_strays_arrive_until_disconnect, SIM_ONLY},
    {"no write after the lease", case_no_write_after_the_lease, SIM_ONLY},
    {"garbage on the port", case_garbage_on_the_port, TCP_ONLY},
    {"target checks ranges", case_target_checks_ranges, TCP_ONLY},
    {"cancel waits for flush", case_cancel_waits_for_flush, SIM_ONLY},
    {"a cut is of one link", case_a_cut_is_of_one_link, EVERYWHERE},
    {"flushed and gone", case_flushed_and_gone, TCP_ONLY},
    {"a false record", case_a_false_record, EARLY_SUMS},
    {"flushed and gone with cuts", case_flushed_and_gone_with_cuts, SIM_ONLY},
};

static bool applies(size_t i)
{
    switch (cases[i].where) {
    case SIM_ONLY:
        return is_sim();
    case EARLY_SUMS:
        return is_sim() && !target_on_device;
    case EARLY_PROCESSES:
        return !is_sim() && !target_on_device;
    case MAPPED:
        return strcmp(transport, "shm") == 0 || strcmp(transport, "cuda_ipc") == 0;
    case PROCESSES_ONLY:
        return !is_sim();
    case TCP_ONLY:
        return strcmp(transport, "tcp") == 0;
    case EVERYWHERE:
        break;
    }
    return true;
}

static void run_cmocka_case(void **state)
{
    run_case(cases[*(size_t *)*state].body);
}

int main(int argc, char **argv)
{
    static size_t indices[sizeof(cases) / sizeof(cases[0])];
    struct CMUnitTest tests[sizeof(cases) / sizeof(cases[0])];
    size_t count = 0;

    CHECK(argc >= 2);
    transport = argv[1];
    if (strncmp(transport, "sim-device", strlen("sim-device")) == 0) {
        source_on_device = strcmp(transport, "sim-device-target") != 0;
        target_on_device = strcmp(transport, "sim-device-source") != 0;
        transport = "sim";
    }
    if (strcmp(transport, "cuda_ipc") == 0)
        source_on_device = target_on_device = true;
    if (!is_available()) {
        printf("skipped: %s\n", missing);
        return 77;
    }
    printf("seed %llu\n", (unsigned long long)seed);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        if (!applies(i))
            continue;
        if (argc > 2 && strcmp(argv[2], cases[i].name) != 0)
            continue;
        indices[count] = i;
        tests[count] = (struct CMUnitTest){
            .name = cases[i].name, .test_func = run_cmocka_case, .initial_state = &indices[count]};
        count++;
    }
    return _cmocka_run_group_tests(transport, tests, count, NULL, NULL);
}
