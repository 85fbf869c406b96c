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

/* A ffn whose output is filled in. */
static void run_experts(struct bt_ffn *ffn, const float *x, uint32_t rows,
                        const struct bt_routing *routing, const struct bt_expert_weights *w)
{
    const struct bt_matrix *gate = first_here(w->gate, w->experts);
    const struct bt_matrix *down = first_here(w->down, w->experts);
    ffn->inputs = gate->cols;
    ffn->inner = gate->rows;
    ffn->outs = down->rows;
    ffn->in_dtype = gate->dtype;
    ffn->inner_dtype = down->dtype;
    ffn->order = routing->order;
    bt_scratch_reset(ffn->stream);
    BT_X86_NAME(ffn_take)(ffn, rows, (size_t)rows * ffn->per_row);
    BT_X86_NAME(ffn_pack)(ffn, x, rows);
    for (uint32_t e = 0; e < w->experts; e++)
        if (w->gate[e].data)
            add_expert(ffn, w, e, routing->order + routing->begin[e],
                       routing->begin[e + 1] - routing->begin[e]);
    BT_X86_NAME(ffn_run)(ffn);
}

void BT_X86_NAME(moe_experts)(struct bt_stream *stream, const float *x, uint32_t rows,
                              const struct bt_route_shape *shape, const struct bt_routing *routing,
                              const struct bt_expert_weights *expert_weights, float *out)
{
    const struct bt_matrix *gate = first_here(expert_weights->gate, expert_weights->experts);
    if (!gate || rows == 0)
        return;
    if (gate->layout == BT_LAYOUT_ROWS) {
        BT_X86_ROWS(rows_moe_experts)(stream, x, rows, shape, routing, expert_weights, out);
        return;
    }
    struct bt_ffn ffn = {.stream = stream,
                         .per_row = shape->experts_per_token,
                         .weights = routing->weights,
                         .out = out};
    run_experts(&ffn, x, rows, routing, expert_weights);
}

void BT_X86_NAME(moe_expert_rows)(struct bt_stream *stream, const float *x, uint32_t rows,
                                  const struct bt_route_shape *shape,
                                  const struct bt_routing *routing,
                                  const struct bt_expert_weights *expert_weights, void *y)
{
    const struct bt_matrix *gate = first_here(expert_weights->gate, expert_weights->experts);
    if (!gate || rows == 0)
        return;
    if (gate->layout == BT_LAYOUT_ROWS) {
        BT_X86_ROWS(rows_moe_expert_rows)(stream, x, rows, shape, routing, expert_weights, y);
        return;
    }
    struct bt_ffn ffn = {.stream = stream, .per_row = shape->experts_per_token, .y = y};
    run_experts(&ffn, x, rows, routing, expert_weights);
}
