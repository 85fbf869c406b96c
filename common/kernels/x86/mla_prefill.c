/*
 * MLA in its multi-head form. Head by head, so that one head's rows of kv_b are converted once;
 * page by page, so that the keys and values of a page are expanded once for all rows.
 */
#include <math.h>

#include "common/kernels/stream.h"
#include "common/kernels/weight.h"
#include "common/kernels/x86/product.h"
#include "common/kernels/x86/softmax.h"
#include "common/kernels/x86/tables.h"

struct call {
    const float *q; /* [row][head][nope + rope] */
    const struct bt_mla_shape *shape;
    const struct bt_matrix *kv_b;
    const struct bt_kv_layer *kv;
    float *out;     /* [row][head][v] */
    float *weights; /* [nope + v][padded lora]: kv_b of this head */
    float *latents; /* [page token][padded lora] */
    float *keys;    /* [page token][padded nope + rope] */
    float *values;  /* [page token][padded v] */
    float *scores;  /* [BT_X86_PREFILL_ROWS][page token] */
    float *acc;     /* [row of the sequence][padded v] */
    float *max;     /* [row of the sequence] */
    float *sum;     /* [row of the sequence] */
    size_t head_dim, padded_lora, padded_key, padded_v;
};

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

static struct bt_x86_weights panel_of(const float *data, size_t outs, size_t cols, size_t stride)
{
    return (struct bt_x86_weights){data, BT_F32, outs, cols, stride};
}

/* keys and values of the first `tokens` tokens of the page */
static void expand_page(const struct call *call, uint32_t page, size_t tokens)
{
    const struct bt_mla_shape *shape = call->shape;
    const struct bt_kv_layer *kv = call->kv;
    size_t nope = shape->qk_nope_head_dim, lora = shape->kv_lora_rank, width = bt_kv_width(kv);
    struct bt_x86_weights latents = {bt_kv_token(kv, &page, 0), kv->dtype, tokens, lora, width};
    struct bt_x86_rows rows = {call->latents, tokens, call->padded_lora};

    BT_X86_NAME(widen)(latents, call->latents);
    BT_X86_NAME(product_direct)
    (rows, panel_of(call->weights, nope, lora, call->padded_lora), call->keys, call->padded_key);
    BT_X86_NAME(product_direct)
    (rows,
     panel_of(call->weights + nope * call->padded_lora, shape->v_head_dim, lora, call->padded_lora),
     call->values, call->padded_v);
    for (size_t t = 0; t < tokens; t++) {
        for (size_t i = 0; i < shape->qk_rope_head_dim; i++)
            call->keys[t * call->padded_key + nope + i] =
                bt_element_load(latents.data, kv->dtype, t * width + lora + i);
    }
}

/*
 * Rows first … first + count - 1 of the sequence (count <= BT_X86_PREFILL_ROWS) take in the page;
 * row first + i sees min(seen + i, tokens) of its tokens. q: of row first, this head.
 */
static void take_page(const struct call *call, const float *q, size_t first, size_t count,
                      size_t seen, size_t tokens)
{
    size_t v = call->shape->v_head_dim, row_stride = call->shape->heads * call->head_dim;
    float *acc = call->acc + first * call->padded_v;

    BT_X86_NAME(product_direct)
    ((struct bt_x86_rows){q, count, row_stride},
     panel_of(call->keys, tokens, call->head_dim, call->padded_key), call->scores, BT_PAGE_TOKENS);
    for (size_t i = 0; i < count; i++)
        BT_X86_NAME(softmax_page)
    (call->scores + i * BT_PAGE_TOKENS, least(seen + i, tokens), call->shape->softmax_scale,
     &call->max[first + i], &call->sum[first + i], acc + i * call->padded_v, v);

    size_t partial = seen >= tokens ? 0 : least(tokens - seen, count);
    for (size_t i = 0; i < partial; i++)
        BT_X86_NAME(accumulate)
    ((struct bt_x86_rows){call->scores + i * BT_PAGE_TOKENS, 1, BT_PAGE_TOKENS}, seen + i,
     call->values, BT_F32, call->padded_v, v, acc + i * call->padded_v, call->padded_v);
    BT_X86_NAME(accumulate)
    ((struct bt_x86_rows){call->scores + partial * BT_PAGE_TOKENS, count - partial, BT_PAGE_TOKENS},
     tokens, call->values, BT_F32, call->padded_v, v, acc + partial * call->padded_v,
     call->padded_v);
}

static void begin_rows(const struct call *call, size_t rows)
{
    for (size_t i = 0; i < rows; i++) {
        call->max[i] = -INFINITY;
        call->sum[i] = 0;
    }
    memset(call->acc, 0, rows * call->padded_v * sizeof(*call->acc));
}

static void attend_head(const struct call *call, const struct bt_sequence_rows *sequence, size_t h)
{
    const struct bt_mla_shape *shape = call->shape;
    size_t per_head = (size_t)shape->qk_nope_head_dim + shape->v_head_dim;
    size_t start = sequence->start, rows = sequence->row_count, end = start + rows;
    const float *q = call->q + (sequence->first_row * (size_t)shape->heads + h) * call->head_dim;

    BT_X86_NAME(widen)(bt_x86_weights_of(call->kv_b, h * per_head, per_head), call->weights);
    begin_rows(call, rows);
    for (size_t position = 0; position < end; position += BT_PAGE_TOKENS) {
        size_t tokens = least(end - position, BT_PAGE_TOKENS);
        size_t first = position > start ? position - start : 0; /* row that sees the page's first */
        expand_page(call, sequence->pages[position / BT_PAGE_TOKENS], tokens);
        for (; first < rows; first += BT_X86_PREFILL_ROWS)
            take_page(call, q + first * shape->heads * call->head_dim, first,
                      least(rows - first, BT_X86_PREFILL_ROWS), start + first + 1 - position,
                      tokens);
    }
    for (size_t i = 0; i < rows; i++)
        BT_X86_NAME(softmax_end)
    (call->acc + i * call->padded_v, call->sum[i], shape->v_head_dim,
     call->out + ((sequence->first_row + i) * shape->heads + h) * shape->v_head_dim);
}

void BT_X86_NAME(rows_mla_prefill)(struct bt_stream *stream, const float *q,
                                   const struct bt_mla_shape *shape, const struct bt_matrix *kv_b,
                                   const struct bt_sequence_rows *sequences,
                                   uint32_t sequence_count, const struct bt_kv_layer *kv,
                                   float *out)
{
    struct call call = {.q = q, .shape = shape, .kv_b = kv_b, .kv = kv, .out = out};
    size_t per_head = (size_t)shape->qk_nope_head_dim + shape->v_head_dim;
    call.head_dim = (size_t)shape->qk_nope_head_dim + shape->qk_rope_head_dim;
    call.padded_lora = bt_x86_padded(shape->kv_lora_rank);
    call.padded_key = bt_x86_padded(call.head_dim);
    call.padded_v = bt_x86_padded(shape->v_head_dim);

    for (uint32_t s = 0; s < sequence_count; s++) {
        size_t rows = sequences[s].row_count;
        bt_scratch_reset(stream);
        call.weights = bt_scratch_take(stream, per_head * call.padded_lora, sizeof(float));
        call.latents = bt_scratch_take(stream, BT_PAGE_TOKENS * call.padded_lora, sizeof(float));
        call.keys = bt_scratch_take(stream, BT_PAGE_TOKENS * call.padded_key, sizeof(float));
        call.values = bt_scratch_take(stream, BT_PAGE_TOKENS * call.padded_v, sizeof(float));
        call.scores = bt_scratch_take(stream, BT_X86_PREFILL_ROWS * BT_PAGE_TOKENS, sizeof(float));
        call.acc = bt_scratch_take(stream, rows * call.padded_v, sizeof(float));
        call.max = bt_scratch_take(stream, rows, sizeof(float));
        call.sum = bt_scratch_take(stream, rows, sizeof(float));
        for (size_t h = 0; h < shape->heads; h++)
            attend_head(&call, &sequences[s], h);
    }
}
