/* Matrix products and the look-up of the embedding. */
#include "common/kernels/stream.h"
#include "common/kernels/weight.h"
#include "common/kernels/x86/product.h"
#include "common/kernels/x86/tables.h"

struct rows_call {
    struct bt_x86_rows x;
    const struct bt_matrix *weight;
    float *panels, *out;
    size_t part_outs;
};

static void rows_part(void *context, uint32_t part, uint32_t thread)
{
    const struct rows_call *call = context;
    size_t first = part * call->part_outs, left = call->weight->rows - first;
    size_t outs = left < call->part_outs ? left : call->part_outs;
    float *panel = call->panels + (size_t)thread * BT_X86_PRODUCT_FLOATS;
    BT_X86_NAME(product)
    (call->x, bt_x86_weights_of(call->weight, first, outs), panel, call->out + first,
     call->weight->rows);
}

void BT_X86_NAME(product_shared)(struct bt_stream *stream, struct bt_x86_rows x,
                                 const struct bt_matrix *weight, float *panels, float *out)
{
    struct rows_call call = {x, weight, panels, out, weight->rows};
    size_t threads = bt_team_threads(stream->team), few = weight->rows / (threads * 4);
    if (threads > 1)
        call.part_outs = (few / BT_X86_PANEL_OUTS + 1) * BT_X86_PANEL_OUTS;
    if (weight->rows > 0)
        bt_team_run(stream->team, rows_part, &call,
                    (uint32_t)((weight->rows + call.part_outs - 1) / call.part_outs));
}

float *BT_X86_NAME(product_panels)(struct bt_stream *stream)
{
    return bt_scratch_take(stream, bt_team_threads(stream->team) * BT_X86_PRODUCT_FLOATS,
                           sizeof(float));
}

void BT_X86_NAME(rows_linear)(struct bt_stream *stream, const float *x, uint32_t rows,
                              const struct bt_matrix *weight, float *out)
{
    bt_scratch_reset(stream);
    BT_X86_NAME(product_shared)
    (stream, (struct bt_x86_rows){x, rows, weight->cols}, weight,
     BT_X86_NAME(product_panels)(stream), out);
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
