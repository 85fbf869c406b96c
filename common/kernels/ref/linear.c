/* Matrix products and the look-up of the embedding. */
#include <float.h>
#include <math.h>

#include "common/kernels/ref/ref.h"
#include "common/kernels/stream.h"
#include "common/kernels/tiles.h"
#include "common/kernels/weight.h"

#define BLOCK_ROWS 16  /* rows that share a decoded row of weights */
#define PIECE      256 /* columns decoded at a time */

#define DOT(load)                                                                                  \
    for (size_t k = 0; k < count; k++)                                                             \
    sum += (double)x[k] * (double)(load)

double bt_ref_dot(const float *x, const void *row, enum bt_dtype dtype, size_t count)
{
    double sum = 0;
    if (dtype == BT_F32)
        DOT(((const float *)row)[k]);
    else if (dtype == BT_BF16)
        DOT(bt_bf16_to_f32(((const uint16_t *)row)[k]));
    else
        DOT(bt_f16_to_f32(((const uint16_t *)row)[k]));
    return sum;
}

double bt_ref_dot_double(const double *x, const void *row, enum bt_dtype dtype, size_t count)
{
    double sum = 0;
    if (dtype == BT_F32)
        DOT(((const float *)row)[k]);
    else if (dtype == BT_BF16)
        DOT(bt_bf16_to_f32(((const uint16_t *)row)[k]));
    else
        DOT(bt_f16_to_f32(((const uint16_t *)row)[k]));
    return sum;
}

/* Four at a time: none of their additions waits for another's. */
void bt_ref_dots(const double *x, size_t stride, size_t rows, const float *row, size_t count,
                 double *sums)
{
    size_t i = 0;
    for (; i + 4 <= rows; i += 4) {
        const double *a = x + i * stride, *b = a + stride, *c = b + stride, *d = c + stride;
        double sum_a = 0, sum_b = 0, sum_c = 0, sum_d = 0;
        for (size_t k = 0; k < count; k++) {
            double weight = row[k];
            sum_a += a[k] * weight;
            sum_b += b[k] * weight;
            sum_c += c[k] * weight;
            sum_d += d[k] * weight;
        }
        sums[i] = sum_a, sums[i + 1] = sum_b, sums[i + 2] = sum_c, sums[i + 3] = sum_d;
    }
    for (; i < rows; i++)
        sums[i] = bt_ref_dot_double(x + i * stride, row, BT_F32, count);
}

static bool is_int8(enum bt_dtype dtype)
{
    return dtype == BT_I8 || dtype == BT_I4;
}

static void quantise(double *x, size_t count)
{
    float max = 0;
    bool finite = true;
    for (size_t i = 0; i < count; i++) {
        finite = finite && isfinite((float)x[i]);
        max = fmaxf(max, fabsf((float)x[i]));
    }
    float step = finite ? fmaxf(max / 127, FLT_MIN) : NAN;
    for (size_t i = 0; i < count; i++)
        x[i] = finite ? (double)rintf((float)x[i] / step) * step : NAN;
}

void bt_ref_take_input(double *x, size_t count, const struct bt_matrix *weight)
{
    if (weight->layout == BT_LAYOUT_ROWS)
        return;
    if (is_int8(weight->dtype))
        quantise(x, count);
    for (size_t i = 0; i < count && !is_int8(weight->dtype); i++)
        x[i] = bt_ref_round_for(weight, x[i]);
}

double bt_ref_round_for(const struct bt_matrix *weight, double value)
{
    if (weight->layout == BT_LAYOUT_ROWS)
        return value;
    return bt_bf16_to_f32(bt_f32_to_bf16((float)value));
}

double bt_ref_product(const double *x, const struct bt_matrix *weight, size_t row)
{
    if (weight->layout == BT_LAYOUT_ROWS)
        return bt_ref_dot_double(x, bt_weight_row(weight, row), weight->dtype, weight->cols);
    double sum = 0;
    float piece[PIECE];
    for (size_t k = 0; k < weight->cols; k += PIECE) {
        size_t count = weight->cols - k < PIECE ? weight->cols - k : PIECE;
        bt_tiles_read(weight, row, k, count, piece);
        for (size_t i = 0; i < count; i++)
            sum += x[k + i] * piece[i];
    }
    return is_int8(weight->dtype) ? sum * weight->scales[row] : sum;
}

static void rows_linear(const float *x, uint32_t rows, const struct bt_matrix *weight, float *out)
{
    for (size_t row = 0; row < rows; row++) {
        for (size_t n = 0; n < weight->rows; n++)
            out[row * weight->rows + n] = (float)bt_ref_dot(
                x + row * weight->cols, bt_weight_row(weight, n), weight->dtype, weight->cols);
    }
}

size_t bt_ref_linear_scratch_bytes(const struct bt_stream_limits *limits)
{
    return bt_scratch_bytes((size_t)BLOCK_ROWS * limits->max_cols, sizeof(double)) +
           bt_scratch_bytes(limits->max_cols, sizeof(float));
}

/* At most BLOCK_ROWS rows: in [BLOCK_ROWS][cols], decoded [cols]. */
static void tiles_block(const float *x, size_t rows, const struct bt_matrix *weight, double *in,
                        float *decoded, float *out)
{
    size_t cols = weight->cols;
    for (size_t row = 0; row < rows; row++) {
        for (size_t k = 0; k < cols; k++)
            in[row * cols + k] = x[row * cols + k];
        bt_ref_take_input(in + row * cols, cols, weight);
    }
    for (size_t n = 0; n < weight->rows; n++) {
        double scale = is_int8(weight->dtype) ? weight->scales[n] : 1;
        double sums[BLOCK_ROWS];
        bt_tiles_read(weight, n, 0, cols, decoded);
        bt_ref_dots(in, cols, rows, decoded, cols, sums);
        for (size_t row = 0; row < rows; row++)
            out[row * weight->rows + n] = (float)(sums[row] * scale);
    }
}

static void tiles_linear(struct bt_stream *stream, const float *x, uint32_t rows,
                         const struct bt_matrix *weight, float *out)
{
    bt_scratch_reset(stream);
    double *in = bt_scratch_take(stream, (size_t)BLOCK_ROWS * weight->cols, sizeof(*in));
    float *decoded = bt_scratch_take(stream, weight->cols, sizeof(*decoded));
    for (size_t row = 0; row < rows; row += BLOCK_ROWS)
        tiles_block(x + row * weight->cols, rows - row < BLOCK_ROWS ? rows - row : BLOCK_ROWS,
                    weight, in, decoded, out + row * weight->rows);
}

void bt_ref_linear(struct bt_stream *stream, const float *x, uint32_t rows,
                   const struct bt_linear *linears, uint32_t linear_count)
{
    for (uint32_t i = 0; i < linear_count; i++) {
        if (linears[i].weight->layout == BT_LAYOUT_TILES)
            tiles_linear(stream, x, rows, linears[i].weight, linears[i].out);
        else
            rows_linear(x, rows, linears[i].weight, linears[i].out);
    }
}

void bt_ref_embed(struct bt_stream *stream, const struct bt_matrix *table, const uint32_t *tokens,
                  uint32_t rows, float *out)
{
    (void)stream;
    for (size_t row = 0; row < rows; row++) {
        BT_ASSERT(tokens[row] < table->rows);
        for (size_t i = 0; i < table->cols; i++)
            out[row * table->cols + i] = bt_weight_at(table, (size_t)tokens[row] * table->cols + i);
    }
}
