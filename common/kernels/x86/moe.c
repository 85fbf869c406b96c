/* Routing and the routed experts. */
#include "common/kernels/route.h"
#include "common/kernels/stream.h"
#include "common/kernels/x86/product.h"
#include "common/kernels/x86/tables.h"

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

static void sigmoid(float *x, size_t count)
{
    struct bt_v16 one = bt_v16_set(1.0f);
    for (size_t i = 0; i < count; i += BT_LANES) {
        size_t part = least(count - i, BT_LANES);
        struct bt_v16 in = part == BT_LANES ? bt_v16_load(x + i) : bt_v16_load_part(x + i, part);
        in = bt_v16_div(one, bt_v16_add(one, bt_v16_exp(bt_v16_sub(bt_v16_zero(), in))));
        if (part == BT_LANES)
            bt_v16_store(x + i, in);
        else
            bt_v16_store_part(x + i, in, part);
    }
}

static void softmax(float *x, size_t count)
{
    float max = x[0];
    for (size_t i = 1; i < count; i++)
        max = x[i] > max ? x[i] : max;
    double sum = 0;
    for (size_t i = 0; i < count; i++) {
        x[i] = bt_v16_first(bt_v16_exp(bt_v16_set(x[i] - max)));
        sum += x[i];
    }
    for (size_t i = 0; i < count; i++)
        x[i] = (float)(x[i] / sum);
}

void BT_X86_NAME(moe_route)(struct bt_stream *stream, const float *x, uint32_t rows,
                            const struct bt_matrix *gate, const struct bt_matrix *bias,
                            const struct bt_route_shape *shape, const struct bt_routing *routing)
{
    size_t experts = shape->experts, picks = shape->experts_per_token;
    bt_scratch_reset(stream);
    float *panel = bt_scratch_take(stream, BT_X86_PRODUCT_FLOATS, sizeof(*panel));
    float *scores = bt_scratch_take(stream, BT_X86_ROUTE_ROWS * experts, sizeof(*scores));
    float *choice = bt_scratch_take(stream, experts, sizeof(*choice));
    bool *allowed = bt_scratch_take(stream, experts, sizeof(*allowed));

    for (size_t first = 0; first < rows; first += BT_X86_ROUTE_ROWS) {
        size_t count = least(rows - first, BT_X86_ROUTE_ROWS);
        BT_X86_NAME(product)
        ((struct bt_x86_rows){x + first * gate->cols, count, gate->cols},
         bt_x86_weights_of(gate, 0, experts), panel, scores, experts);
        for (size_t i = 0; i < count; i++) {
            float *row = scores + i * experts;
            if (shape->scoring == BT_SCORING_SOFTMAX)
                softmax(row, experts);
            else
                sigmoid(row, experts);
            bt_route_choose(row, bias, shape, choice, allowed,
                            routing->experts + (first + i) * picks,
                            routing->weights + (first + i) * picks);
        }
    }
    bt_route_group(shape, rows, routing);
}

struct call {
    const float *x; /* [row][hidden] */
    const float *weights;
    float *out; /* [row][hidden] */
    size_t per_token, hidden;
    float *panel;
    float *in, *result; /* [BT_X86_EXPERT_ROWS][hidden] */
    float *gate, *up;   /* [BT_X86_EXPERT_ROWS][moe_intermediate] */
};

static void add_weighted(float *out, const float *y, float weight, size_t count)
{
    struct bt_v16 factor = bt_v16_set(weight);
    size_t i = 0;
    for (; i + BT_LANES <= count; i += BT_LANES)
        bt_v16_store(out + i, bt_v16_fma(factor, bt_v16_load(y + i), bt_v16_load(out + i)));
    if (i < count)
        bt_v16_store_part(out + i,
                          bt_v16_fma(factor, bt_v16_load_part(y + i, count - i),
                                     bt_v16_load_part(out + i, count - i)),
                          count - i);
}

/* One expert for the picks order[0 … count - 1], count <= BT_X86_EXPERT_ROWS. */
static void run_expert(const struct call *call, const uint32_t *order, size_t count,
                       const struct bt_matrix *gate, const struct bt_matrix *up,
                       const struct bt_matrix *down)
{
    size_t hidden = call->hidden, mid = gate->rows;
    for (size_t i = 0; i < count; i++)
        memcpy(call->in + i * hidden, call->x + order[i] / call->per_token * hidden,
               hidden * sizeof(float));
    struct bt_x86_rows in = {call->in, count, hidden}, middle = {call->gate, count, mid};

    BT_X86_NAME(product)(in, bt_x86_weights_of(gate, 0, mid), call->panel, call->gate, mid);
    BT_X86_NAME(product)(in, bt_x86_weights_of(up, 0, mid), call->panel, call->up, mid);
    BT_X86_NAME(swiglu)(call->gate, call->up, count * mid, call->gate);
    BT_X86_NAME(product)
    (middle, bt_x86_weights_of(down, 0, hidden), call->panel, call->result, hidden);
    for (size_t i = 0; i < count; i++)
        add_weighted(call->out + order[i] / call->per_token * hidden, call->result + i * hidden,
                     call->weights[order[i]], hidden);
}

void BT_X86_NAME(rows_moe_experts)(struct bt_stream *stream, const float *x, uint32_t rows,
                                   const struct bt_route_shape *shape,
                                   const struct bt_routing *routing,
                                   const struct bt_expert_weights *expert_weights, float *out)
{
    size_t hidden = stream->limits.hidden, mid = stream->limits.moe_intermediate;
    const uint32_t *begin = routing->begin;
    (void)rows;
    bt_scratch_reset(stream);
    struct call call = {
        .x = x,
        .weights = routing->weights,
        .out = out,
        .per_token = shape->experts_per_token,
        .hidden = hidden,
        .panel = bt_scratch_take(stream, BT_X86_PRODUCT_FLOATS, sizeof(float)),
        .in = bt_scratch_take(stream, BT_X86_EXPERT_ROWS * hidden, sizeof(float)),
        .result = bt_scratch_take(stream, BT_X86_EXPERT_ROWS * hidden, sizeof(float)),
        .gate = bt_scratch_take(stream, BT_X86_EXPERT_ROWS * mid, sizeof(float)),
        .up = bt_scratch_take(stream, BT_X86_EXPERT_ROWS * mid, sizeof(float)),
    };

    for (size_t e = 0; e < expert_weights->experts; e++) {
        if (!expert_weights->gate[e].data)
            continue;
        for (size_t i = begin[e]; i < begin[e + 1]; i += BT_X86_EXPERT_ROWS)
            run_expert(&call, routing->order + i, least(begin[e + 1] - i, BT_X86_EXPERT_ROWS),
                       &expert_weights->gate[e], &expert_weights->up[e], &expert_weights->down[e]);
    }
}

#define MLP_ROWS 256

void BT_X86_NAME(rows_mlp)(struct bt_stream *stream, const float *x, uint32_t rows,
                           const struct bt_mlp *mlp, float *out)
{
    size_t inner = mlp->gate.rows, inputs = mlp->gate.cols, outs = mlp->down.rows;
    bt_scratch_reset(stream);
    float *panel = bt_scratch_take(stream, BT_X86_PRODUCT_FLOATS, sizeof(*panel));
    float *gate = bt_scratch_take(stream, MLP_ROWS * inner, sizeof(*gate));
    float *up = bt_scratch_take(stream, MLP_ROWS * inner, sizeof(*up));
    for (size_t first = 0; first < rows; first += MLP_ROWS) {
        size_t count = least(rows - first, MLP_ROWS);
        struct bt_x86_rows in = {x + first * inputs, count, inputs};
        BT_X86_NAME(product)(in, bt_x86_weights_of(&mlp->gate, 0, inner), panel, gate, inner);
        BT_X86_NAME(product)(in, bt_x86_weights_of(&mlp->up, 0, inner), panel, up, inner);
        BT_X86_NAME(swiglu)(gate, up, count * inner, gate);
        BT_X86_NAME(product)
        ((struct bt_x86_rows){gate, count, inner}, bt_x86_weights_of(&mlp->down, 0, outs), panel,
         out + first * outs, outs);
    }
}
