/* Routed experts with weights in tiles. */
#include "common/kernels/x86/ffn.h"
#include "common/kernels/x86/tables.h"

/* The first expert that is here; NULL: none. */
static const struct bt_matrix *first_here(const struct bt_matrix *matrices, uint32_t count)
{
    for (uint32_t e = 0; e < count; e++)
        if (matrices[e].data)
            return &matrices[e];
    return NULL;
}

/* One expert's picks, in jobs; a full block is run before the next one is begun. */
static void add_expert(struct bt_ffn *ffn, const struct bt_expert_weights *w, uint32_t expert,
                       const uint32_t *picks, size_t count)
{
    for (size_t i = 0; i < count; i += BT_FFN_JOB_ROWS) {
        size_t rows = count - i < BT_FFN_JOB_ROWS ? count - i : BT_FFN_JOB_ROWS;
        struct bt_ffn_job job = {&w->gate[expert], &w->up[expert], &w->down[expert],
                                 picks + i,        rows,           0};
        BT_ASSERT(job.gate->dtype == ffn->in_dtype && job.up->dtype == ffn->in_dtype &&
                  job.down->dtype == ffn->inner_dtype);
        if (BT_X86_NAME(ffn_add)(ffn, job))
            continue;
        BT_X86_NAME(ffn_run)(ffn);
        bool added = BT_X86_NAME(ffn_add)(ffn, job);
        BT_ASSERT(added);
    }
}

void BT_X86_NAME(moe_experts)(struct bt_stream *stream, const float *x, uint32_t rows,
                              const struct bt_route_shape *shape, const struct bt_routing *routing,
                              const struct bt_expert_weights *expert_weights, float *out)
{
    const struct bt_matrix *gate = first_here(expert_weights->gate, expert_weights->experts);
    const struct bt_matrix *down = first_here(expert_weights->down, expert_weights->experts);
    if (!gate || rows == 0)
        return;
    if (gate->layout == BT_LAYOUT_ROWS) {
        BT_X86_ROWS(rows_moe_experts)(stream, x, rows, shape, routing, expert_weights, out);
        return;
    }
    struct bt_ffn ffn = {.stream = stream,
                         .inputs = gate->cols,
                         .inner = gate->rows,
                         .outs = down->rows,
                         .per_row = shape->experts_per_token,
                         .in_dtype = gate->dtype,
                         .inner_dtype = down->dtype,
                         .weights = routing->weights,
                         .out = out};
    bt_scratch_reset(stream);
    BT_X86_NAME(ffn_take)(&ffn, rows, (size_t)rows * shape->experts_per_token);
    BT_X86_NAME(ffn_pack)(&ffn, x, rows);
    for (uint32_t e = 0; e < expert_weights->experts; e++)
        if (expert_weights->gate[e].data)
            add_expert(&ffn, expert_weights, e, routing->order + routing->begin[e],
                       routing->begin[e + 1] - routing->begin[e]);
    BT_X86_NAME(ffn_run)(&ffn);
}
