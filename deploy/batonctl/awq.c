#include "deploy/batonctl/awq.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/model/quantize.h"

#define ALPHAS         11 /* exponents 0, 0.1 … 1 */
#define SAMPLE_ROWS    32 /* of one expert */
#define SAMPLE_EXPERTS 12 /* for the common input */
#define LANES          16

#if defined(__x86_64__) && defined(__has_attribute)
#define FAST __attribute__((target_clones("arch=skylake-avx512", "avx2", "default")))
#else
#define FAST
#endif

FAST static float dot(const float *a, const float *b, size_t count)
{
    float sums[LANES] = {0}, sum = 0;
    size_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        for (size_t l = 0; l < LANES; l++)
            sums[l] += a[i + l] * b[i + l];
    }
    for (; i < count; i++)
        sum += a[i] * b[i];
    for (size_t l = 0; l < LANES; l++)
        sum += sums[l];
    return sum;
}

/* ---- samples ---- */

/* Input rows of one matrix: [count][cols]. */
struct samples {
    const float *rows[SAMPLE_ROWS];
    uint32_t count;
};

static struct samples rows_of(const struct ctl_awq_layer *layer, uint32_t expert)
{
    struct samples samples = {.count = 0};
    bool shared = layer->has_shared && expert + 1 == layer->expert_count;
    uint32_t step = shared && layer->rows > SAMPLE_ROWS ? layer->rows / SAMPLE_ROWS : 1;
    for (uint32_t row = 0; row < layer->rows && samples.count < SAMPLE_ROWS; row += step) {
        bool chosen = shared;
        for (uint32_t k = 0; k < layer->experts_per_token; k++)
            chosen |= layer->choices[(size_t)row * layer->experts_per_token + k] == expert;
        if (chosen)
            samples.rows[samples.count++] = layer->x + (size_t)row * layer->hidden;
    }
    return samples;
}

/* Mean |x| of each input; ones where no row was seen. */
static void mean_sizes(const float *const *rows, uint32_t count, uint32_t cols, float *ret_size)
{
    for (uint32_t i = 0; i < cols; i++) {
        double size = 0;
        for (uint32_t r = 0; r < count; r++)
            size += fabs((double)rows[r][i]);
        ret_size[i] = count ? (float)(size / count) : 1;
    }
}

/* size^alpha, so that the largest and the smallest are each other's inverse. */
static void make_scales(const float *size, uint32_t cols, double alpha, float *ret_scales)
{
    double least = INFINITY, most = 0;
    for (uint32_t i = 0; i < cols; i++) {
        double scale = pow(fmax((double)size[i], 1e-6), alpha);
        ret_scales[i] = (float)scale;
        least = fmin(least, scale);
        most = fmax(most, scale);
    }
    for (uint32_t i = 0; i < cols; i++)
        ret_scales[i] = fminf(fmaxf(ret_scales[i] / (float)sqrt(least * most), 1e-3f), 1e3f);
}

/* ---- errors of one matrix ---- */

struct loss {
    double error, output;
};

/* Rows `first` … of a matrix rounded to int4 under `scales`, against what they were. work: 2 * cols
 * floats, values: cols + groups bytes. */
static struct loss rows_loss(const struct ctl_weights *w, uint32_t first, uint32_t count,
                             const struct samples *samples, const float *scales, float *work,
                             int8_t *values)
{
    struct loss loss = {0};
    float *weights = work, *scaled = work + w->cols;
    uint8_t *groups = (uint8_t *)values + w->cols;
    for (uint32_t row = first; row < first + count; row++) {
        w->row(w->context, row, weights);
        for (uint32_t i = 0; i < w->cols; i++)
            scaled[i] = weights[i] * scales[i];
        float scale = bt_quantize_row_i4(scaled, w->cols, NULL, false, values, groups);
        if (!isfinite(scale)) /* its rounding will say so */
            continue;
        for (uint32_t i = 0; i < w->cols; i++)
            scaled[i] =
                (float)values[i] * (float)groups[i / BT_QUANTIZE_GROUP] * scale / scales[i] -
                weights[i];
        for (uint32_t s = 0; s < samples->count; s++) {
            double off = (double)dot(scaled, samples->rows[s], w->cols);
            double out = (double)dot(weights, samples->rows[s], w->cols);
            loss.error += off * off;
            loss.output += out * out;
        }
    }
    return loss;
}

/* ---- in parallel: every exponent for blocks of rows ---- */

#define BLOCK_ROWS 64

struct job {
    const struct ctl_weights *weights;
    const struct samples *samples;
    const float *scales; /* [ALPHAS][cols] */
    struct loss *losses; /* [blocks][ALPHAS] */
    float *work;         /* [threads][2 * cols] */
    int8_t *values;      /* [threads][2 * cols] */
};

static void run_block(void *context, uint32_t part, uint32_t thread)
{
    const struct job *job = context;
    uint32_t first = part * BLOCK_ROWS, cols = job->weights->cols;
    uint32_t count = job->weights->rows - first;
    count = count < BLOCK_ROWS ? count : BLOCK_ROWS;
    for (uint32_t a = 0; a < ALPHAS; a++)
        job->losses[(size_t)part * ALPHAS + a] = rows_loss(
            job->weights, first, count, job->samples, job->scales + (size_t)a * cols,
            job->work + (size_t)thread * 2 * cols, job->values + (size_t)thread * 2 * cols);
}

/* Adds to totals [ALPHAS]. False: no memory. */
static bool add_losses(const struct ctl_weights *w, const struct samples *samples,
                       const float *scales, struct bt_team *team, struct loss *totals)
{
    uint32_t blocks = (w->rows + BLOCK_ROWS - 1) / BLOCK_ROWS, threads = bt_team_threads(team);
    struct job job = {w,
                      samples,
                      scales,
                      calloc((size_t)blocks * ALPHAS, sizeof(struct loss)),
                      calloc((size_t)threads * 2 * w->cols, sizeof(float)),
                      calloc((size_t)threads * 2 * w->cols, 1)};
    bool ok = job.losses && job.work && job.values;
    if (ok && samples->count)
        bt_team_run(team, run_block, &job, blocks);
    for (uint32_t b = 0; ok && b < blocks; b++) {
        for (uint32_t a = 0; a < ALPHAS; a++) {
            totals[a].error += job.losses[(size_t)b * ALPHAS + a].error;
            totals[a].output += job.losses[(size_t)b * ALPHAS + a].output;
        }
    }
    free(job.losses);
    free(job.work);
    free(job.values);
    return ok;
}

static uint32_t best_alpha(const struct loss *totals)
{
    uint32_t best = 0;
    for (uint32_t a = 1; a < ALPHAS; a++)
        if (totals[a].error < totals[best].error)
            best = a;
    return best;
}

static float *all_scales(const float *size, uint32_t cols)
{
    float *scales = calloc((size_t)ALPHAS * cols, sizeof(*scales));
    for (uint32_t a = 0; scales && a < ALPHAS; a++)
        make_scales(size, cols, (double)a / (ALPHAS - 1), scales + (size_t)a * cols);
    return scales;
}

/* ---- the common input ---- */

/* The experts with most samples, the shared one among them. */
static uint32_t pick_experts(const struct ctl_awq_layer *layer, uint32_t *ret_picks)
{
    uint32_t count = 0, least = SAMPLE_ROWS;
    for (; count < SAMPLE_EXPERTS && least > 0; least /= 2) {
        for (uint32_t e = layer->expert_count; e-- > 0 && count < SAMPLE_EXPERTS;) {
            bool taken = false;
            for (uint32_t i = 0; i < count; i++)
                taken |= ret_picks[i] == e;
            if (!taken && rows_of(layer, e).count >= least)
                ret_picks[count++] = e;
        }
    }
    return count;
}

static bool search_input(const struct ctl_awq_layer *layer, struct bt_team *team, float *ret_input,
                         struct loss *totals, double *ret_alpha)
{
    uint32_t picks[SAMPLE_EXPERTS], pick_count = pick_experts(layer, picks);
    const float **rows = calloc(layer->rows + 1, sizeof(*rows));
    float *size = calloc(layer->hidden, sizeof(*size)), *scales = NULL;
    bool ok = rows && size;
    if (ok) {
        for (uint32_t r = 0; r < layer->rows; r++)
            rows[r] = layer->x + (size_t)r * layer->hidden;
        mean_sizes(rows, layer->rows, layer->hidden, size);
        scales = all_scales(size, layer->hidden);
        ok = scales != NULL;
    }
    for (uint32_t i = 0; ok && i < pick_count; i++) {
        struct samples samples = rows_of(layer, picks[i]);
        ok = add_losses(&layer->experts[picks[i]].gate, &samples, scales, team, totals) &&
             add_losses(&layer->experts[picks[i]].up, &samples, scales, team, totals);
    }
    if (ok) {
        uint32_t best = best_alpha(totals);
        memcpy(ret_input, scales + (size_t)best * layer->hidden,
               layer->hidden * sizeof(*ret_input));
        *ret_alpha = (double)best / (ALPHAS - 1);
        totals[1] = totals[best]; /* what the caller reports */
    }
    free(rows);
    free(size);
    free(scales);
    return ok;
}

/* ---- the inner rows ---- */

struct inner_job {
    const struct ctl_expert *expert;
    const struct samples *samples;
    float *inner; /* [samples][inner] */
    float *work;  /* [threads][2 * hidden] */
};

static void run_inner(void *context, uint32_t part, uint32_t thread)
{
    const struct inner_job *job = context;
    const struct ctl_expert *expert = job->expert;
    uint32_t hidden = expert->gate.cols, inner = expert->gate.rows;
    float *gate = job->work + (size_t)thread * 2 * hidden, *up = gate + hidden;
    for (uint32_t i = part * BLOCK_ROWS; i < inner && i < (part + 1) * BLOCK_ROWS; i++) {
        expert->gate.row(expert->gate.context, i, gate);
        expert->up.row(expert->up.context, i, up);
        for (uint32_t s = 0; s < job->samples->count; s++) {
            float g = dot(gate, job->samples->rows[s], hidden);
            job->inner[(size_t)s * inner + i] =
                g / (1 + expf(-g)) * dot(up, job->samples->rows[s], hidden);
        }
    }
}

static bool search_inner(const struct ctl_awq_layer *layer, uint32_t e, struct bt_team *team,
                         float *ret_inner, struct loss *totals)
{
    const struct ctl_expert *expert = &layer->experts[e];
    for (uint32_t i = 0; i < expert->down.cols; i++)
        ret_inner[i] = 1;
    if (expert->down.cols % BT_QUANTIZE_GROUP) /* it will not be int4 */
        return true;
    uint32_t inner = expert->down.cols, threads = bt_team_threads(team);
    struct samples samples = rows_of(layer, e), inner_samples = {.count = samples.count};
    struct inner_job job = {expert, &samples, calloc((size_t)SAMPLE_ROWS * inner, sizeof(float)),
                            calloc((size_t)threads * 2 * layer->hidden, sizeof(float))};
    float *size = calloc(inner, sizeof(*size)), *scales = NULL;
    struct loss here[ALPHAS] = {{0, 0}};
    bool ok = job.inner && job.work && size;
    if (ok) {
        bt_team_run(team, run_inner, &job, (inner + BLOCK_ROWS - 1) / BLOCK_ROWS);
        for (uint32_t s = 0; s < samples.count; s++)
            inner_samples.rows[s] = job.inner + (size_t)s * inner;
        mean_sizes(inner_samples.rows, samples.count, inner, size);
        scales = all_scales(size, inner);
        ok = scales && add_losses(&expert->down, &inner_samples, scales, team, here);
    }
    if (ok) {
        uint32_t best = samples.count >= 4 ? best_alpha(here) : 0; /* too few say too little */
        memcpy(ret_inner, scales + (size_t)best * inner, inner * sizeof(*ret_inner));
        totals[0].error += here[0].error;
        totals[0].output += here[0].output;
        totals[1].error += here[best].error;
        totals[1].output += here[best].output;
    }
    free(job.inner);
    free(job.work);
    free(size);
    free(scales);
    return ok;
}

static double relative(struct loss a, struct loss b)
{
    double output = a.output + b.output;
    return output > 0 ? sqrt((a.error + b.error) / output) : 0;
}

enum bt_status ctl_awq_search(const struct ctl_awq_layer *layer, struct bt_team *team,
                              float *ret_input, float *ret_inner, uint32_t inner_stride,
                              struct ctl_awq_errors *ret_errors, struct bt_error *error)
{
    struct loss input[ALPHAS] = {{0, 0}}, inner[2] = {{0, 0}};
    double alpha = 0;
    bool ok = search_input(layer, team, ret_input, input, &alpha);
    for (uint32_t e = 0; ok && e < layer->expert_count; e++)
        ok = search_inner(layer, e, team, ret_inner + (size_t)e * inner_stride, inner);
    if (!ok)
        return bt_error_set(error, BT_ERR_NO_MEMORY, "scaling search: no memory");
    *ret_errors =
        (struct ctl_awq_errors){relative(input[0], inner[0]), relative(input[1], inner[1]), alpha};
    return BT_OK;
}
