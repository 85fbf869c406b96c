/* Matrix products and the look-up of the embedding. */
#include "common/kernels/stream.h"
#include "common/kernels/weight.h"
#include "common/kernels/x86/product.h"
#include "common/kernels/x86/tables.h"

void BT_X86_NAME(rows_linear)(struct bt_stream *stream, const float *x, uint32_t rows,
                              const struct bt_matrix *weight, float *out)
{
    bt_scratch_reset(stream);
    float *panel = bt_scratch_take(stream, BT_X86_PRODUCT_FLOATS, sizeof(*panel));
    BT_X86_NAME(product)
    ((struct bt_x86_rows){x, rows, weight->cols}, bt_x86_weights_of(weight, 0, weight->rows), panel,
     out, weight->rows);
}

void BT_X86_NAME(embed)(struct bt_stream *stream, const struct bt_matrix *table,
                        const uint32_t *tokens, uint32_t rows, float *out)
{
    (void)stream;
    size_t dim = table->cols, bytes = bt_dtype_bytes(table->dtype);
    for (size_t row = 0; row < rows; row++) {
        const char *in = bt_weight_row(table, tokens[row]);
        size_t i = 0;
        BT_ASSERT(tokens[row] < table->rows);
        for (; i + BT_LANES <= dim; i += BT_LANES)
            bt_v16_store(out + row * dim + i, bt_v16_load_dtype(in + i * bytes, table->dtype));
        if (i < dim)
            bt_v16_store_part(out + row * dim + i,
                              bt_v16_load_dtype_part(in + i * bytes, table->dtype, dim - i),
                              dim - i);
    }
}
