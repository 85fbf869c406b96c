#include <math.h>
#include <string.h>

#include "tests/checkkern/check.h"

static void naive(const float *x, uint32_t rows, const struct bt_matrix *w, double *want,
                  double *magnitude)
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
    for (size_t row = 0; row < rows; row++)
        check->kernels->linear(stream, x + row * cols, 1,
                               &(struct bt_linear){&w, other + row * outs}, 1);
    check_bits(check, "row alone", other, out, count, sizeof(float));
    for (uint32_t n = 0; n < outs; n++) { /* an output in another place of the block */
        struct bt_matrix one = w;
        one.data = (const char *)w.data + (size_t)n * cols * bt_dtype_bytes(dtype);
        one.rows = 1;
        check->kernels->linear(stream, x, rows > 5 ? 5 : rows, &(struct bt_linear){&one, other}, 1);
        for (size_t row = 0; row < (rows > 5 ? 5 : rows); row++)
            check_bits(check, "output alone", other + row, out + row * outs + n, 1, sizeof(float));
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

void check_linear(struct check *check)
{
    static const uint32_t rows[] = {0, 1, 2, 3, 7, 8, 17, 63, 64, 65, 129};
    static const uint32_t sizes[][2] = {{1, 1}, {15, 5}, {16, 16}, {33, 7}, {64, 131}, {257, 66}};
    struct bt_stream_limits limits = {.max_rows = 129};
    struct bt_stream *stream = check_stream(&limits);
    for (unsigned i = 0; i < 11; i++) {
        for (unsigned j = 0; j < 6; j++) {
            for (unsigned dtype = 0; dtype < 3; dtype++) {
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
    check_shape(check, stream, 9, 131100, 3, BT_BF16, CHECK_NORMAL);
    check_poison(check, stream);
    bt_stream_destroy(stream);
}
