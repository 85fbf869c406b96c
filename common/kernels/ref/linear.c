/* Matrix products and the look-up of the embedding. */
#include "common/kernels/ref/ref.h"
#include "common/kernels/weight.h"

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
    for (size_t k = 0; k < count; k++)
        sum += x[k] * (double)bt_element_load(row, dtype, k);
    return sum;
}

static void one_linear(const float *x, uint32_t rows, const struct bt_matrix *weight, float *out)
{
    BT_ASSERT(weight->layout == BT_LAYOUT_ROWS);
    for (size_t row = 0; row < rows; row++) {
        for (size_t n = 0; n < weight->rows; n++)
            out[row * weight->rows + n] = (float)bt_ref_dot(
                x + row * weight->cols, bt_weight_row(weight, n), weight->dtype, weight->cols);
    }
}

void bt_ref_linear(struct bt_stream *stream, const float *x, uint32_t rows,
                   const struct bt_linear *linears, uint32_t linear_count)
{
    (void)stream;
    for (uint32_t i = 0; i < linear_count; i++)
        one_linear(x, rows, linears[i].weight, linears[i].out);
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
