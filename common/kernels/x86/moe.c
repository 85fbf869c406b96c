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
    struct bt_v16 shift = bt_v16_set(max);
    double sum = 0;
    for (size_t i = 0; i < count; i += BT_LANES) {
        size_t part = least(count - i, BT_LANES);
        struct bt_v16 in = part == BT_LANES ? bt_v16_load(x + i) : bt_v16_load_part(x + i, part);
        in = bt_v16_exp(bt_v16_sub(in, shift));
        if (part == BT_LANES)
            bt_v16_store(x + i, in);
        else
            bt_v16_store_part(x + i, in, part);
    }
    for (size_t i = 0; i < count; i++)
        sum += x[i];
    for (size_t i = 0; i < count; i++)
        x[i] = (float)(x[i] / sum);
}

/* ---- routing: scores of a block of rows, then the choice of each row ---- */

struct route_call {
    const float *x;
    const struct bt_matrix *gate, *bias;
    const struct bt_route_shape *shape;
    const struct bt_routing *routing;
    size_t first, rows;     /* this block */
    size_t blocks, columns; /* parts of its scores: by rows and by experts */
    float *panels;          /* of each thread, as the two below */
    float *work;            /* [2 * experts] */
    bool *allowed;          /* likewise */
    float *scores;          /* [row of the block][experts] */
};

static void score_part(void *context, uint32_t part, uint32_t thread)
{
    const struct route_call *c = context;
    size_t experts = c->shape->experts, cols = c->gate->cols;
    size_t each = ((experts + c->columns - 1) / c->columns + 15) / 16 * 16;
    size_t row = part / c->columns * BT_X86_ROUTE_ROWS, first = part % c->columns * each;
    if (first >= experts)
        return;
    struct bt_x86_rows in = {c->x + (c->first + row) * cols,
                             least(c->rows - row, BT_X86_ROUTE_ROWS), cols};
    BT_X86_NAME(product)
    (in, bt_x86_weights_of(c->gate, first, least(experts - first, each)),
     c->panels + (size_t)thread * BT_X86_PRODUCT_FLOATS, c->scores + row * experts + first,
     experts);
}

#define CHOICE_ROWS 16

static void choose_part(void *context, uint32_t part, uint32_t thread)
{
    const struct route_call *c = context;
    size_t experts = c->shape->experts, picks = c->shape->experts_per_token;
    size_t end = least(c->rows, (part + (size_t)1) * CHOICE_ROWS);
    for (size_t i = (size_t)part * CHOICE_ROWS; i < end; i++) {
        float *scores = c->scores + i * experts;
        size_t at = (c->first + i) * picks;
        if (c->shape->scoring == BT_SCORING_SOFTMAX)
            softmax(scores, experts);
        else
            sigmoid(scores, experts);
        bt_route_choose(scores, c->bias, c->shape, c->work + (size_t)thread * 2 * experts,
                        c->allowed + thread * experts, c->routing->experts + at,
                        c->routing->weights + at);
    }
}

void BT_X86_NAME(moe_route)(struct bt_stream *stream, const float *x, uint32_t rows,
                            const struct bt_matrix *gate, const struct bt_matrix *bias,
                            const struct bt_route_shape *shape, const struct bt_routing *routing)
{
    size_t experts = shape->experts, threads = bt_team_threads(stream->team);
    size_t block = threads * BT_X86_ROUTE_ROWS;
    bt_scratch_reset(stream);
    struct route_call call = {
        .x = x,
        .gate = gate,
        .bias = bias,
        .shape = shape,
        .routing = routing,
        .panels = BT_X86_NAME(product_panels)(stream),
        .work = bt_scratch_take(stream, threads * 2 * experts, sizeof(float)),
        .allowed = bt_scratch_take(stream, threads * experts, sizeof(bool)),
        .scores = bt_scratch_take(stream, block * experts, sizeof(float)),
    };

    for (; call.first < rows; call.first += block) {
        call.rows = least(rows - call.first, block);
        call.blocks = (call.rows + BT_X86_ROUTE_ROWS - 1) / BT_X86_ROUTE_ROWS;
        call.columns = call.blocks < threads ? threads : 1;
        bt_team_run(stream->team, score_part, &call, (uint32_t)(call.blocks * call.columns));
        bt_team_run(stream->team, choose_part, &call,
                    (uint32_t)((call.rows + CHOICE_ROWS - 1) / CHOICE_ROWS));
    }
    bt_route_group(shape, rows, routing);
}

/* ---- experts and dense MLPs ---- */

struct call {
    const float *x; /* [row][hidden] */
    const float *weights;
    float *out; /* [row][hidden] */
    float *y;   /* [pick][hidden]; NULL: to `out` */
    size_t per_token, hidden;
    struct bt_stream *stream;
    float *panels;
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

/* One expert for the picks order[0 … count - 1], count <= BT_X86_EXPERT_ROWS; what it makes of
 * them to result [count][hidden]. */
static void run_expert(const struct call *call, const uint32_t *order, size_t count,
                       const struct bt_matrix *gate, const struct bt_matrix *up,
                       const struct bt_matrix *down, float *result)
{
    size_t hidden = call->hidden, mid = gate->rows;
    for (size_t i = 0; i < count; i++)
        memcpy(call->in + i * hidden, call->x + order[i] / call->per_token * hidden,
               hidden * sizeof(float));
    struct bt_x86_rows in = {call->in, count, hidden}, middle = {call->gate, count, mid};

    BT_X86_NAME(product_shared)(call->stream, in, gate, call->panels, call->gate);
    BT_X86_NAME(product_shared)(call->stream, in, up, call->panels, call->up);
    BT_X86_NAME(swiglu)(call->gate, call->up, count * mid, call->gate);
    BT_X86_NAME(product_shared)(call->stream, middle, down, call->panels, result);
}

static void add_picks(const struct call *call, const uint32_t *order, size_t count)
{
    size_t hidden = call->hidden;
    for (size_t i = 0; i < count; i++)
        add_weighted(call->out + order[i] / call->per_token * hidden, call->result + i * hidden,
                     call->weights[order[i]], hidden);
}

/* Takes the scratch of a call whose shape is filled in. */
static void run_experts(struct call *call, const struct bt_routing *routing,
                        const struct bt_expert_weights *w)
{
    struct bt_stream *stream = call->stream;
    size_t hidden = stream->limits.hidden, mid = stream->limits.moe_intermediate;
    const uint32_t *begin = routing->begin;
    bt_scratch_reset(stream);
    call->hidden = hidden;
    call->panels = BT_X86_NAME(product_panels)(stream);
    call->in = bt_scratch_take(stream, BT_X86_EXPERT_ROWS * hidden, sizeof(float));
    call->result = bt_scratch_take(stream, BT_X86_EXPERT_ROWS * hidden, sizeof(float));
    call->gate = bt_scratch_take(stream, BT_X86_EXPERT_ROWS * mid, sizeof(float));
    call->up = bt_scratch_take(stream, BT_X86_EXPERT_ROWS * mid, sizeof(float));
    for (size_t e = 0; e < w->experts; e++) {
        for (size_t i = begin[e]; w->gate[e].data && i < begin[e + 1]; i += BT_X86_EXPERT_ROWS) {
            size_t count = least(begin[e + 1] - i, BT_X86_EXPERT_ROWS);
            const uint32_t *order = routing->order + i;
            run_expert(call, order, count, &w->gate[e], &w->up[e], &w->down[e],
                       call->y ? call->y + i * hidden : call->result);
            if (!call->y)
                add_picks(call, order, count);
        }
    }
}

void BT_X86_NAME(rows_moe_experts)(struct bt_stream *stream, const float *x, uint32_t rows,
                                   const struct bt_route_shape *shape,
                                   const struct bt_routing *routing,
                                   const struct bt_expert_weights *expert_weights, float *out)
{
    (void)rows;
    struct call call = {.x = x,
                        .weights = routing->weights,
                        .out = out,
                        .per_token = shape->experts_per_token,
                        .stream = stream};
    run_experts(&call, routing, expert_weights);
}

void BT_X86_NAME(rows_moe_expert_rows)(struct bt_stream *stream, const float *x, uint32_t rows,
                                       const struct bt_route_shape *shape,
                                       const struct bt_routing *routing,
                                       const struct bt_expert_weights *expert_weights, float *y)
{
    (void)rows;
    struct call call = {.x = x, .y = y, .per_token = shape->experts_per_token, .stream = stream};
    run_experts(&call, routing, expert_weights);
}

#define MLP_ROWS 256

void BT_X86_NAME(rows_mlp)(struct bt_stream *stream, const float *x, uint32_t rows,
                           const struct bt_mlp *mlp, float *out)
{
    size_t inner = mlp->gate.rows, inputs = mlp->gate.cols, outs = mlp->down.rows;
    bt_scratch_reset(stream);
    float *panels = BT_X86_NAME(product_panels)(stream);
    float *gate = bt_scratch_take(stream, MLP_ROWS * inner, sizeof(*gate));
    float *up = bt_scratch_take(stream, MLP_ROWS * inner, sizeof(*up));
    for (size_t first = 0; first < rows; first += MLP_ROWS) {
        size_t count = least(rows - first, MLP_ROWS);
        struct bt_x86_rows in = {x + first * inputs, count, inputs};
        BT_X86_NAME(product_shared)(stream, in, &mlp->gate, panels, gate);
        BT_X86_NAME(product_shared)(stream, in, &mlp->up, panels, up);
        BT_X86_NAME(swiglu)(gate, up, count * inner, gate);
        BT_X86_NAME(product_shared)
        (stream, (struct bt_x86_rows){gate, count, inner}, &mlp->down, panels, out + first * outs);
    }
}
