#include "tests/checkkern/ffn.h"

#include <float.h>
#include <math.h>
#include <string.h>

static bool is_int8(enum bt_dtype dtype)
{
    return dtype == BT_I8 || dtype == BT_I4;
}

struct ffn_matrix ffn_matrix_of(struct check *check, const struct bt_matrix *rows, bool tiles)
{
    float *values = check_floats(check, (size_t)rows->rows * rows->cols), *at = values;
    bool scaled = tiles && is_int8(rows->dtype);
    for (size_t row = 0; row < rows->rows; row++) {
        for (size_t col = 0; col < rows->cols; col++) {
            double value = tiles ? check_tile_at(rows, row, col) : check_matrix_at(rows, row, col);
            *at++ = (float)(scaled ? rint(value / (double)rows->scales[row]) : value);
        }
    }
    return (struct ffn_matrix){values, scaled ? rows->scales : NULL, rows->dtype, rows->rows,
                               rows->cols};
}

/* Relative error of a sum of n terms in f32, against the sum of their magnitudes. */
static double sum_error(size_t n)
{
    return CHECK_EPS * (2 * sqrt((double)n) + 8);
}

static double nearest_bf16(double value)
{
    return (double)bt_bf16_to_f32(bt_f32_to_bf16((float)value));
}

/* x as a product with m takes it. */
static void take_input(const struct ffn_matrix *m, bool tiles, const float *x, double *out)
{
    if (tiles) {
        check_tile_input(x, m->cols, m->dtype, out);
        return;
    }
    for (size_t i = 0; i < m->cols; i++)
        out[i] = x[i];
}

/* One output. error [cols] of the inputs may be NULL. */
static double product(const struct ffn_matrix *m, size_t row, const double *in,
                      const double *in_error, double *ret_error)
{
    const float *values = m->values + row * m->cols;
    double sum = 0, size = 0, carried = 0, scale = m->scales ? (double)m->scales[row] : 1;
    for (size_t i = 0; i < m->cols; i++) {
        double term = in[i] * (double)values[i];
        sum += term;
        size += fabs(term);
        if (in_error)
            carried += in_error[i] * fabs((double)values[i]);
    }
    /* sums of int8 are exact, and three roundings follow; sums of bf16 flush what is not normal */
    *ret_error = m->scales ? fabs(sum) * scale * 5 * CHECK_EPS + carried * scale
                           : size * sum_error(m->cols) + carried + 0x1p-126 * m->cols;
    return sum * scale;
}

static double nearest_f8(double value, double scale)
{
    return (double)bt_f8_e4m3_to_f32(bt_f32_to_f8_e4m3((float)(value / scale))) * scale;
}

/* The scale of each 128 has the error of its largest; so near to the middle of two, either. */
static void quantise_f8(double *inner, double *error, size_t count)
{
    double max = 0, max_error = 0;
    for (size_t i = 0; i < count; i++) {
        max = fmax(max, fabs(inner[i]));
        max_error = fmax(max_error, error[i]);
    }
    double scale = max > 0 ? fmax(max / 448, FLT_MIN) : 1;
    double relative = max > 0 ? max_error / max + 3 * CHECK_EPS : 0;
    for (size_t i = 0; i < count; i++) {
        double slack = error[i] + fabs(inner[i]) * relative, value = nearest_f8(inner[i], scale);
        error[i] = nearest_f8(inner[i] + slack, scale) - nearest_f8(inner[i] - slack, scale) +
                   fabs(value) * relative;
        inner[i] = value;
    }
}

/* An inner row with errors, as the product with down takes it: nearest or either neighbour. */
static void round_inner(const struct ffn_weights *w, double *inner, double *error)
{
    size_t count = w->down.cols;
    double max = 0, max_error = 0;
    if (!w->tiles)
        return;
    if (check_f8_inputs(w->down.dtype)) {
        for (size_t at = 0; at < count; at += 128)
            quantise_f8(inner + at, error + at, count - at < 128 ? count - at : 128);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        max = fmax(max, fabs(inner[i]));
        max_error = fmax(max_error, error[i]);
    }
    double step = max / 127;
    for (size_t i = 0; i < count; i++) {
        double low = inner[i] - error[i], high = inner[i] + error[i];
        if (!is_int8(w->down.dtype)) {
            error[i] = nearest_bf16(high) - nearest_bf16(low);
            inner[i] = nearest_bf16(inner[i]);
            continue;
        }
        /* the quotient also has the error of the step, whose own is that of the maximum */
        double relative = step > 0 ? max_error / max + 3 * CHECK_EPS : 0;
        double slack = fabs(inner[i]) * relative;
        double n = step > 0 ? rint(inner[i] / step) : 0;
        double least = step > 0 ? rint((low - slack) / step) : 0;
        double most = step > 0 ? rint((high + slack) / step) : 0;
        error[i] = (most - least) * step + fabs(n) * step * relative;
        inner[i] = n * step;
    }
}

void ffn_row(const struct ffn_weights *w, const float *x, bool round_result, double *scratch,
             double *y, double *error)
{
    size_t most = w->gate.cols > w->down.cols ? w->gate.cols : w->down.cols;
    double *in = scratch, *inner = scratch + most, *inner_error = scratch + 2 * most;
    take_input(&w->gate, w->tiles, x, in);
    for (size_t i = 0; i < w->down.cols; i++) {
        double ge, ue, g = product(&w->gate, i, in, NULL, &ge);
        double u = product(&w->up, i, in, NULL, &ue);
        double silu = g / (1 + exp(-g));
        inner[i] = silu * u;
        /* silu's slope is at most 1.1; its own roundings are some 8 */
        double silu_error = 1.1 * ge + fabs(silu) * 8 * CHECK_EPS;
        inner_error[i] =
            silu_error * (fabs(u) + ue) + fabs(silu) * ue + fabs(inner[i]) * CHECK_EPS + 0x1p-149;
    }
    round_inner(w, inner, inner_error);
    for (size_t i = 0; i < w->down.rows; i++) {
        y[i] = product(&w->down, i, inner, inner_error, &error[i]);
        if (round_result && w->tiles) {
            double low = nearest_bf16(y[i] - error[i]), high = nearest_bf16(y[i] + error[i]);
            y[i] = nearest_bf16(y[i]);
            error[i] = high - low;
        }
    }
}

void ffn_rows(struct check *check, const struct ffn_weights *w, const float *x, uint32_t rows,
              bool round_result, double *want, double *error)
{
    size_t most = w->gate.cols > w->down.cols ? w->gate.cols : w->down.cols;
    double *scratch = check_buffer(check, 3 * most * sizeof(*scratch));
    for (size_t row = 0; row < rows; row++)
        ffn_row(w, x + row * w->gate.cols, round_result, scratch, want + row * w->down.rows,
                error + row * w->down.rows);
}
