#include "router/history.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/clock.h"
#include "common/base/status.h"

/* Durations are counted by magnitude: SUBS buckets for each power of two of nanoseconds, so that a
 * percentile is exact to 1/32. What is shorter or longer counts with the first or the last. */
#define SUB_BITS  4
#define SUBS      (1 << SUB_BITS)
#define MIN_POWER 13 /* 8 us */
#define MAX_POWER 40 /* 18 minutes */
#define BUCKETS   ((MAX_POWER - MIN_POWER) * SUBS)

struct spread {
    uint32_t counts[BUCKETS];
    uint32_t total;
};

/* One step. */
struct interval {
    int64_t begun_ns;
    struct rt_history_totals totals; /* at begun_ns */
    struct spread ttft, tpot;
    int64_t stage_ns[RT_HISTORY_STAGES];
};

struct rt_history {
    struct interval intervals[RT_HISTORY_POINTS + 1]; /* by step % (POINTS + 1) */
    struct rt_history_point points[RT_HISTORY_POINTS];
    uint64_t step; /* under way, from 0; as many points were made */
};

static uint32_t bucket_of(int64_t ns)
{
    if (ns < INT64_C(1) << MIN_POWER) {
        return 0;
    }
    int power = 63 - __builtin_clzll((unsigned long long)ns);
    if (power >= MAX_POWER) {
        return BUCKETS - 1;
    }
    uint32_t sub = (uint32_t)(ns >> (power - SUB_BITS)) & (SUBS - 1);
    return (uint32_t)(power - MIN_POWER) * SUBS + sub;
}

/* The middle of a bucket. */
static double seconds_of(uint32_t bucket)
{
    double base = ldexp(1e-9, MIN_POWER + (int)(bucket / SUBS));
    return base * (1 + (bucket % SUBS + 0.5) / SUBS);
}

static void count(struct spread *spread, int64_t ns)
{
    spread->counts[bucket_of(ns)]++;
    spread->total++;
}

static void add(struct spread *sum, const struct spread *spread)
{
    if (spread->total == 0) {
        return;
    }
    for (uint32_t i = 0; i < BUCKETS; i++) {
        sum->counts[i] += spread->counts[i];
    }
    sum->total += spread->total;
}

/* Nearest rank. */
static double percentile(const struct spread *spread, uint32_t percent)
{
    uint64_t rank = ((uint64_t)spread->total * percent + 99) / 100, seen = 0;
    if (rank == 0) {
        return NAN;
    }
    uint32_t bucket = 0;
    for (; bucket < BUCKETS - 1; bucket++) {
        seen += spread->counts[bucket];
        if (seen >= rank) {
            break;
        }
    }
    return seconds_of(bucket);
}

static void percentiles(const struct spread *spread, double ret_s[RT_PERCENTILES])
{
    ret_s[RT_P50] = percentile(spread, 50);
    ret_s[RT_P90] = percentile(spread, 90);
    ret_s[RT_P99] = percentile(spread, 99);
}

static struct interval *interval_of(const struct rt_history *history, uint64_t step)
{
    return (struct interval *)&history->intervals[step % (RT_HISTORY_POINTS + 1)];
}

static uint64_t first_of(const struct rt_history *history, uint32_t steps)
{
    BT_ASSERT(steps <= RT_HISTORY_POINTS);
    return history->step > steps ? history->step - steps : 0;
}

/* The last `steps` that are over, and with `open` the one under way. */
static void join(const struct rt_history *history, uint32_t steps, bool open,
                 struct interval *ret_sum)
{
    memset(ret_sum, 0, sizeof *ret_sum);
    uint64_t end = history->step + (open ? 1 : 0);
    for (uint64_t step = first_of(history, steps); step < end; step++) {
        const struct interval *interval = interval_of(history, step);
        add(&ret_sum->ttft, &interval->ttft);
        add(&ret_sum->tpot, &interval->tpot);
        for (int i = 0; i < RT_HISTORY_STAGES; i++) {
            ret_sum->stage_ns[i] += interval->stage_ns[i];
        }
    }
}

struct rt_history *rt_history_create(int64_t now_ns)
{
    struct rt_history *history = calloc(1, sizeof *history);
    if (history) {
        history->intervals[0].begun_ns = now_ns;
    }
    return history;
}

void rt_history_destroy(struct rt_history *history)
{
    free(history);
}

void rt_history_ttft(struct rt_history *history, int64_t ttft_ns)
{
    if (history) {
        count(&interval_of(history, history->step)->ttft, ttft_ns);
    }
}

void rt_history_tpot(struct rt_history *history, int64_t tpot_ns)
{
    if (history) {
        count(&interval_of(history, history->step)->tpot, tpot_ns);
    }
}

void rt_history_stage(struct rt_history *history, uint32_t stage, int64_t stage_ns)
{
    BT_ASSERT(stage < RT_HISTORY_STAGES);
    if (history && stage_ns > 0) {
        interval_of(history, history->step)->stage_ns[stage] += stage_ns;
    }
}

static void fill_rates(struct rt_history_point *point, const struct rt_history_totals *before,
                       const struct rt_history_totals *after, double seconds)
{
    point->requests_s = (float)((double)(after->requests - before->requests) / seconds);
    point->shed_s = (float)((double)(after->shed - before->shed) / seconds);
    point->prompt_tokens_s =
        (float)((double)(after->prompt_tokens - before->prompt_tokens) / seconds);
    point->generated_tokens_s =
        (float)((double)(after->generated_tokens - before->generated_tokens) / seconds);
    point->kv_bytes_s = (float)((double)(after->kv_bytes - before->kv_bytes) / seconds);
}

void rt_history_step(struct rt_history *history, const struct rt_history_totals *totals,
                     const struct rt_history_gauges *gauges, int64_t now_ns)
{
    if (!history || now_ns <= interval_of(history, history->step)->begun_ns) {
        return;
    }
    const struct interval *over = interval_of(history, history->step);
    struct rt_history_point *point = &history->points[history->step % RT_HISTORY_POINTS];
    *point = (struct rt_history_point){.time_ns = now_ns, .gauges = *gauges};
    fill_rates(point, &over->totals, totals, (double)(now_ns - over->begun_ns) / 1e9);
    history->step++;
    struct interval lately;
    double ttft_s[RT_PERCENTILES], tpot_s[RT_PERCENTILES];
    join(history, RT_HISTORY_SMOOTH, false, &lately);
    percentiles(&lately.ttft, ttft_s);
    percentiles(&lately.tpot, tpot_s);
    for (int i = 0; i < RT_PERCENTILES; i++) {
        point->ttft_s[i] = (float)ttft_s[i];
        point->tpot_s[i] = (float)tpot_s[i];
    }
    struct interval *next = interval_of(history, history->step);
    memset(next, 0, sizeof *next);
    next->begun_ns = now_ns;
    next->totals = *totals;
}

int64_t rt_history_next_ns(const struct rt_history *history)
{
    return interval_of(history, history->step)->begun_ns + RT_HISTORY_STEP_NS;
}

uint64_t rt_history_first(const struct rt_history *history)
{
    return history->step > RT_HISTORY_POINTS ? history->step - RT_HISTORY_POINTS + 1 : 1;
}

uint64_t rt_history_last(const struct rt_history *history)
{
    return history->step;
}

const struct rt_history_point *rt_history_point(const struct rt_history *history, uint64_t number)
{
    if (number < rt_history_first(history) || number > rt_history_last(history)) {
        return NULL;
    }
    return &history->points[(number - 1) % RT_HISTORY_POINTS];
}

void rt_history_summarise(const struct rt_history *history, uint32_t steps,
                          struct rt_history_summary *ret_summary)
{
    struct interval sum;
    join(history, steps, true, &sum);
    *ret_summary =
        (struct rt_history_summary){.ttft_count = sum.ttft.total, .tpot_count = sum.tpot.total};
    percentiles(&sum.ttft, ret_summary->ttft_s);
    percentiles(&sum.tpot, ret_summary->tpot_s);
    for (int i = 0; i < RT_HISTORY_STAGES; i++) {
        ret_summary->stage_s[i] =
            sum.ttft.total > 0 ? (double)sum.stage_ns[i] / 1e9 / sum.ttft.total : NAN;
    }
}

int64_t rt_history_window(const struct rt_history *history, uint32_t steps,
                          struct rt_history_totals *ret_totals)
{
    const struct interval *first = interval_of(history, first_of(history, steps));
    *ret_totals = first->totals;
    return first->begun_ns;
}
