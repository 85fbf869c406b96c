/* mlp */
#include <math.h>
#include <string.h>

#include "tests/checkkern/ffn.h"

struct mlp_case {
    uint32_t rows, inputs, inner, outs;
    enum bt_dtype dtype, down_dtype;
    enum bt_layout layout;
    float range; /* of x */
};

static struct bt_mlp make_mlp(struct check *check, const struct mlp_case *c,
                              struct ffn_weights *weights)
{
    bool tiles = c->layout == BT_LAYOUT_TILES;
    float size = 2 / sqrtf((float)c->inputs), down_size = 2 / sqrtf((float)c->inner);
    struct bt_matrix gate = check_matrix(check, c->inner, c->inputs, c->dtype, size);
    struct bt_matrix up = check_matrix(check, c->inner, c->inputs, c->dtype, size);
    struct bt_matrix down = check_matrix(check, c->outs, c->inner, c->down_dtype, down_size);
    *weights =
        (struct ffn_weights){ffn_matrix_of(check, &gate, tiles), ffn_matrix_of(check, &up, tiles),
                             ffn_matrix_of(check, &down, tiles), tiles};
    if (!tiles)
        return (struct bt_mlp){gate, up, down};
    return (struct bt_mlp){check_packed(check, &gate, BT_USE_LINEAR, NULL),
                           check_packed(check, &up, BT_USE_LINEAR, NULL),
                           check_packed(check, &down, BT_USE_LINEAR, NULL)};
}

/* Batches of all kinds of sizes give each row the bits it has alone. */
static void check_alone(struct check *check, struct bt_stream *stream, const struct bt_mlp *mlp,
                        const struct mlp_case *c, const float *x, const float *out, float *other)
{
    for (uint32_t row = 0, count = 1; row < c->rows; row += count, count = count % 7 + 1) {
        uint32_t n = c->rows - row < count ? c->rows - row : count;
        check->kernels->mlp(stream, x + (size_t)row * c->inputs, n, mlp,
                            other + (size_t)row * c->outs);
    }
    check_bits(check, "rows in small batches", other, out, (size_t)c->rows * c->outs,
               sizeof(float));
}

static void check_mlp_case(struct check *check, struct mlp_case c)
{
    size_t count = (size_t)c.rows * c.outs;
    check_begin(check, "rows %u inputs %u inner %u outs %u dtype %u/%u layout %u range %g", c.rows,
                c.inputs, c.inner, c.outs, c.dtype, c.down_dtype, c.layout, (double)c.range);
    struct bt_stream_limits limits = {.max_rows = c.rows,
                                      .max_cols = c.inputs > c.inner ? c.inputs : c.inner};
    struct bt_stream *stream = check_stream(&limits), *team = check_stream_team(check, &limits);
    struct ffn_weights weights;
    struct bt_mlp mlp = make_mlp(check, &c, &weights);
    float *x = check_floats_random(check, (size_t)c.rows * c.inputs, CHECK_NORMAL);
    for (size_t i = 0; i < (size_t)c.rows * c.inputs; i++)
        x[i] *= c.range;
    float *out = check_floats(check, count), *other = check_floats(check, count);
    double *want = check_buffer(check, count * sizeof(double));
    double *error = check_buffer(check, count * sizeof(double));

    check->kernels->mlp(stream, x, c.rows, &mlp, out);
    ffn_rows(check, &weights, x, c.rows, false, want, error);
    check_close(check, "out", out, want, error, count, 1, 1e-36);
    check_alone(check, stream, &mlp, &c, x, out, other);
    check->kernels->mlp(team, x, c.rows, &mlp, other);
    check_bits(check, "two threads", other, out, count, sizeof(float));
    if (check->twin && c.layout == BT_LAYOUT_ROWS) {
        check->twin->mlp(stream, x, c.rows, &mlp, other);
        check_bits(check, check->twin->name, other, out, count, sizeof(float));
    }
    bt_stream_destroy(stream);
    bt_stream_destroy(team);
    check_end(check);
}

/* A row that is no number, or whose products overflow, leaves its neighbours as they are. */
static void check_poison(struct check *check, enum bt_dtype dtype, enum bt_layout layout)
{
    struct mlp_case c = {20, 128, 128, 40, dtype, dtype, layout, 1};
    struct bt_stream_limits limits = {.max_rows = c.rows, .max_cols = 128};
    struct bt_stream *stream = check_stream(&limits);
    struct ffn_weights weights;
    check_begin(check, "poison dtype %u layout %u", dtype, layout);
    struct bt_mlp mlp = make_mlp(check, &c, &weights);
    float *x = check_floats_random(check, (size_t)c.rows * c.inputs, CHECK_NORMAL);
    float *out = check_floats(check, (size_t)c.rows * c.outs);
    float *other = check_floats(check, (size_t)c.rows * c.outs);
    check->kernels->mlp(stream, x, c.rows, &mlp, other);
    for (size_t i = 0; i < c.inputs; i++) {
        x[5 * c.inputs + i] = i == 3 ? NAN : 1;
        x[17 * c.inputs + i] = i % 2 ? INFINITY : -INFINITY;
    }
    check->kernels->mlp(stream, x, c.rows, &mlp, out);
    for (size_t i = 0; i < c.outs; i++) {
        if (!isnan(out[5 * c.outs + i]) || isfinite(out[17 * c.outs + i]))
            check_fail(check, "output %zu of a poisoned row is %g, %g", i,
                       (double)out[5 * c.outs + i], (double)out[17 * c.outs + i]);
    }
    memcpy(out + 5 * c.outs, other + 5 * c.outs, c.outs * sizeof(float));
    memcpy(out + 17 * c.outs, other + 17 * c.outs, c.outs * sizeof(float));
    check_bits(check, "other rows", out, other, (size_t)c.rows * c.outs, sizeof(float));
    bt_stream_destroy(stream);
    check_end(check);
}

/*
 * One input, one inner element with up 1 and one output with down 1: silu(x) * x, for x of every
 * size. Of bf16, so that x itself is exact; the result is rounded once more on its way. Of e^89 and
 * beyond f32 makes infinity: silu is 0 where it is below 1e-36.
 */
static void check_swiglu(struct check *check, enum bt_layout layout)
{
    static const float ranges[] = {0, 1e-40f, 1e-30f, 1e-3f, 1, 20, 88, 89, 104, 200, 1e18f};
    uint32_t count = 2 * sizeof(ranges) / sizeof(ranges[0]);
    struct bt_stream_limits limits = {.max_rows = count, .max_cols = 16};
    struct bt_stream *stream = check_stream(&limits);
    check_begin(check, "swiglu layout %u", layout);
    struct bt_matrix one = check_matrix(check, 1, 1, BT_BF16, 1);
    *(uint16_t *)(uintptr_t)one.data = 0x3f80;
    struct bt_matrix w =
        layout == BT_LAYOUT_TILES ? check_packed(check, &one, BT_USE_LINEAR, NULL) : one;
    struct bt_mlp mlp = {w, w, w};
    float *x = check_floats(check, count), *out = check_floats(check, count);
    for (uint32_t i = 0; i < count; i++)
        x[i] = bt_bf16_to_f32(bt_f32_to_bf16(i % 2 ? -ranges[i / 2] : ranges[i / 2]));
    check->kernels->mlp(stream, x, count, &mlp, out);
    for (uint32_t i = 0; i < count; i++) {
        double want = x[i] / (1 + exp(-(double)x[i])) * (double)x[i];
        double bound = fabs(want) * (layout == BT_LAYOUT_TILES ? 0x1.1p-8 : 0x1p-20) + 0x1p-125 +
                       fabs((double)x[i]) * 1e-36;
        if (!(fabs(out[i] - want) <= bound))
            check_fail(check, "silu(%g) * %g is %g, not %g", (double)x[i], (double)x[i],
                       (double)out[i], want);
    }
    float odd[3] = {NAN, INFINITY, -INFINITY};
    check->kernels->mlp(stream, odd, 3, &mlp, out);
    if (!isnan(out[0]) || out[1] != INFINITY || isfinite(out[2]))
        check_fail(check, "of nan, inf, -inf: %g, %g, %g", (double)out[0], (double)out[1],
                   (double)out[2]);
    bt_stream_destroy(stream);
    check_end(check);
}

static void check_tiles(struct check *check)
{
    static const enum bt_dtype dtypes[] = {BT_BF16, BT_F8_E4M3, BT_I8, BT_I4};
    static const uint32_t rows[] = {1, 2, 5, 15, 16, 17, 64, 100};
    static const uint32_t sizes[][3] = {{1, 1, 1}, {33, 17, 5}, {256, 64, 256}, {300, 200, 140}};
    for (unsigned d = 0; d < 4; d++) {
        for (unsigned i = 0; i < 8; i++) {
            const uint32_t *size = sizes[(d + i) % 4];
            struct mlp_case c = {rows[i],   size[0],   size[1],         size[2],
                                 dtypes[d], dtypes[d], BT_LAYOUT_TILES, 1};
            if (check->is_emulated && (rows[i] > 17 || size[0] > 64))
                continue;
            if (dtypes[d] == BT_I4) /* whole groups */
                c.inputs = (size[0] + 127) / 128 * 128, c.inner = (size[1] + 127) / 128 * 128;
            check_mlp_case(check, c);
        }
        check_poison(check, dtypes[d], BT_LAYOUT_TILES);
    }
    struct mlp_case mixed = {37, 128, 96, 70, BT_I4, BT_BF16, BT_LAYOUT_TILES, 1};
    check_mlp_case(check, mixed);
    mixed.dtype = BT_BF16, mixed.down_dtype = BT_I8;
    check_mlp_case(check, mixed);
    static const float ranges[] = {0, 1e-30f, 1e-5f, 100, 1e15f};
    for (unsigned i = 0; i < 5; i++) {
        struct mlp_case c = {3,        128, 128, 20, dtypes[i % 4], dtypes[i % 4], BT_LAYOUT_TILES,
                             ranges[i]};
        check_mlp_case(check, c);
    }
    if (check->is_emulated)
        return;
    for (unsigned d = 0; d < 4; d++) { /* past one job, past one block */
        struct mlp_case c = {d % 2 ? 259 : 600, 128, 128, 24, dtypes[d], dtypes[d],
                             BT_LAYOUT_TILES,   1};
        check_mlp_case(check, c);
    }
    /* more tiles than one step, and the dense layer of Lite, narrower in between */
    struct mlp_case wide = {19, 7168, 24, 24, BT_F8_E4M3, BT_BF16, BT_LAYOUT_TILES, 1};
    check_mlp_case(check, wide);
    struct mlp_case lite = {3, 2048, 2816, 2048, BT_I8, BT_I8, BT_LAYOUT_TILES, 1};
    check_mlp_case(check, lite);
}

void check_mlp(struct check *check)
{
    static const uint32_t rows[] = {0, 1, 3, 17, 64, 65, 300};
    for (unsigned i = 0; i < 7; i++) {
        for (unsigned dtype = 0; dtype < 3; dtype++) {
            struct mlp_case c = {
                rows[i],        33 + i, 70, 20 - i, (enum bt_dtype)dtype, (enum bt_dtype)dtype,
                BT_LAYOUT_ROWS, 1};
            if (!check->only_tiles && !(check->is_emulated && rows[i] > 17))
                check_mlp_case(check, c);
        }
    }
    check_swiglu(check, BT_LAYOUT_ROWS);
    check_poison(check, BT_BF16, BT_LAYOUT_ROWS);
    check_tiles(check);
    check_swiglu(check, BT_LAYOUT_TILES);
}
