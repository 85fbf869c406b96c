/* Routing and the routed experts. */
#include <math.h>

#include "common/kernels/ref/ref.h"
#include "common/kernels/route.h"
#include "common/kernels/stream.h"
#include "common/kernels/weight.h"

size_t bt_ref_moe_scratch_bytes(const struct bt_stream_limits *limits)
{
    size_t route = bt_scratch_bytes(limits->experts, sizeof(double)) +
                   bt_scratch_bytes(limits->experts, sizeof(float)) +
                   bt_scratch_bytes((size_t)2 * limits->experts, sizeof(float)) +
                   bt_scratch_bytes(limits->experts, sizeof(bool));
    size_t experts = bt_scratch_bytes(limits->moe_intermediate, sizeof(double)) +
                     2 * bt_scratch_bytes(limits->hidden, sizeof(double));
    size_t mlp = 2 * bt_scratch_bytes(limits->max_cols, sizeof(double));
    size_t most = route > experts ? route : experts;
    return most > mlp ? most : mlp;
}

static void softmax(double *x, uint32_t count)
{
    double max = -INFINITY, sum = 0;
    for (uint32_t i = 0; i < count; i++)
        max = x[i] > max ? x[i] : max;
    for (uint32_t i = 0; i < count; i++)
        sum += x[i] = exp(x[i] - max);
    for (uint32_t i = 0; i < count; i++)
        x[i] /= sum;
}

static void sigmoid(double *x, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        x[i] = 1.0 / (1.0 + exp(-x[i]));
}

void bt_ref_moe_route(struct bt_stream *stream, const float *x, uint32_t rows,
                      const struct bt_matrix *gate, const struct bt_matrix *bias,
                      const struct bt_route_shape *shape, const struct bt_routing *routing)
{
    uint32_t experts = shape->experts;
    bt_scratch_reset(stream);
    double *exact = bt_scratch_take(stream, experts, sizeof(*exact));
    float *scores = bt_scratch_take(stream, experts, sizeof(*scores));
    float *work = bt_scratch_take(stream, (size_t)2 * experts, sizeof(*work));
    bool *allowed = bt_scratch_take(stream, experts, sizeof(*allowed));

    for (size_t row = 0; row < rows; row++) {
        for (uint32_t e = 0; e < experts; e++)
            exact[e] =
                bt_ref_dot(x + row * gate->cols, bt_weight_row(gate, e), gate->dtype, gate->cols);
        if (shape->scoring == BT_SCORING_SOFTMAX)
            softmax(exact, experts);
        else
            sigmoid(exact, experts);
        for (uint32_t e = 0; e < experts; e++)
            scores[e] = (float)exact[e];
        bt_route_choose(scores, bias, shape, work, allowed,
                        routing->experts + row * shape->experts_per_token,
                        routing->weights + row * shape->experts_per_token);
    }
    bt_route_group(shape, rows, routing);
}

/* One network of gate, up and down, and the rows it works on. */
struct ffn {
    const struct bt_matrix *gate, *up, *down;
    double *in;  /* [gate->cols] */
    double *mid; /* [gate->rows] */
};

/* The inner row of x, as the product with down takes it, to ffn->mid. */
static void inner_row(const struct ffn *ffn, const float *x)
{
    for (uint32_t i = 0; i < ffn->gate->cols; i++)
        ffn->in[i] = x[i];
    bt_ref_take_input(ffn->in, ffn->gate->cols, ffn->gate);
    for (uint32_t i = 0; i < ffn->gate->rows; i++)
        ffn->mid[i] = bt_ref_silu(bt_ref_product(ffn->in, ffn->gate, i)) *
                      bt_ref_product(ffn->in, ffn->up, i);
    bt_ref_take_input(ffn->mid, ffn->gate->rows, ffn->down);
}

/* What one expert makes of the row x [gate->cols], to y [down->rows]. */
static void expert_row(const struct ffn *ffn, const float *x, float *y)
{
    inner_row(ffn, x);
    for (uint32_t i = 0; i < ffn->down->rows; i++)
        y[i] = (float)bt_ref_round_for(ffn->down, bt_ref_product(ffn->mid, ffn->down, i));
}

static struct ffn expert_ffn(struct bt_stream *stream, const struct bt_expert_weights *weights,
                             uint32_t expert, double *in, double *mid)
{
    const struct bt_matrix *gate = &weights->gate[expert], *down = &weights->down[expert];
    BT_ASSERT(!gate->data || (gate->cols <= stream->limits.hidden &&
                              gate->rows <= stream->limits.moe_intermediate &&
                              down->rows <= stream->limits.hidden));
    return (struct ffn){gate, &weights->up[expert], down, in, mid};
}

void bt_ref_moe_experts(struct bt_stream *stream, const float *x, uint32_t rows,
                        const struct bt_route_shape *shape, const struct bt_routing *routing,
                        const struct bt_expert_weights *expert_weights, float *out)
{
    uint32_t hidden = stream->limits.hidden, per_token = shape->experts_per_token;
    bt_scratch_reset(stream);
    double *mid = bt_scratch_take(stream, stream->limits.moe_intermediate, sizeof(*mid));
    double *in = bt_scratch_take(stream, hidden, sizeof(*in));
    float *y = bt_scratch_take(stream, hidden, sizeof(*y));

    for (size_t row = 0; row < rows; row++) {
        for (uint32_t e = 0; e < expert_weights->experts; e++) {
            struct ffn ffn = expert_ffn(stream, expert_weights, e, in, mid);
            for (size_t k = row * per_token; k < (row + 1) * per_token; k++) {
                if (routing->experts[k] != e || !ffn.gate->data)
                    continue;
                expert_row(&ffn, x + row * hidden, y);
                for (uint32_t i = 0; i < hidden; i++)
                    out[row * hidden + i] = fmaf(routing->weights[k], y[i], out[row * hidden + i]);
            }
        }
    }
}

void bt_ref_moe_expert_rows(struct bt_stream *stream, const float *x, uint32_t rows,
                            const struct bt_route_shape *shape, const struct bt_routing *routing,
                            const struct bt_expert_weights *expert_weights, void *y)
{
    size_t hidden = stream->limits.hidden;
    bt_scratch_reset(stream);
    double *mid = bt_scratch_take(stream, stream->limits.moe_intermediate, sizeof(*mid));
    double *in = bt_scratch_take(stream, hidden, sizeof(*in));
    float *result = bt_scratch_take(stream, hidden, sizeof(*result));

    for (uint32_t e = 0; e < expert_weights->experts; e++) {
        struct ffn ffn = expert_ffn(stream, expert_weights, e, in, mid);
        bool tiles = ffn.gate->data && ffn.down->layout == BT_LAYOUT_TILES;
        for (size_t i = routing->begin[e]; ffn.gate->data && i < routing->begin[e + 1]; i++) {
            size_t row = routing->order[i] / shape->experts_per_token;
            BT_ASSERT(row < rows);
            expert_row(&ffn, x + row * hidden, result);
            for (size_t n = 0; n < hidden; n++)
                bt_element_store(y, tiles ? BT_BF16 : BT_F32, i * hidden + n, result[n]);
        }
    }
}

void bt_ref_mlp(struct bt_stream *stream, const float *x, uint32_t rows, const struct bt_mlp *mlp,
                float *out)
{
    size_t inputs = mlp->gate.cols, outs = mlp->down.rows;
    bt_scratch_reset(stream);
    double *mid = bt_scratch_take(stream, mlp->gate.rows, sizeof(*mid));
    double *in = bt_scratch_take(stream, inputs, sizeof(*in));
    struct ffn ffn = {&mlp->gate, &mlp->up, &mlp->down, in, mid};
    for (size_t row = 0; row < rows; row++) {
        inner_row(&ffn, x + row * inputs);
        for (size_t i = 0; i < outs; i++)
            out[row * outs + i] = (float)bt_ref_product(mid, ffn.down, i);
    }
}
