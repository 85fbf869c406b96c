/* Dense and routed experts with weights in tiles. */
#include "common/kernels/stream.h"
#include "common/kernels/x86/gemm.h"
#include "common/kernels/x86/tables.h"

void BT_X86_NAME(mlp)(struct bt_stream *stream, const float *x, uint32_t rows,
                      const struct bt_mlp *mlp, float *out)
{
    BT_ASSERT(mlp->gate.layout == BT_LAYOUT_ROWS);
    BT_X86_ROWS(rows_mlp)(stream, x, rows, mlp, out);
}

void BT_X86_NAME(moe_experts)(struct bt_stream *stream, const float *x, uint32_t rows,
                              const struct bt_route_shape *shape, const struct bt_routing *routing,
                              const struct bt_expert_weights *expert_weights, float *out)
{
    BT_X86_ROWS(rows_moe_experts)(stream, x, rows, shape, routing, expert_weights, out);
}
