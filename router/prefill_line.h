/*
 * How long a prefill worker computes: a line, base + per_token * uncached tokens, fitted online to
 * what it reports. Internal to the core.
 *
 * Least squares with weights that fade by RT_LINE_FADE a sample, drawn to the form of a prior line
 * (raised to the height of the samples) by two samples that never fade: without a sample it is the
 * prior, and samples of one length alone leave the share of base and slope as the prior has it. A
 * sample that is far from the line counts as one at RT_LINE_CLIP mean deviations: a single one
 * moves little, a worker that really became slower is believed after a few, since the deviation
 * grows with them. Neither base nor slope is negative, whatever comes in.
 */
#ifndef BATON_ROUTER_PREFILL_LINE_H
#define BATON_ROUTER_PREFILL_LINE_H

#include <stdint.h>

#define RT_LINE_FADE 0.98
#define RT_LINE_CLIP 4.0

struct rt_line {
    double base_ns, token_ns;
};

struct rt_prefill_line {
    struct rt_line line; /* as it is now */
    uint64_t samples;
    double deviation_ns;                                      /* sliding mean, absolute */
    double weight, tokens, tokens_squared, time, tokens_time; /* fading sums */
};

void rt_prefill_line_init(struct rt_prefill_line *fit, struct rt_line prior);
/* `prior`: as it is by now. What can't be (no tokens, no time, beyond a day) is left out. */
void rt_prefill_line_learn(struct rt_prefill_line *fit, struct rt_line prior, uint32_t tokens,
                           int64_t compute_ns);
/* Before the first sample it follows the prior. */
void rt_prefill_line_follow(struct rt_prefill_line *fit, struct rt_line prior);

double rt_line_at(struct rt_line line, uint32_t tokens); /* nanoseconds */

#endif
