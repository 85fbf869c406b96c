#include "tests/golden/noise.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const struct bt_kernels *exact;
static struct bt_kernels noisy;
static uint64_t random_state;

static uint32_t next_random(void)
{
    random_state = random_state * UINT64_C(6364136223846793005) + 1442695040888963407u;
    return (uint32_t)(random_state >> 32);
}

static void round_all(float *x, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof(bits));
        bits = (bits + (next_random() >> 16)) & 0xffff0000;
        memcpy(&x[i], &bits, sizeof(bits));
    }
}

static float *rounded(const float *x, size_t count)
{
    float *copy = malloc((count + 1) * sizeof(*copy));
    memcpy(copy, x, count * sizeof(*copy));
    round_all(copy, count);
    return copy;
}

static void noisy_linear(struct bt_stream *stream, const float *x, uint32_t rows,
                         const struct bt_linear *linears, uint32_t linear_count)
{
    float *in = rounded(x, (size_t)rows * linears[0].weight->cols);
    exact->linear(stream, in, rows, linears, linear_count);
    free(in);
}

static void noisy_mlp(struct bt_stream *stream, const float *x, uint32_t rows,
                      const struct bt_mlp *mlp, float *out)
{
    size_t count = (size_t)rows * mlp->gate.rows;
    float *gate = malloc((count + 1) * sizeof(*gate)), *up = malloc((count + 1) * sizeof(*up));
    const struct bt_linear both[] = {{&mlp->gate, gate}, {&mlp->up, up}};
    const struct bt_linear down = {&mlp->down, out};
    noisy_linear(stream, x, rows, both, 2);
    for (size_t i = 0; i < count; i++)
        gate[i] = gate[i] / (1 + expf(-gate[i])) * up[i];
    noisy_linear(stream, gate, rows, &down, 1);
    free(gate);
    free(up);
}

static void noisy_experts(struct bt_stream *stream, const float *x, uint32_t rows,
                          const struct bt_route_shape *shape, const struct bt_routing *routing,
                          const struct bt_expert_weights *w, float *out)
{
    size_t hidden = w->gate[0].cols;
    float *y = malloc(hidden * sizeof(*y));
    (void)rows;
    for (uint32_t e = 0; e < w->experts; e++) {
        const struct bt_mlp mlp = {w->gate[e], w->up[e], w->down[e]};
        for (uint32_t i = routing->begin[e]; i < routing->begin[e + 1]; i++) {
            size_t pick = routing->order[i], row = pick / shape->experts_per_token;
            noisy_mlp(stream, x + row * hidden, 1, &mlp, y);
            round_all(y, hidden);
            for (size_t j = 0; j < hidden; j++)
                out[row * hidden + j] += routing->weights[pick] * y[j];
        }
    }
    free(y);
}

typedef void attention_fn(struct bt_stream *, const float *, const struct bt_mla_shape *,
                          const struct bt_matrix *, const struct bt_sequence_rows *, uint32_t,
                          const struct bt_kv_layer *, float *);

static void attend(attention_fn *attention, struct bt_stream *stream, const float *q,
                   const struct bt_mla_shape *shape, const struct bt_matrix *kv_b,
                   const struct bt_sequence_rows *sequences, uint32_t sequence_count,
                   const struct bt_kv_layer *kv, float *out)
{
    size_t rows = 0, dim = shape->qk_nope_head_dim + shape->qk_rope_head_dim;
    for (uint32_t s = 0; s < sequence_count; s++)
        rows += sequences[s].row_count;
    float *in = rounded(q, rows * shape->heads * dim);
    float *once_more = rounded(q, rows * shape->heads * dim);
    for (size_t i = 0; i < rows * shape->heads * dim; i++)
        in[i] += once_more[i] - q[i];
    attention(stream, in, shape, kv_b, sequences, sequence_count, kv, out);
    round_all(out, rows * shape->heads * shape->v_head_dim);
    free(in);
    free(once_more);
}

static void noisy_prefill(struct bt_stream *stream, const float *q,
                          const struct bt_mla_shape *shape, const struct bt_matrix *kv_b,
                          const struct bt_sequence_rows *sequences, uint32_t sequence_count,
                          const struct bt_kv_layer *kv, float *out)
{
    attend(exact->mla_prefill, stream, q, shape, kv_b, sequences, sequence_count, kv, out);
}

static void noisy_decode(struct bt_stream *stream, const float *q, const struct bt_mla_shape *shape,
                         const struct bt_matrix *kv_b, const struct bt_sequence_rows *sequences,
                         uint32_t sequence_count, const struct bt_kv_layer *kv, float *out)
{
    attend(exact->mla_decode, stream, q, shape, kv_b, sequences, sequence_count, kv, out);
}

void noise_begin(struct engine *engine, uint64_t seed)
{
    if (engine->model->kernels != &noisy)
        exact = engine->model->kernels;
    noisy = *exact;
    noisy.linear = noisy_linear;
    noisy.mlp = noisy_mlp;
    noisy.moe_experts = noisy_experts;
    noisy.mla_prefill = noisy_prefill;
    noisy.mla_decode = noisy_decode;
    engine->model->kernels = &noisy;
    random_state = seed * UINT64_C(0x9e3779b97f4a7c15) + 1;
}
