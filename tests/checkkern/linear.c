#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/checkkern/check.h"

CHECK_FORMULA static void naive(const float *x, uint32_t rows, const struct bt_matrix *w,
                                double *want, double *magnitude)
{
    for (size_t row = 0; row < rows; row++) {
        for (size_t n = 0; n < w->rows; n++) {
            double sum = 0, size = 0;
            for (size_t k = w->cols; k-- > 0;) {
                double term = x[row * w->cols + k] * check_matrix_at(w, n, k);
                sum += term;
                size += fabs(term);
            }
            want[row * w->rows + n] = sum;
            magnitude[row * w->rows + n] = size;
        }
    }
}

/*
 * Each term passes at most cols/16 + 1 fused additions and 4 of the tree, each rounding relative to
 * a partial sum that is at most sum |x w|; one more for ref's rounding. Sums below the smallest
 * normal round absolutely.
 */
static void check_shape(struct check *check, struct bt_stream *stream, uint32_t rows, uint32_t cols,
                        uint32_t outs, enum bt_dtype dtype, enum check_kind kind)
{
    size_t count = (size_t)rows * outs;
    check_begin(check, "rows %u cols %u outs %u dtype %u kind %u", rows, cols, outs, dtype, kind);
    struct bt_matrix w = check_matrix(check, outs, cols, dtype, kind == CHECK_LARGE ? 1e15f : 1);
    float *x = check_floats_random(check, (size_t)rows * cols, kind);
    float *out = check_floats(check, count), *other = check_floats(check, count);
    double *want = check_buffer(check, count * sizeof(double));
    double *magnitude = check_buffer(check, count * sizeof(double));

    check->kernels->linear(stream, x, rows, &(struct bt_linear){&w, out}, 1);
    naive(x, rows, &w, want, magnitude);
    if (check->oracle) {
        check->oracle->linear(stream, x, rows, &(struct bt_linear){&w, other}, 1);
        for (size_t i = 0; i < count; i++)
            want[i] = other[i];
    }
    check_close(check, "out", out, want, magnitude, count, CHECK_EPS * (cols / 16 + 6),
                0x1p-149 * (cols / 16.0 + 6));
    for (size_t row = 0; row < rows; row += check_on_grid(check) ? 1 + rows / 4 : 1) {
        check->kernels->linear(stream, x + row * cols, 1,
                               &(struct bt_linear){&w, other + row * outs}, 1);
        check_bits(check, "row alone", other + row * outs, out + row * outs, outs, sizeof(float));
    }
    /* an output in another place of the block */
    for (uint32_t n = 0; n < outs; n += check_on_grid(check) ? 1 + outs / 4 : 1) {
        struct bt_matrix one = w;
        one.data = (const char *)w.data + (size_t)n * cols * bt_dtype_bytes(dtype);
        one.rows = 1;
        check->kernels->linear(stream, x, rows > 5 ? 5 : rows, &(struct bt_linear){&one, other}, 1);
        for (size_t row = 0; row < (rows > 5 ? 5 : rows); row++)
            check_bits(check, "output alone", other + row, out + row * outs + n, 1, sizeof(float));
    }
    if (check->team) {
        struct bt_stream_limits limits = {.max_rows = rows};
        struct bt_stream *two = check_stream_team(check, &limits);
        check->kernels->linear(two, x, rows, &(struct bt_linear){&w, other}, 1);
        check_bits(check, "two threads", other, out, count, sizeof(float));
        bt_stream_destroy(two);
    }
    if (check->twin) {
        check->twin->linear(stream, x, rows, &(struct bt_linear){&w, other}, 1);
        check_bits(check, check->twin->name, other, out, count, sizeof(float));
    }
    check_end(check);
}

/* A row of NaN and infinities leaves its neighbours as they are. */
static void check_poison(struct check *check, struct bt_stream *stream)
{
    uint32_t rows = 17, cols = 70, outs = 33;
    check_begin(check, "poisoned row");
    struct bt_matrix w = check_matrix(check, outs, cols, BT_BF16, 1);
    float *x = check_floats_random(check, (size_t)rows * cols, CHECK_NORMAL);
    float *out = check_floats(check, (size_t)rows * outs);
    float *want = check_floats(check, (size_t)rows * outs);
    check->kernels->linear(stream, x, rows, &(struct bt_linear){&w, want}, 1);
    for (size_t i = 0; i < cols; i++)
        x[5 * cols + i] = i % 2 ? NAN : INFINITY;
    check->kernels->linear(stream, x, rows, &(struct bt_linear){&w, out}, 1);
    for (size_t i = 0; i < outs; i++) {
        if (!isnan(out[5 * outs + i]))
            check_fail(check, "output %zu of the poisoned row is a number", i);
    }
    memcpy(out + 5 * outs, want + 5 * outs, outs * sizeof(float));
    check_bits(check, "other rows", out, want, (size_t)rows * outs, sizeof(float));
    check_end(check);
}

/* ---- weights in tiles ---- */

static bool is_int8(enum bt_dtype dtype)
{
    return dtype == BT_I8 || dtype == BT_I4;
}

/* Sums of what tile arithmetic multiplies. sizes: sum |x w|; ret_most: the largest sum |w|. */
CHECK_FORMULA static void naive_tiles(struct check *check, const float *x, uint32_t rows,
                                      const struct bt_matrix *w, double *want, double *sizes,
                                      double *ret_most)
{
    size_t cols = w->cols, outs = w->rows;
    double *in = check_buffer(check, rows * cols * sizeof(*in));
    double *weights = check_buffer(check, cols * sizeof(*weights));
    *ret_most = 0;
    for (size_t row = 0; row < rows; row++)
        check_tile_input(x + row * cols, cols, w->dtype, in + row * cols);
    for (size_t n = 0; n < outs; n++) {
        double weight_size = 0;
        for (size_t k = 0; k < cols; k++) {
            weights[k] = check_tile_at(w, n, k);
            weight_size += fabs(weights[k]);
        }
        *ret_most = fmax(*ret_most, weight_size);
        for (size_t row = 0; row < rows; row++) {
            double sum = 0, size = 0;
            for (size_t k = 0; k < cols; k++) {
                double term = in[row * cols + k] * weights[k];
                sum += term;
                size += fabs(term);
            }
            /* what should be an integer 0 is not quite that once scales are in it */
            want[row * outs + n] = fabs(sum) > size * (double)cols * 0x1p-53 ? sum : 0;
            sizes[row * outs + n] = size;
        }
    }
}

/*
 * I8 and I4: the integer sum is exact; it is rounded to f32, and so are its two products with
 * scales: three roundings, and one of ref's own. Results below the smallest normal round
 * absolutely.
 *
 * BF16 and F8_E4M3: products of bf16 are exact in f32. The sum of cols of them rounds at most
 * twice a term, each time relative to a partial sum that is at most sum |x w|. Roundings are
 * random: 2 sqrt(cols) of them and 8 more cover the worst of them with room. VDPBF16PS and
 * TDPBF16PS take denormal inputs as 0 and make denormal results 0: then each of cols products and
 * partial sums may be off by the smallest normal, and each weight times that.
 */
static void check_tiles_close(struct check *check, const struct bt_matrix *w, const float *out,
                              const double *want, const double *sizes, double most_weights,
                              size_t count)
{
    bool flushes = strcmp(check->kernels->name, "avx512_bf16") == 0 ||
                   strcmp(check->kernels->name, "amx") == 0;
    double cols = w->cols, tiny = (flushes ? 0x1p-126 : 0x1p-149) * (2 * cols + most_weights + 8);
    if (is_int8(w->dtype))
        check_close(check, "out", out, want, NULL, count, 4 * CHECK_EPS, 0x1p-126);
    else
        check_close(check, "out", out, want, sizes, count, CHECK_EPS * (2 * sqrt(cols) + 8), tiny);
}

static struct bt_linear linear_of(const struct bt_matrix *weight, float *out)
{
    return (struct bt_linear){weight, out};
}

/* The same bits row by row, with two threads, on the twin, and after a re-run in other company. */
static void check_tiles_bits(struct check *check, const struct bt_stream_limits *limits,
                             struct bt_stream *stream, const float *x, uint32_t rows,
                             const struct bt_matrix *packed, const float *out)
{
    size_t cols = packed->cols, outs = packed->rows, count = rows * outs;
    float *other = check_floats(check, count);
    struct bt_linear linear = linear_of(packed, other);
    uint32_t alone = check->is_emulated && rows > 4 ? 4 : rows;
    for (uint32_t i = 0; i < alone; i++) {
        size_t row = alone == rows ? i : (size_t)i * (rows - 1) / 3;
        linear.out = other + row * outs;
        check->kernels->linear(stream, x + row * cols, 1, &linear, 1);
        check_bits(check, "row alone", other + row * outs, out + row * outs, outs, sizeof(float));
    }
    linear.out = other;
    if (check->team && rows > 0) {
        struct bt_stream *two = check_stream_team(check, limits);
        check->kernels->linear(two, x, rows, &linear, 1);
        check_bits(check, "two threads", other, out, count, sizeof(float));
        bt_stream_destroy(two);
    }
    if (check->twin) {
        check->twin->linear(stream, x, rows, &linear, 1);
        check_bits(check, check->twin->name, other, out, count, sizeof(float));
    }
}

static void check_tiles_shape(struct check *check, uint32_t rows, uint32_t cols, uint32_t outs,
                              enum bt_dtype dtype, enum check_kind kind)
{
    check_begin(check, "tiles rows %u cols %u outs %u %s kind %u", rows, cols, outs,
                bt_dtype_name(dtype), kind);
    struct bt_matrix w = check_matrix(check, outs, cols, dtype, kind == CHECK_LARGE ? 1e15f : 1);
    struct bt_matrix packed = check_packed(check, &w, BT_USE_LINEAR, NULL);
    struct bt_stream_limits limits = {.max_rows = rows, .max_cols = w.cols};
    struct bt_stream *stream = check_stream(&limits);
    size_t count = (size_t)rows * outs;
    float *x = check_floats_random(check, (size_t)rows * w.cols + 1, kind) + 1;
    float *out = check_floats(check, count);
    double *want = check_buffer(check, count * sizeof(double));
    double *sizes = check_buffer(check, count * sizeof(double)), most;

    struct bt_linear linear = linear_of(&packed, out);
    check->kernels->linear(stream, x, rows, &linear, 1);
    naive_tiles(check, x, rows, &w, want, sizes, &most);
    check_tiles_close(check, &w, out, want, sizes, most, count);
    if (check->oracle && !check_f8_inputs(dtype)) {
        float *oracle = check_floats(check, count);
        linear.out = oracle;
        check->oracle->linear(stream, x, rows, &linear, 1);
        for (size_t i = 0; i < count; i++)
            want[i] = oracle[i];
        check_tiles_close(check, &w, out, want, sizes, most, count);
    }
    check_tiles_bits(check, &limits, stream, x, rows, &packed, out);
    bt_stream_destroy(stream);
    check_end(check);
}

/* Rows of a wide matrix that differ: whole blocks of scales, and no power of two. */
#define WIDE_PERIOD 640

static void repeat(char *to, const void *from, size_t bytes, size_t period)
{
    memcpy(to, from, bytes < period ? bytes : period);
    for (size_t at = period; at < bytes; at += period)
        memcpy(to + at, to, bytes - at < period ? bytes - at : period);
}

/* `part`, of WIDE_PERIOD rows, over and over. */
static struct bt_matrix widened(struct check *check, const struct bt_matrix *part, uint32_t outs)
{
    struct bt_matrix wide = *part;
    size_t row = (size_t)part->cols * bt_dtype_bits(part->dtype) / 8, groups = part->cols / 128;
    size_t scale_rows = part->dtype == BT_F8_E4M3 ? 128 : 1;
    size_t scale = sizeof(float) * (part->dtype == BT_F8_E4M3 ? groups : 1);
    char *data = check_buffer(check, outs * row);
    BT_ASSERT(part->rows == WIDE_PERIOD && part->cols % 128 == 0);
    wide.rows = outs;
    wide.data = data;
    repeat(data, part->data, outs * row, WIDE_PERIOD * row);
    if (part->scales) {
        char *scales = check_buffer(check, (outs + scale_rows - 1) / scale_rows * scale);
        repeat(scales, part->scales, (outs + scale_rows - 1) / scale_rows * scale,
               WIDE_PERIOD / scale_rows * scale);
        wide.scales = (const float *)(const void *)scales;
    }
    if (part->group_scales) {
        char *scales = check_buffer(check, outs * groups);
        repeat(scales, part->group_scales, outs * groups, WIDE_PERIOD * groups);
        wide.group_scales = (const uint8_t *)scales;
    }
    return wide;
}

/* As many outputs as the models have, the weights of WIDE_PERIOD of them over and over, so that
 * what is expected is known without as many products. */
static void check_wide(struct check *check, uint32_t rows, uint32_t cols, uint32_t outs,
                       enum bt_dtype dtype)
{
    check_begin(check, "wide rows %u cols %u outs %u %s", rows, cols, outs, bt_dtype_name(dtype));
    struct bt_matrix part = check_matrix(check, WIDE_PERIOD, cols, dtype, 1);
    struct bt_matrix wide = widened(check, &part, outs);
    struct bt_matrix packed = check_packed(check, &wide, BT_USE_LINEAR, NULL);
    struct bt_stream_limits limits = {.max_rows = rows, .max_cols = cols};
    struct bt_stream *stream = check_stream(&limits), *on_team = check_stream_team(check, &limits);
    float *x = check_floats_random(check, (size_t)rows * cols, CHECK_NORMAL);
    size_t count = (size_t)rows * outs, few = (size_t)rows * WIDE_PERIOD;
    float *out = check_floats(check, count), *other = check_floats(check, count);
    float *got = check_floats(check, few);
    double *want = check_buffer(check, few * sizeof(double));
    double *sizes = check_buffer(check, few * sizeof(double)), most;

    struct bt_linear linear = linear_of(&packed, out);
    check->kernels->linear(stream, x, rows, &linear, 1);
    naive_tiles(check, x, rows, &part, want, sizes, &most);
    for (uint32_t at = 0; at < outs; at += WIDE_PERIOD) {
        uint32_t width = outs - at < WIDE_PERIOD ? outs - at : WIDE_PERIOD;
        /* what the last has not is that of the one before */
        for (uint32_t row = 0; row < rows; row++)
            memcpy(got + (size_t)row * WIDE_PERIOD, out + (size_t)row * outs + at,
                   width * sizeof(*got));
        check_tiles_close(check, &part, got, want, sizes, most, few);
    }
    linear.out = other;
    check->kernels->linear(on_team, x, rows, &linear, 1);
    check_bits(check, "two threads", other, out, count, sizeof(float));
    bt_stream_destroy(stream);
    bt_stream_destroy(on_team);
    check_end(check);
}

/* q_b, o and head of V3, the head of V2-Lite. */
static void check_family(struct check *check)
{
    static const enum bt_dtype dtypes[] = {BT_BF16, BT_F8_E4M3, BT_I8, BT_I4};
    if (!check->oracle)
        return; /* takes long */
    for (unsigned i = 0; i < 4; i++) {
        check_wide(check, 1 + 4 * (i % 2), 1536, 24576, dtypes[i]);
        check_wide(check, 3 - 2 * (i % 2), 16384, 7168, dtypes[i]);
    }
    check_wide(check, 2, 2048, 102400, BT_BF16);
    if (getenv("BATON_CHECKKERN_LONG"))
        check_wide(check, 2, 7168, 129280, BT_BF16);
}

/* Batches of 1 … 64 rows: all that came before a row are there or not. */
static void check_batches(struct check *check, uint32_t cols, uint32_t outs, enum bt_dtype dtype)
{
    enum { MOST = 64 };
    uint32_t step = check->is_emulated ? 13 : 1;
    struct bt_stream_limits limits = {.max_rows = MOST, .max_cols = 512};
    struct bt_stream *stream = check_stream(&limits);
    check_begin(check, "batches of 1 to 64, cols %u outs %u %s", cols, outs, bt_dtype_name(dtype));
    struct bt_matrix w = check_matrix(check, outs, cols, dtype, 1);
    struct bt_matrix packed = check_packed(check, &w, BT_USE_LINEAR, NULL);
    float *x = check_floats_random(check, (size_t)MOST * w.cols, CHECK_NORMAL);
    float *all = check_floats(check, (size_t)MOST * outs);
    float *out = check_floats(check, (size_t)MOST * outs);
    struct bt_linear linear = linear_of(&packed, all);
    check->kernels->linear(stream, x, MOST, &linear, 1);
    linear.out = out;
    for (uint32_t rows = 1; rows < MOST; rows += step) {
        uint32_t first = check_below(check, MOST - rows);
        check->kernels->linear(stream, x + (size_t)first * w.cols, rows, &linear, 1);
        check_bits(check, "batch", out, all + (size_t)first * outs, (size_t)rows * outs,
                   sizeof(float));
    }
    check_end(check);
    bt_stream_destroy(stream);
}

/* Several products of one call, of every dtype and layout, against each alone. */
static void check_together(struct check *check, uint32_t rows)
{
    static const enum bt_dtype dtypes[] = {BT_BF16, BT_I8,  BT_F32, BT_F8_E4M3,
                                           BT_I4,   BT_F16, BT_BF16};
    enum { COUNT = sizeof(dtypes) / sizeof(dtypes[0]), COLS = 256 };
    struct bt_stream_limits limits = {.max_rows = rows, .max_cols = COLS};
    struct bt_stream *stream = check_stream(&limits);
    struct bt_matrix weights[COUNT];
    struct bt_linear linears[COUNT];
    check_begin(check, "together rows %u", rows);
    float *x = check_floats_random(check, (size_t)rows * COLS, CHECK_NORMAL);
    for (uint32_t i = 0; i < COUNT; i++) {
        uint32_t outs = 1 + check_below(check, 300);
        weights[i] = check_matrix(check, outs, COLS, dtypes[i], 1);
        if (i != 2 && i != 6)
            weights[i] = check_packed(check, &weights[i], BT_USE_LINEAR, NULL);
        linears[i] = linear_of(&weights[i], check_floats(check, (size_t)rows * outs));
    }
    check->kernels->linear(stream, x, rows, linears, COUNT);
    for (uint32_t i = 0; i < COUNT; i++) {
        float *alone = check_floats(check, (size_t)rows * weights[i].rows);
        struct bt_linear one = linear_of(&weights[i], alone);
        check->kernels->linear(stream, x, rows, &one, 1);
        check_bits(check, "alone", alone, linears[i].out, (size_t)rows * weights[i].rows,
                   sizeof(float));
    }
    check_end(check);
    bt_stream_destroy(stream);
}

/* A row that is not finite leaves its neighbours as they are, and is NaN all along. */
static void check_tiles_poison(struct check *check, enum bt_dtype dtype)
{
    enum { ROWS = 17, COLS = 256, OUTS = 33, BAD = 5 };
    struct bt_stream_limits limits = {.max_rows = ROWS, .max_cols = COLS};
    struct bt_stream *stream = check_stream(&limits);
    check_begin(check, "tiles poisoned row %s", bt_dtype_name(dtype));
    struct bt_matrix w = check_matrix(check, OUTS, COLS, dtype, 1);
    struct bt_matrix packed = check_packed(check, &w, BT_USE_LINEAR, NULL);
    float *x = check_floats_random(check, ROWS * COLS, CHECK_NORMAL);
    float *out = check_floats(check, ROWS * OUTS), *want = check_floats(check, ROWS * OUTS);
    struct bt_linear linear = linear_of(&packed, want);
    check->kernels->linear(stream, x, ROWS, &linear, 1);
    for (size_t i = 0; i < COLS; i++)
        x[BAD * COLS + i] = i % 2 ? NAN : INFINITY;
    linear.out = out;
    check->kernels->linear(stream, x, ROWS, &linear, 1);
    for (size_t i = 0; i < OUTS; i++) {
        if (!isnan(out[BAD * OUTS + i]))
            check_fail(check, "output %zu of the poisoned row is a number", i);
    }
    memcpy(out + BAD * OUTS, want + BAD * OUTS, OUTS * sizeof(float));
    check_bits(check, "other rows", out, want, ROWS * OUTS, sizeof(float));
    check_end(check);
    bt_stream_destroy(stream);
}

static void check_tiles(struct check *check)
{
    static const enum bt_dtype dtypes[] = {BT_BF16, BT_F8_E4M3, BT_I8, BT_I4};
    static const uint32_t rows[] = {0, 1, 2, 3, 8, 9, 15, 16, 17, 31, 32, 33, 47, 64, 65, 129};
    static const uint32_t sizes[][2] = {{1, 1},    {31, 17},   {32, 16},   {64, 33},
                                        {128, 48}, {257, 131}, {1100, 100}};
    enum { ROWS = sizeof(rows) / sizeof(rows[0]), SIZES = sizeof(sizes) / sizeof(sizes[0]) };
    for (unsigned d = 0; d < 4; d++) {
        for (unsigned i = 0; i < ROWS; i++) {
            for (unsigned j = 0; j < SIZES; j++) {
                if ((i + j + d) % (check_on_grid(check) ? 11 : check->is_emulated ? 7 : 2) == 0)
                    check_tiles_shape(check, rows[i], sizes[j][0], sizes[j][1], dtypes[d],
                                      CHECK_NORMAL);
            }
        }
        for (unsigned kind = 1; kind < CHECK_KINDS; kind++)
            check_tiles_shape(check, 9, 100, 20, dtypes[d], (enum check_kind)kind);
        for (unsigned i = 0; i < (check->is_emulated ? 2 : 10); i++)
            check_tiles_shape(check, 1 + check_below(check, 80), 1 + check_below(check, 700),
                              1 + check_below(check, 200), dtypes[d], CHECK_NORMAL);
        check_batches(check, 300, 70, dtypes[d]);
        check_tiles_poison(check, dtypes[d]);
        /* more than one block of rows, and steps along k */
        check_tiles_shape(check, check->is_emulated ? 66 : 530, is_int8(dtypes[d]) ? 4200 : 2100,
                          20, dtypes[d], CHECK_NORMAL);
    }
    check_together(check, 1);
    check_together(check, 70);
    if (check->is_emulated)
        return;
    /* of the family: hidden, kv_a and q_a of V3, an expert of V2-Lite, columns of o of V3 */
    check_tiles_shape(check, 3, 7168, 576, BT_BF16, CHECK_NORMAL);
    check_tiles_shape(check, 2, 7168, 1536, BT_F8_E4M3, CHECK_NORMAL);
    check_tiles_shape(check, 5, 2048, 1408, BT_I4, CHECK_NORMAL);
    check_tiles_shape(check, 4, 1408, 2048, BT_I8, CHECK_NORMAL);
    check_tiles_shape(check, 17, 16384, 64, BT_BF16, CHECK_NORMAL);
    check_tiles_shape(check, 17, 18432, 64, BT_I4, CHECK_NORMAL);
    check_family(check);
}

void check_linear(struct check *check)
{
    static const uint32_t rows[] = {0, 1, 2, 3, 7, 8, 17, 63, 64, 65, 129};
    static const uint32_t sizes[][2] = {{1, 1}, {15, 5}, {16, 16}, {33, 7}, {64, 131}, {257, 66}};
    struct bt_stream_limits limits = {.max_rows = 129};
    struct bt_stream *stream = check_stream(&limits);
    for (unsigned i = 0; i < 11; i++) {
        for (unsigned j = 0; j < 6; j++) {
            for (unsigned dtype = 0; dtype < 3; dtype++) {
                if (check_on_grid(check) && (i + 2 * j + dtype) % 7 != 0)
                    continue;
                if (rows[i] < 64 || j < 4 || (i + j) % 3 == dtype)
                    check_shape(check, stream, rows[i], sizes[j][0], sizes[j][1],
                                (enum bt_dtype)dtype, CHECK_NORMAL);
            }
        }
    }
    for (unsigned kind = 0; kind < CHECK_KINDS; kind++)
        check_shape(check, stream, 9, 100, 10, (enum bt_dtype)(kind % 3), (enum check_kind)kind);
    /* so wide that a panel of converted weights holds three of them, and not one */
    check_shape(check, stream, 9, 40000, 4, BT_BF16, CHECK_NORMAL);
    if (!check_on_grid(check))
        check_shape(check, stream, 9, 131100, 3, BT_BF16, CHECK_NORMAL);
    check_poison(check, stream);
    bt_stream_destroy(stream);
    check_tiles(check);
}
