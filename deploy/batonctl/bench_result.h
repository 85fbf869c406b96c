/*
 * What became of the requests of one run: latencies, throughput, errors, goodput. Memory does not
 * grow with the number of requests. Caller-owned, zero-initialised, one thread.
 *
 * Latencies count from when a request was to be sent, so that a client that falls behind shows in
 * them. Times are nanoseconds since the start of the run.
 */
#ifndef BATON_DEPLOY_BATONCTL_BENCH_RESULT_H
#define BATON_DEPLOY_BATONCTL_BENCH_RESULT_H

#include "deploy/batonctl/bench_samples.h"

#include "common/base/status.h"

#define CTL_BENCH_ERRORS     32 /* codes told apart */
#define CTL_BENCH_ERROR_TEXT 160
#define CTL_BENCH_BINS       512

/* 0: not asked for. */
struct ctl_bench_slo {
    int64_t ttft_ns, tpot_ns, e2e_ns;
};

struct ctl_bench_outcome {
    uint64_t index;
    bool warmup;     /* left out of all but the series */
    bool unfinished; /* the run was ended before it */
    enum bt_status status;
    const char *text;                                         /* of an error; flat */
    int64_t scheduled_ns, sent_ns, first_ns, last_ns, end_ns; /* first token, last token, end */
    uint32_t input_asked, output_asked;
    uint32_t prompt_tokens, output_tokens, cached_tokens; /* as usage says */
    bool good;                                            /* set by ctl_bench_result_add */
};

int64_t ctl_bench_ttft_ns(const struct ctl_bench_outcome *outcome);
/* Mean time between tokens after the first; 0 where there is one token. */
int64_t ctl_bench_tpot_ns(const struct ctl_bench_outcome *outcome);
int64_t ctl_bench_e2e_ns(const struct ctl_bench_outcome *outcome);
/* It ended well and within all that was asked for; with one token TPOT is met. */
bool ctl_bench_is_good(const struct ctl_bench_slo *slo, const struct ctl_bench_outcome *outcome);

/* Over the whole run, warm-up too. Bins get wider, by twos, so that all of it has room. */
struct ctl_bench_series {
    int64_t width_ns; /* of a bin */
    uint32_t count;
    struct ctl_bench_bin {
        uint64_t sent, ended, tokens;
    } bins[CTL_BENCH_BINS];
};
struct ctl_bench_bin *ctl_bench_series_at(struct ctl_bench_series *series, int64_t at_ns);

struct ctl_bench_result {
    struct ctl_bench_slo slo;
    struct ctl_bench_samples ttft, tpot, e2e; /* of those that ended well; tpot: of two tokens */
    struct ctl_bench_samples itl;             /* of all tokens after a first one */
    struct ctl_bench_samples lag;             /* sent after it was to be sent */
    uint64_t sent, succeeded, failed, unfinished, warmup, good;
    uint64_t input_tokens, cached_tokens, output_tokens;
    int64_t first_scheduled_ns, last_scheduled_ns, first_sent_ns, last_sent_ns, end_ns;
    struct ctl_bench_error_count {
        enum bt_status status;
        uint64_t count;
        char text[CTL_BENCH_ERROR_TEXT]; /* of the first one */
    } errors[CTL_BENCH_ERRORS];
    uint32_t error_count;
    uint32_t open, peak_open; /* now, and at most */
    struct ctl_bench_series series;
    double cpu_s; /* that this process took */
    bool interrupted;
};

void ctl_bench_result_finish(struct ctl_bench_result *result);

/* `tokens` more came `gap_ns` after those before: each counts with its share of the gap. `first`:
 * the first of them began the answer, and the gap is not one. */
void ctl_bench_result_tokens(struct ctl_bench_result *result, int64_t at_ns, int64_t gap_ns,
                             uint32_t tokens, bool first, bool warmup);
/* It was sent, or could not be. */
void ctl_bench_result_sent(struct ctl_bench_result *result,
                           const struct ctl_bench_outcome *outcome);
/* It is over. */
void ctl_bench_result_add(struct ctl_bench_result *result, struct ctl_bench_outcome *outcome);

/* From the first that counts to the end of the last; above 0. */
double ctl_bench_result_duration_s(const struct ctl_bench_result *result);
/* Requests/s between the first and the last sent; 0: fewer than two. */
double ctl_bench_result_sent_per_s(const struct ctl_bench_result *result);
/* Of those that ended, 0..1. */
double ctl_bench_result_good_share(const struct ctl_bench_result *result);
/* Something ended well and nothing failed. */
bool ctl_bench_result_clean(const struct ctl_bench_result *result);

#endif
