/* Attention over latent pages, in the multi-head form and in the absorbed form. */
#include "common/kernels/ref/ref.h"
#include "common/kernels/ref/softmax.h"
#include "common/kernels/stream.h"
#include "common/kernels/weight.h"

/* What all steps of one call share. */
struct call {
    const float *q; /* [row][head][nope + rope] */
    const struct bt_mla_shape *shape;
    const struct bt_matrix *kv_b; /* [head][nope + v][lora] */
    const struct bt_kv_layer *kv;
    float *out;                    /* [row][head][v] */
    double *keys;                  /* [BT_PAGE_TOKENS][nope], of one head */
    double *values;                /* [BT_PAGE_TOKENS][v] */
    double *acc;                   /* [max_rows][v], or [lora] for the absorbed form */
    double *q_lat;                 /* [lora] */
    struct bt_ref_softmax *states; /* [max_rows] */
};

size_t bt_ref_mla_scratch_bytes(const struct bt_stream_limits *limits)
{
    const struct bt_mla_shape *shape = &limits->mla;
    size_t prefill = bt_scratch_bytes((size_t)BT_PAGE_TOKENS * shape->qk_nope_head_dim, 8) +
                     bt_scratch_bytes((size_t)BT_PAGE_TOKENS * shape->v_head_dim, 8) +
                     bt_scratch_bytes((size_t)limits->max_rows * shape->v_head_dim, 8) +
                     bt_scratch_bytes(limits->max_rows, sizeof(struct bt_ref_softmax));
    size_t decode = 2 * bt_scratch_bytes(shape->kv_lora_rank, 8);
    size_t rope = bt_scratch_bytes(shape->qk_rope_head_dim, sizeof(float));
    size_t most = prefill > decode ? prefill : decode;
    return most > rope ? most : rope;
}

static size_t q_head_dim(const struct bt_mla_shape *shape)
{
    return (size_t)shape->qk_nope_head_dim + shape->qk_rope_head_dim;
}

static const float *q_of(const struct call *call, size_t row, uint32_t head)
{
    return call->q + (row * call->shape->heads + head) * q_head_dim(call->shape);
}

static float *out_of(const struct call *call, size_t row, uint32_t head)
{
    return call->out + (row * call->shape->heads + head) * call->shape->v_head_dim;
}

/* Row `index` of the key rows and value rows of a head. */
static const void *kv_b_row(const struct call *call, uint32_t head, uint32_t index)
{
    size_t per_head = (size_t)call->shape->qk_nope_head_dim + call->shape->v_head_dim;
    return bt_weight_row(call->kv_b, head * per_head + index);
}

static double rope_score(const struct call *call, const float *q, const void *token)
{
    const struct bt_mla_shape *shape = call->shape;
    double sum = 0;
    for (uint32_t i = 0; i < shape->qk_rope_head_dim; i++)
        sum += (double)q[shape->qk_nope_head_dim + i] *
               bt_element_load(token, call->kv->dtype, shape->kv_lora_rank + i);
    return sum;
}

/* Keys and values of the first `tokens` tokens of the page that begins at `position`. */
static void expand_page(const struct call *call, uint32_t head, const uint32_t *pages,
                        uint32_t position, uint32_t tokens)
{
    const struct bt_mla_shape *shape = call->shape;
    uint32_t nope = shape->qk_nope_head_dim, v = shape->v_head_dim;
    for (uint32_t t = 0; t < tokens; t++) {
        const void *latent = bt_kv_token(call->kv, pages, position + t);
        for (uint32_t i = 0; i < nope + v; i++) {
            const void *row = kv_b_row(call, head, i);
            double sum = 0;
            for (uint32_t l = 0; l < shape->kv_lora_rank; l++)
                sum += (double)bt_element_load(latent, call->kv->dtype, l) *
                       bt_element_load(row, call->kv_b->dtype, l);
            if (i < nope)
                call->keys[(size_t)t * nope + i] = sum;
            else
                call->values[(size_t)t * v + i - nope] = sum;
        }
    }
}

/* One row of one head takes in the `tokens` visible tokens of the expanded page. */
static void prefill_row(const struct call *call, const float *q, const uint32_t *pages,
                        uint32_t position, uint32_t tokens, struct bt_ref_softmax *state,
                        double *acc)
{
    uint32_t nope = call->shape->qk_nope_head_dim, v = call->shape->v_head_dim;
    double scores[BT_PAGE_TOKENS];
    for (uint32_t t = 0; t < tokens; t++) {
        double sum = rope_score(call, q, bt_kv_token(call->kv, pages, position + t));
        for (uint32_t i = 0; i < nope; i++)
            sum += q[i] * call->keys[(size_t)t * nope + i];
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
        expand_page(call, head, sequence->pages, position, tokens);
        for (uint32_t i = 0; i < sequence->row_count; i++) {
            uint32_t seen = sequence->start + i + 1;
            if (seen > position)
                prefill_row(call, q_of(call, (size_t)sequence->first_row + i, head),
                            sequence->pages, position, least(seen - position, tokens),
                            &call->states[i], call->acc + (size_t)i * v);
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
        bt_scratch_reset(stream);
        struct call call = {
            .q = q,
            .shape = shape,
            .kv_b = kv_b,
            .kv = kv,
            .out = out,
            .keys = bt_scratch_take(stream, (size_t)BT_PAGE_TOKENS * shape->qk_nope_head_dim,
                                    sizeof(double)),
            .values = bt_scratch_take(stream, BT_PAGE_TOKENS * v, sizeof(double)),
            .acc = bt_scratch_take(stream, rows * v, sizeof(double)),
            .states = bt_scratch_take(stream, rows, sizeof(struct bt_ref_softmax)),
        };
        for (uint32_t h = 0; h < shape->heads; h++)
            prefill_head(&call, &sequences[s], h);
    }
}

/* q_lat[l] = sum_n q_nope[n] * W_k[n][l] */
static void absorb_query(const struct call *call, const float *q, uint32_t head)
{
    uint32_t lora = call->shape->kv_lora_rank;
    memset(call->q_lat, 0, lora * sizeof(*call->q_lat));
    for (uint32_t n = 0; n < call->shape->qk_nope_head_dim; n++) {
        const void *row = kv_b_row(call, head, n);
        for (uint32_t l = 0; l < lora; l++)
            call->q_lat[l] += (double)q[n] * bt_element_load(row, call->kv_b->dtype, l);
    }
}

static void decode_page(const struct call *call, const float *q, const uint32_t *pages,
                        uint32_t position, uint32_t tokens, struct bt_ref_softmax *state)
{
    uint32_t lora = call->shape->kv_lora_rank;
    double scores[BT_PAGE_TOKENS];
    for (uint32_t t = 0; t < tokens; t++) {
        const void *token = bt_kv_token(call->kv, pages, position + t);
        scores[t] = (bt_ref_dot_double(call->q_lat, token, call->kv->dtype, lora) +
                     rope_score(call, q, token)) *
                    call->shape->softmax_scale;
    }
    bt_ref_softmax_page(state, scores, tokens, call->acc, lora);
    for (uint32_t t = 0; t < tokens; t++) {
        const void *token = bt_kv_token(call->kv, pages, position + t);
        for (uint32_t l = 0; l < lora; l++)
            call->acc[l] += scores[t] * bt_element_load(token, call->kv->dtype, l);
    }
}

static void decode_row(const struct call *call, const struct bt_sequence_rows *sequence,
                       uint32_t index, uint32_t head)
{
    const struct bt_mla_shape *shape = call->shape;
    size_t row = (size_t)sequence->first_row + index;
    uint32_t seen = sequence->start + index + 1;
    const float *q = q_of(call, row, head);
    float *out = out_of(call, row, head);
    struct bt_ref_softmax state;

    absorb_query(call, q, head);
    bt_ref_softmax_begin(&state, call->acc, shape->kv_lora_rank);
    for (uint32_t position = 0; position < seen; position += BT_PAGE_TOKENS)
        decode_page(call, q, sequence->pages, position, least(seen - position, BT_PAGE_TOKENS),
                    &state);
    for (uint32_t i = 0; i < shape->v_head_dim; i++)
        out[i] =
            (float)(bt_ref_dot_double(call->acc, kv_b_row(call, head, shape->qk_nope_head_dim + i),
                                      call->kv_b->dtype, shape->kv_lora_rank) /
                    state.sum);
}

void bt_ref_mla_decode(struct bt_stream *stream, const float *q, const struct bt_mla_shape *shape,
                       const struct bt_matrix *kv_b, const struct bt_sequence_rows *sequences,
                       uint32_t sequence_count, const struct bt_kv_layer *kv, float *out)
{
    bt_scratch_reset(stream);
    struct call call = {
        .q = q,
        .shape = shape,
        .kv_b = kv_b,
        .kv = kv,
        .out = out,
        .acc = bt_scratch_take(stream, shape->kv_lora_rank, sizeof(double)),
        .q_lat = bt_scratch_take(stream, shape->kv_lora_rank, sizeof(double)),
    };
    for (uint32_t s = 0; s < sequence_count; s++) {
        for (uint32_t i = 0; i < sequences[s].row_count; i++) {
            for (uint32_t h = 0; h < shape->heads; h++)
                decode_row(&call, &sequences[s], i, h);
        }
    }
}
