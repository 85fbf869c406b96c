#include "common/model/profile.h"

#include "common/base/clock.h"

static _Thread_local const struct bt_kernels *inner;
static _Thread_local const struct bt_matrix *head_weight;
static _Thread_local struct bt_profile *totals;
static _Thread_local struct bt_device *device;
static _Thread_local struct bt_stream *waited_for; /* NULL: operations are over when they return */

const char *bt_profile_kind_name(enum bt_profile_kind kind)
{
    static const char *const names[BT_PROFILE_KINDS] = {
        [BT_PROFILE_EMBED] = "embed",
        [BT_PROFILE_NORM] = "norm",
        [BT_PROFILE_LINEAR] = "linear",
        [BT_PROFILE_HEAD] = "head",
        [BT_PROFILE_ROPE] = "rope",
        [BT_PROFILE_KV_WRITE] = "kv_write",
        [BT_PROFILE_MLA_PREFILL] = "mla_prefill",
        [BT_PROFILE_MLA_DECODE] = "mla_decode",
        [BT_PROFILE_MLP] = "mlp",
        [BT_PROFILE_ROUTE] = "route",
        [BT_PROFILE_EXPERTS] = "experts",
        [BT_PROFILE_DRAW] = "draw",
        [BT_PROFILE_GROUP] = "group",
        [BT_PROFILE_OTHER] = "other",
    };
    return names[kind];
}

/* A fault shows when the run ends. */
static void count(enum bt_profile_kind kind, int64_t start_ns)
{
    struct bt_error ignored;
    if (waited_for)
        bt_device_synchronize(device, waited_for, &ignored);
    totals->ns[kind] += bt_clock_now_ns() - start_ns;
    totals->calls[kind]++;
}

static void embed(struct bt_stream *stream, const struct bt_matrix *table, const uint32_t *tokens,
                  uint32_t rows, float *out)
{
    int64_t start_ns = bt_clock_now_ns();
    inner->embed(stream, table, tokens, rows, out);
    count(BT_PROFILE_EMBED, start_ns);
}

static void rms_norm(struct bt_stream *stream, const float *x, uint32_t rows, uint32_t dim,
                     uint32_t stride, const struct bt_matrix *weight, float eps, float *out)
{
    int64_t start_ns = bt_clock_now_ns();
    inner->rms_norm(stream, x, rows, dim, stride, weight, eps, out);
    count(BT_PROFILE_NORM, start_ns);
}

static void add_rms_norm(struct bt_stream *stream, float *x, const float *y, uint32_t rows,
                         uint32_t dim, const struct bt_matrix *weight, float eps, float *out)
{
    int64_t start_ns = bt_clock_now_ns();
    inner->add_rms_norm(stream, x, y, rows, dim, weight, eps, out);
    count(BT_PROFILE_NORM, start_ns);
}

static void linear(struct bt_stream *stream, const float *x, uint32_t rows,
                   const struct bt_linear *linears, uint32_t linear_count)
{
    int64_t start_ns = bt_clock_now_ns();
    inner->linear(stream, x, rows, linears, linear_count);
    count(linears[0].weight == head_weight ? BT_PROFILE_HEAD : BT_PROFILE_LINEAR, start_ns);
}

static void mlp(struct bt_stream *stream, const float *x, uint32_t rows,
                const struct bt_mlp *weights, float *out)
{
    int64_t start_ns = bt_clock_now_ns();
    inner->mlp(stream, x, rows, weights, out);
    count(BT_PROFILE_MLP, start_ns);
}

static void add(struct bt_stream *stream, float *x, const float *y, size_t values)
{
    int64_t start_ns = bt_clock_now_ns();
    inner->add(stream, x, y, values);
    count(BT_PROFILE_OTHER, start_ns);
}

static void zero(struct bt_stream *stream, float *x, size_t values)
{
    int64_t start_ns = bt_clock_now_ns();
    inner->zero(stream, x, values);
    count(BT_PROFILE_OTHER, start_ns);
}

static void gather_rows(struct bt_stream *stream, float *x, uint32_t dim, const uint32_t *wanted,
                        uint32_t rows)
{
    int64_t start_ns = bt_clock_now_ns();
    inner->gather_rows(stream, x, dim, wanted, rows);
    count(BT_PROFILE_OTHER, start_ns);
}

static void rope_q(struct bt_stream *stream, float *q, const struct bt_mla_shape *shape,
                   const struct bt_rope_table *rope, const struct bt_sequence_rows *sequences,
                   uint32_t sequence_count)
{
    int64_t start_ns = bt_clock_now_ns();
    inner->rope_q(stream, q, shape, rope, sequences, sequence_count);
    count(BT_PROFILE_ROPE, start_ns);
}

static void kv_write(struct bt_stream *stream, const float *kv_a, const struct bt_matrix *norm,
                     float eps, const struct bt_rope_table *rope,
                     const struct bt_sequence_rows *sequences, uint32_t sequence_count,
                     const struct bt_kv_layer *kv)
{
    int64_t start_ns = bt_clock_now_ns();
    inner->kv_write(stream, kv_a, norm, eps, rope, sequences, sequence_count, kv);
    count(BT_PROFILE_KV_WRITE, start_ns);
}

static void mla_prefill(struct bt_stream *stream, const float *q, const struct bt_mla_shape *shape,
                        const struct bt_matrix *kv_b, const struct bt_sequence_rows *sequences,
                        uint32_t sequence_count, const struct bt_kv_layer *kv, float *out)
{
    int64_t start_ns = bt_clock_now_ns();
    inner->mla_prefill(stream, q, shape, kv_b, sequences, sequence_count, kv, out);
    count(BT_PROFILE_MLA_PREFILL, start_ns);
}

static void mla_decode(struct bt_stream *stream, const float *q, const struct bt_mla_shape *shape,
                       const struct bt_matrix *kv_b, const struct bt_sequence_rows *sequences,
                       uint32_t sequence_count, const struct bt_kv_layer *kv, float *out)
{
    int64_t start_ns = bt_clock_now_ns();
    inner->mla_decode(stream, q, shape, kv_b, sequences, sequence_count, kv, out);
    count(BT_PROFILE_MLA_DECODE, start_ns);
}

static void moe_route(struct bt_stream *stream, const float *x, uint32_t rows,
                      const struct bt_matrix *gate, const struct bt_matrix *bias,
                      const struct bt_route_shape *shape, const struct bt_routing *routing)
{
    int64_t start_ns = bt_clock_now_ns();
    inner->moe_route(stream, x, rows, gate, bias, shape, routing);
    count(BT_PROFILE_ROUTE, start_ns);
}

static void moe_experts(struct bt_stream *stream, const float *x, uint32_t rows,
                        const struct bt_route_shape *shape, const struct bt_routing *routing,
                        const struct bt_expert_weights *expert_weights, float *out)
{
    int64_t start_ns = bt_clock_now_ns();
    inner->moe_experts(stream, x, rows, shape, routing, expert_weights, out);
    count(BT_PROFILE_EXPERTS, start_ns);
}

static void moe_expert_rows(struct bt_stream *stream, const float *x, uint32_t rows,
                            const struct bt_route_shape *shape, const struct bt_routing *routing,
                            const struct bt_expert_weights *expert_weights, void *y)
{
    int64_t start_ns = bt_clock_now_ns();
    inner->moe_expert_rows(stream, x, rows, shape, routing, expert_weights, y);
    count(BT_PROFILE_EXPERTS, start_ns);
}

static void stage(struct bt_stream *stream, const struct bt_stage *staged)
{
    if (!inner->stage)
        return;
    int64_t start_ns = bt_clock_now_ns();
    inner->stage(stream, staged);
    count(BT_PROFILE_OTHER, start_ns);
}

static void draw(struct bt_stream *stream, float *logits, uint32_t rows, uint32_t vocab_size,
                 const struct bt_draw *draws, const struct bt_adjust *adjusts, uint32_t *tokens,
                 struct bt_logprobs *logprobs)
{
    int64_t start_ns = bt_clock_now_ns();
    inner->draw(stream, logits, rows, vocab_size, draws, adjusts, tokens, logprobs);
    count(BT_PROFILE_DRAW, start_ns);
}

const struct bt_kernels *bt_profile_kernels(struct bt_device *on, struct bt_stream *stream,
                                            const struct bt_matrix *head,
                                            struct bt_profile *profile)
{
    static const struct bt_kernels table = {
        .name = "profile",
        .stage = stage,
        .embed = embed,
        .rms_norm = rms_norm,
        .add_rms_norm = add_rms_norm,
        .linear = linear,
        .mlp = mlp,
        .add = add,
        .zero = zero,
        .gather_rows = gather_rows,
        .rope_q = rope_q,
        .kv_write = kv_write,
        .mla_prefill = mla_prefill,
        .mla_decode = mla_decode,
        .moe_route = moe_route,
        .moe_experts = moe_experts,
        .moe_expert_rows = moe_expert_rows,
        .draw = draw,
    };
    inner = on->kernels;
    device = on;
    waited_for = on->memory == BT_MEMORY_HOST ? NULL : stream;
    head_weight = head;
    totals = profile;
    return &table;
}
