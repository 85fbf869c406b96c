/* The core alone, as fast as it can: one decision with N workers of each role, each decode worker
 * of so many ranks, and a queue that is never empty. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/base/clock.h"
#include "common/base/random.h"
#include "router/core.h"
#include "tests/bench/router_bench.h"

#define QUEUE_KEPT      10000
#define PAGES           1024
#define DECISION_LIMIT  20.0
#define PREFILL_NS      (50 * BT_NS_PER_MS)
#define REPORTS_A_START 4 /* load reports a decision */

static uint32_t worker_count, rank_count, decision_count;

static struct rt_core *core;
static int64_t now = BT_NS_PER_S;
static uint64_t draws, next_request = 1;

/* What a rank holds, as its reports say. */
struct rank {
    rt_worker_ref ref;
    uint32_t used, running;
};

struct run {
    uint64_t request, epoch;
    uint32_t attempt, rank, pages;
    rt_worker_ref prefill;
};

static struct rank *ranks;
static struct run *runs; /* [run_count], those that run */
static uint32_t run_count, run_capacity;
static rt_worker_ref first_decode;
static uint64_t epochs;

struct samples {
    float *us;
    size_t count, capacity;
};
static struct samples decisions, reports;

/* Time on a core: what others took of it does not count. */
static int64_t clock_ns(void)
{
    struct timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return time.tv_sec * BT_NS_PER_S + time.tv_nsec;
}

static uint64_t draw(uint64_t below)
{
    return bt_random_u64(7, draws++, 0) % below;
}

static void *grow(void *memory, size_t bytes)
{
    memory = realloc(memory, bytes);
    if (!memory) {
        bench_die("no memory");
    }
    return memory;
}

static void note(struct samples *samples, double us)
{
    if (samples->count == samples->capacity) {
        samples->capacity = samples->capacity ? samples->capacity * 2 : 65536;
        samples->us = grow(samples->us, samples->capacity * sizeof *samples->us);
    }
    samples->us[samples->count++] = (float)us;
}

static int compare_float(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static double quantile(struct samples *samples, double q)
{
    qsort(samples->us, samples->count, sizeof *samples->us, compare_float);
    return samples->us[(size_t)(q * (double)(samples->count - 1))];
}

/* ---- the cluster */

static struct rt_load load_of(const struct rank *rank)
{
    return (struct rt_load){.pages_total = PAGES,
                            .pages_free = PAGES - rank->used,
                            .running = rank->running,
                            .max_running = 256,
                            .kv_tokens = (uint64_t)rank->used * 64};
}

static rt_worker_ref join(const char *name, uint32_t number, uint32_t rank, enum rt_role role)
{
    struct rt_worker_info info = {.incarnation = (uint64_t)number * 64 + rank + 1, .role = role};
    snprintf(info.id, sizeof info.id, "%s-%u.%u", name, number, rank);
    if (role == RT_ROLE_DECODE) {
        info.group =
            (struct rt_group_member){.incarnation = number + 1, .rank = rank, .size = rank_count};
        snprintf(info.group.name, sizeof info.group.name, "%s-%u", name, number);
        info.load.pages_total = info.load.pages_free = PAGES;
    }
    rt_worker_ref ref;
    if (rt_core_worker_register(core, &info, now, NULL, &ref) != BT_OK) {
        bench_die("a worker is refused");
    }
    rt_core_worker_connected(core, ref, now);
    return ref;
}

static void open_cluster(void)
{
    for (uint32_t i = 0; i < worker_count; i++) {
        join("prefill", i, 0, RT_ROLE_PREFILL);
    }
    ranks = grow(NULL, (size_t)worker_count * rank_count * sizeof *ranks);
    for (uint32_t i = 0; i < worker_count * rank_count; i++) {
        ranks[i] =
            (struct rank){.ref = join("decode", i / rank_count, i % rank_count, RT_ROLE_DECODE)};
    }
    first_decode = ranks[0].ref;
}

/* ---- requests */

static void fill_queue(void)
{
    while (rt_core_queued(core) < QUEUE_KEPT) {
        struct rt_request_spec spec = {.id = next_request++,
                                       .prompt_tokens = 64 + (uint32_t)draw(8192),
                                       .max_tokens = 16 + (uint32_t)draw(2048),
                                       .arrival_ns = now,
                                       .deadline_ns = now + 600 * BT_NS_PER_S,
                                       .tenant = (uint32_t)draw(50),
                                       .priority = (uint32_t)draw(2)};
        struct rt_cached cached = {(rt_worker_ref)draw(worker_count), spec.prompt_tokens / 2};
        spec.cached = &cached;
        spec.cached_count = draw(2) != 0;
        if (rt_core_submit(core, &spec, now, NULL, NULL) != BT_OK) {
            bench_die("a request is refused");
        }
    }
}

static void begin_run(const struct rt_action *action)
{
    struct rt_token token = {0, 1, NULL};
    uint32_t rank = action->decode - first_decode;
    struct run run = {action->request, action->epoch, action->attempt, rank, 80, action->prefill};
    ranks[rank].used += run.pages;
    ranks[rank].running++;
    rt_core_first_token(core, run.request, run.attempt, &token, now);
    rt_core_prefill_done(core, run.request, run.attempt, PREFILL_NS + (int64_t)draw(1000000), 0);
    rt_core_prefill_ended(core, run.request, run.attempt, BT_OK, NULL, now);
    if (run_count == run_capacity) {
        run_capacity = run_capacity ? run_capacity * 2 : 65536;
        runs = grow(runs, run_capacity * sizeof *runs);
    }
    runs[run_count++] = run;
}

static uint32_t carry_out(const struct rt_action *action)
{
    if (action->kind == RT_ACTION_RESERVE) {
        rt_core_reserved(core, action->request, action->attempt, action->decode, BT_OK, NULL,
                         ++epochs, now);
        return 1;
    }
    if (action->kind == RT_ACTION_PREFILL) {
        begin_run(action);
    }
    return 0;
}

/* All that is to be done; the time that the core takes for it goes to the decisions in it. */
static void pump(bool timed)
{
    struct rt_action action;
    uint32_t started = 0;
    int64_t spent_ns = 0;
    for (;;) {
        int64_t begin_ns = clock_ns();
        bool any = rt_core_next_action(core, &action);
        spent_ns += clock_ns() - begin_ns;
        if (!any) {
            break;
        }
        started += carry_out(&action);
    }
    for (uint32_t i = 0; timed && i < started; i++) {
        note(&decisions, (double)spent_ns / 1e3 / started);
    }
}

static void end_run(uint32_t at)
{
    struct run run = runs[at];
    runs[at] = runs[--run_count];
    struct rt_token token = {1, 2, NULL};
    rt_core_decoded(core, ranks[run.rank].ref, run.request, run.epoch, &token, 1, true,
                    RT_FINISH_STOP, BT_OK, NULL, now);
    ranks[run.rank].used -= run.pages;
    ranks[run.rank].running--;
}

static void report(uint32_t rank, bool timed)
{
    struct rt_load load = load_of(&ranks[rank]);
    int64_t begin_ns = clock_ns();
    rt_core_worker_load(core, ranks[rank].ref, &load);
    if (timed) {
        note(&reports, (double)(clock_ns() - begin_ns) / 1e3);
    }
}

/* One end, the report that tells of it, those of others, and the decision that it makes room for.
 */
static void round_of(bool timed)
{
    now += 20000;
    if (run_count > 0) {
        uint32_t at = (uint32_t)draw(run_count);
        uint32_t rank = runs[at].rank;
        end_run(at);
        report(rank, timed);
    }
    for (int i = 0; i < REPORTS_A_START; i++) {
        report((uint32_t)draw((uint64_t)worker_count * rank_count), timed);
    }
    if (rt_core_next_deadline_ns(core) <= now) {
        rt_core_tick(core, now);
    }
    pump(timed);
}

/* Heartbeats keep everybody alive. */
static void beat(void)
{
    size_t cursor = 0;
    rt_worker_ref ref;
    struct rt_worker_view view;
    while (rt_core_next_worker(core, &cursor, &ref)) {
        rt_core_worker(core, ref, &view);
        struct rt_load load = view.info->load;
        rt_core_worker_heartbeat(core, view.info->id, view.info->incarnation, &load, false, now);
    }
}

static void fill_cluster(void)
{
    for (uint32_t before = 1; before != run_count;) {
        before = run_count;
        fill_queue();
        pump(false);
        for (uint32_t i = 0; i < worker_count * rank_count; i++) {
            report(i, false);
        }
    }
}

static void lose_a_worker(void)
{
    uint32_t before = 0;
    for (uint32_t i = 0; i < run_count; i++) {
        before += runs[i].rank < rank_count;
    }
    int64_t begin_ns = clock_ns();
    rt_core_worker_lost(core, ranks[0].ref, "killed", now);
    double us = (double)(clock_ns() - begin_ns) / 1e3;
    double each = us / (before > 0 ? before : 1);
    bench_figure("rank_lost_us", each, "us", each, 1);
    fprintf(stderr, "a worker of %u ranks with %u requests was lost in %.0f us\n", rank_count,
            before, us);
}

static void measure(enum rt_decode_policy policy)
{
    struct rt_core_options options = {.queue_capacity = 2 * QUEUE_KEPT,
                                      .max_attempts = 3,
                                      .expected_output_tokens = 512,
                                      .silent_after_ns = 3600 * BT_NS_PER_S,
                                      .lost_after_ns = 7200 * BT_NS_PER_S,
                                      .reserve_retry_ns = 50 * BT_NS_PER_MS,
                                      .prefill_depth_ns = BT_NS_PER_S,
                                      .prefill_token_ns = 10000,
                                      .decode_policy = policy,
                                      .patience = 10,
                                      .promote_after_ns = 10 * BT_NS_PER_S,
                                      .breaker_failures = 5,
                                      .breaker_window_ns = BT_NS_PER_S,
                                      .breaker_open_ns = BT_NS_PER_S,
                                      .breaker_open_max_ns = BT_NS_PER_S};
    core = rt_core_create(&options);
    if (!core) {
        bench_die("no memory");
    }
    open_cluster();
    fill_cluster();
    fprintf(stderr, "%u ranks, %u run, %u wait\n", worker_count * rank_count, run_count,
            rt_core_queued(core));
    int64_t spent_ns = 0;
    while (decisions.count < decision_count) {
        fill_queue();
        int64_t begin_ns = clock_ns();
        for (int i = 0; i < 1000; i++) {
            round_of(true);
        }
        spent_ns += clock_ns() - begin_ns;
        if (draw(50) == 0) {
            beat();
        }
    }
    double p50 = quantile(&decisions, 0.5), p99 = quantile(&decisions, 0.99);
    double a_second = (double)decisions.count / ((double)spent_ns / 1e9);
    double report_us = quantile(&reports, 0.99);
    bench_figure("decision_p50_us", p50, "us", DECISION_LIMIT, DECISION_LIMIT / p50);
    bench_figure("decision_p99_us", p99, "us", DECISION_LIMIT, DECISION_LIMIT / p99);
    bench_figure("decisions_per_s", a_second, "1/s", a_second, 1);
    bench_figure("report_p99_us", report_us, "us", report_us, 1);
    fprintf(stderr, "slowest decision %.1f us\n", quantile(&decisions, 1));
    lose_a_worker();
    rt_core_destroy(core);
}

void bench_decisions(const struct bench_options *options)
{
    worker_count = options->workers;
    rank_count = options->ranks;
    decision_count = options->decisions;
    measure(options->policy);
    free(ranks);
    free(runs);
    free(decisions.us);
    free(reports.us);
}
