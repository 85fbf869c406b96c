#include "deploy/batonctl/quantize.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/file.h"
#include "common/model/config.h"
#include "common/model/quantize.h"
#include "common/model/safetensors.h"
#include "common/model/safetensors_writer.h"
#include "common/model/weights.h"
#include "deploy/batonctl/awq.h"
#include "deploy/batonctl/calibration.h"
#include "deploy/batonctl/sensitivity.h"

#define MAX_JSON_BYTES ((size_t)64 << 20)

/* What becomes of a tensor of the source. */
enum fate {
    FATE_COPY,
    FATE_BF16, /* an F8 one that is kept: there is no fp8 beside int8 */
    FATE_INT8,
    FATE_INT4,
    FATE_SCALED_F32,
    FATE_DROP,
};

enum part { PART_OTHER, PART_ATTENTION, PART_FFN };

/* Where a tensor stands in the model. */
struct place {
    int64_t layer;  /* -1: none */
    int64_t expert; /* n_routed_experts: the shared ones; -1: none */
    enum part part;
    enum { ROLE_OTHER, ROLE_GATE, ROLE_UP, ROLE_DOWN, ROLE_ROUTER, ROLE_NORM, ROLE_HEAD } role;
};

struct plan {
    const struct bt_tensor *tensor;
    struct bt_matrix matrix; /* no data: a tensor that is no weight */
    struct place place;
    enum fate fate;
    uint32_t out, out_scale, out_group_scale; /* of the writer */
};

struct quantizer {
    const struct ctl_quantize_options *options;
    struct bt_model_config config;
    struct bt_safetensors *source;
    struct bt_safetensors_writer *writer;
    struct plan *plans; /* [tensors of the source] */
    size_t plan_count;
    struct ctl_calibration calibration;
    float **inputs;     /* [layer] scales of the experts' common input; NULL: none */
    float **inners;     /* [layer] [expert, the shared ones last][inner_stride] */
    float **importance; /* [layer] mean squares of the scaled common input */
    uint32_t inner_stride;
    struct ctl_quantize_report report;
    struct bt_error *error;
};

/* ---- names ---- */

static bool ends_with(const char *text, const char *end)
{
    size_t a = strlen(text), b = strlen(end);
    return a >= b && !strcmp(text + a - b, end);
}

static struct place place_of(const struct quantizer *q, const char *name)
{
    struct place p = {.layer = -1, .expert = -1};
    int at = 0;
    unsigned layer, expert;
    if (!strcmp(name, "lm_head.weight"))
        p.role = ROLE_HEAD;
    if (sscanf(name, "model.layers.%u.%n", &layer, &at) != 1 || at == 0 ||
        layer >= q->config.num_hidden_layers)
        return p;
    const char *rest = name + at;
    p.layer = layer;
    at = 0;
    if (sscanf(rest, "mlp.experts.%u.%n", &expert, &at) == 1 && at &&
        expert < q->config.n_routed_experts)
        p.expert = expert;
    else if (!strncmp(rest, "mlp.shared_experts.", 19))
        p.expert = q->config.n_routed_experts;
    if (!strncmp(rest, "self_attn.", 10))
        p.part = PART_ATTENTION;
    else if (!strncmp(rest, "mlp.", 4))
        p.part = PART_FFN;
    if (ends_with(rest, "gate_proj.weight"))
        p.role = ROLE_GATE;
    else if (ends_with(rest, "up_proj.weight"))
        p.role = ROLE_UP;
    else if (ends_with(rest, "down_proj.weight"))
        p.role = ROLE_DOWN;
    else if (!strcmp(rest, "mlp.gate.weight"))
        p.role = ROLE_ROUTER;
    else if (!strcmp(rest, "post_attention_layernorm.weight"))
        p.role = ROLE_NORM;
    return p;
}

static bool is_f8(const struct bt_tensor *t)
{
    return !strcmp(t->dtype_name, "F8_E4M3");
}

static bool is_matrix(const struct plan *plan)
{
    return plan->tensor->dim_count == 2;
}

/* A product of a layer that is rounded; `name` ends with "_proj.weight" in all of them but one. */
static bool is_rounded(const struct quantizer *q, const struct plan *plan)
{
    const struct place *p = &plan->place;
    const char *name = plan->tensor->name;
    if (p->layer < 0 || !is_matrix(plan) || ends_with(name, "kv_b_proj.weight") ||
        (p->part == PART_FFN && p->expert < 0 && q->options->keep_dense))
        return false;
    return ends_with(name, "_proj.weight") || ends_with(name, "kv_a_proj_with_mqa.weight");
}

static enum fate fate_of(const struct quantizer *q, const struct plan *plan)
{
    const struct ctl_quantize_options *o = q->options;
    const struct place *p = &plan->place;
    enum fate kept = is_f8(plan->tensor) ? FATE_BF16 : FATE_COPY;
    if (p->role == ROLE_HEAD)
        return o->keep_head || q->config.tie_word_embeddings ? kept : FATE_INT8;
    if ((p->role == ROLE_NORM || p->role == ROLE_ROUTER) && q->inputs[p->layer])
        return FATE_SCALED_F32;
    if (!is_rounded(q, plan))
        return kept;
    return p->expert >= 0 && o->format == CTL_QUANTIZE_W4A8 &&
                   plan->matrix.cols % BT_QUANTIZE_GROUP == 0
               ? FATE_INT4
               : FATE_INT8;
}

/* ---- reading the source ---- */

static enum bt_status tensor_fault(const struct quantizer *q, const struct plan *plan,
                                   const char *what)
{
    return bt_error_set(q->error, BT_ERR_INVALID_ARGUMENT, "%s/%s: tensor %s: %s",
                        q->options->model, plan->tensor->file, plan->tensor->name, what);
}

static enum bt_status read_matrix(struct quantizer *q, struct plan *plan)
{
    const struct bt_tensor *t = plan->tensor;
    if (is_f8(t) && q->config.quantization != BT_QUANTIZATION_FP8)
        return tensor_fault(q, plan, "F8_E4M3 without a quantization_config of fp8");
    if (!is_f8(t) && (!t->is_float || t->dim_count < 1 || t->dim_count > 2))
        return BT_OK;
    return bt_weight_find(q->source, q->options->model, t, q->error, &plan->matrix);
}

static enum bt_status make_plans(struct quantizer *q)
{
    enum bt_status status = BT_OK;
    q->plan_count = bt_safetensors_count(q->source);
    q->plans = calloc(q->plan_count, sizeof(*q->plans));
    if (!q->plans)
        return bt_error_set(q->error, BT_ERR_NO_MEMORY, "quantize: no memory");
    for (size_t i = 0; status == BT_OK && i < q->plan_count; i++) {
        struct plan *plan = &q->plans[i];
        plan->tensor = bt_safetensors_at(q->source, i);
        plan->place = place_of(q, plan->tensor->name);
        status = read_matrix(q, plan);
        q->report.source_bytes += plan->tensor->bytes;
    }
    return status;
}

static const struct plan *find_plan(const struct quantizer *q, const char *name)
{
    const struct bt_tensor *t = bt_safetensors_find(q->source, name);
    return t ? &q->plans[t - bt_safetensors_at(q->source, 0)] : NULL;
}

/* ---- scaling ---- */

static void plan_row(const void *context, uint32_t row, float *ret_row)
{
    const struct plan *plan = context;
    bt_weight_read_row(&plan->matrix, row, ret_row);
}

static bool find_weights(const struct quantizer *q, uint32_t layer, const char *where,
                         const char *part, struct ctl_weights *ret_weights)
{
    char name[160];
    snprintf(name, sizeof(name), "model.layers.%u.mlp.%s.%s_proj.weight", layer, where, part);
    const struct plan *plan = find_plan(q, name);
    if (!plan || !plan->matrix.data || !is_matrix(plan))
        return false;
    *ret_weights = (struct ctl_weights){plan_row, plan, plan->matrix.rows, plan->matrix.cols};
    return true;
}

static bool find_expert(const struct quantizer *q, uint32_t layer, const char *where,
                        struct ctl_expert *ret_expert)
{
    return find_weights(q, layer, where, "gate", &ret_expert->gate) &&
           find_weights(q, layer, where, "up", &ret_expert->up) &&
           find_weights(q, layer, where, "down", &ret_expert->down);
}

/* What an error of each input counts: its mean square after scaling. */
static enum bt_status weigh_inputs(struct quantizer *q, uint32_t layer)
{
    const struct ctl_calibration_layer *seen = &q->calibration.layers[layer];
    uint32_t hidden = q->config.hidden_size;
    float *importance = q->importance[layer] = calloc(hidden, sizeof(float));
    if (!importance)
        return bt_error_set(q->error, BT_ERR_NO_MEMORY, "quantize: no memory");
    for (uint32_t r = 0; r < seen->rows; r++) {
        for (uint32_t i = 0; i < hidden; i++) {
            float x = seen->x[(size_t)r * hidden + i] / q->inputs[layer][i];
            importance[i] += x * x / (float)seen->rows;
        }
    }
    return BT_OK;
}

static enum bt_status scale_layer(struct quantizer *q, uint32_t layer, struct ctl_expert *experts)
{
    const struct ctl_calibration_layer *seen = &q->calibration.layers[layer];
    uint32_t routed = q->config.n_routed_experts, count = routed;
    for (uint32_t e = 0; e < routed; e++) {
        char where[32];
        snprintf(where, sizeof(where), "experts.%u", e);
        if (!find_expert(q, layer, where, &experts[e]))
            return bt_error_set(q->error, BT_ERR_INVALID_ARGUMENT, "%s: layer %u: no expert %u",
                                q->options->model, layer, e);
    }
    bool shared = find_expert(q, layer, "shared_experts", &experts[routed]);
    count += shared;
    q->inputs[layer] = calloc(q->config.hidden_size, sizeof(float));
    q->inners[layer] = calloc((size_t)count * q->inner_stride, sizeof(float));
    if (!q->inputs[layer] || !q->inners[layer])
        return bt_error_set(q->error, BT_ERR_NO_MEMORY, "quantize: no memory");
    const struct ctl_awq_layer awq = {
        .hidden = q->config.hidden_size,
        .expert_count = count,
        .experts = experts,
        .has_shared = shared,
        .x = seen->x,
        .choices = seen->experts,
        .rows = seen->rows,
        .experts_per_token = q->calibration.experts_per_token,
    };
    struct ctl_awq_errors errors;
    enum bt_status status = ctl_awq_search(&awq, q->options->team, q->inputs[layer],
                                           q->inners[layer], q->inner_stride, &errors, q->error);
    if (status == BT_OK)
        status = weigh_inputs(q, layer);
    if (status == BT_OK) {
        q->report.layers[layer].plain_error = errors.plain;
        q->report.layers[layer].scaled_error = errors.scaled;
        q->report.layers[layer].alpha = errors.input_alpha;
    }
    return status;
}

static void say(const struct quantizer *q, const char *what, uint64_t done, uint64_t all)
{
    if (q->options->progress)
        fprintf(q->options->progress, "\r%s: %" PRIu64 " of %" PRIu64 "   ", what, done, all);
    if (q->options->progress && done == all)
        fputc('\n', q->options->progress);
}

static enum bt_status search_scales(struct quantizer *q)
{
    const struct ctl_quantize_options *o = q->options;
    uint32_t layers = q->config.num_hidden_layers,
             shared = q->config.n_shared_experts * q->config.moe_intermediate_size;
    q->inner_stride =
        shared > q->config.moe_intermediate_size ? shared : q->config.moe_intermediate_size;
    struct ctl_expert *experts = calloc((size_t)q->config.n_routed_experts + 1, sizeof(*experts));
    enum bt_status status = experts
                                ? ctl_calibrate(o->model, o->text, o->calibration_tokens, o->team,
                                                q->error, &q->calibration)
                                : bt_error_set(q->error, BT_ERR_NO_MEMORY, "quantize: no memory");
    for (uint32_t i = 0; status == BT_OK && i < layers; i++) {
        if (q->calibration.layers[i].rows)
            status = scale_layer(q, i, experts);
        say(q, "scaling layers", i + 1, layers);
    }
    free(experts);
    return status;
}

/* ---- writing ---- */

/* cols 0: a vector. */
static enum bt_status add(struct quantizer *q, const char *name, const char *suffix,
                          const char *dtype, uint64_t rows, uint64_t cols, uint32_t *ret_out)
{
    char full[600];
    uint64_t dims[2] = {rows, cols};
    snprintf(full, sizeof(full), "%s%s", name, suffix);
    return bt_safetensors_writer_add(q->writer, full, dtype, dims, cols ? 2 : 1, q->error, ret_out);
}

static enum bt_status add_rounded(struct quantizer *q, struct plan *plan)
{
    const char *name = plan->tensor->name;
    uint64_t rows = plan->matrix.rows, cols = plan->matrix.cols;
    bool int4 = plan->fate == FATE_INT4;
    if (!plan->matrix.data)
        return tensor_fault(q, plan, "only F32, BF16, F16 and F8_E4M3 can be rounded");
    if (cols > BT_INT8_MAX_COLS)
        return tensor_fault(q, plan, "too many inputs for sums of int8");
    enum bt_status status =
        add(q, name, "", int4 ? "U8" : "I8", rows, int4 ? cols / 2 : cols, &plan->out);
    if (status == BT_OK)
        status = add(q, name, "_scale", "F32", rows, 0, &plan->out_scale);
    if (status == BT_OK && int4)
        status = add(q, name, "_group_scale", "U8", rows, cols / BT_QUANTIZE_GROUP,
                     &plan->out_group_scale);
    return status;
}

/* The scales of an F8 tensor, which stays F8 nowhere. */
static bool is_block_scales(const struct quantizer *q, const struct bt_tensor *t)
{
    static const char ending[] = "_scale_inv";
    char weight[512];
    if (!ends_with(t->name, ending))
        return false;
    snprintf(weight, sizeof(weight), "%.*s", (int)(strlen(t->name) - strlen(ending)), t->name);
    const struct plan *owner = find_plan(q, weight);
    return owner && is_f8(owner->tensor);
}

static enum bt_status plan_output(struct quantizer *q, struct plan *plan)
{
    const struct bt_tensor *t = plan->tensor;
    uint64_t cols = is_matrix(plan) ? t->dims[1] : 0;
    plan->fate = is_block_scales(q, t) ? FATE_DROP : fate_of(q, plan);
    switch (plan->fate) {
    case FATE_DROP:
        return BT_OK;
    case FATE_COPY:
        return bt_safetensors_writer_add(q->writer, t->name, t->dtype_name, t->dims, t->dim_count,
                                         q->error, &plan->out);
    case FATE_BF16:
        return add(q, t->name, "", "BF16", t->dims[0], cols, &plan->out);
    case FATE_SCALED_F32:
        if (!t->is_float || is_matrix(plan) != (plan->place.role == ROLE_ROUTER))
            return tensor_fault(q, plan, "not a norm or a router");
        return add(q, t->name, "", "F32", t->dims[0], cols, &plan->out);
    case FATE_INT8:
    case FATE_INT4:
        break;
    }
    return add_rounded(q, plan);
}

struct matrix_job {
    const struct quantizer *q;
    const struct plan *plan;
    const float *input_scales, *output_scales, *importance; /* NULL: ones */
    uint64_t rows, cols, value_bytes, groups;               /* value_bytes and groups of a row */
    float *work;                                            /* [threads][cols] */
    int8_t *values;                                         /* [threads][cols] */
    uint8_t *out;                                           /* [rows][value_bytes] */
    uint8_t *group_scales;                                  /* [rows][groups] */
    float *scales;                                          /* [rows] */
    double *errors;                                         /* [rows][2] */
};

/* Error and size of a row, both squared. */
static void row_error(const struct matrix_job *job, const float *row, const int8_t *values,
                      const uint8_t *group_scales, float scale, double *ret_error)
{
    ret_error[0] = ret_error[1] = 0;
    for (uint64_t i = 0; i < job->cols; i++) {
        double back = (double)values[i] * (double)scale *
                      (group_scales ? group_scales[i / BT_QUANTIZE_GROUP] : 1);
        double by = job->input_scales ? (double)job->input_scales[i] : 1;
        ret_error[0] += (back - (double)row[i]) / by * ((back - (double)row[i]) / by);
        ret_error[1] += (double)row[i] / by * ((double)row[i] / by);
    }
}

static void round_row(void *context, uint32_t row, uint32_t thread)
{
    const struct matrix_job *job = context;
    float *in = job->work + thread * job->cols, scale;
    int8_t *values = job->values + thread * job->cols;
    uint8_t *groups = job->groups ? job->group_scales + row * job->groups : NULL;
    bt_weight_read_row(&job->plan->matrix, row, in);
    for (uint64_t i = 0; job->input_scales && i < job->cols; i++)
        in[i] *= job->input_scales[i];
    if (groups) {
        scale = bt_quantize_row_i4(in, job->cols, job->importance, true, values, groups);
        bt_quantize_pack_i4(values, job->cols, job->out + row * job->value_bytes);
    } else {
        scale = bt_quantize_row_i8(in, job->cols, values);
        memcpy(job->out + row * job->value_bytes, values, job->cols);
    }
    if (isfinite(scale))
        row_error(job, in, values, groups, scale, job->errors + 2 * (size_t)row);
    job->scales[row] = job->output_scales ? scale / job->output_scales[row] : scale;
}

/* What round_row left where it met a NaN or an infinity. */
static enum bt_status check_rows(struct quantizer *q, const struct matrix_job *job)
{
    char what[96];
    for (uint64_t row = 0; row < job->rows; row++) {
        if (isfinite(job->scales[row]))
            continue;
        snprintf(what, sizeof(what), "row %" PRIu64 " has an element that is not finite", row);
        return tensor_fault(q, job->plan, what);
    }
    return BT_OK;
}

static void report_error(struct quantizer *q, const struct plan *plan, const double *errors,
                         uint64_t rows, double *sums)
{
    if (plan->place.layer < 0)
        return;
    double *at = sums + 4 * (size_t)plan->place.layer + (plan->place.part == PART_FFN ? 2 : 0);
    for (uint64_t r = 0; r < rows; r++) {
        at[0] += errors[2 * r];
        at[1] += errors[2 * r + 1];
    }
    struct ctl_quantize_layer *layer = &q->report.layers[plan->place.layer];
    double root = at[1] > 0 ? sqrt(at[0] / at[1]) : 0;
    if (plan->place.part == PART_FFN)
        layer->ffn_error = root;
    else
        layer->attention_error = root;
}

static void find_scales(const struct quantizer *q, const struct place *p, const float **ret_input,
                        const float **ret_output)
{
    *ret_input = *ret_output = NULL;
    if (p->layer < 0 || p->expert < 0 || !q->inputs[p->layer])
        return;
    const float *inner = q->inners[p->layer] + (size_t)p->expert * q->inner_stride;
    if (p->role == ROLE_DOWN) {
        *ret_input = inner;
        return;
    }
    *ret_input = q->inputs[p->layer];
    if (p->role == ROLE_UP)
        *ret_output = inner;
}

static enum bt_status write_rounded(struct quantizer *q, const struct plan *plan, double *sums)
{
    uint32_t threads = bt_team_threads(q->options->team);
    bool int4 = plan->fate == FATE_INT4;
    struct matrix_job job = {
        .q = q, .plan = plan, .rows = plan->matrix.rows, .cols = plan->matrix.cols};
    job.value_bytes = int4 ? job.cols / 2 : job.cols;
    job.groups = int4 ? job.cols / BT_QUANTIZE_GROUP : 0;
    find_scales(q, &plan->place, &job.input_scales, &job.output_scales);
    if (job.input_scales && plan->place.role != ROLE_DOWN)
        job.importance = q->importance[plan->place.layer];
    job.work = calloc(threads * job.cols + 1, sizeof(float));
    job.values = calloc(threads * job.cols + 1, 1);
    job.out = calloc(job.rows * job.value_bytes + 1, 1);
    job.group_scales = calloc(job.rows * job.groups + 1, 1);
    job.scales = calloc(job.rows + 1, sizeof(float));
    job.errors = calloc(2 * job.rows + 1, sizeof(double));
    enum bt_status status = BT_OK;
    if (!job.work || !job.values || !job.out || !job.group_scales || !job.scales || !job.errors)
        status = bt_error_set(q->error, BT_ERR_NO_MEMORY, "quantize: no memory");
    if (status == BT_OK) {
        bt_team_run(q->options->team, round_row, &job, (uint32_t)job.rows);
        status = check_rows(q, &job);
    }
    if (status == BT_OK) {
        report_error(q, plan, job.errors, job.rows, sums);
        status = bt_safetensors_writer_put(q->writer, plan->out, 0, job.out,
                                           job.rows * job.value_bytes, q->error);
    }
    if (status == BT_OK)
        status = bt_safetensors_writer_put(q->writer, plan->out_scale, 0, job.scales,
                                           job.rows * sizeof(float), q->error);
    if (status == BT_OK && int4)
        status = bt_safetensors_writer_put(q->writer, plan->out_group_scale, 0, job.group_scales,
                                           job.rows * job.groups, q->error);
    q->report.bytes += job.rows * (job.value_bytes + job.groups + sizeof(float));
    free(job.work);
    free(job.values);
    free(job.out);
    free(job.group_scales);
    free(job.scales);
    free(job.errors);
    return status;
}

/* The norm gives less of an input whose weights were made larger; the router takes it back. */
static enum bt_status write_scaled(struct quantizer *q, const struct plan *plan)
{
    const struct bt_tensor *t = plan->tensor;
    bool is_norm = plan->place.role == ROLE_NORM;
    uint64_t rows = is_norm ? 1 : t->dims[0], cols = is_norm ? t->dims[0] : t->dims[1];
    const float *scales = q->inputs[plan->place.layer];
    float *row = calloc(cols, sizeof(*row));
    enum bt_status status =
        row ? BT_OK : bt_error_set(q->error, BT_ERR_NO_MEMORY, "quantize: no memory");
    for (uint64_t r = 0; status == BT_OK && r < rows; r++) {
        bt_weight_read_row(&plan->matrix, (uint32_t)r, row);
        for (uint64_t i = 0; i < cols; i++)
            row[i] = is_norm ? row[i] / scales[i] : row[i] * scales[i];
        status = bt_safetensors_writer_put(q->writer, plan->out, r * cols * sizeof(*row), row,
                                           cols * sizeof(*row), q->error);
    }
    q->report.bytes += rows * cols * sizeof(*row);
    free(row);
    return status;
}

/* F8 to BF16, as its values are computed with. */
static enum bt_status write_bf16(struct quantizer *q, const struct plan *plan)
{
    uint32_t cols = plan->matrix.cols;
    float *row = calloc((size_t)cols + 1, sizeof(*row));
    uint16_t *out = calloc((size_t)cols + 1, sizeof(*out));
    enum bt_status status =
        row && out ? BT_OK : bt_error_set(q->error, BT_ERR_NO_MEMORY, "quantize: no memory");
    for (uint32_t r = 0; status == BT_OK && r < plan->matrix.rows; r++) {
        bt_weight_read_row(&plan->matrix, r, row);
        for (uint32_t i = 0; i < cols; i++)
            out[i] = bt_f32_to_bf16(row[i]);
        status = bt_safetensors_writer_put(q->writer, plan->out, (size_t)r * cols * sizeof(*out),
                                           out, cols * sizeof(*out), q->error);
    }
    q->report.bytes += (uint64_t)plan->matrix.rows * cols * sizeof(*out);
    free(row);
    free(out);
    return status;
}

static enum bt_status write_plan(struct quantizer *q, const struct plan *plan, double *sums)
{
    if (plan->fate == FATE_DROP)
        return BT_OK;
    if (plan->fate == FATE_SCALED_F32)
        return write_scaled(q, plan);
    if (plan->fate == FATE_BF16)
        return write_bf16(q, plan);
    if (plan->fate != FATE_COPY)
        return write_rounded(q, plan, sums);
    q->report.bytes += plan->tensor->bytes;
    return bt_safetensors_writer_put(q->writer, plan->out, 0, plan->tensor->data,
                                     plan->tensor->bytes, q->error);
}

static enum bt_status write_weights(struct quantizer *q)
{
    char path[4200];
    snprintf(path, sizeof(path), "%s/model.safetensors", q->options->out);
    double *sums = calloc(4 * (size_t)q->config.num_hidden_layers, sizeof(*sums));
    enum bt_status status = sums ? bt_safetensors_writer_create(path, q->error, &q->writer)
                                 : bt_error_set(q->error, BT_ERR_NO_MEMORY, "quantize: no memory");
    for (size_t i = 0; status == BT_OK && i < q->plan_count; i++)
        status = plan_output(q, &q->plans[i]);
    if (status == BT_OK)
        status = bt_safetensors_writer_begin(q->writer, q->error);
    for (size_t i = 0; status == BT_OK && i < q->plan_count; i++) {
        status = write_plan(q, &q->plans[i], sums);
        if (i % 64 == 0 || i + 1 == q->plan_count)
            say(q, "writing tensors", i + 1, q->plan_count);
    }
    if (status == BT_OK)
        status = bt_safetensors_writer_finish(q->writer, q->error);
    free(sums);
    return status;
}

/* ---- the other files ---- */

static enum bt_status write_file(const char *path, const char *text, size_t bytes,
                                 struct bt_error *error)
{
    FILE *out = fopen(path, "wb");
    if (!out || (bytes && fwrite(text, bytes, 1, out) != 1) || fclose(out))
        return bt_error_set(error, BT_ERR_IO, "%s: %s", path, strerror(errno));
    return BT_OK;
}

static enum bt_status write_config(struct quantizer *q)
{
    char path[4200], *text;
    json_error_t fault;
    snprintf(path, sizeof(path), "%s/config.json", q->options->model);
    json_t *config = json_load_file(path, 0, &fault);
    if (!config)
        return bt_error_set(q->error, BT_ERR_INVALID_ARGUMENT, "%s:%d: %s", path, fault.line,
                            fault.text);
    json_object_set_new(config, "quantization_config",
                        json_pack("{s:s, s:s, s:i, s:b}", "quant_method", "baton", "format",
                                  q->options->format == CTL_QUANTIZE_W4A8 ? "w4a8" : "int8",
                                  "group_size", BT_QUANTIZE_GROUP, "activation_scaling",
                                  q->options->text && q->options->format == CTL_QUANTIZE_W4A8));
    text = json_dumps(config, JSON_INDENT(2));
    json_decref(config);
    snprintf(path, sizeof(path), "%s/config.json", q->options->out);
    enum bt_status status = text ? write_file(path, text, strlen(text), q->error)
                                 : bt_error_set(q->error, BT_ERR_NO_MEMORY, "%s: no memory", path);
    free(text);
    return status;
}

/* Tokenizer and generation files as they are. */
static enum bt_status copy_others(struct quantizer *q)
{
    DIR *dir = opendir(q->options->model);
    if (!dir)
        return bt_error_set(q->error, BT_ERR_IO, "%s: %s", q->options->model, strerror(errno));
    enum bt_status status = BT_OK;
    for (struct dirent *entry; status == BT_OK && (entry = readdir(dir));) {
        char from[4200], to[4200], *text = NULL;
        size_t bytes = 0;
        const char *name = entry->d_name;
        if ((!ends_with(name, ".json") && !ends_with(name, ".jinja")) ||
            !strcmp(name, "config.json") || ends_with(name, ".index.json"))
            continue;
        snprintf(from, sizeof(from), "%s/%s", q->options->model, name);
        snprintf(to, sizeof(to), "%s/%s", q->options->out, name);
        status = bt_file_read(from, MAX_JSON_BYTES, q->error, &text, &bytes);
        if (status == BT_OK)
            status = write_file(to, text, bytes, q->error);
        free(text);
    }
    closedir(dir);
    return status;
}

static enum bt_status check_directories(struct quantizer *q)
{
    const char *out = q->options->out;
    if (mkdir(out, 0755) == 0)
        return BT_OK;
    if (errno != EEXIST)
        return bt_error_set(q->error, BT_ERR_IO, "%s: %s", out, strerror(errno));
    DIR *dir = opendir(out);
    bool empty = dir != NULL;
    for (struct dirent *entry; dir && (entry = readdir(dir));)
        empty &= !strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..");
    if (dir)
        closedir(dir);
    if (!empty)
        return bt_error_set(q->error, BT_ERR_ALREADY_EXISTS, "%s: not an empty directory", out);
    return BT_OK;
}

static enum bt_status make_report(struct quantizer *q)
{
    q->report.layer_count = q->config.num_hidden_layers;
    q->report.layers = calloc(q->report.layer_count, sizeof(*q->report.layers));
    q->inputs = calloc(q->report.layer_count, sizeof(*q->inputs));
    q->inners = calloc(q->report.layer_count, sizeof(*q->inners));
    q->importance = calloc(q->report.layer_count, sizeof(*q->importance));
    if (!q->report.layers || !q->inputs || !q->inners || !q->importance)
        return bt_error_set(q->error, BT_ERR_NO_MEMORY, "quantize: no memory");
    for (uint32_t i = 0; i < q->report.layer_count; i++) {
        q->report.layers[i].layer = i;
        q->report.layers[i].is_moe = bt_model_layer_is_moe(&q->config, i);
    }
    return BT_OK;
}

static void quantizer_finish(struct quantizer *q)
{
    for (uint32_t i = 0; i < q->config.num_hidden_layers; i++) {
        if (q->inputs)
            free(q->inputs[i]);
        if (q->inners)
            free(q->inners[i]);
        if (q->importance)
            free(q->importance[i]);
    }
    free(q->importance);
    free(q->inputs);
    free(q->inners);
    free(q->plans);
    ctl_calibration_finish(&q->calibration);
    bt_safetensors_writer_destroy(q->writer);
    bt_safetensors_close(q->source);
}

/* The result is there already: that it can't be measured here does not make it bad. */
static enum bt_status measure(struct quantizer *q)
{
    const struct ctl_quantize_options *o = q->options;
    struct ctl_quantize_report *report = &q->report;
    struct bt_divergence *layers = calloc(report->layer_count, sizeof(*layers));
    enum bt_status status = layers
                                ? ctl_sensitivity_measure(o->model, o->out, o->text, o->team,
                                                          q->error, layers, &report->divergence)
                                : bt_error_set(q->error, BT_ERR_NO_MEMORY, "quantize: no memory");
    for (uint32_t i = 0; status == BT_OK && i < report->layer_count; i++)
        report->layers[i].divergence = layers[i];
    free(layers);
    if (status != BT_ERR_NO_MEMORY)
        return status;
    report->unmeasured = *q->error;
    return BT_OK;
}

enum bt_status ctl_quantize(const struct ctl_quantize_options *options, struct bt_error *error,
                            struct ctl_quantize_report *ret_report)
{
    struct quantizer q = {.options = options, .error = error};
    enum bt_status status = bt_model_config_load(options->model, error, &q.config);
    if (status == BT_OK && q.config.quantization == BT_QUANTIZATION_BATON)
        status = bt_error_set(error, BT_ERR_INVALID_ARGUMENT,
                              "%s: is rounded to integers already: give the checkpoint that it was "
                              "made from",
                              options->model);
    if (status == BT_OK)
        status = bt_safetensors_open(options->model, error, &q.source);
    if (status == BT_OK)
        status = make_report(&q);
    if (status == BT_OK)
        status = make_plans(&q);
    if (status == BT_OK)
        status = check_directories(&q);
    if (status == BT_OK && options->text && options->format == CTL_QUANTIZE_W4A8)
        status = search_scales(&q);
    if (status == BT_OK)
        status = write_weights(&q);
    if (status == BT_OK)
        status = copy_others(&q);
    if (status == BT_OK)
        status = write_config(&q); /* last: without it the directory is no checkpoint */
    if (status == BT_OK && options->text)
        status = measure(&q);
    quantizer_finish(&q);
    if (status != BT_OK)
        ctl_quantize_report_finish(&q.report);
    else
        *ret_report = q.report;
    return status;
}

void ctl_quantize_report_finish(struct ctl_quantize_report *report)
{
    free(report->layers);
    *report = (struct ctl_quantize_report){0};
}
