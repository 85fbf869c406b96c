/* MLA in its multi-head form with kv_b in tiles. */
#include "common/kernels/stream.h"
#include "common/kernels/x86/gemm.h"
#include "common/kernels/x86/tables.h"

void BT_X86_NAME(mla_prefill)(struct bt_stream *stream, const float *q,
                              const struct bt_mla_shape *shape, const struct bt_matrix *kv_b,
                              const struct bt_sequence_rows *sequences, uint32_t sequence_count,
                              const struct bt_kv_layer *kv, float *out)
{
    BT_ASSERT(kv_b->layout == BT_LAYOUT_ROWS);
    BT_X86_ROWS(rows_mla_prefill)(stream, q, shape, kv_b, sequences, sequence_count, kv, out);
}
