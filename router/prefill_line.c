#include "router/prefill_line.h"

#include <math.h>

#include "common/base/clock.h"

/* What each of the prior's two samples weighs. */
#define PRIOR_WEIGHT 0.5
/* So many samples are taken as they are: before, the deviation says nothing. */
#define UNCLIPPED 16
/* The deviation is a mean of about so many, and at least this share of the time. */
#define DEVIATION_SPAN  8.0
#define DEVIATION_LEAST 0.05
#define LONGEST_NS      (86400 * BT_NS_PER_S)

double rt_line_at(struct rt_line line, uint32_t tokens)
{
    return line.base_ns + line.token_ns * tokens;
}

void rt_prefill_line_init(struct rt_prefill_line *fit, struct rt_line prior)
{
    *fit = (struct rt_prefill_line){.line = prior};
}

void rt_prefill_line_follow(struct rt_prefill_line *fit, struct rt_line prior)
{
    if (fit->samples == 0) {
        fit->line = prior;
    }
}

/* The time at which the sample counts. */
static double clipped(struct rt_prefill_line *fit, uint32_t tokens, double time)
{
    double expected = rt_line_at(fit->line, tokens);
    double off = time - expected;
    if (fit->samples >= UNCLIPPED) {
        double least = DEVIATION_LEAST * expected;
        double limit = RT_LINE_CLIP * (fit->deviation_ns > least ? fit->deviation_ns : least);
        off = off > limit ? limit : off < -limit ? -limit : off;
    }
    double span = fit->samples < DEVIATION_SPAN ? (double)fit->samples + 1 : DEVIATION_SPAN;
    fit->deviation_ns += (fabs(off) - fit->deviation_ns) / span;
    return expected + off;
}

/* The prior's form, as high as the samples are in the mean. */
static struct rt_line scaled(const struct rt_prefill_line *fit, struct rt_line prior)
{
    double expected = prior.base_ns * fit->weight + prior.token_ns * fit->tokens;
    if (!(expected > 0)) {
        return (struct rt_line){0, fit->time / fit->tokens};
    }
    double scale = fit->time / expected;
    return (struct rt_line){prior.base_ns * scale, prior.token_ns * scale};
}

/* The least squares of the sums with two samples of the scaled prior, at no tokens and at twice the
 * mean. */
static struct rt_line solve(const struct rt_prefill_line *fit, struct rt_line prior)
{
    struct rt_line form = scaled(fit, prior);
    double far = 2 * fit->tokens / fit->weight;
    double far_ns = form.base_ns + form.token_ns * far;
    double n = fit->weight + 2 * PRIOR_WEIGHT;
    double x = fit->tokens + PRIOR_WEIGHT * far;
    double xx = fit->tokens_squared + PRIOR_WEIGHT * far * far;
    double y = fit->time + PRIOR_WEIGHT * (form.base_ns + far_ns);
    double xy = fit->tokens_time + PRIOR_WEIGHT * far_ns * far;
    double slope = (n * xy - x * y) / (n * xx - x * x);
    double base = (y - slope * x) / n;
    if (slope < 0) {
        return form;
    }
    return base < 0 ? (struct rt_line){0, xy / xx} : (struct rt_line){base, slope};
}

void rt_prefill_line_learn(struct rt_prefill_line *fit, struct rt_line prior, uint32_t tokens,
                           int64_t compute_ns)
{
    if (tokens == 0 || compute_ns <= 0 || compute_ns > LONGEST_NS) {
        return;
    }
    rt_prefill_line_follow(fit, prior);
    double x = tokens;
    double y = clipped(fit, tokens, (double)compute_ns);
    fit->weight = fit->weight * RT_LINE_FADE + 1;
    fit->tokens = fit->tokens * RT_LINE_FADE + x;
    fit->tokens_squared = fit->tokens_squared * RT_LINE_FADE + x * x;
    fit->time = fit->time * RT_LINE_FADE + y;
    fit->tokens_time = fit->tokens_time * RT_LINE_FADE + x * y;
    fit->samples++;
    fit->line = solve(fit, prior);
}
