/*
 * MLA in its absorbed form. A group of rows at a time: queries to the latent space head by head
 * (one read of the key rows of kv_b for the group), attention row by row with all heads of a row
 * over one page, results back head by head.
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
    float *queries; /* [group row][head][padded lora + rope]: q_lat, then q_pe */
    float *latents; /* [group row][head][padded lora]: the result in the latent space */
    float *page;    /* [page token][padded lora + rope] */
    float *scores;  /* [head][page token] */
    float *max;     /* [head] */
    float *sum;     /* [head] */
    size_t head_dim, padded_lora, padded_key;
};

/* Rows of neighbouring batch positions that are worked on together. */
struct group {
    size_t first_row, count;
};

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

static void absorb_queries(const struct call *call, struct group group, size_t h)
{
    const struct bt_mla_shape *shape = call->shape;
    size_t nope = shape->qk_nope_head_dim, lora = shape->kv_lora_rank;
    size_t per_head = nope + shape->v_head_dim, stride = shape->heads * call->padded_key;
    struct bt_x86_weights keys = bt_x86_weights_of(call->kv_b, h * per_head, nope);
    const float *q = call->q + (group.first_row * shape->heads + h) * call->head_dim;
    float *out = call->queries + h * call->padded_key;

    for (size_t i = 0; i < group.count; i++) {
        memset(out + i * stride, 0, lora * sizeof(*out));
        memcpy(out + i * stride + lora, q + i * shape->heads * call->head_dim + nope,
               shape->qk_rope_head_dim * sizeof(*out));
    }
    BT_X86_NAME(accumulate)
    ((struct bt_x86_rows){q, group.count, shape->heads * call->head_dim}, nope, keys.data,
     keys.dtype, lora, lora, out, stride);
}

/* All heads of one row take in the first `tokens` tokens of a page. */
static void take_page(const struct call *call, size_t in_group, uint32_t page, size_t tokens)
{
    const struct bt_mla_shape *shape = call->shape;
    const struct bt_kv_layer *kv = call->kv;
    size_t width = bt_kv_width(kv), lora = shape->kv_lora_rank, heads = shape->heads;
    const float *queries = call->queries + in_group * heads * call->padded_key;
    float *latents = call->latents + in_group * heads * call->padded_lora;
    struct bt_x86_weights raw = {bt_kv_token(kv, &page, 0), kv->dtype, tokens, width, width};
    struct bt_x86_weights keys = {call->page, BT_F32, tokens, width, call->padded_key};

    BT_X86_NAME(widen)(raw, call->page);
    BT_X86_NAME(product_direct)
    ((struct bt_x86_rows){queries, heads, call->padded_key}, keys, call->scores, BT_PAGE_TOKENS);
    for (size_t h = 0; h < heads; h++)
        BT_X86_NAME(softmax_page)
    (call->scores + h * BT_PAGE_TOKENS, tokens, shape->softmax_scale, &call->max[h], &call->sum[h],
     latents + h * call->padded_lora, lora);
    BT_X86_NAME(accumulate)
    ((struct bt_x86_rows){call->scores, heads, BT_PAGE_TOKENS}, tokens, call->page, BT_F32,
     call->padded_key, lora, latents, call->padded_lora);
}

/* One row over its `seen` tokens, into its latents. */
static void attend_row(const struct call *call, size_t in_group, const uint32_t *pages, size_t seen)
{
    size_t heads = call->shape->heads;
    float *latents = call->latents + in_group * heads * call->padded_lora;

    memset(latents, 0, heads * call->padded_lora * sizeof(*latents));
    for (size_t h = 0; h < heads; h++) {
        call->max[h] = -INFINITY;
        call->sum[h] = 0;
    }
    for (size_t position = 0; position < seen; position += BT_PAGE_TOKENS)
        take_page(call, in_group, pages[position / BT_PAGE_TOKENS],
                  least(seen - position, BT_PAGE_TOKENS));
    for (size_t h = 0; h < heads; h++)
        BT_X86_NAME(softmax_end)
    (latents + h * call->padded_lora, call->sum[h], call->shape->kv_lora_rank,
     latents + h * call->padded_lora);
}

static void return_values(const struct call *call, struct group group, size_t h)
{
    const struct bt_mla_shape *shape = call->shape;
    size_t nope = shape->qk_nope_head_dim, v = shape->v_head_dim;
    struct bt_x86_rows rows = {call->latents + h * call->padded_lora, group.count,
                               shape->heads * call->padded_lora};
    BT_X86_NAME(product_direct)
    (rows, bt_x86_weights_of(call->kv_b, h * (nope + v) + nope, v),
     call->out + (group.first_row * shape->heads + h) * v, shape->heads * v);
}

static void decode_group(const struct call *call, const struct bt_sequence_rows *sequence,
                         size_t offset, size_t count)
{
    struct group group = {sequence->first_row + offset, count};
    for (size_t h = 0; h < call->shape->heads; h++)
        absorb_queries(call, group, h);
    for (size_t i = 0; i < count; i++)
        attend_row(call, i, sequence->pages, sequence->start + offset + i + 1);
    for (size_t h = 0; h < call->shape->heads; h++)
        return_values(call, group, h);
}

void BT_X86_NAME(rows_mla_decode)(struct bt_stream *stream, const float *q,
                                  const struct bt_mla_shape *shape, const struct bt_matrix *kv_b,
                                  const struct bt_sequence_rows *sequences, uint32_t sequence_count,
                                  const struct bt_kv_layer *kv, float *out)
{
    struct call call = {.q = q, .shape = shape, .kv_b = kv_b, .kv = kv, .out = out};
    size_t heads = shape->heads, group_heads = BT_X86_DECODE_ROWS * heads;
    call.head_dim = (size_t)shape->qk_nope_head_dim + shape->qk_rope_head_dim;
    call.padded_lora = bt_x86_padded(shape->kv_lora_rank);
    call.padded_key = bt_x86_padded((size_t)shape->kv_lora_rank + shape->qk_rope_head_dim);

    bt_scratch_reset(stream);
    call.queries = bt_scratch_take(stream, group_heads * call.padded_key, sizeof(float));
    call.latents = bt_scratch_take(stream, group_heads * call.padded_lora, sizeof(float));
    call.page = bt_scratch_take(stream, BT_PAGE_TOKENS * call.padded_key, sizeof(float));
    call.scores = bt_scratch_take(stream, heads * BT_PAGE_TOKENS, sizeof(float));
    call.max = bt_scratch_take(stream, heads, sizeof(float));
    call.sum = bt_scratch_take(stream, heads, sizeof(float));
    for (uint32_t s = 0; s < sequence_count; s++) {
        for (size_t i = 0; i < sequences[s].row_count; i += BT_X86_DECODE_ROWS)
            decode_group(&call, &sequences[s], i,
                         least(sequences[s].row_count - i, BT_X86_DECODE_ROWS));
    }
}
