/* RMSNorm, residual sum, movement of rows. */
#include <math.h>
#include <string.h>

#include "common/kernels/ref/ref.h"
#include "common/kernels/weight.h"

double bt_ref_rms_scale(const float *x, uint32_t dim, float eps)
{
    double sum = 0;
    for (uint32_t i = 0; i < dim; i++)
        sum += (double)x[i] * x[i];
    return 1.0 / sqrt(sum / dim + (double)eps);
}

void bt_ref_rms_norm(struct bt_stream *stream, const float *x, uint32_t rows, uint32_t dim,
                     uint32_t stride, const struct bt_matrix *weight, float eps, float *out)
{
    (void)stream;
    for (size_t row = 0; row < rows; row++) {
        const float *in = x + row * stride;
        double scale = bt_ref_rms_scale(in, dim, eps);
        for (size_t i = 0; i < dim; i++)
            out[row * dim + i] = (float)(bt_weight_at(weight, i) * (in[i] * scale));
    }
}

void bt_ref_add(struct bt_stream *stream, float *x, const float *y, size_t count)
{
    (void)stream;
    for (size_t i = 0; i < count; i++)
        x[i] += y[i];
}

double bt_ref_silu(double x)
{
    return x / (1.0 + exp(-x));
}

void bt_ref_add_rms_norm(struct bt_stream *stream, float *x, const float *y, uint32_t rows,
                         uint32_t dim, const struct bt_matrix *weight, float eps, float *out)
{
    bt_ref_add(stream, x, y, (size_t)rows * dim);
    bt_ref_rms_norm(stream, x, rows, dim, dim, weight, eps, out);
}

void bt_ref_zero(struct bt_stream *stream, float *x, size_t count)
{
    (void)stream;
    memset(x, 0, count * sizeof(*x));
}

void bt_ref_gather_rows(struct bt_stream *stream, float *x, uint32_t dim, const uint32_t *wanted,
                        uint32_t count)
{
    (void)stream;
    for (size_t i = 0; i < count; i++)
        if (wanted[i] != i)
            memcpy(x + i * dim, x + (size_t)wanted[i] * dim, dim * sizeof(*x));
}
