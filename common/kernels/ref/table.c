#include "common/kernels/ref/ref.h"
#include "common/kernels/tiles.h"

const struct bt_kernels bt_kernels_ref = {
    .name = "ref",
    .packed_bytes = bt_tiles_bytes,
    .pack = bt_tiles_pack,
    .embed = bt_ref_embed,
    .rms_norm = bt_ref_rms_norm,
    .add_rms_norm = bt_ref_add_rms_norm,
    .linear = bt_ref_linear,
    .mlp = bt_ref_mlp,
    .add = bt_ref_add,
    .zero = bt_ref_zero,
    .gather_rows = bt_ref_gather_rows,
    .rope_q = bt_ref_rope_q,
    .kv_write = bt_ref_kv_write,
    .mla_prefill = bt_ref_mla_prefill,
    .mla_decode = bt_ref_mla_decode,
    .moe_route = bt_ref_moe_route,
    .moe_experts = bt_ref_moe_experts,
    .moe_expert_rows = bt_ref_moe_expert_rows,
};

size_t bt_ref_scratch_bytes(const struct bt_stream_limits *limits)
{
    size_t most = 0, needs[] = {bt_ref_linear_scratch_bytes(limits),
                                bt_ref_mla_scratch_bytes(limits), bt_ref_moe_scratch_bytes(limits)};
    for (size_t i = 0; i < sizeof(needs) / sizeof(needs[0]); i++)
        most = needs[i] > most ? needs[i] : most;
    return most;
}
