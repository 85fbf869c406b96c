/*
 * How TTFT and TPOT follow from a load and from counts of workers, learned from what routers saw.
 * Pure.
 *
 * A prompt keeps a prefill worker for as long as was measured for each of its tokens that were not
 * cached, and waits for a free one as Poisson arrivals do. A decode worker's step takes a + b *
 * batch, the line fitted through what was measured; by Little's law a batch is what arrives in the
 * time that its sequences take. A predictor, where there is one, stands for these two before
 * anything was measured and where the measured can't say, and is corrected by measured over
 * predicted. All that remains is a factor of TTFT's quantile, measured over predicted.
 */
#ifndef BATON_DEPLOY_BATONCTL_AUTOSCALE_MODEL_H
#define BATON_DEPLOY_BATONCTL_AUTOSCALE_MODEL_H

#include <stdbool.h>
#include <stdint.h>

/* Of the time to the first token, means; all zeros: not known. */
struct ctl_autoscale_stages {
    double queue_s, reserve_s; /* for room in prefill and pages in decode; for these pages */
    double prefill_queue_s, compute_s;
    double rest_s;
};

struct ctl_autoscale_load {
    double requests_s; /* that came, also those that were sent away */
    double input_tokens, output_tokens, cached_share;
};

/* What was measured in one window. */
struct ctl_autoscale_sample {
    struct ctl_autoscale_load load;
    struct ctl_autoscale_stages stages;
    double ttft_s, tpot_s; /* at the quantile of the targets */
    double tpot_median_s;  /* 0: nobody generated */
    double generated_s;    /* tokens */
    double full;           /* of decode workers' pages or places, [0, 1] */
    uint32_t workers[2];   /* [enum ctl_role], that served all the time */
    bool ttft_good;        /* no wait in it was for decode */
};

/* Seconds; both grow with their arguments. */
struct ctl_autoscale_predictor {
    double (*prefill_s)(void *context, double input_tokens, double cached_share);
    double (*step_s)(void *context, double batch, double context_tokens);
    void *context;
};

struct ctl_autoscale_model {
    const struct ctl_autoscale_predictor *predictor; /* NULL: none */
    double quantile;
    /* prefill */
    bool knows_prefill;
    double token_s, base_s, ttft_factor, prefill_factor;
    /* decode: sums over (batch, step), older ones weigh less */
    bool knows_decode;
    double weight, sum_x, sum_y, sum_xx, sum_xy;
    double tpot_factor, step_factor;
    double full_of_sequence; /* of one worker */
};

void ctl_autoscale_model_init(struct ctl_autoscale_model *model,
                              const struct ctl_autoscale_predictor *predictor, double quantile);
void ctl_autoscale_model_learn(struct ctl_autoscale_model *model,
                               const struct ctl_autoscale_sample *sample);

/* At the quantile; INFINITY: they do not keep up. Only where there is something known. */
double ctl_autoscale_ttft_s(const struct ctl_autoscale_model *model,
                            const struct ctl_autoscale_load *load, uint32_t prefills);
double ctl_autoscale_tpot_s(const struct ctl_autoscale_model *model,
                            const struct ctl_autoscale_load *load, uint32_t decodes);
/* Of prefill workers' time, and of decode workers' pages and places. */
double ctl_autoscale_busy(const struct ctl_autoscale_model *model,
                          const struct ctl_autoscale_load *load, uint32_t prefills);
double ctl_autoscale_full(const struct ctl_autoscale_model *model,
                          const struct ctl_autoscale_load *load, uint32_t decodes);
bool ctl_autoscale_knows(const struct ctl_autoscale_model *model, int role);

#endif
