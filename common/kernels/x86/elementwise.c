/* RMSNorm, residual sum, SwiGLU. */
#include <math.h>
#include <string.h>

#include "common/kernels/weight.h"
#include "common/kernels/x86/tables.h"

static float rms_scale(const float *x, size_t dim, float eps)
{
    struct bt_v16 sum = bt_v16_zero();
    size_t i = 0;
    for (; i + BT_LANES <= dim; i += BT_LANES) {
        struct bt_v16 in = bt_v16_load(x + i);
        sum = bt_v16_fma(in, in, sum);
    }
    if (i < dim) {
        struct bt_v16 in = bt_v16_load_part(x + i, dim - i);
        sum = bt_v16_fma(in, in, sum);
    }
    return 1.0f / sqrtf(bt_v16_sum(sum) / (float)dim + eps);
}

void BT_X86_NAME(rms_norm_row)(const float *x, size_t dim, const struct bt_matrix *weight,
                               float eps, float *out)
{
    struct bt_v16 scale = bt_v16_set(rms_scale(x, dim, eps));
    size_t i = 0;
    for (; i + BT_LANES <= dim; i += BT_LANES) {
        struct bt_v16 factor = bt_v16_load_dtype(
            (const char *)weight->data + i * bt_dtype_bytes(weight->dtype), weight->dtype);
        bt_v16_store(out + i, bt_v16_mul(factor, bt_v16_mul(bt_v16_load(x + i), scale)));
    }
    if (i < dim) {
        struct bt_v16 factor = bt_v16_load_dtype_part(
            (const char *)weight->data + i * bt_dtype_bytes(weight->dtype), weight->dtype, dim - i);
        bt_v16_store_part(out + i,
                          bt_v16_mul(factor, bt_v16_mul(bt_v16_load_part(x + i, dim - i), scale)),
                          dim - i);
    }
}

void BT_X86_NAME(rms_norm)(struct bt_stream *stream, const float *x, uint32_t rows, uint32_t dim,
                           uint32_t stride, const struct bt_matrix *weight, float eps, float *out)
{
    (void)stream;
    for (size_t row = 0; row < rows; row++)
        BT_X86_NAME(rms_norm_row)(x + row * stride, dim, weight, eps, out + row * dim);
}

void BT_X86_NAME(add)(struct bt_stream *stream, float *x, const float *y, size_t count)
{
    (void)stream;
    for (size_t i = 0; i < count; i++)
        x[i] += y[i];
}

void BT_X86_NAME(swiglu)(const float *gate, const float *up, size_t count, float *out)
{
    size_t i = 0;
    for (; i + BT_LANES <= count; i += BT_LANES)
        bt_v16_store(out + i, bt_v16_mul(bt_v16_silu(bt_v16_load(gate + i)), bt_v16_load(up + i)));
    if (i < count)
        bt_v16_store_part(out + i,
                          bt_v16_mul(bt_v16_silu(bt_v16_load_part(gate + i, count - i)),
                                     bt_v16_load_part(up + i, count - i)),
                          count - i);
}

void BT_X86_NAME(add_rms_norm)(struct bt_stream *stream, float *x, const float *y, uint32_t rows,
                               uint32_t dim, const struct bt_matrix *weight, float eps, float *out)
{
    BT_X86_NAME(add)(stream, x, y, (size_t)rows * dim);
    BT_X86_NAME(rms_norm)(stream, x, rows, dim, dim, weight, eps, out);
}

void BT_X86_NAME(zero)(struct bt_stream *stream, float *x, size_t count)
{
    (void)stream;
    memset(x, 0, count * sizeof(*x));
}

void BT_X86_NAME(gather_rows)(struct bt_stream *stream, float *x, uint32_t dim,
                              const uint32_t *wanted, uint32_t count)
{
    (void)stream;
    for (size_t i = 0; i < count; i++)
        if (wanted[i] != i)
            memcpy(x + i * dim, x + (size_t)wanted[i] * dim, dim * sizeof(*x));
}
