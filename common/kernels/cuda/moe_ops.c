/*
 * Routed experts: gate and up of all picks at once, silu, down, and the sum of each row's. Picks
 * are worked on in runs of the order, so that scratch is bounded; how long they are follows from
 * the numbers of rows and the scratch alone, and no row's bits hang on it.
 *
 * What a run more costs. Runs are parts of the order of experts, so weights are read once all the
 * same, but for one expert's at each seam. Computed for H100 SXM (3.35 TB/s, 989 TFLOP/s of bf16,
 * 1979 of e4m3, 132 multiprocessors), 8192 rows, a layer: V2-Lite, bf16, 64 experts of 17.3 MB, 6
 * picks; V3, e4m3, 32 experts of 44 MB (an eighth of them), 8192 picks:
 *
 *                                                        V2-Lite            V3, EP 8
 *     products, at the peak (at what L2 feeds: 72, 70 %)  860 us (1190)      365 us (520)
 *     all weights once                                   1107 MB, 330 us    1409 MB, 421 us
 *     gate and up in f32, written and read               1107 MB, 330 us     268 MB,  80 us
 *     inner rows, written and read                        277 MB,  83 us      34 MB,  10 us
 *     y, written and read                                 403 MB, 120 us     235 MB,  70 us
 *     each run more: out, read and written by unpermute   134 MB,  40 us     none: rows apart
 *                    a seam's expert                       17 MB,   5 us      44 MB,  13 us
 *                    half a tile of both products, idle   15 us (20)         20 us (30)
 *                    launches                             4, or 3 where rows stay apart
 *
 * So runs of 8192 picks would take V2-Lite, which has 49152, some 300 us more than one, and one is
 * better wherever there is room. Where rows come from other ranks, their number bounds that of
 * picks, of which there are far fewer: runs without any cost their launches, at decode in each
 * layer.
 */
#include "common/kernels/cuda/grouped_gemm.h"
#include "common/kernels/cuda/permute.h"
#include "common/kernels/cuda/silu.h"
#include "common/kernels/cuda/table.h"

/* One run of all picks, if that takes no more of the device's memory than its MEMORY_SHARE'th part
 * (of H100's 640 MB: 45000 picks of V2-Lite, 31000 of V3); LEAST_PICKS whatever it takes. */
#define MEMORY_SHARE 128
#define LEAST_PICKS  1024
#define RUN_UNIT     64 /* picks: keeps y's rows aligned */

struct experts_call {
    struct bt_cuda_stream *stream;
    const struct bt_expert_weights *weights;
    const struct bt_matrix *gate, *down; /* of the first expert that is here */
    const uint32_t *order, *begin;
    uint32_t picks, per_row;
    uint32_t run; /* picks, at most */
    struct bt_cuda_inputs x, inner;
    float *gate_out, *up_out; /* [run][moe_intermediate] */
    void *y;                  /* [run][hidden]: in their place, when they have been read */
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

/* ---- scratch ---- */

/* A run's gate and up, and y after them. Inner rows of F32 are where gate was: y is behind them. */
static size_t outs_bytes(enum bt_dtype dtype, uint32_t run, uint32_t inner, uint32_t hidden)
{
    size_t each = round_up((size_t)run * inner * sizeof(float));
    if (dtype == BT_F32)
        return each + most(each, round_up((size_t)run * hidden * sizeof(float)));
    return most(2 * each, round_up((size_t)run * hidden * sizeof(uint16_t)));
}

/* All that grows with a run; inner rows of `dtype`. */
static size_t run_bytes(enum bt_dtype dtype, uint32_t run, uint32_t inner, uint32_t hidden)
{
    return bt_cuda_inputs_bytes(dtype, run, inner) + outs_bytes(dtype, run, inner, hidden);
}

/* Of weights in TILES of any dtype. */
static size_t most_run_bytes(const struct bt_stream_limits *limits, uint32_t run)
{
    return outs_bytes(BT_BF16, run, limits->moe_intermediate, limits->hidden) +
           most_inputs(run, limits->moe_intermediate);
}

size_t bt_cuda_moe_scratch(const struct bt_cuda_stream *stream)
{
    const struct bt_stream_limits *limits = &stream->base.limits;
    if (!limits->experts)
        return 0;
    uint32_t rows = (uint32_t)most(limits->max_rows, limits->max_expert_rows);
    uint32_t picks = rows * limits->experts_per_token;
    uint32_t few = least(picks, LEAST_PICKS), inner = limits->moe_intermediate;
    size_t all = most_run_bytes(limits, picks);
    size_t share = stream->device->memory_bytes / MEMORY_SHARE;
    size_t enough =
        most(most_run_bytes(limits, few), run_bytes(BT_F32, few, inner, limits->hidden));
    return most_inputs(rows, limits->hidden) + round_up((limits->experts + 1) * sizeof(uint32_t)) +
           round_up(picks * sizeof(uint32_t)) + most(all < share ? all : share, enough);
}

/* Runs of about the same length, as few as the rest of the scratch has room for. */
static void take_run(struct experts_call *call)
{
    struct bt_cuda_stream *stream = call->stream;
    enum bt_dtype dtype = bt_cuda_input_dtype(call->down);
    uint32_t inner = call->gate->rows, hidden = call->down->rows, runs = 1;
    size_t room = stream->scratch_bytes - stream->used_bytes;
    call->run = call->picks;
    while (run_bytes(dtype, call->run, inner, hidden) > room) {
        BT_ASSERT(call->run > RUN_UNIT);
        uint32_t each = (call->picks + runs) / (runs + 1);
        call->run = (each + RUN_UNIT - 1) / RUN_UNIT * RUN_UNIT;
        runs++;
    }
    size_t each = round_up((size_t)call->run * inner * sizeof(float));
    call->inner = bt_cuda_inputs_take(stream, dtype, call->run, inner);
    call->gate_out = bt_cuda_scratch_take(stream, outs_bytes(dtype, call->run, inner, hidden));
    call->up_out = call->gate_out + each / sizeof(float);
    call->y = call->gate_out;
    if (dtype == BT_F32) {
        call->inner.data = call->gate_out;
        call->y = call->up_out;
    }
}

/* ---- calls ---- */

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
    bt_cuda_scratch_reset(stream);
    call->x = bt_cuda_inputs_of(stream, call->gate, x, rows);
    call->run_begin = bt_cuda_scratch_take(stream, (weights->experts + 1) * sizeof(uint32_t));
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
                        stream->device->multiprocessors, stream->stream);
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
    uint32_t experts = expert_weights->experts;
    uint32_t *places = bt_cuda_scratch_take(cuda, call.picks * sizeof(*places));
    take_run(&call);
    struct bt_cuda_unpermute unpermute = {.experts = routing->experts,
                                          .places = places,
                                          .weights = routing->weights,
                                          .y = call.y,
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
    for (uint32_t first = 0; first < call.picks; first += call.run) {
        unpermute.first = first;
        unpermute.count = least(call.picks - first, call.run);
        run_experts(&call, first, unpermute.count, call.y);
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
    take_run(&call);
    size_t row_bytes = call.down->rows * (call.down->layout == BT_LAYOUT_TILES ? 2u : 4u);
    for (uint32_t first = 0; first < call.picks; first += call.run)
        run_experts(&call, first, least(call.picks - first, call.run),
                    (char *)y + first * row_bytes);
}
