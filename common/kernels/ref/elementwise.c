/* RMSNorm, residual sum, SwiGLU. */
#include <math.h>

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

void bt_ref_swiglu(struct bt_stream *stream, const float *gate, const float *up, size_t count,
                   float *out)
{
    (void)stream;
    for (size_t i = 0; i < count; i++)
        out[i] = (float)(bt_ref_silu(gate[i]) * up[i]);
}
