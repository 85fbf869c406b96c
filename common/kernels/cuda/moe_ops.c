/*
 * Routed experts: gate and up of all picks at once, silu, down, and the sum of each row's. Picks
 * are worked on in runs of the order, so that scratch is bounded; which runs there are depends on
 * the number of rows alone, and no row's bits on them.
 */
#include "common/kernels/cuda/grouped_gemm.h"
#include "common/kernels/cuda/permute.h"
#include "common/kernels/cuda/silu.h"
#include "common/kernels/cuda/table.h"

#define RUN_PICKS 8192

struct experts_call {
    struct bt_cuda_stream *stream;
    const struct bt_expert_weights *weights;
    const struct bt_matrix *gate, *down; /* of the first expert that is here */
    const uint32_t *order, *begin;
    uint32_t picks, per_row;
    struct bt_cuda_inputs x, inner;
    float *gate_out, *up_out; /* [run][moe_intermediate] */
    uint32_t *run_begin;
};

static size_t round_up(size_t bytes)
{
    return (bytes + 255) / 256 * 256;
}

static size_t most(size_t a, size_t b)
{
    return a > b ? a : b;
}

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static size_t most_inputs(uint32_t rows, uint32_t cols)
{
    return most(bt_cuda_inputs_bytes(BT_BF16, rows, cols),
                most(bt_cuda_inputs_bytes(BT_F8_E4M3, rows, cols),
                     bt_cuda_inputs_bytes(BT_I8, rows, cols)));
}

size_t bt_cuda_moe_scratch(const struct bt_cuda_stream *stream)
{
    const struct bt_stream_limits *limits = &stream->base.limits;
    if (!limits->experts)
        return 0;
    uint32_t rows = (uint32_t)most(limits->max_rows, limits->max_expert_rows);
    uint32_t picks = rows * limits->experts_per_token, run = least(picks, RUN_PICKS);
    size_t inner = limits->moe_intermediate;
    return most_inputs(rows, limits->hidden) + most_inputs(run, limits->moe_intermediate) +
           2 * round_up(run * inner * sizeof(float)) +
           round_up((limits->experts + 1) * sizeof(uint32_t)) + round_up(picks * sizeof(uint32_t)) +
           round_up((size_t)run * limits->hidden * 4);
}

static const struct bt_matrix *first_here(const struct bt_matrix *matrices, uint32_t count)
{
    for (uint32_t e = 0; e < count; e++)
        if (matrices[e].data)
            return &matrices[e];
    return NULL;
}

/* False: there is nothing to do. */
static bool begin_call(struct experts_call *call, struct bt_cuda_stream *stream, const float *x,
                       uint32_t rows, const struct bt_route_shape *shape,
                       const struct bt_routing *routing, const struct bt_expert_weights *weights)
{
    const struct bt_stream_limits *limits = &stream->base.limits;
    *call = (struct experts_call){.stream = stream,
                                  .weights = weights,
                                  .gate = first_here(weights->gate, weights->experts),
                                  .down = first_here(weights->down, weights->experts),
                                  .order = routing->order,
                                  .begin = routing->begin,
                                  .picks = rows * shape->experts_per_token,
                                  .per_row = shape->experts_per_token};
    if (!call->gate || call->picks == 0 || !bt_cuda_is_fine(stream))
        return false;
    BT_ASSERT(rows <= most(limits->max_rows, limits->max_expert_rows));
    BT_ASSERT(call->gate->cols == limits->hidden && call->down->rows == limits->hidden);
    BT_ASSERT(call->gate->rows <= limits->moe_intermediate && weights->experts <= limits->experts);
    uint32_t run = least(call->picks, RUN_PICKS);
    size_t bytes = (size_t)run * call->gate->rows * sizeof(float);
    bt_cuda_scratch_reset(stream);
    call->x = bt_cuda_inputs_of(stream, call->gate, x, rows);
    call->inner =
        bt_cuda_inputs_take(stream, bt_cuda_input_dtype(call->down), run, call->gate->rows);
    call->gate_out = bt_cuda_scratch_take(stream, bytes);
    call->up_out = bt_cuda_scratch_take(stream, bytes);
    call->run_begin = bt_cuda_scratch_take(stream, (weights->experts + 1) * sizeof(uint32_t));
    if (call->inner.dtype == BT_F32)
        call->inner.data = call->gate_out;
    return true;
}

/* What experts make of picks first … first + count - 1 of the order, to y [count][hidden]. */
static void run_experts(const struct experts_call *call, uint32_t first, uint32_t count, void *y)
{
    struct bt_cuda_stream *stream = call->stream;
    const struct bt_expert_weights *w = call->weights;
    const uint32_t *begin = call->begin;
    if (count < call->picks) {
        bt_cuda_launch_run_begin(begin, w->experts, first, count, call->run_begin, stream->stream);
        begin = call->run_begin;
    }
    struct bt_cuda_grouped gate_up = {.x = call->x,
                                      .picks = call->order + first,
                                      .per_row = call->per_row,
                                      .weights = {w->gate, w->up},
                                      .out = {call->gate_out, call->up_out},
                                      .out_dtype = BT_F32,
                                      .groups = w->experts,
                                      .begin = begin,
                                      .rows = count};
    struct bt_cuda_grouped down = {.x = call->inner,
                                   .per_row = 1,
                                   .weights = {w->down, NULL},
                                   .out = {y, NULL},
                                   .out_dtype =
                                       call->down->layout == BT_LAYOUT_TILES ? BT_BF16 : BT_F32,
                                   .groups = w->experts,
                                   .begin = begin,
                                   .rows = count};
    bt_cuda_grouped_gemm(stream, &gate_up);
    bt_cuda_launch_silu(call->gate_out, call->up_out, count, begin + w->experts, &call->inner,
                        stream->stream);
    bt_cuda_grouped_gemm(stream, &down);
}

void bt_cuda_moe_experts(struct bt_stream *stream, const float *x, uint32_t rows,
                         const struct bt_route_shape *shape, const struct bt_routing *routing,
                         const struct bt_expert_weights *expert_weights, float *out)
{
    struct bt_cuda_stream *cuda = bt_cuda_stream(stream);
    struct experts_call call;
    if (!begin_call(&call, cuda, x, rows, shape, routing, expert_weights))
        return;
    uint32_t run = least(call.picks, RUN_PICKS), experts = expert_weights->experts;
    uint32_t *places = bt_cuda_scratch_take(cuda, call.picks * sizeof(*places));
    void *y = bt_cuda_scratch_take(cuda, (size_t)run * call.down->rows * sizeof(float));
    struct bt_cuda_unpermute unpermute = {.experts = routing->experts,
                                          .places = places,
                                          .weights = routing->weights,
                                          .y = y,
                                          .out = out,
                                          .live = bt_cuda_live_rows(cuda, rows),
                                          .rows = rows,
                                          .per_row = call.per_row,
                                          .cols = call.down->rows,
                                          .is_bf16 = call.down->layout == BT_LAYOUT_TILES};
    BT_ASSERT(experts <= 32 * BT_CUDA_PERMUTE_WORDS);
    for (uint32_t e = 0; e < experts; e++)
        unpermute.here[e / 32] |= (uint32_t)(expert_weights->gate[e].data != NULL) << e % 32;
    bt_cuda_launch_pick_places(call.order, call.begin, experts, call.picks, places, cuda->stream);
    for (uint32_t first = 0; first < call.picks; first += run) {
        unpermute.first = first;
        unpermute.count = least(call.picks - first, run);
        run_experts(&call, first, unpermute.count, y);
        bt_cuda_launch_unpermute(&unpermute, cuda->stream);
    }
}

void bt_cuda_moe_expert_rows(struct bt_stream *stream, const float *x, uint32_t rows,
                             const struct bt_route_shape *shape, const struct bt_routing *routing,
                             const struct bt_expert_weights *expert_weights, void *y)
{
    struct experts_call call;
    if (!begin_call(&call, bt_cuda_stream(stream), x, rows, shape, routing, expert_weights))
        return;
    uint32_t run = least(call.picks, RUN_PICKS);
    size_t row_bytes = call.down->rows * (call.down->layout == BT_LAYOUT_TILES ? 2u : 4u);
    for (uint32_t first = 0; first < call.picks; first += run)
        run_experts(&call, first, least(call.picks - first, run), (char *)y + first * row_bytes);
}
