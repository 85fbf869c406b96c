/* moe_experts and moe_expert_rows */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/checkkern/ffn.h"

#define MAX_EXPERTS 256
#define MAX_OWN     3 /* networks that are different; expert e has network e % own */

struct experts_case {
    uint32_t rows, hidden, inner, experts, per_row, own;
    enum bt_dtype dtype;
    enum bt_layout layout;
    bool partial; /* every third expert is another rank's */
};

struct experts_data {
    struct experts_case c;
    struct bt_route_shape shape;
    const float *x, *start, *weights;
    uint32_t *experts; /* [row][per_row] */
    struct ffn_weights oracle[MAX_OWN];
    struct bt_expert_weights w;
};

/* The index map by its definition; `some`: two of three picks, as one of several ranks has them. */
static void fill_order(const struct experts_data *d, size_t row, uint32_t rows, bool some,
                       uint32_t *order, uint32_t *begin)
{
    uint32_t k = d->c.per_row, at = 0;
    const uint32_t *experts = d->experts + row * k;
    for (uint32_t e = 0; e < d->c.experts; e++) {
        begin[e] = at;
        for (uint32_t i = 0; i < rows * k; i++)
            if (experts[i] == e && !(some && i % 3 == 1))
                order[at++] = i;
    }
    begin[d->c.experts] = at;
}

static void run(const struct bt_kernels *kernels, struct bt_stream *stream,
                const struct experts_data *d, const struct bt_expert_weights *w, size_t row,
                uint32_t rows, float *out)
{
    uint32_t k = d->c.per_row, begin[MAX_EXPERTS + 1];
    uint32_t *order = malloc(((size_t)rows * k + 1) * sizeof(*order));
    struct bt_routing routing = {d->experts + row * k, (float *)(uintptr_t)(d->weights + row * k),
                                 order, begin};
    fill_order(d, row, rows, false, order, begin);
    kernels->moe_experts(stream, d->x + row * d->c.hidden, rows, &d->shape, &routing, w, out);
    free(order);
}

static void run_rows(const struct bt_kernels *kernels, struct bt_stream *stream,
                     const struct experts_data *d, size_t row, uint32_t rows, float *out)
{
    memcpy(out, d->start + row * d->c.hidden, (size_t)rows * d->c.hidden * sizeof(*out));
    run(kernels, stream, d, &d->w, row, rows, out);
}

static void make_networks(struct check *check, struct experts_data *d, struct bt_matrix (*own)[3])
{
    bool tiles = d->c.layout == BT_LAYOUT_TILES;
    float size = 2 / sqrtf((float)d->c.hidden), down_size = 2 / sqrtf((float)d->c.inner);
    for (uint32_t i = 0; i < d->c.own; i++) {
        struct bt_matrix gate = check_matrix(check, d->c.inner, d->c.hidden, d->c.dtype, size);
        struct bt_matrix up = check_matrix(check, d->c.inner, d->c.hidden, d->c.dtype, size);
        struct bt_matrix down = check_matrix(check, d->c.hidden, d->c.inner, d->c.dtype, down_size);
        d->oracle[i] = (struct ffn_weights){ffn_matrix_of(check, &gate, tiles),
                                            ffn_matrix_of(check, &up, tiles),
                                            ffn_matrix_of(check, &down, tiles), tiles};
        own[i][0] = tiles ? check_packed(check, &gate, BT_USE_LINEAR, NULL) : gate;
        own[i][1] = tiles ? check_packed(check, &up, BT_USE_LINEAR, NULL) : up;
        own[i][2] = tiles ? check_packed(check, &down, BT_USE_LINEAR, NULL) : down;
    }
}

static bool is_absent(const struct experts_case *c, uint32_t expert)
{
    return c->partial && expert % 3 == 1;
}

static void make_experts(struct check *check, struct experts_data *d)
{
    uint32_t count = d->c.experts, k = d->c.per_row;
    struct bt_matrix own[MAX_OWN][3];
    struct bt_matrix *matrices = check_buffer(check, 3 * count * sizeof(*matrices));
    make_networks(check, d, own);
    memset(matrices, 0, 3 * count * sizeof(*matrices));
    for (uint32_t i = 0; i < 3 * count; i++)
        if (!is_absent(&d->c, i % count))
            matrices[i] = own[i % count % d->c.own][i / count];
    d->w = (struct bt_expert_weights){matrices, matrices + count, matrices + 2 * count, count};
    d->experts = check_buffer(check, (size_t)d->c.rows * k * sizeof(uint32_t));
    for (uint32_t row = 0; row < d->c.rows; row++) {
        uint32_t first = check_below(check, count);
        for (uint32_t i = 0; i < k; i++) /* distinct, in no order */
            d->experts[row * k + i] = (first + (k - 1 - i)) % count;
    }
}

/* Adds to want and error [hidden] what one expert does to one row. */
static void add_expert(const struct experts_data *d, size_t row, uint32_t pick, double *scratch,
                       double *want, double *error)
{
    uint32_t hidden = d->c.hidden, most = hidden > d->c.inner ? hidden : d->c.inner;
    double weight = d->weights[row * d->c.per_row + pick], *y = scratch + 3 * most;
    uint32_t expert = d->experts[row * d->c.per_row + pick];
    if (is_absent(&d->c, expert))
        return;
    ffn_row(&d->oracle[expert % d->c.own], d->x + row * hidden, true, scratch, y, y + hidden);
    for (size_t i = 0; i < hidden; i++) {
        want[i] += weight * y[i];
        error[i] += fabs(weight) * (y[hidden + i] + fabs(y[i]) * d->c.per_row * CHECK_EPS);
    }
}

static void oracle(struct check *check, const struct experts_data *d, double *want, double *error)
{
    size_t hidden = d->c.hidden, most = hidden > d->c.inner ? hidden : d->c.inner;
    double *scratch = check_buffer(check, (3 * most + 2 * hidden) * sizeof(*scratch));
    for (size_t i = 0; i < d->c.rows * hidden; i++) {
        want[i] = d->start[i];
        error[i] = fabs(want[i]) * d->c.per_row * CHECK_EPS;
    }
    for (size_t row = 0; row < d->c.rows; row++)
        for (uint32_t k = 0; k < d->c.per_row; k++)
            add_expert(d, row, k, scratch, want + row * hidden, error + row * hidden);
}

/* One call for each expert alone, in ascending order, adds up to the same bits as one for all. */
static void check_order(struct check *check, struct bt_stream *stream, const struct experts_data *d,
                        const float *out)
{
    size_t count = (size_t)d->c.rows * d->c.hidden;
    struct bt_matrix *gates = check_buffer(check, d->w.experts * sizeof(*gates));
    float *sum = check_floats(check, count);
    struct bt_expert_weights one = d->w;
    one.gate = gates;
    memcpy(sum, d->start, count * sizeof(*sum));
    for (uint32_t e = 0; e < d->w.experts; e++) {
        memset(gates, 0, d->w.experts * sizeof(*gates));
        gates[e] = d->w.gate[e];
        run(check->kernels, stream, d, &one, 0, d->c.rows, sum);
    }
    check_bits(check, "expert by expert", sum, out, count, sizeof(float));
}

static float y_at(const struct experts_data *d, const void *y, size_t index)
{
    return d->c.layout == BT_LAYOUT_TILES ? bt_bf16_to_f32(((const uint16_t *)y)[index])
                                          : ((const float *)y)[index];
}

/* Adds up the rows of y as moe_experts does. */
static void add_apart(const struct experts_data *d, const struct bt_routing *routing, const void *y,
                      float *sum)
{
    size_t hidden = d->c.hidden;
    for (uint32_t e = 0; e < d->c.experts; e++) {
        for (size_t i = routing->begin[e]; i < routing->begin[e + 1]; i++) {
            size_t pick = routing->order[i], row = pick / d->c.per_row;
            for (size_t n = 0; n < hidden && !is_absent(&d->c, e); n++)
                sum[row * hidden + n] =
                    fmaf(d->weights[pick], y_at(d, y, i * hidden + n), sum[row * hidden + n]);
        }
    }
}

/* Those of `some` are those of all; what has no expert here keeps its pattern. */
static void compare_some(struct check *check, const struct experts_data *d,
                         const struct bt_routing *all, const char *y, const struct bt_routing *some,
                         const char *y_some, const char *untouched)
{
    size_t bytes = d->c.hidden * (d->c.layout == BT_LAYOUT_TILES ? 2u : 4u), at = 0;
    for (size_t i = 0; i < some->begin[d->c.experts]; i++) {
        uint32_t expert = d->experts[some->order[i]];
        for (at = all->begin[expert]; all->order[at] != some->order[i];)
            at++;
        check_bits(check, "some of the picks", y_some + i * bytes,
                   is_absent(&d->c, expert) ? untouched : y + at * bytes, bytes, 1);
    }
}

/* Rows that are left apart, added up here, have the bits of moe_experts. */
static void check_apart(struct check *check, struct bt_stream *stream, const struct experts_data *d,
                        const float *out)
{
    size_t count = (size_t)d->c.rows * d->c.hidden, picks = (size_t)d->c.rows * d->c.per_row;
    size_t bytes = picks * d->c.hidden * (d->c.layout == BT_LAYOUT_TILES ? 2u : 4u);
    uint32_t begins[2][MAX_EXPERTS + 1];
    struct bt_routing routings[2];
    void *y[2];
    for (int i = 0; i < 2; i++) {
        routings[i] = (struct bt_routing){.order = check_buffer(check, picks * sizeof(uint32_t)),
                                          .begin = begins[i]};
        fill_order(d, 0, d->c.rows, i, routings[i].order, begins[i]);
        y[i] = check_buffer(check, bytes);
        check->kernels->moe_expert_rows(stream, d->x, d->c.rows, &d->shape, &routings[i], &d->w,
                                        y[i]);
    }
    float *sum = check_floats(check, count);
    memcpy(sum, d->start, count * sizeof(*sum));
    add_apart(d, &routings[0], y[0], sum);
    check_bits(check, "rows apart", sum, out, count, sizeof(float));
    compare_some(check, d, &routings[0], y[0], &routings[1], y[1],
                 check_buffer(check, d->c.hidden * sizeof(float)));
}

/* The bits of a row do not depend on the batch or the threads. */
static void check_same(struct check *check, const struct bt_stream_limits *limits,
                       struct bt_stream *stream, const struct experts_data *d, const float *out,
                       float *other)
{
    size_t hidden = d->c.hidden, count = d->c.rows * hidden;
    struct bt_stream *team = check_stream_team(check, limits);
    for (uint32_t row = 0, n = 1; row < d->c.rows; row += n, n = n % 5 + 1)
        run_rows(check->kernels, stream, d, row, d->c.rows - row < n ? d->c.rows - row : n,
                 other + row * hidden);
    check_bits(check, "rows in small batches", other, out, count, sizeof(float));
    run_rows(check->kernels, team, d, 0, d->c.rows, other);
    check_bits(check, "two threads", other, out, count, sizeof(float));
    if (check->twin && d->c.layout == BT_LAYOUT_ROWS) {
        run_rows(check->twin, stream, d, 0, d->c.rows, other);
        check_bits(check, check->twin->name, other, out, count, sizeof(float));
    }
    bt_stream_destroy(team);
}

static void check_case(struct check *check, struct experts_case c)
{
    size_t count = (size_t)c.rows * c.hidden;
    check_begin(check, "rows %u hidden %u inner %u experts %u/%u own %u dtype %u layout %u %s",
                c.rows, c.hidden, c.inner, c.per_row, c.experts, c.own, c.dtype, c.layout,
                c.partial ? "partial" : "all");
    struct experts_data d = {c, {.experts = c.experts, .experts_per_token = c.per_row}};
    struct bt_stream_limits limits = {.max_rows = c.rows,
                                      .hidden = c.hidden,
                                      .moe_intermediate = c.inner,
                                      .experts = c.experts,
                                      .experts_per_token = c.per_row};
    struct bt_stream *stream = check_stream(&limits);
    d.x = check_floats_random(check, count, CHECK_NORMAL);
    d.start = check_floats_random(check, count, CHECK_NORMAL);
    d.weights = check_floats_random(check, (size_t)c.rows * c.per_row, CHECK_NORMAL);
    make_experts(check, &d);
    float *out = check_floats(check, count), *other = check_floats(check, count);
    double *want = check_buffer(check, count * sizeof(double));
    double *error = check_buffer(check, count * sizeof(double));

    run_rows(check->kernels, stream, &d, 0, c.rows, out);
    oracle(check, &d, want, error);
    check_close(check, "out", out, want, error, count, 1, 1e-36);
    check_same(check, &limits, stream, &d, out, other);
    if (check->oracle || c.hidden < 1024) /* ref takes long */
        check_apart(check, stream, &d, out);
    if (check->oracle && c.experts <= 64)
        check_order(check, stream, &d, out);
    bt_stream_destroy(stream);
    check_end(check);
}

static void check_rows_layout(struct check *check)
{
    static const uint32_t rows[] = {0, 1, 3, 17, 63, 64, 65, 129};
    for (unsigned i = 0; i < 8; i++) {
        enum bt_dtype dtype = (enum bt_dtype)(i % 3), next = (enum bt_dtype)((i + 1) % 3);
        struct experts_case some = {rows[i], 33, 17, 16, 4, 3, dtype, BT_LAYOUT_ROWS, i % 2 != 0};
        if (check_on_grid(check) && rows[i] > 17)
            continue;
        struct experts_case all = {rows[i], 20, 7, 3, 3, 3, next, BT_LAYOUT_ROWS, false};
        check_case(check, some);
        check_case(check, all);
    }
    check_case(check, (struct experts_case){3, 1, 1, 1, 1, 1, BT_BF16, BT_LAYOUT_ROWS, false});
    if (check_on_grid(check))
        return;
    check_case(check, (struct experts_case){17, 64, 32, 64, 6, 2, BT_BF16, BT_LAYOUT_ROWS, false});
    /* past one block of an expert */
    check_case(check, (struct experts_case){600, 8, 8, 2, 1, 2, BT_BF16, BT_LAYOUT_ROWS, false});
}

/* What the models have: tiny; Lite's width and V3's routing with narrow experts. */
static void check_family(struct check *check, enum bt_dtype dtype)
{
    uint32_t inner = dtype == BT_I4 ? 128 : 64; /* whole groups */
    check_case(check,
               (struct experts_case){37, 256, inner, 16, 4, 3, dtype, BT_LAYOUT_TILES, false});
    check_case(check, (struct experts_case){9, 2048, 128, 64, 6, 2, dtype, BT_LAYOUT_TILES, true});
    check_case(check,
               (struct experts_case){5, 7168, 128, 256, 8, 1, dtype, BT_LAYOUT_TILES, false});
    /* experts of full size, few of them */
    if (check->oracle) {
        check_case(check,
                   (struct experts_case){2, 2048, 1408, 3, 2, 1, dtype, BT_LAYOUT_TILES, false});
        check_case(check,
                   (struct experts_case){1, 7168, 2048, 2, 1, 1, dtype, BT_LAYOUT_TILES, false});
    }
    if (!getenv("BATON_CHECKKERN_LONG"))
        return;
    check_case(check,
               (struct experts_case){64, 2048, 1408, 64, 6, 2, dtype, BT_LAYOUT_TILES, false});
    check_case(check,
               (struct experts_case){16, 7168, 2048, 256, 8, 2, dtype, BT_LAYOUT_TILES, true});
}

static void check_tiles_layout(struct check *check)
{
    static const enum bt_dtype dtypes[] = {BT_BF16, BT_F8_E4M3, BT_I8, BT_I4};
    static const uint32_t rows[] = {0, 1, 3, 17, 64};
    for (unsigned d = 0; d < 4; d++) {
        bool groups = dtypes[d] == BT_I4;
        for (unsigned i = 0; i < 5; i++) {
            struct experts_case c = {rows[i],
                                     groups ? 128 : 33 + 40 * i,
                                     groups ? 128 : 17 + 30 * i,
                                     16,
                                     4,
                                     3,
                                     dtypes[d],
                                     BT_LAYOUT_TILES,
                                     i % 2 != 0};
            if (!check->is_emulated || rows[i] <= 3)
                check_case(check, c);
        }
        if (check->is_emulated)
            continue;
        check_family(check, dtypes[d]);
        /* past one job of an expert, past one block of all */
        check_case(check, (struct experts_case){700, 128, 128, 3, 2, 2, dtypes[d], BT_LAYOUT_TILES,
                                                d % 2 != 0});
    }
}

void check_moe_experts(struct check *check)
{
    if (!check->only_tiles)
        check_rows_layout(check);
    check_tiles_layout(check);
}
