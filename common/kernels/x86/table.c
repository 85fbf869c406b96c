#include "common/kernels/x86/tables.h"
#include "common/kernels/x86/x86.h"

const struct bt_kernels BT_X86_TABLE = {
    .name = BT_X86_TABLE_NAME,
    .embed = BT_X86_NAME(embed),
    .rms_norm = BT_X86_NAME(rms_norm),
    .linear = BT_X86_NAME(linear),
    .add = BT_X86_NAME(add),
    .swiglu = BT_X86_NAME(swiglu),
    .rope_q = BT_X86_NAME(rope_q),
    .kv_write = BT_X86_NAME(kv_write),
    .mla_prefill = BT_X86_NAME(mla_prefill),
    .mla_decode = BT_X86_NAME(mla_decode),
    .moe_route = BT_X86_NAME(moe_route),
    .moe_experts = BT_X86_NAME(moe_experts),
};
