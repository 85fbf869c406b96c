#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/kernels/cpus.h"
#include "common/kernels/team.h"

#define MAX_PARTS 1000

static struct bt_team *team_of(uint32_t threads, const char *cpus)
{
    struct bt_error error = {0};
    struct bt_team *team = NULL;
    const struct bt_team_options options = {threads, cpus};
    if (bt_team_create(&options, &error, &team) != BT_OK)
        fail_msg("%s", error.text);
    return team;
}

struct tally {
    uint32_t threads;
    atomic_uint next;            /* parts that started */
    uint32_t started[MAX_PARTS]; /* place in which the part started; unordered between threads */
    uint32_t times[MAX_PARTS];   /* plain: the thread sanitizer sees a part that runs twice */
    uint32_t last[BT_TEAM_MAX_THREADS];
};

static void count(void *context, uint32_t part, uint32_t thread)
{
    struct tally *tally = context;
    assert_true(thread < tally->threads);
    tally->started[part] = atomic_fetch_add(&tally->next, 1);
    tally->times[part]++;
    assert_true(part >= tally->last[thread]); /* each thread's parts ascend */
    tally->last[thread] = part;
}

static void run_and_check(struct bt_team *team, uint32_t parts)
{
    static struct tally tally;
    memset(&tally, 0, sizeof(tally));
    tally.threads = bt_team_threads(team);
    bt_team_run(team, count, &tally, parts);
    for (uint32_t i = 0; i < MAX_PARTS; i++)
        assert_int_equal(tally.times[i], i < parts);
    /* When a part starts, all before it have started, but for one of each other thread. */
    for (uint32_t i = 0; i < parts; i++)
        assert_true(tally.started[i] + tally.threads > i);
}

static void test_every_part_once(void **state)
{
    (void)state;
    static const uint32_t parts[] = {0, 1, 2, 3, 7, 64, 65, MAX_PARTS};
    for (uint32_t threads = 0; threads <= 4; threads++) {
        struct bt_team *team = threads ? team_of(threads, NULL) : NULL;
        assert_int_equal(bt_team_threads(team), threads ? threads : 1);
        for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++)
            run_and_check(team, parts[i]);
        bt_team_destroy(team);
    }
}

static void in_order(void *context, uint32_t part, uint32_t thread)
{
    uint32_t *next = context;
    assert_int_equal(thread, 0);
    assert_int_equal(part, (*next)++);
}

static void test_alone_in_order(void **state)
{
    (void)state;
    uint32_t next = 0;
    bt_team_run(NULL, in_order, &next, 100);
    assert_int_equal(next, 100);
}

/* A part that waits for the other: only two threads at once can end it. */
static void meet(void *context, uint32_t part, uint32_t thread)
{
    atomic_uint *arrived = context;
    (void)part;
    (void)thread;
    atomic_fetch_add(arrived, 1);
    while (atomic_load(arrived) < 3)
        sched_yield();
}

static void test_parts_run_at_once(void **state)
{
    (void)state;
    struct bt_team *team = team_of(3, NULL);
    for (int i = 0; i < 20; i++) {
        atomic_uint arrived = 0;
        bt_team_run(team, meet, &arrived, 3);
        assert_int_equal(arrived, 3);
    }
    bt_team_destroy(team);
}

static void add_one(void *context, uint32_t part, uint32_t thread)
{
    uint64_t *sums = context;
    (void)thread;
    sums[part]++;
}

/* What a run wrote is there when it returns; a late worker of one run takes no part of another. */
static void test_many_small_runs(void **state)
{
    (void)state;
    struct bt_team *team = team_of(3, NULL);
    uint64_t sums[3] = {0};
    for (uint64_t run = 1; run <= 20000; run++) {
        uint32_t parts = 2 + run % 2;
        bt_team_run(team, add_one, sums, parts);
        assert_int_equal(sums[0], run);
        assert_int_equal(sums[2], (run + 1) / 2);
        if (run % 2000 == 0)
            usleep(1000); /* the others fall asleep now and then */
    }
    bt_team_destroy(team);
}

static void nothing(void *context, uint32_t part, uint32_t thread)
{
    (void)context;
    (void)part;
    (void)thread;
}

static void test_destroy_asleep_and_unused(void **state)
{
    (void)state;
    for (int i = 0; i < 50; i++) {
        struct bt_team *team = team_of(1 + (uint32_t)i % 4, NULL);
        if (i % 3 == 1)
            bt_team_run(team, nothing, NULL, 10);
        if (i % 5 == 0)
            usleep(500);
        bt_team_destroy(team);
    }
    bt_team_destroy(NULL);
}

static void run_inside(void *context, uint32_t part, uint32_t thread)
{
    (void)part;
    (void)thread;
    bt_team_run(context, nothing, NULL, 1);
}

/* In a child: the assertion ends it. */
static void test_nested_run_asserts(void **state)
{
    (void)state;
    pid_t child = fork();
    if (child == 0) {
        signal(SIGABRT, SIG_DFL);
        (void)!freopen("/dev/null", "w", stderr);
        bt_team_run(NULL, run_inside, NULL, 2);
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}

static uint32_t usable_cpus(uint32_t *ret_cpus, uint32_t max)
{
    cpu_set_t set;
    uint32_t found = 0;
    assert_int_equal(sched_getaffinity(0, sizeof(set), &set), 0);
    for (uint32_t cpu = 0; cpu < CPU_SETSIZE && found < max; cpu++)
        if (CPU_ISSET(cpu, &set))
            ret_cpus[found++] = cpu;
    return found;
}

struct places {
    atomic_uint arrived;
    uint32_t wanted, count;
    const uint32_t *cpus;
};

static void look_where(void *context, uint32_t part, uint32_t thread)
{
    struct places *places = context;
    cpu_set_t set;
    (void)part;
    assert_int_equal(sched_getaffinity(0, sizeof(set), &set), 0);
    assert_int_equal(CPU_COUNT(&set), 1);
    assert_true(CPU_ISSET(places->cpus[places->count - 1 - thread], &set));
    atomic_fetch_add(&places->arrived, 1);
    while (atomic_load(&places->arrived) < places->wanted)
        sched_yield();
}

/* Thread i sits on the i-th cpu of the list, which is given backwards; leaving frees the caller. */
static void *pinned(void *unused)
{
    uint32_t cpus[2];
    char list[32];
    cpu_set_t set;
    uint32_t found = usable_cpus(cpus, 2);
    if (found == 2)
        snprintf(list, sizeof(list), "%u,%u", cpus[1], cpus[0]);
    else
        snprintf(list, sizeof(list), "%u", cpus[0]);
    struct bt_team *team = team_of(0, list);
    assert_int_equal(bt_team_threads(team), found);
    struct places places = {.wanted = found, .count = found, .cpus = cpus};
    bt_team_run(team, look_where, &places, found);
    bt_team_leave(team);
    sched_getaffinity(0, sizeof(set), &set);
    assert_int_equal(CPU_COUNT(&set), (int)found);
    bt_team_enter(team);
    sched_getaffinity(0, sizeof(set), &set);
    assert_int_equal(CPU_COUNT(&set), 1);
    void *memory = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(bt_team_place_memory(team, memory, 1 << 20) >= 1);
    memset(memory, 1, 1 << 20);
    munmap(memory, 1 << 20);
    bt_team_destroy(team);
    return unused;
}

static void test_pinning(void **state)
{
    (void)state;
    pthread_t thread; /* so that this one keeps its cpus */
    assert_int_equal(pthread_create(&thread, NULL, pinned, NULL), 0);
    pthread_join(thread, NULL);
}

static void refused(uint32_t threads, const char *cpus, const char *why)
{
    struct bt_error error = {0};
    struct bt_team *team = NULL;
    const struct bt_team_options options = {threads, cpus};
    assert_int_equal(bt_team_create(&options, &error, &team), BT_ERR_INVALID_ARGUMENT);
    assert_null(team);
    if (!strstr(error.text, why))
        fail_msg("'%s' does not say '%s'", error.text, why);
}

static void test_refusals(void **state)
{
    (void)state;
    uint32_t cpu = 0;
    char list[64];
    refused(0, "", "no number at ''");
    refused(0, "a", "no number at 'a'");
    refused(0, "-1", "no number at '-1'");
    refused(0, "5-2", "a range that falls at '5-2'");
    usable_cpus(&cpu, 1);
    snprintf(list, sizeof(list), "%u;", cpu);
    refused(0, list, "neither ',' nor '-' at ';'");
    snprintf(list, sizeof(list), "%u,", cpu);
    refused(0, list, "no number at ''");
    snprintf(list, sizeof(list), "%u-", cpu);
    refused(0, list, "no number at ''");
    snprintf(list, sizeof(list), "%u,%u", cpu, cpu);
    refused(0, list, "is named twice");
    refused(0, "99999", "may not use cpu 99999");
    refused(0, "0-4294967295", "may not use cpu");
    refused(0, "99999999999999999999", "may not use cpu");
    snprintf(list, sizeof(list), "%u", cpu);
    refused(2, list, "2 threads for 1 cpus");
    refused(BT_TEAM_MAX_THREADS + 1, NULL, "257 threads, the most is 256");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_part_once),
        cmocka_unit_test(test_alone_in_order),
        cmocka_unit_test(test_parts_run_at_once),
        cmocka_unit_test(test_many_small_runs),
        cmocka_unit_test(test_destroy_asleep_and_unused),
        cmocka_unit_test(test_nested_run_asserts),
        cmocka_unit_test(test_pinning),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
