#include "common/kernels/tiles.h"
#include "common/kernels/x86/tables.h"
#include "common/kernels/x86/x86.h"

const struct bt_kernels BT_X86_TABLE = {
    .name = BT_X86_TABLE_NAME,
    .packed_bytes = bt_tiles_bytes,
    .pack = bt_tiles_pack,
    .embed = BT_X86_ROWS(embed),
    .rms_norm = BT_X86_ROWS(rms_norm),
    .add_rms_norm = BT_X86_ROWS(add_rms_norm),
    .linear = BT_X86_NAME(linear),
    .mlp = BT_X86_NAME(mlp),
    .add = BT_X86_ROWS(add),
    .zero = BT_X86_ROWS(zero),
    .gather_rows = BT_X86_ROWS(gather_rows),
    .rope_q = BT_X86_ROWS(rope_q),
    .kv_write = BT_X86_ROWS(kv_write),
    .mla_prefill = BT_X86_NAME(mla_prefill),
    .mla_decode = BT_X86_NAME(mla_decode),
    .moe_route = BT_X86_ROWS(moe_route),
    .moe_experts = BT_X86_NAME(moe_experts),
    .moe_expert_rows = BT_X86_NAME(moe_expert_rows),
};
