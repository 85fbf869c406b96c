/*
 * What the router did lately, for whoever looks: a time series of RT_HISTORY_POINTS steps, and the
 * distribution of TTFT and TPOT over the last of them, as many as are asked for. Pure: the clock is
 * an argument. One thread; all memory (1.2 MiB) is taken at the start.
 *
 * A request costs two increments, a token nothing: rates are differences of counters that exist
 * anyway, taken once a step.
 */
#ifndef BATON_ROUTER_HISTORY_H
#define BATON_ROUTER_HISTORY_H

#include <stdbool.h>
#include <stdint.h>

#define RT_HISTORY_STEP_NS (INT64_C(2) * 1000000000)
#define RT_HISTORY_POINTS  300 /* ten minutes */
#define RT_HISTORY_WINDOW  30  /* steps, where nobody says: one minute */
#define RT_HISTORY_SMOOTH  5   /* steps that a point's percentiles look back on */
#define RT_HISTORY_STAGES  12  /* of a request's time, whatever they are */

enum rt_percentile { RT_P50, RT_P90, RT_P99, RT_PERCENTILES };

/* Counts that only grow, since the start. */
struct rt_history_totals {
    uint64_t requests, finished, failed, shed;
    uint64_t prompt_tokens, cached_tokens, generated_tokens;
    uint64_t kv_bytes;
    uint64_t finished_input, finished_output; /* tokens of requests that finished */
};

struct rt_history_gauges {
    uint32_t queued, running;
    float kv_mean, kv_max; /* of decode ranks, 1 is all of the pages */
};

struct rt_history_point {
    int64_t time_ns; /* its end */
    float requests_s, shed_s, prompt_tokens_s, generated_tokens_s, kv_bytes_s;
    struct rt_history_gauges gauges;
    float ttft_s[RT_PERCENTILES], tpot_s[RT_PERCENTILES]; /* NaN: no request */
};

struct rt_history_summary {
    uint64_t ttft_count, tpot_count;
    double ttft_s[RT_PERCENTILES], tpot_s[RT_PERCENTILES]; /* NaN: no request */
    double stage_s[RT_HISTORY_STAGES]; /* mean over the requests that `ttft_s` is of; NaN: none */
};

struct rt_history;

struct rt_history *rt_history_create(int64_t now_ns); /* NULL: no memory */
void rt_history_destroy(struct rt_history *history);

/* All of these take a NULL history and do nothing. Negative times count as 0. */
void rt_history_ttft(struct rt_history *history, int64_t ttft_ns);
void rt_history_tpot(struct rt_history *history, int64_t tpot_ns);
void rt_history_stage(struct rt_history *history, uint32_t stage, int64_t stage_ns);

/* Ends a step. One that took longer, since the loop was busy, gives one point all the same. */
void rt_history_step(struct rt_history *history, const struct rt_history_totals *totals,
                     const struct rt_history_gauges *gauges, int64_t now_ns);
int64_t rt_history_next_ns(const struct rt_history *history); /* when the step under way ends */

/* Points are numbered from 1. The first that is kept, and the last; last < first: none yet. */
uint64_t rt_history_first(const struct rt_history *history);
uint64_t rt_history_last(const struct rt_history *history);
/* NULL: not kept. */
const struct rt_history_point *rt_history_point(const struct rt_history *history, uint64_t number);
/* The last `steps`, at most RT_HISTORY_POINTS, and the one under way. */
void rt_history_summarise(const struct rt_history *history, uint32_t steps,
                          struct rt_history_summary *ret_summary);
/* When these began, and the totals then. */
int64_t rt_history_window(const struct rt_history *history, uint32_t steps,
                          struct rt_history_totals *ret_totals);

#endif
