/*
 * Attention over latent pages, in the multi-head form and in the absorbed form.
 *
 * With kv_b in TILES what is given is rounded to bf16: queries, latents, rotated keys and weights,
 * which every backend rounds alike. What is computed from it (keys and values, queries in the
 * latent space, probabilities, sums) stays in double, so that a table, which rounds that too, is
 * half a unit in the last place of bf16 from here for each such rounding, and not a whole one.
 */
#include "common/kernels/ref/ref.h"
#include "common/kernels/ref/softmax.h"
#include "common/kernels/stream.h"
#include "common/kernels/tiles.h"
#include "common/kernels/weight.h"

/* What all steps of one call share. */
struct call {
    const float *q; /* [row][head][nope + rope] */
    const struct bt_mla_shape *shape;
    const struct bt_matrix *kv_b; /* [head][nope + v][lora] */
    const struct bt_kv_layer *kv;
    float *out;                    /* [row][head][v] */
    double *query;                 /* [nope + rope], one row of one head; decode: of each head */
    float *weights;                /* [lora], one row of kv_b */
    double *latents;               /* [BT_PAGE_TOKENS][lora + rope], a page */
    double *keys;                  /* [BT_PAGE_TOKENS][nope], of one head */
    double *values;                /* [BT_PAGE_TOKENS][v] */
    double *acc;                   /* [max_rows][v], or [heads][lora] for the absorbed form */
    double *q_lat;                 /* [heads][lora] */
    struct bt_ref_softmax *states; /* [max_rows], or [heads] */
};

static size_t q_head_dim(const struct bt_mla_shape *shape)
{
    return (size_t)shape->qk_nope_head_dim + shape->qk_rope_head_dim;
}

static size_t token_dim(const struct bt_mla_shape *shape)
{
    return (size_t)shape->kv_lora_rank + shape->qk_rope_head_dim;
}

size_t bt_ref_mla_scratch_bytes(const struct bt_stream_limits *limits)
{
    const struct bt_mla_shape *shape = &limits->mla;
    size_t both = bt_scratch_bytes(q_head_dim(shape), 8) +
                  bt_scratch_bytes(shape->kv_lora_rank, sizeof(float)) +
                  bt_scratch_bytes(BT_PAGE_TOKENS * token_dim(shape), 8);
    size_t prefill = bt_scratch_bytes((size_t)BT_PAGE_TOKENS * shape->qk_nope_head_dim, 8) +
                     bt_scratch_bytes((size_t)BT_PAGE_TOKENS * shape->v_head_dim, 8) +
                     bt_scratch_bytes((size_t)limits->max_rows * shape->v_head_dim, 8) +
                     bt_scratch_bytes(limits->max_rows, sizeof(struct bt_ref_softmax));
    size_t decode = bt_scratch_bytes(shape->heads * q_head_dim(shape), 8) +
                    2 * bt_scratch_bytes((size_t)shape->heads * shape->kv_lora_rank, 8) +
                    bt_scratch_bytes(shape->heads, sizeof(struct bt_ref_softmax));
    size_t write = bt_scratch_bytes(token_dim(shape), sizeof(float));
    size_t most = both + (prefill > decode ? prefill : decode);
    return most > write ? most : write;
}

static void take_scratch(struct call *call, struct bt_stream *stream)
{
    const struct bt_mla_shape *shape = call->shape;
    bt_scratch_reset(stream);
    call->query = bt_scratch_take(stream, q_head_dim(shape), sizeof(double));
    call->weights = bt_scratch_take(stream, shape->kv_lora_rank, sizeof(float));
    call->latents = bt_scratch_take(stream, BT_PAGE_TOKENS * token_dim(shape), sizeof(double));
}

/* call->query: what is multiplied of q's row and head. */
static void take_query(const struct call *call, size_t row, uint32_t head)
{
    size_t dim = q_head_dim(call->shape);
    const float *q = call->q + (row * call->shape->heads + head) * dim;
    for (size_t i = 0; i < dim; i++)
        call->query[i] = bt_ref_round_for(call->kv_b, q[i]);
}

static float *out_of(const struct call *call, size_t row, uint32_t head)
{
    return call->out + (row * call->shape->heads + head) * call->shape->v_head_dim;
}

/* call->weights: row `index` of the key rows and value rows of a head. */
static void take_weights(const struct call *call, uint32_t head, uint32_t index, bool absorbed)
{
    const struct bt_mla_shape *shape = call->shape;
    size_t lora = shape->kv_lora_rank;
    size_t row = (size_t)head * (shape->qk_nope_head_dim + shape->v_head_dim) + index;
    if (call->kv_b->layout == BT_LAYOUT_TILES)
        bt_tiles_read_kv_b(call->kv_b, shape, head, index, absorbed, call->weights);
    else
        bt_tiles_read(call->kv_b, row, 0, lora, call->weights);
}

/* call->latents: the first `tokens` tokens of the page that begins at `position`. */
static void take_page(const struct call *call, const uint32_t *pages, uint32_t position,
                      uint32_t tokens)
{
    size_t dim = token_dim(call->shape);
    for (uint32_t t = 0; t < tokens; t++) {
        const void *token = bt_kv_token(call->kv, pages, position + t);
        for (size_t i = 0; i < dim; i++)
            call->latents[t * dim + i] = bt_ref_round_for(call->kv_b, bt_kv_at(call->kv, token, i));
    }
}

static double rope_score(const struct call *call, uint32_t t)
{
    const struct bt_mla_shape *shape = call->shape;
    const double *key = call->latents + t * token_dim(shape) + shape->kv_lora_rank;
    double sum = 0;
    for (uint32_t i = 0; i < shape->qk_rope_head_dim; i++)
        sum += call->query[shape->qk_nope_head_dim + i] * key[i];
    return sum;
}

/* Keys and values of one head of the page in call->latents. */
static void expand_page(const struct call *call, uint32_t head, uint32_t tokens)
{
    const struct bt_mla_shape *shape = call->shape;
    uint32_t nope = shape->qk_nope_head_dim, v = shape->v_head_dim, lora = shape->kv_lora_rank;
    for (uint32_t i = 0; i < nope + v; i++) {
        double sums[BT_PAGE_TOKENS];
        take_weights(call, head, i, false);
        bt_ref_dots(call->latents, token_dim(shape), tokens, call->weights, lora, sums);
        for (uint32_t t = 0; t < tokens; t++) {
            if (i < nope)
                call->keys[(size_t)t * nope + i] = sums[t];
            else
                call->values[(size_t)t * v + i - nope] = sums[t];
        }
    }
}

/* The row in call->query takes in the `tokens` visible tokens of the expanded page. */
static void prefill_row(const struct call *call, uint32_t tokens, struct bt_ref_softmax *state,
                        double *acc)
{
    uint32_t nope = call->shape->qk_nope_head_dim, v = call->shape->v_head_dim;
    double scores[BT_PAGE_TOKENS];
    for (uint32_t t = 0; t < tokens; t++) {
        double sum = rope_score(call, t);
        for (uint32_t i = 0; i < nope; i++)
            sum += call->query[i] * call->keys[(size_t)t * nope + i];
        scores[t] = sum * call->shape->softmax_scale;
    }
    bt_ref_softmax_page(state, scores, tokens, acc, v);
    for (uint32_t t = 0; t < tokens; t++) {
        for (uint32_t i = 0; i < v; i++)
            acc[i] += scores[t] * call->values[(size_t)t * v + i];
    }
}

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static void prefill_head(const struct call *call, const struct bt_sequence_rows *sequence,
                         uint32_t head)
{
    uint32_t v = call->shape->v_head_dim;
    uint32_t end = sequence->start + sequence->row_count;
    for (uint32_t i = 0; i < sequence->row_count; i++)
        bt_ref_softmax_begin(&call->states[i], call->acc + (size_t)i * v, v);

    for (uint32_t position = 0; position < end; position += BT_PAGE_TOKENS) {
        uint32_t tokens = least(end - position, BT_PAGE_TOKENS);
        take_page(call, sequence->pages, position, tokens);
        expand_page(call, head, tokens);
        for (uint32_t i = 0; i < sequence->row_count; i++) {
            uint32_t seen = sequence->start + i + 1;
            if (seen <= position)
                continue;
            take_query(call, (size_t)sequence->first_row + i, head);
            prefill_row(call, least(seen - position, tokens), &call->states[i],
                        call->acc + (size_t)i * v);
        }
    }
    for (uint32_t i = 0; i < sequence->row_count; i++) {
        float *out = out_of(call, (size_t)sequence->first_row + i, head);
        for (uint32_t j = 0; j < v; j++)
            out[j] = (float)(call->acc[(size_t)i * v + j] / call->states[i].sum);
    }
}

void bt_ref_mla_prefill(struct bt_stream *stream, const float *q, const struct bt_mla_shape *shape,
                        const struct bt_matrix *kv_b, const struct bt_sequence_rows *sequences,
                        uint32_t sequence_count, const struct bt_kv_layer *kv, float *out)
{
    for (uint32_t s = 0; s < sequence_count; s++) {
        size_t rows = sequences[s].row_count, v = shape->v_head_dim;
        struct call call = {.q = q, .shape = shape, .kv_b = kv_b, .kv = kv, .out = out};
        take_scratch(&call, stream);
        call.keys = bt_scratch_take(stream, (size_t)BT_PAGE_TOKENS * shape->qk_nope_head_dim,
                                    sizeof(double));
        call.values = bt_scratch_take(stream, BT_PAGE_TOKENS * v, sizeof(double));
        call.acc = bt_scratch_take(stream, rows * v, sizeof(double));
        call.states = bt_scratch_take(stream, rows, sizeof(struct bt_ref_softmax));
        for (uint32_t h = 0; h < shape->heads; h++)
            prefill_head(&call, &sequences[s], h);
    }
}

/* q_lat[l] = sum_n q_nope[n] * W_k[n][l] */
static void absorb_query(const struct call *call, uint32_t head)
{
    uint32_t lora = call->shape->kv_lora_rank;
    memset(call->q_lat, 0, lora * sizeof(*call->q_lat));
    for (uint32_t n = 0; n < call->shape->qk_nope_head_dim; n++) {
        take_weights(call, head, n, true);
        for (uint32_t l = 0; l < lora; l++)
            call->q_lat[l] += call->query[n] * call->weights[l];
    }
}

static void decode_page(const struct call *call, uint32_t tokens, struct bt_ref_softmax *state)
{
    uint32_t lora = call->shape->kv_lora_rank;
    size_t dim = token_dim(call->shape);
    double scores[BT_PAGE_TOKENS];
    for (uint32_t t = 0; t < tokens; t++) {
        double sum = rope_score(call, t);
        for (uint32_t l = 0; l < lora; l++)
            sum += call->q_lat[l] * call->latents[t * dim + l];
        scores[t] = sum * call->shape->softmax_scale;
    }
    bt_ref_softmax_page(state, scores, tokens, call->acc, lora);
    for (uint32_t t = 0; t < tokens; t++) {
        for (uint32_t l = 0; l < lora; l++)
            call->acc[l] += scores[t] * call->latents[t * dim + l];
    }
}

/* The call, its query, q_lat and acc those of one head of all. */
static struct call of_head(const struct call *call, size_t head)
{
    size_t lora = call->shape->kv_lora_rank;
    struct call one = *call;
    one.query += head * q_head_dim(call->shape);
    one.q_lat += head * lora;
    one.acc += head * lora;
    return one;
}

/* All heads of a row, page by page: a page is read once. */
static void decode_row(const struct call *call, const struct bt_sequence_rows *sequence,
                       uint32_t index)
{
    const struct bt_mla_shape *shape = call->shape;
    size_t row = (size_t)sequence->first_row + index;
    uint32_t seen = sequence->start + index + 1;

    for (uint32_t h = 0; h < shape->heads; h++) {
        struct call head = of_head(call, h);
        take_query(&head, row, h);
        absorb_query(&head, h);
        bt_ref_softmax_begin(&call->states[h], head.acc, shape->kv_lora_rank);
    }
    for (uint32_t position = 0; position < seen; position += BT_PAGE_TOKENS) {
        uint32_t tokens = least(seen - position, BT_PAGE_TOKENS);
        take_page(call, sequence->pages, position, tokens);
        for (uint32_t h = 0; h < shape->heads; h++) {
            struct call head = of_head(call, h);
            decode_page(&head, tokens, &call->states[h]);
        }
    }
    for (uint32_t h = 0; h < shape->heads; h++) {
        struct call head = of_head(call, h);
        float *out = out_of(call, row, h);
        for (uint32_t i = 0; i < shape->v_head_dim; i++) {
            take_weights(&head, h, shape->qk_nope_head_dim + i, true);
            out[i] =
                (float)(bt_ref_dot_double(head.acc, head.weights, BT_F32, shape->kv_lora_rank) /
                        call->states[h].sum);
        }
    }
}

void bt_ref_mla_decode(struct bt_stream *stream, const float *q, const struct bt_mla_shape *shape,
                       const struct bt_matrix *kv_b, const struct bt_sequence_rows *sequences,
                       uint32_t sequence_count, const struct bt_kv_layer *kv, float *out)
{
    struct call call = {.q = q, .shape = shape, .kv_b = kv_b, .kv = kv, .out = out};
    take_scratch(&call, stream);
    size_t heads = shape->heads;
    call.query = bt_scratch_take(stream, heads * q_head_dim(shape), sizeof(double));
    call.acc = bt_scratch_take(stream, heads * shape->kv_lora_rank, sizeof(double));
    call.q_lat = bt_scratch_take(stream, heads * shape->kv_lora_rank, sizeof(double));
    call.states = bt_scratch_take(stream, heads, sizeof(struct bt_ref_softmax));
    for (uint32_t s = 0; s < sequence_count; s++) {
        for (uint32_t i = 0; i < sequences[s].row_count; i++)
            decode_row(&call, &sequences[s], i);
    }
}
