#include "deploy/batonctl/autoscale_model.h"

#include <math.h>
#include <string.h>

#include "common/planner/queueing.h"
#include "deploy/batonctl/cluster.h"

#define NEWS         0.3  /* of a new value in a mean */
#define FORGET       0.95 /* of what the line knows, with each sample */
#define FACTOR_LEAST 0.25
#define FACTOR_MOST  4.0
#define BUSY_PROVEN  0.9 /* workers with hardly anybody waiting are no busier */
/* How a step grows with its batch, before batches of different sizes came. */
#define POWER      0.5
#define SPREAD     0.05 /* of batches' mean: standard deviation that a line needs */
#define BATCH_MOST 1e6
#define ROUNDS     60

static double within(double value, double least, double most)
{
    return !(value > least) ? least : value > most ? most : value;
}

/* The first value is taken as it is. */
static void mix(double *mean, double value, bool known)
{
    *mean = known ? *mean + NEWS * (value - *mean) : value;
}

void ctl_autoscale_model_init(struct ctl_autoscale_model *model,
                              const struct ctl_autoscale_predictor *predictor, double quantile)
{
    *model = (struct ctl_autoscale_model){
        .predictor = predictor,
        .quantile = quantile,
        .ttft_factor = 1,
        .prefill_factor = 1,
        .tpot_factor = 1,
        .step_factor = 1,
    };
}

bool ctl_autoscale_knows(const struct ctl_autoscale_model *model, int role)
{
    return model->predictor || (role == CTL_PREFILL ? model->knows_prefill : model->knows_decode);
}

/* ---- prefill */

static double fresh_tokens(const struct ctl_autoscale_load *load)
{
    return within(load->input_tokens * (1 - within(load->cached_share, 0, 1)), 1, INFINITY);
}

static double service_s(const struct ctl_autoscale_model *model,
                        const struct ctl_autoscale_load *load)
{
    if (model->predictor) {
        return model->prefill_factor * model->predictor->prefill_s(model->predictor->context,
                                                                   load->input_tokens,
                                                                   load->cached_share);
    }
    return model->token_s * fresh_tokens(load);
}

double ctl_autoscale_busy(const struct ctl_autoscale_model *model,
                          const struct ctl_autoscale_load *load, uint32_t prefills)
{
    return load->requests_s * service_s(model, load) / prefills;
}

static double plain_ttft_s(const struct ctl_autoscale_model *model,
                           const struct ctl_autoscale_load *load, uint32_t prefills)
{
    double service = service_s(model, load);
    double wait = load->requests_s > 0
                      ? bt_plan_wait_s(prefills, service, load->requests_s, 1, model->quantile)
                      : 0;
    return model->base_s + service + wait;
}

double ctl_autoscale_ttft_s(const struct ctl_autoscale_model *model,
                            const struct ctl_autoscale_load *load, uint32_t prefills)
{
    return model->ttft_factor * plain_ttft_s(model, load, prefills);
}

/* As a worker computes several prompts together, one may take longer than its share of the worker.
 * Where hardly anybody waits, the workers can't have been busier than BUSY_PROVEN. */
static double share_of_worker_s(const struct ctl_autoscale_sample *sample)
{
    const struct ctl_autoscale_stages *stages = &sample->stages;
    double rate = sample->load.requests_s, compute = stages->compute_s;
    double most = rate > 0 ? BUSY_PROVEN * sample->workers[CTL_PREFILL] / rate : INFINITY;
    bool idle = stages->queue_s + stages->prefill_queue_s < compute;
    return idle && compute > most ? most : compute;
}

static void learn_prefill(struct ctl_autoscale_model *model,
                          const struct ctl_autoscale_sample *sample)
{
    const struct ctl_autoscale_stages *stages = &sample->stages;
    if (!(stages->compute_s > 0) || !(sample->load.input_tokens > 0)) {
        return;
    }
    bool known = model->knows_prefill;
    double service = share_of_worker_s(sample);
    if (model->predictor) {
        double predicted = model->predictor->prefill_s(
            model->predictor->context, sample->load.input_tokens, sample->load.cached_share);
        if (predicted > 0) { /* of any size: cards that are not in a catalogue are modelled by it */
            mix(&model->prefill_factor, service / predicted, known);
        }
    }
    mix(&model->token_s, service / fresh_tokens(&sample->load), known);
    mix(&model->base_s, stages->rest_s + (stages->compute_s - service), known);
    model->knows_prefill = true;
    double plain = plain_ttft_s(model, &sample->load, sample->workers[CTL_PREFILL]);
    if (sample->ttft_good && sample->ttft_s > 0 && isfinite(plain) && plain > 0 &&
        ctl_autoscale_busy(model, &sample->load, sample->workers[CTL_PREFILL]) <= BUSY_PROVEN) {
        mix(&model->ttft_factor, within(sample->ttft_s / plain, FACTOR_LEAST, FACTOR_MOST), known);
    }
}

/* ---- decode */

/* A step of a batch: by the line, once batches of different sizes gave one. */
static double line_s(const struct ctl_autoscale_model *model, double batch)
{
    double x = model->sum_x / model->weight, y = model->sum_y / model->weight;
    double variance = model->sum_xx / model->weight - x * x;
    if (!(variance > SPREAD * SPREAD * x * x)) {
        return y * pow(batch / x, POWER);
    }
    double covariance = model->sum_xy / model->weight - x * y;
    double slope = within(covariance / variance, 0, y / x);
    return within(y + slope * (batch - x), 0, INFINITY);
}

static double step_s(const struct ctl_autoscale_model *model, const struct ctl_autoscale_load *load,
                     double batch)
{
    batch = within(batch, 1, BATCH_MOST);
    if (model->predictor) {
        return model->step_factor *
               model->predictor->step_s(model->predictor->context, batch,
                                        load->input_tokens + load->output_tokens / 2);
    }
    return line_s(model, batch);
}

/* The median of TPOT, by Little's law; INFINITY: no batch is large enough. */
static double steady_s(const struct ctl_autoscale_model *model,
                       const struct ctl_autoscale_load *load, uint32_t decodes)
{
    double arriving = load->requests_s * within(load->output_tokens - 1, 0, INFINITY) / decodes;
    double low = 1, high = BATCH_MOST;
    if (arriving * step_s(model, load, high) >= high) {
        return INFINITY;
    }
    for (int i = 0; i < ROUNDS; i++) {
        double middle = sqrt(low * high);
        if (arriving * step_s(model, load, middle) > middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return step_s(model, load, high);
}

double ctl_autoscale_tpot_s(const struct ctl_autoscale_model *model,
                            const struct ctl_autoscale_load *load, uint32_t decodes)
{
    return model->tpot_factor * steady_s(model, load, decodes);
}

double ctl_autoscale_full(const struct ctl_autoscale_model *model,
                          const struct ctl_autoscale_load *load, uint32_t decodes)
{
    double sequences = load->requests_s * within(load->output_tokens - 1, 0, INFINITY) / decodes;
    if (!(sequences > 0) || !(model->full_of_sequence > 0)) {
        return 0;
    }
    return model->full_of_sequence * sequences * steady_s(model, load, decodes);
}

static void learn_decode(struct ctl_autoscale_model *model,
                         const struct ctl_autoscale_sample *sample)
{
    double median = sample->tpot_median_s;
    double sequences = sample->generated_s * median;
    if (!(median > 0) || !(sequences > 0)) {
        return;
    }
    bool known = model->knows_decode;
    double batch = within(sequences / sample->workers[CTL_DECODE], 1, BATCH_MOST);
    double *const sums[] = {&model->weight, &model->sum_x, &model->sum_y, &model->sum_xx,
                            &model->sum_xy};
    const double news[] = {1, batch, median, batch * batch, batch * median};
    for (int i = 0; i < 5; i++) {
        *sums[i] = *sums[i] * FORGET + news[i];
    }
    if (model->predictor) {
        double predicted =
            model->predictor->step_s(model->predictor->context, batch,
                                     sample->load.input_tokens + sample->load.output_tokens / 2);
        if (predicted > 0) {
            mix(&model->step_factor, median / predicted, known);
        }
    }
    if (sample->tpot_s > 0) {
        mix(&model->tpot_factor, within(sample->tpot_s / median, 1, FACTOR_MOST), known);
    }
    if (sequences >= 0.5) {
        mix(&model->full_of_sequence, sample->full * sample->workers[CTL_DECODE] / sequences,
            known && model->full_of_sequence > 0);
    }
    model->knows_decode = true;
}

void ctl_autoscale_model_learn(struct ctl_autoscale_model *model,
                               const struct ctl_autoscale_sample *sample)
{
    if (sample->workers[CTL_PREFILL] > 0) {
        learn_prefill(model, sample);
    }
    if (sample->workers[CTL_DECODE] > 0) {
        learn_decode(model, sample);
    }
}
