/*
 * MLA in its absorbed form. A group of rows at a time, in parts of some heads each: their queries
 * to the latent space head by head (one read of the key rows of kv_b for the group), attention row
 * by row with all heads of the part over one page, results back head by head.
 */
#include <math.h>

#include "common/kernels/stream.h"
#include "common/kernels/x86/kv_page.h"
#include "common/kernels/x86/mla_memory.h"
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
    char *threads;
    struct bt_rows_decode_memory memory;
    size_t head_dim, padded_lora, padded_key;
    /* the group: neighbouring rows of a sequence that are worked on together */
    const struct bt_sequence_rows *sequence;
    size_t offset, count; /* in the sequence */
    uint32_t parts;       /* of the heads */
};

/* One thread's: bt_rows_decode_memory. Heads are counted from the part's first. */
struct workspace {
    float *page, *scores, *max, *sum;
    size_t first, heads; /* of this part */
};

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

static void absorb_queries(const struct call *call, size_t h)
{
    const struct bt_mla_shape *shape = call->shape;
    size_t nope = shape->qk_nope_head_dim, lora = shape->kv_lora_rank;
    size_t per_head = nope + shape->v_head_dim, stride = shape->heads * call->padded_key;
    struct bt_x86_weights keys = bt_x86_weights_of(call->kv_b, h * per_head, nope);
    const float *q =
        call->q + ((call->sequence->first_row + call->offset) * shape->heads + h) * call->head_dim;
    float *out = call->queries + h * call->padded_key;

    for (size_t i = 0; i < call->count; i++) {
        memset(out + i * stride, 0, lora * sizeof(*out));
        memcpy(out + i * stride + lora, q + i * shape->heads * call->head_dim + nope,
               shape->qk_rope_head_dim * sizeof(*out));
    }
    BT_X86_NAME(accumulate)
    ((struct bt_x86_rows){q, call->count, shape->heads * call->head_dim}, nope, keys.data,
     keys.dtype, lora, lora, out, stride);
}

/* The part's heads of one row take in the first `tokens` tokens of a page. */
static void take_page(const struct call *call, const struct workspace *w, size_t in_group,
                      uint32_t page, size_t tokens)
{
    const struct bt_mla_shape *shape = call->shape;
    size_t width = bt_kv_width(call->kv), lora = shape->kv_lora_rank;
    size_t head = in_group * shape->heads + w->first;
    const float *queries = call->queries + head * call->padded_key;
    float *latents = call->latents + head * call->padded_lora;
    struct bt_x86_weights keys = {w->page, BT_F32, tokens, width, call->padded_key};

    BT_X86_NAME(kv_widen)(call->kv, page, tokens, w->page);
    BT_X86_NAME(product_direct)
    ((struct bt_x86_rows){queries, w->heads, call->padded_key}, keys, w->scores, BT_PAGE_TOKENS);
    for (size_t h = 0; h < w->heads; h++)
        BT_X86_NAME(softmax_page)
    (w->scores + h * BT_PAGE_TOKENS, tokens, shape->softmax_scale, &w->max[h], &w->sum[h],
     latents + h * call->padded_lora, lora);
    BT_X86_NAME(accumulate)
    ((struct bt_x86_rows){w->scores, w->heads, BT_PAGE_TOKENS}, tokens, w->page, BT_F32,
     call->padded_key, lora, latents, call->padded_lora);
}

/* One row over its `seen` tokens, into its latents. */
static void attend_row(const struct call *call, const struct workspace *w, size_t in_group)
{
    size_t seen = call->sequence->start + call->offset + in_group + 1;
    float *latents = call->latents + (in_group * call->shape->heads + w->first) * call->padded_lora;

    memset(latents, 0, w->heads * call->padded_lora * sizeof(*latents));
    for (size_t h = 0; h < w->heads; h++) {
        w->max[h] = -INFINITY;
        w->sum[h] = 0;
    }
    for (size_t position = 0; position < seen; position += BT_PAGE_TOKENS)
        take_page(call, w, in_group, call->sequence->pages[position / BT_PAGE_TOKENS],
                  least(seen - position, BT_PAGE_TOKENS));
    for (size_t h = 0; h < w->heads; h++)
        BT_X86_NAME(softmax_end)
    (latents + h * call->padded_lora, w->sum[h], call->shape->kv_lora_rank,
     latents + h * call->padded_lora);
}

static void return_values(const struct call *call, size_t h)
{
    const struct bt_mla_shape *shape = call->shape;
    size_t nope = shape->qk_nope_head_dim, v = shape->v_head_dim;
    struct bt_x86_rows rows = {call->latents + h * call->padded_lora, call->count,
                               shape->heads * call->padded_lora};
    BT_X86_NAME(product_direct)
    (rows, bt_x86_weights_of(call->kv_b, h * (nope + v) + nope, v),
     call->out + ((call->sequence->first_row + call->offset) * shape->heads + h) * v,
     shape->heads * v);
}

static void decode_heads(void *context, uint32_t part, uint32_t thread)
{
    const struct call *call = context;
    const struct bt_rows_decode_memory *m = &call->memory;
    size_t heads = call->shape->heads, end = (part + 1) * heads / call->parts;
    struct workspace w = {.page = (float *)(call->threads + thread * m->thread)};
    w.scores = w.page + m->page / sizeof(float);
    w.max = w.scores + m->scores / sizeof(float);
    w.sum = w.max + m->state / sizeof(float);
    w.first = part * heads / call->parts;
    w.heads = end - w.first;
    for (size_t h = w.first; h < end; h++)
        absorb_queries(call, h);
    for (size_t i = 0; i < call->count; i++)
        attend_row(call, &w, i);
    for (size_t h = w.first; h < end; h++)
        return_values(call, h);
}

void BT_X86_NAME(rows_mla_decode)(struct bt_stream *stream, const float *q,
                                  const struct bt_mla_shape *shape, const struct bt_matrix *kv_b,
                                  const struct bt_sequence_rows *sequences, uint32_t sequence_count,
                                  const struct bt_kv_layer *kv, float *out)
{
    struct call call = {.q = q, .shape = shape, .kv_b = kv_b, .kv = kv, .out = out};
    uint32_t threads = bt_team_threads(stream->team);
    call.memory = bt_rows_decode_memory(shape);
    call.head_dim = (size_t)shape->qk_nope_head_dim + shape->qk_rope_head_dim;
    call.padded_lora = bt_x86_padded(shape->kv_lora_rank);
    call.padded_key = bt_x86_padded((size_t)shape->kv_lora_rank + shape->qk_rope_head_dim);
    call.parts = (uint32_t)least(threads, shape->heads);

    bt_scratch_reset(stream);
    call.queries = bt_scratch_take(stream, call.memory.queries, 1);
    call.latents = bt_scratch_take(stream, call.memory.latents, 1);
    call.threads = bt_scratch_take(stream, threads, call.memory.thread);
    for (uint32_t s = 0; s < sequence_count; s++) {
        call.sequence = &sequences[s];
        for (call.offset = 0; call.offset < sequences[s].row_count; call.offset += call.count) {
            call.count = least(sequences[s].row_count - call.offset, BT_X86_DECODE_ROWS);
            bt_team_run(stream->team, decode_heads, &call, call.parts);
        }
    }
}
