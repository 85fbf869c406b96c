/* moe_route */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/checkkern/check.h"

#define MAX_EXPERTS 256

struct scored {
    double score;
    uint32_t index;
};

/* The index map: picks by expert, those of one expert by row. */
static void check_map(struct check *check, const struct bt_route_shape *shape,
                      const struct bt_routing *routing, uint32_t rows)
{
    uint32_t picks = rows * shape->experts_per_token, at = 0;
    for (uint32_t e = 0; e < shape->experts; e++) {
        if (routing->begin[e] != at)
            check_fail(check, "expert %u begins at %u, not at %u", e, routing->begin[e], at);
        for (uint32_t i = 0; i < picks; i++) {
            if (routing->experts[i] != e)
                continue;
            if (routing->order[at] != i) {
                check_fail(check, "order[%u] is %u, not %u", at, routing->order[at], i);
                return;
            }
            at++;
        }
    }
    if (routing->begin[shape->experts] != picks)
        check_fail(check, "the last expert ends at %u of %u", routing->begin[shape->experts],
                   picks);
}

static void route(struct check *check, const struct bt_kernels *kernels, struct bt_stream *stream,
                  const float *x, uint32_t rows, const struct bt_matrix *gate,
                  const struct bt_matrix *bias, const struct bt_route_shape *shape,
                  uint32_t *experts, float *weights)
{
    uint32_t *order = malloc(((size_t)rows * shape->experts_per_token + 1) * sizeof(*order));
    uint32_t begin[MAX_EXPERTS + 1];
    struct bt_routing routing = {experts, weights, order, begin};
    kernels->moe_route(stream, x, rows, gate, bias, shape, &routing);
    check_map(check, shape, &routing, rows);
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

/* From expert `first` on, each has the scores of another one `first` before it. */
static void make_ties(const struct route_data *d, enum bt_dtype dtype, uint32_t first)
{
    size_t row_bytes = d->hidden * bt_dtype_bytes(dtype);
    char *rows = (char *)(uintptr_t)d->gate.data;
    float *bias = (float *)(uintptr_t)d->bias.data;
    for (uint32_t e = first; first > 0 && e < d->gate.rows; e++) {
        memcpy(rows + e * row_bytes, rows + (e - first) * row_bytes, row_bytes);
        if (bias)
            bias[e] = bias[e - first];
    }
}

static void check_route_shape(struct check *check, struct bt_route_shape shape, uint32_t rows,
                              uint32_t hidden, enum bt_dtype dtype, bool biased, uint32_t ties)
{
    uint32_t k = shape.experts_per_token;
    check_begin(check,
                "rows %u hidden %u dtype %u experts %u k %u groups %u/%u scoring %u method %u"
                " bias %u normalize %u ties %u",
                rows, hidden, dtype, shape.experts, k, shape.groups_per_token, shape.groups,
                shape.scoring, shape.method, biased, shape.normalize, ties);
    struct bt_stream_limits limits = {
        .max_rows = rows, .hidden = hidden, .experts = shape.experts, .experts_per_token = k};
    struct bt_stream *stream = check_stream(&limits);
    struct route_data d = {rows, hidden,
                           .gate = check_matrix(check, shape.experts, hidden, dtype, 1)};
    if (biased)
        d.bias = check_matrix(check, 1, shape.experts, BT_F32, 0.5f);
    make_ties(&d, dtype, ties);
    d.x = check_floats_random(check, (size_t)rows * hidden, CHECK_NORMAL);
    d.experts = check_buffer(check, rows * k * sizeof(uint32_t));
    d.weights = check_floats(check, rows * k);
    uint32_t *experts = check_buffer(check, rows * k * sizeof(uint32_t));
    float *weights = check_floats(check, rows * k);

    route(check, check->kernels, stream, d.x, rows, &d.gate, &d.bias, &shape, d.experts, d.weights);
    check_route_rows(check, &shape, &d);
    for (uint32_t row = 0; row < rows; row += check_on_grid(check) ? 1 + rows / 4 : 1) {
        route(check, check->kernels, stream, d.x + row * hidden, 1, &d.gate, &d.bias, &shape,
              experts + row * k, weights + row * k);
        check_bits(check, "row alone: experts", experts + row * k, d.experts + row * k, k,
                   sizeof(uint32_t));
        check_bits(check, "row alone: weights", weights + row * k, d.weights + row * k, k,
                   sizeof(float));
    }
    struct bt_stream *team = check_stream_team(check, &limits);
    route(check, check->kernels, team, d.x, rows, &d.gate, &d.bias, &shape, experts, weights);
    check_bits(check, "two threads: experts", experts, d.experts, rows * k, sizeof(uint32_t));
    check_bits(check, "two threads: weights", weights, d.weights, rows * k, sizeof(float));
    bt_stream_destroy(team);
    if (check->twin) {
        route(check, check->twin, stream, d.x, rows, &d.gate, &d.bias, &shape, experts, weights);
        check_bits(check, "twin: experts", experts, d.experts, rows * k, sizeof(uint32_t));
        check_bits(check, "twin: weights", weights, d.weights, rows * k, sizeof(float));
    }
    for (uint32_t i = 0; i < rows * hidden; i++) {
        static const float poison[] = {NAN, INFINITY, -INFINITY, 3e38f, 0};
        d.x[i] = poison[i / hidden % 2 ? i % 5 : 0];
    }
    route(check, check->kernels, stream, d.x, rows, &d.gate, &d.bias, &shape, experts, weights);
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
    static const uint32_t rows[] = {65, 200, 17, 17, 17, 17};
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
            check_route_shape(check, shape, rows[j], 33 + i, (enum bt_dtype)(i % 3),
                              j % 3 == 2 && i % 4 != 3, j < 2 ? 0 : sizes[i][0] / (j + 1));
        }
    }
}
