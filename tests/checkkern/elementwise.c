/* embed, rms_norm, add_rms_norm, add, zero, gather_rows */
#include <math.h>
#include <string.h>

#include "tests/checkkern/check.h"

static const struct bt_stream_limits no_limits;

void check_embed(struct check *check)
{
    static const uint32_t dims[] = {1, 15, 64, 129};
    struct bt_stream *stream = check_stream(&no_limits);
    for (unsigned i = 0; i < 12; i++) {
        uint32_t dim = dims[i % 4], tokens[17];
        check_begin(check, "dim %u dtype %u", dim, i / 4);
        struct bt_matrix table = check_matrix(check, 9, dim, (enum bt_dtype)(i / 4), 1);
        float *out = check_floats(check, (size_t)17 * dim);
        for (uint32_t row = 0; row < 17; row++)
            tokens[row] = row == 0 ? 8 : check_below(check, 9);
        check->kernels->embed(stream, &table, tokens, 17, out);
        for (size_t j = 0; j < (size_t)17 * dim; j++) {
            if (out[j] != (float)check_matrix_at(&table, tokens[j / dim], j % dim)) {
                check_fail(check, "element %zu", j);
                break;
            }
        }
        check_end(check);
    }
    bt_stream_destroy(stream);
}

/*
 * The sum of squares has no cancellation: its relative error is at most the roundings along the
 * longest way, dim/16 + 5, halved by the root; division, root, product and weight add 6.
 */
static void check_rms_norm_shape(struct check *check, struct bt_stream *stream, uint32_t rows,
                                 uint32_t dim, uint32_t gap, enum check_kind kind,
                                 enum bt_dtype dtype)
{
    uint32_t stride = dim + gap;
    float eps = kind == CHECK_DENORMAL || kind == CHECK_TINY ? 1e-30f : 1e-6f;
    check_begin(check, "rows %u dim %u stride %u kind %u dtype %u", rows, dim, stride, kind, dtype);
    struct bt_matrix weight = check_matrix(check, 1, dim, dtype, 1);
    float *x = check_floats_random(check, (size_t)rows * stride, kind);
    float *out = check_floats(check, (size_t)rows * dim);
    float *other = check_floats(check, (size_t)rows * dim);
    double *want = check_buffer(check, (size_t)rows * dim * sizeof(double));

    check->kernels->rms_norm(stream, x, rows, dim, stride, &weight, eps, out);
    for (size_t row = 0; row < rows; row++) {
        double sum = 0;
        for (size_t i = 0; i < dim; i++)
            sum += pow(x[row * stride + i], 2);
        for (size_t i = 0; i < dim; i++)
            want[row * dim + i] = check_matrix_at(&weight, 0, i) * x[row * stride + i] /
                                  sqrt(sum / dim + (double)eps);
    }
    if (check->oracle) {
        check->oracle->rms_norm(stream, x, rows, dim, stride, &weight, eps, other);
        for (size_t i = 0; i < (size_t)rows * dim; i++)
            want[i] = other[i];
    }
    /* the square of 1e-18 loses bits below the smallest normal, next to eps they do not count */
    check_close(check, "out", out, want, NULL, (size_t)rows * dim,
                CHECK_EPS * (dim / 16.0 / 2 + 10), 0x1p-148);
    for (uint32_t row = 0; row < rows; row++)
        check->kernels->rms_norm(stream, x + (size_t)row * stride, 1, dim, stride, &weight, eps,
                                 other + (size_t)row * dim);
    check_bits(check, "row alone", other, out, (size_t)rows * dim, sizeof(float));
    if (check->twin) {
        check->twin->rms_norm(stream, x, rows, dim, stride, &weight, eps, other);
        check_bits(check, check->twin->name, other, out, (size_t)rows * dim, sizeof(float));
    }
    struct bt_stream *team = check_stream_team(check, &no_limits);
    check->kernels->rms_norm(team, x, rows, dim, stride, &weight, eps, other);
    check_bits(check, "two threads", other, out, (size_t)rows * dim, sizeof(float));
    bt_stream_destroy(team);
    if (!gap) {
        check->kernels->rms_norm(stream, x, rows, dim, stride, &weight, eps, x);
        check_bits(check, "in place", x, out, (size_t)rows * dim, sizeof(float));
    }
    check_end(check);
}

void check_rms_norm(struct check *check)
{
    static const uint32_t dims[] = {1, 16, 63, 256, 1031};
    struct bt_stream *stream = check_stream(&no_limits);
    for (unsigned i = 0; i < 5; i++) {
        for (unsigned kind = 0; kind < CHECK_KINDS; kind++) {
            enum bt_dtype dtype = (enum bt_dtype)((i + kind) % 3);
            check_rms_norm_shape(check, stream, 17, dims[i], 0, (enum check_kind)kind, dtype);
            check_rms_norm_shape(check, stream, 3, dims[i], 7, (enum check_kind)kind, dtype);
        }
    }
    check_rms_norm_shape(check, stream, 0, 16, 0, CHECK_NORMAL, BT_F32);
    check_rms_norm_shape(check, stream, 70, 2048, 576, CHECK_NORMAL, BT_BF16); /* shared out */
    bt_stream_destroy(stream);
}

/* By definition: the bits of add, then those of rms_norm. */
static void check_add_rms_norm_shape(struct check *check, uint32_t rows, uint32_t dim,
                                     enum bt_dtype dtype)
{
    size_t count = (size_t)rows * dim;
    check_begin(check, "rows %u dim %u dtype %u", rows, dim, dtype);
    struct bt_stream *stream = check_stream(&no_limits);
    struct bt_stream *team = check_stream_team(check, &no_limits);
    struct bt_matrix weight = check_matrix(check, 1, dim, dtype, 1);
    float *x = check_floats_random(check, count, CHECK_NORMAL);
    float *y = check_floats_random(check, count, CHECK_NORMAL);
    float *sum = check_floats(check, count), *want = check_floats(check, count);
    float *out = check_floats(check, count), *again = check_floats(check, count);
    for (size_t i = 0; i < count; i++) {
        sum[i] = x[i] + y[i];
        again[i] = x[i];
    }
    check->kernels->rms_norm(stream, sum, rows, dim, dim, &weight, 1e-6f, want);
    check->kernels->add_rms_norm(stream, x, y, rows, dim, &weight, 1e-6f, out);
    check_bits(check, "x", x, sum, count, sizeof(float));
    check_bits(check, "out", out, want, count, sizeof(float));
    check->kernels->add_rms_norm(team, again, y, rows, dim, &weight, 1e-6f, out);
    check_bits(check, "two threads: x", again, sum, count, sizeof(float));
    check_bits(check, "two threads: out", out, want, count, sizeof(float));
    bt_stream_destroy(stream);
    bt_stream_destroy(team);
    check_end(check);
}

void check_add_rms_norm(struct check *check)
{
    static const uint32_t dims[] = {1, 16, 63, 256, 1031};
    for (unsigned i = 0; i < 15; i++)
        check_add_rms_norm_shape(check, i % 4 * 3, dims[i % 5], (enum bt_dtype)(i / 5));
    check_add_rms_norm_shape(check, 70, 2048, BT_BF16); /* shared out */
}

void check_zero(struct check *check)
{
    static const size_t counts[] = {0, 1, 17, 4096, 200000};
    for (unsigned i = 0; i < 5; i++) {
        check_begin(check, "count %zu", counts[i]);
        struct bt_stream *stream = check_stream_team(check, &no_limits);
        float *x = check_floats_random(check, counts[i], CHECK_NORMAL);
        check->kernels->zero(stream, x, counts[i]);
        for (size_t j = 0; j < counts[i]; j++) {
            if (x[j] != 0 || signbit(x[j])) {
                check_fail(check, "element %zu is %g", j, (double)x[j]);
                break;
            }
        }
        bt_stream_destroy(stream);
        check_end(check);
    }
}

/* Each row holds its own number, in every column another one. */
static void check_gather_shape(struct check *check, uint32_t rows, uint32_t dim, uint32_t keep)
{
    uint32_t *wanted, count = 0;
    check_begin(check, "rows %u dim %u keep %u", rows, dim, keep);
    struct bt_stream *stream = check_stream_team(check, &no_limits);
    float *x = check_floats(check, (size_t)rows * dim);
    wanted = check_buffer(check, (rows + 1) * sizeof(*wanted));
    for (size_t i = 0; i < (size_t)rows * dim; i++)
        x[i] = (float)(i % 16000000);
    for (uint32_t row = 0; row < rows; row++)
        if (check_below(check, 100) < keep)
            wanted[count++] = row;
    check->kernels->gather_rows(stream, x, dim, wanted, count);
    for (size_t i = 0; i < (size_t)count * dim; i++) {
        size_t from = wanted[i / dim] * (size_t)dim + i % dim;
        if (x[i] != (float)(from % 16000000)) {
            check_fail(check, "row %zu column %zu is %g", i / dim, i % dim, (double)x[i]);
            break;
        }
    }
    bt_stream_destroy(stream);
    check_end(check);
}

void check_gather_rows(struct check *check)
{
    static const uint32_t keep[] = {0, 3, 50, 100};
    for (unsigned i = 0; i < 4; i++) {
        check_gather_shape(check, 0, 8, keep[i]);
        check_gather_shape(check, 33, 1 + 20 * i, keep[i]);
        check_gather_shape(check, 100, 2048, keep[i]);
    }
}

void check_add(struct check *check)
{
    static const size_t counts[] = {0, 1, 3, 16, 63, 129, 300001};
    struct bt_stream *stream = check_stream_team(check, &no_limits);
    for (unsigned i = 0; i < 7; i++) {
        check_begin(check, "count %zu", counts[i]);
        float *x = check_floats_random(check, counts[i], CHECK_NORMAL);
        float *y = check_floats_random(check, counts[i], CHECK_NORMAL);
        float *want = check_floats(check, counts[i]);
        for (size_t j = 0; j < counts[i]; j++)
            want[j] = x[j] + y[j];
        check->kernels->add(stream, x, y, counts[i]);
        check_bits(check, "x", x, want, counts[i], sizeof(float));
        check_end(check);
    }
    bt_stream_destroy(stream);
}
