/*
 * What sharing costs: the time of an empty run of two threads back to back and after a pause, and a
 * loop like a decode step (small runs) alone and beside a process that keeps both cores busy.
 * Beside it a fair share is half of each core, so 2.0 times as long is what nobody could beat.
 */
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/clock.h"
#include "common/kernels/team.h"

#define STEPS      40
#define RUNS       100
#define PARTS      4
#define WORK_ITEMS 20000

static volatile uint64_t sink[64 * BT_TEAM_MAX_THREADS];

static void compute(void *context, uint32_t part, uint32_t thread)
{
    uint32_t items = *(const uint32_t *)context;
    uint64_t value = part;
    for (uint32_t i = 0; i < items; i++)
        value = value * 6364136223846793005u + 1;
    sink[64 * thread] = value;
}

static int64_t run_ns(struct bt_team *team, uint32_t items, uint32_t parts)
{
    int64_t start_ns = bt_clock_now_ns();
    bt_team_run(team, compute, &items, parts);
    return bt_clock_now_ns() - start_ns;
}

static int compare(const void *left, const void *right)
{
    int64_t a = *(const int64_t *)left, b = *(const int64_t *)right;
    return (a > b) - (a < b);
}

static double median_run_us(struct bt_team *team, useconds_t pause_us)
{
    enum { COUNT = 400 };
    int64_t times[COUNT];
    for (int i = 0; i < COUNT; i++) {
        if (pause_us)
            usleep(pause_us);
        times[i] = run_ns(team, 0, 2);
    }
    qsort(times, COUNT, sizeof(times[0]), compare);
    return (double)times[COUNT / 2] / 1e3;
}

/* Milliseconds of one step of RUNS runs. */
static double step_ms(struct bt_team *team)
{
    int64_t start_ns = bt_clock_now_ns();
    for (int i = 0; i < STEPS * RUNS; i++)
        run_ns(team, WORK_ITEMS / PARTS, PARTS);
    return (double)(bt_clock_now_ns() - start_ns) / 1e6 / STEPS;
}

static pid_t neighbour(void)
{
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (uint64_t i = 0;; i++)
            sink[0] = i;
    }
    return child;
}

int main(void)
{
    struct bt_error error;
    struct bt_team *one, *two;
    const struct bt_team_options lone = {1, NULL}, pair = {2, NULL};
    if (bt_team_create(&lone, &error, &one) || bt_team_create(&pair, &error, &two)) {
        fprintf(stderr, "%s\n", error.text);
        return 1;
    }
    printf("figure team_run_hot %.2f us\n", median_run_us(two, 0));
    printf("figure team_run_after_pause %.2f us\n", median_run_us(two, 1000));
    double alone[2] = {step_ms(one), step_ms(two)};
    printf("figure team_step_1 %.2f ms\nfigure team_step_2 %.2f ms\n", alone[0], alone[1]);
    for (int count = 1; count <= 2; count++) {
        pid_t children[2] = {0, 0};
        for (int i = 0; i < count; i++)
            children[i] = neighbour();
        double beside[2] = {step_ms(one), step_ms(two)};
        printf("figure team_step_1_beside_%d %.2f ms ratio %.2f\n", count, beside[0],
               beside[0] / alone[0]);
        printf("figure team_step_2_beside_%d %.2f ms ratio %.2f\n", count, beside[1],
               beside[1] / alone[1]);
        for (int i = 0; i < count; i++) {
            kill(children[i], SIGKILL);
            waitpid(children[i], NULL, 0);
        }
    }
    bt_team_destroy(two);
    bt_team_destroy(one);
    return 0;
}
