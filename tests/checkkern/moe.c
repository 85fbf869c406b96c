/* moe_route, moe_experts */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/checkkern/check.h"

#define MAX_EXPERTS 256

struct scored {
    double score;
    uint32_t index;
};

/* moe_route with the index map thrown away, or moe_experts with it made from the choices. */
static void route(const struct bt_kernels *kernels, struct bt_stream *stream, const float *x,
                  uint32_t rows, const struct bt_matrix *gate, const struct bt_matrix *bias,
                  const struct bt_route_shape *shape, uint32_t *experts, float *weights)
{
    uint32_t *order = malloc(((size_t)rows * shape->experts_per_token + 1) * sizeof(*order));
    uint32_t begin[MAX_EXPERTS + 1];
    struct bt_routing routing = {experts, (float *)(uintptr_t)weights, order, begin};
    kernels->moe_route(stream, x, rows, gate, bias, shape, &routing);
    free(order);
}

static void experts_of(const struct bt_kernels *kernels, struct bt_stream *stream, const float *x,
                       uint32_t rows, const struct bt_route_shape *shape, uint32_t *experts,
                       const float *weights, const struct bt_expert_weights *w, float *out)
{
    uint32_t *order = malloc(((size_t)rows * shape->experts_per_token + 1) * sizeof(*order));
    uint32_t begin[MAX_EXPERTS + 1], at = 0;
    struct bt_routing routing = {experts, (float *)(uintptr_t)weights, order, begin};
    for (uint32_t e = 0; e < shape->experts; e++) {
        begin[e] = at;
        for (uint32_t i = 0; i < rows * shape->experts_per_token; i++)
            if (experts[i] == e)
                order[at++] = i;
    }
    begin[shape->experts] = at;
    kernels->moe_experts(stream, x, rows, shape, &routing, w, out);
    free(order);
}

static int by_score(const void *a, const void *b)
{
    const struct scored *x = a, *y = b;
    if (x->score != y->score)
        return x->score < y->score ? 1 : -1;
    return x->index < y->index ? -1 : 1;
}

static void narrow(double *gap, double a, double b)
{
    if (a != b && fabs(a - b) < *gap)
        *gap = fabs(a - b);
}

/* The score of a group: its best, or the sum of its two best. */
static double naive_group(const double *choice, uint32_t size, enum bt_topk_method method)
{
    struct scored sorted[MAX_EXPERTS];
    for (uint32_t i = 0; i < size; i++)
        sorted[i] = (struct scored){choice[i], i};
    qsort(sorted, size, sizeof(sorted[0]), by_score);
    return method == BT_TOPK_NOAUX_TC && size > 1 ? sorted[0].score + sorted[1].score
                                                  : sorted[0].score;
}

/* Masks with minus infinity what is not in the best groups. */
static void naive_mask(const struct bt_route_shape *shape, double *choice, double *gap)
{
    struct scored groups[MAX_EXPERTS];
    uint32_t size = shape->experts / shape->groups;
    for (uint32_t g = 0; g < shape->groups; g++)
        groups[g] = (struct scored){naive_group(choice + g * size, size, shape->method), g};
    qsort(groups, shape->groups, sizeof(groups[0]), by_score);
    for (uint32_t i = shape->groups_per_token; i < shape->groups; i++) {
        narrow(gap, groups[shape->groups_per_token - 1].score, groups[i].score);
        for (uint32_t j = 0; j < size; j++)
            choice[groups[i].index * size + j] = -INFINITY;
    }
}

/* By sorting. ret_gap: the smallest difference that decided anything, equal scores left out. */
static void naive_route(const double *logits, const struct bt_matrix *bias,
                        const struct bt_route_shape *shape, uint32_t *experts, double *weights,
                        double *ret_gap)
{
    double score[MAX_EXPERTS], choice[MAX_EXPERTS], total = 0, sum = 0, gap = INFINITY;
    struct scored sorted[MAX_EXPERTS];
    for (uint32_t e = 0; e < shape->experts; e++)
        total += exp(logits[e]);
    for (uint32_t e = 0; e < shape->experts; e++) {
        score[e] = shape->scoring == BT_SCORING_SOFTMAX ? exp(logits[e]) / total
                                                        : 1 / (1 + exp(-logits[e]));
        choice[e] = score[e];
        if (shape->method == BT_TOPK_NOAUX_TC && bias->data)
            choice[e] += check_matrix_at(bias, 0, e);
    }
    if (shape->method != BT_TOPK_GREEDY && shape->groups > 1)
        naive_mask(shape, choice, &gap);
    for (uint32_t e = 0; e < shape->experts; e++)
        sorted[e] = (struct scored){choice[e], e};
    qsort(sorted, shape->experts, sizeof(sorted[0]), by_score);
    for (uint32_t i = 0; i < shape->experts_per_token; i++) {
        experts[i] = sorted[i].index;
        weights[i] = score[sorted[i].index];
        sum += weights[i];
        if (i + 1 < shape->experts)
            narrow(&gap, sorted[i].score, sorted[i + 1].score);
    }
    for (uint32_t i = 0; i < shape->experts_per_token; i++)
        weights[i] = weights[i] / (shape->normalize ? sum + 1e-20 : 1) * shape->scale;
    *ret_gap = gap;
}

/* k distinct experts, whatever the scores were. */
static void check_valid(struct check *check, const struct bt_route_shape *shape,
                        const uint32_t *experts)
{
    for (uint32_t i = 0; i < shape->experts_per_token; i++) {
        bool bad = experts[i] >= shape->experts;
        for (uint32_t j = 0; j < i; j++)
            bad |= experts[i] == experts[j];
        if (bad) {
            check_fail(check, "choice %u is expert %u: not there, or chosen twice", i, experts[i]);
            return;
        }
    }
}

struct route_data {
    uint32_t rows, hidden;
    struct bt_matrix gate, bias;
    float *x;
    uint32_t *experts;
    float *weights;
};

/*
 * Scores that differ by less than 1e-5 may be ordered either way in f32 (their error is some 1e-6),
 * unless they are equal: the same gate row gives the same bits. The weights' error is that of the
 * logits, hidden/16 + 6 roundings of at most 2.5, four more of the exponential, and the sum's.
 */
static void check_route_rows(struct check *check, const struct bt_route_shape *shape,
                             const struct route_data *d)
{
    uint32_t k = shape->experts_per_token, skipped = 0;
    double logits[MAX_EXPERTS], weights[MAX_EXPERTS], gap;
    uint32_t experts[MAX_EXPERTS];
    for (uint32_t row = 0; row < d->rows; row++) {
        for (uint32_t e = 0; e < shape->experts; e++) {
            logits[e] = 0;
            for (uint32_t i = 0; i < d->hidden; i++)
                logits[e] += d->x[row * d->hidden + i] * check_matrix_at(&d->gate, e, i);
        }
        naive_route(logits, &d->bias, shape, experts, weights, &gap);
        check_valid(check, shape, d->experts + row * k);
        if (gap < 1e-5) {
            skipped++;
            continue;
        }
        check_bits(check, "experts", d->experts + row * k, experts, k, sizeof(uint32_t));
        check_close(check, "weights", d->weights + row * k, weights, NULL, k,
                    CHECK_EPS * (d->hidden / 16 + 30), 1e-37);
    }
    if (skipped * 4 > d->rows)
        check_fail(check, "%u of %u rows too near to a tie to compare", skipped, d->rows);
}

static void check_route_shape(struct check *check, struct bt_route_shape shape, uint32_t rows,
                              uint32_t hidden, enum bt_dtype dtype, bool biased)
{
    uint32_t k = shape.experts_per_token;
    check_begin(check,
                "rows %u hidden %u dtype %u experts %u k %u groups %u/%u scoring %u method %u"
                " bias %u normalize %u",
                rows, hidden, dtype, shape.experts, k, shape.groups_per_token, shape.groups,
                shape.scoring, shape.method, biased, shape.normalize);
    struct bt_stream_limits limits = {
        .max_rows = rows, .hidden = hidden, .experts = shape.experts, .experts_per_token = k};
    struct bt_stream *stream = check_stream(&limits);
    struct route_data d = {rows, hidden,
                           .gate = check_matrix(check, shape.experts, hidden, dtype, 1)};
    if (biased)
        d.bias = check_matrix(check, 1, shape.experts, BT_F32, 0.5f);
    size_t row_bytes = hidden * bt_dtype_bytes(dtype);
    if (shape.experts > 2) { /* a tie for the best, with no bias */
        memcpy((char *)d.gate.data + row_bytes, (const char *)d.gate.data, row_bytes);
        if (biased)
            ((float *)d.bias.data)[1] = ((const float *)d.bias.data)[0];
    }
    d.x = check_floats_random(check, (size_t)rows * hidden, CHECK_NORMAL);
    d.experts = check_buffer(check, rows * k * sizeof(uint32_t));
    d.weights = check_floats(check, rows * k);
    uint32_t *experts = check_buffer(check, rows * k * sizeof(uint32_t));
    float *weights = check_floats(check, rows * k);

    route(check->kernels, stream, d.x, rows, &d.gate, &d.bias, &shape, d.experts, d.weights);
    check_route_rows(check, &shape, &d);
    for (uint32_t row = 0; row < rows; row++)
        route(check->kernels, stream, d.x + row * hidden, 1, &d.gate, &d.bias, &shape,
              experts + row * k, weights + row * k);
    check_bits(check, "row alone: experts", experts, d.experts, rows * k, sizeof(uint32_t));
    check_bits(check, "row alone: weights", weights, d.weights, rows * k, sizeof(float));
    if (check->twin) {
        route(check->twin, stream, d.x, rows, &d.gate, &d.bias, &shape, experts, weights);
        check_bits(check, "twin: experts", experts, d.experts, rows * k, sizeof(uint32_t));
        check_bits(check, "twin: weights", weights, d.weights, rows * k, sizeof(float));
    }
    for (uint32_t i = 0; i < rows * hidden; i++) {
        static const float poison[] = {NAN, INFINITY, -INFINITY, 3e38f, 0};
        d.x[i] = poison[i / hidden % 2 ? i % 5 : 0];
    }
    route(check->kernels, stream, d.x, rows, &d.gate, &d.bias, &shape, experts, weights);
    for (uint32_t row = 0; row < rows; row++)
        check_valid(check, &shape, experts + row * k);
    bt_stream_destroy(stream);
    check_end(check);
}

void check_moe_route(struct check *check)
{
    /* experts, k, groups, groups per token */
    static const uint32_t sizes[][4] = {{16, 4, 4, 2}, {1, 1, 1, 1},   {17, 17, 1, 1},
                                        {64, 6, 1, 1}, {160, 6, 8, 3}, {256, 8, 8, 4},
                                        {12, 6, 6, 3}, {8, 6, 4, 2}};
    for (unsigned i = 0; i < 8; i++) {
        for (unsigned j = 0; j < 6; j++) {
            struct bt_route_shape shape = {sizes[i][0],
                                           sizes[i][1],
                                           sizes[i][2],
                                           sizes[i][3],
                                           j % 2 ? BT_SCORING_SIGMOID : BT_SCORING_SOFTMAX,
                                           (enum bt_topk_method)(j % 3),
                                           (i + j) % 2 != 0,
                                           2.5f};
            /* more experts than the chosen groups hold: only that they are valid is promised */
            if (sizes[i][0] == 8 && j % 3 != 0)
                shape.experts_per_token = 4;
            check_route_shape(check, shape, j == 0 ? 65 : 17, 33 + i, (enum bt_dtype)(i % 3),
                              j % 3 == 2 && i % 4 != 3);
        }
    }
}

struct expert_data {
    uint32_t rows, hidden, mid;
    struct bt_route_shape shape;
    const float *x, *start, *weights;
    uint32_t *experts;
    struct bt_expert_weights w;
};

/*
 * The size of an expert's term: every product of its three matrices in absolute values (|silu(g)|
 * <= |g|, and its slope is at most 1.1). Its error: the roundings of a product of hidden twice, of
 * mid once, and 10 of the activation, each relative to that size; one per expert of the sum.
 */
static void naive_experts(const struct expert_data *d, double *want, double *size)
{
    double *mid = malloc(d->mid * 2 * sizeof(*mid));
    for (size_t row = 0; row < d->rows; row++) {
        const float *x = d->x + row * d->hidden;
        for (size_t i = 0; i < d->hidden; i++) {
            want[row * d->hidden + i] = d->start[row * d->hidden + i];
            size[row * d->hidden + i] = fabs(d->start[row * d->hidden + i]);
        }
        for (size_t k = 0; k < d->shape.experts_per_token; k++) {
            uint32_t e = d->experts[row * d->shape.experts_per_token + k];
            double weight = d->weights[row * d->shape.experts_per_token + k];
            if (!d->w.gate[e].data)
                continue;
            for (size_t m = 0; m < d->mid; m++) {
                double g = 0, u = 0, gs = 0, us = 0;
                for (size_t i = 0; i < d->hidden; i++) {
                    double gt = x[i] * check_matrix_at(&d->w.gate[e], m, i);
                    double ut = x[i] * check_matrix_at(&d->w.up[e], m, i);
                    g += gt, gs += fabs(gt), u += ut, us += fabs(ut);
                }
                mid[m] = g / (1 + exp(-g)) * u;
                mid[d->mid + m] = gs * us;
            }
            for (size_t i = 0; i < d->hidden; i++) {
                for (size_t m = 0; m < d->mid; m++) {
                    double down = check_matrix_at(&d->w.down[e], i, m);
                    want[row * d->hidden + i] += weight * down * mid[m];
                    size[row * d->hidden + i] += fabs(weight * down) * mid[d->mid + m];
                }
            }
        }
    }
    free(mid);
}

static void make_experts(struct check *check, struct expert_data *d, enum bt_dtype dtype,
                         bool partial)
{
    uint32_t count = d->shape.experts, k = d->shape.experts_per_token;
    struct bt_matrix *matrices = check_buffer(check, 3 * count * sizeof(*matrices));
    struct bt_matrix gates = check_matrix(check, count * d->mid, d->hidden, dtype, 1);
    struct bt_matrix ups = check_matrix(check, count * d->mid, d->hidden, dtype, 1);
    struct bt_matrix downs = check_matrix(check, count * d->hidden, d->mid, dtype, 1);
    size_t bytes = (size_t)d->mid * d->hidden * bt_dtype_bytes(dtype);
    for (uint32_t e = 0; e < count; e++) {
        bool absent = partial && e % 3 == 1;
        matrices[e] = (struct bt_matrix){absent ? NULL : (const char *)gates.data + e * bytes,
                                         d->mid, d->hidden, dtype};
        matrices[count + e] = (struct bt_matrix){absent ? NULL : (const char *)ups.data + e * bytes,
                                                 d->mid, d->hidden, dtype};
        matrices[2 * count + e] = (struct bt_matrix){
            absent ? NULL : (const char *)downs.data + e * bytes, d->hidden, d->mid, dtype};
    }
    d->w = (struct bt_expert_weights){matrices, matrices + count, matrices + 2 * count, count};
    for (uint32_t row = 0; row < d->rows; row++) {
        uint32_t first = check_below(check, count), step = 1;
        for (uint32_t i = 0; i < k; i++) /* distinct, in no order */
            d->experts[row * k + i] = (first + (k - 1 - i) * step) % count;
    }
}

static void run_experts(const struct bt_kernels *kernels, struct bt_stream *stream,
                        const struct expert_data *d, size_t row, uint32_t rows, float *out)
{
    size_t k = d->shape.experts_per_token;
    memcpy(out, d->start + row * d->hidden, rows * d->hidden * sizeof(*out));
    experts_of(kernels, stream, d->x + row * d->hidden, rows, &d->shape, d->experts + row * k,
               d->weights + row * k, &d->w, out);
}

/* One call for each expert alone, in ascending order, adds up to the same bits as one for all. */
static void check_order(struct check *check, struct bt_stream *stream, const struct expert_data *d,
                        const float *out)
{
    size_t count = (size_t)d->rows * d->hidden;
    struct bt_matrix *gates = check_buffer(check, d->w.experts * sizeof(*gates));
    float *sum = check_floats(check, count);
    struct expert_data one = *d;
    one.w.gate = gates;
    memcpy(sum, d->start, count * sizeof(*sum));
    for (uint32_t e = 0; e < d->w.experts; e++) {
        memset(gates, 0, d->w.experts * sizeof(*gates));
        gates[e] = d->w.gate[e];
        experts_of(check->kernels, stream, d->x, d->rows, &d->shape, d->experts, d->weights, &one.w,
                   sum);
    }
    check_bits(check, "expert by expert", sum, out, count, sizeof(float));
}

static void check_experts_shape(struct check *check, uint32_t rows, uint32_t hidden, uint32_t mid,
                                uint32_t experts, uint32_t k, enum bt_dtype dtype, bool partial)
{
    size_t count = (size_t)rows * hidden;
    check_begin(check, "rows %u hidden %u mid %u experts %u k %u dtype %u partial %u", rows, hidden,
                mid, experts, k, dtype, partial);
    struct expert_data d = {rows, hidden, mid, {.experts = experts, .experts_per_token = k}};
    struct bt_stream_limits limits = {.max_rows = rows,
                                      .hidden = hidden,
                                      .moe_intermediate = mid,
                                      .experts = experts,
                                      .experts_per_token = k};
    struct bt_stream *stream = check_stream(&limits);
    d.x = check_floats_random(check, count, CHECK_NORMAL);
    d.start = check_floats_random(check, count, CHECK_NORMAL);
    d.weights = check_floats_random(check, rows * k, CHECK_NORMAL);
    d.experts = check_buffer(check, rows * k * sizeof(uint32_t));
    make_experts(check, &d, dtype, partial);
    float *out = check_floats(check, count), *other = check_floats(check, count);
    double *want = check_buffer(check, count * sizeof(double));
    double *size = check_buffer(check, count * sizeof(double));

    run_experts(check->kernels, stream, &d, 0, rows, out);
    naive_experts(&d, want, size);
    if (check->oracle) {
        run_experts(check->oracle, stream, &d, 0, rows, other);
        for (size_t i = 0; i < count; i++)
            want[i] = other[i];
    }
    check_close(check, "out", out, want, size, count,
                CHECK_EPS * (2 * (hidden / 16 + 6) + mid / 16 + 6 + 10 + k), 1e-36);
    for (size_t row = 0; row < rows; row++)
        run_experts(check->kernels, stream, &d, row, 1, other + row * hidden);
    check_bits(check, "row alone", other, out, count, sizeof(float));
    if (check->twin) {
        run_experts(check->twin, stream, &d, 0, rows, other);
        check_bits(check, check->twin->name, other, out, count, sizeof(float));
    }
    if (check->oracle) /* ref sums in double and rounds once */
        check_order(check, stream, &d, out);
    bt_stream_destroy(stream);
    check_end(check);
}

void check_moe_experts(struct check *check)
{
    static const uint32_t rows[] = {0, 1, 3, 17, 63, 64, 65, 129};
    for (unsigned i = 0; i < 8; i++) {
        check_experts_shape(check, rows[i], 33, 17, 16, 4, (enum bt_dtype)(i % 3), i % 2);
        check_experts_shape(check, rows[i], 20, 7, 3, 3, (enum bt_dtype)((i + 1) % 3), false);
    }
    check_experts_shape(check, 17, 64, 32, 64, 6, BT_BF16, false);
    check_experts_shape(check, 3, 1, 1, 1, 1, BT_BF16, false);
    check_experts_shape(check, 600, 8, 8, 2, 1, BT_BF16, false); /* past one block of an expert */
}
