/* Dense products with weights in tiles. */
#include "common/kernels/stream.h"
#include "common/kernels/x86/gemm.h"
#include "common/kernels/x86/tables.h"

void BT_X86_NAME(linear)(struct bt_stream *stream, const float *x, uint32_t rows,
                         const struct bt_linear *linears, uint32_t linear_count)
{
    for (uint32_t i = 0; i < linear_count; i++) {
        BT_ASSERT(linears[i].weight->layout == BT_LAYOUT_ROWS);
        BT_X86_ROWS(rows_linear)(stream, x, rows, linears[i].weight, linears[i].out);
    }
}
