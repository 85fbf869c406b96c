/* Routing: kernels.h. */
#include "common/kernels/cuda/route.h"
#include "common/kernels/cuda/table.h"

static uint32_t segments_of(uint32_t rows)
{
    uint32_t each = bt_cuda_route_segment_rows(rows);
    return (rows + each - 1) / each;
}

/* Few rows have more sums each and smaller segments: both ends are looked at. */
static size_t most(size_t rows, size_t few, size_t many)
{
    return rows > BT_CUDA_ROUTE_FEW_ROWS && many > few ? many : few;
}

size_t bt_cuda_route_scratch(const struct bt_cuda_stream *stream)
{
    const struct bt_stream_limits *limits = &stream->base.limits;
    uint32_t rows = limits->max_rows;
    uint32_t few = rows < BT_CUDA_ROUTE_FEW_ROWS ? rows : BT_CUDA_ROUTE_FEW_ROWS;
    size_t scores = most(rows, (size_t)few * bt_cuda_route_parts(few, limits->hidden), rows);
    size_t segments = most(rows, segments_of(few), segments_of(rows));
    return limits->experts ? (scores + segments) * limits->experts * sizeof(float) + 4 * 256 : 0;
}

/* The choice, as moe_topk.cu takes it. */
static void fill_shape(struct bt_cuda_route *route, const struct bt_matrix *bias,
                       const struct bt_route_shape *shape)
{
    bool takes_bias = shape->method == BT_TOPK_NOAUX_TC && bias && bias->data;
    route->bias = takes_bias ? bias->data : NULL;
    route->bias_dtype = (uint8_t)(takes_bias ? bias->dtype : BT_F32);
    route->is_sigmoid = shape->scoring == BT_SCORING_SIGMOID;
    route->is_limited = shape->method != BT_TOPK_GREEDY && shape->groups > 1 &&
                        shape->groups_per_token < shape->groups;
    route->sums_two = shape->method == BT_TOPK_NOAUX_TC;
    route->normalize = shape->normalize;
    route->scale = shape->scale;
    route->experts = shape->experts;
    route->per_row = shape->experts_per_token;
    route->groups = route->is_limited ? shape->groups : 1;
    route->groups_per_row = shape->groups_per_token;
}

void bt_cuda_moe_route(struct bt_stream *stream, const float *x, uint32_t rows,
                       const struct bt_matrix *gate, const struct bt_matrix *bias,
                       const struct bt_route_shape *shape, const struct bt_routing *routing)
{
    struct bt_cuda_stream *cuda = bt_cuda_stream(stream);
    BT_ASSERT(rows <= stream->limits.max_rows && shape->experts <= stream->limits.experts);
    BT_ASSERT(shape->experts_per_token <= shape->experts && gate->cols <= stream->limits.hidden);
    BT_ASSERT(shape->groups <= 1 || shape->experts % shape->groups == 0);
    if (!bt_cuda_is_fine(cuda))
        return;
    if (rows == 0) {
        (void)bt_cuda_ok(cuda, cudaMemsetAsync(routing->begin, 0,
                                               (shape->experts + 1) * sizeof(*routing->begin),
                                               cuda->stream));
        return;
    }
    struct bt_cuda_route route = {.x = x,
                                  .gate = gate->data,
                                  .gate_dtype = (uint8_t)gate->dtype,
                                  .rows = rows,
                                  .cols = gate->cols,
                                  .segments = segments_of(rows),
                                  .segment_rows = bt_cuda_route_segment_rows(rows),
                                  .live = bt_cuda_live_rows(cuda, rows),
                                  .part_count = bt_cuda_route_parts(rows, gate->cols),
                                  .chosen = routing->experts,
                                  .weights = routing->weights,
                                  .order = routing->order,
                                  .begin = routing->begin};
    fill_shape(&route, bias, shape);
    size_t scores = (size_t)rows * route.experts;
    bt_cuda_scratch_reset(cuda);
    route.parts = bt_cuda_scratch_take(cuda, route.part_count * scores * sizeof(*route.parts));
    route.counts =
        bt_cuda_scratch_take(cuda, (size_t)route.segments * route.experts * sizeof(*route.counts));
    route.done = bt_cuda_scratch_take(cuda, sizeof(*route.done));
    bt_cuda_launch_moe_scores(&route, cuda->stream);
    bt_cuda_launch_moe_topk(&route, cuda->stream);
    if (rows > BT_CUDA_ROUTE_FEW_ROWS)
        bt_cuda_launch_moe_order(&route, cuda->stream);
}
